//! Host mappings behind the guest's memory slots.
//!
//! `unsafe`: a mapping is owned by one [`HostMapping`]; its memory is reached through raw pointers only, since the
//! guest writes to it at will, and no Rust reference to it is ever made.

use std::{
    os::fd::BorrowedFd,
    ptr::{self, NonNull},
};

use rustix::mm::{
    Advice, MapFlags, MprotectFlags, ProtFlags, madvise, mmap, mmap_anonymous, mprotect, munmap,
};

use crate::{
    error::{Error, Result},
    geometry::CHUNK_BYTES,
};

/// A page-aligned range of the host's address space, unmapped when dropped. It starts at a multiple of 2 MiB so that
/// large pages line up in host and guest.
#[derive(Debug)]
pub struct HostMapping {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping is plain memory owned by this value; accesses go through raw pointers whose races with the
// guest are by design (the guest may change any byte at any time and no invariant of Rust rests on the contents).
unsafe impl Send for HostMapping {}

impl HostMapping {
    /// Reserves `bytes` (a multiple of 2 MiB) with no access and no memory.
    pub fn reserve(bytes: u64) -> Result<Self> {
        let bytes = bytes as usize;
        let padded = bytes + CHUNK_BYTES as usize;
        // SAFETY: a new anonymous mapping at an address that the kernel chooses touches nothing that exists.
        let raw = unsafe {
            mmap_anonymous(
                ptr::null_mut(),
                padded,
                ProtFlags::empty(),
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }
        .map_err(Error::memory("reserve host memory", bytes))?;
        let start = raw as usize;
        let aligned = start.next_multiple_of(CHUNK_BYTES as usize);
        // SAFETY: both pieces lie inside the mapping that was just made, before and after the part that is kept.
        unsafe {
            if aligned > start {
                munmap(raw, aligned - start).ok();
            }
            let tail = start + padded - (aligned + bytes);
            if tail > 0 {
                munmap((aligned + bytes) as *mut _, tail).ok();
            }
        }
        let base = NonNull::new(aligned as *mut u8).ok_or(Error::Exhausted("host address space"))?;
        Ok(Self { base, bytes })
    }

    /// Anonymous zero memory, allocated as it is touched.
    pub fn anonymous(bytes: u64) -> Result<Self> {
        let mapping = Self::reserve(bytes)?;
        // SAFETY: the range is this mapping's own and holds nothing yet.
        unsafe {
            mprotect(
                mapping.base.as_ptr().cast(),
                mapping.bytes,
                MprotectFlags::READ | MprotectFlags::WRITE,
            )
        }
        .map_err(Error::memory("allow access to host memory", mapping.bytes))?;
        Ok(mapping)
    }

    /// Lays a private map of a file over the range `[at, at + bytes)`: reads see the file, writes stay here.
    pub fn map_file_private(
        &mut self,
        at: u64,
        bytes: u64,
        file: BorrowedFd<'_>,
        file_offset: u64,
    ) -> Result<()> {
        self.map_over(
            at,
            bytes,
            file,
            file_offset,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::PRIVATE | MapFlags::NORESERVE,
        )
    }

    /// Lays a shared map of a file over the range: writes reach the file.
    pub fn map_file_shared(
        &mut self,
        at: u64,
        bytes: u64,
        file: BorrowedFd<'_>,
        file_offset: u64,
    ) -> Result<()> {
        self.map_over(
            at,
            bytes,
            file,
            file_offset,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::SHARED,
        )
    }

    fn map_over(
        &mut self,
        at: u64,
        bytes: u64,
        file: BorrowedFd<'_>,
        file_offset: u64,
        prot: ProtFlags,
        flags: MapFlags,
    ) -> Result<()> {
        let target = self
            .pointer(at, bytes)
            .ok_or(Error::Exhausted("room for the image"))?;
        // SAFETY: MAP_FIXED replaces pages of this mapping only, which `pointer` has checked; nothing holds a Rust
        // reference into it.
        unsafe {
            mmap(
                target.cast(),
                bytes as usize,
                prot,
                flags | MapFlags::FIXED,
                file,
                file_offset,
            )
        }
        .map_err(Error::memory("map a file over guest memory", bytes as usize))?;
        Ok(())
    }

    /// First byte.
    pub(crate) fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes as u64
    }

    /// Pointer to `bytes` bytes at offset `at`, if they lie inside.
    pub(crate) fn pointer(&self, at: u64, bytes: u64) -> Option<*mut u8> {
        let end = at.checked_add(bytes)?;
        if end > self.bytes as u64 {
            return None;
        }
        // SAFETY: the offset is within the mapping, as just checked.
        Some(unsafe { self.base.as_ptr().add(at as usize) })
    }

    /// Copies bytes in. The range must lie inside, and nobody else may write to it meanwhile.
    pub(crate) fn write(&mut self, at: u64, data: &[u8]) {
        let Some(target) = self.pointer(at, data.len() as u64) else {
            debug_assert!(false, "outside the mapping");
            return;
        };
        // SAFETY: in bounds, as just checked; source and target do not overlap, since the mapping is this value's own.
        unsafe { ptr::copy_nonoverlapping(data.as_ptr(), target, data.len()) };
    }

    /// Gives memory back: the range reads as zero (anonymous) or as the file (private map) from now on, and KVM
    /// forgets its translations of it.
    pub(crate) fn discard(&self, at: u64, bytes: u64) -> Result<()> {
        self.advise(at, bytes, Advice::LinuxDontNeed)
    }

    /// Asks for 2 MiB pages. A host that has none ignores it.
    pub(crate) fn want_huge_pages(&self, at: u64, bytes: u64) {
        // A host without transparent huge pages answers EINVAL; 4 KiB pages then do.
        let _ = self.advise(at, bytes, Advice::LinuxHugepage);
    }

    /// Asks for 4 KiB pages, also of a file that lies in larger ones: copying one of them at a write then leaves the
    /// translations of its neighbours alone.
    pub(crate) fn want_small_pages(&self, at: u64, bytes: u64) {
        let _ = self.advise(at, bytes, Advice::LinuxNoHugepage);
    }

    /// Allocates the range now, so that the guest does not fault on it.
    pub(crate) fn populate(&self, at: u64, bytes: u64) -> Result<()> {
        self.advise(at, bytes, Advice::LinuxPopulateWrite)
    }

    fn advise(&self, at: u64, bytes: u64, advice: Advice) -> Result<()> {
        let target = self
            .pointer(at, bytes)
            .ok_or(Error::Exhausted("host memory range"))?;
        // SAFETY: the range is this mapping's own. Advice that drops contents is wanted by the caller, and no Rust
        // reference into the range exists.
        unsafe { madvise(target.cast(), bytes as usize, advice) }
            .map_err(Error::memory("advise on guest memory", bytes as usize))
    }
}

impl Drop for HostMapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by this value and nothing else refers to it: KVM slots that did are gone with
        // their VM, which owns its mappings and is closed first.
        unsafe {
            let _ = munmap(self.base.as_ptr().cast(), self.bytes);
        }
    }
}
