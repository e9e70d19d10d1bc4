//! A node whose sandboxes are only waited for: the control plane's own scalability, measured as Dirigent's authors do
//! (SOSP'24, section 5).
//!
//! A start takes a set time, and a call as long as its event says (`{"duration_ms": 5}`; no time without that). Neither
//! uses a processor. Everything else is as with a real node: names, bounds, and instances that are gone.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use gust_node::{
    Deployed, InstanceClass, InstanceName, Invocation, InvokeError, InvokeResult, Named, NodeError,
    NodeStats, Outcome, Present, StartKind, Timings, VersionId, Wanted,
};
use serde::Deserialize;
use tokio::{sync::Notify, time::sleep};
use uuid::Uuid;

/// Memory that an instance is said to use, in bytes.
const INSTANCE_BYTES: u64 = 16 << 20;

/// A fake node; clones are the same one.
#[derive(Debug, Clone)]
pub struct FakeNode(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    start: Duration,
    instances_max: usize,
    /// It has every version there is.
    has_all: bool,
    state: Mutex<State>,
    lost: Notify,
}

#[derive(Debug, Default)]
struct State {
    versions: HashSet<VersionId>,
    instances: HashMap<InstanceName, Instance>,
    /// Instances without names that serve a call.
    nameless: usize,
    lost: Vec<InstanceName>,
    started: u64,
    is_stopping: bool,
}

#[derive(Debug)]
struct Instance {
    class: InstanceClass,
    version: VersionId,
    calls: u32,
    /// It goes when it has no call.
    ends: bool,
}

/// What an event may ask for.
#[derive(Deserialize)]
struct Event {
    duration_ms: f64,
}

/// A call that an instance serves, until this is dropped.
struct Serving<'a> {
    fake: &'a FakeNode,
    named: Option<Named>,
}

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        let mut state = self.fake.state();
        let Some(named) = self.named else {
            state.nameless -= 1;
            return;
        };
        let Some(instance) = state.instances.get_mut(&named.name) else {
            return;
        };
        instance.calls -= 1;
        if instance.ends && instance.calls == 0 {
            state.instances.remove(&named.name);
        }
    }
}

impl FakeNode {
    /// A node whose starts take `start`, and that has room for so many instances.
    pub fn new(start: Duration, instances_max: usize) -> Self {
        Self::with(start, instances_max, false)
    }

    /// One that has every version there is, without being told of any: a thousand of them need no memory for that.
    pub fn with_all_versions(start: Duration, instances_max: usize) -> Self {
        Self::with(start, instances_max, true)
    }

    fn with(start: Duration, instances_max: usize, has_all: bool) -> Self {
        Self(Arc::new(Inner {
            start,
            instances_max,
            has_all,
            state: Mutex::default(),
            lost: Notify::new(),
        }))
    }

    /// Makes a version known; what the agent's `register` does, for those who have no specification.
    pub fn register(&self, id: VersionId) {
        self.state().versions.insert(id);
    }

    pub(crate) fn deploy(&self, id: &VersionId) -> Result<Deployed, NodeError> {
        self.register(id.clone());
        Ok(Deployed {
            init: Duration::ZERO,
            memory_bytes: INSTANCE_BYTES,
            snapshot_bytes: 0,
            log: Bytes::new(),
        })
    }

    pub(crate) fn remove(&self, id: &VersionId) {
        self.state().versions.remove(id);
        self.evict(id);
    }

    pub(crate) async fn invoke(
        &self,
        id: &VersionId,
        invocation: Invocation,
    ) -> Result<Outcome, InvokeError> {
        let named = match invocation.wanted {
            Wanted::Any => None,
            Wanted::Resting(named) | Wanted::New(named) => Some(named),
        };
        let (serving, is_new) = self.serve(id, named)?;
        if is_new {
            sleep(self.0.start).await;
        }
        if let Some(delivered) = invocation.delivered {
            // Whoever has stopped listening need not be told.
            let _ = delivered.send(());
        }
        let run = duration(&invocation.payload);
        sleep_if(run.min(invocation.timeout)).await;
        drop(serving);
        let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let timings = Timings {
            worker_ns: if is_new { nanoseconds(self.0.start) } else { 0 },
            handler_ns: nanoseconds(run),
            ..Timings::default()
        };
        let result = match run > invocation.timeout {
            true => InvokeResult::TimedOut,
            false => InvokeResult::Success(Bytes::from_static(b"null")),
        };
        Ok(Outcome {
            result,
            start: if is_new {
                StartKind::Restored
            } else {
                StartKind::Warm
            },
            instance_id: named.map_or_else(
                || Uuid::new_v4().simple().to_string(),
                |named| format!("{:032x}", named.name.0),
            ),
            duration: run.min(invocation.timeout),
            start_duration: is_new.then_some(self.0.start),
            memory_bytes: INSTANCE_BYTES,
            memory_bytes_max: INSTANCE_BYTES,
            log_bytes_dropped: 0,
            kept: named.is_some(),
            replaced: is_new && matches!(invocation.wanted, Wanted::Resting(_)),
            timings,
        })
    }

