//! Pipes, and the byte queue that sockets use as well.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::{
    errno::{EAGAIN, EINVAL, ENXIO, EPIPE, Errno},
    fs::{FileKind, OpenFile},
    io::ObjectKey,
    kernel::{Cx, Flow, Kernel, SysResult, Wait},
    task::WaitKey,
    user::{STAGING_BYTES, UserSlice, total},
};

/// Capacity of a new pipe.
const PIPE_BYTES: usize = 64 << 10;
/// Writes up to this size are not mixed with others'.
const PIPE_BUF: u64 = 4096;

/// A bounded queue of bytes.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Buffer(VecDeque<u8>);

impl Buffer {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn push(&mut self, data: &[u8]) {
        self.0.extend(data);
    }

    /// Copies bytes from the front without taking them.
    pub(crate) fn peek(&self, bytes_max: usize) -> Vec<u8> {
        let (first, second) = self.0.as_slices();
        let from_first = first.len().min(bytes_max);
        let from_second = second.len().min(bytes_max - from_first);
        [&first[..from_first], &second[..from_second]].concat()
    }

    /// Takes bytes from the front.
    pub(crate) fn consume(&mut self, bytes: usize) {
        self.0.drain(..bytes.min(self.0.len()));
        if self.0.is_empty() {
            // What a burst needed is given back, so that an idle guest stays small.
            self.0.shrink_to(PIPE_BYTES);
        }
    }
}

/// A pipe.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Pipe {
    buffer: Buffer,
    capacity: usize,
    pub(crate) readers: u32,
    pub(crate) writers: u32,
    /// How often each end has been opened: who waits for a partner goes on when one has come, even if it has left.
    pub(crate) reader_openings: u32,
    pub(crate) writer_openings: u32,
}

impl Default for Pipe {
    fn default() -> Self {
        Self {
            buffer: Buffer::default(),
            capacity: PIPE_BYTES,
            readers: 0,
            writers: 0,
            reader_openings: 0,
            writer_openings: 0,
        }
    }
}

impl Pipe {
    /// A pipe whose two ends are open, once each.
    pub(crate) fn open() -> Self {
        Self {
            readers: 1,
            writers: 1,
            ..Self::default()
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.buffer.len()
    }

    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    pub(crate) fn set_capacity(&mut self, capacity: usize) {
        self.capacity = capacity;
    }

    pub(crate) fn room(&self) -> usize {
        self.capacity.saturating_sub(self.buffer.len())
    }

    pub(crate) fn peek(&self, bytes_max: usize) -> Vec<u8> {
        self.buffer.peek(bytes_max)
    }

    pub(crate) fn consume(&mut self, bytes: usize) {
        self.buffer.consume(bytes);
    }
}

impl Kernel {
    /// Opens an end of a pipe.
    pub(crate) fn open_pipe(&mut self, number: u32, flags: i32) -> Result<OpenFile, Errno> {
        let pipe = self.pipes.get_mut(number).ok_or(ENXIO)?;
        let kind = match flags & libc::O_ACCMODE {
            libc::O_RDONLY => {
                pipe.readers += 1;
                pipe.reader_openings = pipe.reader_openings.wrapping_add(1);
                FileKind::PipeReader(number)
            }
            libc::O_WRONLY if pipe.readers == 0 && flags & libc::O_NONBLOCK != 0 => return Err(ENXIO),
            libc::O_WRONLY => {
                pipe.writers += 1;
                pipe.writer_openings = pipe.writer_openings.wrapping_add(1);
                FileKind::PipeWriter(number)
            }
            libc::O_RDWR => {
                pipe.readers += 1;
                pipe.writers += 1;
                pipe.reader_openings = pipe.reader_openings.wrapping_add(1);
                pipe.writer_openings = pipe.writer_openings.wrapping_add(1);
                FileKind::PipeBoth(number)
            }
            _ => return Err(EINVAL),
        };
        self.wake_object(ObjectKey::Pipe(number));
        Ok(OpenFile::new(kind, flags & (libc::O_ACCMODE | libc::O_NONBLOCK)))
    }

    /// An end of a pipe has no descriptor left.
    pub(crate) fn close_pipe_end(&mut self, number: u32, reader: bool, writer: bool) {
        let Some(pipe) = self.pipes.get_mut(number) else {
            return;
        };
        pipe.readers -= u32::from(reader);
        pipe.writers -= u32::from(writer);
        if pipe.readers == 0 && pipe.writers == 0 {
            self.pipes.remove(number);
        } else {
            self.wake_object(ObjectKey::Pipe(number));
        }
    }

