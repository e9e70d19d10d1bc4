//! The bounded cache of chunks that no file of this member has. Each is a file of its own, named by what is in it.
//!
//! What survives a restart is what is on disk; how often it was asked for does not.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use super::{
    CHUNK_BYTES, ChunkId,
    admission::{Admission, Offered},
    parse_hex,
};

/// First letters of the names of files that are being written.
const TEMPORARY_PREFIX: &str = ".chunk-";

/// Chunks without a file.
#[derive(Debug)]
pub(super) struct Loose {
    directory: PathBuf,
    admission: Admission,
}

impl Loose {
    /// The chunks in a directory, at most so many bytes. Blocks.
    pub(super) fn open(directory: &Path, bytes_max: u64) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        let mut loose = Self {
            directory: directory.to_path_buf(),
            admission: Admission::new(bytes_max, CHUNK_BYTES as u64),
        };
        for entry in fs::read_dir(directory)?.flatten() {
            let name = entry.file_name();
            let id = name.to_str().and_then(parse_hex).map(ChunkId);
            let bytes = entry.metadata().map_or(0, |metadata| metadata.len());
            let taken = id.is_some_and(|id| matches!(loose.admission.offer(id, bytes), Offered::Taken(_)));
            if !taken {
                // Cut short, or more than may be kept now.
                fs::remove_file(entry.path())?;
            }
        }
        Ok(loose)
    }

    /// Counts a request.
    pub(super) fn requested(&mut self, id: ChunkId) {
        self.admission.requested(id);
    }

    /// Whether a chunk is here, as far as is known without reading it.
    #[cfg(test)]
    pub(super) fn contains(&self, id: &ChunkId) -> bool {
        self.admission.contains(id)
    }

    /// A chunk's content. One that is damaged is removed.
    pub(super) fn read(&mut self, id: ChunkId) -> Option<Vec<u8>> {
        if !self.admission.contains(&id) {
            return None;
        }
        let mut content = Vec::new();
        let path = self.path(&id);
        let read = File::open(&path).and_then(|file| file.take(CHUNK_BYTES as u64).read_to_end(&mut content));
        if read.is_ok() && ChunkId::of(&content) == id {
            return Some(content);
        }
        tracing::warn!(path = %path.display(), "a chunk is damaged and is forgotten");
        self.remove(&id);
        None
    }

    /// Offers a chunk. A disk that does not take it is no loss.
    pub(super) fn offer(&mut self, id: ChunkId, content: &[u8]) {
        let Offered::Taken(gone) = self.admission.offer(id, content.len() as u64) else {
            return;
        };
        for victim in gone {
            let _ = fs::remove_file(self.path(&victim));
        }
        if let Err(error) = self.write(&id, content) {
            tracing::debug!(%error, "a chunk is not kept");
            self.remove(&id);
        }
    }

    /// Lets go of a chunk that a file has now.
    pub(super) fn remove(&mut self, id: &ChunkId) {
        if self.admission.contains(id) {
            self.admission.forget(id);
            let _ = fs::remove_file(self.path(id));
        }
    }

    fn write(&self, id: &ChunkId, content: &[u8]) -> io::Result<()> {
        let mut file = tempfile::Builder::new()
            .prefix(TEMPORARY_PREFIX)
            .tempfile_in(&self.directory)?;
        // Its name is its checksum: what a loss of power leaves is found out when it is read.
        file.write_all(content)?;
        file.persist(self.path(id)).map_err(|error| error.error)?;
        Ok(())
    }

    fn path(&self, id: &ChunkId) -> PathBuf {
        self.directory.join(id.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_survive_a_restart_and_damage_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let contents = [b"one".as_slice(), b"two", b"three"];
        let ids = contents.map(ChunkId::of);
        let mut loose = Loose::open(dir.path(), 100).unwrap();
        for (id, content) in ids.iter().zip(contents) {
            loose.offer(*id, content);
        }
        fs::write(dir.path().join(ids[1].to_string()), "other").unwrap();
        fs::write(dir.path().join(".chunk-cut-short"), "").unwrap();
        let mut loose = Loose::open(dir.path(), 100).unwrap();
        assert_eq!(loose.read(ids[0]).as_deref(), Some(contents[0]));
        assert_eq!(loose.read(ids[1]), None);
        assert!(!loose.contains(&ids[1]));
        loose.remove(&ids[2]);
        let names: Vec<_> = fs::read_dir(dir.path()).unwrap().flatten().collect();
        assert_eq!(names.len(), 1, "{names:?}");
        // A smaller cache lets go of what has no room.
        assert!(!Loose::open(dir.path(), 2).unwrap().contains(&ids[0]));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
