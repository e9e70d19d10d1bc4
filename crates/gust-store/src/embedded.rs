//! Records in an embedded, crash-safe database.
//!
//! One thread writes. It takes every write that waits, puts them into one transaction, commits it durably (one
//! `fsync` for all of them) and answers each: concurrent writers share the cost of the disk. So a write is here never
//! half done, whatever ends the process; nobody may count on that ([`Records`]).
//!
//! Readers go straight to the database and never wait for the writer.
//!
//! One process has the database open, so revisions are counted in memory: a record that has not been written since it
//! was opened has the first one.
//!
//! The database refuses everything after a failed write (a full disk), since it cannot know what reached the file. The
//! writer then opens it anew, which brings back the last commit, so that the next write can succeed.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    thread,
};

use redb::{
    Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition, WriteTransaction,
};
use tokio::sync::{mpsc, oneshot};

use crate::{
    StoreError,
    records::{Changes, Feed, Precondition, Records, Releasing, Revision, Step, Stored, Visit, Writing},
};

/// Most writes that wait for the writer.
const WRITES_QUEUED_MAX: usize = 4096;

/// Most writes in one transaction, so that the first of them does not wait for ever more.
const WRITES_PER_COMMIT_MAX: usize = 256;

type Table = TableDefinition<'static, &'static [u8], &'static [u8]>;

type Key = (&'static str, Vec<u8>);

enum Request {
    Write(Write),
    /// Closes the database once everything before has been written.
    Release(oneshot::Sender<()>),
}

struct Write {
    steps: Vec<Step>,
    done: oneshot::Sender<Result<Vec<Revision>, StoreError>>,
}

/// Revisions of the records that were written since the database was opened.
#[derive(Debug, Default)]
struct Revisions {
    of: BTreeMap<Key, Revision>,
    /// Of all others.
    opened: u64,
    last: u64,
    retaken: u64,
}

impl Revisions {
    /// The revision of a record that is there.
    fn of(&self, key: &Key) -> Revision {
        self.of.get(key).copied().unwrap_or(Revision(self.opened))
    }

    /// The database may have been changed by another process: what was read before is of no use.
    fn begin_anew(&mut self) {
        self.of.clear();
        self.last += 1;
        self.opened = self.last;
        self.retaken += 1;
    }
}

/// The open database, and how to open it again.
#[derive(Debug)]
struct Shared {
    path: PathBuf,
    cache_bytes: usize,
    /// `None` while it is let go of, or when it could not be opened again after a failure.
    database: RwLock<Option<Database>>,
    revisions: Mutex<Revisions>,
    feed: Feed,
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

    fn close(&self) {
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        drop(database.take());
    }

    fn reopen(&self) -> Result<(), StoreError> {
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        // The old handle holds the file's lock.
        drop(database.take());
        *database = Some(self.open()?);
        Ok(())
    }

    fn revisions(&self) -> MutexGuard<'_, Revisions> {
        self.revisions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `read` on a table; `None` when nothing was ever written to it.
    fn read<T>(
        &self,
        name: &'static str,
        read: impl FnOnce(&redb::ReadOnlyTable<&'static [u8], &'static [u8]>) -> Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        self.with(|database| {
            let transaction = database.begin_read().map_err(|e| read_failed(name, e))?;
            match transaction.open_table(Table::new(name)) {
                Ok(table) => read(&table).map(Some),
                Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
                Err(source) => Err(read_failed(name, source)),
            }
        })
    }
}

/// The metadata database.
#[derive(Debug)]
pub(crate) struct Embedded {
    shared: Arc<Shared>,
    // `None` once closing has begun.
    requests: Option<mpsc::Sender<Request>>,
    writer: Option<thread::JoinHandle<()>>,
}

impl Embedded {
    pub(crate) fn open(path: &Path, cache_bytes: usize) -> Result<Self, StoreError> {
        let shared = Arc::new(Shared {
            path: path.to_owned(),
            cache_bytes,
            database: RwLock::new(None),
            revisions: Mutex::default(),
            feed: Feed::new(),
        });
        shared.reopen()?;
        let (requests, queue) = mpsc::channel(WRITES_QUEUED_MAX);
        let writer = thread::Builder::new()
            .name("gust-meta".to_owned())
            .spawn({
                let shared = Arc::clone(&shared);
                move || write_all(&shared, queue)
            })
            .map_err(|source| StoreError::io("start the metadata writer", source))?;
        Ok(Self {
            shared,
            requests: Some(requests),
            writer: Some(writer),
        })
    }

    fn send(&self, request: Request) -> Result<(), StoreError> {
        let requests = self.requests.as_ref().ok_or(StoreError::Closed)?;
        requests.try_send(request).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => StoreError::Busy,
            mpsc::error::TrySendError::Closed(_) => StoreError::Closed,
        })
    }
}

