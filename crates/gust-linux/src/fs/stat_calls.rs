//! `stat` and its kin.

use crate::{
    abi::Writer,
    errno::{EBADF, EINVAL, ENOENT, Errno},
    fs::{Attributes, FileKind, NodeType, Vnode, path::Last},
    kernel::{Cx, Flow, Kernel, SysResult},
};

impl Kernel {
    /// Attributes of an open file.
    pub(crate) fn file_attributes(&self, fd: u64) -> Result<Attributes, Errno> {
        let file = self.files.get(fd).ok_or(EBADF)?;
        if let Some(vnode) = file.kind.vnode() {
            return self.vfs.attributes(vnode);
        }
        let (node_type, inode) = match &file.kind {
            FileKind::Output(stream) => (NodeType::Fifo, 1 + *stream as u64),
            FileKind::PipeReader(number) | FileKind::PipeWriter(number) | FileKind::PipeBoth(number) => {
                (NodeType::Fifo, 100 + u64::from(*number))
            }
            FileKind::Socket(number) => (NodeType::Socket, 5000 + u64::from(*number)),
            _ => (NodeType::Anonymous, 10),
        };
        let (uid, gid) = (self.process.uid, self.process.gid);
        Ok(Attributes {
            device: 4,
            inode,
            node_type,
            mode: if node_type == NodeType::Socket {
                0o777
            } else {
                0o600
            },
            links: 1,
            uid,
            gid,
            special: 0,
            size: 0,
            entries: 0,
            accessed_ns: 0,
            modified_ns: 0,
            changed_ns: 0,
        })
    }

    /// Attributes of what a path or, when it is empty and that is allowed, a descriptor names.
    fn attributes_at(
        &mut self,
        cx: &mut Cx<'_>,
        fd: u64,
        path: u64,
        flags: i32,
    ) -> Result<Attributes, Errno> {
        let empty_allowed = flags & libc::AT_EMPTY_PATH != 0;
        if path == 0 && empty_allowed {
            return self.descriptor_attributes(fd);
        }
        let path = self.copy_in_path(cx, path)?;
        if path.is_empty() && empty_allowed {
            return self.descriptor_attributes(fd);
        }
        let last = if flags & libc::AT_SYMLINK_NOFOLLOW != 0 {
            Last::Keep
        } else {
            Last::Follow
        };
        let vnode = self.resolve_at(cx, fd, &path, last)?.existing()?;
        if let (Vnode::Descriptor(fd), Last::Follow) = (vnode, last) {
            return self.file_attributes(u64::from(fd));
        }
        self.vfs.attributes(vnode)
    }

    fn descriptor_attributes(&self, fd: u64) -> Result<Attributes, Errno> {
        if fd as i32 == libc::AT_FDCWD {
            return self.vfs.attributes(self.process.directory);
        }
        self.file_attributes(fd)
    }
}

pub(crate) fn sys_stat(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let attributes = k.attributes_at(cx, libc::AT_FDCWD as u64, args[0], 0)?;
    k.copy_out(cx, args[1], &attributes.to_stat())?;
    Ok(Flow::Done(0))
}

pub(crate) fn sys_lstat(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let attributes = k.attributes_at(cx, libc::AT_FDCWD as u64, args[0], libc::AT_SYMLINK_NOFOLLOW)?;
    k.copy_out(cx, args[1], &attributes.to_stat())?;
    Ok(Flow::Done(0))
}

pub(crate) fn sys_fstat(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let attributes = k.file_attributes(args[0])?;
    k.copy_out(cx, args[1], &attributes.to_stat())?;
    Ok(Flow::Done(0))
}

pub(crate) fn sys_newfstatat(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let flags = args[3] as i32;
    if flags & !(libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW | libc::AT_NO_AUTOMOUNT) != 0 {
        return Err(EINVAL);
    }
    let attributes = k.attributes_at(cx, args[0], args[1], flags)?;
    k.copy_out(cx, args[2], &attributes.to_stat())?;
    Ok(Flow::Done(0))
}

pub(crate) fn sys_statx(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let flags = args[2] as i32;
    const STATX_RESERVED: u64 = 0x8000_0000;
    let sync = libc::AT_STATX_SYNC_TYPE;
    if flags & !(libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW | libc::AT_NO_AUTOMOUNT | sync) != 0
        || flags & sync == sync
        || args[3] & STATX_RESERVED != 0
    {
        return Err(EINVAL);
    }
    let attributes = k.attributes_at(cx, args[0], args[1], flags)?;
    k.copy_out(cx, args[4], &attributes.to_statx())?;
    Ok(Flow::Done(0))
}

impl Kernel {
    fn access(&mut self, cx: &mut Cx<'_>, fd: u64, path: u64, mode: u64, flags: i32) -> SysResult {
        let mode = mode as i32;
        if mode & !7 != 0 {
            return Err(EINVAL);
        }
        let path = self.copy_in_path(cx, path)?;
        if path.is_empty() && flags & libc::AT_EMPTY_PATH != 0 {
            self.file_attributes(fd)?;
            return Ok(Flow::Done(0));
        }
        let last = if flags & libc::AT_SYMLINK_NOFOLLOW != 0 {
            Last::Keep
        } else {
            Last::Follow
        };
        let vnode = self.resolve_at(cx, fd, &path, last)?.existing()?;
        if let Vnode::Descriptor(_) = vnode {
            return Ok(Flow::Done(0));
        }
        let regular = matches!(
            self.vfs.node_type(vnode)?,
            NodeType::Regular | NodeType::Directory
        );
        if mode & libc::W_OK != 0 && regular && !matches!(vnode, Vnode::Memory(_)) {
            return Err(crate::errno::EROFS);
        }
        self.check_access(vnode, mode)?;
        Ok(Flow::Done(0))
    }
}

