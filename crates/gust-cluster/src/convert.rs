//! From the node's types to the wire's, and back.
//!
//! The wire's are a contract between versions of the program, the node's change with the code; so both exist. Bodies
//! (events, responses, logs) do not pass here but beside.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use gust_node::{
    Deployed, EgressPolicy, Failure, InstanceClass, InstanceName, Invocation, InvokeError, InvokeResult,
    Named, NodeError, NodeStats, Outcome, Present, RuleError, StartKind, Timings, VersionId, VersionSpec,
    Wanted,
};
use tokio::sync::{mpsc, oneshot};

use crate::{
    files::FileId,
    message::{self, DeployFailure, NotRun, RunResult, Start, cut, text},
};

/// What stands for a policy without a bound of its own.
const UNBOUNDED: &str = "no bound";

/// Paths of a version's images, lowest layer first.
#[derive(Debug, Clone)]
pub(crate) struct Images {
    pub root: PathBuf,
    pub code: PathBuf,
    pub layers: Vec<PathBuf>,
}

/// A version with its images by name.
pub(crate) fn version(
    spec: &VersionSpec,
    root: FileId,
    code: FileId,
    layers: Vec<FileId>,
) -> message::Version {
    message::Version {
        id: spec.id.0.clone(),
        root_image: root,
        code_image: code,
        layer_images: layers,
        handler: spec.handler.clone(),
        environment: spec.environment.clone().into_iter().collect(),
        memory_mib: spec.memory_mib,
        tmp_mib: spec.tmp_mib,
        init_timeout_ms: millis(spec.init_timeout),
        memory_mode: spec.memory_mode,
        egress: spec.egress.to_string(),
    }
}

/// The same with its images as files of this node.
pub(crate) fn spec(version: &message::Version, images: Images) -> Result<VersionSpec, RuleError> {
    let egress = match version.egress.as_str() {
        UNBOUNDED => EgressPolicy::unbounded(),
        rules => EgressPolicy::parse(rules.split(", "))?,
    };
    Ok(VersionSpec {
        id: VersionId(version.id.clone()),
        root_image: images.root,
        code_image: images.code,
        layer_images: images.layers,
        handler: version.handler.clone(),
        environment: version.environment.iter().cloned().collect(),
        memory_mib: version.memory_mib,
        tmp_mib: version.tmp_mib,
        init_timeout: Duration::from_millis(version.init_timeout_ms),
        memory_mode: version.memory_mode,
        egress: Arc::new(egress),
    })
}

pub(crate) fn call(version: &VersionId, invocation: &Invocation) -> message::Call {
    message::Call {
        version: version.0.clone(),
        request_id: invocation.request_id.clone(),
        timeout_ms: millis(invocation.timeout),
        function_arn: invocation.function_arn.clone(),
        client_context: invocation.client_context.clone(),
        trace_id: invocation.trace_id.clone(),
        wants_delivery: invocation.delivered.is_some(),
        wanted: match invocation.wanted {
            Wanted::Any => message::Wanted::Any,
            Wanted::Resting(of) => message::Wanted::Resting(named(of)),
            Wanted::New(of) => message::Wanted::New(named(of)),
        },
    }
}

pub(crate) fn invocation(
    call: message::Call,
    payload: Bytes,
    log: mpsc::Sender<Bytes>,
    delivered: Option<oneshot::Sender<()>>,
) -> (VersionId, Invocation) {
    let invocation = Invocation {
        request_id: call.request_id,
        payload,
        timeout: Duration::from_millis(call.timeout_ms),
        function_arn: call.function_arn,
        client_context: call.client_context,
        trace_id: call.trace_id,
        log,
        wanted: match call.wanted {
            message::Wanted::Any => Wanted::Any,
            message::Wanted::Resting(of) => Wanted::Resting(from_named(of)),
            message::Wanted::New(of) => Wanted::New(from_named(of)),
        },
        delivered,
    };
    (VersionId(call.version), invocation)
}

pub(crate) fn named(named: Named) -> message::Named {
    message::Named {
        name: named.name.0,
        class: match named.class {
            InstanceClass::Regular => message::Class::Regular,
            InstanceClass::Emergency => message::Class::Emergency,
        },
    }
}

