//! Snapshots at work: made at a deployment and restored for a call; see [`arm`](crate::arm) for the rest.
//!
//! ```text
//!  runtime: Boot ──> Capture (base)          once for each runtime image
//!  version: Restore(base) or Boot ──> Init ──> Capture
//!  call:    Restore + Invoke, in one message
//!  armed:   Restore(arm) ──> Waiting         ahead, for versions in use
//!  layout:  Restore(record) + Invoke ──> Waiting ──> Replan
//! ```

use std::{
    fs::File,
    os::fd::AsFd,
    sync::Arc,
    time::{Duration, Instant},
};

use gust_worker::protocol::{Command, Interface, Limits, MemoryMode, RestoreSpec};

use crate::{
    api::PageSharing,
    capture::capture,
    desk::Place,
    files::Files,
    host::BACKGROUND_PAUSE,
    identity::Identity,
    instance::{Frozen, Instance},
    link::Outgoing,
    log::LogSink,
    node::Inner,
    snapshot::{Key, Layout, Snapshot, SnapshotStore},
    start::{StartError, boot_command, booted, function_trees, initialise, with_trees},
    version::{Version, io_error},
    worker::Worker,
};

/// Bounds of a runtime without a function.
pub(crate) const RUNTIME_LIMITS: Limits = Limits {
    memory_bytes: 512 << 20,
    tmp_bytes: 512 << 20,
    cpus: 1,
};

/// A restore that is about to be asked for, with all that its message refers to.
#[derive(Debug)]
pub(crate) struct Restoring {
    command: Command,
    snapshot: Arc<Snapshot>,
    memory: Arc<File>,
    layout: Option<(Arc<Layout>, Arc<File>)>,
    files: Arc<Files>,
    /// A frozen instance.
    frozen: Vec<u8>,
    /// A base snapshot has no function's images.
    is_base: bool,
}

impl Restoring {
    /// The same for a frozen instance.
    fn thawing(mut self) -> Self {
        if let Command::Restore(spec) = &mut self.command {
            spec.thaw = true;
        }
        self
    }

    fn records(&self) -> bool {
        matches!(&self.command, Command::Restore(spec) if spec.record)
    }

    /// The message.
    pub(crate) fn outgoing(&self) -> Outgoing<'_> {
        let mut outgoing = with_trees(&self.command, [&self.files.root]);
        let mut descriptors = vec![self.memory.as_fd(), self.snapshot.state.as_fd()];
        descriptors.extend(self.layout.iter().map(|(_, file)| file.as_fd()));
        descriptors.append(&mut outgoing.descriptors);
        if !self.is_base {
            descriptors.extend(function_trees(&self.files).map(|tree| tree.descriptor.as_fd()));
        }
        Outgoing {
            descriptors,
            body: &self.frozen,
            ..outgoing
        }
    }
}

/// A runtime's base with the layout that lets versions be laid out on top of it.
#[derive(Debug, Clone)]
pub(crate) struct Based {
    pub snapshot: Arc<Snapshot>,
    pub layout: Arc<Layout>,
    /// Of any version on this runtime.
    pub files: Arc<Files>,
}

impl Based {
    /// Lays the base out in a blank worker and touches it ahead.
    pub(crate) async fn lay_out(&self, worker: &mut Worker) -> Result<(), StartError> {
        let layout = Some(Arc::clone(&self.layout));
        restore_runtime(
            worker,
            Arc::clone(&self.snapshot),
            layout,
            &self.files,
            &Identity::new(),
        )
        .await
    }
}

/// Has a blank worker take a runtime's base.
async fn restore_runtime(
    worker: &mut Worker,
    snapshot: Arc<Snapshot>,
    layout: Option<Arc<Layout>>,
    files: &Arc<Files>,
    identity: &Identity,
) -> Result<(), StartError> {
    worker
        .limit(RUNTIME_LIMITS)
        .map_err(|error| io_error("bounding a worker", error))?;
    let restoring = Restoring {
        memory: snapshot.memory(),
        command: Command::Restore(RestoreSpec {
            arm: true,
            record: false,
            has_layout: layout.is_some(),
            thaw: false,
            memory_mode: MemoryMode::Reuse,
            limits: RUNTIME_LIMITS,
            identity: identity.spec(),
            environment: Vec::new(),
        }),
        snapshot,
        layout: layout.map(with_file),
        files: Arc::clone(files),
        frozen: Vec::new(),
        is_base: true,
    };
    let sent = worker.send(&[restoring.outgoing()]).await;
    sent.map_err(StartError::Lost)?;
    booted(worker, &mut LogSink::Discarded).await
}

