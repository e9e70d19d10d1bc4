//! Asynchronous events that wait: durable in the store, with an index in memory by when they are due.
//!
//! ```text
//! accept -> stored -> queued -> running -> done: deleted from the store
//!                       ^          |
//!                       +- retry --+    given up: deleted from the store
//! ```
//!
//! An event is in the store from before it is acknowledged until it is done with, so that a process that ends in
//! between delivers it again: at least once, never lost. How often and when is [`RetryPolicy`]'s decision.
//!
//! [`RetryPolicy`]: crate::retry::RetryPolicy

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use gust_store::{Batch, Logs, Meta, Precondition, Record, Revision, StoreError};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{Notify, mpsc, watch},
    time::{Instant, sleep_until},
};
use uuid::Uuid;

use crate::{
    clock,
    ids::{FunctionName, Qualifier, Target},
    limits::AccountLimits,
};

/// An event without its payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// The invocation's id, the same for every attempt.
    pub(crate) id: Uuid,
    pub(crate) name: FunctionName,
    pub(crate) qualifier: Option<Qualifier>,
    pub(crate) accepted_unix_ms: u64,
    pub(crate) due_unix_ms: u64,
    /// Attempts that failed.
    pub(crate) attempts: u32,
    pub(crate) payload_bytes: u64,
    pub(crate) client_context: Option<String>,
    pub(crate) trace_id: Option<String>,
}

impl Event {
    pub(crate) fn target(&self) -> Target {
        Target {
            name: self.name.clone(),
            qualifier: self.qualifier.clone(),
        }
    }

    pub(crate) fn age(&self, now_unix_ms: u64) -> Duration {
        Duration::from_millis(now_unix_ms.saturating_sub(self.accepted_unix_ms))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Payload(pub(crate) Bytes);

impl Record for Event {
    const TABLE: &'static str = "events";
    const KIND: u8 = 3;
    const VERSION: u8 = 1;
}

impl Record for Payload {
    const TABLE: &'static str = "event-payloads";
    const KIND: u8 = 4;
    const VERSION: u8 = 1;
}

/// What has become of an event that a process delivered after it had handed the store over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum EventEnd {
    /// It is done with.
    Done(Box<Event>),
    /// It is to be tried again.
    Again(Box<Event>),
}

/// An event that waits, with what is not worth storing.
#[derive(Debug, Clone)]
pub(crate) struct Queued {
    pub(crate) event: Event,
    /// Deliveries since the last attempt that did not reach the function.
    pub(crate) undelivered: u32,
}

/// Whether deliveries begin.
#[derive(Debug, Default)]
enum Phase {
    #[default]
    Open,
    /// None does: the next process is about to get the store.
    Held,
    /// The next process has the store, and is told here what becomes of events that this one delivers.
    HandedOver(mpsc::Sender<EventEnd>),
}

#[derive(Debug, Default)]
struct Waiting {
    due: BinaryHeap<Reverse<(u64, Uuid)>>,
    events: HashMap<Uuid, Queued>,
    phase: Phase,
    /// Events whose delivery has begun. Those that have been taken and have not are in no list.
    running: HashSet<Uuid>,
    /// Events that the process before this one still delivers.
    elsewhere: HashMap<Uuid, Queued>,
    /// Events and bytes that are accepted and not done with, whether they wait or run.
    held: usize,
    held_bytes: u64,
}

/// All events that wait.
#[derive(Debug, Default)]
pub(crate) struct EventQueue {
    waiting: Mutex<Waiting>,
    changed: Notify,
    /// Deliveries do not begin; for those that wait for their place.
    is_held: watch::Sender<bool>,
}

impl EventQueue {
    /// A queue with the events of the store. Those that are delivered elsewhere wait until that is over. A payload without
    /// an event is what an acceptance or an end left that was cut short, and goes.
    pub(crate) fn load(meta: &Meta, elsewhere: &HashSet<Uuid>) -> Result<Self, StoreError> {
        let queue = Self::default();
        if meta.count::<Payload>()? > meta.count::<Event>()? {
            let events: HashSet<Vec<u8>> = meta.keys::<Event>(&[])?.into_iter().map(|(key, _)| key).collect();
            let mut batch = Batch::new();
            for (key, revision) in meta.keys::<Payload>(&[])? {
                if !events.contains(&key) {
                    batch.delete_if::<Payload>(Precondition::Is(revision), &key);
                }
            }
            // What is left this time is found the next time.
            drop(meta.commit(batch));
        }
        for (_, event) in meta.scan::<Event>()? {
            let mut waiting = queue.lock();
            waiting.held += 1;
            waiting.held_bytes += event.payload_bytes;
            let queued = Queued {
                event,
                undelivered: 0,
            };
            if elsewhere.contains(&queued.event.id) {
                waiting.elsewhere.insert(queued.event.id, queued);
            } else {
                waiting.push(queued);
            }
        }
        Ok(queue)
    }

