//! Versions come and go: what is made at a deployment, and what is deleted at a removal.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use crate::{
    api::{Deployed, NodeError, StartKind, VersionId, VersionSpec},
    desk::Granted,
    log::LogSink,
    node::{Counted, Inner},
    start::{StartError, failed},
    version::Version,
};

impl Inner {
    pub(crate) async fn deploy(self: &Arc<Self>, spec: VersionSpec) -> Result<Deployed, NodeError> {
        if self.is_stopping() {
            return Err(NodeError::Stopping);
        }
        let _counted = Counted::new(self);
        let version = self.register(spec);
        let mut log = LogSink::Collected(Vec::new());
        let deployed = match &self.snapshots {
            Some(store) => self.snapshot(store, &version, &mut log).await.map(|made| {
                self.arm(&version);
                let snapshot = made.snapshot;
                (made.init, snapshot.guest_bytes, snapshot.stored_bytes)
            }),
            None => self.try_out(&version, &mut log).await,
        };
        let log = log.into_collected();
        match deployed {
            Ok((init, memory_bytes, snapshot_bytes)) => Ok(Deployed {
                init,
                memory_bytes,
                snapshot_bytes,
                log,
            }),
            Err(error) => Err(match error.told() {
                Ok(failure) => NodeError::Init { failure, log },
                Err(error) => error,
            }),
        }
    }

    /// Starts one instance, which is then the first idle one: how a version is made ready without snapshots.
    async fn try_out(
        self: &Arc<Self>,
        version: &Arc<Version>,
        log: &mut LogSink,
    ) -> Result<(Duration, u64, u64), StartError> {
        let _only_one = version.making.lock().await;
        let patience = self.patience(version);
        let claimed = self
            .desk
            .claim(version.id(), None, self.config.queue_timeout, patience)
            .await;
        match claimed {
            Ok(Granted::Use(instance, kind)) => {
                // Deployed twice: there is one already.
                let memory_bytes = instance.memory_bytes;
                self.desk.rest(*instance, kind == StartKind::Armed);
                Ok((Duration::ZERO, memory_bytes, 0))
            }
            Ok(Granted::Thaw(frozen)) => {
                self.desk.rest_frozen(*frozen, Instant::now());
                Ok((Duration::ZERO, 0, 0))
            }
            Ok(Granted::Start(place)) => {
                let booted = self.boot(version, place, log).await?;
                let memory_bytes = booted.instance.memory_bytes;
                if version.keeps_memory() {
                    self.desk.rest(booted.instance, false);
                }
                Ok((booted.took, memory_bytes, 0))
            }
            Err(error) => Err(failed("finding room for an instance", error).into()),
        }
    }

    pub(crate) async fn remove(self: &Arc<Self>, id: &VersionId) {
        let version = self.versions().remove(id);
        self.desk.remove(id);
        let Some(version) = version else { return };
        version.removed.store(true, Ordering::SeqCst);
        self.forget_removed(&version).await;
        drop(version);
        let files = Arc::clone(&self.files);
        // It blocks on nothing but the disk, and a panic there is logged by its thread.
        let _ = tokio::task::spawn_blocking(move || files.prune()).await;
    }

    /// Deletes what is stored of a version, if it has been removed: at its removal, and again when something that was
    /// under way then has been stored since.
    pub(crate) async fn forget_removed(&self, version: &Version) {
        let Some(store) = &self.snapshots else { return };
        if version.removed.load(Ordering::SeqCst) {
            let (store, name) = (Arc::clone(store), version.id().0.clone());
            let _ = tokio::task::spawn_blocking(move || store.remove(&name)).await;
        }
    }
}
