//! Moving bytes between connected stream sockets.

use crate::{
    errno::{EAGAIN, EINVAL, ENOTCONN, EPIPE, Errno},
    io::ObjectKey,
    kernel::{Cx, Flow, Kernel, OnSignal, SysResult, Wait},
    net::{
        Domain, Socket, SocketKind, SocketState,
        ancillary::{Ancillary, Taken},
    },
    task::WaitKey,
    user::{STAGING_BYTES, UserSlice, total},
};

/// Flags of one send or receive.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Manner {
    /// Do not wait.
    pub(crate) nonblocking: bool,
    /// Leave what is read.
    pub(crate) peek: bool,
    /// Wait until all is there.
    pub(crate) wait_all: bool,
    /// No `SIGPIPE`.
    pub(crate) no_signal: bool,
    /// Give the full size of a message that was cut off; of a TCP socket, cut off all of it.
    pub(crate) full_size: bool,
}

/// Bytes that go over loopback in one piece.
const SEGMENT_BYTES: usize = 65_483;

impl Socket {
    /// How many bytes from the front may be received at once, given what has been taken already; `None`: no more.
    fn together(&self, peek: bool, taken: &mut Taken) -> Option<usize> {
        if self.domain != Domain::Unix {
            return Some(self.received.len());
        }
        let tells = self.passes_credentials();
        let mut bytes = 0;
        for mark in &self.marks {
            let credentials = mark.ancillary.credentials;
            if tells && *taken.credentials.get_or_insert(credentials) != credentials {
                break;
            }
            bytes += mark.bytes;
            // Without a look ahead what follows is asked about when this is gone.
            if !peek || !mark.ancillary.files.is_empty() {
                break;
            }
        }
        if peek {
            let seen = self.marks.iter().find(|mark| !mark.ancillary.files.is_empty());
            let before: usize = self
                .marks
                .iter()
                .take_while(|mark| mark.ancillary.files.is_empty())
                .map(|mark| mark.bytes)
                .sum();
            if let Some(mark) = seen.filter(|_| before < bytes) {
                taken.files = mark.ancillary.files.clone();
            }
            taken.peeked = true;
        }
        (bytes > 0).then_some(bytes)
    }

    /// Takes bytes that [`Socket::together`] allowed, and the files that came with them. True: what follows is not to be
    /// received with them.
    fn consume(&mut self, bytes: usize, taken: &mut Taken) -> bool {
        self.received.consume(bytes);
        let Some(mark) = self.marks.front_mut() else {
            return false;
        };
        taken.files.append(&mut mark.ancillary.files);
        mark.bytes -= bytes;
        if mark.bytes == 0 {
            self.marks.pop_front();
        }
        !taken.files.is_empty()
    }
}

impl Kernel {
    /// Waits for a socket, with its time-out for this direction.
    pub(crate) fn wait_for_socket(&mut self, cx: &mut Cx<'_>, key: u32, timeout_ns: u64) -> SysResult {
        let deadline_ns = (timeout_ns > 0).then(|| self.deadline(cx, timeout_ns));
        let on_signal = if timeout_ns > 0 {
            OnSignal::Interrupt
        } else {
            OnSignal::Restart
        };
        Ok(Flow::Wait(Wait {
            keys: vec![WaitKey::Object(ObjectKey::Socket(key))],
            deadline_ns,
            on_signal,
        }))
    }

