//! A model of what carries out a fleet's decisions, which holds each of them against what it may be.

use crate::{
    CallId, Class, Counts, Decision, Fleet, FleetConfig, FunctionId, FunctionSpec, InstanceId, Mode, NodeId,
    NodeLoad, NodeSpec, Observation, Refusal, Time,
};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Starting,
    Restoring,
    Ready,
}

#[derive(Debug, Clone)]
pub(super) struct Instance {
    pub(super) function: FunctionId,
    pub(super) node: NodeId,
    pub(super) class: Class,
    pub(super) phase: Phase,
    pub(super) bytes: u64,
    concurrency: u32,
    pub(super) calls: BTreeSet<CallId>,
}

impl Instance {
    /// One of a function that is not known takes nothing.
    fn new(
        spec: Option<&FunctionSpec>,
        (node, function): (NodeId, FunctionId),
        class: Class,
        phase: Phase,
    ) -> Instance {
        let bytes = spec.map_or(0, |spec| spec.memory_bytes.max(1));
        let concurrency = spec.map_or(0, |spec| spec.concurrency_per_instance.max(1));
        Instance {
            function,
            node,
            class,
            phase,
            bytes,
            concurrency,
            calls: BTreeSet::new(),
        }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) function: FunctionId,
    pub(super) on: Option<InstanceId>,
    restores: u32,
}

/// The fleet, and what has come of its decisions.
pub(super) struct World {
    pub(super) fleet: Fleet,
    pub(super) now: Time,
    pub(super) functions: BTreeMap<FunctionId, FunctionSpec>,
    /// With whether it drains.
    pub(super) nodes: BTreeMap<NodeId, (NodeSpec, bool)>,
    /// What nodes have told of their processors, and the calls on them then.
    loads: BTreeMap<NodeId, (NodeLoad, usize)>,
    pub(super) instances: BTreeMap<InstanceId, Instance>,
    pub(super) calls: BTreeMap<CallId, Call>,
    pub(super) refused: Vec<(CallId, Refusal)>,
    pub(super) log: Vec<(Time, Decision)>,
    names: BTreeSet<InstanceId>,
    finished: BTreeSet<CallId>,
    strict: bool,
}

impl World {
    pub(super) fn new(config: FleetConfig) -> World {
        World {
            fleet: Fleet::new(config),
            now: Time(0),
            functions: BTreeMap::new(),
            nodes: BTreeMap::new(),
            loads: BTreeMap::new(),
            instances: BTreeMap::new(),
            calls: BTreeMap::new(),
            refused: Vec::new(),
            log: Vec::new(),
            names: BTreeSet::new(),
            finished: BTreeSet::new(),
            strict: true,
        }
    }

    /// Does not look at everything after each step: for tests with many.
    pub(super) fn lenient(mut self) -> World {
        self.strict = false;
        self
    }

    /// Tells the fleet and takes its decisions; gives them back.
    pub(super) fn tell(&mut self, observation: Observation) -> Vec<Decision> {
        self.happen(observation);
        let mut out = Vec::new();
        self.fleet.observe(self.now, observation, &mut out);
        self.carry_out(&out);
        out
    }

    /// Goes on to a time, with all ticks that the fleet asks for before.
    pub(super) fn go_to(&mut self, time: Time) -> Vec<Decision> {
        let mut all = Vec::new();
        while let Some(at) = self.fleet.next_tick().filter(|at| *at <= time) {
            self.now = self.now.max(at);
            let mut out = Vec::new();
            self.fleet.tick(self.now, &mut out);
            self.carry_out(&out);
            assert!(
                self.fleet.next_tick().is_none_or(|next| next > self.now),
                "a tick that does not end"
            );
            all.append(&mut out);
        }
        self.now = self.now.max(time);
        all
    }

    pub(super) fn pass(&mut self, ns: u64) -> Vec<Decision> {
        self.go_to(Time(self.now.0 + ns))
    }

    /// Names of instances in a phase.
    pub(super) fn in_phase(&self, phase: Phase) -> Vec<InstanceId> {
        self.instances
            .iter()
            .filter(|(_, it)| it.phase == phase)
            .map(|(id, _)| *id)
            .collect()
    }

    /// Says of every instance that is being made that it is ready, until none is left.
    pub(super) fn ready_all(&mut self) {
        for id in [self.in_phase(Phase::Starting), self.in_phase(Phase::Restoring)].concat() {
            self.tell(Observation::Ready(id));
        }
    }

    /// Calls that wait, of a function or of all.
    pub(super) fn waiting(&self, of: Option<FunctionId>) -> Vec<CallId> {
        let of = |call: &Call| call.on.is_none() && of.is_none_or(|of| of == call.function);
        self.calls
            .iter()
            .filter(|(_, call)| of(call))
            .map(|(id, _)| *id)
            .collect()
    }

    /// Calls on instances.
    pub(super) fn sent(&self) -> Vec<CallId> {
        self.calls
            .iter()
            .filter(|(_, call)| call.on.is_some())
            .map(|(id, _)| *id)
            .collect()
    }

