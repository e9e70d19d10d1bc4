//! Reading an image where it lies, without taking it apart first.
//!
//! [`Image::open`] looks at the header and nothing else, because it runs inside the jail on the way of a cold start;
//! every accessor checks what it touches instead. A damaged image therefore gives `None` at the damaged place and
//! never a panic, an endless loop or another file's bytes beyond the image. Whether an image is the one that was
//! written is the host's question: [`Image::verify`] reads all of it.
//!
//! The reader resolves single names. Paths, symbolic links and permissions are the file system's that stands on it.

use std::{fmt, ops::Range, sync::Arc};

use crate::format::{
    CHECKED_FROM, CHECKSUM_AT, ENTRY_BYTES, EntryRecord, HEADER_BYTES, Header, KIND_DIRECTORY, KIND_FILE,
    KIND_SYMLINK, MAGIC, NODE_BYTES, NodeRecord, VERSION, slice, u32_at,
};

/// The bytes of an image and what keeps them alive: a mapping in the jail, a vector on the host.
pub type ImageBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// Why bytes are not a usable image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// The first bytes are not an image's.
    #[error("the file is not a Gust image")]
    NotAnImage,
    /// Written by another version of Gust.
    #[error("the image has format version {0}, and this program reads version {VERSION}")]
    UnsupportedVersion(u32),
    /// The file is shorter or longer than its header says.
    #[error("the image has {have} bytes where its header promises {promised}")]
    WrongLength {
        /// Bytes at hand.
        have: u64,
        /// Bytes that the header promises.
        promised: u64,
    },
    /// The header contradicts itself.
    #[error("the image's header is damaged")]
    DamagedHeader,
    /// The content is not what was written.
    #[error("the image's checksum does not match its content")]
    ChecksumMismatch,
}

/// Number of a node in its image. The root directory is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeIndex(pub u32);

/// What a node is. Images hold nothing else: no devices, sockets or pipes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NodeKind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link.
    Symlink,
}

/// What is known of a node without its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Node {
    /// What it is.
    pub kind: NodeKind,
    /// Permission bits (`0o7777` at most).
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes of a file or of a link's target; entries of a directory.
    pub size: u64,
    /// Time of the last change, seconds of the Unix epoch.
    pub mtime_s: i64,
    /// Hard links; for a directory 2 and one for each directory in it.
    pub links: u32,
}

/// An image that can be read. Clones share the bytes.
#[derive(Clone)]
pub struct Image {
    bytes: ImageBytes,
    header: Header,
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Image")
            .field("header", &self.header)
            .finish_non_exhaustive()
    }
}

impl Image {
    /// Opens an image. Costs the same for every size: only the header is read.
    ///
    /// # Errors
    /// When the header is not an image's, or promises another length than `bytes` has.
    pub fn open(bytes: ImageBytes) -> Result<Self, ImageError> {
        let image = Self::open_tables(bytes)?;
        let have = image.all().len() as u64;
        match have == image.header.file_bytes {
            true => Ok(image),
            false => Err(ImageError::WrongLength {
                have,
                promised: image.header.file_bytes,
            }),
        }
    }

    /// Opens the part of an image that lies before the file contents; see [`tables_bytes`]. Everything but
    /// [`Image::file`] and [`Image::verify`] works on it.
    ///
    /// # Errors
    /// When the header is not an image's, or the tables are not all there.
    pub fn open_tables(bytes: ImageBytes) -> Result<Self, ImageError> {
        let have = (*bytes).as_ref().len() as u64;
        let header = read_header((*bytes).as_ref())?;
        match have >= header.data {
            true => Ok(Self { bytes, header }),
            false => Err(ImageError::WrongLength {
                have,
                promised: header.file_bytes,
            }),
        }
    }

