//! What the live fleet holds under its mutex, and how decisions become verdicts for calls and work for others.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use gust_node::{InstanceName, Named, VersionId, Wanted};
use gust_policy::{
    CallId, Class, Decision, Fleet, FleetConfig, FunctionId, FunctionSpec, InstanceId, NodeId, Observation,
    Time,
};
use tokio::{sync::oneshot, task::AbortHandle};

use super::{Refused, class_of, named};
use crate::agent::Agent;

/// Least memory that an instance is expected to take once some have been seen, in bytes.
const LEARNED_BYTES_MIN: u64 = 4 << 20;

/// An instance that a call has been given.
#[derive(Debug, Clone)]
pub(super) struct Grant {
    pub(super) agent: Agent,
    pub(super) function: FunctionId,
    pub(super) instance: InstanceId,
    pub(super) class: Class,
    pub(super) wanted: Wanted,
}

/// What a call is told.
#[derive(Debug)]
pub(super) enum Verdict {
    Granted(Grant),
    Refused(Refused),
}

/// An instance that the cluster manager is to make once the lock is let go of.
#[derive(Debug)]
pub(super) struct Creation {
    pub(super) agent: Agent,
    pub(super) instance: InstanceId,
    pub(super) version: VersionId,
}

/// An instance as far as carrying out decisions needs it.
#[derive(Debug, Clone, Copy)]
struct Instance {
    function: FunctionId,
    node: NodeId,
    class: Class,
    is_ready: bool,
}

#[derive(Debug)]
struct Function {
    version: VersionId,
    spec: FunctionSpec,
    /// Its instances have been seen to use so much.
    learned_bytes: Option<u64>,
}

/// What the fleet holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LiveCounts {
    /// Function versions.
    pub functions: usize,
    /// Nodes.
    pub nodes: usize,
    /// Regular instances, those in the making too.
    pub regular: usize,
    /// Emergency instances.
    pub emergency: usize,
    /// Calls that wait for an instance.
    pub waiting: usize,
    /// Calls that have been given an instance and are not over.
    pub running: usize,
}

/// A task that listens to a node, until this is dropped.
#[derive(Debug)]
pub(super) struct Listener(pub(super) AbortHandle);

impl Drop for Listener {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[derive(Debug)]
pub(super) struct State {
    fleet: Fleet,
    pub(super) agents: HashMap<NodeId, Agent>,
    /// Tasks that wait for what nodes lose and have to do.
    pub(super) listeners: HashMap<NodeId, [Listener; 2]>,
    functions: HashMap<FunctionId, Function>,
    ids: HashMap<VersionId, FunctionId>,
    /// Calls that wait for their verdict.
    pub(super) calls: HashMap<CallId, oneshot::Sender<Verdict>>,
    instances: HashMap<InstanceId, Instance>,
    pub(super) creations: Vec<Creation>,
    /// What the policies have just decided; kept for its room.
    decisions: Vec<Decision>,
    /// Calls that have been given an instance and are not over.
    running: usize,
    /// What follows from carrying out decisions, and is yet to be told to the policies.
    following: VecDeque<Observation>,
    calls_counted: u64,
    functions_counted: u32,
    /// When the ticking task wakes up.
    armed_for: Option<Time>,
}

impl State {
    pub(super) fn new(config: FleetConfig) -> Self {
        Self {
            fleet: Fleet::new(config),
            agents: HashMap::new(),
            listeners: HashMap::new(),
            functions: HashMap::new(),
            ids: HashMap::new(),
            calls: HashMap::new(),
            instances: HashMap::new(),
            creations: Vec::new(),
            decisions: Vec::new(),
            running: 0,
            following: VecDeque::new(),
            calls_counted: 0,
            functions_counted: 0,
            armed_for: None,
        }
    }

    pub(super) fn observe(&mut self, now: Time, observation: Observation) {
        self.following.push_back(observation);
        self.follow_up(now);
    }

    pub(super) fn tick(&mut self, now: Time) {
        self.fleet.tick(now, &mut self.decisions);
        self.carry_out();
        self.follow_up(now);
    }

    /// When the next tick is due; the ticking task sleeps until then.
    pub(super) fn arm_tick(&mut self) -> Option<Time> {
        self.armed_for = self.fleet.next_tick();
        self.armed_for
    }

    /// Whether a tick is due before the ticking task wakes up.
    pub(super) fn is_tick_sooner(&mut self) -> bool {
        let next = self.fleet.next_tick();
        let is_sooner = next.is_some_and(|next| self.armed_for.is_none_or(|armed| next < armed));
        if is_sooner {
            // It is told once.
            self.armed_for = next;
        }
        is_sooner
    }

