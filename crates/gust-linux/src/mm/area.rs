//! One mapping.

use gust_vmm::Prot;
use serde::{Deserialize, Serialize};

use crate::fs::Vnode;

/// Where a mapping's first contents come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Backing {
    /// Zero.
    Anonymous,
    /// A file, from this offset on; changes stay in the mapping.
    Private {
        /// The file.
        file: Vnode,
        /// Offset of the mapping's first byte, a multiple of the page size.
        offset: u64,
    },
    /// A file in memory, from this offset on; changes reach the file.
    Shared {
        /// The file.
        file: Vnode,
        /// Offset of the mapping's first byte, a multiple of the page size.
        offset: u64,
    },
}

impl Backing {
    /// The file, if there is one.
    pub(crate) fn file(self) -> Option<Vnode> {
        match self {
            Self::Anonymous => None,
            Self::Private { file, .. } | Self::Shared { file, .. } => Some(file),
        }
    }

    /// The number of the file, if it is one in memory.
    pub(crate) fn memory_file(self) -> Option<u32> {
        if let Some(Vnode::Memory(number)) = self.file() {
            Some(number)
        } else {
            None
        }
    }

    /// The backing of the part that begins `bytes` further.
    pub(crate) fn advanced(self, bytes: u64) -> Self {
        match self {
            Self::Anonymous => Self::Anonymous,
            Self::Private { file, offset } => Self::Private {
                file,
                offset: offset + bytes,
            },
            Self::Shared { file, offset } => Self::Shared {
                file,
                offset: offset + bytes,
            },
        }
    }
}

/// What `/proc/self/maps` calls a mapping that has no file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Name {
    /// Nothing.
    None,
    /// `[heap]`
    Heap,
    /// `[stack]`
    Stack,
    /// `[vdso]`
    Vdso,
    /// `[vvar]`
    Vvar,
}

/// A mapping; its start is its key in the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Area {
    pub(crate) end: u64,
    pub(crate) prot: Prot,
    pub(crate) backing: Backing,
    pub(crate) name: Name,
    /// `MAP_SHARED`, which also anonymous mappings can be: told in `/proc/self/maps`.
    pub(crate) shared: bool,
}

impl Area {
    /// Whether `next`, which begins where this one ends, can be one mapping with it.
    pub(crate) fn continues_in(&self, start: u64, next: &Self) -> bool {
        self.prot == next.prot
            && self.name == next.name
            && self.shared == next.shared
            && self.backing.advanced(self.end - start) == next.backing
    }
}
