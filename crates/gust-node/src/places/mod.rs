//! Who may have an instance now: the places of a node, as a plain object without a clock or I/O.
//!
//! A place is the right to have one worker serve one version. There are `instances_max` of them, and together they may
//! hold `memory_bytes_max`. A call gets, in this order: an idle instance of its version, one that is about to be idle again
//! (which takes less than arming another in the stead of an armed one), an armed one, a place to start one, or its turn in
//! one queue of all versions.
//!
//! ```text
//!             claim                       settle (answered)         idle again
//!  (place) ──────────> starting ─> busy ────────────────> settling ───────────> idle ──> busy ...
//!                                                                                └─ evicted, expired
//! ```
//!
//! What is given back goes to the first in the queue that it fits: an instance to a call of its version, a place to the
//! very first. Nobody waits while an idle instance of another version keeps a place: the one that has been idle longest
//! goes. Generic in the instance `I`, so that tests need no processes, and in what the queue's channels carry, `T`.

mod names;
mod queue;
#[cfg(test)]
mod tests;
mod types;

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use crate::{
    api::{StartKind, VersionId},
    named::{InstanceClass, InstanceName, Named},
};
pub(crate) use types::{Bounds, Claim, Cold, Consequences, Counts, Grant, PlaceId, Rested};
use types::{Entry, Resting, Taken, Waiter};

/// The places of one node.
#[derive(Debug)]
pub(crate) struct Places<I, T> {
    bounds: Bounds,
    versions: HashMap<VersionId, Entry<I>>,
    taken: HashMap<PlaceId, Taken>,
    bytes: u64,
    starting: usize,
    /// Places whose instances have been told to go.
    leaving: usize,
    queue: VecDeque<Waiter<T>>,
    /// Places whose instances have names, and the versions that they serve.
    names: HashMap<InstanceName, (PlaceId, VersionId)>,
    /// Names that are to be told as lost.
    lost: Vec<InstanceName>,
    counter: u64,
}

