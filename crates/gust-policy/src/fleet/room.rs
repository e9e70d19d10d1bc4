//! How room for instances is found, made, and shared among those who wait for it.

use super::Fleet;
use super::state::{Instance, Phase};
use crate::placement::{Among, Draw};
use crate::slab::{Link, List, Slot};
use crate::{Class, Decision, InstanceId, Mode, Time};

/// What a full node costs over an empty one when nodes are compared, in nanoseconds: a call that shares its processors with
/// others is late by about this.
const LOAD_NS: f64 = 10_000_000.0;

/// Idle instances that are looked at to make room for one.
const VICTIMS_MAX: usize = 16;

/// Functions that wait which are tried when a node gets room.
const TURNS_MAX: usize = 8;

/// Functions that wait which are looked at for one that a saturated node takes something for.
const LOOKS_MAX: usize = 64;

impl Fleet {
    /// Which kind of instance a function wants now, if any.
    pub(super) fn need(&self, now: Time, f: Slot) -> Option<Class> {
        let function = &self.functions[f];
        if function.gone || function.vacancies() == 0 {
            return None;
        }
        if self.config.mode == Mode::Dual && !function.queue.is_empty() {
            return Some(Class::Emergency);
        }
        (self.deficit(f) > 0 && now >= function.retry_at && !function.held).then_some(Class::Regular)
    }

    /// Regular instances that are wanted and not there.
    pub(super) fn deficit(&self, f: Slot) -> u32 {
        let function = &self.functions[f];
        let wanted = match self.config.mode {
            Mode::Sync => function
                .queue
                .len()
                .div_ceil(function.concurrency())
                .saturating_sub(function.starting),
            Mode::Dual | Mode::Async | Mode::Dirigent => function.target.saturating_sub(function.regular),
        };
        wanted.max(function.spec.instances_min.saturating_sub(function.regular))
    }

    /// Restores an instance for a call that is in no list, or says that there is no room.
    pub(super) fn restore(&mut self, now: Time, f: Slot, call: Slot, out: &mut Vec<Decision>) -> bool {
        if self.functions[f].vacancies() == 0 {
            return false;
        }
        let Some(node) = self.node_for(now, f, Class::Emergency, out) else {
            return false;
        };
        self.restore_on(now, call, node, out);
        self.feed(now, node, out);
        true
    }

    fn restore_on(&mut self, now: Time, call: Slot, node: Slot, out: &mut Vec<Decision>) {
        let f = self.calls[call].function;
        let slot = self.make(now, f, node, Class::Emergency, Phase::Restoring);
        self.load(now, call, slot);
        self.calls[call].stage = super::state::Stage::Restoring(slot);
        out.push(Decision::Restore {
            call: self.calls[call].id,
            instance: self.instances[slot].id,
            node: self.nodes[node].id,
            function: self.functions[f].id,
        });
    }

    fn create_on(&mut self, now: Time, f: Slot, node: Slot, out: &mut Vec<Decision>) {
        let slot = self.make(now, f, node, Class::Regular, Phase::Starting);
        out.push(Decision::Create {
            instance: self.instances[slot].id,
            node: self.nodes[node].id,
            function: self.functions[f].id,
        });
    }

    /// A new instance with a new name.
    fn make(&mut self, now: Time, f: Slot, node: Slot, class: Class, phase: Phase) -> Slot {
        let id = InstanceId(self.next_instance);
        self.next_instance += 1;
        self.add_instance(now, id, f, node, class, phase)
    }

    /// An instance is there from now on.
    pub(super) fn add_instance(
        &mut self,
        now: Time,
        id: InstanceId,
        f: Slot,
        node: Slot,
        class: Class,
        phase: Phase,
    ) -> Slot {
        let id_of_node = self.nodes[node].id;
        let function = &mut self.functions[f];
        let bytes = function.charge();
        function.armed.take(id_of_node);
        function.uses[class as usize].made();
        self.uses[class as usize].made();
        match class {
            Class::Regular => function.regular += 1,
            Class::Emergency => function.emergency += 1,
        }
        *self.counts.of_class(class) += 1;
        self.counts.memory_bytes += bytes;
        let on = &mut self.nodes[node];
        on.used_bytes += bytes;
        match phase {
            Phase::Starting => {
                function.starting += 1;
                self.counts.starting += 1;
                on.creations += 1;
            }
            Phase::Restoring => {
                on.restores += 1;
                self.counts.restoring += 1;
            }
            Phase::Ready => {}
        }
        let slot = self.instances.insert(Instance {
            id,
            function: f,
            node,
            class,
            phase,
            concurrency: self.functions[f].concurrency(),
            calls: List::default(),
            uses: 0,
            memory_bytes: bytes,
            since: now,
            room: None,
            priority: None,
            of_node: Link::default(),
            with_room: Link::default(),
        });
        self.nodes[node].instances.push_back(&mut self.instances, slot);
        self.instance_names.insert(id.0, slot);
        self.refresh(node);
        slot
    }

