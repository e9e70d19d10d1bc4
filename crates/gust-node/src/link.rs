//! The node's end of a worker's socket.
//!
//! One owner at a time sends commands and reads reports; there is no task in between. What a worker says is hostile:
//! lengths are bounded before they are believed, and descriptors that it sends are never taken.

use std::{
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::{fd::BorrowedFd, unix::net},
};

use gust_worker::{
    frame::{self, Frame, FrameError, FrameReader},
    protocol::{Command, DESCRIPTORS_MAX, Report},
};
use rustix::{
    io::Errno,
    net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recv, sendmsg},
};
use tokio::{io::Interest, net::UnixStream};

/// Why nothing more can be said to or heard from a worker.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    /// The worker has closed its end: it is gone.
    #[error("the worker closed its socket")]
    Closed,
    /// The worker is gone, and the end of what it was sent last was never read: it has certainly not acted on that. The
    /// kernel tells by `ECONNRESET` when a socket is closed with bytes in its queue (unix(7)).
    #[error("the worker ended before it had read what it was sent")]
    Unread,
    /// The socket failed.
    #[error("the worker's socket failed")]
    Io(#[source] io::Error),
    /// The worker broke the protocol, or a command exceeds a bound.
    #[error("the worker's socket carries an invalid frame")]
    Frame(#[from] FrameError),
}

/// A command on its way.
#[derive(Clone)]
pub(crate) struct Outgoing<'a> {
    pub command: &'a Command,
    pub body: &'a [u8],
    pub descriptors: Vec<BorrowedFd<'a>>,
}

/// A socket to one worker.
#[derive(Debug)]
pub(crate) struct Link {
    stream: UnixStream,
    reader: FrameReader,
}

impl Link {
    /// Takes over one end of a socket pair.
    pub(crate) fn new(stream: net::UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream: UnixStream::from_std(stream)?,
            reader: FrameReader::new(),
        })
    }

    /// Sends commands, all in one call where the socket takes them. Their descriptors go with the first byte, so they
    /// may be [`DESCRIPTORS_MAX`] together. Once begun, it must be carried to its end.
    pub(crate) async fn send(&self, commands: &[Outgoing<'_>]) -> Result<(), LinkError> {
        let heads: Result<Vec<Vec<u8>>, FrameError> = commands
            .iter()
            .map(|outgoing| frame::encode(outgoing.command, outgoing.body.len(), outgoing.descriptors.len()))
            .collect();
        let heads = heads?;
        let parts: Vec<&[u8]> = heads
            .iter()
            .zip(commands)
            .flat_map(|(head, outgoing)| [head.as_slice(), outgoing.body])
            .collect();
        let descriptors: Vec<BorrowedFd<'_>> = commands
            .iter()
            .flat_map(|outgoing| outgoing.descriptors.iter().copied())
            .collect();
        let total: usize = parts.iter().map(|part| part.len()).sum();
        let mut sent = 0;
        while sent < total {
            let now = if sent == 0 { descriptors.as_slice() } else { &[] };
            let send = || send_once(&self.stream, &parts, sent, now);
            sent += as_soon_as(&self.stream, Interest::WRITABLE, send).await?;
        }
        Ok(())
    }

    /// The next report. May be given up and begun again without loss. Whatever the worker has said before its end comes
    /// first.
    pub(crate) async fn receive(&mut self) -> Result<Frame<Report>, LinkError> {
        loop {
            if let Some(frame) = self.reader.next_frame()? {
                return Ok(frame);
            }
            let Self { stream, reader } = self;
            let receive = || recv(&*stream, reader.space(), RecvFlags::empty()).map(|(_, n)| n);
            let received = as_soon_as(stream, Interest::READABLE, receive).await;
            match received? {
                0 => return Err(LinkError::Closed),
                n => self.reader.filled(n),
            }
        }
    }

    /// Sends nothing more; what the worker has said can still be heard.
    pub(crate) fn hang_up(&self) {
        let _ = rustix::net::shutdown(&self.stream, rustix::net::Shutdown::Write);
    }
}

/// Makes a call on the socket as soon as it can be made without waiting. Tried at once, because what is waited for is
/// often there already, and then only when the socket is ready.
async fn as_soon_as(
    stream: &UnixStream,
    interest: Interest,
    mut call: impl FnMut() -> Result<usize, Errno>,
) -> Result<usize, LinkError> {
    let mut call = || loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result.map_err(io::Error::from),
        }
    };
    let mut result = call();
    if matches!(&result, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
        result = stream.async_io(interest, call).await;
    }
    result.map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => LinkError::Closed,
        io::ErrorKind::ConnectionReset => LinkError::Unread,
        _ => LinkError::Io(error),
    })
}

