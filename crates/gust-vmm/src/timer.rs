//! Takes the processor back from a guest that does not give it up.
//!
//! A one-shot timer sends this thread a signal; the handler sets the vCPU's `immediate_exit`, so that `KVM_RUN` returns
//! whether the signal came before or during the run. A periodic tick would starve runtimes with a monitor thread of
//! their own, so the timer is armed only when another guest thread could run or a deadline is near.
//!
//! `unsafe`: POSIX timers and a signal handler that writes one byte through an atomic pointer.

use std::{
    io, mem, ptr,
    sync::atomic::{AtomicBool, AtomicPtr, Ordering},
};

use crate::error::{Error, Result};

/// The signal that ends a guest's run early.
pub(crate) fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN() + 1
}

/// What the handler tells: the byte that makes `KVM_RUN` return, and that the time is up.
#[derive(Debug)]
pub(crate) struct Kick {
    immediate_exit: AtomicPtr<u8>,
    rung: AtomicBool,
}

/// One vCPU thread a process runs guests with one vCPU; each further vCPU has a timer of its own and this same handler,
/// which finds the vCPU of its thread here.
impl Kick {
    pub(crate) fn new(immediate_exit: *mut u8) -> Box<Self> {
        Box::new(Self {
            immediate_exit: AtomicPtr::new(immediate_exit),
            rung: AtomicBool::new(false),
        })
    }

    /// Whether the timer has rung since the last call; allows `KVM_RUN` again.
    pub(crate) fn take(&self) -> bool {
        let rung = self.rung.swap(false, Ordering::Relaxed);
        if rung {
            self.set_immediate_exit(0);
        }
        rung
    }

    fn set_immediate_exit(&self, value: u8) {
        let byte = self.immediate_exit.load(Ordering::Relaxed);
        // SAFETY: the byte is in the vCPU's mapped `kvm_run`, which lives as long as the vCPU that owns this `Kick`.
        unsafe { ptr::write_volatile(byte, value) };
    }
}

/// A one-shot timer of the thread that made it.
#[derive(Debug)]
pub(crate) struct PreemptionTimer {
    timer: libc::timer_t,
    armed: bool,
    kick: Box<Kick>,
}

extern "C" fn on_kick(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo; the value is the pointer given to `timer_create`, whose `Kick` is
    // boxed and outlives the timer (see `Drop`).
    unsafe {
        let kick = (*info).si_value().sival_ptr.cast::<Kick>();
        if let Some(kick) = kick.as_ref() {
            kick.rung.store(true, Ordering::Relaxed);
            kick.set_immediate_exit(1);
        }
    }
}

impl PreemptionTimer {
    /// Makes a timer that kicks the vCPU whose `immediate_exit` byte is given. The caller's thread must be the one
    /// that runs the vCPU.
    pub(crate) fn new(immediate_exit: *mut u8) -> Result<Self> {
        let kick = Kick::new(immediate_exit);
        let failed = |action| {
            move || Error::Kvm {
                action,
                source: io::Error::last_os_error(),
            }
        };
        // SAFETY: plain calls with structures that live on this stack; the handler is async-signal-safe (two atomic
        // stores and one volatile store).
        unsafe {
            let mut action: libc::sigaction = mem::zeroed();
            action.sa_sigaction = on_kick as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            check(libc::sigaction(kick_signal(), &action, ptr::null_mut()))
                .ok_or_else(failed("set the kick handler"))?;
            let mut event: libc::sigevent = mem::zeroed();
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_signo = kick_signal();
            event.sigev_value.sival_ptr = ptr::from_ref::<Kick>(&kick).cast_mut().cast();
            event.sigev_notify_thread_id = libc::gettid();
            let mut timer: libc::timer_t = ptr::null_mut();
            check(libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer))
                .ok_or_else(failed("create the preemption timer"))?;
            Ok(Self {
                timer,
                armed: false,
                kick,
            })
        }
    }

    /// Rings once, after this many nanoseconds; at least one.
    pub(crate) fn arm(&mut self, after_ns: u64) {
        self.set(after_ns.max(1));
        self.armed = true;
    }

    /// Does not ring any more.
    pub(crate) fn disarm(&mut self) {
        if mem::take(&mut self.armed) {
            self.set(0);
        }
    }

    /// Whether it has rung since the last call.
    pub(crate) fn take_rung(&mut self) -> bool {
        let rung = self.kick.take();
        if rung {
            self.armed = false;
        }
        rung
    }

    fn set(&self, after_ns: u64) {
        let value = libc::timespec {
            tv_sec: (after_ns / 1_000_000_000) as libc::time_t,
            tv_nsec: (after_ns % 1_000_000_000) as libc::c_long,
        };
        let spec = libc::itimerspec {
            it_interval: libc::timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            it_value: value,
        };
        // SAFETY: the timer exists until `self` is dropped; the structure is valid. It cannot fail with these values.
        unsafe { libc::timer_settime(self.timer, 0, &spec, ptr::null_mut()) };
    }
}

impl Drop for PreemptionTimer {
    fn drop(&mut self) {
        // SAFETY: made by `timer_create` and deleted once. A signal still pending finds the box alive below.
        unsafe {
            libc::timer_delete(self.timer);
            let mut set: libc::sigset_t = mem::zeroed();
            libc::sigemptyset(&mut set);
            libc::sigaddset(&mut set, kick_signal());
            let zero = libc::timespec {
                tv_sec: 0,
                tv_nsec: 0,
            };
            libc::pthread_sigmask(libc::SIG_BLOCK, &set, ptr::null_mut());
            while libc::sigtimedwait(&set, ptr::null_mut(), &zero) > 0 {}
            libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, ptr::null_mut());
        }
    }
}

fn check(result: libc::c_int) -> Option<()> {
    (result == 0).then_some(())
}

// SAFETY: the timer handle is an id and the box is plain memory; the kicked thread is named at creation, and the owner
// runs its vCPU on that thread.
unsafe impl Send for PreemptionTimer {}
