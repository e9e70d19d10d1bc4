//! The list of mappings, and what changes it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use gust_vmm::{PageRange, Populate, Prot, USER_END, USER_START, Vm};
use serde::{Deserialize, Serialize};

use crate::{
    abi::{PAGE, page_up},
    errno::{ENOMEM, Errno},
    fs::Vnode,
    mm::{Area, Backing, Name},
};

/// Most mappings (`vm.max_map_count`).
pub(crate) const AREAS_MAX: usize = 65_530;

/// Anonymous mappings up to this size are made present at once, in bytes.
const EAGER_BYTES: u64 = 128 << 10;

/// Where the search for room begins, downwards. Files and anonymous memory are kept apart: a snapshot then has whole
/// chunks that are never written, and few that are.
const FILES_TOP: u64 = 0x7e80_0000_0000;
const ANONYMOUS_TOP: u64 = 0x7e00_0000_0000;

/// The mappings of one guest.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Mm {
    areas: BTreeMap<u64, Area>,
    /// Start of the heap.
    pub(crate) brk_start: u64,
    /// End of the heap, to the byte.
    pub(crate) brk: u64,
    /// Bytes mapped, rights or not.
    pub(crate) mapped_bytes: u64,
    /// Where the program's arguments and environment lie, for `/proc/self/cmdline`.
    pub(crate) arguments: (u64, u64),
    pub(crate) environment: (u64, u64),
    /// Paths of files that have been mapped, for `/proc/self/maps`.
    pub(crate) file_names: BTreeMap<Vnode, Arc<[u8]>>,
    /// Files in memory that are mapped; each is held once for all its mappings.
    pub(crate) held_files: BTreeSet<u32>,
    /// Memory that may be used, in bytes.
    pub(crate) limit_bytes: u64,
    /// Backed bytes above which the host is asked what is resident.
    pub(crate) check_at_bytes: u64,
}

/// A mapping to be made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NewArea {
    pub(crate) prot: Prot,
    pub(crate) backing: Backing,
    pub(crate) name: Name,
    pub(crate) shared: bool,
}

impl NewArea {
    /// Private anonymous memory.
    pub(crate) fn anonymous(prot: Prot) -> Self {
        Self {
            prot,
            backing: Backing::Anonymous,
            name: Name::None,
            shared: false,
        }
    }
}

impl Mm {
    /// No mappings, and memory up to a limit.
    pub(crate) fn new(limit_bytes: u64) -> Self {
        Self {
            limit_bytes,
            ..Self::default()
        }
    }

    /// The mapping that holds an address, with its start.
    pub(crate) fn find(&self, address: u64) -> Option<(u64, Area)> {
        let (start, area) = self.areas.range(..=address).next_back()?;
        (address < area.end).then_some((*start, *area))
    }

