//! One process owns a data directory: an advisory lock that ends with the process, however it ends.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{Read, Seek, Write},
    path::{Path, PathBuf},
};

use crate::StoreError;

/// Longest content that is read from a lock file: a process id.
const PID_BYTES_MAX: u64 = 16;

/// The lock of a data directory; released when dropped.
#[derive(Debug)]
pub struct DataDirLock {
    dir: PathBuf,
    _file: File,
}

impl DataDirLock {
    /// Takes the lock of a directory that is there.
    ///
    /// # Errors
    /// [`StoreError::Locked`] when another process has it; [`StoreError::Io`] when its file cannot be used.
    pub fn take(dir: &Path) -> Result<Self, StoreError> {
        let path = dir.join("lock");
        let failed = |action: &str, source| StoreError::io(format!("{action} {}", path.display()), source);
        // The content belongs to the owner until the lock is ours, so it is not truncated here.
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|source| failed("open lock file", source))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                // Who holds it is a courtesy: the refusal stands whatever the file says.
                let pid = match file.take(PID_BYTES_MAX).read_to_string(&mut text) {
                    Ok(_) => text.trim().parse().ok(),
                    Err(_) => None,
                };
                return Err(StoreError::Locked {
                    dir: dir.to_owned(),
                    pid,
                });
            }
            Err(TryLockError::Error(source)) => return Err(failed("lock", source)),
        }
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(|source| failed("write lock file", source))?;
        Ok(Self {
            dir: dir.to_owned(),
            _file: file,
        })
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}
