//! Records in an embedded, crash-safe database.
//!
//! One thread writes. It takes every batch that waits, puts them into one transaction, commits it durably (one
//! `fsync` for all of them) and answers each: concurrent writers share the cost of the disk. A batch is a list of
//! plain puts and deletes; whether it is allowed was decided by its maker, who keeps the decoded state. A batch is
//! never half applied, whatever ends the process.
//!
//! Readers go straight to the database and never wait for the writer.
//!
//! The database refuses everything after a failed write (a full disk), since it cannot know what reached the file. The
//! writer then opens it anew, which brings back the last commit, so that the next batch can succeed.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    thread,
};

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use tokio::sync::{mpsc, oneshot};

use crate::{Record, StoreError, decode, encode};

/// Most batches that wait for the writer.
const BATCHES_QUEUED_MAX: usize = 4096;

/// Most batches in one transaction, so that the first of them does not wait for ever more.
const BATCHES_PER_COMMIT_MAX: usize = 256;

type Table = TableDefinition<'static, &'static [u8], &'static [u8]>;

/// Changes that reach the disk together or not at all.
#[derive(Debug, Default)]
pub struct Batch {
    changes: Vec<Change>,
}

#[derive(Debug)]
struct Change {
    table: &'static str,
    key: Vec<u8>,
    /// `None` deletes.
    value: Option<Vec<u8>>,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a record, replacing the one under the same key.
    pub fn put<R: Record>(&mut self, key: &[u8], record: &R) {
        self.push(R::TABLE, key, Some(encode(record)));
    }

    /// Deletes a record; one that does not exist is none the worse.
    pub fn delete<R: Record>(&mut self, key: &[u8]) {
        self.push(R::TABLE, key, None);
    }

    /// Nothing to do.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    fn push(&mut self, table: &'static str, key: &[u8], value: Option<Vec<u8>>) {
        self.changes.push(Change {
            table,
            key: key.to_vec(),
            value,
        });
    }
}

struct Write {
    batch: Batch,
    done: oneshot::Sender<Result<(), StoreError>>,
}

/// The open database, and how to open it again.
#[derive(Debug)]
struct Shared {
    path: PathBuf,
    cache_bytes: usize,
    /// `None` when it could not be opened again after a failure.
    database: RwLock<Option<Database>>,
}

impl Shared {
    fn open(&self) -> Result<Database, StoreError> {
        Database::builder()
            .set_cache_size(self.cache_bytes)
            .create(&self.path)
            .map_err(|source| StoreError::database(format!("open metadata {}", self.path.display()), source))
    }

    fn with<T>(&self, run: impl FnOnce(&Database) -> Result<T, StoreError>) -> Result<T, StoreError> {
        match &*self.database.read().unwrap_or_else(PoisonError::into_inner) {
            Some(database) => run(database),
            None => Err(StoreError::Closed),
        }
    }

    fn reopen(&self) -> Result<(), StoreError> {
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        // The old handle holds the file's lock.
        drop(database.take());
        *database = Some(self.open()?);
        Ok(())
    }
}

/// The metadata database.
#[derive(Debug)]
pub struct Meta {
    shared: Arc<Shared>,
    // `None` once closing has begun.
    writes: Option<mpsc::Sender<Write>>,
    writer: Option<thread::JoinHandle<()>>,
}

impl Meta {
    pub(crate) fn open(path: &Path, cache_bytes: usize) -> Result<Self, StoreError> {
        let shared = Arc::new(Shared {
            path: path.to_owned(),
            cache_bytes,
            database: RwLock::new(None),
        });
        shared.reopen()?;
        let (writes, queue) = mpsc::channel(BATCHES_QUEUED_MAX);
        let writer = thread::Builder::new()
            .name("gust-meta".to_owned())
            .spawn({
                let shared = Arc::clone(&shared);
                move || write_all(&shared, queue)
            })
            .map_err(|source| StoreError::io("start the metadata writer", source))?;
        Ok(Self {
            shared,
            writes: Some(writes),
            writer: Some(writer),
        })
    }

    /// Writes a batch durably. Once this has been called the batch is carried out even if the future is dropped.
    ///
    /// # Errors
    /// [`StoreError::Busy`] when too many batches wait; [`StoreError::DiskFull`] and others when the commit failed:
    /// then nothing of the batch is in the database.
    pub fn commit(&self, batch: Batch) -> impl Future<Output = Result<(), StoreError>> + Send + use<> {
        let queued = self.enqueue(batch);
        async move {
            match queued?.await {
                Ok(result) => result,
                Err(_closed) => Err(StoreError::Closed),
            }
        }
    }

    fn enqueue(&self, batch: Batch) -> Result<oneshot::Receiver<Result<(), StoreError>>, StoreError> {
        let writes = self.writes.as_ref().ok_or(StoreError::Closed)?;
        let (done, result) = oneshot::channel();
        match writes.try_send(Write { batch, done }) {
            Ok(()) => Ok(result),
            Err(mpsc::error::TrySendError::Full(_)) => Err(StoreError::Busy),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(StoreError::Closed),
        }
    }

    /// Reads one record.
    ///
    /// # Errors
    /// When the database fails or the record cannot be understood.
    pub fn get<R: Record>(&self, key: &[u8]) -> Result<Option<R>, StoreError> {
        self.read::<R, _>(|table| {
            let value = table.get(key).map_err(|source| read_failed::<R>(source))?;
            value.map(|value| decode_entry(key, value.value())).transpose()
        })
        .map(Option::flatten)
    }

