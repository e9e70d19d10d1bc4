//! What the members of a cluster say to each other.
//!
//! A message has a head, in postcard, and a body of plain bytes where there is something long: an event, a response, a
//! chunk. The version of the protocol is agreed upon before the first message ([`PROTOCOLS`]). Within one version, what is
//! said may grow at the end of an enum only: a member that does not know a request answers [`Reply::Unknown`], because
//! only the head could not be understood, and the link goes on.
//!
//! These types are the wire contract, apart from the node's own: [`crate::convert`] goes from one to the other.

mod node;

use std::net::SocketAddr;

pub use node::{
    Call, Class, DeployFailure, Deployed, Named, NotRun, Outcome, Present, RunResult, Start, Stats, Version,
    Wanted,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    files::{ChunkId, FileId},
    link::frame::PAYLOAD_BYTES_MAX,
};

/// Versions of the protocol as they are offered when a link is made, the best first. A member that is a version ahead goes on
/// offering the one before, so that an upgrade can go from member to member.
pub const PROTOCOLS: [&[u8]; 1] = [b"gust/1"];

/// Longest body of a message, in bytes: Lambda's 6 MiB with room, and manifests of the largest files.
pub const BODY_BYTES_MAX: usize = 8 << 20;

/// Longest text of an error, in bytes.
pub const TEXT_BYTES_MAX: usize = 4 << 10;

/// What a member asks of another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// Of the control plane, by a newcomer without a certificate: it wants one.
    Join(Join),
    /// Of the control plane, by a node.
    Control(ControlRequest),
    /// Of a node, by the control plane.
    Node(NodeRequest),
    /// Of any member, by any member.
    File(FileRequest),
}

/// What a node asks of the control plane.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ControlRequest {
    /// A node says who it is, first of all. What it has is in the body, a [`Report`].
    Hello(Hello),
    /// A node wants its certificate renewed.
    Renew {
        /// Signing request (PKCS #10, DER).
        csr: Vec<u8>,
    },
    /// A node takes nothing new any more, finishes what runs, and leaves.
    Draining,
    /// A node has these files now, and can give their chunks to others.
    Holds(Vec<FileId>),
    /// Who has a file?
    Locate(FileId),
    /// Where can a version's snapshot be got from, that was made with these processor features?
    FindSnapshot {
        /// The version's name.
        version: String,
        /// The processor's features.
        fingerprint: String,
    },
    /// A node has a version's snapshot now.
    HasSnapshot(String),
    /// Instances of a node's that have ended without being told to.
    Lost(Vec<u64>),
    /// How much the processors of a node's machine have to do.
    Load {
        /// Tasks that run or could run.
        runnable: u32,
        /// Processors.
        cpus: u32,
        /// Calls on the node's instances.
        calls: u32,
    },
}

/// What a member asks another for of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileRequest {
    /// A file's manifest.
    Manifest(FileId),
    /// A chunk's content.
    Chunk(ChunkId),
}

/// What the control plane asks of a node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum NodeRequest {
    /// Make a version ready.
    Deploy(Version),
    /// Know a version.
    Register(Version),
    /// Forget a version.
    Remove(String),
    /// Forget all versions but these; their names are in the body, a `Vec<String>`.
    Retain,
    /// Bring a version's files here, and its snapshot if there is one.
    Prepare(String),
    /// Run an event, which is the body.
    Invoke(Call),
    /// End a version's idle instances.
    Evict {
        /// The version's name.
        version: String,
        /// Armed ones stay.
        keep_armed: bool,
    },
    /// What does the node hold?
    Stats,
    /// Which files is a version's snapshot made of?
    Export(String),
    /// Make an instance of a version under a name, and leave it at rest.
    Create {
        /// The version's name.
        version: String,
        /// The instance.
        named: Named,
    },
    /// End an instance.
    End(u64),
    /// End an instance, and have its worker wait armed.
    EndArmed {
        /// The instance.
        name: u64,
        /// For how long, in milliseconds.
        armed_ms: u64,
    },
    /// Let in no node that has been thrown out; their names are in the body, a `Vec<String>`.
    Revoked,
}

