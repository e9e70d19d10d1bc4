//! What a fleet knows of functions, nodes, instances and calls.

use super::pressure::Pressure;
use crate::autoscaler::Autoscaler;
use crate::demand::{Demand, Prices};
use crate::eviction::{Eviction, Priority};
use crate::placement::{self, Place};
use crate::regions::Uses;
use crate::slab::{Link, Linked, List, Slot};
use crate::window::Window;
use crate::{CallId, Class, FunctionId, FunctionSpec, InstanceId, NodeId, NodeSpec, Time};
use std::collections::BTreeSet;

/// Armed instances of one function that are known.
const ARMED_KNOWN_MAX: usize = 64;

/// Lists of the instances of a node.
#[derive(Debug, Clone, Copy)]
pub(super) struct OfNode;

/// Lists of the instances of a function that can take a call.
#[derive(Debug, Clone, Copy)]
pub(super) struct WithRoom;

/// Lists of calls: those that wait for a function, or those on an instance.
#[derive(Debug, Clone, Copy)]
pub(super) struct Together;

/// A function: `there -> gone`, and forgotten when its last instance is.
#[derive(Debug, Clone)]
pub(super) struct Function {
    pub(super) id: FunctionId,
    pub(super) spec: FunctionSpec,
    pub(super) gone: bool,
    pub(super) prices: Prices,
    pub(super) demand: Demand,
    pub(super) window: Window,
    pub(super) scaler: Autoscaler,
    /// Calls that wait, the oldest first.
    pub(super) queue: List<Together>,
    /// Instances that can take a call, by [`Room`].
    pub(super) room: [List<WithRoom>; 4],
    /// Regular instances, those being made too.
    pub(super) regular: u32,
    /// Those of them that are not ready.
    pub(super) starting: u32,
    /// Emergency instances, those being restored too.
    pub(super) emergency: u32,
    /// Calls on instances.
    pub(super) running: u32,
    /// Regular instances that the autoscaler wants.
    pub(super) target: u32,
    /// Regular instances that sustained traffic is worth, as of the last decision.
    pub(super) worth: u32,
    /// When the autoscaler decides next; `None` while there is nothing to decide.
    pub(super) scale_at: Option<Time>,
    /// When the fleet's timer for this function is set.
    pub(super) wake: Option<Time>,
    /// Regular instances that could not be made, one after another.
    pub(super) failures: u32,
    /// No regular instance is made before.
    pub(super) retry_at: Time,
    /// It wants regular instances and has its turn when one of those in the making is made.
    pub(super) held: bool,
    /// Nodes that hold its snapshot.
    pub(super) snapshots: Vec<Slot>,
    /// Nodes that should have an armed instance of it.
    pub(super) armed: Armed,
    /// How often its instances are called, by class.
    pub(super) uses: [Uses; 2],
    /// Average time of its calls on instances, in nanoseconds.
    pub(super) run_ns: u64,
}

impl Function {
    /// Its calls, those that wait and those on instances.
    pub(super) fn calls(&self) -> u32 {
        self.queue.len() + self.running
    }

    /// All its instances.
    pub(super) fn instances(&self) -> u32 {
        self.regular + self.emergency
    }

    /// How many more there may be.
    pub(super) fn vacancies(&self) -> u32 {
        self.spec
            .instances_max
            .map_or(u32::MAX, |max| max.saturating_sub(self.instances()))
    }

    /// Calls that one instance takes.
    pub(super) fn concurrency(&self) -> u32 {
        self.spec.concurrency_per_instance.max(1)
    }

    /// Bytes that a new instance is charged.
    pub(super) fn charge(&self) -> u64 {
        self.spec.memory_bytes.max(1)
    }

    /// An instance that takes the next call: regular before emergency, one that runs calls already before an idle one, the
    /// one used last before the others, so that those that are not needed stay idle.
    pub(super) fn with_room(&self) -> Option<Slot> {
        self.room.iter().find_map(List::last)
    }
}

/// Where armed instances of a function should be. What became of them is not told: a node may have ended one, so this only says
/// which node is asked first.
#[derive(Debug, Clone, Default)]
pub(super) struct Armed(Vec<(NodeId, Time)>);

impl Armed {
    /// One becomes armed on a node, and ends then if it is not used.
    pub(super) fn add(&mut self, now: Time, node: NodeId, until: Time) {
        self.0.retain(|(_, until)| *until > now);
        if self.0.len() < ARMED_KNOWN_MAX {
            self.0.push((node, until));
        }
    }

    /// The node where one was armed last.
    pub(super) fn last(&self, now: Time) -> Option<NodeId> {
        self.0
            .iter()
            .rfind(|(_, until)| *until > now)
            .map(|(node, _)| *node)
    }

    /// An instance is made on a node, of an armed one where there is one.
    pub(super) fn take(&mut self, node: NodeId) {
        if let Some(at) = self.0.iter().rposition(|(other, _)| *other == node) {
            self.0.remove(at);
        }
    }
}

/// Which list of a function an instance with room is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    PartRegular,
    IdleRegular,
    PartEmergency,
    IdleEmergency,
}

