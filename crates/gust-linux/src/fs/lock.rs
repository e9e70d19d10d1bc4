//! Locks of whole files (`flock`). A lock belongs to an open file: two openings of one file exclude each other also within
//! one process. They and those of ranges (`fcntl`) do not know of each other.

use serde::{Deserialize, Serialize};

use crate::{
    errno::{EAGAIN, EBADF, EINVAL, Errno},
    kernel::{Cx, Flow, Kernel, SysResult, Wait},
    task::WaitKey,
};

/// A lock that is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Lock {
    /// With others.
    Shared,
    /// Alone.
    Exclusive,
}

impl Kernel {
    /// Whether another open file has a lock that does not go with this one.
    fn lock_conflicts(&self, number: u32, wanted: Lock) -> bool {
        let Some(file) = self.files.by_number(number) else {
            return false;
        };
        let me = file.kind.identity();
        self.files.numbered().any(|(other, open)| {
            let conflict = match open.lock {
                Some(Lock::Exclusive) => true,
                Some(Lock::Shared) => wanted == Lock::Exclusive,
                None => false,
            };
            conflict && other != number && open.kind.identity() == me
        })
    }

    fn set_lock(&mut self, fd: u64, lock: Option<Lock>) -> Result<(), Errno> {
        let file = self.files.get_mut(fd).ok_or(EBADF)?;
        if std::mem::replace(&mut file.lock, lock).is_some() {
            self.wake(WaitKey::Locks);
        }
        Ok(())
    }
}

pub(crate) fn sys_flock(k: &mut Kernel, _cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let [fd, operation, ..] = *args;
    k.files.usable(fd)?;
    let wanted = match operation as i32 & !libc::LOCK_NB {
        libc::LOCK_SH => Lock::Shared,
        libc::LOCK_EX => Lock::Exclusive,
        libc::LOCK_UN => {
            k.set_lock(fd, None)?;
            return Ok(Flow::Done(0));
        }
        _ => return Err(EINVAL),
    };
    let number = k.files.number(fd).ok_or(EBADF)?;
    if k.files.get(fd).is_some_and(|file| file.lock == Some(wanted)) {
        return Ok(Flow::Done(0));
    }
    // As on Linux, changing a lock is giving it up and asking for the other.
    k.set_lock(fd, None)?;
    if !k.lock_conflicts(number, wanted) {
        k.set_lock(fd, Some(wanted))?;
        return Ok(Flow::Done(0));
    }
    if operation as i32 & libc::LOCK_NB != 0 {
        return Err(EAGAIN);
    }
    Ok(Flow::Wait(Wait::on(WaitKey::Locks)))
}
