//! What the control plane asks of a node, and what it gets.

use std::{collections::BTreeMap, fmt, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use gust_worker::protocol::{GuestExit, MemoryMode};
use tokio::sync::{mpsc, oneshot};

use crate::{
    egress::EgressPolicy,
    load::Load,
    named::{InstanceName, Named, Present, Wanted},
    node::Inner,
    snapshot::SnapshotFiles,
};

/// Names one immutable combination of code, runtime and configuration. A changed configuration is another id, so a
/// snapshot never serves a configuration that it was not made with.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VersionId(pub String);

impl fmt::Display for VersionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The wall around an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// A KVM micro-VM of its own.
    Kvm,
    /// A process in namespaces of its own, under seccomp, in a cgroup where that is allowed.
    Process,
}

/// Configuration of a node, validated whole before anything starts.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Directory for snapshots and caches; the node owns it.
    pub data_dir: PathBuf,
    /// The wall around each instance.
    pub isolation: Isolation,
    /// Prepared workers that are kept ready.
    pub pool_size: usize,
    /// Armed instances that are kept for each recently used version.
    pub armed_per_version: usize,
    /// Most instances of all versions together.
    pub instances_max: usize,
    /// Memory that instances may use together, in bytes.
    pub memory_budget_bytes: u64,
    /// Memory that snapshots may take, in bytes; others are used in place on disk.
    pub snapshot_memory_bytes: u64,
    /// How long an instance stays idle before it is frozen, where snapshots allow that; `None` for never.
    pub freeze_after: Option<Duration>,
    /// Which instances may map the same pages of memory.
    pub page_sharing: PageSharing,
    /// How long an instance without a name stays idle before it is dropped; how long one with a name does is the control
    /// plane's decision.
    pub idle_timeout: Duration,
    /// Longest wait for a free instance when every place is taken.
    pub queue_timeout: Duration,
    /// Where functions may connect to.
    pub egress: Arc<EgressPolicy>,
    /// The program whose hidden `zygote` subcommand makes workers; the running program when `None`.
    pub worker_program: Option<PathBuf>,
}

/// Which instances may map the same pages of memory, read-only until they are written. Whoever shares a page can tell
/// by the time of an access whether others have used it (`docs/security.md`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PageSharing {
    /// Those of all functions of a runtime: pages that the runtime's base has, and that a function has not changed.
    #[default]
    Runtime,
    /// Those of one version of one function. No worker is prepared with a runtime's base, so a start of which nothing is
    /// prepared takes longer.
    Version,
}

/// What a function version needs to run.
#[derive(Debug, Clone)]
pub struct VersionSpec {
    /// Names it.
    pub id: VersionId,
    /// Image of the runtime: root file system and `/.gust/runtime.json`.
    pub root_image: PathBuf,
    /// Image of the function's code, mounted at `/var/task`.
    pub code_image: PathBuf,
    /// Images of layers, lowest first, mounted at `/opt`.
    pub layer_images: Vec<PathBuf>,
    /// Handler in the runtime's own syntax.
    pub handler: String,
    /// Environment variables, the platform's included.
    pub environment: BTreeMap<String, String>,
    /// Memory, in MiB.
    pub memory_mib: u32,
    /// Writable space in `/tmp`, in MiB.
    pub tmp_mib: u32,
    /// Longest initialisation.
    pub init_timeout: Duration,
    /// What becomes of memory between calls.
    pub memory_mode: MemoryMode,
    /// Where it may connect to, of what the node allows.
    pub egress: Arc<EgressPolicy>,
}

/// The result of a deployment: the version is ready to be restored (or started, without KVM).
#[derive(Debug, Clone)]
pub struct Deployed {
    /// How long the initialisation took.
    pub init: Duration,
    /// Memory in use at the end of the initialisation, in bytes.
    pub memory_bytes: u64,
    /// Size of the snapshot on disk, in bytes; zero when the isolation has none.
    pub snapshot_bytes: u64,
    /// What the initialisation wrote.
    pub log: Bytes,
}

/// One event for one version.
#[derive(Debug)]
pub struct Invocation {
    /// UUID, lower case.
    pub request_id: String,
    /// The event.
    pub payload: Bytes,
    /// Longest run; the clock starts when the event is delivered to the instance.
    pub timeout: Duration,
    /// ARN as the caller named it, qualifier included.
    pub function_arn: String,
    /// Client context (JSON), if any.
    pub client_context: Option<String>,
    /// X-Ray trace header, if any.
    pub trace_id: Option<String>,
    /// Receives the guest's output while it runs; the channel's bound is the back pressure. A dropped receiver
    /// discards output.
    pub log: mpsc::Sender<Bytes>,
    /// What is to serve it.
    pub wanted: Wanted,
    /// Told when the event has been handed to its instance, which has been laid out by then if it is restored.
    pub delivered: Option<oneshot::Sender<()>>,
}

