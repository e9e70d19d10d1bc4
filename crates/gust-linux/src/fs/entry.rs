//! Directory entries: by which name a node was come by, and who is told what happens to it.
//!
//! As on Linux, an event is told to those who watch the node and, with its name, to those who watch the directory of the
//! name that was used: another link of the same file says nothing. Open files therefore keep their entry, which follows
//! when it is renamed and remembers its name when that is removed.

use std::sync::Arc;

use libc::{
    IN_ATTRIB, IN_CLOSE_NOWRITE, IN_CLOSE_WRITE, IN_CREATE, IN_DELETE, IN_ISDIR, IN_MODIFY, IN_MOVE_SELF,
    IN_MOVED_FROM, IN_MOVED_TO, IN_OPEN,
};
use serde::{Deserialize, Serialize};

use crate::{
    errno::{EBADF, EINVAL, Errno},
    fs::{Files, NodeType, OpenFile, Vnode, path::Resolved},
    io::Happening,
    kernel::Kernel,
};

/// A name in a directory.
pub(crate) type Place = (Vnode, Arc<[u8]>);

/// A node, and the name by which it was come by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) node: Vnode,
    /// Missing where the path ended in a directory without one (`/`, `.`, `..`), and for what has no name.
    pub(crate) place: Option<Place>,
    /// The name has been removed since.
    pub(crate) removed: bool,
}

impl Entry {
    /// A node without a name.
    pub(crate) fn unnamed(node: Vnode) -> Self {
        Self {
            node,
            place: None,
            removed: false,
        }
    }
}

impl Resolved {
    /// The entry that a path led to, which must exist.
    pub(crate) fn entry(&self) -> Result<Entry, Errno> {
        self.existing().map(|node| self.entry_of(node))
    }

    /// The same, for a node that has just been made there.
    pub(crate) fn entry_of(&self, node: Vnode) -> Entry {
        Entry {
            place: self.place(),
            ..Entry::unnamed(node)
        }
    }

    fn place(&self) -> Option<Place> {
        (!self.name.is_empty()).then(|| (self.parent, self.name.as_slice().into()))
    }
}

impl Files {
    /// Changes the entries of open files that have a name still.
    fn for_entries(&mut self, mut change: impl FnMut(&mut Entry)) {
        for entry in self.open_files_mut().filter_map(|file| file.entry.as_mut()) {
            if !entry.removed {
                change(entry);
            }
        }
    }

    fn entry_removed(&mut self, place: &Place) {
        self.for_entries(|entry| entry.removed = entry.place.as_ref() == Some(place));
    }

    fn entry_renamed(&mut self, from: &Place, to: &Place) {
        self.entry_removed(to);
        self.for_entries(|entry| {
            if entry.place.as_ref() == Some(from) {
                entry.place = Some(to.clone());
            }
        });
    }

    fn entries_exchanged(&mut self, a: &Place, b: &Place) {
        self.for_entries(|entry| match &entry.place {
            Some(place) if place == a => entry.place = Some(b.clone()),
            Some(place) if place == b => entry.place = Some(a.clone()),
            Some(_) | None => {}
        });
    }

    /// A node is no more, and its number will be another's: nothing that is told of an open file may reach that one.
    fn node_gone(&mut self, node: Vnode) {
        for file in self.open_files_mut() {
            if file.entry.as_ref().is_some_and(|entry| entry.node == node) {
                file.entry = None;
            } else if let Some(entry) = &mut file.entry
                && entry.place.as_ref().is_some_and(|place| place.0 == node)
            {
                entry.place = None;
            }
        }
    }
}

impl Kernel {
    /// The entry of an open file.
    pub(crate) fn file_entry(&self, fd: u64) -> Result<Entry, Errno> {
        self.files.usable(fd)?;
        self.any_file_entry(fd)
    }

    /// The same, where one that was opened with `O_PATH` will do.
    pub(crate) fn any_file_entry(&self, fd: u64) -> Result<Entry, Errno> {
        let file = self.files.get(fd).ok_or(EBADF)?;
        let unnamed = || file.kind.vnode().map(Entry::unnamed);
        file.entry.clone().or_else(unnamed).ok_or(EINVAL)
    }

    /// Tells those who watch a node, or the directory that it was found in, what happened to it.
    pub(crate) fn tell_entry(&mut self, entry: &Entry, mask: u32) {
        self.tell(entry, mask, false);
    }

    /// Tells what was done with an open file; nobody is told of what is in no directory.
    pub(crate) fn tell_file(&mut self, fd: u64, mask: u32) {
        if self.file_events.is_idle() {
            return;
        }
        if let Some(entry) = self.files.get(fd).and_then(|file| file.entry.clone()) {
            self.tell(&entry, mask, entry.removed);
        }
    }

    fn tell(&mut self, entry: &Entry, mask: u32, through_removed: bool) {
        if self.file_events.is_idle() {
            return;
        }
        let mask = mask | self.directory_bit(entry.node);
        let what = Happening {
            mask,
            through_removed,
            ..Happening::default()
        };
        if let Some((directory, name)) = self.told_place(entry) {
            self.tell_watchers(
                directory,
                &Happening {
                    name: Some(&name),
                    ..what
                },
            );
        }
        self.tell_watchers(entry.node, &what);
    }

