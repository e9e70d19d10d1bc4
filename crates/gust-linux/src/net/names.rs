//! Names of sockets: who has which port or path, and who is found there.

use crate::{
    errno::{EADDRINUSE, EADDRNOTAVAIL, ECONNREFUSED, EINVAL, ENETUNREACH, ENOTCONN, EPROTOTYPE, Errno},
    fs::{Last, MemoryKind as Kind, NodeType},
    kernel::{Cx, Flow, Kernel, SysResult},
    net::{
        Domain, EPHEMERAL, Socket, SocketKind, SocketState,
        address::{ADDRESS_BYTES_MAX, Address, Host},
    },
};

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
    pub(crate) fn find_target(&self, cx: &Cx<'_>, client: &Socket, address: &Address) -> Result<u32, Errno> {
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
