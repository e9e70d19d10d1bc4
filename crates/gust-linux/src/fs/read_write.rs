//! Reading and writing files of every kind.

use rand_chacha::rand_core::RngCore as _;

use crate::{
    abi::RW_BYTES_MAX,
    errno::{EAGAIN, EBADF, EFAULT, EINVAL, EISDIR, ENOSPC, EPERM, ESPIPE, Errno},
    fs::{FileKind, OpenFile, Vnode},
    io::ObjectKey,
    kernel::{Cx, Flow, Kernel, SysResult, Wait},
    task::WaitKey,
    user::{STAGING_BYTES, UserSlice, total},
};

/// Where a transfer happens in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Position {
    /// At the open file's offset, which moves.
    Current,
    /// Here; the offset stays.
    At(u64),
}

/// A blocking transfer's answer: done, or wait for the object.
#[derive(Debug)]
pub(crate) enum Transfer {
    /// This many bytes.
    Bytes(u64),
    /// None yet: wait for the object, or `EAGAIN` when the file does not block.
    NotReady(ObjectKey),
}

fn one(at: u64, bytes: u64) -> [UserSlice; 1] {
    [UserSlice {
        at,
        bytes: bytes.min(RW_BYTES_MAX),
    }]
}

/// An offset that a guest gave for a positioned transfer.
fn position(offset: u64) -> Result<Position, Errno> {
    if (offset as i64) < 0 {
        Err(EINVAL)
    } else {
        Ok(Position::At(offset))
    }
}

pub(crate) fn sys_read(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    k.read_file(cx, args[0], &one(args[1], args[2]), Position::Current, false)
}

pub(crate) fn sys_write(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    k.write_file(cx, args[0], &one(args[1], args[2]), Position::Current, false)
}

pub(crate) fn sys_readv(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let slices = k.copy_in_iovec(cx, args[1], args[2])?;
    k.read_file(cx, args[0], &slices, Position::Current, false)
}

pub(crate) fn sys_writev(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let slices = k.copy_in_iovec(cx, args[1], args[2])?;
    k.write_file(cx, args[0], &slices, Position::Current, false)
}

pub(crate) fn sys_pread64(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    k.read_file(cx, args[0], &one(args[1], args[2]), position(args[3])?, false)
}

pub(crate) fn sys_pwrite64(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    k.write_file(cx, args[0], &one(args[1], args[2]), position(args[3])?, false)
}

pub(crate) fn sys_preadv(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let slices = k.copy_in_iovec(cx, args[1], args[2])?;
    k.read_file(cx, args[0], &slices, position(args[3])?, false)
}

pub(crate) fn sys_pwritev(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let slices = k.copy_in_iovec(cx, args[1], args[2])?;
    k.write_file(cx, args[0], &slices, position(args[3])?, false)
}

/// `preadv2` and `pwritev2`: offset -1 is the current one; of the flags, only hints and `RWF_NOWAIT` are known.
fn second_form(args: &[u64; 6]) -> Result<(Position, bool), Errno> {
    const HINTS: i32 = libc::RWF_HIPRI | libc::RWF_DSYNC | libc::RWF_SYNC;
    let flags = args[5] as i32;
    if flags & !(HINTS | libc::RWF_NOWAIT) != 0 {
        return Err(crate::errno::EOPNOTSUPP);
    }
    let at = if args[3] == u64::MAX {
        Position::Current
    } else {
        position(args[3])?
    };
    Ok((at, flags & libc::RWF_NOWAIT != 0))
}

pub(crate) fn sys_preadv2(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let (at, nowait) = second_form(args)?;
    let slices = k.copy_in_iovec(cx, args[1], args[2])?;
    k.read_file(cx, args[0], &slices, at, nowait)
}

pub(crate) fn sys_pwritev2(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let (at, nowait) = second_form(args)?;
    let slices = k.copy_in_iovec(cx, args[1], args[2])?;
    k.write_file(cx, args[0], &slices, at, nowait)
}

impl Kernel {
    /// An open file for a transfer at a place.
    fn file_at(
        &self,
        fd: u64,
        at: Position,
        bytes: u64,
        is_open_for: impl FnOnce(&OpenFile) -> bool,
    ) -> Result<&OpenFile, Errno> {
        let file = self.files.get(fd).ok_or(EBADF)?;
        if let Position::At(offset) = at {
            if file.kind.is_stream() {
                return Err(ESPIPE);
            }
            if offset.saturating_add(bytes) > i64::MAX as u64 {
                return Err(EINVAL);
            }
        }
        match is_open_for(file) {
            true => Ok(file),
            false => Err(EBADF),
        }
    }

