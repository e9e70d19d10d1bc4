//! Content-addressed files.
//!
//! A blob is named by the SHA-256 of what it was made from: of its own bytes ([`Blobs::put`]), or of the blob that it
//! was derived from ([`Blobs::derive`]: an image made from a package). It appears under its name only when it is
//! whole and on the disk: written to a temporary file, synced, renamed, directory synced. Whatever ends the process
//! in between leaves a temporary file, which the next start removes.
//!
//! Blobs have no reference counts. Their user says which ones it still needs ([`Blobs::retain`]); a [`Pin`] keeps one
//! that is not recorded anywhere yet.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
};

use sha2::{Digest, Sha256};
use tempfile::TempPath;

use crate::StoreError;

/// Directory for files that are being written.
const TEMPORARY_DIR: &str = "tmp";

/// SHA-256 that names a blob.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlobId([u8; 32]);

impl BlobId {
    /// The id of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The digest.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// An id from a digest.
    pub fn from_bytes(digest: [u8; 32]) -> Self {
        Self(digest)
    }
}

impl fmt::Display for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlobId({self})")
    }
}

/// A text that names no blob.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a blob's name has 64 hexadecimal digits")]
pub struct ParseBlobIdError;

impl FromStr for BlobId {
    type Err = ParseBlobIdError;

    fn from_str(text: &str) -> Result<Self, ParseBlobIdError> {
        let mut digest = [0; 32];
        if text.len() != 2 * digest.len() || !text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(ParseBlobIdError);
        }
        for (at, byte) in digest.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).map_err(|_| ParseBlobIdError)?;
        }
        Ok(Self(digest))
    }
}

/// A kind of blob: the name of its directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlobKind(pub &'static str);

/// Blobs that must stay although nothing refers to them yet: counted, since two deployments may bring one package.
type Pins = Arc<Mutex<HashMap<BlobId, usize>>>;

/// Keeps a blob, of every kind, from [`Blobs::retain`] until it is dropped.
#[derive(Debug)]
pub struct Pin {
    id: BlobId,
    pins: Pins,
}

impl Pin {
    /// The blob that is kept.
    pub fn id(&self) -> BlobId {
        self.id
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = pins.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                pins.remove(&self.id);
            }
        }
    }
}

/// The blobs of a data directory.
#[derive(Debug)]
pub struct Blobs {
    dir: PathBuf,
    pins: Pins,
}

impl Blobs {
    pub(crate) fn open(dir: PathBuf) -> Result<Self, StoreError> {
        let temporary = dir.join(TEMPORARY_DIR);
        make_dir(&temporary)?;
        // What is here was being written when the last owner ended.
        for entry in read_dir(&temporary)? {
            remove(&entry)?;
        }
        Ok(Self {
            dir,
            pins: Pins::default(),
        })
    }

    /// Where a blob is, whether it exists or not.
    pub fn path(&self, kind: BlobKind, id: BlobId) -> PathBuf {
        self.dir.join(kind.0).join(id.to_string())
    }

    /// A blob of this name is there.
    pub fn exists(&self, kind: BlobKind, id: BlobId) -> bool {
        self.path(kind, id).is_file()
    }

    /// Keeps a blob until the pin is dropped.
    pub fn pin(&self, id: BlobId) -> Pin {
        let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        *pins.entry(id).or_default() += 1;
        Pin {
            id,
            pins: Arc::clone(&self.pins),
        }
    }

    /// Stores bytes under their own digest. Blocks until they are on the disk.
    ///
    /// # Errors
    /// [`StoreError::DiskFull`] and other failures of the file system; then nothing is left behind.
    pub fn put(&self, kind: BlobKind, bytes: &[u8]) -> Result<Pin, StoreError> {
        let pin = self.pin(BlobId::of(bytes));
        if !self.exists(kind, pin.id) {
            self.derive(kind, pin.id, |path| {
                File::create(path)
                    .and_then(|mut file| file.write_all(bytes))
                    .map_err(|source| {
                        StoreError::io(
                            format!("write {} bytes to {}", bytes.len(), path.display()),
                            source,
                        )
                    })
            })?;
        }
        Ok(pin)
    }

