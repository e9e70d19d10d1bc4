//! Names and connections.

use std::collections::VecDeque;

use crate::{
    errno::{
        EADDRINUSE, EADDRNOTAVAIL, EAGAIN, ECONNREFUSED, EDESTADDRREQ, EINPROGRESS, EINVAL, EISCONN,
        ENETUNREACH, ENOTCONN, EOPNOTSUPP, EPROTOTYPE, Errno,
    },
    fs::{Last, MemoryKind as Kind, NodeType},
    io::ObjectKey,
    kernel::{Cx, Flow, Kernel, OnSignal, SysResult, Wait},
    net::{
        Domain, EPHEMERAL, Socket, SocketKind, SocketState,
        address::{ADDRESS_BYTES_MAX, Address, Host},
    },
    task::WaitKey,
};

/// Most connections that may wait to be accepted (`net.core.somaxconn`).
const BACKLOG_MAX: usize = 4096;

impl Kernel {
    /// Copies a socket address in.
    pub(crate) fn copy_in_address(
        &mut self,
        cx: &mut Cx<'_>,
        domain: Domain,
        at: u64,
        bytes: u64,
    ) -> Result<Address, Errno> {
        let bytes = u64::from(bytes as u32);
        if bytes > ADDRESS_BYTES_MAX {
            return Err(EINVAL);
        }
        let raw = self.copy_in_vec(cx, at, bytes as usize)?;
        Address::parse(domain, &raw)
    }

    /// Copies a socket address out, cut off at the room that the guest has for it; the full size is told.
    pub(crate) fn copy_out_address(
        &mut self,
        cx: &mut Cx<'_>,
        raw: &[u8],
        at: u64,
        bytes_at: u64,
    ) -> Result<(), Errno> {
        if at == 0 {
            return Ok(());
        }
        let room = self.copy_in_u32(cx, bytes_at)? as i32;
        if room < 0 {
            return Err(EINVAL);
        }
        let copied = raw.len().min(room as usize);
        self.copy_out(cx, at, &raw[..copied])?;
        self.copy_out(cx, bytes_at, &(raw.len() as u32).to_le_bytes())
    }

    /// Whether clients of the other internet family reach a socket: not those of an IPv6 one that says so.
    fn takes_both(socket: &Socket) -> bool {
        socket.domain != Domain::Inet6 || !socket.option_is_set(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY)
    }

    /// Gives a socket a port; zero asks for any.
    fn take_port(&mut self, number: u32, host: Host, port: u16) -> Result<(), Errno> {
        let kind = self.socket(number)?.kind;
        let port = if port == 0 { self.free_port(kind)? } else { port };
        if self.network.services.has_port(port) && kind == SocketKind::Stream {
            return Err(EADDRINUSE);
        }
        let shares = |socket: &Socket| {
            socket.option_is_set(libc::SOL_SOCKET, libc::SO_REUSEPORT)
                || socket.option_is_set(libc::SOL_SOCKET, libc::SO_REUSEADDR)
        };
        let me = self.socket(number)?;
        let (my_domain, i_share) = (me.domain, shares(me));
        let holders = self.network.ports.get(&(kind, port)).cloned().unwrap_or_default();
        for holder in holders {
            let Some(other) = self.network.sockets.get(holder) else {
                continue;
            };
            let listens = matches!(other.state, SocketState::Listening { .. });
            let apart = my_domain != other.domain
                && (!Self::takes_both(other) || self.socket(number).is_ok_and(|me| !Self::takes_both(me)));
            // `127.0.0.1` and `::1` are different hosts.
            let own = Host::Loopback;
            let both_own =
                host == own && matches!(other.local, Address::Inet { host: theirs, .. } if theirs == own);
            let apart = apart || my_domain != other.domain && both_own;
            let shared = i_share
                && shares(other)
                && (!listens || other.option_is_set(libc::SOL_SOCKET, libc::SO_REUSEPORT));
            if !shared && !apart {
                return Err(EADDRINUSE);
            }
        }
        self.network.ports.entry((kind, port)).or_default().push(number);
        self.socket_mut(number)?.local = Address::Inet { host, port };
        Ok(())
    }

