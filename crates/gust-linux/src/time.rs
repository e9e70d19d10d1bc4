//! Clocks, sleeps and timers.
//!
//! The guest's monotonic clock is the host's, moved so that it goes on from where a snapshot was taken: a thread that
//! slept in the snapshot sleeps on. Clock reads do not come here: the guest reads a page ([`crate::vdso`]) that is
//! written whenever the clocks have been moved.

use serde::{Deserialize, Serialize};

use crate::{
    abi::{Writer, i32_at, i64_at, u32_at, u64_at},
    errno::{EINVAL, EOPNOTSUPP, Errno},
    host::Host,
    io::{ObjectKey, periods},
    kernel::{Cx, Flow, Kernel, OnSignal, SysResult, Wait},
    slab::Slab,
    task::{SigInfo, WaitKey},
    user::timespec_ns,
};

/// A clock that timers can run by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ClockKind {
    /// Never goes back.
    Monotonic,
    /// Seconds since the Unix epoch.
    Realtime,
}

/// A timer of the process that sends a signal.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct PosixTimer {
    clock: ClockKind,
    next_ns: Option<u64>,
    interval_ns: u64,
    /// Signal, its value, and the thread it is for; no signal when zero.
    signal: u32,
    value: u64,
    thread: Option<u32>,
    overrun: u32,
}

/// The clocks and timers of one guest.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Clock {
    /// Guest's monotonic clock less the host's.
    offset_ns: i64,
    /// `ITIMER_REAL`: next expiration and interval.
    alarm: Option<(u64, u64)>,
    timers: Slab<PosixTimer>,
    /// Where the clock page is; zero before there is one.
    pub(crate) page: u64,
}

/// Most POSIX timers.
const TIMERS_MAX: usize = 256;

impl Clock {
    /// Timers by `timer_create` go with their program; `setitimer`'s goes on.
    pub(crate) fn forget_timers(&mut self) {
        self.timers = Slab::default();
    }

    pub(crate) fn monotonic_ns(&self, host: &mut dyn Host) -> u64 {
        host.monotonic_ns().saturating_add_signed(self.offset_ns)
    }

    pub(crate) fn realtime_ns(&self, host: &mut dyn Host) -> u64 {
        host.realtime_ns()
    }

    /// Makes the monotonic clock go on from `at_ns`.
    pub(crate) fn continue_from(&mut self, host: &mut dyn Host, at_ns: u64) {
        self.offset_ns = at_ns as i64 - host.monotonic_ns() as i64;
    }

    /// A point in time of a clock, on the monotonic one.
    pub(crate) fn to_monotonic(&self, host: &mut dyn Host, clock: ClockKind, at_ns: u64) -> u64 {
        match clock {
            ClockKind::Monotonic => at_ns,
            ClockKind::Realtime => {
                let ahead = at_ns.saturating_sub(self.realtime_ns(host));
                self.monotonic_ns(host).saturating_add(ahead)
            }
        }
    }
}

/// `ClockKind` of a clock that sleeps and timers may use.
fn sleep_clock(id: u64) -> Result<ClockKind, Errno> {
    match id as i32 {
        libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_ALARM | libc::CLOCK_TAI => Ok(ClockKind::Realtime),
        libc::CLOCK_MONOTONIC | libc::CLOCK_BOOTTIME | libc::CLOCK_BOOTTIME_ALARM => Ok(ClockKind::Monotonic),
        libc::CLOCK_PROCESS_CPUTIME_ID | libc::CLOCK_THREAD_CPUTIME_ID => Err(EOPNOTSUPP),
        _ => Err(EINVAL),
    }
}

fn timeval(ns: u64) -> Vec<u8> {
    Writer::with_capacity(16).timeval(ns).done()
}

fn timespec(ns: u64) -> Vec<u8> {
    Writer::with_capacity(16).timespec(ns).done()
}

