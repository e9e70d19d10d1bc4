//! The loop of events, and what the nodes make of decisions.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
};

use gust_policy::{
    CallId, Class, Decision, FunctionId, FunctionSpec, InstanceId, NodeId, Observation, TenantId, Time,
};
use rand_pcg::Pcg64Mcg;

use super::{Policy, SimConfig, SimCosts, SimError, SimResult, processors::Processors};
use crate::{Components, Ending, Record, Sample, Start, Workload};

/// Longest time after the last arrival, in nanoseconds: calls that have not ended by then never will.
const AFTER_MAX_NS: u64 = 86_400_000_000_000;

/// What happens at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// Jobs of a node may have ended, if nothing has changed there since.
    Node { node: u32, generation: u64 },
    /// A call's way to its instance is over.
    Reached(u32),
    /// A delay of a restore is over.
    Restore(u32),
    /// The cluster manager has asked the node; the rest is work there.
    Create(u64),
    /// A regular instance's delay is over.
    Created(u64),
    /// The policy wants to be told the time.
    Tick,
    /// What is used is noted.
    Sample,
}

/// Work of a node's processors.
#[derive(Debug, Clone, Copy)]
enum Job {
    Handler(u32),
    Restore(u32),
    Create(u64),
    /// Preparing a worker in the stead of one that was used.
    Prepare,
    /// Nothing waits for it.
    Background,
}

struct Node {
    processors: Processors<Job>,
    generation: u64,
    prepared: u32,
    costs: usize,
    region: u16,
}

#[derive(Debug, Clone, Copy)]
struct Instance {
    node: u32,
    class: Class,
    bytes: u64,
    calls: u32,
    ready: bool,
}

/// Where a call is.
#[derive(Debug, Clone, Copy)]
struct Call {
    instance: InstanceId,
    node: u32,
}

pub(super) struct Engine<'a, P> {
    workload: &'a Workload,
    config: &'a SimConfig,
    policy: &'a mut P,
    random: Pcg64Mcg,
    now_ns: u64,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    order: u64,
    nodes: Vec<Node>,
    instances: HashMap<InstanceId, Instance>,
    /// Calls that have been sent somewhere.
    calls: HashMap<u32, Call>,
    open: u64,
    tick_ns: Option<u64>,
    decisions: Vec<Decision>,
    records: Vec<Record>,
    samples: Vec<Sample>,
    use_now: Sample,
    count: u64,
}

impl<'a, P: Policy> Engine<'a, P> {
    pub(super) fn new(workload: &'a Workload, config: &'a SimConfig, policy: &'a mut P) -> Self {
        let node = |node: &super::SimNode| {
            let costs = usize::from(node.spec.region).min(config.costs.len() - 1);
            Node {
                processors: Processors::new(node.processors),
                generation: 0,
                prepared: config.costs[costs].prepared,
                costs,
                region: node.spec.region,
            }
        };
        let nodes: Vec<Node> = config.nodes.iter().map(node).collect();
        let prepared = nodes.iter().map(|node| {
            let costs = &config.costs[node.costs];
            u64::from(costs.prepared) * costs.prepared_bytes
        });
        let use_now = Sample {
            memory_bytes: prepared.sum(),
            ..Sample::default()
        };
        Self {
            workload,
            config,
            policy,
            random: Pcg64Mcg::new(u128::from(config.seed) << 1 | 1),
            now_ns: 0,
            events: BinaryHeap::new(),
            order: 0,
            nodes,
            instances: HashMap::new(),
            calls: HashMap::new(),
            open: 0,
            tick_ns: None,
            decisions: Vec::new(),
            records: Vec::with_capacity(workload.arrivals.len()),
            samples: Vec::new(),
            use_now,
            count: 0,
        }
    }

    pub(super) fn run(mut self) -> Result<SimResult, SimError> {
        for (index, node) in self.config.nodes.iter().enumerate() {
            self.observe(Observation::Node(NodeId(index as u32), node.spec))?;
        }
        for index in 0..self.workload.functions.len() {
            let spec = self.function_spec(index);
            self.observe(Observation::Function(FunctionId(index as u32), spec))?;
        }
        self.at(0, Event::Sample);
        let last_ns = self.workload.arrivals.last().map_or(0, |arrival| arrival.at_ns);
        let arrivals = &self.workload.arrivals;
        while self.records.len() < arrivals.len() || self.open > 0 {
            let arrival = arrivals.get(self.records.len());
            let next = self.events.peek().map(|Reverse((at, ..))| *at);
            self.count += 1;
            match (arrival, next) {
                (Some(arrival), next) if next.is_none_or(|next| arrival.at_ns < next) => {
                    self.now_ns = self.now_ns.max(arrival.at_ns);
                    self.arrive(arrival.function, arrival.duration_ns)?;
                }
                (_, Some(_)) => {
                    let Some(Reverse((at, _, event))) = self.events.pop() else {
                        break;
                    };
                    self.now_ns = at;
                    if at > last_ns.saturating_add(AFTER_MAX_NS) {
                        return Err(SimError::Policy("has left calls without an answer"));
                    }
                    self.happen(event)?;
                }
                (_, None) => return Err(SimError::Policy("has left calls without an answer")),
            }
        }
        self.sample();
        Ok(SimResult {
            records: self.records,
            samples: self.samples,
            events: self.count,
        })
    }

