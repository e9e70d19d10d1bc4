//! The guest's page tables, edited from outside.
//!
//! They lie in the system slot, supervisor-only, and the guest never sees them. An edit that *adds* rights is seen by
//! the guest at once. An edit that takes rights away is not, if the processor has used the entry (its accessed bit is
//! set): the host's shadow tables or a TLB may still hold it. Such entries are kept on a list, and ring 0 of the guest
//! writes each of them onto itself before the guest goes on ([`crate::ring0`]).
//!
//! Table pages are taken in order and never reused: a host keeps shadows by the address of a table page, and a page
//! that changes its meaning without a ring-0 write brings stale translations back.
//!
//! Entries that are not present keep what the address space wants to remember (see [`BACKED`] and [`STALE`]).
//!
//! `unsafe`: raw access to the system slot's memory, always as aligned `AtomicU64` inside its bounds.

use std::{
    collections::HashMap,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

use crate::{
    error::{Error, Result},
    geometry::{
        CHUNK_BYTES, CHUNK_PAGES, KERNEL_BASE, KERNEL_DIRECTORY, KERNEL_PDPT, KERNEL_TABLE_LOW,
        KERNEL_TABLE_XSAVE, PAGE_BYTES, PML4, Prot, THREADS_MAX, USER_TABLES, XSAVE_AREAS,
    },
    host_memory::HostMapping,
    physical::{Region, region_of},
    snapshot::PageBits,
};

pub(crate) const PRESENT: u64 = 1;
pub(crate) const WRITE: u64 = 1 << 1;
pub(crate) const USER: u64 = 1 << 2;
pub(crate) const ACCESSED: u64 = 1 << 5;
pub(crate) const DIRTY: u64 = 1 << 6;
pub(crate) const LARGE: u64 = 1 << 7;
/// Software: the page holds contents of its own, also while it is not present (no access rights).
pub(crate) const BACKED: u64 = 1 << 9;
/// Software: the page has an address but no contents; what lies at the address must be zeroed before it is used.
pub(crate) const STALE: u64 = 1 << 10;
/// Entry of a page that a large page showed though the snapshot had nothing there: it may have contents by now, when the
/// guest's owner has something mapped there, or must go before anything is.
pub(crate) const PHANTOM: u64 = 1 << 11;
pub(crate) const NO_EXECUTE: u64 = 1 << 63;
pub(crate) const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Hardware bits for a user page with these rights; zero when there are none.
pub(crate) fn rights(prot: Prot) -> u64 {
    if !prot.readable() {
        return 0;
    }
    let mut bits = PRESENT | USER;
    if prot.writable() {
        bits |= WRITE;
    }
    if !prot.executable() {
        bits |= NO_EXECUTE;
    }
    bits
}

/// Rights that an entry's hardware bits give to ring 3.
pub(crate) fn prot_of(entry: u64) -> Prot {
    if entry & (PRESENT | USER) != PRESENT | USER {
        return Prot::NONE;
    }
    let mut bits = 1;
    if entry & WRITE != 0 {
        bits |= 2;
    }
    if entry & NO_EXECUTE == 0 {
        bits |= 4;
    }
    Prot::from_bits(bits)
}

/// Guest-physical address of a page-table entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct EntryAt(pub u64);

impl EntryAt {
    /// The entry `n` places further in the same table.
    pub(crate) fn plus(self, n: usize) -> Self {
        Self(self.0 + n as u64 * 8)
    }
}

/// What a walk ends at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leaf {
    /// No table covers the address.
    None,
    /// The entry of a 4 KiB page; it may be empty.
    Page(EntryAt),
    /// The entry of a present 2 MiB page.
    Chunk(EntryAt),
}

