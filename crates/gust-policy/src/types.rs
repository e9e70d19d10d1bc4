//! What a fleet is told, and what it decides.

use serde::{Deserialize, Serialize};

/// A moment, in nanoseconds since an origin of the caller's choice. It never goes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Time(pub u64);

/// Names a function version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FunctionId(pub u32);

/// Names a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeId(pub u32);

/// Names an instance; the fleet gives it, and gives no name twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct InstanceId(pub u64);

/// Names a call that waits or runs; the caller gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CallId(pub u64);

/// Names who pays for a function; fairness is between tenants first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TenantId(pub u32);

/// How the fleet makes instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Two tracks (WaveLink): an autoscaler makes regular instances for sustained traffic; a call that finds none gets an
    /// emergency instance from its node at once, and the autoscaler sees such calls only when they are sustained.
    Dual,
    /// A call that finds no idle instance has the cluster manager make one, and waits for it; instances are kept for a
    /// fixed time (AWS Lambda's way).
    Sync,
    /// An autoscaler makes instances from averages over windows; a call that finds none waits in a queue (Knative's way).
    Async,
    /// As `Async`, with the lean cluster manager of Dirigent (SOSP'24): instances are made by the control plane itself,
    /// without the delay of a conventional cluster manager.
    Dirigent,
}

/// Which track made an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// Made by the cluster manager, and kept while the autoscaler wants it.
    Regular,
    /// Restored by a node for one call that found no other.
    Emergency,
}

/// What a fleet has to know of a function.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct FunctionSpec {
    /// Who pays for it.
    pub tenant: TenantId,
    /// Memory that an instance is expected to take while it runs, in bytes.
    pub memory_bytes: u64,
    /// Calls that one instance takes at once; 1 or more.
    pub concurrency_per_instance: u32,
    /// Instances that are there always (provisioned concurrency; the autoscaler's lower bound).
    pub instances_min: u32,
    /// Most instances; `None` for no bound but the nodes'.
    pub instances_max: Option<u32>,
    /// Concurrency that is kept for this function alone, and its bound; `None` shares what others have not reserved.
    pub reserved: Option<u32>,
    /// Longest wait of a call for an instance, in nanoseconds.
    pub queue_timeout_ns: u64,
    /// Region that its calls come from; 0 where there is one only.
    pub home: u16,
}

/// What a fleet has to know of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSpec {
    /// Memory for instances, in bytes.
    pub memory_bytes: u64,
    /// Most instances.
    pub instances_max: u32,
    /// Most instances that are restored at the same time, and most that are made at the same time ahead of calls.
    pub restores_max: u32,
    /// Region that it lies in; calls go to other regions only where a policy says so.
    pub region: u16,
}

/// How much the processors of a node have to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NodeLoad {
    /// Tasks that run or could run now, of whatever program.
    pub runnable: u32,
    /// Processors.
    pub cpus: u32,
}

/// What has happened.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Observation {
    /// A function is there, or has other properties now.
    Function(FunctionId, FunctionSpec),
    /// A function is gone: what waits is refused, its instances are removed as they become idle.
    FunctionGone(FunctionId),
    /// A node is there, without instances, or has other properties now.
    Node(NodeId, NodeSpec),
    /// How much a node's processors have to do. What is sent there and what ends there is reckoned in from then on; a node
    /// of which nothing is known counts as one with processors to spare.
    Load(NodeId, NodeLoad),
    /// A node takes nothing new; its idle instances are removed, its calls end.
    NodeDrains(NodeId),
    /// A node is lost with all that was on it. The caller fails the calls that ran there and ends each with
    /// [`Observation::Ended`] before or after: an end of a call that is not known is nothing. A call whose instance was
    /// still being restored (no [`Observation::Ready`] yet) waits again, unless it was ended before.
    NodeGone(NodeId),
    /// A node has a snapshot of a function, or has it no more.
    Snapshot(NodeId, FunctionId, bool),
    /// An instance that was there before the fleet was: what a control plane is told by the nodes after its restart. It is
    /// idle.
    Found(InstanceId, NodeId, FunctionId, Class),
    /// A call has come. A name that is in use is ignored.
    Arrived(CallId, FunctionId),
    /// A call that waited is given up by its caller.
    GivenUp(CallId),
    /// An instance that was to be created can take calls now; or one that was to be restored is, and runs its call: until
    /// then, or its call's end, it counts as a restore in flight of its node.
    Ready(InstanceId),
    /// A call is over, well or not, and its instance can take another.
    Ended(CallId),
    /// An instance is gone, or could not be made; calls that were on it end with it. A call that was to be restored for
    /// waits again, once; the caller says [`Observation::Ended`] first when the call itself has failed.
    Gone(InstanceId),
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Send a call to an instance that is ready.
    Run {
        /// The call.
        call: CallId,
        /// Where it runs.
        instance: InstanceId,
        /// The instance's node.
        node: NodeId,
    },
    /// Have a node restore an emergency instance for a call, and run it there. The cluster manager is not asked.
    Restore {
        /// The call.
        call: CallId,
        /// Name of the new instance.
        instance: InstanceId,
        /// Where it is made.
        node: NodeId,
        /// What it runs.
        function: FunctionId,
    },
    /// Have the cluster manager make a regular instance on a node. [`Observation::Ready`] or [`Observation::Gone`] follows.
    Create {
        /// Name of the new instance.
        instance: InstanceId,
        /// Where it is made.
        node: NodeId,
        /// What it runs.
        function: FunctionId,
    },
    /// End an instance; it has no call. Nothing needs to be said about it any more.
    Remove {
        /// The instance.
        instance: InstanceId,
        /// Its node.
        node: NodeId,
        /// For how long it waits, gone back to its snapshot and without a name, for whatever instance of its function is
        /// restored or created there next, in nanoseconds; 0 for not at all. Whether it does is the node's affair: nothing
        /// needs to be said about that.
        armed_ns: u64,
    },
    /// Answer a call that it cannot run.
    Refuse {
        /// The call.
        call: CallId,
        /// Why not.
        reason: Refusal,
        /// When trying again makes sense, in nanoseconds from now.
        retry_after_ns: u64,
    },
}

/// Why a call is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// There is no such function, or no more.
    UnknownFunction,
    /// The function's reserved concurrency is used up.
    Reserved,
    /// What is not reserved is used up.
    Account,
    /// As many calls wait as may.
    QueueFull,
    /// The call has waited as long as it may.
    Deadline,
    /// No node is there.
    NoNode,
}