    /// A call has come; its verdict arrives through the channel.
    pub(super) fn arrive(&mut self, now: Time, function: FunctionId) -> (CallId, oneshot::Receiver<Verdict>) {
        let (sender, turn) = oneshot::channel();
        self.calls_counted += 1;
        let call = CallId(self.calls_counted);
        self.calls.insert(call, sender);
        self.observe(now, Observation::Arrived(call, function));
        (call, turn)
    }

    /// A call that waits is given up.
    pub(super) fn give_up(&mut self, now: Time, call: CallId) {
        if self.calls.remove(&call).is_some() {
            self.observe(now, Observation::GivenUp(call));
        }
    }

    /// A call is over, and its instance gone or not. One that the fleet has given to another call in this moment is left
    /// to it: its node finds that it is gone and makes another of its name.
    pub(super) fn end(&mut self, now: Time, call: CallId, grant: &Grant, is_gone: bool) {
        self.running = self.running.saturating_sub(1);
        self.fleet
            .observe(now, Observation::Ended(call), &mut self.decisions);
        let is_taken = self.decisions.iter().any(
            |decision| matches!(decision, Decision::Run { instance, .. } if *instance == grant.instance),
        );
        self.carry_out();
        self.follow_up(now);
        if is_gone && !is_taken {
            self.gone(now, grant.instance);
        }
    }

    /// An instance is gone.
    pub(super) fn gone(&mut self, now: Time, instance: InstanceId) {
        if self.instances.remove(&instance).is_some() {
            self.observe(now, Observation::Gone(instance));
        }
    }

    /// An instance that was to be created is there or will not be. Answers whether it is still wanted.
    pub(super) fn created(&mut self, now: Time, instance: InstanceId, is_there: bool) -> bool {
        let Some(known) = self.instances.get_mut(&instance) else {
            return false;
        };
        known.is_ready = is_there;
        if is_there {
            self.observe(now, Observation::Ready(instance));
        } else {
            self.gone(now, instance);
        }
        true
    }

    /// An instance of a node was there before this fleet.
    pub(super) fn found(&mut self, now: Time, of: Named, node: NodeId, function: FunctionId) {
        let (instance, class) = (InstanceId(of.name.0), class_of(of.class));
        let known = Instance {
            function,
            node,
            class,
            is_ready: true,
        };
        self.instances.insert(instance, known);
        self.observe(now, Observation::Found(instance, node, function, class));
    }

    pub(super) fn forget_instances_of(&mut self, node: NodeId) {
        self.instances.retain(|_, instance| instance.node != node);
    }

    pub(super) fn function_of(&self, version: &VersionId) -> Option<FunctionId> {
        self.ids.get(version).copied()
    }

    pub(super) fn function(&mut self, now: Time, version: &VersionId, spec: FunctionSpec) -> FunctionId {
        let id = match self.ids.get(version) {
            Some(id) => *id,
            None => {
                self.functions_counted += 1;
                let id = FunctionId(self.functions_counted);
                self.ids.insert(version.clone(), id);
                id
            }
        };
        let before = self.functions.get(&id);
        let learned_bytes = before.and_then(|before| before.learned_bytes);
        let spec = FunctionSpec {
            memory_bytes: learned_bytes.unwrap_or(spec.memory_bytes),
            ..spec
        };
        if before.is_some_and(|before| before.spec == spec) {
            return id;
        }
        let function = Function {
            version: version.clone(),
            spec,
            learned_bytes,
        };
        self.functions.insert(id, function);
        self.observe(now, Observation::Function(id, spec));
        id
    }

    pub(super) fn remove_function(&mut self, now: Time, version: &VersionId) {
        if let Some(id) = self.ids.remove(version) {
            self.observe(now, Observation::FunctionGone(id));
            self.functions.remove(&id);
        }
    }

    /// An instance of a function has been seen to use so much memory.
    pub(super) fn learn_memory(&mut self, now: Time, id: FunctionId, bytes: u64) {
        let Some(function) = self.functions.get_mut(&id) else {
            return;
        };
        let bytes = bytes.max(LEARNED_BYTES_MIN);
        if function.learned_bytes.is_some_and(|learned| bytes <= learned) {
            return;
        }
        function.learned_bytes = Some(bytes);
        function.spec.memory_bytes = bytes;
        let spec = function.spec;
        self.observe(now, Observation::Function(id, spec));
    }