    /// Tells the placement what room a node has.
    pub(super) fn refresh(&mut self, node: Slot) {
        let node = &self.nodes[node];
        self.placement.set(node.place, node.room(), !node.is_saturated());
    }

    /// A node with room for a new instance of a function, made by evicting others if it must be. A function that finds none
    /// because nodes are making as many regular instances as they may is held.
    fn node_for(&mut self, now: Time, f: Slot, class: Class, out: &mut Vec<Decision>) -> Option<Slot> {
        let calm = self.node_among(now, f, (class, Among::Calm), out);
        if calm.is_some() || self.functions[f].held || self.functions[f].instances() > 0 {
            return calm;
        }
        self.node_among(now, f, (class, Among::All), out)
    }

    fn node_among(
        &mut self,
        now: Time,
        f: Slot,
        (class, among): (Class, Among),
        out: &mut Vec<Decision>,
    ) -> Option<Slot> {
        let function = &self.functions[f];
        let need = function.charge();
        let calls = function.uses[class as usize].mean(self.uses[class as usize].usual());
        let order = self.regions.order(function.spec.home, calls);
        let is_late = |node: &super::state::Node| class == Class::Regular && node.creates_enough();
        let armed = self.armed_node(now, f, need);
        if let Some(node) = armed.filter(|node| !is_late(&self.nodes[*node])) {
            return Some(node);
        }
        let key = self.next_instance;
        let cost = &self.config.cost;
        let mut is_held = false;
        for region in order.as_slice() {
            let draw = Draw {
                region: *region,
                need,
                among,
                key,
                choices: self.config.placement_choices as usize,
                local: &function.snapshots,
            };
            let chosen = self.placement.choose(draw, |slot, local| {
                let node = &self.nodes[slot];
                let is_calm = among == Among::All || !node.is_saturated();
                if !is_calm || node.free_bytes() < need || node.spec.region != *region {
                    return None;
                }
                if is_late(node) {
                    is_held = true;
                    return None;
                }
                let fetch = if local || function.snapshots.is_empty() {
                    0
                } else {
                    cost.fetch_ns
                };
                let full = (node.used_bytes + node.busy_bytes) as f64 / node.spec.memory_bytes.max(1) as f64;
                let load = full + node.pressure.share(node.calls);
                Some(fetch + u64::from(node.restores) * cost.restore_shaped_ns + (load * LOAD_NS) as u64)
            });
            match chosen {
                Some(node) if is_late(&self.nodes[node]) => is_held = true,
                Some(node) => return Some(node),
                None => {}
            }
        }
        if is_held {
            self.hold(f);
            return None;
        }
        for region in order.as_slice() {
            let Some(node) = self.placement.evictable(*region, key, need, among) else {
                continue;
            };
            if class == Class::Regular && self.nodes[node].creates_enough() {
                self.hold(f);
                return None;
            }
            if self.make_room(now, f, class, node, out) {
                return Some(node);
            }
        }
        None
    }

    /// A node with room for a new instance of a function that has an armed one.
    fn armed_node(&self, now: Time, f: Slot, need: u64) -> Option<Slot> {
        let function = &self.functions[f];
        let node = self.node(function.armed.last(now)?)?;
        let on = &self.nodes[node];
        let takes = on.free_bytes() >= need && !self.is_kept_back(f, on);
        (takes && on.spec.region == function.spec.home).then_some(node)
    }

    /// Evicts idle instances of a node until a function's new instance has room there; none if that does not suffice.
    pub(super) fn make_room(
        &mut self,
        now: Time,
        f: Slot,
        class: Class,
        node: Slot,
        out: &mut Vec<Decision>,
    ) -> bool {
        let need = self.functions[f].charge();
        let on = &self.nodes[node];
        if on.free_bytes() >= need {
            return true;
        }
        if on.potential_bytes() < need {
            return false;
        }
        // A node may have become smaller than what is on it.
        let mut used = on.used_bytes + need;
        let mut victims = Vec::new();
        for (_, victim) in on.evictable.iter().take(VICTIMS_MAX) {
            if !self.may_evict(now, f, class, *victim) {
                continue;
            }
            used -= self.instances[*victim].memory_bytes;
            victims.push(*victim);
            if used <= on.spec.memory_bytes
                && on.instances.len() - (victims.len() as u32) < on.spec.instances_max
            {
                for victim in victims {
                    if let Some(priority) = self.instances[victim].priority {
                        self.nodes[node].eviction.evicted(priority);
                    }
                    self.dismiss(victim, out);
                }
                return true;
            }
        }
        false
    }

