//! A node as the control plane sees it: what it is asked and tells, wherever it is.
//!
//! A local node is a handle in this process; a fake one starts sandboxes that are none, to measure the control plane by
//! itself; one on another machine answers the same questions over its link.

use std::time::Duration;

use gust_node::{
    Deployed, InstanceName, Invocation, InvokeError, Load, Named, Node, NodeError, NodeStats, Outcome,
    Present, VersionId, VersionSpec,
};

use gust_cluster::RemoteNode;

use crate::fake::FakeNode;

/// A node.
#[derive(Debug, Clone)]
pub enum Agent {
    /// In this process.
    Local(Node),
    /// One whose sandboxes are only waited for.
    Fake(FakeNode),
    /// On another machine.
    Remote(RemoteNode),
}

impl Agent {
    /// Makes a version ready there, see [`Node::deploy`].
    ///
    /// # Errors
    /// See [`NodeError`].
    pub async fn deploy(&self, spec: VersionSpec) -> Result<Deployed, NodeError> {
        match self {
            Self::Local(node) => node.deploy(spec).await,
            Self::Fake(fake) => fake.deploy(&spec.id),
            Self::Remote(node) => node.deploy(spec).await,
        }
    }

    /// Makes a version known there without booting it.
    pub fn register(&self, spec: VersionSpec) {
        match self {
            Self::Local(node) => node.register(spec),
            Self::Fake(fake) => fake.register(spec.id),
            Self::Remote(node) => node.register(spec),
        }
    }

    /// Forgets a version there.
    pub async fn remove(&self, id: &VersionId) {
        match self {
            Self::Local(node) => node.remove(id).await,
            Self::Fake(fake) => fake.remove(id),
            Self::Remote(node) => node.remove(id),
        }
    }

    /// Runs one event.
    ///
    /// # Errors
    /// See [`InvokeError`].
    pub async fn invoke(&self, id: &VersionId, invocation: Invocation) -> Result<Outcome, InvokeError> {
        match self {
            Self::Local(node) => node.invoke(id, invocation).await,
            Self::Fake(fake) => fake.invoke(id, invocation).await,
            Self::Remote(node) => node.invoke(id, invocation).await,
        }
    }

    /// Makes an instance ahead of calls.
    ///
    /// # Errors
    /// See [`InvokeError`].
    pub async fn create(&self, id: &VersionId, named: Named) -> Result<(), InvokeError> {
        match self {
            Self::Local(node) => node.create(id, named).await,
            Self::Fake(fake) => fake.create(id, named).await,
            Self::Remote(node) => node.create(id, named).await,
        }
    }

    /// Ends an instance, now or when it rests, and has it wait armed for so long.
    pub fn end(&self, name: InstanceName, armed_for: Duration) {
        match self {
            Self::Local(node) => node.end(name, armed_for),
            Self::Fake(fake) => fake.end(name),
            Self::Remote(node) => node.end(name, armed_for),
        }
    }

    /// Waits for instances to end that were not told to.
    pub async fn lost(&self) -> Vec<InstanceName> {
        match self {
            Self::Local(node) => node.lost().await,
            Self::Fake(fake) => fake.lost().await,
            Self::Remote(node) => node.lost().await,
        }
    }

    /// Waits for news of how much its processors have to do, to someone who was told of another load or of none.
    pub async fn load(&self, told: Option<Load>) -> Load {
        match self {
            Self::Local(node) => node.load(told).await,
            // What it starts takes no processor.
            Self::Fake(_) => std::future::pending().await,
            Self::Remote(node) => node.load().await,
        }
    }

    /// Every instance that has a name.
    pub fn present(&self) -> Vec<Present> {
        match self {
            Self::Local(node) => node.present(),
            Self::Fake(fake) => fake.present(),
            Self::Remote(node) => node.present(),
        }
    }

    /// Ends the instances of a version that rest; for measurements.
    pub async fn evict(&self, id: &VersionId, keep_armed: bool) {
        match self {
            Self::Local(node) => node.evict(id, keep_armed).await,
            Self::Fake(fake) => fake.evict(id),
            Self::Remote(node) => node.evict(id, keep_armed).await,
        }
    }

    /// What it holds now.
    pub fn stats(&self) -> NodeStats {
        match self {
            Self::Local(node) => node.stats(),
            Self::Fake(fake) => fake.stats(),
            Self::Remote(node) => node.stats(),
        }
    }

    /// Stops it: running calls get `grace` to finish.
    pub async fn stop(&self, grace: Duration) {
        match self {
            Self::Local(node) => node.stop(grace).await,
            Self::Fake(fake) => fake.stop(),
            // It goes on without this control plane, and is there for the next.
            Self::Remote(_) => {}
        }
    }

    /// Whether it runs code, so that a runtime's image has to be there.
    pub(crate) fn needs_runtimes(&self) -> bool {
        match self {
            Self::Local(_) | Self::Remote(_) => true,
            Self::Fake(_) => false,
        }
    }
}
