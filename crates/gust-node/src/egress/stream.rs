//! One connection: made, and moved between a socket and two pipes until both sides have finished.

use std::{io, os::fd::OwnedFd, time::Duration};

use gust_worker::protocol::{Destination, OutsideAnswer};
use rustix::{
    io::Errno,
    pipe::{PipeFlags, pipe_with},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
        unix::pipe,
    },
    sync::oneshot,
};

use super::{Policies, Teller, errno, policy::address_of};
use crate::egress::datagrams::nameservers;

/// Longest time for a connection to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);

/// Longest time for what a guest sent to be taken by the other side, once the guest has closed the connection.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(60);

/// Bytes that are moved at a time.
const MOVED_BYTES: usize = 64 << 10;

/// Carries a connection out from the guest's request to its end.
pub(super) async fn serve(
    policies: &Policies,
    to: Destination,
    teller: &Teller,
    closed: oneshot::Receiver<()>,
) {
    let stream = match connect(policies, to).await {
        Ok(stream) => stream,
        Err(error) => return teller.failed(&error).await,
    };
    match pipes() {
        Ok((ours, theirs)) => {
            teller.tell(OutsideAnswer::Stream, theirs).await;
            relay(stream, ours, teller, closed).await;
        }
        Err(error) => teller.failed(&error).await,
    }
}

async fn connect(policies: &Policies, to: Destination) -> io::Result<TcpStream> {
    if !policies.allow(to) {
        return Err(Errno::ACCESS.into());
    }
    let addresses = match address_of(to) {
        Some(address) => vec![address],
        None => nameservers().await,
    };
    let mut last = io::Error::from(Errno::HOSTUNREACH);
    for address in addresses {
        match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                // What the guest writes is what should go; it has set its own socket's options in vain.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Ok(Err(error)) => last = error,
            Err(_) => last = Errno::TIMEDOUT.into(),
        }
    }
    Err(last)
}

struct Pipes {
    to_guest: pipe::Sender,
    from_guest: pipe::Receiver,
}

/// Pipes for both ways; the other ends are the worker's, what comes first.
fn pipes() -> io::Result<(Pipes, Vec<OwnedFd>)> {
    let flags = PipeFlags::CLOEXEC | PipeFlags::NONBLOCK;
    let (comes, to_guest) = pipe_with(flags)?;
    let (from_guest, goes) = pipe_with(flags)?;
    let ours = Pipes {
        to_guest: pipe::Sender::from_owned_fd(to_guest)?,
        from_guest: pipe::Receiver::from_owned_fd(from_guest)?,
    };
    Ok((ours, vec![comes, goes]))
}

async fn relay(stream: TcpStream, pipes: Pipes, teller: &Teller, closed: oneshot::Receiver<()>) {
    let (comes, goes) = stream.into_split();
    let Pipes { to_guest, from_guest } = pipes;
    let inward = async {
        tokio::select! {
            () = inward(comes, to_guest, teller) => {}
            // The guest reads no more; what it sent still goes out.
            _ = closed => {}
        }
    };
    tokio::join!(inward, async {
        // Nothing more comes from a guest that has closed, so only the other side can hold this up.
        if let Err(error) = outward(from_guest, goes).await {
            teller
                .tell(OutsideAnswer::Broken(errno(&error)), Vec::new())
                .await;
        }
    });
}

async fn inward(mut comes: OwnedReadHalf, mut to_guest: pipe::Sender, teller: &Teller) {
    let mut bytes = vec![0; MOVED_BYTES];
    loop {
        match comes.read(&mut bytes).await {
            Ok(0) => return,
            Ok(count) => {
                if to_guest.write_all(&bytes[..count]).await.is_err() {
                    // The guest reads no more.
                    return;
                }
            }
            Err(error) => {
                teller
                    .tell(OutsideAnswer::Broken(errno(&error)), Vec::new())
                    .await;
                // The pipe stays open until the guest has heard of it, or its end would be taken for the stream's.
                return std::future::pending().await;
            }
        }
    }
}

/// An error is the other side's.
async fn outward(mut from_guest: pipe::Receiver, mut goes: OwnedWriteHalf) -> io::Result<()> {
    let mut bytes = vec![0; MOVED_BYTES];
    loop {
        match from_guest.read(&mut bytes).await {
            // The end of the pipe, or of the worker.
            Ok(0) | Err(_) => break,
            Ok(count) => goes.write_all(&bytes[..count]).await?,
        }
    }
    match tokio::time::timeout(FLUSH_TIMEOUT, goes.shutdown()).await {
        Ok(Err(error)) if error.kind() != io::ErrorKind::NotConnected => Err(error),
        Ok(_) | Err(_) => Ok(()),
    }
}
