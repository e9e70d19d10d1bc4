//! The node's side: a [`gust_node::Node`] and its link to the control plane.
//!
//! ```text
//!  connecting ──> linked ──> connecting    the link was lost: again after a pause that grows to BACKOFF_MAX
//!                   │
//!                   └─ drain ──> draining: tells the control plane, goes on serving what comes, until nothing runs
//!                                   └──> stopped
//! ```
//!
//! The node outlives the link: calls that run go on, instances stay, and what has changed meanwhile is told when the link
//! is there again. Files come on demand ([`versions`]), from other nodes first and from the control plane otherwise.

mod peers;
mod serve;
mod versions;

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use gust_node::{Load, Node};
use tokio::{net::TcpListener, sync::watch, task::JoinSet};

use crate::{
    convert,
    files::{Library, LibraryConfig, LibraryError},
    join::connect,
    link::{self, CallError, Closed, Link},
    message::{ControlRequest, Hello, MessageError, Reply, Report, Request, encode_body, text},
    trust::{Identity, Revoked, Trust, TrustError},
};
use peers::Peers;
use versions::Versions;

/// Pause before the first attempt to link again.
const BACKOFF_MIN: Duration = Duration::from_millis(50);

/// Longest pause between attempts: a control plane that has started again is found within it.
const BACKOFF_MAX: Duration = Duration::from_millis(800);

/// Longest time for the control plane to take a node's hello.
const HELLO_LIMIT: Duration = Duration::from_secs(10);

/// Longest time for the control plane to stop sending to a node that leaves.
const DRAINING_LIMIT: Duration = Duration::from_secs(10);

/// How long a node that leaves must have had nothing to do: what was sent before the control plane stopped has come.
const QUIET: Duration = Duration::from_millis(500);

/// How often a node that leaves looks whether anything runs.
const QUIET_LOOK: Duration = Duration::from_millis(50);

/// Configuration of an agent.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// Directory that the agent owns; on the file system of the node's directory.
    pub directory: PathBuf,
    /// Where the control plane is: `HOST:PORT`.
    pub control: String,
    /// Where other members reach the agent's listener; its address on the way to the control plane when the IP is unspecified.
    pub files: SocketAddr,
    /// Bound of the cache of chunks that no file has, in bytes.
    pub cache_bytes_max: u64,
    /// Memory for instances, in bytes.
    pub memory_bytes: u64,
    /// Most instances.
    pub instances_max: usize,
    /// Instances that are restored at a time.
    pub restores_max: usize,
    /// Region that the node lies in.
    pub region: u16,
    /// How long calls that run get when the agent leaves.
    pub grace: Duration,
}

