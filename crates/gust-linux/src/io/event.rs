//! Event counters.

use serde::{Deserialize, Serialize};

use crate::{
    errno::{EINVAL, Errno},
    fs::{FileKind, OpenFile, Transfer},
    io::ObjectKey,
    kernel::{Cx, Flow, Kernel, SysResult},
    user::{UserSlice, total},
};

/// Largest value of a counter.
const COUNT_MAX: u64 = u64::MAX - 1;

/// A counter.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct EventFd {
    pub(crate) count: u64,
    /// A read takes one instead of all.
    semaphore: bool,
}

impl EventFd {
    pub(crate) fn can_take(&self) -> bool {
        self.count < COUNT_MAX
    }
}

fn create(k: &mut Kernel, count: u64, flags: i32) -> SysResult {
    if flags & !(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK | libc::EFD_SEMAPHORE) != 0 {
        return Err(EINVAL);
    }
    k.files.has_room()?;
    let event = EventFd {
        count,
        semaphore: flags & libc::EFD_SEMAPHORE != 0,
    };
    let number = k.event_fds.insert(event);
    let file = OpenFile::new(FileKind::EventFd(number), libc::O_RDWR | flags & libc::O_NONBLOCK);
    k.install(file, flags & libc::EFD_CLOEXEC != 0).map(Flow::Done)
}

pub(crate) fn sys_eventfd(k: &mut Kernel, _cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    create(k, u64::from(args[0] as u32), 0)
}

pub(crate) fn sys_eventfd2(k: &mut Kernel, _cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    create(k, u64::from(args[0] as u32), args[1] as i32)
}

impl Kernel {
    pub(crate) fn read_event(
        &mut self,
        cx: &mut Cx<'_>,
        number: u32,
        slices: &[UserSlice],
    ) -> Result<Transfer, Errno> {
        if total(slices) < 8 {
            return Err(EINVAL);
        }
        let event = self.event_fds.get(number).ok_or(EINVAL)?;
        if event.count == 0 {
            return Ok(Transfer::NotReady(ObjectKey::EventFd(number)));
        }
        let taken = if event.semaphore { 1 } else { event.count };
        self.scatter(cx, slices, 0, &taken.to_le_bytes())?;
        if let Some(event) = self.event_fds.get_mut(number) {
            event.count -= taken;
        }
        self.wake_object(ObjectKey::EventFd(number));
        Ok(Transfer::Bytes(8))
    }

    pub(crate) fn write_event(
        &mut self,
        cx: &mut Cx<'_>,
        number: u32,
        slices: &[UserSlice],
    ) -> Result<Transfer, Errno> {
        let raw = self.gather(cx, slices, 0, 8)?;
        let added = u64::from_le_bytes(raw.try_into().map_err(|_| EINVAL)?);
        if added == u64::MAX {
            return Err(EINVAL);
        }
        let event = self.event_fds.get_mut(number).ok_or(EINVAL)?;
        match event.count.checked_add(added).filter(|count| *count <= COUNT_MAX) {
            Some(count) => event.count = count,
            None => return Ok(Transfer::NotReady(ObjectKey::EventFd(number))),
        }
        self.wake_object(ObjectKey::EventFd(number));
        Ok(Transfer::Bytes(8))
    }
}
