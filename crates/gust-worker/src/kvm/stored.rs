//! The state file of a snapshot: everything but the memory.

use std::{
    fs::File,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::FileExt,
    },
};

use gust_linux::Kernel;
use gust_vmm::MachineState;
use serde::{Deserialize, Serialize};

use super::{link::Link, sandbox::SandboxError};

/// Longest state file.
const STATE_BYTES_MAX: u64 = 256 << 20;

/// A captured guest. The node has checked where the file comes from; it is decoded only in a worker of the version that
/// it was captured from.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Stored {
    pub(super) machine: MachineState,
    pub(super) kernel: Kernel,
    pub(super) link: Link,
    /// The guest's monotonic clock.
    pub(super) clock_ns: u64,
    /// The guest waits for its function and not yet for an event.
    pub(super) waits_for_function: bool,
}

impl Stored {
    pub(super) fn write(&self, file: &OwnedFd) -> Result<u64, SandboxError> {
        let raw = postcard::to_stdvec(self).map_err(|error| SandboxError::State(error.to_string()))?;
        let mut done = 0;
        while done < raw.len() {
            let written = rustix::io::pwrite(file, &raw[done..], done as u64)
                .map_err(|error| SandboxError::io("write the state", error.into()))?;
            done += written;
        }
        Ok(raw.len() as u64)
    }

    pub(super) fn read(file: &OwnedFd) -> Result<Self, SandboxError> {
        let clone = file
            .as_fd()
            .try_clone_to_owned()
            .map_err(|error| SandboxError::io("read the state", error))?;
        let file = File::from(clone);
        let bytes = file
            .metadata()
            .map_err(|error| SandboxError::io("read the state", error))?
            .len();
        if bytes > STATE_BYTES_MAX {
            return Err(SandboxError::State(format!("the state file has {bytes} bytes")));
        }
        let mut raw = vec![0; bytes as usize];
        file.read_exact_at(&mut raw, 0)
            .map_err(|error| SandboxError::io("read the state", error))?;
        postcard::from_bytes(&raw).map_err(|error| SandboxError::State(error.to_string()))
    }
}
