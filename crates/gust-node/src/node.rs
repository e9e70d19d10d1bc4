//! The node itself: its handle, and the way of one call.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::watch;

use crate::{
    api::{
        Invocation, InvokeError, Isolation, NodeConfig, NodeError, NodeStats, Outcome, PageSharing,
        StartKind, VersionId, VersionSpec,
    },
    call::CallError,
    desk::{Desk, Granted, Place},
    files::FileStore,
    host::{settle_time, start_source},
    instance::{Frozen, Instance},
    load::LoadMeter,
    log::LogSink,
    named::Wanted,
    outcome::{not_initialised, outcome},
    places::Bounds,
    pool::Pool,
    restore::Restoring,
    shaped::{Shaped, Shaping},
    snapshot::{SnapshotStore, processor_fingerprint},
    source::Source,
    start::StartError,
    version::{Version, io_error},
};

/// Instances that a call may lose before one reads its event. No function has seen it until then, so that it can be given to
/// another as often as there are any: all of a node's may be dying at once, and until they are dead they look well.
const DELIVERIES_MAX: u32 = 1024;

/// The same of instances that were started for it, in pooled workers that may be dying, too.
const LOST_STARTS_MAX: u32 = 16;

/// What a recorded start takes, and learning from one.
const LEARN_TIME: Duration = Duration::from_millis(50);

/// How long a call waits at least for the instance that is meant to serve it and has just answered another: longer than a
/// start would take, since one in its stead costs a worker.
const NAMED_PATIENCE: Duration = Duration::from_millis(20);

/// Starts at a time for each processor.
const STARTS_PER_CPU: usize = 2;

/// How often instances that have been idle too long are looked for, at most and at least.
const SWEEP_PERIOD: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// A node without its handle.
pub(crate) struct Inner {
    pub config: NodeConfig,
    pub desk: Arc<Desk>,
    pub pool: Arc<Pool>,
    pub files: Arc<FileStore>,
    /// Where the isolation has any.
    pub snapshots: Option<Arc<SnapshotStore>>,
    /// Guards the making of runtimes' base snapshots.
    pub base: tokio::sync::Mutex<()>,
    /// Workers with runtimes' bases in them.
    pub shaped: Shaped,
    pub page_sharing: PageSharing,
    /// Guards the making of bases' layouts and of grafts.
    pub shaping: tokio::sync::Mutex<Shaping>,
    pub source: Source,
    versions: Mutex<HashMap<VersionId, Arc<Version>>>,
    pub load_meter: LoadMeter,
    instances_started: AtomicU64,
    stopping: AtomicBool,
    calls: watch::Sender<usize>,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.desk.close();
        self.pool.close();
        self.shaped.close();
    }
}

/// A call that counts as running, until it is dropped.
pub(crate) struct Counted<'a>(&'a Inner);

impl<'a> Counted<'a> {
    pub(crate) fn new(inner: &'a Inner) -> Self {
        inner.calls.send_modify(|calls| *calls += 1);
        Self(inner)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.calls.send_modify(|calls| *calls -= 1);
    }
}

/// An instance for a call, and how it came to be.
struct Ready {
    instance: Box<Instance>,
    kind: StartKind,
    restoring: Option<Restoring>,
    /// Duration of its initialisation, when it has just had one.
    init: Option<Duration>,
    /// How long it took to get its snapshot.
    fetched: Duration,
}

impl Inner {
    pub(crate) async fn start(config: NodeConfig) -> Result<Arc<Self>, NodeError> {
        let data_dir = config.data_dir.clone();
        let failed_dir = |error| {
            io_error(
                format!("preparing the node's directory {}", data_dir.display()),
                error,
            )
        };
        std::fs::create_dir_all(&config.data_dir).map_err(failed_dir)?;
        let files = FileStore::new(&config.data_dir, config.isolation).map_err(failed_dir)?;
        let snapshots = match config.isolation {
            Isolation::Kvm => {
                let fingerprint = processor_fingerprint()
                    .map_err(|error| io_error("finding out the processor's features", error))?;
                let held_bytes_max = config.snapshot_memory_bytes;
                let store = SnapshotStore::new(&config.data_dir, fingerprint, held_bytes_max);
                Some(Arc::new(store.map_err(failed_dir)?))
            }
            Isolation::Process => None,
        };
        let source = start_source(&config).await?;
        Ok(Self::assemble(config, source, files, snapshots))
    }

