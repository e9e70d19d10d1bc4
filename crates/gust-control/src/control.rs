//! The control plane's state and how it is started, changed and stopped.
//!
//! Everything that the invocation path needs is in memory ([`Published`]); the store has the same on disk. A change is
//! computed from what is published, written durably, and only then published; changes follow one another. Tasks that
//! outlive a request (deployments, calls, deliveries) are counted and waited for.

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use gust_cluster::Hub;
use gust_node::{NodeStats, VersionId};
use gust_policy::{FunctionId, NodeId, NodeSpec, TenantId};
use gust_store::{BlobKind, LogScope, Store, StoreError};
use gust_worker::protocol::MemoryMode;
use tokio::sync::{Semaphore, watch};
use uuid::Uuid;

use crate::{
    account::{Account, Resolved, Revisions},
    agent::Agent,
    cluster::Cluster,
    concurrency::Book,
    error::ControlError,
    events::EventQueue,
    fleet::{LiveConfig, LiveCounts, LiveFleet},
    ids::{FunctionName, Place, Target, VersionNumber},
    limits::AccountLimits,
    members,
    model::{Function, LastUpdate, State, Version},
    recent::Recent,
    tasks::Tasks,
};

/// Code packages as they were uploaded.
pub(crate) const CODE: BlobKind = BlobKind("code");

/// Images made from code packages, under the packages' names. The number grows with the images' format, so that old
/// ones are made anew.
pub(crate) const CODE_IMAGES: BlobKind = BlobKind("code-images-1");

/// Deployments that run at once: each boots a runtime and occupies a core.
const DEPLOYMENTS_MAX: usize = 4;

/// Time that tasks get to end after the node has stopped.
const DRAIN: Duration = Duration::from_secs(5);

/// Configuration of the control plane.
#[derive(Debug, Clone)]
pub struct ControlConfig {
    /// Region and account, as ARNs have them.
    pub place: Place,
    /// Bounds.
    pub limits: AccountLimits,
    /// What becomes of memory between calls, unless a function's tag says otherwise.
    pub memory_mode: MemoryMode,
    /// Wait before the first retry of an asynchronous event; the second waits twice as long.
    pub retry_wait: Duration,
    /// Directory with the runtimes' images, each `<name>.img`.
    pub runtimes_dir: PathBuf,
    /// How calls get their instances.
    pub fleet: LiveConfig,
    /// Room that the node of this process has.
    pub node: NodeSpec,
    /// Longest wait of a call for an instance.
    pub queue_timeout: Duration,
}

/// The node of this process, as the fleet knows it.
pub(crate) const OWN_NODE: NodeId = NodeId(0);

/// A version as the node knows it.
#[derive(Debug)]
pub(crate) struct Runnable {
    pub(crate) id: VersionId,
    pub(crate) version: Arc<Version>,
    /// The fleet's name for it.
    pub(crate) function: FunctionId,
}

/// What readers see.
#[derive(Debug, Default)]
pub(crate) struct Published {
    pub(crate) account: Account,
    pub(crate) runnables: HashMap<FunctionName, HashMap<VersionNumber, Arc<Runnable>>>,
}

impl Published {
    /// What runs for a version.
    pub(crate) fn runnable(&self, name: &FunctionName, number: VersionNumber) -> Option<&Arc<Runnable>> {
        self.runnables.get(name)?.get(&number)
    }
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) config: ControlConfig,
    pub(crate) store: Store,
    pub(crate) node: Agent,
    /// The way to nodes on other machines, where there may be any.
    pub(crate) hub: Option<Hub>,
    pub(crate) fleet: LiveFleet,
    tenants: Mutex<HashMap<String, TenantId>>,
    published: RwLock<Published>,
    /// Held while a change is computed, written and published; what the store has of the functions.
    pub(crate) changing: Arc<tokio::sync::Mutex<Revisions>>,
    book: Mutex<Book>,
    pub(crate) events: EventQueue,
    /// Calls that wait for their places.
    pub(crate) placing: watch::Sender<usize>,
    pub(crate) tasks: Tasks,
    pub(crate) deployments: Semaphore,
    pub(crate) recent: Recent,
    stopping: AtomicBool,
    stop: watch::Sender<bool>,
}

/// The control plane; clones are the same one.
#[derive(Debug, Clone)]
pub struct Control(pub(crate) Arc<Inner>);

/// What the control plane holds now.
#[derive(Debug, Clone, Copy)]
pub struct ControlStats {
    /// Functions.
    pub functions: usize,
    /// Size of all packages of all versions, in bytes.
    pub code_bytes: u64,
    /// Asynchronous events that are accepted and not done with.
    pub events: usize,
    /// What the fleet holds.
    pub fleet: LiveCounts,
    /// What the node holds.
    pub node: NodeStats,
}

