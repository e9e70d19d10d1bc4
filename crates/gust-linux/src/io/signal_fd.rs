//! Signals that are read from a file.
//!
//! A signal file has a mask and no state: what it gives are the signals of its mask that are pending for the thread that
//! reads, or for the process. Who waits for one looks again whenever a signal becomes pending.

use serde::{Deserialize, Serialize};

use crate::{
    abi::Writer,
    errno::{EBADF, EINVAL, Errno},
    fs::{FileKind, OpenFile, Transfer},
    io::ObjectKey,
    kernel::{Cx, Flow, Kernel, SysResult},
    task::{Detail, SigInfo, UNBLOCKABLE},
    user::{UserSlice, total},
};

/// Bytes of `struct signalfd_siginfo`.
const RECORD_BYTES: usize = 128;
/// Most signals that one read gives.
const RECORDS_MAX: u64 = 64;
/// Bytes of a signal mask.
const MASK_BYTES: u64 = 8;

/// A signal file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SignalFd {
    /// Signals that it gives.
    mask: u64,
}

fn record(info: &SigInfo) -> Vec<u8> {
    let (mut pid, mut uid, mut fd, mut timer, mut band) = (0, 0, 0, 0, 0);
    let (mut overrun, mut value, mut address) = (0, 0, 0);
    match info.detail {
        Detail::None => {}
        Detail::Sender {
            pid: from,
            uid: user,
            value: told,
        } => (pid, uid, value) = (from, user, told),
        Detail::Fault { address: at, .. } => address = at,
        Detail::Timer {
            id,
            overrun: missed,
            value: told,
        } => (timer, overrun, value) = (id, missed, told),
        // The two first words are process and user, or of a file's signal the band; then comes the value.
        Detail::Raw([first, second, ..]) if info.code > 0 => (band, fd) = (first as u32, second as u32),
        Detail::Raw([first, second, ..]) => (pid, uid, value) = (first as u32, (first >> 32) as u32, second),
    }
    Writer::with_capacity(RECORD_BYTES)
        .u32(info.signal)
        .i32(info.errno)
        .i32(info.code)
        .u32(pid)
        .u32(uid)
        .u32(fd)
        .u32(timer)
        .u32(band)
        .u32(overrun)
        .u32(0)
        .u32(0)
        .u32(value as u32)
        .u64(value)
        .u64(0)
        .u64(0)
        .u64(address)
        .pad_to(RECORD_BYTES)
        .done()
}

fn signal_fd(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6], flags: i32) -> SysResult {
    let [fd, mask, bytes, ..] = *args;
    if bytes != MASK_BYTES || flags & !(libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) != 0 {
        return Err(EINVAL);
    }
    let mask = k.copy_in_u64(cx, mask)? & !UNBLOCKABLE;
    if fd as i32 != -1 {
        let FileKind::SignalFd(number) = k.files.get(fd).ok_or(EBADF)?.kind else {
            return Err(EINVAL);
        };
        k.signal_fds.get_mut(number).ok_or(EINVAL)?.mask = mask;
        k.wake_object(ObjectKey::SignalFd(number));
        return Ok(Flow::Done(u64::from(fd as u32)));
    }
    k.files.has_room()?;
    let number = k.signal_fds.insert(SignalFd { mask });
    let file = OpenFile::new(
        FileKind::SignalFd(number),
        libc::O_RDWR | flags & libc::O_NONBLOCK,
    );
    k.install(file, flags & libc::SFD_CLOEXEC != 0).map(Flow::Done)
}

pub(crate) fn sys_signalfd(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    signal_fd(k, cx, args, 0)
}

pub(crate) fn sys_signalfd4(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    signal_fd(k, cx, args, args[3] as i32)
}

impl Kernel {
    /// Whether a signal file has something for some thread.
    pub(crate) fn signal_fd_ready(&self, number: u32) -> bool {
        let Some(file) = self.signal_fds.get(number) else {
            return false;
        };
        let of_threads = self
            .threads
            .iter()
            .fold(0, |mask, (_, thread)| mask | thread.pending.mask());
        (of_threads | self.signals.pending.mask()) & file.mask != 0
    }

    pub(crate) fn read_signals(
        &mut self,
        cx: &mut Cx<'_>,
        number: u32,
        slices: &[UserSlice],
    ) -> Result<Transfer, Errno> {
        let records = (total(slices) / RECORD_BYTES as u64).min(RECORDS_MAX);
        if records == 0 {
            return Err(EINVAL);
        }
        let mask = self.signal_fds.get(number).ok_or(EINVAL)?.mask;
        let mut done = 0;
        for _ in 0..records {
            let own = self.thread_mut(cx.slot).pending.take(mask);
            let Some(info) = own.or_else(|| self.signals.pending.take(mask)) else {
                break;
            };
            done += self.scatter(cx, slices, done, &record(&info))?;
        }
        if done == 0 {
            return Ok(Transfer::NotReady(ObjectKey::SignalFd(number)));
        }
        Ok(Transfer::Bytes(done))
    }

    /// A signal has become pending: who waits for one to read looks again.
    pub(crate) fn wake_signal_files(&mut self) {
        let numbers: Vec<u32> = self.signal_fds.iter().map(|(number, _)| number).collect();
        for number in numbers {
            self.wake_object(ObjectKey::SignalFd(number));
        }
    }
}