    /// All mappings, by address.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &Area)> {
        self.areas.iter().map(|(start, area)| (*start, area))
    }

    /// Mappings that overlap a range.
    pub(crate) fn overlapping(&self, range: PageRange) -> Vec<(u64, Area)> {
        let first = self.find(range.start).map_or(range.start, |(start, _)| start);
        self.areas
            .range(first..range.end)
            .map(|(start, area)| (*start, *area))
            .collect()
    }

    /// How many bytes of a range are mapped.
    pub(crate) fn covered_bytes(&self, range: PageRange) -> u64 {
        self.overlapping(range)
            .iter()
            .map(|(start, area)| area.end.min(range.end).saturating_sub((*start).max(range.start)))
            .sum()
    }

    /// Whether a shared mapping of a file may be written to.
    pub(crate) fn is_mapped_writable(&self, file: Vnode) -> bool {
        self.areas.values().any(|area| {
            matches!(area.backing, Backing::Shared { file: mapped, .. } if mapped == file)
                && area.prot.writable()
        })
    }

    pub(crate) fn is_free(&self, range: PageRange) -> bool {
        let before = self.areas.range(..range.end).next_back();
        before.is_none_or(|(_, area)| area.end <= range.start)
    }

    /// Makes an address a boundary between mappings.
    fn split(&mut self, address: u64) {
        if let Some((start, area)) = self.find(address)
            && start < address
        {
            let tail = Area {
                backing: area.backing.advanced(address - start),
                ..area
            };
            self.areas.insert(start, Area { end: address, ..area });
            self.areas.insert(address, tail);
        }
    }

    /// Joins the mappings around a boundary if they can be one.
    fn join(&mut self, boundary: u64) {
        let Some(next) = self.areas.get(&boundary).copied() else {
            return;
        };
        let Some((start, area)) = self
            .areas
            .range(..boundary)
            .next_back()
            .map(|(start, area)| (*start, *area))
        else {
            return;
        };
        if area.end == boundary && area.continues_in(start, &next) {
            self.areas.remove(&boundary);
            self.areas.insert(
                start,
                Area {
                    end: next.end,
                    ..area
                },
            );
        }
    }

    /// Adds a mapping where there is room, and makes small anonymous ones present.
    pub(crate) fn add(&mut self, vm: &mut Vm, range: PageRange, new: NewArea) -> Result<(), Errno> {
        debug_assert!(self.is_free(range));
        if self.areas.len() >= AREAS_MAX {
            return Err(ENOMEM);
        }
        vm.space_mut().clear_phantoms(range).map_err(|_| ENOMEM)?;
        let NewArea {
            prot,
            backing,
            name,
            shared,
        } = new;
        self.areas.insert(
            range.start,
            Area {
                end: range.end,
                prot,
                backing,
                name,
                shared,
            },
        );
        self.mapped_bytes += range.bytes();
        let eager = backing == Backing::Anonymous && prot.readable() && range.bytes() <= EAGER_BYTES;
        if eager && vm.space_mut().map(range, prot, Populate::OnTouch).is_err() {
            self.remove(vm, range);
            return Err(ENOMEM);
        }
        self.join(range.end);
        self.join(range.start);
        Ok(())
    }

    /// Takes every mapping in the range away, with its contents.
    pub(crate) fn remove(&mut self, vm: &mut Vm, range: PageRange) {
        self.split(range.start);
        self.split(range.end);
        let starts: Vec<u64> = self
            .areas
            .range(range.start..range.end)
            .map(|(start, _)| *start)
            .collect();
        for start in starts {
            if let Some(area) = self.areas.remove(&start) {
                self.mapped_bytes -= area.end - start;
                unmap_pages(vm, PageRange::new(start, area.end));
            }
        }
    }

    /// Changes the rights of every mapping in the range, which must have no gaps.
    pub(crate) fn protect(&mut self, vm: &mut Vm, range: PageRange, prot: Prot) -> Result<(), Errno> {
        if self.covered_bytes(range) != range.bytes() || self.areas.len() + 2 > AREAS_MAX {
            return Err(ENOMEM);
        }
        self.split(range.start);
        self.split(range.end);
        let starts: Vec<u64> = self
            .areas
            .range(range.start..range.end)
            .map(|(start, _)| *start)
            .collect();
        for start in starts.iter().copied() {
            let Some(area) = self.areas.get_mut(&start) else {
                continue;
            };
            if area.prot == prot {
                continue;
            }
            area.prot = prot;
            let (end, backing) = (area.end, area.backing);
            let range = PageRange::new(start, end);
            vm.space_mut().protect(range, prot).map_err(|_| ENOMEM)?;
            if backing == Backing::Anonymous && prot.readable() && range.bytes() <= EAGER_BYTES {
                vm.space_mut()
                    .map(range, prot, Populate::OnTouch)
                    .map_err(|_| ENOMEM)?;
            }
        }
        for boundary in starts.into_iter().chain([range.end]) {
            self.join(boundary);
        }
        Ok(())
    }

    /// Room for `bytes` bytes, as high as possible below where such mappings begin.
    pub(crate) fn find_room(&self, bytes: u64, anonymous: bool) -> Option<u64> {
        let top = if anonymous { ANONYMOUS_TOP } else { FILES_TOP };
        // Chunks of their own for what is larger than a chunk, so that large pages can be used.
        let align = if anonymous && bytes >= gust_vmm::CHUNK_BYTES {
            gust_vmm::CHUNK_BYTES
        } else {
            PAGE
        };
        self.find_room_below(top, bytes, align)
            .or_else(|| self.find_room_below(USER_END, bytes, align))
    }

    /// Room in the lowest 2 GiB, for `MAP_32BIT`.
    pub(crate) fn find_low_room(&self, bytes: u64) -> Option<u64> {
        const LOW_TOP: u64 = 1 << 31;
        self.find_room_below(LOW_TOP, bytes, PAGE)
    }

    fn find_room_below(&self, top: u64, bytes: u64, align: u64) -> Option<u64> {
        let mut end = top;
        for (start, area) in self.areas.range(..top).rev() {
            if area.end <= end {
                let candidate = end.checked_sub(bytes)? & !(align - 1);
                if candidate >= area.end {
                    return Some(candidate);
                }
            }
            end = end.min(*start);
        }
        let candidate = end.checked_sub(bytes)? & !(align - 1);
        (candidate >= USER_START).then_some(candidate)
    }

    /// Moves the end of the heap; gives the new end, or the old one when it cannot be moved.
    pub(crate) fn set_brk(&mut self, vm: &mut Vm, wanted: u64) -> u64 {
        let old_end = page_up(self.brk).unwrap_or(self.brk);
        let Some(new_end) = page_up(wanted).filter(|end| *end < USER_END) else {
            return self.brk;
        };
        if wanted < self.brk_start {
            return self.brk;
        }
        if new_end > old_end {
            let range = PageRange::new(old_end, new_end);
            let heap = NewArea {
                name: Name::Heap,
                ..NewArea::anonymous(Prot::READ_WRITE)
            };
            if !self.is_free(range) || self.add(vm, range, heap).is_err() {
                return self.brk;
            }
        } else if new_end < old_end {
            self.remove(vm, PageRange::new(new_end, old_end));
        }
        self.brk = wanted;
        wanted
    }
}

/// Takes pages away. The machine can only fail here for want of a table page to split a large page with; the mapping
/// is gone in any case, and the guest cannot reach what is left but through a mapping that zeroes it.
fn unmap_pages(vm: &mut Vm, range: PageRange) {
    if let Err(error) = vm.space_mut().unmap(range) {
        tracing::error!(%error, "unmap guest pages");
    }
}
