//! The writable file system: nodes in memory, bounded in bytes and in number.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    errno::{EEXIST, EFBIG, EINVAL, EISDIR, EMLINK, ENOENT, ENOSPC, ENOTDIR, ENOTEMPTY, Errno},
    fs::{NodeType, contents::Contents},
    slab::Slab,
};

/// Most nodes.
const NODES_MAX: usize = 131_072;
/// Memory that a node and its name are counted as, in bytes.
const NODE_BYTES: u64 = 256;
/// Largest file.
const FILE_BYTES_MAX: u64 = 1 << 40;

/// What an extended attribute is charged with, in bytes.
fn attribute_bytes((name, value): (&Vec<u8>, &Vec<u8>)) -> u64 {
    const RECORD_BYTES: u64 = 64;
    RECORD_BYTES + name.len() as u64 + value.len() as u64
}

/// What a node is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Kind {
    /// Names and nodes.
    Directory(BTreeMap<Vec<u8>, u32>),
    /// A file.
    File(Contents),
    /// A link's target.
    Symlink(Vec<u8>),
    /// A named pipe, by number, once it has been opened.
    Fifo(Option<u32>),
    /// A bound UNIX socket.
    Socket,
}

/// A node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct MemoryNode {
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) links: u32,
    /// Open files and mappings that keep the node alive without a name.
    pub(crate) holders: u32,
    /// The directory that a directory is in; itself at the root.
    pub(crate) parent: u32,
    pub(crate) accessed_ns: i64,
    pub(crate) modified_ns: i64,
    pub(crate) changed_ns: i64,
    /// `F_SEAL_*` of a memory file.
    pub(crate) seals: u32,
    /// Extended attributes.
    pub(crate) attributes: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl MemoryNode {
    pub(crate) fn node_type(&self) -> NodeType {
        match self.kind {
            Kind::Directory(_) => NodeType::Directory,
            Kind::File(_) => NodeType::Regular,
            Kind::Symlink(_) => NodeType::Symlink,
            Kind::Fifo(_) => NodeType::Fifo,
            Kind::Socket => NodeType::Socket,
        }
    }
}

/// Who makes a node, and when.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Maker {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) now_ns: i64,
}

/// All nodes in memory.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct MemoryFs {
    nodes: Slab<MemoryNode>,
    used_bytes: u64,
    limit_bytes: u64,
    /// Nodes that are no more, for who watched them; emptied when the call ends that they went with.
    #[serde(skip)]
    gone: Vec<u32>,
}

impl MemoryFs {
    pub(crate) fn new(limit_bytes: u64) -> Self {
        Self {
            nodes: Slab::default(),
            used_bytes: 0,
            limit_bytes,
            gone: Vec::new(),
        }
    }

    pub(crate) fn set_limit(&mut self, limit_bytes: u64) {
        self.limit_bytes = limit_bytes;
    }

    pub(crate) fn used_bytes(&self) -> u64 {
        self.used_bytes
    }

    pub(crate) fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    pub(crate) fn node_count(&self) -> u64 {
        self.nodes.len() as u64
    }

    pub(crate) fn get(&self, number: u32) -> Result<&MemoryNode, Errno> {
        self.nodes.get(number).ok_or(ENOENT)
    }

    pub(crate) fn get_mut(&mut self, number: u32) -> Result<&mut MemoryNode, Errno> {
        self.nodes.get_mut(number).ok_or(ENOENT)
    }

    fn charge(&mut self, bytes: u64) -> Result<(), Errno> {
        if self.used_bytes + bytes > self.limit_bytes {
            return Err(ENOSPC);
        }
        self.used_bytes += bytes;
        Ok(())
    }

