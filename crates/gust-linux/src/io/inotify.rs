//! inotify: what happens to files and directories, told through a file.
//!
//! An instance has watches, each of a node, and a queue of events. What a node's watchers are told comes from
//! `fs::entry`, which knows the names; here events are matched with watches, merged, bounded and read. A watch does not
//! keep its node: it goes with it.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use libc::{
    IN_ALL_EVENTS, IN_CLOEXEC, IN_DELETE_SELF, IN_DONT_FOLLOW, IN_EXCL_UNLINK, IN_IGNORED, IN_ISDIR,
    IN_MASK_ADD, IN_MASK_CREATE, IN_MOVE_SELF, IN_NONBLOCK, IN_ONESHOT, IN_ONLYDIR, IN_Q_OVERFLOW,
    IN_UNMOUNT,
};
use serde::{Deserialize, Serialize};

use crate::{
    abi::Writer,
    errno::{EEXIST, EFAULT, EINVAL, EMFILE, ENOSPC, ENOTDIR, Errno},
    fs::{FileKind, Last, NodeType, OpenFile, Transfer, Vnode},
    io::ObjectKey,
    kernel::{Cx, Flow, Kernel, SysResult},
    slab::Slab,
    user::{UserSlice, total},
};

/// Most instances; `/proc/sys/fs/inotify` tells it and the next two.
const INSTANCES_MAX: usize = 128;
/// Most watches of all instances.
const WATCHES_MAX: usize = 8192;
/// Most events that one instance keeps for its reader.
const QUEUE_MAX: usize = 16_384;
/// Most events that all instances keep: their names are memory of the personality's own.
const QUEUED_MAX: usize = 32_768;
/// Bytes of `struct inotify_event` without a name; names are padded to a multiple of it.
const RECORD_BYTES: usize = 16;
/// All that a caller may ask for.
const KNOWN: u32 = IN_ALL_EVENTS
    | IN_UNMOUNT
    | IN_Q_OVERFLOW
    | IN_IGNORED
    | IN_ISDIR
    | IN_ONLYDIR
    | IN_DONT_FOLLOW
    | IN_EXCL_UNLINK
    | IN_MASK_CREATE
    | IN_MASK_ADD
    | IN_ONESHOT;

/// What is told of a node.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Happening<'a> {
    /// `IN_*`
    pub(crate) mask: u32,
    /// Joins the two halves of a move.
    pub(crate) cookie: u32,
    /// Of an event in a directory: the name in it.
    pub(crate) name: Option<&'a Arc<[u8]>>,
    /// It happened through an open file whose name has been removed.
    pub(crate) through_removed: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Watch {
    node: Vnode,
    /// Events asked for, and `IN_EXCL_UNLINK` and `IN_ONESHOT`.
    mask: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Event {
    watch: i32,
    mask: u32,
    cookie: u32,
    name: Option<Arc<[u8]>>,
}

impl Event {
    /// Whether the event says nothing that the one before it did not say.
    fn repeats(&self, last: &Self) -> bool {
        self.watch == last.watch
            && self.mask == last.mask
            && self.mask & IN_IGNORED == 0
            && self.name == last.name
    }

    fn name_bytes(&self) -> usize {
        self.name
            .as_ref()
            .map_or(0, |name| (name.len() + 1).next_multiple_of(RECORD_BYTES))
    }

    fn record(&self) -> Vec<u8> {
        let name_bytes = self.name_bytes();
        Writer::with_capacity(RECORD_BYTES + name_bytes)
            .i32(self.watch)
            .u32(self.mask)
            .u32(self.cookie)
            .u32(name_bytes as u32)
            .bytes(self.name.as_deref().unwrap_or_default())
            .pad_to(RECORD_BYTES + name_bytes)
            .done()
    }
}

/// An instance.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Inotify {
    watches: BTreeMap<i32, Watch>,
    /// The watch descriptor given out last; they go up, so that a late event is not taken for another watch's.
    last_watch: i32,
    queue: VecDeque<Event>,
    /// The queue holds the event that others were lost.
    overflowed: bool,
}

