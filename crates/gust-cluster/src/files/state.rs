//! What a library knows: files, what was published from where, and where each chunk lies.

use std::{collections::HashMap, fs::File, io, os::unix::fs::MetadataExt, path::PathBuf, sync::Arc};

use super::{ChunkId, FileId, Manifest, loose::Loose, manifest::Part};

/// Tells a file that has not changed from one that has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    changed: (i64, i64),
}

impl Stamp {
    pub(super) fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

/// A file that is known.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) path: PathBuf,
    pub(super) manifest: Arc<Manifest>,
    /// The library's own, to be removed with its entry.
    pub(super) is_own: bool,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) files: HashMap<FileId, Entry>,
    /// What was published from a path, so that a file that has not changed is not read again.
    pub(super) paths: HashMap<PathBuf, (Stamp, FileId)>,
    /// Files that have a chunk, with its place; the first is as good as any.
    pub(super) chunks: HashMap<ChunkId, Vec<(FileId, Part)>>,
    pub(super) indexed: usize,
    pub(super) loose: Loose,
}

impl State {
    pub(super) fn forget(&mut self, id: FileId) {
        let Some(entry) = self.files.remove(&id) else {
            return;
        };
        for part in entry.manifest.parts() {
            if let Some(places) = self.chunks.get_mut(&part.chunk) {
                let before = places.len();
                places.retain(|(file, _)| *file != id);
                self.indexed -= before - places.len();
                if places.is_empty() {
                    self.chunks.remove(&part.chunk);
                }
            }
        }
    }
}
