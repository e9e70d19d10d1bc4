//! Descriptors of the host that lead out of a guest: they were handed in by the node, are never blocked on, and are moved
//! between only when both sides can.
//!
//! A port joins one end of a pipe in the guest to one pipe of the host. What the reader does not take stays where it is,
//! so a slow reader outside blocks the writer in the guest and the other way round; nothing is held here.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use gust_linux::Kernel;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

/// Bytes that are moved at a time.
const MOVED_BYTES: usize = 64 << 10;

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// To the guest.
    In,
    /// From the guest.
    Out,
}

/// One port.
#[derive(Debug)]
struct Port {
    way: Way,
    /// Number of the guest's pipe.
    pipe: u32,
    /// The host's end; none once either side has finished.
    host: Option<OwnedFd>,
    /// The host's end took or gave no more when it was last tried.
    waits: bool,
}

/// The ports of one guest.
#[derive(Debug, Default)]
pub(super) struct Ports {
    ports: Vec<Port>,
}

impl Ports {
    /// Joins a pipe of the guest to a descriptor that does not block.
    pub(super) fn join(&mut self, way: Way, pipe: u32, host: OwnedFd) {
        self.ports.push(Port {
            way,
            pipe,
            host: Some(host),
            waits: way == Way::In,
        });
    }

    /// Passes on what the guest has written, as far as the host takes it. Costs nothing when there is nothing.
    pub(super) fn pass_on(&mut self, kernel: &mut Kernel) {
        for port in &mut self.ports {
            if port.way == Way::Out && !port.waits {
                port.move_out(kernel);
            }
        }
    }

    /// Whether something that the guest wrote has not been passed on yet.
    pub(super) fn holds_output(&self, kernel: &Kernel) -> bool {
        let holds = |port: &&Port| port.way == Way::Out && port.host.is_some();
        self.ports
            .iter()
            .filter(holds)
            .any(|port| kernel.pipe_len(port.pipe) > 0)
    }

    /// Waits until a port can go on, `channel` has something to say, or the time is up (`None`: never), and moves what
    /// can be moved. Tells whether the channel can be read.
    pub(super) fn wait(
        &mut self,
        kernel: &mut Kernel,
        channel: BorrowedFd<'_>,
        time: Option<Duration>,
    ) -> io::Result<bool> {
        let mut waited = Vec::with_capacity(self.ports.len());
        let mut polled = vec![PollFd::new(&channel, PollFlags::IN)];
        for (number, port) in self.ports.iter().enumerate() {
            if let (Some(host), Some(flags)) = (&port.host, port.waits_for(kernel)) {
                waited.push(number);
                polled.push(PollFd::new(host, flags));
            }
        }
        match poll(&mut polled, time.map(timespec).as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        let mut ready = polled.iter().map(|polled| !polled.revents().is_empty());
        let channel_ready = ready.next().unwrap_or(false);
        let ready: Vec<bool> = ready.collect();
        drop(polled);
        for (number, _) in waited.into_iter().zip(ready).filter(|(_, ready)| *ready) {
            let port = &mut self.ports[number];
            port.waits = false;
            match port.way {
                Way::In => port.move_in(kernel),
                Way::Out => port.move_out(kernel),
            }
        }
        Ok(channel_ready)
    }
}

impl Port {
    /// What the host's end is to be waited for.
    fn waits_for(&self, kernel: &Kernel) -> Option<PollFlags> {
        match self.way {
            // One that the guest does not read any more has to be given up, which moving finds out.
            Way::In => (kernel.pipe_room(self.pipe) != Some(0)).then_some(PollFlags::IN),
            Way::Out => (kernel.pipe_len(self.pipe) > 0).then_some(PollFlags::OUT),
        }
    }

    /// From the host to the guest, once: what has come is there to be read before more is taken.
    fn move_in(&mut self, kernel: &mut Kernel) {
        let Some(host) = &self.host else { return };
        self.waits = true;
        let Some(room) = kernel.pipe_room(self.pipe) else {
            self.finish(kernel);
            return;
        };
        let mut bytes = vec![0; room.min(MOVED_BYTES)];
        match rustix::io::read(host.as_fd(), &mut bytes) {
            Ok(0) => self.finish(kernel),
            Ok(count) => {
                kernel.pipe_feed(self.pipe, &bytes[..count]);
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            // As a file that cannot be read further: what came is all there is.
            Err(_) => self.finish(kernel),
        }
    }

    /// From the guest to the host, as much as it takes.
    fn move_out(&mut self, kernel: &mut Kernel) {
        while let Some(host) = &self.host {
            let Some(bytes) = kernel.pipe_peek(self.pipe, MOVED_BYTES) else {
                return self.finish(kernel);
            };
            if bytes.is_empty() {
                return;
            }
            match rustix::io::write(host.as_fd(), &bytes) {
                Ok(count) => kernel.pipe_consume(self.pipe, count),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.waits = true;
                    return;
                }
                // Its reader is gone.
                Err(_) => return self.finish(kernel),
            }
        }
    }

    /// Either side has finished: the other one is told.
    fn finish(&mut self, kernel: &mut Kernel) {
        if self.host.take().is_some() {
            match self.way {
                Way::In => kernel.pipe_end_input(self.pipe),
                Way::Out => kernel.pipe_end_output(self.pipe),
            }
        }
    }
}

/// Sleeps. A signal may end it early.
pub(super) fn rest(time: Duration) {
    // Nothing is polled, so nothing but the time or a signal can end it.
    let _ = poll(&mut [], Some(&timespec(time)));
}

fn timespec(time: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: time.subsec_nanos().into(),
    }
}
