//! The personality: all state of one guest that a Linux kernel would keep, and the entry points for whoever runs it.
//!
//! ```text
//!   schedule ──> Step::Run ──> the machine runs the thread ──> on_exit ──> schedule ...
//!            ──> Step::Sleep   nothing can run before a deadline
//!            ──> Step::Idle    nothing can run until something comes from outside
//!            ──> Step::Ended
//! ```
//!
//! A system call that cannot finish leaves its thread blocked on wait queues. When one of them is woken the call is
//! made again from the start with the state that it kept ([`Call`]); a futex or a sleep is completed instead. All
//! state is owned by [`Kernel`] and refers to itself by number, so it can be cloned (to go back to a snapshot) and
//! stored (to make one).

use std::collections::{BTreeMap, VecDeque};

use gust_image::Image;
use gust_vmm::{Exit, MappedArea, PageRange, Registers, Vm};
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};
use serde::{Deserialize, Serialize};

use crate::{
    errno::{EINTR, ENOSYS, Errno},
    fs::{Files, HeldFile, Vfs},
    host::Host,
    io::{Epoll, EventFd, FileEvents, ObjectKey, Pipe, SignalFd, TimerFd},
    mm::Mm,
    net::Network,
    process::Process,
    runtime::RuntimeDevice,
    slab::Slab,
    syscalls,
    task::{Signals, Threads, WaitKey, WaitQueues},
    time::{Clock, Left},
};

/// Longest run of a thread while others are runnable, in nanoseconds.
const QUANTUM_NS: u64 = 4_000_000;

/// What a system call gives.
pub(crate) type SysResult = Result<Flow, Errno>;

/// How a system call goes on when it has not failed.
#[derive(Debug)]
pub(crate) enum Flow {
    /// It is done; the value goes to `rax`.
    Done(u64),
    /// It cannot finish yet.
    Wait(Wait),
    /// The registers have been set, or the thread is no more.
    Replaced,
}

/// What a blocked thread waits for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Wait {
    pub(crate) keys: Vec<WaitKey>,
    /// Guest's monotonic clock, in nanoseconds.
    pub(crate) deadline_ns: Option<u64>,
    pub(crate) on_signal: OnSignal,
}

impl Wait {
    /// Waits for an object, without a deadline, restartable after a signal.
    pub(crate) fn on(key: WaitKey) -> Self {
        Self {
            keys: vec![key],
            deadline_ns: None,
            on_signal: OnSignal::Restart,
        }
    }
}

/// What becomes of a blocked call when a signal handler runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum OnSignal {
    /// It is made again if the handler was installed with `SA_RESTART`, and fails with `EINTR` otherwise.
    Restart,
    /// It fails with `EINTR`.
    Interrupt,
}

/// A system call in progress.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Call {
    pub(crate) number: u64,
    pub(crate) args: [u64; 6],
    /// Set when the call first blocked with a time-out, and kept when it is made again.
    pub(crate) deadline_ns: Option<u64>,
    /// The deadline has passed.
    pub(crate) timed_out: bool,
    /// Bytes that were moved before the call blocked.
    pub(crate) progress: u64,
    /// The file of its first argument, when that descriptor was closed while the call waited.
    pub(crate) held: Option<HeldFile>,
    /// Where it says what is left of its time when a signal ends it.
    pub(crate) left: Option<Left>,
}

/// The machine, the world outside and the thread in question, for the length of one entry into the personality.
pub(crate) struct Cx<'a> {
    pub(crate) vm: &'a mut Vm,
    pub(crate) host: &'a mut dyn Host,
    /// Number of the current thread's record.
    pub(crate) slot: usize,
}

