//! Why a worker cannot go on, and how the node is told.

use crate::{
    channel::ChannelError,
    jail::JailError,
    kvm::{program::ProgramError, sandbox::SandboxError},
};

/// Why a worker cannot go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum SupervisorError {
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error(transparent)]
    Machine(#[from] gust_vmm::Error),
    #[error(transparent)]
    Jail(#[from] JailError),
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The node's fault.
    #[error("the command {0} does not fit the worker's state")]
    OutOfOrder(&'static str),
    #[error("the command {command} came with {arrived} descriptors")]
    Descriptors { command: &'static str, arrived: usize },
    #[error("this worker was given no /dev/kvm")]
    NoKvm,
}

/// An error and what lies under it.
pub(super) fn reason_of(error: &dyn std::error::Error) -> String {
    let mut reason = error.to_string();
    let mut source = error.source();
    while let Some(under) = source {
        let text = under.to_string();
        if !reason.ends_with(&text) {
            reason = format!("{reason}: {text}");
        }
        source = under.source();
    }
    reason
}
