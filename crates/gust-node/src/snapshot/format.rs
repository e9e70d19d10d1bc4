//! Snapshots and layouts on disk.
//!
//! ```text
//! NAME          0     magic, format version, length of the description, its BLAKE3
//!               48    description (postcard)
//!               4096  sections, each from a page boundary on; pages of zeros are holes
//! NAME-data     what is large, as it is, so that it can be mapped
//! ```
//!
//! Nothing is used before it has been checked: first the header, then the description against its checksum, then that it
//! is for this machine and these images, and each section against its checksum while it is read into memory. The data
//! are used in place only when they have been read and found right before, and the file has not changed since. The checksum
//! of a section covers its pages that are not zero, with their numbers, so that it does not depend on where a file
//! system has holes.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// First bytes of a snapshot file.
const MAGIC: [u8; 8] = *b"GUSTSNAP";

/// The one version of the format that this code reads and writes.
const VERSION: u32 = 2;

/// Bytes before the description.
const HEADER_BYTES: usize = 48;

/// First letters of the names of files that are being written.
pub(super) const TEMPORARY_PREFIX: &str = ".snapshot-";

/// Unit of sections, and room for header and description.
pub(super) const PAGE_BYTES: usize = 4096;

/// Pages that are read at a time.
const CHUNK_PAGES: usize = 256;

/// Longest section, in bytes.
const SECTION_BYTES_MAX: u64 = 64 << 30;

/// Most sections of a file.
const SECTIONS_MAX: usize = 4;

