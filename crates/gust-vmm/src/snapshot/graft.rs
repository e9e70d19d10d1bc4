//! Grafts: laying a function's snapshot out in a machine that already holds its runtime's base.
//!
//! A function's snapshot descends from its runtime's base, so most of it is at the same addresses, and most of its pages
//! have the same contents. A pooled machine in which the base has been laid out and touched ahead has the tables, and the
//! host's shadows of them, that the function needs; a graft changes the entries that differ and fills hot pages in
//! place. What a run touches then costs a copy and no fault.
//!
//! A base is laid out for the functions that are known ([`learn`]): a page that one of them writes, or has other contents
//! in, is a hot page of the base; where functions have pages and the base has none, hot pages are reserved.

use std::{collections::BTreeMap, os::fd::BorrowedFd};

use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    geometry::{CHUNK_BYTES, CHUNK_PAGES, HOT_BASE, IMAGE_BASE, PAGE_BYTES, Prot},
    physical::{Region, region_of},
    snapshot::{
        ChunkMap, Costs, MachineState, Style, WorkingSet,
        build::{Built, Mapping, Piece, Plan, WritableImage, build, choose_all},
        chunk_numbers,
        layout::read_exact,
        working_set::PageBits,
    },
    tables::{ACCESSED, ADDRESS, BACKED, DIRTY, EntryAt, LARGE, NO_EXECUTE, PRESENT, USER, WRITE, rights},
};

/// Most hot pages of a base: 2.5 MiB. They are what a pooled machine has of its own.
const BASE_HOT_PAGES_MAX: usize = CHUNK_PAGES + CHUNK_PAGES / 4;

/// Bytes by which a snapshot may be larger than the base that it is grafted on.
const GROWTH_BYTES: u64 = 32 << 20;

/// Bits of an entry that are its rights.
const RIGHTS: u64 = PRESENT | USER | WRITE | NO_EXECUTE;

/// What a base is laid out for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Shape {
    /// Pages of the base that functions touch, and those that they fill or write. A page that the base does not have
    /// may be among the latter: it is reserved.
    pub(crate) set: WorkingSet,
    /// Pages to reserve in chunks that the base does not have, by the number of the chunk.
    pub(crate) reserved: Vec<(u64, PageBits)>,
}

/// A function that a base is to be laid out for.
#[derive(Debug, Clone, Copy)]
pub struct Descendant<'a> {
    /// Its snapshot.
    pub state: &'a MachineState,
    /// The snapshot's memory file.
    pub memory: BorrowedFd<'a>,
    /// What its runs touch.
    pub set: &'a WorkingSet,
}

/// A snapshot with its memory file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stored<'a> {
    pub(crate) state: &'a MachineState,
    pub(crate) memory: BorrowedFd<'a>,
}

/// Pages of a chunk whose contents are those of the base, and the number of the base's chunk.
#[derive(Debug, Clone, Copy)]
struct Same {
    index: usize,
    pages: PageBits,
}

/// What a graft changes; the new tables and the hot pages' contents are apart.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Graft {
    /// The whole plan, as if the snapshot had been laid out by it.
    pub(crate) plan: Plan,
    /// Chunks of the image slot that the base takes.
    pub(crate) image_first: u64,
    /// Entries of the base's tables to replace, and their new values.
    pub(crate) edits: Vec<(u64, u64)>,
    /// Parts of the hot pages to fill: offset and bytes.
    pub(crate) copies: Vec<(u64, u64)>,
}

/// A graft with what belongs to it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Grafted {
    pub(crate) graft: Graft,
    /// Tables that the base does not have; they follow its own.
    pub(crate) tables: Vec<[u64; CHUNK_PAGES]>,
    /// As in [`Built`].
    pub(crate) hot_sources: Vec<Option<u64>>,
}

/// Room in the image slot of a machine that a base is laid out in, in bytes, for the base's image and, behind it, the image of
/// a snapshot that descends from it.
pub(crate) fn image_room(base: &MachineState) -> u64 {
    base.memory_bytes() * 2 + GROWTH_BYTES
}

