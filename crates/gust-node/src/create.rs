//! Instances that are made ahead of calls because the control plane wants them.
//!
//! They are made in the background: a start that a call waits for goes first. One that has never run rests as an armed
//! one does, and takes its first call as quickly.

use std::{sync::Arc, time::Instant};

use crate::{
    api::{InvokeError, NodeError, StartKind, VersionId},
    desk::{Granted, Place},
    instance::Instance,
    log::LogSink,
    named::Named,
    node::{Counted, Inner},
    start::StartError,
    version::Version,
};

impl Inner {
    /// Makes an instance under a name and leaves it at rest.
    pub(crate) async fn create(self: &Arc<Self>, id: &VersionId, named: Named) -> Result<(), InvokeError> {
        let _counted = Counted::new(self);
        let created = self.create_now(id, named).await;
        match created {
            // Whatever happened to it, it happened because of the stop.
            Err(_) if self.is_stopping() => Err(InvokeError::Stopping),
            created => created,
        }
    }

    async fn create_now(self: &Arc<Self>, id: &VersionId, named: Named) -> Result<(), InvokeError> {
        if self.is_stopping() {
            return Err(InvokeError::Stopping);
        }
        let version = self
            .versions()
            .get(id)
            .cloned()
            .ok_or_else(|| InvokeError::UnknownVersion(id.clone()))?;
        let timeout = self.config.queue_timeout;
        match self.desk.claim_ahead(id, named, timeout).await? {
            Granted::Use(instance, kind) => {
                let is_armed = kind == StartKind::Armed;
                self.desk.rest(*instance, is_armed);
            }
            Granted::Thaw(frozen) => self.desk.rest_frozen(*frozen, Instant::now()),
            Granted::Start(place) => match self.make_ahead(&version, place).await {
                Ok(instance) => self.desk.rest(instance, true),
                Err(error) => return Err(told(error).into()),
            },
        }
        Ok(())
    }

    /// An instance that has never run.
    async fn make_ahead(&self, version: &Arc<Version>, place: Place) -> Result<Instance, StartError> {
        let mut log = LogSink::Discarded;
        let Some(store) = &self.snapshots else {
            return self
                .boot(version, place, &mut log)
                .await
                .map(|booted| booted.instance);
        };
        let snapshot = self.snapshot(store, version, &mut log).await?.snapshot;
        let _turn = self.source.ahead().await;
        let recording = snapshot.claim_recording();
        self.lay_out_ahead(version, place, snapshot, recording).await
    }
}

fn told(error: StartError) -> NodeError {
    match error.told() {
        Ok(failure) => NodeError::Init {
            failure,
            log: bytes::Bytes::new(),
        },
        Err(error) => error,
    }
}