/// The tables of one guest.
#[derive(Debug)]
pub(crate) struct PageTables {
    system: NonNull<u8>,
    bytes: u64,
    next_table: u64,
    /// Entries that ring 0 must write, and whether they are of 4 KiB pages.
    stale: Vec<(EntryAt, bool)>,
    /// Entries that have changed since the tables were adopted, with what they were then.
    journal: Option<HashMap<EntryAt, u64>>,
    /// Pages of large pages at which nothing is mapped, by their directory entries; as long as those are not of new memory.
    phantoms: HashMap<EntryAt, PageBits>,
}

// SAFETY: the pointer is to the system slot's memory, which the owner of this value keeps mapped for as long; see
// `HostMapping`.
unsafe impl Send for PageTables {}

impl PageTables {
    /// Tables in `system`, which must be zero and outlive them: the kernel region is mapped, user space is empty.
    pub(crate) fn new(system: &HostMapping) -> Result<Self> {
        let base = NonNull::new(system.base()).ok_or(Error::Exhausted("host address space"))?;
        let tables = Self {
            system: base,
            bytes: system.bytes(),
            next_table: USER_TABLES,
            stale: Vec::new(),
            journal: None,
            phantoms: HashMap::new(),
        };
        tables.map_kernel_region();
        Ok(tables)
    }

    fn map_kernel_region(&self) {
        let table = PRESENT | WRITE | USER;
        let index = |shift: u32| (KERNEL_BASE >> shift) & 511;
        self.write(EntryAt(PML4 + index(39) * 8), KERNEL_PDPT | table);
        self.write(EntryAt(KERNEL_PDPT + index(30) * 8), KERNEL_DIRECTORY | table);
        self.write(EntryAt(KERNEL_DIRECTORY), KERNEL_TABLE_LOW | table);
        self.write(EntryAt(KERNEL_DIRECTORY + 8), KERNEL_TABLE_XSAVE | table);
        for thread in 0..THREADS_MAX as u64 {
            let address = XSAVE_AREAS + thread * PAGE_BYTES;
            self.write(
                EntryAt(KERNEL_TABLE_XSAVE + thread * 8),
                address | rights(Prot::READ_WRITE),
            );
        }
        // The table pages themselves, for the ring-0 stub; supervisor.
        for chunk in 2..self.bytes / CHUNK_BYTES {
            let entry = (chunk * CHUNK_BYTES) | PRESENT | WRITE | LARGE | NO_EXECUTE;
            self.write(EntryAt(KERNEL_DIRECTORY + chunk * 8), entry);
        }
    }

    /// Maps one page of the first 2 MiB of the kernel region.
    pub(crate) fn map_kernel_page(&self, address: u64, bits: u64) {
        self.write(
            EntryAt(KERNEL_TABLE_LOW + (address / PAGE_BYTES) * 8),
            address | bits | PRESENT,
        );
    }

    fn cell(&self, at: EntryAt) -> &AtomicU64 {
        assert!(
            at.0.is_multiple_of(8) && at.0 + 8 <= self.bytes,
            "entry outside the system slot"
        );
        // SAFETY: in bounds and aligned, as just checked; the memory lives as long as `self` (see `new`), is not
        // writable by the guest's ring 3, and is only ever accessed atomically while the guest exists.
        unsafe { &*self.system.as_ptr().add(at.0 as usize).cast::<AtomicU64>() }
    }

    /// The entry's value.
    pub(crate) fn read(&self, at: EntryAt) -> u64 {
        self.cell(at).load(Ordering::Relaxed)
    }

    fn write(&self, at: EntryAt, value: u64) {
        self.cell(at).store(value, Ordering::Relaxed);
    }

    /// Replaces an entry, keeps its accessed and dirty bits when it goes on to mean the same page, and remembers it
    /// when the guest may still use the old value.
    pub(crate) fn set(&mut self, at: EntryAt, value: u64) {
        let old = self.read(at);
        let same_page = old & value & PRESENT != 0 && (old ^ value) & (ADDRESS | LARGE) == 0;
        let kept = if same_page { old & (ACCESSED | DIRTY) } else { 0 };
        self.note(at, old);
        self.write(at, value | kept);
        if takes_away(old, value) {
            self.stale.push((at, is_page(old)));
        }
    }