/// Sends what lies behind the first `skip` bytes of the parts.
fn send_once(
    stream: &UnixStream,
    parts: &[&[u8]],
    mut skip: usize,
    descriptors: &[BorrowedFd<'_>],
) -> Result<usize, Errno> {
    let mut slices = Vec::with_capacity(parts.len());
    for part in parts {
        let skipped = skip.min(part.len());
        skip -= skipped;
        if skipped < part.len() {
            slices.push(IoSlice::new(&part[skipped..]));
        }
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(Errno::MSGSIZE);
    }
    sendmsg(stream, &slices, &mut control, SendFlags::NOSIGNAL)
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::fd::AsFd};

    use gust_worker::{
        channel::Channel,
        protocol::{GuestExit, InvokeSpec},
    };

    use super::*;

    fn invoke() -> Command {
        Command::Invoke(InvokeSpec {
            request_id: "id".to_owned(),
            deadline_unix_ms: 1,
            function_arn: String::new(),
            trace_id: String::new(),
            client_context: String::new(),
        })
    }

    #[tokio::test]
    async fn commands_and_reports_of_every_size_pass() {
        let (ours, theirs) = net::UnixStream::pair().unwrap();
        let mut link = Link::new(ours).unwrap();
        let body = vec![3; 6 << 20];
        let expected = body.clone();
        let worker = std::thread::spawn(move || {
            let mut channel = Channel::new(theirs.into());
            let first = channel.receive::<Command>().unwrap().unwrap();
            assert!(matches!(first.message, Command::Capture));
            assert_eq!(first.descriptors.len(), 2);
            let second = channel.receive::<Command>().unwrap().unwrap();
            assert_eq!((second.body.len(), second.descriptors.len()), (6 << 20, 1));
            channel.send(&Report::Log, b"log").unwrap();
            channel
                .send(&Report::Exited(GuestExit::Exit(1)), &second.body)
                .unwrap();
        });
        let file = File::open("/dev/null").unwrap();
        let invoke = invoke();
        let commands = [
            Outgoing {
                command: &Command::Capture,
                body: b"",
                descriptors: vec![file.as_fd(), file.as_fd()],
            },
            Outgoing {
                command: &invoke,
                body: &body,
                descriptors: vec![file.as_fd()],
            },
        ];
        link.send(&commands).await.unwrap();
        assert!(matches!(link.receive().await.unwrap().message, Report::Log));
        assert!(link.receive().await.unwrap().body == expected);
        assert!(matches!(link.receive().await, Err(LinkError::Closed)));
        worker.join().unwrap();
    }

    #[tokio::test]
    async fn a_worker_that_lies_is_found_out() {
        let (ours, theirs) = net::UnixStream::pair().unwrap();
        let mut link = Link::new(ours).unwrap();
        rustix::io::write(&theirs, &[0xff; 32]).unwrap();
        assert!(matches!(
            link.receive().await,
            Err(LinkError::Frame(FrameError::BadMagic(_)))
        ));

        // Descriptors are not taken, whatever a frame announces.
        let (ours, theirs) = net::UnixStream::pair().unwrap();
        let mut link = Link::new(ours).unwrap();
        let head = frame::encode(&Report::Log, 0, 1).unwrap();
        let descriptors = [theirs.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
        sendmsg(&theirs, &[IoSlice::new(&head)], &mut control, SendFlags::empty()).unwrap();
        assert!(matches!(
            link.receive().await,
            Err(LinkError::Frame(FrameError::Descriptors { .. }))
        ));
    }

    #[tokio::test]
    async fn what_a_worker_has_not_read_is_told_apart() {
        let invoke = invoke();
        let event = [Outgoing {
            command: &invoke,
            body: b"event",
            descriptors: Vec::new(),
        }];
        let (ours, theirs) = net::UnixStream::pair().unwrap();
        let mut link = Link::new(ours).unwrap();
        link.send(&event).await.unwrap();
        let mut channel = Channel::new(theirs.into());
        channel.send(&Report::Log, b"said before").unwrap();
        drop(channel);
        assert!(matches!(link.receive().await.unwrap().message, Report::Log));
        assert!(matches!(link.receive().await, Err(LinkError::Unread)));

        let (ours, theirs) = net::UnixStream::pair().unwrap();
        let mut link = Link::new(ours).unwrap();
        link.send(&event).await.unwrap();
        let mut channel = Channel::new(theirs.into());
        channel.receive::<Command>().unwrap().unwrap();
        drop(channel);
        assert!(matches!(link.receive().await, Err(LinkError::Closed)));
    }

    #[tokio::test]
    async fn sending_to_a_worker_that_is_gone_fails() {
        let (ours, theirs) = net::UnixStream::pair().unwrap();
        drop(theirs);
        let link = Link::new(ours).unwrap();
        let sent = link
            .send(&[Outgoing {
                command: &invoke(),
                body: b"",
                descriptors: Vec::new(),
            }])
            .await;
        assert!(matches!(sent, Err(LinkError::Closed)));
    }
}
