//! Work that outlives the request that asked for it, counted, so that a stop can wait for it.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, task::JoinHandle, time::timeout};

/// Counts running tasks.
#[derive(Debug, Clone)]
pub(crate) struct Tasks(Arc<watch::Sender<usize>>);

struct Running(Arc<watch::Sender<usize>>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl Tasks {
    pub(crate) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(0)))
    }

    /// Runs a future to its end, whoever waits for it.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.0.send_modify(|count| *count += 1);
        let running = Running(Arc::clone(&self.0));
        tokio::spawn(async move {
            let _running = running;
            future.await
        })
    }

    /// Waits until nothing runs, for at most `patience`. Answers how many still run.
    pub(crate) async fn drained(&self, patience: Duration) -> usize {
        let mut count = self.0.subscribe();
        let drained = timeout(patience, count.wait_for(|count| *count == 0)).await;
        drop(drained);
        *self.0.borrow()
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn a_stop_waits_for_what_runs() {
        let tasks = Tasks::new();
        let (go, wait) = oneshot::channel::<()>();
        drop(tasks.spawn(wait));
        assert_eq!(tasks.drained(Duration::ZERO).await, 1);
        go.send(()).unwrap();
        assert_eq!(tasks.drained(Duration::from_secs(60)).await, 0);
    }
}
