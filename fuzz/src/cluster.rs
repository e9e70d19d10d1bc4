//! What members of a cluster, and strangers who want to be, say to each other.

use std::{
    io,
    pin::Pin,
    sync::LazyLock,
    task::{Context, Poll},
};

use ::bytes::Bytes as Body;
use gust_cluster::{
    files::{ChunkId, FileId, Manifest},
    fuzzing,
    link::{self, Bounds, Incoming, Next, Pending},
    message::{
        ControlRequest, FileRequest, Head, Join, NodeRequest, Reply, Report, Request, decode_body,
        encode_body, encode_head,
    },
    trust::{Authority, JoinKey, JoinToken, NodeName, certified_name_is},
};
use tokio::{
    io::AsyncWrite,
    runtime::{Builder, Runtime},
    sync::mpsc,
};

use crate::bytes::{Bytes, patch};

/// Calls of this side's that wait for replies.
const CALLS: u64 = 3;

/// Output that a call may have waiting: see the link's window.
const OUTPUT_BYTES_MAX: usize = 256 << 10;

/// Bytes before a frame's payload.
const HEADER_BYTES: usize = 13;

/// A side that takes so many bytes and then none.
struct Takes(usize);

impl AsyncWrite for Takes {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match bytes.len().min(self.0) {
            0 => Poll::Pending,
            taken => {
                self.0 -= taken;
                Poll::Ready(Ok(taken))
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A whole link: frames arrive from a hostile side, which takes what it wants of the answers. The first byte says who it is,
/// and whether the rest is frames or bytes.
pub fn cluster_link(data: &[u8]) {
    static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
        Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime")
    });
    let mut input = Bytes::new(data);
    let choice = input.u8();
    let bounds = match choice & 1 {
        0 => Bounds::MEMBER,
        _ => Bounds::NEWCOMER,
    };
    let takes = usize::from(input.u16());
    let arriving = match choice & 2 {
        0 => frames(&mut input),
        _ => input.rest().to_vec(),
    };
    RUNTIME.block_on(async {
        let stream = tokio::io::join(arriving.as_slice(), Takes(takes));
        let (link, driver, incoming) = link::within(stream, bounds);
        let asking = async {
            let request = Request::Node(NodeRequest::Stats);
            let mut calls = Vec::new();
            for _ in 0..CALLS {
                calls.extend(link.begin(&request, Body::new()).await);
            }
            for call in calls {
                take_all(call).await;
            }
        };
        let (_, _, ()) = tokio::join!(asking, driver.run(), answer(incoming, choice));
        assert!(
            link.closed().is_some() && link.waiting() == 0,
            "it has ended, and nothing is open"
        );
    });
}

/// Frames of kinds and calls that there are, with any payload.
fn frames(input: &mut Bytes<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    while !input.is_empty() {
        let (kind, call) = (input.u8() % 11, u64::from(input.u8() % 8));
        let length = usize::from(input.u8());
        let payload = input.take(length);
        bytes.reserve(HEADER_BYTES + payload.len());
        bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        bytes.push(kind);
        bytes.extend_from_slice(&call.to_le_bytes());
        bytes.extend_from_slice(payload);
    }
    bytes
}

/// Takes all that comes of a call, and tells the other side of every second piece.
async fn take_all(mut call: Pending) {
    let mut untold = 0;
    while let Ok(Next::Output(piece)) = call.next().await {
        match untold {
            0 => untold = piece.len(),
            _ => {
                call.took(&piece).await;
                untold = 0;
            }
        }
    }
    let waiting: usize = std::iter::from_fn(|| call.try_output())
        .map(|piece| piece.len())
        .sum();
    assert!(waiting <= OUTPUT_BYTES_MAX);
}

/// Answers, gives up or keeps what is asked.
async fn answer(mut incoming: mpsc::Receiver<Incoming>, choice: u8) {
    let mut kept = Vec::new();
    let mut turn = choice >> 2;
    while let Some(Incoming {
        request,
        body,
        replier,
    }) = incoming.recv().await
    {
        turn = turn.wrapping_add(1);
        fuzzing::understand_request(request);
        match turn % 4 {
            0 => drop(replier),
            1 => kept.push(replier),
            2 => {
                replier.output(Body::from_static(b"output")).await;
                replier.reply(&Reply::Content, body).await;
            }
            _ => replier.reply(&Reply::Busy, Body::new()).await,
        }
    }
}

/// Heads and bodies of messages, in any form: what is understood can be said again, and means the same. The first byte says
/// which.
pub fn cluster_messages(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else {
        return;
    };
    match kind % 6 {
        0 => again::<Request>(rest, |request, _| fuzzing::understand_request(request)),
        1 => again::<Reply>(rest, fuzzing::understand_reply),
        2 => {
            if let Ok(report) = decode_body::<Report>(rest) {
                let said = encode_body(&report).expect("it was said");
                assert_eq!(decode_body::<Report>(&said).expect("a report"), report);
                fuzzing::understand_report(report);
            }
        }
        3 => {
            // It has the name that it was asked for by: that is all that is believed.
            let id = FileId(*blake3::hash(rest).as_bytes());
            if let Ok(manifest) = Manifest::decode(rest, id) {
                let parts = manifest.parts().map(|part| part.offset + part.bytes as u64);
                assert!(parts.max().unwrap_or(0) <= manifest.bytes());
            }
        }
        4 => {
            let text = String::from_utf8_lossy(rest);
            if let Ok(token) = text.parse::<JoinToken>() {
                assert_eq!(token.to_string(), text);
            }
            if let Ok(name) = text.parse::<NodeName>() {
                assert_eq!(name.to_string(), text);
            }
        }
        _ => {
            if let Ok(names) = decode_body::<Vec<String>>(rest) {
                let names: Vec<NodeName> = names.iter().filter_map(|name| name.parse().ok()).collect();
                assert!(names.len() <= rest.len());
            }
        }
    }
}

fn again<T>(head: &[u8], understand: impl FnOnce(T, Body))
where
    T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
{
    let Ok(Head {
        message: Some(message),
        body_bytes,
    }) = Head::<T>::decode(head)
    else {
        return;
    };
    let said = encode_head(&message, body_bytes).expect("it was said");
    let read = Head::<T>::decode(&said).expect("a head");
    assert_eq!(
        (read.message.as_ref(), read.body_bytes),
        (Some(&message), body_bytes)
    );
    understand(message, Body::from_static(b"body"));
}

/// What a stranger with a good token asks for: a certificate, by a signing request of which parts have been overwritten.
pub fn join_requests(data: &[u8]) {
    static KNOWN: LazyLock<(Authority, Vec<u8>)> = LazyLock::new(|| {
        let directory = tempfile::tempdir().expect("a directory");
        let authority = Authority::open(directory.path()).expect("an authority");
        let csr = JoinKey::new().and_then(|key| key.csr());
        (authority, csr.expect("a signing request"))
    });
    let (authority, whole) = &*KNOWN;
    let mut input = Bytes::new(data);
    let csr = match input.u8() & 1 == 0 {
        true => {
            let mut csr = whole.clone();
            patch(&mut csr, input.rest());
            csr
        }
        false => input.rest().to_vec(),
    };
    let name: NodeName = "node-00000000".parse().expect("a name");
    if let Ok(certificate) = authority.certify(&name, &csr) {
        // Whatever else stands in the request.
        assert!(certified_name_is(&certificate, &name));
    }
}

/// Inputs to begin with, for `cluster_link` and `cluster_messages`.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let head = |request: &Request, body: usize| encode_head(request, body).unwrap_or_default();
    let requests = [
        head(&Request::Node(NodeRequest::Stats), 0),
        head(&Request::Node(NodeRequest::Retain), 4),
        head(&Request::Node(NodeRequest::End(7)), 0),
        head(&Request::Control(ControlRequest::Draining), 0),
        head(&Request::Control(ControlRequest::Lost(vec![1, 2])), 0),
        head(&Request::File(FileRequest::Chunk(ChunkId([1; 32]))), 0),
        head(
            &Request::Join(Join {
                token: [1; 8],
                secret: [2; 16],
                name: "n".to_owned(),
                csr: vec![3; 8],
            }),
            0,
        ),
    ];
    let replies = [
        encode_head(&Reply::Content, 4).unwrap_or_default(),
        encode_head(&Reply::Failed("no".to_owned()), 0).unwrap_or_default(),
    ];
    let with = |kind: u8, rest: &[u8]| [&[kind], rest].concat();
    let mut seeds: Vec<_> = requests.iter().map(|head| with(0, head)).collect();
    seeds.extend(replies.iter().map(|head| with(1, head)));
    seeds.extend(encode_body(&Report::default()).map(|body| with(2, &body)));
    seeds.push(with(4, b"gust1."));
    seeds.extend(encode_body(&["node-1"]).map(|body| with(5, &body)));
    let mut seeds: Vec<_> = seeds.into_iter().map(|seed| ("cluster_messages", seed)).collect();
    // Kinds of frames: 1 a request, 2 its body, 3 a reply, 4 its body, 5 output.
    let framed = |kind: u8, call: u8, payload: &[u8]| [&[kind, call, payload.len() as u8], payload].concat();
    let mut conversation = vec![0, 0, 4];
    for (call, head) in requests.iter().enumerate() {
        conversation.extend(framed(1, call as u8, head));
    }
    conversation.extend(framed(2, 1, b"body"));
    conversation.extend(framed(5, 1, b"output"));
    conversation.extend(framed(3, 1, &replies[0]));
    conversation.extend(framed(4, 1, b"body"));
    conversation.extend(framed(3, 2, &replies[1]));
    seeds.push(("cluster_link", conversation));
    seeds.push(("join_requests", vec![0, 4, 0, 1, 0]));
    seeds
}
