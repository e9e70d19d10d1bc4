//! One call on one instance: the event goes out, and what the guest says comes back.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use gust_worker::protocol::{
    Answer, AnswerKind, Command, GuestExit, InvokeSpec, RESPONSE_BYTES_MAX, Report, Waiting, WorkerTimings,
};
use tokio::sync::oneshot;

use crate::{
    api::{Invocation, InvokeResult, StartKind},
    instance::Instance,
    link::{LinkError, Outgoing},
    log::LogSink,
    node::Inner,
    restore::Restoring,
    start::drain,
    worker::{WorkerError, unexpected},
};

/// How a call on an instance went.
pub(crate) struct Ran {
    pub result: InvokeResult,
    /// From the delivery to the answer, restoring included.
    pub took: Duration,
    /// The answer's own account; nothing when there was none.
    pub timings: WorkerTimings,
    pub memory_bytes: u64,
    pub memory_bytes_max: u64,
    pub log_bytes_dropped: u64,
    /// The instance goes to rest, for another call.
    pub kept: bool,
}

/// Why a call did not go to its end.
#[derive(Debug)]
pub(crate) enum CallError {
    /// The instance was gone before it had read the event, which it has certainly not run: another may take it.
    NotDelivered,
    /// The worker was lost during the call.
    Lost(WorkerError),
}

/// An instance while it serves a call. When the call is given up, it is served to its end all the same: a function that
/// has begun is not cut off because its caller has gone.
struct Serving {
    inner: Arc<Inner>,
    instance: Option<Box<Instance>>,
    deadline: Instant,
}

impl Drop for Serving {
    fn drop(&mut self) {
        let Some(instance) = self.instance.take() else {
            return;
        };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let (inner, deadline) = (Arc::clone(&self.inner), self.deadline);
        runtime.spawn(async move {
            let mut instance = instance;
            let mut log = LogSink::Discarded;
            let left = deadline.saturating_duration_since(Instant::now());
            if let Ok(Ok(Heard::Answer(..))) =
                tokio::time::timeout(left, hear(&mut instance, &mut log, &mut None)).await
            {
                inner.put_to_rest(instance);
            }
        });
    }
}

/// What a worker said at the end of a call.
enum Heard {
    Answer(Answer, Vec<u8>),
    Exited(GuestExit),
}

impl Inner {
    /// Gives an event to an instance and waits for its answer; then the instance is put to rest in the background. With
    /// `restoring`, the instance is restored first, in the same message.
    pub(crate) async fn call(
        self: &Arc<Self>,
        instance: Box<Instance>,
        restoring: Option<&Restoring>,
        invocation: &mut Invocation,
        log: &mut LogSink,
    ) -> Result<Ran, CallError> {
        let mut delivered = invocation.delivered.take();
        let start = Instant::now();
        let deadline = start + invocation.timeout;
        let command = invoke_command(invocation);
        let event = Outgoing {
            command: &command,
            body: &invocation.payload,
            descriptors: Vec::new(),
        };
        let commands: Vec<Outgoing<'_>> = restoring
            .map(Restoring::outgoing)
            .into_iter()
            .chain([event])
            .collect();
        let mut serving = Serving {
            inner: Arc::clone(self),
            instance: Some(instance),
            deadline,
        };
        let current = serving.instance.as_mut().ok_or(CallError::NotDelivered)?;
        let run = async {
            current
                .worker
                .send(&commands)
                .await
                .map_err(|error| match error {
                    WorkerError::Link(LinkError::Closed) => CallError::NotDelivered,
                    error => lost(error),
                })?;
            if restoring.is_some() {
                // While the worker lays the snapshot out, and not before.
                let limits = current.version.limits();
                let limited = current.worker.limit(limits);
                limited.map_err(|error| CallError::Lost(WorkerError::Bounds(error)))?;
            }
            // One that is restored has it once it has been laid out: until then it is a restore in flight.
            if restoring.is_none() {
                tell(&mut delivered);
            }
            hear(current, log, &mut delivered).await.map_err(lost)
        };
        let heard = tokio::time::timeout_at(deadline.into(), run).await;
        let took = start.elapsed();
        // From here on the instance is this function's again, and is not left to be served to its end.
        let mut instance = serving.instance.take().ok_or(CallError::NotDelivered)?;
        // Nothing is heard of what has ended but what it used when it rested.
        let (limit_bytes, rested_bytes) = (instance.version.limits().memory_bytes, instance.memory_bytes);
        let ended = |result| Ran {
            memory_bytes_max: match &result {
                InvokeResult::Exited(GuestExit::OutOfMemory) => limit_bytes,
                InvokeResult::Exited(GuestExit::Exit(_) | GuestExit::Signal(_) | GuestExit::Fault(_))
                | InvokeResult::Success(_)
                | InvokeResult::FunctionError(_)
                | InvokeResult::ResponseTooLarge { .. }
                | InvokeResult::InitFailed(_)
                | InvokeResult::InitTimedOut
                | InvokeResult::TimedOut => rested_bytes,
            },
            result,
            took,
            timings: WorkerTimings::default(),
            memory_bytes: 0,
            log_bytes_dropped: 0,
            kept: false,
        };
        match heard {
            Ok(Ok(Heard::Answer(answer, body))) => {
                // What learns from its run ends with it where memory is given back.
                let kept = instance.version.keeps_memory() || instance.recording.is_none();
                self.put_to_rest(instance);
                Ok(Ran {
                    kept,
                    ..answered(answer, body, took)
                })
            }
            Ok(Ok(Heard::Exited(exit))) => Ok(ended(InvokeResult::Exited(exit))),
            Ok(Err(error)) => Err(error),
            Err(_) => {
                instance.worker.kill();
                drain(&mut instance.worker, log).await;
                Ok(ended(InvokeResult::TimedOut))
            }
        }
    }