/// What became of an event that reached an instance.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Response or function error.
    pub result: InvokeResult,
    /// How the instance came to be.
    pub start: StartKind,
    /// Id of the instance.
    pub instance_id: String,
    /// Duration of the run as Lambda bills it: from delivery to answer.
    pub duration: Duration,
    /// Duration of the initialisation or of the restore, when this call had one.
    pub start_duration: Option<Duration>,
    /// Memory that the instance holds as it goes to rest, in bytes.
    pub memory_bytes: u64,
    /// Most memory used, in bytes.
    pub memory_bytes_max: u64,
    /// Bytes of log dropped over the bound.
    pub log_bytes_dropped: u64,
    /// The instance goes to rest and can take another call, as far as is known when it answers.
    pub kept: bool,
    /// The instance that was to serve it was gone, and this one has its name now.
    pub replaced: bool,
    /// Where the time went.
    pub timings: Timings,
}

/// Response or function error.
#[derive(Debug, Clone)]
pub enum InvokeResult {
    /// The handler's response.
    Success(Bytes),
    /// Lambda's error document: the handler raised.
    FunctionError(Bytes),
    /// The response is over the limit, in bytes.
    ResponseTooLarge {
        /// Size of the response.
        bytes: u64,
    },
    /// The initialisation failed; Lambda's error document.
    InitFailed(Bytes),
    /// The initialisation took longer than it may.
    InitTimedOut,
    /// The run took longer than it may; the instance is gone.
    TimedOut,
    /// The guest ended during the run.
    Exited(GuestExit),
}

/// How an instance came to serve a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StartKind {
    /// It was idle, its memory as the last call left it.
    Warm,
    /// It was armed: restored and touched ahead, never run, or copied back.
    Armed,
    /// It had been frozen, and was laid out again with its memory as the last call left it.
    Thawed,
    /// Restored in a prepared worker.
    Restored,
    /// Booted or started from nothing.
    Booted,
}

/// Components of one call, in nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timings {
    /// Waiting for a place.
    pub queue_ns: u64,
    /// Getting a worker, and the way to it and back.
    pub worker_ns: u64,
    /// Getting the snapshot of an unprepared start: from disk, or from other nodes. One that is held in memory takes next to
    /// nothing, and prepared instances need none.
    pub fetch_ns: u64,
    /// Mapping the snapshot.
    pub map_ns: u64,
    /// Copying hot pages and state.
    pub fill_ns: u64,
    /// Page faults.
    pub faults_ns: u64,
    /// Starting a process or booting.
    pub boot_ns: u64,
    /// The runtime around the handler.
    pub runtime_ns: u64,
    /// The handler.
    pub handler_ns: u64,
}

/// Why a deployment failed.
#[derive(Debug, Clone)]
pub enum Failure {
    /// The runtime reported an error; Lambda's error document.
    InitFailed(Bytes),
    /// It took longer than it may.
    InitTimedOut,
    /// The guest ended.
    Exited(GuestExit),
}

/// A deployment that failed.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The function's own initialisation failed. The version stays known: each invocation tries again, as Lambda
    /// does.
    #[error("initialisation failed")]
    Init {
        /// How.
        failure: Failure,
        /// What the initialisation wrote.
        log: Bytes,
    },
    /// A file, a worker or a device failed.
    #[error("{action}")]
    Io {
        /// What was tried, with its object.
        action: String,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// The node is stopping.
    #[error("the node is stopping")]
    Stopping,
}

/// An invocation that no instance answered.
#[derive(Debug, thiserror::Error)]
pub enum InvokeError {
    /// The version has not been deployed to this node.
    #[error("version {0} is not deployed on this node")]
    UnknownVersion(VersionId),
    /// Every place is taken and none came free in time.
    #[error("no capacity: {reason}")]
    NoCapacity {
        /// Which bound was met.
        reason: &'static str,
    },
    /// The worker died during the call for a reason outside the guest.
    #[error("the worker of instance {instance_id} was lost")]
    WorkerLost {
        /// Id of the instance.
        instance_id: String,
    },
    /// The node that ran it, or was to run it, was lost.
    #[error("node {node} was lost")]
    NodeLost {
        /// Its name.
        node: String,
        /// The event had been sent to it: whether it has had effects is not known.
        was_sent: bool,
    },
    /// The node is stopping.
    #[error("the node is stopping")]
    Stopping,
    /// A file or a device failed.
    #[error(transparent)]
    Node(#[from] NodeError),
}

/// What a node holds now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NodeStats {
    /// Prepared workers that hold nothing of any tenant.
    pub pooled: usize,
    /// Prepared workers in which a runtime's base has been laid out, and nothing of any tenant.
    pub shaped: usize,
    /// Armed instances.
    pub armed: usize,
    /// Idle instances, frozen ones too.
    pub idle: usize,
    /// Idle instances that are kept without a worker.
    pub frozen: usize,
    /// Instances that serve a call.
    pub busy: usize,
    /// Instances that the control plane has named, of the regular class.
    pub regular: usize,
    /// Instances that the control plane has named, of the emergency class.
    pub emergency: usize,
    /// Calls that wait for a place.
    pub queued: usize,
    /// Snapshots that are used in place on disk.
    pub snapshots_on_disk: usize,
    /// Instances made since the node started.
    pub instances_started: u64,
}

