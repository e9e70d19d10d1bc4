//! Where things are, in guest-physical and guest-virtual space. Snapshots depend on these numbers: a change is a new
//! snapshot format version.
//!
//! System slot (guest-physical 0), seen by the guest at [`KERNEL_BASE`]:
//!
//! ```text
//!   0x000000  page 0 is never mapped
//!   0x001000  PML4, then the fixed tables that map this slot
//!   0x008000  IDT                              supervisor
//!   0x009000  exception handlers, page-table stub   supervisor
//!   0x00a000  system-call landing page         user, read and execute
//!   0x010000  per-vCPU blocks: GDT, TSS, ring-0 stack, run list (supervisor), stubs and their data (user)
//!   0x200000  XSAVE areas, a page a thread     user, read and write
//!   0x400000  page tables of user space        supervisor
//! ```

use serde::{Deserialize, Serialize};

/// Bytes of a page.
pub const PAGE_BYTES: u64 = 4096;
/// Bytes of a chunk: the unit in which guest-virtual space is bound to guest-physical space, and a large page.
pub const CHUNK_BYTES: u64 = 2 << 20;
/// Pages of a chunk.
pub const CHUNK_PAGES: usize = 512;

/// First guest-virtual address that user space may map.
pub const USER_START: u64 = 0x1_0000;
/// First guest-virtual address past user space. Above it lies the hypervisor's own region: user-accessible addresses
/// in the upper half of the space fault on some hosts, so the region is the last 512 GiB of the lower half.
pub const USER_END: u64 = 0x7f00_0000_0000;

/// Guest-virtual address of the system slot.
pub(crate) const KERNEL_BASE: u64 = 0x7f80_0000_0000;

/// Most guest threads: one XSAVE page each.
pub const THREADS_MAX: usize = 512;
/// Most virtual CPUs.
pub(crate) const VCPUS_MAX: usize = 16;

pub(crate) const PML4: u64 = 0x1000;
/// PDPT and page directory of the kernel region, and the page tables of its first two chunks.
pub(crate) const KERNEL_PDPT: u64 = 0x2000;
pub(crate) const KERNEL_DIRECTORY: u64 = 0x3000;
pub(crate) const KERNEL_TABLE_LOW: u64 = 0x4000;
pub(crate) const KERNEL_TABLE_XSAVE: u64 = 0x5000;
pub(crate) const IDT: u64 = 0x8000;
pub(crate) const RING0_CODE: u64 = 0x9000;
pub(crate) const SYSCALL_PAGE: u64 = 0xa000;
pub(crate) const VCPU_BLOCKS: u64 = 0x1_0000;
pub(crate) const XSAVE_AREAS: u64 = 0x20_0000;
pub(crate) const USER_TABLES: u64 = 0x40_0000;

/// Pages of a vCPU block, by offset.
pub(crate) const VCPU_BLOCK_BYTES: u64 = 0x8000;
pub(crate) const BLOCK_GDT: u64 = 0;
pub(crate) const BLOCK_TSS: u64 = 0x1000;
pub(crate) const BLOCK_STACK: u64 = 0x2000;
pub(crate) const BLOCK_STACK_TOP: u64 = 0x3000;
/// Page-table entries to write again from ring 0.
pub(crate) const BLOCK_RUNS: u64 = 0x3000;
/// Ring-3 stubs: code (user, read and execute) and, a page above, their data (user, read and write).
pub(crate) const BLOCK_STUB_CODE: u64 = 0x4000;
pub(crate) const BLOCK_STUB_DATA: u64 = 0x5000;
/// Addresses for the touch stub: two pages, user, read only.
pub(crate) const BLOCK_TOUCH: u64 = 0x6000;
pub(crate) const TOUCH_BYTES: u64 = 0x2000;

/// Guest-physical bases of the slots. The system slot is at 0.
pub(crate) const IMAGE_BASE: u64 = 1 << 40;
pub(crate) const HOT_BASE: u64 = 2 << 40;
pub(crate) const FRESH_BASE: u64 = 3 << 40;

/// Bytes of each fresh slot added after the first.
pub(crate) const FRESH_SLOT_BYTES: u64 = 256 << 20;
/// Most fresh slots: 64 GiB of guest-physical space.
pub(crate) const FRESH_SLOTS_MAX: usize = 256;

