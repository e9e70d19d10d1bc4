//! Why a guest came out to its worker, counted; for reports.

use gust_vmm::Exit;

/// Times that a guest has come out since it was booted or laid out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Exits {
    /// System calls that left the guest; clock reads do not.
    pub system_calls: u64,
    /// Page faults that the personality resolved, and other exceptions.
    pub exceptions: u64,
    /// Its time was up.
    pub preemptions: u64,
    /// All entries of its vCPU: the above, and the hypervisor's own, for page tables and for touching ahead.
    pub entries: u64,
}

impl Exits {
    /// Counts one more.
    pub(super) fn count(&mut self, exit: &Exit) {
        match exit {
            Exit::Syscall => self.system_calls += 1,
            Exit::Exception { .. } => self.exceptions += 1,
            Exit::Preempted => self.preemptions += 1,
        }
    }

    /// What has come since an earlier count of the same guest.
    pub fn since(self, before: Self) -> Self {
        Self {
            system_calls: self.system_calls - before.system_calls,
            exceptions: self.exceptions - before.exceptions,
            preemptions: self.preemptions - before.preemptions,
            entries: self.entries - before.entries,
        }
    }

    /// Entries that only the hypervisor itself had use for.
    pub fn own(self) -> u64 {
        self.entries
            .saturating_sub(self.system_calls + self.exceptions + self.preemptions)
    }
}