/// What a file holds and what it may be used for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Description {
    /// What it is a snapshot of.
    pub name: String,
    /// The processor features that it was made with.
    pub fingerprint: String,
    /// Checksums of what it was made from: images, or the snapshot that a layout belongs to.
    pub inputs: Vec<[u8; 32]>,
    /// Numbers that the maker wants back.
    pub numbers: Vec<u64>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Stored {
    description: Description,
    sections: Vec<Section>,
    /// What is in the file beside.
    data: Option<Section>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Section {
    offset: u64,
    bytes: u64,
    checksum: [u8; 32],
}

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FormatError {
    #[error("there is none")]
    Missing,
    #[error("reading or writing {path} failed")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the file is no snapshot")]
    NotASnapshot,
    #[error("the file has format version {0}, and this program reads version {VERSION}")]
    OtherVersion(u32),
    #[error("the file is damaged: {0}")]
    Damaged(&'static str),
    #[error("the file was made with other processor features")]
    OtherProcessor,
    #[error("the file was made from other images")]
    OtherInputs,
    #[error("the file is of another version")]
    OtherName,
}

impl FormatError {
    /// There is no such file, which is nothing wrong.
    pub(crate) fn is_missing(&self) -> bool {
        matches!(self, Self::Missing)
    }
}

/// Tells a file that has not changed from one that has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DataId {
    device: u64,
    inode: u64,
    bytes: u64,
    /// Of the last change, of content or attributes, in seconds and nanoseconds.
    changed: (i64, i64),
}

/// A file's sections, open for reading.
#[derive(Debug)]
pub(crate) struct Reader {
    file: File,
    path: PathBuf,
    stored: Stored,
    data: Option<File>,
}

impl Reader {
    /// Opens a file and checks that it may be used here: that its description is `expected`, whatever its numbers are.
    pub(crate) fn open(path: &Path, expected: &Description) -> Result<Self, FormatError> {
        let failed = |source| FormatError::Io {
            path: path.to_path_buf(),
            source,
        };
        let file = open(path)?;
        let mut page = [0; PAGE_BYTES];
        let length = file.metadata().map_err(failed)?.len();
        if length < PAGE_BYTES as u64 {
            return Err(FormatError::NotASnapshot);
        }
        file.read_exact_at(&mut page, 0).map_err(failed)?;
        let stored = read_stored(&page)?;
        let described = &stored.description;
        if described.fingerprint != expected.fingerprint {
            return Err(FormatError::OtherProcessor);
        }
        if described.name != expected.name {
            return Err(FormatError::OtherName);
        }
        if described.inputs != expected.inputs {
            return Err(FormatError::OtherInputs);
        }
        for section in &stored.sections {
            let end = section
                .offset
                .checked_add(section.bytes)
                .ok_or(FormatError::Damaged("a section"))?;
            let aligned = section.offset.is_multiple_of(PAGE_BYTES as u64);
            if section.bytes > SECTION_BYTES_MAX || end > length || !aligned {
                return Err(FormatError::Damaged("its length"));
            }
        }
        if stored.sections.len() > SECTIONS_MAX {
            return Err(FormatError::Damaged("its sections"));
        }
        let data = match stored.data {
            None => None,
            Some(section) => {
                let data = open(&data_path(path)).map_err(|error| match error {
                    FormatError::Missing => FormatError::Damaged("its data are gone"),
                    error => error,
                })?;
                let length = data.metadata().map_err(failed)?.len();
                if length != section.bytes || length > SECTION_BYTES_MAX {
                    return Err(FormatError::Damaged("the length of its data"));
                }
                Some(data)
            }
        };
        Ok(Self {
            file,
            path: path.to_path_buf(),
            stored,
            data,
        })
    }

    pub(crate) fn description(&self) -> &Description {
        &self.stored.description
    }

    /// Checksum of the data: names them.
    pub(crate) fn data_checksum(&self) -> Option<[u8; 32]> {
        self.stored.data.map(|section| section.checksum)
    }

    /// Length of the data.
    pub(crate) fn data_bytes(&self) -> u64 {
        self.stored.data.map_or(0, |section| section.bytes)
    }

    /// The file with the data, unchecked, and what it can be told by when it comes again.
    pub(crate) fn data(&self) -> Result<(&File, DataId), FormatError> {
        use std::os::unix::fs::MetadataExt;
        let data = self.data.as_ref().ok_or(FormatError::Damaged("it has no data"))?;
        let metadata = data.metadata().map_err(|source| self.failed(source))?;
        let id = DataId {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        };
        Ok((data, id))
    }

    /// Copies the data into an empty file and compares them with their checksum.
    pub(crate) fn copy_data(&self, to: &File) -> Result<(), FormatError> {
        match (&self.data, self.stored.data) {
            (Some(data), Some(section)) => self.copy_section(data, section, to),
            _ => Err(FormatError::Damaged("it has no data")),
        }
    }

    fn failed(&self, source: io::Error) -> FormatError {
        FormatError::Io {
            path: self.path.clone(),
            source,
        }
    }

    /// Length of a section.
    pub(crate) fn bytes(&self, section: usize) -> u64 {
        self.stored
            .sections
            .get(section)
            .map_or(0, |section| section.bytes)
    }

    /// Copies a section into an empty file and compares it with its checksum.
    pub(crate) fn copy(&self, section: usize, to: &File) -> Result<(), FormatError> {
        let section = *self
            .stored
            .sections
            .get(section)
            .ok_or(FormatError::Damaged("a section is missing"))?;
        self.copy_section(&self.file, section, to)
    }

    fn copy_section(&self, from: &File, section: Section, to: &File) -> Result<(), FormatError> {
        to.set_len(section.bytes).map_err(|source| self.failed(source))?;
        let copied = copy_pages(from, section.offset, to, 0, section.bytes);
        let copied = copied.map_err(|source| self.failed(source))?;
        match copied == section.checksum {
            true => Ok(()),
            false => Err(FormatError::Damaged("a section does not match its checksum")),
        }
    }
}

/// The file beside a file, with its data.
pub(crate) fn data_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push("-data");
    PathBuf::from(name)
}

fn open(path: &Path) -> Result<File, FormatError> {
    File::open(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => FormatError::Missing,
        _ => FormatError::Io {
            path: path.to_path_buf(),
            source,
        },
    })
}

/// What [`write`] has written.
#[derive(Debug)]
pub(crate) struct Written {
    /// Bytes on disk.
    pub disk_bytes: u64,
    /// Checksum of the data.
    pub checksum: [u8; 32],
}

