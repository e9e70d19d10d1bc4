//! Reading a log: its newest lines, and those that are yet to come.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::sync::watch;

use super::{LogLine, segment::path_of, segment_numbers};

/// Most bytes that a follower reads at once.
const READ_BYTES_MAX: u64 = 1 << 20;

/// A log that could not be read.
#[derive(Debug, Clone, thiserror::Error)]
#[error("read log {}", dir.display())]
pub struct LogReadError {
    /// The log's directory.
    pub dir: PathBuf,
    /// Why it failed.
    #[source]
    pub source: Arc<io::Error>,
}

impl LogReadError {
    fn new(dir: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| Self {
            dir: dir.to_owned(),
            source: Arc::new(source),
        }
    }
}

pub(super) fn tail(
    dir: &Path,
    lines_max: usize,
    since_unix_ms: Option<u64>,
) -> Result<Vec<LogLine>, LogReadError> {
    let mut newest = VecDeque::new();
    let mut read_all = || {
        for number in segment_numbers(dir)? {
            let file = match File::open(path_of(dir, number)) {
                Ok(file) => file,
                // Removed since the directory was listed: too old to be wanted.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            for text in BufReader::new(file).split(b'\n') {
                let Some(line) = LogLine::parse(&text?) else {
                    continue;
                };
                if since_unix_ms.is_some_and(|since| line.unix_ms < since) {
                    continue;
                }
                newest.push_back(line);
                if newest.len() > lines_max {
                    newest.pop_front();
                }
            }
        }
        Ok(())
    };
    read_all().map_err(LogReadError::new(dir))?;
    Ok(newest.into())
}

/// Reads the lines that are added to a log. A log that does not exist yet is followed from its first line.
#[derive(Debug)]
pub struct Follower {
    dir: PathBuf,
    changes: watch::Receiver<u64>,
    number: u64,
    offset: u64,
}

impl Follower {
    pub(super) fn at_end(dir: PathBuf, changes: watch::Receiver<u64>) -> Result<Self, LogReadError> {
        let end = || -> io::Result<(u64, u64)> {
            let Some(number) = segment_numbers(&dir)?.last().copied() else {
                return Ok((0, 0));
            };
            Ok((number, path_of(&dir, number).metadata()?.len()))
        };
        let (number, offset) = end().map_err(LogReadError::new(&dir))?;
        Ok(Self {
            dir,
            changes,
            number,
            offset,
        })
    }

    /// Waits for lines and returns those that are there, oldest first; `None` when the store has closed.
    ///
    /// # Errors
    /// When a segment cannot be read.
    pub async fn next(&mut self) -> Result<Option<Vec<LogLine>>, LogReadError> {
        loop {
            self.changes.mark_unchanged();
            let lines = self.read().map_err(LogReadError::new(&self.dir))?;
            if !lines.is_empty() {
                return Ok(Some(lines));
            }
            if self.changes.changed().await.is_err() {
                return Ok(None);
            }
        }
    }

    /// What has been added since the last time, at most about [`READ_BYTES_MAX`].
    fn read(&mut self) -> io::Result<Vec<LogLine>> {
        loop {
            let numbers = segment_numbers(&self.dir)?;
            let Some(first) = numbers.first().copied() else {
                return Ok(Vec::new());
            };
            if !numbers.contains(&self.number) {
                // Removed with its log, or overtaken by the writer: the oldest that is left.
                (self.number, self.offset) = (first, 0);
            }
            let lines = self.read_segment()?;
            if !lines.is_empty() {
                return Ok(lines);
            }
            // The list is older than the read, so a newer segment in it means that this one is complete.
            match numbers.iter().find(|number| **number > self.number) {
                Some(next) => (self.number, self.offset) = (*next, 0),
                None => return Ok(Vec::new()),
            }
        }
    }

    fn read_segment(&mut self) -> io::Result<Vec<LogLine>> {
        let mut file = match File::open(path_of(&self.dir, self.number)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        if file.metadata()?.len() < self.offset {
            // Another log of the same name.
            self.offset = 0;
        }
        file.seek(SeekFrom::Start(self.offset))?;
        let mut text = Vec::new();
        file.take(READ_BYTES_MAX).read_to_end(&mut text)?;
        let whole = text
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |at| at + 1);
        self.offset += whole as u64;
        Ok(text[..whole]
            .split(|byte| *byte == b'\n')
            .filter_map(LogLine::parse)
            .collect())
    }
}