    fn free_port(&mut self, kind: SocketKind) -> Result<u16, Errno> {
        for _ in EPHEMERAL {
            let port = self.network.next_port;
            self.network.next_port = if port == *EPHEMERAL.end() {
                *EPHEMERAL.start()
            } else {
                port + 1
            };
            if !self.network.ports.contains_key(&(kind, port)) && !self.network.services.has_port(port) {
                return Ok(port);
            }
        }
        Err(EADDRINUSE)
    }

    /// Gives an unnamed internet socket a port, as sending and connecting do.
    pub(crate) fn ensure_port(&mut self, number: u32) -> Result<(), Errno> {
        let socket = self.socket(number)?;
        if socket.domain.is_internet() && socket.local == Address::None {
            self.take_port(number, Host::Loopback, 0)?;
        }
        Ok(())
    }

    fn bind_unix(&mut self, cx: &mut Cx<'_>, number: u32, name: Vec<u8>) -> Result<(), Errno> {
        if self.network.names.contains_key(&name) {
            return Err(EADDRINUSE);
        }
        if name.first() != Some(&0) {
            let resolved = self.resolve_at(cx, libc::AT_FDCWD as u64, &name, Last::Keep)?;
            if resolved.node.is_some() {
                return Err(EADDRINUSE);
            }
            self.make_node(cx, &resolved, Kind::Socket, 0o777)?;
        }
        self.network.names.insert(name.clone(), number);
        self.socket_mut(number)?.local = Address::Unix(name);
        Ok(())
    }

    /// Who listens under an address, for a client of this kind.
    fn find_target(&self, cx: &Cx<'_>, client: &Socket, address: &Address) -> Result<u32, Errno> {
        match address {
            Address::None | Address::Netlink { .. } => Err(EINVAL),
            Address::Inet {
                host: Host::Elsewhere(_),
                ..
            } => Err(ENETUNREACH),
            Address::Inet { port: 0, .. } if client.kind == SocketKind::Datagram => Err(EINVAL),
            Address::Inet { port, .. } => {
                let holders = self
                    .network
                    .ports
                    .get(&(client.kind, *port))
                    .ok_or(ECONNREFUSED)?;
                let listening = |number: &&u32| {
                    self.network
                        .sockets
                        .get(**number)
                        .is_some_and(|socket| match socket.state {
                            SocketState::Listening { .. } => true,
                            SocketState::Idle
                            | SocketState::Connected(_)
                            | SocketState::Service(_)
                            | SocketState::Connecting(_)
                            | SocketState::Outside(_) => {
                                client.kind == SocketKind::Datagram && socket.hears(&client.local)
                            }
                        })
                };
                // One listener may have the port of each family. An IPv6 one gets IPv4's clients only if it takes both.
                let of_family = |number: &&u32| {
                    self.network
                        .sockets
                        .get(**number)
                        .is_some_and(|socket| socket.domain == client.domain)
                };
                let other_family =
                    |number: &&u32| self.network.sockets.get(**number).is_some_and(Self::takes_both);
                let found = holders.iter().filter(listening);
                found
                    .clone()
                    .find(of_family)
                    .or_else(|| found.clone().find(other_family))
                    .copied()
                    .ok_or(ECONNREFUSED)
            }
            Address::Unix(name) => {
                if name.first() != Some(&0) {
                    let node = self
                        .resolve_at(cx, libc::AT_FDCWD as u64, name, Last::Follow)?
                        .existing()?;
                    if self.vfs.node_type(node)? != NodeType::Socket {
                        return Err(ECONNREFUSED);
                    }
                }
                let target = *self.network.names.get(name).ok_or(ECONNREFUSED)?;
                let found = self.socket(target)?;
                if found.kind != client.kind {
                    // Abstract names are looked for among sockets of the same kind only.
                    let hidden = name.first() == Some(&0);
                    return Err(if hidden { ECONNREFUSED } else { EPROTOTYPE });
                }
                let listens = matches!(found.state, SocketState::Listening { .. });
                if client.kind != SocketKind::Datagram && !listens {
                    return Err(ECONNREFUSED);
                }
                Ok(target)
            }
        }
    }