pub(crate) fn from_named(named: message::Named) -> Named {
    Named {
        name: InstanceName(named.name),
        class: match named.class {
            message::Class::Regular => InstanceClass::Regular,
            message::Class::Emergency => InstanceClass::Emergency,
        },
    }
}

pub(crate) fn present(present: Present) -> message::Present {
    message::Present {
        named: named(present.named),
        version: present.version.0,
        rests: present.rests,
    }
}

pub(crate) fn from_present(present: message::Present) -> Present {
    Present {
        named: from_named(present.named),
        version: VersionId(present.version),
        rests: present.rests,
    }
}

pub(crate) fn deployed(deployed: &Deployed) -> message::Deployed {
    message::Deployed {
        init_ns: nanos(deployed.init),
        memory_bytes: deployed.memory_bytes,
        snapshot_bytes: deployed.snapshot_bytes,
    }
}

pub(crate) fn from_deployed(deployed: &message::Deployed, log: Bytes) -> Deployed {
    Deployed {
        init: Duration::from_nanos(deployed.init_ns),
        memory_bytes: deployed.memory_bytes,
        snapshot_bytes: deployed.snapshot_bytes,
        log,
    }
}

/// A failed deployment, and what the initialisation wrote.
pub(crate) fn not_deployed(error: NodeError) -> (DeployFailure, Bytes) {
    match error {
        NodeError::Init { failure, log } => {
            let failure = match failure {
                Failure::InitFailed(document) => DeployFailure::InitFailed(document.to_vec()),
                Failure::InitTimedOut => DeployFailure::InitTimedOut,
                Failure::Exited(exit) => DeployFailure::Exited(exit),
            };
            (failure, log)
        }
        NodeError::Io { action, source } => {
            let cause = text(&source);
            (
                DeployFailure::Io {
                    action: cut(action),
                    cause,
                },
                Bytes::new(),
            )
        }
        NodeError::Stopping => (DeployFailure::Stopping, Bytes::new()),
    }
}

pub(crate) fn from_not_deployed(failure: DeployFailure, log: Bytes) -> NodeError {
    let failure = match failure {
        DeployFailure::InitFailed(document) => Failure::InitFailed(document.into()),
        DeployFailure::InitTimedOut => Failure::InitTimedOut,
        DeployFailure::Exited(exit) => Failure::Exited(exit),
        DeployFailure::Io { action, cause } => return io_error(action, cause),
        DeployFailure::Stopping => return NodeError::Stopping,
    };
    NodeError::Init { failure, log }
}

/// What became of an event, and the document that goes with it.
pub(crate) fn outcome(outcome: Outcome) -> (message::Outcome, Bytes) {
    let (result, body) = match outcome.result {
        InvokeResult::Success(body) => (RunResult::Success, body),
        InvokeResult::FunctionError(body) => (RunResult::FunctionError, body),
        InvokeResult::ResponseTooLarge { bytes } => (RunResult::ResponseTooLarge(bytes), Bytes::new()),
        InvokeResult::InitFailed(body) => (RunResult::InitFailed, body),
        InvokeResult::InitTimedOut => (RunResult::InitTimedOut, Bytes::new()),
        InvokeResult::TimedOut => (RunResult::TimedOut, Bytes::new()),
        InvokeResult::Exited(exit) => (RunResult::Exited(exit), Bytes::new()),
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
    } = outcome.timings;
    let message = message::Outcome {
        result,
        start: match outcome.start {
            StartKind::Warm => Start::Warm,
            StartKind::Armed => Start::Armed,
            StartKind::Thawed => Start::Thawed,
            StartKind::Restored => Start::Restored,
            StartKind::Booted => Start::Booted,
        },
        instance_id: outcome.instance_id,
        duration_ns: nanos(outcome.duration),
        start_duration_ns: outcome.start_duration.map(nanos),
        memory_bytes: outcome.memory_bytes,
        memory_bytes_max: outcome.memory_bytes_max,
        log_bytes_dropped: outcome.log_bytes_dropped,
        kept: outcome.kept,
        replaced: outcome.replaced,
        timings_ns: [
            queue_ns, worker_ns, fetch_ns, map_ns, fill_ns, faults_ns, boot_ns, runtime_ns, handler_ns,
        ],
    };
    (message, body)
}

