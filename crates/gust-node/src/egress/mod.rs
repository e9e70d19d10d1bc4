//! The way out of guests: what one asks for is decided by the [policy](EgressPolicy), connected here, and joined to pipes
//! that go to its worker. The worker is hostile: it gets no network descriptor, and its requests are counted.
//!
//! ```text
//!   Connect ──> policy ──> connect ──> Stream + pipes ──> relay: socket <──> pipes ──> both ends closed
//!                  └─ EACCES    └─ errno                              └─ Broken
//! ```

mod datagrams;
mod policy;
mod stream;

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, UdpSocket},
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use gust_worker::protocol::{Command, Destination, NetworkSpec, OUTSIDE_MAX, OutsideAnswer, OutsideRequest};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
};

pub use policy::{EgressPolicy, RuleError};

use crate::link::Outgoing;

/// Answers that may wait to be sent to a worker.
const ANSWERS_WAITING_MAX: usize = 64;

/// Longest time for what a guest has sent before its end to be on its way.
const LINGER: Duration = Duration::from_secs(10);

/// What is to be told to the worker.
#[derive(Debug)]
pub(crate) struct Answered {
    command: Command,
    descriptors: Vec<OwnedFd>,
}

impl Answered {
    pub(crate) fn outgoing(&self) -> Outgoing<'_> {
        Outgoing {
            command: &self.command,
            body: b"",
            descriptors: self.descriptors.iter().map(AsFd::as_fd).collect(),
        }
    }
}

/// Where a task tells of its connection.
#[derive(Debug, Clone)]
struct Teller {
    connection: u32,
    answers: mpsc::Sender<Answered>,
}

impl Teller {
    async fn tell(&self, answer: OutsideAnswer, descriptors: Vec<OwnedFd>) {
        let command = Command::Outside {
            connection: self.connection,
            answer,
        };
        let answered = Answered { command, descriptors };
        // Without a worker there is no one to tell.
        let _ = self.answers.send(answered).await;
    }

    async fn failed(&self, error: &std::io::Error) {
        self.tell(OutsideAnswer::Failed(errno(error)), Vec::new()).await;
    }
}

/// Policies that must all allow what is done.
#[derive(Debug, Clone)]
struct Policies(Arc<[Arc<EgressPolicy>]>);

impl Policies {
    fn allow(&self, to: Destination) -> bool {
        let allowed = !self.0.is_empty() && self.0.iter().all(|policy| policy.allows(to, is_own));
        if !allowed {
            tracing::debug!(?to, "a way out was refused by the policy");
        }
        allowed
    }
}

/// The ways out of one guest. Dropping it closes them.
#[derive(Debug)]
pub(crate) struct Egress {
    policies: Policies,
    tasks: JoinSet<u32>,
    /// Told when the guest has closed a connection.
    closed: HashMap<u32, oneshot::Sender<()>>,
    answers: mpsc::Sender<Answered>,
    answered: mpsc::Receiver<Answered>,
}

impl Egress {
    /// What all these policies allow.
    pub(crate) fn new(policies: Vec<Arc<EgressPolicy>>) -> Self {
        let (answers, answered) = mpsc::channel(ANSWERS_WAITING_MAX);
        Self {
            policies: Policies(policies.into()),
            tasks: JoinSet::new(),
            closed: HashMap::new(),
            answers,
            answered,
        }
    }

    /// What the guest is told of it; `None` when there is no way out.
    pub(crate) fn spec(&self) -> Option<NetworkSpec> {
        let policies = &self.policies.0;
        let is_open = !policies.is_empty() && !policies.iter().any(|policy| policy.is_none());
        let named: BTreeSet<u16> = policies.iter().flat_map(|policy| policy.forwarded()).collect();
        is_open.then(|| NetworkSpec {
            forwarded: named
                .into_iter()
                .filter(|port| policies.iter().all(|policy| policy.forwards(*port)))
                .collect(),
        })
    }

    /// Takes in what a guest asks.
    pub(crate) fn asked(&mut self, connection: u32, request: OutsideRequest) {
        while let Some(ended) = self.tasks.try_join_next() {
            self.forget(ended);
        }
        if request == OutsideRequest::Closed {
            // One that has ended by itself is known no more.
            if let Some(closed) = self.closed.remove(&connection) {
                let _ = closed.send(());
            }
            return;
        }
        let teller = Teller {
            connection,
            answers: self.answers.clone(),
        };
        if self.tasks.len() >= OUTSIDE_MAX || self.closed.contains_key(&connection) {
            let error = std::io::Error::from_raw_os_error(rustix::io::Errno::NOBUFS.raw_os_error());
            // Answers wait to be taken by the caller of this, so this must not wait for room.
            self.tasks.spawn(async move {
                teller.failed(&error).await;
                connection
            });
            return;
        }
        let (close, closed) = oneshot::channel();
        self.closed.insert(connection, close);
        let policies = self.policies.clone();
        match request {
            OutsideRequest::Connect(to) => drop(self.tasks.spawn(async move {
                stream::serve(&policies, to, &teller, closed).await;
                connection
            })),
            OutsideRequest::Datagrams => drop(self.tasks.spawn(async move {
                datagrams::serve(&policies, &teller, closed).await;
                connection
            })),
            OutsideRequest::Closed => {}
        }
    }

    fn forget(&mut self, ended: Result<u32, tokio::task::JoinError>) {
        if let Ok(connection) = ended {
            self.closed.remove(&connection);
        }
    }

    /// The next answer for the worker. May be given up and begun again.
    pub(crate) async fn answer(&mut self) -> Answered {
        match self.answered.recv().await {
            Some(answered) => answered,
            // It holds a sender itself, so there is always one.
            None => std::future::pending().await,
        }
    }

    /// Lets what the guest has sent get on its way, once it has ended, within a bound.
    pub(crate) async fn linger(mut self) {
        // No one hears answers any more, and no one must wait to give one.
        self.answered.close();
        self.closed.clear();
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(LINGER, ended).await;
    }
}

/// Whether an address is one of this machine's: only those can be bound to.
fn is_own(ip: IpAddr) -> bool {
    UdpSocket::bind((ip, 0)).is_ok()
}

/// The number of an error as the guest is told it.
fn errno(error: &std::io::Error) -> i32 {
    error
        .raw_os_error()
        .unwrap_or_else(|| rustix::io::Errno::IO.raw_os_error())
}
