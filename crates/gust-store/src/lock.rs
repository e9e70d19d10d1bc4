//! One process owns a data directory: an advisory lock that ends with the process, however it ends.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
};

use crate::StoreError;

/// Longest content that is read from a lock file: a process id.
const PID_BYTES_MAX: u64 = 16;

/// The lock of a data directory; released when dropped.
#[derive(Debug)]
pub struct DataDirLock {
    dir: PathBuf,
    file: File,
}

impl DataDirLock {
    /// Takes the lock of a directory that is there.
    ///
    /// # Errors
    /// [`StoreError::Locked`] when another process has it; [`StoreError::Io`] when its file cannot be used.
    pub fn take(dir: &Path) -> Result<Self, StoreError> {
        let path = path(dir);
        let failed = |action: &str, source| failed(dir, action, source);
        // The content belongs to the owner until the lock is ours, so it is not truncated here.
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|source| failed("open lock file", source))?;
        let lock = Self {
            dir: dir.to_owned(),
            file,
        };
        lock.retake()?;
        Ok(lock)
    }

    /// Lets go of it: another process may take it.
    ///
    /// # Errors
    /// When the file system fails.
    pub(crate) fn release(&self) -> Result<(), StoreError> {
        self.file
            .unlock()
            .map_err(|source| failed(&self.dir, "unlock", source))
    }

    /// Takes it, at first or after [`DataDirLock::release`].
    ///
    /// # Errors
    /// As [`DataDirLock::take`].
    pub(crate) fn retake(&self) -> Result<(), StoreError> {
        let mut file = &self.file;
        let failed = |action: &str, source| failed(&self.dir, action, source);
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                // Who holds it is a courtesy: the refusal stands whatever the file says.
                let read = file.rewind();
                let read = read.and_then(|()| file.take(PID_BYTES_MAX).read_to_string(&mut text));
                return Err(StoreError::Locked {
                    dir: self.dir.clone(),
                    pid: read.ok().and_then(|_| text.trim().parse().ok()),
                });
            }
            Err(TryLockError::Error(source)) => return Err(failed("lock", source)),
        }
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(|source| failed("write lock file", source))
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

fn path(dir: &Path) -> PathBuf {
    dir.join("lock")
}

fn failed(dir: &Path, action: &str, source: io::Error) -> StoreError {
    StoreError::io(format!("{action} {}", path(dir).display()), source)
}
