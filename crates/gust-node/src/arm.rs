//! What is done with snapshots off the path of calls: instances are armed ahead, and layouts are learned from runs.
//!
//! An instance that records learns with its first run for all that come after it, armed or not. While one
//! records, none is armed: it would be laid out worse than it could be a moment later.

use std::{
    os::fd::AsFd,
    sync::{Arc, atomic::Ordering},
};

use gust_worker::protocol::{Command, Report, WaitsFor};

use crate::{
    api::NodeError,
    capture::{WRITE_TIMEOUT, answer},
    desk::Place,
    host::BACKGROUND_PAUSE,
    identity::Identity,
    instance::Instance,
    link::Outgoing,
    log::LogSink,
    node::Inner,
    restore::restoring,
    snapshot::{Key, LearnedFrom, Recording, Snapshot, SnapshotStore},
    start::StartError,
    version::Version,
    worker::{WorkerError, unexpected},
};

/// Longest layout: hot pages of more memory than that would be no faster than the snapshot itself.
pub(crate) const LAYOUT_BYTES_MAX: u64 = 4 << 30;

/// Why no layout came of a recorded run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LearnError {
    #[error(transparent)]
    Worker(#[from] WorkerError),
    #[error("making a layout's file failed")]
    Draft(#[source] std::io::Error),
    #[error(transparent)]
    Node(NodeError),
    #[error("no worker: {0:?}")]
    Start(StartError),
    #[error("the worker wrote a layout of {0} bytes")]
    Length(u64),
}

impl Inner {
    /// Has armed instances of a version made in the background, as many as are wanted and have room.
    pub(crate) fn arm(self: &Arc<Self>, version: &Arc<Version>) {
        let Some(store) = &self.snapshots else { return };
        while let Some(place) = self.desk.claim_armed(version, self.config.armed_per_version) {
            let (inner, store, version) = (Arc::clone(self), Arc::clone(store), Arc::clone(version));
            tokio::spawn(async move {
                tokio::time::sleep(BACKGROUND_PAUSE).await;
                let armed = inner.make_armed(&store, &version, place).await;
                inner.desk.armed(&version);
                match armed {
                    Ok(Some(instance)) => inner.desk.rest(instance, true),
                    Ok(None) => {}
                    Err(error) if !inner.is_stopping() => {
                        tracing::warn!(version = %version.id(), ?error, "no armed instance");
                    }
                    Err(_) => {}
                }
            });
        }
    }

    /// An armed instance; `None` while another records.
    async fn make_armed(
        &self,
        store: &Arc<SnapshotStore>,
        version: &Arc<Version>,
        place: Place,
    ) -> Result<Option<Instance>, StartError> {
        let snapshot = self
            .snapshot(store, version, &mut LogSink::Discarded)
            .await?
            .snapshot;
        let _turn = self.source.background().await;
        let recording = snapshot.claim_recording();
        if recording.is_none() && snapshot.is_being_recorded() {
            return Ok(None);
        }
        self.lay_out_ahead(version, place, snapshot, recording)
            .await
            .map(Some)
    }

    /// An instance as its snapshot left it, touched ahead, by a worker that stands back for those that serve calls.
    pub(crate) async fn lay_out_ahead(
        &self,
        version: &Arc<Version>,
        place: Place,
        snapshot: Arc<Snapshot>,
        recording: Option<Recording>,
    ) -> Result<Instance, StartError> {
        let files = version.files(&self.files).await?;
        let identity = Identity::new();
        let mut worker = self.take_worker(version.limits()).await?;
        let standing_back = worker.stand_back();
        self.open_egress(&mut worker, version);
        let record = recording.is_some();
        let origin = snapshot.stored_checksum();
        let restoring = restoring(version, snapshot, files, &identity, true, record);
        let sent = worker.send(&[restoring.outgoing()]).await;
        sent.map_err(StartError::Lost)?;
        let waiting = match answer(&mut worker, WRITE_TIMEOUT)
            .await
            .map_err(StartError::Lost)?
            .message
        {
            Report::Waiting(waiting) if waiting.waits_for == WaitsFor::Event => waiting,
            other => return Err(StartError::Lost(unexpected(&other))),
        };
        drop(standing_back);
        place.started();
        self.count_started();
        let version = Arc::clone(version);
        let memory_bytes = waiting.memory_bytes;
        Ok(Instance {
            id: identity.id,
            version,
            worker,
            place,
            memory_bytes,
            recording,
            origin,
        })
    }

    /// Learns in the background from the run of an instance that has recorded it. Where memory is kept, the instance goes on
    /// as any other.
    pub(crate) fn learn(self: &Arc<Self>, mut instance: Box<Instance>, recording: Recording) {
        let inner = Arc::clone(self);
        let kept = instance.version.keeps_memory();
        let settling = kept.then(|| self.desk.settle(&instance));
        instance.version.learning.store(kept, Ordering::Relaxed);
        tokio::spawn(async move {
            let learned = match instance.settle().await {
                Ok(_) => inner.replan(&mut instance, &recording).await,
                Err(error) => Err(error.into()),
            };
            if let Err(error) = &learned
                && !inner.is_stopping()
            {
                recording.failed();
                let error: &dyn std::error::Error = error;
                tracing::warn!(version = %instance.version.id(), error, "nothing was learned from a run");
            }
            let version = Arc::clone(&instance.version);
            let snapshot = Arc::clone(recording.snapshot());
            drop(recording);
            version.learning.store(false, Ordering::Relaxed);
            match learned {
                Ok(()) if kept => inner.desk.rest(*instance, false),
                Ok(()) | Err(_) => drop(instance),
            }
            drop(settling);
            inner.arm(&version);
            inner.tend_graft(&version, &snapshot);
        });
    }

    /// Has an instance write a layout, and uses it from now on.
    async fn replan(&self, instance: &mut Instance, recording: &Recording) -> Result<(), LearnError> {
        let Some(store) = &self.snapshots else {
            return Ok(());
        };
        let draft = store.layout_draft().map_err(LearnError::Draft)?;
        let memory = recording.snapshot().memory();
        let command = Command::Replan;
        let outgoing = Outgoing {
            command: &command,
            body: b"",
            descriptors: vec![draft.as_fd(), memory.as_fd()],
        };
        instance.worker.send(&[outgoing]).await?;
        match answer(&mut instance.worker, WRITE_TIMEOUT).await?.message {
            Report::Replanned { .. } => {}
            other => return Err(unexpected(&other).into()),
        }
        let key = Key {
            name: instance.version.id().0.clone(),
            inputs: Vec::new(),
        };
        self.keep_layout(store, key, recording.snapshot(), draft, LearnedFrom::Run)
            .await?;
        self.forget_removed(&instance.version).await;
        Ok(())
    }
}
