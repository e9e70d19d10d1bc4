//! Socket records: making, naming and closing them.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use crate::{
    errno::{EAFNOSUPPORT, EBADF, EINVAL, ENOTSOCK, EOPNOTSUPP, EPROTONOSUPPORT, ESOCKTNOSUPPORT, Errno},
    fs::{FileKind, OpenFile},
    io::{Buffer, ObjectKey},
    kernel::{Cx, Flow, Kernel, SysResult},
    net::{address::Address, service::Services},
    slab::Slab,
};

/// Bytes that a stream socket holds for its reader.
pub(crate) const STREAM_BYTES: usize = 256 << 10;
/// Datagrams that a socket holds.
pub(crate) const DATAGRAMS_MAX: usize = 256;
/// Most sockets, the peers of closed ones included.
const SOCKETS_MAX: usize = 4096;

/// Address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Domain {
    /// `AF_INET`
    Inet4,
    /// `AF_INET6`
    Inet6,
    /// `AF_UNIX`
    Unix,
}

impl Domain {
    pub(crate) fn number(self) -> i32 {
        match self {
            Self::Inet4 => libc::AF_INET,
            Self::Inet6 => libc::AF_INET6,
            Self::Unix => libc::AF_UNIX,
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
}

/// A message.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Datagram {
    pub(crate) from: Address,
    pub(crate) data: Vec<u8>,
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
    pub(crate) datagrams: VecDeque<Datagram>,
    /// No more comes: the peer has shut its writing half down, or this one its reading half.
    pub(crate) read_shut: bool,
    pub(crate) write_shut: bool,
    /// Told once, by `SO_ERROR` or the next call.
    pub(crate) error: Option<Errno_>,
    /// Options that have been set, as they were set.
    pub(crate) options: BTreeMap<(i32, i32), Vec<u8>>,
    /// Time-outs in nanoseconds; zero is none.
    pub(crate) receive_timeout_ns: u64,
    pub(crate) send_timeout_ns: u64,
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
            datagrams: VecDeque::new(),
            read_shut: false,
            write_shut: false,
            error: None,
            options: BTreeMap::new(),
            receive_timeout_ns: 0,
            send_timeout_ns: 0,
        }
    }

    /// Room for a sender's bytes.
    pub(crate) fn room(&self) -> usize {
        if self.kind.keeps_messages() {
            if self.datagrams.len() < DATAGRAMS_MAX {
                STREAM_BYTES
            } else {
                0
            }
        } else {
            STREAM_BYTES.saturating_sub(self.received.len())
        }
    }

    /// Whether a reader finds something.
    pub(crate) fn has_data(&self) -> bool {
        !self.received.is_empty() || !self.datagrams.is_empty()
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

    /// Opens a descriptor for a socket.
    pub(crate) fn install_socket(&mut self, number: u32, flags: i32) -> Result<u64, Errno> {
        let nonblock = if flags & libc::SOCK_NONBLOCK != 0 {
            libc::O_NONBLOCK
        } else {
            0
        };
        let file = OpenFile::new(FileKind::Socket(number), libc::O_RDWR | nonblock);
        self.install(file, flags & libc::SOCK_CLOEXEC != 0)
    }

    /// The last descriptor of a socket is gone.
    pub(crate) fn close_socket(&mut self, number: u32) {
        let Some(socket) = self.network.sockets.remove(number) else {
            return;
        };
        self.release_name(number, &socket);
        match socket.state {
            SocketState::Idle | SocketState::Connected(None) => {}
            SocketState::Connected(Some(peer)) => {
                if let Some(peer_socket) = self.network.sockets.get_mut(peer) {
                    if socket.kind == SocketKind::Datagram {
                        peer_socket.state = SocketState::Connected(None);
                    } else {
                        peer_socket.state = SocketState::Connected(None);
                        peer_socket.read_shut = true;
                        // Unread data makes the close a reset.
                        if socket.domain != Domain::Unix && !socket.received.is_empty() {
                            peer_socket.error = Some(libc::ECONNRESET);
                        }
                    }
                    self.wake_socket(peer);
                }
            }
            SocketState::Service(connection) => self.network.services.guest_closed(connection),
            SocketState::Listening { waiting, .. } => {
                for pending in waiting {
                    self.close_socket(pending);
                }
            }
        }
    }

    fn release_name(&mut self, number: u32, socket: &Socket) {
        match &socket.local {
            Address::Inet { port, .. } => {
                let key = (socket.kind, *port);
                if let Some(holders) = self.network.ports.get_mut(&key) {
                    holders.retain(|holder| *holder != number);
                    if holders.is_empty() {
                        self.network.ports.remove(&key);
                    }
                }
            }
            Address::Unix(name) => {
                if self.network.names.get(name) == Some(&number) {
                    self.network.names.remove(name);
                }
            }
            Address::None => {}
        }
    }

    /// Poll bits of a socket.
    pub(crate) fn socket_readiness(&self, number: u32) -> u32 {
        use crate::io::readiness::{ERR, HUP, IN, OUT, RDHUP};
        let Some(socket) = self.network.sockets.get(number) else {
            return HUP;
        };
        let mut bits = if socket.error.is_some() { ERR | IN | OUT } else { 0 };
        if socket.has_data() || socket.read_shut {
            bits |= IN;
        }
        match &socket.state {
            SocketState::Listening { waiting, .. } => return if waiting.is_empty() { 0 } else { IN },
            SocketState::Idle if socket.kind == SocketKind::Datagram => bits |= OUT,
            SocketState::Idle => bits |= OUT | HUP,
            SocketState::Service(_) => bits |= OUT,
            SocketState::Connected(peer) => {
                if peer
                    .and_then(|peer| self.network.sockets.get(peer))
                    .is_none_or(|peer| peer.room() > STREAM_BYTES / 4)
                {
                    bits |= OUT;
                }
            }
        }
        if socket.read_shut {
            bits |= RDHUP;
            if socket.write_shut
                || matches!(socket.state, SocketState::Connected(None)) && socket.domain == Domain::Unix
            {
                bits |= HUP;
            }
        }
        bits
    }

    /// Bytes that a read would give at once.
    pub(crate) fn socket_readable_bytes(&self, number: u32) -> Result<u64, Errno> {
        let socket = self.socket(number)?;
        if let SocketState::Listening { .. } = socket.state {
            return Err(EINVAL);
        }
        let first = socket.datagrams.front().map_or(0, |datagram| datagram.data.len());
        Ok((socket.received.len() + first) as u64)
    }
}

