//! Laying a tree out as an image file.
//!
//! The same tree gives the same bytes. The file appears under its name whole or not at all: it is written beside it,
//! flushed to disk and renamed.

use std::{
    collections::{HashMap, VecDeque},
    fs::File,
    io::{self, BufWriter, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use crate::{
    format::{
        CHECKED_FROM, CHECKSUM_AT, ENTRY_BYTES, EntryRecord, HEADER_BYTES, Header, KIND_DIRECTORY, KIND_FILE,
        KIND_SYMLINK, NODE_BYTES, NodeRecord, PACKED_ALIGN, PAGE_BYTES, align_up,
    },
    spool::ContentId,
    tree::{Slot, Tree, TreeKind},
};

/// Bytes written at a time.
const BUFFER_BYTES: usize = 256 << 10;

/// An image could not be written. Nothing is left behind, and what stood under the name before still does.
#[derive(Debug, thiserror::Error)]
#[error("writing the image {path} failed")]
pub struct WriteError {
    /// Which image.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Length of the file.
    pub bytes: u64,
    /// Nodes in it.
    pub nodes: u32,
    /// The header's checksum, which names the content.
    pub checksum: [u8; 32],
}

/// Writes `tree` as an image to `path`, with `metadata` (JSON) in it. Only the file's owner may read it: it can hold a
/// tenant's code.
///
/// # Errors
/// When the file cannot be written, for instance because the disk is full.
pub fn write(tree: &Tree, metadata: &[u8], path: &Path) -> Result<Written, WriteError> {
    write_file(tree, metadata, path).map_err(|source| WriteError {
        path: path.to_path_buf(),
        source,
    })
}

fn write_file(tree: &Tree, metadata: &[u8], path: &Path) -> io::Result<Written> {
    let layout = Layout::new(tree, metadata)?;
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    };
    let file = tempfile::Builder::new()
        .prefix(".image-")
        .tempfile_in(directory)?;
    let mut sink = Sink::new(file.as_file());
    layout.write(tree, metadata, &mut sink)?;
    let checksum = sink.finish()?;
    file.as_file().write_all_at(&checksum, CHECKSUM_AT as u64)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    File::open(directory)?.sync_all()?;
    Ok(Written {
        bytes: layout.header.file_bytes,
        nodes: layout.header.node_count,
        checksum,
    })
}

/// Where everything goes.
struct Layout {
    header: Header,
    nodes: Vec<NodeRecord>,
    entries: Vec<EntryRecord>,
    names: Vec<u8>,
    /// Contents in the order of their offsets.
    contents: Vec<(u64, ContentId)>,
}

impl Layout {
    fn new(tree: &Tree, metadata: &[u8]) -> io::Result<Self> {
        let numbering = Numbering::new(tree);
        let mut layout = Self {
            header: Header {
                file_bytes: 0,
                node_count: count(numbering.order.len())?,
                entry_count: 0,
                metadata: HEADER_BYTES as u64,
                metadata_bytes: metadata.len() as u64,
                nodes: 0,
                entries: 0,
                names: 0,
                names_bytes: 0,
                data: 0,
            },
            nodes: Vec::with_capacity(numbering.order.len()),
            entries: Vec::new(),
            names: Vec::new(),
            contents: Vec::new(),
        };
        for &slot in &numbering.order {
            let record = layout.node(tree, &numbering, slot)?;
            layout.nodes.push(record);
        }
        layout.place_sections(metadata)?;
        layout.place_contents(tree, &numbering);
        Ok(layout)
    }

    /// The record of a node; directories add their entries, links their targets. Files get their place later.
    fn node(&mut self, tree: &Tree, numbering: &Numbering, slot: Slot) -> io::Result<NodeRecord> {
        let node = &tree.nodes()[slot];
        let mut record = NodeRecord {
            kind: KIND_FILE,
            mode: node.attributes.mode,
            uid: node.attributes.uid,
            gid: node.attributes.gid,
            links: numbering.links[&slot],
            mtime_s: node.attributes.mtime_s,
            size: 0,
            start: 0,
            parent: 0,
        };
        match &node.kind {
            TreeKind::Directory { parent, children } => {
                record.kind = KIND_DIRECTORY;
                record.start = self.entries.len() as u64;
                record.size = children.len() as u64;
                record.parent = numbering.numbers[parent];
                for (name, child) in children {
                    let entry = EntryRecord {
                        name: count(self.names.len())?,
                        name_bytes: name.len() as u16,
                        node: numbering.numbers[child],
                    };
                    self.entries.push(entry);
                    self.names.extend_from_slice(name);
                }
            }
            TreeKind::File(content) => record.size = tree.spool().bytes(*content),
            TreeKind::Symlink(target) => {
                record.kind = KIND_SYMLINK;
                record.start = self.names.len() as u64;
                record.size = target.len() as u64;
                self.names.extend_from_slice(target);
            }
        }
        Ok(record)
    }

    fn place_sections(&mut self, metadata: &[u8]) -> io::Result<()> {
        let header = &mut self.header;
        header.entry_count = count(self.entries.len())?;
        header.names_bytes = self.names.len() as u64;
        header.nodes = align_up(header.metadata + metadata.len() as u64, 8);
        header.entries = header.nodes + (self.nodes.len() * NODE_BYTES) as u64;
        header.names = header.entries + (self.entries.len() * ENTRY_BYTES) as u64;
        header.data = align_up(header.names + header.names_bytes, PAGE_BYTES);
        Ok(())
    }

    /// Gives every distinct content its place: first the small ones, packed in the order of their files, then the
    /// large ones.
    fn place_contents(&mut self, tree: &Tree, numbering: &Numbering) {
        let mut places: HashMap<ContentId, u64> = HashMap::new();
        let mut end = self.header.data;
        for small in [true, false] {
            for &slot in &numbering.order {
                let TreeKind::File(content) = tree.nodes()[slot].kind else {
                    continue;
                };
                let bytes = tree.spool().bytes(content);
                if (bytes <= PAGE_BYTES) != small || places.contains_key(&content) {
                    continue;
                }
                let mut at = align_up(end, if small { PACKED_ALIGN } else { PAGE_BYTES });
                if small && at / PAGE_BYTES != (at + bytes.saturating_sub(1)) / PAGE_BYTES {
                    at = align_up(at, PAGE_BYTES);
                }
                places.insert(content, at);
                self.contents.push((at, content));
                end = at + bytes;
            }
        }
        self.header.file_bytes = align_up(end, PAGE_BYTES);
        for (record, &slot) in self.nodes.iter_mut().zip(&numbering.order) {
            if let TreeKind::File(content) = tree.nodes()[slot].kind {
                record.start = places[&content];
            }
        }
    }

    fn write(&self, tree: &Tree, metadata: &[u8], sink: &mut Sink<'_>) -> io::Result<()> {
        let header = self.header.encode();
        sink.unchecked(&header[..CHECKED_FROM])?;
        sink.write_all(&header[CHECKED_FROM..])?;
        sink.write_all(metadata)?;
        sink.pad_to(self.header.nodes)?;
        for node in &self.nodes {
            sink.write_all(&node.encode())?;
        }
        for entry in &self.entries {
            sink.write_all(&entry.encode())?;
        }
        sink.write_all(&self.names)?;
        for &(at, content) in &self.contents {
            sink.pad_to(at)?;
            tree.spool().copy_to(content, sink)?;
        }
        sink.pad_to(self.header.file_bytes)
    }
}

/// Order of the nodes in the file: breadth first, each directory's entries by name.
struct Numbering {
    order: Vec<Slot>,
    numbers: HashMap<Slot, u32>,
    links: HashMap<Slot, u32>,
}

impl Numbering {
    fn new(tree: &Tree) -> Self {
        let mut numbering = Self {
            order: vec![0],
            numbers: HashMap::from([(0, 0)]),
            links: HashMap::from([(0, 2)]),
        };
        let mut queue = VecDeque::from([0]);
        while let Some(directory) = queue.pop_front() {
            let TreeKind::Directory { children, .. } = &tree.nodes()[directory].kind else {
                continue;
            };
            for &child in children.values() {
                let is_directory = matches!(tree.nodes()[child].kind, TreeKind::Directory { .. });
                if is_directory {
                    *numbering.links.entry(directory).or_default() += 1;
                    numbering.links.insert(child, 2);
                    queue.push_back(child);
                } else {
                    *numbering.links.entry(child).or_default() += 1;
                }
                // A second name of a file that has its number already.
                if numbering.numbers.contains_key(&child) {
                    continue;
                }
                numbering.numbers.insert(child, numbering.order.len() as u32);
                numbering.order.push(child);
            }
        }
        numbering
    }
}

/// A number for a 32-bit field of the format.
fn count(value: usize) -> io::Result<u32> {
    u32::try_from(value).map_err(|_| io::Error::other("more names than an image can hold"))
}

/// The file being written: counts and hashes what passes.
struct Sink<'a> {
    file: BufWriter<&'a File>,
    hasher: blake3::Hasher,
    at: u64,
}

impl<'a> Sink<'a> {
    fn new(file: &'a File) -> Self {
        Self {
            file: BufWriter::with_capacity(BUFFER_BYTES, file),
            hasher: blake3::Hasher::new(),
            at: 0,
        }
    }

    /// Writes bytes that the checksum does not cover.
    fn unchecked(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.at += bytes.len() as u64;
        self.file.write_all(bytes)
    }

    fn pad_to(&mut self, offset: u64) -> io::Result<()> {
        let zeros = [0; PAGE_BYTES as usize];
        while self.at < offset {
            let n = zeros
                .len()
                .min(usize::try_from(offset - self.at).unwrap_or(usize::MAX));
            self.write_all(&zeros[..n])?;
        }
        Ok(())
    }

    fn finish(mut self) -> io::Result<[u8; 32]> {
        self.file.flush()?;
        Ok(*self.hasher.finalize().as_bytes())
    }
}

impl Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        self.at += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
