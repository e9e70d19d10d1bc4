//! The queue of calls that wait: who is served next, and from what.

use std::collections::HashMap;

use tokio::sync::oneshot;

use super::{
    Places,
    types::{Claim, Consequences, Grant, QUEUE_MAX, Waiter},
};
use crate::{
    api::VersionId,
    named::{InstanceName, Named},
};

impl<I, T> Places<I, T> {
    /// A claim waits for its turn, which may have come already.
    pub(super) fn join_queue(
        &mut self,
        id: &VersionId,
        (named, is_ahead): (Option<Named>, bool),
        settling: bool,
    ) -> (Claim<I, T>, Consequences<I, T>) {
        if self.queue.len() >= QUEUE_MAX {
            return (Claim::Full, Consequences::none());
        }
        let (sender, turn) = oneshot::channel();
        self.queue.push_back(Waiter {
            version: id.clone(),
            sender,
            patient: settling,
            named,
            is_ahead,
        });
        // Whether it is the call's turn already is decided in one place.
        (Claim::Queued { turn, settling }, self.serve_queue())
    }

    /// Who waits for an instance that comes to rest: a call before what is made ahead of calls.
    pub(super) fn waiting_for(&self, id: &VersionId, name: Option<InstanceName>) -> Option<usize> {
        let first = |is_ahead| {
            self.queue.iter().position(|waiter| {
                waiter.version == *id
                    && waiter.is_ahead == is_ahead
                    && !waiter.sender.is_closed()
                    && Self::is_for(waiter, name)
            })
        };
        first(false).or_else(|| first(true))
    }

    /// Lets go of calls that were given up and of calls of versions that are gone, and ends the patience of those that
    /// wait for more instances than are about to be idle. Whether that was anyone's.
    fn review_queue(&mut self) -> bool {
        let mut has_ended = false;
        let mut settling: HashMap<&VersionId, usize> = HashMap::new();
        let (versions, names, taken) = (&self.versions, &self.names, &self.taken);
        let is_settling = |named: Named| {
            let place = names.get(&named.name).and_then(|(place, _)| taken.get(place));
            place.is_some_and(|taken| taken.settling > 0 && !taken.evicted)
        };
        self.queue.retain_mut(|waiter| {
            let Some((id, entry)) = versions.get_key_value(&waiter.version) else {
                return false;
            };
            if let Some(named) = waiter.named.filter(|_| waiter.patient) {
                waiter.patient = is_settling(named);
                has_ended |= !waiter.patient;
            } else if waiter.patient {
                let left = settling.entry(id).or_insert(entry.settling);
                waiter.patient = *left > 0;
                has_ended |= !waiter.patient;
                *left = left.saturating_sub(1);
            }
            !waiter.sender.is_closed()
        });
        has_ended
    }

    /// Gives what rests to calls whose patience has ended; others have looked before they joined the queue.
    fn serve_from_rest(&mut self, consequences: &mut Consequences<I, T>) {
        let mut at = 0;
        while at < self.queue.len() {
            let waiter = &self.queue[at];
            let (id, named) = (waiter.version.clone(), waiter.named);
            let taken = (!waiter.patient).then(|| self.take_resting(&id, named));
            let Some((instance, kind)) = taken.flatten() else {
                at += 1;
                continue;
            };
            if let Some(waiter) = self.queue.remove(at) {
                consequences
                    .turns
                    .push((waiter.sender, Grant::Use(instance, kind)));
            }
        }
    }

    /// Who is next to get a place: the first call if it may be started now, otherwise what is to be made ahead of calls.
    fn next_to_start(&self) -> Option<usize> {
        let next = |is_ahead| {
            let is_next = move |waiter: &Waiter<T>| !waiter.patient && waiter.is_ahead == is_ahead;
            self.queue.iter().position(is_next)
        };
        let call = next(false).filter(|_| self.starting < self.bounds.starts_max);
        call.or_else(|| next(true))
    }

    /// Grants what can be granted, first come first served; calls before what is made ahead of them.
    pub(super) fn serve_queue(&mut self) -> Consequences<I, T> {
        let mut consequences = Consequences::none();
        if self.review_queue() {
            self.serve_from_rest(&mut consequences);
        }
        while let Some(next) = self.next_to_start() {
            let entry = &self.versions[&self.queue[next].version];
            let (generation, expected) = (entry.generation, entry.expected_bytes);
            if !self.has_room(expected) {
                // What is told to go frees its place in a moment, which serves the queue again.
                if self.leaving == 0 {
                    consequences.dropped.extend(self.oldest());
                }
                break;
            }
            if let Some(waiter) = self.queue.remove(next) {
                let place = self.take(&waiter.version, generation, expected, waiter.named);
                if waiter.is_ahead {
                    self.count_no_start(place);
                }
                consequences.turns.push((waiter.sender, Grant::Start(place)));
            }
        }
        consequences
    }
}
