//! The live fleet: the policies of `gust-policy` at work on real nodes.
//!
//! ```text
//!  call ── place ──> Arrived ─┐                         ┌─> Run, Restore: the call goes to a node by itself
//!  answer ─ end ───> Ended ───┼─> gust_policy::Fleet ───┼─> Create: the cluster manager ── Ready / Gone ──┐
//!  node ── lost ───> Gone ────┤    (one mutex)          ├─> Remove: the node ends an instance             │
//!       ── load ───> Load ────┤                         │                                                 │
//!  clock ──────────> tick ────┘                         └─> Refuse: the call is answered 429              │
//!        ^────────────────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Deciding is one short critical section without waiting: what a call needs is decided in its own task when it comes, and
//! no task stands between it and its node. Nothing here is stored: what the nodes have is asked of them.
//!
//! It does not know functions by their names, limits of accounts, or how a node makes an instance.

mod manager;
mod state;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use gust_node::{InstanceClass, InstanceName, Named, VersionId, Wanted};
use gust_policy::{
    CallId, Class, FleetConfig, FunctionId, FunctionSpec, InstanceId, NodeId, NodeLoad, NodeSpec,
    Observation, Refusal, Time,
};
use tokio::{
    sync::{Notify, oneshot, watch},
    task::AbortHandle,
};

use crate::{agent::Agent, clock};
pub use manager::ManagerConfig;
pub use state::LiveCounts;
use state::{Grant, Listener, State, Verdict};

/// How the fleet is run.
#[derive(Debug, Clone)]
pub struct LiveConfig {
    /// The policies' own configuration, the mode first.
    pub policy: FleetConfig,
    /// The embedded cluster manager.
    pub manager: ManagerConfig,
}

/// The live fleet; clones are the same one.
#[derive(Debug, Clone)]
pub struct LiveFleet(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    origin: Instant,
    manager: ManagerConfig,
    state: Mutex<State>,
    /// The next tick has come nearer.
    sooner: Arc<Notify>,
    /// Dropped with the fleet, which ends its tasks.
    closed: watch::Sender<bool>,
}

/// A call that is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// Why.
    pub reason: Refusal,
    /// When trying again makes sense.
    pub retry_after: Duration,
}

/// How a call that had its place went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Its instance can take another.
    Kept {
        /// Most memory that it used, in bytes.
        memory_bytes: u64,
    },
    /// Its instance is gone, or was never made.
    Gone,
    /// It has not been sent to its instance.
    NotSent,
}

/// A call that has been given its instance. It counts as running until it is ended or dropped.
#[derive(Debug)]
pub struct Placed {
    fleet: LiveFleet,
    call: CallId,
    grant: Grant,
    deciding: Duration,
    is_over: bool,
}

/// A call that waits to be given one.
struct Waiting {
    fleet: LiveFleet,
    call: CallId,
    turn: oneshot::Receiver<Verdict>,
    is_over: bool,
}