    /// The socket that a datagram to an address goes to.
    pub(crate) fn datagram_target(&self, cx: &Cx<'_>, from: u32, address: &Address) -> Result<u32, Errno> {
        self.find_target(cx, self.socket(from)?, address)
    }

    fn connect(&mut self, cx: &mut Cx<'_>, number: u32, address: Address, nonblocking: bool) -> SysResult {
        let socket = self.socket(number)?;
        match &socket.state {
            SocketState::Listening { .. } => return Err(EINVAL),
            SocketState::Connecting(_) => return self.connecting(cx, number, nonblocking),
            // The call that began is made again now that it has come about.
            SocketState::Outside(_)
                if self
                    .thread(cx.slot)
                    .call
                    .as_ref()
                    .is_some_and(|call| call.progress == 1) =>
            {
                return Ok(Flow::Done(0));
            }
            SocketState::Connected(_) | SocketState::Service(_) | SocketState::Outside(_)
                if socket.kind != SocketKind::Datagram =>
            {
                return Err(EISCONN);
            }
            SocketState::Idle
            | SocketState::Connected(_)
            | SocketState::Service(_)
            | SocketState::Outside(_) => {}
        }
        if let Some(errno) = self.socket_mut(number)?.take_error() {
            return Err(errno);
        }
        let socket = self.socket(number)?;
        if socket.kind == SocketKind::Datagram {
            return self.connect_datagram(cx, number, address);
        }
        let internet = socket.domain.is_internet();
        if let Address::Inet {
            host: Host::Any | Host::Loopback,
            port,
        } = address
            && self.network.services.has_port(port)
        {
            self.ensure_port(number)?;
            let connection = self.network.services.open(number, port);
            let socket = self.socket_mut(number)?;
            socket.state = SocketState::Service(connection);
            socket.remote = Address::Inet {
                host: Host::Loopback,
                port,
            };
            return self.connected(number, internet && nonblocking);
        }
        if let Some(to) = self
            .destination(SocketKind::Stream, &address)
            .filter(|_| internet)
        {
            return self.connect_outside(cx, number, to, address, nonblocking);
        }
        let target = match self.find_target(cx, self.socket(number)?, &address) {
            // As over a network: the refusal comes after the call has returned.
            Err(ECONNREFUSED) if internet && nonblocking => {
                self.socket_mut(number)?.error = Some(ECONNREFUSED.number());
                self.wake_socket(number);
                return Err(EINPROGRESS);
            }
            target => target?,
        };
        if let SocketState::Listening { waiting, backlog } = &self.socket(target)?.state
            && waiting.len() > *backlog
        {
            if nonblocking {
                // A full queue looks like a handshake that takes its time; the client times out or tries again.
                return Err(if internet { EINPROGRESS } else { EAGAIN });
            }
            let wait = Wait::on(WaitKey::Object(ObjectKey::Socket(target)));
            return Ok(Flow::Wait(wait));
        }
        self.ensure_port(number)?;
        self.join(number, target)?;
        self.connected(number, internet && nonblocking)
    }

    /// Makes the other end of a connection and puts it in the listener's queue.
    fn join(&mut self, number: u32, target: u32) -> Result<(), Errno> {
        let listener = self.socket(target)?;
        let (domain, kind, local) = (listener.domain, listener.kind, listener.local.clone());
        let peer_credentials = Some(self.credentials());
        let (options, remote) = (listener.options.clone(), self.socket(number)?.local.clone());
        let seen = match &local {
            Address::Inet { port, .. } => Address::Inet {
                host: Host::Loopback,
                port: *port,
            },
            Address::None | Address::Unix(_) | Address::Netlink { .. } => local,
        };
        let peer = self.add_peer(Socket {
            state: SocketState::Connected(Some(number)),
            // The port belongs to the listener: the accepted end only shows it, also when its client is gone.
            local: seen.clone(),
            remote,
            options,
            peer_credentials,
            ..Socket::new(domain, kind)
        })?;
        let client = self.socket_mut(number)?;
        client.peer_credentials = peer_credentials;
        client.state = SocketState::Connected(Some(peer));
        client.remote = seen;
        if let SocketState::Listening { waiting, .. } = &mut self.socket_mut(target)?.state {
            waiting.push_back(peer);
        }
        self.wake_socket(target);
        Ok(())
    }

