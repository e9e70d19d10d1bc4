//! Connections that lead out of the guest.
//!
//! The personality opens none by itself: it notes what the guest asks for, and whoever runs it says what became of that.
//! Bytes and datagrams wait here, within bounds, until they are taken or given.
//!
//! ```text
//!   connect ──> Connecting ──(note Connect)── outside_connected ──> Outside <──> outside_feed, outside_peek ...
//!                   └── outside_failed ──> Idle, with an error         └── outside_broken, reset ──> no one
//!   sendto ──> (note Datagrams, once a socket) <──> outside_datagram, outside_next_datagram
//! ```
//!
//! Nothing of this survives in a restored guest: its connections were another instance's. They answer `ECONNRESET`.

mod datagrams;
mod streams;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{IpAddr, SocketAddr},
};

use serde::{Deserialize, Serialize};

use crate::{
    errno::{EALREADY, EINPROGRESS, ENETUNREACH, ENOBUFS},
    io::Buffer,
    kernel::{Cx, Kernel, SysResult},
    net::{
        SocketKind, SocketState,
        address::{Address, Host},
        interfaces::is_own,
    },
};

/// Most connections out of one guest at a time.
pub const CONNECTIONS_MAX: usize = 256;
/// Most sockets with datagrams out of one guest at a time.
pub const DATAGRAM_SOCKETS_MAX: usize = 64;
/// Datagrams of one socket that wait to be taken.
const WAITING_MAX: usize = 64;
/// The number of a sender that is no socket of the guest.
const NO_SOCKET: u32 = u32::MAX;
/// Port at which a guest finds its resolver, on its own loopback.
const RESOLVER_PORT: u16 = 53;

/// Where a connection or a datagram goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Destination {
    /// An address elsewhere.
    Address(SocketAddr),
    /// A port of the loopback interface of the machine that the guest runs on.
    HostPort(u16),
    /// The resolver of the machine that the guest runs on.
    Resolver,
}

/// What a guest asks of the outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutsideRequest {
    /// To be connected; answered by [`Kernel::outside_connected`] or [`Kernel::outside_failed`].
    Connect {
        /// Number of the connection.
        connection: u32,
        /// Where to.
        to: Destination,
    },
    /// A way for datagrams; answered by taking and giving them, or by [`Kernel::outside_failed`].
    Datagrams {
        /// Number of the socket's way out.
        connection: u32,
    },
}

/// What lies behind a number.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Connection {
    /// The guest's socket, until the guest has closed it.
    socket: Option<u32>,
    kind: ConnectionKind,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
enum ConnectionKind {
    Stream {
        from_guest: Buffer,
        /// The guest sends no more.
        finished: bool,
        /// No one takes what the guest sends.
        broken: bool,
    },
    Datagrams {
        from_guest: VecDeque<(Destination, Vec<u8>)>,
    },
}

/// The ways out of one guest.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Outside {
    /// There is an outside.
    open: bool,
    /// Ports of the guest's loopback that lead to the machine's own, while no one in the guest has them.
    forwarded: BTreeSet<u16>,
    connections: BTreeMap<u32, Connection>,
    next: u32,
    #[serde(skip)]
    requests: VecDeque<OutsideRequest>,
}

impl Outside {
    /// A number that no connection has, nor has had for long: an answer that comes late meets no one.
    fn insert(&mut self, connection: Connection) -> u32 {
        loop {
            self.next = self.next.wrapping_add(1);
            if !self.connections.contains_key(&self.next) {
                self.connections.insert(self.next, connection);
                return self.next;
            }
        }
    }

    fn count(&self, streams: bool) -> usize {
        let counted =
            |connection: &&Connection| matches!(connection.kind, ConnectionKind::Stream { .. }) == streams;
        self.connections.values().filter(counted).count()
    }
}

impl Kernel {
    /// Opens the way out. Ports of the guest's own loopback that are in `forwarded` lead to the machine's as long as no
    /// one in the guest has them; so does the resolver's port, to the machine's resolver.
    pub fn open_outside(&mut self, forwarded: impl IntoIterator<Item = u16>) {
        self.network.outside.open = true;
        self.network.outside.forwarded = forwarded.into_iter().collect();
    }

