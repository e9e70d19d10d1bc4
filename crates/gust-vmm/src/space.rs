//! The guest's address space: which page is backed by what, and with which rights.
//!
//! The owner keeps the list of mappings as Linux has it; this is the layer below, which makes pages present. 2 MiB of
//! guest-virtual space is bound to 2 MiB of guest-physical space when its first page is mapped, so that a reservation
//! without access costs nothing here and contiguous pages stay contiguous.
//!
//! A page is *absent* (no contents), *backed* (contents, with rights or without) or, in a restored guest, *stale*: it
//! was part of the snapshot and has been unmapped, so that its address is known but must be zeroed before it is used.
//!
//! `unsafe`: copies between host buffers and guest memory through raw pointers. The guest may write to the same bytes
//! at the same time; every copy is made once and validated afterwards by the caller.

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    ptr,
    sync::atomic::{AtomicU32, Ordering},
};

use kvm_ioctls::VmFd;

use crate::{
    error::{Error, Result},
    geometry::{CHUNK_BYTES, CHUNK_PAGES, PAGE_BYTES, PageRange, Prot, SlotSizes, USER_END},
    physical::{Physical, Region, region_of},
    racing::Racer,
    snapshot::{PageBits, Plan},
    tables::{
        ACCESSED, ADDRESS, BACKED, DIRTY, EntryAt, LARGE, Leaf, PHANTOM, PRESENT, PageTables, STALE, USER,
        WRITE, prot_of, rights,
    },
};

/// The guest has no memory at this address, or no right to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("bad guest address {0:#x}")]
pub struct BadAddress(pub u64);

/// When the host memory of a mapping is allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Populate {
    /// At the first touch of each page; a fault each.
    OnTouch,
    /// Now; the guest then faults once for eight pages.
    Now,
    /// In large pages where the range covers whole chunks; a fault for 2 MiB.
    Large,
}

/// What a copy needs of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    /// Ring 3 may read it.
    Read,
    /// Ring 3 may write it.
    Write,
    /// It has contents, whatever the rights; to read them.
    Backed,
    /// It has contents, whatever the rights; to change them.
    BackedWrite,
}

/// Guest-physical address and bytes of adjacent pages.
type Run = (u64, u64);

/// One guest's address space.
#[derive(Debug)]
pub struct AddressSpace {
    pub(crate) tables: PageTables,
    pub(crate) physical: Physical,
    /// Guest-virtual chunk number to guest-physical address.
    chunks: HashMap<u64, u64>,
    /// The same for new pages of chunks that are bound to a snapshot's memory. There a write would have the host copy a page of zeros
    /// out of the file, one fault each.
    beside: HashMap<u64, u64>,
    backed_pages: u64,
    /// Most of them at a time, since there was a guest or it was laid out.
    backed_pages_max: u64,
    /// Pages of the image that the host has written to whatever their rights.
    host_written: RefCell<HashSet<u64>>,
    /// Stands for another thread of a guest, in tests and fuzzers.
    racer: Option<Racer>,
}

impl AddressSpace {
    pub(crate) fn new(vm: Option<VmFd>, sizes: SlotSizes) -> Result<Self> {
        let physical = Physical::new(vm, sizes)?;
        let tables = PageTables::new(physical.system())?;
        Ok(Self {
            tables,
            physical,
            chunks: HashMap::new(),
            beside: HashMap::new(),
            backed_pages: 0,
            backed_pages_max: 0,
            host_written: RefCell::default(),
            racer: None,
        })
    }

    /// An address space with no guest to run in it, for tests and fuzzers on hosts without KVM.
    pub(crate) fn detached(sizes: SlotSizes) -> Result<Self> {
        Self::new(None, sizes)
    }

    pub(crate) fn race(&mut self, racer: Racer) {
        self.racer = Some(racer);
    }

    /// Gives a racing thread its turn, once bytes have been read.
    fn race_on(&self, address: u64, bytes: usize) {
        let Some(racer) = &self.racer else { return };
        if let Some((offset, value)) = racer.turn(bytes)
            && let Ok((pointer, _)) = self.translate(address + offset, Need::Write)
        {
            // SAFETY: at least a byte at `pointer` is inside one slot (`translate`).
            unsafe { pointer.write(value(pointer.read())) };
        }
    }

    /// Bytes of pages that have contents; what is resident in the host is at most this.
    pub fn backed_bytes(&self) -> u64 {
        self.backed_pages * PAGE_BYTES
    }

