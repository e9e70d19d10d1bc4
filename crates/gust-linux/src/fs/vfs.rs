//! The tree: which node is where, and what is known of it.

use std::collections::BTreeMap;

use gust_image::{Image, NodeIndex, NodeKind};
use serde::{Deserialize, Serialize};

use crate::{
    errno::{EINVAL, EIO, ENOENT, ENOTDIR, EROFS, Errno},
    fs::{
        NodeType, Vnode,
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
    pub(super) images: Vec<Image>,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) memory: MemoryFs,
    /// Directories that the root image lacks and mounts need.
    extra: BTreeMap<Vec<u8>, Vnode>,
    /// User and group that the process's own directories belong to.
    pub(crate) process_owner: (u32, u32),
}

/// Owner of image and synthetic nodes.
pub(super) const ROOT: u32 = 0;

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

    pub(super) fn image_node(&self, image: u8, node: u32) -> Result<(&Image, gust_image::Node), Errno> {
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
