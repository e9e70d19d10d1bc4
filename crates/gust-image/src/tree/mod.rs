//! A file tree on its way into an image.
//!
//! Builders (from a directory, a code package, image layers, Debian packages) fill a [`Tree`]; the writer lays it
//! out. Names and kinds are in memory, contents in a [`Spool`] on disk.
//!
//! Paths are relative to the root, separated by `/`; leading `/` and `./` are ignored. `..` is refused, always.
//! Symbolic links *inside* a path are followed within the tree, as an unpacker that stands in the tree's root would
//! see them, so that `lib/x` lands in `usr/lib/x` where `lib` is a link. Nothing can be placed outside of the tree.

mod error;
mod walk;

use std::{
    collections::BTreeMap,
    io::{self, Read},
    path::Path,
};

use crate::{
    format::{LINK_BYTES_MAX, NODES_MAX},
    spool::{ContentId, Spool},
};

pub use error::TreeError;
use walk::{WalkError, components, printable};

/// Attributes of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// Permission bits; others are cut off.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of the last change, seconds of the Unix epoch.
    pub mtime_s: i64,
}

impl Attributes {
    /// Root's, from the epoch, with these permission bits.
    pub fn root(mode: u16) -> Self {
        Self {
            mode,
            uid: 0,
            gid: 0,
            mtime_s: 0,
        }
    }
}

/// Place of a node in its tree.
pub(crate) type Slot = usize;

#[derive(Debug)]
pub(crate) struct TreeNode {
    pub attributes: Attributes,
    pub kind: TreeKind,
}

#[derive(Debug)]
pub(crate) enum TreeKind {
    Directory {
        parent: Slot,
        children: BTreeMap<Vec<u8>, Slot>,
    },
    File(ContentId),
    Symlink(Vec<u8>),
}

/// What stands at a path of a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found<'a> {
    /// A directory.
    Directory,
    /// A file of this many bytes.
    File(u64),
    /// A symbolic link with this target.
    Symlink(&'a [u8]),
}

/// A file tree that is being put together.
#[derive(Debug)]
pub struct Tree {
    nodes: Vec<TreeNode>,
    spool: Spool,
}

/// Where a path ends: the directory that holds its last name.
struct Place {
    parent: Slot,
    name: Vec<u8>,
}

impl Tree {
    /// An empty tree: a root directory of mode 0755. Contents are set aside in an unnamed file in `spool_dir`.
    ///
    /// # Errors
    /// When that file cannot be made.
    pub fn new(spool_dir: &Path) -> io::Result<Self> {
        let kind = TreeKind::Directory {
            parent: 0,
            children: BTreeMap::new(),
        };
        Ok(Self {
            nodes: vec![TreeNode {
                attributes: Attributes::root(0o755),
                kind,
            }],
            spool: Spool::new(spool_dir)?,
        })
    }

    /// Places a directory, or gives an existing one these attributes. What else stood there is replaced.
    ///
    /// # Errors
    /// See [`TreeError`]; the same for the other placements.
    pub fn directory(&mut self, path: &[u8], attributes: Attributes) -> Result<(), TreeError> {
        if components(path)?.is_empty() {
            self.nodes[0].attributes = attributes;
            return Ok(());
        }
        let place = self.place(path)?;
        match self.child(place.parent, &place.name) {
            Some(slot) if matches!(self.nodes[slot].kind, TreeKind::Directory { .. }) => {
                self.nodes[slot].attributes = attributes;
            }
            Some(_) | None => {
                let kind = TreeKind::Directory {
                    parent: place.parent,
                    children: BTreeMap::new(),
                };
                self.put(place, TreeNode { attributes, kind })?;
            }
        }
        Ok(())
    }

    /// Places a file with everything that `content` gives; what stood there is replaced. Returns its size in bytes.
    pub fn file(
        &mut self,
        path: &[u8],
        attributes: Attributes,
        content: &mut dyn Read,
    ) -> Result<u64, TreeError> {
        let place = self.place(path)?;
        let id = self.spool.add(content).map_err(|source| TreeError::Content {
            path: printable(path),
            source,
        })?;
        self.put(
            place,
            TreeNode {
                attributes,
                kind: TreeKind::File(id),
            },
        )?;
        Ok(self.spool.bytes(id))
    }

    /// Places a symbolic link; what stood there is replaced.
    pub fn symlink(&mut self, path: &[u8], attributes: Attributes, target: &[u8]) -> Result<(), TreeError> {
        if target.is_empty() || target.len() > LINK_BYTES_MAX || target.contains(&0) {
            return Err(TreeError::Unrepresentable(printable(path)));
        }
        let place = self.place(path)?;
        self.put(
            place,
            TreeNode {
                attributes,
                kind: TreeKind::Symlink(target.to_vec()),
            },
        )
        .map(|_| ())
    }

    /// Gives a file or symbolic link of the tree a second name.
    pub fn hard_link(&mut self, path: &[u8], existing: &[u8]) -> Result<(), TreeError> {
        let bad = || TreeError::BadHardLink(printable(existing));
        let from = self.place(existing).map_err(|_| bad())?;
        let slot = self.child(from.parent, &from.name).ok_or_else(bad)?;
        if matches!(self.nodes[slot].kind, TreeKind::Directory { .. }) {
            return Err(bad());
        }
        let place = self.place(path)?;
        self.children_mut(place.parent).insert(place.name, slot);
        Ok(())
    }

    /// Takes away what stands at a path, with all beneath it. Returns whether there was anything.
    pub fn remove(&mut self, path: &[u8]) -> bool {
        self.find(path)
            .is_some_and(|(parent, name, _)| self.children_mut(parent).remove(&name).is_some())
    }

