//! What a call's caller is told.

use std::time::{Duration, Instant};

use crate::{
    api::{Failure, InvokeResult, Outcome, StartKind, Timings},
    call::{Ran, is_restore},
    worker::nanoseconds,
};

/// The outcome of a call that reached an instance. `total` is the time since its arrival, `queued` the part of it spent
/// waiting for a place.
pub(crate) fn outcome(
    ran: Ran,
    start: StartKind,
    instance_id: String,
    init: Option<Duration>,
    queued: Duration,
    total: Duration,
) -> Outcome {
    let Ran {
        result,
        took,
        timings,
        memory_bytes_max,
        log_bytes_dropped,
    } = ran;
    // An armed instance was laid out before its call: what that took is no part of the call.
    let (map_ns, fill_ns) = match is_restore(start) || init.is_some() {
        true => (timings.map_ns, timings.fill_ns),
        false => (0, 0),
    };
    let restore = Duration::from_nanos(map_ns + fill_ns);
    let inside = map_ns
        + fill_ns
        + timings.faults_ns
        + timings.runtime_ns
        + timings.handler_ns
        + timings.boot_ns.max(init.map_or(0, nanoseconds));
    let start_duration = init.or_else(|| is_restore(start).then_some(restore));
    Outcome {
        result,
        start,
        instance_id,
        duration: took.saturating_sub(restore),
        start_duration,
        memory_bytes_max,
        log_bytes_dropped,
        timings: Timings {
            queue_ns: nanoseconds(queued),
            worker_ns: nanoseconds(total)
                .saturating_sub(nanoseconds(queued))
                .saturating_sub(inside),
            map_ns,
            fill_ns,
            faults_ns: timings.faults_ns,
            boot_ns: timings.boot_ns,
            runtime_ns: timings.runtime_ns,
            handler_ns: timings.handler_ns,
        },
    }
}

/// The outcome of a call whose instance could not be initialised.
pub(crate) fn not_initialised(failure: Failure, queued: Duration, arrived: Instant) -> Outcome {
    let result = match failure {
        Failure::InitFailed(document) => InvokeResult::InitFailed(document),
        Failure::InitTimedOut => InvokeResult::InitTimedOut,
        Failure::Exited(exit) => InvokeResult::Exited(exit),
    };
    let took = arrived.elapsed().saturating_sub(queued);
    Outcome {
        result,
        start: StartKind::Booted,
        instance_id: String::new(),
        duration: took,
        start_duration: Some(took),
        memory_bytes_max: 0,
        log_bytes_dropped: 0,
        timings: Timings {
            queue_ns: nanoseconds(queued),
            boot_ns: nanoseconds(took),
            ..Timings::default()
        },
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use gust_worker::protocol::WorkerTimings;

    use super::*;

    #[test]
    fn what_was_done_before_a_call_is_no_part_of_it() {
        let ms = Duration::from_millis;
        let told = |start| {
            let ran = Ran {
                result: InvokeResult::Success(Bytes::new()),
                took: ms(40),
                timings: WorkerTimings {
                    fill_ns: 30_000_000,
                    handler_ns: 2_000_000,
                    ..WorkerTimings::default()
                },
                memory_bytes_max: 0,
                log_bytes_dropped: 0,
            };
            outcome(ran, start, String::new(), None, Duration::ZERO, ms(40))
        };
        let restored = told(StartKind::Restored);
        assert_eq!(
            (restored.duration, restored.start_duration),
            (ms(10), Some(ms(30)))
        );
        let armed = told(StartKind::Armed);
        assert_eq!((armed.duration, armed.start_duration), (ms(40), None));
        assert_eq!((armed.timings.fill_ns, armed.timings.worker_ns), (0, 38_000_000));
    }
}