/// Sizes of the slots that a VM is made with, in bytes; each a multiple of [`CHUNK_BYTES`]. KVM's cost and memory grow
/// with them, and a slot added later costs 0.2 to 4 ms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotSizes {
    /// Tables and stubs.
    pub system: u64,
    /// Largest snapshot image.
    pub image: u64,
    /// Most hot memory of a restore.
    pub hot: u64,
    /// Memory that can be bound before another slot must be added.
    pub fresh: u64,
}

impl SlotSizes {
    /// For a VM that boots a program: no image, room for a large address space.
    pub const BOOT: Self = Self {
        system: 16 << 20,
        image: 0,
        hot: 0,
        fresh: 256 << 20,
    };
    /// For a machine without a processor.
    pub const DETACHED: Self = Self {
        system: 16 << 20,
        image: 0,
        hot: 0,
        fresh: 64 << 20,
    };
    /// For a pooled VM that a snapshot is laid out in.
    pub const POOLED: Self = Self {
        system: 16 << 20,
        image: 128 << 20,
        hot: 32 << 20,
        fresh: 64 << 20,
    };
}

/// Access rights of a page. Write implies read, as the hardware has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Prot(u8);

impl Prot {
    /// No access.
    pub const NONE: Self = Self(0);
    /// Read.
    pub const READ: Self = Self(1);
    /// Read and write.
    pub const READ_WRITE: Self = Self(3);
    /// Read and execute.
    pub const READ_EXECUTE: Self = Self(5);
    /// All.
    pub const ALL: Self = Self(7);

    /// Rights from Linux's `PROT_READ`, `PROT_WRITE` and `PROT_EXEC`; any right implies read, as on x86.
    pub const fn from_bits(bits: u8) -> Self {
        let bits = bits & 7;
        Self(if bits == 0 { 0 } else { bits | 1 })
    }

    /// Linux's bits.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Whether the page can be read.
    pub const fn readable(self) -> bool {
        self.0 & 1 != 0
    }

    /// Whether the page can be written.
    pub const fn writable(self) -> bool {
        self.0 & 2 != 0
    }

    /// Whether code can run from the page.
    pub const fn executable(self) -> bool {
        self.0 & 4 != 0
    }
}

/// A half-open range of whole pages in guest-virtual space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PageRange {
    /// First byte; a multiple of [`PAGE_BYTES`].
    pub start: u64,
    /// First byte past the range; a multiple of [`PAGE_BYTES`], not below `start`.
    pub end: u64,
}

impl PageRange {
    /// A range from page-aligned bounds.
    pub fn new(start: u64, end: u64) -> Self {
        debug_assert!(start.is_multiple_of(PAGE_BYTES) && end.is_multiple_of(PAGE_BYTES) && start <= end);
        Self { start, end }
    }

    /// Size in bytes.
    pub const fn bytes(self) -> u64 {
        self.end - self.start
    }

    /// Whether nothing is in it.
    pub const fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// The pieces of the range that lie in one chunk each, in order.
    pub(crate) fn by_chunk(self) -> impl Iterator<Item = Self> {
        let mut at = self.start;
        std::iter::from_fn(move || {
            if at >= self.end {
                return None;
            }
            let end = ((at | (CHUNK_BYTES - 1)) + 1).min(self.end);
            let piece = Self { start: at, end };
            at = end;
            Some(piece)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_chunk_covers_the_range_without_overlap() {
        let range = PageRange::new(0x1f_f000, 0x60_1000);
        let pieces: Vec<_> = range.by_chunk().collect();
        assert_eq!(pieces.len(), 4);
        assert_eq!(pieces[0], PageRange::new(0x1f_f000, 0x20_0000));
        assert_eq!(pieces[3], PageRange::new(0x60_0000, 0x60_1000));
        assert_eq!(
            pieces.iter().map(|piece| piece.bytes()).sum::<u64>(),
            range.bytes()
        );
    }

    #[test]
    fn any_right_implies_read() {
        assert_eq!(Prot::from_bits(2), Prot::READ_WRITE);
        assert_eq!(Prot::from_bits(4), Prot::READ_EXECUTE);
        assert_eq!(Prot::from_bits(0), Prot::NONE);
    }
}