impl Kernel {
    /// The value of a clock.
    fn read_clock(&self, cx: &mut Cx<'_>, id: u64) -> Result<u64, Errno> {
        match id as i32 {
            libc::CLOCK_REALTIME
            | libc::CLOCK_REALTIME_COARSE
            | libc::CLOCK_REALTIME_ALARM
            | libc::CLOCK_TAI => Ok(self.clock.realtime_ns(cx.host)),
            libc::CLOCK_MONOTONIC
            | libc::CLOCK_MONOTONIC_RAW
            | libc::CLOCK_MONOTONIC_COARSE
            | libc::CLOCK_BOOTTIME
            | libc::CLOCK_BOOTTIME_ALARM => Ok(self.clock.monotonic_ns(cx.host)),
            libc::CLOCK_PROCESS_CPUTIME_ID => Ok(self.cpu_ns()),
            libc::CLOCK_THREAD_CPUTIME_ID => Ok(self.thread(cx.slot).cpu_ns),
            // A process's or a thread's CPU clock, by number: the complement of the id, shifted, and the kind.
            id if id < 0 => {
                const PER_THREAD: i32 = 4;
                let number = !(id >> 3) as u32;
                if id & PER_THREAD == 0 {
                    return if number == 0 || self.process.is_me(number) {
                        Ok(self.cpu_ns())
                    } else {
                        Err(EINVAL)
                    };
                }
                let slot = if number == 0 {
                    Some(cx.slot)
                } else {
                    self.threads.find_tid(number)
                };
                slot.map(|slot| self.thread(slot).cpu_ns).ok_or(EINVAL)
            }
            _ => Err(EINVAL),
        }
    }

    /// Lets timers expire.
    pub(crate) fn expire_timers(&mut self, now: u64) {
        if let Some((next, interval)) = self.clock.alarm.filter(|(next, _)| *next <= now) {
            let (_, following) = periods(next, interval, now);
            self.clock.alarm = following.map(|next| (next, interval));
            self.signal_process(SigInfo::kernel(libc::SIGALRM as u32));
        }
        let due: Vec<u32> = self
            .clock
            .timers
            .iter()
            .filter(|(_, timer)| timer.next_ns.is_some_and(|next| next <= now))
            .map(|(number, _)| number)
            .collect();
        for number in due {
            self.expire_posix_timer(number, now);
        }
        let due: Vec<u32> = self
            .timer_fds
            .iter()
            .filter(|(_, timer)| timer.next_ns.is_some_and(|next| next <= now))
            .map(|(number, _)| number)
            .collect();
        for number in due {
            if let Some(timer) = self.timer_fds.get_mut(number) {
                timer.advance(now);
            }
            self.wake_object(ObjectKey::TimerFd(number));
        }
    }

    fn expire_posix_timer(&mut self, number: u32, now: u64) {
        let Some(timer) = self.clock.timers.get_mut(number) else {
            return;
        };
        let Some(next) = timer.next_ns else { return };
        let (missed, following) = periods(next, timer.interval_ns, now);
        timer.overrun = missed.min(i32::MAX as u64) as u32;
        timer.next_ns = following;
        if timer.signal == 0 {
            return;
        }
        let info = SigInfo::timer(timer.signal, number, timer.overrun, timer.value);
        let slot = timer.thread.and_then(|tid| self.threads.find_tid(tid));
        match slot {
            Some(slot) => self.signal_thread(slot, info),
            None => self.signal_process(info),
        }
    }

    /// When the next timer expires.
    pub(crate) fn next_timer_ns(&self) -> Option<u64> {
        let alarm = self.clock.alarm.map(|(next, _)| next);
        let posix = self
            .clock
            .timers
            .iter()
            .filter_map(|(_, timer)| timer.next_ns)
            .min();
        let files = self.timer_fds.iter().filter_map(|(_, timer)| timer.next_ns).min();
        [alarm, posix, files].into_iter().flatten().min()
    }
}

pub(crate) fn sys_clock_gettime(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let now = k.read_clock(cx, args[0])?;
    k.copy_out(cx, args[1], &timespec(now))?;
    Ok(Flow::Done(0))
}

pub(crate) fn sys_clock_getres(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    k.read_clock(cx, args[0])?;
    let coarse = matches!(
        args[0] as i32,
        libc::CLOCK_REALTIME_COARSE | libc::CLOCK_MONOTONIC_COARSE
    );
    k.copy_out_if(cx, args[1], &timespec(if coarse { 4_000_000 } else { 1 }))?;
    Ok(Flow::Done(0))
}

/// The clocks are the host's.
pub(crate) fn sys_clock_settime(_k: &mut Kernel, _cx: &mut Cx<'_>, _args: &[u64; 6]) -> SysResult {
    Err(crate::errno::EPERM)
}

pub(crate) fn sys_gettimeofday(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let now = k.clock.realtime_ns(cx.host);
    k.copy_out_if(cx, args[0], &timeval(now))?;
    k.copy_out_if(cx, args[1], &[0; 8])?;
    Ok(Flow::Done(0))
}

