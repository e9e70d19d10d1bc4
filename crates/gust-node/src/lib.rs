//! The node agent: owns a machine's sandboxes.
//!
//! It keeps a pool of prepared workers, a cache of snapshots and the life cycle of every instance. It knows function
//! versions and events; it does not know the AWS API, and it never waits for the control plane.

#![forbid(unsafe_code)]

mod api;
mod arm;
mod calendar;
mod call;
mod capture;
mod create;
mod deploy;
mod desk;
mod egress;
mod files;
mod freeze;
#[cfg(fuzzing)]
pub mod fuzzing;
mod host;
mod identity;
mod instance;
mod layers;
mod link;
mod load;
mod log;
mod named;
mod node;
mod outcome;
mod places;
mod pool;
mod program;
mod restore;
mod retire;
mod shaped;
mod snapshot;
mod source;
mod start;
mod users;
mod version;
mod worker;
mod zygote;

pub use api::{
    Deployed, Failure, Invocation, InvokeError, InvokeResult, Isolation, Node, NodeConfig, NodeError,
    NodeStats, Outcome, PageSharing, StartKind, Timings, VersionId, VersionSpec,
};
pub use calendar::Utc;
pub use egress::{EgressPolicy, RuleError};
pub use gust_worker::protocol::{GuestExit, MemoryMode, RunStats};
pub use identity::fill_random;
pub use load::Load;
pub use named::{InstanceClass, InstanceName, Named, Present, Wanted};
pub use program::{Program, ProgramEnd, Programs, Running, Standard};
pub use retire::ARMED_AGAIN_MAX;
pub use snapshot::{Scratch, SnapshotFiles};
