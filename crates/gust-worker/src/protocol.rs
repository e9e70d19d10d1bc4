//! What a node agent and a worker say to each other.
//!
//! One stream socket pair joins the two. A message is one frame: a fixed header, a postcard-encoded [`Command`] or
//! [`Report`], then a raw body (an event, an answer, a piece of log), so that bodies are never copied through the
//! encoder. Descriptors travel beside a frame's first byte (`SCM_RIGHTS`), in the order that each command documents.
//!
//! ```text
//!             Boot            Init                 Invoke
//!   Pooled ---------> Based --------> Waiting <------------------> Busy
//!     |                 ^                ^  |      Answer,Waiting
//!     |  Restore(base)  |                |  | Capture, Replan
//!     +-----------------+                |  +--------> Waiting
//!     |  Restore(version)                |  | Rewind ----> Waiting, as its snapshot left it
//!     |                                  |               Based: a base that has been laid out ahead takes Restore(version)
//!     |                                  | Freeze --> Frozen: given back by Restore(version) with its body
//!     +----------------------------------+               too, when the version's layout has a graft for it
//!   Pooled --- Run ---> Program --- Ran, CannotRun ---> the worker ends
//!                                                     any state --> Exited (the guest's end is the worker's end)
//! ```
//!
//! The node trusts nothing that comes back: every length is bounded before it is believed, and what a worker
//! captures is handed only to workers of the same function version (invariant 3).

pub use gust_linux::Destination;
use serde::{Deserialize, Serialize};

/// First four bytes of every frame.
pub const FRAME_MAGIC: u32 = 0x3157_5547; // "GUW1", little-endian

/// Bytes of a frame header on the wire: magic, meta length, body length, descriptor count; each `u32`, little-endian.
pub const FRAME_HEADER_BYTES: usize = 16;

/// Longest encoded command or report, in bytes. 4 KiB of environment is the largest honest content.
pub const META_BYTES_MAX: usize = 256 << 10;

/// Longest body, in bytes: Lambda's 6 MiB synchronous payload, and room for what wraps it.
pub const BODY_BYTES_MAX: usize = 8 << 20;

/// Most bytes of a response or an error document: Lambda's 6 MiB with 100 bytes of leeway.
pub const RESPONSE_BYTES_MAX: u64 = (6 << 20) + 100;

/// Longest frozen instance, in bytes. One that is longer is kept as it is: what it would save is little, and its time is
/// the call's.
pub const FROZEN_BYTES_MAX: usize = 2 << 20;

/// Most descriptors that travel with one frame.
pub const DESCRIPTORS_MAX: usize = 16;

/// Most bytes of guest output that a worker forwards for one invocation; the rest is dropped and counted.
pub const LOG_BYTES_MAX: u64 = 16 << 20;