/// A version's snapshot, and how it came to be.
pub(crate) struct Made {
    pub snapshot: Arc<Snapshot>,
    /// Duration of the initialisation; zero when it was read from disk.
    pub init: Duration,
}

impl Inner {
    /// A version's snapshot: in memory, on disk, or made now. What the initialisation logs goes to `log`.
    pub(crate) async fn snapshot(
        &self,
        store: &Arc<SnapshotStore>,
        version: &Version,
        log: &mut LogSink,
    ) -> Result<Made, StartError> {
        let files = version.files(&self.files).await?;
        let key = Key {
            name: version.id().0.clone(),
            inputs: files.checksums(),
        };
        if let Some(snapshot) = store.held(&key) {
            return Ok(Made {
                snapshot,
                init: Duration::ZERO,
            });
        }
        let _only_one = version.making.lock().await;
        if let Some(snapshot) = find(store, &key).await {
            return Ok(Made {
                snapshot,
                init: Duration::ZERO,
            });
        }
        let (mut worker, identity) = match (files.interface(), self.page_sharing) {
            (Interface::Device, PageSharing::Runtime) => {
                let base = self.base(store, &files).await?;
                self.restore_base(base, &files).await?
            }
            (Interface::Device, PageSharing::Version) => {
                let identity = Identity::new();
                let mut worker = self.take_worker(RUNTIME_LIMITS).await?;
                boot(&mut worker, &files, &identity, RUNTIME_LIMITS, "").await?;
                (worker, identity)
            }
            (Interface::RuntimeApi, PageSharing::Runtime | PageSharing::Version) => {
                let identity = Identity::new();
                let mut worker = self.take_worker(version.limits()).await?;
                boot(
                    &mut worker,
                    &files,
                    &identity,
                    version.limits(),
                    &version.spec.handler,
                )
                .await?;
                (worker, identity)
            }
        };
        worker
            .limit(version.limits())
            .map_err(|error| io_error("bounding a worker", error))?;
        self.open_egress(&mut worker, version);
        let start = Instant::now();
        let init = version.init_command(&identity);
        let sent = worker.send(&[with_trees(&init, function_trees(&files))]).await;
        sent.map_err(StartError::Lost)?;
        let waiting = initialise(&mut worker, version, log).await?;
        let took = start.elapsed();
        let snapshot = capture(store, &mut worker, key, waiting.memory_bytes).await?;
        self.forget_removed(version).await;
        Ok(Made { snapshot, init: took })
    }

    /// A runtime's base snapshot: its program started and waiting for its function.
    pub(crate) async fn base(
        &self,
        store: &Arc<SnapshotStore>,
        files: &Files,
    ) -> Result<Arc<Snapshot>, StartError> {
        let key = Key {
            name: files.base_name(),
            inputs: vec![files.root.checksum],
        };
        if let Some(snapshot) = store.held(&key) {
            return Ok(snapshot);
        }
        let _only_one = self.base.lock().await;
        if let Some(snapshot) = find(store, &key).await {
            return Ok(snapshot);
        }
        let mut worker = self.take_worker(RUNTIME_LIMITS).await?;
        boot(&mut worker, files, &Identity::new(), RUNTIME_LIMITS, "").await?;
        capture(store, &mut worker, key, 0).await
    }

    /// A worker with a runtime's base snapshot in it.
    async fn restore_base(
        &self,
        snapshot: Arc<Snapshot>,
        files: &Arc<Files>,
    ) -> Result<(Worker, Identity), StartError> {
        let identity = Identity::new();
        let mut worker = self.take_worker(RUNTIME_LIMITS).await?;
        restore_runtime(&mut worker, snapshot, None, files, &identity).await?;
        Ok((worker, identity))
    }

    /// An instance that is restored together with its first event, and the message for that.
    pub(crate) async fn restore(
        &self,
        version: &Arc<Version>,
        snapshot: Arc<Snapshot>,
        place: Place,
    ) -> Result<(Instance, Restoring), StartError> {
        let files = version.files(&self.files).await?;
        if snapshot.wants_memory() {
            self.take_into_memory(version, &files, &snapshot);
        }
        let recording = snapshot.claim_recording();
        let identity = Identity::new();
        let record = recording.is_some();
        let origin = snapshot.stored_checksum();
        let restoring = restoring(version, snapshot, files, &identity, false, record);
        let mut instance = self
            .to_be_restored(&restoring, version, identity, place, origin)
            .await?;
        instance.recording = recording;
        Ok((instance, restoring))
    }

    /// An instance that nothing has been laid out for yet.
    async fn to_be_restored(
        &self,
        restoring: &Restoring,
        version: &Arc<Version>,
        identity: Identity,
        place: Place,
        origin: Option<[u8; 32]>,
    ) -> Result<Instance, StartError> {
        let mut worker = self.room_for(restoring).await?;
        self.open_egress(&mut worker, version);
        Ok(Instance {
            id: identity.id,
            version: Arc::clone(version),
            worker,
            place,
            memory_bytes: 0,
            recording: None,
            origin,
        })
    }