    /// Replaces an entry by one that is to be taken as it is, its accessed and dirty bits included.
    pub(crate) fn replace(&mut self, at: EntryAt, value: u64) {
        let old = self.read(at);
        self.note(at, old);
        self.write(at, value);
        if takes_away(old, value) {
            self.stale.push((at, is_page(old)));
        }
    }

    fn note(&mut self, at: EntryAt, old: u64) {
        if let Some(journal) = &mut self.journal {
            journal.entry(at).or_insert(old);
        }
    }

    /// Replaces an entry whose page the host is about to drop from the guest by other means.
    pub(crate) fn set_without_flush(&mut self, at: EntryAt, value: u64) {
        self.note(at, self.read(at));
        self.write(at, value);
    }

    /// Clears the accessed and dirty bits of an entry whose translations the host has dropped.
    pub(crate) fn clear_used(&mut self, at: EntryAt) {
        let entry = self.read(at);
        self.write(at, entry & !(ACCESSED | DIRTY));
    }

    /// Takes over tables that have been put behind the kernel region's, and begins to journal.
    pub(crate) fn adopt(&mut self, root: &[(u16, u64)], next_table: u64) {
        for (index, entry) in root {
            self.write(EntryAt(PML4 + u64::from(*index) * 8), *entry);
        }
        self.next_table = next_table;
        self.journal = Some(HashMap::new());
    }

    /// Takes over which pages of large pages have nothing.
    pub(crate) fn set_phantoms(&mut self, phantoms: &[(u64, PageBits)]) {
        self.phantoms = phantoms
            .iter()
            .map(|(at, pages)| (EntryAt(*at), *pages))
            .collect();
    }

    /// The pages that a large page of a snapshot shows, though nothing is mapped at them.
    pub(crate) fn phantoms(&self, directory: EntryAt) -> Option<&PageBits> {
        let physical = self.read(directory) & ADDRESS;
        self.phantoms
            .get(&directory)
            .filter(|_| region_of(physical) != Region::Fresh)
    }

    /// Whether an entry has been set since the tables were adopted; unknown without a journal.
    pub(crate) fn has_changed(&self, at: EntryAt) -> bool {
        self.journal
            .as_ref()
            .is_none_or(|journal| journal.contains_key(&at))
    }

    pub(crate) fn journal_len(&self) -> usize {
        self.journal.as_ref().map_or(0, HashMap::len)
    }

    /// Takes the journal, in the order of the entries' addresses.
    pub(crate) fn take_journal(&mut self) -> Vec<(EntryAt, u64)> {
        let mut entries: Vec<(EntryAt, u64)> = self.journal.take().into_iter().flatten().collect();
        entries.sort_unstable();
        entries
    }

    /// Keeps no journal until one is begun.
    pub(crate) fn stop_journal(&mut self) {
        self.journal = None;
    }

    /// Begins a new journal.
    pub(crate) fn clear_journal(&mut self) {
        self.journal = Some(HashMap::new());
    }

    /// Marks an entry as used and written, as the processor would have; for writes by the host.
    pub(crate) fn mark_dirty(&self, at: EntryAt) {
        let entry = self.read(at);
        if entry & (ACCESSED | DIRTY) != ACCESSED | DIRTY {
            self.write(at, entry | ACCESSED | DIRTY);
        }
    }

    /// Where the entry for an address is.
    pub(crate) fn find(&self, address: u64) -> Leaf {
        let mut table = PML4;
        for shift in [39, 30] {
            let entry = self.read(EntryAt(table + ((address >> shift) & 511) * 8));
            if entry & PRESENT == 0 {
                return Leaf::None;
            }
            table = entry & ADDRESS;
        }
        let directory = EntryAt(table + ((address >> 21) & 511) * 8);
        let entry = self.read(directory);
        if entry & PRESENT == 0 {
            Leaf::None
        } else if entry & LARGE != 0 {
            Leaf::Chunk(directory)
        } else {
            Leaf::Page(EntryAt((entry & ADDRESS) + ((address >> 12) & 511) * 8))
        }
    }

