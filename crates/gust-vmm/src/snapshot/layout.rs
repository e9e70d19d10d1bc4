//! Layout files: the plans of a snapshot, with their tables and the contents of their hot pages.
//!
//! ```text
//!   header        magic number, id, the base's id, costs, (offset, length) of each section
//!   sections      page-aligned; those that a layout does not have are empty
//! ```
//!
//! `unsafe`: reads from files straight into guest memory.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    geometry::{CHUNK_PAGES, PAGE_BYTES},
    snapshot::{
        Costs, MachineState, Style, WorkingSet,
        build::{Built, build},
        graft::{self, Descendant, Stored, build_base},
    },
};

/// First bytes of a layout file.
const LAYOUT_MAGIC: u64 = 0x5541_4c54_5355_4704; // "\x04GUSTLAU"
/// Words of the header before the sections: the magic number, two ids, two costs.
const FIRST_WORDS: usize = 5;
const SECTIONS: usize = 11;
const HEADER_BYTES: usize = (FIRST_WORDS + SECTIONS * 2) * 8;
/// Longest section that is read into memory of this process's own.
const SECTION_BYTES_MAX: u64 = 64 << 20;

/// The sections of a layout file, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Section {
    CompactPlan,
    CompactTables,
    CompactHot,
    FastPlan,
    FastTables,
    FastHot,
    WorkingSet,
    Shape,
    Graft,
    GraftTables,
    GraftHot,
}

/// A layout file: plans, their tables and hot pages, and the working set that they were built from.
#[derive(Debug, Clone, Copy)]
pub struct Layout<'a> {
    pub(super) file: BorrowedFd<'a>,
    sections: [(u64, u64); SECTIONS],
    id: u64,
    base_id: u64,
    costs: Costs,
}

/// The base that a layout's graft is for: its snapshot, the memory file and the layout.
#[derive(Debug, Clone, Copy)]
pub struct Base<'a> {
    /// The base's snapshot.
    pub state: &'a MachineState,
    /// Its memory file.
    pub memory: BorrowedFd<'a>,
    /// Its layout, written by [`Layout::write_base`].
    pub layout: Layout<'a>,
}

impl<'a> Layout<'a> {
    /// Opens a layout file; only its header is read.
    pub fn open(file: BorrowedFd<'a>) -> Result<Self> {
        let mut header = [0; HEADER_BYTES];
        read_exact(file, &mut header, 0)?;
        let word = |n: usize| u64::from_le_bytes(header[n * 8..n * 8 + 8].try_into().unwrap_or_default());
        if word(0) != LAYOUT_MAGIC {
            return Err(Error::Snapshot("the file is not a layout".into()));
        }
        let mut sections = [(0, 0); SECTIONS];
        for (n, section) in sections.iter_mut().enumerate() {
            *section = (word(FIRST_WORDS + n * 2), word(FIRST_WORDS + n * 2 + 1));
        }
        Ok(Self {
            file,
            sections,
            id: word(1),
            base_id: word(2),
            costs: Costs {
                fault_ns: word(3),
                copy_chunk_ns: word(4),
            },
        })
    }

    pub(super) fn section(&self, section: Section) -> (u64, u64) {
        self.sections[section as usize]
    }

    fn read(&self, section: Section) -> Result<Vec<u8>> {
        let (offset, bytes) = self.section(section);
        if bytes > SECTION_BYTES_MAX {
            return Err(Error::Snapshot("a section of the layout is too long".into()));
        }
        let mut raw = vec![0; bytes as usize];
        read_exact(self.file, &mut raw, offset)?;
        Ok(raw)
    }

    pub(super) fn decode<T: for<'de> Deserialize<'de>>(&self, section: Section) -> Result<T> {
        let raw = self.read(section)?;
        postcard::from_bytes(&raw).map_err(|error| Error::Snapshot(format!("decode a layout: {error}")))
    }

    /// The costs that the plans were built for.
    pub fn costs(&self) -> Costs {
        self.costs
    }

    /// Tells this layout from every other.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The id of the base's layout that the graft is for; `None` when there is no graft.
    pub fn grafts_on(&self) -> Option<u64> {
        (self.base_id != 0).then_some(self.base_id)
    }

    /// Whether it is a base's: a machine laid out by it is for grafts, and runs nothing before.
    pub fn is_base(&self) -> bool {
        self.section(Section::Shape).1 > 0
    }

    /// The working set that the plans were built from.
    pub fn working_set(&self) -> Result<WorkingSet> {
        self.decode(Section::WorkingSet)
    }

    /// Writes a layout for a snapshot to an empty file, with a graft when a base is given; gives its size, and the pages
    /// that are hot in the compact plan.
    pub fn write(
        state: &MachineState,
        set: &WorkingSet,
        costs: Costs,
        base: Option<Base<'_>>,
        memory: BorrowedFd<'_>,
        file: BorrowedFd<'_>,
    ) -> Result<(u64, u64)> {
        let compact = build(state, Some(set), Style::Compact);
        let mut writer = Writer::new(file, costs);
        writer.plan(&compact, memory)?;
        writer.plan(&build(state, Some(set), Style::Fast(costs)), memory)?;
        writer.place(&encode(set)?)?;
        writer.place(b"")?;
        if let Some(base) = base {
            let shape = base.layout.decode(Section::Shape)?;
            let own = Stored { state, memory };
            let based = Stored {
                state: base.state,
                memory: base.memory,
            };
            let grafted = graft::graft(based, &shape, own, set, costs)?;
            writer.place(&encode(&grafted.graft)?)?;
            writer.place(&tables_bytes(&grafted.tables))?;
            writer.place(&hot_bytes(&grafted.hot_sources, memory)?)?;
            writer.base_id = base.layout.id;
        }
        Ok((writer.finish()?, compact.hot_sources.len() as u64))
    }

