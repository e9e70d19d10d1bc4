//! The control plane's side: takes nodes in, knows which are there, and gives files.
//!
//! ```text
//!  connection ── no certificate ──> may join, and nothing else
//!             ── a node's ──> may ask for files
//!                         ── Hello ──> its link: Joined ──> (Draining) ──> Lost
//!             ── one's that has been thrown out ──> refused; ended, if it was there before that
//! ```
//!
//! Nothing about nodes is stored. A control plane that has just started knows none; they come back within their back-off
//! and say what they have. What a control plane does with a node is [`RemoteNode`]'s; which node does what is decided elsewhere,
//! by whoever takes [`Event`]s.

mod connection;
mod member;
mod revoke;
mod snapshots;

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::Duration,
};

use gust_node::{Node, Present, VersionId, VersionSpec};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, mpsc, oneshot, watch},
    task::JoinSet,
    time::timeout,
};

pub(crate) use member::Member;
pub(crate) use revoke::cut_off;
pub(crate) use snapshots::export;

use crate::{
    files::{Library, LibraryConfig, LibraryError},
    remote::RemoteNode,
    trust::{Authority, NodeName, Revoked, Tokens, Trust, TrustError},
};

/// Most connections at a time; more are closed.
const CONNECTIONS_MAX: usize = 4096;

/// Events that wait to be taken; a node's link waits when there are as many.
const EVENTS_MAX: usize = 1024;

/// Newcomers that are served at a time: each costs two signatures.
const JOINS_AT_A_TIME: usize = 4;

/// Pause after a connection could not be taken, because there are no more descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Configuration of the control plane's side.
#[derive(Debug, Clone)]
pub struct HubConfig {
    /// Directory for the authority, tokens and chunks.
    pub directory: PathBuf,
    /// The node in this process, whose snapshots others may use.
    pub local: Option<Node>,
}

