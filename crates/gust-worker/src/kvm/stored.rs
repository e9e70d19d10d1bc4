//! The state file of a snapshot: everything but the memory.

use std::os::fd::OwnedFd;

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
        let failed = |error: rustix::io::Errno| SandboxError::io("read the state", error.into());
        let bytes = rustix::fs::fstat(file).map_err(failed)?.st_size.cast_unsigned();
        if bytes > STATE_BYTES_MAX {
            return Err(SandboxError::State(format!("the state file has {bytes} bytes")));
        }
        let mut raw = vec![0; bytes as usize];
        let mut done = 0;
        while done < raw.len() {
            match rustix::io::pread(file, &mut raw[done..], done as u64).map_err(failed)? {
                0 => return Err(SandboxError::State("the state file is too short".into())),
                read => done += read,
            }
        }
        postcard::from_bytes(&raw).map_err(|error| SandboxError::State(error.to_string()))
    }
}