/// Handle to a running node; clones are the same node. When the last is dropped without [`Node::stop`], its workers end.
#[derive(Debug, Clone)]
pub struct Node(Arc<Inner>);

impl Node {
    /// Starts the node. Returns once calls can be taken; the pool of workers fills in the background.
    ///
    /// # Errors
    /// When the node's directory cannot be used, or the host does not allow the isolation.
    pub async fn start(config: NodeConfig) -> Result<Self, NodeError> {
        Inner::start(config).await.map(Self)
    }

    /// Makes a version ready: boots it once and keeps its snapshot, or, without snapshots, its first instance. A version
    /// that has a valid snapshot on disk is not booted again.
    ///
    /// # Errors
    /// See [`NodeError`]; after [`NodeError::Init`] the version is known all the same.
    pub async fn deploy(&self, spec: VersionSpec) -> Result<Deployed, NodeError> {
        self.0.deploy(spec).await
    }

    /// Makes a version known again after a restart, without booting it: its snapshot is read at the first call, and
    /// rebuilt if it is missing, damaged or from another CPU.
    pub fn register(&self, spec: VersionSpec) {
        self.0.register(spec);
    }

    /// Forgets a version: its idle instances end at once, its running calls finish, its snapshot is deleted.
    pub async fn remove(&self, id: &VersionId) {
        self.0.remove(id).await;
    }

    /// Runs one event. When the returned future is dropped, the function runs to its end all the same.
    ///
    /// # Errors
    /// See [`InvokeError`]. What the function itself does wrong is an outcome.
    pub async fn invoke(&self, id: &VersionId, invocation: Invocation) -> Result<Outcome, InvokeError> {
        self.0.invoke(id, invocation).await
    }

    /// Makes an instance under a name, ahead of calls, and leaves it at rest. One that is prepared already and has no name
    /// is taken in its place.
    ///
    /// # Errors
    /// See [`InvokeError`]; [`NodeError::Init`] when the function's own initialisation fails. There is no instance of this
    /// name then.
    pub async fn create(&self, id: &VersionId, named: Named) -> Result<(), InvokeError> {
        self.0.create(id, named).await
    }

    /// Ends an instance: at once when it rests, otherwise as soon as it does. [`Node::lost`] does not tell it. Its worker is
    /// used again, armed, for its own version for so long, where that can be and armed instances are wanted at all; zero for
    /// not at all.
    pub fn end(&self, name: InstanceName, armed_for: Duration) {
        self.0.end(name, armed_for);
    }

    /// Waits until instances that have names have ended without [`Node::end`] (for another's sake, by themselves, or with
    /// a call that they could not serve), and tells which; each once. One caller at a time.
    pub async fn lost(&self) -> Vec<InstanceName> {
        self.0.desk.lost().await
    }

    /// How much the machine's processors have to do: waits while no call runs, and while it is what was told before or little
    /// else, but for no longer than a second; does not wait when nothing was told.
    pub async fn load(&self, told: Option<Load>) -> Load {
        self.0.load(told).await
    }

    /// Every instance that has a name: what a control plane starts from that has just started itself.
    pub fn present(&self) -> Vec<Present> {
        self.0.desk.present()
    }

    /// Ends the idle instances of a version, and its armed ones too unless `keep_armed`; then as many are armed as there are
    /// after a deployment. For measurements.
    pub async fn evict(&self, id: &VersionId, keep_armed: bool) {
        self.0.evict(id, keep_armed);
    }

    /// What the node holds now.
    pub fn stats(&self) -> NodeStats {
        self.0.stats()
    }

    /// Where the files of a version's snapshot lie, or would lie; `None` where the isolation has no snapshots. Files that are
    /// put there before the version's first use are used as its own when they fit it, and made anew otherwise.
    pub fn snapshot_files(&self, id: &VersionId) -> Option<SnapshotFiles> {
        let store = self.0.snapshots.as_ref()?;
        Some(store.files(&id.0))
    }

    /// Names the processor features that this node's snapshots are made with and need; `None` where the isolation has no
    /// snapshots.
    pub fn fingerprint(&self) -> Option<&str> {
        self.0.snapshots.as_ref().map(|store| store.fingerprint())
    }

    /// Stops: refuses new calls, lets running ones finish for at most `grace`, then ends every worker.
    pub async fn stop(&self, grace: Duration) {
        self.0.stop(grace).await;
    }
}
