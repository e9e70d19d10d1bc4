//! What is noted of a run, live or simulated.

use gust_policy::{Class, InstanceId};
use serde::{Deserialize, Serialize};

/// How the instance of an invocation came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Start {
    /// It was there and idle.
    Warm,
    /// It was armed, or thawed: laid out before the call came.
    Armed,
    /// It was restored from a snapshot.
    Restored,
    /// It was booted.
    Booted,
}

/// How an invocation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ending {
    /// With a response.
    Answered,
    /// No place in time (429).
    Refused,
    /// With an error of the function.
    Failed,
    /// The instance or its node was lost.
    Lost,
}

/// Where the time of an invocation went before its handler ran, in nanoseconds. Allocation, code, dependencies and
/// scheduling as Huawei's cold-start study has them ("Serverless Cold Starts and Where to Find Them", section 4); the
/// rest is ours. A warm invocation has only the way and the queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Components {
    /// Waiting for a place or an instance.
    pub queue_ns: u64,
    /// Choosing a node.
    pub scheduling_ns: u64,
    /// Getting a worker: the allocation of a pod.
    pub worker_ns: u64,
    /// Getting the code and its dependencies to the node: fetching a snapshot or an image.
    pub fetch_ns: u64,
    /// Mapping the snapshot and filling its hot pages.
    pub map_ns: u64,
    /// Page faults.
    pub faults_ns: u64,
    /// Booting, where there is no snapshot.
    pub boot_ns: u64,
    /// The runtime around the handler.
    pub runtime_ns: u64,
}

/// One invocation. Moments are nanoseconds since the run began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Index of its function in the workload.
    pub function: u32,
    /// When it came.
    pub arrived_ns: u64,
    /// When its handler began.
    pub started_ns: u64,
    /// When its answer was there.
    pub ended_ns: u64,
    /// Time that the trace asks its handler to take, in nanoseconds.
    pub requested_ns: u64,
    /// Instance that ran it; `None` when none did. Unlike those of all other instances of the run.
    pub instance: Option<InstanceId>,
    /// Track that made its instance.
    pub class: Class,
    /// How its instance came to be.
    pub start: Start,
    /// How it ended.
    pub ending: Ending,
    /// Where the time before the handler went.
    pub components: Components,
}

/// What was there and used at a moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Nanoseconds since the run began.
    pub at_ns: u64,
    /// Regular instances, those in the making too.
    pub regular: u32,
    /// Emergency instances.
    pub emergency: u32,
    /// Instances that run a call.
    pub busy: u32,
    /// Calls that wait.
    pub queued: u32,
    /// Memory of all instances, in bytes.
    pub memory_bytes: u64,
    /// Processor time used by the platform and its instances since the run began, in nanoseconds, without the
    /// handlers' own.
    pub overhead_cpu_ns: u64,
    /// Processor time used since the run began, in nanoseconds.
    pub cpu_ns: u64,
}