    /// Makes an event durable and queues it; `false` when the queue is full.
    pub(crate) async fn accept(
        &self,
        meta: &Meta,
        limits: &AccountLimits,
        event: Event,
        payload: Bytes,
    ) -> Result<bool, StoreError> {
        {
            let mut waiting = self.lock();
            let bytes = waiting.held_bytes + event.payload_bytes;
            if waiting.held >= limits.events_queued || bytes > limits.events_queued_bytes {
                return Ok(false);
            }
            waiting.held += 1;
            waiting.held_bytes = bytes;
        }
        let mut batch = Batch::new();
        // In this order, so that there is no event without its payload.
        batch.put(event.id.as_bytes(), &Payload(payload));
        batch.put(event.id.as_bytes(), &event);
        if let Err(error) = meta.commit(batch).await {
            self.lock().release(&event);
            return Err(error);
        }
        self.requeue(Queued {
            event,
            undelivered: 0,
        });
        Ok(true)
    }

    /// Queues an event that is in the store.
    pub(crate) fn requeue(&self, queued: Queued) {
        self.lock().push(queued);
        self.changed.notify_one();
    }

    /// Stores that an attempt has failed, and queues the event for the next.
    pub(crate) async fn retry(&self, meta: &Meta, queued: Queued) -> Result<(), StoreError> {
        let mut batch = Batch::new();
        batch.put(queued.event.id.as_bytes(), &queued.event);
        let Some(storing) = self.ends_here(meta, batch, &queued.event, EventEnd::Again) else {
            return Ok(());
        };
        let stored = storing.await.map(drop);
        // Queued even when the store failed: the event is there as it was, and this process still knows better.
        self.requeue(queued);
        stored
    }

    /// The event is done with, and what its function has written is in the log first: when this process ends before, the
    /// event runs again, and its log is not silent about it.
    pub(crate) async fn conclude(&self, meta: &Meta, logs: &Logs, event: &Event) -> Result<(), StoreError> {
        logs.flush().await;
        self.finish(meta, event).await
    }

    /// The event is done with.
    pub(crate) async fn finish(&self, meta: &Meta, event: &Event) -> Result<(), StoreError> {
        let mut batch = Batch::new();
        batch.delete::<Event>(event.id.as_bytes());
        batch.delete::<Payload>(event.id.as_bytes());
        let Some(deleting) = self.ends_here(meta, batch, event, EventEnd::Done) else {
            return Ok(());
        };
        let deleted = deleting.await.map(drop);
        self.lock().release(event);
        deleted
    }

    /// An event that was taken has its place; `false` when its delivery is not to begin: then it is to be queued again.
    pub(crate) fn begin(&self, id: Uuid) -> bool {
        let mut waiting = self.lock();
        match waiting.phase {
            Phase::Open => waiting.running.insert(id),
            Phase::Held | Phase::HandedOver(_) => return false,
        };
        true
    }

    /// Begins no delivery any more, until [`EventQueue::take_back`].
    pub(crate) fn hold(&self) {
        self.lock().phase = Phase::Held;
        self.is_held.send_replace(true);
    }

    /// Waits until deliveries do not begin. Cancel-safe.
    pub(crate) async fn held(&self) {
        // The sender is here.
        drop(self.is_held.subscribe().wait_for(|is_held| *is_held).await);
    }

