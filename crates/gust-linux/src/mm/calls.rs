//! System calls on mappings.

use std::collections::BTreeSet;

use gust_vmm::{CHUNK_BYTES, PageRange, Prot, USER_END, USER_START};
use libc::{
    MADV_COLD, MADV_COLLAPSE, MADV_DODUMP, MADV_DONTDUMP, MADV_DONTFORK, MADV_DONTNEED, MADV_FREE,
    MADV_HUGEPAGE, MADV_MERGEABLE, MADV_NOHUGEPAGE, MADV_NORMAL, MADV_PAGEOUT, MADV_POPULATE_READ,
    MADV_POPULATE_WRITE, MADV_RANDOM, MADV_SEQUENTIAL, MADV_UNMERGEABLE, MADV_WILLNEED, MAP_32BIT,
    MAP_ANONYMOUS, MAP_FIXED, MAP_FIXED_NOREPLACE, MAP_HUGETLB, MAP_POPULATE, MAP_PRIVATE, MAP_SHARED,
    MAP_SHARED_VALIDATE,
};

use crate::{
    abi::{PAGE, page_down, page_up},
    errno::{EACCES, EEXIST, EINVAL, ENODEV, ENOMEM, EOVERFLOW, EPERM, Errno},
    fs::{FileKind, Vnode},
    kernel::{Cx, Flow, Kernel, SysResult},
    mm::{Access, Backing, Name, map::NewArea},
};

/// The three bits of `PROT_*` that are rights; others (growth directions) are refused.
fn prot_from(bits: u64) -> Result<Prot, Errno> {
    if bits & !7 != 0 {
        Err(EINVAL)
    } else {
        Ok(Prot::from_bits(bits as u8))
    }
}

/// A range of whole pages from an address and a length that a guest gave.
fn page_range(at: u64, bytes: u64) -> Result<PageRange, Errno> {
    if !at.is_multiple_of(PAGE) {
        return Err(EINVAL);
    }
    let end = page_up(bytes)
        .and_then(|bytes| at.checked_add(bytes))
        .ok_or(EINVAL)?;
    Ok(PageRange::new(at, end))
}

/// Whether user space may have a mapping there.
fn in_user_space(range: PageRange) -> bool {
    range.start >= USER_START && range.end <= USER_END
}

pub(crate) fn sys_mmap(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let [hint, length, prot, flags, fd, offset] = *args;
    let flags = flags as i32;
    if length == 0 || !offset.is_multiple_of(PAGE) {
        return Err(EINVAL);
    }
    let bytes = page_up(length).filter(|bytes| *bytes <= USER_END).ok_or(ENOMEM)?;
    let prot = prot_from(prot)?;
    let shared = match flags & (MAP_SHARED | MAP_PRIVATE | MAP_SHARED_VALIDATE) {
        MAP_PRIVATE => false,
        MAP_SHARED | MAP_SHARED_VALIDATE => true,
        _ => return Err(EINVAL),
    };
    if flags & MAP_HUGETLB != 0 {
        // No huge page is reserved, as on a host whose pool is empty.
        return Err(ENOMEM);
    }
    let backing = if flags & MAP_ANONYMOUS != 0 {
        if flags & MAP_SHARED_VALIDATE == MAP_SHARED_VALIDATE {
            // The checked kind is for files alone.
            return Err(EINVAL);
        }
        Backing::Anonymous
    } else {
        k.file_backing(fd, offset, bytes, prot, shared)?
    };
    if !k.may_map(bytes) {
        return Err(ENOMEM);
    }
    let anonymous = backing == Backing::Anonymous;
    let range = place(k, cx, hint, bytes, flags, anonymous)?;
    k.mm.add(
        cx.vm,
        range,
        NewArea {
            prot,
            backing,
            name: Name::None,
            shared,
        },
    )?;
    k.hold_mapped(backing);
    if flags & MAP_POPULATE != 0 {
        populate(k, cx, range);
    }
    k.check_memory(cx);
    Ok(Flow::Done(range.start))
}

/// Chooses where a mapping goes, and makes room there if it is fixed.
fn place(
    k: &mut Kernel,
    cx: &mut Cx<'_>,
    hint: u64,
    bytes: u64,
    flags: i32,
    anonymous: bool,
) -> Result<PageRange, Errno> {
    if flags & (MAP_FIXED | MAP_FIXED_NOREPLACE) != 0 {
        if !hint.is_multiple_of(PAGE) {
            return Err(EINVAL);
        }
        let end = hint.checked_add(bytes).ok_or(ENOMEM)?;
        let range = PageRange::new(hint, end);
        if !in_user_space(range) {
            return Err(if range.start < USER_START { EPERM } else { ENOMEM });
        }
        if !k.mm.is_free(range) {
            if flags & MAP_FIXED_NOREPLACE != 0 {
                return Err(EEXIST);
            }
            k.unmap(cx, range);
        }
        return Ok(range);
    }
    let hint = page_down(hint);
    if flags & MAP_32BIT == 0
        && let Some(end) = hint.checked_add(bytes)
    {
        let wanted = PageRange::new(hint, end);
        let scattered = anonymous && bytes < CHUNK_BYTES && is_lonely(k, wanted);
        if in_user_space(wanted) && k.mm.is_free(wanted) && !scattered {
            return Ok(wanted);
        }
    }
    let found = if flags & MAP_32BIT != 0 {
        k.mm.find_low_room(bytes)
    } else {
        k.mm.find_room(bytes, anonymous)
    };
    let start = found.ok_or(ENOMEM)?;
    Ok(PageRange::new(start, start + bytes))
}

