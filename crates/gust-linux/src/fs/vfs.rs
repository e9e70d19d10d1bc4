//! The tree: which node is where, and what is known of it.

use std::collections::BTreeMap;

use gust_image::{Image, NodeIndex, NodeKind};
use serde::{Deserialize, Serialize};

use crate::{
    abi::PAGE,
    errno::{EINVAL, EIO, ENOENT, ENOTDIR, EROFS, Errno},
    fs::{
        Attributes, NodeType, Vnode,
        memory::{Kind, Maker, MemoryFs},
        synthetic::{self, Synthetic},
    },
};

/// A tree laid over a directory of another.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Mount {
    /// The directory that is covered.
    pub(crate) at: Vnode,
    /// What is seen there.
    pub(crate) root: Vnode,
    /// Its path, for `/proc/self/mounts`.
    pub(crate) path: String,
    /// Its kind, for the same.
    pub(crate) kind: String,
}

/// The tree of one guest.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Vfs {
    /// Images, by the number in [`Vnode::Image`]; given anew to a restored guest.
    #[serde(skip)]
    images: Vec<Image>,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) memory: MemoryFs,
    /// Directories that the root image lacks and mounts need.
    extra: BTreeMap<Vec<u8>, Vnode>,
    /// User and group that the process's own directories belong to.
    pub(crate) process_owner: (u32, u32),
}

/// Owner of image and synthetic nodes.
const ROOT: u32 = 0;

impl Vfs {
    /// A tree with one image at its root.
    pub(crate) fn new(root: Image, memory_limit_bytes: u64) -> Self {
        Self {
            images: vec![root],
            memory: MemoryFs::new(memory_limit_bytes),
            ..Self::default()
        }
    }

    /// The images, for a restored tree.
    pub(crate) fn attach_images(&mut self, images: Vec<Image>) {
        self.images = images;
    }

    /// Adds an image; it is seen once it is mounted.
    pub(crate) fn add_image(&mut self, image: Image) -> Vnode {
        self.images.push(image);
        Vnode::Image {
            image: (self.images.len() - 1) as u8,
            node: 0,
        }
    }

    /// The root directory.
    pub(crate) fn root(&self) -> Vnode {
        Vnode::Image { image: 0, node: 0 }
    }

    fn image_node(&self, image: u8, node: u32) -> Result<(&Image, gust_image::Node), Errno> {
        let image = self.images.get(image as usize).ok_or(EIO)?;
        let node = image.node(NodeIndex(node)).ok_or(EIO)?;
        Ok((image, node))
    }

    /// What covers a directory, if anything does.
    pub(crate) fn covered_by(&self, directory: Vnode) -> Vnode {
        self.mounts
            .iter()
            .rev()
            .find(|mount| mount.at == directory)
            .map_or(directory, |mount| mount.root)
    }

    /// The directory that a mounted root covers, or the node itself.
    fn uncovered(&self, root: Vnode) -> Vnode {
        self.mounts
            .iter()
            .rev()
            .find(|mount| mount.root == root)
            .map_or(root, |mount| mount.at)
    }

