//! The loop of events, and what the nodes make of decisions.
//!
//! `calls.rs` is the way of a call, `instances.rs` that of an instance, `armed.rs` what a node has ready for whoever comes,
//! `frozen.rs` what becomes of instances that are idle for long, `memory.rs` where its memory comes from, `load.rs` what it tells
//! of its processors.

mod armed;
mod calls;
mod frozen;
mod instances;
mod load;
mod memory;

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
};

use gust_policy::{
    Class, Decision, FunctionId, FunctionSpec, InstanceId, NodeId, Observation, TenantId, Time,
};
use rand_pcg::Pcg64Mcg;

use super::{
    Policy, SimConfig, SimCosts, SimError, SimResult,
    processors::{Processors, Urgency},
};
use crate::{Arrival, Record, Sample, Workload};
use armed::{OnNode, Origin};
use load::Told;
use memory::Freed;

/// Longest time after the last arrival, in nanoseconds: calls that have not ended by then never will.
const AFTER_MAX_NS: u64 = 86_400_000_000_000;

/// Time until a function's instances are looked at again that were to be ended while one was at work: whoever ends them waits for
/// the call's end, which may be later here.
const EVICT_AGAIN_NS: u64 = 10_000_000;

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
    /// Armed instances of a function may have been kept long enough.
    Disarm { node: u32, function: u32 },
    /// An instance may have been idle for long enough to be frozen.
    Freeze(u64),
    /// The policy wants to be told the time.
    Tick,
    /// What is used is noted.
    Sample,
    /// A node may have something to tell of its processors.
    Load(u32),
    /// Someone has the idle instances of a function ended.
    Evict(u32),
    /// The run begins, after the calls before it.
    Begin,
}

/// Work of a node's processors.
#[derive(Debug, Clone, Copy)]
enum Job {
    Handler(u32),
    /// What the first call of an instance does more than others.
    First(u32),
    Restore(u32),
    Create(u64),
    /// Preparing a worker in the stead of one that was used.
    Prepare,
    /// An instance of a function becomes armed, to be kept for so long.
    Arm {
        function: u32,
        keep_ns: u64,
        more_bytes: u64,
    },
    /// An instance that has been idle since then is frozen.
    Freeze {
        instance: u64,
        idle_since_ns: u64,
    },
    /// Nothing waits for it.
    Background,
}

struct Node {
    processors: Processors<Job>,
    generation: u64,
    prepared: u32,
    /// What it has of each function.
    functions: HashMap<u32, OnNode>,
    freed: Freed,
    /// Calls that have been sent to it.
    calls: u32,
    told: Told,
    costs: usize,
    region: u16,
}

