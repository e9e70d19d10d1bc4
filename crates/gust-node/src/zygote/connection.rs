//! The socket to one zygote process.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{BorrowedFd, OwnedFd},
    process::Child,
    sync::Mutex,
};

use gust_worker::zygote::wire::{self, HostReport, ZygoteReport, ZygoteRequest};
use rustix::{
    io::Errno,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
        SendFlags, recvmsg, sendmsg,
    },
};
use tokio::{io::Interest, net::UnixDatagram};

/// A zygote process that runs.
#[derive(Debug)]
pub(super) struct Connection {
    /// Sets it apart from zygotes before and after.
    pub(super) number: u64,
    /// Of kind `SOCK_SEQPACKET`, for which the runtime has no type; it is only waited for and handed to calls of our own.
    pub(super) socket: UnixDatagram,
    pub(super) host: HostReport,
    pub(super) child: Mutex<Option<Child>>,
}

impl Connection {
    pub(super) async fn send(
        &self,
        request: &ZygoteRequest,
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let bytes = wire::encode(request).map_err(io::Error::other)?;
        let send = || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(wire::DESCRIPTORS_MAX))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
                return Err(Errno::MSGSIZE.into());
            }
            Ok(sendmsg(
                &self.socket,
                &[IoSlice::new(&bytes)],
                &mut control,
                SendFlags::NOSIGNAL,
            )
            .map(|_| ())?)
        };
        self.socket.async_io(Interest::WRITABLE, send).await
    }
}

/// The next report of a zygote; `None` at its end.
pub(super) async fn receive(socket: &UnixDatagram) -> io::Result<Option<(ZygoteReport, Option<OwnedFd>)>> {
    let receive = || {
        let mut bytes = [0; wire::MESSAGE_BYTES_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut into = [IoSliceMut::new(&mut bytes)];
        let length = recvmsg(socket, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC)?.bytes;
        let pidfd = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        match length {
            0 => Ok(None),
            length => Ok(Some((
                wire::decode(&bytes[..length]).map_err(io::Error::other)?,
                pidfd,
            ))),
        }
    };
    socket.async_io(Interest::READABLE, receive).await
}