/// Builds the plan of a base.
pub(crate) fn build_base(state: &MachineState, shape: &Shape) -> Built {
    let mut built = build(state, Some(&shape.set), Style::Base);
    for (chunk, pages) in &shape.reserved {
        let table = built.page_table(chunk * CHUNK_BYTES);
        for page in (0..CHUNK_PAGES).filter(|page| pages.has(*page)) {
            built.reserve(table, page, chunk * CHUNK_BYTES + page as u64 * PAGE_BYTES);
        }
    }
    built.plan.hot_bytes = built.hot_sources.len() as u64 * PAGE_BYTES;
    built
}

/// Finds out what to lay a base out for.
pub(crate) fn learn(base: Stored<'_>, functions: &[Descendant<'_>]) -> Result<Shape> {
    let numbers: BTreeMap<u64, usize> = chunk_numbers(base.state);
    let mut set = WorkingSet::empty(base.state.chunks.len());
    set.runs = functions.iter().map(|function| function.set.runs).sum();
    // How many functions fill or write a page.
    let mut wanted: BTreeMap<(u64, usize), u32> = BTreeMap::new();
    for function in functions {
        if function.set.chunks.len() != function.state.chunks.len() {
            return Err(Error::Snapshot("the working set is not the snapshot's".into()));
        }
        let stored = Stored {
            state: function.state,
            memory: function.memory,
        };
        let same = compare(base, stored)?;
        let chunks = function.state.chunks.iter().zip(&function.set.chunks).zip(&same);
        for ((chunk, touched), same) in chunks {
            let number = numbers.get(&chunk.chunk);
            for (page, prot) in chunk.pages().iter().enumerate() {
                let Some(prot) = prot.filter(|prot| prot.readable()) else {
                    continue;
                };
                if !touched.touched.has(page) {
                    continue;
                }
                let is_same = same.is_some_and(|same| same.pages.has(page));
                if let Some(number) = number {
                    set.chunks[*number].touched.set(page);
                }
                if (prot.writable() && touched.written.has(page)) || !is_same {
                    *wanted.entry((chunk.chunk, page)).or_default() += 1;
                }
            }
        }
    }
    let mut reserved: BTreeMap<u64, PageBits> = BTreeMap::new();
    for (chunk, page) in most_wanted(wanted) {
        match numbers.get(&chunk) {
            Some(number) => set.chunks[*number].written.set(page),
            None => reserved.entry(chunk).or_default().set(page),
        }
    }
    Ok(Shape {
        set,
        reserved: reserved.into_iter().collect(),
    })
}

/// As many pages as a base may have, those of most functions first.
fn most_wanted(wanted: BTreeMap<(u64, usize), u32>) -> Vec<(u64, usize)> {
    let mut pages: Vec<_> = wanted.into_iter().collect();
    pages.sort_by_key(|(_, functions)| std::cmp::Reverse(*functions));
    pages.truncate(BASE_HOT_PAGES_MAX);
    pages.into_iter().map(|(page, _)| page).collect()
}

/// Finds the pages of a snapshot that have the contents that the base has at the same address.
fn compare(base: Stored<'_>, stored: Stored<'_>) -> Result<Vec<Option<Same>>> {
    let numbers = chunk_numbers(base.state);
    let (mut ours, mut others) = (vec![0; CHUNK_BYTES as usize], vec![0; CHUNK_BYTES as usize]);
    let mut compare_chunk = |number: usize, chunk: &ChunkMap| -> Result<Option<Same>> {
        let Some(index) = numbers.get(&chunk.chunk).copied() else {
            return Ok(None);
        };
        read_exact(stored.memory, &mut ours, number as u64 * CHUNK_BYTES)?;
        read_exact(base.memory, &mut others, index as u64 * CHUNK_BYTES)?;
        let mut pages = PageBits::NONE;
        let both = chunk.pages().into_iter().zip(base.state.chunks[index].pages());
        for (page, _) in both
            .enumerate()
            .filter(|(_, both)| matches!(both, (Some(_), Some(_))))
        {
            let bytes = page * PAGE_BYTES as usize..(page + 1) * PAGE_BYTES as usize;
            if ours[bytes.clone()] == others[bytes] {
                pages.set(page);
            }
        }
        Ok(Some(Same { index, pages }))
    };
    let numbered = stored.state.chunks.iter().enumerate();
    numbered
        .map(|(number, chunk)| compare_chunk(number, chunk))
        .collect()
}