    /// Whether an idle instance may go for a new one of a function. What a function has always is safe; so is, for a
    /// while after its last call, what belongs to those who use no more than who asks. Regular instances that an autoscaler
    /// wants go for calls that wait, not for others that it wants.
    fn may_evict(&self, now: Time, f: Slot, class: Class, victim: Slot) -> bool {
        let victim = &self.instances[victim];
        let owner = &self.functions[victim.function];
        if victim.function == f {
            return false;
        }
        if victim.class == Class::Regular {
            let wanted = match self.config.mode {
                Mode::Sync => false,
                Mode::Dual => class == Class::Regular,
                Mode::Async | Mode::Dirigent => true,
            };
            if wanted || owner.regular <= owner.spec.instances_min {
                return false;
            }
        }
        now.0 - victim.since.0 >= self.config.eviction_guard_ns
            || self.fairness.owes(victim.function, f, self.functions[f].charge())
    }

    /// A node has got room: those who wait take it in turn.
    pub(super) fn feed(&mut self, now: Time, node: Slot, out: &mut Vec<Decision>) {
        while !self.fairness.is_empty()
            && let Some(on) = self.nodes.get(node)
            && on.potential_bytes() > 0
        {
            let mut turns = [crate::slab::NONE; TURNS_MAX];
            let mut count = 0;
            let waiting = self.fairness.next().take(LOOKS_MAX);
            let taken = waiting.filter(|f| !self.is_kept_back(*f, on));
            for (turn, next) in turns.iter_mut().zip(taken) {
                *turn = next;
                count += 1;
            }
            if !turns[..count].iter().any(|f| self.take_turn(now, *f, node, out)) {
                return;
            }
        }
    }

    /// Gives a function that waits an instance on a node, or lets it wait no more; says whether anything has changed.
    fn take_turn(&mut self, now: Time, f: Slot, node: Slot, out: &mut Vec<Decision>) -> bool {
        let Some(class) = self.need(now, f) else {
            self.fairness.leave(f);
            return true;
        };
        let region = self.nodes[node].spec.region;
        let home = self.functions[f].spec.home;
        if region != home && !self.regions.is_on() || self.is_kept_back(f, &self.nodes[node]) {
            return false;
        }
        if class == Class::Regular && self.nodes[node].creates_enough() {
            // Room is not what it waits for, and others may have it.
            self.hold(f);
            self.fairness.leave(f);
            return true;
        }
        if !self.make_room(now, f, class, node, out) {
            return false;
        }
        match class {
            Class::Emergency => {
                if let Some(call) = self.dequeue(f) {
                    self.restore_on(now, call, node, out);
                }
            }
            Class::Regular => self.create_on(now, f, node, out),
        }
        if self.need(now, f).is_some() {
            self.fairness.join(f);
        } else {
            self.fairness.leave(f);
        }
        true
    }

    /// Whether an instance that has become idle while its function has more to do goes to another that has less. It is
    /// gone then.
    pub(super) fn yields(&mut self, now: Time, instance: Slot, out: &mut Vec<Decision>) -> bool {
        if self.fairness.is_empty() {
            return false;
        }
        match self.config.mode {
            Mode::Dual | Mode::Sync => {}
            Mode::Async | Mode::Dirigent => return false,
        }
        let it = &self.instances[instance];
        let (f, node) = (it.function, it.node);
        let on = &self.nodes[node];
        let Some(poor) = self.fairness.next().next() else {
            return false;
        };
        let charge = self.functions[poor].charge();
        let free = on
            .spec
            .memory_bytes
            .saturating_sub(on.used_bytes - it.memory_bytes);
        if poor == f
            || it.class == Class::Regular && self.functions[f].regular <= self.functions[f].spec.instances_min
            || match self.need(now, poor) {
                Some(Class::Regular) => on.creates_enough(),
                Some(Class::Emergency) => false,
                None => true,
            }
            || on.restores >= on.spec.restores_max
            || self.is_kept_back(poor, on)
            || charge > free
            || (on.spec.region != self.functions[poor].spec.home && !self.regions.is_on())
            || !self.fairness.owes(f, poor, charge)
        {
            return false;
        }
        self.dismiss(instance, out);
        self.take_turn(now, poor, node, out);
        self.feed(now, node, out);
        self.pursue(now, f, out);
        true
    }

    /// Gives a function what it wants as far as there is room: its calls what it has, then new instances.
    pub(super) fn pursue(&mut self, now: Time, f: Slot, out: &mut Vec<Decision>) {
        while let Some(instance) = self.functions[f].with_room() {
            let Some(call) = self.dequeue(f) else { break };
            self.run(now, call, instance, out);
        }
        while let Some(class) = self.need(now, f) {
            let Some(node) = self.node_for(now, f, class, out) else {
                break;
            };
            match class {
                Class::Emergency => {
                    if let Some(call) = self.dequeue(f) {
                        self.restore_on(now, call, node, out);
                    }
                }
                Class::Regular => self.create_on(now, f, node, out),
            }
            // What was evicted may have left more room than was needed.
            self.feed(now, node, out);
        }
        self.settle(now, f);
    }
}
