//! Opening files.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    errno::{EEXIST, EINVAL, EISDIR, ELOOP, ENOENT, ENOTDIR, ENXIO, EOPNOTSUPP, EROFS, Errno},
    fs::{
        Entry, FileKind, HeldFile, NodeType, OpenFile, Vfs, Vnode,
        memory::{Kind, Maker},
        path::{Last, Resolved},
        synthetic::{self, Synthetic},
    },
    io::ObjectKey,
    kernel::{Cx, Flow, Kernel, SysResult, Wait},
    task::WaitKey,
};

/// What the kernel adds to the flags of a file that is opened by name; 64-bit programs define it as zero.
const LARGE_FILE: i32 = 0o100_000;
/// Flags that a file opened with `O_PATH` keeps.
const KEPT_OF_PATH: i32 = libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_PATH;
/// Flags that an open file keeps.
const KEPT: i32 = libc::O_ACCMODE
    | libc::O_APPEND
    | libc::O_NONBLOCK
    | libc::O_DSYNC
    | libc::O_SYNC
    | libc::O_DIRECT
    | libc::O_NOATIME
    | libc::O_DIRECTORY
    | libc::O_NOFOLLOW
    | libc::O_PATH;

pub(crate) fn sys_open(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    k.open_path(cx, libc::AT_FDCWD as u64, args[0], args[1] as i32, args[2] as u32)
}

pub(crate) fn sys_openat(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    k.open_path(cx, args[0], args[1], args[2] as i32, args[3] as u32)
}

pub(crate) fn sys_creat(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let flags = libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC;
    k.open_path(cx, libc::AT_FDCWD as u64, args[0], flags, args[1] as u32)
}

/// `openat2`: the flags of `openat` in a structure; resolution limits are refused rather than ignored.
pub(crate) fn sys_openat2(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let [fd, path, how, size, ..] = *args;
    if size < 24 {
        return Err(EINVAL);
    }
    let how: [u8; 24] = k.copy_in_array(cx, how)?;
    let [flags, mode, resolve] = [0, 8, 16].map(|at| crate::abi::u64_at(&how, at));
    if flags > u64::from(u32::MAX) {
        return Err(EINVAL);
    }
    if resolve != 0 {
        return Err(EOPNOTSUPP);
    }
    k.open_path(cx, fd, path, flags as i32, mode as u32)
}

impl Kernel {
    fn open_path(&mut self, cx: &mut Cx<'_>, fd: u64, path: u64, flags: i32, mode: u32) -> SysResult {
        if let Some(held) = self.thread(cx.slot).call.as_ref().and_then(|call| call.held) {
            return self.finish_fifo(cx, held, flags);
        }
        let path = self.copy_in_path(cx, path)?;
        self.files.has_room()?;
        let exclusive = flags & libc::O_CREAT != 0 && flags & libc::O_EXCL != 0;
        let keep = flags & libc::O_NOFOLLOW != 0 || exclusive;
        let last = if keep { Last::Keep } else { Last::Follow };
        let resolved = self.resolve_at(cx, fd, &path, last)?;
        let vnode = match resolved.node {
            Some(_) if exclusive => return Err(EEXIST),
            Some(vnode) => vnode,
            None if flags & libc::O_CREAT != 0 => self.create_file(cx, &resolved, mode)?,
            None => return Err(ENOENT),
        };
        if flags & libc::O_TMPFILE == libc::O_TMPFILE {
            return self.open_unnamed(cx, vnode, flags, mode);
        }
        let created = resolved.node.is_none();
        let mut file = self.open_vnode(cx, vnode, flags, created)?;
        file.path = Some(self.textual_path(fd, path));
        file.entry = Some(resolved.entry_of(vnode));
        // An end of an anonymous pipe that is opened again (`/proc/self/fd`) waits for nobody.
        let named = !matches!(vnode, Vnode::Descriptor(_));
        if let Some((pipe, openings)) = self.lacks_partner(&file).filter(|_| named) {
            let held = self.files.add_held(file)?;
            if let Some(call) = &mut self.thread_mut(cx.slot).call {
                (call.held, call.progress) = (Some(held), u64::from(openings));
            }
            return Ok(Flow::Wait(Wait::on(WaitKey::Object(ObjectKey::Pipe(pipe)))));
        }
        let emptied = flags & libc::O_TRUNC != 0 && !created && matches!(file.kind, FileKind::Regular(_));
        let opened = self.install(file, flags & libc::O_CLOEXEC != 0)?;
        self.announce_opening(opened);
        if emptied {
            self.tell_file(opened, libc::IN_MODIFY);
        }
        Ok(Flow::Done(opened))
    }