    /// A name in a directory, mounts not regarded.
    pub(crate) fn lookup(&self, directory: Vnode, name: &[u8]) -> Result<Vnode, Errno> {
        match directory {
            Vnode::Image { image, node } => {
                let (source, found) = self.image_node(image, node)?;
                if found.kind != NodeKind::Directory {
                    return Err(ENOTDIR);
                }
                match source.lookup(NodeIndex(node), name) {
                    Some(child) => Ok(Vnode::Image { image, node: child.0 }),
                    None if directory == self.root() => self.extra.get(name).copied().ok_or(ENOENT),
                    None => Err(ENOENT),
                }
            }
            Vnode::Memory(number) => self.memory.lookup(number, name).map(Vnode::Memory),
            Vnode::Synthetic(number) => {
                let name = str::from_utf8(name).map_err(|_| ENOENT)?;
                match synthetic::node(number).ok_or(ENOENT)?.what {
                    Synthetic::Directory | Synthetic::ProcessDirectory => synthetic::child(number, name)
                        .filter(|_| name != "PID")
                        .map(Vnode::Synthetic)
                        .ok_or(ENOENT),
                    Synthetic::Descriptors => name.parse().map(Vnode::Descriptor).map_err(|_| ENOENT),
                    Synthetic::DescriptorInfos => name.parse().map(Vnode::DescriptorInfo).map_err(|_| ENOENT),
                    Synthetic::Tasks => name.parse().map(Vnode::Task).map_err(|_| ENOENT),
                    Synthetic::File(_) | Synthetic::Link(_) | Synthetic::Device(_) => Err(ENOTDIR),
                }
            }
            // A thread's directory shows what the process's does.
            Vnode::Task(_) => {
                let process = synthetic::number_of("proc/PID").ok_or(ENOENT)?;
                self.lookup(Vnode::Synthetic(process), name)
            }
            Vnode::Descriptor(_) | Vnode::DescriptorInfo(_) => Err(ENOTDIR),
        }
    }

    /// The directory above a directory; the root is above itself.
    pub(crate) fn parent(&self, directory: Vnode) -> Vnode {
        if directory == self.root() {
            return directory;
        }
        let directory = self.uncovered(directory);
        let parent = match directory {
            Vnode::Image { image, node } => {
                let parent = self
                    .images
                    .get(image as usize)
                    .and_then(|image| image.parent(NodeIndex(node)));
                Vnode::Image {
                    image,
                    node: parent.map_or(0, |parent| parent.0),
                }
            }
            Vnode::Memory(number) => {
                Vnode::Memory(self.memory.get(number).map_or(number, |node| node.parent))
            }
            Vnode::Synthetic(number) => {
                Vnode::Synthetic(synthetic::node(number).map_or(0, |node| node.parent))
            }
            Vnode::Task(_) => Vnode::Synthetic(synthetic::number_of("proc/PID/task").unwrap_or(0)),
            Vnode::Descriptor(_) => Vnode::Synthetic(synthetic::number_of("proc/PID/fd").unwrap_or(0)),
            Vnode::DescriptorInfo(_) => {
                Vnode::Synthetic(synthetic::number_of("proc/PID/fdinfo").unwrap_or(0))
            }
        };
        self.covered_by(parent)
    }

    /// The type of a node.
    pub(crate) fn node_type(&self, vnode: Vnode) -> Result<NodeType, Errno> {
        Ok(match vnode {
            Vnode::Image { image, node } => match self.image_node(image, node)?.1.kind {
                NodeKind::Directory => NodeType::Directory,
                NodeKind::File => NodeType::Regular,
                NodeKind::Symlink => NodeType::Symlink,
            },
            Vnode::Memory(number) => self.memory.get(number)?.node_type(),
            Vnode::Synthetic(number) => match synthetic::node(number).ok_or(ENOENT)?.what {
                Synthetic::Directory
                | Synthetic::ProcessDirectory
                | Synthetic::Descriptors
                | Synthetic::DescriptorInfos
                | Synthetic::Tasks => NodeType::Directory,
                Synthetic::File(_) => NodeType::Regular,
                Synthetic::Link(_) => NodeType::Symlink,
                Synthetic::Device(_) => NodeType::Character,
            },
            Vnode::Descriptor(_) => NodeType::Symlink,
            Vnode::DescriptorInfo(_) => NodeType::Regular,
            Vnode::Task(_) => NodeType::Directory,
        })
    }

