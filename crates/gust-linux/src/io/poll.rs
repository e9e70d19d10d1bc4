//! `poll` and `select`.

use crate::{
    abi::{i32_at, i64_at, u16_at},
    errno::{EBADF, EINVAL, Errno},
    fs::{FILES_MAX, FileKind},
    io::{
        epoll::milliseconds,
        readiness::{ERR, HUP, IN, OUT},
    },
    kernel::{Cx, Flow, Kernel, OnSignal, SysResult, Wait},
    task::WaitKey,
    time::Left,
    user::timespec_ns,
};

const POLL_BYTES: usize = 8;

/// How long a call waits at most, and where it says what was left of that.
#[derive(Debug, Clone, Copy)]
struct Timeout {
    ns: u64,
    left: Option<Left>,
}

impl Kernel {
    /// Waits for any of these files.
    fn wait_for_any(&mut self, cx: &mut Cx<'_>, kinds: &[FileKind], timeout: Option<Timeout>) -> Flow {
        let mut keys: Vec<WaitKey> = kinds
            .iter()
            .filter_map(|kind| kind.object().map(WaitKey::Object))
            .collect();
        keys.sort_unstable();
        keys.dedup();
        if keys.is_empty() {
            keys.push(WaitKey::Alone(cx.slot));
        }
        let deadline_ns = timeout.map(|timeout| self.deadline(cx, timeout.ns));
        if let Some(call) = &mut self.thread_mut(cx.slot).call {
            call.left = timeout.and_then(|timeout| timeout.left);
        }
        Flow::Wait(Wait {
            keys,
            deadline_ns,
            on_signal: OnSignal::Interrupt,
        })
    }

    /// Says what is left of a time-out when there is an answer; one of no time stays as it is, as on Linux.
    fn end_wait(&mut self, cx: &mut Cx<'_>, timeout: Option<Timeout>) {
        if let Some(Timeout { ns, left: Some(left) }) = timeout
            && ns > 0
        {
            let until_ns = self.deadline(cx, ns);
            self.tell_left(cx, left, until_ns);
        }
    }

    /// Whether a call with this time-out answers although nothing is ready.
    fn gives_up(&self, cx: &Cx<'_>, timeout: Option<Timeout>) -> bool {
        timeout.is_some_and(|timeout| timeout.ns == 0) || self.timed_out(cx.slot)
    }

    fn poll(&mut self, cx: &mut Cx<'_>, at: u64, count: u64, timeout: Option<Timeout>) -> SysResult {
        if count > FILES_MAX {
            return Err(EINVAL);
        }
        let mut raw = self.copy_in_vec(cx, at, count as usize * POLL_BYTES)?;
        let mut ready = 0;
        let mut kinds = Vec::new();
        for entry in raw.chunks_exact_mut(POLL_BYTES) {
            let fd = i32_at(entry, 0);
            let wanted = u32::from(u16_at(entry, 4));
            let found = if fd < 0 {
                0
            } else if let Some(file) = self.files.get(fd as u64) {
                let found = self.readiness(&file.kind) & (wanted | ERR | HUP);
                kinds.push(file.kind.clone());
                found
            } else {
                libc::POLLNVAL as u32
            };
            entry[6..8].copy_from_slice(&(found as u16).to_le_bytes());
            ready += u64::from(found != 0);
        }
        if ready == 0 && !self.gives_up(cx, timeout) {
            return Ok(self.wait_for_any(cx, &kinds, timeout));
        }
        self.copy_out(cx, at, &raw)?;
        self.end_wait(cx, timeout);
        Ok(Flow::Done(ready))
    }
}

pub(crate) fn sys_poll(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let timeout = milliseconds(args[2]).map(|ns| Timeout { ns, left: None });
    k.poll(cx, args[0], args[1], timeout)
}

pub(crate) fn sys_ppoll(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let timeout = k.copy_in_timeout(cx, args[2], false)?;
    k.apply_temporary_mask(cx, args[3], args[4])?;
    k.poll(cx, args[0], args[1], timeout)
}

/// The three sets of a `select`: readable, writable, exceptional.
const WANTED: [u32; 3] = [IN | HUP | ERR, OUT | ERR, libc::EPOLLPRI as u32];

impl Kernel {
    /// A time-out at an address, of which what is left is said there too; none at 0.
    fn copy_in_timeout(
        &mut self,
        cx: &mut Cx<'_>,
        at: u64,
        is_timeval: bool,
    ) -> Result<Option<Timeout>, Errno> {
        if at == 0 {
            return Ok(None);
        }
        let ns = if is_timeval {
            let raw: [u8; 16] = self.copy_in_array(cx, at)?;
            timeval_ns(i64_at(&raw, 0), i64_at(&raw, 8))?
        } else {
            self.copy_in_timespec(cx, at)?
        };
        let left = Some(Left { at, is_timeval });
        Ok(Some(Timeout { ns, left }))
    }

    fn select(&mut self, cx: &mut Cx<'_>, args: &[u64; 6], timeout: Option<Timeout>) -> SysResult {
        let count = args[0] as i32;
        if count < 0 {
            return Err(EINVAL);
        }
        let count = (count as u64).min(FILES_MAX);
        let bytes = (count as usize).div_ceil(64) * 8;
        let mut asked: [Vec<u8>; 3] = Default::default();
        for (set, at) in asked.iter_mut().zip(&args[1..4]) {
            *set = if *at == 0 {
                vec![0; bytes]
            } else {
                self.copy_in_vec(cx, *at, bytes)?
            };
        }
        let mut found: [Vec<u8>; 3] = [vec![0; bytes], vec![0; bytes], vec![0; bytes]];
        let mut kinds = Vec::new();
        let mut ready = 0;
        for fd in 0..count as usize {
            let bit = 1u8 << (fd % 8);
            if asked.iter().all(|set| set[fd / 8] & bit == 0) {
                continue;
            }
            let file = self.files.get(fd as u64).ok_or(EBADF)?;
            let readiness = self.readiness(&file.kind);
            kinds.push(file.kind.clone());
            for ((set, wanted), out) in asked.iter().zip(WANTED).zip(&mut found) {
                if set[fd / 8] & bit != 0 && readiness & wanted != 0 {
                    out[fd / 8] |= bit;
                    ready += 1;
                }
            }
        }
        if ready == 0 && !self.gives_up(cx, timeout) {
            return Ok(self.wait_for_any(cx, &kinds, timeout));
        }
        self.end_wait(cx, timeout);
        for (set, at) in found.iter().zip(&args[1..4]) {
            self.copy_out_if(cx, *at, set)?;
        }
        Ok(Flow::Done(ready))
    }
}

pub(crate) fn sys_select(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let timeout = k.copy_in_timeout(cx, args[4], true)?;
    k.select(cx, args, timeout)
}

pub(crate) fn sys_pselect6(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let timeout = k.copy_in_timeout(cx, args[4], false)?;
    if args[5] != 0 {
        // A pointer to the mask and its size.
        let mask = k.copy_in_u64(cx, args[5])?;
        let size = k.copy_in_u64(cx, args[5] + 8)?;
        k.apply_temporary_mask(cx, mask, size)?;
    }
    k.select(cx, args, timeout)
}

/// Nanoseconds of a `timeval` whose microseconds may be more than a second's.
fn timeval_ns(seconds: i64, microseconds: i64) -> Result<u64, Errno> {
    if seconds < 0 || microseconds < 0 {
        return Err(EINVAL);
    }
    let extra = microseconds / 1_000_000;
    timespec_ns(seconds.saturating_add(extra), microseconds % 1_000_000 * 1000)
}