/// Writes data and sections, each the first so many bytes of a file, under a name; whole or not at all. Should it be cut
/// short between its two files, the data do not match the description.
pub(crate) fn write(
    path: &Path,
    description: &Description,
    (data, data_bytes): (&File, u64),
    sections: &[(&File, u64)],
) -> Result<Written, FormatError> {
    let failed = |source| FormatError::Io {
        path: path.to_path_buf(),
        source,
    };
    let directory = path.parent().unwrap_or(Path::new("."));
    let beside = temporary(directory).map_err(failed)?;
    let checksum = copy_pages(data, 0, beside.as_file(), 0, data_bytes).map_err(failed)?;
    beside.as_file().set_len(data_bytes).map_err(failed)?;
    let mut stored = Stored {
        description: description.clone(),
        sections: Vec::new(),
        data: Some(Section {
            offset: 0,
            bytes: data_bytes,
            checksum,
        }),
    };
    let file = temporary(directory).map_err(failed)?;
    let mut offset = PAGE_BYTES as u64;
    for &(from, bytes) in sections {
        let checksum = copy_pages(from, 0, file.as_file(), offset, bytes).map_err(failed)?;
        stored.sections.push(Section {
            offset,
            bytes,
            checksum,
        });
        offset = (offset + bytes).next_multiple_of(PAGE_BYTES as u64);
    }
    let page = write_stored(&stored).ok_or(FormatError::Damaged("its description is too long"))?;
    file.as_file().write_all_at(&page, 0).map_err(failed)?;
    file.as_file().set_len(offset).map_err(failed)?;
    let mut disk_bytes = 0;
    for written in [beside.as_file(), file.as_file()] {
        written.sync_all().map_err(failed)?;
        let metadata = written.metadata().map_err(failed)?;
        // The kernel counts blocks of 512 bytes, whatever the file system's are.
        disk_bytes += std::os::unix::fs::MetadataExt::blocks(&metadata) * 512;
    }
    let data_path = data_path(path);
    beside.persist(&data_path).map_err(|error| failed(error.error))?;
    file.persist(path).map_err(|error| failed(error.error))?;
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(failed)?;
    Ok(Written { disk_bytes, checksum })
}

fn temporary(directory: &Path) -> io::Result<tempfile::NamedTempFile> {
    tempfile::Builder::new()
        .prefix(TEMPORARY_PREFIX)
        .tempfile_in(directory)
}

fn write_stored(stored: &Stored) -> Option<[u8; PAGE_BYTES]> {
    let encoded = postcard::to_stdvec(stored).ok()?;
    let mut page = [0; PAGE_BYTES];
    page[..8].copy_from_slice(&MAGIC);
    page[8..12].copy_from_slice(&VERSION.to_le_bytes());
    page[12..16].copy_from_slice(&u32::try_from(encoded.len()).ok()?.to_le_bytes());
    page[16..48].copy_from_slice(blake3::hash(&encoded).as_bytes());
    page.get_mut(HEADER_BYTES..HEADER_BYTES + encoded.len())?
        .copy_from_slice(&encoded);
    Some(page)
}

/// Reads a header whose description is `encoded`, for fuzzers: a checksum would keep them out.
#[cfg(fuzzing)]
pub(crate) fn read_any_description(encoded: &[u8]) {
    let mut page = [0; PAGE_BYTES];
    page[..8].copy_from_slice(&MAGIC);
    page[8..12].copy_from_slice(&VERSION.to_le_bytes());
    let room = encoded.len().min(PAGE_BYTES - HEADER_BYTES);
    page[12..16].copy_from_slice(&(room as u32).to_le_bytes());
    page[16..48].copy_from_slice(blake3::hash(&encoded[..room]).as_bytes());
    page[HEADER_BYTES..HEADER_BYTES + room].copy_from_slice(&encoded[..room]);
    if let Ok(stored) = read_stored(&page) {
        let again = write_stored(&stored).map(|page| read_stored(&page).is_ok());
        assert_ne!(again, Some(false), "what was read can be written and read again");
    }
    // As it is, too: nothing of the header is believed before it has been checked.
    page[..room].copy_from_slice(&encoded[..room]);
    let _ = read_stored(&page);
}

