//! Records with types, over whatever keeps them ([`Records`]).

use std::{path::Path, sync::Arc};

use crate::{
    Record, StoreError, decode,
    embedded::Embedded,
    encode,
    memory::Memory,
    records::{Changes, Precondition, Records, Revision, Step, Told},
};

/// Changes of records, done one after the other in the order in which they were put here. [`crate::records`] says what
/// holds when that is cut short.
#[derive(Debug, Default)]
pub struct Batch {
    steps: Vec<Step>,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a record, replacing the one under the same key.
    pub fn put<R: Record>(&mut self, key: &[u8], record: &R) {
        self.put_if(Precondition::None, key, record);
    }

    /// Puts a record if something is so.
    pub fn put_if<R: Record>(&mut self, when: Precondition, key: &[u8], record: &R) {
        self.push(R::TABLE, key, Some(encode(record)), when);
    }

    /// Deletes a record; one that does not exist is none the worse.
    pub fn delete<R: Record>(&mut self, key: &[u8]) {
        self.delete_if::<R>(Precondition::None, key);
    }

    /// Deletes a record if something is so.
    pub fn delete_if<R: Record>(&mut self, when: Precondition, key: &[u8]) {
        self.push(R::TABLE, key, None, when);
    }

    /// Nothing to do.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// The changes, in order.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    fn push(&mut self, table: &'static str, key: &[u8], value: Option<Vec<u8>>, when: Precondition) {
        self.steps.push(Step {
            table,
            key: key.to_vec(),
            value,
            when,
        });
    }
}

/// The records of a store; clones are the same ones.
#[derive(Debug, Clone)]
pub struct Meta(Arc<dyn Records>);

impl Meta {
    /// Records that are kept elsewhere.
    pub fn new(records: Arc<dyn Records>) -> Self {
        Self(records)
    }

    /// Records in memory, which nothing outlives.
    pub fn in_memory() -> Self {
        Self::new(Arc::new(Memory::default()))
    }

    pub(crate) fn embedded(path: &Path, cache_bytes: usize) -> Result<Self, StoreError> {
        Ok(Self::new(Arc::new(Embedded::open(path, cache_bytes)?)))
    }

    /// Writes a batch durably, and answers the revision after each of its steps. Once this has been called the batch is
    /// carried out even if the future is dropped.
    ///
    /// # Errors
    /// As [`Records::write`]: what was written before an error is not known.
    pub fn commit(
        &self,
        batch: Batch,
    ) -> impl Future<Output = Result<Vec<Revision>, StoreError>> + Send + use<> {
        self.0.write(batch.steps)
    }

    /// Reads one record. Blocks.
    ///
    /// # Errors
    /// When the store fails or the record cannot be understood.
    pub fn get<R: Record>(&self, key: &[u8]) -> Result<Option<(R, Revision)>, StoreError> {
        let stored = self.0.get(R::TABLE, key)?;
        stored
            .map(|stored| Ok((decode_entry(key, &stored.value)?, stored.revision)))
            .transpose()
    }

    /// Shows every record of a kind whose key begins with `prefix`, in the order of their keys. Blocks.
    ///
    /// # Errors
    /// When the store fails or a record cannot be understood.
    pub fn each<R: Record>(
        &self,
        prefix: &[u8],
        mut each: impl FnMut(&[u8], R, Revision),
    ) -> Result<(), StoreError> {
        self.0.list(R::TABLE, prefix, &mut |key, value, revision| {
            each(key, decode_entry(key, value)?, revision);
            Ok(())
        })
    }

    /// Reads every record of a kind, in the order of their keys. Blocks.
    ///
    /// # Errors
    /// When the store fails or a record cannot be understood.
    pub fn scan<R: Record>(&self) -> Result<Vec<(Vec<u8>, R)>, StoreError> {
        let mut all = Vec::new();
        self.each(&[], |key, record, _| all.push((key.to_vec(), record)))?;
        Ok(all)
    }

    /// The keys and revisions of every record of a kind whose key begins with `prefix`. Blocks.
    ///
    /// # Errors
    /// When the store fails.
    pub fn keys<R: Record>(&self, prefix: &[u8]) -> Result<Vec<(Vec<u8>, Revision)>, StoreError> {
        let mut keys = Vec::new();
        self.0.list(R::TABLE, prefix, &mut |key, _, revision| {
            keys.push((key.to_vec(), revision));
            Ok(())
        })?;
        Ok(keys)
    }

    /// How many records of a kind there are. Blocks.
    ///
    /// # Errors
    /// When the store fails.
    pub fn count<R: Record>(&self) -> Result<u64, StoreError> {
        self.0.count(R::TABLE)
    }

    /// Tells of the changes of every record of a kind from now on. What is listed after this was called, and then changed
    /// by what is told, is what is there.
    pub fn watch<R: Record>(&self) -> Watch<R> {
        Watch {
            changes: self.0.watch(),
            kind: std::marker::PhantomData,
        }
    }

    /// Writes what is queued and lets go of the records, so that another process can open them. Everything is refused with
    /// [`StoreError::Closed`] until [`Meta::retake`].
    ///
    /// # Errors
    /// When the store is closing, or too much is queued.
    pub async fn release(&self) -> Result<(), StoreError> {
        self.0.release().await
    }

    /// Opens the records again after [`Meta::release`]. They may have been changed meanwhile.
    ///
    /// # Errors
    /// When they cannot be opened.
    pub fn retake(&self) -> Result<(), StoreError> {
        self.0.retake()
    }

    /// As [`Records::retaken`].
    pub fn retaken(&self) -> u64 {
        self.0.retaken()
    }
}

/// What has become of a record.
#[derive(Debug, PartialEq)]
pub enum Watched<R> {
    /// It is there, or different.
    Put {
        /// Its key.
        key: Vec<u8>,
        /// The record.
        record: R,
        /// Its revision.
        revision: Revision,
    },
    /// It is gone.
    Deleted {
        /// Its key.
        key: Vec<u8>,
    },
    /// Changes were missed: list what is there.
    Missed,
}

/// Changes of the records of one kind.
#[derive(Debug)]
pub struct Watch<R> {
    changes: Changes,
    kind: std::marker::PhantomData<fn() -> R>,
}

impl<R: Record> Watch<R> {
    /// The next change; `None` at the end of the store. Cancel-safe.
    ///
    /// # Errors
    /// When a record cannot be understood.
    pub async fn next(&mut self) -> Option<Result<Watched<R>, StoreError>> {
        loop {
            let change = match self.changes.next().await? {
                Told::Change(change) if change.table == R::TABLE => change,
                Told::Change(_) => continue,
                Told::Missed => return Some(Ok(Watched::Missed)),
            };
            let key = change.key.clone();
            let Some(value) = &change.value else {
                return Some(Ok(Watched::Deleted { key }));
            };
            return Some(decode_entry(&key, value).map(|record| Watched::Put {
                key,
                record,
                revision: change.revision,
            }));
        }
    }
}

fn decode_entry<R: Record>(key: &[u8], value: &[u8]) -> Result<R, StoreError> {
    decode(value).map_err(|source| StoreError::Record {
        table: R::TABLE,
        key: String::from_utf8_lossy(key).into_owned(),
        source,
    })
}
