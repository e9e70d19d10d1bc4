//! An instance without its machine: what sets it apart from its snapshot, to be kept at a hundredth of its memory while
//! no one calls it.
//!
//! It holds what its calls have left in it, so it belongs to one version of one function as its worker did, and is given
//! back once: unlike a snapshot it keeps its randomness.

use gust_linux::Kernel;
use gust_vmm::Difference;
use serde::{Deserialize, Serialize};

use super::{link::Link, sandbox::SandboxError};
use crate::protocol::FROZEN_BYTES_MAX;

/// A frozen instance.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Frozen {
    pub(super) memory: Difference,
    pub(super) kernel: Kernel,
    pub(super) link: Link,
    /// The guest's monotonic clock.
    pub(super) clock_ns: u64,
    /// The host's clock at that moment, in nanoseconds since 1970: the guest's goes on meanwhile.
    pub(super) unix_ns: u64,
}

impl Frozen {
    /// `None` when it is too large.
    pub(super) fn encode(&self) -> Result<Option<Vec<u8>>, SandboxError> {
        let raw = postcard::to_stdvec(self).map_err(|error| SandboxError::State(error.to_string()))?;
        Ok((raw.len() <= FROZEN_BYTES_MAX).then_some(raw))
    }

    pub(super) fn decode(raw: &[u8]) -> Result<Self, SandboxError> {
        postcard::from_bytes(raw).map_err(|error| SandboxError::State(format!("a frozen instance: {error}")))
    }

    /// The guest's clock now.
    pub(super) fn clock_at(&self, unix_ns: u64) -> u64 {
        self.clock_ns.saturating_add(unix_ns.saturating_sub(self.unix_ns))
    }
}
