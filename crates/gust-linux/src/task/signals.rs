//! Signals: what is pending, for whom, and what becomes of it.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::{
    abi::{Writer, signal_bit},
    kernel::{Cx, Ended, Kernel},
};

/// Signal numbers.
pub(crate) const SIGNALS: u32 = 64;
/// Most queued real-time signals a queue.
const QUEUED_MAX: usize = 1024;
/// First real-time signal.
const FIRST_REALTIME: u32 = 32;

/// Default handler.
pub(crate) const SIG_DFL: u64 = 0;
/// Ignoring handler.
pub(crate) const SIG_IGN: u64 = 1;

/// Signals that cannot be caught, blocked or ignored.
pub(crate) const UNBLOCKABLE: u64 = signal_bit(libc::SIGKILL as u32) | signal_bit(libc::SIGSTOP as u32);

/// What the handler is told of a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SigInfo {
    pub(crate) signal: u32,
    pub(crate) code: i32,
    pub(crate) errno: i32,
    pub(crate) detail: Detail,
}

/// The part of a `siginfo` that depends on where the signal comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Detail {
    /// Nothing.
    None,
    /// Sent by a process, with a value.
    Sender {
        /// Its id.
        pid: u32,
        /// Its user.
        uid: u32,
        /// `sigqueue`'s value.
        value: u64,
    },
    /// A fault: the address, and for the frame the vector and error code.
    Fault {
        /// `si_addr`
        address: u64,
        /// Processor vector.
        vector: u8,
        /// Processor error code.
        error_code: u64,
    },
    /// A timer.
    Timer {
        /// Its number.
        id: u32,
        /// Expirations that were missed.
        overrun: u32,
        /// Its value.
        value: u64,
    },
    /// Given whole by `rt_sigqueueinfo`: the bytes after the three first fields.
    Raw([u64; 4]),
}

impl SigInfo {
    /// A signal from the kernel itself.
    pub(crate) fn kernel(signal: u32) -> Self {
        const SI_KERNEL: i32 = 0x80;
        Self {
            signal,
            code: SI_KERNEL,
            errno: 0,
            detail: Detail::None,
        }
    }

    pub(crate) fn timer(signal: u32, id: u32, overrun: u32, value: u64) -> Self {
        const SI_TIMER: i32 = -2;
        Self {
            signal,
            code: SI_TIMER,
            errno: 0,
            detail: Detail::Timer { id, overrun, value },
        }
    }

    /// `siginfo_t`, 128 bytes.
    pub(crate) fn to_bytes(self) -> Vec<u8> {
        let out = Writer::with_capacity(128)
            .u32(self.signal)
            .i32(self.errno)
            .i32(self.code)
            .u32(0);
        match self.detail {
            Detail::None => out,
            Detail::Sender { pid, uid, value } => out.u32(pid).u32(uid).u64(value),
            Detail::Fault { address, .. } => out.u64(address),
            Detail::Timer { id, overrun, value } => out.u32(id).u32(overrun).u64(value),
            Detail::Raw(words) => words.iter().fold(out, |out, word| out.u64(*word)),
        }
        .pad_to(128)
        .done()
    }
}

/// Pending signals of a thread or of the process.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Pending {
    mask: u64,
    queue: VecDeque<SigInfo>,
}

impl Pending {
    pub(crate) fn mask(&self) -> u64 {
        self.mask
    }

    /// Adds a signal. A standard signal that is pending already is not queued again.
    fn add(&mut self, info: SigInfo) {
        let bit = signal_bit(info.signal);
        let again = self.mask & bit != 0;
        if again && info.signal < FIRST_REALTIME || self.queue.len() >= QUEUED_MAX {
            return;
        }
        self.mask |= bit;
        self.queue.push_back(info);
    }

    /// Takes the lowest signal that is in `allowed`.
    pub(crate) fn take(&mut self, allowed: u64) -> Option<SigInfo> {
        let wanted = self.mask & allowed;
        if wanted == 0 {
            return None;
        }
        let signal = wanted.trailing_zeros() + 1;
        let at = self.queue.iter().position(|info| info.signal == signal)?;
        let info = self.queue.remove(at)?;
        if !self.queue.iter().any(|other| other.signal == signal) {
            self.mask &= !signal_bit(signal);
        }
        Some(info)
    }

    /// Forgets a signal, because it is ignored from now on.
    pub(crate) fn forget(&mut self, signal: u32) {
        self.mask &= !signal_bit(signal);
        self.queue.retain(|info| info.signal != signal);
    }
}

/// What to do with a signal, as `rt_sigaction` set it.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Action {
    pub(crate) handler: u64,
    pub(crate) flags: u64,
    pub(crate) restorer: u64,
    pub(crate) mask: u64,
}

/// The process's signal state.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Signals {
    actions: Vec<Action>,
    pub(crate) pending: Pending,
}

impl Default for Signals {
    fn default() -> Self {
        Self {
            actions: vec![Action::default(); SIGNALS as usize],
            pending: Pending::default(),
        }
    }
}

impl Signals {
    pub(crate) fn action(&self, signal: u32) -> Action {
        self.actions.get(signal as usize - 1).copied().unwrap_or_default()
    }

    pub(crate) fn set_action(&mut self, signal: u32, action: Action) {
        if let Some(slot) = self.actions.get_mut(signal as usize - 1) {
            *slot = action;
        }
    }

    /// Handlers go with the program that they are in; what it ignored stays ignored.
    pub(crate) fn forget_handlers(&mut self) {
        for action in &mut self.actions {
            let ignored = action.handler == SIG_IGN;
            *action = Action {
                handler: if ignored { SIG_IGN } else { SIG_DFL },
                ..Action::default()
            };
        }
    }