pub(crate) fn from_outcome(outcome: message::Outcome, body: Bytes) -> Outcome {
    let [
        queue_ns,
        worker_ns,
        fetch_ns,
        map_ns,
        fill_ns,
        faults_ns,
        boot_ns,
        runtime_ns,
        handler_ns,
    ] = outcome.timings_ns;
    Outcome {
        result: match outcome.result {
            RunResult::Success => InvokeResult::Success(body),
            RunResult::FunctionError => InvokeResult::FunctionError(body),
            RunResult::ResponseTooLarge(bytes) => InvokeResult::ResponseTooLarge { bytes },
            RunResult::InitFailed => InvokeResult::InitFailed(body),
            RunResult::InitTimedOut => InvokeResult::InitTimedOut,
            RunResult::TimedOut => InvokeResult::TimedOut,
            RunResult::Exited(exit) => InvokeResult::Exited(exit),
        },
        start: match outcome.start {
            Start::Warm => StartKind::Warm,
            Start::Armed => StartKind::Armed,
            Start::Thawed => StartKind::Thawed,
            Start::Restored => StartKind::Restored,
            Start::Booted => StartKind::Booted,
        },
        instance_id: outcome.instance_id,
        duration: Duration::from_nanos(outcome.duration_ns),
        start_duration: outcome.start_duration_ns.map(Duration::from_nanos),
        memory_bytes: outcome.memory_bytes,
        memory_bytes_max: outcome.memory_bytes_max,
        log_bytes_dropped: outcome.log_bytes_dropped,
        kept: outcome.kept,
        replaced: outcome.replaced,
        timings: Timings {
            queue_ns,
            worker_ns,
            fetch_ns,
            map_ns,
            fill_ns,
            faults_ns,
            boot_ns,
            runtime_ns,
            handler_ns,
        },
    }
}

/// Why no instance answered, and what an initialisation wrote.
pub(crate) fn not_run(error: InvokeError) -> (NotRun, Bytes) {
    let not_run = match error {
        InvokeError::UnknownVersion(id) => NotRun::UnknownVersion(id.0),
        InvokeError::NoCapacity { reason } if reason == QUEUE_FULL => NotRun::QueueFull,
        InvokeError::NoCapacity { .. } => NotRun::NoPlace,
        InvokeError::WorkerLost { instance_id } => NotRun::WorkerLost(instance_id),
        InvokeError::NodeLost { node, .. } => NotRun::Io {
            action: "running the event".to_owned(),
            cause: format!("node {node} was lost"),
        },
        InvokeError::Stopping => NotRun::Stopping,
        InvokeError::Node(error) => match not_deployed(error) {
            (DeployFailure::Io { action, cause }, _) => NotRun::Io { action, cause },
            (DeployFailure::Stopping, _) => NotRun::Stopping,
            (
                failure @ (DeployFailure::InitFailed(_)
                | DeployFailure::InitTimedOut
                | DeployFailure::Exited(_)),
                log,
            ) => return (NotRun::NotInitialised(failure), log),
        },
    };
    (not_run, Bytes::new())
}

/// What a node says of a full queue.
const QUEUE_FULL: &str = "the queue is full";

pub(crate) fn from_not_run(not_run: NotRun, log: Bytes) -> InvokeError {
    match not_run {
        NotRun::UnknownVersion(id) => InvokeError::UnknownVersion(VersionId(id)),
        NotRun::NoPlace => InvokeError::NoCapacity {
            reason: "every place for an instance is taken",
        },
        NotRun::QueueFull => InvokeError::NoCapacity { reason: QUEUE_FULL },
        NotRun::WorkerLost(instance_id) => InvokeError::WorkerLost { instance_id },
        NotRun::Stopping => InvokeError::Stopping,
        NotRun::Io { action, cause } => io_error(action, cause).into(),
        NotRun::NotInitialised(failure) => from_not_deployed(failure, log).into(),
    }
}

pub(crate) fn stats(stats: NodeStats) -> message::Stats {
    message::Stats {
        pooled: stats.pooled as u64,
        shaped: stats.shaped as u64,
        armed: stats.armed as u64,
        idle: stats.idle as u64,
        frozen: stats.frozen as u64,
        busy: stats.busy as u64,
        regular: stats.regular as u64,
        emergency: stats.emergency as u64,
        queued: stats.queued as u64,
        snapshots_on_disk: stats.snapshots_on_disk as u64,
        instances_started: stats.instances_started,
    }
}

