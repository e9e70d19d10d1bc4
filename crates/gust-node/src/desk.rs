//! The places of a node with real instances in them: carries out what [`Places`] decides.
//!
//! Two rules keep it free of deadlocks: an instance is never dropped and no call is told anything while the lock is held.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use crate::{
    api::{InvokeError, NodeError, StartKind, VersionId},
    instance::{AtRest, Frozen, Instance},
    named::{InstanceName, Named, Present},
    places::{Bounds, Claim, Cold, Consequences, Counts, Grant, PlaceId, Places, Rested},
    version::Version,
};

/// Claims of a call that meet an instance that has just died, before it starts one of its own.
const DEAD_INSTANCES_MAX: usize = 16;

/// What a call is told whose turn did not come in time.
const FULL: InvokeError = InvokeError::NoCapacity {
    reason: "every place for an instance is taken",
};

/// Places with real instances in them.
type DeskPlaces = Places<AtRest, Granted>;

/// The places of one node.
#[derive(Debug)]
pub(crate) struct Desk {
    places: Mutex<DeskPlaces>,
    /// Told when an instance that has a name was lost.
    lost: Notify,
}

/// What a call gets.
#[derive(Debug)]
pub(crate) enum Granted {
    /// An instance that is ready.
    Use(Box<Instance>, StartKind),
    /// An instance that is ready once it has a worker.
    Thaw(Box<Frozen>),
    /// A place to start one in.
    Start(Place),
}

/// A place that is taken; free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    desk: Arc<Desk>,
    id: PlaceId,
}

impl Granted {
    /// Its place.
    pub(crate) fn place(&self) -> PlaceId {
        match self {
            Self::Use(instance, _) => instance.place.id,
            Self::Thaw(frozen) => frozen.place.id,
            Self::Start(place) => place.id,
        }
    }

    fn of(at_rest: AtRest, kind: StartKind) -> Self {
        match at_rest {
            AtRest::Instance(instance) => Self::Use(instance, kind),
            AtRest::Frozen(frozen) => Self::Thaw(Box::new(frozen)),
        }
    }
}

impl Place {
    /// The start in it has ended well.
    pub(crate) fn started(&self) {
        let consequences = self.desk.places().started(self.id);
        self.desk.carry_out(consequences);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut places = self.desk.places();
        let consequences = places.leave(self.id);
        let has_lost = places.has_lost();
        drop(places);
        if has_lost {
            self.desk.lost.notify_one();
        }
        self.desk.carry_out(consequences);
    }
}

/// An instance that has answered and is about to be ready again. Calls of its version wait for it for a moment.
#[derive(Debug)]
pub(crate) struct Settling {
    desk: Arc<Desk>,
    version: Arc<Version>,
    of: (PlaceId, Option<InstanceName>),
}

impl Settling {
    /// Whether the instance has a name.
    pub(crate) fn is_named(&self) -> bool {
        self.of.1.is_some()
    }
}

impl Drop for Settling {
    fn drop(&mut self) {
        let consequences = self
            .desk
            .places()
            .unsettle(self.version.id(), self.version.generation, self.of);
        self.desk.carry_out(consequences);
    }
}

impl Desk {
    pub(crate) fn new(bounds: Bounds) -> Arc<Self> {
        Arc::new(Self {
            places: Mutex::new(Places::new(bounds)),
            lost: Notify::new(),
        })
    }

    /// Makes a version known; returns its generation.
    pub(crate) fn register(self: &Arc<Self>, id: VersionId, expected_bytes: u64) -> u64 {
        let (generation, consequences) = self.places().register(id, expected_bytes);
        self.carry_out(consequences);
        generation
    }

    /// Forgets a version.
    pub(crate) fn remove(self: &Arc<Self>, id: &VersionId) {
        let consequences = self.places().remove(id);
        self.carry_out(consequences);
    }

    /// Claims an instance of a version (the one that is `named`, or any without a name), or a place to start one in, and
    /// waits for its turn for at most `timeout`; for one that has answered to be ready again for at most `patience`, before
    /// another is started.
    pub(crate) async fn claim(
        self: &Arc<Self>,
        id: &VersionId,
        named: Option<Named>,
        timeout: Duration,
        patience: Duration,
    ) -> Result<Granted, InvokeError> {
        let claim = |places: &mut DeskPlaces, patient| places.claim(id, named, patient);
        self.claim_with(id, claim, timeout, patience).await
    }