    /// The oldest thing that the guest has asked for and no one has heard of.
    pub fn next_outside_request(&mut self) -> Option<OutsideRequest> {
        self.network.outside.requests.pop_front()
    }

    /// Where an address leads that is not the guest's own.
    pub(crate) fn destination(&self, kind: SocketKind, address: &Address) -> Option<Destination> {
        let Address::Inet { host, port } = address else {
            return None;
        };
        let outside = &self.network.outside;
        match host {
            Host::Elsewhere(address) => Some(Destination::Address(SocketAddr::new(*address, *port))),
            Host::Any | Host::Loopback => {
                let taken = self.network.ports.contains_key(&(kind, *port));
                if !outside.open || taken || kind == SocketKind::Sequenced {
                    None
                } else if outside.forwarded.contains(port) {
                    Some(Destination::HostPort(*port))
                } else {
                    (*port == RESOLVER_PORT).then_some(Destination::Resolver)
                }
            }
        }
    }

    /// Begins to connect a stream socket, or looks again at one that is being connected.
    pub(crate) fn connect_outside(
        &mut self,
        cx: &mut Cx<'_>,
        number: u32,
        to: Destination,
        remote: Address,
        nonblocking: bool,
    ) -> SysResult {
        if !self.network.outside.open {
            return Err(ENETUNREACH);
        }
        if self.network.outside.count(true) >= CONNECTIONS_MAX {
            return Err(ENOBUFS);
        }
        self.ensure_port(number)?;
        let connection = self.network.outside.insert(Connection {
            socket: Some(number),
            kind: ConnectionKind::Stream {
                from_guest: Buffer::default(),
                finished: false,
                broken: false,
            },
        });
        let request = OutsideRequest::Connect { connection, to };
        self.network.outside.requests.push_back(request);
        let socket = self.socket_mut(number)?;
        socket.state = SocketState::Connecting(connection);
        socket.remote = remote;
        if nonblocking {
            return Err(EINPROGRESS);
        }
        self.connecting(cx, number, false)
    }

    /// A connection is being made: who blocks waits for it.
    pub(crate) fn connecting(&mut self, cx: &mut Cx<'_>, number: u32, nonblocking: bool) -> SysResult {
        if nonblocking {
            return Err(EALREADY);
        }
        if self.timed_out(cx.slot) {
            return Err(EINPROGRESS);
        }
        if let Some(call) = &mut self.thread_mut(cx.slot).call {
            // Says that this call is the one that began.
            call.progress = 1;
        }
        let timeout_ns = self.socket(number)?.send_timeout_ns;
        self.wait_for_socket(cx, number, timeout_ns)
    }

    /// A connection has been made.
    pub fn outside_connected(&mut self, connection: u32) {
        let Some(socket) = self.outside_socket(connection) else {
            return;
        };
        if let Some(record) = self.network.sockets.get_mut(socket) {
            record.state = SocketState::Outside(connection);
            self.wake_socket(socket);
        }
    }

    /// A connection or a way for datagrams could not be made, for this reason (a number as in `errno`).
    pub fn outside_failed(&mut self, connection: u32, errno: i32) {
        self.end_outside(connection, errno, SocketState::Idle);
    }

    /// A connection has been lost, for this reason (a number as in `errno`).
    pub fn outside_broken(&mut self, connection: u32, errno: i32) {
        self.end_outside(connection, errno, SocketState::Connected(None));
    }

    fn end_outside(&mut self, connection: u32, errno: i32, state: SocketState) {
        let Some(record) = self.network.outside.connections.remove(&connection) else {
            return;
        };
        let is_stream = matches!(record.kind, ConnectionKind::Stream { .. });
        let Some((number, socket)) = record
            .socket
            .and_then(|number| Some((number, self.network.sockets.get_mut(number)?)))
        else {
            return;
        };
        socket.error = Some(errno);
        if is_stream {
            socket.read_shut |= matches!(state, SocketState::Connected(_));
            socket.state = state;
        }
        self.wake_socket(number);
    }

