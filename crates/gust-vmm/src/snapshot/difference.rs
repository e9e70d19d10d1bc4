//! What sets a machine that has run apart from the snapshot that it was laid out from: small enough to keep instead of the machine.
//!
//! ```text
//!   running machine ── difference ──> rights that changed, pages that came, went or were written (packed)
//!   the same snapshot, laid out in any way ── apply ──> the same guest memory
//! ```
//!
//! A page that the snapshot has, too, is stored as what was changed in it (exclusive or), which compresses to little more
//! than the changed words: a handler's run counts references in many pages and writes much in few.

use std::os::fd::BorrowedFd;

use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    geometry::{CHUNK_BYTES, CHUNK_PAGES, IMAGE_BASE, PAGE_BYTES, PageRange, Prot},
    machine::Vm,
    snapshot::{
        ChunkMap, MachineState, MappedArea, SNAPSHOT_VERSION,
        capture::{chunk_use, described},
        chunk_numbers,
        layout::read_exact,
    },
    space::{AddressSpace, Populate},
    tables::{ADDRESS, DIRTY, Leaf},
    vcpu::XSAVE_BYTES,
};

/// Pages that are compressed together.
const BLOCK_PAGES: usize = 64;

/// Most pages that a difference may have: a guest that has changed more is not worth keeping so.
const PAGES_MAX: usize = 16_384;

const PAGE: usize = PAGE_BYTES as usize;

/// Pages in a row whose rights are the same; none at all means that nothing is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Rights {
    /// Number of the first page: its address over the size of a page.
    page: u64,
    pages: u32,
    prot: Option<Prot>,
    /// The snapshot has nothing there, though a large page of it may show something.
    is_new: bool,
}

/// A machine without what its snapshot knows of it. Encoded, it is not checked for whom it belongs to: the one who keeps it
/// gives it back to a machine of the same snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    version: u32,
    /// Rights that are not the snapshot's.
    rights: Vec<Rights>,
    /// Numbers of the pages whose contents changed, in order.
    pages: Vec<u64>,
    /// Their changes, [`BLOCK_PAGES`] at a time (LZ4 blocks).
    blocks: Vec<Vec<u8>>,
    /// Extended state of each thread, by its number, up to its last byte that is not zero.
    extended: Vec<(u32, Vec<u8>)>,
}

impl Difference {
    /// Pages whose contents changed.
    pub fn pages(&self) -> usize {
        self.pages.len()
    }
}

impl Vm {
    /// What sets this machine apart from the snapshot that it was laid out from; `None` when that is too much to be worth
    /// keeping. `areas` and `threads` are as for [`Vm::capture`], `memory` is the snapshot's memory file.
    pub fn difference(
        &mut self,
        areas: &[MappedArea],
        threads: &[usize],
        origin: &MachineState,
        memory: BorrowedFd<'_>,
    ) -> Result<Option<Difference>> {
        let restored = self
            .restored()
            .ok_or(Error::Missing("a snapshot that the machine was laid out from"))?;
        let image_first = restored.image_first as usize;
        let extended = self.used_extended_states(threads)?;
        let mut packer = Packer::new();
        let mut difference = Difference {
            version: SNAPSHOT_VERSION,
            rights: Vec::new(),
            pages: Vec::new(),
            blocks: Vec::new(),
            extended,
        };
        let numbers = chunk_numbers(origin);
        let mut chunks = self.space().bound_chunks();
        chunks.extend(origin.chunks.iter().map(|chunk| chunk.chunk));
        chunks.sort_unstable();
        chunks.dedup();
        for chunk in chunks {
            let index = numbers.get(&chunk).copied();
            let before = index.map(|index| &origin.chunks[index]);
            let used = chunk_use(areas, chunk);
            let now = described(self.space(), &used);
            let is_guarded = used.guarded && before.is_some_and(|before| !before.guarded);
            difference.compare_rights(chunk, before, now.as_ref(), is_guarded);
            let Some(now) = now else { continue };
            let had = before.map_or([None; CHUNK_PAGES], ChunkMap::pages);
            for (page, _) in now.pages().iter().enumerate().filter(|(_, prot)| prot.is_some()) {
                let address = chunk * CHUNK_BYTES + page as u64 * PAGE_BYTES;
                let source = index.filter(|_| had[page].is_some()).map(|index| {
                    let offset = page as u64 * PAGE_BYTES;
                    (
                        index as u64 * CHUNK_BYTES + offset,
                        image_first as u64 * CHUNK_BYTES,
                    )
                });
                if let Some((at, first)) = source
                    && self.space().is_untouched(address, IMAGE_BASE + first + at)
                {
                    continue;
                }
                let mut content = [0; PAGE];
                self.space()
                    .read_backed(address, &mut content)
                    .map_err(|bad| Error::Snapshot(bad.to_string()))?;
                if let Some((at, _)) = source {
                    let mut old = [0; PAGE];
                    read_exact(memory, &mut old, at)?;
                    exclusive_or(&mut content, &old);
                }
                if content.iter().all(|byte| *byte == 0) {
                    continue;
                }
                if difference.pages.len() == PAGES_MAX {
                    return Ok(None);
                }
                difference.pages.push(address / PAGE_BYTES);
                packer.add(&content);
            }
        }
        difference.blocks = packer.finish();
        Ok(Some(difference))
    }