    /// The most that [`AddressSpace::backed_bytes`] has been, since there was a guest or it was laid out.
    pub fn backed_bytes_max(&self) -> u64 {
        self.backed_pages_max * PAGE_BYTES
    }

    fn count_pages(&mut self, pages: u64) {
        self.backed_pages += pages;
        self.backed_pages_max = self.backed_pages_max.max(self.backed_pages);
    }

    /// Gives every absent page of the range zero contents and these rights. Backed pages keep theirs.
    pub fn map(&mut self, range: PageRange, prot: Prot, populate: Populate) -> Result<()> {
        for piece in range.by_chunk() {
            if populate == Populate::Large && piece.bytes() == CHUNK_BYTES && self.map_large(piece, prot)? {
                continue;
            }
            self.map_pages(piece, prot, populate)?;
        }
        Ok(())
    }

    fn map_large(&mut self, piece: PageRange, prot: Prot) -> Result<bool> {
        let directory = self.tables.directory_entry(piece.start)?;
        if self.tables.read(directory) != 0 || !prot.readable() {
            return Ok(false);
        }
        let physical = self.bind(piece.start)?;
        if let Some((memory, offset)) = self.physical.locate(physical) {
            memory.want_huge_pages(offset, CHUNK_BYTES);
        }
        self.tables.set(
            directory,
            physical | LARGE | BACKED | ACCESSED | DIRTY | rights(prot),
        );
        self.count_pages(CHUNK_PAGES as u64);
        Ok(true)
    }

    fn map_pages(&mut self, piece: PageRange, prot: Prot, populate: Populate) -> Result<()> {
        if let Leaf::Chunk(_) = self.tables.find(piece.start) {
            return Ok(());
        }
        let first = self.tables.page_entry(piece.start)?;
        let mut bound = None;
        let used = if populate == Populate::OnTouch || !prot.readable() {
            0
        } else {
            ACCESSED | DIRTY
        };
        let mut fresh_run: Option<Run> = None;
        for page in 0..(piece.bytes() / PAGE_BYTES) as usize {
            let at = first.plus(page);
            let entry = self.tables.read(at);
            if entry & BACKED != 0 {
                continue;
            }
            let mut address = entry & ADDRESS;
            if address == 0 {
                let chunk = match bound {
                    Some(chunk) => chunk,
                    None => *bound.insert(self.bind_new(piece.start)?),
                };
                address = chunk + ((piece.start + page as u64 * PAGE_BYTES) & (CHUNK_BYTES - 1));
            }
            if entry & STALE != 0 {
                self.zero_physical(address, PAGE_BYTES)?;
            }
            self.tables.set(at, address | BACKED | used | rights(prot));
            self.count_pages(1);
            if used != 0 && region_of(address) == Region::Fresh {
                fresh_run = self.extend_run(fresh_run, address, &Self::populate_run)?;
            }
        }
        if let Some(run) = fresh_run {
            self.populate_run(run)?;
        }
        Ok(())
    }

    /// Grows a run of adjacent pages, or finishes it and begins another.
    fn extend_run(
        &self,
        run: Option<Run>,
        address: u64,
        finish: &dyn Fn(&Self, Run) -> Result<()>,
    ) -> Result<Option<Run>> {
        match run {
            Some((start, bytes)) if start + bytes == address => Ok(Some((start, bytes + PAGE_BYTES))),
            Some(done) => {
                finish(self, done)?;
                Ok(Some((address, PAGE_BYTES)))
            }
            None => Ok(Some((address, PAGE_BYTES))),
        }
    }

    fn populate_run(&self, (address, bytes): Run) -> Result<()> {
        let (memory, offset) = self
            .physical
            .locate(address)
            .ok_or(Error::Exhausted("guest memory"))?;
        memory.populate(offset, bytes)
    }

    fn discard_run(&self, (address, bytes): Run) -> Result<()> {
        let (memory, offset) = self
            .physical
            .locate(address)
            .ok_or(Error::Exhausted("guest memory"))?;
        memory.discard(offset, bytes)
    }

    fn zero_physical(&self, address: u64, bytes: u64) -> Result<()> {
        let target = self
            .physical
            .pointer(address, bytes)
            .ok_or(Error::Exhausted("guest memory"))?;
        // SAFETY: `bytes` bytes at `target` are inside one slot, as `pointer` has checked.
        unsafe { ptr::write_bytes(target, 0, bytes as usize) };
        Ok(())
    }

