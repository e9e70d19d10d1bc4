//! Making, moving and removing names; owners, modes and times.

use crate::{
    abi::{PATH_MAX, i64_at},
    errno::{
        EBADF, EBUSY, EEXIST, EINVAL, EISDIR, ENAMETOOLONG, ENOENT, ENOTDIR, ENOTEMPTY, EPERM, EXDEV, Errno,
    },
    fs::{
        Entry, FileKind, NodeType, Vfs, Vnode,
        entry::times_mask,
        memory::Kind,
        open::empty_directory,
        path::{Last, Resolved},
    },
    kernel::{Cx, Flow, Kernel, SysResult},
    user::timespec_ns,
};

const AT_CWD: u64 = libc::AT_FDCWD as u64;

impl Kernel {
    fn resolve_user(&mut self, cx: &mut Cx<'_>, fd: u64, path: u64, last: Last) -> Result<Resolved, Errno> {
        let path = self.copy_in_path(cx, path)?;
        self.resolve_at(cx, fd, &path, last)
    }

    /// A path whose last name is to be made: it must not exist yet.
    fn resolve_new(&mut self, cx: &mut Cx<'_>, fd: u64, path: u64) -> Result<Resolved, Errno> {
        let mut path = self.copy_in_path(cx, path)?;
        // A slash at the end does not lead through a link here: the link's name is taken.
        let bytes = path.len();
        while path.len() > 1 && path.ends_with(b"/") {
            path.pop();
        }
        let mut resolved = self.resolve_at(cx, fd, &path, Last::Keep)?;
        resolved.wants_directory |= path.len() < bytes;
        if resolved.node.is_some() {
            Err(EEXIST)
        } else {
            Ok(resolved)
        }
    }

    /// As [`Kernel::resolve_new`], for what is no directory: its name cannot end with a slash.
    fn resolve_new_file(&mut self, cx: &mut Cx<'_>, fd: u64, path: u64) -> Result<Resolved, Errno> {
        let resolved = self.resolve_new(cx, fd, path)?;
        if resolved.wants_directory {
            Err(ENOENT)
        } else {
            Ok(resolved)
        }
    }

    fn make_directory(&mut self, cx: &mut Cx<'_>, fd: u64, path: u64, mode: u64) -> SysResult {
        let resolved = self.resolve_new(cx, fd, path)?;
        self.make_node(cx, &resolved, empty_directory(), mode as u32 & 0o1777)?;
        Ok(Flow::Done(0))
    }

    fn make_special(&mut self, cx: &mut Cx<'_>, fd: u64, path: u64, mode: u64) -> SysResult {
        let resolved = self.resolve_new_file(cx, fd, path)?;
        let kind = match mode as u32 & libc::S_IFMT {
            0 | libc::S_IFREG => Kind::File(Default::default()),
            libc::S_IFIFO => Kind::Fifo(None),
            libc::S_IFSOCK => Kind::Socket,
            libc::S_IFCHR | libc::S_IFBLK => return Err(EPERM),
            _ => return Err(EINVAL),
        };
        self.make_node(cx, &resolved, kind, mode as u32)?;
        Ok(Flow::Done(0))
    }

    fn make_link(&mut self, cx: &mut Cx<'_>, target: u64, fd: u64, path: u64) -> SysResult {
        let target = self.copy_in_string(cx, target, PATH_MAX)?;
        if target.is_empty() {
            return Err(ENOENT);
        }
        let resolved = self.resolve_new_file(cx, fd, path)?;
        self.make_node(cx, &resolved, Kind::Symlink(target), 0o777)?;
        Ok(Flow::Done(0))
    }

    fn remove_name(&mut self, cx: &mut Cx<'_>, fd: u64, path: u64, directory: bool) -> SysResult {
        let path = self.copy_in_path(cx, path)?;
        let last_name = path.rsplit(|byte| *byte == b'/').find(|name| !name.is_empty());
        if directory && last_name == Some(b".") {
            return Err(EINVAL);
        }
        if directory && last_name == Some(b"..") {
            return Err(ENOTEMPTY);
        }
        let resolved = self.resolve_at(cx, fd, &path, Last::Keep)?;
        let vnode = resolved.existing()?;
        if resolved.name.is_empty() {
            return Err(if directory { EBUSY } else { EISDIR });
        }
        let is_directory = self.vfs.node_type(vnode)? == NodeType::Directory;
        match (directory, is_directory) {
            (true, false) => return Err(ENOTDIR),
            (false, true) => return Err(EISDIR),
            (true, true) | (false, false) => {}
        }
        if self.vfs.mounts.iter().any(|mount| mount.root == vnode) {
            return Err(EBUSY);
        }
        let parent = Vfs::writable(resolved.parent)?;
        self.check_access(resolved.parent, libc::W_OK | libc::X_OK)?;
        let now = self.now_ns(cx);
        if directory {
            self.vfs.memory.rmdir(parent, &resolved.name, now)?;
        } else {
            self.vfs.memory.unlink(parent, &resolved.name, now)?;
        }
        self.entry_unlinked(&resolved, vnode, directory);
        Ok(Flow::Done(0))
    }

