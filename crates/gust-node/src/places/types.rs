//! What the places are asked, answer and remember.

use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::{
    api::{StartKind, VersionId},
    named::{InstanceName, Named},
};

/// Most calls that wait in the queue.
pub(crate) const QUEUE_MAX: usize = 10_000;

/// Most names of lost instances that are remembered until someone asks for them.
pub(crate) const LOST_MAX: usize = 65_536;

/// Bounds of a node.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Most instances together.
    pub instances_max: usize,
    /// Most memory that they may use together, in bytes.
    pub memory_bytes_max: u64,
    /// Most starts at a time: more would only take the processors from each other.
    pub starts_max: usize,
}

/// What a call is given.
#[derive(Debug)]
pub(crate) enum Grant<I> {
    /// An instance that is ready.
    Use(I, StartKind),
    /// A place to start an instance in. [`Places::started`] follows, and [`Places::leave`] in the end.
    Start(PlaceId),
}

/// Names a place that is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct PlaceId(pub(super) u64);

/// Answer to a claim.
#[derive(Debug)]
pub(crate) enum Claim<I, T> {
    /// Granted at once.
    Use(I, StartKind),
    /// The call's turn comes through the receiver. `settling` says that it gets only an instance that is about to be
    /// idle; after a short while the claim is to be repeated without patience.
    Queued {
        turn: oneshot::Receiver<T>,
        settling: bool,
    },
    /// The version is not known.
    Unknown,
    /// The queue is full.
    Full,
}

/// What follows from a change: who gets what, and which instances must go. Grants are sent and instances dropped by the
/// caller, after it has let go of its lock.
#[derive(Debug)]
#[must_use]
pub(crate) struct Consequences<I, T> {
    pub turns: Vec<(oneshot::Sender<T>, Grant<I>)>,
    pub dropped: Vec<I>,
}

impl<I, T> Consequences<I, T> {
    pub(super) fn none() -> Self {
        Self {
            turns: Vec::new(),
            dropped: Vec::new(),
        }
    }
}

/// Counts for statistics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub armed: usize,
    /// Frozen ones too.
    pub idle: usize,
    pub frozen: usize,
    pub busy: usize,
    pub queued: usize,
    pub memory_bytes: u64,
    /// Of those that have names, by class.
    pub regular: usize,
    pub emergency: usize,
}

/// An instance that waits for a call.
#[derive(Debug)]
pub(super) struct Resting<I> {
    pub(super) instance: I,
    pub(super) place: PlaceId,
    pub(super) since: Instant,
    /// Order in which instances came to rest, over all versions.
    pub(super) tick: u64,
    pub(super) cold: Cold,
    /// The control plane's name for it.
    pub(super) name: Option<InstanceName>,
    /// How it serves its next call.
    pub(super) kind: StartKind,
    /// How long it rests at most; the node's own time when `None`.
    pub(super) kept_for: Option<Duration>,
}

/// What is known of a version.
#[derive(Debug)]
pub(super) struct Entry<I> {
    /// Sets this registration apart from earlier ones of the same name.
    pub(super) generation: u64,
    /// Last used is last.
    pub(super) idle: Vec<Resting<I>>,
    pub(super) armed: Vec<Resting<I>>,
    /// Instances without a name that have answered and are about to be idle.
    pub(super) settling: usize,
    /// Armed instances in the making.
    pub(super) arming: usize,
    /// Memory that an instance is expected to use, in bytes.
    pub(super) expected_bytes: u64,
}

#[derive(Debug)]
pub(super) struct Waiter<T> {
    pub(super) version: VersionId,
    pub(super) sender: oneshot::Sender<T>,
    /// Waits for an instance that is about to be idle, and not for a place.
    pub(super) patient: bool,
    /// The instance that it is to have.
    pub(super) named: Option<Named>,
    /// No call: what is made ahead of calls, which go first.
    pub(super) is_ahead: bool,
}

/// A place that is taken.
#[derive(Debug)]
pub(super) struct Taken {
    /// Registration of the version that it was taken for.
    pub(super) generation: u64,
    pub(super) bytes: u64,
    pub(super) starting: bool,
    /// Its instance has been told to go.
    pub(super) leaving: bool,
    /// Its instance is armed or is made to be.
    pub(super) armed: bool,
    /// Its instance is not kept when it comes to rest.
    pub(super) evicted: bool,
    /// What the control plane calls its instance.
    pub(super) named: Option<Named>,
    /// How often its instance, which has a name, has answered and is not known to rest yet.
    pub(super) settling: u32,
    /// The control plane has ended it, and need not be told of its end.
    pub(super) is_told: bool,
    /// How long the control plane, which has ended it, has it wait armed.
    pub(super) armed_for: Option<Duration>,
}

impl<I> Entry<I> {
    pub(super) fn into_instances(self) -> impl Iterator<Item = I> {
        self.idle
            .into_iter()
            .chain(self.armed)
            .map(|resting| resting.instance)
    }
}

/// An instance that comes to rest.
#[derive(Debug)]
pub(crate) struct Rested<I> {
    pub id: VersionId,
    pub generation: u64,
    pub place: PlaceId,
    pub instance: I,
    /// Memory that it uses now.
    pub bytes: u64,
    /// It is as its snapshot left it.
    pub armed: bool,
    /// Whether it may be frozen, or is.
    pub cold: Cold,
}

/// Whether an instance at rest has its worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cold {
    /// It has, and may be frozen.
    Not,
    /// It has, and is not to be frozen.
    Never,
    /// It is frozen: the last that is taken, and the last that goes for another's sake.
    Frozen,
}
