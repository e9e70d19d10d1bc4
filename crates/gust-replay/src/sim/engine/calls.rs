//! The way of a call: there, sent to an instance, run, answered or refused.

use gust_policy::{CallId, Class, FunctionId, InstanceId, NodeId, Observation};

use super::{Call, Engine, Event, Job, Policy, SimError};
use crate::{Components, Ending, Record, Start};

impl<P: Policy> Engine<'_, P> {
    pub(super) fn arrive(&mut self, function: u32, requested_ns: u64) -> Result<(), SimError> {
        let call = self.records.len() as u32;
        self.records.push(Record {
            function,
            arrived_ns: self.now_ns,
            started_ns: self.now_ns,
            ended_ns: self.now_ns,
            requested_ns,
            class: Class::Regular,
            start: Start::Warm,
            ending: Ending::Refused,
            components: Components::default(),
            instance: None,
        });
        self.open += 1;
        self.use_now.queued += 1;
        self.observe(Observation::Arrived(CallId(call.into()), FunctionId(function)))
    }

    /// A call has reached an instance that is ready.
    pub(super) fn reached(&mut self, call: u32) -> Result<(), SimError> {
        let sent = self.sent(call)?;
        if self.records[call as usize].start != Start::Armed {
            return self.begin_handler(call);
        }
        let first_ns = match self.thaw(sent.instance) {
            true => self.lay_out(call, sent),
            false => {
                let first_ns = self.costs_of(sent.node).armed_cpu_ns;
                self.records[call as usize].components.map_ns = first_ns;
                first_ns
            }
        };
        self.overhead(first_ns);
        self.begin(sent.node, first_ns, Job::First(call));
        Ok(())
    }

    /// A call's handler begins, with all that goes around it.
    pub(super) fn begin_handler(&mut self, call: u32) -> Result<(), SimError> {
        let sent = self.sent(call)?;
        let costs = self.costs_of(sent.node);
        let around = costs.call_cpu_ns;
        let record = &mut self.records[call as usize];
        record.started_ns = self.now_ns;
        let requested = record.requested_ns;
        let function = record.function;
        let work = u128::from(requested) * u128::from(costs.work_permille) / 1000;
        let handler = u64::try_from(work)
            .unwrap_or(u64::MAX)
            .saturating_add(self.touch(sent, function));
        self.use_now.cpu_ns += handler + around;
        self.use_now.overhead_cpu_ns += around + handler.saturating_sub(requested);
        self.begin(
            sent.node,
            handler + around + costs.caller_cpu_ns,
            Job::Handler(call),
        );
        Ok(())
    }

    /// A call has been answered.
    pub(super) fn end(&mut self, call: u32) -> Result<(), SimError> {
        let sent = self.sent(call)?;
        self.calls.remove(&call);
        self.nodes[sent.node as usize].calls -= 1;
        let record = &mut self.records[call as usize];
        record.ended_ns = self.now_ns;
        record.ending = Ending::Answered;
        self.open -= 1;
        if let Some(instance) = self.instances.get_mut(&sent.instance) {
            instance.calls -= 1;
            instance.idle_since_ns = self.now_ns;
            self.use_now.busy -= u32::from(instance.calls == 0);
        }
        self.mind_freezing(sent.instance);
        let after = self.costs_of(sent.node).after_cpu_ns;
        if after > 0 {
            self.overhead(after);
            self.begin(sent.node, after, Job::Background);
        }
        self.observe(Observation::Ended(CallId(call.into())))
    }

    pub(super) fn run_call(
        &mut self,
        call: CallId,
        instance: InstanceId,
        node: NodeId,
    ) -> Result<(), SimError> {
        let Some(found) = self.instances.get(&instance).filter(|found| found.ready) else {
            return Err(SimError::Policy("sent a call to an instance that is not ready"));
        };
        // One that was made ahead is as an armed one is until its first call; one that is frozen has its memory to get again.
        let start = if found.touched { Start::Warm } else { Start::Armed };
        let call = self.send(call, instance, node, start)?;
        let delay = self.way(call, node.0);
        self.at(self.now_ns + delay, Event::Reached(call));
        Ok(())
    }

    pub(super) fn restore(
        &mut self,
        call: CallId,
        instance: InstanceId,
        node: NodeId,
    ) -> Result<(), SimError> {
        let call = self.send(call, instance, node, Start::Restored)?;
        let costs = self.nodes[node.0 as usize].costs;
        let delay = self.config.costs[costs].restore.draw(&mut self.random);
        let way = self.way(call, node.0);
        self.records[call as usize].components.fetch_ns = delay;
        self.at(self.now_ns + way + delay, Event::Restore(call));
        Ok(())
    }

    /// Notes where a call goes.
    pub(super) fn send(
        &mut self,
        call: CallId,
        id: InstanceId,
        node: NodeId,
        start: Start,
    ) -> Result<u32, SimError> {
        let index = u32::try_from(call.0).unwrap_or(u32::MAX);
        let (Some(record), Some(instance)) =
            (self.records.get_mut(index as usize), self.instances.get_mut(&id))
        else {
            return Err(SimError::Policy("sent a call that is none, or to no instance"));
        };
        if self
            .calls
            .insert(
                index,
                Call {
                    instance: id,
                    node: node.0,
                },
            )
            .is_some()
        {
            return Err(SimError::Policy("sent a call twice"));
        }
        self.nodes[node.0 as usize].calls += 1;
        record.instance = Some(id);
        record.class = instance.class;
        record.start = start;
        record.components.queue_ns = self.now_ns - record.arrived_ns;
        self.use_now.queued -= 1;
        self.use_now.busy += u32::from(instance.calls == 0);
        instance.calls += 1;
        Ok(index)
    }

    /// The way to a node and back, drawn.
    pub(super) fn way(&mut self, call: u32, node: u32) -> u64 {
        let found = &self.nodes[node as usize];
        let function = self.records[call as usize].function as usize;
        let home = self.config.homes.get(function).copied().unwrap_or(0);
        let between = if home == found.region {
            0
        } else {
            self.config.between_regions_ns
        };
        let way = self.config.costs[found.costs].way.draw(&mut self.random) + between;
        self.records[call as usize].components.runtime_ns = way;
        way
    }

    pub(super) fn refuse(&mut self, call: CallId) -> Result<(), SimError> {
        let Some(record) = self.records.get_mut(call.0 as usize) else {
            return Err(SimError::Policy("refused a call that is none"));
        };
        record.ended_ns = self.now_ns;
        record.started_ns = self.now_ns;
        record.components.queue_ns = self.now_ns - record.arrived_ns;
        self.open -= 1;
        self.use_now.queued -= 1;
        Ok(())
    }

    pub(super) fn sent(&self, call: u32) -> Result<Call, SimError> {
        let found = self.calls.get(&call).copied();
        found.ok_or(SimError::Policy("lost a call"))
    }
}