    /// Writes the layout of a runtime's base to an empty file, for these functions; gives its size, and its hot pages.
    pub fn write_base(
        state: &MachineState,
        costs: Costs,
        functions: &[Descendant<'_>],
        memory: BorrowedFd<'_>,
        file: BorrowedFd<'_>,
    ) -> Result<(u64, u64)> {
        let shape = graft::learn(Stored { state, memory }, functions)?;
        let compact = build_base(state, &shape);
        let mut writer = Writer::new(file, costs);
        writer.plan(&compact, memory)?;
        writer.plan(&build(state, Some(&shape.set), Style::Fast(costs)), memory)?;
        writer.place(&encode(&shape.set)?)?;
        writer.place(&encode(&shape)?)?;
        Ok((writer.finish()?, compact.hot_sources.len() as u64))
    }
}

/// A layout file that is being written.
struct Writer<'a> {
    file: BorrowedFd<'a>,
    at: u64,
    sections: Vec<(u64, u64)>,
    /// FNV-1a of everything so far.
    id: u64,
    base_id: u64,
    costs: Costs,
}

impl<'a> Writer<'a> {
    fn new(file: BorrowedFd<'a>, costs: Costs) -> Self {
        const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
        Self {
            file,
            at: (HEADER_BYTES as u64).next_multiple_of(PAGE_BYTES),
            sections: Vec::with_capacity(SECTIONS),
            id: FNV_OFFSET,
            base_id: 0,
            costs,
        }
    }

    fn place(&mut self, raw: &[u8]) -> Result<()> {
        const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;
        write_all(self.file, raw, self.at)?;
        for word in raw.chunks(8) {
            let mut bytes = [0; 8];
            bytes[..word.len()].copy_from_slice(word);
            self.id = (self.id ^ u64::from_le_bytes(bytes)).wrapping_mul(FNV_PRIME);
        }
        self.sections.push((self.at, raw.len() as u64));
        self.at = (self.at + raw.len() as u64).next_multiple_of(PAGE_BYTES);
        Ok(())
    }

    fn plan(&mut self, built: &Built, memory: BorrowedFd<'_>) -> Result<()> {
        self.place(&encode(&built.plan)?)?;
        self.place(&tables_bytes(&built.tables))?;
        self.place(&hot_bytes(&built.hot_sources, memory)?)
    }

    /// Writes the header; gives the size of the file.
    fn finish(mut self) -> Result<u64> {
        self.sections.resize(SECTIONS, (0, 0));
        // Zero means that there is none.
        let first = [
            LAYOUT_MAGIC,
            self.id | 1,
            self.base_id,
            self.costs.fault_ns,
            self.costs.copy_chunk_ns,
        ];
        let sections = self.sections.iter().flat_map(|(at, bytes)| [*at, *bytes]);
        let header: Vec<u8> = first
            .into_iter()
            .chain(sections)
            .flat_map(u64::to_le_bytes)
            .collect();
        // The last section may be shorter than its last page.
        rustix::fs::ftruncate(self.file, self.at)
            .map_err(Error::memory("size a layout", self.at as usize))?;
        write_all(self.file, &header, 0)?;
        Ok(self.at)
    }
}

pub(super) fn tables_bytes(tables: &[[u64; CHUNK_PAGES]]) -> Vec<u8> {
    tables
        .iter()
        .flatten()
        .flat_map(|entry| entry.to_le_bytes())
        .collect()
}

fn hot_bytes(sources: &[Option<u64>], memory: BorrowedFd<'_>) -> Result<Vec<u8>> {
    let mut hot = vec![0; sources.len() * PAGE_BYTES as usize];
    for (page, source) in hot.chunks_exact_mut(PAGE_BYTES as usize).zip(sources) {
        if let Some(source) = source {
            read_exact(memory, page, *source)?;
        }
    }
    Ok(hot)
}

fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    postcard::to_stdvec(value).map_err(|error| Error::Snapshot(format!("encode a layout: {error}")))
}

pub(super) fn read_exact(file: BorrowedFd<'_>, out: &mut [u8], offset: u64) -> Result<()> {
    // SAFETY: `out` is valid for writes of its length.
    unsafe { read_into(file, out.as_mut_ptr(), out.len() as u64, offset) }
}

/// Reads `bytes` bytes of a file to a place in memory.
///
/// # Safety
/// `target` must be valid for writes of that many bytes.
pub(crate) unsafe fn read_into(file: BorrowedFd<'_>, target: *mut u8, bytes: u64, offset: u64) -> Result<()> {
    let mut done = 0;
    while done < bytes {
        // SAFETY: within what the caller vouches for.
        let read = unsafe {
            libc::pread(
                file.as_raw_fd(),
                target.add(done as usize).cast(),
                (bytes - done) as usize,
                (offset + done) as libc::off_t,
            )
        };
        if read < 0 {
            let source = io::Error::last_os_error();
            if source.kind() == io::ErrorKind::Interrupted {
                continue;
            }
            return Err(Error::Memory {
                action: "read a snapshot",
                bytes: bytes as usize,
                source,
            });
        }
        if read == 0 {
            return Err(Error::Snapshot("a file of the snapshot is too short".into()));
        }
        done += read as u64;
    }
    Ok(())
}

fn write_all(file: BorrowedFd<'_>, data: &[u8], offset: u64) -> Result<()> {
    let mut done = 0;
    while done < data.len() {
        let written = rustix::io::pwrite(file, &data[done..], offset + done as u64)
            .map_err(Error::memory("write a layout", data.len()))?;
        done += written;
    }
    Ok(())
}
