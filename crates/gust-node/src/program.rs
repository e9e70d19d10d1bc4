//! Programs that are no functions: each runs once, from its start to its end, in a jailed micro-VM of its own.
//!
//! The worker gets pipes for the program's standard files and moves bytes by itself; the node only starts it, passes
//! signals on and hears of the end. Nothing is pooled, snapshotted or kept.

use std::{
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use gust_worker::{
    protocol::{Command, Limits, MOUNTS_MAX, Ran, Report, RunSpec, RunStats},
    zygote::wire::WorkerKind,
};
use tokio::sync::mpsc;

use crate::{
    api::NodeError,
    egress::{Egress, EgressPolicy},
    identity::Identity,
    link::Outgoing,
    start::failed,
    version::io_error,
    worker::{Worker, unexpected},
    zygote::Zygote,
};
use gust_worker::protocol::GuestExit;

/// A program to run.
#[derive(Debug)]
pub struct Program {
    /// Program and arguments. A program without a slash is looked up in `PATH` of the environment.
    pub argv: Vec<String>,
    /// Environment.
    pub environment: Vec<(String, String)>,
    /// Working directory, a path in the image.
    pub directory: String,
    /// User and group in the guest.
    pub user: (u32, u32),
    /// Host name in the guest.
    pub host_name: String,
    /// Memory of the guest, in bytes.
    pub memory_bytes: u64,
    /// Room in `/tmp`, in bytes.
    pub tmp_bytes: u64,
    /// Image of the root file system.
    pub root: OwnedFd,
    /// Images that are laid over directories, in this order; at most [`Program::MOUNTS_MAX`].
    pub mounts: Vec<(String, OwnedFd)>,
    /// Where it may connect to.
    pub egress: EgressPolicy,
    /// The worker's ends of the program's standard files.
    pub standard: Standard,
}

impl Program {
    /// Most images that can be laid over directories.
    pub const MOUNTS_MAX: usize = MOUNTS_MAX;
}

/// Pipes, or other descriptors that `poll` tells of, all of them set not to block.
#[derive(Debug)]
pub struct Standard {
    /// What the program reads.
    pub input: OwnedFd,
    /// What it writes.
    pub output: OwnedFd,
    /// What it says about itself.
    pub error: OwnedFd,
}

/// How a run came to its end.
#[derive(Debug)]
pub enum ProgramEnd {
    /// The program ran, and ended.
    Ran {
        /// How.
        exit: GuestExit,
        /// What loading it took.
        boot: Duration,
        /// What it used.
        stats: RunStats,
    },
    /// The program could not be started.
    CannotRun {
        /// It is not there, rather than there and not startable.
        not_found: bool,
        /// Why, in words.
        reason: String,
    },
}

/// Where programs are started: a zygote of their own.
#[derive(Debug)]
pub struct Programs {
    zygote: Arc<Zygote>,
}

impl Programs {
    /// Starts the zygote: the hidden subcommand of `worker_program`, or of the running program.
    ///
    /// # Errors
    /// When the zygote cannot be started, or the host has no KVM for it.
    pub async fn start(worker_program: Option<PathBuf>) -> Result<Self, NodeError> {
        let program = match worker_program {
            Some(program) => program,
            None => {
                std::env::current_exe().map_err(|error| io_error("finding the running program", error))?
            }
        };
        let action = format!("starting the zygote, {} zygote,", program.display());
        let (zygote, host) = Zygote::start(program, WorkerKind::Kvm)
            .await
            .map_err(|error| io_error(action, error))?;
        if !host.kvm {
            zygote.stop().await;
            let error = std::io::Error::other("/dev/kvm cannot be opened");
            return Err(io_error("preparing a sandbox", error));
        }
        Ok(Self { zygote })
    }

    /// Starts a program. What it reads and writes goes through [`Program::standard`] from now on.
    ///
    /// # Errors
    /// When there is no worker for it. What is wrong with the program itself is heard by [`Running::attend`].
    pub async fn run(&self, program: Program) -> Result<Running, NodeError> {
        let identity = Identity::new();
        let limits = Limits {
            memory_bytes: program.memory_bytes,
            tmp_bytes: program.tmp_bytes,
            cpus: 1,
        };
        let egress = Egress::new(vec![Arc::new(program.egress)]);
        let (paths, images): (Vec<String>, Vec<OwnedFd>) = program.mounts.into_iter().unzip();
        let spec = RunSpec {
            argv: program.argv,
            environment: program.environment,
            directory: program.directory,
            uid: program.user.0,
            gid: program.user.1,
            host_name: program.host_name,
            mounts: paths,
            network: egress.spec(),
            limits,
            identity: identity.spec(),
        };
        let spawned = self.zygote.spawn().await;
        let mut worker = spawned.map_err(|error| io_error("making a worker", error))?;
        worker
            .prepared()
            .await
            .map_err(|error| failed("preparing a worker", error))?;
        worker
            .limit(limits)
            .map_err(|error| io_error("bounding a worker", error))?;
        let Standard { input, output, error } = &program.standard;
        let mut descriptors = vec![input.as_fd(), output.as_fd(), error.as_fd(), program.root.as_fd()];
        descriptors.extend(images.iter().map(AsFd::as_fd));
        let run = Outgoing {
            command: &Command::Run(spec),
            body: b"",
            descriptors,
        };
        worker
            .send(&[run])
            .await
            .map_err(|error| failed("starting the program", error))?;
        worker.attach_egress(egress);
        Ok(Running { worker })
    }

    /// Ends every program; returns when they and their control groups are gone.
    pub async fn stop(self) {
        self.zygote.stop().await;
    }
}

/// A program that runs, or is about to. Dropping it kills it.
#[derive(Debug)]
pub struct Running {
    worker: Worker,
}

impl Running {
    /// Passes signals on until the program has ended, and all that it wrote has been written to its pipes.
    ///
    /// # Errors
    /// When the worker is lost or breaks the protocol.
    pub async fn attend(mut self, signals: &mut mpsc::Receiver<u32>) -> Result<ProgramEnd, NodeError> {
        let mut boot = Duration::ZERO;
        let lost = |error| failed("running the program", error);
        loop {
            let frame = tokio::select! {
                frame = self.worker.receive() => frame.map_err(lost)?,
                Some(signal) = signals.recv() => {
                    self.signal(signal).await;
                    continue;
                }
            };
            match frame.message {
                Report::Started { boot_ns } => boot = Duration::from_nanos(boot_ns),
                Report::Ran(Ran { exit, stats }) => {
                    let egress = self.worker.take_egress();
                    drop(self.worker);
                    if let Some(egress) = egress {
                        egress.linger().await;
                    }
                    return Ok(ProgramEnd::Ran { exit, boot, stats });
                }
                Report::CannotRun { not_found, reason } => {
                    return Ok(ProgramEnd::CannotRun { not_found, reason });
                }
                other @ (Report::Pooled { .. }
                | Report::Waiting(_)
                | Report::InitFailed
                | Report::Log
                | Report::Answer(_)
                | Report::Captured(_)
                | Report::Frozen
                | Report::Replanned { .. }
                | Report::Exited(_)
                | Report::Outside { .. }
                | Report::LaidOut
                | Report::Refused { .. }) => return Err(lost(unexpected(&other))),
            }
        }
    }

    async fn signal(&self, signal: u32) {
        let command = Outgoing {
            command: &Command::Signal(signal),
            body: b"",
            descriptors: Vec::new(),
        };
        // A worker that is gone is heard of where its end is read.
        let _ = self.worker.send(&[command]).await;
    }
}