    fn rename_at(&mut self, cx: &mut Cx<'_>, from: (u64, u64), to: (u64, u64), flags: u32) -> SysResult {
        if flags & !(libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE) != 0
            || flags == libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE
        {
            return Err(EINVAL);
        }
        let source = self.resolve_user(cx, from.0, from.1, Last::Keep)?;
        let target = self.resolve_user(cx, to.0, to.1, Last::Keep)?;
        let moved = source.existing()?;
        if source.name.is_empty() || target.name.is_empty() {
            return Err(EBUSY);
        }
        if target.wants_directory && self.vfs.node_type(moved)? != NodeType::Directory {
            return Err(ENOTDIR);
        }
        let from = Vfs::writable(source.parent)?;
        let to = Vfs::writable(target.parent).map_err(|_| EXDEV)?;
        self.check_access(source.parent, libc::W_OK | libc::X_OK)?;
        self.check_access(target.parent, libc::W_OK | libc::X_OK)?;
        let now = self.now_ns(cx);
        if flags & libc::RENAME_EXCHANGE != 0 {
            target.existing()?;
            self.vfs
                .memory
                .exchange((from, &source.name), (to, &target.name), now)?;
            self.entry_moved(&source, &target, moved, true);
        } else {
            let replace = flags & libc::RENAME_NOREPLACE == 0;
            self.vfs
                .memory
                .rename((from, &source.name), (to, &target.name), replace, now)?;
            // Two names of one file stay what they are.
            if target.node != Some(moved) {
                self.entry_moved(&source, &target, moved, false);
            }
        }
        Ok(Flow::Done(0))
    }

    fn hard_link(&mut self, cx: &mut Cx<'_>, from: (u64, u64), to: (u64, u64), flags: i32) -> SysResult {
        if flags & !(libc::AT_SYMLINK_FOLLOW | libc::AT_EMPTY_PATH) != 0 {
            return Err(EINVAL);
        }
        let path = self.copy_in_path(cx, from.1)?;
        let node = if path.is_empty() && flags & libc::AT_EMPTY_PATH != 0 {
            self.files.get(from.0).ok_or(EBADF)?.kind.vnode().ok_or(ENOENT)?
        } else {
            let last = if flags & libc::AT_SYMLINK_FOLLOW != 0 {
                Last::Follow
            } else {
                Last::Keep
            };
            self.resolve_at(cx, from.0, &path, last)?.existing()?
        };
        if self.vfs.node_type(node)? == NodeType::Directory {
            return Err(EPERM);
        }
        let target = self.resolve_new_file(cx, to.0, to.1)?;
        let directory = Vfs::writable(target.parent)?;
        let Vnode::Memory(number) = node else {
            return Err(EXDEV);
        };
        self.check_access(target.parent, libc::W_OK | libc::X_OK)?;
        let now = self.now_ns(cx);
        self.vfs.memory.link(directory, &target.name, number, now)?;
        self.entry_linked(&target, node);
        Ok(Flow::Done(0))
    }
}

pub(crate) fn sys_mkdir(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    k.make_directory(cx, AT_CWD, args[0], args[1])
}

pub(crate) fn sys_mkdirat(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    k.make_directory(cx, args[0], args[1], args[2])
}

pub(crate) fn sys_mknod(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    k.make_special(cx, AT_CWD, args[0], args[1])
}

pub(crate) fn sys_mknodat(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    k.make_special(cx, args[0], args[1], args[2])
}

pub(crate) fn sys_symlink(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    k.make_link(cx, args[0], AT_CWD, args[1])
}

pub(crate) fn sys_symlinkat(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    k.make_link(cx, args[0], args[1], args[2])
}

pub(crate) fn sys_unlink(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    k.remove_name(cx, AT_CWD, args[0], false)
}

pub(crate) fn sys_rmdir(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    k.remove_name(cx, AT_CWD, args[0], true)
}

pub(crate) fn sys_unlinkat(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let flags = args[2] as i32;
    if flags & !libc::AT_REMOVEDIR != 0 {
        return Err(EINVAL);
    }
    k.remove_name(cx, args[0], args[1], flags != 0)
}

