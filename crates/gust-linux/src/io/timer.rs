//! Timers as files.

use serde::{Deserialize, Serialize};

use crate::{
    abi::{Writer, i64_at},
    errno::{EBADF, EINVAL, Errno},
    fs::{FileKind, OpenFile, Transfer},
    io::ObjectKey,
    kernel::{Cx, Flow, Kernel, SysResult},
    time::ClockKind,
    user::{UserSlice, timespec_ns, total},
};

/// A timer that counts its expirations.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct TimerFd {
    clock: ClockKind,
    /// Next expiration, on the guest's monotonic clock; `None` when disarmed.
    pub(crate) next_ns: Option<u64>,
    pub(crate) interval_ns: u64,
    /// Expirations since the last read.
    pub(crate) count: u64,
}

/// How many periods after `next_ns` have passed by `now_ns` as well, and when the following one ends; `None` after a
/// timer without an interval, or when that is later than any time.
pub(crate) fn periods(next_ns: u64, interval_ns: u64, now_ns: u64) -> (u64, Option<u64>) {
    match now_ns.saturating_sub(next_ns).checked_div(interval_ns) {
        Some(missed) => {
            let following = missed
                .checked_add(1)
                .and_then(|count| count.checked_mul(interval_ns))
                .and_then(|later| later.checked_add(next_ns));
            (missed, following)
        }
        None => (0, None),
    }
}

impl TimerFd {
    /// Counts what has expired by now; gives whether anything did.
    pub(crate) fn advance(&mut self, now_ns: u64) -> bool {
        let Some(next) = self.next_ns.filter(|next| *next <= now_ns) else {
            return false;
        };
        let (missed, following) = periods(next, self.interval_ns, now_ns);
        self.count = self.count.saturating_add(missed).saturating_add(1);
        self.next_ns = following;
        true
    }

    fn setting(&self, now_ns: u64) -> Vec<u8> {
        let left = self.next_ns.map_or(0, |next| next.saturating_sub(now_ns).max(1));
        Writer::with_capacity(32)
            .timespec(self.interval_ns)
            .timespec(left)
            .done()
    }
}

pub(crate) fn sys_timerfd_create(k: &mut Kernel, _cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let flags = args[1] as i32;
    if flags & !(libc::TFD_CLOEXEC | libc::TFD_NONBLOCK) != 0 {
        return Err(EINVAL);
    }
    let clock = match args[0] as i32 {
        libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_ALARM => ClockKind::Realtime,
        libc::CLOCK_MONOTONIC | libc::CLOCK_BOOTTIME | libc::CLOCK_BOOTTIME_ALARM => ClockKind::Monotonic,
        _ => return Err(EINVAL),
    };
    k.files.has_room()?;
    let number = k.timer_fds.insert(TimerFd {
        clock,
        next_ns: None,
        interval_ns: 0,
        count: 0,
    });
    let file = OpenFile::new(FileKind::TimerFd(number), libc::O_RDWR | flags & libc::O_NONBLOCK);
    k.install(file, flags & libc::TFD_CLOEXEC != 0).map(Flow::Done)
}

impl Kernel {
    fn timer_number(&self, fd: u64) -> Result<u32, Errno> {
        match self.files.get(fd).ok_or(EBADF)?.kind {
            FileKind::TimerFd(number) => Ok(number),
            _ => Err(EINVAL),
        }
    }

    pub(crate) fn read_timer(
        &mut self,
        cx: &mut Cx<'_>,
        number: u32,
        slices: &[UserSlice],
    ) -> Result<Transfer, Errno> {
        if total(slices) < 8 {
            return Err(EINVAL);
        }
        let now = self.clock.monotonic_ns(cx.host);
        let timer = self.timer_fds.get_mut(number).ok_or(EINVAL)?;
        timer.advance(now);
        if timer.count == 0 {
            return Ok(Transfer::NotReady(ObjectKey::TimerFd(number)));
        }
        let count = timer.count;
        self.scatter(cx, slices, 0, &count.to_le_bytes())?;
        if let Some(timer) = self.timer_fds.get_mut(number) {
            timer.count = 0;
        }
        Ok(Transfer::Bytes(8))
    }
}

pub(crate) fn sys_timerfd_settime(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let [fd, flags, new, old, ..] = *args;
    let number = k.timer_number(fd)?;
    let flags = flags as i32;
    if flags & !(libc::TFD_TIMER_ABSTIME | libc::TFD_TIMER_CANCEL_ON_SET) != 0 {
        return Err(EINVAL);
    }
    let raw: [u8; 32] = k.copy_in_array(cx, new)?;
    let interval_ns = timespec_ns(i64_at(&raw, 0), i64_at(&raw, 8))?;
    let value_ns = timespec_ns(i64_at(&raw, 16), i64_at(&raw, 24))?;
    let now = k.clock.monotonic_ns(cx.host);
    let timer = k.timer_fds.get(number).ok_or(EINVAL)?;
    let (clock, before) = (timer.clock, timer.setting(now));
    let next_ns = if value_ns == 0 {
        None
    } else if flags & libc::TFD_TIMER_ABSTIME != 0 {
        Some(k.clock.to_monotonic(cx.host, clock, value_ns))
    } else {
        Some(now.saturating_add(value_ns))
    };
    if let Some(timer) = k.timer_fds.get_mut(number) {
        *timer = TimerFd {
            clock,
            next_ns,
            interval_ns,
            count: 0,
        };
    }
    k.copy_out_if(cx, old, &before)?;
    Ok(Flow::Done(0))
}

pub(crate) fn sys_timerfd_gettime(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let number = k.timer_number(args[0])?;
    let now = k.clock.monotonic_ns(cx.host);
    let timer = k.timer_fds.get_mut(number).ok_or(EINVAL)?;
    timer.advance(now);
    let setting = timer.setting(now);
    k.copy_out(cx, args[1], &setting)?;
    Ok(Flow::Done(0))
}