/// Builds the graft of a snapshot on a base that is laid out for a shape.
pub(crate) fn graft(
    base: Stored<'_>,
    shape: &Shape,
    stored: Stored<'_>,
    set: &WorkingSet,
    costs: Costs,
) -> Result<Grafted> {
    if set.chunks.len() != stored.state.chunks.len() || shape.set.chunks.len() != base.state.chunks.len() {
        return Err(Error::Snapshot("the working set is not the snapshot's".into()));
    }
    if base.state.memory_bytes() + stored.state.memory_bytes() > image_room(base.state) {
        return Err(Error::Exhausted("image slot"));
    }
    let same = compare(base, stored)?;
    let based = build_base(base.state, shape);
    let mut grafting = Grafting::new(&based, base.state, shape);
    let chosen = choose_all(stored.state, Some(set), Style::Fast(costs));
    let mut large = Vec::new();
    for ((piece, mapping), same) in chosen.into_iter().zip(&same) {
        if grafting.keeps_large(piece, mapping, *same) {
            continue;
        }
        if mapping == Mapping::Pages || grafting.has_table(piece.address()) {
            grafting.map_pages(piece, *same);
        } else {
            large.push((piece, mapping));
        }
    }
    grafting.built.map_large(large.into_iter());
    grafting.drop_others(stored.state);
    grafting.built.plan.backed_pages = stored.state.backed_pages();
    Ok(grafting.finish())
}

/// A graft in the making.
struct Grafting<'a> {
    based: &'a Built,
    base: &'a MachineState,
    shape: &'a Shape,
    built: Built,
    /// Hot pages that have to be filled.
    filled: Vec<bool>,
}

impl<'a> Grafting<'a> {
    fn new(based: &'a Built, base: &'a MachineState, shape: &'a Shape) -> Self {
        let hot_pages = based.hot_sources.len();
        Self {
            based,
            base,
            shape,
            built: Built {
                plan: Plan {
                    root: based.plan.root.clone(),
                    hot_entries: vec![0; hot_pages],
                    ..Plan::default()
                },
                tables: based.tables.clone(),
                hot_sources: vec![None; hot_pages],
                image_first: base.chunks.len(),
            },
            filled: vec![false; hot_pages],
        }
    }

    fn directory_entry(&mut self, address: u64) -> u64 {
        let (directory, index) = self.built.directory(address);
        self.built.tables[directory][index]
    }

    fn has_table(&mut self, address: u64) -> bool {
        let entry = self.directory_entry(address);
        entry != 0 && entry & LARGE == 0
    }

    /// Leaves a large page of the base's image as it is, when the snapshot would map the same there.
    fn keeps_large(&mut self, piece: Piece<'_>, mapping: Mapping, same: Option<Same>) -> bool {
        let (Mapping::LargeImage(prot), Some(same)) = (mapping, same) else {
            return false;
        };
        let entry = self.directory_entry(piece.address());
        let is_same = |(page, prot): (usize, &Option<Prot>)| prot.is_none() || same.pages.has(page);
        let keeps = entry & LARGE != 0
            && entry & RIGHTS == rights(prot)
            && piece.chunk.pages().iter().enumerate().all(is_same);
        if keeps {
            let (directory, index) = self.built.directory(piece.address());
            self.built.note_large_image(piece, prot, directory, index);
        }
        keeps
    }