/// Why there is no agent.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The certificate cannot be used.
    #[error("using the node's certificate")]
    Trust(#[from] TrustError),
    /// The directory cannot be used.
    #[error("opening the node's files")]
    Library(#[from] LibraryError),
}

/// Why a link did not come about or ended.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("connecting to the control plane")]
    Connect(#[source] io::Error),
    #[error("saying hello")]
    Hello(#[source] CallError),
    #[error("the control plane refused this node: {0}")]
    Refused(String),
    #[error("there is too much to report")]
    Report(#[from] MessageError),
    #[error("the node's certificate cannot be used")]
    Trust(#[from] TrustError),
    #[error("the link was lost")]
    Lost(#[source] Closed),
}

#[derive(Debug)]
struct Inner {
    config: AgentConfig,
    node: Node,
    library: Arc<Library>,
    identity: Mutex<Identity>,
    name: String,
    start: [u8; 16],
    versions: Versions,
    peers: Peers,
    /// Nodes that have been thrown out, as the control plane has said.
    revoked: Revoked,
    /// The present link to the control plane.
    control: watch::Sender<Option<Link>>,
    /// Requests of the control plane's that are being carried out, and when the last one ended.
    running: AtomicUsize,
    last_ended: Mutex<Instant>,
}

/// A node's side; clones are the same.
#[derive(Debug, Clone)]
pub struct Agent(Arc<Inner>);

impl Agent {
    /// Puts an agent around a node. Nothing is served before [`Agent::run`].
    ///
    /// # Errors
    /// When its directory or certificate cannot be used.
    pub fn new(config: AgentConfig, identity: Identity, node: Node) -> Result<Self, AgentError> {
        let library = Library::open(&LibraryConfig {
            directory: config.directory.join("library"),
            cache_bytes_max: config.cache_bytes_max,
        })?;
        let mut start = [0; 16];
        crate::fill_random(&mut start);
        let revoked = Revoked::default();
        let peers = Peers::new(Trust::of_node(&identity, &revoked)?, config.control.clone());
        Ok(Self(Arc::new(Inner {
            name: identity.name().to_string(),
            identity: Mutex::new(identity),
            library: Arc::new(library),
            versions: Versions::default(),
            peers,
            revoked,
            control: watch::Sender::new(None),
            running: AtomicUsize::new(0),
            last_ended: Mutex::new(Instant::now()),
            start,
            config,
            node,
        })))
    }

    /// Where the agent keeps its identity and files, beneath a data directory.
    pub fn directory(data_dir: &Path) -> PathBuf {
        data_dir.join("cluster")
    }

    /// Serves until `drain` completes and what runs has ended, then stops the node.
    pub async fn run(&self, listener: TcpListener, drain: impl Future<Output = ()>) {
        let mut tasks = JoinSet::new();
        let agent = self.clone();
        tasks.spawn(async move { agent.give_files(listener).await });
        let agent = self.clone();
        tasks.spawn(async move { agent.tell_losses().await });
        let agent = self.clone();
        tasks.spawn(async move { agent.tell_loads().await });
        let agent = self.clone();
        tasks.spawn(async move { agent.stay_linked().await });
        drain.await;
        self.leave().await;
        self.0.node.stop(self.0.config.grace).await;
        tasks.shutdown().await;
        if let Some(link) = self.control() {
            link.close();
        }
        self.0.peers.close();
    }

    /// The link to the control plane, while there is one.
    fn control(&self) -> Option<Link> {
        let link = self.0.control.borrow().clone();
        link.filter(|link| link.closed().is_none())
    }

    async fn stay_linked(&self) {
        let mut pause = BACKOFF_MIN;
        loop {
            let began = Instant::now();
            let error = text(&self.session().await);
            // One that had come about was no failed attempt.
            if began.elapsed() > BACKOFF_MAX * 2 {
                pause = BACKOFF_MIN;
            }
            tracing::warn!(
                control = self.0.config.control,
                error,
                "no link to the control plane"
            );
            let mut random = [0; 1];
            crate::fill_random(&mut random);
            // Nodes that have lost one control plane do not come back all at once.
            tokio::time::sleep(pause / 2 + pause / 2 * u32::from(random[0]) / 256).await;
            pause = (pause * 2).min(BACKOFF_MAX);
        }
    }

    /// Makes a link and serves on it until it ends.
    async fn session(&self) -> SessionError {
        let connector = match self.trust() {
            Ok(trust) => trust.connector(),
            Err(error) => return error.into(),
        };
        let Some(connector) = connector else {
            return SessionError::Connect(io::ErrorKind::Unsupported.into());
        };
        let stream = match connect(&connector, &self.0.config.control).await {
            Ok(stream) => stream,
            Err(error) => return SessionError::Connect(error),
        };
        let mut files = self.0.config.files;
        if files.ip().is_unspecified()
            && let Ok(own) = stream.get_ref().0.local_addr()
        {
            files.set_ip(own.ip());
        }
        let (link, driver, incoming) = link::new(stream);
        let session = async {
            // Asked at once, perhaps before the answer to the hello is read.
            let serving = self.serve_control(incoming);
            let greeting = async {
                self.greet(&link, files).await?;
                self.0.control.send_replace(Some(link.clone()));
                tracing::info!(control = self.0.config.control, "linked to the control plane");
                self.renew(&link).await;
                Err::<(), _>(SessionError::Lost(link.wait_closed().await))
            };
            tokio::select! {
                error = greeting => error.err(),
                () = serving => None,
            }
        };
        let (error, closed) = tokio::join!(
            async {
                let error = session.await;
                link.close();
                error
            },
            driver.run()
        );
        error.unwrap_or(SessionError::Lost(closed))
    }

    async fn greet(&self, link: &Link, files: SocketAddr) -> Result<(), SessionError> {
        let config = &self.0.config;
        let hello = Hello {
            name: self.0.name.clone(),
            start: self.0.start,
            program: env!("CARGO_PKG_VERSION").to_owned(),
            files,
            fingerprint: self.0.node.fingerprint().unwrap_or_default().to_owned(),
            is_kvm: self.0.node.fingerprint().is_some(),
            memory_bytes: config.memory_bytes,
            instances_max: config.instances_max as u64,
            restores_max: config.restores_max as u64,
            region: config.region,
        };
        let report = Report {
            versions: self.0.versions.report(&self.0.node),
            files: self.0.library.files(),
            instances: self.0.node.present().into_iter().map(convert::present).collect(),
        };
        let request = Request::Control(ControlRequest::Hello(hello));
        let body = encode_body(&report)?.into();
        match link.call(&request, body, HELLO_LIMIT).await {
            Ok((Reply::Done, _)) => Ok(()),
            Ok((Reply::Failed(reason), _)) => Err(SessionError::Refused(reason)),
            Ok((other, _)) => Err(SessionError::Refused(format!("{other:?}"))),
            Err(error) => Err(SessionError::Hello(error)),
        }
    }

    /// Gets another certificate when it is time; the next link uses it.
    async fn renew(&self, link: &Link) {
        let csr = {
            let identity = self.identity();
            match identity.wants_renewal() {
                true => identity.csr(),
                false => return,
            }
        };
        let Ok(csr) = csr else { return };
        let request = Request::Control(ControlRequest::Renew { csr });
        let kept = match link.call(&request, Bytes::new(), HELLO_LIMIT).await {
            Ok((Reply::Renewed { certificate }, _)) => self.identity().renewed(certificate),
            Ok((other, _)) => return tracing::warn!(?other, "the node's certificate was not renewed"),
            Err(error) => return tracing::warn!(%error, "the node's certificate was not renewed"),
        };
        match kept.and_then(|()| self.trust()) {
            Ok(trust) => self.0.peers.trust(trust),
            Err(error) => tracing::error!(%error, "the node's new certificate could not be kept"),
        }
    }

    /// Tells the control plane what has ended by itself, while there is one; a report tells it otherwise.
    async fn tell_losses(&self) {
        loop {
            let names = self.0.node.lost().await.into_iter().map(|name| name.0).collect();
            self.tell(ControlRequest::Lost(names)).await;
        }
    }

    /// Tells the control plane how much the processors have to do; another one is told within a second of its calls.
    async fn tell_loads(&self) {
        let mut told = None;
        loop {
            let load = self.0.node.load(told).await;
            told = Some(load);
            let Load {
                runnable,
                cpus,
                calls,
            } = load;
            self.tell(ControlRequest::Load {
                runnable,
                cpus,
                calls,
            })
            .await;
        }
    }

    async fn tell(&self, request: ControlRequest) {
        if let Some(link) = self.control()
            && let Err(error) = link
                .call(&Request::Control(request), Bytes::new(), HELLO_LIMIT)
                .await
        {
            tracing::debug!(%error, "the control plane was not told");
        }
    }

    /// Tells the control plane, and waits until nothing runs, for at most the grace.
    async fn leave(&self) {
        let waited = async {
            if let Some(link) = self.control() {
                let request = Request::Control(ControlRequest::Draining);
                let told = link.call(&request, Bytes::new(), DRAINING_LIMIT).await;
                if let Err(error) = told {
                    tracing::warn!(%error, "the control plane does not know that this node leaves");
                }
            }
            while self.0.running.load(Ordering::SeqCst) > 0 || self.last_ended().elapsed() < QUIET {
                tokio::time::sleep(QUIET_LOOK).await;
            }
        };
        if tokio::time::timeout(self.0.config.grace, waited).await.is_err() {
            tracing::warn!("calls that still run are ended");
        }
    }

    fn trust(&self) -> Result<Trust, TrustError> {
        Trust::of_node(&self.identity(), &self.0.revoked)
    }

    fn identity(&self) -> MutexGuard<'_, Identity> {
        self.0.identity.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn last_ended(&self) -> Instant {
        *self.0.last_ended.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that counts as running, until it is dropped.
struct Running(Agent);

impl Running {
    fn new(agent: &Agent) -> Self {
        agent.0.running.fetch_add(1, Ordering::SeqCst);
        Self(agent.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        *self.0.0.last_ended.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.0.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}