    /// A frozen instance with a worker to be laid out in, and the message for that; its place alone when its snapshot is not
    /// the one that it was frozen from.
    pub(crate) async fn thaw(
        &self,
        store: &Arc<SnapshotStore>,
        frozen: Frozen,
        log: &mut LogSink,
    ) -> Result<Result<(Instance, Restoring), Place>, StartError> {
        let Frozen {
            id,
            version,
            place,
            state,
            origin,
        } = frozen;
        let files = version.files(&self.files).await?;
        let made = self.snapshot(store, &version, log).await?;
        if made.snapshot.stored_checksum() != Some(origin) {
            return Ok(Err(place));
        }
        let identity = Identity::known(id);
        let restoring = Restoring {
            frozen: state,
            ..restoring(&version, made.snapshot, files, &identity, false, false)
        }
        .thawing();
        let instance = self
            .to_be_restored(&restoring, &version, identity, place, Some(origin))
            .await?;
        Ok(Ok((instance, restoring)))
    }

    /// Takes a snapshot on disk into memory, in the background: it is used again.
    fn take_into_memory(&self, version: &Version, files: &Files, snapshot: &Arc<Snapshot>) {
        let Some(store) = self.snapshots.clone() else {
            return;
        };
        let key = Key {
            name: version.id().0.clone(),
            inputs: files.checksums(),
        };
        let snapshot = Arc::clone(snapshot);
        tokio::spawn(async move {
            tokio::time::sleep(BACKGROUND_PAUSE).await;
            let taken = tokio::task::spawn_blocking(move || {
                let taken = store.promote(&key, &snapshot);
                if let Err(error) = taken {
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(name = key.name, error, "a snapshot stays on disk");
                }
            });
            // A panic there is logged by its thread.
            let _ = taken.await;
        });
    }

    /// A worker to restore a version in: one with its runtime's base in it, where the version's layout is for that, or a
    /// blank one. It is still within the bounds of a runtime: the version's are set while it lays the snapshot out.
    async fn room_for(&self, restoring: &Restoring) -> Result<Worker, StartError> {
        let grafted_on = restoring
            .layout
            .as_ref()
            .and_then(|(layout, _)| layout.grafted_on);
        let grafted_on = grafted_on.filter(|_| !restoring.records());
        match grafted_on.and_then(|layout| self.shaped.take(layout)) {
            Some(worker) => Ok(worker),
            None => Ok(self.pool.take().await?),
        }
    }
}

/// A layout, and its file as it lies now.
fn with_file(layout: Arc<Layout>) -> (Arc<Layout>, Arc<File>) {
    let file = layout.file.file();
    (layout, file)
}

pub(crate) fn restoring(
    version: &Version,
    snapshot: Arc<Snapshot>,
    files: Arc<Files>,
    identity: &Identity,
    arm: bool,
    record: bool,
) -> Restoring {
    let layout = snapshot.layout();
    let command = Command::Restore(RestoreSpec {
        arm,
        record,
        has_layout: layout.is_some(),
        thaw: false,
        memory_mode: version.spec.memory_mode,
        limits: version.limits(),
        identity: identity.spec(),
        environment: version.own_environment(identity),
    });
    Restoring {
        command,
        memory: snapshot.memory(),
        snapshot,
        layout: layout.map(with_file),
        files,
        frozen: Vec::new(),
        is_base: false,
    }
}

/// A snapshot in memory or on disk. One that cannot be used is made anew, and the reason logged.
async fn find(store: &Arc<SnapshotStore>, key: &Key) -> Option<Arc<Snapshot>> {
    if let Some(snapshot) = store.held(key) {
        return Some(snapshot);
    }
    let (store, wanted) = (Arc::clone(store), key.clone());
    let loaded = tokio::task::spawn_blocking(move || store.load(&wanted))
        .await
        .ok()?;
    match loaded {
        Ok(snapshot) => Some(snapshot),
        Err(error) if error.is_missing() => None,
        Err(error) => {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(name = key.name, error, "a snapshot is made anew");
            None
        }
    }
}

async fn boot(
    worker: &mut Worker,
    files: &Files,
    identity: &Identity,
    limits: Limits,
    handler: &str,
) -> Result<(), StartError> {
    let command = boot_command(files, identity, limits, handler)?;
    let sent = worker.send(&[with_trees(&command, [&files.root])]).await;
    sent.map_err(StartError::Lost)?;
    booted(worker, &mut LogSink::Discarded).await
}