    /// The path as the guest gave it, made absolute.
    fn textual_path(&self, fd: u64, path: Vec<u8>) -> Arc<[u8]> {
        if path.first() == Some(&b'/') {
            return path.into();
        }
        let start = self.start_directory(fd, &path).unwrap_or(self.process.directory);
        self.path_in(start, &path).into()
    }

    /// Who makes a node now.
    pub(crate) fn maker(&self, cx: &mut Cx<'_>) -> Maker {
        Maker {
            uid: self.process.uid,
            gid: self.process.gid,
            now_ns: self.now_ns(cx),
        }
    }

    /// The time that nodes are stamped with.
    pub(crate) fn now_ns(&self, cx: &mut Cx<'_>) -> i64 {
        self.clock.realtime_ns(cx.host) as i64
    }

    fn create_file(&mut self, cx: &mut Cx<'_>, resolved: &Resolved, mode: u32) -> Result<Vnode, Errno> {
        if resolved.wants_directory {
            return Err(EISDIR);
        }
        self.make_node(cx, resolved, Kind::File(Default::default()), mode)
            .map(Vnode::Memory)
    }

    /// Makes a node under the name that a path ended in.
    pub(crate) fn make_node(
        &mut self,
        cx: &mut Cx<'_>,
        resolved: &Resolved,
        kind: Kind,
        mode: u32,
    ) -> Result<u32, Errno> {
        let directory = Vfs::writable(resolved.parent)?;
        self.check_access(resolved.parent, libc::W_OK | libc::X_OK)?;
        let maker = self.maker(cx);
        // The rights of a link are never looked at, and all are shown.
        let masked = if matches!(kind, Kind::Symlink(_)) {
            0
        } else {
            self.process.umask
        };
        let number = self.vfs.memory.create(kind, mode & 0o7777 & !masked, maker)?;
        if let Err(errno) = self
            .vfs
            .memory
            .link(directory, &resolved.name, number, maker.now_ns)
        {
            self.vfs.memory.release(number);
            return Err(errno);
        }
        self.entry_created(resolved, Vnode::Memory(number));
        Ok(number)
    }

    /// `O_TMPFILE`: a file in a directory, without a name.
    fn open_unnamed(&mut self, cx: &mut Cx<'_>, directory: Vnode, flags: i32, mode: u32) -> SysResult {
        if self.vfs.node_type(directory)? != NodeType::Directory {
            return Err(ENOTDIR);
        }
        if flags & libc::O_ACCMODE == libc::O_RDONLY {
            return Err(EINVAL);
        }
        Vfs::writable(directory)?;
        let maker = self.maker(cx);
        let mode = mode & 0o7777 & !self.process.umask;
        let number = self
            .vfs
            .memory
            .create(Kind::File(Default::default()), mode, maker)?;
        let mut file = OpenFile::new(
            FileKind::Regular(Vnode::Memory(number)),
            flags & KEPT & !libc::O_DIRECTORY | LARGE_FILE,
        );
        file.entry = Some(Entry::unnamed(Vnode::Memory(number)));
        file.announced = true;
        self.install(file, flags & libc::O_CLOEXEC != 0).map(Flow::Done)
    }

