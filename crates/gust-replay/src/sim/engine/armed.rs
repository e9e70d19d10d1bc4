//! What a node has of a function for whoever comes: armed instances, each until it has been kept long enough.

use gust_policy::InstanceId;

use super::{Engine, Event, Instance, Job, Policy};

/// What a node has of a function.
#[derive(Debug, Default)]
pub(super) struct OnNode {
    /// Instances that the policy knows by name.
    pub instances: u32,
    /// Instances that are being armed.
    arming: u32,
    /// Armed instances, in the order in which they became so.
    armed: Vec<Armed>,
}

/// An armed instance.
#[derive(Debug, Clone, Copy)]
struct Armed {
    /// When it ends.
    until_ns: u64,
    /// Memory that it has more than others, because it was made without a prepared worker.
    more_bytes: u64,
}

impl OnNode {
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
        let shared = self.costs_of(node).shared_bytes;
        let on = self.nodes[node as usize].functions.entry(function).or_default();
        if on.is_empty() {
            self.use_now.memory_bytes += shared;
        }
        change(on);
    }

    /// There is less of a function on a node; what its instances share goes with the last.
    pub(super) fn less_of(&mut self, node: u32, function: u32, change: impl FnOnce(&mut OnNode)) {
        let shared = self.costs_of(node).shared_bytes;
        let functions = &mut self.nodes[node as usize].functions;
        let Some(on) = functions.get_mut(&function) else {
            return;
        };
        change(on);
        if on.is_empty() {
            functions.remove(&function);
            self.use_now.memory_bytes -= shared;
        }
    }

    /// Takes an armed instance of a function, the one that became armed last, for one that the policy has named; whether there
    /// was one.
    pub(super) fn take_armed(&mut self, id: InstanceId, node: u32, function: u32) -> bool {
        let on = self.nodes[node as usize].functions.get_mut(&function);
        let Some(armed) = on.and_then(|on| on.armed.pop()) else {
            return false;
        };
        self.use_now.memory_bytes -= self.costs_of(node).armed_bytes + armed.more_bytes;
        self.less_of(node, function, |_| {});
        self.make_larger(id, armed.more_bytes);
        true
    }

    /// An instance takes more memory than others of its function.
    pub(super) fn make_larger(&mut self, id: InstanceId, more_bytes: u64) {
        if let Some(instance) = self.instances.get_mut(&id) {
            instance.more_bytes += more_bytes;
            self.use_now.memory_bytes += more_bytes;
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
        let mib = u64::from(self.workload.functions[function as usize].memory_mib);
        let work_ns = costs.rearm_cpu_ns + mib * costs.rearm_mib_cpu_ns;
        let more_bytes = instance.more_bytes;
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
        let Some(on) = self.nodes[node as usize].functions.get_mut(&function) else {
            return;
        };
        let ended: Vec<Armed> = on
            .armed
            .extract_if(.., |armed| armed.until_ns <= until_ns)
            .collect();
        self.less_of(node, function, |_| {});
        let costs = self.costs_of(node);
        for armed in ended {
            self.use_now.memory_bytes -= costs.armed_bytes + armed.more_bytes;
            self.overhead(costs.end_cpu_ns);
            self.begin(node, costs.end_cpu_ns, Job::Background);
        }
    }
}