pub(crate) fn from_stats(stats: message::Stats) -> NodeStats {
    let count = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
    NodeStats {
        pooled: count(stats.pooled),
        shaped: count(stats.shaped),
        armed: count(stats.armed),
        idle: count(stats.idle),
        frozen: count(stats.frozen),
        busy: count(stats.busy),
        regular: count(stats.regular),
        emergency: count(stats.emergency),
        queued: count(stats.queued),
        snapshots_on_disk: count(stats.snapshots_on_disk),
        instances_started: stats.instances_started,
    }
}

/// A failure of a host, with its cause as a text.
pub(crate) fn io_error(action: impl Into<String>, cause: impl Into<String>) -> NodeError {
    NodeError::Io {
        action: action.into(),
        source: io::Error::other(cause.into()),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use gust_node::{GuestExit, MemoryMode};

    use super::*;

    #[test]
    fn versions_come_back_whole() {
        for egress in [
            EgressPolicy::NONE,
            EgressPolicy::unbounded(),
            EgressPolicy::parse([
                "public",
                "dns",
                "host:80",
                "10.0.0.0/8:1-9",
                "[fd00::/8]:80",
                "192.0.2.1",
            ])
            .unwrap(),
        ] {
            let before = VersionSpec {
                id: VersionId("v".to_owned()),
                root_image: "r".into(),
                code_image: "c".into(),
                layer_images: vec!["l".into()],
                handler: "h".to_owned(),
                environment: BTreeMap::from([("K".to_owned(), "V".to_owned())]),
                memory_mib: 1,
                tmp_mib: 2,
                init_timeout: Duration::from_millis(3),
                memory_mode: MemoryMode::Fresh,
                egress: Arc::new(egress),
            };
            let id = FileId([1; 32]);
            let images = Images {
                root: "r".into(),
                code: "c".into(),
                layers: vec!["l".into()],
            };
            let after = spec(&version(&before, id, id, vec![id]), images).unwrap();
            assert_eq!(format!("{after:?}"), format!("{before:?}"));
        }
    }

    #[test]
    fn outcomes_and_errors_come_back_whole() {
        let body = || Bytes::from_static(b"body");
        for result in [
            InvokeResult::Success(body()),
            InvokeResult::FunctionError(body()),
            InvokeResult::ResponseTooLarge { bytes: 7 },
            InvokeResult::InitFailed(body()),
            InvokeResult::InitTimedOut,
            InvokeResult::TimedOut,
            InvokeResult::Exited(GuestExit::Signal(9)),
        ] {
            let before = Outcome {
                result,
                start: StartKind::Thawed,
                instance_id: "i".to_owned(),
                duration: Duration::from_nanos(1),
                start_duration: Some(Duration::from_nanos(2)),
                memory_bytes: 2,
                memory_bytes_max: 3,
                log_bytes_dropped: 4,
                kept: true,
                replaced: false,
                timings: Timings {
                    queue_ns: 1,
                    worker_ns: 2,
                    fetch_ns: 9,
                    map_ns: 3,
                    fill_ns: 4,
                    faults_ns: 5,
                    boot_ns: 6,
                    runtime_ns: 7,
                    handler_ns: 8,
                },
            };
            let (message, body) = outcome(before.clone());
            assert_eq!(
                format!("{:?}", from_outcome(message, body)),
                format!("{before:?}")
            );
        }
        let init = |failure| NodeError::Init { failure, log: body() };
        for before in [
            || InvokeError::UnknownVersion(VersionId("v".to_owned())),
            || InvokeError::NoCapacity { reason: QUEUE_FULL },
            || InvokeError::WorkerLost {
                instance_id: "i".to_owned(),
            },
            || InvokeError::Stopping,
            || io_error("doing", "failed").into(),
            || {
                NodeError::Init {
                    failure: Failure::InitTimedOut,
                    log: Bytes::from_static(b"log"),
                }
                .into()
            },
        ] {
            let (message, log) = not_run(before());
            assert_eq!(
                format!("{:?}", from_not_run(message, log)),
                format!("{:?}", before())
            );
        }
        for before in [
            init(Failure::InitFailed(body())),
            init(Failure::Exited(GuestExit::Exit(1))),
            NodeError::Stopping,
        ] {
            let shown = format!("{before:?}");
            let (message, log) = not_deployed(before);
            assert_eq!(format!("{:?}", from_not_deployed(message, log)), shown);
        }
    }
}
