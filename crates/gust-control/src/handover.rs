//! Another process takes the control plane over while this one finishes its calls.
//!
//! ```text
//! runs -- hold_events, hand_over --> handed over: calls and deliveries go on, nothing is changed, nothing is begun
//!   ^                                     |
//!   +------------ take_back --------------+-- drained --> stopped
//! ```
//!
//! The store is let go of at one moment, between the last change here and the first one there. What a call needs of the
//! store at its end is its log, which both processes may write, and the acknowledgement of an asynchronous event,
//! which is told to the next process ([`EventEnd`]). Whoever calls [`Control::hand_over`] sees to it that no request
//! that changes anything is under way.

use std::time::Duration;

use tokio::{
    sync::{OwnedMutexGuard, mpsc},
    time::timeout,
};
use uuid::Uuid;

pub use crate::events::EventEnd;
use crate::{
    account::Revisions,
    control::{Control, OWN_NODE},
    error::ControlError,
};

/// Longest wait for a change that is under way.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(5);

/// The store has been let go of. Nothing is changed here until this is taken back or dropped, and after it was dropped
/// every change fails.
#[derive(Debug)]
pub struct HandedOver {
    control: Control,
    /// Asynchronous events that are being delivered here.
    pub running: Vec<Uuid>,
    /// What becomes of them.
    pub ended: mpsc::Receiver<EventEnd>,
    _no_changes: OwnedMutexGuard<Revisions>,
}

impl Control {
    /// Begins no delivery of an asynchronous event any more, until [`Control::release_events`]: those that have not begun are
    /// left to the next process.
    pub fn hold_events(&self) {
        self.0.events.hold();
    }

    /// Goes on delivering, after [`Control::hold_events`].
    pub fn release_events(&self) {
        self.0.events.take_back();
    }

    /// Begins nothing any more by itself, waits for a change that is under way, and lets go of the store.
    ///
    /// # Errors
    /// When a change takes too long or the store fails; then everything goes on as before.
    pub async fn hand_over(&self) -> Result<HandedOver, ControlError> {
        let changing = self.0.changing.clone().lock_owned();
        let Ok(no_changes) = timeout(CHANGE_TIMEOUT, changing).await else {
            self.release_events();
            return Err(ControlError::Service("a change is still under way".to_owned()));
        };
        let (running, ended) = self.0.events.hand_over();
        let mut handed = HandedOver {
            control: self.clone(),
            running,
            ended,
            _no_changes: no_changes,
        };
        match self.0.store.release().await {
            Ok(()) => Ok(handed),
            Err(error) => {
                handed.resume().await;
                Err(error.into())
            }
        }
    }

    /// Waits until every call has its place, for `patience` at most, and then gives none a place on another node: the next
    /// process has those. What runs there goes on.
    pub async fn leave_nodes(&self, patience: Duration) {
        let mut placing = self.0.placing.subscribe();
        let all_placed = placing.wait_for(|waiting| *waiting == 0);
        if timeout(patience, all_placed).await.is_err() {
            tracing::warn!("calls still wait for their places, and get none on another node");
        }
        self.0.fleet.remove_nodes_but(OWN_NODE);
    }

    /// What the process before this one has made of an event.
    pub async fn event_ended_elsewhere(&self, end: EventEnd) {
        if let Err(error) = self.0.events.end_elsewhere(&self.0.store.meta, end).await {
            tracing::error!(%error, "the end of an event's attempt was not stored; it may be delivered again");
        }
    }

    /// The process before this one has ended: events that it has not told of are delivered here.
    pub fn elsewhere_is_gone(&self) {
        let left = self.0.events.elsewhere_is_gone();
        if left > 0 {
            tracing::warn!(
                left,
                "events are delivered again that the process before this one has not finished"
            );
        }
    }
}

impl HandedOver {
    /// Takes the store back, and goes on as if nothing had been.
    ///
    /// # Errors
    /// When another process has it.
    pub async fn take_back(&mut self) -> Result<(), ControlError> {
        self.control.0.store.retake()?;
        self.resume().await;
        Ok(())
    }

    async fn resume(&mut self) {
        self.control.0.events.take_back();
        // What has ended meanwhile was told to nobody.
        while let Ok(end) = self.ended.try_recv() {
            let stored = self.control.0.events.end(&self.control.0.store.meta, end).await;
            if let Err(error) = stored {
                tracing::error!(%error, "the end of an event's attempt was not stored; it may be delivered again");
            }
        }
    }
}