impl Records for Embedded {
    fn get(&self, table: &'static str, key: &[u8]) -> Result<Option<Stored>, StoreError> {
        // Read before the value: a value that is newer than its revision costs a conflict, an older one an update.
        let revision = self.shared.revisions().of(&(table, key.to_vec()));
        let found = self.shared.read(table, |open| {
            let value = open.get(key).map_err(|source| read_failed(table, source))?;
            Ok(value.map(|value| value.value().to_vec()))
        })?;
        Ok(found.flatten().map(|value| Stored { value, revision }))
    }

    fn list(&self, table: &'static str, prefix: &[u8], each: &mut Visit<'_>) -> Result<(), StoreError> {
        let (revisions, opened) = {
            let revisions = self.shared.revisions();
            let found = revisions.of.range((table, prefix.to_vec())..);
            let found = found.take_while(|((of, key), _)| *of == table && key.starts_with(prefix));
            let found: HashMap<Vec<u8>, Revision> = found
                .map(|((_, key), revision)| (key.clone(), *revision))
                .collect();
            (found, Revision(revisions.opened))
        };
        let shown = self.shared.read(table, |open| {
            let failed = |source| read_failed(table, source);
            for entry in open.range(prefix..).map_err(failed)? {
                let (key, value) = entry.map_err(failed)?;
                let key = key.value();
                if !key.starts_with(prefix) {
                    break;
                }
                let revision = revisions.get(key).copied().unwrap_or(opened);
                each(key, value.value(), revision)?;
            }
            Ok(())
        });
        shown.map(Option::unwrap_or_default)
    }

    fn count(&self, table: &'static str) -> Result<u64, StoreError> {
        let count = self.shared.read(table, |open| {
            open.len().map_err(|source| read_failed(table, source))
        });
        count.map(Option::unwrap_or_default)
    }

    fn write(&self, steps: Vec<Step>) -> Writing {
        let (done, result) = oneshot::channel();
        let queued = steps
            .iter()
            .try_for_each(Step::check)
            .and_then(|()| self.send(Request::Write(Write { steps, done })));
        Box::pin(async move {
            queued?;
            result.await.unwrap_or(Err(StoreError::Closed))
        })
    }

    fn watch(&self) -> Changes {
        self.shared.feed.watch()
    }

    fn release(&self) -> Releasing {
        let (done, released) = oneshot::channel();
        let queued = self.send(Request::Release(done));
        Box::pin(async move {
            queued?;
            released.await.map_err(|_ended| StoreError::Closed)
        })
    }

    fn retake(&self) -> Result<(), StoreError> {
        self.shared.revisions().begin_anew();
        self.shared.reopen()
    }

    fn retaken(&self) -> u64 {
        self.shared.revisions().retaken
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the metadata writer panicked");
        }
    }
}

fn read_failed(table: &'static str, source: impl Into<redb::Error>) -> StoreError {
    StoreError::database(format!("read table {table}"), source)
}

fn write_failed(source: impl Into<redb::Error>) -> StoreError {
    StoreError::database("write metadata", source)
}