    /// A transfer that cannot go on for now: its answer if it gives up, which is what it has done, if anything. Otherwise that
    /// is remembered for when the call is made again.
    pub(crate) fn stops_short(&mut self, slot: usize, done: u64, gives_up: bool) -> Option<SysResult> {
        if gives_up {
            return Some(if done > 0 {
                Ok(Flow::Done(done))
            } else {
                Err(EAGAIN)
            });
        }
        if let Some(call) = &mut self.thread_mut(slot).call {
            call.progress = done;
        }
        None
    }

    /// Reads into guest buffers.
    pub(crate) fn read_file(
        &mut self,
        cx: &mut Cx<'_>,
        fd: u64,
        slices: &[UserSlice],
        at: Position,
        nowait: bool,
    ) -> SysResult {
        let came = self.read_any_file(cx, fd, slices, at, nowait);
        if let Ok(Flow::Done(1..)) = came {
            self.tell_file(fd, libc::IN_ACCESS);
        }
        came
    }

    fn read_any_file(
        &mut self,
        cx: &mut Cx<'_>,
        fd: u64,
        slices: &[UserSlice],
        at: Position,
        nowait: bool,
    ) -> SysResult {
        let file = self.file_at(fd, at, total(slices), OpenFile::readable)?;
        let nonblocking = nowait || file.nonblocking();
        let (kind, current) = (file.kind.clone(), file.offset);
        let offset = match at {
            Position::Current => current,
            Position::At(offset) => offset,
        };
        let transfer = match kind {
            FileKind::Regular(vnode) => Transfer::Bytes(self.read_regular(cx, vnode, slices, offset)?),
            FileKind::Text(_, text) => {
                let start = (offset as usize).min(text.len());
                Transfer::Bytes(self.scatter(cx, slices, 0, &text[start..])?)
            }
            FileKind::Directory(_) => return Err(EISDIR),
            FileKind::Path(_) => return Err(EBADF),
            FileKind::Null | FileKind::Output(_) => Transfer::Bytes(0),
            FileKind::Zero | FileKind::Full => Transfer::Bytes(self.fill(cx, slices, |_, _| {})?),
            FileKind::Random => {
                Transfer::Bytes(self.fill(cx, slices, |k, piece| k.random.fill_bytes(piece))?)
            }
            FileKind::PipeReader(pipe) | FileKind::PipeBoth(pipe) => self.read_pipe(cx, pipe, slices)?,
            FileKind::PipeWriter(_) => return Err(EBADF),
            FileKind::EventFd(number) => self.read_event(cx, number, slices)?,
            FileKind::TimerFd(number) => self.read_timer(cx, number, slices)?,
            FileKind::SignalFd(number) => self.read_signals(cx, number, slices)?,
            FileKind::Inotify(number) => self.read_inotify(cx, number, slices)?,
            FileKind::Socket(number) => return self.read_socket(cx, number, slices, nonblocking),
            FileKind::Epoll(_) => return Err(EINVAL),
            FileKind::Runtime => self.read_runtime(cx, slices)?,
        };
        self.finish_transfer(fd, transfer, at, nonblocking)
    }

    /// Moves the offset, or waits.
    fn finish_transfer(&mut self, fd: u64, transfer: Transfer, at: Position, nonblocking: bool) -> SysResult {
        match transfer {
            Transfer::Bytes(bytes) => {
                if let (Position::Current, Some(file)) = (at, self.files.get_mut(fd)) {
                    file.offset = file.offset.saturating_add(bytes);
                }
                Ok(Flow::Done(bytes))
            }
            Transfer::NotReady(_) if nonblocking => Err(EAGAIN),
            Transfer::NotReady(key) => Ok(Flow::Wait(Wait::on(WaitKey::Object(key)))),
        }
    }

