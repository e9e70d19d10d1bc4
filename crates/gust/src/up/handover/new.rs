//! The process that takes over.

use std::{collections::HashSet, io, net::SocketAddr, os::fd::OwnedFd, time::Duration};

use anyhow::{Context, Result};
use gust_control::Control;
use gust_gateway::{Doors, Parked};
use gust_store::{DataDirLock, StoreError};
use tokio::{net::TcpListener, task::JoinHandle, time::timeout};
use uuid::Uuid;

use super::{
    Message, VERSION,
    wire::{Received, Wire},
};
use crate::{exit::Hinted, up::UpConfig};

/// Longest wait for the old process to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest wait for the store: the old process lets requests end that change something.
const STORE_TIMEOUT: Duration = Duration::from_secs(30);

/// The process that has the data directory.
#[derive(Debug)]
pub struct Predecessor(Wire);

/// Its sockets.
#[derive(Debug)]
pub struct Listeners {
    /// Where the API is.
    pub api: TcpListener,
    /// Where nodes link, when both have such an address.
    pub cluster: Option<TcpListener>,
}

impl Predecessor {
    /// Finds the process that has the data directory, and gets its sockets; `None` when no process has it.
    pub async fn reach(config: &UpConfig) -> Result<Option<(Self, Listeners)>> {
        let dir = &config.data_dir;
        let wire = Wire::reach(dir).with_context(|| format!("reach the server on {}", dir.display()))?;
        let Some(wire) = wire else {
            return nobody(config).map(|()| None);
        };
        let this = Self(wire);
        let hello = Message::Hello {
            version: VERSION,
            pid: std::process::id(),
        };
        this.0
            .send(&hello, &[], &[])
            .await
            .context("speak to the running server")?;
        let received = this.hear(ANSWER_TIMEOUT).await?;
        let Message::Listeners { api, cluster } = received.message else {
            return Err(unexpected(&received.message));
        };
        check_address("--listen", config.listen, api)?;
        let mut sockets = received.descriptors.into_iter();
        let mut socket = || listener(sockets.next()).context("take over a listening socket");
        let api = socket()?;
        let cluster = match (cluster, config.cluster_listen) {
            (Some(theirs), Some(ours)) => {
                check_address("--cluster-listen", ours, theirs)?;
                Some(socket()?)
            }
            (Some(theirs), None) => {
                return Err(Hinted {
                    message: format!("nodes link to the running server at {theirs}, and could not any more"),
                    hint: format!(
                        "add --cluster-listen {theirs}, or stop that server instead of taking over"
                    ),
                }
                .into());
            }
            (None, Some(_) | None) => None,
        };
        Ok(Some((this, Listeners { api, cluster })))
    }

    /// Everything else is ready: waits for the store to be let go of. Answers the events that still run there.
    pub async fn take_store(&self) -> Result<HashSet<Uuid>> {
        self.0
            .send(&Message::Ready, &[], &[])
            .await
            .context("speak to the running server")?;
        let received = self.hear(STORE_TIMEOUT).await?;
        match received.message {
            Message::Store { running } => Ok(running.into_iter().collect()),
            other => Err(unexpected(&other)),
        }
    }

    /// Requests are served here: takes in what the old process hands over, until it ends.
    pub async fn serving(self, control: Control, doors: Doors) -> Result<JoinHandle<()>> {
        // It has taken the store back when this fails, or will.
        self.0
            .send(&Message::Serving, &[], &[])
            .await
            .context("speak to the server before this one")?;
        Ok(tokio::spawn(async move {
            if let Err(error) = self.take_in(&control, &doors).await {
                tracing::error!(%error, "what the server before this one hands over is not understood");
            }
            control.elsewhere_is_gone();
        }))
    }

    async fn take_in(&self, control: &Control, doors: &Doors) -> io::Result<()> {
        while let Some(received) = self.0.receive().await? {
            match received.message {
                Message::Connection => {
                    let sockets = received.descriptors.into_iter();
                    for stream in sockets.map(std::net::TcpStream::from) {
                        let received = received.bytes.clone();
                        doors.admit(Parked { stream, received }).await;
                    }
                }
                Message::EventEnded(end) => control.event_ended_elsewhere(end).await,
                Message::Hello { .. }
                | Message::Listeners { .. }
                | Message::Ready
                | Message::Store { .. }
                | Message::Serving
                | Message::Refused(_) => return Err(io::Error::other("a message out of turn")),
            }
        }
        Ok(())
    }

    async fn hear(&self, patience: Duration) -> Result<Received> {
        match timeout(patience, self.0.receive()).await {
            Ok(Ok(Some(received))) => Ok(received),
            Ok(Ok(None)) => anyhow::bail!("the running server has ended the conversation"),
            Ok(Err(error)) => Err(error).context("listen to the running server"),
            Err(_) => anyhow::bail!(
                "the running server has not answered within {} s",
                patience.as_secs()
            ),
        }
    }
}

/// Nobody answers: that is well when nobody has the data directory.
fn nobody(config: &UpConfig) -> Result<()> {
    if !config.data_dir.exists() {
        return Ok(());
    }
    match DataDirLock::take(&config.data_dir) {
        Ok(_free) => Ok(()),
        Err(error @ StoreError::Locked { .. }) => Err(Hinted {
            message: format!("{error}, which cannot be taken over: it does not answer"),
            hint: "it is a gust node, ends already, or is older than this: stop it, and start without --take-over"
                .to_owned(),
        }
        .into()),
        Err(error) => Err(error.into()),
    }
}

fn check_address(option: &str, ours: SocketAddr, theirs: SocketAddr) -> Result<()> {
    let same_port = ours.port() == theirs.port() || ours.port() == 0;
    if ours.ip() == theirs.ip() && same_port {
        return Ok(());
    }
    Err(Hinted {
        message: format!("the running server listens at {theirs}, and this one is to listen at {ours}"),
        hint: format!("take over with {option} {theirs}; to change it, stop that server first"),
    }
    .into())
}

fn listener(socket: Option<OwnedFd>) -> io::Result<TcpListener> {
    let socket = std::net::TcpListener::from(socket.ok_or(io::ErrorKind::UnexpectedEof)?);
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket)
}

fn unexpected(message: &Message) -> anyhow::Error {
    match message {
        Message::Refused(reason) => anyhow::anyhow!("the running server cannot be taken over: {reason}"),
        Message::Hello { .. }
        | Message::Listeners { .. }
        | Message::Ready
        | Message::Store { .. }
        | Message::Serving
        | Message::Connection
        | Message::EventEnded(_) => anyhow::anyhow!("the running server answers out of turn"),
    }
}