impl LiveFleet {
    /// Starts a fleet without nodes. It ends when the last handle is dropped or [`LiveFleet::stop`] is called.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(config: LiveConfig) -> Self {
        let policy = FleetConfig {
            instances_from: first_name(),
            ..config.policy
        };
        let fleet = Self(Arc::new(Inner {
            origin: Instant::now(),
            manager: config.manager,
            state: Mutex::new(State::new(policy)),
            sooner: Arc::default(),
            closed: watch::Sender::new(false),
        }));
        fleet.spawn_ticks();
        fleet
    }

    /// Adds a node with what it has: the instances of a control plane before this one are taken over where they rest, and
    /// ended where they are unknown here.
    pub fn add_node(&self, node: NodeId, spec: NodeSpec, agent: Agent) {
        let present = agent.present();
        let mut state = self.state();
        let now = self.now();
        state.agents.insert(node, agent.clone());
        state.observe(now, Observation::Node(node, spec));
        for present in present {
            let known = state.function_of(&present.version);
            match known.filter(|_| present.rests) {
                Some(function) => state.found(now, present.named, node, function),
                None => agent.end(present.named.name, Duration::ZERO),
            }
        }
        // One that is added again is listened to once.
        let listeners = [self.spawn_losses(agent.clone()), self.spawn_loads(node, agent)];
        state.listeners.insert(node, listeners.map(Listener));
        self.finish(state);
    }

    /// A node takes nothing new from now on.
    pub fn drain_node(&self, node: NodeId) {
        self.observe(Observation::NodeDrains(node));
    }

    /// A node is gone with everything on it. Calls that ran there are ended by whoever waits for them.
    pub fn remove_node(&self, node: NodeId) {
        let mut state = self.state();
        state.agents.remove(&node);
        state.listeners.remove(&node);
        state.forget_instances_of(node);
        state.observe(self.now(), Observation::NodeGone(node));
        self.finish(state);
    }

    /// All nodes but one are gone, as [`LiveFleet::remove_node`] has it.
    pub fn remove_nodes_but(&self, kept: NodeId) {
        let mut nodes: Vec<NodeId> = self.state().agents.keys().copied().collect();
        nodes.retain(|node| *node != kept);
        nodes.into_iter().for_each(|node| self.remove_node(node));
    }

    /// Makes a function version known, or changes what is known of it. The memory that its instances are seen to use
    /// replaces what the specification expects.
    pub fn function(&self, version: &VersionId, spec: FunctionSpec) -> FunctionId {
        let mut state = self.state();
        let function = state.function(self.now(), version, spec);
        self.finish(state);
        function
    }

    /// A node has a snapshot of a function now, or has it no more.
    pub fn snapshot(&self, node: NodeId, function: FunctionId, is_there: bool) {
        self.observe(Observation::Snapshot(node, function, is_there));
    }

    /// A node has a snapshot of a version now; of one that is unknown here, nothing is noted.
    pub fn version_snapshot(&self, node: NodeId, version: &VersionId) {
        let function = self.state().function_of(version);
        if let Some(function) = function {
            self.snapshot(node, function, true);
        }
    }

    /// Forgets a function version: what waits for it is refused, its instances end.
    pub fn remove_function(&self, version: &VersionId) {
        let mut state = self.state();
        state.remove_function(self.now(), version);
        self.finish(state);
    }

    /// Has a call placed: at once where an instance is there or a node restores one, otherwise when its turn comes.
    ///
    /// # Errors
    /// When the policies refuse it.
    pub async fn place(&self, function: FunctionId) -> Result<Placed, Refused> {
        let came = Instant::now();
        let mut waiting = {
            let mut state = self.state();
            let (call, turn) = state.arrive(self.now(), function);
            self.finish(state);
            Waiting {
                fleet: self.clone(),
                call,
                turn,
                is_over: false,
            }
        };
        let deciding = came.elapsed();
        let verdict = (&mut waiting.turn).await;
        waiting.is_over = true;
        match verdict {
            Ok(Verdict::Granted(grant)) => Ok(Placed {
                fleet: self.clone(),
                call: waiting.call,
                grant,
                deciding,
                is_over: false,
            }),
            Ok(Verdict::Refused(refused)) => Err(refused),
            // The fleet has been stopped.
            Err(_) => Err(Refused {
                reason: Refusal::NoNode,
                retry_after: Duration::ZERO,
            }),
        }
    }

    /// What the fleet holds now.
    pub fn counts(&self) -> LiveCounts {
        self.state().counts()
    }

    /// Regular instances of a function that can take calls or do.
    pub fn regular_ready(&self, function: FunctionId) -> u32 {
        self.state().regular_ready(function)
    }

    /// Ends the fleet's own tasks and lets go of every call that waits.
    pub fn stop(&self) {
        self.0.closed.send_replace(true);
        let calls = std::mem::take(&mut self.state().calls);
        drop(calls);
    }

    fn observe(&self, observation: Observation) {
        let mut state = self.state();
        state.observe(self.now(), observation);
        self.finish(state);
    }

    /// Lets go of the lock and does what was decided under it.
    fn finish(&self, mut state: MutexGuard<'_, State>) {
        let creations = std::mem::take(&mut state.creations);
        let is_sooner = state.is_tick_sooner();
        drop(state);
        if is_sooner {
            self.0.sooner.notify_one();
        }
        for creation in creations {
            self.spawn_creation(creation);
        }
    }

    fn spawn_ticks(&self) {
        let (weak, mut closed) = (Arc::downgrade(&self.0), self.0.closed.subscribe());
        let (origin, sooner) = (self.0.origin, Arc::clone(&self.0.sooner));
        tokio::spawn(async move {
            loop {
                let Some(inner) = weak.upgrade() else { return };
                let next = Self(inner).tick();
                let sleep = async {
                    match next {
                        Some(Time(ns)) => {
                            tokio::time::sleep_until((origin + Duration::from_nanos(ns)).into()).await;
                        }
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    () = sleep => {}
                    () = sooner.notified() => {}
                    _ = closed.wait_for(|closed| *closed) => return,
                }
            }
        });
    }

    /// Has the policies do what is due; answers when something is due next.
    fn tick(&self) -> Option<Time> {
        let mut state = self.state();
        state.tick(self.now());
        let next = state.arm_tick();
        self.finish(state);
        next
    }

    fn spawn_losses(&self, agent: Agent) -> AbortHandle {
        let (weak, mut closed) = (Arc::downgrade(&self.0), self.0.closed.subscribe());
        let losses = tokio::spawn(async move {
            loop {
                let lost = tokio::select! {
                    lost = agent.lost() => lost,
                    _ = closed.wait_for(|closed| *closed) => return,
                };
                let Some(inner) = weak.upgrade() else { return };
                let fleet = Self(inner);
                let mut state = fleet.state();
                for name in lost {
                    state.gone(fleet.now(), InstanceId(name.0));
                }
                fleet.finish(state);
            }
        });
        losses.abort_handle()
    }

    fn spawn_loads(&self, node: NodeId, agent: Agent) -> AbortHandle {
        let (weak, mut closed) = (Arc::downgrade(&self.0), self.0.closed.subscribe());
        let loads = tokio::spawn(async move {
            let mut told = None;
            loop {
                let load = tokio::select! {
                    load = agent.load(told) => load,
                    _ = closed.wait_for(|closed| *closed) => return,
                };
                let Some(inner) = weak.upgrade() else { return };
                told = Some(load);
                let load = NodeLoad {
                    runnable: load.runnable,
                    cpus: load.cpus,
                };
                Self(inner).observe(Observation::Load(node, load));
            }
        });
        loads.abort_handle()
    }

    fn now(&self) -> Time {
        Time(u64::try_from(self.0.origin.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.closed.send_replace(true);
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        // What was granted in the last moment must not get lost with the receiver.
        self.turn.close();
        match self.turn.try_recv() {
            Ok(Verdict::Granted(grant)) => {
                let is_new = matches!(grant.wanted, Wanted::New(_));
                self.fleet.end(self.call, &grant, is_new, None);
            }
            Ok(Verdict::Refused(_)) => {}
            Err(_) => {
                let mut state = self.fleet.state();
                state.give_up(self.fleet.now(), self.call);
                self.fleet.finish(state);
            }
        }
    }
}

impl Placed {
    /// Its node.
    pub fn agent(&self) -> &Agent {
        &self.grant.agent
    }

    /// What it is to ask the node for.
    pub fn wanted(&self) -> Wanted {
        self.grant.wanted
    }

    /// Which track made its instance.
    pub fn class(&self) -> Class {
        self.grant.class
    }

    /// What deciding took when it came: the way into the fleet's mutex, and the policies. Waiting for its turn after that is
    /// no part of it.
    pub fn deciding(&self) -> Duration {
        self.deciding
    }

    /// Whether its instance is to be made for it.
    pub fn is_restored(&self) -> bool {
        matches!(self.grant.wanted, Wanted::New(_))
    }

    /// Its instance has been made and has the event.
    pub fn delivered(&self) {
        self.fleet.observe(Observation::Ready(self.grant.instance));
    }

    /// The call is over.
    pub fn end(mut self, ending: Ending) {
        self.is_over = true;
        let (is_gone, memory_bytes) = match ending {
            Ending::Kept { memory_bytes } => (false, Some(memory_bytes)),
            Ending::Gone => (true, None),
            Ending::NotSent => (self.is_restored(), None),
        };
        self.fleet.end(self.call, &self.grant, is_gone, memory_bytes);
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        if !self.is_over {
            // Whether its instance is there is not known; a call that is sent to it will find out.
            self.fleet.end(self.call, &self.grant, false, None);
        }
    }
}

impl LiveFleet {
    fn end(&self, call: CallId, grant: &Grant, is_gone: bool, memory_bytes: Option<u64>) {
        let mut state = self.state();
        let now = self.now();
        if let Some(bytes) = memory_bytes {
            state.learn_memory(now, grant.function, bytes);
        }
        state.end(now, call, grant, is_gone);
        self.finish(state);
    }
}

/// The first name of an instance: above all that a fleet before this one can have given, without any of that being
/// stored. A fleet would have to make a million instances a millisecond to reach the names of the next.
fn first_name() -> u64 {
    clock::unix_ms() << 20
}

/// How a node knows an instance of the fleet.
fn named(instance: InstanceId, class: Class) -> Named {
    Named {
        name: InstanceName(instance.0),
        class: match class {
            Class::Regular => InstanceClass::Regular,
            Class::Emergency => InstanceClass::Emergency,
        },
    }
}

/// How the fleet knows an instance of a node.
fn class_of(class: InstanceClass) -> Class {
    match class {
        InstanceClass::Regular => Class::Regular,
        InstanceClass::Emergency => Class::Emergency,
    }
}
