//! One file of a log.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use super::{LogsConfig, segment_numbers};

/// Ending of a segment's file name.
const SUFFIX: &str = ".log";

/// Number of a segment from its file name.
pub(super) fn number_of(file_name: &str) -> Option<u64> {
    file_name.strip_suffix(SUFFIX)?.parse().ok()
}

/// Path of a segment.
pub(super) fn path_of(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:010}{SUFFIX}"))
}

/// A segment that is appended to.
#[derive(Debug)]
pub(super) struct Segment {
    dir: PathBuf,
    number: u64,
    file: File,
    bytes: u64,
    config: LogsConfig,
}

impl Segment {
    /// The newest segment of a directory, or the first one of a new log.
    pub(super) fn open_last(dir: &Path, config: LogsConfig) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let number = segment_numbers(dir)?.last().copied().unwrap_or(1);
        let segment = Self::open(dir, number, config)?;
        if segment.is_full() {
            segment.next()
        } else {
            Ok(segment)
        }
    }

    fn open(dir: &Path, number: u64, config: LogsConfig) -> io::Result<Self> {
        let path = path_of(dir, number);
        let mut file = OpenOptions::new()
            .create(true)
            .read(true)
            .append(true)
            .open(path)?;
        let (bytes, length) = whole_lines_bytes(&mut file)?;
        // A line that the end of the process cut short would swallow the next one. Nothing is cut off otherwise: another
        // process that ends may have added a line meanwhile.
        if bytes < length {
            file.set_len(bytes)?;
        }
        Ok(Self {
            dir: dir.to_owned(),
            number,
            file,
            bytes,
            config,
        })
    }

    pub(super) fn is_full(&self) -> bool {
        self.bytes >= self.config.segment_bytes
    }

    /// Begins the next segment and removes those that are too old.
    pub(super) fn next(&self) -> io::Result<Self> {
        let next = Self::open(&self.dir, self.number + 1, self.config)?;
        for number in segment_numbers(&self.dir)? {
            if number + self.config.segments.max(1) <= next.number {
                fs::remove_file(path_of(&self.dir, number))?;
            }
        }
        Ok(next)
    }

    /// Appends whole lines, or nothing.
    pub(super) fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        match self.file.write_all(lines) {
            Ok(()) => {
                self.bytes += lines.len() as u64;
                Ok(())
            }
            Err(error) => {
                self.file.set_len(self.bytes)?;
                Err(error)
            }
        }
    }
}

/// Bytes up to the last line feed, and of the whole file. Looks back no further than a line can be long.
fn whole_lines_bytes(file: &mut File) -> io::Result<(u64, u64)> {
    let bytes = file.seek(SeekFrom::End(0))?;
    // Escaping can double a message; stream and time are short.
    let window = bytes.min(2 * super::line::MESSAGE_BYTES_MAX as u64 + 4096);
    file.seek(SeekFrom::Start(bytes - window))?;
    let mut end = Vec::with_capacity(usize::try_from(window).unwrap_or_default());
    file.take(window).read_to_end(&mut end)?;
    let kept = end.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    Ok((bytes - window + kept as u64, bytes))
}
