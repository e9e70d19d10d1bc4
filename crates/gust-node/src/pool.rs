//! Prepared workers that hold nothing of any tenant, made ahead so that a start finds one ready: blank ones, and ones in
//! which a runtime's base has been laid out already ([`Based`]).

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use gust_worker::protocol::JailReport;
use tokio::sync::Notify;

use crate::{
    host::BACKGROUND_PAUSE,
    restore::{Based, RUNTIME_LIMITS},
    source::Source,
    start::{STARTS_MAX, StartError},
    worker::{Worker, WorkerError},
};

/// Pause after a worker could not be made.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Prepared workers.
#[derive(Debug)]
pub(crate) struct Pool {
    source: Source,
    size: usize,
    /// What is laid out in each.
    based: Option<Based>,
    ready: Mutex<Ready>,
    /// Told when there may be fewer than `size`.
    missing: Notify,
}

#[derive(Debug, Default)]
struct Ready {
    workers: Vec<Worker>,
    /// Nothing is kept any more.
    closed: bool,
    /// What the last worker's jail was given, for the log.
    jail: Option<JailReport>,
}

impl Pool {
    /// A pool that fills itself in the background, to `size` workers.
    pub(crate) fn start(source: Source, size: usize, based: Option<Based>) -> Arc<Self> {
        let pool = Arc::new(Self {
            source,
            size,
            based,
            ready: Mutex::default(),
            missing: Notify::new(),
        });
        pool.missing.notify_one();
        tokio::spawn(fill(Arc::downgrade(&pool)));
        pool
    }

    /// A prepared worker: one of the pool, or a new one when there is none.
    pub(crate) async fn take(&self) -> Result<Worker, PoolError> {
        match self.take_ready() {
            Some(worker) => Ok(worker),
            None if self.ready().closed => Err(PoolError::Closed),
            None => self.make_surely().await,
        }
    }

    /// Makes a worker for someone who waits. One that is lost on the way is replaced: it has been given nothing.
    async fn make_surely(&self) -> Result<Worker, PoolError> {
        let mut made = 1;
        loop {
            match self.make(true).await {
                Err(error) if error.is_loss() && made < STARTS_MAX && !self.ready().closed => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "a worker was lost while it was prepared"
                    );
                    made += 1;
                }
                made => return made,
            }
        }
    }

    /// A prepared worker, if there is one.
    pub(crate) fn take_ready(&self) -> Option<Worker> {
        let mut ready = self.ready();
        let worker = std::iter::from_fn(|| ready.workers.pop()).find(|worker| !worker.has_ended());
        drop(ready);
        self.missing.notify_one();
        worker
    }

    /// How many are ready.
    pub(crate) fn len(&self) -> usize {
        self.ready()
            .workers
            .iter()
            .filter(|worker| !worker.has_ended())
            .count()
    }

    /// Has workers replaced that have ended by themselves.
    pub(crate) fn tend(&self) {
        if self.len() < self.size {
            self.missing.notify_one();
        }
    }

    /// Lets go of every worker, and keeps none from now on.
    pub(crate) fn close(&self) {
        let mut ready = self.ready();
        ready.closed = true;
        let workers = std::mem::take(&mut ready.workers);
        drop(ready);
        drop(workers);
        self.missing.notify_one();
    }

    /// Makes a worker; behind everyone else unless it is urgent.
    async fn make(&self, urgent: bool) -> Result<Worker, PoolError> {
        let mut worker = self.source.spawn().await.map_err(PoolError::Spawn)?;
        let standing_back = (!urgent).then(|| worker.stand_back());
        let jail = worker.prepared().await.map_err(PoolError::Prepare)?;
        drop(standing_back);
        {
            let mut ready = self.ready();
            if ready.jail.replace(jail) != Some(jail) {
                tracing::info!(?jail, "workers are jailed");
            }
        }
        match &self.based {
            Some(based) => {
                let _turn = self.source.background().await;
                based.lay_out(&mut worker).await.map_err(PoolError::LayOut)?;
            }
            // The least that anyone gives it.
            None => worker.limit(RUNTIME_LIMITS).map_err(PoolError::Spawn)?,
        }
        Ok(worker)
    }

    fn ready(&self) -> MutexGuard<'_, Ready> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps the pool full until it is closed or gone.
async fn fill(pool: Weak<Pool>) {
    loop {
        let Some(pool) = pool.upgrade() else { return };
        let ended: Vec<Worker> = {
            let mut ready = pool.ready();
            if ready.closed {
                return;
            }
            ready
                .workers
                .extract_if(.., |worker| worker.has_ended())
                .collect()
        };
        drop(ended);
        if pool.len() >= pool.size {
            pool.missing.notified().await;
            continue;
        }
        if pool.len() > 0 {
            tokio::time::sleep(BACKGROUND_PAUSE).await;
        }
        match pool.make(false).await {
            Ok(worker) => {
                let mut ready = pool.ready();
                if !ready.closed {
                    ready.workers.push(worker);
                }
            }
            Err(error) => {
                let is_stopping = matches!(&error, PoolError::Closed) || pool.source.is_stopped();
                if !pool.ready().closed && !is_stopping {
                    let error: &dyn std::error::Error = &error;
                    tracing::error!(error, "a worker could not be prepared");
                }
                // Whatever is wrong will not be right at once.
                tokio::select! {
                    () = tokio::time::sleep(RETRY_PAUSE) => {}
                    () = pool.missing.notified() => {}
                }
            }
        }
    }
}

/// Why there is no worker.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PoolError {
    #[error("making a worker failed")]
    Spawn(#[source] io::Error),
    #[error("a new worker failed")]
    Prepare(#[source] WorkerError),
    #[error("laying a runtime out failed: {0:?}")]
    LayOut(StartError),
    #[error("the node is stopping")]
    Closed,
}

impl PoolError {
    /// The worker has ended, or may have, and another one may not.
    fn is_loss(&self) -> bool {
        match self {
            Self::Prepare(error) | Self::LayOut(StartError::Lost(error)) => error.is_end(),
            // It may have been gone before it could be put into its control group. A zygote that does not answer, or ends
            // again and again, has had its time.
            Self::Spawn(error) => {
                !matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::BrokenPipe)
            }
            Self::LayOut(StartError::Init(_) | StartError::Node(_)) | Self::Closed => false,
        }
    }
}