/// Domain, kind and flags of a new socket.
fn parse_kind(domain: u64, kind: u64, protocol: u64) -> Result<(Domain, SocketKind, i32), Errno> {
    let domain = match domain as i32 {
        libc::AF_INET => Domain::Inet4,
        libc::AF_INET6 => Domain::Inet6,
        libc::AF_UNIX => Domain::Unix,
        _ => return Err(EAFNOSUPPORT),
    };
    let kind = kind as i32;
    let flags = kind & (libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC);
    let kind = match kind & !flags {
        libc::SOCK_STREAM => SocketKind::Stream,
        libc::SOCK_DGRAM => SocketKind::Datagram,
        libc::SOCK_SEQPACKET if domain == Domain::Unix => SocketKind::Sequenced,
        libc::SOCK_RAW | libc::SOCK_SEQPACKET | libc::SOCK_RDM => return Err(ESOCKTNOSUPPORT),
        _ => return Err(EINVAL),
    };
    let known = match (domain, kind, protocol as i32) {
        (_, _, 0) => true,
        (Domain::Unix, ..) => false,
        (_, SocketKind::Stream, protocol) => protocol == libc::IPPROTO_TCP,
        (_, SocketKind::Datagram | SocketKind::Sequenced, protocol) => protocol == libc::IPPROTO_UDP,
    };
    if known {
        Ok((domain, kind, flags))
    } else {
        Err(EPROTONOSUPPORT)
    }
}

impl Kernel {
    fn add_socket(&mut self, socket: Socket) -> Result<u32, Errno> {
        if self.network.sockets.len() >= SOCKETS_MAX {
            return Err(crate::errno::ENFILE);
        }
        Ok(self.network.sockets.insert(socket))
    }

    /// The other end of a new connection to a listening socket or of a pair.
    pub(crate) fn add_peer(&mut self, socket: Socket) -> Result<u32, Errno> {
        self.add_socket(socket)
    }
}

pub(crate) fn sys_socket(k: &mut Kernel, _cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let (domain, kind, flags) = parse_kind(args[0], args[1], args[2])?;
    k.files.has_room()?;
    let number = k.add_socket(Socket::new(domain, kind))?;
    k.install_socket(number, flags).map(Flow::Done)
}

pub(crate) fn sys_socketpair(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let (domain, kind, flags) = parse_kind(args[0], args[1], args[2])?;
    if domain != Domain::Unix {
        return Err(EOPNOTSUPP);
    }
    let first = k.add_socket(Socket::new(domain, kind))?;
    let second = match k.add_socket(Socket {
        state: SocketState::Connected(Some(first)),
        ..Socket::new(domain, kind)
    }) {
        Ok(second) => second,
        Err(errno) => {
            k.network.sockets.remove(first);
            return Err(errno);
        }
    };
    k.socket_mut(first)?.state = SocketState::Connected(Some(second));
    let one = match k.install_socket(first, flags) {
        Ok(fd) => fd,
        Err(errno) => {
            k.close_socket(first);
            k.close_socket(second);
            return Err(errno);
        }
    };
    let other = match k.install_socket(second, flags) {
        Ok(fd) => fd,
        Err(errno) => {
            k.close(one)?;
            k.close_socket(second);
            return Err(errno);
        }
    };
    let pair = one | other << 32;
    if let Err(errno) = k.copy_out(cx, args[3], &pair.to_le_bytes()) {
        k.close(one)?;
        k.close(other)?;
        return Err(errno);
    }
    Ok(Flow::Done(0))
}
