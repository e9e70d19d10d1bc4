//! Taking a machine back to its snapshot after a run.
//!
//! What a run wrote is found by the dirty bits of the tables: pages that runs are known to write are marked dirty from
//! the start and are always copied back; any other page gets its bit from the processor, or from the host when it
//! writes on the guest's behalf. Every change of an entry is journalled, so mappings go back as well.

use std::os::fd::BorrowedFd;

use crate::{
    error::{Error, Result},
    geometry::{CHUNK_BYTES, CHUNK_PAGES, HOT_BASE, IMAGE_BASE, PAGE_BYTES},
    machine::Vm,
    physical::{Region, region_of},
    snapshot::{
        WorkingSet,
        build::{Plan, WritableImage},
        restore::Restored,
    },
    space::AddressSpace,
    tables::{ACCESSED, ADDRESS, DIRTY, EntryAt, LARGE, PRESENT},
};

/// Most changed entries that are undone; a run that changed more is cheaper to throw away.
const ENTRIES_MAX: usize = 65_536;
/// Most new memory that a run may have bound.
const FRESH_BYTES_MAX: u64 = 256 << 20;

/// What going back took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rewound {
    /// Hot pages that got their contents back.
    pub hot_pages: u64,
    /// Pages of the image that the run had copied for itself.
    pub image_pages: u64,
    /// Chunks that were copied whole.
    pub whole_chunks: u64,
    /// Entries of the tables that were put back.
    pub entries: u64,
}

/// Pages whose entries were changed: their contents are taken for changed.
#[derive(Debug, Default)]
struct Suspects {
    /// Guest-physical addresses of the entries.
    hot: Vec<u64>,
    /// Guest-physical address and bytes.
    image: Vec<(u64, u64)>,
}

impl Vm {
    /// Takes a machine that was laid out by a layout back to its snapshot. An error leaves it of no further use.
    pub fn rewind(&mut self, layout: BorrowedFd<'_>, memory: BorrowedFd<'_>) -> Result<Rewound> {
        let Some(restored) = self.take_restored() else {
            return Err(Error::Snapshot("the machine was not restored".into()));
        };
        if restored.recording {
            return Err(Error::Snapshot("a machine that records cannot go back".into()));
        }
        let space = self.space_mut();
        if space.tables.journal_len() > ENTRIES_MAX || space.physical.bound_bytes() > FRESH_BYTES_MAX {
            return Err(Error::Snapshot("the run changed too much to be undone".into()));
        }
        let mut rewound = Rewound::default();
        let suspects = space.undo_entries(&mut rewound);
        space.give_back_image_pages(&restored.plan, &suspects, &mut rewound)?;
        space.give_back_hot_pages(&restored, &suspects, layout, &mut rewound)?;
        space.read_whole_chunks(&restored.plan, memory)?;
        rewound.whole_chunks = restored.plan.whole_chunks.len() as u64;
        space.physical.drop_fresh()?;
        space.adopt_bindings(&restored.plan);
        self.load_extended(&restored.extended)?;
        self.set_restored(restored);
        Ok(rewound)
    }

    /// What the run of a recording machine touched, since it was laid out.
    pub fn working_set(&self) -> Option<WorkingSet> {
        let restored = self.restored().filter(|restored| restored.recording)?;
        let mut set = WorkingSet::empty(restored.chunks);
        set.runs = 1;
        for (index, (chunk, _)) in restored.plan.bindings.iter().enumerate() {
            for page in 0..CHUNK_PAGES {
                let address = chunk * CHUNK_BYTES + page as u64 * PAGE_BYTES;
                let entry = self.space().entry(address);
                // A page that was replaced since is not the snapshot's.
                let source = IMAGE_BASE + index as u64 * CHUNK_BYTES + page as u64 * PAGE_BYTES;
                if entry & ADDRESS != source {
                    continue;
                }
                if entry & ACCESSED != 0 {
                    set.chunks[index].touched.set(page);
                }
                if entry & DIRTY != 0 {
                    set.chunks[index].written.set(page);
                }
            }
        }
        Some(set)
    }

    /// Touches every page that runs are known to touch, so that the next run does not fault on them.
    pub fn touch_ahead(&mut self) -> Result<()> {
        let Some(restored) = self.restored() else {
            return Ok(());
        };
        let touches = restored.plan.touches.clone();
        self.touch(&touches)?;
        self.expect_no_faults();
        Ok(())
    }
}

/// Bytes that an entry maps.
fn page_bytes(entry: u64) -> u64 {
    match entry & LARGE {
        0 => PAGE_BYTES,
        _ => CHUNK_BYTES,
    }
}