    /// Claims an instance of a version that is to be `named`, or a place to make it in, ahead of calls: those that wait go
    /// first. Waits for its turn for at most `timeout`.
    pub(crate) async fn claim_ahead(
        self: &Arc<Self>,
        id: &VersionId,
        named: Named,
        timeout: Duration,
    ) -> Result<Granted, InvokeError> {
        let claim = |places: &mut DeskPlaces, _| places.claim_ahead(id, named);
        self.claim_with(id, claim, timeout, Duration::ZERO).await
    }

    async fn claim_with(
        self: &Arc<Self>,
        id: &VersionId,
        claim: impl Fn(&mut DeskPlaces, bool) -> (Claim<AtRest, Granted>, Consequences<AtRest, Granted>),
        timeout: Duration,
        patience: Duration,
    ) -> Result<Granted, InvokeError> {
        let deadline = tokio::time::Instant::now() + timeout;
        let mut patient = true;
        for _ in 0..DEAD_INSTANCES_MAX {
            let (claim, consequences) = claim(&mut self.places(), patient);
            self.carry_out(consequences);
            let granted = match claim {
                Claim::Use(at_rest, kind) => Granted::of(at_rest, kind),
                Claim::Queued { mut turn, settling } => {
                    let short = deadline.min(tokio::time::Instant::now() + patience);
                    let wait = if settling { short } else { deadline };
                    let told = tokio::time::timeout_at(wait, &mut turn).await;
                    // What was granted in the last moment must not get lost with the receiver.
                    turn.close();
                    match (told, turn.try_recv()) {
                        (Ok(Ok(granted)), _) | (Err(_), Ok(granted)) => granted,
                        // The version has been removed, or the node stops.
                        (Ok(Err(_)), _) => return Err(InvokeError::UnknownVersion(id.clone())),
                        (Err(_), Err(_)) if settling => {
                            patient = false;
                            continue;
                        }
                        (Err(_), Err(_)) => return Err(FULL),
                    }
                }
                Claim::Unknown => return Err(InvokeError::UnknownVersion(id.clone())),
                Claim::Full => {
                    return Err(InvokeError::NoCapacity {
                        reason: "the queue is full",
                    });
                }
            };
            match granted {
                // Something outside has ended it while it rested.
                Granted::Use(instance, _) if instance.has_ended() => drop(instance),
                granted => return Ok(granted),
            }
        }
        Err(NodeError::Io {
            action: "finding an instance".to_owned(),
            source: std::io::Error::other("one instance after the other has died"),
        }
        .into())
    }

    /// A place for an armed instance of a version, if `wanted` are not there yet and nothing has to give way.
    pub(crate) fn claim_armed(self: &Arc<Self>, version: &Version, wanted: usize) -> Option<Place> {
        let id = self
            .places()
            .claim_armed(version.id(), version.generation, wanted)?;
        Some(Place {
            desk: Arc::clone(self),
            id,
        })
    }

    /// An armed instance is ready or will not be.
    pub(crate) fn armed(&self, version: &Version) {
        self.places().armed(version.id(), version.generation);
    }

    /// An instance has answered. Dropped when it is ready again, or will not be.
    pub(crate) fn settle(self: &Arc<Self>, instance: &Instance) -> Settling {
        let (version, place) = (&instance.version, instance.place.id);
        let name = self.places().settle(version.id(), version.generation, place);
        Settling {
            desk: Arc::clone(self),
            version: Arc::clone(version),
            of: (place, name),
        }
    }

    /// The place of the instance of a name.
    pub(crate) fn place_of(&self, name: InstanceName) -> Option<PlaceId> {
        self.places().place_of(name)
    }

    /// Ends an instance when it comes to rest; answers it when it does already. It may be armed again for so long.
    pub(crate) fn end(&self, name: InstanceName, armed_for: Duration) -> Option<AtRest> {
        self.places().end(name, armed_for)
    }

    /// Whether the control plane has ended an instance that is about to rest.
    pub(crate) fn is_ended(&self, instance: &Instance) -> bool {
        self.places().is_ended(instance.place.id)
    }

    /// Takes its name from an instance that has been ended and is to be armed again; `false` when none is wanted.
    /// [`Desk::armed`] follows.
    pub(crate) fn retire(&self, instance: &Instance, wanted: usize) -> bool {
        let version = &instance.version;
        self.places()
            .retire(version.id(), version.generation, instance.place.id, wanted)
    }