    /// Puts a node together around a source of workers.
    pub(crate) fn assemble(
        config: NodeConfig,
        source: Source,
        files: FileStore,
        snapshots: Option<Arc<SnapshotStore>>,
    ) -> Arc<Self> {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let bounds = Bounds {
            instances_max: config.instances_max.max(1),
            memory_bytes_max: config.memory_budget_bytes,
            starts_max: cpus * STARTS_PER_CPU,
        };
        let shaped_size = match config.page_sharing {
            PageSharing::Runtime => config.pool_size,
            PageSharing::Version => 0,
        };
        let inner = Arc::new(Self {
            desk: Desk::new(bounds),
            pool: Pool::start(source.clone(), config.pool_size, None),
            shaped: Shaped::new(source.clone(), shaped_size),
            page_sharing: config.page_sharing,
            shaping: tokio::sync::Mutex::default(),
            files: Arc::new(files),
            snapshots,
            base: tokio::sync::Mutex::default(),
            source,
            versions: Mutex::default(),
            load_meter: LoadMeter::new(),
            instances_started: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
            calls: watch::Sender::new(0),
            config,
        });
        let (weak, idle_timeout) = (Arc::downgrade(&inner), inner.config.idle_timeout);
        let freeze_after = inner.config.freeze_after;
        tokio::spawn(async move {
            let shortest = freeze_after.map_or(idle_timeout, |after| after.min(idle_timeout));
            let mut ticks = tokio::time::interval((shortest / 4).clamp(SWEEP_PERIOD.0, SWEEP_PERIOD.1));
            loop {
                ticks.tick().await;
                let Some(inner) = weak.upgrade() else { return };
                inner.desk.expire(idle_timeout);
                inner.freeze_idle();
                inner.pool.tend();
                inner.shaped.tend();
            }
        });
        inner
    }

    /// How long a call waits for an instance that has answered: no longer than a start of its own would take.
    pub(crate) fn patience(&self, version: &Version) -> Duration {
        match version.learning.load(Ordering::Relaxed) {
            true => LEARN_TIME,
            false => settle_time(self.config.isolation),
        }
    }

    /// Calls that run.
    pub(crate) fn calls(&self) -> watch::Receiver<usize> {
        self.calls.subscribe()
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    pub(crate) fn count_started(&self) {
        self.instances_started.fetch_add(1, Ordering::Relaxed);
    }

    /// Makes a version known. One that is known already is the same: an id names one combination for ever.
    pub(crate) fn register(&self, spec: VersionSpec) -> Arc<Version> {
        let mut versions = self.versions();
        if let Some(known) = versions.get(&spec.id) {
            return Arc::clone(known);
        }
        let generation = self
            .desk
            .register(spec.id.clone(), Version::expected_bytes(&spec));
        let version = Arc::new(Version::new(spec, generation));
        versions.insert(version.id().clone(), Arc::clone(&version));
        version
    }

    pub(crate) async fn invoke(
        self: &Arc<Self>,
        id: &VersionId,
        invocation: Invocation,
    ) -> Result<Outcome, InvokeError> {
        let _counted = Counted::new(self);
        let outcome = self.serve(id, invocation).await;
        match outcome {
            // Whatever happened to it, it happened because of the stop.
            Err(_) if self.is_stopping() => Err(InvokeError::Stopping),
            outcome => outcome,
        }
    }

    async fn serve(
        self: &Arc<Self>,
        id: &VersionId,
        mut invocation: Invocation,
    ) -> Result<Outcome, InvokeError> {
        let version = self
            .versions()
            .get(id)
            .cloned()
            .ok_or_else(|| InvokeError::UnknownVersion(id.clone()))?;
        let mut log = LogSink::Sent(invocation.log.clone());
        let mut lost_starts = 0;
        for _ in 0..DELIVERIES_MAX {
            if self.is_stopping() {
                return Err(InvokeError::Stopping);
            }
            let arrived = Instant::now();
            let patience = match invocation.wanted {
                Wanted::Resting(_) => self.patience(&version).max(NAMED_PATIENCE),
                Wanted::Any | Wanted::New(_) => self.patience(&version),
            };
            let named = invocation.wanted.named();
            let before = named.and_then(|named| self.desk.place_of(named.name));
            let timeout = self.config.queue_timeout;
            let granted = self.desk.claim(id, named, timeout, patience).await?;
            let queued = arrived.elapsed();
            let replaced = match invocation.wanted {
                Wanted::Resting(_) => before != Some(granted.place()),
                Wanted::Any | Wanted::New(_) => false,
            };
            let ready = match granted {
                Granted::Use(instance, kind) => Ready {
                    instance,
                    kind,
                    restoring: None,
                    init: None,
                    fetched: Duration::ZERO,
                },
                Granted::Thaw(frozen) => match self.make_thawed(*frozen, &mut log).await {
                    Ok(ready) => ready,
                    Err(error) => return Err(error.told().err().unwrap_or(NodeError::Stopping).into()),
                },
                Granted::Start(place) => match self.make_ready(&version, place, &mut log).await {
                    Ok(ready) => ready,
                    Err(error) => {
                        return match error.told() {
                            Ok(failure) => Ok(not_initialised(failure, queued, arrived)),
                            Err(NodeError::Stopping) => Err(InvokeError::Stopping),
                            Err(error) => Err(error.into()),
                        };
                    }
                },
            };
            let Ready {
                instance,
                kind,
                restoring,
                init,
                fetched,
            } = ready;
            let (instance_id, is_armed) = (instance.id.clone(), kind == StartKind::Armed);
            let ran = self
                .call(instance, restoring.as_ref(), &mut invocation, &mut log)
                .await;
            // What is armed beside instances that have names is the control plane's decision.
            if named.is_none() && (is_armed || restoring.is_some()) {
                self.arm(&version);
            }
            match ran {
                Ok(ran) => {
                    let told = outcome(ran, kind, instance_id, init, (queued, fetched), arrived.elapsed());
                    return Ok(Outcome { replaced, ..told });
                }
                Err(CallError::NotDelivered) => {
                    lost_starts += u32::from(restoring.is_some() || kind == StartKind::Booted);
                    if lost_starts == LOST_STARTS_MAX {
                        break;
                    }
                }
                Err(CallError::Lost(error)) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(instance = instance_id, error, "a worker was lost during a call");
                    return Err(InvokeError::WorkerLost { instance_id });
                }
            }
        }
        let source = std::io::Error::other("one worker after the other was lost");
        Err(io_error("delivering an event", source).into())
    }