/// What it answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    /// It is done.
    Done,
    /// The request is none that this member knows or carries out for whoever asks.
    Unknown,
    /// Too much is open on the link.
    Busy,
    /// It could not be done.
    Failed(String),
    /// A newcomer's certificate.
    Joined(Joined),
    /// A renewed certificate (DER).
    Renewed {
        /// The certificate.
        certificate: Vec<u8>,
    },
    /// Members that have what was asked for.
    Sources(Vec<Source>),
    /// A snapshot and who has it.
    Snapshot(SnapshotRef, Vec<Source>),
    /// There is none.
    Missing,
    /// The content is the body.
    Content,
    /// The version is ready; what the initialisation wrote is the body.
    Deployed(Deployed),
    /// The version is not ready; what the initialisation wrote is the body.
    NotDeployed(DeployFailure),
    /// An event has reached an instance; the response or error document is the body.
    Outcome(Outcome),
    /// An event has reached no instance, or none answered.
    NotRun(NotRun),
    /// What the node holds.
    Stats(Stats),
}

/// A newcomer's request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Join {
    /// The token's id.
    pub token: [u8; 8],
    /// The token's secret.
    pub secret: [u8; 16],
    /// The name that it would like to have.
    pub name: String,
    /// Signing request (PKCS #10, DER).
    pub csr: Vec<u8>,
}

/// What a newcomer gets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Joined {
    /// The name that it has from now on.
    pub name: String,
    /// Its certificate (DER).
    pub certificate: Vec<u8>,
}

/// Who a node is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// Its name, as in its certificate.
    pub name: String,
    /// Unlike that of any other start of it.
    pub start: [u8; 16],
    /// Version of the program, for people.
    pub program: String,
    /// Where other members can get chunks from it.
    pub files: SocketAddr,
    /// Features of its processor.
    pub fingerprint: String,
    /// Each instance is a micro-VM.
    pub is_kvm: bool,
    /// Memory for instances, in bytes.
    pub memory_bytes: u64,
    /// Most instances.
    pub instances_max: u64,
    /// Instances that are restored at a time.
    pub restores_max: u64,
    /// Region that it lies in.
    pub region: u16,
}

/// What a node has, as a control plane is told that has just started.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Report {
    /// Versions that it knows, and whether it has a snapshot of each.
    pub versions: Vec<(String, bool)>,
    /// Files whose chunks it can give to others.
    pub files: Vec<FileId>,
    /// Instances that have names.
    pub instances: Vec<Present>,
}

/// A member that has something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// The member's name, as in its certificate.
    pub name: String,
    /// Where it gives chunks.
    pub address: SocketAddr,
}

/// A snapshot's files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRef {
    /// Description and state.
    pub description: FileId,
    /// Memory.
    pub data: FileId,
    /// Description and data of the layout, where one has been learned.
    pub layout: Option<(FileId, FileId)>,
}