pub(crate) fn sys_time(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let seconds = k.clock.realtime_ns(cx.host) / 1_000_000_000;
    k.copy_out_if(cx, args[0], &seconds.to_le_bytes())?;
    Ok(Flow::Done(seconds))
}

pub(crate) fn sys_times(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    const TICK_NS: u64 = 10_000_000;
    let ticks = k.cpu_ns() / TICK_NS;
    k.copy_out_if(
        cx,
        args[0],
        &Writer::with_capacity(32).u64(ticks).u64(0).u64(0).u64(0).done(),
    )?;
    Ok(Flow::Done(k.clock.monotonic_ns(cx.host) / TICK_NS))
}

/// Where a call says what is left of its time when it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Left {
    pub(crate) at: u64,
    /// A `timeval`, not a `timespec`.
    pub(crate) is_timeval: bool,
}

impl Kernel {
    /// Says what is left until a deadline; nothing where that cannot be written, as on Linux.
    pub(crate) fn tell_left(&mut self, cx: &mut Cx<'_>, left: Left, until_ns: u64) {
        let ns = until_ns.saturating_sub(self.clock.monotonic_ns(cx.host));
        let raw = match left.is_timeval {
            true => timeval(ns),
            false => timespec(ns),
        };
        let _unwritten = self.copy_out(cx, left.at, &raw);
    }

    /// The same of the call that a signal has ended, if there is one.
    pub(crate) fn tell_left_of_interrupted(&mut self, cx: &mut Cx<'_>) {
        if let Some((left, until_ns)) = self.thread_mut(cx.slot).left.take() {
            self.tell_left(cx, left, until_ns);
        }
    }

    /// Sleeps until a deadline; when a signal ends the sleep, what is left goes to `remaining`.
    fn sleep(&mut self, cx: &mut Cx<'_>, until_ns: u64, remaining: u64) -> SysResult {
        let now = self.clock.monotonic_ns(cx.host);
        if until_ns <= now || self.timed_out(cx.slot) {
            return Ok(Flow::Done(0));
        }
        if let Some(call) = &mut self.thread_mut(cx.slot).call {
            call.deadline_ns = Some(until_ns);
            call.left = (remaining != 0).then_some(Left {
                at: remaining,
                is_timeval: false,
            });
        }
        Ok(Flow::Wait(Wait {
            keys: vec![WaitKey::Alone(cx.slot)],
            deadline_ns: Some(until_ns),
            on_signal: OnSignal::Interrupt,
        }))
    }
}

pub(crate) fn sys_nanosleep(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let duration = k.copy_in_timespec(cx, args[0])?;
    let until = k.deadline(cx, duration);
    k.sleep(cx, until, args[1])
}

pub(crate) fn sys_clock_nanosleep(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let [clock, flags, request, remaining, ..] = *args;
    let clock = sleep_clock(clock)?;
    let value = k.copy_in_timespec(cx, request)?;
    if flags as i32 & libc::TIMER_ABSTIME != 0 {
        let until = k.clock.to_monotonic(cx.host, clock, value);
        return k.sleep(cx, until, 0);
    }
    let until = k.deadline(cx, value);
    k.sleep(cx, until, remaining)
}

fn itimer_value(setting: Option<(u64, u64)>, now: u64) -> Vec<u8> {
    let (left, interval) = setting.map_or((0, 0), |(next, interval)| {
        (next.saturating_sub(now).max(1000), interval)
    });
    Writer::with_capacity(32).timeval(interval).timeval(left).done()
}

pub(crate) fn sys_getitimer(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    if args[0] as i32 != libc::ITIMER_REAL {
        return Err(EINVAL);
    }
    let now = k.clock.monotonic_ns(cx.host);
    let value = itimer_value(k.clock.alarm, now);
    k.copy_out(cx, args[1], &value)?;
    Ok(Flow::Done(0))
}

/// `ITIMER_REAL` only: timers of CPU time have no clock to ring by here.
pub(crate) fn sys_setitimer(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    if args[0] as i32 != libc::ITIMER_REAL {
        return Err(EINVAL);
    }
    let now = k.clock.monotonic_ns(cx.host);
    let before = itimer_value(k.clock.alarm, now);
    let setting = if args[1] == 0 {
        None
    } else {
        let raw: [u8; 32] = k.copy_in_array(cx, args[1])?;
        let ns = |at: usize| {
            let microseconds = i64_at(&raw, at + 8);
            if !(0..1_000_000).contains(&microseconds) {
                Err(EINVAL)
            } else {
                timespec_ns(i64_at(&raw, at), microseconds * 1000)
            }
        };
        let (interval, value) = (ns(0)?, ns(16)?);
        (value > 0).then(|| (now.saturating_add(value), interval))
    };
    k.clock.alarm = setting;
    k.copy_out_if(cx, args[2], &before)?;
    Ok(Flow::Done(0))
}

