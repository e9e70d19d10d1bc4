//! Building a plan: which page of the snapshot is mapped where, as page tables that are ready to be copied in.

use serde::{Deserialize, Serialize};

use crate::{
    geometry::{CHUNK_BYTES, CHUNK_PAGES, HOT_BASE, IMAGE_BASE, PAGE_BYTES, Prot, USER_TABLES},
    snapshot::{
        ChunkMap, Costs, MachineState, WorkingSet,
        working_set::{ChunkSet, PageBits},
    },
    tables::{ACCESSED, BACKED, DIRTY, LARGE, PRESENT, USER, WRITE, rights},
};

/// What a plan is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Finding out what a run touches: every page is an entry of its own, nothing is marked as used.
    Record,
    /// Little memory of its own: hot pages only. For machines that are touched ahead.
    Compact,
    /// The first answer as soon as possible: chunks are copied whole where that is cheaper than their faults.
    Fast(Costs),
    /// A runtime's base, in which functions are laid out later: only pages that they will fill are hot.
    Base,
}

/// Most bytes of chunks that are copied whole.
const WHOLE_CHUNKS_BYTES_MAX: u64 = 24 << 20;

/// How one chunk is mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mapping {
    /// One large page of the image.
    LargeImage(Prot),
    /// One large page of hot memory, filled with the whole chunk.
    LargeHot,
    /// A table; pages that runs touched are hot.
    Pages,
}

/// A plan's small part; the tables and the hot pages' contents are apart.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// Entries of the top table: index and value.
    pub(crate) root: Vec<(u16, u64)>,
    /// Guest-virtual chunk and the guest-physical chunk that is bound to it.
    pub(crate) bindings: Vec<(u64, u64)>,
    /// Bytes of dense hot pages at the start of the hot slot.
    pub(crate) hot_bytes: u64,
    /// Chunks that are copied whole: index in the memory file, offset in the hot slot.
    pub(crate) whole_chunks: Vec<(u32, u64)>,
    /// Addresses to touch ahead; bit 0: for writing.
    pub(crate) touches: Vec<u64>,
    /// Where the entry of each hot page is, in the order of the hot slot; zero for a page that is not used.
    pub(crate) hot_entries: Vec<u64>,
    /// Tables and directory entries that map the image for writing.
    pub(crate) writable_images: Vec<WritableImage>,
    /// Pages that a large page shows though the snapshot has nothing there, by the address of its directory entry.
    pub(crate) phantoms: Vec<(u64, PageBits)>,
    /// Chunks of the snapshot's own image that are mapped as large pages, in order of their numbers.
    pub(crate) large_images: Vec<u32>,
    /// Pages that count as backed.
    pub(crate) backed_pages: u64,
}

/// A place in the tables where the guest may write to the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WritableImage {
    /// Guest-physical address of the table, or of the directory entry of a large page.
    pub(crate) at: u64,
    /// It is a large page.
    pub(crate) large: bool,
}

/// A plan with what belongs to it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Built {
    pub(crate) plan: Plan,
    /// Tables, in order from the first that user space has.
    pub(crate) tables: Vec<[u64; CHUNK_PAGES]>,
    /// Offsets in the memory file of the hot pages, in order; `None` for a page of zeros.
    pub(crate) hot_sources: Vec<Option<u64>>,
    /// Chunks of the image slot that lie before the snapshot's own.
    pub(super) image_first: usize,
}

/// A chunk of the snapshot, with what is known of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece<'a> {
    /// Its number in the memory file.
    pub(super) index: usize,
    pub(super) chunk: &'a ChunkMap,
    pub(super) set: &'a ChunkSet,
}

impl Piece<'_> {
    pub(super) fn address(&self) -> u64 {
        self.chunk.chunk * CHUNK_BYTES
    }

    /// Where a page's contents are in the memory file.
    pub(super) fn source(&self, page: usize) -> u64 {
        self.index as u64 * CHUNK_BYTES + page as u64 * PAGE_BYTES
    }
}

impl Built {
    /// Guest-physical address of a table.
    pub(super) fn table_address(number: usize) -> u64 {
        USER_TABLES + number as u64 * PAGE_BYTES
    }

