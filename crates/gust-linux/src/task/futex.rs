//! Futexes.

use crate::{
    errno::{EAGAIN, EFAULT, EINVAL, ENOSYS, ETIMEDOUT, Errno},
    kernel::{Cx, Flow, Kernel, OnSignal, SysResult, Wait},
    mm::Access,
    task::WaitKey,
    time::ClockKind,
};

impl Kernel {
    /// The word of a futex.
    fn futex_word(&mut self, cx: &mut Cx<'_>, at: u64) -> Result<u32, Errno> {
        if !at.is_multiple_of(4) {
            return Err(EINVAL);
        }
        self.reach(cx, Access::Read, |cx| cx.vm.space().load_u32(at))
    }

    /// Wakes waiters whose bits meet `bits`, at most `count`, but one even for a count of 0; gives how many.
    pub(crate) fn futex_wake(&mut self, at: u64, count: u32, bits: u32) -> u64 {
        let mut woken = 0;
        for slot in self.queues.waiters(WaitKey::Futex(at)) {
            if self.thread(slot).futex_bits & bits != 0 {
                self.complete(slot, 0);
                woken += 1;
                // Linux looks at the count when it has woken one.
                if woken >= u64::from(count) {
                    break;
                }
            }
        }
        woken
    }

    fn futex_wait(
        &mut self,
        cx: &mut Cx<'_>,
        at: u64,
        expected: u32,
        deadline_ns: Option<u64>,
        bits: u32,
    ) -> SysResult {
        if bits == 0 {
            return Err(EINVAL);
        }
        if self.timed_out(cx.slot) {
            return Err(ETIMEDOUT);
        }
        if self.futex_word(cx, at)? != expected {
            return Err(EAGAIN);
        }
        self.thread_mut(cx.slot).futex_bits = bits;
        Ok(Flow::Wait(Wait {
            keys: vec![WaitKey::Futex(at)],
            deadline_ns,
            on_signal: OnSignal::Restart,
        }))
    }

    /// The deadline of a wait: relative for `FUTEX_WAIT`, absolute for the others.
    fn futex_deadline(
        &mut self,
        cx: &mut Cx<'_>,
        operation: i32,
        timeout: u64,
    ) -> Result<Option<u64>, Errno> {
        if timeout == 0 {
            return Ok(None);
        }
        let value = self.copy_in_timespec(cx, timeout)?;
        if operation & libc::FUTEX_CMD_MASK == libc::FUTEX_WAIT {
            return Ok(Some(self.deadline(cx, value)));
        }
        let clock = if operation & libc::FUTEX_CLOCK_REALTIME != 0 {
            ClockKind::Realtime
        } else {
            ClockKind::Monotonic
        };
        Ok(Some(self.clock.to_monotonic(cx.host, clock, value)))
    }

    fn futex_requeue(&mut self, from: u64, to: u64, wake: u32, requeue: u32) -> Result<u64, Errno> {
        if !to.is_multiple_of(4) || (wake as i32) < 0 || (requeue as i32) < 0 {
            return Err(EINVAL);
        }
        let woken = match wake {
            0 => 0,
            wake => self.futex_wake(from, wake, u32::MAX),
        };
        let mut moved = 0;
        for slot in self
            .queues
            .waiters(WaitKey::Futex(from))
            .into_iter()
            .take(requeue as usize)
        {
            self.queues
                .requeue(slot, WaitKey::Futex(from), WaitKey::Futex(to));
            if let Some(wait) = &mut self.thread_mut(slot).wait {
                wait.keys = vec![WaitKey::Futex(to)];
            }
            moved += 1;
        }
        Ok(woken + moved)
    }

    /// `FUTEX_WAKE_OP`: changes a second word, wakes on the first, and on the second if its old value compares so.
    fn futex_wake_op(&mut self, cx: &mut Cx<'_>, args: &[u64; 6]) -> Result<u64, Errno> {
        let [at, _, wake, wake_second, second, operation] = *args;
        let operation = operation as u32;
        let (code, compare) = (operation >> 28 & 7, operation >> 24 & 15);
        let mut operand = operation >> 12 & 0xfff;
        let argument = (operation << 20) as i32 >> 20;
        if operation >> 31 != 0 {
            operand = 1u32.checked_shl(operand).unwrap_or(0);
        } else {
            operand = ((operation << 8) as i32 >> 20) as u32;
        }
        if code > 4 {
            return Err(ENOSYS);
        }
        let mut change = |old: u32| match code {
            0 => operand,
            1 => old.wrapping_add(operand),
            2 => old | operand,
            3 => old & !operand,
            _ => old ^ operand,
        };
        check_word(at)?;
        check_word(second)?;
        let old = self.reach(cx, Access::Write, |cx| {
            cx.vm.space_mut().update_u32(second, &mut change)
        })? as i32;
        let holds = match compare {
            0 => old == argument,
            1 => old != argument,
            2 => old < argument,
            3 => old <= argument,
            4 => old > argument,
            5 => old >= argument,
            _ => return Err(ENOSYS),
        };
        let mut woken = self.futex_wake(at, wake as u32, u32::MAX);
        if holds {
            woken += self.futex_wake(second, wake_second as u32, u32::MAX);
        }
        Ok(woken)
    }
}

