//! The end of a call that has run: what its log, the list of recent calls and its caller are told.

use std::time::Duration;

use gust_node::{Outcome, StartKind};
use gust_policy::Class;

use crate::{
    calllog::CallLog,
    clock,
    control::Control,
    fault::{Answer, Run},
    invoke::{Reply, Request},
    limits,
    lines::{self, Report, StartPhase},
    model::Version,
    recent::Call,
};

/// Where a call's time went outside of its instance.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    /// Until it had its place, but for `scheduling`.
    pub(crate) waited: Duration,
    /// To decide upon its place.
    pub(crate) scheduling: Duration,
    /// From its arrival on.
    pub(crate) total: Duration,
}

impl Control {
    /// Concludes a call that has run on an instance of a class.
    pub(crate) async fn conclude(
        &self,
        request: &Request,
        version: &Version,
        (outcome, class): (Outcome, Class),
        times: Times,
        mut log: CallLog<'_>,
    ) -> Reply {
        let request_id = request.request_id.to_string();
        let run = Run {
            request_id: &request_id,
            timeout: Duration::from_secs(version.config.timeout_s.into()),
            init_timeout: Duration::from_secs(limits::INIT_TIMEOUT_S),
            ended_unix_ms: clock::unix_ms(),
        };
        let answer = run.answer(outcome.result.clone());
        let call = call(&request_id, version, &outcome, class, &answer, times);
        let trace_id = request.trace_id.as_deref();
        log.platform(&ending(&request_id, trace_id, version, &outcome, &answer))
            .await;
        self.0.recent.add(&request.target.name, call.clone());
        Reply {
            payload: answer.payload,
            is_error: answer.is_error,
            version: version.number,
            tail: log.into_tail(),
            call,
        }
    }
}

fn call(
    request_id: &str,
    version: &Version,
    outcome: &Outcome,
    class: Class,
    answer: &Answer,
    times: Times,
) -> Call {
    let mut timings = outcome.timings;
    // What a node says may be any number.
    let waited_ns = u64::try_from(times.waited.as_nanos()).unwrap_or(u64::MAX);
    timings.queue_ns = timings.queue_ns.saturating_add(waited_ns);
    Call {
        request_id: request_id.to_owned(),
        unix_ms: clock::unix_ms().saturating_sub(u64::try_from(times.total.as_millis()).unwrap_or(0)),
        version: version.number,
        instance_id: outcome.instance_id.clone(),
        start: outcome.start,
        class,
        duration: outcome.duration,
        scheduling: times.scheduling,
        total: times.total,
        memory_bytes_max: outcome.memory_bytes_max,
        is_error: answer.is_error,
        timings,
    }
}

/// Everything from the end of the function's own output on.
fn ending(
    request_id: &str,
    trace_id: Option<&str>,
    version: &Version,
    outcome: &Outcome,
    answer: &Answer,
) -> String {
    let mut text = String::new();
    if outcome.log_bytes_dropped > 0 {
        text.push_str(&format!(
            "{} bytes of output were dropped: an invocation may write {} bytes\n",
            outcome.log_bytes_dropped,
            gust_worker::protocol::LOG_BYTES_MAX
        ));
    }
    if let Some(log) = &answer.log {
        text.push_str(log);
    }
    let phase = match outcome.start {
        StartKind::Booted => Some(StartPhase::Init),
        StartKind::Restored | StartKind::Armed => Some(StartPhase::Restore),
        StartKind::Warm | StartKind::Thawed => None,
    };
    text.push_str(&lines::end(request_id));
    text.push_str(&lines::report(&Report {
        request_id,
        duration: outcome.duration,
        start: phase.zip(outcome.start_duration),
        memory_mib: version.config.memory_mib,
        memory_bytes_max: outcome.memory_bytes_max,
        status: answer.status,
        trace_id,
    }));
    text
}
