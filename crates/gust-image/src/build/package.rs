//! A tree from a code package: the zip file of a Lambda function or layer.
//!
//! A package comes from a client and is hostile: names that lead out of it, links that do, devices, duplicate names,
//! encrypted entries and bombs are refused with an error that names the entry. Bytes are counted while they are
//! inflated, so that what a header promises does not matter and a bomb costs no more than the limit.

use std::{
    io::{self, Read, Seek},
    path::Path,
};

use zip::{ZipReadOptions, read::Config, result::ZipError, unstable::read::ZipIterable};

use crate::{
    tree::{Attributes, Found, Tree, TreeError},
    writer::{WriteError, Written},
};

/// Most bytes of all files of a package together (AWS Lambda's quota: 250 MB).
pub const UNZIPPED_BYTES_MAX: u64 = 262_144_000;

/// Most entries of a package.
pub const ENTRIES_MAX: usize = 65_535;

const KIND_MASK: u32 = 0o170_000;
const KIND_FILE: u32 = 0o100_000;
const KIND_DIRECTORY: u32 = 0o040_000;
const KIND_SYMLINK: u32 = 0o120_000;

/// Why a package is refused. The text is fit for the client that sent it.
#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    /// Not a zip file, or a broken one.
    #[error("the package is not a readable zip file: {0}")]
    NotAZip(String),
    /// An entry that cannot be taken in.
    #[error("entry {name:?} of the package {reason}")]
    BadEntry {
        /// Its name.
        name: String,
        /// What is wrong with it, as the end of a sentence.
        reason: EntryFault,
    },
    /// More than may be in a package.
    #[error("the package holds more than {limit} bytes when unzipped")]
    TooLarge {
        /// The limit.
        limit: u64,
    },
    /// More entries than may be in a package.
    #[error("the package has {entries} entries; at most {ENTRIES_MAX} are allowed")]
    TooManyEntries {
        /// How many it has.
        entries: usize,
    },
    /// The host could not read the package or set its content aside.
    #[error("unpacking the package failed")]
    Io(#[source] io::Error),
    /// The image could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// What is wrong with an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EntryFault {
    /// Its name starts with `/`.
    #[error("has an absolute path")]
    AbsolutePath,
    /// Its name has a `..`.
    #[error("has a path that leads out of the package")]
    LeadsOut,
    /// Its name is empty, too long, too deep, or holds a zero byte.
    #[error("has a name that no file can have")]
    BadName,
    /// It is a symbolic link out of the package.
    #[error("is a symbolic link that leads out of the package")]
    LinkLeadsOut,
    /// A symbolic link's target is no text of at most 4,095 bytes.
    #[error("is a symbolic link with a target that no link can have")]
    BadLink,
    /// It is a device, socket or pipe.
    #[error("is neither a file, a directory nor a symbolic link")]
    UnsupportedKind,
    /// Another entry has its name, or it lies beneath what is no directory.
    #[error("is in the package twice, or lies beneath an entry that is no directory")]
    Duplicate,
    /// It is encrypted, or compressed with a method that is not known.
    #[error("is encrypted or compressed with an unsupported method")]
    Unreadable,
    /// Its compressed bytes are damaged.
    #[error("is damaged")]
    Damaged,
}