    /// Whether a signal would do nothing.
    fn is_ignored(&self, signal: u32) -> bool {
        match self.action(signal).handler {
            SIG_IGN => true,
            SIG_DFL => ignored_by_default(signal),
            _ => false,
        }
    }
}

/// Signals whose default is to do nothing. Stopping is one of them here: there is no one to continue a stopped guest.
fn ignored_by_default(signal: u32) -> bool {
    matches!(
        signal as i32,
        libc::SIGCHLD
            | libc::SIGURG
            | libc::SIGWINCH
            | libc::SIGCONT
            | libc::SIGTSTP
            | libc::SIGTTIN
            | libc::SIGTTOU
            | libc::SIGSTOP
    )
}

impl Kernel {
    /// Sends a signal to a thread.
    pub(crate) fn signal_thread(&mut self, slot: usize, info: SigInfo) {
        let blocked = self.thread(slot).mask & signal_bit(info.signal) != 0;
        if self.signals.is_ignored(info.signal) && !blocked {
            return;
        }
        self.thread_mut(slot).pending.add(info);
        if !blocked {
            self.interrupt(slot);
        } else {
            self.wake_signal_waiters();
        }
    }

    /// Sends a signal to the process: to the first thread that does not block it.
    pub(crate) fn signal_process(&mut self, info: SigInfo) {
        let bit = signal_bit(info.signal);
        let taker = self
            .threads
            .iter()
            .find(|(_, thread)| thread.mask & bit == 0)
            .map(|(slot, _)| slot);
        if taker.is_some() && self.signals.is_ignored(info.signal) {
            return;
        }
        self.signals.pending.add(info);
        match taker {
            Some(slot) => self.interrupt(slot),
            None => self.wake_signal_waiters(),
        }
    }

    /// Sends the process a signal from outside, as `kill` of another process would. Numbers that are none are ignored.
    pub fn signal_from_outside(&mut self, signal: u32) {
        if (1..=SIGNALS).contains(&signal) {
            self.signal_process(SigInfo {
                signal,
                code: 0,
                errno: 0,
                detail: Detail::Sender {
                    pid: 0,
                    uid: 0,
                    value: 0,
                },
            });
        }
    }

    /// Threads in `rt_sigtimedwait` look at their signals again, and so does who reads signals from a file.
    fn wake_signal_waiters(&mut self) {
        self.wake_signal_files();
        let waiting: Vec<usize> = self
            .threads
            .iter()
            .filter(|(_, thread)| {
                thread
                    .call
                    .as_ref()
                    .is_some_and(|call| call.number == libc::SYS_rt_sigtimedwait as u64)
            })
            .map(|(slot, _)| slot)
            .collect();
        for slot in waiting {
            self.wake(crate::task::WaitKey::Alone(slot));
        }
    }

    /// A signal of the thread's own making, such as `SIGPIPE`.
    pub(crate) fn signal_self(&mut self, slot: usize, signal: u32) {
        let (pid, uid) = (self.process.pid, self.process.uid);
        let info = SigInfo {
            signal,
            code: 0,
            errno: 0,
            detail: Detail::Sender { pid, uid, value: 0 },
        };
        self.signal_thread(slot, info);
    }

    /// A signal that a fault forces on the thread: it cannot be blocked or ignored.
    pub(crate) fn force_signal(&mut self, slot: usize, info: SigInfo) {
        let action = self.signals.action(info.signal);
        let bit = signal_bit(info.signal);
        let blocked = self.thread(slot).mask & bit != 0;
        if blocked || action.handler == SIG_IGN {
            self.signals.set_action(info.signal, Action::default());
            self.thread_mut(slot).mask &= !bit;
        }
        self.thread_mut(slot).pending.add(info);
    }

    /// Whether a signal is there that the thread does not block.
    pub(crate) fn has_deliverable(&self, slot: usize) -> bool {
        let thread = self.thread(slot);
        (thread.pending.mask() | self.signals.pending.mask()) & !thread.mask != 0
    }

    /// Gives a thread back the mask that a call had replaced.
    pub(crate) fn restore_mask(&mut self, slot: usize) {
        let thread = self.thread_mut(slot);
        if let Some(mask) = thread.saved_mask.take() {
            thread.mask = mask;
        }
    }

    /// Delivers what is pending for a thread that is about to run. False: the thread cannot run now.
    pub(crate) fn deliver_signals(&mut self, cx: &mut Cx<'_>) -> bool {
        loop {
            let allowed = !self.thread(cx.slot).mask;
            let from_thread = self.thread_mut(cx.slot).pending.take(allowed);
            let Some(info) = from_thread.or_else(|| self.signals.pending.take(allowed)) else {
                break;
            };
            let action = self.signals.action(info.signal);
            match action.handler {
                SIG_IGN => {}
                SIG_DFL if ignored_by_default(info.signal) => {}
                SIG_DFL => {
                    self.end(Ended::Signal(info.signal as i32));
                    return false;
                }
                _ => {
                    if self.push_frame(cx, &info, action).is_err() {
                        // No room for the frame: the kernel forces the default of SIGSEGV.
                        self.end(Ended::Signal(libc::SIGSEGV));
                        return false;
                    }
                    // One frame at a time; a further signal interrupts the handler at its first instruction.
                    if !self.has_deliverable(cx.slot) {
                        return true;
                    }
                }
            }
        }
        self.restart_interrupted(cx.slot);
        self.tell_left_of_interrupted(cx);
        self.restore_mask(cx.slot);
        true
    }

    /// No handler ran for the signal that ended a call: the call is made again.
    fn restart_interrupted(&mut self, slot: usize) {
        let thread = self.thread_mut(slot);
        if let Some(number) = thread.interrupted_call.take() {
            thread.registers.rax = number;
            thread.registers.rip -= 2;
        }
    }
}
