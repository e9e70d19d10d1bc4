//! A worker as its owner holds it: whoever has the handle is the only one to speak with the worker, and its end is the
//! worker's.

use std::{
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use gust_worker::{
    cgroup::{Group, GroupLimits},
    frame::Frame,
    protocol::{Command, JailReport, Limits, Report},
    zygote::wire::WorkerEnd,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Signal, pidfd_send_signal},
};
use tokio::{sync::watch, task::AbortHandle};

use crate::{
    egress::{Egress, EgressPolicy},
    link::{Link, LinkError, Outgoing},
};

/// Longest time for a worker to report that it is prepared.
const PREPARE_TIMEOUT: Duration = Duration::from_secs(20);

/// Memory that a worker itself may use beside its guest, in bytes.
const OVERHEAD_BYTES: u64 = 16 << 20;

/// Processes that a worker itself needs beside its guest's.
const OVERHEAD_PIDS: u32 = 8;

/// Processes and threads of a guest.
const GUEST_PIDS_MAX: u32 = 1024;

/// Longest time for which a worker leaves the processors to others. Where calls keep all of them busy it would get nothing:
/// what it prepares would never be there, and whoever waits for it or for its turn would wait as long.
const STAND_BACK_MAX: Duration = Duration::from_millis(50);

/// One worker. Dropping it kills the worker and everything in it.
#[derive(Debug)]
pub(crate) struct Worker {
    link: Link,
    /// None when the worker is no process: a test's.
    pidfd: Option<OwnedFd>,
    end: watch::Receiver<Option<WorkerEnd>>,
    group: Arc<Group>,
    /// The ways out of its guest.
    egress: Option<Box<Egress>>,
    /// What it is to be told before anything else.
    announced: Mutex<Option<Command>>,
}

impl Worker {
    pub(crate) fn new(
        link: Link,
        pidfd: Option<OwnedFd>,
        end: watch::Receiver<Option<WorkerEnd>>,
        group: Arc<Group>,
    ) -> Self {
        Self {
            link,
            pidfd,
            end,
            group,
            egress: None,
            announced: Mutex::default(),
        }
    }

    /// Gives the guest that will be in it a way out, where all these policies allow one.
    pub(crate) fn open_egress(&mut self, policies: Vec<Arc<EgressPolicy>>) {
        let egress = Egress::new(policies);
        if let Some(spec) = egress.spec() {
            *lock(&self.announced) = Some(Command::Network(spec));
            self.egress = Some(Box::new(egress));
        }
    }

    /// Sees to the ways out of a guest that is told of them in another way.
    pub(crate) fn attach_egress(&mut self, egress: Egress) {
        self.egress = Some(Box::new(egress));
    }

    /// Takes the ways out from a worker whose guest has ended.
    pub(crate) fn take_egress(&mut self) -> Option<Box<Egress>> {
        self.egress.take()
    }

    /// Waits for the worker to say that it is prepared.
    pub(crate) async fn prepared(&mut self) -> Result<JailReport, WorkerError> {
        match tokio::time::timeout(PREPARE_TIMEOUT, self.receive()).await {
            Err(_) => Err(WorkerError::Late(PREPARE_TIMEOUT)),
            Ok(Err(error)) => Err(error),
            Ok(Ok(Frame {
                message: Report::Pooled { jail },
                ..
            })) => Ok(jail),
            Ok(Ok(frame)) => Err(unexpected(&frame.message)),
        }
    }