    /// Reads every record of a kind, in the order of their keys.
    ///
    /// # Errors
    /// When the database fails or a record cannot be understood.
    pub fn scan<R: Record>(&self) -> Result<Vec<(Vec<u8>, R)>, StoreError> {
        self.read::<R, _>(|table| {
            let entries = table.iter().map_err(|source| read_failed::<R>(source))?;
            entries
                .map(|entry| {
                    let (key, value) = entry.map_err(|source| read_failed::<R>(source))?;
                    Ok((key.value().to_vec(), decode_entry(key.value(), value.value())?))
                })
                .collect()
        })
        .map(Option::unwrap_or_default)
    }

    /// Runs `read` on the table of `R`; `None` when nothing was ever written to it.
    fn read<R: Record, T>(
        &self,
        read: impl FnOnce(&redb::ReadOnlyTable<&'static [u8], &'static [u8]>) -> Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        self.shared.with(|database| {
            let transaction = database.begin_read().map_err(|source| read_failed::<R>(source))?;
            match transaction.open_table(Table::new(R::TABLE)) {
                Ok(table) => read(&table).map(Some),
                Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
                Err(source) => Err(read_failed::<R>(source)),
            }
        })
    }
}

fn read_failed<R: Record>(source: impl Into<redb::Error>) -> StoreError {
    StoreError::database(format!("read table {}", R::TABLE), source)
}

impl Drop for Meta {
    fn drop(&mut self) {
        self.writes = None;
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the metadata writer panicked");
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

fn write_all(shared: &Shared, mut queue: mpsc::Receiver<Write>) {
    let mut waiting = Vec::new();
    while queue.blocking_recv_many(&mut waiting, BATCHES_PER_COMMIT_MAX) > 0 {
        let result = shared.with(|database| write_together(database, &waiting));
        if let Err(error) = &result {
            tracing::error!(%error, cause = ?std::error::Error::source(error), "metadata could not be written");
            if let Err(error) = shared.reopen() {
                tracing::error!(%error, "metadata could not be opened again");
            }
        }
        for write in waiting.drain(..) {
            // A caller that has gone away does not want to know.
            drop(write.done.send(result.clone()));
        }
    }
}

fn write_together(database: &Database, writes: &[Write]) -> Result<(), StoreError> {
    fn failed(source: impl Into<redb::Error>) -> StoreError {
        StoreError::database("write metadata", source)
    }
    let transaction = database.begin_write().map_err(failed)?;
    for change in writes.iter().flat_map(|write| &write.batch.changes) {
        let mut table = transaction.open_table(Table::new(change.table)).map_err(failed)?;
        let key = change.key.as_slice();
        match &change.value {
            Some(value) => table.insert(key, value.as_slice()).map(drop),
            None => table.remove(key).map(drop),
        }
        .map_err(failed)?;
    }
    transaction.commit().map_err(failed)
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    use super::*;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Note(String);

    impl Record for Note {
        const TABLE: &'static str = "note";
        const KIND: u8 = 201;
        const VERSION: u8 = 1;
    }

    fn open(path: &Path) -> Meta {
        Meta::open(path, 1 << 20).unwrap()
    }

    #[tokio::test]
    async fn records_outlive_the_process_that_wrote_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("meta.redb");
        let meta = open(&path);
        assert_eq!(meta.scan::<Note>().unwrap(), []);
        let mut batch = Batch::new();
        batch.put(b"b", &Note("two".to_owned()));
        batch.put(b"a", &Note("one".to_owned()));
        meta.commit(batch).await.unwrap();
        drop(meta);

        let meta = open(&path);
        let all = meta.scan::<Note>().unwrap();
        assert_eq!(
            all,
            [
                (b"a".to_vec(), Note("one".to_owned())),
                (b"b".to_vec(), Note("two".to_owned()))
            ]
        );
        let mut batch = Batch::new();
        batch.delete::<Note>(b"a");
        meta.commit(batch).await.unwrap();
        assert_eq!(meta.get::<Note>(b"a").unwrap(), None);
        assert_eq!(meta.get::<Note>(b"b").unwrap(), Some(Note("two".to_owned())));
    }

    #[tokio::test]
    async fn a_dropped_future_does_not_undo_its_commit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("meta.redb");
        let meta = open(&path);
        let mut batch = Batch::new();
        batch.put(b"k", &Note("kept".to_owned()));
        drop(meta.commit(batch));
        drop(meta);
        assert_eq!(
            open(&path).get::<Note>(b"k").unwrap(),
            Some(Note("kept".to_owned()))
        );
    }

    #[tokio::test]
    async fn concurrent_writers_all_get_an_answer() {
        let dir = tempfile::tempdir().unwrap();
        let meta = Arc::new(open(&dir.path().join("meta.redb")));
        let commits = (0..100u32).map(|n| {
            let mut batch = Batch::new();
            batch.put(&n.to_be_bytes(), &Note(n.to_string()));
            tokio::spawn(meta.commit(batch))
        });
        for commit in commits.collect::<Vec<_>>() {
            commit.await.unwrap().unwrap();
        }
        assert_eq!(meta.scan::<Note>().unwrap().len(), 100);
    }
}