    /// Waits for instances that have names to be lost.
    pub(crate) async fn lost(&self) -> Vec<InstanceName> {
        loop {
            let lost = self.places().take_lost();
            if !lost.is_empty() {
                return lost;
            }
            self.lost.notified().await;
        }
    }

    /// Every instance that has a name.
    pub(crate) fn present(&self) -> Vec<Present> {
        self.places().present()
    }

    /// Takes an instance to rest: for the next call, or as an armed one.
    pub(crate) fn rest(self: &Arc<Self>, instance: Instance, armed: bool) {
        let cold = match instance.origin {
            Some(_) if !armed && instance.version.keeps_memory() => Cold::Not,
            Some(_) | None => Cold::Never,
        };
        self.put(instance, (armed, cold), Instant::now());
    }

    /// Takes an instance that could not be frozen back to its rest, where it has been since then.
    pub(crate) fn leave_at_rest(self: &Arc<Self>, instance: Instance, since: Instant) {
        self.put(instance, (false, Cold::Never), since);
    }

    fn put(self: &Arc<Self>, instance: Instance, (armed, cold): (bool, Cold), since: Instant) {
        let rested = Rested {
            id: instance.version.id().clone(),
            generation: instance.version.generation,
            place: instance.place.id,
            bytes: instance.memory_bytes,
            instance: AtRest::Instance(Box::new(instance)),
            armed,
            cold,
        };
        let consequences = self.places().rest(rested, since);
        self.carry_out(consequences);
    }

    /// Takes a frozen instance to rest, where it has been since then.
    pub(crate) fn rest_frozen(self: &Arc<Self>, frozen: Frozen, since: Instant) {
        let rested = Rested {
            id: frozen.version.id().clone(),
            generation: frozen.version.generation,
            place: frozen.place.id,
            bytes: frozen.state.len() as u64,
            instance: AtRest::Frozen(frozen),
            armed: false,
            cold: Cold::Frozen,
        };
        let consequences = self.places().rest(rested, since);
        self.carry_out(consequences);
    }

    /// Takes out idle instances that are to be frozen, each with when it came to rest.
    pub(crate) fn freezable(&self, freeze_after: Duration, most: usize) -> Vec<(Instance, Instant)> {
        let found = self.places().freezable(Instant::now(), freeze_after, most);
        let instance = |(at_rest, since)| match at_rest {
            AtRest::Instance(instance) => Some((*instance, since)),
            AtRest::Frozen(_) => None,
        };
        found.into_iter().filter_map(instance).collect()
    }

    /// Lets go of what has been at rest too long and has no name, and of what has died.
    pub(crate) fn expire(&self, idle_timeout: Duration) {
        let gone = self
            .places()
            .expire(Instant::now(), idle_timeout, AtRest::has_ended);
        drop(gone);
    }

    /// Lets go of the idle instances of a version, and its armed ones too unless `keep_armed`.
    pub(crate) fn evict(&self, id: &VersionId, keep_armed: bool) {
        let gone = self.places().evict(id, keep_armed);
        drop(gone);
    }

    /// Lets go of everything at rest and of every version.
    pub(crate) fn close(&self) {
        let gone = self.places().close();
        drop(gone);
    }

    pub(crate) fn counts(&self) -> Counts {
        self.places().counts()
    }

    fn carry_out(self: &Arc<Self>, consequences: Consequences<AtRest, Granted>) {
        let Consequences { turns, dropped } = consequences;
        for (sender, grant) in turns {
            let granted = match grant {
                Grant::Use(at_rest, kind) => Granted::of(at_rest, kind),
                Grant::Start(id) => Granted::Start(Place {
                    desk: Arc::clone(self),
                    id,
                }),
            };
            // The call was given up in this moment: the instance rests, the place is free again.
            match sender.send(granted) {
                Err(Granted::Use(instance, kind)) => self.rest(*instance, kind == StartKind::Armed),
                Err(Granted::Thaw(frozen)) => self.rest_frozen(*frozen, Instant::now()),
                Err(Granted::Start(place)) => drop(place),
                Ok(()) => {}
            }
        }
        drop(dropped);
    }

    fn places(&self) -> MutexGuard<'_, DeskPlaces> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
