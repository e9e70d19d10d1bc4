//! Path resolution.

use crate::{
    abi::NAME_MAX,
    errno::{EACCES, EBADF, EINVAL, ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR, EROFS, Errno},
    fs::{
        FileKind, NodeType, Vnode,
        synthetic::{self, LinkTo, Synthetic},
    },
    kernel::{Cx, Kernel},
};

/// Most links that one resolution follows.
const LINKS_MAX: usize = 40;

/// Whether a link at the end of a path is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Last {
    /// Its target is meant.
    Follow,
    /// The link itself is meant.
    Keep,
}

/// What a path leads to.
#[derive(Debug, Clone)]
pub(crate) struct Resolved {
    /// The directory that the last name is in.
    pub(crate) parent: Vnode,
    /// The last name; empty when the path ends in a directory that has none (`/`, `.`, `..`).
    pub(crate) name: Vec<u8>,
    /// The node, if there is one.
    pub(crate) node: Option<Vnode>,
    /// The path ended with a slash: only a directory will do.
    pub(crate) wants_directory: bool,
}

impl Resolved {
    /// The node, which must exist.
    pub(crate) fn existing(&self) -> Result<Vnode, Errno> {
        self.node.ok_or(ENOENT)
    }
}

impl Kernel {
    /// The directory that a path relative to a descriptor begins at.
    pub(crate) fn start_directory(&self, fd: u64, path: &[u8]) -> Result<Vnode, Errno> {
        if path.first() == Some(&b'/') {
            return Ok(self.vfs.root());
        }
        if fd as i32 == libc::AT_FDCWD {
            return Ok(self.process.directory);
        }
        match self.files.get(fd).ok_or(EBADF)?.kind {
            FileKind::Directory(vnode) => Ok(vnode),
            FileKind::Path(vnode) if self.vfs.node_type(vnode)? == NodeType::Directory => Ok(vnode),
            _ => Err(ENOTDIR),
        }
    }

    /// Resolves a path that a guest gave, copied in.
    pub(crate) fn resolve_at(
        &self,
        cx: &Cx<'_>,
        fd: u64,
        path: &[u8],
        last: Last,
    ) -> Result<Resolved, Errno> {
        if path.is_empty() {
            return Err(ENOENT);
        }
        let start = self.start_directory(fd, path)?;
        self.resolve(cx.slot, start, path, last)
    }

    /// Resolves a path from a directory.
    pub(crate) fn resolve(
        &self,
        slot: usize,
        start: Vnode,
        path: &[u8],
        last: Last,
    ) -> Result<Resolved, Errno> {
        let mut links = 0;
        let resolved = self.walk(slot, start, path, last, &mut links)?;
        // Also where a link leads to something else: `link/` names a directory or nothing.
        if let Some(node) = resolved.node
            && resolved.wants_directory
            && self.vfs.node_type(node)? != NodeType::Directory
        {
            return Err(ENOTDIR);
        }
        Ok(resolved)
    }

    fn walk(
        &self,
        slot: usize,
        start: Vnode,
        path: &[u8],
        last: Last,
        links: &mut usize,
    ) -> Result<Resolved, Errno> {
        let mut at = if path.first() == Some(&b'/') {
            self.vfs.root()
        } else {
            start
        };
        let wants_directory = path.last() == Some(&b'/');
        let mut names = path
            .split(|byte| *byte == b'/')
            .filter(|name| !name.is_empty())
            .peekable();
        while let Some(name) = names.next() {
            if name.len() > NAME_MAX {
                return Err(ENAMETOOLONG);
            }
            let is_last = names.peek().is_none();
            if self.vfs.node_type(at)? != NodeType::Directory {
                return Err(ENOTDIR);
            }
            self.check_access(at, libc::X_OK)?;
            if name == b"." || name == b".." {
                if name == b".." {
                    at = self.vfs.parent(at);
                }
                continue;
            }
            let found = match self.lookup(at, name) {
                Err(ENOENT) if is_last => {
                    return Ok(Resolved {
                        parent: at,
                        name: name.to_vec(),
                        node: None,
                        wants_directory,
                    });
                }
                found => found?,
            };
            let follow = !is_last || last == Last::Follow || wants_directory;
            if !follow || self.vfs.node_type(found)? != NodeType::Symlink {
                if is_last {
                    return Ok(Resolved {
                        parent: at,
                        name: name.to_vec(),
                        node: Some(found),
                        wants_directory,
                    });
                }
                at = found;
                continue;
            }
            *links += 1;
            if *links > LINKS_MAX {
                return Err(ELOOP);
            }
            match self.follow(slot, found)? {
                Target::Node(node) if is_last => {
                    // The name is the file's own, if it has it still, not that of its descriptor.
                    let (parent, name) = self.own_place(found).unwrap_or((at, Vec::new()));
                    return Ok(Resolved {
                        parent,
                        name,
                        node: Some(node),
                        wants_directory,
                    });
                }
                Target::Node(node) => at = node,
                Target::Path(target) => {
                    if target.is_empty() {
                        return Err(ENOENT);
                    }
                    // What the link leads to, then the rest of the path from there.
                    let resolved = self.walk(slot, at, &target, Last::Follow, links)?;
                    if is_last {
                        return Ok(Resolved {
                            wants_directory: wants_directory || resolved.wants_directory,
                            ..resolved
                        });
                    }
                    at = resolved.existing()?;
                }
            }
        }
        Ok(Resolved {
            parent: at,
            name: Vec::new(),
            node: Some(at),
            wants_directory,
        })
    }

