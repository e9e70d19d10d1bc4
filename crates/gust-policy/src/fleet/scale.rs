//! What happens by time: autoscaling, ends of keep-alive, deadlines.

use super::Fleet;
use super::state::Room;
use crate::autoscaler::Load;
use crate::slab::Slot;
use crate::window::BUCKETS;
use crate::{Class, Decision, Mode, Time};

impl Fleet {
    /// A function's timer has come.
    pub(super) fn woken(&mut self, now: Time, f: Slot, out: &mut Vec<Decision>) {
        self.expire(now, f, None, out);
        self.cool(now, f, out);
        if self.functions[f].scale_at.is_some_and(|at| at <= now) {
            self.rescale(now, f);
            self.shrink(now, f, out);
        }
        self.pursue(now, f, out);
    }

    /// Whether a call counts as demand while it runs, and not while it waits: with a track for whatever finds no instance,
    /// calls wait because nodes have no room or enough to do, and more instances are no help against either.
    pub(super) fn sees_what_runs(&self) -> bool {
        self.config.mode == Mode::Dual
    }

    /// A function has one call more that counts as demand.
    pub(super) fn demand_begins(&mut self, now: Time, f: Slot) {
        let function = &mut self.functions[f];
        let (each, regular) = (function.spec.concurrency_per_instance, function.regular);
        function.demand.begin(now, &function.prices, each, regular);
        self.remeasure(now, f);
    }

    /// A function has one call less that counts as demand.
    pub(super) fn demand_ends(&mut self, now: Time, f: Slot) {
        let function = &mut self.functions[f];
        function.demand.end(now, function.spec.concurrency_per_instance);
        self.remeasure(now, f);
    }

    /// The concurrency that the autoscaler sees has changed: all of it, or in `Dual` what regular instances serve and what
    /// is sustained.
    pub(super) fn remeasure(&mut self, now: Time, f: Slot) {
        let function = &mut self.functions[f];
        let calls = function.demand.calls();
        let seen = match self.config.mode {
            Mode::Sync => return,
            Mode::Async | Mode::Dirigent => calls,
            Mode::Dual => calls.min(
                function
                    .regular
                    .max(function.worth)
                    .saturating_mul(function.concurrency()),
            ),
        };
        if seen != function.window.value() {
            function.window.set(now, seen);
        }
        if function.scale_at.is_none() && !function.gone {
            let at = Time(now.0 + self.config.autoscaler.period_ns);
            function.scale_at = Some(at);
            self.wake_at(f, at);
        }
    }

    /// Whether a function has nothing at all, so that its autoscaler is asked at once (Knative's activator does that).
    pub(super) fn is_at_zero(&self, f: Slot) -> bool {
        match self.config.mode {
            Mode::Sync | Mode::Dual => false,
            Mode::Async | Mode::Dirigent => self.functions[f].regular == 0,
        }
    }

    /// The autoscaler decides.
    pub(super) fn rescale(&mut self, now: Time, f: Slot) {
        if self.config.mode == Mode::Dual {
            let function = &mut self.functions[f];
            function.worth = function.demand.worth(now, &function.prices);
            self.remeasure(now, f);
        }
        let config = &self.config.autoscaler;
        let function = &mut self.functions[f];
        let panic_buckets = (f64::from(BUCKETS) * config.panic_window_percent / 100.0).ceil() as u32;
        let load = Load {
            stable: function.window.average(now, BUCKETS),
            panic: function.window.average(now, panic_buckets),
            ready: function.regular - function.starting,
            concurrency_per_instance: function.concurrency(),
        };
        let mut wanted = function.scaler.decide(now, config, load);
        if self.config.mode == Mode::Dual {
            // What emergency instances serve for less is left to them.
            wanted = wanted.min(function.worth);
        }
        function.target = wanted.min(function.spec.instances_max.unwrap_or(u32::MAX));
        let quiet = function.calls() == 0 && function.regular == 0 && function.target == 0;
        function.scale_at = if function.gone || quiet && function.window.is_empty(now) {
            None
        } else {
            Some(Time(now.0 + config.period_ns))
        };
    }

    /// Ends idle regular instances that are not wanted, those that are longest idle first.
    pub(super) fn shrink(&mut self, now: Time, f: Slot, out: &mut Vec<Decision>) {
        while self.is_surplus(f)
            && let Some(instance) = self.functions[f].room[Room::IdleRegular as usize].first()
        {
            let node = self.instances[instance].node;
            self.retire(now, instance, out);
            self.feed(now, node, out);
        }
    }

    /// Ends idle instances that have been kept long enough.
    fn cool(&mut self, now: Time, f: Slot, out: &mut Vec<Decision>) {
        for class in [Class::Emergency, Class::Regular] {
            while let Some((instance, end)) = self.cools_at(f, class)
                && end <= now
            {
                let node = self.instances[instance].node;
                self.retire(now, instance, out);
                self.feed(now, node, out);
            }
        }
    }

    /// For how long an instance that becomes idle is kept, in nanoseconds; `None` for one that something else decides about.
    pub(super) fn keep_alive_ns(&self, f: Slot, class: Class) -> Option<u64> {
        let function = &self.functions[f];
        match (class, self.config.mode) {
            (Class::Emergency, _) => Some(
                self.config
                    .rest
                    .idle_ns
                    .unwrap_or_else(|| function.demand.rest(&function.prices).idle_ns),
            ),
            (Class::Regular, Mode::Sync) if function.regular > function.spec.instances_min => {
                Some(self.config.keep_alive_ns)
            }
            (Class::Regular, _) => None,
        }
    }

    /// For how long an instance of a function that has been idle long enough waits as an armed one, in nanoseconds.
    pub(super) fn armed_ns(&self, f: Slot) -> u64 {
        let function = &self.functions[f];
        if function.gone {
            return 0;
        }
        match self.config.rest.armed_ns {
            // What cannot go back is not told to.
            Some(_) if function.prices.rearm.is_infinite() => 0,
            Some(armed_ns) => armed_ns,
            None => function.demand.rest(&function.prices).armed_ns,
        }
    }

    /// The instance of a class that is longest idle, and until when it is kept.
    fn cools_at(&self, f: Slot, class: Class) -> Option<(Slot, Time)> {
        let keep_ns = self.keep_alive_ns(f, class)?;
        let function = &self.functions[f];
        let instance = function.room[Room::of(class, 0) as usize].first()?;
        Some((
            instance,
            Time(self.instances[instance].since.0.saturating_add(keep_ns)),
        ))
    }

    /// Sets a function's timer to what is due next.
    pub(super) fn set_wake(&mut self, now: Time, f: Slot) {
        let function = &self.functions[f];
        let deadline = function.queue.first().map(|call| self.deadline(f, call));
        let retry = (function.retry_at > now && self.deficit(f) > 0).then_some(function.retry_at);
        let cools = [Class::Emergency, Class::Regular].map(|class| Some(self.cools_at(f, class)?.1));
        let due = [function.scale_at, deadline, retry, cools[0], cools[1]];
        if let Some(at) = due.into_iter().flatten().min() {
            self.wake_at(f, at.max(Time(now.0 + 1)));
        }
    }

    /// Makes sure that a function's timer comes no later. One that comes too early does no harm: it finds nothing due.
    pub(super) fn wake_at(&mut self, f: Slot, at: Time) {
        let wake = &mut self.functions[f].wake;
        match *wake {
            Some(before) if before <= at => return,
            Some(before) => {
                self.timers.remove(&(before, f));
            }
            None => {}
        }
        *wake = Some(at);
        self.timers.insert((at, f));
    }
}