    /// Empties a directory, if there is one at this path.
    pub fn clear(&mut self, path: &[u8]) {
        if let Some(slot) = self.slot(path)
            && let TreeKind::Directory { children, .. } = &mut self.nodes[slot].kind
        {
            children.clear();
        }
    }

    /// What stands at a path; a symbolic link at its end is not followed.
    pub fn get(&self, path: &[u8]) -> Option<Found<'_>> {
        Some(match &self.nodes[self.slot(path)?].kind {
            TreeKind::Directory { .. } => Found::Directory,
            TreeKind::File(id) => Found::File(self.spool.bytes(*id)),
            TreeKind::Symlink(target) => Found::Symlink(target),
        })
    }

    /// Whether a path leads to a directory when symbolic links are followed.
    pub fn is_directory(&self, path: &[u8]) -> bool {
        components(path).is_ok_and(|names| self.walk(&names).is_ok())
    }

    /// Names in a directory, sorted; nothing when there is no directory at this path.
    pub fn names(&self, path: &[u8]) -> impl Iterator<Item = &[u8]> {
        let children = self.slot(path).and_then(|slot| match &self.nodes[slot].kind {
            TreeKind::Directory { children, .. } => Some(children),
            TreeKind::File(_) | TreeKind::Symlink(_) => None,
        });
        children
            .into_iter()
            .flat_map(|children| children.keys().map(Vec::as_slice))
    }

    /// Content of a file, whole. `None` when there is no file at this path or it has more than `bytes_max`.
    ///
    /// # Errors
    /// When the content cannot be read back.
    pub fn read(&self, path: &[u8], bytes_max: u64) -> io::Result<Option<Vec<u8>>> {
        match self.slot(path).map(|slot| &self.nodes[slot].kind) {
            Some(TreeKind::File(id)) if self.spool.bytes(*id) <= bytes_max => {
                let mut content = Vec::new();
                self.spool.copy_to(*id, &mut content)?;
                Ok(Some(content))
            }
            Some(TreeKind::File(_) | TreeKind::Directory { .. } | TreeKind::Symlink(_)) | None => Ok(None),
        }
    }

    /// Attributes of what stands at a path.
    pub fn attributes(&self, path: &[u8]) -> Option<Attributes> {
        Some(self.nodes[self.slot(path)?].attributes)
    }

    /// Time of the latest change of any node, seconds of the Unix epoch.
    pub fn newest_mtime_s(&self) -> i64 {
        self.nodes
            .iter()
            .map(|node| node.attributes.mtime_s)
            .max()
            .unwrap_or(0)
    }

    /// Gives nodes that changed after a time that time.
    pub fn clamp_mtimes(&mut self, newest_s: i64) {
        for node in &mut self.nodes {
            node.attributes.mtime_s = node.attributes.mtime_s.min(newest_s);
        }
    }

    pub(crate) fn nodes(&self) -> &[TreeNode] {
        &self.nodes
    }

    pub(crate) fn spool(&self) -> &Spool {
        &self.spool
    }

    /// Finds where a path ends, making the directories on the way.
    fn place(&mut self, path: &[u8]) -> Result<Place, TreeError> {
        let mut names = components(path)?;
        let name = names.pop().ok_or_else(|| TreeError::EmptyPath(printable(path)))?;
        for made in 1..=names.len() {
            match self.walk(&names[..made]) {
                Ok(_) => {}
                Err(WalkError::Missing(parent, name)) => {
                    let kind = TreeKind::Directory {
                        parent,
                        children: BTreeMap::new(),
                    };
                    let node = TreeNode {
                        attributes: Attributes::root(0o755),
                        kind,
                    };
                    self.put(Place { parent, name }, node)?;
                }
                Err(WalkError::NotADirectory) => return Err(TreeError::NotADirectory(printable(path))),
                Err(WalkError::BrokenLink) => return Err(TreeError::BrokenLink(printable(path))),
            }
        }
        let parent = self
            .walk(&names)
            .map_err(|_| TreeError::BrokenLink(printable(path)))?;
        Ok(Place { parent, name })
    }

    fn find(&self, path: &[u8]) -> Option<(Slot, Vec<u8>, Slot)> {
        let mut names = components(path).ok()?;
        let name = names.pop()?;
        let parent = self.walk(&names).ok()?;
        let slot = self.child(parent, &name)?;
        Some((parent, name, slot))
    }

    fn slot(&self, path: &[u8]) -> Option<Slot> {
        match components(path).ok()?.is_empty() {
            true => Some(0),
            false => self.find(path).map(|(_, _, slot)| slot),
        }
    }

    fn child(&self, directory: Slot, name: &[u8]) -> Option<Slot> {
        match &self.nodes[directory].kind {
            TreeKind::Directory { children, .. } => children.get(name).copied(),
            TreeKind::File(_) | TreeKind::Symlink(_) => None,
        }
    }

    fn children_mut(&mut self, directory: Slot) -> &mut BTreeMap<Vec<u8>, Slot> {
        match &mut self.nodes[directory].kind {
            TreeKind::Directory { children, .. } => children,
            TreeKind::File(_) | TreeKind::Symlink(_) => unreachable!("a place's parent is a directory"),
        }
    }

    fn put(&mut self, place: Place, mut node: TreeNode) -> Result<Slot, TreeError> {
        if self.nodes.len() >= NODES_MAX {
            return Err(TreeError::TooManyNodes);
        }
        node.attributes.mode &= 0o7777;
        let slot = self.nodes.len();
        self.nodes.push(node);
        self.children_mut(place.parent).insert(place.name, slot);
        Ok(slot)
    }
}
