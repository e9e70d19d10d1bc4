//! The supervisor's side of what the guest's program speaks: the runtime device on a socket, or the Runtime API over
//! TCP in the guest's own network namespace.

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    event::{PollFd, PollFlags},
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, accept_with, bind, listen, socket_with},
};

use super::device::Device;
use crate::runtime_api::{ConnectionId, Event, PORT, RuntimeApi, Said};

/// Bytes that are read from a connection at a time.
const READ_BYTES: usize = 16 << 10;

/// Reads and writes on one connection before others get their turn.
const ROUNDS_MAX: usize = 64;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 16;

/// How the guest's program is spoken to.
#[derive(Debug)]
pub(super) enum Link {
    /// The runtime device.
    Device(Device),
    /// The Runtime API.
    Api(Api),
}

impl Link {
    /// Descriptors to wait for, and for what.
    pub(super) fn poll_fds(&self) -> Vec<PollFd<'_>> {
        match self {
            Self::Device(device) => device.poll_fd().into_iter().collect(),
            Self::Api(api) => api.poll_fds(),
        }
    }

    /// Moves bytes both ways as far as that goes without waiting, and gives out what the program said.
    pub(super) fn turn(&mut self, said: &mut Vec<Said>) -> io::Result<()> {
        match self {
            Self::Device(device) => device.turn(said),
            Self::Api(api) => api.turn(said),
        }
    }

    /// Hands an event to the program, which waits for one.
    pub(super) fn deliver(&mut self, event: Event, said: &mut Vec<Said>) -> io::Result<()> {
        match self {
            Self::Device(device) => device.deliver(&event),
            Self::Api(api) => match api.machine.deliver(event, said) {
                Some(_) => api.turn(said),
                None => Err(io::Error::other("the runtime does not wait for an event")),
            },
        }
    }

    /// Time that the program says its handler took for the last answer, in nanoseconds; 0 when it does not say.
    pub(super) fn handler_ns(&self) -> u64 {
        match self {
            Self::Device(device) => device.handler_ns(),
            Self::Api(_) => 0,
        }
    }

    /// Whether the program says, after an answer, that it waits again, or ends. Otherwise an answer says both.
    pub(super) fn announces_waits(&self) -> bool {
        match self {
            Self::Device(device) => device.ends(),
            Self::Api(_) => true,
        }
    }
}

/// The Runtime API on its port.
#[derive(Debug)]
pub(super) struct Api {
    listener: OwnedFd,
    connections: Vec<(ConnectionId, OwnedFd)>,
    machine: RuntimeApi,
}

impl Api {
    /// Listens on the port where runtimes look.
    pub(super) fn listen() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let listener = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
        bind(&listener, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, PORT))?;
        listen(&listener, BACKLOG)?;
        Ok(Self {
            listener,
            connections: Vec::new(),
            machine: RuntimeApi::new(),
        })
    }

    fn poll_fds(&self) -> Vec<PollFd<'_>> {
        let connections = self.connections.iter().map(|(id, socket)| {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, self.machine.capacity(*id) > 0);
            flags.set(PollFlags::OUT, !self.machine.output(*id).is_empty());
            PollFd::new(socket, flags)
        });
        [PollFd::new(&self.listener, PollFlags::IN)]
            .into_iter()
            .chain(connections)
            .collect()
    }

    fn turn(&mut self, said: &mut Vec<Said>) -> io::Result<()> {
        self.accept()?;
        let machine = &mut self.machine;
        self.connections.retain(|(id, socket)| {
            let open = pump(machine, *id, socket.as_fd(), said);
            if !open {
                machine.close(*id);
            }
            open
        });
        Ok(())
    }

    fn accept(&mut self) -> io::Result<()> {
        loop {
            match accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                // One connection too many is closed at once.
                Ok(socket) => {
                    if let Some(id) = self.machine.open() {
                        self.connections.push((id, socket));
                    }
                }
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Moves bytes between a connection and the machine. `false` when the connection is to be closed.
fn pump(machine: &mut RuntimeApi, id: ConnectionId, socket: BorrowedFd<'_>, said: &mut Vec<Said>) -> bool {
    let mut buffer = [0; READ_BYTES];
    for _ in 0..ROUNDS_MAX {
        let mut moved = false;
        let room = machine.capacity(id).min(buffer.len());
        if room > 0 {
            match rustix::io::read(socket, &mut buffer[..room]) {
                Ok(0) => return false,
                Ok(n) => {
                    machine.receive(id, &buffer[..n], said);
                    moved = true;
                }
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(_) => return false,
            }
        }
        let output = machine.output(id);
        if !output.is_empty() {
            match rustix::net::send(socket, output, rustix::net::SendFlags::NOSIGNAL) {
                Ok(n) => {
                    machine.sent(id, n);
                    moved = true;
                }
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(_) => return false,
            }
        }
        if machine.is_done(id) {
            return false;
        }
        if !moved {
            break;
        }
    }
    true
}
