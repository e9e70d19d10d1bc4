//! Offsets and sizes.

use crate::{
    errno::{EBADF, EFBIG, EINVAL, EISDIR, ENODEV, ENXIO, EOPNOTSUPP, EPERM, ESPIPE, Errno},
    fs::{FileKind, NodeType, Vfs, Vnode, path::Last},
    kernel::{Cx, Flow, Kernel, SysResult},
};

pub(crate) fn sys_lseek(k: &mut Kernel, _cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let [fd, offset, whence, ..] = *args;
    let file = k.files.get(fd).ok_or(EBADF)?;
    let (size, current) = match &file.kind {
        FileKind::Regular(vnode) => (k.vfs.size_of(*vnode) as i64, file.offset as i64),
        FileKind::Text(..) | FileKind::Directory(_) => (0, file.offset as i64),
        FileKind::Null | FileKind::Zero | FileKind::Full | FileKind::Random => return Ok(Flow::Done(0)),
        FileKind::Path(_) => return Err(EBADF),
        FileKind::Runtime
        | FileKind::Output(_)
        | FileKind::PipeReader(_)
        | FileKind::PipeWriter(_)
        | FileKind::PipeBoth(_)
        | FileKind::EventFd(_)
        | FileKind::Epoll(_)
        | FileKind::TimerFd(_)
        | FileKind::SignalFd(_)
        | FileKind::Inotify(_)
        | FileKind::Socket(_) => return Err(ESPIPE),
    };
    let offset = offset as i64;
    let target = match whence as i32 {
        libc::SEEK_SET => Some(offset),
        libc::SEEK_CUR => current.checked_add(offset),
        // A directory and a made-up text have no end to count from.
        libc::SEEK_END if !file.kind.has_end() => None,
        libc::SEEK_END => size.checked_add(offset),
        // A file without known holes is all data, with a hole at its end.
        libc::SEEK_DATA | libc::SEEK_HOLE if offset < 0 || offset >= size => return Err(ENXIO),
        libc::SEEK_DATA => Some(offset),
        libc::SEEK_HOLE => Some(size),
        _ => return Err(EINVAL),
    };
    let target = target.filter(|target| *target >= 0).ok_or(EINVAL)? as u64;
    k.files.get_mut(fd).ok_or(EBADF)?.offset = target;
    Ok(Flow::Done(target))
}

impl Kernel {
    /// Makes a file in memory shorter or longer; what shared mappings show follows.
    pub(crate) fn set_file_size(&mut self, cx: &mut Cx<'_>, vnode: Vnode, size: u64) -> Result<(), Errno> {
        let number = Vfs::writable(vnode)?;
        let seals = self.vfs.memory.get(number)?.seals as i32;
        let old = self.vfs.size_of(vnode);
        if size < old && seals & libc::F_SEAL_SHRINK != 0 || size > old && seals & libc::F_SEAL_GROW != 0 {
            return Err(EPERM);
        }
        self.write_back_file(cx, vnode);
        self.vfs.memory.set_size(number, size)?;
        if size < old {
            // Shared mappings see zeros from the new end on.
            let zeros = vec![0; ((old - size) as usize).min(1 << 20)];
            self.write_through(cx, vnode, size, &zeros);
        }
        let now = self.now_ns(cx);
        let node = self.vfs.memory.get_mut(number)?;
        (node.modified_ns, node.changed_ns) = (now, now);
        Ok(())
    }
}

fn checked_size(size: u64) -> Result<u64, Errno> {
    if (size as i64) < 0 { Err(EINVAL) } else { Ok(size) }
}

pub(crate) fn sys_truncate(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let size = checked_size(args[1])?;
    let path = k.copy_in_path(cx, args[0])?;
    let entry = k
        .resolve_at(cx, libc::AT_FDCWD as u64, &path, Last::Follow)?
        .entry()?;
    let vnode = entry.node;
    match k.vfs.node_type(vnode)? {
        NodeType::Regular => {}
        NodeType::Directory => return Err(EISDIR),
        NodeType::Symlink | NodeType::Character | NodeType::Fifo | NodeType::Socket | NodeType::Anonymous => {
            return Err(EINVAL);
        }
    }
    k.check_access(vnode, libc::W_OK)?;
    k.set_file_size(cx, vnode, size)?;
    k.tell_entry(&entry, libc::IN_MODIFY);
    Ok(Flow::Done(0))
}

pub(crate) fn sys_ftruncate(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let size = checked_size(args[1])?;
    let file = k.files.usable(args[0])?;
    let FileKind::Regular(vnode) = file.kind else {
        return Err(EINVAL);
    };
    if !file.writable() {
        return Err(EINVAL);
    }
    k.set_file_size(cx, vnode, size)?;
    let entry = k.file_entry(args[0])?;
    k.tell_entry(&entry, libc::IN_MODIFY);
    Ok(Flow::Done(0))
}

pub(crate) fn sys_fallocate(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let [fd, mode, offset, bytes, ..] = *args;
    let file = k.files.usable(fd)?;
    if (offset as i64) < 0 || (bytes as i64) <= 0 {
        return Err(EINVAL);
    }
    if !file.writable() {
        return Err(EBADF);
    }
    let vnode = match &file.kind {
        FileKind::Regular(vnode) => *vnode,
        FileKind::PipeReader(_) | FileKind::PipeWriter(_) | FileKind::PipeBoth(_) | FileKind::Output(_) => {
            return Err(ESPIPE);
        }
        _ => return Err(ENODEV),
    };
    let end = offset
        .checked_add(bytes)
        .filter(|end| *end <= i64::MAX as u64)
        .ok_or(EFBIG)?;
    let mode = mode as i32;
    let number = Vfs::writable(vnode)?;
    match mode & !libc::FALLOC_FL_KEEP_SIZE {
        0 => {
            if mode & libc::FALLOC_FL_KEEP_SIZE == 0 && end > k.vfs.size_of(vnode) {
                k.set_file_size(cx, vnode, end)?;
            }
        }
        libc::FALLOC_FL_PUNCH_HOLE if mode & libc::FALLOC_FL_KEEP_SIZE != 0 => {
            k.write_back_file(cx, vnode);
            k.vfs.memory.punch(number, offset, bytes)?;
        }
        libc::FALLOC_FL_ZERO_RANGE => {
            k.write_back_file(cx, vnode);
            k.vfs.memory.punch(number, offset, bytes)?;
            if mode & libc::FALLOC_FL_KEEP_SIZE == 0 && end > k.vfs.size_of(vnode) {
                k.set_file_size(cx, vnode, end)?;
            }
        }
        _ => return Err(EOPNOTSUPP),
    }
    k.tell_file(fd, libc::IN_MODIFY);
    Ok(Flow::Done(0))
}
