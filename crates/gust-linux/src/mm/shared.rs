//! Shared mappings of files in memory.
//!
//! A mapping has pages of its own, which are the truth while they are present: they are copied to the file before
//! someone reads it, when the mapping goes and at `msync`, and a write to the file is copied to the pages. With one
//! process this is what programs can see of coherence, except between two mappings of the same page.

use gust_vmm::PageRange;

use crate::{
    abi::PAGE,
    fs::Vnode,
    kernel::{Cx, Kernel},
    mm::Backing,
};

impl Kernel {
    /// Copies what shared mappings in the range hold to their files.
    pub(crate) fn write_back(&mut self, cx: &mut Cx<'_>, range: PageRange) {
        for (start, area) in self.mm.overlapping(range) {
            if let Backing::Shared { file, offset } = area.backing {
                let part = PageRange::new(start.max(range.start), area.end.min(range.end));
                self.write_back_part(cx, file, offset + (part.start - start), part);
            }
        }
    }

    /// Copies what shared mappings of one file hold to it.
    pub(crate) fn write_back_file(&mut self, cx: &mut Cx<'_>, wanted: Vnode) {
        for (part, offset) in self.shared_parts(wanted) {
            self.write_back_part(cx, wanted, offset, part);
        }
    }

    fn shared_parts(&self, wanted: Vnode) -> Vec<(PageRange, u64)> {
        if !matches!(wanted, Vnode::Memory(number) if self.mm.held_files.contains(&number)) {
            return Vec::new();
        }
        self.mm
            .iter()
            .filter_map(|(start, area)| match area.backing {
                Backing::Shared { file, offset } if file == wanted => {
                    Some((PageRange::new(start, area.end), offset))
                }
                Backing::Shared { .. } | Backing::Private { .. } | Backing::Anonymous => None,
            })
            .collect()
    }

    fn write_back_part(&mut self, cx: &mut Cx<'_>, file: Vnode, offset: u64, part: PageRange) {
        let size = self.vfs.size_of(file);
        let in_file = size.saturating_sub(offset).next_multiple_of(PAGE);
        let part = PageRange::new(part.start, part.start + in_file.min(part.bytes()));
        let mut page = [0; PAGE as usize];
        // Files and their mappings may be sparse, and far larger than memory.
        for run in cx.vm.space().backed(part) {
            for at in (run.start..run.end).step_by(PAGE as usize) {
                let from = offset + (at - part.start);
                if cx.vm.space().read_backed(at, &mut page).is_ok() {
                    let bytes = PAGE.min(size - from) as usize;
                    // The file's pages exist or are holes within its size: a mapping cannot make it longer.
                    let _ = self.vfs.write_memory(file, from, &page[..bytes]);
                }
            }
        }
    }

    /// Copies bytes that have been written to a file to the shared mappings of it that are present.
    pub(crate) fn write_through(&mut self, cx: &mut Cx<'_>, file: Vnode, offset: u64, data: &[u8]) {
        for (part, file_offset) in self.shared_parts(file) {
            let end = offset + data.len() as u64;
            let mapped_end = file_offset + part.bytes();
            let (from, to) = (offset.max(file_offset), end.min(mapped_end));
            let mut at = from;
            while at < to {
                let piece_end = ((at | (PAGE - 1)) + 1).min(to);
                let address = part.start + (at - file_offset);
                let piece = &data[(at - offset) as usize..(piece_end - offset) as usize];
                // A page that is not present reads the file when it becomes so.
                let _ = cx.vm.space_mut().write_backed(address, piece);
                at = piece_end;
            }
        }
    }
}
