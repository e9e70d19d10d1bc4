//! Idle instances without their workers: kept longer for less.
//!
//! ```text
//!  idle ── freeze_after ──> Freeze ──> frozen (bytes in this process) ──> Restore with them: thawed, and idle again
//!                             └ too large, or connected to something outside: stays as it is
//! ```
//!
//! What a worker gives away is a tenant's: it is kept in memory only, goes to a worker for the same version, and once.

use std::{sync::Arc, time::Instant};

use gust_worker::protocol::{Command, FROZEN_BYTES_MAX, Report};

use crate::{
    capture::answer,
    instance::{Frozen, Instance, SETTLE_TIMEOUT},
    link::Outgoing,
    node::Inner,
    worker::{WorkerError, unexpected},
};

/// Instances that are frozen in one sweep; more would keep the processors from calls.
const FROZEN_A_SWEEP: usize = 32;

impl Inner {
    /// Has idle instances frozen in the background that have been idle for long enough.
    pub(crate) fn freeze_idle(self: &Arc<Self>) {
        let Some(freeze_after) = self.config.freeze_after.filter(|_| self.snapshots.is_some()) else {
            return;
        };
        for (instance, since) in self.desk.freezable(freeze_after, FROZEN_A_SWEEP) {
            let inner = Arc::clone(self);
            let settling = self.desk.settle(&instance);
            tokio::spawn(async move {
                let _turn = inner.source.background().await;
                match freeze(instance).await {
                    Ok(Ok(frozen)) => inner.desk.rest_frozen(frozen, since),
                    Ok(Err(instance)) => inner.desk.leave_at_rest(*instance, since),
                    Err(error) if !inner.is_stopping() => {
                        let error: &dyn std::error::Error = &error;
                        tracing::warn!(error, "an instance was lost while it was frozen");
                    }
                    Err(_) => {}
                }
                drop(settling);
            });
        }
    }
}

/// An instance without its worker; itself when it cannot be frozen.
async fn freeze(mut instance: Instance) -> Result<Result<Frozen, Box<Instance>>, WorkerError> {
    let Some(origin) = instance.origin else {
        return Ok(Err(Box::new(instance)));
    };
    let outgoing = Outgoing {
        command: &Command::Freeze,
        body: b"",
        descriptors: Vec::new(),
    };
    let started = Instant::now();
    let standing_back = instance.worker.stand_back();
    instance.worker.send(&[outgoing]).await?;
    let frame = answer(&mut instance.worker, SETTLE_TIMEOUT).await?;
    let Report::Frozen = frame.message else {
        return Err(unexpected(&frame.message));
    };
    let state = frame.body;
    drop(standing_back);
    if state.is_empty() || state.len() > FROZEN_BYTES_MAX {
        return Ok(Err(Box::new(instance)));
    }
    tracing::debug!(instance = instance.id, bytes = state.len(), took = ?started.elapsed(), "frozen");
    let Instance {
        id, version, place, ..
    } = instance;
    Ok(Ok(Frozen {
        id,
        version,
        place,
        state,
        origin,
    }))
}