    fn read_regular(
        &mut self,
        cx: &mut Cx<'_>,
        vnode: Vnode,
        slices: &[UserSlice],
        offset: u64,
    ) -> Result<u64, Errno> {
        if let Vnode::Memory(_) = vnode {
            self.write_back_file(cx, vnode);
        }
        let wanted = total(slices).min(self.vfs.size_of(vnode).saturating_sub(offset));
        if let Some(data) = self.vfs.image_contents(vnode) {
            // The image's bytes are shared, not copied, so they can be handed out without a buffer.
            let start = (offset as usize).min(data.len());
            let end = start.saturating_add(wanted as usize).min(data.len());
            return self.scatter(cx, slices, 0, &data.as_ref()[start..end]);
        }
        let mut done = 0;
        let mut buffer = vec![0; (wanted as usize).min(STAGING_BYTES)];
        while done < wanted {
            let piece = buffer.len().min((wanted - done) as usize);
            let read = self.vfs.read_memory(vnode, offset + done, &mut buffer[..piece]);
            if read == 0 {
                break;
            }
            match self.scatter(cx, slices, done, &buffer[..read]) {
                Ok(placed) => {
                    done += placed;
                    if placed < read as u64 {
                        break;
                    }
                }
                Err(errno) if done == 0 => return Err(errno),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    /// Fills guest buffers piece by piece.
    fn fill(
        &mut self,
        cx: &mut Cx<'_>,
        slices: &[UserSlice],
        mut make: impl FnMut(&mut Self, &mut [u8]),
    ) -> Result<u64, Errno> {
        let wanted = total(slices);
        let mut buffer = vec![0; (wanted as usize).min(STAGING_BYTES)];
        let mut done = 0;
        while done < wanted {
            let piece = buffer.len().min((wanted - done) as usize);
            make(self, &mut buffer[..piece]);
            match self.scatter(cx, slices, done, &buffer[..piece]) {
                Ok(0) => break,
                Ok(placed) => done += placed,
                Err(errno) if done == 0 => return Err(errno),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    /// Writes from guest buffers.
    pub(crate) fn write_file(
        &mut self,
        cx: &mut Cx<'_>,
        fd: u64,
        slices: &[UserSlice],
        at: Position,
        nowait: bool,
    ) -> SysResult {
        let came = self.write_any_file(cx, fd, slices, at, nowait);
        if let Ok(Flow::Done(1..)) = came {
            self.tell_file(fd, libc::IN_MODIFY);
        }
        came
    }

    fn write_any_file(
        &mut self,
        cx: &mut Cx<'_>,
        fd: u64,
        slices: &[UserSlice],
        at: Position,
        nowait: bool,
    ) -> SysResult {
        let file = self.file_at(fd, at, total(slices), OpenFile::writable)?;
        let nonblocking = nowait || file.nonblocking();
        let (kind, flags, current) = (file.kind.clone(), file.flags, file.offset);
        let transfer = match kind {
            FileKind::Regular(vnode) => {
                let append = flags & libc::O_APPEND != 0;
                let offset = match at {
                    _ if append => self.vfs.size_of(vnode),
                    Position::Current => current,
                    Position::At(offset) => offset,
                };
                let written = self.write_regular(cx, vnode, slices, offset)?;
                if let (Position::Current, Some(file)) = (at, self.files.get_mut(fd)) {
                    file.offset = offset + written;
                }
                return Ok(Flow::Done(written));
            }
            FileKind::Directory(_) | FileKind::Path(_) | FileKind::PipeReader(_) | FileKind::Inotify(_) => {
                return Err(EBADF);
            }
            FileKind::Text(..) => Transfer::Bytes(total(slices)),
            FileKind::Null | FileKind::Zero | FileKind::Random => Transfer::Bytes(total(slices)),
            FileKind::Full => return Err(ENOSPC),
            FileKind::Output(stream) => Transfer::Bytes(self.for_gathered(cx, slices, |_, cx, data| {
                cx.host.output(stream, data);
                Ok(())
            })?),
            FileKind::PipeWriter(pipe) | FileKind::PipeBoth(pipe) => {
                return self.write_pipe(cx, pipe, slices, nonblocking);
            }
            FileKind::EventFd(number) => self.write_event(cx, number, slices)?,
            FileKind::TimerFd(_) | FileKind::SignalFd(_) | FileKind::Epoll(_) => return Err(EINVAL),
            FileKind::Socket(number) => return self.write_socket(cx, number, slices, nonblocking),
            FileKind::Runtime => return self.write_runtime(cx, slices),
        };
        self.finish_transfer(fd, transfer, at, nonblocking)
    }

    /// Hands guest data to `take`, piece by piece; gives how much was taken before the first failure, and the failure
    /// itself when nothing was.
    fn for_gathered(
        &mut self,
        cx: &mut Cx<'_>,
        slices: &[UserSlice],
        mut take: impl FnMut(&mut Self, &mut Cx<'_>, &[u8]) -> Result<(), Errno>,
    ) -> Result<u64, Errno> {
        let wanted = total(slices);
        let mut done = 0;
        while done < wanted {
            let step = match self.gather(cx, slices, done, STAGING_BYTES) {
                Ok(data) if data.is_empty() => Err(EFAULT),
                Ok(data) => take(self, cx, &data).map(|()| data.len() as u64),
                Err(errno) => Err(errno),
            };
            match step {
                Ok(taken) => done += taken,
                Err(errno) if done == 0 => return Err(errno),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    fn write_regular(
        &mut self,
        cx: &mut Cx<'_>,
        vnode: Vnode,
        slices: &[UserSlice],
        offset: u64,
    ) -> Result<u64, Errno> {
        let Vnode::Memory(number) = vnode else {
            return Err(EBADF);
        };
        const SEALED: i32 = libc::F_SEAL_WRITE | libc::F_SEAL_FUTURE_WRITE;
        let node = self.vfs.memory.get(number)?;
        let grows = offset.saturating_add(total(slices)) > self.vfs.size_of(vnode);
        if total(slices) == 0 {
            return Ok(0);
        }
        if node.seals as i32 & SEALED != 0 || grows && node.seals as i32 & libc::F_SEAL_GROW != 0 {
            return Err(EPERM);
        }
        self.write_back_file(cx, vnode);
        let now = self.now_ns(cx);
        let mut at = offset;
        let written = self.for_gathered(cx, slices, |k, cx, data| {
            k.vfs.memory.write(number, at, data)?;
            k.write_through(cx, vnode, at, data);
            at += data.len() as u64;
            Ok(())
        })?;
        let node = self.vfs.memory.get_mut(number)?;
        (node.modified_ns, node.changed_ns) = (now, now);
        self.check_memory(cx);
        Ok(written)
    }

    /// Bytes of a file from a place on: what a copy that lengthens the file itself must not go past.
    fn bytes_from(&self, (fd, at): (u64, Option<u64>)) -> u64 {
        let file = self.files.get(fd);
        let left = file.and_then(|file| {
            let size = self.vfs.size_of(file.kind.vnode()?);
            Some(size.saturating_sub(at.unwrap_or(file.offset)))
        });
        left.unwrap_or(0)
    }

    /// Whether a copy would read what it writes: both ranges lie in one file and have bytes in common.
    fn overlaps(&self, from: (u64, Option<u64>), to: (u64, Option<u64>), bytes: u64) -> bool {
        let place = |(fd, at): (u64, Option<u64>)| {
            let file = self.files.get(fd)?;
            Some((file.kind.vnode()?, at.unwrap_or(file.offset)))
        };
        let (Some((source, start)), Some((sink, at))) = (place(from), place(to)) else {
            return false;
        };
        source == sink && at < start.saturating_add(bytes) && start < at.saturating_add(bytes)
    }

    /// Copies between two files inside the personality.
    fn copy_between(
        &mut self,
        cx: &mut Cx<'_>,
        from: (u64, Option<u64>),
        to: (u64, Option<u64>),
        bytes: u64,
    ) -> Result<u64, Errno> {
        let source = self
            .files
            .get(from.0)
            .filter(|file| file.readable())
            .ok_or(EBADF)?;
        let FileKind::Regular(vnode) = source.kind else {
            return Err(EINVAL);
        };
        let mut offset = from.1.unwrap_or(source.offset);
        let mut done = 0;
        let mut buffer = vec![0; (bytes as usize).min(STAGING_BYTES)];
        while done < bytes {
            let piece = buffer.len().min((bytes - done) as usize);
            let read = self.vfs.read_any(vnode, offset, &mut buffer[..piece]);
            if read == 0 {
                break;
            }
            let sink_at = to.1.map(|at| at + done);
            let written = match self.write_from_kernel(cx, to.0, sink_at, &buffer[..read]) {
                Ok(written) => written,
                Err(errno) if done == 0 => return Err(errno),
                Err(_) => break,
            };
            done += written;
            offset += written;
            if written < read as u64 {
                break;
            }
        }
        if from.1.is_none()
            && let Some(file) = self.files.get_mut(from.0)
        {
            file.offset = offset;
        }
        if done > 0 {
            self.tell_file(from.0, libc::IN_ACCESS);
            self.tell_file(to.0, libc::IN_MODIFY);
        }
        Ok(done)
    }

    /// Waits until a full pipe or socket takes more, unless it is not to wait.
    fn wait_for_room(&mut self, cx: &mut Cx<'_>, fd: u64) -> SysResult {
        let file = self.files.get(fd).ok_or(EBADF)?;
        if file.nonblocking() || self.timed_out(cx.slot) {
            return Err(EAGAIN);
        }
        if let FileKind::Socket(number) = file.kind {
            let timeout_ns = self.socket(number)?.send_timeout_ns;
            return self.wait_for_socket(cx, number, timeout_ns);
        }
        let object = file.kind.object().ok_or(EAGAIN)?;
        Ok(Flow::Wait(Wait::on(WaitKey::Object(object))))
    }

    /// Writes bytes of the personality's own to a file; never blocks.
    fn write_from_kernel(
        &mut self,
        cx: &mut Cx<'_>,
        fd: u64,
        at: Option<u64>,
        data: &[u8],
    ) -> Result<u64, Errno> {
        let file = self.files.get(fd).filter(|file| file.writable()).ok_or(EBADF)?;
        let (kind, current) = (file.kind.clone(), file.offset);
        match kind {
            FileKind::Regular(vnode) => {
                let Vnode::Memory(number) = vnode else {
                    return Err(EBADF);
                };
                let offset = at.unwrap_or(current);
                self.vfs.memory.write(number, offset, data)?;
                self.write_through(cx, vnode, offset, data);
                if at.is_none()
                    && let Some(file) = self.files.get_mut(fd)
                {
                    file.offset = offset + data.len() as u64;
                }
                Ok(data.len() as u64)
            }
            FileKind::Null => Ok(data.len() as u64),
            FileKind::Output(stream) => {
                cx.host.output(stream, data);
                Ok(data.len() as u64)
            }
            FileKind::PipeWriter(pipe) | FileKind::PipeBoth(pipe) => self.push_pipe(pipe, data),
            FileKind::Socket(number) => self.push_socket(cx, number, data),
            _ => Err(EINVAL),
        }
    }
}

pub(crate) fn sys_sendfile(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let [to, from, offset, bytes, ..] = *args;
    let start = if offset == 0 {
        None
    } else {
        let start = k.copy_in_u64(cx, offset)?;
        if (start as i64) < 0 || start.checked_add(bytes).is_none_or(|end| end > i64::MAX as u64) {
            return Err(EINVAL);
        }
        Some(start)
    };
    if (bytes as i64) < 0
        || k.files
            .get(to)
            .is_some_and(|file| file.flags & libc::O_APPEND != 0)
    {
        return Err(EINVAL);
    }
    let copied = match k.copy_between(cx, (from, start), (to, None), bytes.min(RW_BYTES_MAX)) {
        Err(EAGAIN) => return k.wait_for_room(cx, to),
        copied => copied?,
    };
    if let Some(start) = start {
        k.copy_out(cx, offset, &(start + copied).to_le_bytes())?;
    }
    Ok(Flow::Done(copied))
}

pub(crate) fn sys_copy_file_range(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let [from, from_at, to, to_at, bytes, flags] = *args;
    if flags != 0 {
        return Err(EINVAL);
    }
    let mut start = |at: u64| {
        if at == 0 {
            Ok(None)
        } else {
            k.copy_in_u64(cx, at).map(Some)
        }
    };
    let (source, sink) = (start(from_at)?, start(to_at)?);
    if !matches!(k.files.get(to).ok_or(EBADF)?.kind, FileKind::Regular(_)) {
        return Err(EINVAL);
    }
    let bytes = k.bytes_from((from, source)).min(bytes).min(RW_BYTES_MAX);
    if k.overlaps((from, source), (to, sink), bytes) {
        return Err(EINVAL);
    }
    let copied = k.copy_between(cx, (from, source), (to, sink), bytes)?;
    for (at, start) in [(from_at, source), (to_at, sink)] {
        if let Some(start) = start {
            k.copy_out(cx, at, &(start + copied).to_le_bytes())?;
        }
    }
    Ok(Flow::Done(copied))
}
