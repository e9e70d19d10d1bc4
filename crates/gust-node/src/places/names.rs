//! Places whose instances have names: found by them, given away with them, and told when they are lost.

use std::time::Duration;

use super::{
    Places,
    types::{Claim, Consequences, LOST_MAX, PlaceId, Resting, Waiter},
};
use crate::{
    api::VersionId,
    named::{InstanceClass, InstanceName, Named, Present},
};

impl<I, T> Places<I, T> {
    /// The place of an instance by its name.
    pub(crate) fn place_of(&self, name: InstanceName) -> Option<PlaceId> {
        self.names.get(&name).map(|(place, _)| *place)
    }

    /// Lets an instance go by its name: now, or when it comes to rest. It is not told as lost. Its worker may be used again,
    /// armed, for so long.
    pub(crate) fn end(&mut self, name: InstanceName, armed_for: Duration) -> Option<I> {
        let (place, version) = self.names.get(&name)?;
        let place = *place;
        let taken = self.taken.get_mut(&place)?;
        taken.evicted = true;
        taken.is_told = true;
        taken.armed_for = Some(armed_for);
        let entry = self.versions.get_mut(version)?;
        let at = entry.idle.iter().position(|resting| resting.place == place)?;
        Some(entry.idle.remove(at).instance)
    }

    /// Whether the instance in a place has been ended by its name.
    pub(crate) fn is_ended(&self, place: PlaceId) -> bool {
        self.taken.get(&place).is_some_and(|taken| taken.is_told)
    }

    /// Takes its name from an instance that has been ended and is to be armed again, if it is to be for any time, fewer than
    /// `wanted` are armed or in the making, and no call waits for room.
    pub(crate) fn retire(&mut self, id: &VersionId, generation: u64, place: PlaceId, wanted: usize) -> bool {
        let taken = self.taken.get(&place);
        let is_wanted = taken.is_some_and(|taken| taken.armed_for.is_some_and(|time| !time.is_zero()));
        if !is_wanted || !self.queue.is_empty() || self.bytes > self.bounds.memory_bytes_max {
            return false;
        }
        let Some(entry) = self.current(id, generation) else {
            return false;
        };
        if entry.armed.len() + entry.arming >= wanted {
            return false;
        }
        entry.arming += 1;
        let named = self.taken.get_mut(&place).and_then(|taken| {
            taken.evicted = false;
            taken.is_told = false;
            taken.armed = true;
            taken.named.take()
        });
        if let Some(named) = named {
            self.forget_name(place, named, true);
        }
        true
    }

    /// Names of instances that have ended by themselves or for another's sake since this was asked last.
    pub(crate) fn take_lost(&mut self) -> Vec<InstanceName> {
        std::mem::take(&mut self.lost)
    }

    /// Whether a name is to be told as lost.
    pub(crate) fn has_lost(&self) -> bool {
        !self.lost.is_empty()
    }

    /// Every instance that has a name.
    pub(crate) fn present(&self) -> Vec<Present> {
        let present = |(_, (place, version)): (_, &(PlaceId, VersionId))| {
            let taken = self.taken.get(place)?;
            let entry = self.versions.get(version)?;
            Some(Present {
                named: taken.named?,
                version: version.clone(),
                rests: entry.idle.iter().any(|resting| resting.place == *place),
            })
        };
        self.names.iter().filter_map(present).collect()
    }

    /// Instances of a class.
    pub(super) fn count_of(&self, class: InstanceClass) -> usize {
        let is_of = |named: &Named| named.class == class;
        let named = self.taken.values().filter_map(|taken| taken.named.as_ref());
        named.filter(|named| is_of(named)).count()
    }

    /// Claims the instance of a name, or a new one under it.
    pub(super) fn claim_named(
        &mut self,
        id: &VersionId,
        named: Named,
        patient: bool,
    ) -> (Claim<I, T>, Consequences<I, T>) {
        let settling = patient && !self.rests(id, named.name) && self.is_settling(named.name);
        if !settling && let Some((instance, kind)) = self.take_resting(id, Some(named)) {
            return (Claim::Use(instance, kind), Consequences::none());
        }
        self.join_queue(id, (Some(named), false), settling)
    }

    /// Claims an instance that is to have a name ahead of calls: one that is prepared, or a place to make one in. Calls
    /// that wait for a start go first, and it does not count as one.
    pub(crate) fn claim_ahead(&mut self, id: &VersionId, named: Named) -> (Claim<I, T>, Consequences<I, T>) {
        if !self.versions.contains_key(id) {
            return (Claim::Unknown, Consequences::none());
        }
        match self.take_resting(id, Some(named)) {
            Some((instance, kind)) => (Claim::Use(instance, kind), Consequences::none()),
            None => self.join_queue(id, (Some(named), true), false),
        }
    }

    /// Whether the instance of a name has answered and is about to rest.
    pub(super) fn is_settling(&self, name: InstanceName) -> bool {
        let taken = self.place_of(name).and_then(|place| self.taken.get(&place));
        taken.is_some_and(|taken| taken.settling > 0 && !taken.evicted)
    }

    /// Gives the instance in a place a name. Whatever had it before goes when it comes to rest.
    pub(super) fn name(&mut self, place: PlaceId, id: &VersionId, named: Named) {
        let before = self.names.insert(named.name, (place, id.clone()));
        if let Some((before, _)) = before.filter(|(before, _)| *before != place)
            && let Some(taken) = self.taken.get_mut(&before)
        {
            taken.named = None;
            taken.evicted = true;
        }
        if let Some(taken) = self.taken.get_mut(&place) {
            taken.named = Some(named);
        }
        // Whoever asks from now on finds it there.
        self.lost.retain(|lost| *lost != named.name);
    }

    /// A place is given up: its name is free, and told as lost unless the control plane has ended it.
    pub(super) fn forget_name(&mut self, place: PlaceId, named: Named, is_told: bool) {
        if self.place_of(named.name) != Some(place) {
            return;
        }
        self.names.remove(&named.name);
        // A control plane that does not ask learns of it when it sends a call there.
        if !is_told && self.lost.len() < LOST_MAX {
            self.lost.push(named.name);
        }
    }

    /// Whether an instance that comes to rest is for this waiter.
    pub(super) fn is_for(waiter: &Waiter<T>, name: Option<InstanceName>) -> bool {
        match (name, waiter.named) {
            (Some(name), Some(named)) => named.name == name,
            (Some(_), None) => false,
            (None, Some(_)) => !waiter.patient,
            (None, None) => true,
        }
    }

    /// Position of the instance of a name where it rests, otherwise of one that has no name; and whether that is among the
    /// armed ones.
    pub(super) fn find_resting(
        idle: &[Resting<I>],
        armed: &[Resting<I>],
        name: Option<InstanceName>,
    ) -> Option<(usize, bool)> {
        let own = name.and_then(|name| idle.iter().rposition(|resting| resting.name == Some(name)));
        let nameless = || idle.iter().rposition(|resting| resting.name.is_none());
        match own.or_else(nameless) {
            Some(at) => Some((at, false)),
            None => armed.len().checked_sub(1).map(|at| (at, true)),
        }
    }

    fn rests(&self, id: &VersionId, name: InstanceName) -> bool {
        let entry = self.versions.get(id);
        entry.is_some_and(|entry| entry.idle.iter().any(|resting| resting.name == Some(name)))
    }
}
