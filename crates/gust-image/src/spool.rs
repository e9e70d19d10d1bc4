//! Contents of files on their way into an image: each distinct content once, on disk and not in memory.
//!
//! A spool is one unnamed temporary file, gone with the process whatever happens.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read, Write},
    os::unix::fs::FileExt,
    path::Path,
};

/// Bytes that are copied at a time.
const CHUNK_BYTES: usize = 128 << 10;

/// Names a content in its spool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ContentId(u32);

#[derive(Debug)]
struct Content {
    offset: u64,
    bytes: u64,
}

#[derive(Debug)]
pub(crate) struct Spool {
    file: File,
    end: u64,
    contents: Vec<Content>,
    by_hash: HashMap<[u8; 32], ContentId>,
}

impl Spool {
    /// A new spool whose file lies in `directory`, without a name.
    pub(crate) fn new(directory: &Path) -> io::Result<Self> {
        Ok(Self {
            file: tempfile::tempfile_in(directory)?,
            end: 0,
            contents: Vec::new(),
            by_hash: HashMap::new(),
        })
    }

    /// Takes in everything that `source` gives.
    pub(crate) fn add(&mut self, source: &mut dyn Read) -> io::Result<ContentId> {
        let mut hasher = blake3::Hasher::new();
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut bytes = 0;
        loop {
            let n = match source.read(&mut chunk) {
                Ok(0) => break,
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            hasher.update(&chunk[..n]);
            self.file.write_all_at(&chunk[..n], self.end + bytes)?;
            bytes += n as u64;
        }
        // A content that is known already is overwritten by the next one.
        let hash = *hasher.finalize().as_bytes();
        if let Some(&known) = self.by_hash.get(&hash) {
            return Ok(known);
        }
        let id = ContentId(
            u32::try_from(self.contents.len())
                .map_err(|_| io::Error::other("too many distinct file contents"))?,
        );
        self.contents.push(Content {
            offset: self.end,
            bytes,
        });
        self.by_hash.insert(hash, id);
        self.end += bytes;
        Ok(id)
    }

    /// Length of a content.
    pub(crate) fn bytes(&self, id: ContentId) -> u64 {
        self.contents[id.0 as usize].bytes
    }

    /// Writes a content out.
    pub(crate) fn copy_to(&self, id: ContentId, sink: &mut dyn Write) -> io::Result<()> {
        let Content { mut offset, bytes } = self.contents[id.0 as usize];
        let mut chunk = vec![0; CHUNK_BYTES.min(usize::try_from(bytes).unwrap_or(CHUNK_BYTES))];
        let end = offset + bytes;
        while offset < end {
            let n = chunk
                .len()
                .min(usize::try_from(end - offset).unwrap_or(usize::MAX));
            self.file.read_exact_at(&mut chunk[..n], offset)?;
            sink.write_all(&chunk[..n])?;
            offset += n as u64;
        }
        Ok(())
    }
}
