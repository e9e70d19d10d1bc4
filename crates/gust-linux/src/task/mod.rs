//! Threads: their records, queues, futexes, signals and ends.

mod clone;
mod exit;
mod fault;
mod futex;
mod limits;
mod membarrier;
mod queues;
mod sched_calls;
mod signal_calls;
mod signal_frame;
mod signals;
mod thread;

pub(crate) use clone::{sys_clone, sys_clone3, sys_fork_refused};
pub(crate) use exit::{sys_exit, sys_exit_group, sys_set_robust_list, sys_set_tid_address};
pub(crate) use futex::sys_futex;
pub(crate) use limits::{sys_getrlimit, sys_prlimit64, sys_setrlimit};
pub(crate) use membarrier::sys_membarrier;
pub(crate) use queues::{WaitKey, WaitQueues};
pub(crate) use sched_calls::*;
pub(crate) use signal_calls::*;
pub(crate) use signal_frame::sys_rt_sigreturn;
pub(crate) use signals::{Detail, SIGNALS, SigInfo, Signals, UNBLOCKABLE};
pub(crate) use thread::{Thread, Threads};
