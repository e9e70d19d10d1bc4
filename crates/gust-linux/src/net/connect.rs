//! Connections. Names are in `names`.

use std::collections::VecDeque;

use crate::{
    errno::{
        EAGAIN, ECONNABORTED, ECONNREFUSED, EDESTADDRREQ, EINPROGRESS, EINVAL, EISCONN, ENETUNREACH,
        ENOTCONN, EOPNOTSUPP, Errno,
    },
    io::ObjectKey,
    kernel::{Cx, Flow, Kernel, OnSignal, SysResult, Wait},
    net::{
        Domain, Socket, SocketKind, SocketState,
        address::{Address, Host},
    },
    task::WaitKey,
};

/// Most connections that may wait to be accepted (`net.core.somaxconn`).
const BACKLOG_MAX: usize = 4096;

impl Kernel {
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
        let socket = self.socket_mut(number)?;
        // A connection that was refused is over with this: the next call begins another.
        let was_refused = internet_stream(socket) && std::mem::take(&mut socket.read_shut);
        if let Some(errno) = socket.take_error() {
            return Err(errno);
        }
        if was_refused {
            return Err(ECONNABORTED);
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
                let socket = self.socket_mut(number)?;
                socket.error = Some(ECONNREFUSED.number());
                // Whoever has been told reads the end of it.
                socket.read_shut = true;
                self.wake_socket(number);
                return Err(EINPROGRESS);
            }
            target => target?,
        };
        let listener = self.socket(target)?;
        if listener.read_shut && listener.domain == Domain::Unix {
            return Err(ECONNREFUSED);
        }
        if let SocketState::Listening { waiting, backlog } = &listener.state
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

    /// A listener is one no more, though its name stays taken: who waits to accept is told so, and who waits to be accepted is
    /// refused.
    fn stop_listening(&mut self, number: u32) -> Result<(), Errno> {
        let state = std::mem::replace(&mut self.socket_mut(number)?.state, SocketState::Idle);
        if let SocketState::Listening { waiting, .. } = state {
            self.refuse_waiting(waiting);
        }
        self.wake_socket(number);
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
    let (timeout_ns, is_shut) = (socket.receive_timeout_ns, socket.read_shut);
    let SocketState::Listening { waiting, .. } = &socket.state else {
        return Err(EINVAL);
    };
    let Some(peer) = waiting.front().copied() else {
        if is_shut {
            return Err(EINVAL);
        }
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
        SocketState::Idle if socket.domain == Domain::Unix => None,
        SocketState::Idle => return Err(ENOTCONN),
        // Who waits to be accepted still is, but nobody comes any more.
        SocketState::Listening { .. } if socket.domain == Domain::Unix => None,
        SocketState::Listening { .. } => {
            if reading {
                k.stop_listening(number)?;
            }
            return Ok(Flow::Done(0));
        }
        SocketState::Connecting(connection) => {
            socket.state = SocketState::Idle;
            k.guest_left_outside(connection, true, true);
            k.wake_socket(number);
            return Ok(Flow::Done(0));
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

fn internet_stream(socket: &Socket) -> bool {
    socket.kind == SocketKind::Stream && socket.domain.is_internet()
}

/// A send without an address on a socket that is not connected.
pub(crate) fn no_destination(kind: SocketKind) -> Errno {
    if kind == SocketKind::Datagram {
        EDESTADDRREQ
    } else {
        ENOTCONN
    }
}
