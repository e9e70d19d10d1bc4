//! What becomes of a named instance that the control plane ends: it is armed again where that can be.
//!
//! ```text
//!  named, at rest ── end ──> Rewind ──> armed, without a name: for whoever comes
//!                     └ none is wanted, or it cannot go back: its worker ends
//! ```
//!
//! A new worker costs ten times what a call does. One that goes back to its snapshot is as good as a new one for its own
//! version, and serves no other (invariant 3).

use std::sync::{Arc, atomic::Ordering};

use gust_worker::protocol::Command;

use crate::{
    identity::Identity,
    instance::{AtRest, Instance},
    link::Outgoing,
    named::InstanceName,
    node::Inner,
    version::Version,
    worker::WorkerError,
};

/// Instances of a version that are kept armed when they have been used, for each that is armed ahead: what a burst has made
/// is there for the next.
const RETIRED_PER_ARMED: usize = 4;

impl Inner {
    /// Ends an instance of the control plane's: now, or when it comes to rest.
    pub(crate) fn end(self: &Arc<Self>, name: InstanceName) {
        match self.desk.end(name) {
            Some(AtRest::Instance(instance)) => self.retire(instance),
            // A frozen one has no worker that could be used again.
            Some(AtRest::Frozen(_)) | None => {}
        }
    }

    /// Arms an instance again that has been ended, in the background, or lets it go.
    pub(crate) fn retire(self: &Arc<Self>, mut instance: Box<Instance>) {
        let wanted = self.config.armed_per_version * RETIRED_PER_ARMED;
        let can_go_back = instance.origin.is_some() && instance.recording.is_none();
        if !can_go_back || self.is_stopping() || !self.desk.retire(&instance, wanted) {
            return;
        }
        let inner = Arc::clone(self);
        tokio::spawn(async move {
            let is_pristine = go_back(&mut instance).await;
            let version = Arc::clone(&instance.version);
            inner.desk.armed(&version);
            match is_pristine {
                Ok(true) => inner.desk.rest(*instance, true),
                Ok(false) => {}
                // A guest that has changed too much is not worth undoing: its worker has ended.
                Err(error) => tracing::debug!(%error, instance = instance.id, "not armed again"),
            }
        });
    }

    /// A version has been used by a named instance: whether one of it is to be armed beside that is looked at in a while,
    /// when it may have been armed again itself.
    pub(crate) fn arm_later(&self, version: &Version) {
        version.arm_later.store(true, Ordering::Relaxed);
    }

    /// Arms versions that have been used since this was done last.
    pub(crate) fn arm_used(self: &Arc<Self>) {
        let used: Vec<_> = self
            .versions()
            .values()
            .filter(|version| version.arm_later.swap(false, Ordering::Relaxed))
            .cloned()
            .collect();
        used.iter().for_each(|version| self.arm(version));
    }
}

/// Has a guest go back to its snapshot, as another instance; whether it did.
async fn go_back(instance: &mut Instance) -> Result<bool, WorkerError> {
    let identity = Identity::new();
    let command = Command::Rewind {
        environment: instance.version.own_environment(&identity),
    };
    let outgoing = Outgoing {
        command: &command,
        body: b"",
        descriptors: Vec::new(),
    };
    instance.worker.send(&[outgoing]).await?;
    instance.id = identity.id;
    instance.settle().await.map(|waiting| waiting.pristine)
}
