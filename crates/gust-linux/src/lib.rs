//! The Linux personality: what a kernel would do for one process, done outside of the guest.
//!
//! A guest is a Linux program in ring 3 of a machine ([`gust_vmm::Vm`]). Its system calls, faults and signals come to
//! [`Kernel`], which answers them against a descriptor table, a tree of files, sockets, timers and threads of its own:
//! nothing that a guest names ever reaches the host. The state can be cloned and stored, which is what snapshots are
//! made of, and it runs on a machine without a processor, which is what tests and fuzzers use.
//!
//! It does not know KVM, and it does not know functions or events beyond the device that carries them.

#![forbid(unsafe_code)]

mod abi;
mod boot;
mod elf;
mod errno;
mod fs;
mod host;
mod io;
mod kernel;
mod mm;
mod net;
mod process;
mod runtime;
mod slab;
mod syscalls;
mod task;
mod time;
mod user;
mod vdso;

pub use boot::{BootConfig, BootError};
pub use errno::Errno;
pub use host::{Host, Stream};
pub use io::StandardPipes;
pub use kernel::{Ended, Kernel, Step};
pub use net::{Destination, OutsideRequest, ServiceEvent};
pub use runtime::{DeviceAnswer, DeviceAnswerKind, DeviceMessageKind};
pub use syscalls::{Support, support};
