//! The queue of calls that wait: who is served next, and from what.

use std::collections::HashMap;

use super::{
    Places,
    types::{Consequences, Grant},
};
use crate::{api::VersionId, named::Named};

impl<I, T> Places<I, T> {
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

    /// Grants what can be granted, first come first served.
    pub(super) fn serve_queue(&mut self) -> Consequences<I, T> {
        let mut consequences = Consequences::none();
        if self.review_queue() {
            self.serve_from_rest(&mut consequences);
        }
        while self.starting < self.bounds.starts_max {
            let Some(next) = self.queue.iter().position(|waiter| !waiter.patient) else {
                break;
            };
            let entry = &self.versions[&self.queue[next].version];
            let (generation, expected) = (entry.generation, entry.expected_bytes);
            if !self.fits(expected) {
                // What is told to go frees its place in a moment, which serves the queue again.
                if self.leaving == 0 {
                    consequences.dropped.extend(self.oldest());
                }
                break;
            }
            if let Some(waiter) = self.queue.remove(next) {
                let place = self.take(&waiter.version, generation, expected, waiter.named);
                consequences.turns.push((waiter.sender, Grant::Start(place)));
            }
        }
        consequences
    }
}
