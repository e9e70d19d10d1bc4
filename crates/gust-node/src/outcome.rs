//! What a call's caller is told.

use std::time::{Duration, Instant};

use gust_worker::protocol::WorkerTimings;

use crate::{
    api::{Failure, InvokeResult, Outcome, StartKind, Timings},
    call::{Ran, is_restore},
    worker::nanoseconds,
};

/// The outcome of a call that reached an instance. `total` is the time since its arrival, `queued` the part of it spent
/// waiting for a place, `fetched` the part spent getting its snapshot.
pub(crate) fn outcome(
    ran: Ran,
    start: StartKind,
    instance_id: String,
    init: Option<Duration>,
    (queued, fetched): (Duration, Duration),
    total: Duration,
) -> Outcome {
    let Ran {
        result,
        took,
        timings,
        memory_bytes,
        memory_bytes_max,
        log_bytes_dropped,
        kept,
    } = ran;
    // A worker tells what its start took with its first answer, also when no call has waited for it.
    let timings = match start {
        StartKind::Restored | StartKind::Thawed | StartKind::Booted => timings,
        StartKind::Warm | StartKind::Armed => WorkerTimings {
            map_ns: 0,
            fill_ns: 0,
            boot_ns: 0,
            ..timings
        },
    };
    // What a worker says may be any number.
    let restore = Duration::from_nanos(timings.map_ns.saturating_add(timings.fill_ns));
    let inside = [
        timings.map_ns,
        timings.fill_ns,
        timings.faults_ns,
        timings.runtime_ns,
        timings.handler_ns,
        timings.boot_ns.max(init.map_or(0, nanoseconds)),
    ];
    let inside = inside.into_iter().fold(0, u64::saturating_add);
    let start_duration = init.or_else(|| is_restore(start).then_some(restore));
    Outcome {
        result,
        start,
        instance_id,
        duration: took.saturating_sub(restore),
        start_duration,
        memory_bytes,
        memory_bytes_max,
        log_bytes_dropped,
        kept,
        replaced: false,
        timings: Timings {
            queue_ns: nanoseconds(queued),
            worker_ns: nanoseconds(total)
                .saturating_sub(nanoseconds(queued))
                .saturating_sub(nanoseconds(fetched))
                .saturating_sub(inside),
            fetch_ns: nanoseconds(fetched),
            map_ns: timings.map_ns,
            fill_ns: timings.fill_ns,
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
        memory_bytes: 0,
        memory_bytes_max: 0,
        log_bytes_dropped: 0,
        kept: false,
        replaced: false,
        timings: Timings {
            queue_ns: nanoseconds(queued),
            boot_ns: nanoseconds(took),
            ..Timings::default()
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is told of a call that took 100 ns, when a worker says this of it.
    fn told(timings: WorkerTimings, queued: u64, fetched: u64) -> Outcome {
        let ns = Duration::from_nanos;
        let ran = Ran {
            result: InvokeResult::TimedOut,
            took: ns(70),
            timings,
            memory_bytes: 0,
            memory_bytes_max: 0,
            log_bytes_dropped: 0,
            kept: true,
        };
        let waits = (ns(queued), ns(fetched));
        outcome(ran, StartKind::Restored, String::new(), None, waits, ns(100))
    }

    #[test]
    fn the_parts_of_a_call_add_up_to_its_time() {
        let (queued, fetched, total) = (20, 30, 100);
        let timings = WorkerTimings {
            map_ns: 1,
            fill_ns: 2,
            faults_ns: 3,
            runtime_ns: 4,
            handler_ns: 5,
            ..WorkerTimings::default()
        };
        let Timings {
            queue_ns,
            worker_ns,
            fetch_ns,
            map_ns,
            fill_ns,
            faults_ns,
            boot_ns,
            runtime_ns,
            handler_ns,
        } = told(timings, queued, fetched).timings;
        assert_eq!((queue_ns, fetch_ns, worker_ns), (queued, fetched, 35));
        let inside = map_ns + fill_ns + faults_ns + boot_ns + runtime_ns + handler_ns;
        assert_eq!(queue_ns + fetch_ns + worker_ns + inside, total);
    }

    #[test]
    fn a_worker_may_say_any_numbers() {
        let timings = WorkerTimings {
            map_ns: u64::MAX,
            fill_ns: u64::MAX,
            faults_ns: 1,
            runtime_ns: u64::MAX,
            ..WorkerTimings::default()
        };
        let told = told(timings, 20, 30);
        assert_eq!((told.duration, told.timings.worker_ns), (Duration::ZERO, 0));
        assert_eq!(told.start_duration, Some(Duration::from_nanos(u64::MAX)));
    }
}
