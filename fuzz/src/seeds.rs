//! Inputs to begin with, where a fuzzer would take long to find the form of what is valid.

use gust_worker::{
    frame,
    protocol::{
        Answer, AnswerKind, BootSpec, Captured, Command, GuestExit, Identity, InitSpec, Interface,
        InvokeSpec, JailReport, Limits, MemoryMode, Report, RestoreSpec, Waiting, WaitsFor, WorkerTimings,
    },
    zygote::wire::{HostReport, WorkerEnd, WorkerKind, ZygoteReport, ZygoteRequest, encode},
};

use crate::{cluster, handover, snapshots};

const LIMITS: Limits = Limits {
    memory_bytes: 128 << 20,
    tmp_bytes: 512 << 20,
    cpus: 1,
};

/// Targets and inputs for them.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let mut seeds = Vec::new();
    seeds.extend(
        commands()
            .iter()
            .map(|command| ("worker_frames", framed(command))),
    );
    seeds.extend(reports().iter().map(|report| ("node_frames", framed(report))));
    let request = ZygoteRequest::Start {
        id: 7,
        kind: WorkerKind::Kvm,
        user: Some(1),
        counts_memory: true,
    };
    seeds.extend(encode(&request).map(|bytes| ("zygote_messages", bytes)));
    for report in [
        ZygoteReport::Ready(HostReport::default()),
        ZygoteReport::Started { id: 1, pid: 2 },
        ZygoteReport::Failed {
            id: 1,
            reason: "no".into(),
        },
        ZygoteReport::Exited {
            id: 1,
            end: WorkerEnd::Signal(9),
        },
    ] {
        seeds.extend(encode(&report).map(|bytes| ("zygote_messages", bytes)));
    }
    seeds.push(("snapshot_state", snapshots::state_seed()));
    seeds.push(("runtime_api", conversation()));
    for kind in 0..5u32 {
        let header = [
            kind.to_le_bytes().as_slice(),
            &3u32.to_le_bytes(),
            &1234u64.to_le_bytes(),
            b"abc",
        ]
        .concat();
        seeds.push(("device_answers", pieces(&header)));
    }
    seeds.extend(cluster::seeds());
    seeds.extend(
        handover::seeds()
            .into_iter()
            .map(|seed| ("handover_messages", seed)),
    );
    seeds
}

/// A message as the frame targets take it.
fn framed<T: serde::Serialize>(message: &T) -> Vec<u8> {
    let mut bytes = frame::encode(message, 4, 0).expect("a message that can be sent");
    bytes.extend_from_slice(b"body");
    pieces(&bytes)
}

/// Bytes in pieces, each behind its length less one.
fn pieces(bytes: &[u8]) -> Vec<u8> {
    bytes
        .chunks(256)
        .flat_map(|piece| [(piece.len() - 1) as u8].into_iter().chain(piece.iter().copied()))
        .collect()
}

fn identity() -> Identity {
    Identity {
        instance_id: "i".into(),
        seed: [1; 32],
    }
}

fn commands() -> Vec<Command> {
    let environment = vec![("A".to_owned(), "b".to_owned())];
    vec![
        Command::Boot(BootSpec {
            argv: vec!["/guest".into()],
            environment: environment.clone(),
            directory: "/".into(),
            interface: Interface::Device,
            limits: LIMITS,
            identity: identity(),
        }),
        Command::Init(InitSpec {
            handler: "app.handler".into(),
            environment: environment.clone(),
            task_root: "/var/task".into(),
            limits: LIMITS,
        }),
        Command::Restore(RestoreSpec {
            arm: true,
            record: false,
            has_layout: true,
            thaw: false,
            memory_mode: MemoryMode::Fresh,
            limits: LIMITS,
            identity: identity(),
            environment,
        }),
        Command::Invoke(InvokeSpec {
            request_id: "id".into(),
            deadline_unix_ms: 1,
            function_arn: "arn".into(),
            trace_id: "t".into(),
            client_context: "{}".into(),
        }),
        Command::Capture,
        Command::Freeze,
        Command::Rewind {
            environment: vec![("A".into(), "b".into())],
        },
        Command::Replan,
        Command::Shape,
        Command::Graft,
    ]
}

fn reports() -> Vec<Report> {
    vec![
        Report::Pooled {
            jail: JailReport::default(),
        },
        Report::Waiting(Waiting {
            waits_for: WaitsFor::Event,
            memory_bytes: 1,
            pristine: true,
        }),
        Report::InitFailed,
        Report::Log,
        Report::Answer(Answer {
            kind: AnswerKind::TooLarge { bytes: 7 << 20 },
            memory_bytes: 1,
            memory_bytes_max: 1,
            log_bytes_dropped: 0,
            timings: WorkerTimings::default(),
        }),
        Report::Captured(Captured {
            memory_bytes: 1,
            state_bytes: 1,
        }),
        Report::Frozen,
        Report::Replanned {
            layout_bytes: 1,
            hot_pages: 1,
        },
        Report::Exited(GuestExit::Fault("why".into())),
        Report::Refused { reason: "why".into() },
    ]
}

/// A runtime that takes an event and answers it in chunks.
fn conversation() -> Vec<u8> {
    let say = |text: &str| {
        let mut piece = vec![64];
        piece.extend_from_slice(&(text.len() as u16).to_le_bytes());
        piece.extend_from_slice(text.as_bytes());
        piece.extend_from_slice(&u16::MAX.to_le_bytes());
        piece
    };
    [
        vec![0],
        say("GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nHost: x\r\n\r\n"),
        vec![24],
        say("POST /2018-06-01/runtime/invocation/id/response HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTrailer: x\r\n\r\n"),
        say("3\r\nabc\r\n0\r\nLambda-Runtime-Function-Error-Type: x\r\n\r\n"),
        say("POST /2018-06-01/runtime/init/error HTTP/1.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n{}"),
    ]
    .concat()
}