    /// What `stat` tells.
    pub(crate) fn attributes(&self, vnode: Vnode) -> Result<Attributes, Errno> {
        let node_type = self.node_type(vnode)?;
        let mut attributes = Attributes {
            device: 1,
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
        };
        match vnode {
            Vnode::Image { image, node } => {
                let (_, found) = self.image_node(image, node)?;
                let mtime = found.mtime_s.saturating_mul(1_000_000_000);
                attributes.device = 16 + u64::from(image);
                attributes.inode = u64::from(node) + 1;
                attributes.mode = u32::from(found.mode);
                attributes.links = found.links;
                (attributes.uid, attributes.gid) = (found.uid, found.gid);
                attributes.size = if node_type == NodeType::Directory {
                    PAGE
                } else {
                    found.size
                };
                attributes.entries = found.size;
                (
                    attributes.accessed_ns,
                    attributes.modified_ns,
                    attributes.changed_ns,
                ) = (mtime, mtime, mtime);
            }
            Vnode::Memory(number) => {
                let node = self.memory.get(number)?;
                attributes.device = 2;
                attributes.inode = u64::from(number) + 1;
                attributes.mode = node.mode;
                attributes.links = node.links;
                (attributes.uid, attributes.gid) = (node.uid, node.gid);
                attributes.size = match &node.kind {
                    Kind::File(contents) => contents.size(),
                    Kind::Symlink(target) => target.len() as u64,
                    Kind::Directory(entries) => 40 + entries.len() as u64 * 20,
                    Kind::Fifo(_) | Kind::Socket => 0,
                };
                attributes.accessed_ns = node.accessed_ns;
                attributes.modified_ns = node.modified_ns;
                attributes.changed_ns = node.changed_ns;
            }
            Vnode::Synthetic(number) => {
                attributes.device = 3;
                attributes.inode = u64::from(number) + 1;
                attributes.mode = match synthetic::node(number).ok_or(ENOENT)?.what {
                    Synthetic::Directory | Synthetic::ProcessDirectory | Synthetic::Tasks => 0o555,
                    Synthetic::Descriptors => 0o500,
                    Synthetic::DescriptorInfos => 0o555,
                    Synthetic::File(_) => 0o444,
                    Synthetic::Link(_) => 0o777,
                    Synthetic::Device(device) => {
                        let (major, minor) = device.number();
                        attributes.special = libc::makedev(major, minor);
                        0o666
                    }
                };
            }
            Vnode::Descriptor(fd) => {
                attributes.device = 3;
                attributes.inode = 0x1_0000 + u64::from(fd);
                attributes.mode = 0o700;
                attributes.size = 64;
            }
            Vnode::DescriptorInfo(fd) => {
                attributes.device = 3;
                attributes.inode = 0x2_0000 + u64::from(fd);
                attributes.mode = 0o444;
            }
            Vnode::Task(tid) => {
                attributes.device = 3;
                attributes.inode = 0x10_0000 + u64::from(tid);
            }
        }
        let of_process = match vnode {
            Vnode::Descriptor(_) | Vnode::DescriptorInfo(_) | Vnode::Task(_) => true,
            Vnode::Synthetic(number) => synthetic::node(number).is_some_and(|node| {
                matches!(
                    node.what,
                    Synthetic::ProcessDirectory
                        | Synthetic::Descriptors
                        | Synthetic::DescriptorInfos
                        | Synthetic::Tasks
                )
            }),
            Vnode::Image { .. } | Vnode::Memory(_) => false,
        };
        if of_process {
            (attributes.uid, attributes.gid) = self.process_owner;
        }
        Ok(attributes)
    }

    /// The entry at a position of a directory in an image: name and node.
    pub(crate) fn image_entry(&self, directory: Vnode, position: u64) -> Option<(Vec<u8>, u32)> {
        let Vnode::Image { image, node } = directory else {
            return None;
        };
        let image = self.images.get(image as usize)?;
        image
            .entry(NodeIndex(node), position)
            .map(|(name, child)| (name.to_vec(), child.0))
    }

    /// The entry at a position of the root directory past the image's own.
    pub(crate) fn extra_entry(&self, position: u64) -> Option<(Vec<u8>, Vnode)> {
        self.extra
            .iter()
            .nth(position as usize)
            .map(|(name, node)| (name.clone(), *node))
    }

