//! Descriptors of the host that lead out of a guest: they were handed in by the node, are never blocked on, and are moved
//! between only when both sides can.
//!
//! A port joins one end in the guest, of a pipe or of a connection, to one pipe of the host; what the reader does not take
//! stays where it is, so a slow reader outside blocks the writer in the guest and the other way round. A socket's
//! datagrams go both ways through one packet socket. Nothing is held here.

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

use crate::datagram::{self, DATAGRAM_BYTES_MAX, HEADER_BYTES};

/// How long a guest that has something outside runs, at most, before that is looked at again.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Least time between two looks at a guest that exits often.
pub(super) const LOOK_PAUSE: Duration = Duration::from_millis(1);

/// Bytes that are moved at a time.
const MOVED_BYTES: usize = 64 << 10;

/// Datagrams that are moved at a time.
const DATAGRAMS_MOVED: usize = 16;

/// The guest's end of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// A pipe, by its number.
    Pipe(u32),
    /// A connection out of the guest, by its number.
    Connection(u32),
}

/// Which way a port's bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// To the guest.
    In,
    /// From the guest.
    Out,
    /// Datagrams, both ways.
    Datagrams,
}

/// One port.
#[derive(Debug)]
struct Port {
    way: Way,
    end: End,
    /// The host's end; none once either side has finished.
    host: Option<OwnedFd>,
    /// The host's end took no more when it was last tried.
    blocked: bool,
    /// What came is all, and the connection has been lost, for this reason.
    broken: Option<i32>,
}

/// The ports of one guest.
#[derive(Debug, Default)]
pub(super) struct Ports {
    ports: Vec<Port>,
}

impl Ports {
    /// Joins an end in the guest to a descriptor that does not block.
    pub(super) fn join(&mut self, way: Way, end: End, host: OwnedFd) {
        self.ports.push(Port {
            way,
            end,
            host: Some(host),
            blocked: false,
            broken: None,
        });
    }

    /// A connection has been lost, for this reason (a number as in `errno`). The guest still gets what came before.
    pub(super) fn break_connection(&mut self, kernel: &mut Kernel, connection: u32, errno: i32) {
        let comes = |port: &&mut Port| {
            port.way == Way::In && port.end == End::Connection(connection) && port.host.is_some()
        };
        match self.ports.iter_mut().find(comes) {
            Some(port) => {
                port.broken = Some(errno);
                port.move_rest(kernel);
            }
            None => kernel.outside_broken(connection, errno),
        }
    }

    /// Gives up every port, without a word to the guest.
    pub(super) fn clear(&mut self) {
        self.ports.clear();
    }

    /// Forgets ports of connections that have ended on both sides; tells which the guest has closed.
    pub(super) fn take_ended(&mut self, kernel: &mut Kernel) -> Vec<u32> {
        let mut ended = Vec::new();
        let connections: Vec<u32> = self
            .ports
            .iter()
            .filter_map(|port| match port.end {
                End::Connection(number) => Some(number),
                End::Pipe(_) => None,
            })
            .collect();
        for number in connections {
            let here = |port: &Port| port.end == End::Connection(number);
            let open = self.ports.iter().any(|port| here(port) && port.host.is_some());
            if !open && !ended.contains(&number) && kernel.outside_forget(number) {
                ended.push(number);
            }
        }
        self.ports
            .retain(|port| !matches!(port.end, End::Connection(number) if ended.contains(&number)));
        ended
    }

    /// Passes on what the guest has written, as far as the host takes it. Costs little when there is nothing.
    pub(super) fn pass_on(&mut self, kernel: &mut Kernel) {
        for port in &mut self.ports {
            if port.way == Way::In && port.room(kernel).is_none() {
                // The guest reads no more: whoever writes there is to know.
                port.finish(kernel);
            } else if port.broken.is_some() {
                port.move_rest(kernel);
            } else if !port.blocked && port.holds_output(kernel) {
                port.move_out(kernel);
            }
        }
    }

    /// Whether something that the guest wrote to its pipes has not been passed on yet.
    pub(super) fn hold_output(&self, kernel: &Kernel) -> bool {
        let pipe = |port: &&Port| matches!(port.end, End::Pipe(_));
        self.ports
            .iter()
            .filter(pipe)
            .any(|port| port.holds_output(kernel))
    }

    /// The same of its connections.
    pub(super) fn hold_data(&self, kernel: &Kernel) -> bool {
        let connection = |port: &&Port| matches!(port.end, End::Connection(_));
        self.ports
            .iter()
            .filter(connection)
            .any(|port| port.holds_output(kernel))
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
            let flags = port.waits_for(kernel);
            if let Some(host) = port.host.as_ref().filter(|_| !flags.is_empty()) {
                waited.push(number);
                polled.push(PollFd::new(host, flags));
            }
        }
        match poll(&mut polled, time.map(timespec).as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        let mut ready = polled.iter().map(PollFd::revents);
        let channel_ready = ready.next().is_some_and(|flags| !flags.is_empty());
        let ready: Vec<PollFlags> = ready.collect();
        for (number, flags) in waited
            .into_iter()
            .zip(ready)
            .filter(|(_, flags)| !flags.is_empty())
        {
            let port = &mut self.ports[number];
            port.blocked = false;
            if port.way != Way::Out && flags.intersects(!PollFlags::OUT) {
                port.move_in(kernel);
            }
            if port.way != Way::In {
                port.move_out(kernel);
            }
        }
        Ok(channel_ready)
    }
}

