//! All functions, nodes, instances and calls, and the policies over them.
//!
//! A fleet is told what happens ([`Fleet::observe`]) and the time ([`Fleet::tick`]), and appends what is to be done. It
//! assumes that each of its decisions is carried out, and is told where one could not be. Nothing in it waits, sleeps, asks the time
//! or depends on the order of a hash: the same observations give the same decisions.
//!
//! An observation takes time in the number of its own consequences and the logarithm of the number of nodes; no step looks
//! at all functions or all nodes. A call's path through it:
//!
//! ```text
//!             +-- room on an instance ----------------------------> Run
//! Arrived ----+-- Dual, and a node has room: expedited track ------> Restore
//!             +-- queue is full, limits -------------------------> Refuse
//!             +-- waits --+-- an instance gets room, or is made --> Run
//!                         +-- its turn when a node gets room -----> Restore (Dual), Create (others)
//!                         +-- deadline ---------------------------> Refuse
//! ```
//!
//! `calls.rs` is the way of a call, `instances.rs` that of an instance, `nodes.rs` of a node, `functions.rs` of a function,
//! `scale.rs` what happens by time, `room.rs` how room is found, made and shared, `pressure.rs` what
//! saturated nodes take, `held.rs` who waits for creations in flight.

mod calls;
mod counts;
mod functions;
mod held;
mod instances;
mod nodes;
mod pressure;
mod room;
mod scale;
mod state;
#[cfg(test)]
mod tests;

pub use counts::{Counts, FunctionCounts, NodeCounts};

use crate::admission::Admission;
use crate::fairness::Fairness;
use crate::placement::Placement;
use crate::slab::{Names, Slab, Slot};
use crate::{Decision, FleetConfig, FunctionId, InstanceId, NodeId, Observation, Regions, Time, Uses};
use state::{Call, Function, Instance, Node};
use std::collections::{BTreeSet, VecDeque};

/// The fleet. See the module's documentation.
#[derive(Debug, Clone)]
pub struct Fleet {
    config: FleetConfig,
    functions: Slab<Function>,
    function_names: Names,
    nodes: Slab<Node>,
    node_names: Names,
    instances: Slab<Instance>,
    instance_names: Names,
    calls: Slab<Call>,
    call_names: Names,
    /// When each function that has something to do by time is looked at next.
    timers: BTreeSet<(Time, Slot)>,
    admission: Admission,
    fairness: Fairness,
    placement: Placement,
    /// Functions that want regular instances while as many are being made as may, in the order of their turns.
    held: VecDeque<Slot>,
    regions: Regions,
    /// How often instances of all functions are called, by class.
    uses: [Uses; 2],
    next_instance: u64,
    counts: Counts,
}

impl Fleet {
    /// A fleet without functions and nodes.
    pub fn new(config: FleetConfig) -> Fleet {
        Fleet {
            functions: Slab::default(),
            function_names: Names::default(),
            nodes: Slab::default(),
            node_names: Names::default(),
            instances: Slab::default(),
            instance_names: Names::default(),
            calls: Slab::default(),
            call_names: Names::default(),
            timers: BTreeSet::new(),
            admission: Admission::new(config.concurrency_max, config.waiting_max),
            fairness: Fairness::default(),
            placement: Placement::default(),
            held: VecDeque::new(),
            regions: Regions::new(config.regions.clone()),
            uses: [Uses::default(); 2],
            next_instance: config.instances_from,
            counts: Counts::default(),
            config,
        }
    }

    /// How it behaves.
    pub fn config(&self) -> &FleetConfig {
        &self.config
    }

    /// Something has happened; appends what is to be done. `now` is never before the last one.
    pub fn observe(&mut self, now: Time, observation: Observation, out: &mut Vec<Decision>) {
        match observation {
            Observation::Function(function, spec) => self.function_is(now, function, spec, out),
            Observation::FunctionGone(function) => self.function_gone(now, function, out),
            Observation::Node(node, spec) => self.node_is(now, node, spec, out),
            Observation::Load(node, load) => self.load_is(now, node, load, out),
            Observation::NodeDrains(node) => self.node_drains(now, node, out),
            Observation::NodeGone(node) => self.node_gone(now, node, out),
            Observation::Snapshot(node, function, there) => self.snapshot(node, function, there),
            Observation::Found(instance, node, function, class) => {
                self.found(now, (instance, node, function, class), out);
            }
            Observation::Arrived(call, function) => self.arrived(now, call, function, out),
            Observation::GivenUp(call) => self.given_up(now, call),
            Observation::Ready(instance) => self.ready(now, instance, out),
            Observation::Ended(call) => self.ended(now, call, out),
            Observation::Gone(instance) => self.gone(now, instance, out),
        }
    }

    /// Does what is due at a time: deadlines of calls that wait, autoscalers, ends of keep-alive. Appends what is to be done.
    pub fn tick(&mut self, now: Time, out: &mut Vec<Decision>) {
        while let Some(&(at, function)) = self.timers.first() {
            if at > now {
                return;
            }
            self.timers.pop_first();
            self.functions[function].wake = None;
            self.woken(now, function, out);
        }
    }

    /// When [`Fleet::tick`] has something to do; `None` while nothing goes by time.
    pub fn next_tick(&self) -> Option<Time> {
        self.timers.first().map(|timer| timer.0)
    }

    /// Calls that wait.
    pub fn waiting(&self) -> u32 {
        self.admission.waiting()
    }

    /// What was learnt of regions.
    pub fn regions(&self) -> &Regions {
        &self.regions
    }

    fn function(&self, id: FunctionId) -> Option<Slot> {
        self.function_names.get(&u64::from(id.0)).copied()
    }

    fn node(&self, id: NodeId) -> Option<Slot> {
        self.node_names.get(&u64::from(id.0)).copied()
    }

    fn instance(&self, id: InstanceId) -> Option<Slot> {
        self.instance_names.get(&id.0).copied()
    }
}
