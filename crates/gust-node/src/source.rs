//! Where workers come from.

use std::{io, sync::Arc};

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::{worker::Worker, zygote::Zygote};

/// Makes workers that have not reported yet.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    zygote: Arc<Zygote>,
    /// Turns of what workers prepare before anyone waits for it.
    background: Arc<Semaphore>,
    /// Turns of instances that the control plane wants ahead of calls.
    ahead: Arc<Semaphore>,
}

impl Source {
    pub(crate) fn new(zygote: Arc<Zygote>) -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let turns = (cpus / 2).max(1);
        Self {
            zygote,
            background: Arc::new(Semaphore::new(turns)),
            ahead: Arc::new(Semaphore::new(turns)),
        }
    }

    pub(crate) async fn spawn(&self) -> io::Result<Worker> {
        self.zygote.spawn().await
    }

    /// A turn to have a worker prepare something that no one waits for yet: half of the processors stay free of it.
    pub(crate) async fn background(&self) -> Option<SemaphorePermit<'_>> {
        // It is never closed.
        self.background.acquire().await.ok()
    }

    /// A turn to have a worker prepare an instance that the control plane wants: not behind those that the node itself wants,
    /// since in some modes a call waits for it.
    pub(crate) async fn ahead(&self) -> Option<SemaphorePermit<'_>> {
        // It is never closed.
        self.ahead.acquire().await.ok()
    }

    /// Whether there will be no more.
    pub(crate) fn is_stopped(&self) -> bool {
        self.zygote.is_stopped()
    }

    /// Ends every worker; returns when they are gone.
    pub(crate) async fn stop(&self) {
        self.zygote.stop().await;
    }
}