    /// Tells of the events that are being delivered: which they are, and what becomes of each. All others are the next
    /// process's, whether they were taken here or not.
    pub(crate) fn hand_over(&self) -> (Vec<Uuid>, mpsc::Receiver<EventEnd>) {
        self.hold();
        let mut waiting = self.lock();
        // Each of them ends once.
        let (tell, ended) = mpsc::channel(waiting.running.len().max(1));
        waiting.phase = Phase::HandedOver(tell);
        (waiting.running.iter().copied().collect(), ended)
    }

    /// Deliveries begin again, after [`EventQueue::hold`] or [`EventQueue::hand_over`].
    pub(crate) fn take_back(&self) {
        self.lock().phase = Phase::Open;
        self.is_held.send_replace(false);
        self.changed.notify_one();
    }

    /// What has become of an event that was delivered elsewhere. One that is not known is done with already.
    pub(crate) async fn end_elsewhere(&self, meta: &Meta, end: EventEnd) -> Result<(), StoreError> {
        let (EventEnd::Done(event) | EventEnd::Again(event)) = &end;
        match self.lock().elsewhere.remove(&event.id) {
            Some(_) => {}
            None => return Ok(()),
        }
        self.end(meta, end).await
    }

    /// Stores what has become of an event.
    pub(crate) async fn end(&self, meta: &Meta, end: EventEnd) -> Result<(), StoreError> {
        match end {
            EventEnd::Done(event) => self.finish(meta, &event).await,
            EventEnd::Again(event) => {
                let queued = Queued {
                    event: *event,
                    undelivered: 0,
                };
                self.retry(meta, queued).await
            }
        }
    }

    /// Whoever delivered events elsewhere has ended: those that it has not told of are delivered here. Answers how many.
    pub(crate) fn elsewhere_is_gone(&self) -> usize {
        let left = {
            let mut waiting = self.lock();
            let left = std::mem::take(&mut waiting.elsewhere);
            let count = left.len();
            left.into_values().for_each(|queued| waiting.push(queued));
            count
        };
        self.changed.notify_one();
        left
    }

    /// Has the end of an event's attempt stored. `None` when another process has the store: then it is told of the end.
    fn ends_here(
        &self,
        meta: &Meta,
        batch: Batch,
        event: &Event,
        end: fn(Box<Event>) -> EventEnd,
    ) -> Option<impl Future<Output = Result<Vec<Revision>, StoreError>> + Send + use<>> {
        let mut waiting = self.lock();
        let tell = match &waiting.phase {
            // Queued under the lock: what ends before the hand-over is in the store before the store is let go of, and
            // is not said to run.
            Phase::Open | Phase::Held => {
                let storing = meta.commit(batch);
                waiting.running.remove(&event.id);
                return Some(storing);
            }
            Phase::HandedOver(tell) => tell,
        };
        if !waiting.running.contains(&event.id) {
            // It has not begun, so the next process delivers it, and this one if it takes the store back.
            waiting.push(Queued {
                event: event.clone(),
                undelivered: 0,
            });
        } else if tell.try_send(end(Box::new(event.clone()))).is_err() {
            tracing::warn!("the next process is not told of an event's end, and delivers it again");
        }
        None
    }

    /// Waits for an event to be due and takes it. Cancel-safe: an event is taken only when it is returned.
    pub(crate) async fn next(&self) -> Queued {
        loop {
            let changed = self.changed.notified();
            let now = clock::unix_ms();
            let due = match self.lock().pop(now) {
                Ok(queued) => return queued,
                Err(due) => due,
            };
            match due {
                Some(due) => {
                    let wait = Duration::from_millis(due.saturating_sub(now));
                    tokio::select! {
                        () = sleep_until(Instant::now() + wait) => {}
                        () = changed => {}
                    }
                }
                None => changed.await,
            }
        }
    }