    pub(super) fn regular_ready(&self, function: FunctionId) -> u32 {
        let is_one = |instance: &&Instance| {
            instance.function == function && instance.class == Class::Regular && instance.is_ready
        };
        let count = self.instances.values().filter(is_one).count();
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    pub(super) fn counts(&self) -> LiveCounts {
        let of = |class| {
            self.instances
                .values()
                .filter(|instance| instance.class == class)
                .count()
        };
        LiveCounts {
            functions: self.functions.len(),
            nodes: self.agents.len(),
            regular: of(Class::Regular),
            emergency: of(Class::Emergency),
            waiting: self.calls.len(),
            running: self.running,
        }
    }

    /// Tells the policies what has followed from carrying out their decisions, until nothing follows any more: each of
    /// these ends a call or an instance, of which there are only so many.
    fn follow_up(&mut self, now: Time) {
        while let Some(observation) = self.following.pop_front() {
            self.fleet.observe(now, observation, &mut self.decisions);
            self.carry_out();
        }
    }

    fn carry_out(&mut self) {
        let mut decisions = std::mem::take(&mut self.decisions);
        for decision in decisions.drain(..) {
            match decision {
                Decision::Run { call, instance, node } => {
                    let known = self.instances.get(&instance).copied();
                    let grant = known.and_then(|known| self.grant(instance, node, known, false));
                    self.tell(call, instance, grant);
                }
                Decision::Restore {
                    call,
                    instance,
                    node,
                    function,
                } => {
                    let known = self.enter(instance, node, function, Class::Emergency);
                    let grant = self.grant(instance, node, known, true);
                    self.tell(call, instance, grant);
                }
                Decision::Create {
                    instance,
                    node,
                    function,
                } => {
                    self.enter(instance, node, function, Class::Regular);
                    let version = self.functions.get(&function).map(|known| known.version.clone());
                    match self.agents.get(&node).cloned().zip(version) {
                        Some((agent, version)) => self.creations.push(Creation {
                            agent,
                            instance,
                            version,
                        }),
                        None => self.cannot(instance),
                    }
                }
                Decision::Remove {
                    instance,
                    node,
                    armed_ns,
                } => {
                    self.instances.remove(&instance);
                    // The node hears of it before anybody is given the room: a call that came to it first would find
                    // none, and the node would end what the policies mean to keep.
                    if let Some(agent) = self.agents.get(&node) {
                        agent.end(InstanceName(instance.0), Duration::from_nanos(armed_ns));
                    }
                }
                Decision::Refuse {
                    call,
                    reason,
                    retry_after_ns,
                } => {
                    let refused = Refused {
                        reason,
                        retry_after: Duration::from_nanos(retry_after_ns),
                    };
                    if let Some(sender) = self.calls.remove(&call) {
                        // Nobody waits for it: then there is nothing to tell.
                        drop(sender.send(Verdict::Refused(refused)));
                    }
                }
            }
        }
        self.decisions = decisions;
    }

    fn enter(&mut self, instance: InstanceId, node: NodeId, function: FunctionId, class: Class) -> Instance {
        let known = Instance {
            function,
            node,
            class,
            is_ready: class == Class::Emergency,
        };
        self.instances.insert(instance, known);
        known
    }

    fn grant(&self, instance: InstanceId, node: NodeId, known: Instance, is_new: bool) -> Option<Grant> {
        let as_named = named(instance, known.class);
        Some(Grant {
            agent: self.agents.get(&node)?.clone(),
            function: known.function,
            instance,
            class: known.class,
            wanted: match is_new {
                true => Wanted::New(as_named),
                false => Wanted::Resting(as_named),
            },
        })
    }

    /// Tells a call what it is granted. Where that cannot be, the fleet is told that the call is over.
    fn tell(&mut self, call: CallId, instance: InstanceId, grant: Option<Grant>) {
        let sent = match (self.calls.remove(&call), grant) {
            (Some(sender), Some(grant)) => sender.send(Verdict::Granted(grant)).is_ok(),
            (Some(_), None) | (None, _) => false,
        };
        if sent {
            self.running += 1;
        } else {
            self.following.push_back(Observation::Ended(call));
            self.cannot(instance);
        }
    }

    /// An instance cannot be made or used.
    fn cannot(&mut self, instance: InstanceId) {
        if self.instances.remove(&instance).is_some() {
            self.following.push_back(Observation::Gone(instance));
        }
    }
}
