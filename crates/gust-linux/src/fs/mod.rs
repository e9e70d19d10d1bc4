//! Files: the tree of read-only images, memory and synthetic nodes, path resolution, open files and descriptors.

mod attributes;
mod calls;
mod contents;
mod descriptors;
mod directory;
mod entry;
mod extended;
mod file_bytes;
mod held;
mod lock;
mod memory;
mod name_calls;
mod node_attributes;
mod open;
mod owner;
mod path;
mod range_lock;
mod read_write;
mod seek;
mod stat_calls;
mod synthetic;
mod text;
mod vfs;

pub(crate) use attributes::{Attributes, NodeType};
pub(crate) use calls::*;
pub(crate) use descriptors::{FILES_MAX, FileIdentity, FileKind, Files, OpenFile};
pub(crate) use directory::{sys_getdents, sys_getdents64};
pub(crate) use entry::Entry;
pub(crate) use extended::*;
pub(crate) use held::HeldFile;
pub(crate) use lock::sys_flock;
pub(crate) use memory::Kind as MemoryKind;
pub(crate) use name_calls::*;
pub(crate) use open::*;
pub(crate) use path::Last;
pub(crate) use read_write::*;
pub(crate) use seek::*;
pub(crate) use stat_calls::*;
pub(crate) use vfs::Vfs;

use serde::{Deserialize, Serialize};

/// A node of the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) enum Vnode {
    /// A node of a read-only image.
    Image {
        /// Which image.
        image: u8,
        /// Which node in it.
        node: u32,
    },
    /// A node in memory, writable.
    Memory(u32),
    /// A node made up by the personality: `/proc`, `/sys`, `/dev`.
    Synthetic(u16),
    /// `/proc/self/fd/N`.
    Descriptor(u32),
    /// `/proc/self/fdinfo/N`.
    DescriptorInfo(u32),
    /// `/proc/self/task/N`.
    Task(u32),
}