    fn bind(&mut self, address: u64) -> Result<u64> {
        let chunk = address / CHUNK_BYTES;
        if let Some(physical) = self.chunks.get(&chunk) {
            return Ok(*physical);
        }
        let physical = self.physical.take_chunk()?;
        self.chunks.insert(chunk, physical);
        Ok(physical)
    }

    /// Where new pages of a chunk are.
    fn bind_new(&mut self, address: u64) -> Result<u64> {
        let bound = self.bind(address)?;
        if region_of(bound) == Region::Fresh {
            return Ok(bound);
        }
        let chunk = address / CHUNK_BYTES;
        if let Some(physical) = self.beside.get(&chunk) {
            return Ok(*physical);
        }
        let physical = self.physical.take_chunk()?;
        self.beside.insert(chunk, physical);
        Ok(physical)
    }

    /// The pieces of a range that may have pages, in order, one a chunk. A guest may name terabytes where it has nothing;
    /// then it is the chunks that it has which are gone through.
    fn bound_pieces(&self, range: PageRange) -> Vec<PageRange> {
        if range.bytes() / CHUNK_BYTES <= self.chunks.len() as u64 {
            return range.by_chunk().collect();
        }
        let (first, last) = (range.start / CHUNK_BYTES, range.end.div_ceil(CHUNK_BYTES));
        let bound = self.chunks.keys().filter(|chunk| (first..last).contains(*chunk));
        let mut pieces: Vec<PageRange> = bound
            .map(|chunk| {
                let start = (chunk * CHUNK_BYTES).max(range.start);
                PageRange::new(start, (chunk * CHUNK_BYTES + CHUNK_BYTES).min(range.end))
            })
            .collect();
        pieces.sort_unstable_by_key(|piece| piece.start);
        pieces
    }

    /// Takes the contents of the range away. Accesses fault from now on.
    pub fn unmap(&mut self, range: PageRange) -> Result<()> {
        for piece in self.bound_pieces(range) {
            match self.tables.find(piece.start) {
                Leaf::None => {}
                Leaf::Chunk(directory) if piece.bytes() == CHUNK_BYTES => {
                    self.unmap_large(piece, directory)?;
                }
                Leaf::Chunk(_) | Leaf::Page(_) => self.unmap_pages(piece)?,
            }
        }
        Ok(())
    }

    fn unmap_large(&mut self, piece: PageRange, directory: EntryAt) -> Result<()> {
        let address = self.tables.read(directory) & ADDRESS;
        let phantoms = self.tables.phantoms(directory).map_or(0, PageBits::count);
        self.forget_pages((CHUNK_PAGES - phantoms) as u64);
        if region_of(address) == Region::Fresh {
            // The host drops the translations of single pages with the memory, but a shadow directory goes on pointing to
            // the table that the host made for this chunk, and the chunk's next address would show here, too.
            self.tables.set(directory, 0);
            self.discard_run((address, CHUNK_BYTES))?;
            self.release(piece.start);
            return Ok(());
        }
        // A chunk of the image: keep its pages' addresses, as stale.
        let first = self.tables.page_entry(piece.start)?;
        for page in 0..CHUNK_PAGES {
            let at = first.plus(page);
            let address = self.tables.read(at) & ADDRESS;
            self.tables.set(at, address | STALE);
        }
        Ok(())
    }

    fn forget_pages(&mut self, pages: u64) {
        self.backed_pages = self.backed_pages.saturating_sub(pages);
    }

    fn unmap_pages(&mut self, piece: PageRange) -> Result<()> {
        let first = self.tables.page_entry(piece.start)?;
        let mut run = None;
        for page in 0..(piece.bytes() / PAGE_BYTES) as usize {
            let at = first.plus(page);
            let entry = self.tables.read(at);
            if entry & BACKED == 0 {
                continue;
            }
            // What a large page showed by itself has never been counted.
            self.forget_pages(u64::from(entry & PHANTOM == 0));
            let address = entry & ADDRESS;
            if region_of(address) == Region::Fresh {
                self.tables.set_without_flush(at, 0);
                run = self.extend_run(run, address, &Self::discard_run)?;
            } else {
                self.tables.set(at, address | STALE);
            }
        }
        if let Some(run) = run {
            self.discard_run(run)?;
        }
        let table = EntryAt(first.0 & !(PAGE_BYTES - 1));
        if (0..CHUNK_PAGES).all(|page| self.tables.read(table.plus(page)) == 0) {
            self.release(piece.start);
        }
        Ok(())
    }

