//! The guest's mappings as Linux has them.
//!
//! The list of mappings is the truth; the machine's pages follow it. Small mappings are made present at once, large
//! ones at the first fault, a window at a time; mappings without rights never.

mod area;
mod calls;
mod fault;
mod map;
mod peer;
mod remap;
mod shared;

pub(crate) use area::{Area, Backing, Name};
pub(crate) use calls::*;
pub(crate) use fault::{Access, Unresolved};
pub(crate) use map::{Mm, NewArea};
pub(crate) use peer::{sys_process_vm_readv, sys_process_vm_writev};
pub(crate) use remap::sys_mremap;
