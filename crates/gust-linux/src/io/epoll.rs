//! epoll.
//!
//! As in Linux, an instance keeps a list of items that may be ready. An object's change puts its items on the list;
//! a wait takes items from it, asks each what it is ready for, and puts level-triggered ones back. An edge-triggered
//! item is therefore told once for each change.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use crate::{
    abi::{Writer, u32_at, u64_at},
    errno::{EBADF, EEXIST, EINVAL, ELOOP, ENOENT, EPERM, Errno},
    fs::{FileKind, OpenFile},
    io::{
        ObjectKey,
        readiness::{ERR, HUP},
    },
    kernel::{Cx, Flow, Kernel, OnSignal, SysResult, Wait},
    task::WaitKey,
};

/// Most events that one wait gives.
const EVENTS_MAX: usize = 1024;
/// Bytes of `struct epoll_event`, packed.
const EVENT_BYTES: usize = 12;
/// Deepest nesting of instances.
const NESTING_MAX: usize = 5;

/// Flags of an item that are not readiness.
const EDGE: u32 = libc::EPOLLET as u32;
const ONE_SHOT: u32 = libc::EPOLLONESHOT as u32;
const BEHAVIOUR: u32 = EDGE | ONE_SHOT | libc::EPOLLWAKEUP as u32 | libc::EPOLLEXCLUSIVE as u32;

/// An item is named by its descriptor and the open file that this was: a descriptor that is closed and used again
/// is another item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct ItemKey {
    fd: u32,
    file: u32,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Item {
    kind: FileKind,
    /// Readiness asked for; zero when a one-shot item has been told.
    events: u32,
    behaviour: u32,
    data: u64,
    listed: bool,
}

/// An instance.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Epoll {
    items: BTreeMap<ItemKey, Item>,
    ready: VecDeque<ItemKey>,
}

impl Epoll {
    fn list(&mut self, key: ItemKey) {
        if let Some(item) = self.items.get_mut(&key)
            && !std::mem::replace(&mut item.listed, true)
        {
            self.ready.push_back(key);
        }
    }
}

fn create(k: &mut Kernel, flags: i32) -> SysResult {
    if flags & !libc::EPOLL_CLOEXEC != 0 {
        return Err(EINVAL);
    }
    k.files.has_room()?;
    let number = k.epolls.insert(Epoll::default());
    k.install(OpenFile::new(FileKind::Epoll(number), libc::O_RDWR), flags != 0)
        .map(Flow::Done)
}

pub(crate) fn sys_epoll_create(k: &mut Kernel, _cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    if args[0] as i32 <= 0 {
        Err(EINVAL)
    } else {
        create(k, 0)
    }
}

pub(crate) fn sys_epoll_create1(k: &mut Kernel, _cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    create(k, args[0] as i32)
}

pub(crate) fn sys_epoll_ctl(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let [epfd, operation, fd, event, ..] = *args;
    let operation = operation as i32;
    let raw = if operation == libc::EPOLL_CTL_DEL {
        [0; EVENT_BYTES]
    } else {
        k.copy_in_array(cx, event)?
    };
    let number = k.epoll_number(epfd)?;
    let target = k.files.get(fd).ok_or(EBADF)?;
    let kind = target.kind.clone();
    let file = k.files.number(fd).ok_or(EBADF)?;
    if kind == FileKind::Epoll(number) {
        return Err(EINVAL);
    }
    let Some(object) = kind.object() else {
        // Regular files and directories are always ready, and cannot be watched; output that ends outside neither
        // changes its readiness, but programs do watch it.
        return match kind {
            FileKind::Output(_) => {
                k.control_item(number, operation, ItemKey { fd: fd as u32, file }, kind, &raw)
            }
            _ => Err(EPERM),
        };
    };
    if operation == libc::EPOLL_CTL_ADD
        && let FileKind::Epoll(inner) = kind
        && (k.epoll_depth(inner) + 1 >= NESTING_MAX || k.epoll_reaches(inner, number))
    {
        return Err(ELOOP);
    }
    let done = k.control_item(number, operation, ItemKey { fd: fd as u32, file }, kind, &raw)?;
    let watchers = k.watchers.entry(object).or_default();
    match operation {
        libc::EPOLL_CTL_ADD => watchers.push(number),
        libc::EPOLL_CTL_DEL => {
            if let Some(at) = watchers.iter().position(|watcher| *watcher == number) {
                watchers.swap_remove(at);
            }
            if watchers.is_empty() {
                k.watchers.remove(&object);
            }
        }
        _ => {}
    }
    Ok(done)
}

