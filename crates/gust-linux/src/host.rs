//! What the personality asks of the world outside: the only place where a run can differ from another run of the same
//! input (invariant 8).

use serde::{Deserialize, Serialize};

/// Where a guest's output goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Stream {
    /// Descriptor 1 at the start.
    Output,
    /// Descriptor 2 at the start.
    Error,
}

/// The world outside.
pub trait Host {
    /// Nanoseconds of a clock that never goes back.
    fn monotonic_ns(&mut self) -> u64;
    /// Nanoseconds of the Unix epoch.
    fn realtime_ns(&mut self) -> u64;
    /// Takes what the guest wrote.
    fn output(&mut self, stream: Stream, bytes: &[u8]);
    /// Memory of the guest that is resident in the host, in bytes. Asked when the address space suggests that the
    /// limit may be met.
    fn resident_bytes(&mut self) -> u64;
}
