//! Laying a snapshot out in a machine.
//!
//! `unsafe`: reads from files straight into guest memory.

use std::{os::fd::BorrowedFd, time::Instant};

use crate::{
    error::{Error, Result},
    geometry::{CHUNK_BYTES, HOT_BASE, IMAGE_BASE, USER_TABLES},
    machine::Vm,
    snapshot::{
        MachineState, SNAPSHOT_VERSION, Style,
        build::{Plan, build},
        graft::{self, Graft},
        layout::{Layout, Section, read_into, tables_bytes},
    },
    space::AddressSpace,
    tables::EntryAt,
    vcpu::XSAVE_BYTES,
};

/// What a machine is laid out by.
#[derive(Debug, Clone, Copy)]
pub enum Source<'a> {
    /// Nothing is known yet: finds out what the next run touches.
    Record,
    /// A plan of a layout file: little memory, to be touched ahead.
    Compact(Layout<'a>),
    /// A plan of a layout file: the first answer soon.
    Fast(Layout<'a>),
    /// A graft of a layout file, for a machine in which the base has been laid out that it was made for.
    Graft(Layout<'a>),
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
    /// Chunks of the image slot that lie before the snapshot's own.
    pub(crate) image_first: u64,
    /// The id of the layout.
    pub(crate) layout_id: u64,
}

fn elapsed_ns(since: Instant) -> u64 {
    since.elapsed().as_nanos() as u64
}

impl Vm {
    /// Lays a snapshot out. The machine must hold nothing, or for [`Source::Graft`] the base that the graft is for, in which
    /// nothing has run. An error leaves it of no further use.
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
        let (image_first, base) = match source {
            Source::Record | Source::Compact(_) | Source::Fast(_) => (0, None),
            Source::Graft(layout) => {
                let base = self
                    .take_restored()
                    .filter(|base| Some(base.layout_id) == layout.grafts_on())
                    .ok_or_else(|| Error::Snapshot("the graft is for another base".into()))?;
                (base.chunks as u64, Some(base))
            }
        };
        if image_first == 0 {
            let bytes = match source {
                // A slot can grow only while nothing lies in it, and a graft brings its own image.
                Source::Compact(layout) | Source::Fast(layout) if layout.is_base() => {
                    graft::image_room(state)
                }
                Source::Record | Source::Compact(_) | Source::Fast(_) | Source::Graft(_) => {
                    state.memory_bytes()
                }
            };
            self.space_mut().physical.ensure_image(bytes)?;
        }
        self.space_mut()
            .map_image(memory, image_first * CHUNK_BYTES, state.memory_bytes())?;
        let map_ns = elapsed_ns(began);
        let began = Instant::now();
        let restored = match (source, base) {
            (Source::Record, _) => self.lay_out_recording(state)?,
            (Source::Compact(layout), _) => self.lay_out(
                layout,
                memory,
                [Section::CompactPlan, Section::CompactTables, Section::CompactHot],
            )?,
            (Source::Fast(layout), _) => self.lay_out(
                layout,
                memory,
                [Section::FastPlan, Section::FastTables, Section::FastHot],
            )?,
            (Source::Graft(layout), base) => self.graft(layout, memory, &base.unwrap_or_default())?,
        };
        let restored = Restored {
            extended: state.extended.clone(),
            chunks: state.chunks.len(),
            image_first,
            ..restored
        };
        let space = self.space_mut();
        space.advise_image(image_first, restored.chunks, &restored.plan.large_images);
        space.adopt(&restored);
        self.load_extended(&restored.extended)?;
        self.set_restored(restored);
        Ok(RestoreTimes {
            map_ns,
            fill_ns: elapsed_ns(began),
        })
    }

    fn lay_out_recording(&mut self, state: &MachineState) -> Result<Restored> {
        let built = build(state, None, Style::Record);
        let tables = tables_bytes(&built.tables);
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
        let plan: Plan = layout.decode(plan)?;
        let (tables_at, tables_bytes) = layout.section(tables);
        self.space_mut()
            .read_tables(layout.file, tables_at, 0, tables_bytes)?;
        let (hot_at, hot_bytes) = layout.section(hot);
        if hot_bytes != plan.hot_bytes {
            return Err(Error::Snapshot("the hot pages are not those of the plan".into()));
        }
        if sections[0] == Section::CompactPlan {
            self.space_mut().keep_hot_small(hot_bytes);
        }
        self.space_mut().read_hot(layout.file, hot_at, 0, hot_bytes)?;
        self.space_mut().read_whole_chunks(&plan, memory)?;
        Ok(Restored {
            plan,
            hot_at,
            tables_used: tables_bytes,
            layout_id: layout.id(),
            ..Restored::default()
        })
    }

    /// Changes the base that has been laid out into a snapshot that descends from it.
    fn graft(&mut self, layout: Layout<'_>, memory: BorrowedFd<'_>, base: &Restored) -> Result<Restored> {
        let graft: Graft = layout.decode(Section::Graft)?;
        if graft.image_first != base.chunks as u64 {
            return Err(Error::Snapshot("the graft is for another base".into()));
        }
        let (tables_at, tables_bytes) = layout.section(Section::GraftTables);
        let (hot_at, hot_bytes) = layout.section(Section::GraftHot);
        if hot_bytes != graft.plan.hot_bytes {
            return Err(Error::Snapshot("the hot pages are not those of the graft".into()));
        }
        let space = self.space_mut();
        space.read_tables(layout.file, tables_at, base.tables_used, tables_bytes)?;
        space.edit_tables(&graft.edits, base.tables_used)?;
        for (offset, bytes) in &graft.copies {
            space.read_hot(layout.file, hot_at + offset, *offset, *bytes)?;
        }
        self.space_mut().read_whole_chunks(&graft.plan, memory)?;
        Ok(Restored {
            plan: graft.plan,
            hot_at,
            tables_used: base.tables_used + tables_bytes,
            layout_id: layout.id(),
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
    /// Maps the memory file over the image slot, from an offset on; what lies below stays.
    fn map_image(&mut self, memory: BorrowedFd<'_>, at: u64, bytes: u64) -> Result<()> {
        let image = self
            .physical
            .slot_mut(IMAGE_BASE)
            .ok_or(Error::Missing("an image slot"))?;
        if at + bytes > image.bytes() {
            return Err(Error::Exhausted("image slot"));
        }
        if bytes == 0 {
            return Ok(());
        }
        image.map_file_private(at, bytes, memory, 0)
    }

    /// Has the host map those chunks of the image with large pages that the guest's tables map so, and no others: where
    /// the guest writes a page that the host has to copy, the host drops all translations of a large page.
    fn advise_image(&mut self, first: u64, chunks: usize, large: &[u32]) {
        let Some(image) = self.physical.slot_mut(IMAGE_BASE) else {
            return;
        };
        let mut is_large = vec![false; chunks];
        for chunk in large {
            if let Some(is_large) = is_large.get_mut(*chunk as usize) {
                *is_large = true;
            }
        }
        let mut at = first * CHUNK_BYTES;
        for run in is_large.chunk_by(|one, next| one == next) {
            let bytes = run.len() as u64 * CHUNK_BYTES;
            if run[0] {
                image.want_huge_pages(at, bytes);
            } else {
                image.want_small_pages(at, bytes);
            }
            at += bytes;
        }
    }

    fn fill_tables(&mut self, tables: &[u8]) -> Result<()> {
        if USER_TABLES + tables.len() as u64 > self.physical.system().bytes() {
            return Err(Error::Exhausted("page-table pages"));
        }
        self.write_system(USER_TABLES, tables);
        Ok(())
    }

    fn read_tables(&mut self, file: BorrowedFd<'_>, offset: u64, at: u64, bytes: u64) -> Result<()> {
        let target = self
            .physical
            .system()
            .pointer(USER_TABLES + at, bytes)
            .ok_or(Error::Exhausted("page-table pages"))?;
        // SAFETY: `bytes` bytes at `target` are inside the system slot, as `pointer` has checked.
        unsafe { read_into(file, target, bytes, offset) }
    }

    /// Replaces entries of the first tables.
    fn edit_tables(&mut self, edits: &[(u64, u64)], tables_bytes: u64) -> Result<()> {
        let tables = USER_TABLES..USER_TABLES + tables_bytes;
        if !edits
            .iter()
            .all(|(at, _)| tables.contains(at) && at.is_multiple_of(8))
        {
            return Err(Error::Snapshot("the graft changes what is no table".into()));
        }
        self.tables.stop_journal();
        for (at, value) in edits {
            self.tables.replace(EntryAt(*at), *value);
        }
        Ok(())
    }

    /// Has the last hot pages take no more than they need, where they do not fill a large page: for machines that are
    /// kept for later.
    fn keep_hot_small(&mut self, bytes: u64) {
        let last = bytes / CHUNK_BYTES * CHUNK_BYTES;
        if let Some(hot) = self.physical.slot_mut(HOT_BASE)
            && last + CHUNK_BYTES <= hot.bytes()
        {
            hot.want_small_pages(last, CHUNK_BYTES);
        }
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

    /// Reads the chunks that a plan copies whole.
    pub(crate) fn read_whole_chunks(&mut self, plan: &Plan, memory: BorrowedFd<'_>) -> Result<()> {
        for (index, hot) in &plan.whole_chunks {
            self.read_hot(memory, u64::from(*index) * CHUNK_BYTES, *hot, CHUNK_BYTES)?;
        }
        Ok(())
    }

    /// Takes over the tables and bindings of a plan.
    fn adopt(&mut self, restored: &Restored) {
        self.tables
            .adopt(&restored.plan.root, USER_TABLES + restored.tables_used);
        self.tables.set_phantoms(&restored.plan.phantoms);
        self.adopt_bindings(&restored.plan);
    }
}