    /// The number of the table that an entry points to.
    pub(super) fn table_number(entry: u64) -> usize {
        ((entry & !0xfff) - USER_TABLES) as usize / PAGE_BYTES as usize
    }

    fn add_table(&mut self) -> usize {
        self.tables.push([0; CHUNK_PAGES]);
        self.tables.len() - 1
    }

    /// The directory table for an address, and the index in it.
    pub(super) fn directory(&mut self, address: u64) -> (usize, usize) {
        const TABLE: u64 = PRESENT | WRITE | USER;
        let index = |shift: u32| ((address >> shift) & 511) as usize;
        let root_index = index(39) as u16;
        let known = self
            .plan
            .root
            .iter()
            .find(|(index, _)| *index == root_index)
            .map(|(_, entry)| *entry);
        let pointers = match known {
            Some(entry) => Self::table_number(entry),
            None => {
                let table = self.add_table();
                self.plan
                    .root
                    .push((root_index, Self::table_address(table) | TABLE));
                table
            }
        };
        let entry = self.tables[pointers][index(30)];
        let directory = if entry == 0 {
            let table = self.add_table();
            self.tables[pointers][index(30)] = Self::table_address(table) | TABLE;
            table
        } else {
            Self::table_number(entry)
        };
        (directory, index(21))
    }

    /// The table of 4 KiB pages for an address; made when there is none, or in place of a large page.
    pub(super) fn page_table(&mut self, address: u64) -> usize {
        let (directory, index) = self.directory(address);
        let entry = self.tables[directory][index];
        if entry != 0 && entry & LARGE == 0 {
            return Self::table_number(entry);
        }
        let table = self.add_table();
        self.tables[directory][index] = Self::table_address(table) | PRESENT | WRITE | USER;
        table
    }

    pub(super) fn image_address(&self, index: usize) -> u64 {
        IMAGE_BASE + (self.image_first + index) as u64 * CHUNK_BYTES
    }

    /// Takes the next hot page, for the entry at this address; gives its guest-physical address.
    pub(super) fn take_hot(&mut self, source: Option<u64>, entry_at: u64) -> u64 {
        let hot = HOT_BASE + self.hot_sources.len() as u64 * PAGE_BYTES;
        self.hot_sources.push(source);
        self.plan.hot_entries.push(entry_at);
        hot
    }

    pub(super) fn map_large_image(&mut self, piece: Piece<'_>, prot: Prot) {
        let physical = self.image_address(piece.index);
        let (directory, entry) = self.directory(piece.address());
        // Not marked dirty: a write is then seen, and undone when the machine goes back to its snapshot.
        self.tables[directory][entry] = physical | LARGE | BACKED | ACCESSED | rights(prot);
        self.plan.large_images.push(piece.index as u32);
        self.note_large_image(piece, prot, directory, entry);
    }

    /// Writes down what follows from a large page of the image.
    pub(super) fn note_large_image(&mut self, piece: Piece<'_>, prot: Prot, directory: usize, entry: usize) {
        let physical = self.image_address(piece.index);
        let at = Self::table_address(directory) + entry as u64 * 8;
        self.plan.bindings.push((piece.chunk.chunk, physical));
        self.note_phantoms(piece, at);
        if prot.writable() {
            self.plan.writable_images.push(WritableImage { at, large: true });
        }
        if let Some(page) = (0..CHUNK_PAGES).find(|page| piece.set.touched.has(*page)) {
            self.plan.touches.push(piece.address() + page as u64 * PAGE_BYTES);
        }
    }

    fn note_phantoms(&mut self, piece: Piece<'_>, at: u64) {
        let mut phantoms = PageBits::NONE;
        for (page, _) in piece
            .chunk
            .pages()
            .iter()
            .enumerate()
            .filter(|(_, prot)| prot.is_none())
        {
            phantoms.set(page);
        }
        if phantoms.any() {
            self.plan.phantoms.push((at, phantoms));
        }
    }