/// Whether no mapping is in the chunks of a range. A small mapping there costs a page of tables, which is never used for
/// another address, so a program that asks for one random address after the other (V8 does, for each 256 KiB of its heap)
/// would use them up. A hint is no more than that: such mappings are put beside others.
fn is_lonely(k: &Kernel, range: PageRange) -> bool {
    let start = range.start & !(CHUNK_BYTES - 1);
    let end = range.end.next_multiple_of(CHUNK_BYTES);
    k.mm.is_free(PageRange::new(start, end))
}

/// Brings every page in that the rights allow; as on Linux, failing to is not an error.
fn populate(k: &mut Kernel, cx: &mut Cx<'_>, range: PageRange) {
    let mut at = range.start;
    while at < range.end && k.ended.is_none() {
        if k.resolve_fault(cx, at, Access::Read).is_err() {
            return;
        }
        at += PAGE;
    }
}

impl Kernel {
    fn file_backing(
        &mut self,
        fd: u64,
        offset: u64,
        bytes: u64,
        prot: Prot,
        shared: bool,
    ) -> Result<Backing, Errno> {
        offset
            .checked_add(bytes)
            .filter(|end| *end <= i64::MAX as u64)
            .ok_or(EOVERFLOW)?;
        let file = self.files.usable(fd)?;
        if !file.readable() {
            return Err(EACCES);
        }
        let writable = file.writable();
        let path = file.path.clone();
        let vnode = match file.kind {
            FileKind::Regular(vnode) => vnode,
            FileKind::Zero => return Ok(Backing::Anonymous),
            _ => return Err(ENODEV),
        };
        if shared && prot.writable() && !writable {
            return Err(EACCES);
        }
        if let Some(path) = path {
            self.mm.file_names.insert(vnode, path);
        }
        const SEALED: i32 = libc::F_SEAL_WRITE | libc::F_SEAL_FUTURE_WRITE;
        if let (Vnode::Memory(number), true) = (vnode, shared && prot.writable())
            && self.vfs.memory.get(number)?.seals as i32 & SEALED != 0
        {
            return Err(EPERM);
        }
        match vnode {
            Vnode::Memory(_) if shared => Ok(Backing::Shared { file: vnode, offset }),
            // Nobody can write to the image, so a shared view of it is a private one.
            Vnode::Memory(_) | Vnode::Image { .. } => Ok(Backing::Private { file: vnode, offset }),
            Vnode::Synthetic(_) | Vnode::Descriptor(_) | Vnode::DescriptorInfo(_) | Vnode::Task(_) => {
                Err(ENODEV)
            }
        }
    }

    /// Takes mappings away; what shared ones hold goes to their files first.
    pub(crate) fn unmap(&mut self, cx: &mut Cx<'_>, range: PageRange) {
        let files = self.mm.overlapping(range);
        let files = files.iter().filter_map(|(_, area)| area.backing.memory_file());
        let files: BTreeSet<u32> = files.collect();
        self.write_back(cx, range);
        self.mm.remove(cx.vm, range);
        self.release_unmapped(files);
    }

    /// A mapping keeps its file, also when the file has no name or descriptor any more.
    pub(crate) fn hold_mapped(&mut self, backing: Backing) {
        if let Some(number) = backing.memory_file()
            && self.mm.held_files.insert(number)
        {
            self.vfs.memory.hold(number);
        }
    }

    /// Lets go of those files in memory that have no mapping left, in one pass over the mappings however many they are.
    fn release_unmapped(&mut self, mut files: BTreeSet<u32>) {
        if files.is_empty() {
            return;
        }
        for number in self.mm.iter().filter_map(|(_, area)| area.backing.memory_file()) {
            files.remove(&number);
        }
        for number in files {
            if self.mm.held_files.remove(&number) {
                self.vfs.memory.release(number);
            }
        }
    }
}

pub(crate) fn sys_munmap(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let range = page_range(args[0], args[1])?;
    if range.is_empty() || range.end > USER_END {
        return Err(EINVAL);
    }
    k.unmap(cx, range);
    Ok(Flow::Done(0))
}

