//! What a node has of a function for whoever comes: armed instances, each until it has been kept long enough.

use gust_policy::InstanceId;

use super::{Engine, Event, Instance, Job, Policy, SimCosts};

/// What a node has of a function.
#[derive(Debug, Default)]
pub(super) struct OnNode {
    /// Instances that the policy knows by name.
    pub instances: u32,
    /// Instances that are being armed.
    arming: u32,
    /// Armed instances, in the order in which they became so.
    armed: Vec<Armed>,
    /// Instances that were made ahead and have not gone back since.
    ahead: u32,
}

/// An armed instance.
#[derive(Debug, Clone, Copy)]
struct Armed {
    /// When it ends.
    until_ns: u64,
    /// Memory that it has more than others.
    more_bytes: u64,
}

/// How an instance was made, as far as its memory goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Origin {
    /// Memory that it has more than others, because it was made without a prepared worker.
    pub more_bytes: u64,
    /// It was made ahead: it holds pages of its function's snapshot, large ones, until it is frozen or goes back, for which they
    /// are broken up.
    pub is_ahead: bool,
}

impl OnNode {
    /// Memory that its instances share.
    fn shared_bytes(&self, costs: &SimCosts) -> u64 {
        let all = if self.is_empty() { 0 } else { costs.shared_bytes };
        all + if self.ahead > 0 {
            costs.created_shared_bytes
        } else {
            0
        }
    }

    /// An instance that the policy knows by name is no more.
    pub(super) fn lose(&mut self, origin: Origin) {
        self.instances -= 1;
        self.freeze(origin);
    }

    /// An instance has given its worker away, and what that held.
    pub(super) fn freeze(&mut self, origin: Origin) {
        self.ahead -= u32::from(origin.is_ahead);
    }

    fn is_empty(&self) -> bool {
        self.instances == 0 && self.arming == 0 && self.armed.is_empty()
    }

    fn armed_and_arming(&self) -> usize {
        self.armed.len() + self.arming as usize
    }
}

impl<P: Policy> Engine<'_, P> {
    /// There is more of a function on a node; what its instances share is there with the first.
    pub(super) fn more_of(&mut self, node: u32, function: u32, change: impl FnOnce(&mut OnNode)) {
        let costs = self.costs_of(node);
        let on = self.nodes[node as usize].functions.entry(function).or_default();
        let before = on.shared_bytes(costs);
        change(on);
        self.use_now.memory_bytes += on.shared_bytes(costs) - before;
    }

    /// There is less of a function on a node; what its instances share goes with the last.
    pub(super) fn less_of(&mut self, node: u32, function: u32, change: impl FnOnce(&mut OnNode)) {
        let costs = self.costs_of(node);
        let functions = &mut self.nodes[node as usize].functions;
        let Some(on) = functions.get_mut(&function) else {
            return;
        };
        let before = on.shared_bytes(costs);
        change(on);
        self.use_now.memory_bytes -= before - on.shared_bytes(costs);
        if on.is_empty() {
            functions.remove(&function);
        }
    }

    /// Takes an armed instance of a function, the one that became armed last, for one that the policy has named; whether there
    /// was one.
    pub(super) fn take_armed(&mut self, id: InstanceId, node: u32, function: u32) -> bool {
        let mut taken = None;
        self.less_of(node, function, |on| taken = on.armed.pop());
        let Some(armed) = taken else {
            return false;
        };
        self.use_now.memory_bytes -= self.costs_of(node).armed_bytes + armed.more_bytes;
        let origin = Origin {
            more_bytes: armed.more_bytes,
            is_ahead: false,
        };
        self.note_made(id, origin);
        true
    }

    /// An instance was made ahead of calls.
    pub(super) fn note_ahead(&mut self, id: InstanceId, node: u32, function: u32) {
        let costs = self.costs_of(node);
        let origin = Origin {
            more_bytes: costs.created_bytes.saturating_sub(costs.instance_bytes),
            is_ahead: true,
        };
        self.note_made(id, origin);
        self.more_of(node, function, |on| on.ahead += 1);
    }

    /// An instance was made in some way.
    pub(super) fn note_made(&mut self, id: InstanceId, origin: Origin) {
        if let Some(instance) = self.instances.get_mut(&id) {
            instance.origin = origin;
            self.use_now.memory_bytes += origin.more_bytes;
        }
    }

    /// Has an instance that has run go back to its snapshot; whether it can, and another is wanted.
    pub(super) fn rearm(&mut self, instance: &Instance, keep_ns: u64) -> bool {
        let (node, function) = (instance.node, instance.function);
        let costs = self.costs_of(node);
        let on = self.nodes[node as usize].functions.get(&function);
        if instance.bytes > costs.rearm_bytes_max
            || on.is_some_and(|on| on.armed_and_arming() >= costs.armed_max as usize)
        {
            return false;
        }
        let mib = u64::from(self.memory_mib(function));
        let work_ns = costs.rearm_cpu_ns + mib * costs.rearm_mib_cpu_ns;
        let more_bytes = instance.origin.more_bytes;
        self.more_of(node, function, |on| on.arming += 1);
        self.use_now.memory_bytes += costs.armed_bytes + more_bytes;
        self.overhead(work_ns);
        let arm = Job::Arm {
            function,
            keep_ns,
            more_bytes,
        };
        self.begin(node, work_ns, arm);
        true
    }

    /// An instance is armed.
    pub(super) fn armed(&mut self, node: u32, function: u32, keep_ns: u64, more_bytes: u64) {
        let until_ns = self.now_ns.saturating_add(keep_ns);
        if let Some(on) = self.nodes[node as usize].functions.get_mut(&function) {
            on.arming -= 1;
            on.armed.push(Armed { until_ns, more_bytes });
        }
        self.at(until_ns, Event::Disarm { node, function });
    }

    /// Ends armed instances, those that are to be kept until a time at most.
    pub(super) fn disarm(&mut self, node: u32, function: u32, until_ns: u64) {
        let mut ended = Vec::new();
        self.less_of(node, function, |on| {
            ended.extend(on.armed.extract_if(.., |armed| armed.until_ns <= until_ns));
        });
        let costs = self.costs_of(node);
        for armed in ended {
            self.use_now.memory_bytes -= costs.armed_bytes + armed.more_bytes;
            self.overhead(costs.end_cpu_ns);
            self.begin(node, costs.end_cpu_ns, Job::Background);
        }
    }
}
