//! Moving messages: datagram and sequenced-packet sockets.

use crate::{
    errno::{EAGAIN, ECONNREFUSED, EISCONN, EMSGSIZE, ENOTCONN, EOPNOTSUPP, EPIPE, Errno},
    kernel::{Cx, Flow, Kernel, SysResult},
    net::{
        DATAGRAMS_MAX, Datagram, Domain, SocketKind, SocketState,
        address::Address,
        ancillary::{Ancillary, Taken},
        connect::no_destination,
        outside::Destination,
        stream::Manner,
    },
    user::{UserSlice, total},
};

/// Largest datagram of an internet socket.
const DATAGRAM_BYTES_MAX: usize = 65_507;

/// A message that has been received: its sender and its full size.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) from: Address,
    pub(crate) copied: u64,
    pub(crate) full: u64,
    pub(crate) taken: Taken,
}

/// Where a message goes.
enum Target {
    Socket(u32),
    Outside(Destination),
    /// No one has the port.
    NoOne,
}

impl Kernel {
    /// Sends one message whole.
    pub(crate) fn send_message(
        &mut self,
        cx: &mut Cx<'_>,
        number: u32,
        to: Option<Address>,
        data: Vec<u8>,
        mut ancillary: Ancillary,
    ) -> Result<u64, Errno> {
        /// What a message costs beside its bytes.
        const RECORD_BYTES: usize = 32;
        let socket = self.socket(number)?;
        let limit = if socket.domain == Domain::Unix {
            socket.send_bytes_max() - RECORD_BYTES
        } else {
            DATAGRAM_BYTES_MAX
        };
        if data.len() > limit {
            return Err(EMSGSIZE);
        }
        if socket.domain == Domain::Netlink {
            return self.ask_netlink(number, &data);
        }
        if socket.write_shut {
            return Err(EPIPE);
        }
        let sent = data.len() as u64;
        let target = self.message_target(cx, number, to)?;
        let from = self.socket(number)?.local.clone();
        let target = match target {
            Target::Socket(target) => target,
            Target::Outside(to) => return self.send_outside(number, to, data),
            Target::NoOne => {
                // Nobody has the port: the sender learns it at its next call, as from an ICMP message.
                let socket = self.socket_mut(number)?;
                if matches!(socket.state, SocketState::Connected(_)) {
                    socket.error = Some(ECONNREFUSED.number());
                    self.wake_socket(number);
                }
                return Ok(sent);
            }
        };
        let receiver = self.socket(target)?;
        let unix = receiver.domain == Domain::Unix;
        if receiver.datagrams.len() >= DATAGRAMS_MAX
            || unix && receiver.room_for(number, self.socket(number)?) == 0
        {
            // UNIX senders wait; internet datagrams are dropped.
            return if unix && !receiver.read_shut {
                Err(EAGAIN)
            } else {
                Ok(sent)
            };
        }
        if receiver.read_shut {
            return if receiver.domain == Domain::Unix {
                Err(EPIPE)
            } else {
                Ok(sent)
            };
        }
        self.may_send_files(ancillary.files.len())?;
        self.stamp(&mut ancillary, number, target);
        if let Address::Inet { port, .. } = self.socket(target)?.local {
            ancillary.packet = Some(self.socket(number)?.packet(ancillary.wishes, port));
        }
        self.hold_files(&ancillary.files);
        self.socket_mut(target)?.datagrams.push_back(Datagram {
            from,
            sender: number,
            data,
            ancillary,
        });
        self.wake_socket(target);
        Ok(sent)
    }

    fn message_target(&mut self, cx: &mut Cx<'_>, number: u32, to: Option<Address>) -> Result<Target, Errno> {
        let socket = self.socket_mut(number)?;
        if let Some(errno) = socket.take_error() {
            return Err(errno);
        }
        let (kind, state, remote) = (socket.kind, socket.state.clone(), socket.remote.clone());
        if kind == SocketKind::Sequenced {
            return match state {
                SocketState::Connected(Some(peer)) => Ok(Target::Socket(peer)),
                SocketState::Connected(None) => Err(EPIPE),
                SocketState::Idle
                | SocketState::Listening { .. }
                | SocketState::Service(_)
                | SocketState::Connecting(_)
                | SocketState::Outside(_) => Err(ENOTCONN),
            };
        }
        let address = match (to, &state) {
            (Some(address), _) => address,
            (None, SocketState::Connected(Some(peer))) => {
                return Ok(match self.network.sockets.get(*peer) {
                    Some(_) => Target::Socket(*peer),
                    None => Target::NoOne,
                });
            }
            // An internet peer is its address; a UNIX peer is that socket, whoever has its name now.
            (None, SocketState::Connected(None)) if matches!(remote, Address::Inet { .. }) => remote,
            (None, SocketState::Connected(None)) => return Err(ECONNREFUSED),
            (
                None,
                SocketState::Idle
                | SocketState::Listening { .. }
                | SocketState::Service(_)
                | SocketState::Connecting(_)
                | SocketState::Outside(_),
            ) => return Err(no_destination(kind)),
        };
        if let Some(to) = self.destination(kind, &address) {
            return Ok(Target::Outside(to));
        }
        self.ensure_port(number)?;
        match self.datagram_target(cx, number, &address) {
            Ok(target) => Ok(Target::Socket(target)),
            Err(ECONNREFUSED) if matches!(address, Address::Inet { .. }) => Ok(Target::NoOne),
            Err(errno) => Err(errno),
        }
    }

