//! Socket records, and who has which. What becomes of them is in `life`, what they hold in `room`.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use crate::{
    errno::{EBADF, ENOTSOCK, Errno},
    fs::FileKind,
    io::{Buffer, ObjectKey},
    kernel::Kernel,
    net::{
        address::Address,
        ancillary::{Ancillary, Credentials, Mark},
        groups::Membership,
        outside::Outside,
        service::Services,
    },
    slab::Slab,
};

/// Bytes that a stream socket holds for its reader.
pub(crate) const STREAM_BYTES: usize = 256 << 10;
/// Datagrams that a socket holds.
pub(crate) const DATAGRAMS_MAX: usize = 256;
/// Address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Domain {
    /// `AF_INET`
    Inet4,
    /// `AF_INET6`
    Inet6,
    /// `AF_UNIX`
    Unix,
    /// `AF_NETLINK`
    Netlink,
}

impl Domain {
    pub(crate) fn number(self) -> i32 {
        match self {
            Self::Inet4 => libc::AF_INET,
            Self::Inet6 => libc::AF_INET6,
            Self::Unix => libc::AF_UNIX,
            Self::Netlink => libc::AF_NETLINK,
        }
    }

    /// Whether its addresses are those of the internet.
    pub(crate) fn is_internet(self) -> bool {
        match self {
            Self::Inet4 | Self::Inet6 => true,
            Self::Unix | Self::Netlink => false,
        }
    }
}

/// Semantics of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum SocketKind {
    /// `SOCK_STREAM`
    Stream,
    /// `SOCK_DGRAM`
    Datagram,
    /// `SOCK_SEQPACKET`
    Sequenced,
}

impl SocketKind {
    pub(crate) fn number(self) -> i32 {
        match self {
            Self::Stream => libc::SOCK_STREAM,
            Self::Datagram => libc::SOCK_DGRAM,
            Self::Sequenced => libc::SOCK_SEQPACKET,
        }
    }

    /// Whether message boundaries are kept.
    pub(crate) fn keeps_messages(self) -> bool {
        self != Self::Stream
    }
}

/// Where a socket is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum SocketState {
    /// Neither connected nor listening.
    Idle,
    /// Connections wait to be accepted, by number.
    Listening {
        /// Who waits.
        waiting: VecDeque<u32>,
        /// Most that may wait.
        backlog: usize,
    },
    /// Connected to a socket, by number, until that one is closed.
    Connected(Option<u32>),
    /// Connected to a service, by the number of the connection.
    Service(u32),
    /// Being connected to something outside, by the number of the connection.
    Connecting(u32),
    /// Connected to something outside, by the number of the connection.
    Outside(u32),
}

/// A message.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Datagram {
    pub(crate) from: Address,
    /// Number of the sending socket, which may be gone.
    pub(crate) sender: u32,
    pub(crate) data: Vec<u8>,
    pub(crate) ancillary: Ancillary,
}

/// A socket.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Socket {
    pub(crate) domain: Domain,
    pub(crate) kind: SocketKind,
    pub(crate) state: SocketState,
    pub(crate) local: Address,
    pub(crate) remote: Address,
    pub(crate) received: Buffer,
    /// Of a UNIX stream: what the bytes were sent with; they add up to all that are there.
    pub(crate) marks: VecDeque<Mark>,
    pub(crate) datagrams: VecDeque<Datagram>,
    /// No more comes: the peer has shut its writing half down, or this one its reading half.
    pub(crate) read_shut: bool,
    pub(crate) write_shut: bool,
    /// Told once, by `SO_ERROR` or the next call.
    pub(crate) error: Option<Errno_>,
    /// Options that have been set, as they were set.
    pub(crate) options: BTreeMap<(i32, i32), Vec<u8>>,
    /// Who was at the other end when the connection was made.
    pub(crate) peer_credentials: Option<Credentials>,
    /// Time-outs in nanoseconds; zero is none.
    pub(crate) receive_timeout_ns: u64,
    pub(crate) send_timeout_ns: u64,
    /// Multicast groups that it has joined.
    pub(crate) groups: Vec<Membership>,
    /// Number of the way out of a datagram socket that has sent something there.
    pub(crate) datagrams_out: Option<u32>,
}

