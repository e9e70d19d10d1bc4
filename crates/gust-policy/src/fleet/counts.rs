//! What a fleet can tell of itself.

use super::Fleet;
use crate::{Class, FunctionId, NodeId};

/// Numbers of a fleet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Regular instances, those being made too.
    pub regular: u32,
    /// Those of them that are not ready.
    pub starting: u32,
    /// Emergency instances, those being restored too.
    pub emergency: u32,
    /// Those of them that are not restored yet, as far as was said.
    pub restoring: u32,
    /// Instances that run a call, or are restored for one.
    pub busy: u32,
    /// Calls on instances.
    pub running: u32,
    /// Calls that wait.
    pub waiting: u32,
    /// Bytes charged for all instances.
    pub memory_bytes: u64,
}

impl Counts {
    pub(super) fn of_class(&mut self, class: Class) -> &mut u32 {
        match class {
            Class::Regular => &mut self.regular,
            Class::Emergency => &mut self.emergency,
        }
    }
}

/// Numbers of one function.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FunctionCounts {
    /// Regular instances, those being made too.
    pub regular: u32,
    /// Those of them that are not ready.
    pub starting: u32,
    /// Emergency instances.
    pub emergency: u32,
    /// Instances that run nothing.
    pub idle: u32,
    /// Calls on instances.
    pub running: u32,
    /// Calls that wait.
    pub waiting: u32,
    /// Regular instances that the autoscaler wants.
    pub target: u32,
    /// Regular instances that sustained traffic is worth.
    pub worth: u32,
}

/// Numbers of one node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NodeCounts {
    /// Its instances.
    pub instances: u32,
    /// Bytes charged for them.
    pub memory_bytes: u64,
    /// Restores in flight.
    pub restores: u32,
    /// Whether it takes nothing new.
    pub draining: bool,
}

impl Fleet {
    /// Numbers of the whole.
    pub fn counts(&self) -> Counts {
        Counts {
            waiting: self.waiting(),
            ..self.counts
        }
    }

    /// Numbers of a function; `None` if it is not known.
    pub fn function_counts(&self, id: FunctionId) -> Option<FunctionCounts> {
        let function = &self.functions[self.function(id)?];
        let idle = |room: super::state::Room| function.room[room as usize].len();
        Some(FunctionCounts {
            regular: function.regular,
            starting: function.starting,
            emergency: function.emergency,
            idle: idle(super::state::Room::IdleRegular) + idle(super::state::Room::IdleEmergency),
            running: function.running,
            waiting: function.queue.len(),
            target: function.target,
            worth: function.worth,
        })
    }

    /// Numbers of a node; `None` if it is not known.
    pub fn node_counts(&self, id: NodeId) -> Option<NodeCounts> {
        let node = &self.nodes[self.node(id)?];
        Some(NodeCounts {
            instances: node.instances.len(),
            memory_bytes: node.used_bytes,
            restores: node.restores,
            draining: node.draining,
        })
    }
}
