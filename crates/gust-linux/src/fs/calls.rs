//! System calls on descriptors.

use crate::{
    errno::{EAGAIN, EBADF, EINVAL, EMFILE, ENOTTY, EPERM, Errno},
    fs::{FileKind, Vnode},
    kernel::{Cx, Flow, Kernel, SysResult},
};

pub(crate) fn sys_close(k: &mut Kernel, _cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    k.close(args[0])?;
    Ok(Flow::Done(0))
}

pub(crate) fn sys_close_range(k: &mut Kernel, _cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let [first, last, flags, ..] = args.map(|arg| arg as u32);
    if first > last || flags & !(libc::CLOSE_RANGE_CLOEXEC | libc::CLOSE_RANGE_UNSHARE) != 0 {
        return Err(EINVAL);
    }
    let in_range: Vec<u32> = k
        .files
        .descriptors()
        .filter(|fd| (first..=last).contains(fd))
        .collect();
    for fd in in_range {
        if flags & libc::CLOSE_RANGE_CLOEXEC != 0 {
            k.files.set_close_on_exec(u64::from(fd), true);
        } else {
            k.close(u64::from(fd))?;
        }
    }
    Ok(Flow::Done(0))
}

pub(crate) fn sys_dup(k: &mut Kernel, _cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    k.files.duplicate(args[0], 0, false).map(Flow::Done)
}

impl Kernel {
    fn duplicate_over(&mut self, _cx: &mut Cx<'_>, from: u64, to: u64, close_on_exec: bool) -> SysResult {
        let to = u64::from(to as u32);
        if to >= self.files.limit {
            return Err(EBADF);
        }
        self.files.get(from).ok_or(EBADF)?;
        if self.files.get(to).is_some() {
            self.close(to)?;
        }
        self.files.duplicate_to(from, to, close_on_exec)?;
        Ok(Flow::Done(to))
    }
}

pub(crate) fn sys_dup2(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    if args[0] as u32 == args[1] as u32 {
        return k
            .files
            .get(args[0])
            .map(|_| Flow::Done(u64::from(args[1] as u32)))
            .ok_or(EBADF);
    }
    k.duplicate_over(cx, args[0], args[1], false)
}

pub(crate) fn sys_dup3(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let flags = args[2] as i32;
    if args[0] as u32 == args[1] as u32 || flags & !libc::O_CLOEXEC != 0 {
        return Err(EINVAL);
    }
    k.duplicate_over(cx, args[0], args[1], flags != 0)
}

pub(crate) fn sys_fcntl(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    const F_DUPFD_QUERY: i32 = 1024 + 3;
    const F_SETSIG: i32 = 10;
    const F_GETSIG: i32 = 11;
    const F_SETOWN_EX: i32 = 15;
    const F_GETOWN_EX: i32 = 16;
    let [fd, command, arg, ..] = *args;
    let file = k.files.get(fd).ok_or(EBADF)?;
    match command as i32 {
        libc::F_DUPFD | libc::F_DUPFD_CLOEXEC if arg >= k.files.limit => Err(EINVAL),
        libc::F_DUPFD => k.files.duplicate(fd, arg, false).map(Flow::Done),
        libc::F_DUPFD_CLOEXEC => k.files.duplicate(fd, arg, true).map(Flow::Done),
        libc::F_GETFD => Ok(Flow::Done(u64::from(k.files.close_on_exec(fd).unwrap_or(false)))),
        libc::F_SETFD => {
            k.files.set_close_on_exec(fd, arg as i32 & libc::FD_CLOEXEC != 0);
            Ok(Flow::Done(0))
        }
        libc::F_GETFL => Ok(Flow::Done(file.flags as u32 as u64)),
        _ if file.flags & libc::O_PATH != 0 => Err(EBADF),
        libc::F_SETFL => {
            const CHANGEABLE: i32 = libc::O_APPEND | libc::O_NONBLOCK | libc::O_DIRECT | libc::O_NOATIME;
            let file = k.files.get_mut(fd).ok_or(EBADF)?;
            file.flags = file.flags & !CHANGEABLE | arg as i32 & CHANGEABLE;
            k.set_async(fd, arg as i32 & libc::O_ASYNC != 0)?;
            Ok(Flow::Done(0))
        }
        libc::F_GETLK
        | libc::F_SETLK
        | libc::F_SETLKW
        | libc::F_OFD_GETLK
        | libc::F_OFD_SETLK
        | libc::F_OFD_SETLKW => k.lock_range(cx, fd, command as i32, arg),
        libc::F_GETOWN => k.owner_id(fd).map(|id| Flow::Done(i64::from(id) as u64)),
        libc::F_SETOWN => k.set_owner_id(fd, arg as i32),
        F_SETOWN_EX => k.set_owner_ex(cx, fd, arg),
        F_GETOWN_EX => k.owner_ex(cx, fd, arg),
        F_SETSIG => k.set_owner_signal(fd, arg),
        F_GETSIG => k.owner_signal(fd),
        libc::F_SETPIPE_SZ | libc::F_GETPIPE_SZ => pipe_size(k, fd, command as i32, arg),
        libc::F_ADD_SEALS | libc::F_GET_SEALS => seals(k, fd, command as i32, arg),
        F_DUPFD_QUERY => Ok(Flow::Done(u64::from(k.files.number(fd) == k.files.number(arg)))),
        _ => Err(EINVAL),
    }
}