impl<I, T> Places<I, T> {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            versions: HashMap::new(),
            taken: HashMap::new(),
            bytes: 0,
            starting: 0,
            leaving: 0,
            queue: VecDeque::new(),
            names: HashMap::new(),
            lost: Vec::new(),
            counter: 0,
        }
    }

    /// Makes a version known; returns its generation, and the instances of an earlier registration, which must go.
    pub(crate) fn register(&mut self, id: VersionId, expected_bytes: u64) -> (u64, Consequences<I, T>) {
        let generation = self.next_count();
        let entry = Entry {
            generation,
            idle: Vec::new(),
            armed: Vec::new(),
            settling: 0,
            arming: 0,
            expected_bytes,
        };
        let old = self.versions.insert(id, entry);
        let mut consequences = self.serve_queue();
        consequences
            .dropped
            .extend(old.into_iter().flat_map(Entry::into_instances));
        (generation, consequences)
    }

    /// Forgets a version: its instances at rest must go, its waiting calls are told by their closed channel.
    pub(crate) fn remove(&mut self, id: &VersionId) -> Consequences<I, T> {
        let old = self.versions.remove(id);
        self.queue.retain(|waiter| waiter.version != *id);
        let mut consequences = self.serve_queue();
        consequences
            .dropped
            .extend(old.into_iter().flat_map(Entry::into_instances));
        consequences
    }

    /// Claims an instance for a call: the one that is `named`, or any that has no name. `patient` says that the call would
    /// rather wait for an instance that is about to be idle than start another.
    pub(crate) fn claim(
        &mut self,
        id: &VersionId,
        named: Option<Named>,
        patient: bool,
    ) -> (Claim<I, T>, Consequences<I, T>) {
        let Some(entry) = self.versions.get_mut(id) else {
            return (Claim::Unknown, Consequences::none());
        };
        if let Some(named) = named {
            return self.claim_named(id, named, patient);
        }
        let ahead = self
            .queue
            .iter()
            .filter(|waiter| waiter.patient && waiter.named.is_none() && waiter.version == *id)
            .count();
        let is_idle = entry.idle.iter().any(|resting| resting.name.is_none());
        let settling = patient && !is_idle && entry.settling > ahead;
        if !settling && let Some((instance, kind)) = self.take_resting(id, None) {
            return (Claim::Use(instance, kind), Consequences::none());
        }
        self.join_queue(id, (None, false), settling)
    }

    /// The start in a place has ended well: another may begin.
    pub(crate) fn started(&mut self, place: PlaceId) -> Consequences<I, T> {
        if let Some(taken) = self.taken.get_mut(&place)
            && std::mem::take(&mut taken.starting)
        {
            self.starting -= 1;
        }
        self.serve_queue()
    }

    /// A place is free again, whatever became of what was in it.
    pub(crate) fn leave(&mut self, place: PlaceId) -> Consequences<I, T> {
        if let Some(taken) = self.taken.remove(&place) {
            self.bytes -= taken.bytes;
            self.starting -= usize::from(taken.starting);
            self.leaving -= usize::from(taken.leaving);
            if let Some(named) = taken.named {
                self.forget_name(place, named, taken.is_told);
            }
        }
        self.serve_queue()
    }

    /// An instance has answered and is about to be idle. Answers its name, for [`Places::unsettle`].
    pub(crate) fn settle(&mut self, id: &VersionId, generation: u64, place: PlaceId) -> Option<InstanceName> {
        if let Some(taken) = self.taken.get_mut(&place)
            && let Some(named) = taken.named
        {
            taken.settling += 1;
            return Some(named.name);
        }
        if let Some(entry) = self.current(id, generation) {
            entry.settling += 1;
        }
        None
    }

    /// An instance that was about to be idle is, or will not be.
    pub(crate) fn unsettle(
        &mut self,
        id: &VersionId,
        generation: u64,
        (place, name): (PlaceId, Option<InstanceName>),
    ) -> Consequences<I, T> {
        match name {
            Some(_) => {
                if let Some(taken) = self.taken.get_mut(&place) {
                    taken.settling = taken.settling.saturating_sub(1);
                }
            }
            None => {
                if let Some(entry) = self.current(id, generation) {
                    entry.settling = entry.settling.saturating_sub(1);
                }
            }
        }
        self.serve_queue()
    }

    /// Takes an instance to rest, whose memory is `bytes` now: to the first waiting call of its version, or to the idle
    /// or armed ones.
    pub(crate) fn rest(&mut self, rested: Rested<I>, now: Instant) -> Consequences<I, T> {
        let Rested {
            id,
            generation,
            place,
            instance,
            bytes,
            armed,
            cold,
        } = rested;
        if let Some(taken) = self.taken.get_mut(&place) {
            self.bytes = self.bytes - taken.bytes + bytes;
            taken.bytes = bytes;
            taken.armed = armed;
        }
        let tick = self.next_count();
        let taken = self.taken.get(&place);
        let is_evicted = taken.is_some_and(|taken| taken.evicted);
        let name = taken.and_then(|taken| taken.named).map(|named| named.name);
        let kept_for = taken.filter(|_| armed).and_then(|taken| taken.armed_for);
        let Some(entry) = self.current(&id, generation).filter(|_| !is_evicted) else {
            let mut consequences = self.serve_queue();
            consequences.dropped.push(instance);
            return consequences;
        };
        if cold != Cold::Frozen {
            entry.expected_bytes = entry.expected_bytes.max(bytes);
        }
        let kind = if armed { StartKind::Armed } else { StartKind::Warm };
        let waiting = self.waiting_for(&id, name);
        if let Some(waiter) = waiting.and_then(|at| self.queue.remove(at)) {
            self.give(place, &id, waiter.named);
            let mut consequences = self.serve_queue();
            consequences
                .turns
                .push((waiter.sender, Grant::Use(instance, kind)));
            return consequences;
        }
        let resting = Resting {
            instance,
            place,
            since: now,
            tick,
            cold,
            name,
            kind,
            kept_for,
        };
        // The borrow above had to end for the queue.
        if let Some(entry) = self.versions.get_mut(&id) {
            match cold {
                // One that has a name is kept apart from those that are for whoever comes.
                Cold::Not | Cold::Never if armed && name.is_none() => entry.armed.push(resting),
                Cold::Not | Cold::Never => entry.idle.push(resting),
                Cold::Frozen => entry.idle.insert(0, resting),
            }
        }
        let mut consequences = self.serve_queue();
        consequences.dropped.extend(self.trim());
        consequences
    }

    /// Takes a place for an armed instance of a version, if fewer than `wanted` are there or in the making and nothing
    /// has to give way.
    pub(crate) fn claim_armed(&mut self, id: &VersionId, generation: u64, wanted: usize) -> Option<PlaceId> {
        let room = self.queue.is_empty();
        let entry = self.current(id, generation)?;
        let expected = entry.expected_bytes;
        if !room || entry.armed.len() + entry.arming >= wanted || !self.fits(expected) {
            return None;
        }
        if let Some(entry) = self.versions.get_mut(id) {
            entry.arming += 1;
        }
        let place = self.take(id, generation, expected, None);
        self.count_no_start(place);
        if let Some(taken) = self.taken.get_mut(&place) {
            taken.armed = true;
        }
        Some(place)
    }

    /// An armed instance is ready or will not be.
    pub(crate) fn armed(&mut self, id: &VersionId, generation: u64) {
        if let Some(entry) = self.current(id, generation) {
            entry.arming = entry.arming.saturating_sub(1);
        }
    }

    /// Takes out what has been at rest longer than `idle_timeout` and has no name, and what `is_dead`.
    pub(crate) fn expire(
        &mut self,
        now: Instant,
        idle_timeout: Duration,
        is_dead: impl Fn(&I) -> bool,
    ) -> Vec<I> {
        let over = |resting: &mut Resting<I>| {
            let longest = resting.kept_for.unwrap_or(idle_timeout);
            let is_old = now.saturating_duration_since(resting.since) >= longest;
            is_old && resting.name.is_none() || is_dead(&resting.instance)
        };
        let mut gone = Vec::new();
        for entry in self.versions.values_mut() {
            gone.extend(entry.idle.extract_if(.., over));
            gone.extend(entry.armed.extract_if(.., over));
        }
        gone.into_iter().map(|resting| resting.instance).collect()
    }

    /// Takes out the idle instances that may be frozen and have been at rest for `freeze_after`, with the times since when;
    /// at most `most`.
    pub(crate) fn freezable(
        &mut self,
        now: Instant,
        freeze_after: Duration,
        most: usize,
    ) -> Vec<(I, Instant)> {
        let mut found = Vec::new();
        for entry in self.versions.values_mut() {
            let due = |resting: &mut Resting<I>| {
                resting.cold == Cold::Not && now.saturating_duration_since(resting.since) >= freeze_after
            };
            found.extend(entry.idle.extract_if(.., due).take(most - found.len()));
        }
        found
            .into_iter()
            .map(|resting| (resting.instance, resting.since))
            .collect()
    }

    /// Takes out the idle instances of a version, and its armed ones too unless `keep_armed`. Those that serve a call or
    /// are in the making go when they come to rest.
    pub(crate) fn evict(&mut self, id: &VersionId, keep_armed: bool) -> Vec<I> {
        let Some(entry) = self.versions.get_mut(id) else {
            return Vec::new();
        };
        let mut gone = std::mem::take(&mut entry.idle);
        if !keep_armed {
            gone.append(&mut entry.armed);
        }
        for taken in self.taken.values_mut() {
            if taken.generation == entry.generation && !(taken.armed && keep_armed) {
                taken.evicted = true;
            }
        }
        gone.into_iter().map(|resting| resting.instance).collect()
    }

    /// Takes out everything at rest, and lets go of the queue: its calls are told by their closed channel.
    pub(crate) fn close(&mut self) -> Vec<I> {
        self.queue.clear();
        self.versions
            .drain()
            .flat_map(|(_, entry)| entry.into_instances())
            .collect()
    }

    pub(crate) fn counts(&self) -> Counts {
        let sum = |of: fn(&Entry<I>) -> usize| self.versions.values().map(of).sum::<usize>();
        let (armed, idle) = (sum(|entry| entry.armed.len()), sum(|entry| entry.idle.len()));
        let frozen = |entry: &Entry<I>| {
            let idle = entry.idle.iter();
            idle.filter(|resting| resting.cold == Cold::Frozen).count()
        };
        Counts {
            armed,
            idle,
            frozen: sum(frozen),
            busy: self.taken.len() - armed - idle,
            queued: self
                .queue
                .iter()
                .filter(|waiter| !waiter.sender.is_closed())
                .count(),
            memory_bytes: self.bytes,
            regular: self.count_of(InstanceClass::Regular),
            emergency: self.count_of(InstanceClass::Emergency),
        }
    }

    /// Takes an instance of a version that rests: the one that is `named`, or one without a name, which then has it.
    fn take_resting(&mut self, id: &VersionId, named: Option<Named>) -> Option<(I, StartKind)> {
        let entry = self.versions.get_mut(id)?;
        let name = named.map(|named| named.name);
        let (at, is_armed) = Self::find_resting(&entry.idle, &entry.armed, name)?;
        let resting = match is_armed {
            true => entry.armed.remove(at),
            false => entry.idle.remove(at),
        };
        self.give(resting.place, id, named);
        Some((resting.instance, resting.kind))
    }

    /// What rested in a place serves a call, under the name that the call has for it.
    fn give(&mut self, place: PlaceId, id: &VersionId, named: Option<Named>) {
        if let Some(taken) = self.taken.get_mut(&place) {
            taken.armed = false;
            taken.armed_for = None;
        }
        if let Some(named) = named {
            self.name(place, id, named);
        }
    }

    /// Whether an instance of this size has room and may be started now.
    fn fits(&self, bytes: u64) -> bool {
        self.has_room(bytes) && self.starting < self.bounds.starts_max
    }

    /// Whether an instance of this size has room. One always has: a budget must not shut a node down.
    fn has_room(&self, bytes: u64) -> bool {
        let memory =
            self.taken.is_empty() || self.bytes.saturating_add(bytes) <= self.bounds.memory_bytes_max;
        memory && self.taken.len() < self.bounds.instances_max
    }

    /// What is made in a place has turns of its own, and must not hold up starts that calls wait for.
    fn count_no_start(&mut self, place: PlaceId) {
        if let Some(taken) = self.taken.get_mut(&place)
            && std::mem::take(&mut taken.starting)
        {
            self.starting -= 1;
        }
    }

    fn take(&mut self, id: &VersionId, generation: u64, bytes: u64, named: Option<Named>) -> PlaceId {
        let place = PlaceId(self.next_count());
        self.taken.insert(
            place,
            Taken {
                generation,
                bytes,
                starting: true,
                leaving: false,
                armed: false,
                evicted: false,
                named: None,
                settling: 0,
                is_told: false,
                armed_for: None,
            },
        );
        self.bytes += bytes;
        self.starting += 1;
        if let Some(named) = named {
            self.name(place, id, named);
        }
        place
    }

    /// Takes out instances at rest until those that stay fit the memory, longest at rest first.
    fn trim(&mut self) -> Vec<I> {
        let going = |taken: &HashMap<PlaceId, Taken>| {
            taken
                .values()
                .filter(|taken| taken.leaving)
                .map(|taken| taken.bytes)
                .sum::<u64>()
        };
        let mut gone = Vec::new();
        while self.bytes - going(&self.taken) > self.bounds.memory_bytes_max
            && self.taken.len() > self.leaving + 1
            && let Some(instance) = self.oldest()
        {
            gone.push(instance);
        }
        gone
    }

    /// Takes out the instance that has been at rest longest.
    fn oldest(&mut self) -> Option<I> {
        let ticks = self.versions.iter().flat_map(|(id, entry)| {
            let first = |list: &Vec<Resting<I>>| list.first().map(|resting| resting.tick);
            [(first(&entry.idle), id, false), (first(&entry.armed), id, true)]
        });
        let (_, id, armed) = ticks
            .filter_map(|(tick, id, armed)| Some((tick?, id, armed)))
            .min()?;
        let id = id.clone();
        let entry = self.versions.get_mut(&id)?;
        let resting = if armed {
            entry.armed.remove(0)
        } else {
            entry.idle.remove(0)
        };
        if let Some(taken) = self.taken.get_mut(&resting.place) {
            taken.leaving = true;
            self.leaving += 1;
        }
        Some(resting.instance)
    }

    /// The entry of a version, if it is still the same registration.
    fn current(&mut self, id: &VersionId, generation: u64) -> Option<&mut Entry<I>> {
        self.versions
            .get_mut(id)
            .filter(|entry| entry.generation == generation)
    }

    fn next_count(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }
}