    /// Starts an instance in a place, as far as that goes before its event is there.
    async fn make_ready(
        self: &Arc<Self>,
        version: &Arc<Version>,
        place: Place,
        log: &mut LogSink,
    ) -> Result<Ready, StartError> {
        let Some(store) = &self.snapshots else {
            let booted = self.boot(version, place, log).await?;
            let instance = Box::new(booted.instance);
            return Ok(Ready {
                instance,
                kind: StartKind::Booted,
                restoring: None,
                init: Some(booted.took),
                fetched: Duration::ZERO,
            });
        };
        let asked = Instant::now();
        let made = self.snapshot(store, version, log).await?;
        // One that has been made has not been fetched: what its boot and its writing took is no part of that.
        let fetched = if made.init.is_zero() {
            asked.elapsed()
        } else {
            Duration::ZERO
        };
        self.tend_graft(version, &made.snapshot);
        let (instance, restoring) = self.restore(version, made.snapshot, place).await?;
        instance.place.started();
        self.count_started();
        let (kind, init) = match made.init {
            Duration::ZERO => (StartKind::Restored, None),
            // Its snapshot was missing or damaged, and this call has waited for another.
            init => (StartKind::Booted, Some(init)),
        };
        Ok(Ready {
            instance: Box::new(instance),
            kind,
            restoring: Some(restoring),
            init,
            fetched,
        })
    }

    /// Gives a frozen instance a worker; a start of another where that cannot be.
    async fn make_thawed(self: &Arc<Self>, frozen: Frozen, log: &mut LogSink) -> Result<Ready, StartError> {
        let version = Arc::clone(&frozen.version);
        let Some(store) = &self.snapshots else {
            return self.make_ready(&version, frozen.place, log).await;
        };
        match self.thaw(store, frozen, log).await? {
            Ok((instance, restoring)) => Ok(Ready {
                instance: Box::new(instance),
                kind: StartKind::Thawed,
                restoring: Some(restoring),
                init: None,
                // A part of getting its worker: its snapshot was used when it was frozen.
                fetched: Duration::ZERO,
            }),
            Err(place) => self.make_ready(&version, place, log).await,
        }
    }

    pub(crate) fn evict(self: &Arc<Self>, id: &VersionId, keep_armed: bool) {
        self.desk.evict(id, keep_armed);
        let version = self.versions().get(id).filter(|_| keep_armed).cloned();
        if let Some(version) = version {
            self.arm(&version);
        }
    }

    pub(crate) fn stats(&self) -> NodeStats {
        let counts = self.desk.counts();
        NodeStats {
            pooled: self.pool.len(),
            shaped: self.shaped.len(),
            armed: counts.armed,
            idle: counts.idle,
            frozen: counts.frozen,
            busy: counts.busy,
            regular: counts.regular,
            emergency: counts.emergency,
            queued: counts.queued,
            snapshots_on_disk: self.snapshots.as_ref().map_or(0, |store| store.on_disk()),
            instances_started: self.instances_started.load(Ordering::Relaxed),
        }
    }

    pub(crate) async fn stop(&self, grace: Duration) {
        self.stopping.store(true, Ordering::Relaxed);
        let mut calls = self.calls.subscribe();
        // Past the grace, the calls that still run are ended with their workers.
        let _ = tokio::time::timeout(grace, calls.wait_for(|calls| *calls == 0)).await;
        self.desk.close();
        self.pool.close();
        self.shaped.close();
        self.source.stop().await;
    }

    pub(crate) fn versions(&self) -> MutexGuard<'_, HashMap<VersionId, Arc<Version>>> {
        self.versions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
