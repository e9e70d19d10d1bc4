//! How sockets begin and end.
//!
//! ```text
//!   socket ──> Idle ──> Listening ──> (closed; who waits to be accepted with it)
//!                └────> Connected(peer) <──> Connected(peer) <── socketpair, accept
//!                            └── the peer is closed ──> Connected(None) ──> (closed)
//! ```

use std::collections::VecDeque;

use crate::{
    abi::u32_at,
    errno::{
        EAFNOSUPPORT, EINVAL, ENFILE, EOPNOTSUPP, EPROTONOSUPPORT, ESOCKTNOSUPPORT, ETOOMANYREFS, Errno,
    },
    fs::{FileKind, OpenFile},
    kernel::{Cx, Flow, Kernel, SysResult},
    net::{Domain, Socket, SocketKind, SocketState, address::Address},
};

/// Most open files in messages that nobody has received yet.
const FILES_IN_FLIGHT_MAX: usize = 1024;
/// Most sockets, the peers of closed ones included.
const SOCKETS_MAX: usize = 4096;

impl Socket {
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
}

impl Kernel {
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
            SocketState::Listening { waiting, .. } => self.refuse_waiting(waiting),
        }
    }

    /// Closes what waits to be accepted; over a network their clients are told that the connection is broken.
    pub(crate) fn refuse_waiting(&mut self, waiting: VecDeque<u32>) {
        for pending in waiting {
            let client = match self.network.sockets.get(pending) {
                Some(Socket {
                    domain,
                    state: SocketState::Connected(Some(client)),
                    ..
                }) if domain.is_internet() => Some(*client),
                Some(_) | None => None,
            };
            self.close_socket(pending);
            if let Some(client) = client.and_then(|client| self.network.sockets.get_mut(client)) {
                client.error = Some(libc::ECONNRESET);
                client.write_shut = true;
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
            return Err(ENFILE);
        }
        Ok(self.network.sockets.insert(socket))
    }

    /// The other end of a new connection to a listening socket or of a pair.
    pub(crate) fn add_peer(&mut self, socket: Socket) -> Result<u32, Errno> {
        self.add_socket(socket)
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