pub(crate) fn sys_rename(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    k.rename_at(cx, (AT_CWD, args[0]), (AT_CWD, args[1]), 0)
}

pub(crate) fn sys_renameat(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    k.rename_at(cx, (args[0], args[1]), (args[2], args[3]), 0)
}

pub(crate) fn sys_renameat2(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    k.rename_at(cx, (args[0], args[1]), (args[2], args[3]), args[4] as u32)
}

pub(crate) fn sys_link(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    k.hard_link(cx, (AT_CWD, args[0]), (AT_CWD, args[1]), 0)
}

pub(crate) fn sys_linkat(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    k.hard_link(cx, (args[0], args[1]), (args[2], args[3]), args[4] as i32)
}

impl Kernel {
    /// Changes attributes of a node in memory, as its owner or root.
    fn change_node(
        &mut self,
        cx: &mut Cx<'_>,
        entry: &Entry,
        event: u32,
        change: impl FnOnce(&mut crate::fs::memory::MemoryNode),
    ) -> SysResult {
        let number = Vfs::writable(entry.node)?;
        let now = self.now_ns(cx);
        let (uid, me) = (self.vfs.memory.get(number)?.uid, self.process.uid);
        if me != 0 && me != uid {
            return Err(EPERM);
        }
        let node = self.vfs.memory.get_mut(number)?;
        change(node);
        node.changed_ns = now;
        self.tell_entry(entry, event);
        Ok(Flow::Done(0))
    }

    fn change_mode(&mut self, cx: &mut Cx<'_>, entry: &Entry, mode: u64) -> SysResult {
        self.change_node(cx, entry, libc::IN_ATTRIB, |node| {
            node.mode = mode as u32 & 0o7777;
        })
    }

    fn change_owner(&mut self, cx: &mut Cx<'_>, entry: &Entry, uid: u64, gid: u64) -> SysResult {
        let (uid, gid) = (uid as u32, gid as u32);
        const KEEP: u32 = u32::MAX;
        let (me, my_group) = (self.process.uid, self.process.gid);
        if me != 0 && (uid != KEEP && uid != me || gid != KEEP && gid != my_group) {
            return Err(EPERM);
        }
        let event = if uid == KEEP && gid == KEEP {
            0
        } else {
            libc::IN_ATTRIB
        };
        self.change_node(cx, entry, event, |node| {
            node.uid = if uid == KEEP { node.uid } else { uid };
            node.gid = if gid == KEEP { node.gid } else { gid };
        })
    }
}

pub(crate) fn sys_chmod(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let entry = k.resolve_user(cx, AT_CWD, args[0], Last::Follow)?.entry()?;
    k.change_mode(cx, &entry, args[1])
}

pub(crate) fn sys_fchmod(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let entry = k.file_entry(args[0])?;
    k.change_mode(cx, &entry, args[1])
}

pub(crate) fn sys_fchmodat(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let entry = k.resolve_user(cx, args[0], args[1], Last::Follow)?.entry()?;
    k.change_mode(cx, &entry, args[2])
}

pub(crate) fn sys_chown(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let entry = k.resolve_user(cx, AT_CWD, args[0], Last::Follow)?.entry()?;
    k.change_owner(cx, &entry, args[1], args[2])
}

pub(crate) fn sys_lchown(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let entry = k.resolve_user(cx, AT_CWD, args[0], Last::Keep)?.entry()?;
    k.change_owner(cx, &entry, args[1], args[2])
}

pub(crate) fn sys_fchown(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let entry = k.file_entry(args[0])?;
    k.change_owner(cx, &entry, args[1], args[2])
}

pub(crate) fn sys_fchownat(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let flags = args[4] as i32;
    let path = k.copy_in_path(cx, args[1])?;
    let entry = if path.is_empty() && flags & libc::AT_EMPTY_PATH != 0 {
        k.any_file_entry(args[0])?
    } else {
        let last = if flags & libc::AT_SYMLINK_NOFOLLOW != 0 {
            Last::Keep
        } else {
            Last::Follow
        };
        k.resolve_at(cx, args[0], &path, last)?.entry()?
    };
    k.change_owner(cx, &entry, args[2], args[3])
}

impl Kernel {
    /// Sets the times of the last access and change; `None` leaves one as it is.
    fn set_times(
        &mut self,
        cx: &mut Cx<'_>,
        entry: &Entry,
        accessed: Option<i64>,
        modified: Option<i64>,
    ) -> SysResult {
        let event = times_mask(accessed.is_some(), modified.is_some());
        self.change_node(cx, entry, event, |node| {
            node.accessed_ns = accessed.unwrap_or(node.accessed_ns);
            node.modified_ns = modified.unwrap_or(node.modified_ns);
        })
    }