    /// Sends commands together.
    pub(crate) async fn send(&self, commands: &[Outgoing<'_>]) -> Result<(), WorkerError> {
        let announced = lock(&self.announced).take();
        let Some(announced) = &announced else {
            return Ok(self.link.send(commands).await?);
        };
        let announced = Outgoing {
            command: announced,
            body: b"",
            descriptors: Vec::new(),
        };
        let all: Vec<Outgoing<'_>> = std::iter::once(announced)
            .chain(commands.iter().cloned())
            .collect();
        Ok(self.link.send(&all).await?)
    }

    /// The next report. A refusal is an error. What the guest asks of the outside is seen to meanwhile; a call that is given up
    /// may have told the worker half of an answer, and the worker has to be killed then. [`LinkError::Unread`] is about what
    /// was sent before: an answer of the outside that was not read says nothing of that.
    pub(crate) async fn receive(&mut self) -> Result<Frame<Report>, WorkerError> {
        let mut has_answered = false;
        loop {
            let received = match &mut self.egress {
                None => self.link.receive().await,
                Some(egress) => tokio::select! {
                    received = self.link.receive() => received,
                    answered = egress.answer() => {
                        has_answered = true;
                        self.link.send(&[answered.outgoing()]).await?;
                        continue;
                    }
                },
            };
            let frame = received.map_err(|error| match error {
                LinkError::Unread if has_answered => LinkError::Closed,
                error @ (LinkError::Unread | LinkError::Closed | LinkError::Io(_) | LinkError::Frame(_)) => {
                    error
                }
            })?;
            match (frame.message, &mut self.egress) {
                (Report::Refused { reason }, _) => return Err(WorkerError::Refused(reason)),
                (Report::Outside { connection, request }, Some(egress)) => egress.asked(connection, request),
                (message, _) => return Ok(Frame { message, ..frame }),
            }
        }
    }

    /// Bounds the worker and its guest. Memory holds what the guest writes to its `/tmp`, too.
    pub(crate) fn limit(&self, limits: Limits) -> std::io::Result<()> {
        self.group.limit(GroupLimits {
            memory_bytes: limits
                .memory_bytes
                .saturating_add(limits.tmp_bytes)
                .saturating_add(OVERHEAD_BYTES),
            cpus: limits.cpus,
            pids: GUEST_PIDS_MAX + OVERHEAD_PIDS,
        })
    }

    /// Has the worker leave the processors to others while it prepares something that no one waits for yet: until the
    /// answer is dropped, and for [`STAND_BACK_MAX`] at most.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub(crate) fn stand_back(&self) -> StandingBack {
        self.group.stand_back(true);
        let group = Arc::clone(&self.group);
        let later = tokio::spawn(async move {
            tokio::time::sleep(STAND_BACK_MAX).await;
            group.stand_back(false);
        });
        StandingBack {
            group: Arc::clone(&self.group),
            later: later.abort_handle(),
        }
    }

    /// Whether the worker has ended, known from the kernel before the zygote has told.
    pub(crate) fn has_ended(&self) -> bool {
        let is_dead = |pidfd: &OwnedFd| {
            let mut ready = [PollFd::new(pidfd, PollFlags::IN)];
            poll(&mut ready, Some(&Timespec::default())).is_ok_and(|count| count > 0)
        };
        self.end.borrow().is_some() || self.pidfd.as_ref().is_some_and(is_dead)
    }

    /// Kills the worker, and everything in it. Its socket then ends, behind what it had said.
    pub(crate) fn kill(&self) {
        // One that has ended needs no more.
        if let Some(pidfd) = &self.pidfd {
            let _ = pidfd_send_signal(pidfd, Signal::KILL);
        }
        self.link.hang_up();
    }
}

/// A worker that leaves the processors to others; it takes its share again when this is dropped.
#[derive(Debug)]
#[must_use]
pub(crate) struct StandingBack {
    group: Arc<Group>,
    /// Has it take its share when it has stood back for long enough.
    later: AbortHandle,
}

impl Drop for StandingBack {
    fn drop(&mut self) {
        self.later.abort();
        self.group.stand_back(false);
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Why a worker cannot be used further.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WorkerError {
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("the worker refused: {0}")]
    Refused(String),
    #[error("the worker said {0} where that makes no sense")]
    Unexpected(&'static str),
    #[error("the worker cannot be bounded")]
    Bounds(#[source] std::io::Error),
    #[error("the worker said nothing for {} s", .0.as_secs())]
    Late(Duration),
}

impl WorkerError {
    /// The worker has ended.
    pub(crate) fn is_end(&self) -> bool {
        match self {
            Self::Link(LinkError::Closed | LinkError::Unread) => true,
            Self::Link(LinkError::Io(_) | LinkError::Frame(_))
            | Self::Refused(_)
            | Self::Unexpected(_)
            | Self::Bounds(_)
            | Self::Late(_) => false,
        }
    }
}

/// The error for a report that does not fit.
pub(crate) fn unexpected(report: &Report) -> WorkerError {
    WorkerError::Unexpected(match report {
        Report::Pooled { .. } => "Pooled",
        Report::Waiting(_) => "Waiting",
        Report::InitFailed => "InitFailed",
        Report::Log => "Log",
        Report::Answer(_) => "Answer",
        Report::Captured(_) => "Captured",
        Report::Frozen => "Frozen",
        Report::Replanned { .. } => "Replanned",
        Report::Exited(_) => "Exited",
        Report::Outside { .. } => "Outside",
        Report::Started { .. } => "Started",
        Report::Ran(_) => "Ran",
        Report::CannotRun { .. } => "CannotRun",
        Report::Refused { .. } => "Refused",
        Report::LaidOut => "LaidOut",
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What a panicked holder left is whole: no step here leaves it half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A duration in nanoseconds.
pub(crate) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