    /// Forgets every way out, and that there is one: a restored guest has none of those that were captured with it.
    pub(crate) fn reset_outside(&mut self) {
        for number in self.outside_numbers() {
            self.outside_broken(number, libc::ECONNRESET);
        }
        let Outside {
            requests,
            open,
            forwarded,
            ..
        } = &mut self.network.outside;
        *open = false;
        requests.clear();
        forwarded.clear();
    }

    /// Numbers of the ways out that the guest has or asks for.
    pub fn outside_numbers(&self) -> Vec<u32> {
        self.network.outside.connections.keys().copied().collect()
    }

    /// Has numbers of further ways out differ from those of a guest that was in this one's place.
    pub fn number_outside_after(&mut self, former: &Self) {
        self.network.outside.next = former.network.outside.next;
    }

    /// Whether the guest has asked for something that no one has heard of.
    pub fn has_outside_requests(&self) -> bool {
        !self.network.outside.requests.is_empty()
    }

    fn outside_socket(&self, connection: u32) -> Option<u32> {
        self.network.outside.connections.get(&connection)?.socket
    }

    /// The guest has closed a socket, or sends no more on it.
    pub(crate) fn guest_left_outside(&mut self, connection: u32, closed: bool, connecting: bool) {
        let connections = &mut self.network.outside.connections;
        let Some(record) = connections.get_mut(&connection) else {
            return;
        };
        if closed {
            record.socket = None;
        }
        match &mut record.kind {
            ConnectionKind::Stream { finished, .. } => *finished = true,
            ConnectionKind::Datagrams { .. } => {}
        }
        // No one outside has it yet.
        if connecting {
            connections.remove(&connection);
        }
    }

    /// Whether a connection is still known: one that is not has been closed by the guest before it was made.
    pub fn outside_is_known(&self, connection: u32) -> bool {
        self.network.outside.connections.contains_key(&connection)
    }

    /// Bytes, or datagrams, that a guest sent and no one has taken.
    pub fn outside_len(&self, connection: u32) -> usize {
        match self
            .network
            .outside
            .connections
            .get(&connection)
            .map(|record| &record.kind)
        {
            Some(ConnectionKind::Stream { from_guest, .. }) => from_guest.len(),
            Some(ConnectionKind::Datagrams { from_guest }) => from_guest.len(),
            None => 0,
        }
    }

    /// Whether the guest has sent all that it will, and it has been taken.
    pub fn outside_is_finished(&self, connection: u32) -> bool {
        let Some(record) = self.network.outside.connections.get(&connection) else {
            return true;
        };
        match &record.kind {
            ConnectionKind::Stream {
                from_guest, finished, ..
            } => *finished && from_guest.is_empty(),
            ConnectionKind::Datagrams { from_guest } => record.socket.is_none() && from_guest.is_empty(),
        }
    }

    /// Forgets a connection that nothing moves on any more, unless the guest still has its socket; tells whether it is gone.
    pub fn outside_forget(&mut self, connection: u32) -> bool {
        let gone = self.outside_socket(connection).is_none();
        if gone {
            self.network.outside.connections.remove(&connection);
        }
        gone
    }

    /// Whether there is an outside.
    pub(crate) fn has_way_out(&self) -> bool {
        self.network.outside.open
    }

    /// Whether a thread of the guest may be waiting for something that comes from outside.
    pub fn has_outside(&self) -> bool {
        !self.network.outside.connections.is_empty()
    }
}

impl Address {
    fn from_destination(from: Destination) -> Self {
        let loopback = |port| Self::Inet {
            host: Host::Loopback,
            port,
        };
        match from {
            Destination::Address(address) => Self::Inet {
                host: Host::of(address.ip()),
                port: address.port(),
            },
            Destination::HostPort(port) => loopback(port),
            Destination::Resolver => loopback(RESOLVER_PORT),
        }
    }
}

impl Host {
    /// What an address is to a guest. An IPv4 address in IPv6 clothes is an IPv4 address.
    pub(crate) fn of(address: IpAddr) -> Self {
        let address = address.to_canonical();
        if address.is_unspecified() {
            Self::Any
        } else if is_own(address) {
            Self::Loopback
        } else {
            Self::Elsewhere(address)
        }
    }
}