    /// Lays `/proc`, `/sys`, `/dev`, `/tmp` and `/dev/shm` over the root image, which may lack the directories.
    pub(crate) fn mount_standard_trees(&mut self) {
        let root_maker = Maker {
            uid: ROOT,
            gid: ROOT,
            now_ns: 0,
        };
        for (name, kind) in [
            ("proc", "proc"),
            ("sys", "sysfs"),
            ("dev", "devtmpfs"),
            ("tmp", "tmpfs"),
        ] {
            let at = match self.lookup(self.root(), name.as_bytes()) {
                Ok(node) => node,
                Err(_) => {
                    let made = self
                        .memory
                        .create(Kind::Directory(Default::default()), 0o555, root_maker);
                    let Ok(number) = made else { continue };
                    self.memory.hold(number);
                    self.extra.insert(name.into(), Vnode::Memory(number));
                    Vnode::Memory(number)
                }
            };
            let path = format!("/{name}");
            match synthetic::number_of(name) {
                Some(number) => self.mount(at, Vnode::Synthetic(number), &path, kind),
                // A limit too low for a single directory leaves the guest without /tmp.
                None => self
                    .mount_memory(at, &path, 0o1777, root_maker)
                    .unwrap_or_default(),
            }
        }
        if let Some(shm) = synthetic::number_of("dev/shm") {
            self.mount_memory(Vnode::Synthetic(shm), "/dev/shm", 0o1777, root_maker)
                .unwrap_or_default();
        }
    }

    /// Size of a regular file; zero for what has none.
    pub(crate) fn size_of(&self, vnode: Vnode) -> u64 {
        match vnode {
            Vnode::Image { image, node } => self.image_node(image, node).map_or(0, |(_, node)| node.size),
            Vnode::Memory(number) => self.memory.contents(number).map_or(0, |contents| contents.size()),
            Vnode::Synthetic(_) | Vnode::Descriptor(_) | Vnode::DescriptorInfo(_) | Vnode::Task(_) => 0,
        }
    }

    /// Target of a link that has one of its own.
    pub(crate) fn link_target(&self, vnode: Vnode) -> Result<Vec<u8>, Errno> {
        match vnode {
            Vnode::Image { image, node } => {
                let (source, _) = self.image_node(image, node)?;
                source.link(NodeIndex(node)).map(<[u8]>::to_vec).ok_or(EINVAL)
            }
            Vnode::Memory(number) => match &self.memory.get(number)?.kind {
                Kind::Symlink(target) => Ok(target.clone()),
                Kind::Directory(_) | Kind::File(_) | Kind::Fifo(_) | Kind::Socket => Err(EINVAL),
            },
            Vnode::Synthetic(_) | Vnode::Descriptor(_) | Vnode::DescriptorInfo(_) | Vnode::Task(_) => {
                Err(EINVAL)
            }
        }
    }

    /// Hands out the contents of a file from `offset` on, at most `bytes`, piece by piece with each piece's offset.
    pub(crate) fn with_contents(
        &self,
        vnode: Vnode,
        offset: u64,
        bytes: u64,
        mut take: impl FnMut(u64, &[u8]),
    ) {
        match vnode {
            Vnode::Image { image, node } => {
                let Some(data) = self
                    .images
                    .get(image as usize)
                    .and_then(|image| image.file(NodeIndex(node)))
                else {
                    return;
                };
                let start = (offset as usize).min(data.len());
                let end = start.saturating_add(bytes as usize).min(data.len());
                take(offset, &data[start..end]);
            }
            Vnode::Memory(number) => {
                let Some(contents) = self.memory.contents(number) else {
                    return;
                };
                let mut buffer = [0; PAGE as usize];
                let mut at = offset;
                let end = offset.saturating_add(bytes);
                while at < end {
                    let piece = (end - at).min(PAGE) as usize;
                    let read = contents.read(at, &mut buffer[..piece]);
                    if read == 0 {
                        return;
                    }
                    take(at, &buffer[..read]);
                    at += read as u64;
                }
            }
            Vnode::Synthetic(_) | Vnode::Descriptor(_) | Vnode::DescriptorInfo(_) | Vnode::Task(_) => {}
        }
    }