    /// Waits in the background until an instance is ready again, and takes it to rest; what is not wanted again ends.
    pub(crate) fn put_to_rest(self: &Arc<Self>, mut instance: Box<Instance>) {
        if let Some(recording) = instance.recording.take() {
            return self.learn(instance, recording);
        }
        let settling = self.desk.settle(&instance);
        let inner = Arc::clone(self);
        tokio::spawn(async move {
            match instance.settle().await {
                Ok(Waiting { pristine, .. }) if pristine || instance.version.keeps_memory() => {
                    if inner.desk.is_ended(&instance) {
                        inner.retire(instance);
                        return drop(settling);
                    }
                    let (version, is_named) = (Arc::clone(&instance.version), settling.is_named());
                    inner.desk.rest(*instance, pristine);
                    drop(settling);
                    if !is_named {
                        inner.arm(&version);
                    }
                }
                // Memory that cannot be given back is not kept.
                Ok(_) => {}
                Err(WorkerError::Link(LinkError::Closed | LinkError::Unread)) => {}
                Err(error) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(
                        instance = instance.id,
                        error,
                        "an instance was lost after its answer"
                    );
                }
            }
        });
    }
}

/// What the loss of a worker means for the event that it was given.
fn lost(error: WorkerError) -> CallError {
    match error {
        WorkerError::Link(LinkError::Unread) => CallError::NotDelivered,
        error => CallError::Lost(error),
    }
}

/// Hears a worker out until the call is over. One that has said something since it was given the event, but that its guest
/// is laid out, is not taken for one that has not read it.
async fn hear(
    instance: &mut Instance,
    log: &mut LogSink,
    delivered: &mut Option<oneshot::Sender<()>>,
) -> Result<Heard, WorkerError> {
    let mut is_silent = true;
    loop {
        let frame = match instance.worker.receive().await {
            Err(WorkerError::Link(LinkError::Unread)) if !is_silent => return Err(LinkError::Closed.into()),
            received => received?,
        };
        is_silent &= matches!(frame.message, Report::LaidOut);
        match frame.message {
            Report::LaidOut => tell(delivered),
            Report::Log => log.take(frame.body).await,
            Report::Answer(answer) => return Ok(Heard::Answer(answer, frame.body)),
            Report::Exited(exit) => return Ok(Heard::Exited(exit)),
            other @ (Report::Pooled { .. }
            | Report::Waiting(_)
            | Report::InitFailed
            | Report::Captured(_)
            | Report::Frozen
            | Report::Replanned { .. }
            | Report::Started { .. }
            | Report::Ran(_)
            | Report::CannotRun { .. }
            | Report::Outside { .. }
            | Report::Refused { .. }) => return Err(unexpected(&other)),
        }
    }
}

/// Tells whoever wants to know that an event is with its instance.
fn tell(delivered: &mut Option<oneshot::Sender<()>>) {
    if let Some(delivered) = delivered.take() {
        // Whoever has stopped listening need not be told.
        let _ = delivered.send(());
    }
}

fn answered(answer: Answer, body: Vec<u8>, took: Duration) -> Ran {
    let bytes = body.len() as u64;
    let result = match answer.kind {
        AnswerKind::TooLarge { bytes } => InvokeResult::ResponseTooLarge { bytes },
        // The worker has counted; this is for one that has not.
        AnswerKind::Success | AnswerKind::FunctionError if bytes > RESPONSE_BYTES_MAX => {
            InvokeResult::ResponseTooLarge { bytes }
        }
        AnswerKind::Success => InvokeResult::Success(Bytes::from(body)),
        AnswerKind::FunctionError => InvokeResult::FunctionError(Bytes::from(body)),
    };
    Ran {
        result,
        took,
        timings: answer.timings,
        memory_bytes: answer.memory_bytes,
        memory_bytes_max: answer.memory_bytes_max,
        log_bytes_dropped: answer.log_bytes_dropped,
        kept: true,
    }
}

fn invoke_command(invocation: &Invocation) -> Command {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let deadline = now.saturating_add(invocation.timeout).as_millis();
    Command::Invoke(InvokeSpec {
        request_id: invocation.request_id.clone(),
        deadline_unix_ms: u64::try_from(deadline).unwrap_or(u64::MAX),
        function_arn: invocation.function_arn.clone(),
        trace_id: invocation.trace_id.clone().unwrap_or_default(),
        client_context: invocation.client_context.clone().unwrap_or_default(),
    })
}

/// Whether a start of this kind restored a snapshot.
pub(crate) fn is_restore(kind: StartKind) -> bool {
    match kind {
        StartKind::Restored => true,
        StartKind::Warm | StartKind::Thawed | StartKind::Armed | StartKind::Booted => false,
    }
}
