//! Bytes of an image file: where things lie and how they are encoded.
//!
//! All numbers are little-endian. The file is one sequence of sections, in this order:
//!
//! ```text
//! header    128 bytes, see `Header`
//! metadata  JSON, of interest to people and to the host's tools
//! nodes     48 bytes each; node 0 is the root directory; numbered breadth first
//! entries   12 bytes each: the entries of one directory lie together, sorted by name (bytewise)
//! names     names of entries and targets of symbolic links, unterminated
//! data      from a page boundary on: small files packed, so that none crosses a page; larger ones page-aligned
//! ```
//!
//! The space behind a page-aligned file up to the next page is zero, so that a page of the image can be mapped as
//! the last page of a file, which Linux shows zero-filled behind the end.
//!
//! Nothing here trusts the bytes: reads outside of them give `None`.

/// First bytes of every image.
pub(crate) const MAGIC: [u8; 8] = *b"GUSTIMG\0";

/// The one version of the format that this code reads and writes.
pub(crate) const VERSION: u32 = 1;

/// Bytes of the header.
pub(crate) const HEADER_BYTES: usize = 128;

/// Where the checksum (BLAKE3) lies in the header. It covers everything behind itself.
pub(crate) const CHECKSUM_AT: usize = 16;

/// First byte that the checksum covers.
pub(crate) const CHECKED_FROM: usize = 48;

/// Bytes of a node record.
pub(crate) const NODE_BYTES: usize = 48;

/// Bytes of an entry record.
pub(crate) const ENTRY_BYTES: usize = 12;

/// Alignment of the data section and of files larger than this, in bytes.
pub const PAGE_BYTES: u64 = 4096;

/// Alignment of packed small files, in bytes: enough for any scalar that a program may read in place.
pub(crate) const PACKED_ALIGN: u64 = 16;

/// Longest name of an entry, in bytes (Linux's `NAME_MAX`).
pub const NAME_BYTES_MAX: usize = 255;

/// Longest target of a symbolic link, in bytes (Linux's `PATH_MAX` without its terminator).
pub const LINK_BYTES_MAX: usize = 4095;

/// Most nodes of an image.
pub const NODES_MAX: usize = 4_000_000;

/// Node kinds on disk.
pub(crate) const KIND_DIRECTORY: u8 = 1;
pub(crate) const KIND_FILE: u8 = 2;
pub(crate) const KIND_SYMLINK: u8 = 3;

/// The header's fields behind magic, version and checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    /// Length of the whole file.
    pub file_bytes: u64,
    /// Records in the node table.
    pub node_count: u32,
    /// Records in the entry table.
    pub entry_count: u32,
    /// Offset of the metadata.
    pub metadata: u64,
    /// Length of the metadata.
    pub metadata_bytes: u64,
    /// Offset of the node table.
    pub nodes: u64,
    /// Offset of the entry table.
    pub entries: u64,
    /// Offset of the names.
    pub names: u64,
    /// Length of the names.
    pub names_bytes: u64,
    /// Offset of the file contents.
    pub data: u64,
}

impl Header {
    /// The header as it stands at the start of a file. The checksum's place is left zero.
    pub(crate) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(48, &self.file_bytes.to_le_bytes());
        put(56, &self.node_count.to_le_bytes());
        put(60, &self.entry_count.to_le_bytes());
        put(64, &self.metadata.to_le_bytes());
        put(72, &self.metadata_bytes.to_le_bytes());
        put(80, &self.nodes.to_le_bytes());
        put(88, &self.entries.to_le_bytes());
        put(96, &self.names.to_le_bytes());
        put(104, &self.names_bytes.to_le_bytes());
        put(112, &self.data.to_le_bytes());
        out
    }

    /// Reads the fields; says nothing about whether they make sense. `None` when the bytes are too few.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            file_bytes: u64_at(bytes, 48)?,
            node_count: u32_at(bytes, 56)?,
            entry_count: u32_at(bytes, 60)?,
            metadata: u64_at(bytes, 64)?,
            metadata_bytes: u64_at(bytes, 72)?,
            nodes: u64_at(bytes, 80)?,
            entries: u64_at(bytes, 88)?,
            names: u64_at(bytes, 96)?,
            names_bytes: u64_at(bytes, 104)?,
            data: u64_at(bytes, 112)?,
        })
    }

    /// Whether the sections follow each other inside the file in the stated order and sizes.
    pub(crate) fn is_consistent(&self) -> bool {
        let behind =
            |offset: u64, bytes: u64, next: u64| offset.checked_add(bytes).is_some_and(|end| end <= next);
        self.metadata >= HEADER_BYTES as u64
            && behind(self.metadata, self.metadata_bytes, self.nodes)
            && behind(
                self.nodes,
                u64::from(self.node_count) * NODE_BYTES as u64,
                self.entries,
            )
            && behind(
                self.entries,
                u64::from(self.entry_count) * ENTRY_BYTES as u64,
                self.names,
            )
            && behind(self.names, self.names_bytes, self.data)
            && self.data <= self.file_bytes
            && self.data.is_multiple_of(PAGE_BYTES)
            && self.node_count >= 1
            && self.node_count as usize <= NODES_MAX
    }
}