/// Node to worker.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Command {
    /// Start the runtime's program from nothing. Descriptors: the root image.
    /// With [`Interface::Device`] the worker reports [`Report::Waiting`] once the program asks for its function;
    /// with [`Interface::RuntimeApi`] the program comes with the function and starts at [`Command::Init`].
    Boot(BootSpec),
    /// Give a booted runtime its function. Descriptors: the code image, then layer images, lowest first.
    /// Answered by [`Report::Waiting`] at the first wait for an event, [`Report::InitFailed`], or [`Report::Exited`].
    Init(InitSpec),
    /// Lay out a snapshot in a pooled worker, or, with a layout that has a graft for it, in a worker where the base of
    /// the snapshot's runtime has been laid out and touched ahead. Descriptors: memory, state, layout (when `has_layout`), root image,
    /// code image, layers. Body: a frozen instance (when `thaw`). Answered by [`Report::Waiting`] when `arm` is set, otherwise by [`Report::LaidOut`]: an
    /// [`Command::Invoke`] follows at once then.
    Restore(RestoreSpec),
    /// Deliver an event. Body: the event. Answered by any number of [`Report::Log`], one [`Report::Answer`], and
    /// [`Report::Waiting`] when the instance is ready for the next event (memory `Fresh`: already copied back).
    Invoke(InvokeSpec),
    /// Write the state at the event wait into the given files. Descriptors: memory (writable, on a file system with
    /// 2 MiB pages where the host has one), state (writable). Answered by [`Report::Captured`] or
    /// [`Report::Refused`]. A worker that has seen an event refuses (invariant 2).
    Capture,
    /// Give the waiting guest away as what sets it apart from its snapshot. Answered by [`Report::Frozen`]; the worker is
    /// of no further use unless that has no body.
    Freeze,
    /// Write a restore layout (hot pages, page tables) learned from the runs so far. Descriptors: layout (writable),
    /// memory of the snapshot. Answered by [`Report::Replanned`] or [`Report::Refused`].
    Replan,
    /// In a pooled worker: write the layout of a runtime's base, learned from functions. Descriptors: layout (writable),
    /// the base's memory and state, then memory, state and layout of each of at most [`SHAPED_FOR_MAX`] functions.
    /// Answered by [`Report::Replanned`] or [`Report::Refused`].
    Shape,
    /// In a pooled worker: write a version's layout again, with a graft on its runtime's base. Descriptors: layout
    /// (writable), the version's memory, state and layout, the base's memory, state and layout. Answered by
    /// [`Report::Replanned`] or [`Report::Refused`].
    Graft,
    /// In a pooled worker: run a program from its start to its end. Descriptors: pipes for standard input (read),
    /// output and error (written), none of which may block, the root image, then an image for each of the mounts.
    /// Answered by [`Report::Started`] and [`Report::Ran`], or by [`Report::CannotRun`]. The worker ends with its program.
    Run(RunSpec),
    /// While a program runs: send it this signal.
    Signal(u32),
    /// The guest that [`Command::Init`] or [`Command::Restore`] makes has a way out. Comes before it; not answered.
    Network(NetworkSpec),
    /// What became of a way out that a guest asked for, or has. It may come when the guest has come to rest already. Descriptors: see [`OutsideAnswer`].
    Outside {
        /// As in the request.
        connection: u32,
        /// What became of it.
        answer: OutsideAnswer,
    },
    /// Have the waiting guest go back to its snapshot, as another instance: what its calls have left is gone. Answered by
    /// [`Report::Waiting`], which is not pristine where that cannot be; the worker is of no further use then.
    Rewind {
        /// What sets its environment apart from that of others of its snapshot.
        environment: Vec<(String, String)>,
    },
}

/// Most functions that a base's layout is learned from at a time.
pub const SHAPED_FOR_MAX: usize = (DESCRIPTORS_MAX - 3) / 3;

/// The way out of a guest, where it has one.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NetworkSpec {
    /// Ports of the guest's loopback that lead to the machine's own; at most [`FORWARDED_MAX`].
    pub forwarded: Vec<u16>,
}

/// Most ports that are forwarded.
pub const FORWARDED_MAX: usize = 64;

/// What a guest asks of the outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum OutsideRequest {
    /// To be connected. Answered once by [`Command::Outside`].
    Connect(Destination),
    /// A way for datagrams. Answered once.
    Datagrams,
    /// Nothing more: the guest has closed it. Not answered.
    Closed,
}

/// What became of a way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum OutsideAnswer {
    /// It is connected. Descriptors: a pipe with what comes, a pipe for what goes; neither may block.
    Stream,
    /// Datagrams go. Descriptor: a socket that keeps packets apart ([`crate::datagram`]) and does not block.
    Datagrams,
    /// It could not be made, for this reason (a number as in `errno`).
    Failed(i32),
    /// It has been lost, for this reason (a number as in `errno`). All that came before is in its pipe, which the node
    /// keeps open until it hears that the guest has closed the connection.
    Broken(i32),
}

/// Most requests of one guest that wait for an answer; further ones wait in the guest.
pub const OUTSIDE_UNANSWERED_MAX: usize = 64;

/// Most ways out of one guest: its own bounds together, and those that it has given up and that are being closed.
pub const OUTSIDE_MAX: usize = 512;

/// Most images that are mounted for a program.
pub const MOUNTS_MAX: usize = DESCRIPTORS_MAX - 4;

