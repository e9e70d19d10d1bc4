//! Scheduling, identity, limits and other calls about the process.

use crate::{
    abi::Writer,
    errno::{ECHILD, EFAULT, EINVAL, ENOSYS, EPERM, ESRCH, Errno},
    kernel::{Cx, Flow, Kernel, SysResult},
};

fn zero(_k: &mut Kernel, _cx: &mut Cx<'_>, _args: &[u64; 6]) -> SysResult {
    Ok(Flow::Done(0))
}

/// Accepted and of no effect: there is nothing that the call could change here.
pub(crate) fn accepted(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    zero(k, cx, args)
}

/// Needs a capability that guests do not have.
pub(crate) fn not_permitted(_k: &mut Kernel, _cx: &mut Cx<'_>, _args: &[u64; 6]) -> SysResult {
    Err(EPERM)
}

/// Told apart from unknown numbers in the table only: programs fall back from it.
pub(crate) fn not_implemented(_k: &mut Kernel, _cx: &mut Cx<'_>, _args: &[u64; 6]) -> SysResult {
    Err(ENOSYS)
}

/// `splice`. The error is Linux's for files that cannot be spliced: Go's `io.Copy` falls back from that one alone.
pub(crate) fn sys_splice_refused(_k: &mut Kernel, _cx: &mut Cx<'_>, _args: &[u64; 6]) -> SysResult {
    Err(EINVAL)
}

/// There are no children.
pub(crate) fn sys_wait4(_k: &mut Kernel, _cx: &mut Cx<'_>, _args: &[u64; 6]) -> SysResult {
    Err(ECHILD)
}

pub(crate) fn sys_sched_yield(k: &mut Kernel, _cx: &mut Cx<'_>, _args: &[u64; 6]) -> SysResult {
    k.queues.yield_current();
    Ok(Flow::Done(0))
}

impl Kernel {
    /// The thread that an id names; zero is the caller.
    fn thread_by_id(&self, cx: &Cx<'_>, id: u64) -> Result<usize, Errno> {
        match id as u32 {
            0 => Ok(cx.slot),
            id => {
                let main = || {
                    self.process
                        .is_me(id)
                        .then(|| self.threads.iter().next().map(|(slot, _)| slot))
                        .flatten()
                };
                self.threads.find_tid(id).or_else(main).ok_or(ESRCH)
            }
        }
    }
}

pub(crate) fn sys_sched_getaffinity(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    const MASK_BYTES: u64 = 8;
    let slot = k.thread_by_id(cx, args[0])?;
    if args[1] < MASK_BYTES || !args[1].is_multiple_of(8) {
        return Err(EINVAL);
    }
    let available = (1u64 << k.process.cpus.clamp(1, 63)) - 1;
    let mask = match k.thread(slot).affinity & available {
        0 => available,
        chosen => chosen,
    };
    k.copy_out(cx, args[2], &mask.to_le_bytes())?;
    Ok(Flow::Done(MASK_BYTES))
}

pub(crate) fn sys_sched_setaffinity(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let slot = k.thread_by_id(cx, args[0])?;
    let bytes = (args[1] as usize).min(8);
    let mut raw = [0; 8];
    k.copy_in(cx, args[2], &mut raw[..bytes])?;
    let available = (1u64 << k.process.cpus.clamp(1, 63)) - 1;
    let chosen = u64::from_le_bytes(raw) & available;
    if chosen == 0 {
        return Err(EINVAL);
    }
    // Threads share one processor in turn; what was asked for is told again.
    k.thread_mut(slot).affinity = chosen;
    Ok(Flow::Done(0))
}

impl Kernel {
    /// A thread by id, for calls that know no negative ones.
    fn scheduled_thread(&mut self, cx: &Cx<'_>, id: u64) -> Result<usize, Errno> {
        if (id as i32) < 0 {
            return Err(EINVAL);
        }
        self.thread_by_id(cx, id)
    }
}

pub(crate) fn sys_sched_getscheduler(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    k.scheduled_thread(cx, args[0])?;
    Ok(Flow::Done(libc::SCHED_OTHER as u64))
}

pub(crate) fn sys_sched_setscheduler(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    k.thread_by_id(cx, args[0])?;
    match args[1] as i32 & !libc::SCHED_RESET_ON_FORK {
        libc::SCHED_OTHER | libc::SCHED_BATCH | libc::SCHED_IDLE => Ok(Flow::Done(0)),
        libc::SCHED_FIFO | libc::SCHED_RR => Err(EPERM),
        _ => Err(EINVAL),
    }
}