    /// The directory entry of the chunk that holds an address, with the tables above it made when they are missing.
    pub(crate) fn directory_entry(&mut self, address: u64) -> Result<EntryAt> {
        let mut table = PML4;
        for shift in [39, 30] {
            let at = EntryAt(table + ((address >> shift) & 511) * 8);
            let mut entry = self.read(at);
            if entry & PRESENT == 0 {
                entry = self.take_table()? | PRESENT | WRITE | USER;
                self.write(at, entry);
            }
            table = entry & ADDRESS;
        }
        Ok(EntryAt(table + ((address >> 21) & 511) * 8))
    }

    /// The entry of the 4 KiB page that holds an address. A missing table is made; a 2 MiB page is split.
    pub(crate) fn page_entry(&mut self, address: u64) -> Result<EntryAt> {
        let directory = self.directory_entry(address)?;
        let entry = self.read(directory);
        let table = if entry & PRESENT == 0 {
            let table = self.take_table()?;
            self.write(directory, table | PRESENT | WRITE | USER);
            table
        } else if entry & LARGE != 0 {
            let table = self.take_table()?;
            let phantoms = self.phantoms(directory).copied().unwrap_or_default();
            for page in 0..CHUNK_PAGES {
                let address = (entry & ADDRESS) + page as u64 * PAGE_BYTES;
                let phantom = if phantoms.has(page) { PHANTOM } else { 0 };
                let bits = entry & !(ADDRESS | LARGE) | phantom;
                self.write(EntryAt(table).plus(page), address | bits);
            }
            self.set(directory, table | PRESENT | WRITE | USER);
            table
        } else {
            entry & ADDRESS
        };
        Ok(EntryAt(table + ((address >> 12) & 511) * 8))
    }

    fn take_table(&mut self) -> Result<u64> {
        if self.next_table + PAGE_BYTES > self.bytes {
            return Err(Error::Exhausted("page-table pages"));
        }
        let table = self.next_table;
        self.next_table += PAGE_BYTES;
        Ok(table)
    }

    /// Whether ring 0 must write entries before the guest goes on.
    pub(crate) fn needs_flush(&self) -> bool {
        !self.stale.is_empty()
    }

    /// Takes the list of entries that ring 0 must write, as runs of (guest-virtual address, entries).
    ///
    /// A run costs as much as a dozen entries, so what lies between two of a table becomes part of one where writing it
    /// costs the host nothing that it knows.
    pub(crate) fn take_stale_runs(&mut self) -> Vec<(u64, u64)> {
        let mut stale = std::mem::take(&mut self.stale);
        stale.sort_unstable();
        stale.dedup();
        let mut runs: Vec<(u64, u64)> = Vec::new();
        let mut last_is_page = false;
        for (at, is_page) in stale {
            let address = KERNEL_BASE + at.0;
            match runs.last_mut() {
                Some((start, count))
                    if *start + *count * 8 == address
                        || (last_is_page && is_page && self.is_unused(*start + *count * 8, address)) =>
                {
                    *count = (address - *start) / 8 + 1;
                }
                _ => runs.push((address, 1)),
            }
            last_is_page = is_page;
        }
        runs
    }

    /// Whether a short stretch of one table, given by guest-virtual addresses, has nothing that the processor has used.
    fn is_unused(&self, from: u64, to: u64) -> bool {
        const GAP_MAX: u64 = 12;
        (to - from) / 8 <= GAP_MAX
            && (from - 8) / PAGE_BYTES == to / PAGE_BYTES
            && (from..to).step_by(8).all(|address| {
                let entry = self.read(EntryAt(address - KERNEL_BASE));
                entry & (PRESENT | ACCESSED) != PRESENT | ACCESSED
            })
    }
}

