//! Tables in CSV: bounded, and with errors that name file, line and column.

use std::{
    fs::File,
    io::{self, BufReader, Read},
    path::{Path, PathBuf},
};

use csv::{ReaderBuilder, StringRecord};
use flate2::read::MultiGzDecoder;

/// Longest line: a day of minutes, with room.
const LINE_BYTES_MAX: usize = 1 << 20;

/// Largest table, after decompression: the whole of Azure's trace of 2019 has less than one tenth of it for a day.
const TABLE_BYTES_MAX: u64 = 4 << 30;

/// Why a trace cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// A file cannot be read.
    #[error("read {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The head lacks a column.
    #[error("read {path}: its first line names no column {column}")]
    Column {
        /// The file.
        path: PathBuf,
        /// What it lacks.
        column: String,
    },
    /// A value makes no sense.
    #[error("read {path}, line {line}, column {column}: {problem}")]
    Value {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: u64,
        /// The column's name.
        column: String,
        /// What is wrong.
        problem: String,
    },
    /// The file as a whole makes no sense.
    #[error("read {path}: {problem}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A file cannot be written.
    #[error("write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A table that is read record by record.
pub(super) struct Table<R: Read> {
    path: PathBuf,
    head: StringRecord,
    records: csv::Reader<Bounded<R>>,
    record: StringRecord,
}

/// One record of a table.
#[derive(Clone, Copy)]
pub(super) struct Row<'a> {
    path: &'a Path,
    head: &'a StringRecord,
    record: &'a StringRecord,
}

/// Opens a file, or the one with `.gz` behind its name where there is no such file.
pub(super) fn open(path: &Path) -> Result<Table<Box<dyn Read>>, TraceError> {
    let mut path = path.to_owned();
    if !path.exists() {
        let mut packed = path.clone().into_os_string();
        packed.push(".gz");
        if Path::new(&packed).exists() {
            path = packed.into();
        }
    }
    let file = File::open(&path).map_err(|source| TraceError::Io {
        path: path.clone(),
        source,
    })?;
    let is_packed = path.extension().is_some_and(|extension| extension == "gz");
    let reader: Box<dyn Read> = if is_packed {
        Box::new(MultiGzDecoder::new(BufReader::new(file)))
    } else {
        Box::new(file)
    };
    Table::new(&path, reader)
}