pub(crate) fn sys_sched_getparam(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    if args[1] == 0 {
        return Err(EINVAL);
    }
    k.scheduled_thread(cx, args[0])?;
    k.copy_out(cx, args[1], &[0; 4])?;
    Ok(Flow::Done(0))
}

pub(crate) fn sys_sched_priority_max(_k: &mut Kernel, _cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    match args[0] as i32 {
        libc::SCHED_FIFO | libc::SCHED_RR => Ok(Flow::Done(99)),
        libc::SCHED_OTHER | libc::SCHED_BATCH | libc::SCHED_IDLE => Ok(Flow::Done(0)),
        _ => Err(EINVAL),
    }
}

pub(crate) fn sys_sched_priority_min(_k: &mut Kernel, _cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    match args[0] as i32 {
        libc::SCHED_FIFO | libc::SCHED_RR => Ok(Flow::Done(1)),
        libc::SCHED_OTHER | libc::SCHED_BATCH | libc::SCHED_IDLE => Ok(Flow::Done(0)),
        _ => Err(EINVAL),
    }
}

pub(crate) fn sys_sched_rr_get_interval(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    k.thread_by_id(cx, args[0])?;
    let slice = Writer::with_capacity(16).u64(0).u64(4_000_000).done();
    k.copy_out(cx, args[1], &slice)?;
    Ok(Flow::Done(0))
}

/// The raw call gives 20 less the nice value, which is zero.
pub(crate) fn sys_getpriority(_k: &mut Kernel, _cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    if args[0] > 2 {
        Err(EINVAL)
    } else {
        Ok(Flow::Done(20))
    }
}

pub(crate) fn sys_getcpu(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    k.copy_out_if(cx, args[0], &[0; 4])?;
    k.copy_out_if(cx, args[1], &[0; 4])?;
    Ok(Flow::Done(0))
}

pub(crate) fn sys_getpid(k: &mut Kernel, _cx: &mut Cx<'_>, _args: &[u64; 6]) -> SysResult {
    Ok(Flow::Done(u64::from(k.process.pid)))
}

pub(crate) fn sys_getppid(_k: &mut Kernel, _cx: &mut Cx<'_>, _args: &[u64; 6]) -> SysResult {
    Ok(Flow::Done(1))
}

pub(crate) fn sys_gettid(k: &mut Kernel, cx: &mut Cx<'_>, _args: &[u64; 6]) -> SysResult {
    Ok(Flow::Done(u64::from(k.thread(cx.slot).tid)))
}

/// Process group and session are the process's own.
pub(crate) fn sys_getpgid(k: &mut Kernel, _cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let pid = args[0] as u32;
    if pid != 0 && !k.process.is_me(pid) {
        return Err(ESRCH);
    }
    Ok(Flow::Done(u64::from(k.process.pid)))
}

pub(crate) fn sys_getpgrp(k: &mut Kernel, _cx: &mut Cx<'_>, _args: &[u64; 6]) -> SysResult {
    Ok(Flow::Done(u64::from(k.process.pid)))
}

pub(crate) fn sys_getuid(k: &mut Kernel, _cx: &mut Cx<'_>, _args: &[u64; 6]) -> SysResult {
    Ok(Flow::Done(u64::from(k.process.uid)))
}

pub(crate) fn sys_getgid(k: &mut Kernel, _cx: &mut Cx<'_>, _args: &[u64; 6]) -> SysResult {
    Ok(Flow::Done(u64::from(k.process.gid)))
}

/// Real, effective and saved ids are the same.
fn three_ids(k: &mut Kernel, cx: &mut Cx<'_>, id: u32, args: &[u64; 6]) -> SysResult {
    for at in &args[..3] {
        k.copy_out(cx, *at, &id.to_le_bytes())?;
    }
    Ok(Flow::Done(0))
}

pub(crate) fn sys_getresuid(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    three_ids(k, cx, k.process.uid, args)
}

pub(crate) fn sys_getresgid(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    three_ids(k, cx, k.process.gid, args)
}

/// Changing ids: to the present ones only.
fn keep_id(current: u32, wanted: &[u64]) -> SysResult {
    const KEEP: u32 = u32::MAX;
    let allowed = wanted
        .iter()
        .all(|id| *id as u32 == KEEP || *id as u32 == current);
    if allowed { Ok(Flow::Done(0)) } else { Err(EPERM) }
}

