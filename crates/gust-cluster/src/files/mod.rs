//! Files of the cluster: images and snapshots, in chunks that are named by what is in them.
//!
//! ```text
//!  file ── publish ──> manifest: length and chunks of 512 KiB, each by its BLAKE3; zeros are not stored
//!  FileId (BLAKE3 of the manifest) ── obtain ──> manifest, then each chunk: from here, or from a member that has it
//! ```
//!
//! A member publishes what it has ([`Library`]), gives chunks to whoever is a member and asks by name, and assembles files
//! when they are needed. Nothing that arrives is believed: a manifest must have its name, a chunk too. What a chunk holds is never looked at here;
//! images and snapshots have checks of their own.
//!
//! On disk a chunk lies in the files that have it. When a file goes, chunks that no other file has are offered to a bounded
//! cache ([`loose`]), where an admission policy decides ([`admission`]).

pub mod admission;
mod fetch;
mod library;
mod loose;
mod manifest;
mod state;

use std::fmt;

pub use fetch::{FetchError, Origin, Wanted, answer};
pub use library::{Library, LibraryConfig, LibraryError};
pub use manifest::{CHUNK_BYTES, CHUNKS_MAX, Manifest, ManifestError};
use serde::{Deserialize, Serialize};

/// Names a chunk: BLAKE3 of its content, or [`ChunkId::ZERO`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ChunkId(pub [u8; 32]);

impl ChunkId {
    /// A chunk of zeros, of whatever length. It is neither stored nor sent.
    pub const ZERO: Self = Self([0; 32]);

    /// The name of this content.
    pub fn of(content: &[u8]) -> Self {
        match content.iter().all(|&byte| byte == 0) {
            true => Self::ZERO,
            false => Self(*blake3::hash(content).as_bytes()),
        }
    }
}

impl fmt::Display for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl fmt::Debug for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChunkId({self})")
    }
}

/// Names a file: BLAKE3 of its manifest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FileId(pub [u8; 32]);

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl fmt::Debug for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FileId({self})")
    }
}

/// Reads a name as it is written in a file's name.
fn parse_hex(text: &str) -> Option<[u8; 32]> {
    blake3::Hash::from_hex(text).ok().map(|hash| *hash.as_bytes())
}
