//! What the control plane asks of the place that keeps its records, whatever that is.
//!
//! The interface is what both an embedded database and the API of a cluster manager (objects with versions, lists,
//! watches) can give, and no more:
//!
//! * A record has a table, a key and a value of at most [`RECORD_BYTES_MAX`] bytes. Files are no records ([`crate::Blobs`]).
//! * **One record** changes at once or not at all. A change may depend on the [`Revision`] that was read: of two writers
//!   who read the same one, one gets [`StoreError::Conflict`].
//! * **Several records** change one after the other, in the order of their [`Step`]s. If the write fails or its maker
//!   ends, some of the first steps have been done, perhaps none, perhaps all, and no later one: there are no
//!   transactions. Whoever writes several steps orders them so that what is left after any of them is right, and so
//!   that they can be done again.
//! * A [`Watch`] tells of changes in their order, or that some were missed and a list is needed.
//!
//! What is acknowledged is durable. Reads block for as long as the place takes and see all that was acknowledged before.

use std::{fmt, pin::Pin, sync::Arc};

use tokio::sync::broadcast;

use crate::StoreError;

/// Longest value, in bytes: an asynchronous event's 1 MiB and what is around it. Requests to etcd may have 1.5 MiB.
pub const RECORD_BYTES_MAX: usize = (1 << 20) + (64 << 10);

/// Changes that a watch may be behind before it has to list again.
const WATCH_BEHIND_MAX: usize = 1024;

/// Which state of a record was read. Good for comparing within one open store, and for nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Revision(pub(crate) u64);

/// What must be so for a step to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precondition {
    /// Nothing.
    None,
    /// There is no record under the key.
    Absent,
    /// The record is as it was read.
    Is(Revision),
}

impl Precondition {
    /// Whether it is so for a record with this revision, or for none.
    pub(crate) fn holds(self, found: Option<Revision>) -> bool {
        match self {
            Self::None => true,
            Self::Absent => found.is_none(),
            Self::Is(revision) => found == Some(revision),
        }
    }
}

/// A change of one record.
#[derive(Debug, Clone)]
pub struct Step {
    /// The table.
    pub table: &'static str,
    /// The record's key.
    pub key: Vec<u8>,
    /// Its value from now on; `None` deletes it, which one that is not there does not mind.
    pub value: Option<Vec<u8>>,
    /// What must be so.
    pub when: Precondition,
}

impl Step {
    /// Two writers wanted the same.
    pub(crate) fn conflict(&self) -> StoreError {
        StoreError::Conflict {
            table: self.table,
            key: String::from_utf8_lossy(&self.key).into_owned(),
        }
    }

    /// Refuses a value that some places cannot take.
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        match &self.value {
            Some(value) if value.len() > RECORD_BYTES_MAX => Err(StoreError::TooLarge {
                table: self.table,
                key: String::from_utf8_lossy(&self.key).into_owned(),
                bytes: value.len(),
            }),
            Some(_) | None => Ok(()),
        }
    }
}

/// A value and its revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// The value.
    pub value: Vec<u8>,
    /// Its revision.
    pub revision: Revision,
}

/// The end of a write: the revision after each step.
pub type Writing = Pin<Box<dyn Future<Output = Result<Vec<Revision>, StoreError>> + Send>>;

/// The end of a release.
pub type Releasing = Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send>>;

/// Is given each record of a list: key, value, revision.
pub type Visit<'a> = dyn FnMut(&[u8], &[u8], Revision) -> Result<(), StoreError> + 'a;

/// A place that keeps records.
pub trait Records: fmt::Debug + Send + Sync {
    /// Reads one record.
    ///
    /// # Errors
    /// When the place fails.
    fn get(&self, table: &'static str, key: &[u8]) -> Result<Option<Stored>, StoreError>;

    /// Shows every record whose key begins with `prefix`, in the order of the keys.
    ///
    /// # Errors
    /// When the place fails; what `each` answers.
    fn list(&self, table: &'static str, prefix: &[u8], each: &mut Visit<'_>) -> Result<(), StoreError>;

    /// How many records a table has.
    ///
    /// # Errors
    /// When the place fails.
    fn count(&self, table: &'static str) -> Result<u64, StoreError>;

    /// Does steps in their order and durably. Once this has been called they are carried out even if the future is
    /// dropped.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when a precondition does not hold, [`StoreError::TooLarge`],
    /// [`StoreError::Busy`] when too many writes wait, and others; then a first part of the steps may have been done.
    fn write(&self, steps: Vec<Step>) -> Writing;

    /// Tells of the changes of all tables from now on.
    fn watch(&self) -> Changes;

    /// Writes what is queued and lets go of what only one process may have open, so that another one can open it.
    /// Everything answers [`StoreError::Closed`] until [`Records::retake`].
    fn release(&self) -> Releasing;

    /// Opens again what was let go of. It may have been changed meanwhile: revisions that were read before are not those of
    /// anything any more.
    ///
    /// # Errors
    /// When it cannot be opened.
    fn retake(&self) -> Result<(), StoreError>;

    /// How often it has been opened again: what was read when this was less is to be read again.
    fn retaken(&self) -> u64;
}

/// A change that has been made.
#[derive(Debug)]
pub struct Change {
    /// The table.
    pub table: &'static str,
    /// The record's key.
    pub key: Vec<u8>,
    /// Its value; `None` when it is gone.
    pub value: Option<Vec<u8>>,
    /// The revision of the record, or of its end.
    pub revision: Revision,
}

/// Changes as they are made.
#[derive(Debug)]
pub struct Changes(broadcast::Receiver<Arc<Change>>);

/// What a watch tells.
#[derive(Debug)]
pub enum Told {
    /// The next change.
    Change(Arc<Change>),
    /// Changes were missed: list what is there. What comes next is newer than what was missed.
    Missed,
}

impl Changes {
    /// The next change; `None` at the end of the store. Cancel-safe.
    pub async fn next(&mut self) -> Option<Told> {
        match self.0.recv().await {
            Ok(change) => Some(Told::Change(change)),
            Err(broadcast::error::RecvError::Lagged(_)) => Some(Told::Missed),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

/// Gives changes to those who watch.
#[derive(Debug)]
pub(crate) struct Feed(broadcast::Sender<Arc<Change>>);

impl Feed {
    pub(crate) fn new() -> Self {
        Self(broadcast::Sender::new(WATCH_BEHIND_MAX))
    }

    pub(crate) fn watch(&self) -> Changes {
        Changes(self.0.subscribe())
    }

    pub(crate) fn tell(&self, step: Step, revision: Revision) {
        let change = Change {
            table: step.table,
            key: step.key,
            value: step.value,
            revision,
        };
        // Nobody may be watching.
        drop(self.0.send(Arc::new(change)));
    }
}
