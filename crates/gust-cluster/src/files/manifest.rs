//! What a file consists of.

use std::{fs::File, io, os::unix::fs::FileExt};

use serde::{Deserialize, Serialize};

use super::{ChunkId, FileId};

/// Bytes of a chunk; a file's last may be shorter.
pub const CHUNK_BYTES: usize = 512 << 10;

/// Most chunks of a file: 64 GiB.
pub const CHUNKS_MAX: usize = 128 << 10;

/// A file's length and chunks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    bytes: u64,
    chunks: Vec<ChunkId>,
}

/// A manifest that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The file cannot be read.
    #[error("reading the file failed")]
    Read(#[from] io::Error),
    /// The file has too many chunks.
    #[error("the file of {0} bytes is longer than {CHUNKS_MAX} chunks")]
    TooLong(u64),
    /// It does not have the name by which it was asked for.
    #[error("the manifest is not that of {0}")]
    Name(FileId),
    /// It does not decode.
    #[error("the manifest cannot be understood")]
    Decode(#[source] postcard::Error),
    /// Length and number of chunks do not agree.
    #[error("the manifest of {bytes} bytes has {chunks} chunks")]
    Count {
        /// Length of the file.
        bytes: u64,
        /// Chunks that it lists.
        chunks: usize,
    },
}

/// Where a chunk lies in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Its name.
    pub chunk: ChunkId,
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Its length, in bytes.
    pub bytes: usize,
}

impl Manifest {
    /// Reads a file through. Blocks.
    ///
    /// # Errors
    /// When it cannot be read, or is too long.
    pub fn of(file: &File) -> Result<Self, ManifestError> {
        let bytes = file.metadata()?.len();
        let count = count(bytes).ok_or(ManifestError::TooLong(bytes))?;
        let mut chunks = Vec::with_capacity(count);
        let mut buffer = vec![0; CHUNK_BYTES];
        for index in 0..count {
            let part = &mut buffer[..length(bytes, index)];
            file.read_exact_at(part, offset(index))?;
            chunks.push(ChunkId::of(part));
        }
        Ok(Self { bytes, chunks })
    }

    /// As it is sent and stored.
    pub fn encode(&self) -> Vec<u8> {
        // Numbers and bytes always encode.
        postcard::to_stdvec(self).unwrap_or_default()
    }

    /// Reads a manifest that must have this name.
    ///
    /// # Errors
    /// When it has another, or is none.
    pub fn decode(encoded: &[u8], id: FileId) -> Result<Self, ManifestError> {
        if blake3::hash(encoded) != blake3::Hash::from_bytes(id.0) {
            return Err(ManifestError::Name(id));
        }
        let manifest: Self = postcard::from_bytes(encoded).map_err(ManifestError::Decode)?;
        match count(manifest.bytes) {
            Some(count) if count == manifest.chunks.len() => Ok(manifest),
            Some(_) => Err(ManifestError::Count {
                bytes: manifest.bytes,
                chunks: manifest.chunks.len(),
            }),
            None => Err(ManifestError::TooLong(manifest.bytes)),
        }
    }

    /// The file's name.
    pub fn id(&self) -> FileId {
        FileId(*blake3::hash(&self.encode()).as_bytes())
    }

    /// Length of the file, in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Its chunks that are not zeros, in order.
    pub fn parts(&self) -> impl Iterator<Item = Part> {
        let bytes = self.bytes;
        let parts = self.chunks.iter().enumerate().map(move |(index, chunk)| Part {
            chunk: *chunk,
            offset: offset(index),
            bytes: length(bytes, index),
        });
        parts.filter(|part| part.chunk != ChunkId::ZERO)
    }
}

/// Chunks of a file; `None` when they are too many.
fn count(bytes: u64) -> Option<usize> {
    let count = usize::try_from(bytes.div_ceil(CHUNK_BYTES as u64)).ok()?;
    (count <= CHUNKS_MAX).then_some(count)
}

fn offset(index: usize) -> u64 {
    index as u64 * CHUNK_BYTES as u64
}

fn length(bytes: u64, index: usize) -> usize {
    let left = bytes.saturating_sub(offset(index));
    usize::try_from(left).map_or(CHUNK_BYTES, |left| left.min(CHUNK_BYTES))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(content: &[u8]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(content, 0).unwrap();
        file
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn parts_make_up_the_file(
            pieces in prop::collection::vec((any::<bool>(), 1usize..CHUNK_BYTES + 9), 0..4)
        ) {
            let content: Vec<u8> = pieces.iter().flat_map(|&(zero, length)| vec![u8::from(!zero) * 7; length]).collect();
            let manifest = Manifest::of(&file(&content)).unwrap();
            prop_assert_eq!(Manifest::decode(&manifest.encode(), manifest.id()).unwrap(), manifest.clone());
            let mut again = vec![0; usize::try_from(manifest.bytes()).unwrap()];
            for part in manifest.parts() {
                let from = usize::try_from(part.offset).unwrap();
                let piece = &content[from..from + part.bytes];
                prop_assert_eq!(ChunkId::of(piece), part.chunk);
                again[from..from + part.bytes].copy_from_slice(piece);
            }
            prop_assert_eq!(again, content);
        }

        #[test]
        fn any_bytes_are_a_manifest_or_none(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let id = FileId(*blake3::hash(&bytes).as_bytes());
            if let Ok(manifest) = Manifest::decode(&bytes, id) {
                prop_assert_eq!(manifest.parts().count() <= CHUNKS_MAX, true);
                prop_assert!(manifest.parts().all(|part| part.offset + part.bytes as u64 <= manifest.bytes()));
            }
        }
    }

    #[test]
    fn what_does_not_add_up_is_refused() {
        let check = |bytes: u64, chunks: usize| {
            let manifest = Manifest {
                bytes,
                chunks: vec![ChunkId([1; 32]); chunks],
            };
            Manifest::decode(&manifest.encode(), manifest.id())
        };
        assert!(check(CHUNK_BYTES as u64, 1).is_ok() && check(0, 0).is_ok());
        assert!(matches!(
            check(CHUNK_BYTES as u64 + 1, 1),
            Err(ManifestError::Count { .. })
        ));
        assert!(matches!(check(0, 1), Err(ManifestError::Count { .. })));
        assert!(matches!(check(u64::MAX, 1), Err(ManifestError::TooLong(_))));
        let manifest = Manifest::of(&file(b"content")).unwrap();
        let other = FileId([1; 32]);
        assert!(matches!(
            Manifest::decode(&manifest.encode(), other),
            Err(ManifestError::Name(_))
        ));
    }
}
