//! Why the store could not do something.

use std::{io, path::PathBuf, sync::Arc};

use crate::{RecordError, records::RECORD_BYTES_MAX};

/// Why the store could not do something. Clones share the cause: one failed commit answers every batch in it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// Another process owns the data directory.
    #[error("data directory {} is in use by {}", dir.display(), owner(*pid))]
    Locked {
        /// The directory.
        dir: PathBuf,
        /// The owner's process id, when it could be read.
        pid: Option<u32>,
    },
    /// The disk is full, or a quota is used up.
    #[error("no space left on the disk: {action}")]
    DiskFull {
        /// What was tried, with its object.
        action: String,
    },
    /// A file operation failed.
    #[error("{action}")]
    Io {
        /// What was tried, with its object.
        action: String,
        /// Why it failed.
        #[source]
        source: Arc<io::Error>,
    },
    /// The metadata database failed.
    #[error("{action}")]
    Database {
        /// What was tried, with its object.
        action: String,
        /// Why it failed.
        #[source]
        source: Arc<redb::Error>,
    },
    /// A stored record cannot be understood.
    #[error("read record {key:?} of table {table}")]
    Record {
        /// The table.
        table: &'static str,
        /// The record's key.
        key: String,
        /// What is wrong with it.
        #[source]
        source: RecordError,
    },
    /// A record is not what its writer believed.
    #[error("record {key:?} of table {table} has been changed by another writer")]
    Conflict {
        /// The table.
        table: &'static str,
        /// The record's key.
        key: String,
    },
    /// A record is longer than may be.
    #[error(
        "record {key:?} of table {table} would have {bytes} bytes, of which {RECORD_BYTES_MAX} are allowed"
    )]
    TooLarge {
        /// The table.
        table: &'static str,
        /// The record's key.
        key: String,
        /// Its length, in bytes.
        bytes: usize,
    },
    /// More writes wait than may.
    #[error("too many writes are waiting for the metadata database")]
    Busy,
    /// The store is closing.
    #[error("the store is closing")]
    Closed,
}

fn owner(pid: Option<u32>) -> String {
    match pid {
        Some(pid) => format!("process {pid}"),
        None => "another process".to_owned(),
    }
}

impl StoreError {
    /// A file operation that failed; a full disk is told apart.
    pub fn io(action: impl Into<String>, source: io::Error) -> Self {
        let action = action.into();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { action },
            _ => Self::Io {
                action,
                source: Arc::new(source),
            },
        }
    }

    pub(crate) fn database(action: impl Into<String>, source: impl Into<redb::Error>) -> Self {
        match source.into() {
            redb::Error::Io(source) => Self::io(action, source),
            source => Self::Database {
                action: action.into(),
                source: Arc::new(source),
            },
        }
    }
}
