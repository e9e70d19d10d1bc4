//! What Gust keeps on disk, under one data directory that one process owns.
//!
//! ```text
//! <data directory>/
//!   lock              advisory lock; holds the owner's process id
//!   meta.redb         records (functions, versions, queued events): [`Meta`]
//!   blobs/<kind>/     content-addressed files (code packages, images): [`Blobs`]
//!   logs/<function>/  bounded log segments: [`Logs`]
//! ```
//!
//! The store knows no functions, versions or events: it keeps records of kinds that its user defines, files named by
//! what is in them, and lines of text under a name. Everything that it acknowledges has reached the disk, logs
//! excepted: those are written at once and survive the end of the process, but not necessarily a loss of power.

#![forbid(unsafe_code)]

mod blob;
mod error;
mod lock;
mod logs;
mod meta;
mod record;

use std::{fs, path::PathBuf};

pub use blob::{BlobId, BlobKind, Blobs, ParseBlobIdError, Pin};
pub use error::StoreError;
pub use logs::{Follower, LogLine, LogReadError, LogScope, Logs, LogsConfig};
pub use meta::{Batch, Meta};
pub use record::{Record, RecordError, decode, encode};

use lock::DataDirLock;

/// Name of the metadata file in the data directory.
const META_FILE: &str = "meta.redb";

/// Configuration of a store.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// The data directory; made when it is missing.
    pub dir: PathBuf,
    /// Memory for the metadata's page cache, in bytes.
    pub meta_cache_bytes: usize,
    /// Bounds of the logs.
    pub logs: LogsConfig,
}

impl StoreConfig {
    /// Page cache of the metadata unless set otherwise: everything that the invocation path needs is kept decoded by
    /// the store's user, so pages are read at start and written afterwards.
    pub const META_CACHE_BYTES_DEFAULT: usize = 1 << 20;

    /// Defaults for a data directory.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            meta_cache_bytes: Self::META_CACHE_BYTES_DEFAULT,
            logs: LogsConfig::default(),
        }
    }
}

/// An open data directory. Dropping it writes what is queued and releases the directory.
#[derive(Debug)]
pub struct Store {
    /// Records.
    pub meta: Meta,
    /// Content-addressed files.
    pub blobs: Blobs,
    /// Logs.
    pub logs: Logs,
    // Declared last, so that it is released last.
    lock: DataDirLock,
}

impl Store {
    /// Opens the data directory, making it when it is missing.
    ///
    /// # Errors
    /// [`StoreError::Locked`] when another process owns the directory, [`StoreError::Io`] and
    /// [`StoreError::Database`] when it cannot be read or written.
    pub fn open(config: &StoreConfig) -> Result<Self, StoreError> {
        let dir = &config.dir;
        fs::create_dir_all(dir)
            .map_err(|source| StoreError::io(format!("make data directory {}", dir.display()), source))?;
        let lock = DataDirLock::take(dir)?;
        Ok(Self {
            meta: Meta::open(&dir.join(META_FILE), config.meta_cache_bytes)?,
            blobs: Blobs::open(dir.join("blobs"))?,
            logs: Logs::open(dir.join("logs"), config.logs)?,
            lock,
        })
    }

    /// The data directory.
    pub fn dir(&self) -> &std::path::Path {
        self.lock.dir()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_owner_is_refused_by_name_and_pid() {
        let dir = tempfile::tempdir().unwrap();
        let config = StoreConfig::new(dir.path());
        let first = Store::open(&config).unwrap();
        let error = Store::open(&config).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, StoreError::Locked { .. }), "{error:?}");
        assert!(text.contains(&dir.path().display().to_string()), "{text}");
        assert!(text.contains(&std::process::id().to_string()), "{text}");
        drop(first);
        Store::open(&config).unwrap();
    }
}