fn pipe_size(k: &mut Kernel, fd: u64, command: i32, bytes: u64) -> SysResult {
    const PIPE_BYTES_MAX: u64 = 1 << 20;
    let file = k.files.get(fd).ok_or(EBADF)?;
    let (FileKind::PipeReader(pipe) | FileKind::PipeWriter(pipe) | FileKind::PipeBoth(pipe)) = file.kind
    else {
        return Err(EBADF);
    };
    let pipe = k.pipes.get_mut(pipe).ok_or(EBADF)?;
    if command == libc::F_SETPIPE_SZ {
        // The size is an unsigned int; no power of two above 2^31 fits one.
        let bytes = u64::from(bytes as u32);
        if bytes > 1 << 31 {
            return Err(EINVAL);
        }
        if bytes > PIPE_BYTES_MAX {
            return Err(EPERM);
        }
        let wanted = bytes.max(4096).next_power_of_two() as usize;
        if wanted < pipe.len() {
            return Err(crate::errno::EBUSY);
        }
        pipe.set_capacity(wanted);
    }
    Ok(Flow::Done(pipe.capacity() as u64))
}

fn seals(k: &mut Kernel, fd: u64, command: i32, seals: u64) -> SysResult {
    const KNOWN: u32 = 0x3f;
    let file = k.files.get(fd).ok_or(EBADF)?;
    let writable = file.writable();
    let FileKind::Regular(Vnode::Memory(number)) = file.kind else {
        return Err(EINVAL);
    };
    let node = k.vfs.memory.get_mut(number)?;
    if command == libc::F_ADD_SEALS {
        if !writable || node.seals & libc::F_SEAL_SEAL as u32 != 0 {
            return Err(EPERM);
        }
        if seals as u32 & !KNOWN != 0 {
            return Err(EINVAL);
        }
        let (added, memory) = (seals as u32, Vnode::Memory(number));
        if added & libc::F_SEAL_WRITE as u32 != 0 && k.mm.is_mapped_writable(memory) {
            return Err(crate::errno::EBUSY);
        }
        k.vfs.memory.get_mut(number)?.seals |= added;
        return Ok(Flow::Done(0));
    }
    Ok(Flow::Done(u64::from(node.seals)))
}

pub(crate) fn sys_ioctl(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let [fd, request, arg, ..] = *args;
    const FIOASYNC: libc::c_ulong = 0x5452;
    let number = k.files.usable(fd)?.kind.object();
    match request as u32 as libc::c_ulong {
        libc::FIOCLEX | libc::FIONCLEX => {
            k.files
                .set_close_on_exec(fd, request as libc::c_ulong == libc::FIOCLEX);
            Ok(Flow::Done(0))
        }
        libc::FIONBIO => {
            let on = k.copy_in_u32(cx, arg)? != 0;
            let file = k.files.get_mut(fd).ok_or(EBADF)?;
            file.flags = if on {
                file.flags | libc::O_NONBLOCK
            } else {
                file.flags & !libc::O_NONBLOCK
            };
            Ok(Flow::Done(0))
        }
        FIOASYNC => {
            let on = k.copy_in_u32(cx, arg)? != 0;
            number.ok_or(ENOTTY)?;
            k.set_async(fd, on)?;
            Ok(Flow::Done(0))
        }
        libc::FIONREAD if number.is_some() => {
            let bytes = k.readable_bytes(fd)?;
            k.copy_out(cx, arg, &(bytes.min(i32::MAX as u64) as u32).to_le_bytes())?;
            Ok(Flow::Done(0))
        }
        libc::FIONREAD => match k.files.get(fd).ok_or(EBADF)?.kind {
            FileKind::Regular(vnode) => {
                let file_offset = k.files.get(fd).map_or(0, |file| file.offset);
                let left = k.vfs.size_of(vnode).saturating_sub(file_offset);
                k.copy_out(cx, arg, &(left.min(i32::MAX as u64) as u32).to_le_bytes())?;
                Ok(Flow::Done(0))
            }
            _ => Err(ENOTTY),
        },
        other => k.socket_ioctl(cx, fd, other, arg),
    }
}