    /// Opens a node.
    pub(crate) fn open_vnode(
        &mut self,
        cx: &mut Cx<'_>,
        vnode: Vnode,
        flags: i32,
        created: bool,
    ) -> Result<OpenFile, Errno> {
        let node_type = self.vfs.node_type(vnode)?;
        if flags & libc::O_DIRECTORY != 0 && node_type != NodeType::Directory {
            return Err(ENOTDIR);
        }
        if flags & libc::O_PATH != 0 {
            return Ok(OpenFile::new(FileKind::Path(vnode), flags & KEPT_OF_PATH));
        }
        // The fourth access mode asks for both rights and gives neither: the file is good for `ioctl` alone.
        let (reads, writes) = match flags & libc::O_ACCMODE {
            libc::O_RDONLY => (true, false),
            libc::O_WRONLY => (false, true),
            _ => (true, true),
        };
        let truncates = flags & libc::O_TRUNC != 0;
        let writes = writes || truncates && matches!(node_type, NodeType::Regular | NodeType::Directory);
        let wanted = if reads { libc::R_OK } else { 0 } | if writes { libc::W_OK } else { 0 };
        if let Vnode::Descriptor(fd) = vnode {
            return self.reopen(fd, flags);
        }
        if !created {
            self.check_access(vnode, wanted)?;
        }
        let kind = match node_type {
            NodeType::Directory if writes || flags & libc::O_CREAT != 0 => return Err(EISDIR),
            NodeType::Directory if flags & libc::O_DIRECT != 0 => return Err(EINVAL),
            NodeType::Directory => FileKind::Directory(vnode),
            NodeType::Symlink => return Err(ELOOP),
            NodeType::Fifo => {
                let mut file = self.open_fifo(vnode, flags)?;
                file.flags |= LARGE_FILE;
                return Ok(file);
            }
            NodeType::Socket => return Err(ENXIO),
            NodeType::Regular | NodeType::Character | NodeType::Anonymous => {
                self.file_kind(cx, vnode, writes, truncates && !created)?
            }
        };
        Ok(OpenFile::new(kind, flags & KEPT | LARGE_FILE))
    }

    fn file_kind(
        &mut self,
        cx: &mut Cx<'_>,
        vnode: Vnode,
        writes: bool,
        truncates: bool,
    ) -> Result<FileKind, Errno> {
        match vnode {
            Vnode::Memory(_) => {
                if truncates {
                    self.set_file_size(cx, vnode, 0)?;
                }
                Ok(FileKind::Regular(vnode))
            }
            Vnode::Image { .. } if writes => Err(EROFS),
            Vnode::Image { .. } => Ok(FileKind::Regular(vnode)),
            Vnode::Synthetic(number) => match synthetic::node(number).ok_or(ENOENT)?.what {
                Synthetic::Device(device) => FileKind::from_device(device).ok_or(ENXIO),
                Synthetic::File(text) => Ok(FileKind::Text(vnode, self.text(cx, text).into())),
                Synthetic::Directory
                | Synthetic::ProcessDirectory
                | Synthetic::Descriptors
                | Synthetic::DescriptorInfos
                | Synthetic::Tasks
                | Synthetic::Link(_) => Err(EINVAL),
            },
            Vnode::DescriptorInfo(fd) => {
                let text = self.descriptor_text(fd).ok_or(ENOENT)?;
                Ok(FileKind::Text(vnode, text.into_bytes().into()))
            }
            Vnode::Descriptor(_) | Vnode::Task(_) => Err(EINVAL),
        }
    }

    /// Opens `/proc/self/fd/N` of a file that is in no directory.
    fn reopen(&mut self, fd: u32, flags: i32) -> Result<OpenFile, Errno> {
        let file = self.files.get(u64::from(fd)).ok_or(ENOENT)?;
        match &file.kind {
            kind @ (FileKind::Output(_) | FileKind::Null) => Ok(OpenFile::new(kind.clone(), flags & KEPT)),
            FileKind::PipeReader(pipe) | FileKind::PipeWriter(pipe) | FileKind::PipeBoth(pipe) => {
                let pipe = *pipe;
                self.open_pipe(pipe, flags)
            }
            _ => Err(ENXIO),
        }
    }