impl Room {
    pub(super) fn of(class: Class, running: u32) -> Room {
        match (class, running == 0) {
            (Class::Regular, false) => Room::PartRegular,
            (Class::Regular, true) => Room::IdleRegular,
            (Class::Emergency, false) => Room::PartEmergency,
            (Class::Emergency, true) => Room::IdleEmergency,
        }
    }

    /// Whether those in it run nothing.
    pub(super) fn is_idle(self) -> bool {
        match self {
            Room::IdleRegular | Room::IdleEmergency => true,
            Room::PartRegular | Room::PartEmergency => false,
        }
    }
}

/// A node: `there <-> draining -> gone`.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) id: NodeId,
    pub(super) spec: NodeSpec,
    pub(super) draining: bool,
    pub(super) place: Place,
    pub(super) instances: List<OfNode>,
    /// Bytes charged for its instances.
    pub(super) used_bytes: u64,
    /// Bytes of instances that could be evicted.
    pub(super) idle_bytes: u64,
    /// Bytes of instances that run calls.
    pub(super) busy_bytes: u64,
    /// Calls on its instances.
    pub(super) calls: u32,
    pub(super) pressure: Pressure,
    /// Restores in flight.
    pub(super) restores: u32,
    /// Regular instances that are being made.
    pub(super) creations: u32,
    /// Functions whose snapshot it holds.
    pub(super) snapshots: BTreeSet<Slot>,
    pub(super) eviction: Eviction,
    /// Instances that could be evicted, the least worth first.
    pub(super) evictable: BTreeSet<(Priority, Slot)>,
}

impl Node {
    /// Whether it is making as many regular instances as it may at a time.
    pub(super) fn creates_enough(&self) -> bool {
        self.creations >= self.spec.restores_max
    }

    /// Whether its processors have as much to do as they should.
    pub(super) fn is_saturated(&self) -> bool {
        self.pressure.saturates(self.calls)
    }

    /// What room it has, whatever its processors have to do.
    pub(super) fn room(&self) -> placement::Room {
        placement::Room {
            free: self.free_bytes(),
            potential: self.potential_bytes(),
        }
    }

    /// Bytes that are free, if it takes a new instance of a kind now.
    pub(super) fn free_bytes(&self) -> u64 {
        if self.draining
            || self.instances.len() >= self.spec.instances_max
            || self.restores >= self.spec.restores_max
        {
            return 0;
        }
        self.spec.memory_bytes.saturating_sub(self.used_bytes)
    }

    /// Bytes that would be free if all went that could.
    pub(super) fn potential_bytes(&self) -> u64 {
        if self.draining
            || self.restores >= self.spec.restores_max
            || self.evictable.is_empty()
            || self.instances.len() - self.evictable.len() as u32 >= self.spec.instances_max
        {
            return self.free_bytes();
        }
        self.spec
            .memory_bytes
            .saturating_sub(self.used_bytes - self.idle_bytes)
    }
}

/// What an instance is about: `starting -> ready` if regular, `restoring -> ready` if emergency.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Starting,
    Restoring,
    Ready,
}

/// An instance.
#[derive(Debug, Clone)]
pub(super) struct Instance {
    pub(super) id: InstanceId,
    pub(super) function: Slot,
    pub(super) node: Slot,
    pub(super) class: Class,
    pub(super) phase: Phase,
    /// Calls that it takes at once, as its function had it when it was made.
    pub(super) concurrency: u32,
    /// Calls on it.
    pub(super) calls: List<Together>,
    /// Calls that it has taken.
    pub(super) uses: u32,
    /// What it is charged.
    pub(super) memory_bytes: u64,
    /// When it was made, or became idle.
    pub(super) since: Time,
    pub(super) room: Option<Room>,
    /// Its key among those that could be evicted.
    pub(super) priority: Option<Priority>,
    pub(super) of_node: Link,
    pub(super) with_room: Link,
}

impl Instance {
    /// Whether it could take another call were it ready.
    pub(super) fn has_room(&self) -> bool {
        self.calls.len() < self.concurrency
    }
}

impl Linked<OfNode> for Instance {
    fn link(&mut self) -> &mut Link {
        &mut self.of_node
    }
    fn link_of(&self) -> &Link {
        &self.of_node
    }
}

impl Linked<WithRoom> for Instance {
    fn link(&mut self) -> &mut Link {
        &mut self.with_room
    }
    fn link_of(&self) -> &Link {
        &self.with_room
    }
}

/// Where a call is: `waiting -> running`, or `waiting -> restoring -> running`, and once back from `restoring` to `waiting`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Waiting,
    /// An instance is being restored for it.
    Restoring(Slot),
    Running(Slot),
}

/// A call.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) id: CallId,
    pub(super) function: Slot,
    pub(super) stage: Stage,
    pub(super) arrived: Time,
    /// When it was sent to an instance.
    pub(super) sent: Time,
    /// Whether an instance that was restored for it was lost.
    pub(super) lost_once: bool,
    pub(super) link: Link,
}

impl Linked<Together> for Call {
    fn link(&mut self) -> &mut Link {
        &mut self.link
    }
    fn link_of(&self) -> &Link {
        &self.link
    }
}
