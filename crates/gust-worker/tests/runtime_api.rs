//! The Runtime API, spoken to in bytes as a runtime would.

use gust_worker::{
    protocol::{BODY_BYTES_MAX, RESPONSE_BYTES_MAX},
    runtime_api::{CONNECTIONS_MAX, ConnectionId, Event, RuntimeApi, Said},
};
use proptest::prelude::*;

const ID: &str = "8476a536-e9f4-11e8-9739-2dfe598c3fcd";
const NEXT: &str = "GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nHost: x\r\n\r\n";

fn event() -> Event {
    Event {
        request_id: ID.to_owned(),
        deadline_unix_ms: 1_542_409_706_888,
        function_arn: "arn:aws:lambda:us-east-2:123456789012:function:f".to_owned(),
        trace_id: "Root=1-5bef4de7".to_owned(),
        client_context: "{\"a\":\n1}".to_owned(),
        payload: b"{\"key\":1}".to_vec(),
    }
}

fn post(path: &str, body: &str) -> String {
    format!(
        "POST /2018-06-01/runtime/{path} HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn respond(body: &str) -> String {
    post(&format!("invocation/{ID}/response"), body)
}

/// A machine with one connection.
struct Runtime {
    api: RuntimeApi,
    id: ConnectionId,
    said: Vec<Said>,
}

impl Runtime {
    fn new() -> Self {
        let mut api = RuntimeApi::new();
        let id = api.open().unwrap();
        Self {
            api,
            id,
            said: Vec::new(),
        }
    }

    /// A runtime that works on [`event`].
    fn working() -> Self {
        let mut runtime = Self::new();
        runtime.send(NEXT);
        assert_eq!(std::mem::take(&mut runtime.said), [Said::Waits]);
        runtime.deliver();
        runtime.take();
        runtime
    }

    /// Sends bytes, all of which must be taken, and returns the response.
    fn send(&mut self, bytes: impl AsRef<[u8]>) -> String {
        let bytes = bytes.as_ref();
        assert_eq!(self.api.receive(self.id, bytes, &mut self.said), bytes.len());
        self.take()
    }

    fn deliver(&mut self) {
        self.api.deliver(event(), &mut self.said).unwrap();
    }

    fn take(&mut self) -> String {
        let output = String::from_utf8(self.api.output(self.id).to_vec()).unwrap();
        self.api.sent(self.id, output.len());
        output
    }

    fn status(&mut self, bytes: impl AsRef<[u8]>) -> u16 {
        let response = self.send(bytes);
        response
            .strip_prefix("HTTP/1.1 ")
            .unwrap_or_else(|| panic!("{response:?}"))[..3]
            .parse()
            .unwrap()
    }
}

#[test]
fn an_event_is_delivered_with_aws_headers_and_answered() {
    let mut runtime = Runtime::new();
    assert_eq!(runtime.send(NEXT), "");
    assert!(runtime.api.waits());
    assert_eq!(runtime.said, [Said::Waits]);
    runtime.deliver();
    assert!(!runtime.api.waits());
    let response = runtime.take();
    for line in [
        "HTTP/1.1 200 OK",
        "Content-Length: 9",
        "Lambda-Runtime-Aws-Request-Id: 8476a536-e9f4-11e8-9739-2dfe598c3fcd",
        "Lambda-Runtime-Deadline-Ms: 1542409706888",
        "Lambda-Runtime-Invoked-Function-Arn: arn:aws:lambda:us-east-2:123456789012:function:f",
        "Lambda-Runtime-Trace-Id: Root=1-5bef4de7",
        // A line feed in the context would be another header.
        "Lambda-Runtime-Client-Context: {\"a\": 1}",
    ] {
        assert!(
            response.split("\r\n").any(|found| found == line),
            "{line} in {response}"
        );
    }
    assert!(response.ends_with("\r\n\r\n{\"key\":1}"));

    let response = runtime.send(respond("[1]"));
    assert!(response.starts_with("HTTP/1.1 202 Accepted\r\n") && response.ends_with("{\"status\":\"OK\"}"));
    assert_eq!(runtime.said[1..], [Said::Response(b"[1]".to_vec())]);
    runtime.send(NEXT);
    assert_eq!(runtime.said[2..], [Said::Waits]);
}

#[test]
fn failures_are_said() {
    let document = r#"{"errorType":"E","errorMessage":"m"}"#;
    let mut runtime = Runtime::working();
    assert_eq!(
        runtime.status(post(&format!("invocation/{ID}/error"), document)),
        202
    );
    assert_eq!(runtime.said, [Said::Error(document.into())]);

    let mut runtime = Runtime::new();
    assert_eq!(runtime.status(post("init/error", document)), 202);
    assert_eq!(runtime.said, [Said::InitError(document.into())]);
    assert_eq!(runtime.status(NEXT), 403);
}

#[test]
fn requests_out_of_order_are_refused() {
    let mut runtime = Runtime::new();
    assert_eq!(runtime.status(respond("1")), 403);
    assert_eq!(runtime.status(post("init/error", "1")), 202);

    let mut runtime = Runtime::working();
    assert_eq!(runtime.status(NEXT), 403);
    assert_eq!(runtime.status(post("invocation/another/response", "1")), 400);
    assert_eq!(runtime.status(post("init/error", "1")), 403);
    assert_eq!(runtime.status(respond("1")), 202);
    assert_eq!(runtime.status(respond("1")), 403);
    assert_eq!(runtime.said, [Said::Response(b"1".to_vec())]);
    assert_eq!(
        runtime.status("GET /2018-06-01/runtime/nothing HTTP/1.1\r\n\r\n"),
        404
    );
    assert_eq!(
        runtime.status("GET /2020-01-01/extension/register HTTP/1.1\r\n\r\n"),
        404
    );
    assert_eq!(
        runtime.status("DELETE /2018-06-01/runtime/invocation/next HTTP/1.1\r\n\r\n"),
        405
    );
    assert_eq!(runtime.api.deliver(event(), &mut Vec::new()), None);
}

#[test]
fn bodies_come_chunked_and_streamed() {
    let head = format!(
        "POST /2018-06-01/runtime/invocation/{ID}/response HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\
         Lambda-Runtime-Function-Response-Mode: streaming\r\nTrailer: Lambda-Runtime-Function-Error-Type\r\n\r\n"
    );
    let mut runtime = Runtime::working();
    assert_eq!(runtime.send(format!("{head}5;ext=1\r\nhello\r\n6\r\n")), "");
    assert_eq!(runtime.status(" world\r\n0\r\n\r\n"), 202);
    assert_eq!(runtime.said, [Said::Response(b"hello world".to_vec())]);

    let mut runtime = Runtime::working();
    let broken = format!("{head}5\r\nhello\r\n0\r\nLambda-Runtime-Function-Error-Type: Broken.Off\r\n\r\n");
    assert_eq!(runtime.status(broken), 202);
    assert!(
        matches!(&runtime.said[..], [Said::Error(document)] if document.windows(10).any(|w| w == b"Broken.Off"))
    );
}

#[test]
fn a_client_that_expects_is_told_to_go_on() {
    let mut runtime = Runtime::working();
    let head = format!(
        "POST /2018-06-01/runtime/invocation/{ID}/response HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
    );
    assert_eq!(runtime.send(head), "HTTP/1.1 100 Continue\r\n\r\n");
    assert_eq!(runtime.status("[1]"), 202);
}

#[test]
fn requests_sent_ahead_wait_their_turn() {
    let mut runtime = Runtime::working();
    let response = runtime.send(respond("1") + NEXT);
    assert_eq!(response.matches("HTTP/1.1 ").count(), 1);
    assert_eq!(runtime.said, [Said::Response(b"1".to_vec()), Said::Waits]);

    // Behind a wait for the next event, too.
    runtime.send(respond("2") + NEXT);
    assert_eq!(runtime.said.len(), 2);
    runtime.deliver();
    assert_eq!(runtime.said[2..], [Said::Response(b"2".to_vec()), Said::Waits]);
    let response = runtime.take();
    assert!(response.starts_with("HTTP/1.1 200 ") && response.matches("HTTP/1.1 202").count() == 1);
}

#[test]
fn too_large_responses_are_counted_and_not_kept() {
    let check = |bytes: u64, fits: bool| {
        let mut runtime = Runtime::working();
        let head = format!(
            "POST /2018-06-01/runtime/invocation/{ID}/response HTTP/1.1\r\nContent-Length: {bytes}\r\n\r\n"
        );
        runtime.send(head);
        let piece = vec![b'x'; 100_000];
        let mut left = bytes as usize;
        let mut last = String::new();
        while left > 0 {
            let n = left.min(piece.len());
            last = runtime.send(&piece[..n]);
            left -= n;
        }
        match fits {
            true => {
                assert!(last.starts_with("HTTP/1.1 202"));
                assert!(matches!(&runtime.said[..], [Said::Response(body)] if body.len() as u64 == bytes));
            }
            false => {
                assert!(last.starts_with("HTTP/1.1 413"), "{last}");
                assert_eq!(runtime.said, [Said::TooLarge(bytes)]);
            }
        }
        // The connection is good for the next wait.
        runtime.send(NEXT);
        assert!(runtime.api.waits());
    };
    check(RESPONSE_BYTES_MAX, true);
    check(RESPONSE_BYTES_MAX + 1, false);
    check(3 * BODY_BYTES_MAX as u64, false);
}

#[test]
fn requests_that_make_no_sense_close_the_connection() {
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(2 << 20));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(100));
    for (bytes, status) in [
        ("\u{0}\u{1}\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nContent-Length: +1\r\n\r\n", 400),
        (
            "GET / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
            400,
        ),
        (
            "POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            400,
        ),
        (
            "POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            400,
        ),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab",
            400,
        ),
        (long.as_str(), 431),
        (many.as_str(), 431),
    ] {
        let mut runtime = Runtime::new();
        let response = runtime.send(bytes);
        assert!(
            response.starts_with(&format!("HTTP/1.1 {status} ")),
            "{:?}: {response:?}",
            &bytes[..bytes.len().min(100)]
        );
        assert!(response.contains("\r\nConnection: close\r\n"));
        assert!(runtime.api.is_done(runtime.id));
    }
}

