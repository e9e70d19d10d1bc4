//! The way of an instance: made, offered to calls, idle, gone.

use super::Fleet;
use super::state::{Phase, Room, Stage};
use crate::slab::Slot;
use crate::{Class, Decision, FunctionId, InstanceId, Mode, NodeId, Time};

/// First wait after a regular instance could not be made, in nanoseconds; each further failure doubles it.
const RETRY_MIN_NS: u64 = 100_000_000;

/// Most doublings.
const RETRY_DOUBLINGS_MAX: u32 = 7;

impl Fleet {
    pub(super) fn ready(&mut self, now: Time, id: InstanceId, out: &mut Vec<Decision>) {
        let Some(slot) = self.instance(id) else { return };
        let it = &self.instances[slot];
        let (f, node, took) = (it.function, it.node, now.0 - it.since.0);
        match it.phase {
            Phase::Starting => {
                self.regions.learn(self.nodes[node].spec.region, took);
                self.instances[slot].phase = Phase::Ready;
                self.counts.starting -= 1;
                self.nodes[node].creations -= 1;
                let function = &mut self.functions[f];
                function.starting -= 1;
                function.failures = 0;
                self.vacated(now, slot, out);
                self.resume_held(now, out);
            }
            Phase::Restoring => {
                self.regions.learn(self.nodes[node].spec.region, took);
                self.restored(slot);
                if self.instances[slot].has_room() {
                    self.vacated(now, slot, out);
                }
                self.feed(now, node, out);
            }
            Phase::Ready => {}
        }
    }

    /// A restore is over, as far as the node's bound is concerned.
    pub(super) fn restored(&mut self, slot: Slot) {
        let it = &mut self.instances[slot];
        it.phase = Phase::Ready;
        let node = it.node;
        if let Some(call) = it.calls.first() {
            self.calls[call].stage = Stage::Running(slot);
        }
        self.counts.restoring -= 1;
        self.nodes[node].restores -= 1;
        self.refresh(node);
    }

    pub(super) fn gone(&mut self, now: Time, id: InstanceId, out: &mut Vec<Decision>) {
        let Some(slot) = self.instance(id) else { return };
        let it = &self.instances[slot];
        let (f, node) = (it.function, it.node);
        let was_starting = it.phase == Phase::Starting;
        if was_starting {
            let function = &mut self.functions[f];
            let wait = RETRY_MIN_NS << function.failures.min(RETRY_DOUBLINGS_MAX);
            function.retry_at = Time(now.0 + wait);
            function.failures += 1;
        }
        self.lose(now, slot);
        self.feed(now, node, out);
        self.pursue(now, f, out);
        if was_starting {
            self.resume_held(now, out);
        }
    }

    pub(super) fn found(
        &mut self,
        now: Time,
        (id, node, function, class): (InstanceId, NodeId, FunctionId, Class),
        out: &mut Vec<Decision>,
    ) {
        self.next_instance = self.next_instance.max(id.0.saturating_add(1));
        if self.instance_names.contains_key(&id.0) {
            return;
        }
        let Some(on) = self.node(node) else { return };
        let f = self.function(function).filter(|f| !self.functions[*f].gone);
        let fits = |f: Slot| {
            let node = &self.nodes[on];
            let function = &self.functions[f];
            !node.draining
                && node.instances.len() < node.spec.instances_max
                && node.used_bytes + function.charge() <= node.spec.memory_bytes
                && function.vacancies() > 0
        };
        let Some(f) = f.filter(|f| fits(*f)) else {
            out.push(Decision::Remove {
                instance: id,
                node,
                armed_ns: 0,
            });
            return;
        };
        let slot = self.add_instance(now, id, f, on, class, Phase::Ready);
        if class == Class::Regular {
            let function = &mut self.functions[f];
            function.target = function.target.max(function.regular);
            function.scaler.adopt(now, function.regular);
            function.demand.adopt(now, &function.prices, function.regular);
        }
        self.remeasure(now, f);
        self.vacated(now, slot, out);
    }

    /// Whether an instance goes as soon as it has no call.
    fn is_doomed(&self, slot: Slot) -> bool {
        let it = &self.instances[slot];
        self.functions[it.function].gone || self.nodes[it.node].draining
    }

    /// An instance has got room: it takes calls that wait, goes, or is on offer.
    pub(super) fn vacated(&mut self, now: Time, slot: Slot, out: &mut Vec<Decision>) {
        self.withhold(slot);
        let it = &self.instances[slot];
        let (f, node, class) = (it.function, it.node, it.class);
        if self.is_doomed(slot) {
            if self.instances[slot].calls.is_empty() {
                self.dismiss(slot, out);
                self.pursue(now, f, out);
                self.feed(now, node, out);
            } else {
                self.offer(now, slot);
            }
            return;
        }
        while self.instances[slot].has_room() {
            if self.functions[f].queue.is_empty() {
                break;
            }
            if self.instances[slot].calls.is_empty() && self.yields(now, slot, out) {
                return;
            }
            let Some(call) = self.dequeue(f) else { break };
            self.run(now, call, slot, out);
        }
        if self.fairness.waits(f) {
            self.settle(now, f);
        }
        if !self.instances[slot].calls.is_empty() {
            self.offer(now, slot);
            self.feed(now, node, out);
            return;
        }
        let keep_ns = self.keep_alive_ns(f, class);
        if keep_ns == Some(0) || class == Class::Regular && self.is_surplus(f) {
            self.retire(now, slot, out);
        } else {
            self.offer(now, slot);
            if let Some(keep_ns) = keep_ns {
                self.wake_at(f, Time(now.0.saturating_add(keep_ns)));
            }
        }
        self.feed(now, node, out);
    }

