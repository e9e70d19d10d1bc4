//! Tar streams into a tree: image layers and the content of Debian packages.

use std::io::{self, Read};

use tar::{Archive, Entry, EntryType};

use crate::tree::{Attributes, Tree, TreeError};

/// Most bytes that one stream may unpack to (Lambda's bound for a whole container image).
pub(crate) const UNPACKED_BYTES_MAX: u64 = 10 << 30;

/// Why a tar stream could not be taken in.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The stream is broken or could not be read.
    #[error("the tar stream is damaged")]
    Damaged(#[source] io::Error),
    /// It unpacks to more than an image may hold.
    #[error("the tar stream unpacks to more than {UNPACKED_BYTES_MAX} bytes")]
    TooLarge,
    /// The tree did not take an entry.
    #[error(transparent)]
    Tree(#[from] TreeError),
}

/// Whether a directory of the stream replaces a symbolic link to a directory that stands at its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DirectoryLinks {
    /// Kept: what lies in the directory lands where the link leads. Debian's packages count on it (`/lib`).
    Kept,
    /// Replaced: image layers state their file system exactly.
    Replaced,
}

/// Prefix of the names with which a layer takes away what lower layers hold.
const WHITEOUT: &[u8] = b".wh.";

/// Name with which a layer takes away all that lower layers hold in a directory.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Takes away from `tree` what a layer's whiteouts name. Comes before [`add`] of the same layer, because they hold for
/// lower layers only, wherever they stand in the stream.
pub(crate) fn remove_whiteouts(tree: &mut Tree, stream: impl Read) -> Result<(), TarError> {
    for_each(stream, |entry| {
        let path = entry.path_bytes().into_owned();
        let (directory, name) = split(&path);
        if name == OPAQUE {
            tree.clear(directory);
        } else if let Some(removed) = name.strip_prefix(WHITEOUT) {
            let removed = [directory, b"/", removed].concat();
            tree.remove(&removed);
        }
        Ok(())
    })
}

/// Places the entries of a stream; whiteouts and devices are passed over.
pub(crate) fn add(tree: &mut Tree, stream: impl Read, links: DirectoryLinks) -> Result<(), TarError> {
    let mut left = UNPACKED_BYTES_MAX;
    for_each(stream, |entry| {
        let path = entry.path_bytes().into_owned();
        if split(&path).1.starts_with(WHITEOUT) {
            return Ok(());
        }
        place(tree, entry, &path, links, &mut left)
    })
}

fn place(
    tree: &mut Tree,
    entry: &mut Entry<'_, impl Read>,
    path: &[u8],
    links: DirectoryLinks,
    left: &mut u64,
) -> Result<(), TarError> {
    let attributes = attributes(entry)?;
    let target = entry
        .link_name_bytes()
        .map(|target| target.into_owned())
        .unwrap_or_default();
    match entry.header().entry_type() {
        EntryType::Directory if links == DirectoryLinks::Replaced || !tree.is_directory(path) => {
            tree.directory(path, attributes)?;
        }
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            let bytes = tree.file(path, attributes, &mut entry.take(*left + 1))?;
            *left = left.checked_sub(bytes).ok_or(TarError::TooLarge)?;
        }
        EntryType::Symlink => tree.symlink(path, attributes, &target)?,
        EntryType::Link => tree.hard_link(path, &target)?,
        // Devices and pipes: the sandbox has its own /dev. All other types describe entries and are no files.
        _ => {}
    }
    Ok(())
}

fn for_each<R: Read>(
    stream: R,
    mut action: impl FnMut(&mut Entry<'_, R>) -> Result<(), TarError>,
) -> Result<(), TarError> {
    let mut archive = Archive::new(stream);
    for entry in archive.entries().map_err(TarError::Damaged)? {
        action(&mut entry.map_err(TarError::Damaged)?)?;
    }
    Ok(())
}

fn attributes(entry: &Entry<'_, impl Read>) -> Result<Attributes, TarError> {
    let header = entry.header();
    let id = |id: io::Result<u64>| {
        id.map_err(TarError::Damaged)
            .map(|id| u32::try_from(id).unwrap_or(0))
    };
    Ok(Attributes {
        mode: (header.mode().map_err(TarError::Damaged)? & 0o7777) as u16,
        uid: id(header.uid())?,
        gid: id(header.gid())?,
        mtime_s: i64::try_from(header.mtime().map_err(TarError::Damaged)?).unwrap_or(0),
    })
}

/// A path's directory and last name.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    let path = path.strip_suffix(b"/").unwrap_or(path);
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}
