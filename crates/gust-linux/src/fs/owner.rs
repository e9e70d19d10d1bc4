//! Signals that files send to their owner when they become ready (`O_ASYNC`, `F_SETOWN`, `F_SETSIG`).

use serde::{Deserialize, Serialize};

use crate::{
    abi::{Writer, i32_at},
    errno::{EBADF, EINVAL, ESRCH, Errno},
    fs::OpenFile,
    io::{ObjectKey, readiness},
    kernel::{Cx, Flow, Kernel, SysResult},
    task::{Detail, SIGNALS, SigInfo},
};

const F_OWNER_TID: i32 = 0;
const F_OWNER_PID: i32 = 1;
const F_OWNER_PGRP: i32 = 2;

/// Who is meant.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
enum OwnerKind {
    /// A thread (`F_OWNER_TID`).
    Thread,
    /// The process (`F_OWNER_PID`).
    #[default]
    Process,
    /// The process group, which is the process alone (`F_OWNER_PGRP`).
    Group,
}

/// Whom a file tells, and how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Owner {
    kind: OwnerKind,
    /// Zero: nobody.
    id: u32,
    /// `F_SETSIG`; zero is `SIGIO` without details.
    signal: u8,
    /// The descriptor that it was set with, which the signal names.
    fd: u32,
}

impl Kernel {
    fn owner(&mut self, fd: u64) -> Result<&mut Owner, Errno> {
        Ok(&mut self.files.get_mut(fd).ok_or(EBADF)?.owner)
    }

    fn set_owner(&mut self, fd: u64, kind: OwnerKind, id: u32) -> SysResult {
        let exists = match kind {
            _ if id == 0 => true,
            OwnerKind::Thread => self.threads.find_tid(id).is_some(),
            OwnerKind::Process => self.process.is_me(id) || self.threads.find_tid(id).is_some(),
            OwnerKind::Group => self.process.is_me(id),
        };
        if !exists {
            return Err(ESRCH);
        }
        let owner = self.owner(fd)?;
        (owner.kind, owner.id) = (kind, id);
        Ok(Flow::Done(0))
    }

    /// `F_SETOWN`, and `FIOSETOWN` on a socket: a negative id is a group.
    pub(crate) fn set_owner_id(&mut self, fd: u64, id: i32) -> SysResult {
        match id {
            i32::MIN => Err(EINVAL),
            id if id < 0 => self.set_owner(fd, OwnerKind::Group, id.unsigned_abs()),
            id => self.set_owner(fd, OwnerKind::Process, id as u32),
        }
    }

    /// `F_GETOWN`
    pub(crate) fn owner_id(&mut self, fd: u64) -> Result<i32, Errno> {
        let owner = self.owner(fd)?;
        Ok(match owner.kind {
            OwnerKind::Thread | OwnerKind::Process => owner.id as i32,
            OwnerKind::Group => -(owner.id as i32),
        })
    }

    /// `F_SETOWN_EX`
    pub(crate) fn set_owner_ex(&mut self, cx: &mut Cx<'_>, fd: u64, at: u64) -> SysResult {
        let raw: [u8; 8] = self.copy_in_array(cx, at)?;
        let kind = match i32_at(&raw, 0) {
            F_OWNER_TID => OwnerKind::Thread,
            F_OWNER_PID => OwnerKind::Process,
            F_OWNER_PGRP => OwnerKind::Group,
            _ => return Err(EINVAL),
        };
        let id = i32_at(&raw, 4);
        if id < 0 {
            return Err(ESRCH);
        }
        self.set_owner(fd, kind, id as u32)
    }

    /// `F_GETOWN_EX`
    pub(crate) fn owner_ex(&mut self, cx: &mut Cx<'_>, fd: u64, at: u64) -> SysResult {
        let owner = *self.owner(fd)?;
        let kind = match owner.kind {
            OwnerKind::Thread => F_OWNER_TID,
            OwnerKind::Process => F_OWNER_PID,
            OwnerKind::Group => F_OWNER_PGRP,
        };
        let raw = Writer::with_capacity(8).i32(kind).u32(owner.id).done();
        self.copy_out(cx, at, &raw)?;
        Ok(Flow::Done(0))
    }

    /// `F_SETSIG`
    pub(crate) fn set_owner_signal(&mut self, fd: u64, signal: u64) -> SysResult {
        if signal > u64::from(SIGNALS) {
            return Err(EINVAL);
        }
        self.owner(fd)?.signal = signal as u8;
        Ok(Flow::Done(0))
    }

    /// `F_GETSIG`
    pub(crate) fn owner_signal(&mut self, fd: u64) -> SysResult {
        Ok(Flow::Done(u64::from(self.owner(fd)?.signal)))
    }

    /// Switches `O_ASYNC`, for files that can become ready.
    pub(crate) fn set_async(&mut self, fd: u64, on: bool) -> Result<(), Errno> {
        let file = self.files.get_mut(fd).ok_or(EBADF)?;
        let was = file.flags & libc::O_ASYNC != 0;
        if was == on || file.kind.object().is_none() {
            return Ok(());
        }
        file.flags ^= libc::O_ASYNC;
        if on {
            file.owner.fd = fd as u32;
            self.files.asynchronous += 1;
        } else {
            self.files.asynchronous -= 1;
        }
        Ok(())
    }

    /// An object has changed: files of it that can now be read tell their owners.
    pub(crate) fn signal_owners(&mut self, key: ObjectKey) {
        if self.files.asynchronous == 0 {
            return;
        }
        let tells = |file: &&OpenFile| {
            file.flags & libc::O_ASYNC != 0 && file.owner.id != 0 && file.kind.object() == Some(key)
        };
        let ready: Vec<Owner> = self
            .files
            .open_files()
            .filter(tells)
            .filter(|file| file.readable() && self.readiness(&file.kind) & readiness::IN != 0)
            .map(|file| file.owner)
            .collect();
        for owner in ready {
            self.signal_owner(owner);
        }
    }

    fn signal_owner(&mut self, owner: Owner) {
        const POLL_IN: i32 = 1;
        let info = if owner.signal == 0 {
            SigInfo::kernel(libc::SIGIO as u32)
        } else {
            SigInfo {
                signal: u32::from(owner.signal),
                code: POLL_IN,
                errno: 0,
                detail: Detail::Raw([u64::from(readiness::IN), u64::from(owner.fd), 0, 0]),
            }
        };
        let thread = match owner.kind {
            OwnerKind::Thread => self.threads.find_tid(owner.id),
            OwnerKind::Process | OwnerKind::Group => None,
        };
        match (owner.kind, thread) {
            (_, Some(slot)) => self.signal_thread(slot, info),
            (OwnerKind::Process | OwnerKind::Group, None) => self.signal_process(info),
            // The thread has ended.
            (OwnerKind::Thread, None) => {}
        }
    }
}
