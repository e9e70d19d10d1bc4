//! The way of a node: there, draining, gone.

use super::Fleet;
use super::pressure::Pressure;
use super::state::{Node, Phase};
use crate::slab::{List, Slot};
use crate::{Decision, Eviction, FunctionId, NodeId, NodeSpec, Time};
use std::collections::BTreeSet;

impl Fleet {
    pub(super) fn node_is(&mut self, now: Time, id: NodeId, spec: NodeSpec, out: &mut Vec<Decision>) {
        let slot = match self.node(id) {
            Some(slot) => {
                let before = self.nodes[slot].spec.region;
                if before != spec.region {
                    self.placement.remove(self.nodes[slot].place);
                    self.nodes[slot].place = self.placement.add(slot, spec.region);
                }
                self.nodes[slot].spec = spec;
                if std::mem::take(&mut self.nodes[slot].draining) {
                    let instances = self.instances_of(slot);
                    instances.iter().for_each(|instance| self.offer(now, *instance));
                    let functions = self.functions_of(&instances);
                    functions.into_iter().for_each(|f| self.pursue(now, f, out));
                }
                slot
            }
            None => self.node_joins(id, spec),
        };
        self.refresh(slot);
        self.feed(now, slot, out);
        self.resume_held(now, out);
    }

    fn node_joins(&mut self, id: NodeId, spec: NodeSpec) -> Slot {
        let slot = self.nodes.insert(Node {
            id,
            spec,
            draining: false,
            // Taken below, where the slot is known.
            place: Default::default(),
            instances: List::default(),
            used_bytes: 0,
            idle_bytes: 0,
            busy_bytes: 0,
            calls: 0,
            pressure: Pressure::default(),
            restores: 0,
            creations: 0,
            snapshots: BTreeSet::new(),
            eviction: Eviction::default(),
            evictable: BTreeSet::new(),
        });
        self.nodes[slot].place = self.placement.add(slot, spec.region);
        self.node_names.insert(u64::from(id.0), slot);
        slot
    }

    pub(super) fn node_drains(&mut self, now: Time, id: NodeId, out: &mut Vec<Decision>) {
        let Some(slot) = self.node(id) else { return };
        self.nodes[slot].draining = true;
        self.refresh(slot);
        let instances = self.instances_of(slot);
        let functions = self.functions_of(&instances);
        for instance in instances {
            self.withhold(instance);
            let it = &self.instances[instance];
            // One that starts is ended when it is ready.
            if it.phase == Phase::Ready && it.calls.is_empty() {
                self.dismiss(instance, out);
            }
        }
        functions.into_iter().for_each(|f| self.pursue(now, f, out));
    }

    pub(super) fn node_gone(&mut self, now: Time, id: NodeId, out: &mut Vec<Decision>) {
        let Some(slot) = self.node(id) else { return };
        self.nodes[slot].draining = true;
        self.refresh(slot);
        let instances = self.instances_of(slot);
        let functions = self.functions_of(&instances);
        instances
            .into_iter()
            .for_each(|instance| self.lose(now, instance));
        self.node_names.remove(&u64::from(id.0));
        if let Some(node) = self.nodes.remove(slot) {
            self.placement.remove(node.place);
            for f in node.snapshots {
                self.functions[f].snapshots.retain(|other| *other != slot);
            }
        }
        functions.into_iter().for_each(|f| self.pursue(now, f, out));
        self.resume_held(now, out);
    }

    pub(super) fn snapshot(&mut self, node: NodeId, function: FunctionId, there: bool) {
        let (Some(node), Some(f)) = (self.node(node), self.function(function)) else {
            return;
        };
        if there {
            if self.nodes[node].snapshots.insert(f) {
                self.functions[f].snapshots.push(node);
            }
        } else if self.nodes[node].snapshots.remove(&f) {
            self.functions[f].snapshots.retain(|other| *other != node);
        }
    }

    fn instances_of(&self, node: Slot) -> Vec<Slot> {
        let list = &self.nodes[node].instances;
        let mut instances = Vec::with_capacity(list.len() as usize);
        let mut next = list.first();
        while let Some(instance) = next {
            instances.push(instance);
            next = list.after(&self.instances, instance);
        }
        instances
    }

    /// Functions of instances, each once, in the order of their names.
    fn functions_of(&self, instances: &[Slot]) -> Vec<Slot> {
        let mut functions: Vec<Slot> = instances
            .iter()
            .map(|slot| self.instances[*slot].function)
            .collect();
        functions.sort_unstable();
        functions.dedup();
        functions
    }
}
