//! Snapshots: the memory of a guest as a file, and the layouts in which it is put into another machine.
//!
//! ```text
//!   capture          pages of every chunk in use, packed: chunk i of the list is chunk i of the memory file
//!   restore          image slot: private map of the file; tables and hot pages from a plan
//!   record           plan of 4 KiB pages with clear accessed and dirty bits; a run sets them
//!   replan           working set -> two plans: Compact (little memory, many faults unless touched ahead),
//!                    Fast (few faults: written chunks are copied whole)
//!   graft            a machine in which the runtime's base lies already: what differs is changed, see `graft`
//!   difference       after a run: what is not the snapshot's, small enough to be kept instead of the machine
//!   rewind           after a run: every page that it wrote gets its snapshot contents back
//! ```
//!
//! Plans follow the measurements of REAP (arXiv 2101.09355): invocations touch the same pages, so what one run touched
//! is laid out densely for the next. On a host with shadow paging a fault costs 4 to 25 us and copying a page 0.3 us,
//! so a plan trades faults for copies at the prices that the machine was measured at.
//!
//! In a plan, a chunk that no page of is guarded (mapped without rights) may become one large page. Pages of it that
//! the snapshot has no contents of, its phantoms, are then readable as zero. They become the mapping's where something is mapped
//! that had not been touched; where nothing is, the guest's owner calls [`crate::AddressSpace::clear_phantoms`] before
//! it maps anything.

mod build;
mod capture;
mod costs;
mod difference;
mod graft;
mod layout;
mod restore;
mod rewind;
mod working_set;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::geometry::{CHUNK_PAGES, Prot};

pub(crate) use build::Plan;
pub use build::Style;
pub use capture::MappedArea;
pub use costs::Costs;
pub use difference::Difference;
pub use graft::Descendant;
pub use layout::{Base, Layout};
pub(crate) use restore::Restored;
pub use restore::{RestoreTimes, Source};
pub use rewind::Rewound;
pub(crate) use working_set::PageBits;
pub use working_set::WorkingSet;

/// Version of the structures in this module, of [`crate::geometry`], of the XSAVE areas and of the personality's state
/// (`gust-linux`) as they are stored.
pub const SNAPSHOT_VERSION: u32 = 7;

/// Adjacent pages of a chunk that have contents and the same rights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageRun {
    /// First page in the chunk.
    pub first: u16,
    /// Pages, at least one.
    pub count: u16,
    /// Their rights; none at all is possible.
    pub prot: Prot,
}

/// One chunk of guest-virtual space that has contents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkMap {
    /// Number of the chunk: its address over the size of a chunk.
    pub chunk: u64,
    /// Pages with contents, in order.
    pub runs: Vec<PageRun>,
    /// Something in the chunk is mapped without rights, so that touching it must fault.
    pub guarded: bool,
}

impl ChunkMap {
    /// Rights of each page; `None` where there are no contents.
    pub(crate) fn pages(&self) -> [Option<Prot>; CHUNK_PAGES] {
        let mut pages = [None; CHUNK_PAGES];
        for run in &self.runs {
            let first = usize::from(run.first).min(CHUNK_PAGES);
            let end = (first + usize::from(run.count)).min(CHUNK_PAGES);
            pages[first..end].fill(Some(run.prot));
        }
        pages
    }
}

/// What a captured machine was: everything but the contents of its memory, which are in the memory file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineState {
    /// See [`SNAPSHOT_VERSION`].
    pub version: u32,
    /// Chunks in order of their addresses; the i-th has the i-th 2 MiB of the memory file.
    pub chunks: Vec<ChunkMap>,
    /// Extended state of each thread, by its number, up to its last byte that is not zero.
    pub extended: Vec<(u32, Vec<u8>)>,
}

impl MachineState {
    /// Bytes of the memory file.
    pub fn memory_bytes(&self) -> u64 {
        self.chunks.len() as u64 * crate::geometry::CHUNK_BYTES
    }

    /// Pages with contents.
    pub(crate) fn backed_pages(&self) -> u64 {
        self.chunks
            .iter()
            .flat_map(|chunk| &chunk.runs)
            .map(|run| u64::from(run.count))
            .sum()
    }
}

/// The number of each chunk of a snapshot in its memory file.
fn chunk_numbers(state: &MachineState) -> BTreeMap<u64, usize> {
    let numbered = state.chunks.iter().enumerate();
    numbered.map(|(number, chunk)| (chunk.chunk, number)).collect()
}