/// Worker to node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Report {
    /// The worker is prepared and holds nothing of any tenant.
    Pooled {
        /// Process id as the worker's parent sees it is known to the parent; this is what the jail granted.
        jail: JailReport,
    },
    /// The guest waits, frozen: for its function after a boot, for an event otherwise.
    Waiting(Waiting),
    /// Initialisation failed in the runtime's own words. Body: Lambda's error document (JSON).
    InitFailed,
    /// A piece of what the guest wrote to its standard output or error. Body: the bytes, unaltered.
    Log,
    /// The guest answered. Body: the response or, for a function error, Lambda's error document (JSON).
    Answer(Answer),
    /// The snapshot has been written.
    Captured(Captured),
    /// The guest, to be given back with [`RestoreSpec::thaw`] to a worker for the same version. Body: at most
    /// [`FROZEN_BYTES_MAX`] bytes; none when it is more, or the guest cannot be frozen: it waits on.
    Frozen,
    /// The layout has been written.
    Replanned {
        /// Bytes used in the layout file.
        layout_bytes: u64,
        /// Pages (4 KiB) that the layout copies or maps eagerly.
        hot_pages: u64,
    },
    /// The guest has ended by itself or has been ended. The worker exits after this.
    Exited(GuestExit),
    /// The guest asks for a way out, or has done with one.
    Outside {
        /// The guest's number for it.
        connection: u32,
        /// What it asks.
        request: OutsideRequest,
    },
    /// The program is in memory, and runs.
    Started {
        /// What it took to load it, in nanoseconds.
        boot_ns: u64,
    },
    /// The program has ended, and what it wrote has been passed on. The worker exits after this.
    Ran(Ran),
    /// The program cannot be started. The worker exits after this.
    CannotRun {
        /// It is not there, rather than there and not startable.
        not_found: bool,
        /// Why, in words.
        reason: String,
    },
    /// A command could not be carried out; the worker is of no further use.
    Refused {
        /// What was tried and why it failed, for the node's log.
        reason: String,
    },
    /// The snapshot has been laid out, and the event that came with it is next.
    LaidOut,
}

/// How the runtime's program takes events and gives answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Interface {
    /// Our own bootstraps: one device (see `docs/runtime-device.md`), one exit to wait and one to answer.
    Device,
    /// The AWS Lambda Runtime API over HTTP, ending in the worker.
    RuntimeApi,
}

/// Bounds of one sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Guest memory that may be in use, in bytes.
    pub memory_bytes: u64,
    /// Writable space in `/tmp`, in bytes.
    pub tmp_bytes: u64,
    /// Virtual CPUs granted.
    pub cpus: u32,
}

/// What is given anew to every boot and every restore (invariant 2).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Identity {
    /// Unique id of this instance; also the log stream's last component.
    pub instance_id: String,
    /// Seed of this instance's random stream.
    pub seed: [u8; 32],
}

/// A program to start.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BootSpec {
    /// Program and arguments; `argv[0]` is an absolute path in the image.
    pub argv: Vec<String>,
    /// Environment of the program.
    pub environment: Vec<(String, String)>,
    /// Working directory in the image.
    pub directory: String,
    /// How it talks to us.
    pub interface: Interface,
    /// Bounds.
    pub limits: Limits,
    /// Fresh identity.
    pub identity: Identity,
}

/// A program to run to its end.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunSpec {
    /// Program and arguments. A program without a slash is looked up in `PATH` of the environment.
    pub argv: Vec<String>,
    /// Environment of the program.
    pub environment: Vec<(String, String)>,
    /// Working directory in the image.
    pub directory: String,
    /// User and group in the guest.
    pub uid: u32,
    /// See [`RunSpec::uid`].
    pub gid: u32,
    /// Host name in the guest.
    pub host_name: String,
    /// Directories that the further images are seen at, in the order of their descriptors; at most [`MOUNTS_MAX`].
    pub mounts: Vec<String>,
    /// The way out; `None`: there is none.
    pub network: Option<NetworkSpec>,
    /// Bounds.
    pub limits: Limits,
    /// Fresh identity.
    pub identity: Identity,
}

/// A program that has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ran {
    /// How.
    pub exit: GuestExit,
    /// What it used.
    pub stats: RunStats,
}

/// What a program used.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RunStats {
    /// From the program's first instruction to its end, in nanoseconds.
    pub run_ns: u64,
    /// Of these, inside the guest.
    pub guest_ns: u64,
    /// Exits from the guest to the worker.
    pub exits: u64,
    /// Page faults that reached the worker.
    pub faults: u64,
    /// Most memory of the guest that was seen resident, in bytes; looked at now and then.
    pub memory_bytes_max: u64,
    /// System calls by name, most frequent first; at most [`CALLS_LISTED_MAX`].
    pub calls: Vec<(String, u64)>,
}

/// Most system calls that statistics name: more than there are.
pub const CALLS_LISTED_MAX: usize = 512;

/// A function for a booted runtime.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct InitSpec {
    /// Handler string in the runtime's own syntax (`module.function`).
    pub handler: String,
    /// Environment variables of the function, the platform's included.
    pub environment: Vec<(String, String)>,
    /// Where the code image is mounted.
    pub task_root: String,
    /// Bounds: a snapshot of the bare runtime has the runtime's own.
    pub limits: Limits,
}