/// Everything is in memory, so there is nothing to flush; the descriptor must be one that could be.
pub(crate) fn sys_fsync(k: &mut Kernel, _cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    match k.files.usable(args[0])?.kind {
        FileKind::Regular(_) | FileKind::Directory(_) => Ok(Flow::Done(0)),
        _ => Err(EINVAL),
    }
}

/// There is nothing to write back; the descriptor must be one of a file system.
pub(crate) fn sys_syncfs(k: &mut Kernel, _cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    k.files.usable(args[0])?;
    Ok(Flow::Done(0))
}

/// Everything that can be read ahead is in memory.
pub(crate) fn sys_readahead(k: &mut Kernel, _cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let file = k.files.usable(args[0])?;
    if !file.readable() {
        return Err(EBADF);
    }
    match file.kind {
        FileKind::Regular(_) => Ok(Flow::Done(0)),
        _ => Err(EINVAL),
    }
}

pub(crate) fn sys_sync(_k: &mut Kernel, _cx: &mut Cx<'_>, _args: &[u64; 6]) -> SysResult {
    Ok(Flow::Done(0))
}

pub(crate) fn sys_fadvise64(k: &mut Kernel, _cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    if k.files.usable(args[0])?.kind.is_stream() {
        return Err(crate::errno::ESPIPE);
    }
    if args[3] > 5 || (args[2] as i64) < 0 {
        Err(EINVAL)
    } else {
        Ok(Flow::Done(0))
    }
}

/// `fanotify`, which could hold up accesses; `inotify` tells what programs ask for.
pub(crate) fn sys_fanotify_refused(_k: &mut Kernel, _cx: &mut Cx<'_>, _args: &[u64; 6]) -> SysResult {
    Err(EMFILE)
}

pub(crate) fn sys_getrandom(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    use rand_chacha::rand_core::RngCore as _;
    /// Most bytes that one call gives, as for a read of the device.
    const BYTES_MAX: u64 = 32 << 20;
    let [buffer, bytes, flags, ..] = *args;
    if flags as u32 & !(libc::GRND_NONBLOCK | libc::GRND_RANDOM | libc::GRND_INSECURE) != 0 {
        return Err(EINVAL);
    }
    let bytes = bytes.min(BYTES_MAX);
    let mut done = 0;
    let mut staging = [0; 4096];
    while done < bytes {
        let piece = (bytes - done).min(4096) as usize;
        k.random.fill_bytes(&mut staging[..piece]);
        match k.copy_out(cx, buffer + done, &staging[..piece]) {
            Ok(()) => done += piece as u64,
            Err(errno) if done == 0 => return Err(errno),
            Err(_) => break,
        }
    }
    Ok(Flow::Done(done))
}

impl Kernel {
    /// Bytes that a read would give at once.
    fn readable_bytes(&self, fd: u64) -> Result<u64, Errno> {
        match self.files.get(fd).ok_or(EBADF)?.kind {
            FileKind::PipeReader(pipe) | FileKind::PipeWriter(pipe) | FileKind::PipeBoth(pipe) => {
                Ok(self.pipes.get(pipe).map_or(0, |pipe| pipe.len() as u64))
            }
            FileKind::Socket(number) => self.socket_readable_bytes(number),
            FileKind::Inotify(number) => Ok(self.file_events.queued_bytes(number)),
            FileKind::EventFd(_)
            | FileKind::TimerFd(_)
            | FileKind::SignalFd(_)
            | FileKind::Epoll(_)
            | FileKind::Runtime => Err(ENOTTY),
            _ => Err(EAGAIN),
        }
    }
}

/// `name_to_handle_at` and the like: no file system here has handles.
pub(crate) fn not_supported_here(_k: &mut Kernel, _cx: &mut Cx<'_>, _args: &[u64; 6]) -> SysResult {
    Err(crate::errno::EOPNOTSUPP)
}
