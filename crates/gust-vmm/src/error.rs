//! Errors of the hypervisor. Each names what was tried and on what.

use std::io;

/// Result of a hypervisor operation.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong outside the guest.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `/dev/kvm` cannot be opened.
    #[error("open {path}")]
    OpenKvm {
        /// The device.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The host's KVM lacks something that the hypervisor needs.
    #[error("KVM has no {0}")]
    Missing(&'static str),
    /// A KVM ioctl failed.
    #[error("{action}")]
    Kvm {
        /// The ioctl, in words.
        action: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A system call on host memory failed.
    #[error("{action} of {bytes} bytes")]
    Memory {
        /// The call, in words.
        action: &'static str,
        /// Size of the range.
        bytes: usize,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Guest-physical space, page-table pages or slots are spent.
    #[error("the guest is out of {0}")]
    Exhausted(&'static str),
    /// The guest did something that ends it and is not a fault of its program's kind, such as a triple fault.
    #[error("the guest stopped: {0}")]
    GuestStopped(String),
    /// A snapshot does not fit this machine or is damaged.
    #[error("snapshot: {0}")]
    Snapshot(String),
}

impl Error {
    /// Wraps a failed KVM ioctl.
    pub(crate) fn kvm(action: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |error| Self::Kvm {
            action,
            source: io::Error::from_raw_os_error(error.errno()),
        }
    }

    /// Wraps a failed call on host memory.
    pub(crate) fn memory(action: &'static str, bytes: usize) -> impl FnOnce(rustix::io::Errno) -> Self {
        move |error| Self::Memory {
            action,
            bytes,
            source: error.into(),
        }
    }
}
