//! Bounded logs on disk, one directory for each name.
//!
//! A log is a row of numbered segments. The newest is appended to; when it is full the next one is begun and the
//! oldest is removed, so that a log never takes more than [`LogsConfig::segments`] times
//! [`LogsConfig::segment_bytes`]. A line is text: time in milliseconds of the Unix epoch, stream and message, with a
//! tab between them and `\`, line feed and carriage return in the message escaped. A line that the end of the process
//! cut short has no line feed and is not shown.
//!
//! One thread writes everything. Readers read the files, and a [`Follower`] is woken by the writer.

mod follow;
mod line;
mod segment;

use std::{
    collections::HashMap,
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use tokio::sync::{mpsc, oneshot, watch};

pub use follow::{Follower, LogReadError};
pub use line::LogLine;

use crate::StoreError;
use segment::Segment;

/// Most pieces of log that wait for the writer; a sender waits when there are as many.
const APPENDS_QUEUED_MAX: usize = 256;

/// Most pieces that are written before the followers are told.
const APPENDS_TOGETHER_MAX: usize = 64;

/// Most segments that are held open for writing.
const SEGMENTS_OPEN_MAX: usize = 64;

/// Bounds of each log.
#[derive(Debug, Clone, Copy)]
pub struct LogsConfig {
    /// Size at which a segment is full, in bytes.
    pub segment_bytes: u64,
    /// Segments that are kept, the current one included; at least one.
    pub segments: u64,
}

impl Default for LogsConfig {
    fn default() -> Self {
        Self {
            segment_bytes: 16 << 20,
            segments: 2,
        }
    }
}

/// Name of a log: letters, digits, `-` and `_`, 1 to 128 of them, so that it is a file name as it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LogScope(Arc<str>);

impl LogScope {
    /// A scope, or `None` when the name has other characters or another length.
    pub fn new(name: &str) -> Option<Self> {
        let fits = (1..=128).contains(&name.len())
            && name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        fits.then(|| Self(name.into()))
    }
}

impl fmt::Display for LogScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

enum Request {
    Append(LogScope, Vec<LogLine>),
    Remove(LogScope, oneshot::Sender<Result<(), StoreError>>),
    Flush(oneshot::Sender<()>),
}

/// Who waits for new lines: one counter for each log that is followed.
#[derive(Debug, Default)]
struct Watchers(Mutex<HashMap<LogScope, watch::Sender<u64>>>);

impl Watchers {
    fn subscribe(&self, scope: &LogScope) -> watch::Receiver<u64> {
        let mut watchers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Logs that nobody follows any more are forgotten here, which bounds the map by the followers that exist.
        watchers.retain(|_, counter| counter.receiver_count() > 0);
        watchers
            .entry(scope.clone())
            .or_insert_with(|| watch::Sender::new(0))
            .subscribe()
    }

    fn wake(&self, scope: &LogScope) {
        let watchers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(counter) = watchers.get(scope) {
            counter.send_modify(|count| *count += 1);
        }
    }
}

/// The logs of a data directory.
#[derive(Debug)]
pub struct Logs {
    dir: PathBuf,
    watchers: Arc<Watchers>,
    requests: Option<mpsc::Sender<Request>>,
    writer: Option<thread::JoinHandle<()>>,
}

impl Logs {
    pub(crate) fn open(dir: PathBuf, config: LogsConfig) -> Result<Self, StoreError> {
        fs::create_dir_all(&dir)
            .map_err(|source| StoreError::io(format!("make log directory {}", dir.display()), source))?;
        let (requests, queue) = mpsc::channel(APPENDS_QUEUED_MAX);
        let watchers = Arc::new(Watchers::default());
        let writer = Writer {
            dir: dir.clone(),
            config,
            watchers: Arc::clone(&watchers),
            open: HashMap::new(),
        };
        let writer = thread::Builder::new()
            .name("gust-logs".to_owned())
            .spawn(move || writer.run(queue))
            .map_err(|source| StoreError::io("start the log writer", source))?;
        Ok(Self {
            dir,
            watchers,
            requests: Some(requests),
            writer: Some(writer),
        })
    }

    /// Queues lines for a log; waits while too many are queued. A disk that is full loses lines, never the caller.
    pub async fn append(&self, scope: &LogScope, lines: Vec<LogLine>) {
        if lines.is_empty() {
            return;
        }
        // The channel closes only when the store is dropped, which no caller outlives.
        let _closed = self.send(Request::Append(scope.clone(), lines)).await;
    }

    /// Returns once everything that was queued before is in the files.
    pub async fn flush(&self) {
        let (done, flushed) = oneshot::channel();
        if self.send(Request::Flush(done)).await.is_ok() {
            let _closed = flushed.await;
        }
    }

    /// Removes a log.
    ///
    /// # Errors
    /// When the file system fails.
    pub async fn remove(&self, scope: &LogScope) -> Result<(), StoreError> {
        let (done, removed) = oneshot::channel();
        self.send(Request::Remove(scope.clone(), done)).await?;
        removed.await.unwrap_or(Err(StoreError::Closed))
    }

    /// The newest lines of a log, oldest first, at most `lines_max` of them and none before `since_unix_ms`. Blocks.
    ///
    /// # Errors
    /// When a segment cannot be read.
    pub fn tail(
        &self,
        scope: &LogScope,
        lines_max: usize,
        since_unix_ms: Option<u64>,
    ) -> Result<Vec<LogLine>, LogReadError> {
        follow::tail(&self.scope_dir(scope), lines_max, since_unix_ms)
    }

    /// Follows a log from its present end.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn follow(&self, scope: &LogScope) -> Result<Follower, LogReadError> {
        Follower::at_end(self.scope_dir(scope), self.watchers.subscribe(scope))
    }

    fn scope_dir(&self, scope: &LogScope) -> PathBuf {
        self.dir.join(&*scope.0)
    }

    async fn send(&self, request: Request) -> Result<(), StoreError> {
        let requests = self.requests.as_ref().ok_or(StoreError::Closed)?;
        requests.send(request).await.map_err(|_closed| StoreError::Closed)
    }
}

