//! Snapshots and layouts on disk.
//!
//! ```text
//! 0     magic, format version, length of the description, its BLAKE3
//! 48    description (postcard)
//! 4096  sections, each from a page boundary on; pages of zeros are holes
//! ```
//!
//! Nothing is used before it has been checked: first the header, then the description against its checksum, then that it
//! is for this machine and these images, and each section against its checksum while it is read into memory. The checksum
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
const VERSION: u32 = 1;

/// Bytes before the description.
const HEADER_BYTES: usize = 48;

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

/// A file's sections, open for reading.
#[derive(Debug)]
pub(crate) struct Reader {
    file: File,
    path: PathBuf,
    stored: Stored,
}

impl Reader {
    /// Opens a file and checks that it may be used here: that its description is `expected`, whatever its numbers are.
    pub(crate) fn open(path: &Path, expected: &Description) -> Result<Self, FormatError> {
        let failed = |source| FormatError::Io {
            path: path.to_path_buf(),
            source,
        };
        let file = File::open(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => FormatError::Missing,
            _ => failed(error),
        })?;
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
        Ok(Self {
            file,
            path: path.to_path_buf(),
            stored,
        })
    }

    pub(crate) fn description(&self) -> &Description {
        &self.stored.description
    }

    /// Checksum of a section: names its content.
    pub(crate) fn checksum(&self, section: usize) -> Option<[u8; 32]> {
        self.stored.sections.get(section).map(|section| section.checksum)
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
        let failed = |source| FormatError::Io {
            path: self.path.clone(),
            source,
        };
        to.set_len(section.bytes).map_err(failed)?;
        let copied = copy_pages(&self.file, section.offset, to, 0, section.bytes).map_err(failed)?;
        match copied == section.checksum {
            true => Ok(()),
            false => Err(FormatError::Damaged("a section does not match its checksum")),
        }
    }
}

/// Writes sections, each the first so many bytes of a file, under a name; whole or not at all. Returns the bytes on disk
/// and the sections' checksums.
pub(crate) fn write(
    path: &Path,
    description: &Description,
    sections: &[(&File, u64)],
) -> Result<(u64, Vec<[u8; 32]>), FormatError> {
    let failed = |source| FormatError::Io {
        path: path.to_path_buf(),
        source,
    };
    let directory = path.parent().unwrap_or(Path::new("."));
    let file = tempfile::Builder::new()
        .prefix(".snapshot-")
        .tempfile_in(directory)
        .map_err(failed)?;
    let mut stored = Stored {
        description: description.clone(),
        sections: Vec::new(),
    };
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
    file.as_file().sync_all().map_err(failed)?;
    let blocks = std::os::unix::fs::MetadataExt::blocks(&file.as_file().metadata().map_err(failed)?);
    file.persist(path).map_err(|error| failed(error.error))?;
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(failed)?;
    // The kernel counts blocks of 512 bytes, whatever the file system's are.
    Ok((
        blocks * 512,
        stored.sections.iter().map(|section| section.checksum).collect(),
    ))
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

    fn stored(dir: &Path) -> PathBuf {
        let path = dir.join("x.snapshot");
        let (memory, state) = (content(), tempfile::tempfile().unwrap());
        state.write_all_at(b"state", 0).unwrap();
        let (on_disk, checksums) =
            write(&path, &description(), &[(&memory, (3 << 20) + 103), (&state, 5)]).unwrap();
        assert!(on_disk < 1 << 20, "holes were filled: {on_disk}");
        assert_eq!(checksums.len(), 2);
        path
    }

    fn read_back(path: &Path) -> Result<(), FormatError> {
        let reader = Reader::open(path, &description())?;
        for section in 0..2 {
            let to = tempfile::tempfile().unwrap();
            reader.copy(section, &to)?;
            let mut bytes = vec![0; reader.bytes(section) as usize];
            to.read_exact_at(&mut bytes, 0).unwrap();
            let mut expected = vec![0; bytes.len()];
            match section {
                0 => content().read_exact_at(&mut expected, 0).unwrap(),
                _ => expected = b"state".to_vec(),
            }
            assert!(bytes == expected);
        }
        Ok(())
    }

    #[test]
    fn what_is_stored_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = stored(dir.path());
        read_back(&path).unwrap();
        let reader = Reader::open(&path, &description()).unwrap();
        assert_eq!(reader.description().numbers, [3, 4]);
        assert!(matches!(reader.copy(2, &content()), Err(FormatError::Damaged(_))));
    }

    #[test]
    fn the_checksum_does_not_depend_on_holes() {
        let dir = tempfile::tempdir().unwrap();
        let path = stored(dir.path());
        let whole = fs::read(&path).unwrap();
        // Written in full, so that no page is a hole.
        fs::write(&path, &whole).unwrap();
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
        let whole = fs::read(&path).unwrap();
        let data = [
            0..48_usize,
            48..200,
            4096..4096 + 5000,
            4096 + (1 << 20)..4096 + (1 << 20) + 10,
        ];
        for at in data.into_iter().flat_map(|range| range.step_by(13)) {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            fs::write(&path, &damaged).unwrap();
            assert!(read_back(&path).is_err(), "byte {at}");
        }
        // A page that was a hole.
        let mut damaged = whole.clone();
        damaged[4096 + (2 << 20)] = 1;
        fs::write(&path, &damaged).unwrap();
        assert!(read_back(&path).is_err());
        for length in [0, 100, 4096, whole.len() / 2, whole.len() - 4096] {
            fs::write(&path, &whole[..length]).unwrap();
            assert!(read_back(&path).is_err(), "cut to {length}");
        }
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
        let written = write(&dir.path().join("x"), &description(), &[(&large, 100_000)]);
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