    fn connected(&mut self, number: u32, in_progress: bool) -> SysResult {
        self.wake_socket(number);
        if in_progress {
            Err(EINPROGRESS)
        } else {
            Ok(Flow::Done(0))
        }
    }

    fn connect_datagram(&mut self, cx: &mut Cx<'_>, number: u32, address: Address) -> SysResult {
        match &address {
            Address::Inet {
                host: Host::Elsewhere(_),
                ..
            } if !self.has_way_out() => return Err(ENETUNREACH),
            Address::Inet { .. } => {
                self.ensure_port(number)?;
                let socket = self.socket_mut(number)?;
                socket.state = SocketState::Connected(None);
            }
            Address::Unix(_) => {
                let target = self.datagram_target(cx, number, &address)?;
                self.socket_mut(number)?.state = SocketState::Connected(Some(target));
            }
            // All messages are the kernel's anyway.
            Address::Netlink { .. } => self.socket_mut(number)?.state = SocketState::Connected(None),
            Address::None => self.socket_mut(number)?.state = SocketState::Idle,
        }
        self.socket_mut(number)?.remote = address;
        Ok(Flow::Done(0))
    }
}

pub(crate) fn sys_bind(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let (number, _) = k.socket_number(args[0])?;
    let domain = k.socket(number)?.domain;
    let address = k.copy_in_address(cx, domain, args[1], args[2])?;
    if k.socket(number)?.local != Address::None {
        return Err(EINVAL);
    }
    match address {
        Address::Inet {
            host: Host::Elsewhere(_),
            ..
        } => return Err(EADDRNOTAVAIL),
        Address::Inet { host, port } => k.take_port(number, host, port)?,
        Address::Unix(name) => k.bind_unix(cx, number, name)?,
        Address::Netlink { port } => k.bind_netlink(number, port)?,
        Address::None => {
            // The kernel chooses an abstract name.
            let name = format!("\0{number:05x}").into_bytes();
            k.bind_unix(cx, number, name)?;
        }
    }
    Ok(Flow::Done(0))
}

pub(crate) fn sys_listen(k: &mut Kernel, _cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let (number, _) = k.socket_number(args[0])?;
    let socket = k.socket(number)?;
    if socket.kind == SocketKind::Datagram {
        return Err(EOPNOTSUPP);
    }
    if socket.domain == Domain::Unix && socket.local == Address::None {
        return Err(EINVAL);
    }
    k.ensure_port(number)?;
    let credentials = k.credentials();
    k.socket_mut(number)?.peer_credentials = Some(credentials);
    let backlog = (args[1] as i32).max(0) as usize;
    let backlog = backlog.min(BACKLOG_MAX);
    match &mut k.socket_mut(number)?.state {
        SocketState::Listening { backlog: current, .. } => *current = backlog,
        state @ SocketState::Idle => {
            *state = SocketState::Listening {
                waiting: VecDeque::new(),
                backlog,
            }
        }
        SocketState::Connected(_)
        | SocketState::Service(_)
        | SocketState::Connecting(_)
        | SocketState::Outside(_) => return Err(EINVAL),
    }
    Ok(Flow::Done(0))
}

pub(crate) fn sys_connect(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let (number, nonblocking) = k.socket_number(args[0])?;
    let domain = k.socket(number)?.domain;
    let unspecified = args[2] >= 2 && k.copy_in_array::<2>(cx, args[1])? == [0, 0];
    if unspecified {
        // AF_UNSPEC dissolves a datagram socket's association.
        let socket = k.socket_mut(number)?;
        if socket.kind != SocketKind::Datagram {
            return Err(EOPNOTSUPP);
        }
        (socket.state, socket.remote) = (SocketState::Idle, Address::None);
        return Ok(Flow::Done(0));
    }
    let address = k.copy_in_address(cx, domain, args[1], args[2])?;
    k.connect(cx, number, address, nonblocking)
}

