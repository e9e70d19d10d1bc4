//! What lets a server that runs be steered from outside of it: hold connections back while another process takes over,
//! and take in those of the process before.
//!
//! ```text
//! Open ---> Paused: nothing is accepted. A connection that rests, at once or after its answer, is parked.
//!   ^          |
//!   +----------+--> Closing: connections end after their answers.
//! ```
//!
//! A parked connection is as its client knows it: nothing has been said on it that was not answered, or what was said
//! lies beside it, unread. Whoever serves it goes on with that.

use std::{net::TcpStream, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{
    sync::{Mutex, mpsc, watch},
    time::timeout,
};

/// Connections that are on their way from one server to another at a time.
const PARKED_MAX: usize = 4096;

/// Whether connections are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// They are.
    Open,
    /// What runs is finished, what rests is parked.
    Paused,
    /// What runs is finished, what rests is closed.
    Closing,
}

/// A connection between two of its requests.
#[derive(Debug)]
pub struct Parked {
    /// The connection.
    pub stream: TcpStream,
    /// What has been received and not been looked at.
    pub received: Bytes,
}

#[derive(Debug, Default)]
struct Counts {
    /// Connections.
    open: usize,
    /// Those of them that know of the pause: what is under way on them is counted, and nothing more begins.
    aware: usize,
    /// Requests under way that may need the store.
    storing: usize,
}

#[derive(Debug)]
struct Inner {
    phase: watch::Sender<Phase>,
    counts: watch::Sender<Counts>,
    park: mpsc::Sender<Parked>,
    parked: Mutex<mpsc::Receiver<Parked>>,
    arrive: mpsc::Sender<Parked>,
    arrived: Mutex<mpsc::Receiver<Parked>>,
}

/// The doors of one server; clones are the same.
#[derive(Debug, Clone)]
pub struct Doors(Arc<Inner>);

impl Default for Doors {
    fn default() -> Self {
        let (park, parked) = mpsc::channel(PARKED_MAX);
        let (arrive, arrived) = mpsc::channel(PARKED_MAX);
        Self(Arc::new(Inner {
            phase: watch::Sender::new(Phase::Open),
            counts: watch::Sender::default(),
            park,
            parked: Mutex::new(parked),
            arrive,
            arrived: Mutex::new(arrived),
        }))
    }
}

impl Doors {
    /// Accepts nothing more, and waits until no request is under way that may need the store: synchronous calls go on.
    /// `false` when that takes longer than `patience`; then as after [`Doors::resume`].
    pub async fn pause(&self, patience: Duration) -> bool {
        self.0.phase.send_replace(Phase::Paused);
        let mut counts = self.0.counts.subscribe();
        let through = counts.wait_for(|counts| counts.open == counts.aware && counts.storing == 0);
        let is_through = timeout(patience, through).await.is_ok();
        if !is_through {
            self.resume().await;
        }
        is_through
    }

    /// Accepts again, and serves what was parked.
    pub async fn resume(&self) {
        self.0.phase.send_replace(Phase::Open);
        let mut parked = self.0.parked.lock().await;
        while let Ok(connection) = parked.try_recv() {
            self.admit(connection).await;
        }
    }

    /// The next connection that is parked, now or when its answer has been given; `None` when there will be no more.
    /// Cancel-safe.
    pub async fn parked(&self) -> Option<Parked> {
        let mut parked = self.0.parked.lock().await;
        let mut counts = self.0.counts.subscribe();
        tokio::select! {
            biased;
            connection = parked.recv() => connection,
            _ = counts.wait_for(|counts| counts.open == 0) => parked.try_recv().ok(),
        }
    }

    /// Has a connection of another process served.
    pub async fn admit(&self, connection: Parked) {
        // A server that has ended closes what arrives.
        drop(self.0.arrive.send(connection).await);
    }

    /// Waits for a connection of another process.
    pub(crate) async fn arrived(&self) -> Option<Parked> {
        self.0.arrived.lock().await.recv().await
    }

    pub(crate) fn phase(&self) -> watch::Receiver<Phase> {
        self.0.phase.subscribe()
    }

    pub(crate) fn close(&self) {
        self.0.phase.send_replace(Phase::Closing);
    }

    pub(crate) async fn park(&self, connection: Parked) {
        // The receiver is here as well.
        drop(self.0.park.send(connection).await);
    }

    /// A connection, until this is dropped.
    pub(crate) fn enter(&self) -> Entered {
        self.0.counts.send_modify(|counts| counts.open += 1);
        Entered {
            doors: self.clone(),
            is_aware: false,
        }
    }

    /// A request that may need the store, until this is dropped.
    pub(crate) fn storing(&self) -> Storing {
        self.0.counts.send_modify(|counts| counts.storing += 1);
        Storing(self.clone())
    }
}

/// A connection that is counted.
#[derive(Debug)]
pub(crate) struct Entered {
    doors: Doors,
    is_aware: bool,
}

impl Entered {
    /// It knows whether there is a pause.
    pub(crate) fn knows(&mut self, is_paused: bool) {
        let change = (is_paused, std::mem::replace(&mut self.is_aware, is_paused));
        self.doors.0.counts.send_if_modified(|counts| {
            match change {
                (true, false) => counts.aware += 1,
                (false, true) => counts.aware -= 1,
                (true, true) | (false, false) => return false,
            }
            true
        });
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.knows(false);
        self.doors.0.counts.send_modify(|counts| counts.open -= 1);
    }
}

/// A request that is counted.
#[derive(Debug)]
pub(crate) struct Storing(Doors);

impl Drop for Storing {
    fn drop(&mut self) {
        self.0.0.counts.send_modify(|counts| counts.storing -= 1);
    }
}