impl Inotify {
    fn next_watch(&self) -> i32 {
        let mut number = self.last_watch;
        loop {
            number = number.checked_add(1).unwrap_or(1);
            if !self.watches.contains_key(&number) {
                return number;
            }
        }
    }
}

/// All instances, and who watches what.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct FileEvents {
    instances: Slab<Inotify>,
    /// Watches by node: instance and watch descriptor.
    watched: BTreeMap<Vnode, Vec<(u32, i32)>>,
    /// Watches of all instances.
    watches: usize,
    /// Events in all queues.
    queued: usize,
    /// The last move's.
    cookie: u32,
}

impl FileEvents {
    /// Whether nobody watches anything: the common case, which must cost nothing.
    pub(crate) fn is_idle(&self) -> bool {
        self.watches == 0
    }

    pub(crate) fn watches(&self, node: Vnode) -> bool {
        self.watched.contains_key(&node)
    }

    /// A number for the two halves of a move; never zero.
    pub(crate) fn next_cookie(&mut self) -> u32 {
        self.cookie = self.cookie.checked_add(1).unwrap_or(1);
        self.cookie
    }

    pub(crate) fn has_event(&self, number: u32) -> bool {
        let instance = self.instances.get(number);
        instance.is_some_and(|instance| !instance.queue.is_empty())
    }

    /// Bytes that a read with room enough gives.
    pub(crate) fn queued_bytes(&self, number: u32) -> u64 {
        let Some(instance) = self.instances.get(number) else {
            return 0;
        };
        let events = instance.queue.iter();
        events
            .map(|event| (RECORD_BYTES + event.name_bytes()) as u64)
            .sum()
    }

    fn push(&mut self, number: u32, event: Event) {
        let Some(instance) = self.instances.get_mut(number) else {
            return;
        };
        if instance.queue.back().is_some_and(|last| event.repeats(last)) {
            return;
        }
        if instance.queue.len() < QUEUE_MAX && self.queued < QUEUED_MAX {
            instance.queue.push_back(event);
            self.queued += 1;
        } else if !std::mem::replace(&mut instance.overflowed, true) {
            instance.queue.push_back(Event {
                watch: -1,
                mask: IN_Q_OVERFLOW,
                cookie: 0,
                name: None,
            });
            self.queued += 1;
        }
    }

    fn pop(&mut self, number: u32) {
        if let Some(instance) = self.instances.get_mut(number)
            && let Some(event) = instance.queue.pop_front()
        {
            self.queued -= 1;
            if event.mask & IN_Q_OVERFLOW != 0 {
                instance.overflowed = false;
            }
            if instance.queue.is_empty() {
                instance.queue.shrink_to(0);
            }
        }
    }

    /// Takes a watch away and says so; gives whether there was one.
    fn end_watch(&mut self, number: u32, watch: i32) -> bool {
        if self.forget_watch(number, watch).is_none() {
            return false;
        }
        self.push(
            number,
            Event {
                watch,
                mask: IN_IGNORED,
                cookie: 0,
                name: None,
            },
        );
        true
    }

    fn forget_watch(&mut self, number: u32, watch: i32) -> Option<()> {
        let ended = self.instances.get_mut(number)?.watches.remove(&watch)?;
        self.watches -= 1;
        if let Some(marks) = self.watched.get_mut(&ended.node) {
            marks.retain(|mark| *mark != (number, watch));
            if marks.is_empty() {
                self.watched.remove(&ended.node);
            }
        }
        Some(())
    }

