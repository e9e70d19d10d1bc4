//! Locks of ranges of files (`fcntl`).
//!
//! Those of the process (`F_SETLK`, POSIX) never meet another's, because there is one process; they go when any descriptor of the file is
//! closed. Those of an open file (`F_OFD_SETLK`) exclude what other open files of the same file have, also within the process,
//! and both kinds exclude each other.

use serde::{Deserialize, Serialize};

use crate::{
    abi::{Writer, i32_at, i64_at, u16_at},
    errno::{EAGAIN, EBADF, EINVAL, ENOLCK, EOVERFLOW, Errno},
    fs::{FileIdentity, FileKind, OpenFile},
    kernel::{Cx, Flow, Kernel, SysResult, Wait},
    task::WaitKey,
};

/// Most locks of all files together.
const LOCKS_MAX: usize = 4096;

/// Bytes of `struct flock`.
const FLOCK_BYTES: usize = 32;

/// The last position of a file: a lock without an end reaches so far.
const LAST: u64 = i64::MAX as u64;

/// Whose a lock is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum LockOwner {
    Process,
    /// An open file, by its number.
    File(u32),
}

/// A range, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Range {
    first: u64,
    last: u64,
}

impl Range {
    fn meets(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// Both in one, where nothing lies between them.
    fn joined(self, other: Self) -> Option<Self> {
        let touch = self.first <= other.last.saturating_add(1) && other.first <= self.last.saturating_add(1);
        touch.then(|| Self {
            first: self.first.min(other.first),
            last: self.last.max(other.last),
        })
    }

    /// What is left of it before and after another.
    fn without(self, other: Self) -> impl Iterator<Item = Self> {
        let before = (self.first < other.first).then(|| Self {
            first: self.first,
            last: self.last.min(other.first - 1),
        });
        let after = (self.last > other.last).then(|| Self {
            first: self.first.max(other.last + 1),
            last: self.last,
        });
        before.into_iter().chain(after)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct RangeLock {
    file: FileIdentity,
    owner: LockOwner,
    is_exclusive: bool,
    range: Range,
}

/// All locks of ranges that are held.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct RangeLocks(Vec<RangeLock>);

impl RangeLocks {
    /// A lock of someone else that does not go with this one.
    fn conflict(&self, wanted: &RangeLock) -> Option<&RangeLock> {
        let meets = |held: &&RangeLock| {
            held.file == wanted.file
                && held.owner != wanted.owner
                && held.range.meets(wanted.range)
                && (held.is_exclusive || wanted.is_exclusive)
        };
        // The first in the file, as Linux tells it.
        self.0.iter().filter(meets).min_by_key(|held| held.range.first)
    }

    /// Gives a range up: whether any of it was held.
    fn release(&mut self, file: FileIdentity, owner: LockOwner, range: Range) -> bool {
        let is_hit =
            |held: &mut RangeLock| held.file == file && held.owner == owner && held.range.meets(range);
        let hit: Vec<RangeLock> = self.0.extract_if(.., is_hit).collect();
        for held in &hit {
            let left = held.range.without(range);
            self.0.extend(left.map(|range| RangeLock { range, ..*held }));
        }
        !hit.is_empty()
    }

    /// Adds a lock over a range of which its owner holds nothing, joined with its neighbours of the same kind.
    fn add(&mut self, mut wanted: RangeLock) {
        let mut is_neighbour = |held: &mut RangeLock| {
            let alike = held.file == wanted.file
                && held.owner == wanted.owner
                && held.is_exclusive == wanted.is_exclusive;
            let joined = wanted.range.joined(held.range).filter(|_| alike);
            joined.inspect(|range| wanted.range = *range).is_some()
        };
        self.0.retain_mut(|held| !is_neighbour(held));
        self.0.push(wanted);
    }
}

/// What a program says of a lock: `None` is to give up what it has.
struct Asked {
    is_exclusive: Option<bool>,
    range: Range,
    pid: i32,
}

impl Kernel {
    /// `F_GETLK`, `F_SETLK`, `F_SETLKW` and their likes for open files.
    pub(super) fn lock_range(&mut self, cx: &mut Cx<'_>, fd: u64, command: i32, at: u64) -> SysResult {
        let asked = self.asked(cx, fd, at)?;
        let number = self.files.number(fd).ok_or(EBADF)?;
        let file = self.files.get(fd).ok_or(EBADF)?;
        let is_of_file = matches!(
            command,
            libc::F_OFD_GETLK | libc::F_OFD_SETLK | libc::F_OFD_SETLKW
        );
        if is_of_file && asked.pid != 0 {
            return Err(EINVAL);
        }
        let owner = if is_of_file {
            LockOwner::File(number)
        } else {
            LockOwner::Process
        };
        let wanted = RangeLock {
            file: file.kind.identity(),
            owner,
            is_exclusive: asked.is_exclusive.unwrap_or(false),
            range: asked.range,
        };
        if matches!(command, libc::F_GETLK | libc::F_OFD_GETLK) {
            asked.is_exclusive.ok_or(EINVAL)?;
            return self.tell_conflict(cx, &wanted, at);
        }
        let allowed = match asked.is_exclusive {
            None => true,
            Some(true) => file.writable(),
            Some(false) => file.readable(),
        };
        if !allowed {
            return Err(EBADF);
        }
        if asked.is_exclusive.is_some() {
            if self.files.ranges.conflict(&wanted).is_some() {
                return match command {
                    libc::F_SETLKW | libc::F_OFD_SETLKW => Ok(Flow::Wait(Wait::on(WaitKey::Locks))),
                    _ => Err(EAGAIN),
                };
            }
            // A lock in the middle of another leaves three.
            if self.files.ranges.0.len() + 2 > LOCKS_MAX {
                return Err(ENOLCK);
            }
        }
        // What was held is given up in any case: it may have been exclusive and be no more.
        if self.files.ranges.release(wanted.file, owner, wanted.range) {
            self.wake(WaitKey::Locks);
        }
        // The process has given up all that it has of the file whose descriptor was closed while this waited.
        let was_closed = owner == LockOwner::Process && self.files.begun_with.is_some();
        if asked.is_exclusive.is_some() && !was_closed {
            self.files.ranges.add(wanted);
        }
        Ok(Flow::Done(0))
    }

    /// Reads a `struct flock`.
    fn asked(&mut self, cx: &mut Cx<'_>, fd: u64, at: u64) -> Result<Asked, Errno> {
        let raw: [u8; FLOCK_BYTES] = self.copy_in_array(cx, at)?;
        let file = self.files.get(fd).ok_or(EBADF)?;
        let from = match i32::from(u16_at(&raw, 2)) {
            libc::SEEK_SET => 0,
            libc::SEEK_CUR => file.offset,
            libc::SEEK_END => match file.kind {
                FileKind::Regular(vnode) => self.vfs.size_of(vnode),
                _ => 0,
            },
            _ => return Err(EINVAL),
        };
        let (offset, length) = (i64_at(&raw, 8), i64_at(&raw, 16));
        let start = i64::try_from(from)
            .ok()
            .and_then(|from| from.checked_add(offset))
            .ok_or(EOVERFLOW)?;
        let (first, last) = match length {
            0 => (start, LAST as i64),
            1.. => (start, start.checked_add(length - 1).ok_or(EOVERFLOW)?),
            _ => (start.checked_add(length).ok_or(EINVAL)?, start - 1),
        };
        if start < 0 || first < 0 {
            return Err(EINVAL);
        }
        Ok(Asked {
            is_exclusive: match i32::from(u16_at(&raw, 0)) {
                libc::F_RDLCK => Some(false),
                libc::F_WRLCK => Some(true),
                libc::F_UNLCK => None,
                _ => return Err(EINVAL),
            },
            range: Range {
                first: first as u64,
                last: last as u64,
            },
            pid: i32_at(&raw, 24),
        })
    }

    /// Writes who has a lock that does not go with this one; that nobody has leaves all but the kind as it is.
    fn tell_conflict(&mut self, cx: &mut Cx<'_>, wanted: &RangeLock, at: u64) -> SysResult {
        let Some(held) = self.files.ranges.conflict(wanted).copied() else {
            self.copy_out(cx, at, &(libc::F_UNLCK as i16).to_le_bytes())?;
            return Ok(Flow::Done(0));
        };
        let kind = if held.is_exclusive {
            libc::F_WRLCK
        } else {
            libc::F_RDLCK
        };
        let length = match held.range.last {
            LAST => 0,
            last => last - held.range.first + 1,
        };
        let pid = match held.owner {
            LockOwner::Process => self.process.pid as i32,
            LockOwner::File(_) => -1,
        };
        let told = Writer::with_capacity(FLOCK_BYTES)
            .u16(kind as u16)
            .u16(libc::SEEK_SET as u16)
            .u32(0)
            .u64(held.range.first)
            .u64(length)
            .i32(pid)
            .pad_to(FLOCK_BYTES)
            .done();
        self.copy_out(cx, at, &told)?;
        Ok(Flow::Done(0))
    }

    /// A descriptor of a file is closed: the process's locks of the file go with it.
    pub(super) fn release_process_ranges(&mut self, fd: u64) {
        if let Some(file) = self.files.get(fd).map(|file| file.kind.identity()) {
            self.release_all_ranges(file, LockOwner::Process);
        }
    }

    /// The last reference to an open file has gone: so do its locks.
    pub(super) fn release_file_ranges(&mut self, number: u32, file: &OpenFile) {
        self.release_all_ranges(file.kind.identity(), LockOwner::File(number));
    }

    fn release_all_ranges(&mut self, file: FileIdentity, owner: LockOwner) {
        let all = Range { first: 0, last: LAST };
        if self.files.ranges.release(file, owner, all) {
            self.wake(WaitKey::Locks);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BYTES: u64 = 24;

    fn lock(owner: u32, is_exclusive: bool, first: u64, last: u64) -> RangeLock {
        RangeLock {
            file: (None, None),
            owner: LockOwner::File(owner),
            is_exclusive,
            range: Range { first, last },
        }
    }

    proptest! {
        /// Against who holds each byte, written down byte by byte.
        #[test]
        fn ranges_are_held_as_bytes_would_be(
            steps in prop::collection::vec((0u32..3, 0u8..3, 0..BYTES, 0..BYTES), 1..60),
        ) {
            let mut locks = RangeLocks::default();
            let mut model = [[None; 3]; BYTES as usize];
            for (owner, kind, one, other) in steps {
                let (first, last) = (one.min(other), one.max(other));
                let wanted = lock(owner, kind == 2, first, last);
                let bytes = first as usize..=last as usize;
                if kind > 0 {
                    let refused = model[bytes.clone()].iter().any(|byte| {
                        (0..3).any(|holder| {
                            holder != owner && byte[holder as usize].is_some_and(|held| held || kind == 2)
                        })
                    });
                    prop_assert_eq!(locks.conflict(&wanted).is_some(), refused);
                    if refused {
                        continue;
                    }
                }
                locks.release(wanted.file, wanted.owner, wanted.range);
                if kind > 0 {
                    locks.add(wanted);
                }
                for byte in &mut model[bytes] {
                    byte[owner as usize] = (kind > 0).then_some(kind == 2);
                }
                // What is held is the same, in as few pieces as can be.
                let mut pieces = 0;
                for holder in 0..3 {
                    let of = |at: usize| model[at][holder as usize];
                    for at in 0..BYTES as usize {
                        let held = locks.0.iter().find(|held| {
                            held.owner == LockOwner::File(holder)
                                && held.range.meets(Range { first: at as u64, last: at as u64 })
                        });
                        prop_assert_eq!(held.map(|held| held.is_exclusive), of(at));
                        pieces += usize::from(of(at).is_some() && (at == 0 || of(at) != of(at - 1)));
                    }
                }
                prop_assert_eq!(locks.0.len(), pieces);
            }
        }
    }
}