impl<R: Read> Table<R> {
    /// A table with names of columns in its first line; `path` is for errors.
    pub(super) fn new(path: &Path, reader: R) -> Result<Self, TraceError> {
        let mut records = ReaderBuilder::new()
            .trim(csv::Trim::All)
            .from_reader(Bounded::new(reader));
        let head = records.headers().map_err(|error| csv_error(path, error))?.clone();
        Ok(Self {
            path: path.to_owned(),
            head,
            records,
            record: StringRecord::new(),
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Names of the columns.
    pub(super) fn head(&self) -> &StringRecord {
        &self.head
    }

    /// Where a column is, by any of its names.
    pub(super) fn column(&self, names: &[&str]) -> Result<usize, TraceError> {
        self.column_if_any(names).ok_or_else(|| TraceError::Column {
            path: self.path.clone(),
            column: names.join(" or "),
        })
    }

    /// The same where it may be missing.
    pub(super) fn column_if_any(&self, names: &[&str]) -> Option<usize> {
        self.head
            .iter()
            .position(|head| names.iter().any(|name| head.eq_ignore_ascii_case(name)))
    }

    /// The next record; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<Row<'_>>, TraceError> {
        let more = self
            .records
            .read_record(&mut self.record)
            .map_err(|error| csv_error(&self.path, error))?;
        Ok(more.then_some(Row {
            path: &self.path,
            head: &self.head,
            record: &self.record,
        }))
    }
}

fn csv_error(path: &Path, source: csv::Error) -> TraceError {
    let path = path.to_owned();
    match source.into_kind() {
        csv::ErrorKind::Io(source) => TraceError::Io { path, source },
        csv::ErrorKind::Utf8 { pos, err } => TraceError::Value {
            path,
            line: pos.map_or(1, |pos| pos.line()),
            column: (err.field() + 1).to_string(),
            problem: format!("is not UTF-8 from byte {} on", err.valid_up_to()),
        },
        csv::ErrorKind::UnequalLengths {
            pos,
            expected_len,
            len,
        } => TraceError::Value {
            path,
            line: pos.map_or(1, |pos| pos.line()),
            column: len.min(expected_len).to_string(),
            problem: format!("the line has {len} columns, the first line {expected_len}"),
        },
        kind => TraceError::Content {
            path,
            problem: format!("{kind:?}"),
        },
    }
}

impl<'a> Row<'a> {
    /// The text of a column.
    pub(super) fn text(&self, column: usize) -> &'a str {
        self.record.get(column).unwrap_or_default()
    }

    /// What is wrong with a column.
    pub(super) fn wrong(&self, column: usize, problem: impl Into<String>) -> TraceError {
        TraceError::Value {
            path: self.path.to_owned(),
            line: self.record.position().map_or(0, csv::Position::line),
            column: self.head.get(column).unwrap_or_default().to_owned(),
            problem: problem.into(),
        }
    }

    /// A count.
    pub(super) fn count(&self, column: usize) -> Result<u32, TraceError> {
        let text = self.text(column);
        text.parse()
            .map_err(|_| self.wrong(column, format!("{text:?} is no count")))
    }

    /// A finite number that is not negative.
    pub(super) fn amount(&self, column: usize) -> Result<f64, TraceError> {
        let text = self.text(column);
        text.parse()
            .ok()
            .filter(|value: &f64| value.is_finite() && *value >= 0.0)
            .ok_or_else(|| self.wrong(column, format!("{text:?} is no amount")))
    }
}

/// Bytes of a table, as long as neither a line nor the whole is too long.
struct Bounded<R> {
    inner: R,
    total: u64,
    line: usize,
}

impl<R> Bounded<R> {
    fn new(inner: R) -> Self {
        Self {
            inner,
            total: 0,
            line: 0,
        }
    }
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.total += read as u64;
        for piece in buffer[..read].split_inclusive(|byte| *byte == b'\n') {
            self.line += piece.len();
            if self.line > LINE_BYTES_MAX {
                let problem = format!("a line is longer than {LINE_BYTES_MAX} bytes");
                return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
            }
            if piece.ends_with(b"\n") {
                self.line = 0;
            }
        }
        if self.total > TABLE_BYTES_MAX {
            let problem = format!("it is longer than {TABLE_BYTES_MAX} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &[u8]) -> Result<Vec<f64>, TraceError> {
        let mut table = Table::new(Path::new("t.csv"), text)?;
        let column = table.column(&["b"])?;
        let mut found = Vec::new();
        while let Some(row) = table.next()? {
            found.push(row.amount(column)?);
        }
        Ok(found)
    }

    #[test]
    fn errors_say_where() {
        assert_eq!(read(b"a,b\nx, 1.5\ny,2\n").unwrap(), [1.5, 2.0]);
        for (text, said) in [
            (&b"a,c\n"[..], "read t.csv: its first line names no column b"),
            (
                b"a,b\nx,1\nx,-2\n",
                "read t.csv, line 3, column b: \"-2\" is no amount",
            ),
            (
                b"a,b\nx,NaN\n",
                "read t.csv, line 2, column b: \"NaN\" is no amount",
            ),
            (
                b"a,b\nx,1\nx\n",
                "read t.csv, line 3, column 1: the line has 1 columns, the first line 2",
            ),
            (
                b"a,b\nx,\xff\n",
                "read t.csv, line 2, column 2: is not UTF-8 from byte 0 on",
            ),
        ] {
            assert_eq!(read(text).unwrap_err().to_string(), said);
        }
    }

    #[test]
    fn a_line_without_end_is_not_held() {
        let mut text = b"a,b\n".to_vec();
        text.resize(text.len() + LINE_BYTES_MAX + 1, b'x');
        let Err(TraceError::Io { source, .. }) = read(&text) else {
            panic!("an endless line must be refused")
        };
        assert_eq!(source.to_string(), "a line is longer than 1048576 bytes");
    }
}
