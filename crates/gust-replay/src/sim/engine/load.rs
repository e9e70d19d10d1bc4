//! What nodes tell of how much their processors have to do: as live ones, when it has changed enough, and not too often.

use gust_policy::{NodeId, NodeLoad, Observation};

use super::{Engine, Event, Policy, SimError};

/// How long a change goes untold, in nanoseconds.
const TELL_AFTER_NS: u64 = 10_000_000;

/// Tasks for each processor up to which one load is like the other.
const LIGHT_PER_CPU: u32 = 2;

/// What a node has told.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Told {
    load: NodeLoad,
    calls: u32,
    /// It will see whether there is something to tell.
    is_due: bool,
}

impl Told {
    /// Whether another load is worth being told.
    fn is_old(&self, load: NodeLoad, calls: u32) -> bool {
        let light = load.cpus * LIGHT_PER_CPU;
        let tasks = load.runnable.max(light).abs_diff(self.load.runnable.max(light));
        self.load.cpus != load.cpus || tasks >= load.cpus || calls.abs_diff(self.calls) >= load.cpus
    }
}

impl<P: Policy> Engine<'_, P> {
    /// Something on a node has begun or ended.
    pub(super) fn mind_load(&mut self, node: u32) {
        let found = &mut self.nodes[node as usize];
        if !found.told.is_due && found.told.is_old(found.processors.load(), found.calls) {
            found.told.is_due = true;
            self.at(self.now_ns + TELL_AFTER_NS, Event::Load(node));
        }
    }

    pub(super) fn tell_load(&mut self, node: u32) -> Result<(), SimError> {
        let found = &mut self.nodes[node as usize];
        found.told.is_due = false;
        let (load, calls) = (found.processors.load(), found.calls);
        if !found.told.is_old(load, calls) {
            return Ok(());
        }
        (found.told.load, found.told.calls) = (load, calls);
        self.observe(Observation::Load(NodeId(node), load))
    }
}