/// How a guest ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ended {
    /// `exit_group`, or the last thread's `exit`, with this status.
    Exit(i32),
    /// A signal whose action is to terminate.
    Signal(i32),
    /// Its memory passed the limit.
    OutOfMemory,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Run this thread, at most this long when given; then call [`Kernel::on_exit`].
    Run {
        /// Number of the thread's record.
        slot: usize,
        /// Nanoseconds.
        quantum_ns: Option<u64>,
    },
    /// Nothing can run for this many nanoseconds.
    Sleep {
        /// Nanoseconds, more than zero.
        for_ns: u64,
    },
    /// Nothing can run until something comes from outside.
    Idle,
    /// The guest has ended; see [`Kernel::ended`].
    Ended,
}

/// One guest's kernel state.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Kernel {
    pub(crate) mm: Mm,
    pub(crate) threads: Threads,
    pub(crate) queues: WaitQueues,
    pub(crate) signals: Signals,
    pub(crate) files: Files,
    pub(crate) vfs: Vfs,
    pub(crate) pipes: Slab<Pipe>,
    pub(crate) event_fds: Slab<EventFd>,
    pub(crate) epolls: Slab<Epoll>,
    pub(crate) timer_fds: Slab<TimerFd>,
    pub(crate) signal_fds: Slab<SignalFd>,
    pub(crate) file_events: FileEvents,
    pub(crate) network: Network,
    /// Epoll instances that watch an object.
    pub(crate) watchers: BTreeMap<ObjectKey, Vec<u32>>,
    pub(crate) clock: Clock,
    pub(crate) process: Process,
    pub(crate) runtime: RuntimeDevice,
    #[serde(skip, default = "no_random")]
    pub(crate) random: ChaCha20Rng,
    pub(crate) ended: Option<Ended>,
    /// System calls made, by number; for reports.
    #[serde(skip)]
    pub(crate) calls: BTreeMap<u64, u64>,
}

/// A stored guest has no randomness; it gets a seed when it is restored.
fn no_random() -> ChaCha20Rng {
    ChaCha20Rng::from_seed([0; 32])
}

impl Kernel {
    /// Decides what runs next.
    pub fn schedule(&mut self, vm: &mut Vm, host: &mut dyn Host) -> Step {
        loop {
            if self.ended.is_some() {
                return Step::Ended;
            }
            let now = self.clock.monotonic_ns(host);
            self.expire(now);
            self.queues.count_turn(now);
            let Some(slot) = self.queues.next_runnable() else {
                return match self.next_deadline() {
                    Some(deadline) if deadline > now => Step::Sleep {
                        for_ns: deadline - now,
                    },
                    Some(_) => continue,
                    None => Step::Idle,
                };
            };
            let mut cx = Cx { vm, host, slot };
            if self.thread(slot).call.is_some() {
                self.execute(&mut cx);
                continue;
            }
            if !self.deliver_signals(&mut cx) {
                continue;
            }
            self.queues.keep_current(slot);
            return Step::Run {
                slot,
                quantum_ns: self.quantum(now),
            };
        }
    }