#[test]
fn connections_are_kept_or_closed_as_the_client_says() {
    for (version, header, done) in [
        ("1.1", "", false),
        ("1.1", "Connection: close\r\n", true),
        ("1.0", "", true),
        ("1.0", "Connection: keep-alive\r\n", false),
    ] {
        let mut runtime = Runtime::new();
        runtime.send(format!("GET / HTTP/{version}\r\n{header}\r\n"));
        assert_eq!(runtime.api.is_done(runtime.id), done, "{version} {header}");
    }
}

#[test]
fn a_client_that_takes_no_responses_is_not_listened_to() {
    let mut runtime = Runtime::new();
    let requests = "GET / HTTP/1.1\r\n\r\n".repeat(200_000);
    let taken = runtime
        .api
        .receive(runtime.id, requests.as_bytes(), &mut runtime.said);
    assert!(taken < requests.len());
    assert_eq!(runtime.api.capacity(runtime.id), 0);
    assert!(runtime.api.output(runtime.id).len() < 1 << 20);
    // Once it does, all of them are answered.
    let (mut answered, sent) = (0, requests.matches("GET").count());
    let mut rest = &requests.as_bytes()[taken..];
    loop {
        answered += runtime.take().matches("HTTP/1.1 404").count();
        if rest.is_empty() && runtime.api.output(runtime.id).is_empty() {
            break;
        }
        let taken = runtime.api.receive(runtime.id, rest, &mut runtime.said);
        rest = &rest[taken..];
    }
    assert_eq!(answered, sent);
}

