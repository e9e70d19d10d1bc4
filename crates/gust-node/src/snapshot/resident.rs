//! A file of a snapshot, in memory or in place on disk.

use std::{
    fs::File,
    sync::{Arc, Mutex},
};

use super::lock;

/// Uses of a file in place on disk before it is taken into memory: one that is used once in a long time never is.
const USES_WANTED: u32 = 2;

/// A file that is read where it lies. Both kinds look alike to a worker.
#[derive(Debug)]
pub(crate) struct Resident(Mutex<Lies>);

#[derive(Debug)]
struct Lies {
    file: Arc<File>,
    /// Bytes of memory that it takes; `None` on disk.
    held_bytes: Option<u64>,
    uses: u32,
}

impl Resident {
    /// A file in memory, of so many bytes.
    pub(super) fn in_memory(file: File, bytes: u64) -> Self {
        Self::new(file, Some(bytes))
    }

    /// A file on disk.
    pub(super) fn on_disk(file: File) -> Self {
        Self::new(file, None)
    }

    fn new(file: File, held_bytes: Option<u64>) -> Self {
        Self(Mutex::new(Lies {
            file: Arc::new(file),
            held_bytes,
            uses: 0,
        }))
    }

    /// The file as it is now; who has it keeps it.
    pub(crate) fn file(&self) -> Arc<File> {
        Arc::clone(&lock(&self.0).file)
    }

    /// Whether it is on disk.
    pub(crate) fn is_on_disk(&self) -> bool {
        lock(&self.0).held_bytes.is_none()
    }

    pub(super) fn held_bytes(&self) -> u64 {
        lock(&self.0).held_bytes.unwrap_or(0)
    }

    /// Counts a use; true once, when a file on disk has been used often enough.
    pub(super) fn wants_memory(&self) -> bool {
        let mut lies = lock(&self.0);
        lies.uses = lies.uses.saturating_add(1);
        lies.held_bytes.is_none() && lies.uses == USES_WANTED
    }

    /// Uses a copy in memory from now on.
    pub(super) fn take_in(&self, file: File, bytes: u64) {
        let mut lies = lock(&self.0);
        lies.file = Arc::new(file);
        lies.held_bytes = Some(bytes);
    }
}
