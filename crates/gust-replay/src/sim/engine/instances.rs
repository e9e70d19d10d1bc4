//! The way of an instance: made, ready, gone.

use gust_policy::{Class, FunctionId, InstanceId, NodeId, Observation};

use super::{Call, EVICT_AGAIN_NS, Engine, Event, Instance, Job, Policy, SimError, armed::Origin};
use crate::Start;

impl<P: Policy> Engine<'_, P> {
    pub(super) fn begin_restore(&mut self, call: u32) -> Result<(), SimError> {
        let sent = self.sent(call)?;
        let costs = self.costs_of(sent.node);
        let function = self.records[call as usize].function;
        let work = if self.take_armed(sent.instance, sent.node, function) {
            let record = &mut self.records[call as usize];
            record.start = Start::Armed;
            record.components.map_ns = costs.armed_cpu_ns;
            costs.armed_cpu_ns
        } else {
            self.lay_out(call, sent)
        };
        self.overhead(work);
        self.begin(sent.node, work, Job::Restore(call));
        Ok(())
    }

    /// The work of laying a call's instance out: in a prepared worker where there is one, which another is prepared for.
    pub(super) fn lay_out(&mut self, call: u32, sent: Call) -> u64 {
        let costs = self.costs_of(sent.node);
        let found = &mut self.nodes[sent.node as usize];
        let components = &mut self.records[call as usize].components;
        components.map_ns = costs.restore_cpu_ns;
        if found.prepared > 0 {
            found.prepared -= 1;
            self.use_now.memory_bytes -= costs.prepared_bytes;
            self.overhead(costs.prepare_cpu_ns);
            self.begin(sent.node, costs.prepare_cpu_ns, Job::Prepare);
            return costs.restore_cpu_ns;
        }
        // All are used: one is made now, and those that are being made take its place.
        components.worker_ns = costs.unprepared_cpu_ns.saturating_sub(costs.restore_cpu_ns);
        let origin = Origin {
            more_bytes: costs.unprepared_bytes,
            is_ahead: false,
        };
        self.note_made(sent.instance, origin);
        costs.unprepared_cpu_ns
    }

    pub(super) fn ready(&mut self, instance: InstanceId) -> Result<(), SimError> {
        let Some(found) = self.instances.get_mut(&instance) else {
            return Ok(());
        };
        found.ready = true;
        self.observe(Observation::Ready(instance))
    }

    pub(super) fn add(
        &mut self,
        id: InstanceId,
        node: NodeId,
        function: FunctionId,
        class: Class,
    ) -> Result<(), SimError> {
        let is_known = (function.0 as usize) < self.workload.functions.len();
        let Some(found) = self.nodes.get(node.0 as usize).filter(|_| is_known) else {
            return Err(SimError::Policy("made an instance on no node, or of no function"));
        };
        let bytes = self.config.costs[found.costs].instance_bytes;
        let instance = Instance {
            node: node.0,
            function: function.0,
            class,
            bytes,
            origin: Origin::default(),
            calls: 0,
            ready: false,
            touched: false,
            is_frozen: false,
            idle_since_ns: self.now_ns,
            freeze_is_due: false,
        };
        if self.instances.insert(id, instance).is_some() {
            return Err(SimError::Policy("gave a name twice"));
        }
        self.use_now.memory_bytes += bytes;
        *self.of_class(class) += 1;
        self.more_of(node.0, function.0, |on| on.instances += 1);
        Ok(())
    }

    /// Ends an instance; it goes back to its snapshot where it is to be armed for a while and can be.
    pub(super) fn remove(&mut self, id: InstanceId, node: NodeId, armed_ns: u64) -> Result<(), SimError> {
        let removed = self
            .instances
            .remove(&id)
            .filter(|instance| instance.node == node.0);
        let Some(instance) = removed.filter(|instance| instance.calls == 0) else {
            return Err(SimError::Policy(
                "removed an instance that is not there, or at work",
            ));
        };
        self.forget(&instance);
        let can_go_back = instance.ready && !instance.is_frozen;
        if armed_ns > 0 && can_go_back && self.rearm(&instance, armed_ns) {
            self.less_of(node.0, instance.function, |on| on.lose(instance.origin));
            return Ok(());
        }
        self.end_instance(&instance);
        Ok(())
    }

    /// Ends a function's idle instances, and its armed ones, which the policy is told of. Before a run that is put off while one
    /// is at work, or about to be.
    pub(super) fn evict(&mut self, function: u32) -> Result<(), SimError> {
        let (mut idle, mut is_busy) = (Vec::new(), false);
        for (id, instance) in &self.instances {
            match instance.ready && instance.calls == 0 {
                _ if instance.function != function => {}
                true => idle.push(*id),
                false => is_busy = true,
            }
        }
        if is_busy && self.now_ns < self.config.ahead.length_ns {
            self.at(self.now_ns + EVICT_AGAIN_NS, Event::Evict(function));
            return Ok(());
        }
        idle.sort_unstable();
        for id in idle {
            let Some(instance) = self.instances.remove(&id) else {
                continue;
            };
            self.forget(&instance);
            self.end_instance(&instance);
            self.observe(Observation::Gone(id))?;
        }
        for node in 0..self.nodes.len() {
            self.disarm(node as u32, function, u64::MAX);
        }
        Ok(())
    }

    /// An instance counts no more.
    fn forget(&mut self, instance: &Instance) {
        self.use_now.memory_bytes -= instance.bytes + instance.origin.more_bytes;
        *self.of_class(instance.class) -= 1;
        self.free(instance);
    }

    /// What it takes a node to end an instance; the worker of a frozen one has ended before.
    fn end_instance(&mut self, instance: &Instance) {
        self.less_of(instance.node, instance.function, |on| on.lose(instance.origin));
        if instance.is_frozen {
            return;
        }
        let work = self.costs_of(instance.node).end_cpu_ns;
        self.overhead(work);
        self.begin(instance.node, work, Job::Background);
    }

    pub(super) fn of_class(&mut self, class: Class) -> &mut u32 {
        match class {
            Class::Regular => &mut self.use_now.regular,
            Class::Emergency => &mut self.use_now.emergency,
        }
    }
}