impl Port {
    /// Room in the guest; `None` when it reads no more.
    fn room(&self, kernel: &Kernel) -> Option<usize> {
        match self.end {
            End::Pipe(number) => kernel.pipe_room(number),
            End::Connection(number) => kernel.outside_room(number),
        }
    }

    /// Whether moving out would do something: there is something to move, or the guest has finished.
    fn holds_output(&self, kernel: &Kernel) -> bool {
        let holds = match self.end {
            End::Pipe(number) => kernel.pipe_len(number) > 0,
            End::Connection(number) => kernel.outside_len(number) > 0 || kernel.outside_is_finished(number),
        };
        holds && self.host.is_some() && self.way != Way::In
    }

    /// What the host's end is to be waited for.
    fn waits_for(&self, kernel: &Kernel) -> PollFlags {
        let out = match self.holds_output(kernel) {
            true => PollFlags::OUT,
            false => PollFlags::empty(),
        };
        match self.way {
            Way::In if self.room(kernel) == Some(0) => PollFlags::empty(),
            Way::In => PollFlags::IN,
            Way::Out => out,
            Way::Datagrams => PollFlags::IN | out,
        }
    }

    /// From the host to the guest, once: what has come is there to be read before more is taken.
    fn move_in(&mut self, kernel: &mut Kernel) {
        if self.way == Way::Datagrams {
            return self.datagrams_in(kernel);
        }
        let Some(host) = &self.host else { return };
        let Some(room) = self.room(kernel) else {
            return self.finish(kernel);
        };
        let mut bytes = vec![0; room.min(MOVED_BYTES)];
        if bytes.is_empty() {
            return;
        }
        match rustix::io::read(host.as_fd(), &mut bytes) {
            Ok(0) => self.finish(kernel),
            Ok(count) => match self.end {
                End::Pipe(number) => drop(kernel.pipe_feed(number, &bytes[..count])),
                End::Connection(number) => kernel.outside_feed(number, &bytes[..count]),
            },
            Err(Errno::AGAIN) if self.broken.is_some() => self.finish(kernel),
            Err(Errno::AGAIN | Errno::INTR) => {}
            // As a file that cannot be read further: what came is all there is.
            Err(_) => self.finish(kernel),
        }
    }

    /// From a connection that is lost: all that came before is in the pipe.
    fn move_rest(&mut self, kernel: &mut Kernel) {
        while self.host.is_some() && self.room(kernel) != Some(0) {
            self.move_in(kernel);
        }
    }

    fn datagrams_in(&mut self, kernel: &mut Kernel) {
        let End::Connection(number) = self.end else { return };
        for _ in 0..DATAGRAMS_MOVED {
            let Some(host) = &self.host else { return };
            let mut packet = vec![0; HEADER_BYTES + DATAGRAM_BYTES_MAX];
            match rustix::io::read(host.as_fd(), &mut packet) {
                Ok(0) => return self.finish(kernel),
                Ok(count) => {
                    if let Some((from, data)) = datagram::decode(&packet[..count]) {
                        kernel.outside_datagram(number, from, data.to_vec());
                    }
                }
                Err(Errno::AGAIN | Errno::INTR) => return,
                Err(_) => return self.finish(kernel),
            }
        }
    }

    /// From the guest to the host, as much as it takes.
    fn move_out(&mut self, kernel: &mut Kernel) {
        if self.way == Way::Datagrams {
            return self.datagrams_out(kernel);
        }
        while let Some(host) = &self.host {
            let bytes = match self.end {
                End::Pipe(number) => kernel.pipe_peek(number, MOVED_BYTES),
                End::Connection(number) => kernel.outside_peek(number, MOVED_BYTES),
            };
            let Some(bytes) = bytes else {
                return self.finish(kernel);
            };
            if bytes.is_empty() {
                return;
            }
            match rustix::io::write(host.as_fd(), &bytes) {
                Ok(count) => match self.end {
                    End::Pipe(number) => kernel.pipe_consume(number, count),
                    End::Connection(number) => kernel.outside_consume(number, count),
                },
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.blocked = true;
                    return;
                }
                // Its reader is gone.
                Err(_) => return self.finish(kernel),
            }
        }
    }

    fn datagrams_out(&mut self, kernel: &mut Kernel) {
        let End::Connection(number) = self.end else { return };
        while let Some(host) = &self.host
            && let Some((to, data)) = kernel.outside_next_datagram(number)
        {
            match rustix::io::write(host.as_fd(), &datagram::encode(to, data)) {
                // One that is too long for the socket is lost, as one that is too long for a link.
                Ok(_) | Err(Errno::MSGSIZE) => kernel.outside_take_datagram(number),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.blocked = true;
                    return;
                }
                Err(_) => return self.finish(kernel),
            }
        }
        if kernel.outside_is_finished(number) {
            self.finish(kernel);
        }
    }

    /// Either side has finished: the other one is told.
    fn finish(&mut self, kernel: &mut Kernel) {
        if self.host.take().is_none() {
            return;
        }
        match (self.way, self.end) {
            (Way::In, End::Pipe(number)) => kernel.pipe_end_input(number),
            (Way::Out, End::Pipe(number)) => kernel.pipe_end_output(number),
            (Way::In, End::Connection(number)) => match self.broken {
                Some(errno) => kernel.outside_broken(number, errno),
                None => kernel.outside_end_input(number),
            },
            (Way::Out, End::Connection(number)) => kernel.outside_end_output(number),
            (Way::Datagrams, _) => {}
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