    fn map_pages(&mut self, piece: Piece<'_>, same: Option<Same>) {
        let physical = self.built.image_address(piece.index);
        let table = self.built.page_table(piece.address());
        self.built.plan.bindings.push((piece.chunk.chunk, physical));
        let mut writable = false;
        for (page, prot) in piece.chunk.pages().iter().enumerate() {
            let Some(prot) = *prot else {
                self.built.tables[table][page] = 0;
                continue;
            };
            let at = piece.address() + page as u64 * PAGE_BYTES;
            let touched = piece.set.touched.has(page) && prot.readable();
            let written = piece.set.written.has(page) && prot.writable();
            if touched {
                self.built.plan.touches.push(at | u64::from(written));
            }
            let base_page = same.filter(|same| same.pages.has(page)).map(|same| same.index);
            let dirty = if written { DIRTY } else { 0 };
            let old = self.built.tables[table][page];
            let value = if prot.readable() && region_of(old & ADDRESS) == Region::Hot {
                self.fill_hot(old, piece, page, EntryAt(Built::table_address(table)).plus(page));
                // The base's own layout has filled it with the same.
                self.filled[hot_number(old)] = base_page.is_none();
                (old & (ADDRESS | ACCESSED | DIRTY)) | dirty
            } else if let Some(index) =
                base_page.filter(|index| self.is_ready(*index, page, touched, written))
            {
                writable |= prot.writable();
                IMAGE_BASE + index as u64 * CHUNK_BYTES + page as u64 * PAGE_BYTES
            } else if touched {
                let entry_at = EntryAt(Built::table_address(table)).plus(page).0;
                self.filled.push(true);
                self.built.take_hot(Some(piece.source(page)), entry_at) | ACCESSED | dirty
            } else {
                writable |= prot.writable();
                physical + page as u64 * PAGE_BYTES
            };
            self.built.tables[table][page] = value | BACKED | rights(prot);
        }
        if writable {
            self.built.plan.writable_images.push(WritableImage {
                at: Built::table_address(table),
                large: false,
            });
        }
    }

    /// The page of the base's image serves as it is: nothing touches it, or it is only read and has been touched ahead.
    fn is_ready(&self, index: usize, page: usize, touched: bool, written: bool) -> bool {
        !touched || (!written && self.shape.set.chunks[index].touched.has(page))
    }

    /// Takes a hot page of the base over.
    fn fill_hot(&mut self, entry: u64, piece: Piece<'_>, page: usize, at: EntryAt) {
        let number = hot_number(entry);
        self.built.hot_sources[number] = Some(piece.source(page));
        self.built.plan.hot_entries[number] = at.0;
    }

    /// Takes away what the base has and the snapshot has not.
    ///
    /// Page by page, and not a table at a time: a host with shadow paging takes a directory in which three entries are
    /// written one after the other for one that is no directory any more, and drops all that it knows below it.
    fn drop_others(&mut self, state: &MachineState) {
        let own = chunk_numbers(state);
        let bases = self.base.chunks.iter().map(|chunk| chunk.chunk);
        let reserved = self.shape.reserved.iter().map(|(chunk, _)| *chunk);
        for chunk in bases.chain(reserved).filter(|chunk| !own.contains_key(chunk)) {
            let (directory, index) = self.built.directory(chunk * CHUNK_BYTES);
            let entry = self.built.tables[directory][index];
            if entry & LARGE != 0 {
                self.built.tables[directory][index] = 0;
            } else if entry != 0 {
                self.built.tables[Built::table_number(entry)] = [0; CHUNK_PAGES];
            }
        }
    }

    fn finish(mut self) -> Grafted {
        let new_tables = self.built.tables.split_off(self.based.tables.len());
        let mut edits = Vec::new();
        for (number, (table, old)) in self.built.tables.iter().zip(&self.based.tables).enumerate() {
            for (entry, (value, _)) in table
                .iter()
                .zip(old)
                .enumerate()
                .filter(|(_, (new, old))| new != old)
            {
                edits.push((EntryAt(Built::table_address(number)).plus(entry).0, *value));
            }
        }
        let mut copies: Vec<(u64, u64)> = Vec::new();
        for (number, _) in self.filled.iter().enumerate().filter(|(_, filled)| **filled) {
            let offset = number as u64 * PAGE_BYTES;
            match copies.last_mut() {
                Some((start, bytes)) if *start + *bytes == offset => *bytes += PAGE_BYTES,
                _ => copies.push((offset, PAGE_BYTES)),
            }
        }
        Grafted {
            graft: Graft {
                plan: self.built.plan,
                image_first: self.built.image_first as u64,
                edits,
                copies,
            },
            tables: new_tables,
            hot_sources: self.built.hot_sources,
        }
    }
}

fn hot_number(entry: u64) -> usize {
    (((entry & ADDRESS) - HOT_BASE) / PAGE_BYTES) as usize
}