    pub(super) fn map_large_hot(&mut self, piece: Piece<'_>, hot: u64) {
        let (directory, entry) = self.directory(piece.address());
        let physical = HOT_BASE + hot;
        self.tables[directory][entry] =
            physical | LARGE | BACKED | ACCESSED | DIRTY | rights(Prot::READ_WRITE);
        self.plan.bindings.push((piece.chunk.chunk, physical));
        self.plan.whole_chunks.push((piece.index as u32, hot));
        self.note_phantoms(piece, Self::table_address(directory) + entry as u64 * 8);
        self.plan.touches.push(piece.address() | 1);
    }

    fn map_pages(&mut self, piece: Piece<'_>, style: Style) {
        let physical = self.image_address(piece.index);
        let table = self.page_table(piece.address());
        self.plan.bindings.push((piece.chunk.chunk, physical));
        let hot_pages = match style {
            Style::Record => PageBits::default(),
            Style::Fast(_) => rounded_to_pairs(&piece.set.touched),
            // What is only read stays on the image, which all machines share: touching it ahead costs no memory.
            Style::Compact | Style::Base => piece.set.written,
        };
        let mut writable = false;
        for (page, prot) in piece.chunk.pages().iter().enumerate() {
            let at = piece.address() + page as u64 * PAGE_BYTES;
            let entry_at = Self::table_address(table) + page as u64 * 8;
            let written = piece.set.written.has(page);
            let Some(prot) = *prot else {
                if style == Style::Base && written {
                    self.reserve(table, page, at);
                }
                continue;
            };
            let touched = style != Style::Record && piece.set.touched.has(page) && prot.readable();
            if touched {
                self.plan.touches.push(at | u64::from(written && prot.writable()));
            }
            let value = if hot_pages.has(page) && prot.readable() {
                let hot = self.take_hot(Some(piece.source(page)), entry_at);
                // Used and dirty, so that a host with shadow paging brings eight of them in with one fault. A page that
                // no run wrote is left clean: a write to it is then seen.
                hot | ACCESSED | if written && prot.writable() { DIRTY } else { 0 }
            } else {
                writable |= prot.writable();
                physical + page as u64 * PAGE_BYTES
            };
            self.tables[table][page] = value | BACKED | rights(prot);
        }
        if writable {
            self.plan.writable_images.push(WritableImage {
                at: Self::table_address(table),
                large: false,
            });
        }
    }

    /// Maps a hot page of zeros where the snapshot has nothing, for functions that will have something there.
    pub(super) fn reserve(&mut self, table: usize, page: usize, address: u64) {
        let entry_at = Self::table_address(table) + page as u64 * 8;
        let hot = self.take_hot(None, entry_at);
        self.tables[table][page] = hot | BACKED | ACCESSED | DIRTY | rights(Prot::READ_WRITE);
        self.plan.touches.push(address | 1);
    }

    /// Maps the chunks that are not mapped page by page: hot ones behind the dense pages, aligned.
    pub(super) fn map_large<'a>(&mut self, chosen: impl Iterator<Item = (Piece<'a>, Mapping)>) {
        self.plan.hot_bytes = self.hot_sources.len() as u64 * PAGE_BYTES;
        let mut hot = self.plan.hot_bytes.next_multiple_of(CHUNK_BYTES);
        for (piece, mapping) in chosen {
            match mapping {
                Mapping::Pages => {}
                Mapping::LargeImage(prot) => self.map_large_image(piece, prot),
                Mapping::LargeHot => {
                    self.map_large_hot(piece, hot);
                    hot += CHUNK_BYTES;
                }
            }
        }
    }
}

/// Builds a plan for a snapshot. Without a working set, every style is [`Style::Record`].
pub(crate) fn build(state: &MachineState, set: Option<&WorkingSet>, style: Style) -> Built {
    let mut built = Built::default();
    built.plan.backed_pages = state.backed_pages();
    let set = set.filter(|set| set.chunks.len() == state.chunks.len());
    let style = if set.is_none() { Style::Record } else { style };
    let chosen = choose_all(state, set, style);
    // Hot pages come first in the hot slot, dense; whole chunks follow, aligned.
    for (piece, mapping) in &chosen {
        if *mapping == Mapping::Pages {
            built.map_pages(*piece, style);
        }
    }
    built.map_large(chosen.into_iter());
    built
}

