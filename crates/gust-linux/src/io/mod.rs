//! Pipes, event counters, timers, and waiting for several files at once.

mod epoll;
mod event;
mod inotify;
mod pipe;
mod poll;
pub(crate) mod readiness;
mod signal_fd;
mod standard;
mod timer;

pub(crate) use epoll::{
    Epoll, sys_epoll_create, sys_epoll_create1, sys_epoll_ctl, sys_epoll_pwait, sys_epoll_pwait2,
    sys_epoll_wait,
};
pub(crate) use event::{EventFd, sys_eventfd, sys_eventfd2};
pub(crate) use inotify::{
    FileEvents, Happening, sys_inotify_add_watch, sys_inotify_init, sys_inotify_init1, sys_inotify_rm_watch,
};
pub(crate) use pipe::{Buffer, Pipe, sys_pipe, sys_pipe2};
pub(crate) use poll::{sys_poll, sys_ppoll, sys_pselect6, sys_select};
pub(crate) use signal_fd::{SignalFd, sys_signalfd, sys_signalfd4};
pub use standard::StandardPipes;
pub(crate) use timer::{TimerFd, periods, sys_timerfd_create, sys_timerfd_gettime, sys_timerfd_settime};

use serde::{Deserialize, Serialize};

/// An object that threads and epoll instances can wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) enum ObjectKey {
    /// A pipe; both ends.
    Pipe(u32),
    /// An event counter.
    EventFd(u32),
    /// An epoll instance.
    Epoll(u32),
    /// A timer.
    TimerFd(u32),
    /// A signal file.
    SignalFd(u32),
    /// An inotify instance.
    Inotify(u32),
    /// A socket.
    Socket(u32),
    /// The runtime device.
    Runtime,
}