    /// Receives bytes; what came beside them is added to `taken`. Bytes that differ in files or, when the socket tells
    /// them, in credentials are not received together.
    pub(crate) fn receive_stream(
        &mut self,
        cx: &mut Cx<'_>,
        number: u32,
        slices: &[UserSlice],
        manner: Manner,
        taken: &mut Taken,
    ) -> SysResult {
        let wanted = total(slices);
        let mut done = self.thread(cx.slot).call.as_ref().map_or(0, |call| call.progress);
        let unix = self.socket(number)?.domain == Domain::Unix;
        loop {
            let socket = self.socket(number)?;
            match socket.state {
                SocketState::Idle | SocketState::Listening { .. } if unix => return Err(EINVAL),
                SocketState::Idle | SocketState::Listening { .. } => {
                    let socket = self.socket_mut(number)?;
                    return match socket.take_error() {
                        Some(errno) => Err(errno),
                        None if socket.read_shut => Ok(Flow::Done(0)),
                        None => Err(ENOTCONN),
                    };
                }
                SocketState::Connecting(_) => {
                    return self.no_message_yet(cx, number, manner.nonblocking);
                }
                SocketState::Connected(_) | SocketState::Service(_) | SocketState::Outside(_) => {}
            }
            // A UNIX socket gives files also to who wants no bytes.
            if wanted == done && (wanted > 0 || !unix) {
                return Ok(Flow::Done(done));
            }
            if socket.received.is_empty() {
                break;
            }
            let Some(bytes_max) = socket.together(manner.peek, taken) else {
                return Ok(Flow::Done(done));
            };
            let data = socket
                .received
                .peek((wanted - done).min(bytes_max as u64).min(STAGING_BYTES as u64) as usize);
            // What a TCP socket is asked to cut off is not even copied.
            let placed = match manner.full_size && !unix {
                true => data.len() as u64,
                false => self.scatter(cx, slices, done, &data)?,
            };
            done += placed;
            if manner.peek {
                return Ok(Flow::Done(done));
            }
            let socket = self.socket_mut(number)?;
            let boundary = socket.consume(placed as usize, taken);
            let peer = match socket.state {
                SocketState::Connected(peer) => peer,
                SocketState::Idle
                | SocketState::Listening { .. }
                | SocketState::Service(_)
                | SocketState::Connecting(_)
                | SocketState::Outside(_) => None,
            };
            if let Some(peer) = peer {
                self.wake_socket(peer);
            }
            if boundary || placed < data.len() as u64 || wanted == 0 {
                return Ok(Flow::Done(done));
            }
        }
        self.nothing_to_receive(cx, number, done, wanted, manner)
    }

    /// The queue is empty: what there is, an error, the end, or waiting.
    fn nothing_to_receive(
        &mut self,
        cx: &mut Cx<'_>,
        number: u32,
        done: u64,
        wanted: u64,
        manner: Manner,
    ) -> SysResult {
        if done > 0 && (!manner.wait_all || done == wanted) {
            return Ok(Flow::Done(done));
        }
        let socket = self.socket_mut(number)?;
        let timeout_ns = socket.receive_timeout_ns;
        if let Some(errno) = socket.take_error().filter(|_| done == 0) {
            return if errno == EPIPE {
                Ok(Flow::Done(0))
            } else {
                Err(errno)
            };
        }
        if self.socket(number)?.read_shut {
            return Ok(Flow::Done(done));
        }
        let gives_up = manner.nonblocking || self.timed_out(cx.slot);
        if let Some(answer) = self.stops_short(cx.slot, done, gives_up) {
            return answer;
        }
        self.wait_for_socket(cx, number, timeout_ns)
    }

    pub(crate) fn send_stream(
        &mut self,
        cx: &mut Cx<'_>,
        number: u32,
        slices: &[UserSlice],
        manner: Manner,
        mut ancillary: Ancillary,
    ) -> SysResult {
        let wanted = total(slices);
        let mut done = self.thread(cx.slot).call.as_ref().map_or(0, |call| call.progress);
        if done > 0 {
            // They went with the first bytes, before the call had to wait.
            ancillary.files.clear();
        }
        loop {
            if done == wanted && wanted > 0 {
                return Ok(Flow::Done(done));
            }
            let room = match self.send_room(number) {
                Ok(room) => room,
                Err(errno) => return self.send_failed(cx, done, errno, manner),
            };
            if wanted == 0 {
                return Ok(Flow::Done(0));
            }
            if room == 0 {
                break;
            }
            let piece = room.min((wanted - done) as usize).min(STAGING_BYTES);
            let data = match self.gather(cx, slices, done, piece) {
                Err(_) if done > 0 => return Ok(Flow::Done(done)),
                data => data?,
            };
            done += self.push_stream(number, &data, ancillary.clone())?;
            ancillary.files.clear();
        }
        let gives_up = manner.nonblocking || self.timed_out(cx.slot);
        if let Some(answer) = self.stops_short(cx.slot, done, gives_up) {
            return answer;
        }
        let timeout_ns = self.socket(number)?.send_timeout_ns;
        // Room appears where the peer reads, and the peer wakes its sender then.
        self.wait_for_socket(cx, number, timeout_ns)
    }