/// One record of the node table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NodeRecord {
    pub kind: u8,
    /// Permission bits, set-id and sticky included.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    /// Names that lead here; for a directory 2 and one for each directory in it.
    pub links: u32,
    pub mtime_s: i64,
    /// Bytes of a file or of a link's target; entries of a directory.
    pub size: u64,
    /// File: offset of its content in the image. Link: offset of the target in the names. Directory: first entry.
    pub start: u64,
    /// Directory: the directory that holds it; the root's is itself. Otherwise 0.
    pub parent: u32,
}

impl NodeRecord {
    pub(crate) fn encode(&self) -> [u8; NODE_BYTES] {
        let mut out = [0; NODE_BYTES];
        out[0] = self.kind;
        out[2..4].copy_from_slice(&self.mode.to_le_bytes());
        out[4..8].copy_from_slice(&self.uid.to_le_bytes());
        out[8..12].copy_from_slice(&self.gid.to_le_bytes());
        out[12..16].copy_from_slice(&self.links.to_le_bytes());
        out[16..24].copy_from_slice(&self.mtime_s.to_le_bytes());
        out[24..32].copy_from_slice(&self.size.to_le_bytes());
        out[32..40].copy_from_slice(&self.start.to_le_bytes());
        out[40..44].copy_from_slice(&self.parent.to_le_bytes());
        out
    }

    pub(crate) fn decode(record: &[u8]) -> Option<Self> {
        Some(Self {
            kind: *record.first()?,
            mode: u16_at(record, 2)?,
            uid: u32_at(record, 4)?,
            gid: u32_at(record, 8)?,
            links: u32_at(record, 12)?,
            mtime_s: u64_at(record, 16)? as i64,
            size: u64_at(record, 24)?,
            start: u64_at(record, 32)?,
            parent: u32_at(record, 40)?,
        })
    }
}

/// One record of the entry table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EntryRecord {
    /// Offset of the name in the names.
    pub name: u32,
    pub name_bytes: u16,
    pub node: u32,
}

impl EntryRecord {
    pub(crate) fn encode(&self) -> [u8; ENTRY_BYTES] {
        let mut out = [0; ENTRY_BYTES];
        out[0..4].copy_from_slice(&self.name.to_le_bytes());
        out[4..6].copy_from_slice(&self.name_bytes.to_le_bytes());
        out[8..12].copy_from_slice(&self.node.to_le_bytes());
        out
    }

    pub(crate) fn decode(record: &[u8]) -> Option<Self> {
        Some(Self {
            name: u32_at(record, 0)?,
            name_bytes: u16_at(record, 4)?,
            node: u32_at(record, 8)?,
        })
    }
}

/// `length` bytes from `offset` on, if they are all there.
pub(crate) fn slice(bytes: &[u8], offset: u64, length: u64) -> Option<&[u8]> {
    let start = usize::try_from(offset).ok()?;
    let end = start.checked_add(usize::try_from(length).ok()?)?;
    bytes.get(start..end)
}

/// `value` rounded up to a multiple of `to`, a power of two.
pub(crate) fn align_up(value: u64, to: u64) -> u64 {
    value.next_multiple_of(to)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}