    fn function_spec(&self, index: usize) -> FunctionSpec {
        let function = &self.workload.functions[index];
        FunctionSpec {
            tenant: TenantId(function.tenant),
            memory_bytes: self.config.costs[0].instance_bytes + (u64::from(function.memory_mib) << 20),
            concurrency_per_instance: self.config.functions.concurrency_per_instance,
            instances_min: 0,
            instances_max: None,
            reserved: None,
            queue_timeout_ns: self.config.functions.queue_timeout_ns,
            home: self.config.homes.get(index).copied().unwrap_or(0),
        }
    }

    fn arrive(&mut self, function: u32, requested_ns: u64) -> Result<(), SimError> {
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

    fn happen(&mut self, event: Event) -> Result<(), SimError> {
        match event {
            Event::Node { node, generation } => {
                if self.nodes[node as usize].generation != generation {
                    return Ok(());
                }
                while let Some(job) = self.nodes[node as usize].processors.ended(self.now_ns) {
                    self.job_ended(node, job)?;
                }
                self.look_again(node);
                Ok(())
            }
            Event::Reached(call) => self.begin_handler(call),
            Event::Restore(call) => self.begin_restore(call),
            Event::Create(instance) => {
                let Some(found) = self.instances.get(&InstanceId(instance)).copied() else {
                    return Ok(());
                };
                let work = self.costs_of(found.node).create_cpu_ns;
                self.overhead(work);
                self.begin(found.node, work, Job::Create(instance));
                Ok(())
            }
            Event::Created(instance) => self.ready(InstanceId(instance)),
            Event::Tick => {
                if self.tick_ns != Some(self.now_ns) {
                    return Ok(());
                }
                self.tick_ns = None;
                let mut decisions = std::mem::take(&mut self.decisions);
                self.policy.tick(Time(self.now_ns), &mut decisions);
                self.carry_out(decisions)
            }
            Event::Sample => {
                self.sample();
                self.at(self.now_ns + self.config.sample_every_ns.max(1), Event::Sample);
                Ok(())
            }
        }
    }

    fn job_ended(&mut self, node: u32, job: Job) -> Result<(), SimError> {
        match job {
            Job::Handler(call) => self.end(call),
            Job::Restore(call) => {
                let instance = self.sent(call)?.instance;
                self.ready(instance)?;
                self.begin_handler(call)
            }
            Job::Create(instance) => {
                let costs = self.nodes[node as usize].costs;
                let delay = self.config.costs[costs].create.draw(&mut self.random);
                match delay {
                    0 => self.ready(InstanceId(instance)),
                    delay => {
                        self.at(self.now_ns + delay, Event::Created(instance));
                        Ok(())
                    }
                }
            }
            Job::Prepare => {
                self.use_now.memory_bytes += self.costs_of(node).prepared_bytes;
                self.nodes[node as usize].prepared += 1;
                Ok(())
            }
            Job::Background => Ok(()),
        }
    }

    /// A call's handler begins, with all that goes around it.
    fn begin_handler(&mut self, call: u32) -> Result<(), SimError> {
        let sent = self.sent(call)?;
        let around = self.costs_of(sent.node).call_cpu_ns;
        let record = &mut self.records[call as usize];
        record.started_ns = self.now_ns;
        let work = record.requested_ns + around;
        self.use_now.cpu_ns += work;
        self.use_now.overhead_cpu_ns += around;
        self.begin(sent.node, work, Job::Handler(call));
        Ok(())
    }

    fn begin_restore(&mut self, call: u32) -> Result<(), SimError> {
        let node = self.sent(call)?.node;
        let costs = self.nodes[node as usize].costs;
        let costs = &self.config.costs[costs];
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
            components.worker_ns = costs.prepare_cpu_ns;
            costs.restore_cpu_ns + costs.prepare_cpu_ns
        };
        self.overhead(work);
        self.begin(node, work, Job::Restore(call));
        Ok(())
    }

    fn ready(&mut self, instance: InstanceId) -> Result<(), SimError> {
        let Some(found) = self.instances.get_mut(&instance) else {
            return Ok(());
        };
        found.ready = true;
        self.observe(Observation::Ready(instance))
    }

    /// A call has been answered.
    fn end(&mut self, call: u32) -> Result<(), SimError> {
        let sent = self.sent(call)?;
        self.calls.remove(&call);
        let record = &mut self.records[call as usize];
        record.ended_ns = self.now_ns;
        record.ending = Ending::Answered;
        self.open -= 1;
        if let Some(instance) = self.instances.get_mut(&sent.instance) {
            instance.calls -= 1;
            self.use_now.busy -= u32::from(instance.calls == 0);
        }
        self.observe(Observation::Ended(CallId(call.into())))
    }

    fn observe(&mut self, observation: Observation) -> Result<(), SimError> {
        let mut decisions = std::mem::take(&mut self.decisions);
        self.policy
            .observe(Time(self.now_ns), observation, &mut decisions);
        self.carry_out(decisions)
    }