    fn send_failed(&mut self, cx: &mut Cx<'_>, done: u64, errno: Errno, manner: Manner) -> SysResult {
        if done > 0 {
            return Ok(Flow::Done(done));
        }
        if errno == EPIPE && !manner.no_signal {
            self.signal_self(cx.slot, libc::SIGPIPE as u32);
        }
        Err(errno)
    }

    /// Bytes that can be sent now.
    fn send_room(&mut self, number: u32) -> Result<usize, Errno> {
        let socket = self.socket_mut(number)?;
        if socket.write_shut {
            // Why the connection is broken is told before that it is.
            let broken = socket.domain != Domain::Unix;
            return Err(broken.then(|| socket.take_error()).flatten().unwrap_or(EPIPE));
        }
        match socket.state {
            SocketState::Idle | SocketState::Listening { .. } => Err(
                if socket.kind == SocketKind::Stream && socket.domain != Domain::Unix {
                    // A socket that was never connected, or was refused.
                    socket.take_error().unwrap_or(EPIPE)
                } else {
                    ENOTCONN
                },
            ),
            SocketState::Connected(None) if socket.domain == Domain::Unix || socket.error.is_some() => {
                Err(socket.take_error().unwrap_or(EPIPE))
            }
            // As over a network: the sender learns from the answer to what it sends that nobody is there.
            SocketState::Connected(None) => Ok(SEGMENT_BYTES.min(socket.send_bytes_max())),
            SocketState::Service(connection) => self.network.services.room(connection).ok_or(EPIPE),
            // Sending waits for the connection, as reading does.
            SocketState::Connecting(_) => Ok(0),
            SocketState::Outside(connection) => {
                if let Some(errno) = socket.take_error() {
                    return Err(errno);
                }
                self.outside_send_room(connection).ok_or(EPIPE)
            }
            SocketState::Connected(Some(peer)) => {
                let sender = self.socket(number)?;
                Ok(self.socket(peer)?.room_for(number, sender))
            }
        }
    }

    /// Puts bytes into the peer's hands, as many as there is room for.
    pub(crate) fn push_socket(&mut self, cx: &mut Cx<'_>, number: u32, data: &[u8]) -> Result<u64, Errno> {
        let socket = self.socket(number)?;
        if socket.kind.keeps_messages() {
            return self.send_message(cx, number, None, data.to_vec(), Ancillary::default());
        }
        self.push_stream(number, data, Ancillary::default())
    }

    fn push_stream(&mut self, number: u32, data: &[u8], mut ancillary: Ancillary) -> Result<u64, Errno> {
        let room = self.send_room(number)?;
        let fits = room.min(data.len());
        if fits == 0 {
            return Err(EAGAIN);
        }
        match self.socket(number)?.state {
            SocketState::Service(connection) => {
                self.network.services.take_from_guest(connection, &data[..fits]);
            }
            SocketState::Outside(connection) => self.outside_take_from_guest(connection, &data[..fits]),
            SocketState::Connected(Some(peer)) => {
                self.may_send_files(ancillary.files.len())?;
                self.stamp(&mut ancillary, number, peer);
                self.hold_files(&ancillary.files);
                self.socket_mut(peer)?.push(&data[..fits], ancillary);
                self.wake_socket(peer);
            }
            SocketState::Connected(None) => {
                self.socket_mut(number)?.write_shut = true;
                self.wake_socket(number);
            }
            SocketState::Idle | SocketState::Listening { .. } | SocketState::Connecting(_) => {
                return Err(EPIPE);
            }
        }
        Ok(fits as u64)
    }
}