/// How each chunk of a snapshot is mapped.
pub(super) fn choose_all<'a>(
    state: &'a MachineState,
    set: Option<&'a WorkingSet>,
    style: Style,
) -> Vec<(Piece<'a>, Mapping)> {
    static NOTHING: ChunkSet = ChunkSet::NOTHING;
    let mut whole_left = WHOLE_CHUNKS_BYTES_MAX;
    state
        .chunks
        .iter()
        .enumerate()
        .map(|(index, chunk)| {
            let set = set.map_or(&NOTHING, |set| &set.chunks[index]);
            let piece = Piece { index, chunk, set };
            (piece, choose(chunk, set, style, &mut whole_left))
        })
        .collect()
}

fn choose(chunk: &ChunkMap, set: &ChunkSet, style: Style, whole_left: &mut u64) -> Mapping {
    if style == Style::Record || chunk.guarded || chunk.runs.iter().any(|run| !run.prot.readable()) {
        return Mapping::Pages;
    }
    let bits = chunk.runs.iter().fold(0, |bits, run| bits | run.prot.bits());
    let union = Prot::from_bits(bits);
    if !union.writable() && !set.written.any() {
        return Mapping::LargeImage(union);
    }
    // A chunk of which some pages must not be written, or could be run, keeps its pages apart.
    if chunk.runs.iter().any(|run| run.prot != Prot::READ_WRITE) {
        return Mapping::Pages;
    }
    if !set.written.any() {
        return Mapping::LargeImage(union);
    }
    match style {
        Style::Record | Style::Compact | Style::Base => Mapping::Pages,
        Style::Fast(costs) => {
            let by_pages = set.touched.groups() as u64 * costs.fault_ns;
            let whole = costs.fault_ns + costs.copy_chunk_ns;
            if by_pages > whole && *whole_left >= CHUNK_BYTES {
                *whole_left -= CHUNK_BYTES;
                Mapping::LargeHot
            } else {
                Mapping::Pages
            }
        }
    }
}

