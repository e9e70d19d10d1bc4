//! Open files and the descriptors that name them.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{
    errno::{EBADF, EMFILE, ENFILE, Errno},
    fs::{Entry, HeldFile, Vnode, lock::Lock, owner::Owner, range_lock::RangeLocks, synthetic::Device},
    host::Stream,
    io::ObjectKey,
    kernel::Kernel,
    slab::Slab,
    task::WaitKey,
};

/// Most descriptors: Lambda's limit of open files.
pub(crate) const FILES_MAX: u64 = 1024;

/// Most open files, those included that only a waiting call holds.
pub(super) const OPEN_MAX: usize = 4096;

/// What an open file is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum FileKind {
    /// A regular file.
    Regular(Vnode),
    /// A directory; the offset is a position in it.
    Directory(Vnode),
    /// Opened with `O_PATH`.
    Path(Vnode),
    /// A synthetic file: the text it had when it was opened.
    Text(Vnode, Arc<[u8]>),
    /// `/dev/null`
    Null,
    /// `/dev/zero`
    Zero,
    /// `/dev/full`
    Full,
    /// `/dev/random`, `/dev/urandom`
    Random,
    /// `/dev/gust`
    Runtime,
    /// Standard output or error, which ends outside.
    Output(Stream),
    /// The reading end of a pipe.
    PipeReader(u32),
    /// The writing end of a pipe.
    PipeWriter(u32),
    /// Both ends of a named pipe.
    PipeBoth(u32),
    /// An event counter.
    EventFd(u32),
    /// An epoll instance.
    Epoll(u32),
    /// A timer.
    TimerFd(u32),
    /// Pending signals.
    SignalFd(u32),
    /// What happens to files.
    Inotify(u32),
    /// A socket.
    Socket(u32),
}

/// What two open files have in common when they are of one file: its node, or its object.
pub(crate) type FileIdentity = (Option<Vnode>, Option<ObjectKey>);

impl FileKind {
    /// The node in the tree that the file was opened at, if any.
    pub(crate) fn vnode(&self) -> Option<Vnode> {
        match self {
            Self::Regular(vnode) | Self::Directory(vnode) | Self::Path(vnode) | Self::Text(vnode, _) => {
                Some(*vnode)
            }
            Self::Null => device_node("dev/null"),
            Self::Zero => device_node("dev/zero"),
            Self::Full => device_node("dev/full"),
            Self::Random => device_node("dev/urandom"),
            Self::Runtime => device_node("dev/gust"),
            Self::Output(_)
            | Self::PipeReader(_)
            | Self::PipeWriter(_)
            | Self::PipeBoth(_)
            | Self::EventFd(_)
            | Self::Epoll(_)
            | Self::TimerFd(_)
            | Self::SignalFd(_)
            | Self::Inotify(_)
            | Self::Socket(_) => None,
        }
    }

    /// What it has in common with other openings of the same file.
    pub(crate) fn identity(&self) -> FileIdentity {
        (self.vnode(), self.object())
    }

    /// The object whose readiness the file has.
    pub(crate) fn object(&self) -> Option<ObjectKey> {
        match self {
            Self::PipeReader(number) | Self::PipeWriter(number) | Self::PipeBoth(number) => {
                Some(ObjectKey::Pipe(*number))
            }
            Self::EventFd(number) => Some(ObjectKey::EventFd(*number)),
            Self::Epoll(number) => Some(ObjectKey::Epoll(*number)),
            Self::TimerFd(number) => Some(ObjectKey::TimerFd(*number)),
            Self::SignalFd(number) => Some(ObjectKey::SignalFd(*number)),
            Self::Inotify(number) => Some(ObjectKey::Inotify(*number)),
            Self::Socket(number) => Some(ObjectKey::Socket(*number)),
            Self::Runtime => Some(ObjectKey::Runtime),
            Self::Regular(_)
            | Self::Directory(_)
            | Self::Path(_)
            | Self::Text(..)
            | Self::Null
            | Self::Zero
            | Self::Full
            | Self::Random
            | Self::Output(_) => None,
        }
    }

    /// Whether the file has no positions to read or write at.
    pub(crate) fn is_stream(&self) -> bool {
        self.object().is_some() || matches!(self, Self::Output(_))
    }

    /// Whether positions can be counted from the end: not in made-up texts, nor in directories of names.
    pub(crate) fn has_end(&self) -> bool {
        match self {
            Self::Text(..) => false,
            Self::Directory(vnode) => matches!(vnode, Vnode::Synthetic(_) | Vnode::Task(_)),
            _ => true,
        }
    }