/// Bits that an entry keeps when it is put back. The host does not drop its translation of a hot page, so a page that the
/// guest has written would be written again without being marked.
fn still_used(original: u64, current: u64) -> u64 {
    let is_same = original & current & PRESENT != 0 && (original ^ current) & (ADDRESS | LARGE) == 0;
    match region_of(original & ADDRESS) {
        Region::Hot if is_same => current & (ACCESSED | DIRTY),
        Region::Hot | Region::Image | Region::System | Region::Fresh => 0,
    }
}

impl AddressSpace {
    /// Puts every journalled entry back. Entries of pages of new memory need no flush: the host drops its translations
    /// with the memory. Those of whole chunks do; see `unmap_large`.
    fn undo_entries(&mut self, rewound: &mut Rewound) -> Suspects {
        let mut suspects = Suspects::default();
        for (at, original) in self.tables.take_journal() {
            let current = self.tables.read(at);
            match region_of(original & ADDRESS) {
                Region::Hot => suspects.hot.push(at.0),
                Region::Image => suspects.image.push((original & ADDRESS, page_bytes(original))),
                Region::System | Region::Fresh => {}
            }
            // What the run mapped where the snapshot has nothing can lie in the image, too: a chunk has its place there.
            if region_of(current & ADDRESS) == Region::Image && (current ^ original) & ADDRESS != 0 {
                suspects.image.push((current & ADDRESS, page_bytes(current)));
            }
            if region_of(current & ADDRESS) == Region::Fresh && current & LARGE == 0 {
                self.tables.set_without_flush(at, original);
            } else {
                self.tables.replace(at, original | still_used(original, current));
            }
            rewound.entries += 1;
        }
        // What undoing wrote into the journal is the snapshot's own state.
        self.tables.clear_journal();
        let host_written = self.take_host_written().into_iter();
        suspects.image.extend(host_written.map(|page| (page, PAGE_BYTES)));
        suspects
    }

    /// Drops the private copies of image pages that were written: the file's contents show again, and the host forgets
    /// its translations, so the bits can be cleared from here.
    fn give_back_image_pages(
        &mut self,
        plan: &Plan,
        suspects: &Suspects,
        rewound: &mut Rewound,
    ) -> Result<()> {
        for WritableImage { at, large } in &plan.writable_images {
            if *large {
                let entry = self.tables.read(EntryAt(*at));
                let address = entry & ADDRESS & !(CHUNK_BYTES - 1);
                let changed = suspects
                    .image
                    .iter()
                    .any(|(page, _)| page & !(CHUNK_BYTES - 1) == address);
                if entry & DIRTY != 0 || changed {
                    self.discard_physical(address, CHUNK_BYTES)?;
                    self.tables.clear_used(EntryAt(*at));
                    rewound.image_pages += CHUNK_PAGES as u64;
                }
                continue;
            }
            for page in 0..CHUNK_PAGES {
                let entry_at = EntryAt(*at).plus(page);
                let entry = self.tables.read(entry_at);
                if entry & DIRTY != 0 && region_of(entry & ADDRESS) == Region::Image {
                    self.discard_physical(entry & ADDRESS, PAGE_BYTES)?;
                    self.tables.clear_used(entry_at);
                    rewound.image_pages += 1;
                }
            }
        }
        for (address, bytes) in &suspects.image {
            self.discard_physical(*address, *bytes)?;
            rewound.image_pages += bytes / PAGE_BYTES;
        }
        Ok(())
    }

    fn give_back_hot_pages(
        &mut self,
        restored: &Restored,
        suspects: &Suspects,
        layout: BorrowedFd<'_>,
        rewound: &mut Rewound,
    ) -> Result<()> {
        // Runs of adjacent pages are read at once.
        let mut run: Option<(u64, u64)> = None;
        let entries = &restored.plan.hot_entries;
        for (number, at) in entries.iter().enumerate() {
            if *at == 0 {
                continue;
            }
            let entry = self.tables.read(EntryAt(*at));
            let offset = number as u64 * PAGE_BYTES;
            debug_assert_eq!(entry & ADDRESS, HOT_BASE + offset);
            if entry & DIRTY == 0 && !suspects.hot.contains(at) {
                continue;
            }
            rewound.hot_pages += 1;
            run = match run {
                Some((start, bytes)) if start + bytes == offset => Some((start, bytes + PAGE_BYTES)),
                Some((start, bytes)) => {
                    self.read_hot(layout, restored.hot_at + start, start, bytes)?;
                    Some((offset, PAGE_BYTES))
                }
                None => Some((offset, PAGE_BYTES)),
            };
        }
        if let Some((start, bytes)) = run {
            self.read_hot(layout, restored.hot_at + start, start, bytes)?;
        }
        Ok(())
    }
}
