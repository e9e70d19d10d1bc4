//! The way of one call: resolved, counted, run by the node, logged and answered.
//!
//! Nothing here waits for the database. A call runs to its end even if its caller goes away, as in AWS Lambda.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use gust_cluster::Hub;
use gust_node::{Invocation, InvokeError, Outcome, Wanted};
use gust_policy::Class;
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use crate::{
    calllog::CallLog,
    conclude::Times,
    concurrency::{RETRY_AFTER, ThrottleReason, Ticket},
    control::{Control, Runnable, log_scope},
    error::ControlError,
    fleet::{Ending, Placed},
    ids::{FunctionName, Target, VersionNumber},
    lines,
    model::{State, Version},
    placing::Ready,
    recent::Call,
};

/// Pieces of a function's output that wait to be taken; the instance waits when there are as many.
const OUTPUT_QUEUED_MAX: usize = 64;

/// Times that a call that has not run is sent to another instance.
const MOVES_MAX: u32 = 4;

/// One call as its caller made it.
#[derive(Debug, Clone)]
pub struct Request {
    /// What is called.
    pub target: Target,
    /// UUID, lower case.
    pub request_id: Uuid,
    /// The event.
    pub payload: Bytes,
    /// Client context (JSON), if any.
    pub client_context: Option<String>,
    /// X-Ray trace header, if any.
    pub trace_id: Option<String>,
    /// The caller wants the end of the log.
    pub want_tail: bool,
}

/// What a caller gets.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The response, or an error document.
    pub payload: Bytes,
    /// The payload is an error document.
    pub is_error: bool,
    /// The version that ran.
    pub version: VersionNumber,
    /// The end of the log, when it was wanted.
    pub tail: Option<Bytes>,
    /// The call as it is kept for people and benches.
    pub call: Call,
}

/// A call that is counted against the bounds until this is dropped.
struct Counted {
    control: Control,
    ticket: Option<Ticket>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.control.book().release(ticket);
        }
    }
}

impl Control {
    /// Checks that a call would be let through, without making it.
    ///
    /// # Errors
    /// As [`Control::invoke`].
    pub fn dry_run(&self, target: &Target) -> Result<VersionNumber, ControlError> {
        self.runnable(target).map(|(_, version)| version.number)
    }

    /// Makes a synchronous call.
    ///
    /// # Errors
    /// When there is no such version, it is not ready, a concurrency bound is met, or no instance could answer. That
    /// the function failed is no error here: see [`Reply::is_error`].
    pub async fn invoke(&self, request: Request) -> Result<Reply, ControlError> {
        let control = self.clone();
        match self
            .0
            .tasks
            .spawn(async move {
                let began = Instant::now();
                let ready = control.ready(&request.target).await?;
                control.run(request, ready, began).await
            })
            .await
        {
            Ok(reply) => reply,
            Err(panic) => Err(ControlError::Service(format!("the call failed: {panic}"))),
        }
    }

    /// The last calls of a function, oldest first.
    pub fn recent_calls(&self, name: &FunctionName) -> Vec<Call> {
        self.0.recent.of(name)
    }

    /// Ends the idle instances of a target, and its armed ones too unless `keep_armed`; for measurements.
    ///
    /// # Errors
    /// When there is no such version.
    pub async fn evict(&self, target: &Target, keep_armed: bool) -> Result<(), ControlError> {
        let (runnable, _) = self.runnable(target)?;
        self.0.node.evict(&runnable.id, keep_armed).await;
        for node in self.0.hub.iter().flat_map(Hub::nodes) {
            node.evict(&runnable.id, keep_armed).await;
        }
        Ok(())
    }

    /// What runs for a target, and the version as it is configured now.
    pub(crate) fn runnable(&self, target: &Target) -> Result<(Arc<Runnable>, Arc<Version>), ControlError> {
        self.read(|published| {
            let resolved = published.account.resolve(&self.config().place, target, draw())?;
            let number = resolved.version.number;
            let Some(runnable) = published.runnable(&target.name, number) else {
                let state = match &resolved.version.state {
                    State::Failed(_) => "Failed",
                    State::Pending | State::Active => "Pending",
                };
                return Err(ControlError::NotReady { state });
            };
            // While a change is being deployed the old configuration runs; a change that needs no deployment (a
            // time-out) counts at once.
            let version = if runnable.version.deployment_id == resolved.version.deployment_id {
                &resolved.version
            } else {
                &runnable.version
            };
            Ok((Arc::clone(runnable), Arc::clone(version)))
        })
    }

    /// Makes a call that has its place. It came at `began`.
    pub(crate) async fn run(
        &self,
        request: Request,
        ready: Ready,
        began: Instant,
    ) -> Result<Reply, ControlError> {
        let Ready {
            runnable,
            version,
            placed,
        } = ready;
        let name = &request.target.name;
        let scheduling = placed.deciding();
        let waited = began.elapsed().saturating_sub(scheduling);
        let counted = self.book().acquire(name);
        let _counted = match counted {
            Ok(ticket) => Counted {
                control: self.clone(),
                ticket: Some(ticket),
            },
            Err(reason) => {
                placed.end(Ending::NotSent);
                return Err(throttled(reason));
            }
        };

        let request_id = request.request_id.to_string();
        let stream = format!("[{}]{request_id}", version.number);
        let mut log = CallLog::new(&self.0.store.logs, log_scope(name), stream, request.want_tail);
        log.platform(&lines::start(&request_id, version.number)).await;
        let invocation = |wanted, output| Invocation {
            request_id: request_id.clone(),
            payload: request.payload.clone(),
            timeout: Duration::from_secs(version.config.timeout_s.into()),
            function_arn: self.config().place.target_arn(&request.target),
            client_context: request.client_context.clone(),
            trace_id: request.trace_id.clone(),
            log: output,
            wanted,
            delivered: None,
        };
        let served = self.serve(name, (runnable, placed), invocation, &mut log);
        let (outcome, class) = match served.await {
            Ok(served) => served,
            Err(error) => {
                log.platform(&format!(
                    "{}{}",
                    lost(&request_id, &error),
                    lines::end(&request_id)
                ))
                .await;
                return Err(refused(error));
            }
        };
        let times = Times {
            waited,
            scheduling,
            total: began.elapsed(),
        };
        Ok(self
            .conclude(&request, &version, (outcome, class), times, log)
            .await)
    }
}