    pub(crate) fn from_device(device: Device) -> Option<Self> {
        match device {
            Device::Null => Some(Self::Null),
            Device::Zero => Some(Self::Zero),
            Device::Full => Some(Self::Full),
            Device::Random => Some(Self::Random),
            Device::Runtime => Some(Self::Runtime),
            Device::Terminal => None,
        }
    }
}

fn device_node(path: &str) -> Option<Vnode> {
    super::synthetic::number_of(path).map(Vnode::Synthetic)
}

/// An open file: what descriptors that were duplicated share.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct OpenFile {
    pub(crate) kind: FileKind,
    /// Access mode and status flags (`O_*`).
    pub(crate) flags: i32,
    pub(crate) offset: u64,
    /// The path that a regular file was opened by, for `/proc`.
    pub(crate) path: Option<Arc<[u8]>>,
    /// The name that it was opened by, where that is one of a directory.
    pub(crate) entry: Option<Entry>,
    /// Its opening has been told of: only then is its closing.
    pub(crate) announced: bool,
    /// Of a directory in memory: the name that was listed last, and the offset after it.
    pub(crate) cursor: Option<(u64, Arc<[u8]>)>,
    /// `flock`
    pub(crate) lock: Option<Lock>,
    /// Whom it tells when it becomes ready.
    pub(crate) owner: Owner,
    /// Descriptors and calls in progress that refer to it.
    pub(super) references: u32,
}

impl OpenFile {
    pub(crate) fn new(kind: FileKind, flags: i32) -> Self {
        Self {
            kind,
            flags,
            offset: 0,
            path: None,
            entry: None,
            announced: false,
            cursor: None,
            lock: None,
            owner: Owner::default(),
            references: 0,
        }
    }

    pub(crate) fn readable(&self) -> bool {
        let mode = self.flags & libc::O_ACCMODE;
        self.flags & libc::O_PATH == 0 && (mode == libc::O_RDONLY || mode == libc::O_RDWR)
    }

    pub(crate) fn writable(&self) -> bool {
        let mode = self.flags & libc::O_ACCMODE;
        self.flags & libc::O_PATH == 0 && (mode == libc::O_WRONLY || mode == libc::O_RDWR)
    }

    pub(crate) fn nonblocking(&self) -> bool {
        self.flags & libc::O_NONBLOCK != 0
    }
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Descriptor {
    pub(super) file: u32,
    pub(super) close_on_exec: bool,
}

/// All open files and descriptors.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Files {
    /// Descriptors from this one on cannot be had (`RLIMIT_NOFILE`).
    pub(crate) limit: u64,
    pub(super) open: Slab<OpenFile>,
    descriptors: Vec<Option<Descriptor>>,
    /// How many of the open files have `O_ASYNC`.
    pub(crate) asynchronous: u32,
    /// Locks of ranges.
    pub(super) ranges: RangeLocks,
    /// While a call is made again: the descriptor that it began with, and the file that this was then.
    #[serde(skip)]
    pub(crate) begun_with: Option<HeldFile>,
    /// While files of messages are let go: those still to come, and that someone is at it.
    #[serde(skip)]
    pub(super) dropped: Vec<u32>,
    #[serde(skip)]
    pub(super) dropping: bool,
}

impl Default for Files {
    fn default() -> Self {
        Self {
            limit: FILES_MAX,
            open: Slab::default(),
            descriptors: Vec::new(),
            asynchronous: 0,
            ranges: RangeLocks::default(),
            begun_with: None,
            dropped: Vec::new(),
            dropping: false,
        }
    }
}

impl Files {
    fn descriptor(&self, fd: u64) -> Option<Descriptor> {
        // Descriptors are ints: the upper half of the register is not looked at.
        if let Some(file) = self.begun_with.and_then(|held| held.file_of(fd as u32)) {
            return Some(Descriptor {
                file,
                close_on_exec: false,
            });
        }
        *self.descriptors.get(usize::try_from(fd as u32).ok()?)?
    }

    /// The open file behind a descriptor.
    pub(crate) fn get(&self, fd: u64) -> Option<&OpenFile> {
        self.open.get(self.descriptor(fd)?.file)
    }

    /// The open file behind a descriptor that is good for more than naming a node: not one of `O_PATH`.
    pub(crate) fn usable(&self, fd: u64) -> Result<&OpenFile, Errno> {
        self.get(fd)
            .filter(|file| file.flags & libc::O_PATH == 0)
            .ok_or(EBADF)
    }