    /// Reads the whole image and compares it with its checksum. For the host; the jail has no need of it.
    ///
    /// # Errors
    /// [`ImageError::ChecksumMismatch`].
    pub fn verify(&self) -> Result<(), ImageError> {
        let bytes = self.all();
        let stated = slice(bytes, CHECKSUM_AT as u64, 32).ok_or(ImageError::DamagedHeader)?;
        let content = bytes.get(CHECKED_FROM..).ok_or(ImageError::DamagedHeader)?;
        match blake3::hash(content).as_bytes() == stated {
            true => Ok(()),
            false => Err(ImageError::ChecksumMismatch),
        }
    }

    /// The checksum in the header: names the content, and is the same for the same tree.
    pub fn checksum(&self) -> [u8; 32] {
        slice(self.all(), CHECKSUM_AT as u64, 32)
            .and_then(|bytes| bytes.try_into().ok())
            .unwrap_or_default()
    }

    /// JSON that the writer was given; empty when there was none.
    pub fn metadata(&self) -> &[u8] {
        slice(self.all(), self.header.metadata, self.header.metadata_bytes).unwrap_or_default()
    }

    /// The root directory.
    pub fn root(&self) -> NodeIndex {
        NodeIndex(0)
    }

    /// How many nodes there are: every index below this may exist.
    pub fn node_count(&self) -> u32 {
        self.header.node_count
    }

    /// Length of the whole image in bytes, as its header states it.
    pub fn file_bytes(&self) -> u64 {
        self.header.file_bytes
    }

    /// What is known of a node. `None` when it does not exist or is damaged.
    pub fn node(&self, index: NodeIndex) -> Option<Node> {
        let record = self.record(index)?;
        Some(Node {
            kind: kind(record.kind)?,
            mode: record.mode & 0o7777,
            uid: record.uid,
            gid: record.gid,
            size: record.size,
            mtime_s: record.mtime_s,
            links: record.links,
        })
    }

    /// The entry of a directory with this name. `None` when there is none, or `directory` is no directory.
    pub fn lookup(&self, directory: NodeIndex, name: &[u8]) -> Option<NodeIndex> {
        let Range {
            start: mut low,
            end: mut high,
        } = self.entry_range(directory)?;
        while low < high {
            let middle = low + (high - low) / 2;
            let (found, node) = self.entry_record(middle)?;
            match found.cmp(name) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return Some(node),
            }
        }
        None
    }

    /// The entry at this position of a directory, counted from zero in order of names. `.` and `..` are not stored.
    pub fn entry(&self, directory: NodeIndex, position: u64) -> Option<(&[u8], NodeIndex)> {
        let range = self.entry_range(directory)?;
        let at = range.start.checked_add(position)?;
        range.contains(&at).then(|| self.entry_record(at)).flatten()
    }

    /// The entries of a directory in order of names, or nothing when it is no directory. `skip` starts anywhere at
    /// no cost. Ends at the first damaged entry.
    pub fn entries(&self, directory: NodeIndex) -> Entries<'_> {
        Entries {
            image: self,
            range: self.entry_range(directory).unwrap_or(0..0),
        }
    }

    /// The directory that holds this one; the root holds itself. `None` for what is no directory.
    pub fn parent(&self, directory: NodeIndex) -> Option<NodeIndex> {
        let record = self.record(directory)?;
        (record.kind == KIND_DIRECTORY && record.parent < self.header.node_count)
            .then_some(NodeIndex(record.parent))
    }

    /// The content of a file.
    pub fn file(&self, index: NodeIndex) -> Option<&[u8]> {
        let range = self.file_range(index)?;
        slice(self.all(), range.start, range.end - range.start)
    }

    /// Where the content of a file lies in the image. It starts on a page, and is followed by zeros up to the next,
    /// exactly when the file is larger than a page ([`PAGE_BYTES`](crate::PAGE_BYTES)); such a file can be mapped.
    pub fn file_range(&self, index: NodeIndex) -> Option<Range<u64>> {
        let record = self.record(index)?;
        let end = record.start.checked_add(record.size)?;
        (record.kind == KIND_FILE && record.start >= self.header.data && end <= self.header.file_bytes)
            .then_some(record.start..end)
    }

    /// The target of a symbolic link.
    pub fn link(&self, index: NodeIndex) -> Option<&[u8]> {
        let record = self.record(index)?;
        (record.kind == KIND_SYMLINK)
            .then(|| self.name(record.start, record.size))
            .flatten()
    }

    /// The node at an absolute path, without following symbolic links. A convenience of the host.
    pub fn find(&self, path: &[u8]) -> Option<NodeIndex> {
        path.split(|&byte| byte == b'/')
            .filter(|name| !name.is_empty())
            .try_fold(self.root(), |directory, name| self.lookup(directory, name))
    }

    fn all(&self) -> &[u8] {
        (*self.bytes).as_ref()
    }

    fn record(&self, index: NodeIndex) -> Option<NodeRecord> {
        if index.0 >= self.header.node_count {
            return None;
        }
        let at = self.header.nodes + u64::from(index.0) * NODE_BYTES as u64;
        NodeRecord::decode(slice(self.all(), at, NODE_BYTES as u64)?)
    }

    /// The entry table's records that belong to a directory.
    fn entry_range(&self, directory: NodeIndex) -> Option<Range<u64>> {
        let record = self.record(directory)?;
        let end = record.start.checked_add(record.size)?;
        (record.kind == KIND_DIRECTORY && end <= u64::from(self.header.entry_count))
            .then_some(record.start..end)
    }

    fn entry_record(&self, at: u64) -> Option<(&[u8], NodeIndex)> {
        let offset = self.header.entries + at * ENTRY_BYTES as u64;
        let entry = EntryRecord::decode(slice(self.all(), offset, ENTRY_BYTES as u64)?)?;
        let name = self.name(u64::from(entry.name), u64::from(entry.name_bytes))?;
        (entry.node < self.header.node_count).then_some((name, NodeIndex(entry.node)))
    }

    fn name(&self, offset: u64, length: u64) -> Option<&[u8]> {
        slice(
            slice(self.all(), self.header.names, self.header.names_bytes)?,
            offset,
            length,
        )
    }
}