    /// Events that are accepted and not done with.
    pub(crate) fn len(&self) -> usize {
        self.lock().held
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn push(&mut self, queued: Queued) {
        self.running.remove(&queued.event.id);
        self.due
            .push(Reverse((queued.event.due_unix_ms, queued.event.id)));
        self.events.insert(queued.event.id, queued);
    }

    /// The first event if it is due, otherwise when the first one is.
    fn pop(&mut self, now_unix_ms: u64) -> Result<Queued, Option<u64>> {
        match self.phase {
            Phase::Open => {}
            Phase::Held | Phase::HandedOver(_) => return Err(None),
        }
        while let Some(Reverse((due, id))) = self.due.peek().copied() {
            if due > now_unix_ms {
                return Err(Some(due));
            }
            self.due.pop();
            if let Some(queued) = self.events.remove(&id) {
                return Ok(queued);
            }
        }
        Err(None)
    }

    fn release(&mut self, event: &Event) {
        self.running.remove(&event.id);
        self.held -= 1;
        self.held_bytes -= event.payload_bytes;
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::Arc,
        task::{Context, Waker},
    };

    use gust_store::{LogLine, LogScope, Memory, Store, StoreConfig, decode, encode};

    use super::*;

    fn event(n: u128, due_unix_ms: u64) -> Event {
        Event {
            id: Uuid::from_u128(n),
            name: FunctionName::new("hello").unwrap(),
            qualifier: None,
            accepted_unix_ms: 5,
            due_unix_ms,
            attempts: 1,
            payload_bytes: 2,
            client_context: None,
            trace_id: None,
        }
    }

    #[test]
    fn the_encodings_are_pinned() {
        let bytes = encode(&event(1, 9));
        assert_eq!(
            bytes,
            [
                3, 1, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 5, 104, 101, 108, 108, 111, 0, 5,
                9, 1, 2, 0, 0
            ]
        );
        assert_eq!(decode::<Event>(&bytes).unwrap(), event(1, 9));
        assert_eq!(encode(&Payload(Bytes::from_static(b"{}"))), [4, 1, 2, b'{', b'}']);
    }

    #[tokio::test]
    async fn events_come_in_the_order_of_their_time_and_survive_a_restart() {
        let limits = AccountLimits {
            events_queued: 2,
            ..AccountLimits::default()
        };
        let meta = Meta::in_memory();
        let queue = EventQueue::load(&meta, &HashSet::new()).unwrap();
        let payload = Bytes::from_static(b"{}");
        let accept = |n, due| queue.accept(&meta, &limits, event(n, due), payload.clone());
        assert!(accept(1, 20).await.unwrap());
        assert!(accept(2, 10).await.unwrap());
        assert!(!accept(3, 10).await.unwrap(), "the queue is full");
        assert_eq!(queue.next().await.event.id, Uuid::from_u128(2));
        assert_eq!(queue.next().await.event.id, Uuid::from_u128(1));
        queue.finish(&meta, &event(2, 10)).await.unwrap();
        assert_eq!(queue.len(), 1);

        let queue = EventQueue::load(&meta, &HashSet::new()).unwrap();
        assert_eq!(queue.len(), 1);
        assert_eq!(queue.next().await.event, event(1, 20));
        assert_eq!(meta.count::<Payload>().unwrap(), 1);
    }

    #[tokio::test]
    async fn an_event_is_there_whole_or_not_at_all_wherever_its_acceptance_or_end_is_cut() {
        let limits = AccountLimits::default();
        let payload = Bytes::from_static(b"{}");
        // What is cut is accepting and ending one event: two steps each.
        for steps in 0..=4 {
            let records = Arc::new(Memory::default());
            let meta = Meta::new(records.clone());
            let queue = EventQueue::load(&meta, &HashSet::new()).unwrap();
            queue
                .accept(&meta, &limits, event(1, 1), payload.clone())
                .await
                .unwrap();
            records.cut_after(Some(steps));
            let accepted = queue.accept(&meta, &limits, event(2, 2), payload.clone()).await;
            let finished = queue.finish(&meta, &event(2, 2)).await;
            records.cut_after(None);
            assert_eq!((accepted.is_ok(), finished.is_ok()), (steps >= 2, steps >= 4));

            let queue = EventQueue::load(&meta, &HashSet::new()).unwrap();
            let is_there = steps == 2;
            assert_eq!(queue.len(), 1 + usize::from(is_there), "after {steps} steps");
            for (key, _) in meta.keys::<Event>(&[]).unwrap() {
                assert!(meta.get::<Payload>(&key).unwrap().is_some());
            }
            assert_eq!(meta.count::<Payload>().unwrap(), queue.len() as u64);
            // The first one is none the worse.
            assert_eq!(queue.next().await.event, event(1, 1));
        }
    }

    #[tokio::test]
    async fn what_an_event_has_written_is_in_the_log_before_the_event_is_gone() {
        /// As many pieces as wait for the writer at most, each long enough for it to be busy for a while.
        const PIECES: usize = 250;
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&StoreConfig::new(dir.path())).unwrap();
        let meta = Meta::in_memory();
        let queue = EventQueue::load(&meta, &HashSet::new()).unwrap();
        let payload = Bytes::from_static(b"{}");
        let limits = AccountLimits::default();
        assert!(queue.accept(&meta, &limits, event(1, 1), payload).await.unwrap());
        let (scope, earlier) = (LogScope::new("hello").unwrap(), LogScope::new("another").unwrap());
        let line = |message: String| LogLine {
            unix_ms: 1,
            stream: "[$LATEST]1".to_owned(),
            message,
        };
        for _ in 0..PIECES {
            let long = vec![line("x".repeat(60 << 10))];
            store.logs.append(&earlier, long).await;
        }
        store.logs.append(&scope, vec![line("ran".to_owned())]).await;
        queue.conclude(&meta, &store.logs, &event(1, 1)).await.unwrap();
        let lines = store.logs.tail(&scope, 10, None).unwrap();
        assert_eq!(lines, [line("ran".to_owned())]);
        assert_eq!((queue.len(), meta.count::<Event>().unwrap()), (0, 0));
    }