pub(crate) fn sys_futex(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let [at, operation, value, timeout, second, third] = *args;
    let (operation, value, third) = (operation as i32, value as u32, third as u32);
    match operation & libc::FUTEX_CMD_MASK {
        libc::FUTEX_WAIT => {
            let deadline = k.futex_deadline(cx, operation, timeout)?;
            k.futex_wait(cx, at, value, deadline, u32::MAX)
        }
        libc::FUTEX_WAIT_BITSET => {
            let deadline = k.futex_deadline(cx, operation, timeout)?;
            k.futex_wait(cx, at, value, deadline, third)
        }
        libc::FUTEX_WAKE => {
            check_word(at)?;
            Ok(Flow::Done(k.futex_wake(at, value, u32::MAX)))
        }
        libc::FUTEX_WAKE_BITSET if third == 0 => Err(EINVAL),
        libc::FUTEX_WAKE_BITSET => {
            check_word(at)?;
            Ok(Flow::Done(k.futex_wake(at, value, third)))
        }
        libc::FUTEX_REQUEUE => k.futex_requeue(at, second, value, timeout as u32).map(Flow::Done),
        libc::FUTEX_CMP_REQUEUE => {
            if k.futex_word(cx, at)? != third {
                return Err(EAGAIN);
            }
            k.futex_requeue(at, second, value, timeout as u32).map(Flow::Done)
        }
        libc::FUTEX_WAKE_OP => {
            check_word(at)?;
            k.futex_wake_op(cx, args).map(Flow::Done)
        }
        libc::FUTEX_LOCK_PI | libc::FUTEX_LOCK_PI2 => k.futex_lock(cx, at, operation, timeout, true),
        libc::FUTEX_TRYLOCK_PI => k.futex_lock(cx, at, operation, timeout, false),
        libc::FUTEX_UNLOCK_PI => k.futex_unlock(cx, at),
        _ => Err(ENOSYS),
    }
}

fn check_word(at: u64) -> Result<(), Errno> {
    if at.is_multiple_of(4) { Ok(()) } else { Err(EINVAL) }
}

/// Priority-inheriting locks. One order of running makes inheritance moot; the protocol on the word is kept: the
/// owner's id, and a bit that says that someone waits.
impl Kernel {
    fn futex_lock(
        &mut self,
        cx: &mut Cx<'_>,
        at: u64,
        operation: i32,
        timeout: u64,
        wait: bool,
    ) -> SysResult {
        check_word(at)?;
        if self.timed_out(cx.slot) {
            return Err(ETIMEDOUT);
        }
        let me = self.thread(cx.slot).tid;
        let mut taken = false;
        let mut change = |word: u32| {
            taken = word & libc::FUTEX_TID_MASK == 0;
            if taken {
                word & libc::FUTEX_WAITERS | me
            } else {
                word | libc::FUTEX_WAITERS
            }
        };
        let old = self.reach(cx, Access::Write, |cx| {
            cx.vm.space_mut().update_u32(at, &mut change)
        })?;
        if taken {
            return Ok(Flow::Done(0));
        }
        if old & libc::FUTEX_TID_MASK == me {
            return Err(crate::errno::EDEADLK);
        }
        if !wait {
            return Err(EAGAIN);
        }
        let deadline_ns = if timeout == 0 {
            None
        } else {
            let value = self.copy_in_timespec(cx, timeout)?;
            let monotonic = operation & libc::FUTEX_CMD_MASK == libc::FUTEX_LOCK_PI2
                && operation & libc::FUTEX_CLOCK_REALTIME == 0;
            let clock = if monotonic {
                ClockKind::Monotonic
            } else {
                ClockKind::Realtime
            };
            Some(self.clock.to_monotonic(cx.host, clock, value))
        };
        self.thread_mut(cx.slot).futex_bits = u32::MAX;
        Ok(Flow::Wait(Wait {
            keys: vec![WaitKey::Futex(at)],
            deadline_ns,
            on_signal: OnSignal::Restart,
        }))
    }

    fn futex_unlock(&mut self, cx: &mut Cx<'_>, at: u64) -> SysResult {
        let word = self.futex_word(cx, at)?;
        if word & libc::FUTEX_TID_MASK != self.thread(cx.slot).tid {
            return Err(crate::errno::EPERM);
        }
        let next = self.queues.waiters(WaitKey::Futex(at)).first().copied();
        let others = self.queues.waiters(WaitKey::Futex(at)).len() > 1;
        let owner = next.map_or(0, |slot| self.thread(slot).tid);
        let new = owner | if others { libc::FUTEX_WAITERS } else { 0 };
        cx.vm
            .space_mut()
            .update_u32(at, &mut |_| new)
            .map_err(|_| EFAULT)?;
        if let Some(slot) = next {
            self.complete(slot, 0);
        }
        Ok(Flow::Done(0))
    }
}