pub(crate) fn sys_setuid(k: &mut Kernel, _cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    keep_id(k.process.uid, &args[..1])
}

pub(crate) fn sys_setgid(k: &mut Kernel, _cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    keep_id(k.process.gid, &args[..1])
}

pub(crate) fn sys_setreuid(k: &mut Kernel, _cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    keep_id(k.process.uid, &args[..2])
}

pub(crate) fn sys_setregid(k: &mut Kernel, _cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    keep_id(k.process.gid, &args[..2])
}

pub(crate) fn sys_setresuid(k: &mut Kernel, _cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    keep_id(k.process.uid, &args[..3])
}

pub(crate) fn sys_setresgid(k: &mut Kernel, _cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    keep_id(k.process.gid, &args[..3])
}

/// No supplementary groups.
pub(crate) fn sys_getgroups(_k: &mut Kernel, _cx: &mut Cx<'_>, _args: &[u64; 6]) -> SysResult {
    Ok(Flow::Done(0))
}

/// No capabilities: the three sets are empty.
pub(crate) fn sys_capget(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    const VERSION_3: u32 = 0x2008_0522;
    let version = k.copy_in_u32(cx, args[0])?;
    if version != VERSION_3 {
        k.copy_out(cx, args[0], &VERSION_3.to_le_bytes())?;
        return if args[1] == 0 {
            Ok(Flow::Done(0))
        } else {
            Err(EINVAL)
        };
    }
    k.copy_out_if(cx, args[1], &[0; 24])?;
    Ok(Flow::Done(0))
}

pub(crate) fn sys_uname(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    const FIELD: usize = 65;
    let host_name = k.process.host_name.clone();
    let fields = [
        "Linux",
        host_name.as_str(),
        "6.1.0-gust",
        "#1 SMP",
        "x86_64",
        "(none)",
    ];
    let raw = fields
        .iter()
        .enumerate()
        .fold(Writer::with_capacity(6 * FIELD), |out, (n, field)| {
            let bytes = &field.as_bytes()[..field.len().min(FIELD - 1)];
            out.bytes(bytes).pad_to((n + 1) * FIELD)
        });
    k.copy_out(cx, args[0], &raw.done())?;
    Ok(Flow::Done(0))
}

pub(crate) fn sys_sysinfo(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let up = k.clock.monotonic_ns(cx.host) / 1_000_000_000;
    let total = k.mm.limit_bytes;
    let free = total.saturating_sub(cx.vm.space().backed_bytes() + k.vfs.memory_bytes());
    let raw = Writer::with_capacity(112)
        .u64(up)
        .u64(0)
        .u64(0)
        .u64(0)
        .u64(total)
        .u64(free)
        .u64(k.vfs.memory_bytes())
        .u64(0)
        .u64(0)
        .u64(0)
        .u16(1)
        .pad_to(104)
        .u32(1)
        .pad_to(112)
        .done();
    k.copy_out(cx, args[0], &raw)?;
    Ok(Flow::Done(0))
}

pub(crate) fn sys_getrusage(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    const RUSAGE_BYTES: usize = 144;
    let ns = match args[0] as i32 {
        libc::RUSAGE_SELF => k.cpu_ns(),
        libc::RUSAGE_THREAD => k.thread(cx.slot).cpu_ns,
        libc::RUSAGE_CHILDREN => 0,
        _ => return Err(EINVAL),
    };
    let raw = Writer::with_capacity(RUSAGE_BYTES)
        .timeval(ns)
        .timeval(0)
        .u64(cx.vm.space().backed_bytes() / 1024)
        .pad_to(RUSAGE_BYTES)
        .done();
    k.copy_out(cx, args[1], &raw)?;
    Ok(Flow::Done(0))
}

