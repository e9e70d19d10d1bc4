//! An image's files in a directory of the host, for isolation that has no file system of its own.
//!
//! The directory appears whole or not at all. Everything in it belongs to the one who extracts; because the programs
//! that will use it run under other users, what an owner may read or execute everyone may, and set-id bits are dropped.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs::{self, File, FileTimes, Permissions},
    io::{self, Read},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use crate::{
    format::PAGE_BYTES,
    reader::{HEADER_LENGTH, Image, ImageError, Node, NodeIndex, NodeKind, tables_bytes},
};

/// Longest tables of an image that is extracted, in bytes.
const TABLES_BYTES_MAX: u64 = 1 << 30;

/// Why an image could not be extracted or read.
#[derive(Debug, thiserror::Error)]
pub enum ExtractError {
    /// The image could not be read.
    #[error("reading the image {path} failed")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The image is none, or is damaged.
    #[error("the image {path} is unusable")]
    Image {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: ImageError,
    },
    /// A file could not be written.
    #[error("writing {path} failed")]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// An image file of which the host reads pieces, without holding or mapping all of it.
#[derive(Debug)]
pub struct ImageFile {
    path: PathBuf,
    file: File,
    tables: Image,
}

impl ImageFile {
    /// Opens an image and reads its tables.
    ///
    /// # Errors
    /// When the file cannot be read or is no image.
    pub fn open(path: &Path) -> Result<Self, ExtractError> {
        let read = |source| ExtractError::Read {
            path: path.to_path_buf(),
            source,
        };
        let unusable = |source| ExtractError::Image {
            path: path.to_path_buf(),
            source,
        };
        let mut file = File::open(path).map_err(read)?;
        let length = file.metadata().map_err(read)?.len();
        let mut bytes = Vec::new();
        (&mut file)
            .take(HEADER_LENGTH as u64)
            .read_to_end(&mut bytes)
            .map_err(read)?;
        let tables = tables_bytes(&bytes).map_err(unusable)?;
        if tables > length.min(TABLES_BYTES_MAX) {
            return Err(unusable(ImageError::WrongLength {
                have: length,
                promised: tables,
            }));
        }
        (&mut file)
            .take(tables - bytes.len() as u64)
            .read_to_end(&mut bytes)
            .map_err(read)?;
        let tables = Image::open_tables(Arc::new(bytes)).map_err(unusable)?;
        Ok(Self {
            path: path.to_path_buf(),
            file,
            tables,
        })
    }

    /// The image without the contents of its files.
    pub fn tables(&self) -> &Image {
        &self.tables
    }

    /// Content of a file of at most `bytes_max`; `None` when there is no such file or it is larger.
    ///
    /// # Errors
    /// When the image cannot be read.
    pub fn read(&self, index: NodeIndex, bytes_max: u64) -> Result<Option<Vec<u8>>, ExtractError> {
        let Some(range) = self.tables.file_range(index) else {
            return Ok(None);
        };
        if range.end - range.start > bytes_max {
            return Ok(None);
        }
        let mut content = vec![0; (range.end - range.start) as usize];
        self.file
            .read_exact_at(&mut content, range.start)
            .map_err(|source| ExtractError::Read {
                path: self.path.clone(),
                source,
            })?;
        Ok(Some(content))
    }

    /// Compares the whole file with the image's checksum.
    ///
    /// # Errors
    /// When it cannot be read or does not match.
    pub fn verify(&self) -> Result<(), ExtractError> {
        let mut hasher = blake3::Hasher::new();
        let mut chunk = vec![0; 64 * PAGE_BYTES as usize];
        let mut at = crate::format::CHECKED_FROM as u64;
        let length = self.tables.file_bytes();
        while at < length {
            let n = chunk.len().min((length - at) as usize);
            self.file
                .read_exact_at(&mut chunk[..n], at)
                .map_err(|source| ExtractError::Read {
                    path: self.path.clone(),
                    source,
                })?;
            hasher.update(&chunk[..n]);
            at += n as u64;
        }
        let whole = self
            .file
            .metadata()
            .is_ok_and(|metadata| metadata.len() == length);
        match whole && *hasher.finalize().as_bytes() == self.tables.checksum() {
            true => Ok(()),
            false => Err(self.unusable(ImageError::ChecksumMismatch)),
        }
    }

    /// Writes the image's files into the new directory `target`.
    ///
    /// # Errors
    /// When the image is damaged or `target` cannot be written or exists; nothing is left then.
    pub fn extract(&self, target: &Path) -> Result<(), ExtractError> {
        let failed = |source| ExtractError::Write {
            path: target.to_path_buf(),
            source,
        };
        let parent = target.parent().unwrap_or(Path::new("."));
        let staging = tempfile::Builder::new()
            .prefix(".extract-")
            .tempdir_in(parent)
            .map_err(failed)?;
        let top = staging.path().join("root");
        self.extract_into(&top)?;
        fs::rename(&top, target).map_err(failed)
    }