fn accept(k: &mut Kernel, cx: &mut Cx<'_>, fd: u64, address: u64, bytes: u64, flags: i32) -> SysResult {
    if flags & !(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC) != 0 {
        return Err(EINVAL);
    }
    let (number, nonblocking) = k.socket_number(fd)?;
    let socket = k.socket(number)?;
    if socket.kind == SocketKind::Datagram {
        return Err(EOPNOTSUPP);
    }
    let timeout_ns = socket.receive_timeout_ns;
    let SocketState::Listening { waiting, .. } = &socket.state else {
        return Err(EINVAL);
    };
    let Some(peer) = waiting.front().copied() else {
        if nonblocking || k.timed_out(cx.slot) {
            return Err(EAGAIN);
        }
        let deadline_ns = (timeout_ns > 0).then(|| k.deadline(cx, timeout_ns));
        let keys = vec![WaitKey::Object(ObjectKey::Socket(number))];
        return Ok(Flow::Wait(Wait {
            keys,
            deadline_ns,
            on_signal: OnSignal::Restart,
        }));
    };
    k.files.has_room()?;
    let accepted = k.socket(peer)?;
    let raw = accepted.remote.to_bytes(accepted.domain);
    k.copy_out_address(cx, &raw, address, bytes)?;
    if let SocketState::Listening { waiting, .. } = &mut k.socket_mut(number)?.state {
        waiting.pop_front();
    }
    // A client that waits for room in the queue tries again.
    k.wake_socket(number);
    k.install_socket(peer, flags).map(Flow::Done)
}

pub(crate) fn sys_accept(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    accept(k, cx, args[0], args[1], args[2], 0)
}

pub(crate) fn sys_accept4(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    accept(k, cx, args[0], args[1], args[2], args[3] as i32)
}

pub(crate) fn sys_getsockname(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let (number, _) = k.socket_number(args[0])?;
    let socket = k.socket(number)?;
    let raw = socket.local.to_bytes(socket.domain);
    k.copy_out_address(cx, &raw, args[1], args[2])?;
    Ok(Flow::Done(0))
}

pub(crate) fn sys_getpeername(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let (number, _) = k.socket_number(args[0])?;
    let socket = k.socket(number)?;
    match socket.state {
        SocketState::Connected(_) if socket.has_left_peer() => return Err(ENOTCONN),
        SocketState::Connected(_) | SocketState::Service(_) | SocketState::Outside(_) => {}
        SocketState::Idle | SocketState::Listening { .. } | SocketState::Connecting(_) => {
            return Err(ENOTCONN);
        }
    }
    let raw = socket.remote.to_bytes(socket.domain);
    k.copy_out_address(cx, &raw, args[1], args[2])?;
    Ok(Flow::Done(0))
}

pub(crate) fn sys_shutdown(k: &mut Kernel, _cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let (number, _) = k.socket_number(args[0])?;
    let how = args[1] as i32;
    let (reading, writing) = match how {
        libc::SHUT_RD => (true, false),
        libc::SHUT_WR => (false, true),
        libc::SHUT_RDWR => (true, true),
        _ => return Err(EINVAL),
    };
    let socket = k.socket_mut(number)?;
    let peer = match socket.state {
        SocketState::Connected(peer) => peer,
        SocketState::Service(connection) => {
            if writing {
                k.network.services.guest_finished(connection);
            }
            None
        }
        SocketState::Outside(connection) => {
            if writing {
                k.guest_left_outside(connection, false, false);
            }
            None
        }
        SocketState::Idle | SocketState::Listening { .. } | SocketState::Connecting(_) => {
            return Err(ENOTCONN);
        }
    };
    let socket = k.socket_mut(number)?;
    socket.read_shut |= reading;
    socket.write_shut |= writing;
    let kind = socket.kind;
    if let Some(peer) = peer.filter(|_| kind != SocketKind::Datagram) {
        let other = k.socket_mut(peer)?;
        other.read_shut |= writing;
        // What nobody will read need not be sent; over a network the sender would not know.
        other.write_shut |= reading && other.domain == Domain::Unix;
        k.wake_socket(peer);
    }
    k.wake_socket(number);
    Ok(Flow::Done(0))
}

/// A send without an address on a socket that is not connected.
pub(crate) fn no_destination(kind: SocketKind) -> Errno {
    if kind == SocketKind::Datagram {
        EDESTADDRREQ
    } else {
        ENOTCONN
    }
}
