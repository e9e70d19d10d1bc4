//! What becomes of a named instance that the control plane ends: it is armed again where that can be.
//!
//! ```text
//!  named, at rest ── end ──> Rewind ──> armed, without a name: for whoever comes
//!                     └ none is wanted, or it cannot go back: its worker ends
//! ```
//!
//! A new worker costs ten times what a call does. One that goes back to its snapshot is as good as a new one for its own
//! version, and serves no other (invariant 3).

use std::{sync::Arc, time::Duration};

use gust_worker::protocol::Command;

use crate::{
    identity::Identity,
    instance::{AtRest, Instance},
    link::Outgoing,
    named::InstanceName,
    node::Inner,
    worker::WorkerError,
};

/// Instances of a version that are kept armed when they have been used, where any are: what a burst has made is there for the
/// next. How long is the control plane's decision.
pub const ARMED_AGAIN_MAX: usize = 64;

impl Inner {
    /// Ends an instance of the control plane's: now, or when it comes to rest.
    pub(crate) fn end(self: &Arc<Self>, name: InstanceName, armed_for: Duration) {
        match self.desk.end(name, armed_for) {
            Some(AtRest::Instance(instance)) => self.retire(instance),
            // A frozen one has no worker that could be used again.
            Some(AtRest::Frozen(_)) | None => {}
        }
    }

    /// Arms an instance again that has been ended, in the background, or lets it go.
    pub(crate) fn retire(self: &Arc<Self>, mut instance: Box<Instance>) {
        let wanted = match self.config.armed_per_version {
            0 => 0,
            _ => ARMED_AGAIN_MAX,
        };
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
