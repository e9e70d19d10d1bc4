//! What is one of a kind in a process: ids, limits, names, directories.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::fs::Vnode;

/// The process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Process {
    /// Process id; a restored guest gets another, so that libraries which watch for forks reseed themselves.
    pub(crate) pid: u32,
    /// Ids that this process has had: signals to them are meant for it.
    pub(crate) former_pids: Vec<u32>,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Working directory.
    pub(crate) directory: Vnode,
    pub(crate) umask: u32,
    /// Path of the program.
    pub(crate) program: Vec<u8>,
    /// Auxiliary vector, for `/proc/self/auxv`.
    pub(crate) auxv: Vec<u8>,
    /// CPUs that the guest sees.
    pub(crate) cpus: u32,
    pub(crate) host_name: String,
    /// When the process began, nanoseconds of the guest's monotonic clock.
    pub(crate) started_ns: u64,
    /// `PR_SET_DUMPABLE`, and other settings that are only remembered.
    pub(crate) dumpable: u64,
    pub(crate) no_new_privileges: bool,
    /// What the process has registered for with `membarrier`: the bits of those commands.
    pub(crate) barriers: i32,
    /// Resource limits that have been set: soft and hard, by number.
    pub(crate) limits: BTreeMap<u32, (u64, u64)>,
    /// Where the sixteen random bytes of the auxiliary vector are.
    pub(crate) random_at: u64,
}

impl Process {
    /// Whether a process id means this process.
    pub(crate) fn is_me(&self, pid: u32) -> bool {
        pid == self.pid || self.former_pids.contains(&pid)
    }
}
