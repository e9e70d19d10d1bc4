//! The process that is taken over from.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use gust_control::{Control, HandedOver};
use gust_gateway::Doors;
use tokio::time::{sleep, timeout};

use super::{
    Message, VERSION,
    wire::{Door, Wire},
};

/// Longest time for a new process to make itself ready.
const READY_TIMEOUT: Duration = Duration::from_secs(120);

/// Longest wait for requests to end that change something. New requests wait meanwhile.
const PAUSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest time for a new process to open the store and serve. Requests wait meanwhile.
const SERVING_TIMEOUT: Duration = Duration::from_secs(15);

/// Longest time for a new process that has failed to let go of the store.
const TAKE_BACK_TIMEOUT: Duration = Duration::from_secs(15);

/// Pause between two attempts to take the store back.
const TAKE_BACK_PAUSE: Duration = Duration::from_millis(10);

/// Pause after the socket in the data directory has failed.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// What is served, and can be handed over.
#[derive(Debug)]
pub struct Served {
    /// The control plane.
    pub control: Control,
    /// The API's connections.
    pub doors: Doors,
    /// The API's socket.
    pub api: (OwnedFd, SocketAddr),
    /// The nodes' socket.
    pub cluster: Option<(OwnedFd, SocketAddr)>,
}

/// The socket at which a new process can ask to take over.
#[derive(Debug)]
pub struct Offer(Door);

/// A new process serves. What ends here is told to it.
#[derive(Debug)]
pub struct Taken {
    wire: Wire,
    handed: HandedOver,
    /// The new process.
    pub pid: u32,
    /// How long requests have waited.
    pub pause: Duration,
}

impl Offer {
    /// Opens the socket. The data directory has to be this process's.
    pub fn open(data_dir: &Path) -> Result<Self> {
        let path = super::socket_path(data_dir);
        let door = Door::open(data_dir).with_context(|| format!("make the socket {}", path.display()))?;
        Ok(Self(door))
    }

    /// Waits until a new process has taken over. Attempts that fail leave everything as it was.
    ///
    /// # Errors
    /// When the store has been lost to a process that does not serve.
    pub async fn taken(self, served: &Served) -> Result<Taken> {
        loop {
            let wire = match self.0.accept().await {
                Ok(wire) => wire,
                Err(error) => {
                    tracing::warn!(%error, "a process that wants to take over could not be heard");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let pid = match prepare(&wire, served).await {
                Ok(pid) => pid,
                Err(error) => {
                    tracing::warn!("{error:#}: it does not take over");
                    continue;
                }
            };
            if let Some(taken) = hand_over(wire, pid, served).await? {
                return Ok(taken);
            }
        }
    }
}

/// Gives the sockets and waits for the new process to be ready. Answers its process id.
async fn prepare(wire: &Wire, served: &Served) -> Result<u32> {
    let hello = timeout(READY_TIMEOUT, wire.receive()).await??;
    let Some(Message::Hello { version, pid }) = hello.map(|hello| hello.message) else {
        bail!("a process did not say who it is");
    };
    if version != VERSION {
        let reason = format!("it speaks version {VERSION} of the hand-over, and not {version}");
        wire.send(&Message::Refused(reason), &[], &[]).await?;
        bail!("process {pid} speaks another version of the hand-over");
    }
    let listeners = Message::Listeners {
        api: served.api.1,
        cluster: served.cluster.as_ref().map(|(_, address)| *address),
    };
    let cluster = served.cluster.as_ref().map(|(socket, _)| socket.as_fd());
    let sockets: Vec<BorrowedFd<'_>> = std::iter::once(served.api.0.as_fd()).chain(cluster).collect();
    wire.send(&listeners, &[], &sockets).await?;
    let ready = timeout(READY_TIMEOUT, wire.receive()).await;
    match ready.with_context(|| format!("process {pid} took too long"))?? {
        Some(received) if matches!(received.message, Message::Ready) => Ok(pid),
        Some(_) | None => bail!("process {pid} has ended before it was ready"),
    }
}

/// Lets go of the store, and takes it back if the new process does not serve then.
async fn hand_over(wire: Wire, pid: u32, served: &Served) -> Result<Option<Taken>> {
    let began = Instant::now();
    served.control.hold_events();
    if !served.doors.pause(PAUSE_TIMEOUT).await {
        served.control.release_events();
        refuse(&wire, "requests that change something are still under way").await;
        return Ok(None);
    }
    let mut handed = match served.control.hand_over().await {
        Ok(handed) => handed,
        Err(error) => {
            served.doors.resume().await;
            refuse(&wire, &error.to_string()).await;
            return Ok(None);
        }
    };
    match serving(&wire, &handed).await {
        Ok(()) => Ok(Some(Taken {
            wire,
            handed,
            pid,
            pause: began.elapsed(),
        })),
        Err(error) => {
            tracing::error!(pid, %error, "the process that takes over does not serve: the store is taken back");
            // It ends when it finds that nobody listens to it.
            drop(wire);
            take_back(&mut handed).await?;
            drop(handed);
            served.doors.resume().await;
            Ok(None)
        }
    }
}

async fn refuse(wire: &Wire, reason: &str) {
    tracing::warn!(reason, "a process does not take over");
    // It may have gone away.
    drop(wire.send(&Message::Refused(reason.to_owned()), &[], &[]).await);
}

async fn serving(wire: &Wire, handed: &HandedOver) -> io::Result<()> {
    let store = Message::Store {
        running: handed.running.clone(),
    };
    wire.send(&store, &[], &[]).await?;
    match timeout(SERVING_TIMEOUT, wire.receive()).await?? {
        Some(received) if matches!(received.message, Message::Serving) => Ok(()),
        Some(_) => Err(io::Error::other("it says something else")),
        None => Err(io::Error::other("it has ended")),
    }
}

async fn take_back(handed: &mut HandedOver) -> Result<()> {
    let retaken = timeout(TAKE_BACK_TIMEOUT, async {
        while let Err(error) = handed.take_back().await {
            tracing::debug!(%error, "the store is another's still");
            sleep(TAKE_BACK_PAUSE).await;
        }
    });
    retaken
        .await
        .context("take the store back from a process that does not serve")
}

impl Taken {
    /// Hands over connections as they rest and tells how events end, until there is nothing more or `patience` ends.
    pub async fn finish(mut self, doors: &Doors, patience: Duration) {
        if timeout(patience, self.tell(doors)).await.is_err() {
            tracing::warn!("calls were still under way at the end of the grace period");
        }
    }

    async fn tell(&mut self, doors: &Doors) {
        let (mut events, mut has_connections) = (self.handed.running.len(), true);
        while events > 0 || has_connections {
            let sent = tokio::select! {
                parked = doors.parked(), if has_connections => match parked {
                    Some(parked) => {
                        let sockets = [parked.stream.as_fd()];
                        self.wire.send(&Message::Connection, &parked.received, &sockets).await
                    }
                    None => {
                        has_connections = false;
                        Ok(())
                    }
                },
                Some(end) = self.handed.ended.recv(), if events > 0 => {
                    events -= 1;
                    self.wire.send(&Message::EventEnded(end), &[], &[]).await
                }
            };
            if let Err(error) = sent {
                tracing::warn!(%error, "the new server is not told of something");
            }
        }
    }
}