    fn carry_out(&mut self, mut decisions: Vec<Decision>) -> Result<(), SimError> {
        for decision in decisions.drain(..) {
            match decision {
                Decision::Run { call, instance, node } => self.run_call(call, instance, node)?,
                Decision::Restore {
                    call,
                    instance,
                    node,
                    function,
                } => {
                    self.add(instance, node, function, Class::Emergency)?;
                    self.restore(call, instance, node)?;
                }
                Decision::Create {
                    instance,
                    node,
                    function,
                } => {
                    self.add(instance, node, function, Class::Regular)?;
                    let costs = self.nodes[node.0 as usize].costs;
                    let delay = self.config.costs[costs].manager.draw(&mut self.random);
                    self.at(self.now_ns + delay, Event::Create(instance.0));
                }
                Decision::Remove { instance, node } => self.remove(instance, node)?,
                Decision::Refuse { call, .. } => self.refuse(call)?,
            }
        }
        self.decisions = decisions;
        let wanted = self.policy.next_tick().map(|time| time.0.max(self.now_ns));
        if let Some(at) = wanted
            && self.tick_ns.is_none_or(|tick| at < tick)
        {
            self.tick_ns = Some(at);
            self.at(at, Event::Tick);
        }
        Ok(())
    }

    fn run_call(&mut self, call: CallId, instance: InstanceId, node: NodeId) -> Result<(), SimError> {
        let ready = self.instances.get(&instance).is_some_and(|found| found.ready);
        if !ready {
            return Err(SimError::Policy("sent a call to an instance that is not ready"));
        }
        let call = self.send(call, instance, node, Start::Warm)?;
        let delay = self.way(call, node.0);
        self.at(self.now_ns + delay, Event::Reached(call));
        Ok(())
    }

    fn restore(&mut self, call: CallId, instance: InstanceId, node: NodeId) -> Result<(), SimError> {
        let call = self.send(call, instance, node, Start::Restored)?;
        let costs = self.nodes[node.0 as usize].costs;
        let delay = self.config.costs[costs].restore.draw(&mut self.random);
        let way = self.way(call, node.0);
        self.records[call as usize].components.fetch_ns = delay;
        self.at(self.now_ns + way + delay, Event::Restore(call));
        Ok(())
    }

    /// Notes where a call goes.
    fn send(&mut self, call: CallId, id: InstanceId, node: NodeId, start: Start) -> Result<u32, SimError> {
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
    fn way(&mut self, call: u32, node: u32) -> u64 {
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

    fn add(
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
            class,
            bytes,
            calls: 0,
            ready: false,
        };
        if self.instances.insert(id, instance).is_some() {
            return Err(SimError::Policy("gave a name twice"));
        }
        self.use_now.memory_bytes += bytes;
        *self.of_class(class) += 1;
        Ok(())
    }

    fn remove(&mut self, id: InstanceId, node: NodeId) -> Result<(), SimError> {
        let removed = self
            .instances
            .remove(&id)
            .filter(|instance| instance.node == node.0);
        let Some(instance) = removed.filter(|instance| instance.calls == 0) else {
            return Err(SimError::Policy(
                "removed an instance that is not there, or at work",
            ));
        };
        self.use_now.memory_bytes -= instance.bytes;
        *self.of_class(instance.class) -= 1;
        let work = self.costs_of(node.0).end_cpu_ns;
        self.overhead(work);
        self.begin(node.0, work, Job::Background);
        Ok(())
    }

    fn refuse(&mut self, call: CallId) -> Result<(), SimError> {
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

    fn of_class(&mut self, class: Class) -> &mut u32 {
        match class {
            Class::Regular => &mut self.use_now.regular,
            Class::Emergency => &mut self.use_now.emergency,
        }
    }

    fn sent(&self, call: u32) -> Result<Call, SimError> {
        let found = self.calls.get(&call).copied();
        found.ok_or(SimError::Policy("lost a call"))
    }

    fn costs_of(&self, node: u32) -> &'a SimCosts {
        &self.config.costs[self.nodes[node as usize].costs]
    }

    fn overhead(&mut self, work_ns: u64) {
        self.use_now.overhead_cpu_ns += work_ns;
        self.use_now.cpu_ns += work_ns;
    }

    fn begin(&mut self, node: u32, work_ns: u64, job: Job) {
        self.nodes[node as usize]
            .processors
            .begin(self.now_ns, work_ns, job);
        self.look_again(node);
    }

    /// Has the node's next end looked for anew: something has changed there.
    fn look_again(&mut self, node: u32) {
        let found = &mut self.nodes[node as usize];
        found.generation += 1;
        let (generation, next) = (found.generation, found.processors.next_end());
        if let Some(at) = next {
            self.at(at, Event::Node { node, generation });
        }
    }

    fn at(&mut self, at_ns: u64, event: Event) {
        self.order += 1;
        self.events.push(Reverse((at_ns, self.order, event)));
    }

    fn sample(&mut self) {
        self.use_now.at_ns = self.now_ns;
        self.samples.push(self.use_now);
    }
}