    /// How long the current thread may run before someone else must be looked after.
    fn quantum(&self, now: u64) -> Option<u64> {
        let others = self
            .queues
            .others_runnable()
            .then(|| self.queues.turn_left(now, QUANTUM_NS).max(1));
        let timer = self
            .next_deadline()
            .map(|deadline| deadline.saturating_sub(now).max(1));
        match (others, timer) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Registers of a thread, for the machine to run with and to change.
    pub fn registers_mut(&mut self, slot: usize) -> &mut Registers {
        &mut self.thread_mut(slot).registers
    }

    /// Takes in why a thread stopped running.
    pub fn on_exit(&mut self, vm: &mut Vm, host: &mut dyn Host, slot: usize, exit: Exit) {
        let mut cx = Cx { vm, host, slot };
        match exit {
            Exit::Syscall => {
                let registers = &self.thread(slot).registers;
                let number = registers.rax;
                let args = [
                    registers.rdi,
                    registers.rsi,
                    registers.rdx,
                    registers.r10,
                    registers.r8,
                    registers.r9,
                ];
                *self.calls.entry(number).or_default() += 1;
                self.thread_mut(slot).call = Some(Call {
                    number,
                    args,
                    deadline_ns: None,
                    timed_out: false,
                    progress: 0,
                    held: None,
                    left: None,
                });
                self.execute(&mut cx);
                let now = self.clock.monotonic_ns(cx.host);
                self.queues.end_turn_if_due(now, QUANTUM_NS);
            }
            Exit::Exception {
                vector,
                error_code,
                address,
            } => {
                self.on_exception(&mut cx, vector, error_code, address);
            }
            Exit::Preempted => self.queues.yield_current(),
        }
    }

    /// Makes the current thread's system call, or makes it again.
    fn execute(&mut self, cx: &mut Cx<'_>) {
        self.make_call(cx);
        self.tell_of_gone_nodes();
    }

    fn make_call(&mut self, cx: &mut Cx<'_>) {
        let Some(call) = self.thread(cx.slot).call.clone() else {
            return;
        };
        self.files.begun_with = call.held;
        let result = match syscalls::find(call.number) {
            Some(entry) => (entry.call)(self, cx, &call.args),
            None => Err(ENOSYS),
        };
        self.files.begun_with = None;
        tracing::trace!(
            slot = cx.slot,
            name = syscalls::name(call.number),
            args = ?call.args.map(|arg| format!("{arg:x}")),
            ?result,
            "system call"
        );
        let value = match result {
            Ok(Flow::Done(value)) => value,
            Err(errno) => errno.to_rax(),
            Ok(Flow::Replaced) => {
                if let Some(thread) = self.threads.get_mut(cx.slot) {
                    thread.call = None;
                }
                return;
            }
            Ok(Flow::Wait(wait)) => {
                self.block(cx.slot, wait);
                return;
            }
        };
        self.finish_call(cx.slot, value);
    }

    /// Ends a thread's call with a value and gives its temporary signal mask back, unless a signal that this mask let
    /// through is still to be delivered: its frame then carries the old mask.
    pub(crate) fn finish_call(&mut self, slot: usize, value: u64) {
        let thread = self.thread_mut(slot);
        thread.registers.rax = value;
        let call = thread.call.take();
        self.release_held(call);
        if !self.has_deliverable(slot) {
            self.restore_mask(slot);
        }
    }

    /// Blocks a thread. If a signal is already there for it, the wait is over before it began.
    fn block(&mut self, slot: usize, wait: Wait) {
        self.queues.block(slot, &wait.keys, wait.deadline_ns);
        self.thread_mut(slot).wait = Some(wait);
        if self.has_deliverable(slot) {
            self.interrupt(slot);
        }
    }

    /// Ends a blocked thread's wait because a signal handler is to run.
    pub(crate) fn interrupt(&mut self, slot: usize) {
        let thread = self.thread_mut(slot);
        let Some(wait) = thread.wait.take() else { return };
        let restart = wait.on_signal == OnSignal::Restart;
        let call = thread.call.take();
        thread.interrupted_call = call.as_ref().filter(|_| restart).map(|call| call.number);
        thread.left = call
            .as_ref()
            .and_then(|call| call.left.zip(call.deadline_ns))
            .filter(|_| !restart);
        thread.registers.rax = EINTR.to_rax();
        self.release_held(call);
        self.queues.unblock(slot, &wait.keys, wait.deadline_ns);
    }

    /// Wakes everyone who waits for `key`: their calls are made again.
    pub(crate) fn wake(&mut self, key: WaitKey) {
        for slot in self.queues.waiters(key) {
            let Some(wait) = self.thread_mut(slot).wait.take() else {
                continue;
            };
            self.queues.unblock(slot, &wait.keys, wait.deadline_ns);
        }
    }

    /// Ends a blocked thread's call with a value.
    pub(crate) fn complete(&mut self, slot: usize, value: u64) {
        if let Some(wait) = self.thread_mut(slot).wait.take() {
            self.queues.unblock(slot, &wait.keys, wait.deadline_ns);
            self.finish_call(slot, value);
        }
    }

    fn expire(&mut self, now: u64) {
        for slot in self.queues.expired(now) {
            let thread = self.thread_mut(slot);
            let Some(wait) = thread.wait.take() else { continue };
            if let Some(call) = &mut thread.call {
                call.timed_out = true;
            }
            self.queues.unblock(slot, &wait.keys, wait.deadline_ns);
        }
        self.expire_timers(now);
    }

    fn next_deadline(&self) -> Option<u64> {
        [self.queues.next_deadline(), self.next_timer_ns()]
            .into_iter()
            .flatten()
            .min()
    }

    /// The deadline of a call that waits with a time-out: the first one, when it is made again.
    pub(crate) fn deadline(&mut self, cx: &mut Cx<'_>, timeout_ns: u64) -> u64 {
        let now = self.clock.monotonic_ns(cx.host);
        let call = self.thread_mut(cx.slot).call.as_mut();
        call.map_or(now, |call| {
            *call.deadline_ns.get_or_insert(now.saturating_add(timeout_ns))
        })
    }

    /// Whether the current call's deadline has passed.
    pub(crate) fn timed_out(&self, slot: usize) -> bool {
        self.thread(slot).call.as_ref().is_some_and(|call| call.timed_out)
    }

    /// How the guest ended, once it has.
    pub fn ended(&self) -> Option<&Ended> {
        self.ended.as_ref()
    }

    /// Ends the guest from outside.
    pub(crate) fn end(&mut self, how: Ended) {
        self.ended.get_or_insert(how);
    }

    /// System calls made so far, by number.
    pub fn call_counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.calls
            .iter()
            .map(|(number, count)| (syscalls::name(*number), *count))
    }

