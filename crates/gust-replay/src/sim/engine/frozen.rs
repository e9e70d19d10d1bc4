//! Idle instances without their workers: what a node keeps of those that have been idle for long.
//!
//! As a live node's, it stays an instance that the policy knows by name: the next call thaws it, in a worker as a restore takes one,
//! and its memory has to be got again.

use gust_policy::InstanceId;

use super::{Engine, Event, Instance, Job, Policy, armed::Origin};

/// Time between two looks of a node for what is to be frozen, in nanoseconds.
const SWEEP_NS: u64 = 1_000_000_000;

impl<P: Policy> Engine<'_, P> {
    /// A call of an instance has ended: its node will look whether it stays idle.
    pub(super) fn mind_freezing(&mut self, id: InstanceId) {
        let Some(instance) = self.instances.get(&id) else {
            return;
        };
        let costs = self.costs_of(instance.node);
        let can_be = costs.freeze_after_ns > 0 && costs.frozen(self.memory_mib(instance.function)).is_some();
        if instance.calls > 0 || instance.freeze_is_due || !can_be {
            return;
        }
        let due_ns = instance.idle_since_ns.saturating_add(costs.freeze_after_ns);
        if let Some(instance) = self.instances.get_mut(&id) {
            instance.freeze_is_due = true;
            let swept_ns = due_ns.checked_next_multiple_of(SWEEP_NS).unwrap_or(u64::MAX);
            self.at(swept_ns, Event::Freeze(id.0));
        }
    }

    /// Has an instance frozen that has been idle for long enough.
    pub(super) fn see_to_freezing(&mut self, id: InstanceId) {
        let Some(instance) = self.instances.get_mut(&id) else {
            return;
        };
        instance.freeze_is_due = false;
        let instance = *instance;
        let costs = self.costs_of(instance.node);
        if instance.calls > 0 || self.now_ns - instance.idle_since_ns < costs.freeze_after_ns {
            return self.mind_freezing(id);
        }
        let work_ns = costs.freeze_cpu_ns();
        self.overhead(work_ns);
        let freeze = Job::Freeze {
            instance: id.0,
            idle_since_ns: instance.idle_since_ns,
        };
        self.begin(instance.node, work_ns, freeze);
    }

    /// An instance is frozen, unless it was called meanwhile.
    pub(super) fn frozen(&mut self, id: InstanceId, idle_since_ns: u64) {
        let found = self.instances.get(&id).copied();
        let Some(before) = found.filter(|found| found.calls == 0 && found.idle_since_ns == idle_since_ns)
        else {
            return;
        };
        let memory_mib = self.memory_mib(before.function);
        let Some(bytes) = self.costs_of(before.node).frozen(memory_mib) else {
            return;
        };
        let frozen = Instance {
            is_frozen: true,
            touched: false,
            bytes,
            origin: Origin::default(),
            ..before
        };
        self.instances.insert(id, frozen);
        self.use_now.memory_bytes -= before.bytes + before.origin.more_bytes;
        self.use_now.memory_bytes += bytes;
        self.less_of(before.node, before.function, |on| on.freeze(before.origin));
        self.free(&before);
    }

    /// A call has reached an instance: whether that is frozen, and has to be laid out first.
    pub(super) fn thaw(&mut self, id: InstanceId) -> bool {
        let found = self.instances.get(&id).copied();
        let Some(before) = found.filter(|found| found.is_frozen) else {
            return false;
        };
        let bytes = self.costs_of(before.node).instance_bytes;
        let thawed = Instance {
            is_frozen: false,
            bytes,
            ..before
        };
        self.instances.insert(id, thawed);
        self.use_now.memory_bytes -= before.bytes;
        self.use_now.memory_bytes += bytes;
        true
    }
}
