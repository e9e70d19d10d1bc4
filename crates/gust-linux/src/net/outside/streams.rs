//! Bytes of connections that lead out: what came is fed in, what the guest sent is looked at and then consumed.

use super::{Connection, ConnectionKind};
use crate::{io::Buffer, kernel::Kernel, net::STREAM_BYTES};

impl Kernel {
    /// Bytes that a guest's socket takes from outside now; `None` when the guest reads no more.
    pub fn outside_room(&self, connection: u32) -> Option<usize> {
        let socket = self.network.sockets.get(self.outside_socket(connection)?)?;
        (!socket.read_shut).then(|| STREAM_BYTES.saturating_sub(socket.received.len()))
    }

    /// Gives a guest bytes that came. They must fit ([`Kernel::outside_room`]).
    pub fn outside_feed(&mut self, connection: u32, bytes: &[u8]) {
        if let Some(number) = self.outside_socket(connection)
            && let Some(socket) = self.network.sockets.get_mut(number)
        {
            socket.received.push(bytes);
            self.wake_socket(number);
        }
    }

    /// Nothing more comes.
    pub fn outside_end_input(&mut self, connection: u32) {
        if let Some(number) = self.outside_socket(connection)
            && let Some(socket) = self.network.sockets.get_mut(number)
        {
            socket.read_shut = true;
            self.wake_socket(number);
        }
    }

    /// The oldest bytes that a guest sent, at most this many; they stay. `None` when there are none and will be none.
    pub fn outside_peek(&self, connection: u32, bytes_max: usize) -> Option<Vec<u8>> {
        match &self.network.outside.connections.get(&connection)?.kind {
            ConnectionKind::Stream {
                from_guest, finished, ..
            } => (!from_guest.is_empty() || !finished).then(|| from_guest.peek(bytes_max)),
            ConnectionKind::Datagrams { .. } => None,
        }
    }

    /// Takes bytes that have been passed on.
    pub fn outside_consume(&mut self, connection: u32, bytes: usize) {
        let Some(record) = self.network.outside.connections.get_mut(&connection) else {
            return;
        };
        let socket = record.socket;
        if let ConnectionKind::Stream { from_guest, .. } = &mut record.kind {
            from_guest.consume(bytes);
        }
        if let Some(socket) = socket {
            self.wake_socket(socket);
        }
    }

    /// No one takes what the guest sends any more; `EPIPE` from now on.
    pub fn outside_end_output(&mut self, connection: u32) {
        let Some(record) = self.network.outside.connections.get_mut(&connection) else {
            return;
        };
        let socket = record.socket;
        if let ConnectionKind::Stream {
            from_guest, broken, ..
        } = &mut record.kind
        {
            *broken = true;
            *from_guest = Buffer::default();
        }
        if let Some(socket) = socket {
            self.wake_socket(socket);
        }
    }

    /// Bytes that the guest may send now; `None` when no one takes them.
    pub(crate) fn outside_send_room(&self, connection: u32) -> Option<usize> {
        match &self.network.outside.connections.get(&connection)?.kind {
            ConnectionKind::Stream {
                from_guest, broken, ..
            } => (!broken).then(|| STREAM_BYTES.saturating_sub(from_guest.len())),
            ConnectionKind::Datagrams { .. } => None,
        }
    }

    pub(crate) fn outside_take_from_guest(&mut self, connection: u32, data: &[u8]) {
        if let Some(Connection {
            kind: ConnectionKind::Stream { from_guest, .. },
            ..
        }) = self.network.outside.connections.get_mut(&connection)
        {
            from_guest.push(data);
        }
    }
}
