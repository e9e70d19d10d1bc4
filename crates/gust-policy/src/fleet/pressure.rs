//! How much nodes' processors have to do, and what a saturated node takes.
//!
//! Processors that have enough to do end no call sooner by sharing themselves among more of them, while each further instance costs
//! them time and memory. So a saturated node makes instances only for functions that have none: every function has
//! its share, and short calls do not wait behind long ones of others. What a function has more to do waits for the instances that it has,
//! or for the node to be less busy.
//!
//! A node tells now and then how many tasks could run, those of others on the machine among them; what was sent there since
//! counts as running, until the node tells that it sleeps.

use super::Fleet;
use super::state::Node;
use crate::slab::Slot;
use crate::{Decision, NodeId, NodeLoad, Time};

/// What is known of a node's processors.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pressure {
    told: NodeLoad,
    /// Calls that were on its instances when it told.
    calls_then: u32,
    /// Tasks from which on it is saturated; 0 if it never is.
    tasks_max: u32,
}

impl Pressure {
    /// Tasks that could run, with so many calls on the node now.
    fn tasks(&self, calls: u32) -> u32 {
        (self.told.runnable + calls).saturating_sub(self.calls_then)
    }

    /// Whether it is saturated with so many calls. With fewer calls than that takes tasks it is not, whatever else runs on the
    /// machine: others' programs, or workers that are prepared.
    pub(super) fn saturates(&self, calls: u32) -> bool {
        self.tasks_max > 0 && calls.min(self.tasks(calls)) >= self.tasks_max
    }

    /// What it has to do, as a part of what saturates it.
    pub(super) fn share(&self, calls: u32) -> f64 {
        match self.tasks_max {
            0 => 0.0,
            max => f64::from(self.tasks(calls)) / f64::from(max),
        }
    }
}

impl Fleet {
    pub(super) fn load_is(&mut self, now: Time, id: NodeId, load: NodeLoad, out: &mut Vec<Decision>) {
        let Some(slot) = self.node(id) else { return };
        let node = &mut self.nodes[slot];
        let was_saturated = node.is_saturated();
        node.pressure = Pressure {
            told: load,
            calls_then: node.calls,
            tasks_max: load.cpus.saturating_mul(self.config.runnable_per_cpu),
        };
        if was_saturated != node.is_saturated() {
            self.refresh(slot);
            self.feed(now, slot, out);
        }
    }

    /// A node has one call more or less.
    pub(super) fn count_call(&mut self, slot: Slot, is_more: bool) {
        let node = &mut self.nodes[slot];
        let was_saturated = node.is_saturated();
        match is_more {
            true => node.calls += 1,
            false => node.calls -= 1,
        }
        if was_saturated != node.is_saturated() {
            self.refresh(slot);
        }
    }

    /// Whether a node makes a function no further instance because of what its processors have to do.
    pub(super) fn is_kept_back(&self, f: Slot, node: &Node) -> bool {
        self.functions[f].instances() > 0 && node.is_saturated()
    }
}
