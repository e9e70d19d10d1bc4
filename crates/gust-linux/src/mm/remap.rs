//! `mremap`.

use gust_vmm::{PageRange, USER_END, USER_START};
use libc::{MREMAP_DONTUNMAP, MREMAP_FIXED, MREMAP_MAYMOVE};

use crate::{
    abi::{PAGE, page_up},
    errno::{EFAULT, EINVAL, ENOMEM, Errno},
    kernel::{Cx, Flow, Kernel, SysResult},
    mm::{Area, Backing, map::NewArea},
};

pub(crate) fn sys_mremap(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let [at, old_bytes, new_bytes, flags, fixed, _] = *args;
    let flags = flags as i32;
    let known = MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP;
    if flags & !known != 0
        || !at.is_multiple_of(PAGE)
        || flags & MREMAP_FIXED != 0 && flags & MREMAP_MAYMOVE == 0
    {
        return Err(EINVAL);
    }
    if flags & MREMAP_DONTUNMAP != 0 {
        return Err(EINVAL);
    }
    let old_bytes = page_up(old_bytes).ok_or(EINVAL)?;
    let new_bytes = page_up(new_bytes).filter(|bytes| *bytes > 0).ok_or(EINVAL)?;
    let (start, area) = k.mm.find(at).ok_or(EFAULT)?;
    // Size zero duplicates a shared mapping; there is one process, and no one is known to ask for it.
    if old_bytes == 0 {
        return Err(EINVAL);
    }
    let end = at
        .checked_add(old_bytes)
        .filter(|end| *end <= area.end)
        .ok_or(EFAULT)?;
    let old = PageRange::new(at, end);
    let part = Area {
        backing: area.backing.advanced(at - start),
        ..area
    };
    if flags & MREMAP_FIXED != 0 {
        let target = fixed_target(fixed, new_bytes, old)?;
        k.unmap(cx, target);
        return move_to(k, cx, old, part, target);
    }
    if new_bytes <= old_bytes {
        if new_bytes < old_bytes {
            k.unmap(cx, PageRange::new(at + new_bytes, end));
        }
        return Ok(Flow::Done(at));
    }
    if let Some(grown) = at.checked_add(new_bytes).filter(|grown| *grown <= USER_END) {
        let extension = PageRange::new(end, grown);
        if end == area.end && k.mm.is_free(extension) {
            let backing = part.backing.advanced(old_bytes);
            k.mm.add(
                cx.vm,
                extension,
                NewArea {
                    backing,
                    ..new_area(&part)
                },
            )?;
            k.check_memory(cx);
            return Ok(Flow::Done(at));
        }
    }
    if flags & MREMAP_MAYMOVE == 0 {
        return Err(ENOMEM);
    }
    let target =
        k.mm.find_room(new_bytes, part.backing == Backing::Anonymous)
            .ok_or(ENOMEM)?;
    move_to(k, cx, old, part, PageRange::new(target, target + new_bytes))
}

fn new_area(area: &Area) -> NewArea {
    NewArea {
        prot: area.prot,
        backing: area.backing,
        name: area.name,
        shared: area.shared,
    }
}

fn fixed_target(fixed: u64, bytes: u64, old: PageRange) -> Result<PageRange, Errno> {
    if !fixed.is_multiple_of(PAGE) || fixed < USER_START {
        return Err(EINVAL);
    }
    let end = fixed
        .checked_add(bytes)
        .filter(|end| *end <= USER_END)
        .ok_or(EINVAL)?;
    if fixed < old.end && old.start < end {
        return Err(EINVAL);
    }
    Ok(PageRange::new(fixed, end))
}

fn move_to(k: &mut Kernel, cx: &mut Cx<'_>, old: PageRange, area: Area, target: PageRange) -> SysResult {
    let moved = PageRange::new(old.start, old.start + old.bytes().min(target.bytes()));
    // The pages come first: what is then still absent in the target is made present as for a new mapping.
    cx.vm
        .space_mut()
        .move_pages(moved, target.start, area.prot)
        .map_err(|_| ENOMEM)?;
    if let Err(errno) = k.mm.add(cx.vm, target, new_area(&area)) {
        cx.vm
            .space_mut()
            .move_pages(
                PageRange::new(target.start, target.start + moved.bytes()),
                moved.start,
                area.prot,
            )
            .map_err(|_| ENOMEM)?;
        return Err(errno);
    }
    k.mm.remove(cx.vm, old);
    k.check_memory(cx);
    Ok(Flow::Done(target.start))
}