    /// What an observation changes by itself.
    fn happen(&mut self, observation: Observation) {
        match observation {
            Observation::Function(id, spec) => {
                self.functions.insert(id, spec);
            }
            Observation::FunctionGone(id) => {
                self.functions.remove(&id);
            }
            Observation::Node(id, spec) => {
                self.nodes.insert(id, (spec, false));
            }
            Observation::Load(id, load) => {
                if self.nodes.contains_key(&id) {
                    self.loads.insert(id, (load, self.calls_on(id)));
                }
            }
            Observation::NodeDrains(id) => {
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.1 = true;
                }
            }
            Observation::NodeGone(id) => {
                self.nodes.remove(&id);
                self.loads.remove(&id);
                let lost: Vec<_> = self
                    .instances
                    .iter()
                    .filter(|(_, it)| it.node == id)
                    .map(|(id, _)| *id)
                    .collect();
                lost.into_iter().for_each(|instance| self.lose(instance));
            }
            Observation::Snapshot(..) => {}
            Observation::Found(id, node, function, class) => {
                if self.nodes.contains_key(&node) && self.names.insert(id) {
                    let spec = self.functions.get(&function);
                    let it = Instance::new(spec, (node, function), class, Phase::Ready);
                    self.instances.insert(id, it);
                }
            }
            Observation::Arrived(id, function) => {
                if !self.calls.contains_key(&id) {
                    self.finished.remove(&id);
                    self.calls.insert(
                        id,
                        Call {
                            function,
                            on: None,
                            restores: 0,
                        },
                    );
                }
            }
            Observation::GivenUp(id) => {
                if self.calls.get(&id).is_some_and(|call| call.on.is_none()) {
                    self.finish(id);
                }
            }
            Observation::Ready(id) => {
                if let Some(it) = self.instances.get_mut(&id) {
                    it.phase = Phase::Ready;
                }
            }
            Observation::Ended(id) => {
                let Some(call) = self.calls.get(&id) else { return };
                if let Some(instance) = call.on
                    && let Some(it) = self.instances.get_mut(&instance)
                {
                    it.calls.remove(&id);
                    it.phase = Phase::Ready;
                }
                self.finish(id);
            }
            Observation::Gone(id) => self.lose(id),
        }
    }

    fn lose(&mut self, id: InstanceId) {
        let Some(it) = self.instances.remove(&id) else {
            return;
        };
        for id in it.calls {
            let call = self.calls.get_mut(&id).unwrap();
            if it.phase == Phase::Restoring && call.restores < 2 {
                call.on = None;
            } else {
                self.finish(id);
            }
        }
    }

    fn finish(&mut self, id: CallId) {
        assert!(self.calls.remove(&id).is_some(), "{id:?} is over twice");
        assert!(self.finished.insert(id), "{id:?} is over twice");
    }

    fn carry_out(&mut self, decisions: &[Decision]) {
        for decision in decisions {
            self.log.push((self.now, *decision));
            match *decision {
                Decision::Run { call, instance, node } => self.run(call, instance, node),
                Decision::Restore {
                    call,
                    instance,
                    node,
                    function,
                } => {
                    self.make(instance, node, function, Class::Emergency, Phase::Restoring);
                    self.calls.get_mut(&call).expect("a call that is there").restores += 1;
                    assert_eq!(self.calls[&call].function, function);
                    self.put(call, instance);
                }
                Decision::Create {
                    instance,
                    node,
                    function,
                } => {
                    self.make(instance, node, function, Class::Regular, Phase::Starting);
                }
                Decision::Remove { instance, node, .. } => {
                    let it = self.instances.remove(&instance).expect("removes what is there");
                    assert!(it.calls.is_empty(), "{instance:?} is removed at work");
                    assert_eq!(it.node, node);
                    assert_eq!(it.phase, Phase::Ready);
                }
                Decision::Refuse {
                    call,
                    reason,
                    retry_after_ns,
                } => {
                    assert!(retry_after_ns > 0);
                    assert_eq!(self.calls[&call].on, None, "{call:?} is refused at work");
                    self.refused.push((call, reason));
                    self.finish(call);
                }
            }
        }
        if self.strict {
            self.check();
        }
    }

    fn run(&mut self, call: CallId, instance: InstanceId, node: NodeId) {
        let it = &self.instances[&instance];

        assert_eq!(it.phase, Phase::Ready, "{instance:?} runs a call too early");
        assert_eq!(it.node, node);
        assert_eq!(it.function, self.calls[&call].function);
        assert!(
            (it.calls.len() as u32) < it.concurrency,
            "{instance:?} has too many"
        );
        self.live(node);
        self.put(call, instance);
    }

    fn put(&mut self, call: CallId, instance: InstanceId) {
        let found = self.calls.get_mut(&call).expect("a call that is there");
        assert_eq!(found.on, None, "{call:?} is sent twice");
        found.on = Some(instance);
        self.instances.get_mut(&instance).unwrap().calls.insert(call);
    }

    fn live(&self, node: NodeId) -> NodeSpec {
        let (spec, drains) = self.nodes.get(&node).expect("a node that is there");
        assert!(!drains, "{node:?} drains");
        *spec
    }

    fn make(&mut self, id: InstanceId, node: NodeId, function: FunctionId, class: Class, phase: Phase) {
        assert!(self.names.insert(id), "{id:?} is a name twice");
        let spec = self.functions[&function];
        let on = self.live(node);
        let bytes = spec.memory_bytes.max(1);
        let there = self.instances.values().filter(|it| it.node == node);
        let (mut count, mut used, mut restores) = (1, bytes, u32::from(phase == Phase::Restoring));
        let mut creations = u32::from(phase == Phase::Starting);
        for it in there {
            count += 1;
            used += it.bytes;
            restores += u32::from(it.phase == Phase::Restoring);
            creations += u32::from(it.phase == Phase::Starting);
        }
        assert!(
            creations <= on.restores_max,
            "{node:?} makes too many at the same time"
        );
        assert!(count <= on.instances_max, "{node:?} has too many instances");
        assert!(used <= on.memory_bytes, "{node:?} has too little memory");
        assert!(restores <= on.restores_max, "{node:?} has too many restores");
        if !self.fleet.regions().is_on() {
            assert_eq!(on.region, spec.home, "{id:?} is far from home");
        }
        let of_function = self
            .instances
            .values()
            .filter(|it| it.function == function)
            .count() as u32;
        assert!(
            of_function == 0 || !self.is_saturated(node),
            "{function:?} gets more of a saturated {node:?}"
        );
        assert!(
            spec.instances_max.is_none_or(|max| of_function < max),
            "{function:?} has too many instances"
        );
        self.instances
            .insert(id, Instance::new(Some(&spec), (node, function), class, phase));
    }

    /// What must be so between any two steps.
    fn check(&self) {
        let config = self.fleet.config();
        let mut expected = Counts::default();
        let mut open: BTreeSet<FunctionId> = BTreeSet::new();
        for it in self.instances.values() {
            expected.memory_bytes += it.bytes;
            expected.busy += u32::from(!it.calls.is_empty());
            match it.class {
                Class::Regular => expected.regular += 1,
                Class::Emergency => expected.emergency += 1,
            }
            match it.phase {
                Phase::Starting => expected.starting += 1,
                Phase::Restoring => expected.restoring += 1,
                Phase::Ready => {}
            }
            let room = (it.calls.len() as u32) < it.concurrency && it.phase == Phase::Ready;
            if room && !self.nodes[&it.node].1 {
                open.insert(it.function);
            }
        }
        expected.running = self.sent().len() as u32;
        expected.waiting = self.waiting(None).len() as u32;
        assert_eq!(self.fleet.counts(), expected);
        assert!(expected.waiting <= config.waiting_max);
        for (id, spec) in &self.functions {
            let waiting = self.waiting(Some(*id)).len() as u32;
            if waiting == 0 {
                continue;
            }
            assert!(
                !open.contains(id),
                "{id:?} waits though an instance of it has room"
            );
            // Those that come back from a lost restore are not turned away.
            let first = |call: &CallId| self.calls[call].restores == 0;
            let queued = self.waiting(Some(*id)).iter().filter(|call| first(call)).count();
            assert!(
                queued as u32 <= config.queue_max,
                "{id:?} has too many calls that wait"
            );
            let instances = self.instances.values().filter(|it| it.function == *id).count() as u32;
            if config.mode == Mode::Dual && spec.instances_max.is_none_or(|max| instances < max) {
                self.nodes.iter().for_each(|(node, (on, drains))| {
                    assert!(
                        *drains
                            || !self.has_room(*node, on, spec)
                            || instances > 0 && self.is_saturated(*node),
                        "{id:?} waits though {node:?} has room"
                    );
                });
            }
        }
        let deadline = self.fleet.next_tick();
        assert!(
            expected.waiting == 0 || deadline.is_some(),
            "calls wait without end"
        );
    }

    fn calls_on(&self, node: NodeId) -> usize {
        let there = self.instances.values().filter(|it| it.node == node);
        there.map(|it| it.calls.len()).sum()
    }

    fn is_saturated(&self, node: NodeId) -> bool {
        let per_cpu = self.fleet.config().runnable_per_cpu;
        let Some((load, calls_then)) = self.loads.get(&node) else {
            return false;
        };
        let calls = self.calls_on(node);
        let runnable = (load.runnable as usize + calls).saturating_sub(*calls_then);
        let max = (load.cpus * per_cpu) as usize;
        max > 0 && calls.min(runnable) >= max
    }

    fn has_room(&self, node: NodeId, on: &NodeSpec, spec: &FunctionSpec) -> bool {
        let there: Vec<_> = self.instances.values().filter(|it| it.node == node).collect();
        let used: u64 = there.iter().map(|it| it.bytes).sum();
        let restores = there.iter().filter(|it| it.phase == Phase::Restoring).count() as u32;
        on.region == spec.home
            && (there.len() as u32) < on.instances_max
            && restores < on.restores_max
            && used + spec.memory_bytes.max(1) <= on.memory_bytes
    }
}