/// Why there is no control plane's side.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The authority cannot be used.
    #[error("opening the cluster's authority")]
    Trust(#[from] TrustError),
    /// The directory cannot be used.
    #[error("opening the cluster's files")]
    Library(#[from] LibraryError),
}

/// What happens to nodes.
#[derive(Debug)]
pub enum Event {
    /// A node is there, after its start or after its link was lost.
    Joined {
        /// The node.
        node: RemoteNode,
        /// Instances that it has under names.
        instances: Vec<Present>,
        /// Versions that it has snapshots of.
        snapshots: Vec<VersionId>,
    },
    /// A node leaves: it takes nothing new and finishes what runs.
    Draining {
        /// The node.
        node: RemoteNode,
        /// Said or dropped once nothing new is sent to it.
        done: oneshot::Sender<()>,
    },
    /// The link to a node is lost, and with it the calls that ran there.
    Lost {
        /// The node.
        node: RemoteNode,
    },
    /// A node has a snapshot of a version now.
    Snapshot {
        /// The node.
        node: RemoteNode,
        /// The version.
        version: VersionId,
    },
}

#[derive(Debug)]
pub(crate) struct Inner {
    authority: Authority,
    trust: Trust,
    tokens: Tokens,
    revoked: Revoked,
    pub library: Arc<Library>,
    local: Option<Node>,
    members: Mutex<HashMap<NodeName, Arc<Member>>>,
    /// What nodes are told of when they need it.
    versions: RwLock<HashMap<VersionId, Arc<VersionSpec>>>,
    joins: Semaphore,
    /// Another process takes connections.
    letting_go: watch::Sender<bool>,
    events: mpsc::Sender<Event>,
}

/// The control plane's side; clones are the same.
#[derive(Debug, Clone)]
pub struct Hub(pub(crate) Arc<Inner>);

impl Hub {
    /// Opens it. Nothing is served before [`Hub::run`].
    ///
    /// # Errors
    /// When its directory cannot be used.
    pub fn open(config: &HubConfig) -> Result<(Self, mpsc::Receiver<Event>), HubError> {
        let authority = Authority::open(&config.directory)?;
        let revoked = Revoked::default();
        let trust = Trust::of_control(&authority, &revoked)?;
        // The control plane's files are its store's; it fetches none, and keeps no chunks.
        let library = Library::open(&LibraryConfig {
            directory: config.directory.join("library"),
            cache_bytes_max: 0,
        })?;
        let (events, taken) = mpsc::channel(EVENTS_MAX);
        let hub = Self(Arc::new(Inner {
            tokens: Tokens::new(&config.directory),
            revoked,
            authority,
            trust,
            library: Arc::new(library),
            local: config.local.clone(),
            members: Mutex::default(),
            versions: RwLock::default(),
            joins: Semaphore::new(JOINS_AT_A_TIME),
            letting_go: watch::Sender::new(false),
            events,
        }));
        Ok((hub, taken))
    }

    /// Serves nodes until `shutdown` completes; then ends every link.
    pub async fn run(&self, listener: TcpListener, shutdown: impl Future<Output = ()>) {
        let mut connections = JoinSet::new();
        let mut letting_go = self.0.letting_go.subscribe();
        tokio::pin!(shutdown);
        loop {
            let accepts = !*letting_go.borrow_and_update();
            tokio::select! {
                () = &mut shutdown => break,
                Ok(()) = letting_go.changed() => {}
                accepted = listener.accept(), if accepts => match accepted {
                    Ok((stream, address)) if connections.len() < CONNECTIONS_MAX => {
                        let hub = self.clone();
                        connections.spawn(async move { hub.serve(stream, address).await });
                    }
                    Ok((_, address)) => tracing::warn!(%address, "too many connections"),
                    Err(error) => {
                        tracing::warn!(%error, "a connection could not be taken");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(_ended) = connections.join_next() => {}
            }
        }
        connections.shutdown().await;
    }

    /// Takes no more connections, for another process listens at the same address. Ends the link to each node as soon as
    /// no call is under way to it, at the latest after `patience`: the node links to the other process then.
    pub async fn let_go(&self, patience: Duration) {
        self.0.letting_go.send_replace(true);
        let members: Vec<_> = self.members().values().cloned().collect();
        let mut going = JoinSet::new();
        for member in members {
            going.spawn(async move {
                if timeout(patience, member.end_calls()).await.is_err() {
                    tracing::warn!(node = %member.name, "the link to a node ends with calls under way");
                }
                if let Some(link) = member.link() {
                    link.close();
                }
            });
        }
        while going.join_next().await.is_some() {}
    }

    /// Makes a version known. Nodes are told of it when they first need it.
    pub fn register(&self, spec: VersionSpec) {
        self.versions_mut().insert(spec.id.clone(), Arc::new(spec));
    }

    /// Forgets a version, and has the nodes that know it forget it in the background.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn remove(&self, id: &VersionId) {
        self.unregister(id);
        for node in self.nodes() {
            node.forget(id);
        }
    }

    /// Tells no node of a version any more.
    pub(crate) fn unregister(&self, id: &VersionId) {
        self.versions_mut().remove(id);
    }

    /// The nodes that are there.
    pub fn nodes(&self) -> Vec<RemoteNode> {
        let members = self.members();
        let connected = members.values().filter(|member| member.link().is_some());
        connected.map(|member| self.node(member)).collect()
    }

    /// Where the control plane's side keeps the authority and its tokens.
    pub fn directory(data_dir: &Path) -> PathBuf {
        data_dir.join("cluster")
    }

    pub(crate) fn version(&self, id: &VersionId) -> Option<Arc<VersionSpec>> {
        let versions = self.0.versions.read().unwrap_or_else(PoisonError::into_inner);
        versions.get(id).cloned()
    }

    pub(crate) fn version_names(&self) -> Vec<String> {
        let versions = self.0.versions.read().unwrap_or_else(PoisonError::into_inner);
        versions.keys().map(|id| id.0.clone()).collect()
    }

    pub(crate) fn node(&self, member: &Arc<Member>) -> RemoteNode {
        RemoteNode::new(self.clone(), Arc::clone(member))
    }

    fn members(&self) -> MutexGuard<'_, HashMap<NodeName, Arc<Member>>> {
        self.0.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn versions_mut(&self) -> std::sync::RwLockWriteGuard<'_, HashMap<VersionId, Arc<VersionSpec>>> {
        self.0.versions.write().unwrap_or_else(PoisonError::into_inner)
    }

    async fn tell(&self, event: Event) {
        // Nobody wants to know any more when the control plane ends.
        let _ = self.0.events.send(event).await;
    }
}

/// A task's result, with its panic as an error.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)
}
