//! Nodes on other machines: what the hub tells of them becomes what the fleet is told.
//!
//! A node has the same number for the fleet as long as the control plane runs, however often its link is lost. What is
//! known of instances comes from the node's report at each of its links.

use std::collections::{HashMap, hash_map::Entry};

use gust_cluster::{Event, Hub, RemoteNode};
use gust_node::{InvokeError, VersionId, VersionSpec};
use gust_policy::{NodeId, NodeSpec};
use tokio::sync::mpsc;

use crate::{
    agent::Agent,
    control::{Control, OWN_NODE},
};

/// The way to nodes on other machines.
#[derive(Debug)]
pub struct Cluster {
    /// Where they are linked.
    pub hub: Hub,
    /// What happens to them.
    pub events: mpsc::Receiver<Event>,
}

/// Numbers of nodes by their names.
#[derive(Debug, Default)]
struct Numbers(HashMap<String, NodeId>);

impl Numbers {
    fn of(&mut self, node: &RemoteNode) -> NodeId {
        let next = NodeId(OWN_NODE.0.saturating_add(self.0.len() as u32 + 1));
        match self.0.entry(node.name().to_string()) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(new) => *new.insert(next),
        }
    }
}

impl Control {
    /// Passes on to the fleet what happens to nodes, until the control plane stops.
    pub(crate) fn spawn_cluster(&self, mut events: mpsc::Receiver<Event>) {
        let control = self.clone();
        let mut stopped = self.stopped();
        drop(self.0.tasks.spawn(async move {
            let mut numbers = Numbers::default();
            loop {
                tokio::select! {
                    event = events.recv() => match event {
                        Some(event) => control.take_event(event, &mut numbers),
                        None => return,
                    },
                    _ = stopped.wait_for(|stopped| *stopped) => return,
                }
            }
        }));
    }

    fn take_event(&self, event: Event, numbers: &mut Numbers) {
        let fleet = &self.0.fleet;
        match event {
            Event::Joined { node, snapshots, .. } => {
                let Some(info) = node.info() else { return };
                let number = numbers.of(&node);
                tracing::info!(node = %node.name(), number = number.0, "a node joins the fleet");
                let spec = NodeSpec {
                    memory_bytes: info.memory_bytes,
                    instances_max: u32::try_from(info.instances_max).unwrap_or(u32::MAX),
                    restores_max: u32::try_from(info.restores_max).unwrap_or(u32::MAX),
                    region: info.region,
                };
                fleet.add_node(number, spec, Agent::Remote(node));
                for version in snapshots {
                    fleet.version_snapshot(number, &version);
                }
            }
            Event::Draining { node, done } => {
                fleet.drain_node(numbers.of(&node));
                // The node has gone meanwhile when nobody listens.
                let _ = done.send(());
            }
            Event::Lost { node } => {
                tracing::warn!(node = %node.name(), "a node leaves the fleet");
                fleet.remove_node(numbers.of(&node));
            }
            Event::Snapshot { node, version } => fleet.version_snapshot(numbers.of(&node), &version),
        }
    }

    /// Nodes on other machines can be told of a version.
    pub(crate) fn offer_version(&self, spec: &VersionSpec) {
        if let Some(hub) = &self.0.hub {
            hub.register(spec.clone());
        }
    }

    /// Has every node forget a version.
    pub(crate) async fn remove_version(&self, id: &VersionId) {
        if let Some(hub) = &self.0.hub {
            hub.remove(id);
        }
        self.0.node.remove(id).await;
    }

    /// Whether a call has certainly not run and can be sent to another instance.
    pub(crate) fn goes_elsewhere(&self, error: &InvokeError) -> bool {
        match error {
            InvokeError::NodeLost { was_sent, .. } => !was_sent,
            // A node that leaves, not this server.
            InvokeError::Stopping => !self.is_stopping(),
            InvokeError::UnknownVersion(_) => true,
            InvokeError::NoCapacity { .. } | InvokeError::WorkerLost { .. } | InvokeError::Node(_) => false,
        }
    }
}