#[derive(Debug, Clone, Copy)]
struct Instance {
    node: u32,
    function: u32,
    class: Class,
    /// What every instance has, and its function's memory once a call has touched that; what is left of a frozen one.
    bytes: u64,
    origin: Origin,
    calls: u32,
    ready: bool,
    /// Whether a call has touched its memory, and it has not given it away since.
    touched: bool,
    is_frozen: bool,
    /// When its last call ended.
    idle_since_ns: u64,
    /// Its node will see whether to freeze it.
    freeze_is_due: bool,
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
                processors: Processors::new(node.processors, config.costs[costs].busy_permille),
                generation: 0,
                prepared: config.costs[costs].prepared,
                functions: HashMap::new(),
                freed: Freed::default(),
                calls: 0,
                told: Told::default(),
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
            records: Vec::with_capacity(workload.arrivals.len() + config.ahead.calls.len()),
            samples: Vec::new(),
            use_now,
            count: 0,
        }
    }

    pub(super) fn run(mut self, arrivals: &[Arrival]) -> Result<SimResult, SimError> {
        for (index, node) in self.config.nodes.iter().enumerate() {
            self.observe(Observation::Node(NodeId(index as u32), node.spec))?;
        }
        for index in 0..self.workload.functions.len() {
            let spec = self.function_spec(index);
            self.observe(Observation::Function(FunctionId(index as u32), spec))?;
        }
        self.at(0, Event::Sample);
        let ahead = &self.config.ahead;
        for call in &ahead.calls {
            self.at(call.evicted_ns, Event::Evict(call.function));
        }
        if ahead.length_ns > 0 {
            self.at(ahead.length_ns, Event::Begin);
        }
        let last_ns = arrivals.last().map_or(0, |arrival| arrival.at_ns);
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
        Ok(self.result())
    }

    /// What came of the run, without what was before it.
    fn result(mut self) -> SimResult {
        let ahead = &self.config.ahead;
        let mut records = self.records.split_off(ahead.calls.len());
        for record in &mut records {
            for moment in [
                &mut record.arrived_ns,
                &mut record.started_ns,
                &mut record.ended_ns,
            ] {
                *moment -= ahead.length_ns;
            }
        }
        for sample in &mut self.samples {
            sample.at_ns = sample.at_ns.saturating_sub(ahead.length_ns);
        }
        SimResult {
            records,
            samples: self.samples,
            events: self.count,
        }
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
            Event::Reached(call) => self.reached(call),
            Event::Restore(call) => self.begin_restore(call),
            Event::Create(instance) => {
                let Some(found) = self.instances.get(&InstanceId(instance)).copied() else {
                    return Ok(());
                };
                let costs = self.costs_of(found.node);
                let id = InstanceId(instance);
                let work = match self.take_armed(id, found.node, found.function) {
                    // What else there is to do is done by its first call.
                    true => 0,
                    // Prepared workers are for calls that wait: it maps its own snapshot.
                    false => {
                        self.note_ahead(id, found.node, found.function);
                        costs.create_cpu_ns
                    }
                };
                self.overhead(work);
                self.begin(found.node, work, Job::Create(instance));
                Ok(())
            }
            Event::Created(instance) => self.ready(InstanceId(instance)),
            Event::Disarm { node, function } => {
                self.disarm(node, function, self.now_ns);
                Ok(())
            }
            Event::Freeze(instance) => {
                self.see_to_freezing(InstanceId(instance));
                Ok(())
            }
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
            Event::Load(node) => self.tell_load(node),
            Event::Evict(function) => self.evict(function),
            Event::Begin => {
                self.samples.clear();
                (self.use_now.cpu_ns, self.use_now.overhead_cpu_ns) = (0, 0);
                self.sample();
                Ok(())
            }
        }
    }

    fn job_ended(&mut self, node: u32, job: Job) -> Result<(), SimError> {
        match job {
            Job::Handler(call) => self.end(call),
            Job::First(call) => self.begin_handler(call),
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
            Job::Arm {
                function,
                keep_ns,
                more_bytes,
            } => {
                self.armed(node, function, keep_ns, more_bytes);
                Ok(())
            }
            Job::Freeze {
                instance,
                idle_since_ns,
            } => {
                self.frozen(InstanceId(instance), idle_since_ns);
                Ok(())
            }
            Job::Background => Ok(()),
        }
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
                Decision::Remove {
                    instance,
                    node,
                    armed_ns,
                } => self.remove(instance, node, armed_ns)?,
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

    fn costs_of(&self, node: u32) -> &'a SimCosts {
        &self.config.costs[self.nodes[node as usize].costs]
    }

    /// Memory that a function's calls use, in MiB.
    fn memory_mib(&self, function: u32) -> u32 {
        self.workload.functions[function as usize].memory_mib
    }

    fn overhead(&mut self, work_ns: u64) {
        self.use_now.overhead_cpu_ns += work_ns;
        self.use_now.cpu_ns += work_ns;
    }

    fn begin(&mut self, node: u32, work_ns: u64, job: Job) {
        let urgency = match job {
            Job::Handler(_) | Job::First(_) | Job::Restore(_) | Job::Create(_) | Job::Background => {
                Urgency::Urgent
            }
            Job::Prepare | Job::Arm { .. } | Job::Freeze { .. } => Urgency::StandsBack,
        };
        self.nodes[node as usize]
            .processors
            .begin(self.now_ns, work_ns, urgency, job);
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
        self.mind_load(node);
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
