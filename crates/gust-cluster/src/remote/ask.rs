//! Asking a node over its link, which may be lost, and telling it of versions that it turns out not to know.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use gust_node::{InvokeError, VersionId, VersionSpec};

use super::{REGISTRATIONS_MAX, RemoteNode, SHORT_LIMIT};
use crate::{
    convert,
    files::FileId,
    hub::blocking,
    link::CallError,
    message::{self, NodeRequest, NotRun, Reply, Request, text},
};

/// Why a request of the control plane's has no answer of the kind that was expected.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    #[error("the node is lost")]
    Lost { was_sent: bool },
    #[error(transparent)]
    Call(CallError),
    #[error("the images could not be read: {0}")]
    Images(String),
    #[error("the node answered: {0}")]
    Answer(String),
}

impl From<CallError> for AskError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Closed(_) => Self::Lost { was_sent: true },
            error @ (CallError::Late(_) | CallError::Message(_)) => Self::Call(error),
        }
    }
}

impl RemoteNode {
    /// Asks for something of a version that ends with no more than an error.
    pub(super) async fn knowing(
        &self,
        id: &VersionId,
        request: impl Fn() -> NodeRequest,
        limit: Duration,
    ) -> Result<(), InvokeError> {
        for _ in 0..REGISTRATIONS_MAX {
            self.introduce(id).await?;
            let asked = self.ask(request(), limit).await;
            match asked.map_err(|error| self.refused(error, "preparing a version"))? {
                (Reply::Done, _) => return Ok(()),
                (Reply::NotRun(NotRun::UnknownVersion(_)), _) => drop(self.member.unlearned(&id.0)),
                (Reply::NotRun(not_run), log) => return Err(convert::from_not_run(not_run, log)),
                (other, _) => return Err(self.refused(unexpected(&other), "preparing a version")),
            }
        }
        Err(InvokeError::UnknownVersion(id.clone()))
    }

    /// Tells the node of a version, if it does not know it.
    pub(super) async fn introduce(&self, id: &VersionId) -> Result<(), InvokeError> {
        if self.member.knows(&id.0) {
            return Ok(());
        }
        let spec = self.hub.version(id);
        let spec = spec.ok_or_else(|| InvokeError::UnknownVersion(id.clone()))?;
        let refused = |error| self.refused(error, "making a version known");
        let version = self.described(&spec).await.map_err(refused)?;
        match self
            .ask(NodeRequest::Register(version), SHORT_LIMIT)
            .await
            .map_err(refused)?
        {
            (Reply::Done, _) => {
                self.member.learned(&id.0, false);
                Ok(())
            }
            (other, _) => Err(refused(unexpected(&other))),
        }
    }

    /// A version as nodes are told of it: its images are published, and named by what is in them.
    pub(super) async fn described(&self, spec: &VersionSpec) -> Result<message::Version, AskError> {
        let (library, images) = (Arc::clone(&self.hub.0.library), spec.clone());
        let published = blocking(move || {
            let publish = |path| library.publish(path).map_err(|error| text(&error));
            let layers: Result<Vec<FileId>, String> =
                images.layer_images.iter().map(|path| publish(path)).collect();
            Ok((
                publish(&images.root_image)?,
                publish(&images.code_image)?,
                layers?,
            ))
        });
        let published = published
            .await
            .map_err(|panic| AskError::Images(panic.to_string()))?;
        let (root, code, layers) = published.map_err(AskError::Images)?;
        Ok(convert::version(spec, root, code, layers))
    }

    pub(super) async fn ask(
        &self,
        request: NodeRequest,
        limit: Duration,
    ) -> Result<(Reply, Bytes), AskError> {
        let link = self.member.link().ok_or(AskError::Lost { was_sent: false })?;
        Ok(link.call(&Request::Node(request), Bytes::new(), limit).await?)
    }

    /// Asks for what needs no answer.
    pub(super) async fn told(&self, request: NodeRequest) {
        match self.ask(request, SHORT_LIMIT).await {
            Ok((Reply::Done, _)) => {}
            Ok((other, _)) => {
                tracing::warn!(node = %self.name(), ?other, "a node has not done what it was told");
            }
            Err(error) => tracing::debug!(node = %self.name(), %error, "a node could not be told"),
        }
    }

    pub(super) fn is_lost(&self, was_sent: bool) -> InvokeError {
        InvokeError::NodeLost {
            node: self.name().to_string(),
            was_sent,
        }
    }

    pub(super) fn refused(&self, error: AskError, action: &str) -> InvokeError {
        match error {
            AskError::Lost { was_sent } => self.is_lost(was_sent),
            error @ (AskError::Call(_) | AskError::Images(_) | AskError::Answer(_)) => {
                convert::io_error(format!("{action} on node {}", self.name()), text(&error)).into()
            }
        }
    }
}

pub(super) fn unexpected(reply: &Reply) -> AskError {
    AskError::Answer(message::cut(format!("{reply:?}")))
}