impl Control {
    /// Sends a call to its instance. One that has certainly not run, because its node leaves or has just been lost, or its
    /// version has been replaced since it was placed, is sent to another.
    async fn serve(
        &self,
        name: &FunctionName,
        (mut runnable, mut placed): (Arc<Runnable>, Placed),
        invocation: impl Fn(Wanted, mpsc::Sender<Bytes>) -> Invocation,
        log: &mut CallLog<'_>,
    ) -> Result<(Outcome, Class), InvokeError> {
        let mut moves = 0;
        loop {
            let (output, pieces) = mpsc::channel(OUTPUT_QUEUED_MAX);
            let class = placed.class();
            let invocation = invocation(placed.wanted(), output);
            let invoking = send(placed, &runnable, invocation);
            let error = match take_output(invoking, pieces, log).await {
                Ok(outcome) => return Ok((outcome, class)),
                Err(error) => error,
            };
            if moves == MOVES_MAX || !self.goes_elsewhere(&error) {
                return Err(error);
            }
            moves += 1;
            if let InvokeError::UnknownVersion(_) = error {
                match self.replacement(name, &runnable) {
                    Some(newer) => runnable = newer,
                    None => return Err(error),
                }
            }
            placed = match self.0.fleet.place(runnable.function).await {
                Ok(placed) => placed,
                Err(_) => return Err(error),
            };
        }
    }

    /// What runs now in the stead of a version that was changed, if it was.
    fn replacement(&self, name: &FunctionName, old: &Runnable) -> Option<Arc<Runnable>> {
        let newer = self.read(|published| published.runnable(name, old.version.number).cloned());
        newer.filter(|newer| newer.id != old.id)
    }
}

/// A number from 0 (included) to 1 (excluded).
fn draw() -> f64 {
    // The low 48 bits of a version 4 UUID are random.
    let bits = u64::try_from(Uuid::new_v4().as_u128() & 0xffff_ffff_ffff).unwrap_or(0);
    bits as f64 / (1u64 << 48) as f64
}

/// Waits for the outcome and takes the function's output meanwhile.
async fn take_output(
    invoking: impl Future<Output = Result<Outcome, InvokeError>>,
    mut pieces: mpsc::Receiver<Bytes>,
    log: &mut CallLog<'_>,
) -> Result<Outcome, InvokeError> {
    tokio::pin!(invoking);
    let outcome = loop {
        tokio::select! {
            biased;
            Some(piece) = pieces.recv() => log.output(&piece).await,
            outcome = &mut invoking => break outcome,
        }
    };
    // What was sent before the answer belongs to this call; what is sent after it does not.
    pieces.close();
    while let Some(piece) = pieces.recv().await {
        log.output(&piece).await;
    }
    outcome
}

/// Sends a call to its instance, and tells the fleet as soon as it is over.
async fn send(
    placed: Placed,
    runnable: &Runnable,
    mut invocation: Invocation,
) -> Result<Outcome, InvokeError> {
    let agent = placed.agent().clone();
    let delivered = placed.is_restored().then(|| {
        let (sender, delivered) = oneshot::channel();
        invocation.delivered = Some(sender);
        delivered
    });
    // On the heap: what a node does for a call is much, and is not to be moved about on the stack.
    let mut invoking = Box::pin(agent.invoke(&runnable.id, invocation));
    let outcome = match delivered {
        None => invoking.await,
        Some(delivered) => tokio::select! {
            biased;
            outcome = &mut invoking => outcome,
            Ok(()) = delivered => {
                placed.delivered();
                invoking.await
            }
        },
    };
    let ending = match &outcome {
        Ok(outcome) if outcome.kept => Ending::Kept {
            memory_bytes: outcome.memory_bytes,
        },
        Ok(_) | Err(_) => Ending::Gone,
    };
    placed.end(ending);
    outcome
}

pub(crate) fn throttled(reason: ThrottleReason) -> ControlError {
    ControlError::Throttled {
        reason,
        retry_after: RETRY_AFTER,
    }
}

/// The line of a call that no instance answered.
fn lost(request_id: &str, error: &InvokeError) -> String {
    format!("RequestId: {request_id} Error: {error}\n")
}

fn refused(error: InvokeError) -> ControlError {
    match error {
        InvokeError::Stopping => ControlError::Stopping,
        InvokeError::NoCapacity { reason } => {
            tracing::warn!(reason, "a call found no place");
            throttled(ThrottleReason::Node)
        }
        error @ (InvokeError::UnknownVersion(_)
        | InvokeError::WorkerLost { .. }
        | InvokeError::NodeLost { .. }
        | InvokeError::Node(_)) => {
            tracing::error!(%error, cause = ?std::error::Error::source(&error), "a call failed");
            ControlError::Service(format!("The invocation failed: {error}. It can be tried again."))
        }
    }
}