/// Neighbours are likely to be touched next time.
fn rounded_to_pairs(bits: &PageBits) -> PageBits {
    let mut rounded = *bits;
    for page in (0..CHUNK_PAGES).filter(|page| bits.has(*page)) {
        rounded.set(page ^ 1);
    }
    rounded
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::PageRun;

    fn chunk(chunk: u64, runs: &[(u16, u16, Prot)], guarded: bool) -> ChunkMap {
        let runs = runs.iter().map(|(first, count, prot)| PageRun {
            first: *first,
            count: *count,
            prot: *prot,
        });
        ChunkMap {
            chunk,
            runs: runs.collect(),
            guarded,
        }
    }

    fn state(chunks: Vec<ChunkMap>) -> MachineState {
        MachineState {
            version: 1,
            chunks,
            extended: Vec::new(),
        }
    }

    /// Follows the built tables as the processor would.
    fn entry_at(built: &Built, address: u64) -> u64 {
        let index = |shift: u32| ((address >> shift) & 511) as usize;
        let table = |entry: u64| ((entry & 0x000f_ffff_ffff_f000) - USER_TABLES) as usize / 4096;
        let Some((_, root)) = built
            .plan
            .root
            .iter()
            .find(|(at, _)| usize::from(*at) == index(39))
        else {
            return 0;
        };
        let directory = built.tables[table(*root)][index(30)];
        if directory == 0 {
            return 0;
        }
        let entry = built.tables[table(directory)][index(21)];
        if entry == 0 || entry & LARGE != 0 {
            entry
        } else {
            built.tables[table(entry)][index(12)]
        }
    }

    #[test]
    fn recording_marks_nothing_as_used() {
        let state = state(vec![
            chunk(2, &[(0, 512, Prot::READ_EXECUTE)], false),
            chunk(9, &[(3, 2, Prot::READ_WRITE)], false),
        ]);
        let built = build(&state, None, Style::Record);
        for (chunk, page) in [(2u64, 0u64), (2, 511), (9, 3)] {
            let entry = entry_at(&built, chunk * CHUNK_BYTES + page * PAGE_BYTES);
            assert_eq!(entry & (PRESENT | ACCESSED | DIRTY | LARGE), PRESENT);
        }
        assert_eq!(
            entry_at(&built, 9 * CHUNK_BYTES),
            0,
            "a page without contents is absent"
        );
        assert_eq!(built.plan.hot_bytes, 0);
    }

    #[test]
    fn guarded_chunks_never_become_large_pages() {
        let state = state(vec![
            chunk(1, &[(0, 100, Prot::READ)], true),
            chunk(2, &[(0, 100, Prot::READ)], false),
        ]);
        let built = build(&state, Some(&WorkingSet::empty(2)), Style::Compact);
        assert_eq!(entry_at(&built, CHUNK_BYTES) & LARGE, 0);
        assert_ne!(entry_at(&built, 2 * CHUNK_BYTES) & LARGE, 0);
    }

    #[test]
    fn written_chunks_are_copied_where_faults_are_dear() {
        let state = state(vec![chunk(1, &[(0, 512, Prot::READ_WRITE)], false)]);
        let mut set = WorkingSet::empty(1);
        for page in (0..512).step_by(20) {
            set.chunks[0].touched.set(page);
            set.chunks[0].written.set(page);
        }
        let dear = Style::Fast(Costs {
            fault_ns: 22_000,
            copy_chunk_ns: 100_000,
        });
        let built = build(&state, Some(&set), dear);
        assert_eq!(built.plan.whole_chunks, [(0, 0)]);
        assert_ne!(entry_at(&built, CHUNK_BYTES) & LARGE, 0);
        let cheap = Style::Fast(Costs {
            fault_ns: 1_000,
            copy_chunk_ns: 100_000,
        });
        let built = build(&state, Some(&set), cheap);
        assert!(built.plan.whole_chunks.is_empty());
        assert_eq!(built.hot_sources.len(), 52, "26 pages, rounded to pairs");
        assert_eq!(entry_at(&built, CHUNK_BYTES) & (DIRTY | WRITE), DIRTY | WRITE);
        assert_eq!(
            entry_at(&built, CHUNK_BYTES + PAGE_BYTES) & DIRTY,
            0,
            "the neighbour was not written"
        );
    }

    #[test]
    fn machines_that_wait_hold_no_page_that_is_only_read() {
        let state = state(vec![chunk(1, &[(0, 512, Prot::READ_WRITE)], false)]);
        let mut set = WorkingSet::empty(1);
        (0..20).for_each(|page| set.chunks[0].touched.set(page));
        (0..4).for_each(|page| set.chunks[0].written.set(page));
        let built = build(&state, Some(&set), Style::Compact);
        assert_eq!(built.hot_sources.len(), 4);
        assert_eq!(built.plan.touches.len(), 20, "all are touched ahead");
        let read = entry_at(&built, CHUNK_BYTES + 4 * PAGE_BYTES);
        assert_eq!(read & crate::tables::ADDRESS, IMAGE_BASE + 4 * PAGE_BYTES);
        let first = Style::Fast(Costs::DEFAULT);
        let built = build(&state, Some(&set), first);
        assert_eq!(
            built.hot_sources.len(),
            20,
            "a first answer has no time for faults"
        );
    }

    #[test]
    fn rights_of_pages_are_kept_in_mixed_chunks() {
        let runs = [
            (0, 10, Prot::READ_EXECUTE),
            (10, 10, Prot::READ),
            (20, 10, Prot::READ_WRITE),
            (30, 1, Prot::NONE),
        ];
        let state = state(vec![chunk(1, &runs, false)]);
        let mut set = WorkingSet::empty(1);
        (0..31).for_each(|page| set.chunks[0].touched.set(page));
        let built = build(&state, Some(&set), Style::Compact);
        for (page, prot) in [
            (0, Prot::READ_EXECUTE),
            (10, Prot::READ),
            (20, Prot::READ_WRITE),
            (30, Prot::NONE),
        ] {
            let entry = entry_at(&built, CHUNK_BYTES + page * PAGE_BYTES);
            assert_eq!(crate::tables::prot_of(entry), prot, "page {page}");
            assert_ne!(entry & BACKED, 0);
        }
    }
}