pub(crate) fn sys_alarm(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let now = k.clock.monotonic_ns(cx.host);
    let left = k
        .clock
        .alarm
        .map_or(0, |(next, _)| next.saturating_sub(now).div_ceil(1_000_000_000));
    let seconds = u64::from(args[0] as u32);
    k.clock.alarm = (seconds > 0).then(|| (now.saturating_add(seconds * 1_000_000_000), 0));
    Ok(Flow::Done(left))
}

pub(crate) fn sys_timer_create(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let clock = sleep_clock(args[0])?;
    if k.clock.timers.len() >= TIMERS_MAX {
        return Err(crate::errno::EAGAIN);
    }
    let mut timer = PosixTimer {
        clock,
        next_ns: None,
        interval_ns: 0,
        signal: libc::SIGALRM as u32,
        value: 0,
        thread: None,
        overrun: 0,
    };
    if args[1] != 0 {
        // struct sigevent: value, signal, kind of notification, thread.
        let raw: [u8; 64] = k.copy_in_array(cx, args[1])?;
        timer.value = u64_at(&raw, 0);
        timer.signal = u32_at(&raw, 8);
        match i32_at(&raw, 12) {
            libc::SIGEV_NONE => timer.signal = 0,
            libc::SIGEV_SIGNAL => {}
            libc::SIGEV_THREAD_ID => {
                timer.thread = Some(u32_at(&raw, 16)).filter(|tid| k.threads.find_tid(*tid).is_some());
                if timer.thread.is_none() {
                    return Err(EINVAL);
                }
            }
            _ => return Err(EINVAL),
        }
        if timer.signal > 64 {
            return Err(EINVAL);
        }
    }
    let number = k.clock.timers.insert(timer);
    if let Err(errno) = k.copy_out(cx, args[2], &number.to_le_bytes()) {
        k.clock.timers.remove(number);
        return Err(errno);
    }
    Ok(Flow::Done(0))
}

fn posix_setting(timer: &PosixTimer, now: u64) -> Vec<u8> {
    let left = timer.next_ns.map_or(0, |next| next.saturating_sub(now).max(1));
    Writer::with_capacity(32)
        .timespec(timer.interval_ns)
        .timespec(left)
        .done()
}

pub(crate) fn sys_timer_settime(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let [number, flags, new, old, ..] = *args;
    let raw: [u8; 32] = k.copy_in_array(cx, new)?;
    let interval_ns = timespec_ns(i64_at(&raw, 0), i64_at(&raw, 8))?;
    let value_ns = timespec_ns(i64_at(&raw, 16), i64_at(&raw, 24))?;
    let now = k.clock.monotonic_ns(cx.host);
    let timer = k.clock.timers.get(number as u32).ok_or(EINVAL)?;
    let (clock, before) = (timer.clock, posix_setting(timer, now));
    let next_ns = match (value_ns, flags as i32 & libc::TIMER_ABSTIME) {
        (0, _) => None,
        (_, 0) => Some(now.saturating_add(value_ns)),
        _ => Some(k.clock.to_monotonic(cx.host, clock, value_ns)),
    };
    if let Some(timer) = k.clock.timers.get_mut(number as u32) {
        (timer.next_ns, timer.interval_ns, timer.overrun) = (next_ns, interval_ns, 0);
    }
    k.copy_out_if(cx, old, &before)?;
    Ok(Flow::Done(0))
}

pub(crate) fn sys_timer_gettime(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let now = k.clock.monotonic_ns(cx.host);
    let setting = posix_setting(k.clock.timers.get(args[0] as u32).ok_or(EINVAL)?, now);
    k.copy_out(cx, args[1], &setting)?;
    Ok(Flow::Done(0))
}

pub(crate) fn sys_timer_getoverrun(k: &mut Kernel, _cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let timer = k.clock.timers.get(args[0] as u32).ok_or(EINVAL)?;
    Ok(Flow::Done(u64::from(timer.overrun)))
}

pub(crate) fn sys_timer_delete(k: &mut Kernel, _cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    k.clock
        .timers
        .remove(args[0] as u32)
        .map(|_| Flow::Done(0))
        .ok_or(EINVAL)
}
