//! What a node and its zygote say to each other: one message a packet, on a socket pair of kind `SOCK_SEQPACKET`.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Longest message, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 4 << 10;

/// Most descriptors that travel with one message.
pub const DESCRIPTORS_MAX: usize = 4;

/// What a worker is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum WorkerKind {
    /// A KVM micro-VM.
    Kvm,
    /// A guest process.
    Process,
}

/// Node to zygote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ZygoteRequest {
    /// Make a worker. Descriptors: the worker's end of its socket to the node; with `counts_memory`, the file that holds
    /// the most memory that its control group has used, and the one that counts its ends for want of memory.
    Start {
        /// The node's name for the worker in reports.
        id: u64,
        /// What it is for.
        kind: WorkerKind,
        /// First of two user ids that are the worker's alone; taken when the zygote may change users.
        user: Option<u32>,
        /// Files of the control group travel with the request.
        counts_memory: bool,
    },
}

/// Zygote to node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ZygoteReport {
    /// The zygote takes requests. Comes first, once.
    Ready(HostReport),
    /// A worker has been made. Descriptor: its pidfd.
    Started {
        /// As requested.
        id: u64,
        /// Its process id.
        pid: i32,
    },
    /// A worker could not be made.
    Failed {
        /// As requested.
        id: u64,
        /// Why.
        reason: String,
    },
    /// A worker has ended, and everything in its namespaces with it.
    Exited {
        /// As requested.
        id: u64,
        /// How.
        end: WorkerEnd,
    },
}

/// What the host lets workers have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HostReport {
    /// Workers get user ids of their own.
    pub users: bool,
    /// Workers get namespaces of their own.
    pub namespaces: bool,
    /// Guest processes can be given a root of their own: user namespaces can be made.
    pub processes: bool,
    /// `/dev/kvm` could be opened.
    pub kvm: bool,
}

/// How a worker ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum WorkerEnd {
    /// By itself, with this status.
    Exit(i32),
    /// By this signal.
    Signal(i32),
}

/// A message as it is sent.
///
/// # Errors
/// When it is too long.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, postcard::Error> {
    let mut buffer = vec![0; MESSAGE_BYTES_MAX];
    let length = postcard::to_slice(message, &mut buffer)?.len();
    buffer.truncate(length);
    Ok(buffer)
}

/// A message as it was received.
///
/// # Errors
/// When it is no message of this kind.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, postcard::Error> {
    postcard::from_bytes(bytes)
}
