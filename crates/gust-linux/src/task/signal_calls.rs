//! System calls on signals.

use crate::{
    abi::{Writer, i32_at, signal_bit, u32_at, u64_at},
    errno::{EAGAIN, EINTR, EINVAL, ENOMEM, EPERM, ESRCH, Errno},
    kernel::{Cx, Flow, Kernel, OnSignal, SysResult, Wait},
    task::{
        WaitKey,
        signals::{Action, Detail, SIG_IGN, SIGNALS, SigInfo, UNBLOCKABLE},
        thread::AltStack,
    },
};

/// Bytes of a signal mask as the kernel has it.
const MASK_BYTES: u64 = 8;
/// Smallest alternate stack.
const MINSIGSTKSZ: u64 = 2048;

pub(crate) fn sys_rt_sigaction(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let [signal, new, old, bytes, ..] = *args;
    let signal = signal as u32;
    if bytes != MASK_BYTES || signal == 0 || signal > SIGNALS {
        return Err(EINVAL);
    }
    let before = k.signals.action(signal);
    if new != 0 {
        if signal_bit(signal) & UNBLOCKABLE != 0 {
            return Err(EINVAL);
        }
        let raw: [u8; 32] = k.copy_in_array(cx, new)?;
        let action = Action {
            handler: u64_at(&raw, 0),
            flags: u64_at(&raw, 8),
            restorer: u64_at(&raw, 16),
            mask: u64_at(&raw, 24),
        };
        k.signals.set_action(signal, action);
        if action.handler == SIG_IGN {
            k.signals.pending.forget(signal);
            let slots: Vec<usize> = k.threads.iter().map(|(slot, _)| slot).collect();
            for slot in slots {
                k.thread_mut(slot).pending.forget(signal);
            }
        }
    }
    if old != 0 {
        let raw = Writer::with_capacity(32)
            .u64(before.handler)
            .u64(before.flags)
            .u64(before.restorer)
            .u64(before.mask)
            .done();
        k.copy_out(cx, old, &raw)?;
    }
    Ok(Flow::Done(0))
}

pub(crate) fn sys_rt_sigprocmask(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let [how, new, old, bytes, ..] = *args;
    if bytes != MASK_BYTES {
        return Err(EINVAL);
    }
    let before = k.thread(cx.slot).mask;
    if new != 0 {
        let set = k.copy_in_u64(cx, new)?;
        let mask = match how as i32 {
            libc::SIG_BLOCK => before | set,
            libc::SIG_UNBLOCK => before & !set,
            libc::SIG_SETMASK => set,
            _ => return Err(EINVAL),
        };
        k.thread_mut(cx.slot).mask = mask & !UNBLOCKABLE;
    }
    k.copy_out_if(cx, old, &before.to_le_bytes())?;
    Ok(Flow::Done(0))
}

pub(crate) fn sys_rt_sigpending(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    if args[1] > MASK_BYTES {
        return Err(EINVAL);
    }
    let thread = k.thread(cx.slot);
    let pending = (thread.pending.mask() | k.signals.pending.mask()) & thread.mask;
    k.copy_out(cx, args[0], &pending.to_le_bytes())?;
    Ok(Flow::Done(0))
}

pub(crate) fn sys_sigaltstack(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    const SS_AUTODISARM: u32 = 1 << 31;
    let [new, old, ..] = *args;
    let thread = k.thread(cx.slot);
    let stack = thread.alt_stack;
    let on_it = stack.holds(thread.registers.rsp);
    let requested: Option<[u8; 24]> = if new == 0 {
        None
    } else {
        Some(k.copy_in_array(cx, new)?)
    };
    if old != 0 {
        let flags = match (stack.bytes, on_it) {
            (0, _) => libc::SS_DISABLE,
            (_, true) => libc::SS_ONSTACK,
            (_, false) => 0,
        };
        let raw = Writer::with_capacity(24)
            .u64(stack.base)
            .i32(flags)
            .u32(0)
            .u64(stack.bytes)
            .done();
        k.copy_out(cx, old, &raw)?;
    }
    let Some(raw) = requested else {
        return Ok(Flow::Done(0));
    };
    if on_it {
        return Err(EPERM);
    }
    let flags = u32_at(&raw, 8);
    let new = match (flags & !SS_AUTODISARM) as i32 {
        libc::SS_DISABLE => AltStack::default(),
        0 | libc::SS_ONSTACK => {
            let bytes = u64_at(&raw, 16);
            if bytes < MINSIGSTKSZ {
                return Err(ENOMEM);
            }
            AltStack {
                base: u64_at(&raw, 0),
                bytes,
                auto_disarm: flags & SS_AUTODISARM != 0,
            }
        }
        _ => return Err(EINVAL),
    };
    k.thread_mut(cx.slot).alt_stack = new;
    Ok(Flow::Done(0))
}

impl Kernel {
    /// For calls that wait with a mask of their own: installs it, once for a call however often it is made again.
    pub(crate) fn apply_temporary_mask(
        &mut self,
        cx: &mut Cx<'_>,
        mask: u64,
        bytes: u64,
    ) -> Result<(), Errno> {
        if mask == 0 || self.thread(cx.slot).saved_mask.is_some() {
            return Ok(());
        }
        if bytes != MASK_BYTES {
            return Err(EINVAL);
        }
        let mask = self.copy_in_u64(cx, mask)? & !UNBLOCKABLE;
        let thread = self.thread_mut(cx.slot);
        thread.saved_mask = Some(thread.mask);
        thread.mask = mask;
        Ok(())
    }