/// Unpacks a package into an image at `output`. `spool_dir` holds contents meanwhile, in an unnamed file.
///
/// # Errors
/// See [`PackageError`]; no file is left then.
pub fn build(package: impl Read + Seek, spool_dir: &Path, output: &Path) -> Result<Written, PackageError> {
    let mut tree = Tree::new(spool_dir).map_err(PackageError::Io)?;
    add(&mut tree, package, UNZIPPED_BYTES_MAX)?;
    Ok(crate::writer::write(&tree, br#"{"kind":"package"}"#, output)?)
}

/// Unpacks a package into the root of an empty tree. Returns the bytes of all its files.
///
/// # Errors
/// See [`PackageError`]; the tree then holds a part.
pub fn add(tree: &mut Tree, package: impl Read + Seek, bytes_max: u64) -> Result<u64, PackageError> {
    // Entry by entry: an index of a hostile archive's millions of entries would be large before it could be refused.
    let mut archive = ZipIterable::try_new(package, Config::default()).map_err(archive_error)?;
    if archive.len() > ENTRIES_MAX {
        return Err(PackageError::TooManyEntries {
            entries: archive.len(),
        });
    }
    let mut unpacking = Unpacking {
        tree,
        bytes: 0,
        bytes_max,
        links: Vec::new(),
    };
    let files = archive.files().map_err(archive_error)?;
    while let Some(entry) = files.next() {
        let entry = entry.map_err(archive_error)?;
        let name = entry.name().map_err(archive_error)?.into_owned();
        let content = entry.with_reader(files.reader_mut(), ZipReadOptions::new());
        let mut content = content.map_err(|error| match error {
            ZipError::Io(source) => PackageError::Io(source),
            ZipError::InvalidArchive(_) | ZipError::FileNotFound => bad(&name, EntryFault::Damaged),
            _ => bad(&name, EntryFault::Unreadable),
        })?;
        let mtime_s = content.last_modified().map_or(0, |time| {
            let date = (
                i64::from(time.year()),
                i64::from(time.month()),
                i64::from(time.day()),
            );
            let seconds =
                i64::from(time.hour()) * 3600 + i64::from(time.minute()) * 60 + i64::from(time.second());
            days_since_epoch(date) * 86_400 + seconds
        });
        let mode = content.unix_mode();
        unpacking.entry(&name, mode, mtime_s, &mut content)?;
    }
    unpacking.finish()
}

struct Unpacking<'a> {
    tree: &'a mut Tree,
    bytes: u64,
    bytes_max: u64,
    links: Vec<String>,
}

impl Unpacking<'_> {
    fn entry(
        &mut self,
        name: &str,
        mode: Option<u32>,
        mtime_s: i64,
        content: &mut dyn Read,
    ) -> Result<(), PackageError> {
        if name.starts_with('/') {
            return Err(bad(name, EntryFault::AbsolutePath));
        }
        let path = name.as_bytes();
        let kind = match mode.map_or(0, |mode| mode & KIND_MASK) {
            0 if name.ends_with('/') => KIND_DIRECTORY,
            0 => KIND_FILE,
            kind => kind,
        };
        // Archives made on other systems, or by programs that leave the field empty, have no permission bits; those made
        // by `ZipFile.writestr` are for their owner alone. The function is the package's only reader, and not its owner.
        let permissions = match mode.map_or(0, |mode| mode & 0o777) {
            0 if kind == KIND_DIRECTORY => 0o755,
            0 => 0o644,
            bits if kind == KIND_DIRECTORY => bits | 0o555,
            bits => bits | 0o444,
        };
        let attributes = Attributes {
            mode: permissions as u16,
            uid: 0,
            gid: 0,
            mtime_s,
        };
        let known = self.tree.get(path);
        if known.is_some_and(|found| !(kind == KIND_DIRECTORY && found == Found::Directory)) {
            return Err(bad(name, EntryFault::Duplicate));
        }
        match kind {
            KIND_DIRECTORY => self
                .tree
                .directory(path, attributes)
                .map_err(|error| self.tree_error(name, error)),
            KIND_FILE => {
                let mut bounded = content.take(self.bytes_max - self.bytes + 1);
                let placed = self.tree.file(path, attributes, &mut bounded);
                self.bytes += placed.map_err(|error| self.tree_error(name, error))?;
                match self.bytes > self.bytes_max {
                    true => Err(PackageError::TooLarge {
                        limit: self.bytes_max,
                    }),
                    false => Ok(()),
                }
            }
            KIND_SYMLINK => {
                let mut target = Vec::new();
                let bounded = content
                    .take(crate::LINK_BYTES_MAX as u64 + 1)
                    .read_to_end(&mut target);
                bounded.map_err(|_| bad(name, EntryFault::Damaged))?;
                if target.len() > crate::LINK_BYTES_MAX || target.is_empty() || target.contains(&0) {
                    return Err(bad(name, EntryFault::BadLink));
                }
                if leads_out(path, &target) {
                    return Err(bad(name, EntryFault::LinkLeadsOut));
                }
                self.links.push(name.to_owned());
                let placed = self.tree.symlink(path, attributes, &target);
                placed.map_err(|error| self.tree_error(name, error))
            }
            _ => Err(bad(name, EntryFault::UnsupportedKind)),
        }
    }

    /// What only the whole package tells: where links lead through other links.
    fn finish(self) -> Result<u64, PackageError> {
        match self
            .links
            .iter()
            .find(|name| self.tree.link_leads_out(name.as_bytes()))
        {
            Some(name) => Err(bad(name, EntryFault::LinkLeadsOut)),
            None => Ok(self.bytes),
        }
    }

    fn tree_error(&self, name: &str, error: TreeError) -> PackageError {
        let fault = match error {
            TreeError::DotDot(_) => EntryFault::LeadsOut,
            TreeError::EmptyPath(_) | TreeError::Unrepresentable(_) => EntryFault::BadName,
            TreeError::NotADirectory(_) | TreeError::BrokenLink(_) | TreeError::BadHardLink(_) => {
                EntryFault::Duplicate
            }
            TreeError::TooManyNodes => {
                return PackageError::TooManyEntries {
                    entries: ENTRIES_MAX + 1,
                };
            }
            // What the inflater says of its input comes as `InvalidData` or `InvalidInput`; all else is the host's.
            TreeError::Content { source, .. } => match source.kind() {
                io::ErrorKind::Unsupported => EntryFault::Unreadable,
                io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput | io::ErrorKind::UnexpectedEof => {
                    EntryFault::Damaged
                }
                _ => return PackageError::Io(source),
            },
        };
        bad(name, fault)
    }
}

/// Whether a link's target, taken as written, climbs out of the package or starts at the root.
fn leads_out(link: &[u8], target: &[u8]) -> bool {
    if target.first() == Some(&b'/') {
        return true;
    }
    let names = |path: &[u8]| {
        path.split(|&byte| byte == b'/')
            .filter(|name| !name.is_empty() && *name != b".")
            .count()
    };
    let mut depth = names(link) as i64 - 1;
    for name in target
        .split(|&byte| byte == b'/')
        .filter(|name| !name.is_empty() && *name != b".")
    {
        depth += if name == b".." { -1 } else { 1 };
        if depth < 0 {
            return true;
        }
    }
    false
}

fn bad(name: &str, reason: EntryFault) -> PackageError {
    PackageError::BadEntry {
        name: name.to_owned(),
        reason,
    }
}

fn archive_error(error: ZipError) -> PackageError {
    match error {
        ZipError::Io(source) if source.kind() != io::ErrorKind::UnexpectedEof => PackageError::Io(source),
        other => PackageError::NotAZip(other.to_string()),
    }
}

/// Days from 1970-01-01 to a date of the Gregorian calendar; years count from March, so that the leap day is last.
fn days_since_epoch((year, month, day): (i64, i64, i64)) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}