impl Control {
    /// Starts the control plane on an open store and a running node. Versions that were deployed are made known to
    /// the node, none is booted; deployments that were cut short begin again in the background. Events that the process
    /// before this one still delivers are `elsewhere`; see [`Control::event_ended_elsewhere`].
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn start(
        config: ControlConfig,
        store: Store,
        node: Agent,
        cluster: Option<Cluster>,
        elsewhere: &HashSet<Uuid>,
    ) -> Result<Self, StoreError> {
        let (hub, nodes) = cluster.map_or((None, None), |cluster| (Some(cluster.hub), Some(cluster.events)));
        let (account, revisions) = Account::load(&store.meta)?;
        if let Some(hub) = &hub
            && !hub.revoke(members::revoked(&store.meta)?)
        {
            tracing::error!("too many nodes have been thrown out: not all of them stay out");
        }
        let mut book = Book::new(config.limits.concurrency);
        for function in account.functions() {
            if let Some(reserved) = function.shared.reserved_concurrency {
                book.reserve(&function.shared.name, Some(reserved));
            }
        }
        let events = EventQueue::load(&store.meta, elsewhere)?;
        let fleet = LiveFleet::start(config.fleet.clone());
        let control = Self(Arc::new(Inner {
            published: RwLock::new(Published {
                account,
                runnables: HashMap::new(),
            }),
            changing: Arc::new(tokio::sync::Mutex::new(revisions)),
            book: Mutex::new(book),
            events,
            placing: watch::Sender::default(),
            tasks: Tasks::new(),
            deployments: Semaphore::new(DEPLOYMENTS_MAX),
            recent: Recent::default(),
            stopping: AtomicBool::new(false),
            stop: watch::Sender::new(false),
            config,
            store,
            node,
            hub,
            fleet,
            tenants: Mutex::default(),
        }));
        control.register_all();
        let (spec, agent) = (control.0.config.node, control.0.node.clone());
        control.0.fleet.add_node(OWN_NODE, spec, agent);
        // After everything is known that they may have instances of.
        if let Some(nodes) = nodes {
            control.spawn_cluster(nodes);
        }
        control.spawn_sweep();
        control.spawn_dispatcher();
        Ok(control)
    }

    /// Configuration.
    pub fn config(&self) -> &ControlConfig {
        &self.0.config
    }

    /// What the control plane holds now.
    pub fn stats(&self) -> ControlStats {
        let (functions, code_bytes) = self.read(|published| {
            (
                published.account.functions().count(),
                published.account.code_bytes(),
            )
        });
        ControlStats {
            functions,
            code_bytes,
            events: self.0.events.len(),
            fleet: self.0.fleet.counts(),
            node: self.0.node.stats(),
        }
    }

    /// Stops: refuses new work, lets running calls finish for at most `grace`, ends every instance.
    pub async fn stop(&self, grace: Duration) {
        self.0.stopping.store(true, Ordering::SeqCst);
        self.0.stop.send_replace(true);
        let began = Instant::now();
        self.0.node.stop(grace).await;
        // Calls on other machines have what is left of the grace.
        let left = match self.0.hub {
            Some(_) => grace.saturating_sub(began.elapsed()),
            None => Duration::ZERO,
        };
        self.0.tasks.drained(left).await;
        self.0.fleet.stop();
        let left = self.0.tasks.drained(DRAIN).await;
        if left > 0 {
            tracing::warn!(left, "work was cut short");
        }
        self.0.store.logs.flush().await;
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.0.stopping.load(Ordering::SeqCst)
    }

    /// Becomes true when the control plane stops.
    pub fn stopped(&self) -> watch::Receiver<bool> {
        self.0.stop.subscribe()
    }

    /// Looks at what is published. `look` must not wait.
    pub(crate) fn read<T>(&self, look: impl FnOnce(&Published) -> T) -> T {
        look(&self.0.published.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn write<T>(&self, change: impl FnOnce(&mut Published) -> T) -> T {
        change(&mut self.0.published.write().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn book(&self) -> MutexGuard<'_, Book> {
        self.0.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn tenants(&self) -> MutexGuard<'_, HashMap<String, TenantId>> {
        self.0.tenants.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds a function and the version that a target names.
    pub(crate) fn resolve(&self, target: &Target, draw: f64) -> Result<Resolved, ControlError> {
        self.read(|published| published.account.resolve(&self.0.config.place, target, draw))
    }

    /// Removes packages and images that no version has: what a process left that ended at the wrong moment.
    fn spawn_sweep(&self) {
        let control = self.clone();
        drop(self.0.tasks.spawn(async move {
            // A package is pinned until its version is entered. While none can be entered, one that is neither pinned
            // nor needed is nobody's.
            let inner = Arc::clone(&control.0);
            let _no_changes = inner.changing.lock().await;
            let sweep = tokio::task::spawn_blocking(move || {
                let needed = control.read(|published| published.account.code_blobs());
                for kind in [CODE, CODE_IMAGES] {
                    match control.0.store.blobs.retain(kind, &needed) {
                        Ok(0) => {}
                        Ok(removed) => tracing::info!(removed, kind = kind.0, "removed what nothing needs"),
                        Err(error) => tracing::warn!(%error, "what nothing needs could not be removed"),
                    }
                }
            });
            if let Err(error) = sweep.await {
                tracing::error!(%error, "the sweep failed");
            }
        }));
    }

    fn register_all(&self) {
        let functions: Vec<Arc<Function>> =
            self.read(|published| published.account.functions().cloned().collect());
        for function in functions {
            for version in function.versions() {
                match (&version.state, &version.last_update) {
                    (State::Pending, _) => {}
                    (State::Active, LastUpdate::InProgress) => self.register(&function, version),
                    (State::Active, LastUpdate::Successful | LastUpdate::Failed(_)) => {
                        self.register(&function, version);
                        continue;
                    }
                    (State::Failed(_), _) => continue,
                }
                self.spawn_deployment(&function.shared.name, version);
            }
        }
    }
}

/// Name of a function's log.
pub(crate) fn log_scope(name: &FunctionName) -> LogScope {
    LogScope::new(name.as_str()).expect("a function's name is narrower than a log's")
}