    #[tokio::test]
    async fn an_event_that_runs_while_the_store_is_handed_over_is_neither_lost_nor_run_twice() {
        let dir = tempfile::tempdir().unwrap();
        let config = StoreConfig::new(dir.path());
        let limits = AccountLimits::default();
        let store = Store::open(&config).unwrap();
        let old = EventQueue::load(&store.meta, &HashSet::new()).unwrap();
        for n in 1..=6 {
            let payload = Bytes::from_static(b"{}");
            assert!(
                old.accept(&store.meta, &limits, event(n, n as u64), payload)
                    .await
                    .unwrap()
            );
        }
        let mut running = Vec::new();
        for _ in 0..5 {
            running.push(old.next().await);
            assert!(old.begin(running.last().unwrap().event.id));
        }
        // This one waits for its place.
        let placeless = old.next().await;
        // One ends before, and one while nothing begins any more.
        old.finish(&store.meta, &running[0].event).await.unwrap();
        old.hold();
        old.held().await;
        assert!(!old.begin(placeless.event.id));
        old.requeue(placeless);
        assert!(old.lock().pop(u64::MAX).is_err(), "nothing new begins");
        let last = running.remove(4);
        let mut last = Box::pin(old.finish(&store.meta, &last.event));
        // It may or may not have reached the disk.
        let _ = last.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        let (ids, mut ended) = old.hand_over();
        store.release().await.unwrap();
        assert_eq!(
            ids.iter().copied().collect::<HashSet<_>>(),
            HashSet::from([2, 3, 4].map(Uuid::from_u128))
        );
        assert!(old.lock().pop(u64::MAX).is_err(), "nothing new begins");

        let next = Store::open(&config).unwrap();
        let new = EventQueue::load(&next.meta, &ids.into_iter().collect()).unwrap();
        assert_eq!(
            new.next().await.event.id,
            Uuid::from_u128(6),
            "what nobody has begun is begun"
        );
        assert_eq!(new.lock().pop(u64::MAX).unwrap_err(), None);
        old.finish(&store.meta, &running[1].event).await.unwrap();
        let mut again = running.remove(2);
        again.event.attempts = 7;
        old.retry(&store.meta, again.clone()).await.unwrap();
        for _ in 0..2 {
            let end = ended.recv().await.unwrap();
            new.end_elsewhere(&next.meta, end).await.unwrap();
        }
        assert_eq!(new.next().await.event, again.event);
        assert_eq!(new.elsewhere_is_gone(), 1, "the one that it has not told of");
        assert_eq!(new.next().await.event.id, Uuid::from_u128(4));
        assert_eq!(new.len(), 3);
        assert_eq!(next.meta.scan::<Event>().unwrap().len(), 3);
    }
}