/// How to lay out a snapshot.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RestoreSpec {
    /// Prepare fully and report [`Report::Waiting`]; otherwise an event follows and nothing is reported.
    pub arm: bool,
    /// Keep track of the pages that the next run touches and writes, for [`Command::Replan`].
    pub record: bool,
    /// A layout file is among the descriptors.
    pub has_layout: bool,
    /// The body is an instance that was frozen ([`Report::Frozen`]), which goes on.
    pub thaw: bool,
    /// What becomes of memory between calls.
    pub memory_mode: MemoryMode,
    /// Bounds.
    pub limits: Limits,
    /// Fresh identity.
    pub identity: Identity,
    /// Environment changes that must differ between instances (log stream name), applied by the runtime's restore
    /// hook.
    pub environment: Vec<(String, String)>,
}

/// What becomes of an instance's memory between two calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum MemoryMode {
    /// Kept, as AWS Lambda keeps it.
    #[default]
    Reuse,
    /// Given back its snapshot state after every answer, off the request's path.
    Fresh,
}

/// One event.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct InvokeSpec {
    /// The invocation's id (UUID, lower case).
    pub request_id: String,
    /// When the platform will end it, milliseconds of the Unix epoch.
    pub deadline_unix_ms: u64,
    /// ARN as the caller named it, qualifier included.
    pub function_arn: String,
    /// X-Ray trace header, empty when there is none.
    pub trace_id: String,
    /// Client context (JSON, decoded from base64), empty when there is none.
    pub client_context: String,
}

/// The state that a worker reports when its guest is frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// What the guest waits for.
    pub waits_for: WaitsFor,
    /// Memory that the guest uses now, in bytes.
    pub memory_bytes: u64,
    /// The memory is byte for byte the snapshot's (just restored, or copied back).
    pub pristine: bool,
}

/// What a frozen guest waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum WaitsFor {
    /// [`Command::Init`].
    Function,
    /// [`Command::Invoke`].
    Event,
}

/// One answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Answer {
    /// Success, or whose error it is.
    pub kind: AnswerKind,
    /// Memory the guest holds as it answers, in bytes.
    pub memory_bytes: u64,
    /// Most memory the guest has used so far, in bytes.
    pub memory_bytes_max: u64,
    /// Bytes of log that were dropped over [`LOG_BYTES_MAX`].
    pub log_bytes_dropped: u64,
    /// Where the time went.
    pub timings: WorkerTimings,
}

/// Kind of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum AnswerKind {
    /// The handler returned; the body is its response.
    Success,
    /// The handler raised, or the runtime reported an error; the body is Lambda's error document.
    FunctionError,
    /// The response is larger than [`RESPONSE_BYTES_MAX`]; there is no body.
    TooLarge {
        /// Size of the response.
        bytes: u64,
    },
}

/// Where a worker's share of a call went, in nanoseconds. A component that does not apply is zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct WorkerTimings {
    /// Mapping the snapshot's memory.
    pub map_ns: u64,
    /// Copying hot pages, page tables and the personality's state.
    pub fill_ns: u64,
    /// Page faults while the guest ran: their count times the cost measured on this machine, and at most what the guest ran
    /// outside its handler.
    pub faults_ns: u64,
    /// The runtime around the handler: delivering the event, encoding the answer.
    pub runtime_ns: u64,
    /// The handler itself.
    pub handler_ns: u64,
    /// Exits from the guest to the worker.
    pub exits: u64,
    /// Page faults while the guest ran.
    pub faults: u64,
    /// Starting a process from nothing (isolation without snapshots) or booting.
    pub boot_ns: u64,
}

/// A snapshot that has been written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Captured {
    /// Bytes used in the memory file.
    pub memory_bytes: u64,
    /// Bytes used in the state file.
    pub state_bytes: u64,
}

/// How a guest ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum GuestExit {
    /// `exit_group` with this status.
    Exit(i32),
    /// Killed by this signal.
    Signal(i32),
    /// More memory than its limit.
    OutOfMemory,
    /// The sandbox broke a rule or met something that it does not support; for the node's log.
    Fault(String),
}

/// What the jail of a worker could be given on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct JailReport {
    /// Own user id.
    pub user: bool,
    /// Own process, mount, network, IPC and UTS namespaces.
    pub namespaces: bool,
    /// Landlock denies every file.
    pub landlock: bool,
    /// seccomp filter is on.
    pub seccomp: bool,
}
