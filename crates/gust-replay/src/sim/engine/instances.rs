//! The way of an instance: made, ready, gone.

use gust_policy::{Class, FunctionId, InstanceId, NodeId, Observation};

use super::{Engine, Instance, Job, Policy, SimError};
use crate::Start;

impl<P: Policy> Engine<'_, P> {
    pub(super) fn begin_restore(&mut self, call: u32) -> Result<(), SimError> {
        let super::Call { instance, node } = self.sent(call)?;
        let costs = self.nodes[node as usize].costs;
        let costs = &self.config.costs[costs];
        let function = self.records[call as usize].function;
        if self.take_armed(instance, node, function) {
            let record = &mut self.records[call as usize];
            record.start = Start::Armed;
            record.components.map_ns = costs.armed_cpu_ns;
            self.overhead(costs.armed_cpu_ns);
            self.begin(node, costs.armed_cpu_ns, Job::Restore(call));
            return Ok(());
        }
        let found = &mut self.nodes[node as usize];
        let components = &mut self.records[call as usize].components;
        components.map_ns = costs.restore_cpu_ns;
        let work = if found.prepared > 0 {
            found.prepared -= 1;
            self.use_now.memory_bytes -= costs.prepared_bytes;
            self.overhead(costs.prepare_cpu_ns);
            self.begin(node, costs.prepare_cpu_ns, Job::Prepare);
            costs.restore_cpu_ns
        } else {
            // All are used: one is made now, and those that are being made take its place.
            components.worker_ns = costs.unprepared_cpu_ns.saturating_sub(costs.restore_cpu_ns);
            self.make_larger(instance, costs.unprepared_bytes);
            costs.unprepared_cpu_ns
        };
        self.overhead(work);
        self.begin(node, work, Job::Restore(call));
        Ok(())
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
        let (Some(found), Some(of)) = (
            self.nodes.get(node.0 as usize),
            self.workload.functions.get(function.0 as usize),
        ) else {
            return Err(SimError::Policy("made an instance on no node, or of no function"));
        };
        let bytes = self.config.costs[found.costs].instance_bytes + (u64::from(of.memory_mib) << 20);
        let instance = Instance {
            node: node.0,
            function: function.0,
            class,
            bytes,
            more_bytes: 0,
            calls: 0,
            ready: false,
            touched: false,
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
        self.use_now.memory_bytes -= instance.bytes + instance.more_bytes;
        *self.of_class(instance.class) -= 1;
        self.free(&instance);
        if armed_ns > 0 && instance.ready && self.rearm(&instance, armed_ns) {
            self.less_of(node.0, instance.function, |on| on.instances -= 1);
            return Ok(());
        }
        self.less_of(node.0, instance.function, |on| on.instances -= 1);
        let work = self.costs_of(node.0).end_cpu_ns;
        self.overhead(work);
        self.begin(node.0, work, Job::Background);
        Ok(())
    }

    pub(super) fn of_class(&mut self, class: Class) -> &mut u32 {
        match class {
            Class::Regular => &mut self.use_now.regular,
            Class::Emergency => &mut self.use_now.emergency,
        }
    }
}