    fn directory_bit(&self, node: Vnode) -> u32 {
        match self.vfs.node_type(node) {
            Ok(NodeType::Directory) => IN_ISDIR,
            Ok(_) | Err(_) => 0,
        }
    }

    /// The name that a node's directory is told with. What is mounted has none, and a directory can be asked for its own.
    fn told_place(&self, entry: &Entry) -> Option<Place> {
        if self.vfs.mounts.iter().any(|mount| mount.root == entry.node) {
            return None;
        }
        if entry.place.is_some() {
            return entry.place.clone();
        }
        if self.directory_bit(entry.node) == 0 {
            return None;
        }
        let parent = self.vfs.parent(entry.node);
        if parent == entry.node || !self.file_events.watches(parent) {
            return None;
        }
        Some((parent, self.name_in(parent, entry.node)?.into()))
    }

    fn tell_place(&mut self, (directory, name): &Place, mask: u32, cookie: u32) {
        self.tell_watchers(
            *directory,
            &Happening {
                mask,
                cookie,
                name: Some(name),
                ..Happening::default()
            },
        );
    }

    /// Tells those who watch the node alone.
    fn tell_node(&mut self, node: Vnode, mask: u32) {
        let mask = mask | self.directory_bit(node);
        self.tell_watchers(
            node,
            &Happening {
                mask,
                ..Happening::default()
            },
        );
    }

    /// A file has been opened, by this descriptor.
    pub(crate) fn announce_opening(&mut self, fd: u64) {
        if let Some(file) = self.files.get_mut(fd)
            && file.flags & libc::O_PATH == 0
        {
            file.announced = true;
            self.tell_file(fd, IN_OPEN);
        }
    }

    /// The last reference to an open file is going away.
    pub(crate) fn announce_closing(&mut self, file: &OpenFile) {
        if let Some(entry) = file.entry.as_ref().filter(|_| file.announced) {
            let mask = if file.writable() {
                IN_CLOSE_WRITE
            } else {
                IN_CLOSE_NOWRITE
            };
            self.tell(entry, mask, entry.removed);
        }
    }

    /// A name has been made for a new node.
    pub(crate) fn entry_created(&mut self, at: &Resolved, node: Vnode) {
        if let Some(place) = at.place().filter(|_| !self.file_events.is_idle()) {
            let mask = IN_CREATE | self.directory_bit(node);
            self.tell_place(&place, mask, 0);
        }
    }

    /// A node has got a further name.
    pub(crate) fn entry_linked(&mut self, at: &Resolved, node: Vnode) {
        self.tell_node(node, IN_ATTRIB);
        self.entry_created(at, node);
    }

    /// A name has been removed.
    pub(crate) fn entry_unlinked(&mut self, at: &Resolved, node: Vnode, directory: bool) {
        let Some(place) = at.place() else { return };
        self.files.entry_removed(&place);
        if !directory {
            self.tell_node(node, IN_ATTRIB);
        }
        self.tell_of_gone_nodes();
        let mask = if directory {
            IN_DELETE | IN_ISDIR
        } else {
            IN_DELETE
        };
        self.tell_place(&place, mask, 0);
    }

    /// A node's name has become another; what that named before has lost it, or has got the first in exchange.
    pub(crate) fn entry_moved(&mut self, from: &Resolved, to: &Resolved, moved: Vnode, exchanged: bool) {
        let (Some(old), Some(new)) = (from.place(), to.place()) else {
            return;
        };
        if exchanged {
            self.files.entries_exchanged(&old, &new);
        } else {
            self.files.entry_renamed(&old, &new);
        }
        if self.file_events.is_idle() {
            return;
        }
        let replaced = to.node.filter(|_| !exchanged);
        self.tell_move(&old, &new, moved, replaced);
        if let Some(other) = to.node.filter(|_| exchanged) {
            self.tell_move(&new, &old, other, None);
        }
    }

    fn tell_move(&mut self, from: &Place, to: &Place, moved: Vnode, replaced: Option<Vnode>) {
        let cookie = self.file_events.next_cookie();
        let bit = self.directory_bit(moved);
        self.tell_place(from, IN_MOVED_FROM | bit, cookie);
        self.tell_place(to, IN_MOVED_TO | bit, cookie);
        if let Some(node) = replaced {
            self.tell_node(node, IN_ATTRIB);
        }
        self.tell_node(moved, IN_MOVE_SELF);
    }

    /// Nodes in memory that went with their last name and user: whoever watched one is told, and nothing refers to it.
    pub(crate) fn tell_of_gone_nodes(&mut self) {
        for number in self.vfs.memory.take_gone() {
            let node = Vnode::Memory(number);
            self.files.node_gone(node);
            self.tell_of_end(node);
        }
    }
}

/// The event that setting these times is: one of them alone is what happened to the file then.
pub(crate) fn times_mask(accessed: bool, modified: bool) -> u32 {
    match (accessed, modified) {
        (true, true) => IN_ATTRIB,
        (true, false) => libc::IN_ACCESS,
        (false, true) => IN_MODIFY,
        (false, false) => 0,
    }
}
