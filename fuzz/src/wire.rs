//! What workers, guests and the node say to each other, said by someone hostile.

use gust_worker::{
    frame::{FrameReader, READ_BYTES},
    protocol::{BODY_BYTES_MAX, Command, META_BYTES_MAX, RESPONSE_BYTES_MAX, Report},
    runtime_api::{Event, RuntimeApi, Said},
    zygote::wire::{ZygoteReport, ZygoteRequest, decode, encode},
};

use crate::bytes::Bytes;

/// Most bytes of responses that a connection of the Runtime API may have waiting, for the requests that fit in an input.
const OUTPUT_BYTES_MAX: usize = 4 << 20;

/// Feeds bytes to a frame reader in pieces of any size; every message that comes out can be sent again.
fn frames<T: serde::Serialize + serde::de::DeserializeOwned>(data: &[u8]) {
    let mut input = Bytes::new(data);
    let mut reader = FrameReader::new();
    while !input.is_empty() {
        let piece = usize::from(input.u8()) + 1;
        let bytes = input.take(piece);
        let mut rest = bytes;
        while !rest.is_empty() {
            let space = reader.space();
            assert!(
                !space.is_empty() && space.len() <= BODY_BYTES_MAX.max(2 * META_BYTES_MAX + 2 * READ_BYTES)
            );
            let n = rest.len().min(space.len());
            space[..n].copy_from_slice(&rest[..n]);
            reader.filled(n);
            rest = &rest[n..];
            loop {
                match reader.next_frame::<T>() {
                    Ok(Some(frame)) => {
                        let again = gust_worker::frame::encode(&frame.message, frame.body.len(), 0);
                        assert!(again.is_ok(), "a message that came cannot be sent");
                    }
                    Ok(None) => break,
                    Err(_) => return,
                }
            }
        }
    }
}

/// A hostile worker speaks to the node.
pub fn node_frames(data: &[u8]) {
    frames::<Report>(data);
}

/// The node, or who took its place, speaks to a worker.
pub fn worker_frames(data: &[u8]) {
    frames::<Command>(data);
}

/// Messages between node and zygote, both ways.
pub fn zygote_messages(data: &[u8]) {
    if let Ok(request) = decode::<ZygoteRequest>(data) {
        assert!(
            encode(&request)
                .is_ok_and(|again| decode(&again).is_ok_and(|read: ZygoteRequest| read == request))
        );
    }
    if let Ok(report) = decode::<ZygoteReport>(data) {
        // A reason that came in one message fits into one.
        assert!(
            encode(&report).is_ok_and(|again| decode(&again).is_ok_and(|read: ZygoteReport| read == report))
        );
    }
}

/// A runtime's connections to the Runtime API.
pub fn runtime_api(data: &[u8]) {
    let mut input = Bytes::new(data);
    let mut api = RuntimeApi::new();
    let mut open = Vec::new();
    let mut said = Vec::new();
    while !input.is_empty() {
        match input.u8() {
            0..=15 => open.extend(api.open()),
            16..=23 if !open.is_empty() => {
                let id = open.swap_remove(usize::from(input.u8()) % open.len());
                api.close(id);
            }
            24..=63 => {
                let event = Event {
                    request_id: "id".into(),
                    deadline_unix_ms: 1,
                    function_arn: "arn\r\nx: y".into(),
                    trace_id: String::new(),
                    client_context: "{\"a\":\n1}".into(),
                    payload: b"{}".to_vec(),
                };
                let waited = api.waits();
                assert_eq!(api.deliver(event, &mut said).is_some(), waited);
            }
            more if !open.is_empty() => {
                let id = open[usize::from(more) % open.len()];
                let length = usize::from(input.u16() % 1024);
                let bytes = input.take(length);
                let capacity = api.capacity(id);
                let taken = api.receive(id, bytes, &mut said);
                assert!(
                    taken <= bytes.len()
                        && (taken > 0 || capacity == 0 || bytes.is_empty() || api.is_done(id))
                );
                let output = api.output(id).len();
                assert!(output < OUTPUT_BYTES_MAX);
                api.sent(id, output.min(usize::from(input.u16())));
            }
            _ => open.extend(api.open()),
        }
        for said in said.drain(..) {
            if let Said::Response(body) | Said::Error(body) | Said::InitError(body) = said {
                assert!(body.len() as u64 <= RESPONSE_BYTES_MAX.max(BODY_BYTES_MAX as u64));
            }
        }
    }
    let stored = postcard::to_stdvec(&api).expect("the state can be stored");
    let _: RuntimeApi = postcard::from_bytes(&stored).expect("a stored state can be read");
}

/// Answers of a guest process on the runtime's socket, in pieces of any size.
pub fn device_answers(data: &[u8]) {
    let mut input = Bytes::new(data);
    let mut pieces = Vec::new();
    while !input.is_empty() {
        let length = usize::from(input.u8()) + 1;
        pieces.push(input.take(length));
    }
    let mut said = Vec::new();
    let _ = gust_worker::fuzzing::device_answers(&pieces, &mut said);
    for said in said {
        if let Said::Response(body) | Said::Error(body) | Said::InitError(body) = said {
            assert!(body.len() as u64 <= RESPONSE_BYTES_MAX);
        }
    }
}