    /// Makes a node without a name.
    pub(crate) fn create(&mut self, kind: Kind, mode: u32, maker: Maker) -> Result<u32, Errno> {
        if self.nodes.len() >= NODES_MAX {
            return Err(ENOSPC);
        }
        self.charge(NODE_BYTES)?;
        let links = if matches!(kind, Kind::Directory(_)) { 2 } else { 0 };
        let number = self.nodes.insert(MemoryNode {
            kind,
            mode,
            uid: maker.uid,
            gid: maker.gid,
            links,
            holders: 0,
            parent: 0,
            accessed_ns: maker.now_ns,
            modified_ns: maker.now_ns,
            changed_ns: maker.now_ns,
            seals: 0,
            attributes: BTreeMap::new(),
        });
        if let Some(node) = self.nodes.get_mut(number) {
            node.parent = number;
        }
        Ok(number)
    }

    fn entries(&self, directory: u32) -> Result<&BTreeMap<Vec<u8>, u32>, Errno> {
        match &self.get(directory)?.kind {
            Kind::Directory(entries) => Ok(entries),
            Kind::File(_) | Kind::Symlink(_) | Kind::Fifo(_) | Kind::Socket => Err(ENOTDIR),
        }
    }

    fn entries_mut(&mut self, directory: u32) -> Result<&mut BTreeMap<Vec<u8>, u32>, Errno> {
        match &mut self.get_mut(directory)?.kind {
            Kind::Directory(entries) => Ok(entries),
            Kind::File(_) | Kind::Symlink(_) | Kind::Fifo(_) | Kind::Socket => Err(ENOTDIR),
        }
    }

    pub(crate) fn lookup(&self, directory: u32, name: &[u8]) -> Result<u32, Errno> {
        self.entries(directory)?.get(name).copied().ok_or(ENOENT)
    }

    /// The entry at a position, in the order of names.
    pub(crate) fn entry(&self, directory: u32, position: u64) -> Option<(Vec<u8>, u32)> {
        let entries = self.entries(directory).ok()?;
        entries
            .iter()
            .nth(position as usize)
            .map(|(name, number)| (name.clone(), *number))
    }

    /// The entry whose name is next after one that may be gone.
    pub(crate) fn entry_after(&self, directory: u32, name: &[u8]) -> Option<(Vec<u8>, u32)> {
        use std::ops::Bound::{Excluded, Unbounded};
        let entries = self.entries(directory).ok()?;
        entries
            .range::<[u8], _>((Excluded(name), Unbounded))
            .next()
            .map(|(name, number)| (name.clone(), *number))
    }

    fn is_directory(&self, number: u32) -> bool {
        self.get(number)
            .is_ok_and(|node| matches!(node.kind, Kind::Directory(_)))
    }

    /// Gives a node a name.
    pub(crate) fn link(
        &mut self,
        directory: u32,
        name: &[u8],
        number: u32,
        now_ns: i64,
    ) -> Result<(), Errno> {
        const LINKS_MAX: u32 = 65_000;
        if self.entries(directory)?.contains_key(name) {
            return Err(EEXIST);
        }
        // A directory that has been removed takes no names.
        if self.get(directory)?.links == 0 {
            return Err(ENOENT);
        }
        if self.get(number)?.links >= LINKS_MAX {
            return Err(EMLINK);
        }
        let is_directory = self.is_directory(number);
        self.entries_mut(directory)?.insert(name.to_vec(), number);
        let node = self.get_mut(number)?;
        node.changed_ns = now_ns;
        if is_directory {
            node.parent = directory;
            self.get_mut(directory)?.links += 1;
        } else {
            node.links += 1;
        }
        self.touch(directory, now_ns);
        Ok(())
    }

    /// Takes a name away; the node goes with its last name and holder.
    pub(crate) fn unlink(&mut self, directory: u32, name: &[u8], now_ns: i64) -> Result<(), Errno> {
        let number = self.lookup(directory, name)?;
        if self.is_directory(number) {
            return Err(EISDIR);
        }
        self.entries_mut(directory)?.remove(name);
        let node = self.get_mut(number)?;
        node.links -= 1;
        node.changed_ns = now_ns;
        self.touch(directory, now_ns);
        self.drop_if_unused(number);
        Ok(())
    }