    /// See [`Files::get`].
    pub(crate) fn get_mut(&mut self, fd: u64) -> Option<&mut OpenFile> {
        let file = self.descriptor(fd)?.file;
        self.open.get_mut(file)
    }

    /// Number of the open file behind a descriptor.
    pub(crate) fn number(&self, fd: u64) -> Option<u32> {
        self.descriptor(fd).map(|descriptor| descriptor.file)
    }

    /// Whether a further descriptor can be had.
    pub(crate) fn has_room(&self) -> Result<(), Errno> {
        self.free_from(0).map(|_| ())
    }

    pub(super) fn free_from(&self, least: usize) -> Result<usize, Errno> {
        let free = (least..self.descriptors.len()).find(|fd| self.descriptors[*fd].is_none());
        let fd = free.unwrap_or_else(|| self.descriptors.len().max(least));
        if fd as u64 >= self.limit {
            Err(EMFILE)
        } else {
            Ok(fd)
        }
    }

    /// Opens a file under the lowest free descriptor.
    pub(crate) fn add(&mut self, file: OpenFile, close_on_exec: bool) -> Result<u64, Errno> {
        let fd = self.free_from(0)?;
        if self.open.len() >= OPEN_MAX {
            return Err(ENFILE);
        }
        let number = self.open.insert(file);
        self.set(
            fd,
            Descriptor {
                file: number,
                close_on_exec,
            },
        );
        Ok(fd as u64)
    }

    pub(super) fn set(&mut self, fd: usize, descriptor: Descriptor) {
        if self.descriptors.len() <= fd {
            self.descriptors.resize(fd + 1, None);
        }
        if let Some(file) = self.open.get_mut(descriptor.file) {
            file.references += 1;
        }
        self.descriptors[fd] = Some(descriptor);
    }

    /// A further descriptor for an open file, not below `least`.
    pub(crate) fn duplicate(&mut self, fd: u64, least: u64, close_on_exec: bool) -> Result<u64, Errno> {
        let descriptor = self.descriptor(fd).ok_or(EBADF)?;
        let free = self.free_from(least as usize)?;
        self.set(
            free,
            Descriptor {
                close_on_exec,
                ..descriptor
            },
        );
        Ok(free as u64)
    }

    /// Makes `to`, which must not be in use, name the open file of `fd`.
    pub(crate) fn duplicate_to(&mut self, fd: u64, to: u64, close_on_exec: bool) -> Result<(), Errno> {
        let descriptor = self.descriptor(fd).ok_or(EBADF)?;
        self.set(
            to as usize,
            Descriptor {
                close_on_exec,
                ..descriptor
            },
        );
        Ok(())
    }

    pub(crate) fn close_on_exec(&self, fd: u64) -> Option<bool> {
        self.descriptor(fd).map(|descriptor| descriptor.close_on_exec)
    }

    pub(crate) fn set_close_on_exec(&mut self, fd: u64, close_on_exec: bool) {
        if let Some(Some(descriptor)) = self.descriptors.get_mut(fd as u32 as usize) {
            descriptor.close_on_exec = close_on_exec;
        }
    }

    /// Takes a descriptor away; gives the open file if that was its last reference.
    fn remove(&mut self, fd: u64) -> Result<Option<(u32, OpenFile)>, Errno> {
        let slot = self.descriptors.get_mut(fd as u32 as usize).ok_or(EBADF)?;
        let descriptor = slot.take().ok_or(EBADF)?;
        Ok(self.dereference(descriptor.file))
    }

    /// Takes one reference away; gives the open file if that was the last.
    pub(super) fn dereference(&mut self, number: u32) -> Option<(u32, OpenFile)> {
        let file = self.open.get_mut(number)?;
        file.references -= 1;
        if file.references > 0 {
            return None;
        }
        self.open.remove(number).map(|file| (number, file))
    }

    pub(super) fn reference(&mut self, number: u32) {
        if let Some(file) = self.open.get_mut(number) {
            file.references += 1;
        }
    }

    pub(super) fn by_number(&self, number: u32) -> Option<&OpenFile> {
        self.open.get(number)
    }

    /// All open files, by number.
    pub(super) fn numbered(&self) -> impl Iterator<Item = (u32, &OpenFile)> {
        self.open.iter()
    }

    /// All open files.
    pub(super) fn open_files(&self) -> impl Iterator<Item = &OpenFile> {
        self.open.iter().map(|(_, file)| file)
    }

    pub(super) fn open_files_mut(&mut self) -> impl Iterator<Item = &mut OpenFile> {
        self.open.iter_mut()
    }