/// Whether a present entry is that of a 4 KiB page.
fn is_page(entry: u64) -> bool {
    entry & (BACKED | LARGE) == BACKED
}

/// Whether a used entry loses a right or changes its page.
fn takes_away(old: u64, new: u64) -> bool {
    if old & (PRESENT | ACCESSED) != PRESENT | ACCESSED {
        return false;
    }
    let lost_write = old & WRITE != 0 && new & WRITE == 0;
    let lost_execute = old & NO_EXECUTE == 0 && new & NO_EXECUTE != 0;
    new & PRESENT == 0 || lost_write || lost_execute || (old ^ new) & (ADDRESS | LARGE) != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tables() -> (HostMapping, PageTables) {
        let system = HostMapping::anonymous(8 << 20).unwrap();
        let tables = PageTables::new(&system).unwrap();
        (system, tables)
    }

    #[test]
    fn rights_round_trip() {
        for bits in 0..8 {
            let prot = Prot::from_bits(bits);
            assert_eq!(prot_of(rights(prot)), prot);
        }
    }

    #[test]
    fn only_used_entries_that_lose_rights_are_flushed() {
        let (_system, mut tables) = tables();
        let at = tables.page_entry(0x40_0000).unwrap();
        let page = 0x1000_0000;
        tables.set(at, page | rights(Prot::READ_WRITE));
        tables.set(at, page | rights(Prot::READ));
        assert!(
            !tables.needs_flush(),
            "an entry that was never used needs no flush"
        );
        tables.set(at, page | rights(Prot::READ_WRITE));
        tables.mark_dirty(at);
        tables.set(at, page | rights(Prot::ALL));
        assert!(!tables.needs_flush(), "more rights need no flush");
        assert_ne!(
            tables.read(at) & DIRTY,
            0,
            "the dirty bit survives a change of rights"
        );
        tables.set(at, page | rights(Prot::READ));
        assert_eq!(tables.take_stale_runs(), vec![(KERNEL_BASE + at.0, 1)]);
    }

    #[test]
    fn neighbours_become_one_run() {
        let (_system, mut tables) = tables();
        let at = tables.page_entry(0x40_0000).unwrap();
        let used = 0x1000_0000 | BACKED | rights(Prot::READ) | ACCESSED;
        for page in [2, 0, 1, 5, 9, 40, 511, 512] {
            tables.set(at.plus(page), used);
        }
        tables.set(at.plus(7), used);
        for page in [2, 0, 1, 5, 9, 40, 511, 512] {
            tables.set(at.plus(page), 0);
        }
        let base = KERNEL_BASE + at.0;
        // Over what is not used, but not over what is, nor far, nor into another table.
        let expected = [(0, 6), (9, 1), (40, 1), (511, 2)].map(|(first, count)| (base + first * 8, count));
        assert_eq!(tables.take_stale_runs(), expected);
    }

    #[test]
    fn a_large_page_splits_into_the_same_mapping() {
        let (_system, mut tables) = tables();
        let directory = tables.directory_entry(0x40_0000).unwrap();
        tables.set(
            directory,
            0x4000_0000 | rights(Prot::READ_WRITE) | LARGE | ACCESSED,
        );
        let at = tables.page_entry(0x40_3000).unwrap();
        assert_eq!(tables.read(at) & ADDRESS, 0x4000_3000);
        assert_eq!(prot_of(tables.read(at)), Prot::READ_WRITE);
        assert!(tables.needs_flush());
    }

    #[test]
    fn table_pages_run_out_with_an_error() {
        let system = HostMapping::anonymous(6 << 20).unwrap();
        let mut tables = PageTables::new(&system).unwrap();
        let made = (0..2000u64)
            .take_while(|i| tables.page_entry(i * CHUNK_BYTES).is_ok())
            .count();
        assert_eq!(made, 510, "512 pages, less the two tables above them");
    }
}