    /// The pipe of a file whose opening waits until the other end is open too, and how often that has been opened.
    fn lacks_partner(&self, file: &OpenFile) -> Option<(u32, u32)> {
        if file.nonblocking() {
            return None;
        }
        match file.kind {
            FileKind::PipeReader(number) => {
                let pipe = self.pipes.get(number)?;
                (pipe.writers == 0).then_some((number, pipe.writer_openings))
            }
            FileKind::PipeWriter(number) => {
                let pipe = self.pipes.get(number)?;
                (pipe.readers == 0).then_some((number, pipe.reader_openings))
            }
            _ => None,
        }
    }

    /// Goes on with the opening of a named pipe that has waited for a partner.
    fn finish_fifo(&mut self, cx: &mut Cx<'_>, held: HeldFile, flags: i32) -> SysResult {
        let before = self.thread(cx.slot).call.as_ref().map_or(0, |call| call.progress);
        let kind = self.files.held_kind(held).ok_or(ENXIO)?;
        let (pipe, openings) = match kind {
            FileKind::PipeReader(number) => (
                number,
                self.pipes.get(number).map_or(0, |pipe| pipe.writer_openings),
            ),
            FileKind::PipeWriter(number) => (
                number,
                self.pipes.get(number).map_or(0, |pipe| pipe.reader_openings),
            ),
            _ => return Err(ENXIO),
        };
        if u64::from(openings) == before {
            return Ok(Flow::Wait(Wait::on(WaitKey::Object(ObjectKey::Pipe(pipe)))));
        }
        let opened = self.files.name_held(held, flags & libc::O_CLOEXEC != 0)?;
        self.announce_opening(opened);
        Ok(Flow::Done(opened))
    }

    /// Opens a named pipe.
    fn open_fifo(&mut self, vnode: Vnode, flags: i32) -> Result<OpenFile, Errno> {
        let number = Vfs::writable(vnode)?;
        let existing = match &self.vfs.memory.get(number)?.kind {
            Kind::Fifo(pipe) => pipe.filter(|pipe| self.pipes.get(*pipe).is_some()),
            Kind::Directory(_) | Kind::File(_) | Kind::Symlink(_) | Kind::Socket => return Err(EINVAL),
        };
        let pipe = existing.unwrap_or_else(|| self.pipes.insert(Default::default()));
        self.vfs.memory.get_mut(number)?.kind = Kind::Fifo(Some(pipe));
        self.open_pipe(pipe, flags)
    }
}

/// A file in memory without a name in any directory.
pub(crate) fn sys_memfd_create(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    const NAME_MAX: usize = 249;
    let [name, flags, ..] = *args;
    let flags = flags as u32;
    let name = k
        .copy_in_string(cx, name, NAME_MAX + 1)
        .map_err(|errno| match errno {
            crate::errno::ENAMETOOLONG => EINVAL,
            other => other,
        })?;
    const MFD_NOEXEC_SEAL: u32 = 8;
    const MFD_EXEC: u32 = 16;
    let known = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL | MFD_EXEC;
    if flags & !known != 0 {
        return Err(EINVAL);
    }
    k.files.has_room()?;
    let maker = k.maker(cx);
    let number = k
        .vfs
        .memory
        .create(Kind::File(Default::default()), 0o777, maker)?;
    if flags & libc::MFD_ALLOW_SEALING == 0 {
        k.vfs.memory.get_mut(number)?.seals = libc::F_SEAL_SEAL as u32;
    }
    let mut file = OpenFile::new(
        FileKind::Regular(Vnode::Memory(number)),
        libc::O_RDWR | LARGE_FILE,
    );
    file.path = Some([b"/memfd:".as_slice(), &name, b" (deleted)"].concat().into());
    k.install(file, flags & libc::MFD_CLOEXEC != 0).map(Flow::Done)
}

/// An empty directory, for a new tree in memory.
pub(crate) fn empty_directory() -> Kind {
    Kind::Directory(BTreeMap::new())
}