    pub(crate) fn read_pipe(
        &mut self,
        cx: &mut Cx<'_>,
        number: u32,
        slices: &[UserSlice],
    ) -> Result<crate::fs::Transfer, Errno> {
        use crate::fs::Transfer;
        let pipe = self.pipes.get(number).ok_or(EINVAL)?;
        let wanted = total(slices);
        if wanted == 0 {
            return Ok(Transfer::Bytes(0));
        }
        if pipe.buffer.is_empty() {
            let end = pipe.writers == 0;
            return Ok(if end {
                Transfer::Bytes(0)
            } else {
                Transfer::NotReady(ObjectKey::Pipe(number))
            });
        }
        let data = pipe.buffer.peek(wanted.min(STAGING_BYTES as u64) as usize);
        let placed = self.scatter(cx, slices, 0, &data)?;
        if let Some(pipe) = self.pipes.get_mut(number) {
            pipe.buffer.consume(placed as usize);
        }
        self.wake_object(ObjectKey::Pipe(number));
        Ok(Transfer::Bytes(placed))
    }

    /// Writes all, waiting for room as often as needed; a small write is never split.
    pub(crate) fn write_pipe(
        &mut self,
        cx: &mut Cx<'_>,
        number: u32,
        slices: &[UserSlice],
        nonblocking: bool,
    ) -> SysResult {
        let wanted = total(slices);
        let mut done = self.thread(cx.slot).call.as_ref().map_or(0, |call| call.progress);
        loop {
            let pipe = self.pipes.get(number).ok_or(EPIPE)?;
            if done == wanted {
                return Ok(Flow::Done(done));
            }
            if pipe.readers == 0 {
                self.signal_self(cx.slot, libc::SIGPIPE as u32);
                return if done > 0 {
                    Ok(Flow::Done(done))
                } else {
                    Err(EPIPE)
                };
            }
            let room = pipe.room() as u64;
            let left = wanted - done;
            let fits = if wanted <= PIPE_BUF {
                room >= left
            } else {
                room > 0
            };
            if !fits {
                break;
            }
            let data = self.gather(
                cx,
                slices,
                done,
                room.min(left).min(STAGING_BYTES as u64) as usize,
            )?;
            if let Some(pipe) = self.pipes.get_mut(number) {
                pipe.buffer.push(&data);
            }
            done += data.len() as u64;
            self.wake_object(ObjectKey::Pipe(number));
        }
        if let Some(answer) = self.stops_short(cx.slot, done, nonblocking) {
            return answer;
        }
        Ok(Flow::Wait(Wait::on(WaitKey::Object(ObjectKey::Pipe(number)))))
    }

    /// Puts bytes of the personality's own into a pipe, as many as fit.
    pub(crate) fn push_pipe(&mut self, number: u32, data: &[u8]) -> Result<u64, Errno> {
        let pipe = self.pipes.get_mut(number).ok_or(EPIPE)?;
        if pipe.readers == 0 {
            return Err(EPIPE);
        }
        let fits = pipe.room().min(data.len());
        if fits == 0 {
            return Err(EAGAIN);
        }
        pipe.buffer.push(&data[..fits]);
        self.wake_object(ObjectKey::Pipe(number));
        Ok(fits as u64)
    }

    fn make_pipe(&mut self, cx: &mut Cx<'_>, at: u64, flags: i32) -> SysResult {
        if flags & !(libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_DIRECT) != 0 {
            return Err(EINVAL);
        }
        let close_on_exec = flags & libc::O_CLOEXEC != 0;
        let nonblock = flags & libc::O_NONBLOCK;
        let number = self.pipes.insert(Pipe {
            readers: 1,
            writers: 1,
            ..Pipe::default()
        });
        let reader = OpenFile::new(FileKind::PipeReader(number), libc::O_RDONLY | nonblock);
        let reading = match self.install(reader, close_on_exec) {
            Ok(fd) => fd,
            Err(errno) => {
                self.pipes.remove(number);
                return Err(errno);
            }
        };
        let writer = OpenFile::new(FileKind::PipeWriter(number), libc::O_WRONLY | nonblock);
        let writing = match self.install(writer, close_on_exec) {
            Ok(fd) => fd,
            Err(errno) => {
                self.close_pipe_end(number, false, true);
                self.close(reading)?;
                return Err(errno);
            }
        };
        let pair = reading | writing << 32;
        if let Err(errno) = self.copy_out(cx, at, &pair.to_le_bytes()) {
            self.close(reading)?;
            self.close(writing)?;
            return Err(errno);
        }
        Ok(Flow::Done(0))
    }
}

pub(crate) fn sys_pipe(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    k.make_pipe(cx, args[0], 0)
}

pub(crate) fn sys_pipe2(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    k.make_pipe(cx, args[0], args[1] as i32)
}