    /// Stores a file that `make` writes at the path it is given, under the name `id`. Blocks until it is on the disk.
    ///
    /// # Errors
    /// What `make` answers, or a failure of the file system; then nothing is left behind.
    pub fn derive<E: From<StoreError>>(
        &self,
        kind: BlobKind,
        id: BlobId,
        make: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<(), E> {
        let temporary = self.temporary().map_err(E::from)?;
        make(&temporary)?;
        let path = self.path(kind, id);
        persist(temporary, &path)
            .map_err(|source| StoreError::io(format!("write {}", path.display()), source))
            .map_err(E::from)
    }

    fn temporary(&self) -> Result<TempPath, StoreError> {
        let dir = self.dir.join(TEMPORARY_DIR);
        tempfile::NamedTempFile::new_in(&dir)
            .map(tempfile::NamedTempFile::into_temp_path)
            .map_err(|source| StoreError::io(format!("make a file in {}", dir.display()), source))
    }

    /// Removes a blob unless it is pinned.
    ///
    /// # Errors
    /// When the file system fails; a blob that is not there is none the worse.
    pub fn remove(&self, kind: BlobKind, id: BlobId) -> Result<(), StoreError> {
        // Held while removing, so that nobody pins and looks in between.
        let pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        if pins.contains_key(&id) {
            return Ok(());
        }
        remove(&self.path(kind, id))
    }

    /// Removes every blob of a kind that is neither in `needed` nor pinned. Answers how many went.
    ///
    /// # Errors
    /// When the file system fails.
    pub fn retain(&self, kind: BlobKind, needed: &HashSet<BlobId>) -> Result<usize, StoreError> {
        let dir = self.dir.join(kind.0);
        if !dir.exists() {
            return Ok(0);
        }
        let mut removed = 0;
        for path in read_dir(&dir)? {
            let id = path
                .file_name()
                .and_then(|name| name.to_str())
                .and_then(|name| name.parse().ok());
            match id {
                Some(id) if needed.contains(&id) => {}
                Some(id) => {
                    self.remove(kind, id)?;
                    removed += 1;
                }
                None => tracing::warn!(path = %path.display(), "a file that is no blob lies among the blobs"),
            }
        }
        Ok(removed)
    }
}

fn persist(temporary: TempPath, path: &Path) -> io::Result<()> {
    File::open(&temporary)?.sync_all()?;
    let dir = path.parent().expect("a blob's path has a directory");
    fs::create_dir_all(dir)?;
    temporary.persist(path).map_err(|error| error.error)?;
    File::open(dir)?.sync_all()
}

fn make_dir(dir: &Path) -> Result<(), StoreError> {
    fs::create_dir_all(dir)
        .map_err(|source| StoreError::io(format!("make directory {}", dir.display()), source))
}

fn read_dir(dir: &Path) -> Result<Vec<PathBuf>, StoreError> {
    fs::read_dir(dir)
        .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect())
        .map_err(|source| StoreError::io(format!("list directory {}", dir.display()), source))
}

fn remove(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(StoreError::io(format!("remove {}", path.display()), source)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CODE: BlobKind = BlobKind("code");

    fn blobs() -> (tempfile::TempDir, Blobs) {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path().join("blobs")).unwrap();
        (dir, blobs)
    }

    fn temporaries(blobs: &Blobs) -> usize {
        read_dir(&blobs.dir.join(TEMPORARY_DIR)).unwrap().len()
    }

    #[test]
    fn bytes_come_back_under_their_digest() {
        let (_dir, blobs) = blobs();
        let pin = blobs.put(CODE, b"abc").unwrap();
        assert_eq!(
            pin.id().to_string(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(fs::read(blobs.path(CODE, pin.id())).unwrap(), b"abc");
        assert_eq!(pin.id().to_string().parse(), Ok(pin.id()));
        assert_eq!(temporaries(&blobs), 0);
    }

    #[test]
    fn a_failed_derivation_leaves_nothing() {
        let (_dir, blobs) = blobs();
        let id = BlobId::of(b"package");
        let error = blobs.derive(CODE, id, |path| {
            fs::write(path, b"half").unwrap();
            Err(StoreError::Closed)
        });
        assert!(matches!(error, Err(StoreError::Closed)));
        assert!(!blobs.exists(CODE, id));
        assert_eq!(temporaries(&blobs), 0);
    }

    #[test]
    fn leftovers_of_a_dead_owner_go_at_the_next_start() {
        let (dir, blobs) = blobs();
        fs::write(blobs.dir.join(TEMPORARY_DIR).join("half"), b"half").unwrap();
        drop(blobs);
        let blobs = Blobs::open(dir.path().join("blobs")).unwrap();
        assert_eq!(temporaries(&blobs), 0);
    }

    #[test]
    fn only_what_is_neither_needed_nor_pinned_is_removed() {
        let (_dir, blobs) = blobs();
        let needed = blobs.put(CODE, b"needed").unwrap().id();
        let pinned = blobs.put(CODE, b"pinned").unwrap();
        let twice = blobs.pin(pinned.id());
        let gone = blobs.put(CODE, b"gone").unwrap().id();
        blobs.retain(CODE, &HashSet::from([needed])).unwrap();
        assert!(blobs.exists(CODE, needed) && blobs.exists(CODE, pinned.id()) && !blobs.exists(CODE, gone));
        let id = pinned.id();
        drop(pinned);
        blobs.remove(CODE, id).unwrap();
        assert!(blobs.exists(CODE, id), "the second pin still keeps it");
        drop(twice);
        blobs.remove(CODE, id).unwrap();
        assert!(!blobs.exists(CODE, id));
    }

    #[test]
    fn names_that_are_no_digest_are_refused() {
        for text in [
            "",
            "00",
            "../../etc/passwd",
            &"g".repeat(64),
            &"A".repeat(64),
            &"é".repeat(32),
        ] {
            assert_eq!(text.parse::<BlobId>(), Err(ParseBlobIdError), "{text}");
        }
    }
}