    /// Makes a machine in which the snapshot has been laid out, and nothing has run, what another was. An error leaves it of
    /// no further use.
    pub fn apply(&mut self, difference: &Difference) -> Result<()> {
        if difference.version != SNAPSHOT_VERSION || difference.pages.len() > PAGES_MAX {
            return Err(Error::Snapshot("the difference is of another version".into()));
        }
        let space = self.space_mut();
        for rights in &difference.rights {
            let range = page_range(rights.page, u64::from(rights.pages))?;
            if rights.is_new {
                space.clear_phantoms(range)?;
            }
            match rights.prot {
                None => space.unmap(range)?,
                Some(prot) => {
                    space.map(range, prot, Populate::OnTouch)?;
                    space.protect(range, prot)?;
                }
            }
        }
        let mut pages = difference.pages.iter();
        for block in &difference.blocks {
            let changes = unpacked(block)?;
            for change in changes.chunks_exact(PAGE) {
                let page = pages
                    .next()
                    .ok_or(Error::Snapshot("a page of the difference has no number".into()))?;
                space.change(*page, change)?;
            }
        }
        if pages.next().is_some() {
            return Err(Error::Snapshot("a page of the difference is missing".into()));
        }
        self.load_extended(&difference.extended)
    }

    /// Extended state of each of these threads, up to its last byte that is not zero.
    pub(super) fn used_extended_states(&mut self, threads: &[usize]) -> Result<Vec<(u32, Vec<u8>)>> {
        let mut extended = Vec::with_capacity(threads.len());
        for thread in threads {
            let mut state = [0; XSAVE_BYTES];
            self.extended_state(*thread, &mut state)?;
            let used = state
                .iter()
                .rposition(|byte| *byte != 0)
                .map_or(0, |last| last + 1);
            extended.push((*thread as u32, state[..used].to_vec()));
        }
        Ok(extended)
    }
}

impl Difference {
    /// Notes the pages of a chunk whose rights are not what they were. In one that has become guarded, no page of zeros may
    /// be seen any more where nothing is.
    fn compare_rights(
        &mut self,
        chunk: u64,
        before: Option<&ChunkMap>,
        now: Option<&ChunkMap>,
        is_guarded: bool,
    ) {
        let pages = |map: Option<&ChunkMap>| map.map_or([None; CHUNK_PAGES], ChunkMap::pages);
        let first = chunk * CHUNK_PAGES as u64;
        for (page, (before, now)) in pages(before).into_iter().zip(pages(now)).enumerate() {
            let is_new = before.is_none();
            if before == now && !(is_guarded && is_new) {
                continue;
            }
            let page = first + page as u64;
            match self.rights.last_mut() {
                Some(last)
                    if last.page + u64::from(last.pages) == page
                        && (last.prot, last.is_new) == (now, is_new) =>
                {
                    last.pages += 1;
                }
                _ => self.rights.push(Rights {
                    page,
                    pages: 1,
                    prot: now,
                    is_new,
                }),
            }
        }
    }
}

impl AddressSpace {
    /// Whether the page at an address is the one of the image at `source`, and nothing has written to it.
    fn is_untouched(&self, address: u64, source: u64) -> bool {
        let (at, offset) = match self.tables.find(address) {
            Leaf::None => return false,
            Leaf::Page(at) => (at, 0),
            Leaf::Chunk(at) => (at, address % CHUNK_BYTES),
        };
        let entry = self.tables.read(at);
        // An entry that was changed has lost what it knew.
        (entry & ADDRESS) + offset == source && entry & DIRTY == 0 && !self.tables.has_changed(at)
    }

    /// Changes a backed page's content.
    fn change(&mut self, page: u64, change: &[u8]) -> Result<()> {
        let address = page_range(page, 1)?.start;
        let failed = |bad: crate::BadAddress| Error::Snapshot(bad.to_string());
        let mut content = [0; PAGE];
        self.read_backed(address, &mut content).map_err(failed)?;
        exclusive_or(&mut content, change);
        self.write_backed(address, &content).map_err(failed)
    }
}

fn exclusive_or(content: &mut [u8; PAGE], change: &[u8]) {
    for (byte, change) in content.iter_mut().zip(change) {
        *byte ^= change;
    }
}

/// A range of guest-virtual space, checked.
fn page_range(page: u64, pages: u64) -> Result<PageRange> {
    let end = page
        .checked_add(pages)
        .and_then(|end| end.checked_mul(PAGE_BYTES));
    match end {
        Some(end) if end <= crate::geometry::USER_END => Ok(PageRange::new(page * PAGE_BYTES, end)),
        _ => Err(Error::Snapshot(
            "the difference lies outside of user space".into(),
        )),
    }
}

/// Compresses pages, some at a time.
struct Packer {
    waiting: Vec<u8>,
    blocks: Vec<Vec<u8>>,
}

impl Packer {
    fn new() -> Self {
        Self {
            waiting: Vec::with_capacity(BLOCK_PAGES * PAGE),
            blocks: Vec::new(),
        }
    }

    fn add(&mut self, page: &[u8; PAGE]) {
        self.waiting.extend_from_slice(page);
        if self.waiting.len() == BLOCK_PAGES * PAGE {
            self.pack();
        }
    }

    fn pack(&mut self) {
        self.blocks
            .push(lz4_flex::block::compress_prepend_size(&self.waiting));
        self.waiting.clear();
    }

    fn finish(mut self) -> Vec<Vec<u8>> {
        if !self.waiting.is_empty() {
            self.pack();
        }
        self.blocks
    }
}

fn unpacked(block: &[u8]) -> Result<Vec<u8>> {
    let damaged = || Error::Snapshot("a block of the difference is damaged".into());
    let bytes = block
        .first_chunk::<4>()
        .map(|bytes| u32::from_le_bytes(*bytes) as usize);
    match bytes {
        Some(bytes) if bytes <= BLOCK_PAGES * PAGE && bytes.is_multiple_of(PAGE) => {}
        Some(_) | None => return Err(damaged()),
    }
    lz4_flex::block::decompress_size_prepended(block).map_err(|_| damaged())
}