    /// A name in a directory as the guest sees it: with mounts, and the process's own directory in `/proc`.
    pub(crate) fn lookup(&self, directory: Vnode, name: &[u8]) -> Result<Vnode, Errno> {
        let found = match self.vfs.lookup(directory, name) {
            Err(ENOENT) => self.lookup_own_directory(directory, name)?,
            found => found?,
        };
        match found {
            Vnode::Descriptor(fd) | Vnode::DescriptorInfo(fd) if self.files.get(u64::from(fd)).is_none() => {
                return Err(ENOENT);
            }
            Vnode::Task(tid) if self.threads.find_tid(tid).is_none() && tid != self.process.pid => {
                return Err(ENOENT);
            }
            _ => {}
        }
        Ok(self.vfs.covered_by(found))
    }

    fn lookup_own_directory(&self, directory: Vnode, name: &[u8]) -> Result<Vnode, Errno> {
        let is_proc = directory == Vnode::Synthetic(synthetic::number_of("proc").ok_or(ENOENT)?);
        if is_proc && name == self.process.pid.to_string().as_bytes() {
            return Ok(Vnode::Synthetic(synthetic::number_of("proc/PID").ok_or(ENOENT)?));
        }
        Err(ENOENT)
    }

    /// Where a link leads.
    fn follow(&self, slot: usize, link: Vnode) -> Result<Target, Errno> {
        if let Vnode::Descriptor(fd) = link {
            // These links lead to the very file, whatever its name is now.
            let file = self.files.get(u64::from(fd)).ok_or(ENOENT)?;
            return Ok(file.kind.vnode().map_or(Target::Node(link), Target::Node));
        }
        self.read_link(slot, link).map(Target::Path)
    }

    /// The name that the file of a descriptor was opened by.
    fn own_place(&self, link: Vnode) -> Option<(Vnode, Vec<u8>)> {
        let Vnode::Descriptor(fd) = link else {
            return None;
        };
        let entry = self.files.get(u64::from(fd))?.entry.as_ref()?;
        let (directory, name) = entry.place.as_ref().filter(|_| !entry.removed)?;
        Some((*directory, name.to_vec()))
    }

    /// Text of a link.
    pub(crate) fn read_link(&self, slot: usize, link: Vnode) -> Result<Vec<u8>, Errno> {
        match link {
            Vnode::Synthetic(number) => match synthetic::node(number).ok_or(ENOENT)?.what {
                Synthetic::Link(LinkTo::OwnDirectory) => Ok(self.process.pid.to_string().into_bytes()),
                Synthetic::Link(LinkTo::OwnThread) => {
                    Ok(format!("{}/task/{}", self.process.pid, self.thread(slot).tid).into_bytes())
                }
                Synthetic::Link(LinkTo::Program) => Ok(self.process.program.clone()),
                Synthetic::Link(LinkTo::WorkingDirectory) => Ok(self.path_of(self.process.directory)),
                Synthetic::Link(LinkTo::Path(path)) => Ok(path.as_bytes().to_vec()),
                _ => Err(EINVAL),
            },
            Vnode::Descriptor(fd) => {
                let file = self.files.get(u64::from(fd)).ok_or(ENOENT)?;
                Ok(self.describe(file))
            }
            Vnode::Image { .. } | Vnode::Memory(_) | Vnode::DescriptorInfo(_) | Vnode::Task(_) => {
                self.vfs.link_target(link)
            }
        }
    }

    /// Absolute path of a directory.
    pub(crate) fn path_of(&self, directory: Vnode) -> Vec<u8> {
        /// Depth at which a tree is taken for damaged.
        const DEPTH_MAX: usize = 2048;
        let mut names: Vec<Vec<u8>> = Vec::new();
        let mut at = directory;
        while at != self.vfs.root() && names.len() < DEPTH_MAX {
            let parent = self.vfs.parent(at);
            let Some(name) = self.name_in(parent, at) else {
                break;
            };
            names.push(name);
            at = parent;
        }
        if names.is_empty() {
            return b"/".to_vec();
        }
        names
            .iter()
            .rev()
            .flat_map(|name| [b"/".as_slice(), name].concat())
            .collect()
    }

    /// Path of a node by the directory and name it was found under.
    pub(crate) fn path_in(&self, parent: Vnode, name: &[u8]) -> Vec<u8> {
        let mut path = self.path_of(parent);
        if name.is_empty() {
            return path;
        }
        if path != b"/" {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        path
    }

    pub(super) fn name_in(&self, parent: Vnode, child: Vnode) -> Option<Vec<u8>> {
        let mut position = 0;
        loop {
            let (name, node) = self.directory_entry(parent, position)?;
            if self.vfs.covered_by(node) == child || node == child {
                return Some(name);
            }
            position += 1;
        }
    }

    /// Whether the process may use a node so, as its user; root may all but run what nobody may.
    pub(crate) fn check_access(&self, vnode: Vnode, wanted: i32) -> Result<(), Errno> {
        // Told before rights are looked at, as Linux does.
        if wanted & libc::W_OK != 0 && matches!(vnode, Vnode::Image { .. }) {
            return Err(EROFS);
        }
        let attributes = self.vfs.attributes(vnode)?;
        let (uid, gid) = (self.process.uid, self.process.gid);
        if uid == 0 {
            let runnable = attributes.mode & 0o111 != 0 || attributes.node_type == NodeType::Directory;
            return if wanted & libc::X_OK != 0 && !runnable {
                Err(EACCES)
            } else {
                Ok(())
            };
        }
        let shift = if attributes.uid == uid {
            6
        } else if attributes.gid == gid {
            3
        } else {
            0
        };
        let granted = (attributes.mode >> shift) as i32 & 7;
        if wanted & !granted == 0 {
            Ok(())
        } else {
            Err(EACCES)
        }
    }
}

/// Where a link leads.
enum Target {
    Node(Vnode),
    Path(Vec<u8>),
}