pub(crate) fn sys_arch_prctl(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    const ARCH_SET_GS: i32 = 0x1001;
    const ARCH_SET_FS: i32 = 0x1002;
    const ARCH_GET_FS: i32 = 0x1003;
    const ARCH_GET_GS: i32 = 0x1004;
    const ARCH_GET_CPUID: i32 = 0x1011;
    const ARCH_GET_XCOMP_SUPP: i32 = 0x1021;
    const ARCH_GET_XCOMP_PERM: i32 = 0x1022;
    const ARCH_GET_XCOMP_GUEST_PERM: i32 = 0x1024;
    let [command, value, ..] = *args;
    let registers = k.thread(cx.slot).registers;
    match command as i32 {
        ARCH_SET_FS | ARCH_SET_GS if value >= gust_vmm::USER_END => return Err(EPERM),
        ARCH_SET_FS => k.thread_mut(cx.slot).registers.fs_base = value,
        ARCH_SET_GS => k.thread_mut(cx.slot).registers.gs_base = value,
        ARCH_GET_FS => k.copy_out(cx, value, &registers.fs_base.to_le_bytes())?,
        ARCH_GET_GS => k.copy_out(cx, value, &registers.gs_base.to_le_bytes())?,
        ARCH_GET_CPUID => return Ok(Flow::Done(1)),
        // The components that a thread's state is kept for; AMX is not one, and cannot be asked for.
        ARCH_GET_XCOMP_SUPP | ARCH_GET_XCOMP_PERM | ARCH_GET_XCOMP_GUEST_PERM => {
            const COMPONENTS: u64 = 0xe7;
            k.copy_out(cx, value, &COMPONENTS.to_le_bytes())?;
        }
        _ => return Err(EINVAL),
    }
    Ok(Flow::Done(0))
}

pub(crate) fn sys_prctl(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    const NAME_BYTES: usize = 16;
    const PR_SET_VMA: i32 = 0x5356_4d41;
    let [option, value, ..] = *args;
    match option as i32 {
        libc::PR_SET_NAME => {
            let name = k.copy_in_string(cx, value, NAME_BYTES).or_else(|errno| {
                if errno == crate::errno::ENAMETOOLONG {
                    k.copy_in_vec(cx, value, NAME_BYTES - 1)
                } else {
                    Err(errno)
                }
            })?;
            let thread = k.thread_mut(cx.slot);
            thread.name = [0; NAME_BYTES];
            thread.name[..name.len()].copy_from_slice(&name);
            Ok(Flow::Done(0))
        }
        libc::PR_GET_NAME => {
            let name = k.thread(cx.slot).name;
            k.copy_out(cx, value, &name)?;
            Ok(Flow::Done(0))
        }
        libc::PR_GET_DUMPABLE => Ok(Flow::Done(k.process.dumpable)),
        libc::PR_SET_DUMPABLE if value > 1 => Err(EINVAL),
        libc::PR_SET_DUMPABLE => {
            k.process.dumpable = value;
            Ok(Flow::Done(0))
        }
        libc::PR_SET_NO_NEW_PRIVS => {
            k.process.no_new_privileges = true;
            Ok(Flow::Done(0))
        }
        libc::PR_GET_NO_NEW_PRIVS => Ok(Flow::Done(u64::from(k.process.no_new_privileges))),
        libc::PR_SET_PDEATHSIG
        | libc::PR_SET_TIMERSLACK
        | libc::PR_SET_CHILD_SUBREAPER
        | libc::PR_SET_THP_DISABLE
        | PR_SET_VMA => Ok(Flow::Done(0)),
        libc::PR_GET_TIMERSLACK => Ok(Flow::Done(50_000)),
        libc::PR_CAPBSET_READ | libc::PR_GET_KEEPCAPS | libc::PR_GET_SECCOMP | libc::PR_GET_SECUREBITS => {
            Ok(Flow::Done(0))
        }
        _ => Err(EINVAL),
    }
}

pub(crate) fn sys_get_robust_list(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let slot = k.thread_by_id(cx, args[0])?;
    let head = k.thread(slot).robust_list;
    k.copy_out(cx, args[1], &head.to_le_bytes()).map_err(|_| EFAULT)?;
    k.copy_out(cx, args[2], &24u64.to_le_bytes())
        .map_err(|_| EFAULT)?;
    Ok(Flow::Done(0))
}

pub(crate) fn sys_sethostname_refused(_k: &mut Kernel, _cx: &mut Cx<'_>, _args: &[u64; 6]) -> SysResult {
    Err(EPERM)
}

/// One node, everything allowed on it.
pub(crate) fn sys_get_mempolicy(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    k.copy_out_if(cx, args[0], &[0; 4])?;
    if args[1] != 0 {
        if args[2] == 0 {
            return Err(EINVAL);
        }
        k.copy_out(cx, args[1], &1u64.to_le_bytes())?;
    }
    Ok(Flow::Done(0))
}
