//! Where a guest's output goes while someone waits for it.

use bytes::Bytes;
use gust_worker::protocol::LOG_BYTES_MAX;
use tokio::sync::mpsc;

/// Receives the pieces of a guest's output.
#[derive(Debug)]
pub(crate) enum LogSink {
    /// Collected, for a deployment.
    Collected(Vec<u8>),
    /// Sent on, for a call. A dropped receiver discards it.
    Sent(mpsc::Sender<Bytes>),
    /// No one asks for it.
    Discarded,
}

impl LogSink {
    /// Takes a piece. Waits while whoever reads it has no room.
    pub(crate) async fn take(&mut self, piece: Vec<u8>) {
        match self {
            Self::Collected(log) => {
                // The worker counts; this is for one that does not.
                let room = usize::try_from(LOG_BYTES_MAX)
                    .unwrap_or(usize::MAX)
                    .saturating_sub(log.len());
                log.extend_from_slice(&piece[..piece.len().min(room)]);
            }
            Self::Sent(sender) => drop(sender.send(Bytes::from(piece)).await),
            Self::Discarded => {}
        }
    }

    /// What was collected.
    pub(crate) fn into_collected(self) -> Bytes {
        match self {
            Self::Collected(log) => Bytes::from(log),
            Self::Sent(_) | Self::Discarded => Bytes::new(),
        }
    }
}