#[test]
fn connections_come_and_go() {
    let mut api = RuntimeApi::new();
    let mut said = Vec::new();
    let ids: Vec<_> = (0..CONNECTIONS_MAX).map(|_| api.open().unwrap()).collect();
    assert_eq!(api.open(), None);
    api.receive(ids[0], NEXT.as_bytes(), &mut said);
    api.close(ids[0]);
    assert!(!api.waits());
    // The runtime asks again, on another connection; the answer may come on a third.
    api.receive(ids[1], NEXT.as_bytes(), &mut said);
    assert_eq!(api.deliver(event(), &mut said), Some(ids[1]));
    api.receive(ids[2], respond("1").as_bytes(), &mut said);
    assert_eq!(said, [Said::Waits, Said::Waits, Said::Response(b"1".to_vec())]);
    assert!(api.open().is_some());
}

#[test]
fn a_snapshot_of_the_machine_goes_on_where_it_stood() {
    let mut runtime = Runtime::new();
    runtime.send(&NEXT.as_bytes()[..30]);
    let stored = postcard::to_stdvec(&runtime.api).unwrap();
    runtime.api = postcard::from_bytes(&stored).unwrap();
    runtime.send(&NEXT.as_bytes()[30..]);
    let stored = postcard::to_stdvec(&runtime.api).unwrap();
    for _ in 0..2 {
        let mut restored = Runtime {
            api: postcard::from_bytes(&stored).unwrap(),
            id: runtime.id,
            said: Vec::new(),
        };
        restored.deliver();
        assert!(restored.take().ends_with("{\"key\":1}"));
        assert_eq!(restored.status(respond("1")), 202);
    }
}

