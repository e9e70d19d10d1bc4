//! Listing directories.

use crate::{
    abi::Writer,
    errno::{EBADF, EINVAL, ENOTDIR},
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
            Vnode::Descriptor(_) => None,
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
            Synthetic::Tasks => {
                let (_, thread) = self.threads.iter().nth(position as usize)?;
                Some((thread.tid.to_string().into_bytes(), Vnode::Task(thread.tid)))
            }
            Synthetic::File(_) | Synthetic::Link(_) | Synthetic::Device(_) => None,
        }
    }

    /// The entry at an offset as `getdents` counts them: `.` and `..` come first.
    fn listed_entry(&self, directory: Vnode, offset: u64) -> Option<(Vec<u8>, Vnode)> {
        match offset {
            0 => Some((b".".to_vec(), directory)),
            1 => Some((b"..".to_vec(), self.vfs.parent(directory))),
            _ => self.directory_entry(directory, offset - 2),
        }
    }
}

pub(crate) fn sys_getdents64(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let [fd, buffer, bytes, ..] = *args;
    let file = k.files.get(fd).ok_or(EBADF)?;
    let FileKind::Directory(directory) = file.kind else {
        return Err(ENOTDIR);
    };
    let mut offset = file.offset;
    let room = (bytes as usize).min(LISTING_BYTES_MAX);
    let mut listing = Vec::new();
    while let Some((name, node)) = k.listed_entry(directory, offset) {
        let record_bytes = (19 + name.len() + 1).next_multiple_of(8);
        if listing.len() + record_bytes > room {
            if listing.is_empty() {
                return Err(EINVAL);
            }
            break;
        }
        offset += 1;
        let seen = k.vfs.covered_by(node);
        let inode = k.vfs.attributes(seen).map_or(1, |attributes| attributes.inode);
        let node_type = k.vfs.node_type(seen).unwrap_or(NodeType::Anonymous);
        let record = Writer::with_capacity(record_bytes)
            .u64(inode)
            .u64(offset)
            .u16(record_bytes as u16)
            .u8(node_type.entry_type())
            .bytes(&name)
            .pad_to(record_bytes)
            .done();
        listing.extend_from_slice(&record);
    }
    k.copy_out(cx, buffer, &listing)?;
    if let Some(file) = k.files.get_mut(fd) {
        file.offset = offset;
    }
    Ok(Flow::Done(listing.len() as u64))
}