    /// Receives one message; `None`: there is none yet.
    pub(crate) fn receive_message(
        &mut self,
        cx: &mut Cx<'_>,
        number: u32,
        slices: &[UserSlice],
        manner: Manner,
    ) -> Result<Option<Received>, Errno> {
        let socket = self.socket_mut(number)?;
        if let Some(errno) = socket.take_error() {
            return Err(errno);
        }
        if socket.kind == SocketKind::Sequenced && matches!(socket.state, SocketState::Idle) {
            return Err(ENOTCONN);
        }
        let Some(message) = socket.datagrams.front().cloned() else {
            let ended = socket.read_shut;
            return Ok(ended.then_some(Received {
                from: Address::None,
                copied: 0,
                full: 0,
                taken: Taken::default(),
            }));
        };
        let fits = message.data.len().min(total(slices) as usize);
        let copied = self.scatter(cx, slices, 0, &message.data[..fits])?;
        let taken = Taken {
            files: message.ancillary.files,
            credentials: Some(message.ancillary.credentials),
            peeked: manner.peek,
            packet: message.ancillary.packet,
        };
        if !manner.peek {
            let socket = self.socket_mut(number)?;
            socket.datagrams.pop_front();
            if let SocketState::Connected(Some(peer)) = socket.state {
                self.wake_socket(peer);
            }
        }
        Ok(Some(Received {
            from: message.from,
            copied,
            full: message.data.len() as u64,
            taken,
        }))
    }

    /// `read` on a socket.
    pub(crate) fn read_socket(
        &mut self,
        cx: &mut Cx<'_>,
        number: u32,
        slices: &[UserSlice],
        nonblocking: bool,
    ) -> SysResult {
        let manner = Manner {
            nonblocking,
            ..Manner::default()
        };
        if total(slices) == 0 {
            return Ok(Flow::Done(0));
        }
        if self.socket(number)?.kind == SocketKind::Stream {
            let mut taken = Taken::default();
            let flow = self.receive_stream(cx, number, slices, manner, &mut taken);
            self.release_files(taken.files);
            return flow;
        }
        match self.receive_message(cx, number, slices, manner)? {
            Some(received) => {
                self.release_files(received.taken.files);
                Ok(Flow::Done(received.copied))
            }
            None => self.no_message_yet(cx, number, nonblocking),
        }
    }

    /// Waits for a message, or says that there is none.
    pub(crate) fn no_message_yet(&mut self, cx: &mut Cx<'_>, number: u32, nonblocking: bool) -> SysResult {
        if nonblocking || self.timed_out(cx.slot) {
            return Err(EAGAIN);
        }
        let timeout_ns = self.socket(number)?.receive_timeout_ns;
        self.wait_for_socket(cx, number, timeout_ns)
    }

    /// `write` on a socket.
    pub(crate) fn write_socket(
        &mut self,
        cx: &mut Cx<'_>,
        number: u32,
        slices: &[UserSlice],
        nonblocking: bool,
    ) -> SysResult {
        let manner = Manner {
            nonblocking,
            ..Manner::default()
        };
        self.send_any(cx, number, None, slices, manner, Ancillary::default())
    }

    /// Sends by the socket's kind.
    pub(crate) fn send_any(
        &mut self,
        cx: &mut Cx<'_>,
        number: u32,
        to: Option<Address>,
        slices: &[UserSlice],
        manner: Manner,
        ancillary: Ancillary,
    ) -> SysResult {
        let socket = self.socket(number)?;
        if socket.kind == SocketKind::Stream {
            // Over a network an address is ignored.
            if socket.domain == Domain::Unix && to.is_some() {
                let connected = matches!(socket.state, SocketState::Connected(_));
                return Err(if connected { EISCONN } else { EOPNOTSUPP });
            }
            return self.send_stream(cx, number, slices, manner, ancillary);
        }
        let bytes = total(slices) as usize;
        if bytes > socket.send_bytes_max().max(DATAGRAM_BYTES_MAX) {
            return Err(EMSGSIZE);
        }
        let data = self.gather(cx, slices, 0, bytes)?;
        match self.send_message(cx, number, to, data, ancillary) {
            Err(EAGAIN) if !manner.nonblocking && !self.timed_out(cx.slot) => {
                let timeout_ns = self.socket(number)?.send_timeout_ns;
                self.wait_for_socket(cx, number, timeout_ns)
            }
            Err(EPIPE) => {
                if !manner.no_signal {
                    self.signal_self(cx.slot, libc::SIGPIPE as u32);
                }
                Err(EPIPE)
            }
            sent => sent.map(Flow::Done),
        }
    }
}