    fn sender(&self, signal: u64, code: i32) -> Result<SigInfo, Errno> {
        let signal = signal as u32;
        if signal > SIGNALS {
            return Err(EINVAL);
        }
        let (pid, uid) = (self.process.pid, self.process.uid);
        Ok(SigInfo {
            signal,
            code,
            errno: 0,
            detail: Detail::Sender { pid, uid, value: 0 },
        })
    }

    fn signal_tid(&mut self, tid: u64, info: SigInfo) -> SysResult {
        if tid as i32 <= 0 {
            return Err(EINVAL);
        }
        let slot = self.threads.find_tid(tid as u32).ok_or(ESRCH)?;
        if info.signal != 0 {
            self.signal_thread(slot, info);
        }
        Ok(Flow::Done(0))
    }
}

pub(crate) fn sys_kill(k: &mut Kernel, _cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let info = k.sender(args[1], 0)?;
    let pid = args[0] as i32;
    // Zero and the negative own id are the process group; -1 is everyone but the sender.
    let meant = pid == 0 || k.process.is_me(pid.unsigned_abs());
    if !meant {
        return Err(ESRCH);
    }
    if info.signal != 0 {
        k.signal_process(info);
    }
    Ok(Flow::Done(0))
}

const SI_TKILL: i32 = -6;

pub(crate) fn sys_tkill(k: &mut Kernel, _cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let info = k.sender(args[1], SI_TKILL)?;
    k.signal_tid(args[0], info)
}

pub(crate) fn sys_tgkill(k: &mut Kernel, _cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let info = k.sender(args[2], SI_TKILL)?;
    if args[0] as i32 <= 0 {
        return Err(EINVAL);
    }
    if !k.process.is_me(args[0] as u32) {
        return Err(ESRCH);
    }
    k.signal_tid(args[1], info)
}

/// A `siginfo` that a guest made.
fn queued(k: &mut Kernel, cx: &mut Cx<'_>, signal: u64, at: u64) -> Result<SigInfo, Errno> {
    let raw: [u8; 48] = k.copy_in_array(cx, at)?;
    let signal = signal as u32;
    if signal > SIGNALS {
        return Err(EINVAL);
    }
    let words = [16, 24, 32, 40].map(|at| u64_at(&raw, at));
    Ok(SigInfo {
        signal,
        errno: i32_at(&raw, 4),
        code: i32_at(&raw, 8),
        detail: Detail::Raw(words),
    })
}

pub(crate) fn sys_rt_sigqueueinfo(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let info = queued(k, cx, args[1], args[2])?;
    if !k.process.is_me(args[0] as u32) {
        return Err(ESRCH);
    }
    if info.signal != 0 {
        k.signal_process(info);
    }
    Ok(Flow::Done(0))
}

pub(crate) fn sys_rt_tgsigqueueinfo(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let info = queued(k, cx, args[2], args[3])?;
    if !k.process.is_me(args[0] as u32) {
        return Err(ESRCH);
    }
    k.signal_tid(args[1], info)
}

pub(crate) fn sys_rt_sigsuspend(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    if args[1] != MASK_BYTES {
        return Err(EINVAL);
    }
    k.apply_temporary_mask(cx, args[0], args[1])?;
    Ok(Flow::Wait(wait_for_signal(cx.slot)))
}

pub(crate) fn sys_pause(_k: &mut Kernel, cx: &mut Cx<'_>, _args: &[u64; 6]) -> SysResult {
    Ok(Flow::Wait(wait_for_signal(cx.slot)))
}

fn wait_for_signal(slot: usize) -> Wait {
    Wait {
        keys: vec![WaitKey::Alone(slot)],
        deadline_ns: None,
        on_signal: OnSignal::Interrupt,
    }
}

pub(crate) fn sys_rt_sigtimedwait(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let [set, info, timeout, bytes, ..] = *args;
    if bytes != MASK_BYTES {
        return Err(EINVAL);
    }
    let wanted = k.copy_in_u64(cx, set)? & !UNBLOCKABLE;
    let timeout_ns = if timeout == 0 {
        None
    } else {
        Some(k.copy_in_timespec(cx, timeout)?)
    };
    let from_thread = k.thread_mut(cx.slot).pending.take(wanted);
    if let Some(found) = from_thread.or_else(|| k.signals.pending.take(wanted)) {
        k.copy_out_if(cx, info, &found.to_bytes())?;
        return Ok(Flow::Done(u64::from(found.signal)));
    }
    if timeout_ns == Some(0) || k.timed_out(cx.slot) {
        return Err(EAGAIN);
    }
    if k.has_deliverable(cx.slot) {
        return Err(EINTR);
    }
    let deadline_ns = timeout_ns.map(|timeout| k.deadline(cx, timeout));
    Ok(Flow::Wait(Wait {
        keys: vec![WaitKey::Alone(cx.slot)],
        deadline_ns,
        on_signal: OnSignal::Interrupt,
    }))
}
