//! Having a worker write its state down.

use std::{os::fd::AsFd, sync::Arc, time::Duration};

use gust_worker::{
    frame::Frame,
    protocol::{Captured, Command, Report},
};

use crate::{
    link::Outgoing,
    snapshot::{Draft, Key, Snapshot, SnapshotStore},
    start::{StartError, failed},
    version::io_error,
    worker::{Worker, WorkerError, unexpected},
};

/// Longest time for a worker to write a snapshot or a layout, or to arm an instance.
pub(crate) const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

/// Has a worker write its state, and keeps it.
pub(crate) async fn capture(
    store: &Arc<SnapshotStore>,
    worker: &mut Worker,
    key: Key,
    guest_bytes: u64,
) -> Result<Arc<Snapshot>, StartError> {
    let draft = store
        .draft()
        .map_err(|error| io_error("making a snapshot's files", error))?;
    let descriptors = vec![draft.memory.as_fd(), draft.state.as_fd()];
    let sent = worker
        .send(&[Outgoing {
            command: &Command::Capture,
            body: b"",
            descriptors,
        }])
        .await;
    sent.map_err(StartError::Lost)?;
    let answered = answer(worker, WRITE_TIMEOUT).await.map_err(StartError::Lost)?;
    let captured = match answered.message {
        Report::Captured(captured) => check(captured, &draft)?,
        other => return Err(StartError::Lost(unexpected(&other))),
    };
    let store = Arc::clone(store);
    let kept = tokio::task::spawn_blocking(move || {
        store.keep(
            &key,
            draft,
            (captured.memory_bytes, captured.state_bytes),
            guest_bytes,
        )
    });
    let kept = kept.await.map_err(|error| failed("keeping a snapshot", error))?;
    Ok(kept.map_err(|error| io_error("keeping a snapshot", error))?)
}

/// What a worker says that it has written must be there.
fn check(captured: Captured, draft: &Draft) -> Result<Captured, StartError> {
    let length = |file: &std::fs::File| {
        file.metadata()
            .map(|metadata| metadata.len())
            .map_err(|error| io_error("looking at a snapshot", error))
    };
    let fits =
        captured.memory_bytes <= length(&draft.memory)? && captured.state_bytes <= length(&draft.state)?;
    match fits && captured.memory_bytes > 0 && captured.state_bytes > 0 {
        true => Ok(captured),
        false => Err(failed(
            "taking a snapshot",
            WorkerError::Unexpected("a length that is not the file's"),
        )
        .into()),
    }
}

/// The worker's answer to a command that is no event. What it logs meanwhile belongs to no one.
pub(crate) async fn answer(worker: &mut Worker, timeout: Duration) -> Result<Frame<Report>, WorkerError> {
    let answered = async {
        loop {
            let frame = worker.receive().await?;
            if !matches!(frame.message, Report::Log) {
                return Ok(frame);
            }
        }
    };
    match tokio::time::timeout(timeout, answered).await {
        Ok(answered) => answered,
        Err(_) => Err(WorkerError::Late(timeout)),
    }
}