    /// Gives a restored guest its own randomness.
    pub(crate) fn reseed(&mut self, seed: [u8; 32]) {
        self.random = ChaCha20Rng::from_seed(seed);
    }

    /// Bytes of the guest's own random stream, for its runtime's generators.
    pub fn random_bytes(&mut self, out: &mut [u8]) {
        use rand_chacha::rand_core::RngCore as _;
        self.random.fill_bytes(out);
    }

    /// Adds time that a thread has spent in the guest.
    pub fn charge(&mut self, slot: usize, ran_ns: u64) {
        if let Some(thread) = self.threads.get_mut(slot) {
            thread.cpu_ns = thread.cpu_ns.saturating_add(ran_ns);
        }
    }

    /// Tells the guest the time anew; the counter that it reads drifts from the host's clock by a few parts in a
    /// million.
    pub fn refresh_clock(&mut self, vm: &mut Vm, host: &mut dyn Host) {
        self.write_clock_page(&mut Cx { vm, host, slot: 1 });
    }

    /// The mappings, by address, for a capture of the machine.
    pub fn mapped_areas(&self) -> Vec<MappedArea> {
        let area = |(start, area): (u64, &crate::mm::Area)| MappedArea {
            range: PageRange::new(start, area.end),
            prot: area.prot,
        };
        self.mm.iter().map(area).collect()
    }

    /// Numbers of the threads' records.
    pub fn thread_slots(&self) -> Vec<usize> {
        self.threads.iter().map(|(slot, _)| slot).collect()
    }

    /// The guest's monotonic clock, to go on from when this state is restored.
    pub fn clock_ns(&self, host: &mut dyn Host) -> u64 {
        self.clock.monotonic_ns(host)
    }

    /// Gives a stored guest its images again, in the order in which they were mounted, and its clock.
    pub fn resume(&mut self, host: &mut dyn Host, images: Vec<Image>, clock_ns: u64) {
        self.vfs.attach_images(images);
        self.reset_outside();
        self.clock.continue_from(host, clock_ns);
    }

    /// Changes what the guest may use.
    pub fn set_limits(&mut self, memory_bytes: u64, tmp_bytes: u64, cpus: u32) {
        self.mm.limit_bytes = memory_bytes;
        self.vfs.memory.set_limit(tmp_bytes);
        self.process.cpus = cpus.clamp(1, 63);
    }
}

/// The run queue's type, named here since the scheduler's order is the personality's alone.
pub(crate) type RunQueue = VecDeque<usize>;