pub(crate) fn sys_mprotect(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let range = page_range(args[0], args[1]).map_err(|errno| {
        if args[0].is_multiple_of(PAGE) {
            ENOMEM
        } else {
            errno
        }
    })?;
    let prot = prot_from(args[2])?;
    if range.is_empty() {
        return Ok(Flow::Done(0));
    }
    if range.end > USER_END {
        return Err(ENOMEM);
    }
    k.mm.protect(cx.vm, range, prot)?;
    Ok(Flow::Done(0))
}

pub(crate) fn sys_brk(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let wanted = if k.may_end_heap_at(args[0]) { args[0] } else { 0 };
    let brk = k.mm.set_brk(cx.vm, wanted);
    k.check_memory(cx);
    Ok(Flow::Done(brk))
}

pub(crate) fn sys_madvise(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let range = page_range(args[0], args[1])?;
    let advice = args[2] as i32;
    if range.is_empty() {
        return Ok(Flow::Done(0));
    }
    let covered = k.mm.covered_bytes(range);
    match advice {
        // MADV_FREE may keep the contents until memory is short; dropping them at once is one of its outcomes, but a
        // costly one: an allocator that frees lazily would fault on every page again.
        MADV_NORMAL | MADV_RANDOM | MADV_SEQUENTIAL | MADV_WILLNEED | MADV_FREE | MADV_COLD
        | MADV_PAGEOUT | MADV_HUGEPAGE | MADV_NOHUGEPAGE | MADV_MERGEABLE | MADV_UNMERGEABLE
        | MADV_DODUMP | MADV_DONTDUMP | MADV_DONTFORK | MADV_COLLAPSE => {}
        MADV_DONTNEED => discard(k, cx, range),
        MADV_POPULATE_READ | MADV_POPULATE_WRITE => populate(k, cx, range),
        _ => return Err(EINVAL),
    }
    if covered == range.bytes() {
        Ok(Flow::Done(0))
    } else {
        Err(ENOMEM)
    }
}

/// Drops the contents of private mappings: anonymous ones read as zero, files as what they hold.
fn discard(k: &mut Kernel, cx: &mut Cx<'_>, range: PageRange) {
    for (start, area) in k.mm.overlapping(range) {
        let part = PageRange::new(start.max(range.start), area.end.min(range.end));
        let done = match area.backing {
            Backing::Anonymous => cx.vm.space_mut().discard(part),
            Backing::Private { .. } => cx.vm.space_mut().unmap(part),
            Backing::Shared { .. } => Ok(()),
        };
        if let Err(error) = done {
            tracing::error!(%error, "discard guest pages");
        }
    }
}

pub(crate) fn sys_msync(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let range = page_range(args[0], args[1])?;
    let flags = args[2] as i32;
    if flags & !(libc::MS_ASYNC | libc::MS_INVALIDATE | libc::MS_SYNC) != 0
        || flags & (libc::MS_ASYNC | libc::MS_SYNC) == libc::MS_ASYNC | libc::MS_SYNC
    {
        return Err(EINVAL);
    }
    let covered = k.mm.covered_bytes(range);
    k.write_back(cx, range);
    if covered == range.bytes() {
        Ok(Flow::Done(0))
    } else {
        Err(ENOMEM)
    }
}

pub(crate) fn sys_mincore(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let range = page_range(args[0], args[1]).map_err(|_| {
        if args[0].is_multiple_of(PAGE) {
            ENOMEM
        } else {
            EINVAL
        }
    })?;
    // A page of the answer at a time, as Linux does. A guest may ask about terabytes that it has reserved: what they cost
    // is the memory that the answer fills.
    let (mut at, mut out) = (range.start, args[2]);
    while at < range.end {
        let piece = PageRange::new(at, range.end.min(at.saturating_add(PAGE * PAGE)));
        if k.mm.covered_bytes(piece) != piece.bytes() {
            return Err(ENOMEM);
        }
        let mut residency = vec![0; (piece.bytes() / PAGE) as usize];
        for run in cx.vm.space().backed(piece) {
            let first = ((run.start - at) / PAGE) as usize;
            residency[first..first + (run.bytes() / PAGE) as usize].fill(1);
        }
        k.copy_out(cx, out, &residency)?;
        out = out.saturating_add(residency.len() as u64);
        at = piece.end;
    }
    Ok(Flow::Done(0))
}

/// Nothing is swapped, so everything that is present is locked; the range must be mapped.
pub(crate) fn sys_mlock(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let range = page_range(page_down(args[0]), args[1].saturating_add(args[0] & (PAGE - 1)))?;
    if k.mm.overlapping(range).is_empty() && !range.is_empty() {
        return Err(ENOMEM);
    }
    populate(k, cx, range);
    Ok(Flow::Done(0))
}