/// An error number in a stored socket.
pub(crate) type Errno_ = i32;

impl Socket {
    pub(crate) fn new(domain: Domain, kind: SocketKind) -> Self {
        Self {
            domain,
            kind,
            state: SocketState::Idle,
            local: Address::None,
            remote: Address::None,
            received: Buffer::default(),
            marks: VecDeque::new(),
            datagrams: VecDeque::new(),
            read_shut: false,
            write_shut: false,
            error: None,
            options: BTreeMap::new(),
            peer_credentials: None,
            receive_timeout_ns: 0,
            send_timeout_ns: 0,
            groups: Vec::new(),
            datagrams_out: None,
        }
    }

    pub(crate) fn option_is_set(&self, level: i32, name: i32) -> bool {
        self.options
            .get(&(level, name))
            .is_some_and(|value| value.iter().any(|byte| *byte != 0))
    }

    /// Whether nothing is left of the connection of an internet stream: it has no peer any more, not even by name.
    pub(crate) fn has_left_peer(&self) -> bool {
        self.domain != Domain::Unix
            && self.kind == SocketKind::Stream
            && self.state == SocketState::Connected(None)
            && self.read_shut
            && self.write_shut
    }

    /// Files in messages that wait to be received.
    pub(crate) fn waiting_files(&self) -> impl Iterator<Item = u32> {
        let marks = self.marks.iter().map(|mark| &mark.ancillary);
        let messages = self.datagrams.iter().map(|datagram| &datagram.ancillary);
        marks
            .chain(messages)
            .flat_map(|ancillary| ancillary.files.iter().copied())
    }

    /// Whether a reader finds something.
    pub(crate) fn has_data(&self) -> bool {
        !self.received.is_empty() || !self.datagrams.is_empty()
    }

    /// Whether a datagram from an internet address is for it: once it is connected, only its peer's are.
    pub(crate) fn hears(&self, from: &Address) -> bool {
        let connected = matches!(self.state, SocketState::Connected(_));
        if let (true, Address::Inet { port: peer, .. }, Address::Inet { port, .. }) =
            (connected, &self.remote, from)
        {
            return peer == port;
        }
        true
    }

    pub(crate) fn take_error(&mut self) -> Option<Errno> {
        self.error.take().map(Errno)
    }
}

/// All sockets of one guest.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Network {
    pub(crate) sockets: Slab<Socket>,
    /// Who has a port.
    pub(crate) ports: BTreeMap<(SocketKind, u16), Vec<u32>>,
    /// Who has a name.
    pub(crate) names: BTreeMap<Vec<u8>, u32>,
    pub(crate) next_port: u16,
    pub(crate) services: Services,
    pub(crate) outside: Outside,
}

/// Ports that are given to sockets that ask for none in particular, as Linux's default range.
pub(crate) const EPHEMERAL: std::ops::RangeInclusive<u16> = 32_768..=60_999;

impl Default for Network {
    fn default() -> Self {
        Self {
            sockets: Slab::default(),
            ports: BTreeMap::new(),
            names: BTreeMap::new(),
            next_port: *EPHEMERAL.start(),
            services: Services::default(),
            outside: Outside::default(),
        }
    }
}

impl Kernel {
    /// Number of the socket behind a descriptor, and whether it blocks.
    pub(crate) fn socket_number(&self, fd: u64) -> Result<(u32, bool), Errno> {
        let file = self.files.get(fd).ok_or(EBADF)?;
        match file.kind {
            FileKind::Socket(number) => Ok((number, file.nonblocking())),
            _ => Err(ENOTSOCK),
        }
    }

    pub(crate) fn socket(&self, number: u32) -> Result<&Socket, Errno> {
        self.network.sockets.get(number).ok_or(EBADF)
    }

    pub(crate) fn socket_mut(&mut self, number: u32) -> Result<&mut Socket, Errno> {
        self.network.sockets.get_mut(number).ok_or(EBADF)
    }

    /// Wakes who waits for a socket.
    pub(crate) fn wake_socket(&mut self, number: u32) {
        self.wake_object(ObjectKey::Socket(number));
    }
}
