//! Asynchronous calls: accepted, delivered when they are due, tried again, given up.
//!
//! Which events wait is [`crate::events`]'s, when an event is tried again [`crate::retry`]'s; here both meet the way of
//! a call.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use gust_store::{Store, StoreError};
use tokio::sync::Semaphore;

use crate::{
    clock,
    concurrency::{RETRY_AFTER, ThrottleReason},
    control::Control,
    error::ControlError,
    events::{Event, Payload, Queued},
    fleet::Ending,
    ids::Target,
    invoke::Request,
    retry::{self, Decision, Delivery, RetryPolicy},
};

impl Control {
    /// Takes an asynchronous call: once this returns it is durable and will be made.
    ///
    /// # Errors
    /// When there is no such version, the queue is full, or the event cannot be stored.
    pub async fn invoke_async(&self, request: Request) -> Result<(), ControlError> {
        if self.is_stopping() {
            return Err(ControlError::Stopping);
        }
        self.runnable(&request.target)?;
        let now = clock::unix_ms();
        let event = Event {
            id: request.request_id,
            name: request.target.name,
            qualifier: request.target.qualifier,
            accepted_unix_ms: now,
            due_unix_ms: now,
            attempts: 0,
            payload_bytes: request.payload.len() as u64,
            client_context: request.client_context,
            trace_id: request.trace_id,
        };
        let control = self.clone();
        let accept = self.0.tasks.spawn(async move {
            let Control(inner) = &control;
            inner
                .events
                .accept(&inner.store.meta, &inner.config.limits, event, request.payload)
                .await
        });
        match accept.await {
            Ok(Ok(true)) => Ok(()),
            Ok(Ok(false)) => Err(ControlError::Throttled {
                reason: ThrottleReason::EventQueue,
                retry_after: RETRY_AFTER,
            }),
            Ok(Err(error)) => Err(error.into()),
            Err(panic) => Err(ControlError::Service(format!(
                "the event was not stored: {panic}"
            ))),
        }
    }

    /// Delivers asynchronous events as they become due, until the control plane stops.
    pub(crate) fn spawn_dispatcher(&self) {
        let control = self.clone();
        let places = Arc::new(Semaphore::new(self.config().limits.events_running));
        let mut stopped = self.stopped();
        drop(self.0.tasks.spawn(async move {
            loop {
                let next = async {
                    // The semaphore is never closed.
                    let place = Arc::clone(&places).acquire_owned().await.ok();
                    (place, control.0.events.next().await)
                };
                tokio::select! {
                    (place, queued) = next => {
                        let delivering = control.clone();
                        drop(control.0.tasks.spawn(async move {
                            delivering.deliver(queued).await;
                            drop(place);
                        }));
                    }
                    _ = stopped.wait_for(|stopped| *stopped) => return,
                }
            }
        }));
    }

    async fn deliver(&self, mut queued: Queued) {
        let event = &queued.event;
        let delivery = match self.attempt(event).await {
            Ok(Some(delivery)) => delivery,
            Ok(None) => return self.0.events.requeue(queued),
            // It stays in the store and is delivered after the next start.
            Err(ControlError::Stopping) => return,
            Err(error) => {
                tracing::warn!(event = %event.id, function = %event.name, %error, "an event was not delivered");
                match error {
                    ControlError::NotFound { .. } => Delivery::Answered,
                    _ => Delivery::NotDelivered,
                }
            }
        };
        let now = clock::unix_ms();
        let policy = self.retry_policy(&event.target());
        let stored = match policy.decide(delivery, event.attempts, queued.undelivered, event.age(now)) {
            Decision::Retry { after, attempts } => {
                queued.undelivered = if attempts == event.attempts {
                    queued.undelivered + 1
                } else {
                    0
                };
                queued.event.attempts = attempts;
                queued.event.due_unix_ms = now + u64::try_from(after.as_millis()).unwrap_or(u64::MAX / 2);
                self.0.events.retry(&self.0.store.meta, queued).await
            }
            Decision::GiveUp(reason) => {
                tracing::warn!(event = %event.id, function = %event.name, ?reason, "an event was given up");
                self.conclude_event(event).await
            }
            Decision::Done => self.conclude_event(event).await,
        };
        if let Err(error) = stored {
            tracing::error!(%error, "the end of an event's attempt was not stored; it may be delivered again");
        }
    }

    async fn conclude_event(&self, event: &Event) -> Result<(), StoreError> {
        let Store { meta, logs, .. } = &self.0.store;
        self.0.events.conclude(meta, logs, event).await
    }

    /// Has the function run for an event. `None` when no delivery is to begin now.
    async fn attempt(&self, event: &Event) -> Result<Option<Delivery>, ControlError> {
        let began = Instant::now();
        let (control, id) = (self.clone(), event.id);
        let payload = tokio::task::spawn_blocking(move || control.0.store.meta.get::<Payload>(id.as_bytes()));
        let payload = match payload.await {
            Ok(payload) => payload?,
            Err(panic) => {
                return Err(ControlError::Service(format!(
                    "the payload was not read: {panic}"
                )));
            }
        };
        let Some((Payload(payload), _)) = payload else {
            tracing::error!(event = %event.id, "an event has no payload and is dropped");
            return Ok(Some(Delivery::Answered));
        };
        let request = Request {
            target: event.target(),
            request_id: event.id,
            payload,
            client_context: event.client_context.clone(),
            trace_id: event.trace_id.clone(),
            want_tail: false,
        };
        let ready = tokio::select! {
            biased;
            () = self.0.events.held() => return Ok(None),
            ready = self.ready(&request.target) => ready?,
        };
        if !self.0.events.begin(event.id) {
            ready.placed.end(Ending::NotSent);
            return Ok(None);
        }
        let reply = Box::pin(self.run(request, ready, began)).await?;
        Ok(Some(if reply.is_error {
            Delivery::Failed
        } else {
            Delivery::Answered
        }))
    }

    fn retry_policy(&self, target: &Target) -> RetryPolicy {
        let config = self.read(|published| {
            let function = published.account.get(&target.name)?;
            function
                .shared
                .event_configs
                .get(target.qualifier_or_latest())
                .copied()
        });
        RetryPolicy {
            retries_max: config
                .and_then(|config| config.retries_max)
                .unwrap_or(retry::RETRIES_DEFAULT),
            age_max: config
                .and_then(|config| config.age_max_s)
                .map_or(retry::AGE_MAX_DEFAULT, |seconds| {
                    Duration::from_secs(seconds.into())
                }),
            wait: self.config().retry_wait,
        }
    }
}
