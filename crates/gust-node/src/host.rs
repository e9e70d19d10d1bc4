//! What the node needs of its host for an isolation.

use std::time::Duration;

use gust_worker::zygote::wire::WorkerKind;

use crate::{
    api::{Isolation, NodeConfig, NodeError},
    source::Source,
    version::io_error,
    zygote::Zygote,
};

/// Before what can be prepared later is begun in place of what has been used: a processor that is busy with it would be
/// missing for the start that used it, and keep the caller that it answers waiting for the host's next tick.
pub(crate) const BACKGROUND_PAUSE: Duration = Duration::from_millis(5);

/// What a start of an instance takes.
pub(crate) fn settle_time(isolation: Isolation) -> Duration {
    match isolation {
        Isolation::Kvm => Duration::from_millis(1),
        Isolation::Process => Duration::from_millis(50),
    }
}

/// Starts the zygote, and checks that it can make workers of the isolation's kind.
pub(crate) async fn start_source(config: &NodeConfig) -> Result<Source, NodeError> {
    let program = match &config.worker_program {
        Some(program) => program.clone(),
        None => std::env::current_exe().map_err(|error| io_error("finding the running program", error))?,
    };
    let kind = match config.isolation {
        Isolation::Kvm => WorkerKind::Kvm,
        Isolation::Process => WorkerKind::Process,
    };
    let action = format!("starting the zygote, {} zygote,", program.display());
    let (zygote, host) = Zygote::start(program, kind)
        .await
        .map_err(|error| io_error(action, error))?;
    let missing = match config.isolation {
        Isolation::Kvm if !host.kvm => Some("/dev/kvm cannot be opened"),
        Isolation::Process if !host.processes => Some("this host lets no user namespaces be made"),
        Isolation::Kvm | Isolation::Process => None,
    };
    match missing {
        None => Ok(Source::new(zygote)),
        Some(reason) => {
            zygote.stop().await;
            Err(io_error("preparing sandboxes", std::io::Error::other(reason)))
        }
    }
}
