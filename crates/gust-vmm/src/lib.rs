//! The hypervisor: KVM, guest memory, page tables, virtual CPUs, and the layouts of a snapshot in memory.
//!
//! A guest is a Linux program in ring 3 with no kernel of its own. What a kernel would do is done outside, by whoever
//! drives [`Vm::run`]: it gets every system call, fault and exception as an [`Exit`], changes the address space and
//! the registers, and lets the guest go on. This crate knows pages, registers and exits; it does not know what a
//! system call means.
//!
//! ```text
//!   guest-virtual                        guest-physical                      host-virtual
//!   0 .. USER_END      user pages  ---->  system slot   tables, stubs   ---->  anonymous
//!   KERNEL_BASE ..     system slot        image slot    the snapshot    ---->  private map of a file
//!                                         hot slot      its hot pages   ---->  anonymous, dense
//!                                         fresh slots   new memory      ---->  anonymous
//! ```
//!
//! `unsafe` is at home here, and only in the modules that say so at their head: mappings of host memory, the raw
//! entries of page tables, KVM's ioctls that take memory, and the preemption timer's signal handler.

mod clock_code;
mod error;
mod geometry;
mod host_memory;
mod machine;
mod physical;
mod racing;
mod ring0;
mod snapshot;
mod space;
mod stats;
mod stubs;
mod tables;
mod timer;
mod vcpu;
mod window;

pub use clock_code::{
    CLOCK_CODE_OFFSET, CLOCK_MONOTONIC, CLOCK_MULTIPLIER, CLOCK_REALTIME, CLOCK_SEQUENCE, CLOCK_TSC,
    ClockCode, clock_code,
};
pub use error::{Error, Result};
pub use geometry::{CHUNK_BYTES, PAGE_BYTES, PageRange, Prot, SlotSizes, THREADS_MAX, USER_END, USER_START};
pub use host_memory::HostMapping;
pub use machine::{Hypervisor, Vm};
pub use racing::Racer;
pub use snapshot::{
    Base, ChunkMap, Costs, Descendant, Difference, Layout, MachineState, MappedArea, PageRun, RestoreTimes,
    Rewound, SNAPSHOT_VERSION, Source, Style, WorkingSet,
};
pub use space::{AddressSpace, BadAddress, Populate};
pub use vcpu::{Exit, Registers, XSAVE_BYTES};
