//! What is said of versions, calls and instances: the node's own types, as they are on the wire.

use gust_worker::protocol::{GuestExit, MemoryMode};
use serde::{Deserialize, Serialize};

use crate::files::FileId;

/// An instance that the control plane has named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// Its name.
    pub name: u64,
    /// Which track it was made by.
    pub class: Class,
}

/// Which track an instance was made by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Class {
    /// The cluster manager.
    Regular,
    /// A node, for a call that found no other.
    Emergency,
}

/// What is to serve a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Wanted {
    /// The node decides.
    Any,
    /// The instance of this name, which rests.
    Resting(Named),
    /// A new one.
    New(Named),
}

/// An instance that a node has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Present {
    /// Its name and class.
    pub named: Named,
    /// The version that it runs.
    pub version: String,
    /// It rests.
    pub rests: bool,
}

/// A function version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Version {
    /// Its name.
    pub id: String,
    /// Image of the runtime.
    pub root_image: FileId,
    /// Image of the code.
    pub code_image: FileId,
    /// Images of layers, lowest first.
    pub layer_images: Vec<FileId>,
    /// Handler.
    pub handler: String,
    /// Environment variables.
    pub environment: Vec<(String, String)>,
    /// Memory, in MiB.
    pub memory_mib: u32,
    /// Room in `/tmp`, in MiB.
    pub tmp_mib: u32,
    /// Longest initialisation, in milliseconds.
    pub init_timeout_ms: u64,
    /// What becomes of memory between calls.
    pub memory_mode: MemoryMode,
    /// Where it may connect to, as rules.
    pub egress: String,
}

/// An event for a version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Call {
    /// The version's name.
    pub version: String,
    /// UUID of the request.
    pub request_id: String,
    /// Longest run, in milliseconds.
    pub timeout_ms: u64,
    /// ARN as the caller named it.
    pub function_arn: String,
    /// Client context (JSON).
    pub client_context: Option<String>,
    /// X-Ray trace header.
    pub trace_id: Option<String>,
    /// What is to serve it.
    pub wanted: Wanted,
    /// An empty piece of output is to say that the event has been handed to its instance.
    pub wants_delivery: bool,
}

/// A version is ready.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Deployed {
    /// How long its initialisation took, in nanoseconds.
    pub init_ns: u64,
    /// Memory in use at its end, in bytes.
    pub memory_bytes: u64,
    /// Size of the snapshot on disk, in bytes.
    pub snapshot_bytes: u64,
}

/// How an initialisation failed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum DeployFailure {
    /// The runtime's error document.
    InitFailed(Vec<u8>),
    /// It took too long.
    InitTimedOut,
    /// The guest ended.
    Exited(GuestExit),
    /// The host failed.
    Io {
        /// What was tried.
        action: String,
        /// Why it failed.
        cause: String,
    },
    /// The node is stopping.
    Stopping,
}

/// What became of an event that reached an instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// What the body is, or why there is none.
    pub result: RunResult,
    /// How the instance came to be.
    pub start: Start,
    /// Id of the instance.
    pub instance_id: String,
    /// Duration of the run, in nanoseconds.
    pub duration_ns: u64,
    /// Duration of the start, in nanoseconds, when this call had one.
    pub start_duration_ns: Option<u64>,
    /// Memory that the instance holds as it goes to rest, in bytes.
    pub memory_bytes: u64,
    /// Most memory used, in bytes.
    pub memory_bytes_max: u64,
    /// Bytes of output dropped over the bound.
    pub log_bytes_dropped: u64,
    /// The instance goes to rest.
    pub kept: bool,
    /// It has the name of one that was gone.
    pub replaced: bool,
    /// Where the time went, in nanoseconds, in the order of the node's `Timings`.
    pub timings_ns: [u64; 9],
}

/// Response or function error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum RunResult {
    /// The body is the response.
    Success,
    /// The body is the error document: the handler raised.
    FunctionError,
    /// The response has so many bytes, which is too many.
    ResponseTooLarge(u64),
    /// The body is the error document of the initialisation.
    InitFailed,
    /// The initialisation took too long.
    InitTimedOut,
    /// The run took too long.
    TimedOut,
    /// The guest ended.
    Exited(GuestExit),
}

/// How an instance came to serve a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Start {
    /// It was idle.
    Warm,
    /// It was armed.
    Armed,
    /// It had been frozen.
    Thawed,
    /// Restored from a snapshot.
    Restored,
    /// Booted or started from nothing.
    Booted,
}

/// Why no instance answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum NotRun {
    /// The version is not known here.
    UnknownVersion(String),
    /// Every place is taken.
    NoPlace,
    /// Too many calls wait.
    QueueFull,
    /// The worker died for a reason outside the guest.
    WorkerLost(String),
    /// The node is stopping.
    Stopping,
    /// The host failed.
    Io {
        /// What was tried.
        action: String,
        /// Why it failed.
        cause: String,
    },
    /// The function's own initialisation failed; what it wrote is the body.
    NotInitialised(DeployFailure),
}

/// What a node holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Prepared workers.
    pub pooled: u64,
    /// Workers with a runtime's base.
    pub shaped: u64,
    /// Armed instances.
    pub armed: u64,
    /// Idle instances.
    pub idle: u64,
    /// Of them, frozen.
    pub frozen: u64,
    /// Instances that serve a call.
    pub busy: u64,
    /// Named instances of the regular class.
    pub regular: u64,
    /// Named instances of the emergency class.
    pub emergency: u64,
    /// Calls that wait for a place.
    pub queued: u64,
    /// Snapshots that are used in place on disk.
    pub snapshots_on_disk: u64,
    /// Instances made since the node started.
    pub instances_started: u64,
}