    fn extract_into(&self, top: &Path) -> Result<(), ExtractError> {
        let mut written: HashMap<NodeIndex, PathBuf> = HashMap::new();
        let mut pending = vec![(self.tables.root(), top.to_path_buf())];
        let mut directories = Vec::new();
        while let Some((directory, path)) = pending.pop() {
            fs::create_dir(&path).map_err(|source| ExtractError::Write {
                path: path.clone(),
                source,
            })?;
            let node = self.node(directory)?;
            let mut seen = 0;
            for (name, index) in self.tables.entries(directory) {
                seen += 1;
                // A name that is no name, or a node met twice as a directory, is damage that would lead elsewhere.
                if name.is_empty()
                    || name == b"."
                    || name == b".."
                    || name.contains(&b'/')
                    || name.contains(&0)
                {
                    return Err(self.unusable(ImageError::ChecksumMismatch));
                }
                let path = path.join(OsStr::from_bytes(name));
                if self.node(index)?.kind == NodeKind::Directory {
                    if self.tables.parent(index) != Some(directory) {
                        return Err(self.unusable(ImageError::ChecksumMismatch));
                    }
                    pending.push((index, path));
                } else {
                    self.write(index, &path, &mut written)?;
                }
            }
            if seen != node.size {
                return Err(self.unusable(ImageError::ChecksumMismatch));
            }
            directories.push((path, node));
        }
        // Last, because writing into a directory changes its time and may need its permission.
        for (path, node) in directories.iter().rev() {
            let done = File::open(path).and_then(|file| set_attributes(&file, node));
            done.map_err(|source| ExtractError::Write {
                path: path.clone(),
                source,
            })?;
        }
        Ok(())
    }

    fn write(
        &self,
        index: NodeIndex,
        path: &Path,
        written: &mut HashMap<NodeIndex, PathBuf>,
    ) -> Result<(), ExtractError> {
        let failed = |source| ExtractError::Write {
            path: path.to_path_buf(),
            source,
        };
        if let Some(first) = written.get(&index) {
            return fs::hard_link(first, path).map_err(failed);
        }
        let node = self.node(index)?;
        match node.kind {
            NodeKind::File => self.write_file(index, &node, path)?,
            NodeKind::Symlink => {
                let target = self
                    .tables
                    .link(index)
                    .ok_or_else(|| self.unusable(ImageError::ChecksumMismatch))?;
                std::os::unix::fs::symlink(OsStr::from_bytes(target), path).map_err(failed)?;
            }
            NodeKind::Directory => unreachable!("directories are made by their own step"),
        }
        if node.links > 1 {
            written.insert(index, path.to_path_buf());
        }
        Ok(())
    }

    fn write_file(&self, index: NodeIndex, node: &Node, path: &Path) -> Result<(), ExtractError> {
        use io::Seek;
        let failed = |source| ExtractError::Write {
            path: path.to_path_buf(),
            source,
        };
        let read = |source| ExtractError::Read {
            path: self.path.clone(),
            source,
        };
        let range = self
            .tables
            .file_range(index)
            .ok_or_else(|| self.unusable(ImageError::ChecksumMismatch))?;
        let mut to = File::create_new(path).map_err(failed)?;
        let mut from = &self.file;
        from.seek(io::SeekFrom::Start(range.start)).map_err(read)?;
        // Within one file system, the kernel copies or shares the blocks.
        let copied = io::copy(&mut from.take(range.end - range.start), &mut to).map_err(failed)?;
        if copied != node.size {
            return Err(self.unusable(ImageError::ChecksumMismatch));
        }
        set_attributes(&to, node).map_err(failed)
    }

    fn node(&self, index: NodeIndex) -> Result<Node, ExtractError> {
        self.tables
            .node(index)
            .ok_or_else(|| self.unusable(ImageError::ChecksumMismatch))
    }

    fn unusable(&self, source: ImageError) -> ExtractError {
        ExtractError::Image {
            path: self.path.clone(),
            source,
        }
    }
}

fn set_attributes(file: &File, node: &Node) -> io::Result<()> {
    let mode = u32::from(node.mode) & 0o777;
    let shared = (mode & 0o500) >> 6;
    file.set_permissions(Permissions::from_mode(mode | shared << 3 | shared))?;
    let seconds = Duration::from_secs(node.mtime_s.unsigned_abs());
    let modified = match node.mtime_s >= 0 {
        true => SystemTime::UNIX_EPOCH.checked_add(seconds),
        false => SystemTime::UNIX_EPOCH.checked_sub(seconds),
    };
    match modified {
        Some(modified) => file.set_times(FileTimes::new().set_modified(modified)),
        None => Ok(()),
    }
}