pub(crate) fn sys_access(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    k.access(cx, libc::AT_FDCWD as u64, args[0], args[1], 0)
}

pub(crate) fn sys_faccessat(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    k.access(cx, args[0], args[1], args[2], 0)
}

pub(crate) fn sys_faccessat2(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let flags = args[3] as i32;
    if flags & !(libc::AT_EACCESS | libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH) != 0 {
        return Err(EINVAL);
    }
    k.access(cx, args[0], args[1], args[2], flags)
}

/// What `statfs` is asked about.
#[derive(Debug, Clone, Copy)]
enum StatfsOf {
    /// A node of the tree.
    Node(Vnode),
    /// An object without a node, by the magic number of the file system that Linux keeps such objects in.
    Object(u64),
}

impl StatfsOf {
    fn of(kind: &FileKind) -> Self {
        const PIPEFS_MAGIC: u64 = 0x5049_5045;
        const SOCKFS_MAGIC: u64 = 0x534f_434b;
        const ANON_INODE_MAGIC: u64 = 0x0904_1934;
        match kind {
            FileKind::PipeReader(_)
            | FileKind::PipeWriter(_)
            | FileKind::PipeBoth(_)
            | FileKind::Output(_) => Self::Object(PIPEFS_MAGIC),
            FileKind::Socket(_) => Self::Object(SOCKFS_MAGIC),
            _ => kind.vnode().map_or(Self::Object(ANON_INODE_MAGIC), Self::Node),
        }
    }
}

impl Kernel {
    /// `struct statfs`, 120 bytes.
    fn statfs(&self, place: StatfsOf) -> Vec<u8> {
        const TMPFS_MAGIC: u64 = 0x0102_1994;
        const EROFS_MAGIC: u64 = 0xe0f5_e1e2;
        const PROC_MAGIC: u64 = 0x9fa0;
        let memory = &self.vfs.memory;
        let blocks = memory.limit_bytes() / 4096;
        let free = (memory.limit_bytes() - memory.used_bytes().min(memory.limit_bytes())) / 4096;
        let (magic, blocks, free, flags) = match place {
            StatfsOf::Node(Vnode::Memory(_)) => (TMPFS_MAGIC, blocks, free, 0),
            StatfsOf::Node(Vnode::Image { .. }) => (EROFS_MAGIC, 0, 0, libc::ST_RDONLY),
            StatfsOf::Node(
                Vnode::Synthetic(_) | Vnode::Descriptor(_) | Vnode::DescriptorInfo(_) | Vnode::Task(_),
            ) => (PROC_MAGIC, 0, 0, 0),
            StatfsOf::Object(magic) => (magic, 0, 0, 0),
        };
        Writer::with_capacity(120)
            .u64(magic)
            .u64(4096)
            .u64(blocks)
            .u64(free)
            .u64(free)
            .u64(131_072)
            .u64(131_072u64.saturating_sub(memory.node_count()))
            .u64(1)
            .u64(255)
            .u64(4096)
            .u64(flags)
            .pad_to(120)
            .done()
    }
}

pub(crate) fn sys_statfs(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let path = k.copy_in_path(cx, args[0])?;
    let vnode = k
        .resolve_at(cx, libc::AT_FDCWD as u64, &path, Last::Follow)?
        .existing()?;
    let statfs = k.statfs(StatfsOf::Node(vnode));
    k.copy_out(cx, args[1], &statfs)?;
    Ok(Flow::Done(0))
}

pub(crate) fn sys_fstatfs(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let place = StatfsOf::of(&k.files.get(args[0]).ok_or(EBADF)?.kind);
    let statfs = k.statfs(place);
    k.copy_out(cx, args[1], &statfs)?;
    Ok(Flow::Done(0))
}

impl Kernel {
    fn read_link_at(&mut self, cx: &mut Cx<'_>, fd: u64, path: u64, buffer: u64, bytes: u64) -> SysResult {
        if bytes as i32 <= 0 {
            return Err(EINVAL);
        }
        let path = self.copy_in_path(cx, path)?;
        let vnode = if path.is_empty() {
            match self.files.get(fd).ok_or(ENOENT)?.kind {
                FileKind::Path(vnode) => vnode,
                _ => return Err(ENOENT),
            }
        } else {
            self.resolve_at(cx, fd, &path, Last::Keep)?.existing()?
        };
        if self.vfs.node_type(vnode)? != NodeType::Symlink {
            return Err(EINVAL);
        }
        let target = self.read_link(cx.slot, vnode)?;
        let copied = target.len().min(bytes as u32 as usize);
        self.copy_out(cx, buffer, &target[..copied])?;
        Ok(Flow::Done(copied as u64))
    }
}

pub(crate) fn sys_readlink(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    k.read_link_at(cx, libc::AT_FDCWD as u64, args[0], args[1], args[2])
}

pub(crate) fn sys_readlinkat(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    k.read_link_at(cx, args[0], args[1], args[2], args[3])
}