    /// Whether a function has more regular instances than it should.
    pub(super) fn is_surplus(&self, f: Slot) -> bool {
        let function = &self.functions[f];
        match self.config.mode {
            Mode::Sync => false,
            Mode::Dual | Mode::Async | Mode::Dirigent => {
                function.regular > function.target.max(function.spec.instances_min)
            }
        }
    }

    /// Offers an instance to calls, if it has room. That its function is gone does not matter: no call comes, unless the
    /// function is there again.
    pub(super) fn offer(&mut self, now: Time, slot: Slot) {
        let it = &self.instances[slot];
        let (f, node) = (it.function, it.node);
        if it.room.is_some() || it.phase != Phase::Ready || !it.has_room() || self.nodes[node].draining {
            return;
        }
        let room = Room::of(it.class, it.calls.len());
        self.functions[f].room[room as usize].push_back(&mut self.instances, slot);
        self.instances[slot].room = Some(room);
        if !room.is_idle() {
            return;
        }
        self.instances[slot].since = now;
        let bytes = self.instances[slot].memory_bytes;
        let (may_go, cost) = match (self.instances[slot].class, self.config.mode) {
            (Class::Emergency, _) => (true, self.config.cost.restore(bytes)),
            (Class::Regular, Mode::Sync | Mode::Dual) => (true, self.config.cost.create(bytes)),
            (Class::Regular, Mode::Async | Mode::Dirigent) => (false, 0.0),
        };
        if may_go {
            let it = &mut self.instances[slot];
            let on = &mut self.nodes[node];
            let priority = on.eviction.priority(cost, it.memory_bytes, it.uses);
            it.priority = Some(priority);
            on.evictable.insert((priority, slot));
            on.idle_bytes += it.memory_bytes;
            self.refresh(node);
        }
    }

    /// Takes an instance off the offer.
    pub(super) fn withhold(&mut self, slot: Slot) {
        let it = &mut self.instances[slot];
        let (f, node, bytes) = (it.function, it.node, it.memory_bytes);
        let priority = it.priority.take();
        if let Some(room) = it.room.take() {
            self.functions[f].room[room as usize].remove(&mut self.instances, slot);
        }
        if let Some(priority) = priority {
            let on = &mut self.nodes[node];
            on.evictable.remove(&(priority, slot));
            on.idle_bytes -= bytes;
            self.refresh(node);
        }
    }

    /// Ends an instance that has no call and makes room with it: nothing is left of it.
    pub(super) fn dismiss(&mut self, slot: Slot, out: &mut Vec<Decision>) {
        self.remove(slot, 0, out);
    }

    /// Ends an instance that has no call and is not worth its memory any more; it may be worth that of an armed one.
    pub(super) fn retire(&mut self, now: Time, slot: Slot, out: &mut Vec<Decision>) {
        let it = &self.instances[slot];
        let (f, node) = (it.function, self.nodes[it.node].id);
        let armed_ns = self.armed_ns(f);
        if armed_ns > 0 {
            let until = Time(now.0.saturating_add(armed_ns));
            self.functions[f].armed.add(now, node, until);
        }
        self.remove(slot, armed_ns, out);
    }

    fn remove(&mut self, slot: Slot, armed_ns: u64, out: &mut Vec<Decision>) {
        let it = &self.instances[slot];
        out.push(Decision::Remove {
            instance: it.id,
            node: self.nodes[it.node].id,
            armed_ns,
        });
        self.drop_instance(slot);
    }

    /// An instance is lost: a call that it was restored for waits again, those that ran on it are over.
    pub(super) fn lose(&mut self, now: Time, slot: Slot) {
        while let Some(call) = self.instances[slot].calls.first() {
            match self.calls[call].stage {
                Stage::Restoring(_) => self.wait_again(now, call, slot),
                Stage::Waiting | Stage::Running(_) => self.unload(now, call, slot),
            }
        }
        self.drop_instance(slot);
    }

    /// Forgets an instance that has no call.
    fn drop_instance(&mut self, slot: Slot) {
        self.withhold(slot);
        let node = self.instances[slot].node;
        self.nodes[node].instances.remove(&mut self.instances, slot);
        let Some(it) = self.instances.remove(slot) else {
            return;
        };
        self.instance_names.remove(&it.id.0);
        let function = &mut self.functions[it.function];
        match it.class {
            Class::Regular => function.regular -= 1,
            Class::Emergency => function.emergency -= 1,
        }
        *self.counts.of_class(it.class) -= 1;
        self.counts.memory_bytes -= it.memory_bytes;
        let on = &mut self.nodes[node];
        on.used_bytes -= it.memory_bytes;
        match it.phase {
            Phase::Starting => {
                function.starting -= 1;
                self.counts.starting -= 1;
                on.creations -= 1;
            }
            Phase::Restoring => {
                on.restores -= 1;
                self.counts.restoring -= 1;
            }
            Phase::Ready => {}
        }
        self.refresh(node);
    }
}