impl Kernel {
    fn epoll_number(&self, fd: u64) -> Result<u32, Errno> {
        match self.files.get(fd).ok_or(EBADF)?.kind {
            FileKind::Epoll(number) => Ok(number),
            _ => Err(EINVAL),
        }
    }

    fn control_item(
        &mut self,
        number: u32,
        operation: i32,
        key: ItemKey,
        kind: FileKind,
        raw: &[u8; EVENT_BYTES],
    ) -> SysResult {
        let wanted = u32_at(raw, 0);
        let data = u64_at(raw, 4);
        let ready_now = self.readiness(&kind) & (wanted | ERR | HUP) != 0;
        let epoll = self.epolls.get_mut(number).ok_or(EBADF)?;
        let known = epoll.items.contains_key(&key);
        match operation {
            libc::EPOLL_CTL_ADD if known => return Err(EEXIST),
            libc::EPOLL_CTL_MOD | libc::EPOLL_CTL_DEL if !known => return Err(ENOENT),
            libc::EPOLL_CTL_DEL => {
                epoll.items.remove(&key);
                epoll.ready.retain(|listed| *listed != key);
                return Ok(Flow::Done(0));
            }
            libc::EPOLL_CTL_ADD | libc::EPOLL_CTL_MOD => {}
            _ => return Err(EINVAL),
        }
        let listed = epoll.items.get(&key).is_some_and(|item| item.listed);
        let item = Item {
            kind,
            events: wanted & !BEHAVIOUR | ERR | HUP,
            behaviour: wanted & BEHAVIOUR,
            data,
            listed,
        };
        epoll.items.insert(key, item);
        if ready_now {
            epoll.list(key);
            self.wake_object(ObjectKey::Epoll(number));
        }
        Ok(Flow::Done(0))
    }

    /// An object has changed: its items may be ready in every instance that watches it.
    pub(crate) fn notify_epolls(&mut self, object: ObjectKey) {
        let Some(watchers) = self.watchers.get(&object) else {
            return;
        };
        let mut told = Vec::new();
        for number in watchers.clone() {
            let Some(epoll) = self.epolls.get_mut(number) else {
                continue;
            };
            let keys: Vec<ItemKey> = epoll
                .items
                .iter()
                .filter(|(_, item)| item.kind.object() == Some(object))
                .map(|(key, _)| *key)
                .collect();
            for key in keys {
                epoll.list(key);
            }
            if !told.contains(&number) {
                told.push(number);
            }
        }
        for number in told {
            self.wake_object(ObjectKey::Epoll(number));
        }
    }

    /// Whether a wait on an instance would give something.
    pub(crate) fn epoll_has_ready(&self, number: u32, depth: usize) -> bool {
        let Some(epoll) = self.epolls.get(number) else {
            return false;
        };
        depth < NESTING_MAX
            && epoll.ready.iter().any(|key| {
                epoll.items.get(key).is_some_and(|item| match item.kind {
                    FileKind::Epoll(inner) => self.epoll_has_ready(inner, depth + 1),
                    _ => self.readiness(&item.kind) & item.events != 0,
                })
            })
    }

    fn epoll_depth(&self, number: u32) -> usize {
        let Some(epoll) = self.epolls.get(number) else {
            return 0;
        };
        let inner = epoll.items.values().filter_map(|item| match item.kind {
            FileKind::Epoll(inner) => Some(1 + self.epoll_depth(inner)),
            _ => None,
        });
        inner.max().unwrap_or(0)
    }

    fn epoll_reaches(&self, from: u32, to: u32) -> bool {
        from == to
            || self.epolls.get(from).is_some_and(|epoll| {
                epoll.items.values().any(|item| match item.kind {
                    FileKind::Epoll(inner) => self.epoll_reaches(inner, to),
                    _ => false,
                })
            })
    }

