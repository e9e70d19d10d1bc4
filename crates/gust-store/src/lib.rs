//! What Gust keeps on disk, under one data directory that one process owns.
//!
//! ```text
//! <data directory>/
//!   lock              advisory lock; holds the owner's process id
//!   meta.redb         records (functions, versions, queued events): [`Meta`]; [`Records`] can be kept elsewhere
//!   blobs/<kind>/     content-addressed files (code packages, images): [`Blobs`]
//!   logs/<function>/  bounded log segments: [`Logs`]
//! ```
//!
//! The store knows no functions, versions or events: it keeps records of kinds that its user defines, files named by
//! what is in them, and lines of text under a name. Everything that it acknowledges has reached the disk, logs
//! excepted: those are written at once and survive the end of the process, but not necessarily a loss of power.

#![forbid(unsafe_code)]

mod blob;
#[cfg(test)]
mod conformance;
mod embedded;
mod error;
mod lease;
mod lock;
mod logs;
mod memory;
mod meta;
mod record;
pub mod records;

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

pub use blob::{BlobId, BlobKind, Blobs, ParseBlobIdError, Pin};
pub use error::StoreError;
pub use lease::{Held, LeaseError};
pub use lock::DataDirLock;
pub use logs::{Follower, LogLine, LogReadError, LogScope, Logs, LogsConfig};
pub use memory::Memory;
pub use meta::{Batch, Meta, Watch, Watched};
pub use record::{Record, RecordError, decode, encode};
pub use records::{Precondition, Records, Revision};

/// Name of the metadata file in the data directory.
const META_FILE: &str = "meta.redb";

/// Others may pass through, but neither list nor write.
const MODE_PASS_THROUGH: u32 = 0o711;

/// For the owner alone.
const MODE_PRIVATE: u32 = 0o700;

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
    /// What others may do with a new one: pass through, since the users that workers run as must reach the trees of
    /// functions in it; but neither list it nor read records, code and logs.
    ///
    /// # Errors
    /// [`StoreError::Locked`] when another process owns the directory, [`StoreError::Io`] and
    /// [`StoreError::Database`] when it cannot be read or written.
    pub fn open(config: &StoreConfig) -> Result<Self, StoreError> {
        let dir = &config.dir;
        let failed = |source| StoreError::io(format!("make data directory {}", dir.display()), source);
        make_data_dir(dir).map_err(failed)?;
        let lock = DataDirLock::take(dir)?;
        for kind in ["blobs", "logs"] {
            make_dir(&dir.join(kind), MODE_PRIVATE).map_err(failed)?;
        }
        // An empty file is a new database: it is private before anything is in it.
        let meta = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(MODE_PRIVATE & 0o666)
            .open(dir.join(META_FILE));
        drop(meta.map_err(failed)?);
        Ok(Self {
            meta: Meta::embedded(&dir.join(META_FILE), config.meta_cache_bytes)?,
            blobs: Blobs::open(dir.join("blobs"))?,
            logs: Logs::open(dir.join("logs"), config.logs)?,
            lock,
        })
    }

    /// Writes what is queued and lets go of the data directory, so that another process can open it, while this one
    /// goes on for a while. Records are refused with [`StoreError::Closed`] from then on. Blobs and logs are not: files
    /// that are whole stay, and lines of two processes can go into one log.
    ///
    /// # Errors
    /// When what was queued could not be written; then nothing has been let go of.
    pub async fn release(&self) -> Result<(), StoreError> {
        self.logs.flush().await;
        self.meta.release().await?;
        self.lock.release()
    }

    /// Takes the data directory again after [`Store::release`].
    ///
    /// # Errors
    /// [`StoreError::Locked`] when another process has it.
    pub fn retake(&self) -> Result<(), StoreError> {
        self.lock.retake()?;
        self.meta.retake()
    }

    /// The data directory.
    pub fn dir(&self) -> &Path {
        self.lock.dir()
    }
}

/// Makes a data directory as [`Store::open`] does, for whoever puts something into it before.
///
/// # Errors
/// When it cannot be made.
pub fn make_data_dir(path: &Path) -> io::Result<()> {
    make_dir(path, MODE_PASS_THROUGH)
}

/// Makes a directory and those above it. One that is there stays as it is.
fn make_dir(path: &Path, mode: u32) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    match fs::DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        made => made,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn others_can_pass_through_but_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("above/data");
        drop(Store::open(&StoreConfig::new(&data)).unwrap());
        let mode = |name: &str| fs::metadata(data.join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(""), 0o711);
        for name in ["blobs", "logs"] {
            assert_eq!(mode(name), 0o700, "{name}");
        }
        assert_eq!(mode(META_FILE), 0o600);
        fs::set_permissions(&data, fs::Permissions::from_mode(0o750)).unwrap();
        drop(Store::open(&StoreConfig::new(&data)).unwrap());
        assert_eq!(mode(""), 0o750, "what its owner has chosen stays");
    }

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

    #[tokio::test]
    async fn a_data_directory_that_was_let_go_of_is_anothers_until_it_is_taken_again() {
        let dir = tempfile::tempdir().unwrap();
        let config = StoreConfig::new(dir.path());
        let first = Store::open(&config).unwrap();
        let late = |store: &Store| store.meta.commit(Batch::new());
        let queued = late(&first);
        first.release().await.unwrap();
        queued.await.unwrap();
        assert!(matches!(late(&first).await, Err(StoreError::Closed)));
        let second = Store::open(&config).unwrap();
        late(&second).await.unwrap();
        // A write that was refused has not opened the database again.
        assert!(matches!(late(&first).await, Err(StoreError::Closed)));
        assert!(matches!(first.retake(), Err(StoreError::Locked { .. })));
        drop(second);
        first.retake().unwrap();
        late(&first).await.unwrap();
    }
}