    /// Removes an empty directory.
    pub(crate) fn rmdir(&mut self, directory: u32, name: &[u8], now_ns: i64) -> Result<(), Errno> {
        let number = self.lookup(directory, name)?;
        if !self.entries(number)?.is_empty() {
            return Err(ENOTEMPTY);
        }
        self.entries_mut(directory)?.remove(name);
        self.get_mut(number)?.links = 0;
        self.get_mut(directory)?.links -= 1;
        self.touch(directory, now_ns);
        self.drop_if_unused(number);
        Ok(())
    }

    /// Moves a name; what the new name meant is replaced if it may be.
    pub(crate) fn rename(
        &mut self,
        from: (u32, &[u8]),
        to: (u32, &[u8]),
        replace: bool,
        now_ns: i64,
    ) -> Result<(), Errno> {
        let moved = self.lookup(from.0, from.1)?;
        let is_directory = self.is_directory(moved);
        if is_directory && self.is_inside(to.0, moved) {
            return Err(EINVAL);
        }
        match self.lookup(to.0, to.1) {
            Ok(_) if !replace => return Err(EEXIST),
            Ok(target) if target == moved => return Ok(()),
            Ok(target) => match (is_directory, self.is_directory(target)) {
                (true, true) => self.rmdir(to.0, to.1, now_ns)?,
                (false, false) => self.unlink(to.0, to.1, now_ns)?,
                (true, false) => return Err(ENOTDIR),
                (false, true) => return Err(EISDIR),
            },
            Err(ENOENT) => {}
            Err(errno) => return Err(errno),
        }
        self.entries_mut(from.0)?.remove(from.1);
        self.entries_mut(to.0)?.insert(to.1.to_vec(), moved);
        if is_directory {
            self.get_mut(from.0)?.links -= 1;
            self.get_mut(to.0)?.links += 1;
            self.get_mut(moved)?.parent = to.0;
        }
        self.get_mut(moved)?.changed_ns = now_ns;
        self.touch(from.0, now_ns);
        self.touch(to.0, now_ns);
        Ok(())
    }

    /// Exchanges what two names mean.
    pub(crate) fn exchange(&mut self, a: (u32, &[u8]), b: (u32, &[u8]), now_ns: i64) -> Result<(), Errno> {
        let (node_a, node_b) = (self.lookup(a.0, a.1)?, self.lookup(b.0, b.1)?);
        if self.is_directory(node_a) && self.is_inside(b.0, node_a)
            || self.is_directory(node_b) && self.is_inside(a.0, node_b)
        {
            return Err(EINVAL);
        }
        self.entries_mut(a.0)?.insert(a.1.to_vec(), node_b);
        self.entries_mut(b.0)?.insert(b.1.to_vec(), node_a);
        for (node, old, new) in [(node_a, a.0, b.0), (node_b, b.0, a.0)] {
            if self.is_directory(node) {
                self.get_mut(old)?.links -= 1;
                self.get_mut(new)?.links += 1;
                self.get_mut(node)?.parent = new;
            }
        }
        self.touch(a.0, now_ns);
        self.touch(b.0, now_ns);
        Ok(())
    }

    /// Whether `directory` is `ancestor` or lies below it.
    fn is_inside(&self, directory: u32, ancestor: u32) -> bool {
        let mut at = directory;
        for _ in 0..NODES_MAX {
            if at == ancestor {
                return true;
            }
            match self.get(at) {
                Ok(node) if node.parent != at => at = node.parent,
                Ok(_) | Err(_) => return false,
            }
        }
        true
    }

    fn touch(&mut self, number: u32, now_ns: i64) {
        if let Some(node) = self.nodes.get_mut(number) {
            node.modified_ns = now_ns;
            node.changed_ns = now_ns;
        }
    }

