//! The worker's end of its socket to the node: blocking, one message at a time.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    io::Errno,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendFlags,
        recvmsg, sendmsg,
    },
};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    frame::{self, Frame, FrameError, FrameReader},
    protocol::DESCRIPTORS_MAX,
};

/// Why a message could not be exchanged.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The socket failed, or ended in the middle of a message.
    #[error("the node's socket failed")]
    Io(#[source] io::Error),
    /// What came or should go is no valid frame.
    #[error("the node's socket carries an invalid frame")]
    Frame(#[from] FrameError),
}

/// A stream socket with frames on it.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
    reader: FrameReader,
}

impl Channel {
    /// Takes over a stream socket.
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            reader: FrameReader::new(),
        }
    }

    /// Sends a message and its body; blocks until the socket has taken all of it.
    ///
    /// # Errors
    /// When a bound is exceeded or the other end is gone.
    pub fn send<T: Serialize>(&mut self, message: &T, body: &[u8]) -> Result<(), ChannelError> {
        let head = frame::encode(message, body.len(), 0)?;
        let total = head.len() + body.len();
        let mut sent = 0;
        while sent < total {
            let from_head = &head[sent.min(head.len())..];
            let from_body = &body[sent.saturating_sub(head.len())..];
            let slices = [IoSlice::new(from_head), IoSlice::new(from_body)];
            let mut none = SendAncillaryBuffer::default();
            match sendmsg(&self.socket, &slices, &mut none, SendFlags::NOSIGNAL) {
                Ok(n) => sent += n,
                Err(Errno::INTR) => {}
                Err(error) => return Err(ChannelError::Io(error.into())),
            }
        }
        Ok(())
    }

    /// The next message; blocks until it is there. `None` when the other end has closed the stream.
    ///
    /// # Errors
    /// When the socket fails or what comes is no valid frame.
    pub fn receive<T: DeserializeOwned>(&mut self) -> Result<Option<Frame<T>>, ChannelError> {
        loop {
            if let Some(frame) = self.reader.next_frame()? {
                return Ok(Some(frame));
            }
            if !self.fill()? {
                return Ok(None);
            }
        }
    }

    /// A message that has arrived whole, without blocking when the socket is readable. `Ok(None)` says that more is to
    /// come; the end of the stream is an error of kind [`UnexpectedEof`](io::ErrorKind::UnexpectedEof).
    ///
    /// # Errors
    /// As [`receive`](Self::receive).
    pub fn receive_ready<T: DeserializeOwned>(&mut self) -> Result<Option<Frame<T>>, ChannelError> {
        if let Some(frame) = self.reader.next_frame()? {
            return Ok(Some(frame));
        }
        if !self.fill()? {
            return Err(ChannelError::Io(io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(self.reader.next_frame()?)
    }

    /// A message that was read together with an earlier one, without asking the socket.
    ///
    /// # Errors
    /// When it is no valid frame.
    pub fn receive_buffered<T: DeserializeOwned>(&mut self) -> Result<Option<Frame<T>>, ChannelError> {
        Ok(self.reader.next_frame()?)
    }

    /// Reads once. `false` at the end of the stream between two frames.
    fn fill(&mut self) -> Result<bool, ChannelError> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut into = [IoSliceMut::new(self.reader.space())];
        let received = match recvmsg(&self.socket, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(received) => received,
            Err(Errno::INTR) => return Ok(true),
            Err(error) => return Err(ChannelError::Io(error.into())),
        };
        let descriptors: Vec<OwnedFd> = control
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
                _ => None,
            })
            .flatten()
            .collect();
        if received.flags.contains(ReturnFlags::CTRUNC) {
            let announced = DESCRIPTORS_MAX + 1;
            return Err(FrameError::Descriptors {
                announced,
                arrived: descriptors.len(),
            }
            .into());
        }
        self.reader.arrived(descriptors)?;
        self.reader.filled(received.bytes);
        match (received.bytes, self.reader.is_between_frames()) {
            (0, true) => Ok(false),
            (0, false) => Err(ChannelError::Io(io::ErrorKind::UnexpectedEof.into())),
            _ => Ok(true),
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use rustix::net::SendAncillaryMessage;

    use super::*;
    use crate::protocol::{Command, GuestExit, Report};

    fn pair() -> (Channel, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Channel::new(ours.into()), theirs)
    }

    #[test]
    fn messages_bodies_and_descriptors_arrive() {
        let (mut channel, theirs) = pair();
        let file = std::fs::File::open("/dev/null").unwrap();
        let head = frame::encode(&Command::Capture, 4, 2).unwrap();
        let descriptors = [file.as_fd(), theirs.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
        let slices = [IoSlice::new(&head), IoSlice::new(b"body")];
        sendmsg(&theirs, &slices, &mut control, SendFlags::empty()).unwrap();

        let frame = channel.receive::<Command>().unwrap().unwrap();
        assert!(matches!(frame.message, Command::Capture));
        assert_eq!(frame.body, b"body");
        assert_eq!(frame.descriptors.len(), 2);
        let flags = rustix::io::fcntl_getfd(&frame.descriptors[0]).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        drop((frame, theirs));
        assert!(channel.receive::<Command>().unwrap().is_none());
    }

    #[test]
    fn large_bodies_pass_through_a_small_socket() {
        let (mut channel, theirs) = pair();
        let body = vec![5; 6 << 20];
        let reader = std::thread::spawn(move || {
            let mut theirs = Channel::new(theirs.into());
            theirs.receive::<Report>().unwrap().unwrap()
        });
        channel.send(&Report::Exited(GuestExit::Exit(3)), &body).unwrap();
        let frame = reader.join().unwrap();
        assert!(matches!(frame.message, Report::Exited(GuestExit::Exit(3))));
        assert_eq!(frame.body, body);
    }

    #[test]
    fn an_end_in_the_middle_of_a_message_is_an_error() {
        let (mut channel, theirs) = pair();
        let head = frame::encode(&Command::Capture, 4, 0).unwrap();
        rustix::io::write(&theirs, &head).unwrap();
        drop(theirs);
        let error = channel.receive::<Command>().unwrap_err();
        assert!(matches!(error, ChannelError::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof));
    }

    #[test]
    fn a_peer_that_is_gone_is_an_error_and_no_signal() {
        let (mut channel, theirs) = pair();
        drop(theirs);
        assert!(matches!(
            channel.send(&Report::Log, b"x"),
            Err(ChannelError::Io(_))
        ));
    }
}
