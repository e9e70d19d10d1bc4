//! What a file is ready for.

use crate::{fs::FileKind, kernel::Kernel};

/// Ready to be read.
pub(crate) const IN: u32 = libc::EPOLLIN as u32 | libc::EPOLLRDNORM as u32;
/// Ready to be written.
pub(crate) const OUT: u32 = libc::EPOLLOUT as u32 | libc::EPOLLWRNORM as u32;
/// The other side has shut its writing half down.
pub(crate) const RDHUP: u32 = libc::EPOLLRDHUP as u32;
/// Told whether asked for or not.
pub(crate) const HUP: u32 = libc::EPOLLHUP as u32;
/// Told whether asked for or not.
pub(crate) const ERR: u32 = libc::EPOLLERR as u32;

impl Kernel {
    /// Poll bits that a file has now.
    pub(crate) fn readiness(&self, kind: &FileKind) -> u32 {
        match kind {
            FileKind::Regular(_)
            | FileKind::Directory(_)
            | FileKind::Text(..)
            | FileKind::Null
            | FileKind::Zero
            | FileKind::Full
            | FileKind::Random => IN | OUT,
            FileKind::Path(_) => 0,
            FileKind::Output(_) => OUT,
            FileKind::Runtime => OUT | if self.runtime.has_message() { IN } else { 0 },
            FileKind::PipeReader(number) => self.pipes.get(*number).map_or(HUP, |pipe| {
                (if pipe.len() > 0 { IN } else { 0 }) | if pipe.writers == 0 { HUP } else { 0 }
            }),
            FileKind::PipeWriter(number) => self.pipes.get(*number).map_or(ERR, |pipe| {
                (if pipe.room() >= 4096 || pipe.len() == 0 {
                    OUT
                } else {
                    0
                }) | if pipe.readers == 0 { ERR } else { 0 }
            }),
            FileKind::PipeBoth(number) => self.pipes.get(*number).map_or(ERR, |pipe| {
                (if pipe.len() > 0 { IN } else { 0 }) | if pipe.room() >= 4096 { OUT } else { 0 }
            }),
            FileKind::EventFd(number) => self.event_fds.get(*number).map_or(0, |event| {
                (if event.count > 0 { IN } else { 0 }) | if event.can_take() { OUT } else { 0 }
            }),
            FileKind::TimerFd(number) => self
                .timer_fds
                .get(*number)
                .map_or(0, |timer| if timer.count > 0 { IN } else { 0 }),
            FileKind::SignalFd(number) => {
                if self.signal_fd_ready(*number) {
                    IN
                } else {
                    0
                }
            }
            FileKind::Inotify(number) => {
                if self.file_events.has_event(*number) {
                    IN
                } else {
                    0
                }
            }
            FileKind::Epoll(number) => {
                if self.epoll_has_ready(*number, 0) {
                    IN
                } else {
                    0
                }
            }
            FileKind::Socket(number) => self.socket_readiness(*number),
        }
    }
}