    /// Counts one more user of a node.
    pub(crate) fn hold(&mut self, number: u32) {
        if let Some(node) = self.nodes.get_mut(number) {
            node.holders += 1;
        }
    }

    /// Counts one user less.
    pub(crate) fn release(&mut self, number: u32) {
        if let Some(node) = self.nodes.get_mut(number) {
            node.holders = node.holders.saturating_sub(1);
        }
        self.drop_if_unused(number);
    }

    fn drop_if_unused(&mut self, number: u32) {
        let unused = self
            .nodes
            .get(number)
            .is_some_and(|node| node.links == 0 && node.holders == 0);
        if unused && let Some(node) = self.nodes.remove(number) {
            let contents = if let Kind::File(contents) = &node.kind {
                contents.memory_bytes()
            } else {
                0
            };
            let attributes = node.attributes.iter().map(attribute_bytes).sum::<u64>();
            self.used_bytes -= contents + attributes + NODE_BYTES;
            self.gone.push(number);
        }
    }

    /// The nodes that are no more since this was last asked.
    pub(crate) fn take_gone(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.gone)
    }

    /// Sets an extended attribute, or takes it away; what it needs is charged like contents.
    pub(crate) fn set_attribute(
        &mut self,
        number: u32,
        name: Vec<u8>,
        value: Option<Vec<u8>>,
        now_ns: i64,
    ) -> Result<(), Errno> {
        let node = self.get(number)?;
        let before = node.attributes.get_key_value(&name).map_or(0, attribute_bytes);
        let after = value.as_ref().map_or(0, |value| attribute_bytes((&name, value)));
        self.charge(after.saturating_sub(before))?;
        self.used_bytes -= before.saturating_sub(after);
        let node = self.get_mut(number)?;
        match value {
            Some(value) => drop(node.attributes.insert(name, value)),
            None => drop(node.attributes.remove(&name)),
        }
        node.changed_ns = now_ns;
        Ok(())
    }

    fn file_mut(&mut self, number: u32) -> Result<&mut Contents, Errno> {
        match &mut self.get_mut(number)?.kind {
            Kind::File(contents) => Ok(contents),
            Kind::Directory(_) => Err(EISDIR),
            Kind::Symlink(_) | Kind::Fifo(_) | Kind::Socket => Err(EINVAL),
        }
    }

    pub(crate) fn contents(&self, number: u32) -> Option<&Contents> {
        match &self.get(number).ok()?.kind {
            Kind::File(contents) => Some(contents),
            Kind::Directory(_) | Kind::Symlink(_) | Kind::Fifo(_) | Kind::Socket => None,
        }
    }

    /// Writes to a file; all or nothing.
    pub(crate) fn write(&mut self, number: u32, offset: u64, data: &[u8]) -> Result<(), Errno> {
        offset
            .checked_add(data.len() as u64)
            .filter(|end| *end <= FILE_BYTES_MAX)
            .ok_or(EFBIG)?;
        let growth = self.file_mut(number)?.growth(offset, data.len() as u64);
        self.charge(growth)?;
        self.file_mut(number)?.write(offset, data);
        Ok(())
    }

    pub(crate) fn set_size(&mut self, number: u32, size: u64) -> Result<(), Errno> {
        if size > FILE_BYTES_MAX {
            return Err(EFBIG);
        }
        let contents = self.file_mut(number)?;
        let before = contents.memory_bytes();
        contents.set_size(size);
        let after = contents.memory_bytes();
        self.used_bytes -= before - after;
        Ok(())
    }

    pub(crate) fn punch(&mut self, number: u32, offset: u64, bytes: u64) -> Result<(), Errno> {
        let contents = self.file_mut(number)?;
        let before = contents.memory_bytes();
        contents.punch(offset, bytes);
        let after = contents.memory_bytes();
        self.used_bytes -= before - after;
        Ok(())
    }
}