    /// The last descriptor of a file is gone: no instance watches it any more.
    pub(crate) fn unwatch_file(&mut self, number: u32, file: &OpenFile) {
        let object = file.kind.object();
        let watchers = match object {
            Some(object) => self.watchers.get(&object).cloned().unwrap_or_default(),
            None => self.epolls.iter().map(|(epoll, _)| epoll).collect(),
        };
        for watcher in watchers {
            let Some(epoll) = self.epolls.get_mut(watcher) else {
                continue;
            };
            let before = epoll.items.len();
            epoll.items.retain(|key, _| key.file != number);
            epoll.ready.retain(|key| key.file != number);
            let removed = before - epoll.items.len();
            if let Some(object) = object
                && let Some(watchers) = self.watchers.get_mut(&object)
            {
                for _ in 0..removed {
                    if let Some(at) = watchers.iter().position(|known| *known == watcher) {
                        watchers.swap_remove(at);
                    }
                }
                if watchers.is_empty() {
                    self.watchers.remove(&object);
                }
            }
        }
    }

    pub(crate) fn close_epoll(&mut self, number: u32) {
        if let Some(epoll) = self.epolls.remove(number) {
            for item in epoll.items.into_values() {
                let Some(object) = item.kind.object() else {
                    continue;
                };
                if let Some(watchers) = self.watchers.get_mut(&object) {
                    if let Some(at) = watchers.iter().position(|watcher| *watcher == number) {
                        watchers.swap_remove(at);
                    }
                    if watchers.is_empty() {
                        self.watchers.remove(&object);
                    }
                }
            }
        }
    }

    /// Takes ready events, at most `max`.
    fn take_events(&mut self, number: u32, max: usize) -> Vec<(u32, u64)> {
        let listed = self.epolls.get(number).map_or(0, |epoll| epoll.ready.len());
        let mut events = Vec::new();
        for _ in 0..listed {
            if events.len() == max {
                break;
            }
            let Some(epoll) = self.epolls.get_mut(number) else {
                break;
            };
            let Some(key) = epoll.ready.pop_front() else { break };
            let Some(item) = epoll.items.get_mut(&key) else {
                continue;
            };
            item.listed = false;
            let item = item.clone();
            let found = self.readiness(&item.kind) & item.events;
            if found == 0 {
                continue;
            }
            events.push((found, item.data));
            let Some(epoll) = self.epolls.get_mut(number) else {
                break;
            };
            if item.behaviour & ONE_SHOT != 0 {
                if let Some(item) = epoll.items.get_mut(&key) {
                    item.events = 0;
                }
            } else if item.behaviour & EDGE == 0 {
                epoll.list(key);
            }
        }
        events
    }

    fn epoll_wait(
        &mut self,
        cx: &mut Cx<'_>,
        fd: u64,
        out: u64,
        max: u64,
        timeout_ns: Option<u64>,
    ) -> SysResult {
        let number = self.epoll_number(fd)?;
        let max = max as i32;
        if max <= 0 {
            return Err(EINVAL);
        }
        let events = self.take_events(number, (max as usize).min(EVENTS_MAX));
        if !events.is_empty() || timeout_ns == Some(0) || self.timed_out(cx.slot) {
            let raw = events
                .iter()
                .fold(
                    Writer::with_capacity(events.len() * EVENT_BYTES),
                    |raw, (events, data)| raw.u32(*events).u64(*data),
                )
                .done();
            self.copy_out(cx, out, &raw)?;
            return Ok(Flow::Done(events.len() as u64));
        }
        let deadline_ns = timeout_ns.map(|timeout| self.deadline(cx, timeout));
        Ok(Flow::Wait(Wait {
            keys: vec![WaitKey::Object(ObjectKey::Epoll(number))],
            deadline_ns,
            on_signal: OnSignal::Interrupt,
        }))
    }
}

/// A time-out in milliseconds; negative is none.
pub(crate) fn milliseconds(timeout: u64) -> Option<u64> {
    let timeout = timeout as i32;
    u64::try_from(timeout).ok().map(|timeout| timeout * 1_000_000)
}

pub(crate) fn sys_epoll_wait(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    k.epoll_wait(cx, args[0], args[1], args[2], milliseconds(args[3]))
}

pub(crate) fn sys_epoll_pwait(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    k.apply_temporary_mask(cx, args[4], args[5])?;
    k.epoll_wait(cx, args[0], args[1], args[2], milliseconds(args[3]))
}

pub(crate) fn sys_epoll_pwait2(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let timeout = if args[3] == 0 {
        None
    } else {
        Some(k.copy_in_timespec(cx, args[3])?)
    };
    k.apply_temporary_mask(cx, args[4], args[5])?;
    k.epoll_wait(cx, args[0], args[1], args[2], timeout)
}
