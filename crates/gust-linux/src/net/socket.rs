//! Socket records: making, naming and closing them.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use crate::{
    abi::u32_at,
    errno::{
        EAFNOSUPPORT, EBADF, EINVAL, ENOTSOCK, EOPNOTSUPP, EPROTONOSUPPORT, ESOCKTNOSUPPORT, ETOOMANYREFS,
        Errno,
    },
    fs::{FileKind, OpenFile},
    io::{Buffer, ObjectKey},
    kernel::{Cx, Flow, Kernel, SysResult},
    net::{
        address::Address,
        ancillary::{Ancillary, Credentials, Mark},
        outside::Outside,
        service::Services,
    },
    slab::Slab,
};

/// Bytes that a stream socket holds for its reader.
pub(crate) const STREAM_BYTES: usize = 256 << 10;
/// Datagrams that a socket holds.
pub(crate) const DATAGRAMS_MAX: usize = 256;
/// Changes of sender or files among the bytes that a stream socket holds.
const MARKS_MAX: usize = 1024;
/// Most open files in messages that nobody has received yet.
const FILES_IN_FLIGHT_MAX: usize = 1024;
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
            datagrams_out: None,
        }
    }

    pub(crate) fn option_is_set(&self, level: i32, name: i32) -> bool {
        self.options
            .get(&(level, name))
            .is_some_and(|value| value.iter().any(|byte| *byte != 0))
    }

    /// What it may have under way, in bytes: what `SO_SNDBUF` says.
    pub(crate) fn send_bytes_max(&self) -> usize {
        self.options
            .get(&(libc::SOL_SOCKET, libc::SO_SNDBUF))
            .map_or(STREAM_BYTES, |raw| {
                buffer_bytes(libc::SO_SNDBUF, u32_at(raw, 0) as i32) as usize
            })
    }

    /// Room for bytes of `sender`, by its number.
    pub(crate) fn room_for(&self, number: u32, sender: &Self) -> usize {
        let limit = sender.send_bytes_max();
        if self.kind.keeps_messages() {
            // As long as a sender has not used its buffer up, one more message may go over it.
            let under_way: usize = self
                .datagrams
                .iter()
                .filter(|datagram| datagram.sender == number)
                .map(|datagram| datagram.data.len().max(1))
                .sum();
            return if self.datagrams.len() < DATAGRAMS_MAX && under_way < limit {
                limit
            } else {
                0
            };
        }
        if self.marks.len() >= MARKS_MAX {
            return 0;
        }
        let limit = if self.domain == Domain::Unix {
            limit
        } else {
            // Over a network what is under way lies partly with the sender and partly with the receiver.
            STREAM_BYTES.min(limit + self.receive_bytes_max())
        };
        limit.saturating_sub(self.received.len())
    }

    /// What it may hold for its reader, in bytes: what `SO_RCVBUF` says.
    fn receive_bytes_max(&self) -> usize {
        self.options
            .get(&(libc::SOL_SOCKET, libc::SO_RCVBUF))
            .map_or(STREAM_BYTES / 2, |raw| {
                buffer_bytes(libc::SO_RCVBUF, u32_at(raw, 0) as i32) as usize
            })
    }

    /// Whether closing it tells its peer that the connection is broken, instead of that no more comes: over a network
    /// also when it was asked not to linger at all.
    fn breaks_when_closed(&self) -> bool {
        let lingers = self.options.get(&(libc::SOL_SOCKET, libc::SO_LINGER));
        let breaks = lingers.is_some_and(|raw| u32_at(raw, 0) != 0 && u32_at(raw, 4) == 0);
        self.has_data() || breaks && self.domain != Domain::Unix
    }

    /// Its peer is gone.
    fn lose_peer(&mut self, gone: &Self) {
        self.state = SocketState::Connected(None);
        if gone.kind == SocketKind::Datagram {
            return;
        }
        self.read_shut = true;
        self.write_shut |= gone.domain == Domain::Unix;
        if gone.breaks_when_closed() {
            // Who has heard already that no more comes is told so when it goes on sending.
            let finished = gone.domain != Domain::Unix && gone.write_shut;
            self.error = Some(if finished { libc::EPIPE } else { libc::ECONNRESET });
            self.write_shut = true;
        }
    }

    /// Whether nothing is left of the connection of an internet stream: it has no peer any more, not even by name.
    pub(crate) fn has_left_peer(&self) -> bool {
        self.domain != Domain::Unix
            && self.kind == SocketKind::Stream
            && self.state == SocketState::Connected(None)
            && self.read_shut
            && self.write_shut
    }

    /// Adds bytes, and what they were sent with if that is told for this kind of socket.
    pub(crate) fn push(&mut self, data: &[u8], ancillary: Ancillary) {
        self.received.push(data);
        if self.domain != Domain::Unix {
            return;
        }
        match self.marks.back_mut() {
            // Bytes behind files are not read together with them, so they need a mark of their own.
            Some(last)
                if last.ancillary.files.is_empty()
                    && ancillary.files.is_empty()
                    && last.ancillary.credentials == ancillary.credentials =>
            {
                last.bytes += data.len();
            }
            Some(_) | None => self.marks.push_back(Mark {
                bytes: data.len(),
                ancillary,
            }),
        }
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
        self.release_files(socket.waiting_files().collect());
        if let Some(connection) = socket.datagrams_out {
            self.guest_left_outside(connection, true, false);
        }
        match socket.state {
            SocketState::Idle | SocketState::Connected(None) => {}
            SocketState::Connected(Some(peer)) => {
                if let Some(peer_socket) = self.network.sockets.get_mut(peer) {
                    peer_socket.lose_peer(&socket);
                    self.wake_socket(peer);
                }
            }
            SocketState::Service(connection) => self.network.services.guest_closed(connection),
            SocketState::Connecting(connection) => self.guest_left_outside(connection, true, true),
            SocketState::Outside(connection) => self.guest_left_outside(connection, true, false),
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
            Address::None | Address::Netlink { .. } => {}
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
            SocketState::Connecting(_) => return bits,
            SocketState::Outside(connection) => {
                if self
                    .outside_send_room(*connection)
                    .is_none_or(|room| room > STREAM_BYTES / 4)
                {
                    bits |= OUT;
                }
            }
            SocketState::Connected(peer) => {
                if peer
                    .and_then(|peer| self.network.sockets.get(peer))
                    .is_none_or(|peer| peer.room_for(number, socket) > socket.send_bytes_max() / 4)
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
        libc::AF_NETLINK => Domain::Netlink,
        _ => return Err(EAFNOSUPPORT),
    };
    let kind = kind as i32;
    let flags = kind & (libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC);
    let kind = match kind & !flags {
        libc::SOCK_STREAM | libc::SOCK_SEQPACKET if domain == Domain::Netlink => return Err(ESOCKTNOSUPPORT),
        libc::SOCK_STREAM => SocketKind::Stream,
        libc::SOCK_DGRAM => SocketKind::Datagram,
        // There is nothing below a UNIX or a netlink socket to be raw.
        libc::SOCK_RAW if !domain.is_internet() => SocketKind::Datagram,
        libc::SOCK_SEQPACKET if domain == Domain::Unix => SocketKind::Sequenced,
        libc::SOCK_RAW | libc::SOCK_SEQPACKET | libc::SOCK_RDM => return Err(ESOCKTNOSUPPORT),
        _ => return Err(EINVAL),
    };
    let known = match (domain, kind, protocol as i32) {
        // Of netlink it is `NETLINK_ROUTE`.
        (_, _, 0) => true,
        (Domain::Netlink, ..) => false,
        (Domain::Unix, _, protocol) => protocol == libc::PF_UNIX,
        (_, SocketKind::Stream, protocol) => protocol == libc::IPPROTO_TCP,
        (_, SocketKind::Datagram | SocketKind::Sequenced, protocol) => {
            [libc::IPPROTO_UDP, libc::IPPROTO_UDPLITE].contains(&protocol)
        }
    };
    if known {
        Ok((domain, kind, flags))
    } else {
        Err(EPROTONOSUPPORT)
    }
}

/// What a buffer's size becomes: Linux doubles what was asked for, to pay for its own records.
pub(crate) fn buffer_bytes(name: i32, asked: i32) -> i32 {
    /// `net.core.wmem_max` and `net.core.rmem_max`.
    const ASKED_MAX: i32 = 212_992;
    let least = if name == libc::SO_SNDBUF { 4608 } else { 2304 };
    (asked.clamp(0, ASKED_MAX) * 2).max(least)
}

impl Kernel {
    /// Whether so many more files may travel in messages.
    pub(crate) fn may_send_files(&self, files: usize) -> Result<(), Errno> {
        if files == 0 {
            return Ok(());
        }
        let under_way: usize = self
            .network
            .sockets
            .iter()
            .map(|(_, socket)| socket.waiting_files().count())
            .sum();
        if under_way + files > FILES_IN_FLIGHT_MAX {
            Err(ETOOMANYREFS)
        } else {
            Ok(())
        }
    }

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
    let mut socket = Socket::new(domain, kind);
    if args[2] as i32 == libc::IPPROTO_UDPLITE {
        // UDP whose checksum may leave a part of the data out; nothing is damaged on the way here.
        let protocol = libc::IPPROTO_UDPLITE.to_le_bytes().to_vec();
        socket
            .options
            .insert((libc::SOL_SOCKET, libc::SO_PROTOCOL), protocol);
    }
    let number = k.add_socket(socket)?;
    k.install_socket(number, flags).map(Flow::Done)
}

pub(crate) fn sys_socketpair(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let (domain, kind, flags) = parse_kind(args[0], args[1], args[2])?;
    if domain != Domain::Unix {
        return Err(EOPNOTSUPP);
    }
    let peer_credentials = Some(k.credentials());
    let first = k.add_socket(Socket {
        peer_credentials,
        ..Socket::new(domain, kind)
    })?;
    let second = match k.add_socket(Socket {
        state: SocketState::Connected(Some(first)),
        peer_credentials,
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
