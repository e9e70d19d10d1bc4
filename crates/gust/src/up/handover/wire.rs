//! Messages with descriptors over a UNIX socket that keeps their boundaries.

use std::{
    fs, io,
    mem::MaybeUninit,
    os::{
        fd::{AsRawFd, BorrowedFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::Path,
};

use bytes::Bytes;
use rustix::{
    fs::{Mode, OFlags, open},
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
        SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, bind,
        connect, listen, recvmsg, sendmsg, socket_with,
    },
};
use tokio::{
    io::Interest,
    net::{UnixListener, UnixStream},
};

use super::{
    SOCKET,
    message::{self, MESSAGE_BYTES_MAX, Message},
};

/// Most descriptors in a message.
const DESCRIPTORS_MAX: usize = 2;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 4;

/// One side of the conversation.
#[derive(Debug)]
pub(super) struct Wire(UnixStream);

/// A message with what came with it.
#[derive(Debug)]
pub(super) struct Received {
    pub message: Message,
    pub bytes: Bytes,
    pub descriptors: Vec<OwnedFd>,
}

/// Where conversations begin.
#[derive(Debug)]
pub(super) struct Door(UnixListener);

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        flags,
        None,
    )?)
}

/// The socket's address in a directory: by the directory's descriptor, for an address has few letters.
fn address(data_dir: &Path) -> io::Result<(SocketAddrUnix, OwnedFd)> {
    let directory = open(
        data_dir,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let path = format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd());
    Ok((SocketAddrUnix::new(path)?, directory))
}

impl Door {
    /// Makes the socket in a directory that this process owns, in place of one that a process before it has left.
    pub(super) fn open(data_dir: &Path) -> io::Result<Self> {
        let path = super::socket_path(data_dir);
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let (address, _directory) = address(data_dir)?;
        let socket = socket()?;
        bind(&socket, &address)?;
        // Whoever comes is asked who they are, too.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        listen(&socket, BACKLOG)?;
        Ok(Self(UnixListener::from_std(socket.into())?))
    }

    /// Waits for someone who may. Cancel-safe.
    pub(super) async fn accept(&self) -> io::Result<Wire> {
        loop {
            let (stream, _) = self.0.accept().await?;
            let peer = stream.peer_cred()?;
            let user = rustix::process::geteuid();
            if peer.uid() == user.as_raw() || peer.uid() == rustix::process::Uid::ROOT.as_raw() {
                return Ok(Wire(stream));
            }
            tracing::warn!(uid = peer.uid(), "another user may not take over");
        }
    }
}

impl Wire {
    /// Reaches whoever has the socket of a directory; `None` when nobody has.
    pub(super) fn reach(data_dir: &Path) -> io::Result<Option<Self>> {
        let connected = address(data_dir).and_then(|(address, _directory)| {
            let socket = socket()?;
            connect(&socket, &address)?;
            Ok(socket)
        });
        match connected {
            Ok(socket) => UnixStream::from_std(socket.into()).map(|socket| Some(Self(socket))),
            Err(error) => match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Ok(None),
                _ => Err(error),
            },
        }
    }

    /// Says something.
    pub(super) async fn send(
        &self,
        message: &Message,
        bytes: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let said = message::encode(message, bytes)?;
        let send = || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            let slices = [io::IoSlice::new(&said)];
            Ok(sendmsg(&self.0, &slices, &mut control, SendFlags::NOSIGNAL)?)
        };
        self.0.async_io(Interest::WRITABLE, send).await.map(drop)
    }

    /// Waits for what the other side says; `None` when it has ended. Cancel-safe.
    pub(super) async fn receive(&self) -> io::Result<Option<Received>> {
        self.0.async_io(Interest::READABLE, || receive_now(&self.0)).await
    }
}

fn receive_now(socket: &UnixStream) -> io::Result<Option<Received>> {
    let mut bytes = vec![0; MESSAGE_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut into = [io::IoSliceMut::new(&mut bytes)];
    let received = match recvmsg(socket, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC) {
        Ok(received) => received,
        Err(rustix::io::Errno::CONNRESET) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if received.bytes == 0 {
        return Ok(None);
    }
    if received
        .flags
        .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
    {
        return Err(io::Error::other("a message is longer than it may be"));
    }
    let rights = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let descriptors = rights.flatten().collect();
    bytes.truncate(received.bytes);
    let (message, bytes) = message::decode(bytes)?;
    Ok(Some(Received {
        message,
        bytes,
        descriptors,
    }))
}