fn read_stored(page: &[u8; PAGE_BYTES]) -> Result<Stored, FormatError> {
    if page[..8] != MAGIC {
        return Err(FormatError::NotASnapshot);
    }
    let number = |at: usize| u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]]);
    if number(8) != VERSION {
        return Err(FormatError::OtherVersion(number(8)));
    }
    let end = HEADER_BYTES.saturating_add(number(12) as usize);
    let encoded = page
        .get(HEADER_BYTES..end)
        .ok_or(FormatError::Damaged("its header"))?;
    if blake3::hash(encoded).as_bytes() != &page[16..48] {
        return Err(FormatError::Damaged(
            "its description does not match its checksum",
        ));
    }
    postcard::from_bytes(encoded).map_err(|_| FormatError::Damaged("its description"))
}

/// Copies pages that are not zero; returns the checksum of what was copied.
fn copy_pages(from: &File, from_at: u64, to: &File, to_at: u64, bytes: u64) -> io::Result<[u8; 32]> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&bytes.to_le_bytes());
    let mut chunk = vec![0; CHUNK_PAGES * PAGE_BYTES];
    let mut at = 0;
    while at < bytes {
        let length = chunk.len().min(usize::try_from(bytes - at).unwrap_or(usize::MAX));
        from.read_exact_at(&mut chunk[..length], from_at + at)?;
        // Pages that follow each other are written in one piece.
        let mut run = 0..0;
        for start in (0..length).step_by(PAGE_BYTES) {
            let page = &chunk[start..(start + PAGE_BYTES).min(length)];
            let is_zero = page.iter().all(|&byte| byte == 0);
            if !is_zero {
                hasher.update(&(at + start as u64).to_le_bytes());
                hasher.update(page);
                run = if run.end == start {
                    run.start..start + page.len()
                } else {
                    flush(&chunk, run, start, page, to, to_at + at)?
                };
            }
        }
        to.write_all_at(&chunk[run.clone()], to_at + at + run.start as u64)?;
        at += length as u64;
    }
    Ok(*hasher.finalize().as_bytes())
}

