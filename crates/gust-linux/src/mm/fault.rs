//! Pages that become present at the first touch.

use gust_vmm::{CHUNK_BYTES, PageRange, Populate, Prot, Vm};

use crate::{
    abi::{PAGE, page_down},
    errno::{EFAULT, ENOMEM, Errno},
    host::Host,
    kernel::{Cx, Ended, Kernel},
    mm::{Area, Backing},
};

/// What an access does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Runs.
    Execute,
}

impl Access {
    fn allowed_by(self, prot: Prot) -> bool {
        match self {
            Self::Read => prot.readable(),
            Self::Write => prot.writable(),
            Self::Execute => prot.executable(),
        }
    }
}

/// Anonymous mappings of this size and more get large pages.
const LARGE_PAGES_FROM_BYTES: u64 = 4 << 20;
/// Bytes that one fault makes present in a smaller one.
const ANONYMOUS_WINDOW_BYTES: u64 = 128 << 10;
/// Bytes of a file that one fault brings in.
const FILE_WINDOW_BYTES: u64 = 256 << 10;
/// Memory that may be bound between two looks at what is resident, in bytes.
const CHECK_EVERY_BYTES: u64 = 16 << 20;

impl Kernel {
    /// Makes the page at an address present for an access of the personality.
    pub(crate) fn fault_in(&mut self, cx: &mut Cx<'_>, address: u64, access: Access) -> Result<(), Errno> {
        match self.resolve_fault(cx, address, access) {
            Ok(()) => Ok(()),
            Err(Unresolved::NoMapping | Unresolved::NoRight | Unresolved::PastEnd) => Err(EFAULT),
            Err(Unresolved::NoMemory) => Err(ENOMEM),
        }
    }

    /// Makes the page at an address present if the mapping allows the access.
    pub(crate) fn resolve_fault(
        &mut self,
        cx: &mut Cx<'_>,
        address: u64,
        access: Access,
    ) -> Result<(), Unresolved> {
        let (start, area) = self.mm.find(address).ok_or(Unresolved::NoMapping)?;
        if !access.allowed_by(area.prot) {
            return Err(Unresolved::NoRight);
        }
        if cx
            .vm
            .space()
            .rights_at(address)
            .is_some_and(|prot| access.allowed_by(prot))
        {
            // Present already: another thread was faster, or the fault was about a translation that is gone now.
            return Ok(());
        }
        let window = window(start, &area, address);
        if let Backing::Private { file, offset } | Backing::Shared { file, offset } = area.backing {
            let size = self.vfs.size_of(file);
            if offset + (page_down(address) - start) >= size.next_multiple_of(PAGE) {
                return Err(Unresolved::PastEnd);
            }
        }
        let populate = match area.backing {
            Backing::Anonymous if window.bytes() == CHUNK_BYTES => Populate::Large,
            Backing::Anonymous if grows_into(cx, start, window, address) => Populate::Now,
            Backing::Anonymous => Populate::OnTouch,
            Backing::Private { .. } | Backing::Shared { .. } => Populate::OnTouch,
        };
        while let Some(absent) = cx.vm.space().first_absent(window) {
            cx.vm
                .space_mut()
                .map(absent, area.prot, populate)
                .map_err(|_| Unresolved::NoMemory)?;
            self.fill_from_file(cx, start, &area, absent)?;
        }
        self.check_memory(cx);
        if self.ended.is_some() {
            Err(Unresolved::NoMemory)
        } else {
            Ok(())
        }
    }

    /// Brings the rest of mapped files in, wherever a chunk of the address space is in use already. What a snapshot then
    /// lacks of such a chunk is zero, so the chunk can be mapped whole.
    pub fn complete_files(&mut self, vm: &mut Vm, host: &mut dyn Host) {
        let cx = &mut Cx { vm, host, slot: 1 };
        for chunk in cx.vm.space().bound_chunks() {
            let range = PageRange::new(chunk * CHUNK_BYTES, (chunk + 1) * CHUNK_BYTES);
            for (start, area) in self.mm.overlapping(range) {
                if area.backing.file().is_none() || !area.prot.readable() {
                    continue;
                }
                let part = PageRange::new(start.max(range.start), area.end.min(range.end));
                while let Some(absent) = cx.vm.space().first_absent(part) {
                    if self.resolve_fault(cx, absent.start, Access::Read).is_err() {
                        // Past the end of the file, where touching it is a fault.
                        break;
                    }
                }
            }
        }
    }

    fn fill_from_file(
        &mut self,
        cx: &mut Cx<'_>,
        start: u64,
        area: &Area,
        pages: PageRange,
    ) -> Result<(), Unresolved> {
        let (Backing::Private { file, offset } | Backing::Shared { file, offset }) = area.backing else {
            return Ok(());
        };
        let from = offset + (pages.start - start);
        let mut written = Ok(());
        self.vfs.with_contents(file, from, pages.bytes(), |at, data| {
            if written.is_ok() {
                written = cx.vm.space_mut().write_backed(pages.start + (at - from), data);
            }
        });
        written.map_err(|_| Unresolved::NoMemory)
    }

    /// Ends the guest when it uses more memory than it may. What is backed is an upper bound of what is resident, so
    /// the host is asked only when that bound has passed the limit, and again after every few MiB.
    pub(crate) fn check_memory(&mut self, cx: &mut Cx<'_>) {
        let backed = cx.vm.space().backed_bytes() + self.vfs.memory_bytes();
        if backed < self.mm.check_at_bytes.max(self.mm.limit_bytes) {
            return;
        }
        self.mm.check_at_bytes = backed + CHECK_EVERY_BYTES;
        if cx.host.resident_bytes() > self.mm.limit_bytes {
            self.end(Ended::OutOfMemory);
        }
    }
}

/// Why a fault is the guest's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unresolved {
    /// No mapping holds the address: `SEGV_MAPERR`.
    NoMapping,
    /// The mapping does not allow the access: `SEGV_ACCERR`.
    NoRight,
    /// The mapped file ends before: `BUS_ADRERR`.
    PastEnd,
    /// The host or the guest's limit has no room.
    NoMemory,
}

/// The pages that one fault makes present.
fn window(start: u64, area: &Area, address: u64) -> PageRange {
    let bytes = match area.backing {
        Backing::Anonymous if area.end - start >= LARGE_PAGES_FROM_BYTES => CHUNK_BYTES,
        Backing::Anonymous => ANONYMOUS_WINDOW_BYTES,
        Backing::Private { .. } | Backing::Shared { .. } => FILE_WINDOW_BYTES,
    };
    let from = address & !(bytes - 1);
    PageRange::new(from.max(start), (from + bytes).min(area.end))
}

/// Whether memory is being touched from its start on, and comes to this window now: the rest of it will be touched, too. A host
/// with shadow paging then takes one fault for eight pages.
fn grows_into(cx: &Cx<'_>, start: u64, window: PageRange, address: u64) -> bool {
    page_down(address) == window.start
        && window.start > start
        && cx.vm.space().rights_at(window.start - PAGE).is_some()
}
