//! Laying a snapshot out in a machine that holds nothing, and writing the layouts that make it quick.
//!
//! `unsafe`: reads from files straight into guest memory.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
    time::Instant,
};

use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    geometry::{CHUNK_BYTES, HOT_BASE, IMAGE_BASE, PAGE_BYTES, USER_TABLES},
    machine::Vm,
    snapshot::{
        Costs, MachineState, SNAPSHOT_VERSION, Style, WorkingSet,
        build::{Built, Plan, build},
    },
    space::AddressSpace,
    vcpu::XSAVE_BYTES,
};

/// First bytes of a layout file.
const LAYOUT_MAGIC: u64 = 0x5541_4c54_5355_4701; // "\x01GUSTLAU"
/// Bytes of a layout file's header: the magic number, one (offset, length) for each section, and the costs.
const HEADER_BYTES: usize = 8 + SECTIONS * 16 + 16;
const SECTIONS: usize = 7;
/// Longest section that is read into memory of this process's own.
const SECTION_BYTES_MAX: u64 = 64 << 20;

/// Where the sections of a layout file are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Section {
    CompactPlan,
    CompactTables,
    CompactHot,
    FastPlan,
    FastTables,
    FastHot,
    WorkingSet,
}

/// A layout file: two plans, their tables and hot pages, and the working set that they were built from.
#[derive(Debug, Clone, Copy)]
pub struct Layout<'a> {
    file: BorrowedFd<'a>,
    sections: [(u64, u64); SECTIONS],
    costs: Costs,
}

/// What a machine is laid out by.
#[derive(Debug, Clone, Copy)]
pub enum Source<'a> {
    /// Nothing is known yet: finds out what the next run touches.
    Record,
    /// A plan of a layout file: little memory, to be touched ahead.
    Compact(Layout<'a>),
    /// A plan of a layout file: the first answer soon.
    Fast(Layout<'a>),
}

/// Where the time of a restore went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RestoreTimes {
    /// Mapping the image, in nanoseconds.
    pub map_ns: u64,
    /// Copying tables, hot pages and extended states, in nanoseconds.
    pub fill_ns: u64,
}

/// What a restored machine remembers, to go back to its snapshot.
#[derive(Debug, Clone, Default)]
pub(crate) struct Restored {
    pub(crate) plan: Plan,
    /// Where the dense hot pages are in the layout file.
    pub(crate) hot_at: u64,
    pub(crate) extended: Vec<(u32, Vec<u8>)>,
    pub(crate) tables_used: u64,
    pub(crate) recording: bool,
    pub(crate) chunks: usize,
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
            *section = (word(1 + n * 2), word(2 + n * 2));
        }
        let costs = Costs {
            fault_ns: word(1 + SECTIONS * 2),
            copy_chunk_ns: word(2 + SECTIONS * 2),
        };
        Ok(Self {
            file,
            sections,
            costs,
        })
    }

    fn section(&self, section: Section) -> (u64, u64) {
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

    /// The costs that the plans were built for.
    pub fn costs(&self) -> Costs {
        self.costs
    }

    /// The working set that the plans were built from.
    pub fn working_set(&self) -> Result<WorkingSet> {
        decode(&self.read(Section::WorkingSet)?)
    }

    /// Writes a layout for a snapshot to an empty file; gives its size, and the pages that are hot in the compact plan.
    pub fn write(
        state: &MachineState,
        set: &WorkingSet,
        costs: Costs,
        memory: BorrowedFd<'_>,
        file: BorrowedFd<'_>,
    ) -> Result<(u64, u64)> {
        let compact = build(state, Some(set), Style::Compact);
        let fast = build(state, Some(set), Style::Fast(costs));
        let hot_pages = compact.hot_sources.len() as u64;
        let mut header = LAYOUT_MAGIC.to_le_bytes().to_vec();
        let mut at = (HEADER_BYTES as u64).next_multiple_of(PAGE_BYTES);
        let mut place = |raw: &[u8]| -> Result<()> {
            write_all(file, raw, at)?;
            header.extend_from_slice(&at.to_le_bytes());
            header.extend_from_slice(&(raw.len() as u64).to_le_bytes());
            at = (at + raw.len() as u64).next_multiple_of(PAGE_BYTES);
            Ok(())
        };
        for built in [&compact, &fast] {
            place(&encode(&built.plan)?)?;
            place(&tables_bytes(built))?;
            place(&hot_bytes(built, memory)?)?;
        }
        place(&encode(set)?)?;
        let bytes = at;
        header.extend_from_slice(&costs.fault_ns.to_le_bytes());
        header.extend_from_slice(&costs.copy_chunk_ns.to_le_bytes());
        write_all(file, &header, 0)?;
        Ok((bytes, hot_pages))
    }
}

fn tables_bytes(built: &Built) -> Vec<u8> {
    built
        .tables
        .iter()
        .flatten()
        .flat_map(|entry| entry.to_le_bytes())
        .collect()
}

fn hot_bytes(built: &Built, memory: BorrowedFd<'_>) -> Result<Vec<u8>> {
    let mut hot = vec![0; built.hot_sources.len() * PAGE_BYTES as usize];
    for (page, source) in hot.chunks_exact_mut(PAGE_BYTES as usize).zip(&built.hot_sources) {
        read_exact(memory, page, *source)?;
    }
    Ok(hot)
}

fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    postcard::to_stdvec(value).map_err(|error| Error::Snapshot(format!("encode: {error}")))
}

fn decode<T: for<'de> Deserialize<'de>>(raw: &[u8]) -> Result<T> {
    postcard::from_bytes(raw).map_err(|error| Error::Snapshot(format!("decode: {error}")))
}