/// Bytes at the start of an image that [`Image::open_tables`] needs: everything before the file contents.
///
/// # Errors
/// When `start`, the first [`HEADER_LENGTH`] bytes, is not an image's header.
pub fn tables_bytes(start: &[u8]) -> Result<u64, ImageError> {
    Ok(read_header(start)?.data)
}

/// Bytes that [`tables_bytes`] needs.
pub const HEADER_LENGTH: usize = HEADER_BYTES;

fn read_header(bytes: &[u8]) -> Result<Header, ImageError> {
    if bytes.get(..MAGIC.len()) != Some(MAGIC.as_slice()) {
        return Err(ImageError::NotAnImage);
    }
    let version = u32_at(bytes, 8).ok_or(ImageError::NotAnImage)?;
    if version != VERSION {
        return Err(ImageError::UnsupportedVersion(version));
    }
    let header = Header::decode(bytes).ok_or(ImageError::DamagedHeader)?;
    match header.is_consistent() {
        true => Ok(header),
        false => Err(ImageError::DamagedHeader),
    }
}

fn kind(byte: u8) -> Option<NodeKind> {
    match byte {
        KIND_DIRECTORY => Some(NodeKind::Directory),
        KIND_FILE => Some(NodeKind::File),
        KIND_SYMLINK => Some(NodeKind::Symlink),
        _ => None,
    }
}

/// Iterator over a directory's entries; see [`Image::entries`].
#[derive(Debug, Clone)]
pub struct Entries<'a> {
    image: &'a Image,
    range: Range<u64>,
}

impl<'a> Iterator for Entries<'a> {
    type Item = (&'a [u8], NodeIndex);

    fn next(&mut self) -> Option<Self::Item> {
        self.nth(0)
    }

    fn nth(&mut self, n: usize) -> Option<Self::Item> {
        let at = self.range.nth(n)?;
        let found = self.image.entry_record(at);
        if found.is_none() {
            self.range = 0..0;
        }
        found
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, self.range.size_hint().1)
    }
}