fn write_all(shared: &Shared, mut queue: mpsc::Receiver<Request>) {
    let mut waiting = Vec::new();
    while queue.blocking_recv_many(&mut waiting, WRITES_PER_COMMIT_MAX) > 0 {
        let mut writes = Vec::new();
        for request in waiting.drain(..) {
            match request {
                Request::Write(write) => writes.push(write),
                Request::Release(done) => {
                    commit(shared, std::mem::take(&mut writes));
                    shared.close();
                    // Whoever asked may have gone away.
                    let _gone = done.send(());
                }
            }
        }
        commit(shared, writes);
    }
}

/// Writes durably, then lets everybody know.
fn commit(shared: &Shared, writes: Vec<Write>) {
    if writes.is_empty() {
        return;
    }
    let written = shared.with(|database| write_together(shared, database, &writes));
    let answers = match written {
        Ok(answers) => answers,
        Err(error) => {
            // One that was let go of stays closed.
            if !matches!(error, StoreError::Closed) {
                tracing::error!(%error, cause = ?std::error::Error::source(&error), "metadata could not be written");
                if let Err(error) = shared.reopen() {
                    tracing::error!(%error, "metadata could not be opened again");
                }
            }
            for write in writes {
                // A caller that has gone away does not want to know.
                drop(write.done.send(Err(error.clone())));
            }
            return;
        }
    };
    for (write, answer) in writes.into_iter().zip(answers) {
        if let Ok(revisions) = &answer {
            let mut known = shared.revisions();
            for (step, revision) in write.steps.into_iter().zip(revisions) {
                let key = (step.table, step.key.clone());
                match step.value {
                    Some(_) => known.of.insert(key, *revision),
                    None => known.of.remove(&key),
                };
                known.last = known.last.max(revision.0);
                shared.feed.tell(step, *revision);
            }
        }
        drop(write.done.send(answer));
    }
}

/// Puts writes into one transaction. One whose preconditions do not hold is left out and gets its own answer.
fn write_together(
    shared: &Shared,
    database: &Database,
    writes: &[Write],
) -> Result<Vec<Result<Vec<Revision>, StoreError>>, StoreError> {
    let transaction = database.begin_write().map_err(write_failed)?;
    let mut last = shared.revisions().last;
    // What was put in this transaction, whose revisions nobody has seen yet.
    let mut fresh: HashMap<Key, Revision> = HashMap::new();
    let mut answers = Vec::with_capacity(writes.len());
    for write in writes {
        if let Some(step) = first_conflict(shared, &transaction, &fresh, &write.steps)? {
            answers.push(Err(step.conflict()));
            continue;
        }
        let mut revisions = Vec::with_capacity(write.steps.len());
        for step in &write.steps {
            let mut table = transaction
                .open_table(Table::new(step.table))
                .map_err(write_failed)?;
            let key = step.key.as_slice();
            match &step.value {
                Some(value) => table.insert(key, value.as_slice()).map(drop),
                None => table.remove(key).map(drop),
            }
            .map_err(write_failed)?;
            last += 1;
            fresh.insert((step.table, step.key.clone()), Revision(last));
            revisions.push(Revision(last));
        }
        answers.push(Ok(revisions));
    }
    transaction.commit().map_err(write_failed)?;
    Ok(answers)
}

fn first_conflict<'a>(
    shared: &Shared,
    transaction: &WriteTransaction,
    fresh: &HashMap<Key, Revision>,
    steps: &'a [Step],
) -> Result<Option<&'a Step>, StoreError> {
    for step in steps {
        if step.when == Precondition::None {
            continue;
        }
        let table = transaction
            .open_table(Table::new(step.table))
            .map_err(write_failed)?;
        let is_there = table.get(step.key.as_slice()).map_err(write_failed)?.is_some();
        let key = (step.table, step.key.clone());
        let found = is_there.then(|| match fresh.get(&key) {
            Some(revision) => *revision,
            None => shared.revisions().of(&key),
        });
        if !step.when.holds(found) {
            return Ok(Some(step));
        }
    }
    Ok(None)
}