fn read_exact(file: BorrowedFd<'_>, out: &mut [u8], offset: u64) -> Result<()> {
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

fn elapsed_ns(since: Instant) -> u64 {
    since.elapsed().as_nanos() as u64
}

impl Vm {
    /// Lays a snapshot out. The machine must be new: nothing has been mapped in it.
    pub fn restore(
        &mut self,
        state: &MachineState,
        memory: BorrowedFd<'_>,
        source: Source<'_>,
    ) -> Result<RestoreTimes> {
        if state.version != SNAPSHOT_VERSION {
            return Err(Error::Snapshot(format!(
                "version {} where this program has {SNAPSHOT_VERSION}",
                state.version
            )));
        }
        let began = Instant::now();
        self.space_mut().map_image(memory, state.memory_bytes())?;
        let map_ns = elapsed_ns(began);
        let began = Instant::now();
        let restored = match source {
            Source::Record => self.lay_out_recording(state)?,
            Source::Compact(layout) => self.lay_out(
                layout,
                memory,
                [Section::CompactPlan, Section::CompactTables, Section::CompactHot],
            )?,
            Source::Fast(layout) => self.lay_out(
                layout,
                memory,
                [Section::FastPlan, Section::FastTables, Section::FastHot],
            )?,
        };
        let restored = Restored {
            extended: state.extended.clone(),
            chunks: state.chunks.len(),
            ..restored
        };
        self.space_mut().adopt(&restored);
        self.load_extended(&restored.extended)?;
        self.set_restored(restored);
        Ok(RestoreTimes {
            map_ns,
            fill_ns: elapsed_ns(began),
        })
    }

    fn lay_out_recording(&mut self, state: &MachineState) -> Result<Restored> {
        let built = build(state, None, Style::Record);
        let tables = tables_bytes(&built);
        self.space_mut().fill_tables(&tables)?;
        Ok(Restored {
            plan: built.plan,
            tables_used: tables.len() as u64,
            recording: true,
            ..Restored::default()
        })
    }

    fn lay_out(
        &mut self,
        layout: Layout<'_>,
        memory: BorrowedFd<'_>,
        sections: [Section; 3],
    ) -> Result<Restored> {
        let [plan, tables, hot] = sections;
        let plan: Plan = decode(&layout.read(plan)?)?;
        let (tables_at, tables_bytes) = layout.section(tables);
        self.space_mut()
            .read_tables(layout.file, tables_at, tables_bytes)?;
        let (hot_at, hot_bytes) = layout.section(hot);
        if hot_bytes != plan.hot_bytes {
            return Err(Error::Snapshot("the hot pages are not those of the plan".into()));
        }
        self.space_mut().read_hot(layout.file, hot_at, 0, hot_bytes)?;
        for (index, hot) in &plan.whole_chunks {
            self.space_mut()
                .read_hot(memory, u64::from(*index) * CHUNK_BYTES, *hot, CHUNK_BYTES)?;
        }
        Ok(Restored {
            plan,
            hot_at,
            tables_used: tables_bytes,
            ..Restored::default()
        })
    }

    /// Loads the extended states of a snapshot's threads.
    pub(crate) fn load_extended(&mut self, extended: &[(u32, Vec<u8>)]) -> Result<()> {
        for (thread, used) in extended {
            let mut state = [0; XSAVE_BYTES];
            let bytes = used.len().min(XSAVE_BYTES);
            state[..bytes].copy_from_slice(&used[..bytes]);
            self.set_extended_state(*thread as usize, &state)?;
        }
        Ok(())
    }
}

impl AddressSpace {
    /// Maps the memory file over the image slot.
    fn map_image(&mut self, memory: BorrowedFd<'_>, bytes: u64) -> Result<()> {
        self.physical.ensure_image(bytes)?;
        let image = self
            .physical
            .slot_mut(IMAGE_BASE)
            .ok_or(Error::Missing("an image slot"))?;
        if bytes == 0 {
            return Ok(());
        }
        image.map_file_private(0, bytes, memory, 0)?;
        image.want_huge_pages(0, bytes);
        Ok(())
    }

    fn fill_tables(&mut self, tables: &[u8]) -> Result<()> {
        if USER_TABLES + tables.len() as u64 > self.physical.system().bytes() {
            return Err(Error::Exhausted("page-table pages"));
        }
        self.write_system(USER_TABLES, tables);
        Ok(())
    }

    fn read_tables(&mut self, file: BorrowedFd<'_>, offset: u64, bytes: u64) -> Result<()> {
        let target = self
            .physical
            .system()
            .pointer(USER_TABLES, bytes)
            .ok_or(Error::Exhausted("page-table pages"))?;
        // SAFETY: `bytes` bytes at `target` are inside the system slot, as `pointer` has checked.
        unsafe { read_into(file, target, bytes, offset) }
    }

    /// Reads part of a file into the hot slot.
    pub(crate) fn read_hot(&mut self, file: BorrowedFd<'_>, offset: u64, at: u64, bytes: u64) -> Result<()> {
        let target = self
            .physical
            .pointer(HOT_BASE + at, bytes)
            .ok_or(Error::Exhausted("hot memory"))?;
        // SAFETY: `bytes` bytes at `target` are inside the hot slot, as `pointer` has checked.
        unsafe { read_into(file, target, bytes, offset) }
    }

    /// Takes over the tables and bindings of a plan.
    fn adopt(&mut self, restored: &Restored) {
        self.tables
            .adopt(&restored.plan.root, USER_TABLES + restored.tables_used);
        self.adopt_bindings(&restored.plan);
    }
}