    /// The bytes of a file in an image. They belong to the image, so they can be used while the tree changes.
    pub(crate) fn image_contents(&self, vnode: Vnode) -> Option<ImageFile> {
        let Vnode::Image { image, node } = vnode else {
            return None;
        };
        let image = self.images.get(image as usize)?;
        image.file(NodeIndex(node))?;
        Some(ImageFile {
            image: image.clone(),
            node: NodeIndex(node),
        })
    }

    /// Reads from a file in memory.
    pub(crate) fn read_memory(&self, vnode: Vnode, offset: u64, out: &mut [u8]) -> usize {
        match vnode {
            Vnode::Memory(number) => self
                .memory
                .contents(number)
                .map_or(0, |contents| contents.read(offset, out)),
            Vnode::Image { .. }
            | Vnode::Synthetic(_)
            | Vnode::Descriptor(_)
            | Vnode::DescriptorInfo(_)
            | Vnode::Task(_) => 0,
        }
    }

    /// Reads from a regular file of either kind.
    pub(crate) fn read_any(&self, vnode: Vnode, offset: u64, out: &mut [u8]) -> usize {
        let Some(file) = self.image_contents(vnode) else {
            return self.read_memory(vnode, offset, out);
        };
        let data = file.as_ref();
        let start = (offset as usize).min(data.len());
        let bytes = out.len().min(data.len() - start);
        out[..bytes].copy_from_slice(&data[start..start + bytes]);
        bytes
    }

    /// Writes to a file in memory.
    pub(crate) fn write_memory(&mut self, vnode: Vnode, offset: u64, data: &[u8]) -> Result<(), Errno> {
        match vnode {
            Vnode::Memory(number) => self.memory.write(number, offset, data),
            Vnode::Image { .. }
            | Vnode::Synthetic(_)
            | Vnode::Descriptor(_)
            | Vnode::DescriptorInfo(_)
            | Vnode::Task(_) => Err(EROFS),
        }
    }

    /// Memory that files take, in bytes.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.memory.used_bytes()
    }

    /// The node in memory that a vnode is, for calls that change it.
    pub(crate) fn writable(vnode: Vnode) -> Result<u32, Errno> {
        match vnode {
            Vnode::Memory(number) => Ok(number),
            Vnode::Image { .. }
            | Vnode::Synthetic(_)
            | Vnode::Descriptor(_)
            | Vnode::DescriptorInfo(_)
            | Vnode::Task(_) => Err(EROFS),
        }
    }

    /// Lays a directory in memory over `path`, a directory that exists.
    pub(crate) fn mount_memory(
        &mut self,
        at: Vnode,
        path: &str,
        mode: u32,
        maker: Maker,
    ) -> Result<(), Errno> {
        let root = self
            .memory
            .create(Kind::Directory(Default::default()), mode, maker)?;
        self.memory.hold(root);
        self.mount(at, Vnode::Memory(root), path, "tmpfs");
        Ok(())
    }

    /// Lays a tree over a directory.
    pub(crate) fn mount(&mut self, at: Vnode, root: Vnode, path: &str, kind: &str) {
        self.mounts.push(Mount {
            at,
            root,
            path: path.into(),
            kind: kind.into(),
        });
    }
}

/// The contents of a file in an image, which they keep alive.
#[derive(Debug, Clone)]
pub(crate) struct ImageFile {
    image: Image,
    node: NodeIndex,
}

impl ImageFile {
    pub(crate) fn len(&self) -> usize {
        self.as_ref().len()
    }
}

impl AsRef<[u8]> for ImageFile {
    fn as_ref(&self) -> &[u8] {
        self.image.file(self.node).unwrap_or_default()
    }
}