    /// Queues what happened for those who watch the node; gives the instances that have something new.
    fn tell(&mut self, node: Vnode, what: &Happening<'_>) -> Vec<u32> {
        let Some(marks) = self.watched.get(&node).cloned() else {
            return Vec::new();
        };
        let mut told = Vec::new();
        for (number, watch) in marks {
            let found = self.instances.get(number);
            let Some(mask) = found.and_then(|instance| Some(instance.watches.get(&watch)?.mask)) else {
                continue;
            };
            let excluded = what.through_removed && mask & IN_EXCL_UNLINK != 0;
            if mask & what.mask & IN_ALL_EVENTS == 0 || excluded {
                continue;
            }
            // Linux never says of a watched node itself that it is a directory when it is moved or removed.
            let of_itself = what.mask & (IN_MOVE_SELF | IN_DELETE_SELF) != 0;
            self.push(
                number,
                Event {
                    watch,
                    mask: what.mask & !if of_itself { IN_ISDIR } else { 0 },
                    cookie: what.cookie,
                    name: what.name.cloned(),
                },
            );
            if mask & IN_ONESHOT != 0 {
                self.end_watch(number, watch);
            }
            told.push(number);
        }
        told
    }

    /// A node is no more; gives the instances that have something new.
    fn end_node(&mut self, node: Vnode) -> Vec<u32> {
        let mut told = self.tell(
            node,
            &Happening {
                mask: IN_DELETE_SELF,
                ..Happening::default()
            },
        );
        for (number, watch) in self.watched.get(&node).cloned().unwrap_or_default() {
            self.end_watch(number, watch);
            told.push(number);
        }
        told
    }

    /// Watches a node, or changes how it is watched.
    fn watch(&mut self, number: u32, node: Vnode, mask: u32) -> Result<i32, Errno> {
        let marks = self.watched.get(&node);
        let existing = marks.and_then(|marks| marks.iter().find(|(by, _)| *by == number));
        let existing = existing.map(|(_, watch)| *watch);
        let instance = self.instances.get_mut(number).ok_or(EINVAL)?;
        let kept = mask & (IN_ALL_EVENTS | IN_EXCL_UNLINK | IN_ONESHOT);
        if let Some(existing) = existing {
            if mask & IN_MASK_CREATE != 0 {
                return Err(EEXIST);
            }
            if let Some(watch) = instance.watches.get_mut(&existing) {
                let before = if mask & IN_MASK_ADD != 0 { watch.mask } else { 0 };
                watch.mask = before | kept;
            }
            return Ok(existing);
        }
        if self.watches >= WATCHES_MAX {
            return Err(ENOSPC);
        }
        let watch = instance.next_watch();
        instance.last_watch = watch;
        instance.watches.insert(watch, Watch { node, mask: kept });
        self.watches += 1;
        self.watched.entry(node).or_default().push((number, watch));
        Ok(watch)
    }

    /// An instance has no descriptor left: its watches go without a word.
    pub(crate) fn close(&mut self, number: u32) {
        let Some(instance) = self.instances.get(number) else {
            return;
        };
        self.queued -= instance.queue.len();
        let watches: Vec<i32> = instance.watches.keys().copied().collect();
        for watch in watches {
            self.forget_watch(number, watch);
        }
        self.instances.remove(number);
    }
}

impl Kernel {
    /// Tells those who watch a node what happened to it, or in it.
    pub(crate) fn tell_watchers(&mut self, node: Vnode, what: &Happening<'_>) {
        for number in self.file_events.tell(node, what) {
            self.wake_object(ObjectKey::Inotify(number));
        }
    }

    /// Tells those who watch a node that it is no more.
    pub(crate) fn tell_of_end(&mut self, node: Vnode) {
        for number in self.file_events.end_node(node) {
            self.wake_object(ObjectKey::Inotify(number));
        }
    }

    pub(crate) fn read_inotify(
        &mut self,
        cx: &mut Cx<'_>,
        number: u32,
        slices: &[UserSlice],
    ) -> Result<Transfer, Errno> {
        let room = total(slices);
        let mut done = 0;
        loop {
            let instance = self.file_events.instances.get(number).ok_or(EINVAL)?;
            let Some(record) = instance.queue.front().map(Event::record) else {
                break;
            };
            if done + record.len() as u64 > room {
                if done == 0 {
                    return Err(EINVAL);
                }
                break;
            }
            // An event that cannot be placed is lost, as on Linux.
            self.file_events.pop(number);
            let placed = self.scatter(cx, slices, done, &record)?;
            if placed < record.len() as u64 {
                return Err(EFAULT);
            }
            done += placed;
        }
        Ok(if done == 0 {
            Transfer::NotReady(ObjectKey::Inotify(number))
        } else {
            Transfer::Bytes(done)
        })
    }