proptest! {
    #[test]
    fn cuts_make_no_difference(pieces in prop::collection::vec(1_usize..40, 1..40), size in 0_usize..70_000) {
        let chunk = "y".repeat(size);
        let stream = format!(
            "{NEXT}POST /2018-06-01/runtime/invocation/{ID}/response HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n\
             {}0\r\n\r\n{NEXT}",
            if size == 0 { String::new() } else { format!("{size:x}\r\n{chunk}\r\n") },
        );
        let mut runtime = Runtime::new();
        let mut rest = stream.as_bytes();
        let mut pieces = pieces.into_iter().cycle();
        let mut delivered = false;
        while !rest.is_empty() {
            let n = rest.len().min(pieces.next().unwrap() * if size > 1000 { 997 } else { 1 });
            let taken = runtime.api.receive(runtime.id, &rest[..n], &mut runtime.said);
            rest = &rest[taken..];
            if runtime.api.waits() && !delivered {
                runtime.deliver();
                delivered = true;
            }
        }
        prop_assert_eq!(runtime.said, [Said::Waits, Said::Response(chunk.into_bytes()), Said::Waits]);
    }

    #[test]
    fn any_bytes_are_bounded_and_never_panic(
        pieces in prop::collection::vec(prop_oneof![
            prop::collection::vec(any::<u8>(), 0..300),
            Just(NEXT.as_bytes().to_vec()),
            Just(respond("[1]").into_bytes()),
            Just(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec()),
            Just(b"ffff\r\n".to_vec()),
            Just(vec![b'a'; 20_000]),
        ], 0..40),
    ) {
        let mut runtime = Runtime::new();
        for piece in pieces {
            runtime.api.receive(runtime.id, &piece, &mut runtime.said);
            let _ = runtime.api.deliver(event(), &mut runtime.said);
            let stored = postcard::to_stdvec(&runtime.api).unwrap();
            prop_assert!(stored.len() < BODY_BYTES_MAX + 100_000);
        }
    }
}
