//! Starting: a runtime's program from nothing, and a function in it.

use std::{
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use gust_worker::protocol::{BootSpec, Command, Limits, Report, Waiting, WaitsFor};

use crate::{
    api::{Failure, Isolation, NodeError},
    desk::Place,
    files::{Files, Handed, Tree},
    identity::Identity,
    instance::Instance,
    link::Outgoing,
    log::LogSink,
    node::Inner,
    pool::PoolError,
    version::{Version, io_error},
    worker::{Worker, WorkerError, unexpected},
};

/// Longest time for a runtime's program to ask for its function, once it has been started.
const BOOT_TIMEOUT: Duration = Duration::from_secs(30);

/// Workers that a start may lose before it fails.
pub(crate) const STARTS_MAX: u32 = 3;

/// Why an instance could not be started.
#[derive(Debug)]
pub(crate) enum StartError {
    /// The function's own fault.
    Init(Failure),
    /// The worker was lost, or broke the protocol.
    Lost(WorkerError),
    /// The host's.
    Node(NodeError),
}

impl StartError {
    /// As the node tells it: a failure of the function, or of the host.
    pub(crate) fn told(self) -> Result<Failure, NodeError> {
        match self {
            Self::Init(failure) => Ok(failure),
            Self::Lost(error) => Err(failed("starting an instance", error)),
            Self::Node(error) => Err(error),
        }
    }
}

impl From<NodeError> for StartError {
    fn from(error: NodeError) -> Self {
        Self::Node(error)
    }
}

impl From<PoolError> for StartError {
    fn from(error: PoolError) -> Self {
        Self::Node(match error {
            PoolError::Closed => NodeError::Stopping,
            error @ (PoolError::Spawn(_) | PoolError::Prepare(_) | PoolError::LayOut(_)) => {
                failed("preparing a worker", error)
            }
        })
    }
}

/// A failure of something below, as the node tells it.
pub(crate) fn failed(action: &str, error: impl std::error::Error + Send + Sync + 'static) -> NodeError {
    io_error(action, std::io::Error::other(error))
}

/// An instance that has been booted.
pub(crate) struct Booted {
    pub instance: Instance,
    /// How long it took.
    pub took: Duration,
}

impl Inner {
    /// Starts an instance from nothing, to its first wait for an event. A worker that is lost on the way is replaced: no
    /// event has been given to it.
    pub(crate) async fn boot(
        &self,
        version: &Arc<Version>,
        place: Place,
        log: &mut LogSink,
    ) -> Result<Booted, StartError> {
        let files = version.files(&self.files).await?;
        let mut attempt = 1;
        let (identity, worker, waiting, took) = loop {
            let identity = Identity::new();
            let mut worker = self.take_worker(version.limits()).await?;
            self.open_egress(&mut worker, version);
            let start = Instant::now();
            let boot = boot_command(&files, &identity, version.limits(), &version.spec.handler)?;
            let init = version.init_command(&identity);
            let root = files.root.handed();
            let function: Vec<Handed<'_>> = function_trees(&files).map(|tree| tree.handed()).collect();
            let commands = [
                with_descriptors(&boot, [root.as_fd()]),
                with_descriptors(&init, function.iter().map(Handed::as_fd)),
            ];
            let started = match worker.send(&commands).await {
                Ok(()) => initialise(&mut worker, version, log).await,
                Err(error) => Err(StartError::Lost(error)),
            };
            match started {
                Ok(waiting) => break (identity, worker, waiting, start.elapsed()),
                Err(StartError::Lost(error)) if attempt < STARTS_MAX => {
                    tracing::warn!(version = %version.id(), %error, "a worker was lost while it started");
                    attempt += 1;
                }
                Err(error) => return Err(error),
            }
        };
        place.started();
        self.count_started();
        let instance = Instance {
            id: identity.id,
            version: Arc::clone(version),
            worker,
            place,
            memory_bytes: waiting.memory_bytes,
            recording: None,
            origin: None,
        };
        Ok(Booted { instance, took })
    }

    /// Gives a worker that is to hold a version the version's way out.
    pub(crate) fn open_egress(&self, worker: &mut Worker, version: &Version) {
        match self.config.isolation {
            Isolation::Kvm => worker.open_egress(vec![
                Arc::clone(&self.config.egress),
                Arc::clone(&version.spec.egress),
            ]),
            // A guest process has the network namespace that it was made with, and no way out of that.
            Isolation::Process => {}
        }
    }

    /// A prepared worker within these bounds.
    pub(crate) async fn take_worker(&self, limits: Limits) -> Result<Worker, StartError> {
        let worker = self.pool.take().await?;
        worker
            .limit(limits)
            .map_err(|error| io_error("bounding a worker", error))?;
        Ok(worker)
    }
}

/// The command that starts a runtime's program; Lambda's error document when it has none. In its arguments `{handler}` and
/// `{memory_mib}` are the function's.
pub(crate) fn boot_command(
    files: &Files,
    identity: &Identity,
    limits: Limits,
    handler: &str,
) -> Result<Command, StartError> {
    let argv = files
        .command
        .clone()
        .map_err(|document| StartError::Init(Failure::InitFailed(Bytes::from(document))))?;
    let memory_mib = (limits.memory_bytes >> 20).to_string();
    let argv = argv
        .iter()
        // The handler comes last: what it holds is the function's, and is not looked at again.
        .map(|argument| {
            argument
                .replace("{memory_mib}", &memory_mib)
                .replace("{handler}", handler)
        })
        .collect();
    let environment = files.runtime.environment.iter();
    Ok(Command::Boot(BootSpec {
        argv,
        environment: environment
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect(),
        directory: files.runtime.directory.clone(),
        interface: files.interface(),
        limits,
        identity: identity.spec(),
    }))
}

/// A function's images in the order of the protocol.
pub(crate) fn function_trees(files: &Files) -> impl Iterator<Item = &Arc<Tree>> {
    [&files.code].into_iter().chain(&files.layers)
}

/// A command with images.
pub(crate) fn with_trees<'a>(
    command: &'a Command,
    trees: impl IntoIterator<Item = &'a Arc<Tree>>,
) -> Outgoing<'a> {
    with_descriptors(command, trees.into_iter().map(|tree| tree.descriptor.as_fd()))
}