    /// Descriptors in use, in order.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = u32> {
        self.descriptors
            .iter()
            .enumerate()
            .filter(|(_, slot)| slot.is_some())
            .map(|(fd, _)| fd as u32)
    }
}

impl Kernel {
    /// Opens a file; what it holds is counted as held.
    pub(crate) fn install(&mut self, file: OpenFile, close_on_exec: bool) -> Result<u64, Errno> {
        let held = file.kind.vnode();
        let fd = self.files.add(file, close_on_exec)?;
        if let Some(Vnode::Memory(number)) = held {
            self.vfs.memory.hold(number);
        }
        Ok(fd)
    }

    /// Closes a descriptor. Calls of other threads that wait with it go on with its file, as on Linux.
    pub(crate) fn close(&mut self, fd: u64) -> Result<(), Errno> {
        self.hold_for_waiting_calls(fd as u32);
        self.release_process_ranges(fd);
        if let Some((number, file)) = self.files.remove(fd)? {
            self.closed(number, file);
        }
        Ok(())
    }

    /// What follows from the last reference to an open file going away.
    pub(crate) fn closed(&mut self, number: u32, file: OpenFile) {
        self.unwatch_file(number, &file);
        self.announce_closing(&file);
        if file.lock.is_some() {
            self.wake(WaitKey::Locks);
        }
        self.release_file_ranges(number, &file);
        self.files.asynchronous -= u32::from(file.flags & libc::O_ASYNC != 0);
        match file.kind {
            FileKind::PipeReader(pipe) => self.close_pipe_end(pipe, true, false),
            FileKind::PipeWriter(pipe) => self.close_pipe_end(pipe, false, true),
            FileKind::PipeBoth(pipe) => self.close_pipe_end(pipe, true, true),
            FileKind::EventFd(number) => drop(self.event_fds.remove(number)),
            FileKind::TimerFd(number) => drop(self.timer_fds.remove(number)),
            FileKind::SignalFd(number) => drop(self.signal_fds.remove(number)),
            FileKind::Inotify(number) => self.file_events.close(number),
            FileKind::Epoll(number) => self.close_epoll(number),
            FileKind::Socket(number) => self.close_socket(number),
            FileKind::Regular(Vnode::Memory(number)) => self.vfs.memory.release(number),
            FileKind::Directory(Vnode::Memory(number)) | FileKind::Path(Vnode::Memory(number)) => {
                self.vfs.memory.release(number);
            }
            FileKind::Regular(_)
            | FileKind::Directory(_)
            | FileKind::Path(_)
            | FileKind::Text(..)
            | FileKind::Null
            | FileKind::Zero
            | FileKind::Full
            | FileKind::Random
            | FileKind::Runtime
            | FileKind::Output(_) => {}
        }
    }

    /// What `/proc/self/fd/N` says of an open file.
    pub(crate) fn describe(&self, file: &OpenFile) -> Vec<u8> {
        match &file.kind {
            FileKind::Directory(vnode) => self.path_of(*vnode),
            FileKind::Regular(_) | FileKind::Path(_) | FileKind::Text(..) => {
                file.path.as_deref().unwrap_or(b"/memfd: (deleted)").to_vec()
            }
            FileKind::Null => b"/dev/null".to_vec(),
            FileKind::Zero => b"/dev/zero".to_vec(),
            FileKind::Full => b"/dev/full".to_vec(),
            FileKind::Random => b"/dev/urandom".to_vec(),
            FileKind::Runtime => b"/dev/gust".to_vec(),
            FileKind::Output(stream) => format!("pipe:[{}]", 1 + *stream as u32).into_bytes(),
            FileKind::PipeReader(number) | FileKind::PipeWriter(number) | FileKind::PipeBoth(number) => {
                format!("pipe:[{}]", 100 + number).into_bytes()
            }
            FileKind::EventFd(_) => b"anon_inode:[eventfd]".to_vec(),
            FileKind::Epoll(_) => b"anon_inode:[eventpoll]".to_vec(),
            FileKind::TimerFd(_) => b"anon_inode:[timerfd]".to_vec(),
            FileKind::SignalFd(_) => b"anon_inode:[signalfd]".to_vec(),
            FileKind::Inotify(_) => b"anon_inode:inotify".to_vec(),
            FileKind::Socket(number) => format!("socket:[{}]", 5000 + number).into_bytes(),
        }
    }

    /// Wakes who waits for an object.
    pub(crate) fn wake_object(&mut self, key: ObjectKey) {
        self.wake(WaitKey::Object(key));
        self.notify_epolls(key);
        self.signal_owners(key);
    }
}