impl Drop for Logs {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the log writer panicked");
        }
    }
}

struct Writer {
    dir: PathBuf,
    config: LogsConfig,
    watchers: Arc<Watchers>,
    open: HashMap<LogScope, Segment>,
}

impl Writer {
    fn run(mut self, mut queue: mpsc::Receiver<Request>) {
        let mut waiting = Vec::new();
        while queue.blocking_recv_many(&mut waiting, APPENDS_TOGETHER_MAX) > 0 {
            for request in waiting.drain(..) {
                match request {
                    Request::Append(scope, lines) => self.append(&scope, &lines),
                    // Whoever asked may have gone away.
                    Request::Flush(done) => drop(done.send(())),
                    Request::Remove(scope, done) => drop(done.send(self.remove(&scope))),
                }
            }
        }
    }

    fn append(&mut self, scope: &LogScope, lines: &[LogLine]) {
        let mut text = Vec::new();
        for line in lines {
            line.write_to(&mut text);
        }
        if let Err(error) = self.segment(scope).and_then(|segment| segment.append(&text)) {
            // The segment is opened anew next time, so that a repaired disk is used again.
            self.open.remove(scope);
            tracing::warn!(log = %scope, %error, lines = lines.len(), "log lines are lost");
            return;
        }
        self.watchers.wake(scope);
    }

    fn segment(&mut self, scope: &LogScope) -> io::Result<&mut Segment> {
        if self.open.len() >= SEGMENTS_OPEN_MAX && !self.open.contains_key(scope) {
            self.open.clear();
        }
        let dir = self.dir.join(&*scope.0);
        match self.open.entry(scope.clone()) {
            std::collections::hash_map::Entry::Vacant(entry) => {
                Ok(entry.insert(Segment::open_last(&dir, self.config)?))
            }
            std::collections::hash_map::Entry::Occupied(entry) => {
                let segment = entry.into_mut();
                if segment.is_full() {
                    *segment = segment.next()?;
                }
                Ok(segment)
            }
        }
    }

    fn remove(&mut self, scope: &LogScope) -> Result<(), StoreError> {
        self.open.remove(scope);
        let dir = self.dir.join(&*scope.0);
        match fs::remove_dir_all(&dir) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(StoreError::io(format!("remove log {}", dir.display()), source)),
        }
    }
}

/// Numbers of the segments in a directory, in order.
fn segment_numbers(dir: &Path) -> io::Result<Vec<u64>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut numbers = Vec::new();
    for entry in entries {
        if let Some(number) = entry?.file_name().to_str().and_then(segment::number_of) {
            numbers.push(number);
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

#[cfg(test)]
mod tests;