    fn inotify_number(&self, fd: u64) -> Result<u32, Errno> {
        match self.files.usable(fd)?.kind {
            FileKind::Inotify(number) => Ok(number),
            _ => Err(EINVAL),
        }
    }
}

fn create(k: &mut Kernel, flags: i32) -> SysResult {
    if flags & !(IN_CLOEXEC | IN_NONBLOCK) != 0 {
        return Err(EINVAL);
    }
    k.files.has_room()?;
    if k.file_events.instances.len() >= INSTANCES_MAX {
        return Err(EMFILE);
    }
    let number = k.file_events.instances.insert(Inotify::default());
    let file = OpenFile::new(
        FileKind::Inotify(number),
        libc::O_RDONLY | flags & libc::O_NONBLOCK,
    );
    let opened = k.install(file, flags & IN_CLOEXEC != 0);
    if opened.is_err() {
        k.file_events.close(number);
    }
    opened.map(Flow::Done)
}

pub(crate) fn sys_inotify_init(k: &mut Kernel, _cx: &mut Cx<'_>, _args: &[u64; 6]) -> SysResult {
    create(k, 0)
}

pub(crate) fn sys_inotify_init1(k: &mut Kernel, _cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    create(k, args[0] as i32)
}

pub(crate) fn sys_inotify_add_watch(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let [fd, path, mask, ..] = *args;
    let mask = mask as u32;
    if mask & KNOWN == 0 {
        return Err(EINVAL);
    }
    k.files.usable(fd)?;
    if mask & IN_MASK_ADD != 0 && mask & IN_MASK_CREATE != 0 {
        return Err(EINVAL);
    }
    let number = k.inotify_number(fd)?;
    let path = k.copy_in_path(cx, path)?;
    let last = if mask & IN_DONT_FOLLOW != 0 {
        Last::Keep
    } else {
        Last::Follow
    };
    let node = k.resolve_at(cx, libc::AT_FDCWD as u64, &path, last)?.existing()?;
    if mask & IN_ONLYDIR != 0 && k.vfs.node_type(node)? != NodeType::Directory {
        return Err(ENOTDIR);
    }
    k.check_access(node, libc::R_OK)?;
    let watch = k.file_events.watch(number, node, mask)?;
    Ok(Flow::Done(watch as u64))
}

pub(crate) fn sys_inotify_rm_watch(k: &mut Kernel, _cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let number = k.inotify_number(args[0])?;
    if !k.file_events.end_watch(number, args[1] as i32) {
        return Err(EINVAL);
    }
    k.wake_object(ObjectKey::Inotify(number));
    Ok(Flow::Done(0))
}

#[cfg(test)]
mod tests {
    use libc::{IN_ACCESS, IN_MODIFY, IN_OPEN};

    use super::*;

    const NODE: Vnode = Vnode::Memory(7);

    fn watching(mask: u32) -> (FileEvents, u32, i32) {
        let mut events = FileEvents::default();
        let number = events.instances.insert(Inotify::default());
        let watch = events.watch(number, NODE, mask).unwrap();
        (events, number, watch)
    }

    fn tell(events: &mut FileEvents, mask: u32, name: Option<&str>) {
        let name = name.map(|name| Arc::from(name.as_bytes()));
        events.tell(
            NODE,
            &Happening {
                mask,
                name: name.as_ref(),
                ..Happening::default()
            },
        );
    }

    fn masks(events: &FileEvents, number: u32) -> Vec<u32> {
        let queue = &events.instances.get(number).unwrap().queue;
        queue.iter().map(|event| event.mask).collect()
    }

