//! Loopback ports whose connections end outside the guest.

use std::collections::{BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

use crate::{
    io::{Buffer, ObjectKey},
    kernel::Kernel,
    net::STREAM_BYTES,
    slab::Slab,
};

/// Something that happened on a service's connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServiceEvent {
    /// The guest connected to this port.
    Opened {
        /// Number of the connection.
        connection: u32,
        /// The port.
        port: u16,
    },
    /// The guest sent bytes.
    Data {
        /// Number of the connection.
        connection: u32,
        /// What it sent.
        bytes: Vec<u8>,
    },
    /// The guest closed the connection, or its sending half.
    Closed {
        /// Number of the connection.
        connection: u32,
    },
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Connection {
    socket: u32,
    from_guest: Buffer,
    guest_gone: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
enum Note {
    Opened(u32, u16),
    Data(u32),
    Closed(u32),
}

/// Services and their connections.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Services {
    ports: BTreeSet<u16>,
    connections: Slab<Connection>,
    notes: VecDeque<Note>,
}

impl Services {
    pub(crate) fn has_port(&self, port: u16) -> bool {
        self.ports.contains(&port)
    }

    pub(crate) fn open(&mut self, socket: u32, port: u16) -> u32 {
        let connection = self.connections.insert(Connection {
            socket,
            from_guest: Buffer::default(),
            guest_gone: false,
        });
        self.notes.push_back(Note::Opened(connection, port));
        connection
    }

    /// Bytes that the guest may send before someone outside has taken what it sent.
    pub(crate) fn room(&self, connection: u32) -> Option<usize> {
        let connection = self.connections.get(connection)?;
        Some(STREAM_BYTES.saturating_sub(connection.from_guest.len()))
    }

    pub(crate) fn take_from_guest(&mut self, number: u32, data: &[u8]) {
        if let Some(connection) = self.connections.get_mut(number) {
            if connection.from_guest.is_empty() {
                self.notes.push_back(Note::Data(number));
            }
            connection.from_guest.push(data);
        }
    }

    /// The guest sends no more.
    pub(crate) fn guest_finished(&mut self, number: u32) {
        if self.connections.get(number).is_some() {
            self.notes.push_back(Note::Closed(number));
        }
    }

    /// The guest has closed its socket.
    pub(crate) fn guest_closed(&mut self, number: u32) {
        if let Some(connection) = self.connections.get_mut(number) {
            connection.guest_gone = true;
            self.notes.push_back(Note::Closed(number));
        }
    }
}

impl Kernel {
    /// Offers a service on a loopback port.
    pub fn offer_service(&mut self, port: u16) {
        self.network.services.ports.insert(port);
    }

    /// What has happened on services since the last call, in order.
    pub fn take_service_events(&mut self) -> Vec<ServiceEvent> {
        let services = &mut self.network.services;
        let mut events = Vec::new();
        let mut freed = Vec::new();
        for note in std::mem::take(&mut services.notes) {
            match note {
                Note::Opened(connection, port) => events.push(ServiceEvent::Opened { connection, port }),
                Note::Data(number) => {
                    let Some(connection) = services.connections.get_mut(number) else {
                        continue;
                    };
                    let bytes = connection.from_guest.peek(usize::MAX);
                    connection.from_guest.consume(bytes.len());
                    freed.push(connection.socket);
                    events.push(ServiceEvent::Data {
                        connection: number,
                        bytes,
                    });
                }
                Note::Closed(connection) => {
                    if services
                        .connections
                        .get(connection)
                        .is_some_and(|connection| connection.guest_gone)
                    {
                        services.connections.remove(connection);
                    }
                    events.push(ServiceEvent::Closed { connection });
                }
            }
        }
        // Someone in the guest may wait for room.
        for socket in freed {
            self.wake_object(ObjectKey::Socket(socket));
        }
        events
    }

    /// Sends bytes to the guest. They are an event or part of one, so they are not held back for want of room.
    pub fn service_send(&mut self, connection: u32, bytes: &[u8]) {
        let Some(socket) = self
            .network
            .services
            .connections
            .get(connection)
            .map(|connection| connection.socket)
        else {
            return;
        };
        if let Some(receiver) = self.network.sockets.get_mut(socket) {
            receiver.received.push(bytes);
            self.wake_object(ObjectKey::Socket(socket));
        }
    }

    /// Closes a connection from outside.
    pub fn service_close(&mut self, connection: u32) {
        let Some(connection) = self.network.services.connections.remove(connection) else {
            return;
        };
        if let Some(receiver) = self.network.sockets.get_mut(connection.socket) {
            receiver.read_shut = true;
            receiver.state = crate::net::SocketState::Connected(None);
            self.wake_object(ObjectKey::Socket(connection.socket));
        }
    }
}
