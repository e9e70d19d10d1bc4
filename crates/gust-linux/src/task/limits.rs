//! Resource limits (`setrlimit`). Those of descriptors, of the address space and of the heap act; others are remembered, since
//! programs that set a limit read it back.

use crate::{
    abi::{Writer, u64_at},
    errno::{EINVAL, EPERM, ESRCH, Errno},
    fs::FILES_MAX,
    kernel::{Cx, Flow, Kernel, SysResult},
};

const UNLIMITED: u64 = u64::MAX;

/// A limit as it is at the start: soft and hard.
fn initial(resource: u32) -> Result<(u64, u64), Errno> {
    const STACK_BYTES: u64 = 8 << 20;
    Ok(match resource {
        libc::RLIMIT_STACK => (STACK_BYTES, UNLIMITED),
        libc::RLIMIT_NOFILE => (FILES_MAX, FILES_MAX),
        libc::RLIMIT_NPROC => (1024, 1024),
        libc::RLIMIT_CORE => (0, 0),
        libc::RLIMIT_MEMLOCK => (64 << 10, 64 << 10),
        libc::RLIMIT_SIGPENDING => (1024, 1024),
        libc::RLIMIT_MSGQUEUE => (819_200, 819_200),
        libc::RLIMIT_NICE | libc::RLIMIT_RTPRIO => (0, 0),
        libc::RLIMIT_CPU
        | libc::RLIMIT_FSIZE
        | libc::RLIMIT_DATA
        | libc::RLIMIT_RSS
        | libc::RLIMIT_AS
        | libc::RLIMIT_LOCKS
        | libc::RLIMIT_RTTIME => (UNLIMITED, UNLIMITED),
        _ => return Err(EINVAL),
    })
}

impl Kernel {
    /// Soft and hard limit of a resource, now.
    fn limit(&self, resource: u64) -> Result<(u64, u64), Errno> {
        let resource = resource as u32;
        let initial = initial(resource)?;
        Ok(self.process.limits.get(&resource).copied().unwrap_or(initial))
    }

    /// Lowers or raises a limit; over its hard value only the privileged could.
    fn set_limit(&mut self, resource: u64, raw: &[u8; 16]) -> Result<(), Errno> {
        let (_, hard) = self.limit(resource)?;
        let new @ (new_soft, new_hard) = (u64_at(raw, 0), u64_at(raw, 8));
        if new_soft > new_hard {
            return Err(EINVAL);
        }
        if new_hard > hard {
            return Err(EPERM);
        }
        let resource = resource as u32;
        self.process.limits.insert(resource, new);
        if resource == libc::RLIMIT_NOFILE {
            self.files.limit = new_soft.min(FILES_MAX);
        }
        Ok(())
    }

    /// Whether the address space may have so many bytes more.
    pub(crate) fn may_map(&self, bytes: u64) -> bool {
        self.limit(u64::from(libc::RLIMIT_AS))
            .is_ok_and(|(soft, _)| self.mm.mapped_bytes.saturating_add(bytes) <= soft)
    }

    /// Whether the heap may end there.
    pub(crate) fn may_end_heap_at(&self, end: u64) -> bool {
        let bytes = end.saturating_sub(self.mm.brk_start);
        let allowed = self
            .limit(u64::from(libc::RLIMIT_DATA))
            .is_ok_and(|(soft, _)| bytes <= soft);
        allowed && (end <= self.mm.brk || self.may_map(end - self.mm.brk))
    }
}

fn limit_bytes((soft, hard): (u64, u64)) -> Vec<u8> {
    Writer::with_capacity(16).u64(soft).u64(hard).done()
}

pub(crate) fn sys_getrlimit(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let raw = limit_bytes(k.limit(args[0])?);
    k.copy_out(cx, args[1], &raw)?;
    Ok(Flow::Done(0))
}

pub(crate) fn sys_setrlimit(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let raw: [u8; 16] = k.copy_in_array(cx, args[1])?;
    k.set_limit(args[0], &raw)?;
    Ok(Flow::Done(0))
}

pub(crate) fn sys_prlimit64(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let [pid, resource, new, old, ..] = *args;
    if pid as u32 != 0 && !k.process.is_me(pid as u32) {
        return Err(ESRCH);
    }
    let current = limit_bytes(k.limit(resource)?);
    if new != 0 {
        let raw: [u8; 16] = k.copy_in_array(cx, new)?;
        k.set_limit(resource, &raw)?;
    }
    k.copy_out_if(cx, old, &current)?;
    Ok(Flow::Done(0))
}