/// A message that cannot be sent or understood.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// It does not decode.
    #[error("a message cannot be understood")]
    Decode(#[source] postcard::Error),
    /// It does not encode.
    #[error("a message cannot be encoded")]
    Encode(#[source] postcard::Error),
    /// It is too long.
    #[error("{what} of {bytes} bytes is longer than {max}")]
    Length {
        /// Head or body.
        what: &'static str,
        /// Its length, in bytes.
        bytes: usize,
        /// The bound, in bytes.
        max: usize,
    },
}

/// What the first frame of a message has.
#[derive(Debug, PartialEq)]
pub struct Head<T> {
    /// What is said; `None` when this program does not know it.
    pub message: Option<T>,
    /// Length of the body that follows, in bytes.
    pub body_bytes: usize,
}

impl<T: DeserializeOwned> Head<T> {
    /// Reads a head.
    ///
    /// # Errors
    /// When it has no length of a body, or one that is too long.
    pub fn decode(payload: &[u8]) -> Result<Self, MessageError> {
        let (body_bytes, message): (u32, &[u8]) =
            postcard::take_from_bytes(payload).map_err(MessageError::Decode)?;
        let body_bytes = body_bytes as usize;
        check_length("a body", body_bytes, BODY_BYTES_MAX)?;
        Ok(Self {
            message: postcard::from_bytes(message).ok(),
            body_bytes,
        })
    }
}

/// Writes a head.
///
/// # Errors
/// When it or the body is too long.
pub fn encode_head<T: Serialize>(message: &T, body_bytes: usize) -> Result<Vec<u8>, MessageError> {
    check_length("a body", body_bytes, BODY_BYTES_MAX)?;
    let head = postcard::to_stdvec(&(body_bytes as u32, message)).map_err(MessageError::Encode)?;
    check_length("a head", head.len(), PAYLOAD_BYTES_MAX)?;
    Ok(head)
}

/// Reads a list or report from a body.
///
/// # Errors
/// When it is none.
pub fn decode_body<T: DeserializeOwned>(body: &[u8]) -> Result<T, MessageError> {
    postcard::from_bytes(body).map_err(MessageError::Decode)
}

/// Writes a list or report as a body.
///
/// # Errors
/// When it is too long.
pub fn encode_body<T: Serialize>(value: &T) -> Result<Vec<u8>, MessageError> {
    let body = postcard::to_stdvec(value).map_err(MessageError::Encode)?;
    check_length("a body", body.len(), BODY_BYTES_MAX)?;
    Ok(body)
}

/// An error and its causes as one text, cut at a bound.
pub fn text(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let text = causes.map(ToString::to_string).collect::<Vec<_>>().join(": ");
    cut(text)
}

/// A text, cut at a bound.
pub fn cut(mut text: String) -> String {
    let mut end = TEXT_BYTES_MAX.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

fn check_length(what: &'static str, bytes: usize, max: usize) -> Result<(), MessageError> {
    match bytes <= max {
        true => Ok(()),
        false => Err(MessageError::Length { what, bytes, max }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_wire_stays_as_it_is() {
        // The numbers of the variants and the order of the fields are the contract between versions of the program.
        let check = |head: Vec<u8>, expected: &[u8]| assert_eq!(head, expected);
        check(
            encode_head(&Request::Control(ControlRequest::Draining), 0).unwrap(),
            &[0, 1, 2],
        );
        check(
            encode_head(&Request::Node(NodeRequest::Stats), 5).unwrap(),
            &[5, 2, 7],
        );
        check(
            encode_head(&Request::Node(NodeRequest::Revoked), 0).unwrap(),
            &[0, 2, 12],
        );
        let export = Request::Node(NodeRequest::Export("v".to_owned()));
        check(encode_head(&export, 0).unwrap(), &[0, 2, 8, 1, b'v']);
        check(encode_head(&Reply::Content, 300).unwrap(), &[172, 2, 9]);
        check(
            encode_head(&Reply::Failed("no".to_owned()), 0).unwrap(),
            &[0, 3, 2, b'n', b'o'],
        );
        check(
            encode_head(&Reply::NotRun(NotRun::QueueFull), 0).unwrap(),
            &[0, 13, 2],
        );
    }

    #[test]
    fn what_is_too_long_is_neither_sent_nor_taken() {
        let long = |result: Result<_, MessageError>| matches!(result, Err(MessageError::Length { .. }));
        assert!(long(encode_head(&Reply::Content, BODY_BYTES_MAX + 1).map(drop)));
        assert!(long(
            encode_head(&Reply::Failed("x".repeat(PAYLOAD_BYTES_MAX)), 0).map(drop)
        ));
        let head = postcard::to_stdvec(&(BODY_BYTES_MAX as u32 + 1, Reply::Content)).unwrap();
        assert!(long(Head::<Reply>::decode(&head).map(drop)));
        assert_eq!(cut("ä".repeat(TEXT_BYTES_MAX)).len(), TEXT_BYTES_MAX);
    }

    proptest! {
        /// Whatever is understood is written as it was understood.
        #[test]
        fn any_bytes_are_a_message_or_none(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(Head { message: Some(message), body_bytes }) = Head::<Request>::decode(&bytes) {
                let again = encode_head(&message, body_bytes).unwrap();
                prop_assert_eq!(Head::decode(&again).unwrap(), Head { message: Some(message), body_bytes });
            }
            if let Ok(Head { message: Some(message), body_bytes }) = Head::<Reply>::decode(&bytes) {
                let again = encode_head(&message, body_bytes).unwrap();
                prop_assert_eq!(Head::decode(&again).unwrap(), Head { message: Some(message), body_bytes });
            }
            let _ = decode_body::<Report>(&bytes);
        }
    }
}