/// Writes out a run of pages and begins another.
fn flush(
    chunk: &[u8],
    run: std::ops::Range<usize>,
    start: usize,
    page: &[u8],
    to: &File,
    to_at: u64,
) -> io::Result<std::ops::Range<usize>> {
    to.write_all_at(&chunk[run.clone()], to_at + run.start as u64)?;
    Ok(start..start + page.len())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn description() -> Description {
        Description {
            name: "function:1".to_owned(),
            fingerprint: "cpu".to_owned(),
            inputs: vec![[1; 32], [2; 32]],
            numbers: vec![3, 4],
        }
    }

    /// A sparse file: a page of data, a hole, some more, and an odd end.
    fn content() -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(3 << 20).unwrap();
        file.write_all_at(&[1; 5000], 0).unwrap();
        file.write_all_at(&[2; 10], 1 << 20).unwrap();
        file.write_all_at(b"end", (3 << 20) + 100).unwrap();
        file
    }

    fn stored_path(dir: &Path) -> PathBuf {
        dir.join("x.snapshot")
    }

    fn stored(dir: &Path) -> PathBuf {
        let path = stored_path(dir);
        let (memory, state) = (content(), tempfile::tempfile().unwrap());
        state.write_all_at(b"state", 0).unwrap();
        let written = write(&path, &description(), (&memory, (3 << 20) + 103), &[(&state, 5)]).unwrap();
        let on_disk = written.disk_bytes;
        assert!(on_disk < 1 << 20, "holes were filled: {on_disk}");
        path
    }

    fn read_back(path: &Path) -> Result<(), FormatError> {
        let reader = Reader::open(path, &description())?;
        let (data, state) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        reader.copy_data(&data)?;
        reader.copy(0, &state)?;
        let whole = |file: &File, length: u64| {
            let mut bytes = vec![0; length as usize];
            file.read_exact_at(&mut bytes, 0).unwrap();
            bytes
        };
        assert!(whole(&data, reader.data_bytes()) == whole(&content(), (3 << 20) + 103));
        assert_eq!(whole(&state, reader.bytes(0)), b"state");
        Ok(())
    }

    #[test]
    fn what_is_stored_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = stored(dir.path());
        read_back(&path).unwrap();
        let reader = Reader::open(&path, &description()).unwrap();
        assert_eq!(reader.description().numbers, [3, 4]);
        assert!(matches!(reader.copy(1, &content()), Err(FormatError::Damaged(_))));
    }

    #[test]
    fn the_checksum_does_not_depend_on_holes() {
        let dir = tempfile::tempdir().unwrap();
        let path = stored(dir.path());
        let data = data_path(&path);
        let whole = fs::read(&data).unwrap();
        // Written in full, so that no page is a hole.
        fs::write(&data, &whole).unwrap();
        read_back(&path).unwrap();
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let path = stored(dir.path());
        let check = |expected: Description, matches: fn(&FormatError) -> bool| {
            let error = Reader::open(&path, &expected).unwrap_err();
            assert!(matches(&error), "{error}");
        };
        check(
            Description {
                fingerprint: "other".to_owned(),
                ..description()
            },
            |error| matches!(error, FormatError::OtherProcessor),
        );
        check(
            Description {
                inputs: vec![[1; 32]],
                ..description()
            },
            |error| matches!(error, FormatError::OtherInputs),
        );
        check(
            Description {
                name: "function:2".to_owned(),
                ..description()
            },
            |error| matches!(error, FormatError::OtherName),
        );
        let missing = Reader::open(&dir.path().join("nothing"), &description());
        assert!(matches!(missing, Err(FormatError::Missing)));
    }

    #[test]
    fn any_damage_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = stored(dir.path());
        let refuses = |path: &Path, whole: &[u8], what: &str, damage: &dyn Fn(&mut Vec<u8>)| {
            let mut damaged = whole.to_vec();
            damage(&mut damaged);
            fs::write(path, &damaged).unwrap();
            assert!(read_back(&stored_path(dir.path())).is_err(), "{what}");
            fs::write(path, whole).unwrap();
        };
        let (head, data) = (fs::read(&path).unwrap(), data_path(&path));
        let body = fs::read(&data).unwrap();
        for at in (0..200).chain(4096..4101).step_by(3) {
            refuses(&path, &head, &format!("byte {at}"), &|bytes| bytes[at] ^= 0x10);
        }
        // The last is a page that was a hole.
        for at in (0..5000).step_by(97).chain([1 << 20, (1 << 20) + 9, 2 << 20]) {
            refuses(&data, &body, &format!("byte {at} of the data"), &|bytes| {
                bytes[at] ^= 0x10;
            });
        }
        for length in [0, 100, 4096] {
            refuses(&path, &head, &format!("cut to {length}"), &|bytes| {
                bytes.truncate(length);
            });
        }
        for length in [0, 100, body.len() - 1] {
            refuses(&data, &body, &format!("data cut to {length}"), &|bytes| {
                bytes.truncate(length);
            });
        }
        fs::remove_file(&data).unwrap();
        assert!(matches!(read_back(&path), Err(FormatError::Damaged(_))));
    }

    #[test]
    fn data_that_have_changed_are_told_from_those_that_have_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = stored(dir.path());
        let id = || Reader::open(&path, &description()).unwrap().data().unwrap().1;
        let first = id();
        assert_eq!(first, id());
        // The same bytes in another file.
        let data = data_path(&path);
        let whole = fs::read(&data).unwrap();
        fs::remove_file(&data).unwrap();
        fs::write(&data, whole).unwrap();
        assert_ne!(first, id());
    }

    #[test]
    fn a_full_disk_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=64k", "none"])
            .arg(dir.path())
            .status();
        if !mounted.is_ok_and(|status| status.success()) {
            eprintln!("SKIPPED: mounting a small tmpfs needs root");
            return;
        }
        let large = tempfile::tempfile().unwrap();
        large.write_all_at(&[7; 100_000], 0).unwrap();
        let written = write(&dir.path().join("x"), &description(), (&large, 100_000), &[]);
        let left = fs::read_dir(dir.path()).unwrap().count();
        assert!(
            std::process::Command::new("umount")
                .arg(dir.path())
                .status()
                .unwrap()
                .success()
        );
        match written {
            Err(FormatError::Io { source, .. }) => assert_eq!(source.kind(), io::ErrorKind::StorageFull),
            other => panic!("{other:?}"),
        }
        assert_eq!(left, 0);
    }
}
