//! Datagrams that lead out, and those that come: one way for each socket, and what does not fit is dropped.

use std::collections::VecDeque;

use super::{
    Connection, ConnectionKind, DATAGRAM_SOCKETS_MAX, Destination, NO_SOCKET, OutsideRequest, WAITING_MAX,
};
use crate::{
    errno::{EINVAL, ENETUNREACH, ENOBUFS, Errno},
    kernel::Kernel,
    net::{DATAGRAMS_MAX, Datagram, SocketState, address::Address, ancillary::Ancillary},
};

impl Kernel {
    /// Sends a datagram out, or drops it as a network does.
    pub(crate) fn send_outside(&mut self, number: u32, to: Destination, data: Vec<u8>) -> Result<u64, Errno> {
        if !self.network.outside.open {
            return Err(ENETUNREACH);
        }
        self.ensure_port(number)?;
        let sent = data.len() as u64;
        let connection = match self.socket(number)?.datagrams_out {
            Some(connection) if self.outside_is_known(connection) => connection,
            Some(_) | None => self.open_datagrams(number)?,
        };
        let record = self.network.outside.connections.get_mut(&connection);
        let Some(Connection {
            kind: ConnectionKind::Datagrams { from_guest },
            ..
        }) = record
        else {
            return Err(EINVAL);
        };
        if from_guest.len() < WAITING_MAX {
            from_guest.push_back((to, data));
        }
        Ok(sent)
    }

    fn open_datagrams(&mut self, number: u32) -> Result<u32, Errno> {
        if self.network.outside.count(false) >= DATAGRAM_SOCKETS_MAX {
            return Err(ENOBUFS);
        }
        let connection = self.network.outside.insert(Connection {
            socket: Some(number),
            kind: ConnectionKind::Datagrams {
                from_guest: VecDeque::new(),
            },
        });
        self.socket_mut(number)?.datagrams_out = Some(connection);
        let request = OutsideRequest::Datagrams { connection };
        self.network.outside.requests.push_back(request);
        Ok(connection)
    }

    /// The oldest datagram that a guest sent and no one has taken, and where it goes. It stays until it is taken.
    pub fn outside_next_datagram(&self, connection: u32) -> Option<(Destination, &[u8])> {
        match &self.network.outside.connections.get(&connection)?.kind {
            ConnectionKind::Datagrams { from_guest } => {
                from_guest.front().map(|(to, data)| (*to, data.as_slice()))
            }
            ConnectionKind::Stream { .. } => None,
        }
    }

    /// Takes the oldest datagram.
    pub fn outside_take_datagram(&mut self, connection: u32) {
        if let Some(Connection {
            kind: ConnectionKind::Datagrams { from_guest },
            ..
        }) = self.network.outside.connections.get_mut(&connection)
        {
            from_guest.pop_front();
        }
    }

    /// Gives a guest a datagram that came. One that does not fit, or that a connected socket did not ask for, is dropped.
    pub fn outside_datagram(&mut self, connection: u32, from: Destination, data: Vec<u8>) {
        let from = Address::from_destination(from);
        if let Some(number) = self.outside_socket(connection)
            && let Some(socket) = self.network.sockets.get_mut(number)
            && socket.datagrams.len() < DATAGRAMS_MAX
            && !socket.read_shut
            && (matches!(socket.state, SocketState::Idle) || socket.remote == from)
        {
            socket.datagrams.push_back(Datagram {
                from,
                sender: NO_SOCKET,
                data,
                ancillary: Ancillary::default(),
            });
            self.wake_socket(number);
        }
    }
}
