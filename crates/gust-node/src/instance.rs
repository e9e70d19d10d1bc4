//! One running copy of a version, from its start to its end.

use std::{sync::Arc, time::Duration};

use gust_worker::protocol::{Report, Waiting};

use crate::{
    desk::Place,
    snapshot::Recording,
    version::Version,
    worker::{Worker, WorkerError, unexpected},
};

/// Longest time for an instance to be ready again after its answer, beside what it may log.
pub(crate) const SETTLE_TIMEOUT: Duration = Duration::from_secs(30);

/// An instance. Dropping it ends its worker and frees its place.
#[derive(Debug)]
pub(crate) struct Instance {
    pub id: String,
    pub version: Arc<Version>,
    pub worker: Worker,
    pub place: Place,
    /// Memory that it used when it last reported, in bytes.
    pub memory_bytes: u64,
    /// It records its first run, for a layout to be learned.
    pub recording: Option<Recording>,
    /// Checksum of the stored snapshot that it was restored from: without one it cannot be frozen.
    pub origin: Option<[u8; 32]>,
}

/// An instance without its worker: what its calls have left in it, compressed.
#[derive(Debug)]
pub(crate) struct Frozen {
    pub id: String,
    pub version: Arc<Version>,
    pub place: Place,
    /// As its worker gave it; for a worker of the same version only.
    pub state: Vec<u8>,
    /// Checksum of the snapshot that it is a difference to.
    pub origin: [u8; 32],
}

/// What rests.
#[derive(Debug)]
pub(crate) enum AtRest {
    Instance(Box<Instance>),
    Frozen(Frozen),
}

impl AtRest {
    /// Whether its worker has ended, if it has one.
    pub(crate) fn has_ended(&self) -> bool {
        match self {
            Self::Instance(instance) => instance.has_ended(),
            Self::Frozen(_) => false,
        }
    }
}

impl Instance {
    /// Whether its worker has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.worker.has_ended()
    }

    /// Waits until it is ready for the next event. What it logs meanwhile belongs to no call and is dropped.
    pub(crate) async fn settle(&mut self) -> Result<Waiting, WorkerError> {
        let settled = async {
            loop {
                let frame = self.worker.receive().await?;
                match frame.message {
                    Report::Waiting(waiting) => return Ok(waiting),
                    Report::Log => {}
                    other => return Err(unexpected(&other)),
                }
            }
        };
        let waiting = match tokio::time::timeout(SETTLE_TIMEOUT, settled).await {
            Ok(settled) => settled?,
            Err(_) => return Err(WorkerError::Late(SETTLE_TIMEOUT)),
        };
        self.memory_bytes = waiting.memory_bytes;
        Ok(waiting)
    }
}