    fn release(&mut self, address: u64) {
        let chunk = address / CHUNK_BYTES;
        if let Some(physical) = self.chunks.get(&chunk).copied()
            && region_of(physical) == Region::Fresh
        {
            self.chunks.remove(&chunk);
            self.physical.return_chunk(physical);
        }
    }

    /// Changes the rights of the backed pages in the range.
    pub fn protect(&mut self, range: PageRange, prot: Prot) -> Result<()> {
        for piece in self.bound_pieces(range) {
            match self.tables.find(piece.start) {
                Leaf::None => {}
                Leaf::Chunk(directory) if piece.bytes() == CHUNK_BYTES && prot.readable() => {
                    let address = self.tables.read(directory) & ADDRESS;
                    self.tables
                        .set(directory, address | LARGE | BACKED | rights(prot));
                }
                Leaf::Chunk(_) | Leaf::Page(_) => {
                    let first = self.tables.page_entry(piece.start)?;
                    for page in 0..(piece.bytes() / PAGE_BYTES) as usize {
                        let at = first.plus(page);
                        let entry = self.tables.read(at);
                        if entry & BACKED != 0 {
                            self.tables.set(at, (entry & ADDRESS) | BACKED | rights(prot));
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Makes the backed pages of the range zero, as `MADV_DONTNEED` does; their memory goes back to the host.
    pub fn discard(&mut self, range: PageRange) -> Result<()> {
        for piece in self.bound_pieces(range) {
            let mut run = None;
            let mut at = piece.start;
            while let Some((leaf, bytes)) = self.leaf_in(piece, at) {
                let entry = self.tables.read(leaf);
                if entry & BACKED != 0 {
                    let offset = if entry & LARGE != 0 {
                        at & (CHUNK_BYTES - 1)
                    } else {
                        0
                    };
                    let address = (entry & ADDRESS) + offset;
                    if region_of(address) != Region::Fresh {
                        self.zero_physical(address, bytes)?;
                        self.mark_written(leaf, (address, bytes));
                    } else if bytes == PAGE_BYTES {
                        run = self.extend_run(run, address, &Self::discard_run)?;
                    } else {
                        self.discard_run((address, bytes))?;
                    }
                }
                at += bytes;
            }
            if let Some(run) = run {
                self.discard_run(run)?;
            }
        }
        Ok(())
    }

    /// The entry for an address in a piece of one chunk, and how many bytes of the piece it is for from there on; `None` at the
    /// piece's end, and where nothing of it is mapped.
    fn leaf_in(&self, piece: PageRange, at: u64) -> Option<(EntryAt, u64)> {
        if at >= piece.end {
            return None;
        }
        match self.tables.find(at) {
            Leaf::None => None,
            Leaf::Chunk(directory) => Some((directory, piece.end - at)),
            Leaf::Page(page) => Some((page, PAGE_BYTES)),
        }
    }

    /// Remembers that the host writes to pages behind an address, for the machine to go back to its snapshot.
    fn mark_written(&self, at: EntryAt, (physical, bytes): Run) {
        let entry = self.tables.read(at);
        self.tables.mark_dirty(at);
        // What the guest cannot write is not looked through for dirty pages.
        if entry & WRITE == 0 && region_of(physical) == Region::Image {
            let first = physical & !(PAGE_BYTES - 1);
            let pages = (first..physical + bytes).step_by(PAGE_BYTES as usize);
            self.host_written.borrow_mut().extend(pages);
        }
    }

    /// The first run of absent pages in the range.
    pub fn first_absent(&self, range: PageRange) -> Option<PageRange> {
        let mut absent_from = range.start;
        for piece in self.bound_pieces(range) {
            let mut at = piece.start;
            while at < piece.end {
                let (absent, bytes) = match self.tables.find(at) {
                    Leaf::None => (true, piece.end - at),
                    Leaf::Chunk(_) => (false, piece.end - at),
                    Leaf::Page(page) => (self.tables.read(page) & BACKED == 0, PAGE_BYTES),
                };
                if !absent && absent_from < at {
                    return Some(PageRange::new(absent_from, at));
                }
                at += bytes;
                if !absent {
                    absent_from = at;
                }
            }
        }
        (absent_from < range.end).then(|| PageRange::new(absent_from, range.end))
    }

    /// The runs of backed pages in the range, in order. Their number, and the time that it takes to find them, go with what
    /// the guest has there: it may name terabytes.
    pub fn backed(&self, range: PageRange) -> Vec<PageRange> {
        let mut runs: Vec<PageRange> = Vec::new();
        for piece in self.bound_pieces(range) {
            let mut at = piece.start;
            while let Some((leaf, bytes)) = self.leaf_in(piece, at) {
                if self.tables.read(leaf) & BACKED != 0 {
                    match runs.last_mut() {
                        Some(run) if run.end == at => run.end = at + bytes,
                        Some(_) | None => runs.push(PageRange::new(at, at + bytes)),
                    }
                }
                at += bytes;
            }
        }
        runs
    }

    /// Rights of the page at an address; `None` when it is absent.
    pub fn rights_at(&self, address: u64) -> Option<Prot> {
        let entry = match self.tables.find(address) {
            Leaf::None => return None,
            Leaf::Chunk(at) | Leaf::Page(at) => self.tables.read(at),
        };
        (entry & BACKED != 0).then(|| prot_of(entry))
    }

    /// Host pointer for an access, and how many bytes from there lie in the same page.
    fn translate(&self, address: u64, need: Need) -> std::result::Result<(*mut u8, u64), BadAddress> {
        let bad = BadAddress(address);
        if address >= USER_END {
            return Err(bad);
        }
        let (at, page_bytes) = match self.tables.find(address) {
            Leaf::None => return Err(bad),
            Leaf::Chunk(at) => (at, CHUNK_BYTES),
            Leaf::Page(at) => (at, PAGE_BYTES),
        };
        let entry = self.tables.read(at);
        let allowed = match need {
            Need::Read => entry & (PRESENT | USER) == PRESENT | USER,
            Need::Write => entry & (PRESENT | USER | WRITE) == PRESENT | USER | WRITE,
            Need::Backed | Need::BackedWrite => entry & BACKED != 0,
        };
        if !allowed {
            return Err(bad);
        }
        let offset = address & (page_bytes - 1);
        let bytes = match need {
            Need::Read | Need::Backed | Need::Write => page_bytes - offset,
            // Page by page, so that each is remembered.
            Need::BackedWrite => PAGE_BYTES - (address & (PAGE_BYTES - 1)),
        };
        match need {
            Need::Read | Need::Backed => {}
            Need::Write | Need::BackedWrite => self.mark_written(at, ((entry & ADDRESS) + offset, bytes)),
        }
        let pointer = self
            .physical
            .pointer((entry & ADDRESS) + offset, bytes)
            .ok_or(bad)?;
        Ok((pointer, bytes))
    }

    /// Applies `copy` to every piece of `[address, address + bytes)` that is contiguous in the host.
    fn for_pieces(
        &self,
        address: u64,
        bytes: usize,
        need: Need,
        mut copy: impl FnMut(*mut u8, usize, usize),
    ) -> std::result::Result<(), BadAddress> {
        let mut done = 0;
        while done < bytes {
            let at = address.checked_add(done as u64).ok_or(BadAddress(address))?;
            let (pointer, available) = self.translate(at, need)?;
            let piece = (bytes - done).min(available as usize);
            copy(pointer, done, piece);
            done += piece;
        }
        Ok(())
    }

    /// Copies bytes that the guest may read. On failure, what precedes the bad address has been copied.
    pub fn read(&self, address: u64, out: &mut [u8]) -> std::result::Result<(), BadAddress> {
        let target = out.as_mut_ptr();
        self.for_pieces(address, out.len(), Need::Read, |pointer, done, piece| {
            // SAFETY: `piece` bytes at `pointer` are inside one slot (`translate`), and `out` holds `done + piece`.
            unsafe { ptr::copy_nonoverlapping(pointer, target.add(done), piece) }
        })?;
        self.race_on(address, out.len());
        Ok(())
    }

    /// Copies bytes to where the guest may write. On failure, what precedes the bad address has been copied.
    pub fn write(&mut self, address: u64, data: &[u8]) -> std::result::Result<(), BadAddress> {
        self.for_pieces(address, data.len(), Need::Write, |pointer, done, piece| {
            // SAFETY: as in `read`, the other way round.
            unsafe { ptr::copy_nonoverlapping(data.as_ptr().add(done), pointer, piece) }
        })
    }

    /// Copies bytes to backed pages whatever their rights: for loading programs and files.
    pub fn write_backed(&mut self, address: u64, data: &[u8]) -> std::result::Result<(), BadAddress> {
        self.for_pieces(address, data.len(), Need::BackedWrite, |pointer, done, piece| {
            // SAFETY: as in `write`.
            unsafe { ptr::copy_nonoverlapping(data.as_ptr().add(done), pointer, piece) }
        })
    }

    /// Copies bytes from backed pages whatever their rights.
    pub fn read_backed(&self, address: u64, out: &mut [u8]) -> std::result::Result<(), BadAddress> {
        let target = out.as_mut_ptr();
        self.for_pieces(address, out.len(), Need::Backed, |pointer, done, piece| {
            // SAFETY: as in `read`.
            unsafe { ptr::copy_nonoverlapping(pointer, target.add(done), piece) }
        })
    }

    /// The word at an address, which must be a multiple of four.
    pub fn load_u32(&self, address: u64) -> std::result::Result<u32, BadAddress> {
        let word = self.word(address, Need::Read)?.load(Ordering::SeqCst);
        self.race_on(address, 4);
        Ok(word)
    }

    /// Replaces the word by `change(word)` in one step; returns the old one.
    pub fn update_u32(
        &mut self,
        address: u64,
        change: &mut dyn FnMut(u32) -> u32,
    ) -> std::result::Result<u32, BadAddress> {
        let word = self.word(address, Need::Write)?;
        let mut old = word.load(Ordering::SeqCst);
        // A guest thread on another vCPU can make each attempt fail, but not hold the host here.
        for _ in 0..1000 {
            match word.compare_exchange(old, change(old), Ordering::SeqCst, Ordering::SeqCst) {
                Ok(old) => return Ok(old),
                Err(now) => old = now,
            }
        }
        Err(BadAddress(address))
    }

    fn word(&self, address: u64, need: Need) -> std::result::Result<&AtomicU32, BadAddress> {
        if !address.is_multiple_of(4) {
            return Err(BadAddress(address));
        }
        let (pointer, _) = self.translate(address, need)?;
        // SAFETY: aligned, inside a slot that lives as long as `self`, and only accessed atomically through this
        // reference; the guest's own accesses are outside Rust's memory model, as for any shared memory.
        Ok(unsafe { &*pointer.cast::<AtomicU32>() })
    }

    /// Moves contents from one range to an absent one of at least the same size, which gets these rights.
    pub fn move_pages(&mut self, from: PageRange, to: u64, prot: Prot) -> Result<()> {
        let mut page = vec![0; PAGE_BYTES as usize];
        for run in self.backed(from) {
            let mut at = run.start;
            while at < run.end {
                let target = to + (at - from.start);
                self.map(
                    PageRange::new(target, target + PAGE_BYTES),
                    prot,
                    Populate::OnTouch,
                )?;
                let moved = self.read_backed(at, &mut page).and_then(|()| {
                    if page.iter().any(|byte| *byte != 0) {
                        self.write_backed(target, &page)
                    } else {
                        Ok(())
                    }
                });
                moved.map_err(|_| Error::Exhausted("guest memory"))?;
                at += PAGE_BYTES;
            }
        }
        self.unmap(from)
    }
}

impl AddressSpace {
    /// Writes to the system slot. The range is one of [`crate::geometry`]'s, so it is inside.
    pub(crate) fn write_system(&self, at: u64, data: &[u8]) {
        let Some(target) = self.physical.system().pointer(at, data.len() as u64) else {
            debug_assert!(false, "outside the system slot");
            return;
        };
        // SAFETY: in bounds, as `pointer` has checked; ring 3 of the guest may race on the stub data and the XSAVE
        // areas only, and nothing here rests on what it writes there.
        unsafe { ptr::copy_nonoverlapping(data.as_ptr(), target, data.len()) };
    }

    /// Reads from the system slot.
    pub(crate) fn read_system(&self, at: u64, out: &mut [u8]) {
        let Some(source) = self.physical.system().pointer(at, out.len() as u64) else {
            debug_assert!(false, "outside the system slot");
            return;
        };
        // SAFETY: as in `write_system`.
        unsafe { ptr::copy_nonoverlapping(source, out.as_mut_ptr(), out.len()) };
    }

    /// Takes over the bindings of a plan.
    pub(crate) fn adopt_bindings(&mut self, plan: &Plan) {
        self.beside.clear();
        self.chunks.clear();
        self.chunks.extend(plan.bindings.iter().copied());
        self.backed_pages = plan.backed_pages;
        self.backed_pages_max = plan.backed_pages;
    }

    /// Chunks that have or had pages, in order.
    pub fn bound_chunks(&self) -> Vec<u64> {
        let mut chunks: Vec<u64> = self.chunks.keys().copied().collect();
        chunks.sort_unstable();
        chunks
    }

    /// The entry of the page at an address; zero where there is none.
    pub(crate) fn entry(&self, address: u64) -> u64 {
        match self.tables.find(address) {
            Leaf::None => 0,
            Leaf::Chunk(at) | Leaf::Page(at) => self.tables.read(at),
        }
    }

    pub(crate) fn take_host_written(&mut self) -> HashSet<u64> {
        self.host_written.take()
    }

    /// Drops the host memory behind guest-physical pages.
    pub(crate) fn discard_physical(&self, physical: u64, bytes: u64) -> Result<()> {
        self.discard_run((physical, bytes))
    }

    /// Makes pages absent that a large page of a snapshot shows, or showed, though nothing is mapped there. Call it where
    /// nothing is mapped, before something is or where accesses must fault. Where something is mapped that the snapshot had
    /// no contents of, such a page is the mapping's: the guest may have written to it.
    pub fn clear_phantoms(&mut self, range: PageRange) -> Result<()> {
        for piece in self.bound_pieces(range) {
            let first = match self.tables.find(piece.start) {
                Leaf::None => continue,
                Leaf::Chunk(directory) if !self.shows_phantoms(directory, piece) => continue,
                Leaf::Chunk(_) | Leaf::Page(_) => self.tables.page_entry(piece.start)?,
            };
            for page in 0..(piece.bytes() / PAGE_BYTES) as usize {
                let at = first.plus(page);
                let entry = self.tables.read(at);
                if entry & PHANTOM != 0 {
                    self.tables.set(at, (entry & ADDRESS) | STALE);
                }
            }
        }
        Ok(())
    }

    fn shows_phantoms(&self, directory: EntryAt, piece: PageRange) -> bool {
        let first = ((piece.start % CHUNK_BYTES) / PAGE_BYTES) as usize;
        let pages = first..first + (piece.bytes() / PAGE_BYTES) as usize;
        self.tables
            .phantoms(directory)
            .is_some_and(|phantoms| pages.into_iter().any(|page| phantoms.has(page)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_terabytes_cost_what_is_in_them() {
        let mut space = AddressSpace::detached(SlotSizes::DETACHED).unwrap();
        let pages = |start: u64, count: u64| PageRange::new(start, start + count * PAGE_BYTES);
        let places = [0x20_0000, 0x7000_0000, 0x5000_0000_0000];
        for start in places {
            space
                .map(pages(start, 3), Prot::READ_WRITE, Populate::OnTouch)
                .unwrap();
            space.write(start, b"x").unwrap();
        }
        let all = PageRange::new(0x1_0000, USER_END - CHUNK_BYTES);
        // Each of these would go through 66 million chunks otherwise, and so not end in the time that a test has.
        for _ in 0..200 {
            space.protect(all, Prot::READ).unwrap();
            space.clear_phantoms(all).unwrap();
            assert_eq!(
                space.first_absent(all),
                Some(PageRange::new(all.start, 0x20_0000))
            );
            assert_eq!(space.backed(all), places.map(|start| pages(start, 3)));
        }
        let between = PageRange::new(0x20_1000, 0x7000_1000);
        assert_eq!(
            space.first_absent(between),
            Some(PageRange::new(0x20_3000, 0x7000_0000))
        );
        assert_eq!(space.first_absent(pages(0x7000_0000, 3)), None);
        assert_eq!(
            space.backed(between),
            [pages(0x20_1000, 2), pages(0x7000_0000, 1)]
        );
        assert!(places.iter().all(|at| space.rights_at(*at) == Some(Prot::READ)));
        space.discard(all).unwrap();
        let mut byte = [1];
        space.read(0x7000_0000, &mut byte).unwrap();
        assert_eq!(byte, [0]);
        space.unmap(all).unwrap();
        assert!(places.iter().all(|at| space.rights_at(*at).is_none()));
        assert_eq!(space.backed_bytes(), 0);
        assert_eq!(space.first_absent(all), Some(all));
    }
}