    fn times_entry(&mut self, cx: &mut Cx<'_>, fd: u64, path: u64, flags: i32) -> Result<Entry, Errno> {
        if path == 0 {
            return self.file_entry(fd);
        }
        let last = if flags & libc::AT_SYMLINK_NOFOLLOW != 0 {
            Last::Keep
        } else {
            Last::Follow
        };
        self.resolve_user(cx, fd, path, last)?.entry()
    }
}

pub(crate) fn sys_utimensat(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let [fd, path, times, flags, ..] = *args;
    let now = k.now_ns(cx);
    let [accessed, modified] = if times == 0 {
        [Some(now), Some(now)]
    } else {
        let raw: [u8; 32] = k.copy_in_array(cx, times)?;
        let mut chosen = [None, None];
        for (n, slot) in chosen.iter_mut().enumerate() {
            *slot = match i64_at(&raw, n * 16 + 8) {
                libc::UTIME_NOW => Some(now),
                libc::UTIME_OMIT => None,
                nanoseconds => Some(timespec_ns(i64_at(&raw, n * 16), nanoseconds)? as i64),
            };
        }
        chosen
    };
    if accessed.is_none() && modified.is_none() {
        return Ok(Flow::Done(0));
    }
    let entry = k.times_entry(cx, fd, path, flags as i32)?;
    k.set_times(cx, &entry, accessed, modified)
}

/// `utimes` and `futimesat`: two `timeval`s.
fn set_timevals(k: &mut Kernel, cx: &mut Cx<'_>, fd: u64, path: u64, times: u64) -> SysResult {
    let now = k.now_ns(cx);
    let [accessed, modified] = if times == 0 {
        [now, now]
    } else {
        let raw: [u8; 32] = k.copy_in_array(cx, times)?;
        let ns = |n: usize| {
            timespec_ns(
                i64_at(&raw, n * 16),
                i64_at(&raw, n * 16 + 8).saturating_mul(1000),
            )
        };
        [ns(0)? as i64, ns(1)? as i64]
    };
    let entry = k.times_entry(cx, fd, path, 0)?;
    k.set_times(cx, &entry, Some(accessed), Some(modified))
}

pub(crate) fn sys_utimes(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    set_timevals(k, cx, AT_CWD, args[0], args[1])
}

pub(crate) fn sys_futimesat(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    set_timevals(k, cx, args[0], args[1], args[2])
}

pub(crate) fn sys_utime(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let now = k.now_ns(cx);
    let [accessed, modified] = if args[1] == 0 {
        [now, now]
    } else {
        let raw: [u8; 16] = k.copy_in_array(cx, args[1])?;
        [
            timespec_ns(i64_at(&raw, 0), 0)? as i64,
            timespec_ns(i64_at(&raw, 8), 0)? as i64,
        ]
    };
    let entry = k.times_entry(cx, AT_CWD, args[0], 0)?;
    k.set_times(cx, &entry, Some(accessed), Some(modified))
}

impl Kernel {
    fn change_directory(&mut self, vnode: Vnode) -> SysResult {
        if self.vfs.node_type(vnode)? != NodeType::Directory {
            return Err(ENOTDIR);
        }
        self.check_access(vnode, libc::X_OK)?;
        if let Vnode::Memory(number) = vnode {
            self.vfs.memory.hold(number);
        }
        if let Vnode::Memory(number) = std::mem::replace(&mut self.process.directory, vnode) {
            self.vfs.memory.release(number);
        }
        Ok(Flow::Done(0))
    }
}

pub(crate) fn sys_chdir(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let vnode = k.resolve_user(cx, AT_CWD, args[0], Last::Follow)?.existing()?;
    k.change_directory(vnode)
}

pub(crate) fn sys_fchdir(k: &mut Kernel, _cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    match k.files.get(args[0]).ok_or(EBADF)?.kind {
        FileKind::Directory(vnode) | FileKind::Path(vnode) => k.change_directory(vnode),
        _ => Err(ENOTDIR),
    }
}

pub(crate) fn sys_getcwd(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let mut path = k.path_of(k.process.directory);
    path.push(0);
    if path.len() > PATH_MAX {
        return Err(ENAMETOOLONG);
    }
    if args[1] < path.len() as u64 {
        return Err(crate::errno::ERANGE);
    }
    k.copy_out(cx, args[0], &path)?;
    Ok(Flow::Done(path.len() as u64))
}

pub(crate) fn sys_umask(k: &mut Kernel, _cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let old = std::mem::replace(&mut k.process.umask, args[0] as u32 & 0o777);
    Ok(Flow::Done(u64::from(old)))
}
