//! Listing directories.

use crate::{
    abi::Writer,
    errno::{EINVAL, ENOTDIR},
    fs::{
        FileKind, NodeType, Vnode,
        synthetic::{self, Synthetic},
    },
    kernel::{Cx, Flow, Kernel, SysResult},
};

/// Most bytes that one call gives.
const LISTING_BYTES_MAX: usize = 1 << 20;

impl Kernel {
    /// The entry at a position; mounts are not regarded.
    pub(crate) fn directory_entry(&self, directory: Vnode, position: u64) -> Option<(Vec<u8>, Vnode)> {
        match directory {
            Vnode::Image { image, .. } => match self.vfs.image_entry(directory, position) {
                Some((name, node)) => Some((name, Vnode::Image { image, node })),
                None if directory == self.vfs.root() => {
                    let own = self
                        .vfs
                        .attributes(directory)
                        .map_or(0, |attributes| attributes.entries);
                    self.vfs.extra_entry(position.checked_sub(own)?)
                }
                None => None,
            },
            Vnode::Memory(number) => self
                .vfs
                .memory
                .entry(number, position)
                .map(|(name, node)| (name, Vnode::Memory(node))),
            Vnode::Synthetic(number) => self.synthetic_entry(number, position),
            Vnode::Task(_) => self.synthetic_entry(synthetic::number_of("proc/PID")?, position),
            Vnode::Descriptor(_) | Vnode::DescriptorInfo(_) => None,
        }
    }

    fn synthetic_entry(&self, number: u16, position: u64) -> Option<(Vec<u8>, Vnode)> {
        let node = synthetic::node(number)?;
        match node.what {
            Synthetic::Directory | Synthetic::ProcessDirectory => {
                let child = *node.children.get(position as usize)?;
                let name = synthetic::node(child)?.name;
                let name = if name == "PID" {
                    self.process.pid.to_string()
                } else {
                    name.to_owned()
                };
                Some((name.into_bytes(), Vnode::Synthetic(child)))
            }
            Synthetic::Descriptors => {
                let fd = self.files.descriptors().nth(position as usize)?;
                Some((fd.to_string().into_bytes(), Vnode::Descriptor(fd)))
            }
            Synthetic::DescriptorInfos => {
                let fd = self.files.descriptors().nth(position as usize)?;
                Some((fd.to_string().into_bytes(), Vnode::DescriptorInfo(fd)))
            }
            Synthetic::Tasks => {
                let (_, thread) = self.threads.iter().nth(position as usize)?;
                Some((thread.tid.to_string().into_bytes(), Vnode::Task(thread.tid)))
            }
            Synthetic::File(_) | Synthetic::Link(_) | Synthetic::Device(_) => None,
        }
    }

    /// The entry at an offset as `getdents` counts them, and the offset of the next: `.` and `..` come first.
    fn listed_entry(
        &self,
        directory: Vnode,
        offset: u64,
        after: Option<&[u8]>,
    ) -> Option<(Vec<u8>, Vnode, u64)> {
        match offset {
            0 => return Some((b".".to_vec(), directory, 1)),
            1 => return Some((b"..".to_vec(), self.vfs.parent(directory), 2)),
            _ => {}
        }
        if self.lists_descriptors(directory) {
            // A descriptor's offset is its number, so that closing others on the way skips none.
            let fd = self.files.descriptors().find(|fd| u64::from(*fd) >= offset - 2)?;
            let (name, node) = (
                fd.to_string().into_bytes(),
                self.lookup(directory, fd.to_string().as_bytes()),
            );
            return Some((name, node.ok()?, u64::from(fd) + 3));
        }
        if let (Vnode::Memory(number), Some(after)) = (directory, after) {
            let (name, node) = self.vfs.memory.entry_after(number, after)?;
            return Some((name, Vnode::Memory(node), offset + 1));
        }
        let (name, node) = self.directory_entry(directory, offset - 2)?;
        Some((name, node, offset + 1))
    }

    fn lists_descriptors(&self, directory: Vnode) -> bool {
        let Vnode::Synthetic(number) = directory else {
            return false;
        };
        synthetic::node(number)
            .is_some_and(|node| matches!(node.what, Synthetic::Descriptors | Synthetic::DescriptorInfos))
    }

    /// Lists a directory from the file's offset on, in the records of one of the two calls.
    fn list_directory(&mut self, cx: &mut Cx<'_>, args: &[u64; 6], form: Form) -> SysResult {
        let [fd, buffer, bytes, ..] = *args;
        let file = self.files.usable(fd)?;
        let FileKind::Directory(directory) = file.kind else {
            return Err(ENOTDIR);
        };
        if bytes as i32 <= 0 {
            return Err(EINVAL);
        }
        let room = (bytes as u32 as usize).min(LISTING_BYTES_MAX);
        let mut offset = file.offset;
        // Where the last call stopped, unless the offset has been moved since: names may have come and gone.
        let mut after = match &file.cursor {
            Some((at, name)) if *at == offset => Some(name.to_vec()),
            Some(_) | None => None,
        };
        let mut done = 0;
        while let Some((name, node, next)) = self.listed_entry(directory, offset, after.as_deref()) {
            let record = self.directory_record(&name, node, next, form);
            if done + record.len() > room {
                if done == 0 {
                    return Err(EINVAL);
                }
                break;
            }
            match self.copy_out(cx, buffer.wrapping_add(done as u64), &record) {
                Ok(()) => {}
                Err(errno) if done == 0 => return Err(errno),
                Err(_) => break,
            }
            done += record.len();
            after = (offset >= 2).then_some(name);
            offset = next;
        }
        if let Some(file) = self.files.get_mut(fd) {
            file.offset = offset;
            file.cursor = after.map(|name| (offset, name.into()));
        }
        if let Vnode::Memory(number) = directory {
            let now = self.now_ns(cx);
            self.vfs.memory.get_mut(number)?.accessed_ns = now;
        }
        self.tell_file(fd, libc::IN_ACCESS);
        Ok(Flow::Done(done as u64))
    }

    fn directory_record(&self, name: &[u8], node: Vnode, next: u64, form: Form) -> Vec<u8> {
        let seen = self.vfs.covered_by(node);
        let inode = self.vfs.attributes(seen).map_or(1, |attributes| attributes.inode);
        let kind = self
            .vfs
            .node_type(seen)
            .unwrap_or(NodeType::Anonymous)
            .entry_type();
        // The older form has the type in the record's last byte, behind the name's zero.
        let (head, tail) = match form {
            Form::Old => (18, 2),
            Form::New => (19, 1),
        };
        let bytes = (head + name.len() + tail).next_multiple_of(8);
        let out = Writer::with_capacity(bytes)
            .u64(inode)
            .u64(next)
            .u16(bytes as u16);
        match form {
            Form::Old => out.bytes(name).pad_to(bytes - 1).u8(kind).done(),
            Form::New => out.u8(kind).bytes(name).pad_to(bytes).done(),
        }
    }
}

/// Layout of a directory record.
#[derive(Debug, Clone, Copy)]
enum Form {
    /// `struct linux_dirent`
    Old,
    /// `struct linux_dirent64`
    New,
}

pub(crate) fn sys_getdents(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    k.list_directory(cx, args, Form::Old)
}

pub(crate) fn sys_getdents64(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    k.list_directory(cx, args, Form::New)
}
