//! What sockets hold for their readers, and how much more fits.

use crate::{
    abi::u32_at,
    errno::{EINVAL, Errno},
    kernel::Kernel,
    net::{
        DATAGRAMS_MAX, Domain, STREAM_BYTES, Socket, SocketKind, SocketState,
        ancillary::{Ancillary, Mark},
    },
};

/// Changes of sender or files among the bytes that a stream socket holds.
const MARKS_MAX: usize = 1024;

impl Socket {
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
}

impl Kernel {
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

/// What a buffer's size becomes: Linux doubles what was asked for, to pay for its own records.
pub(crate) fn buffer_bytes(name: i32, asked: i32) -> i32 {
    /// `net.core.wmem_max` and `net.core.rmem_max`.
    const ASKED_MAX: i32 = 212_992;
    let least = if name == libc::SO_SNDBUF { 4608 } else { 2304 };
    (asked.clamp(0, ASKED_MAX) * 2).max(least)
}