fn with_descriptors<'a>(
    command: &'a Command,
    descriptors: impl IntoIterator<Item = BorrowedFd<'a>>,
) -> Outgoing<'a> {
    Outgoing {
        command,
        body: b"",
        descriptors: descriptors.into_iter().collect(),
    }
}

/// Waits for a program that has been started to ask for its function.
pub(crate) async fn booted(worker: &mut Worker, log: &mut LogSink) -> Result<(), StartError> {
    match tokio::time::timeout(BOOT_TIMEOUT, until_waiting(worker, WaitsFor::Function, log)).await {
        Ok(result) => result.map(|_| ()),
        Err(_) => Err(StartError::Lost(WorkerError::Late(BOOT_TIMEOUT))),
    }
}

/// Waits for a function that has been given to its runtime to wait for an event, for as long as it may take.
pub(crate) async fn initialise(
    worker: &mut Worker,
    version: &Version,
    log: &mut LogSink,
) -> Result<Waiting, StartError> {
    let limit = version.spec.init_timeout;
    match tokio::time::timeout(limit, until_waiting(worker, WaitsFor::Event, log)).await {
        Ok(result) => result,
        Err(_) => {
            worker.kill();
            drain(worker, log).await;
            Err(StartError::Init(Failure::InitTimedOut))
        }
    }
}

/// Takes what a worker that has been killed had still said.
pub(crate) async fn drain(worker: &mut Worker, log: &mut LogSink) {
    while let Ok(frame) = worker.receive().await {
        if matches!(frame.message, Report::Log) {
            log.take(frame.body).await;
        }
    }
}

async fn until_waiting(
    worker: &mut Worker,
    waits_for: WaitsFor,
    log: &mut LogSink,
) -> Result<Waiting, StartError> {
    let lost = StartError::Lost;
    loop {
        let frame = worker.receive().await.map_err(lost)?;
        match frame.message {
            Report::Log => log.take(frame.body).await,
            Report::Waiting(waiting) if waiting.waits_for == waits_for => return Ok(waiting),
            // The step before, when both were asked for at once.
            Report::Waiting(Waiting {
                waits_for: WaitsFor::Function,
                ..
            }) => {}
            Report::InitFailed => {
                return Err(StartError::Init(Failure::InitFailed(Bytes::from(frame.body))));
            }
            Report::Exited(exit) => return Err(StartError::Init(Failure::Exited(exit))),
            other @ (Report::Pooled { .. }
            | Report::Waiting(_)
            | Report::Answer(_)
            | Report::Captured(_)
            | Report::Frozen
            | Report::Replanned { .. }
            | Report::Started { .. }
            | Report::Ran(_)
            | Report::CannotRun { .. }
            | Report::Outside { .. }
            | Report::LaidOut
            | Report::Refused { .. }) => return Err(lost(unexpected(&other))),
        }
    }
}