    pub(crate) async fn create(&self, id: &VersionId, named: Named) -> Result<(), InvokeError> {
        let (serving, is_new) = self.serve(id, Some(named))?;
        if is_new {
            sleep(self.0.start).await;
        }
        drop(serving);
        Ok(())
    }

    pub(crate) fn end(&self, name: InstanceName) {
        let mut state = self.state();
        let Some(instance) = state.instances.get_mut(&name) else {
            return;
        };
        instance.ends = true;
        if instance.calls == 0 {
            state.instances.remove(&name);
        }
    }

    pub(crate) async fn lost(&self) -> Vec<InstanceName> {
        loop {
            let lost = std::mem::take(&mut self.state().lost);
            if !lost.is_empty() {
                return lost;
            }
            self.0.lost.notified().await;
        }
    }

    pub(crate) fn present(&self) -> Vec<Present> {
        let state = self.state();
        let present = state.instances.iter().map(|(name, instance)| Present {
            named: Named {
                name: *name,
                class: instance.class,
            },
            version: instance.version.clone(),
            rests: instance.calls == 0,
        });
        present.collect()
    }

    /// Loses the instances of a version that serve no call.
    pub fn evict(&self, id: &VersionId) {
        let mut state = self.state();
        let of_version = |instance: &Instance| instance.version == *id && instance.calls == 0;
        let gone = state
            .instances
            .extract_if(|_, instance| of_version(instance))
            .map(|(name, _)| name);
        let gone: Vec<InstanceName> = gone.collect();
        state.lost.extend(gone);
        drop(state);
        self.0.lost.notify_one();
    }

    /// What it holds now.
    pub fn stats(&self) -> NodeStats {
        let state = self.state();
        let count = |of: fn(&Instance) -> bool| state.instances.values().filter(|i| of(i)).count();
        NodeStats {
            idle: count(|instance| instance.calls == 0),
            busy: count(|instance| instance.calls > 0) + state.nameless,
            regular: count(|instance| instance.class == InstanceClass::Regular),
            emergency: count(|instance| instance.class == InstanceClass::Emergency),
            instances_started: state.started,
            ..NodeStats::default()
        }
    }

    pub(crate) fn stop(&self) {
        self.state().is_stopping = true;
    }

    /// Has the instance of a name serve a call, or a new one; whether it is new.
    fn serve(&self, id: &VersionId, named: Option<Named>) -> Result<(Serving<'_>, bool), InvokeError> {
        let mut state = self.state();
        if state.is_stopping {
            return Err(InvokeError::Stopping);
        }
        if !self.0.has_all && !state.versions.contains(id) {
            return Err(InvokeError::UnknownVersion(id.clone()));
        }
        let serving = || Serving { fake: self, named };
        if let Some(named) = named
            && let Some(instance) = state.instances.get_mut(&named.name)
        {
            instance.calls += 1;
            return Ok((serving(), false));
        }
        if state.instances.len() + state.nameless >= self.0.instances_max {
            return Err(InvokeError::NoCapacity {
                reason: "every place for an instance is taken",
            });
        }
        state.started += 1;
        match named {
            Some(named) => {
                let instance = Instance {
                    class: named.class,
                    version: id.clone(),
                    calls: 1,
                    ends: false,
                };
                state.instances.insert(named.name, instance);
            }
            None => state.nameless += 1,
        }
        Ok((serving(), true))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long an event is to take.
fn duration(payload: &[u8]) -> Duration {
    let event: Option<Event> = serde_json::from_slice(payload).ok();
    let milliseconds = event.map_or(0.0, |event| event.duration_ms);
    Duration::try_from_secs_f64(milliseconds / 1e3).unwrap_or_default()
}

/// Waits, where there is something to wait for: a timer's shortest wait is a millisecond.
async fn sleep_if(time: Duration) {
    if time > Duration::ZERO {
        sleep(time).await;
    }
}
