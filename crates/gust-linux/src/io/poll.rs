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
    user::timespec_ns,
};

const POLL_BYTES: usize = 8;

impl Kernel {
    /// Waits for any of these files, or gives what is ready. `finish` writes the result out and counts it.
    fn wait_for_any(&mut self, cx: &mut Cx<'_>, kinds: &[FileKind], timeout_ns: Option<u64>) -> Flow {
        let mut keys: Vec<WaitKey> = kinds
            .iter()
            .filter_map(|kind| kind.object().map(WaitKey::Object))
            .collect();
        keys.sort_unstable();
        keys.dedup();
        if keys.is_empty() {
            keys.push(WaitKey::Alone(cx.slot));
        }
        let deadline_ns = timeout_ns.map(|timeout| self.deadline(cx, timeout));
        Flow::Wait(Wait {
            keys,
            deadline_ns,
            on_signal: OnSignal::Interrupt,
        })
    }

    fn poll(&mut self, cx: &mut Cx<'_>, at: u64, count: u64, timeout_ns: Option<u64>) -> SysResult {
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
        if ready == 0 && timeout_ns != Some(0) && !self.timed_out(cx.slot) {
            return Ok(self.wait_for_any(cx, &kinds, timeout_ns));
        }
        self.copy_out(cx, at, &raw)?;
        Ok(Flow::Done(ready))
    }
}

pub(crate) fn sys_poll(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    k.poll(cx, args[0], args[1], milliseconds(args[2]))
}

pub(crate) fn sys_ppoll(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let timeout = if args[2] == 0 {
        None
    } else {
        Some(k.copy_in_timespec(cx, args[2])?)
    };
    k.apply_temporary_mask(cx, args[3], args[4])?;
    k.poll(cx, args[0], args[1], timeout)
}

/// The three sets of a `select`: readable, writable, exceptional.
const WANTED: [u32; 3] = [IN | HUP | ERR, OUT | ERR, libc::EPOLLPRI as u32];

impl Kernel {
    fn select(&mut self, cx: &mut Cx<'_>, args: &[u64; 6], timeout_ns: Option<u64>) -> SysResult {
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
        if ready == 0 && timeout_ns != Some(0) && !self.timed_out(cx.slot) {
            return Ok(self.wait_for_any(cx, &kinds, timeout_ns));
        }
        for (set, at) in found.iter().zip(&args[1..4]) {
            self.copy_out_if(cx, *at, set)?;
        }
        Ok(Flow::Done(ready))
    }
}

pub(crate) fn sys_select(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let timeout = if args[4] == 0 {
        None
    } else {
        let raw: [u8; 16] = k.copy_in_array(cx, args[4])?;
        Some(timeval_ns(i64_at(&raw, 0), i64_at(&raw, 8))?)
    };
    k.select(cx, args, timeout)
}

pub(crate) fn sys_pselect6(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let timeout = if args[4] == 0 {
        None
    } else {
        Some(k.copy_in_timespec(cx, args[4])?)
    };
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
