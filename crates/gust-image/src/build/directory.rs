//! A tree from a directory of the host.
//!
//! Symbolic links are taken as they are and never followed. Devices, sockets and pipes are refused: an image cannot
//! hold them, and leaving them out in silence would make a different file system.

use std::{
    fs::{self, File},
    io,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

use crate::tree::{Attributes, Tree, TreeError};

/// Why a directory could not be taken in.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// A file of the host could not be read.
    #[error("reading {path} failed")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An image cannot hold this.
    #[error("{0} is a device, socket or pipe, which an image cannot hold")]
    UnsupportedKind(PathBuf),
    /// The tree did not take it.
    #[error(transparent)]
    Tree(#[from] TreeError),
}

/// Who owns what is taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ownership {
    /// Whoever owns it on the host.
    Kept,
    /// User and group 0.
    Root,
}

/// Takes everything in `source` into `tree` beneath `target` (relative to the tree's root; empty for the root).
///
/// # Errors
/// See [`DirectoryError`]; the tree then holds a part.
pub fn add(
    tree: &mut Tree,
    source: &Path,
    target: &[u8],
    ownership: Ownership,
) -> Result<(), DirectoryError> {
    let read = |path: &Path, source| DirectoryError::Read {
        path: path.to_path_buf(),
        source,
    };
    let mut pending = vec![(source.to_path_buf(), target.to_vec())];
    while let Some((from, to)) = pending.pop() {
        let metadata = fs::symlink_metadata(&from).map_err(|error| read(&from, error))?;
        tree.directory(&to, attributes(&metadata, ownership))?;
        for entry in fs::read_dir(&from).map_err(|error| read(&from, error))? {
            let entry = entry.map_err(|error| read(&from, error))?;
            let path = entry.path();
            let mut name = to.clone();
            name.push(b'/');
            name.extend_from_slice(entry.file_name().as_bytes());
            let metadata = entry.metadata().map_err(|error| read(&path, error))?;
            let attributes = attributes(&metadata, ownership);
            let kind = metadata.file_type();
            if kind.is_dir() {
                pending.push((path, name));
            } else if kind.is_symlink() {
                let link = fs::read_link(&path).map_err(|error| read(&path, error))?;
                tree.symlink(&name, attributes, link.as_os_str().as_bytes())?;
            } else if kind.is_file() {
                let mut content = File::open(&path).map_err(|error| read(&path, error))?;
                tree.file(&name, attributes, &mut content)?;
            } else {
                return Err(DirectoryError::UnsupportedKind(path));
            }
        }
    }
    Ok(())
}

fn attributes(metadata: &fs::Metadata, ownership: Ownership) -> Attributes {
    let (uid, gid) = match ownership {
        Ownership::Kept => (metadata.uid(), metadata.gid()),
        Ownership::Root => (0, 0),
    };
    Attributes {
        mode: (metadata.mode() & 0o7777) as u16,
        uid,
        gid,
        mtime_s: metadata.mtime(),
    }
}
