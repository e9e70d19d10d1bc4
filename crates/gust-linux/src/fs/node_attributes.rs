//! What is known of each kind of node: whose it is, its mode, size and times.

use super::{
    Attributes, NodeType, Vfs, Vnode,
    memory::Kind,
    synthetic::{self, Synthetic},
    vfs::ROOT,
};
use crate::{
    abi::PAGE,
    errno::{ENOENT, Errno},
};

/// Device number of images: that of the first.
const IMAGE_DEVICE: u64 = 16;
/// Device number of files in memory.
const MEMORY_DEVICE: u64 = 2;
/// Device number of what the personality makes up.
const SYNTHETIC_DEVICE: u64 = 3;

impl Vfs {
    /// What `stat` tells.
    pub(crate) fn attributes(&self, vnode: Vnode) -> Result<Attributes, Errno> {
        let plain = plain(self.node_type(vnode)?);
        match vnode {
            Vnode::Image { image, node } => self.image_attributes(image, node, plain),
            Vnode::Memory(number) => self.memory_attributes(number, plain),
            Vnode::Synthetic(number) => self.synthetic_attributes(number, plain),
            Vnode::Descriptor(fd) => Ok(self.of_process(Attributes {
                inode: 0x1_0000 + u64::from(fd),
                mode: 0o700,
                size: 64,
                ..plain
            })),
            Vnode::DescriptorInfo(fd) => Ok(self.of_process(Attributes {
                inode: 0x2_0000 + u64::from(fd),
                mode: 0o444,
                ..plain
            })),
            Vnode::Task(tid) => Ok(self.of_process(Attributes {
                inode: 0x10_0000 + u64::from(tid),
                ..plain
            })),
        }
    }

    fn image_attributes(&self, image: u8, node: u32, plain: Attributes) -> Result<Attributes, Errno> {
        let (_, found) = self.image_node(image, node)?;
        let mtime = found.mtime_s.saturating_mul(1_000_000_000);
        Ok(Attributes {
            device: IMAGE_DEVICE + u64::from(image),
            inode: u64::from(node) + 1,
            mode: u32::from(found.mode),
            links: found.links,
            uid: found.uid,
            gid: found.gid,
            size: match plain.node_type == NodeType::Directory {
                true => PAGE,
                false => found.size,
            },
            entries: found.size,
            accessed_ns: mtime,
            modified_ns: mtime,
            changed_ns: mtime,
            ..plain
        })
    }

    fn memory_attributes(&self, number: u32, plain: Attributes) -> Result<Attributes, Errno> {
        let node = self.memory.get(number)?;
        Ok(Attributes {
            device: MEMORY_DEVICE,
            inode: u64::from(number) + 1,
            mode: node.mode,
            links: node.links,
            uid: node.uid,
            gid: node.gid,
            size: match &node.kind {
                Kind::File(contents) => contents.size(),
                Kind::Symlink(target) => target.len() as u64,
                Kind::Directory(entries) => 40 + entries.len() as u64 * 20,
                Kind::Fifo(_) | Kind::Socket => 0,
            },
            accessed_ns: node.accessed_ns,
            modified_ns: node.modified_ns,
            changed_ns: node.changed_ns,
            ..plain
        })
    }

    fn synthetic_attributes(&self, number: u16, plain: Attributes) -> Result<Attributes, Errno> {
        let attributes = Attributes {
            inode: u64::from(number) + 1,
            ..plain
        };
        let with_mode = |mode| Attributes { mode, ..attributes };
        Ok(match synthetic::node(number).ok_or(ENOENT)?.what {
            Synthetic::Directory => with_mode(0o555),
            Synthetic::ProcessDirectory | Synthetic::Tasks | Synthetic::DescriptorInfos => {
                self.of_process(with_mode(0o555))
            }
            Synthetic::Descriptors => self.of_process(with_mode(0o500)),
            Synthetic::File(_) => with_mode(0o444),
            Synthetic::Link(_) => with_mode(0o777),
            Synthetic::Device(device) => {
                let (major, minor) = device.number();
                Attributes {
                    special: libc::makedev(major, minor),
                    ..with_mode(0o666)
                }
            }
        })
    }

    /// The same, of the guest's process.
    fn of_process(&self, attributes: Attributes) -> Attributes {
        let (uid, gid) = self.process_owner;
        Attributes {
            uid,
            gid,
            ..attributes
        }
    }
}

/// A node that the personality makes up, with nothing in it.
fn plain(node_type: NodeType) -> Attributes {
    Attributes {
        device: SYNTHETIC_DEVICE,
        inode: 1,
        node_type,
        mode: 0o555,
        links: 1,
        uid: ROOT,
        gid: ROOT,
        special: 0,
        size: 0,
        entries: 0,
        accessed_ns: 0,
        modified_ns: 0,
        changed_ns: 0,
    }
}
