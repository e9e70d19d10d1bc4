//! Writing a machine's state out.

use std::os::fd::BorrowedFd;

use crate::{
    error::{Error, Result},
    geometry::{CHUNK_BYTES, CHUNK_PAGES, PAGE_BYTES, PageRange, Prot},
    host_memory::HostMapping,
    machine::Vm,
    snapshot::{ChunkMap, MachineState, PageRun, SNAPSHOT_VERSION},
    space::AddressSpace,
};

/// A mapping as the guest's owner has it. Only what lies in one is captured.
#[derive(Debug, Clone, Copy)]
pub struct MappedArea {
    /// Its pages.
    pub range: PageRange,
    /// Its rights.
    pub prot: Prot,
}

/// What the mappings say of one chunk.
pub(super) struct ChunkUse {
    chunk: u64,
    mapped: [bool; CHUNK_PAGES],
    pub(super) guarded: bool,
}

impl Vm {
    /// Captures the machine: writes the contents of all pages to `memory`, packed by chunk, and gives the rest.
    ///
    /// `areas` are the guest's mappings, sorted by address; `threads` the numbers of its threads. The file should lie where
    /// 2 MiB pages can be had; it must be empty, since zeros are not written.
    pub fn capture(
        &mut self,
        areas: &[MappedArea],
        threads: &[usize],
        memory: BorrowedFd<'_>,
    ) -> Result<MachineState> {
        let extended = self.used_extended_states(threads)?;
        let mut chunks = Vec::new();
        for chunk in self.space().bound_chunks() {
            chunks.extend(described(self.space(), &chunk_use(areas, chunk)));
        }
        let state = MachineState {
            version: SNAPSHOT_VERSION,
            chunks,
            extended,
        };
        self.write_memory(&state, memory)?;
        Ok(state)
    }

    fn write_memory(&self, state: &MachineState, memory: BorrowedFd<'_>) -> Result<()> {
        let bytes = state.memory_bytes();
        rustix::fs::ftruncate(memory, bytes)
            .map_err(Error::memory("size the memory file", bytes as usize))?;
        if bytes == 0 {
            return Ok(());
        }
        let mut target = HostMapping::reserve(bytes)?;
        target.map_file_shared(0, bytes, memory, 0)?;
        target.want_huge_pages(0, bytes);
        let mut page = [0; PAGE_BYTES as usize];
        for (index, chunk) in state.chunks.iter().enumerate() {
            for (number, _) in chunk
                .pages()
                .iter()
                .enumerate()
                .filter(|(_, prot)| prot.is_some())
            {
                let offset = number as u64 * PAGE_BYTES;
                self.space()
                    .read_backed(chunk.chunk * CHUNK_BYTES + offset, &mut page)
                    .map_err(|bad| Error::Snapshot(bad.to_string()))?;
                if page.iter().any(|byte| *byte != 0) {
                    target.write(index as u64 * CHUNK_BYTES + offset, &page);
                }
            }
        }
        Ok(())
    }
}

/// What a chunk has; `None` when it has no contents.
pub(super) fn described(space: &AddressSpace, used: &ChunkUse) -> Option<ChunkMap> {
    let mut runs: Vec<PageRun> = Vec::new();
    for page in 0..CHUNK_PAGES {
        let address = used.chunk * CHUNK_BYTES + page as u64 * PAGE_BYTES;
        let Some(prot) = space.rights_at(address).filter(|_| used.mapped[page]) else {
            continue;
        };
        match runs.last_mut() {
            Some(run) if usize::from(run.first + run.count) == page && run.prot == prot => run.count += 1,
            _ => runs.push(PageRun {
                first: page as u16,
                count: 1,
                prot,
            }),
        }
    }
    (!runs.is_empty()).then_some(ChunkMap {
        chunk: used.chunk,
        runs,
        guarded: used.guarded,
    })
}

/// What the mappings, sorted by address, say of one chunk.
pub(super) fn chunk_use(areas: &[MappedArea], chunk: u64) -> ChunkUse {
    let (start, end) = (chunk * CHUNK_BYTES, (chunk + 1) * CHUNK_BYTES);
    let mut used = ChunkUse {
        chunk,
        mapped: [false; CHUNK_PAGES],
        guarded: false,
    };
    let first = areas.partition_point(|area| area.range.end <= start);
    for area in areas[first..].iter().take_while(|area| area.range.start < end) {
        let from = ((area.range.start.max(start) - start) / PAGE_BYTES) as usize;
        let to = ((area.range.end.min(end) - start) / PAGE_BYTES) as usize;
        used.mapped[from..to].fill(true);
        used.guarded |= !area.prot.readable();
    }
    used
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunks_use_is_what_its_mappings_say() {
        let area = |start: u64, end: u64, prot| MappedArea {
            range: PageRange::new(start, end),
            prot,
        };
        let areas = [
            area(0x20_0000, 0x20_1000, Prot::READ),
            area(0x20_1000, 0x20_2000, Prot::NONE),
            area(0x3f_f000, 0x40_1000, Prot::READ_WRITE),
            area(0x1000_0000_0000, 0x7000_0000_0000, Prot::NONE),
        ];
        let first = chunk_use(&areas, 1);
        assert!(first.guarded);
        assert_eq!(first.mapped.iter().filter(|mapped| **mapped).count(), 3);
        let second = chunk_use(&areas, 2);
        assert!(!second.guarded && second.mapped[0] && !second.mapped[1]);
        assert!(chunk_use(&areas, 0x2000_0000_0000 / CHUNK_BYTES).guarded);
    }
}