    #[test]
    fn equal_events_in_a_row_are_one() {
        let (mut events, number, _) = watching(IN_ALL_EVENTS);
        for mask in [IN_ACCESS, IN_ACCESS, IN_MODIFY, IN_ACCESS] {
            tell(&mut events, mask, None);
        }
        assert_eq!(masks(&events, number), [IN_ACCESS, IN_MODIFY, IN_ACCESS]);
        tell(&mut events, IN_ACCESS, Some("one"));
        tell(&mut events, IN_ACCESS, Some("two"));
        tell(&mut events, IN_ACCESS, Some("two"));
        assert_eq!(events.queued, 5);
        assert_eq!(events.queued_bytes(number), 3 * 16 + 2 * 32);
    }

    #[test]
    fn a_full_queue_says_once_that_events_were_lost() {
        let (mut events, number, _) = watching(IN_ALL_EVENTS);
        for _ in 0..QUEUE_MAX {
            tell(&mut events, IN_OPEN, None);
            tell(&mut events, IN_ACCESS, None);
        }
        assert_eq!(events.queued, QUEUE_MAX + 1);
        assert_eq!(masks(&events, number).last(), Some(&IN_Q_OVERFLOW));
        for _ in 0..=QUEUE_MAX {
            events.pop(number);
        }
        assert_eq!((events.queued, events.has_event(number)), (0, false));
        tell(&mut events, IN_OPEN, None);
        assert_eq!(masks(&events, number), [IN_OPEN]);
    }

    #[test]
    fn all_queues_together_are_bounded() {
        let (mut events, ..) = watching(IN_ALL_EVENTS);
        for _ in 1..8 {
            let number = events.instances.insert(Inotify::default());
            events.watch(number, NODE, IN_ALL_EVENTS).unwrap();
        }
        for _ in 0..QUEUE_MAX {
            tell(&mut events, IN_OPEN, None);
            tell(&mut events, IN_ACCESS, None);
        }
        // Each of the eight has told that it lost some.
        assert_eq!(events.queued, QUEUED_MAX + 8);
        for number in 0..8 {
            events.close(number);
        }
        assert_eq!((events.queued, events.watches), (0, 0));
        assert!(events.is_idle());
    }

    #[test]
    fn watches_are_bounded_and_their_numbers_not_used_again() {
        let (mut events, number, first) = watching(IN_ACCESS);
        assert!(events.end_watch(number, first));
        assert!(!events.end_watch(number, first));
        assert_eq!(events.watch(number, NODE, IN_ACCESS), Ok(first + 1));
        for node in 1..WATCHES_MAX as u32 {
            events
                .watch(number, Vnode::Memory(1000 + node), IN_ACCESS)
                .unwrap();
        }
        assert_eq!(events.watch(number, Vnode::Memory(1), IN_ACCESS), Err(ENOSPC));
        events.instances.get_mut(number).unwrap().last_watch = i32::MAX;
        assert!(events.end_watch(number, first + 2));
        assert_eq!(events.watch(number, Vnode::Memory(1), IN_ACCESS), Ok(first));
    }

    #[test]
    fn a_watch_for_one_event_goes_with_it() {
        let (mut events, number, _) = watching(IN_MODIFY | IN_ONESHOT);
        for mask in [IN_OPEN, IN_MODIFY, IN_MODIFY] {
            tell(&mut events, mask, None);
        }
        assert_eq!(masks(&events, number), [IN_MODIFY, IN_IGNORED]);
        assert!(events.is_idle());
    }

    #[test]
    fn a_mask_is_replaced_or_added_to() {
        let (mut events, number, watch) = watching(IN_OPEN);
        assert_eq!(
            events.watch(number, NODE, IN_ACCESS | IN_MASK_CREATE),
            Err(EEXIST)
        );
        assert_eq!(events.watch(number, NODE, IN_ACCESS | IN_MASK_ADD), Ok(watch));
        tell(&mut events, IN_OPEN, None);
        assert_eq!(events.watch(number, NODE, IN_MODIFY), Ok(watch));
        tell(&mut events, IN_ACCESS, None);
        tell(&mut events, IN_MODIFY, None);
        assert_eq!(masks(&events, number), [IN_OPEN, IN_MODIFY]);
    }
}
