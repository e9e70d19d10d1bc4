//! Guest-physical space: KVM's memory slots and the host memory behind them.
//!
//! `unsafe`: handing host memory to KVM.

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;

use crate::{
    error::{Error, Result},
    geometry::{CHUNK_BYTES, FRESH_BASE, FRESH_SLOT_BYTES, FRESH_SLOTS_MAX, HOT_BASE, IMAGE_BASE, SlotSizes},
    host_memory::HostMapping,
};

/// What lies at a guest-physical address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Region {
    /// Tables and stubs.
    System,
    /// The snapshot's image, mapped privately.
    Image,
    /// Hot pages of a restored snapshot.
    Hot,
    /// Memory that the guest got since.
    Fresh,
}

/// The region of an address; guests have no other addresses in their tables.
pub(crate) fn region_of(physical: u64) -> Region {
    if physical >= FRESH_BASE {
        Region::Fresh
    } else if physical >= HOT_BASE {
        Region::Hot
    } else if physical >= IMAGE_BASE {
        Region::Image
    } else {
        Region::System
    }
}

#[derive(Debug)]
struct Slot {
    base: u64,
    memory: HostMapping,
}

/// All slots of one guest.
#[derive(Debug)]
pub(crate) struct Physical {
    /// `None` in tests of the address space that run no guest.
    vm: Option<VmFd>,
    /// System first, then image and hot where the sizes have them, then fresh ones by address.
    slots: Vec<Slot>,
    fresh_end: u64,
    next_fresh: u64,
    free_chunks: Vec<u64>,
    huge_fresh: bool,
}

impl Physical {
    pub(crate) fn new(vm: Option<VmFd>, sizes: SlotSizes) -> Result<Self> {
        let mut physical = Self {
            vm,
            slots: Vec::with_capacity(8),
            fresh_end: FRESH_BASE,
            next_fresh: FRESH_BASE,
            free_chunks: Vec::new(),
            huge_fresh: false,
        };
        physical.add(0, HostMapping::anonymous(sizes.system)?)?;
        if sizes.image > 0 {
            physical.add(IMAGE_BASE, HostMapping::anonymous(sizes.image)?)?;
        }
        if sizes.hot > 0 {
            let memory = HostMapping::anonymous(sizes.hot)?;
            memory.want_huge_pages(0, sizes.hot);
            physical.add(HOT_BASE, memory)?;
        }
        physical.add_fresh(sizes.fresh)?;
        Ok(physical)
    }

    fn add(&mut self, base: u64, memory: HostMapping) -> Result<()> {
        self.set_slot(self.slots.len() as u32, base, &memory, memory.bytes())?;
        self.slots.push(Slot { base, memory });
        Ok(())
    }

    /// Tells KVM of a slot; zero bytes take it away.
    fn set_slot(&self, slot: u32, base: u64, memory: &HostMapping, bytes: u64) -> Result<()> {
        let Some(vm) = &self.vm else { return Ok(()) };
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: base,
            memory_size: bytes,
            userspace_addr: memory.base() as u64,
        };
        // SAFETY: the caller keeps the memory in `slots` for as long as the VM lives; slots do not overlap, since
        // their bases are a terabyte apart or follow each other.
        unsafe { vm.set_user_memory_region(region) }.map_err(Error::kvm("set a memory slot"))
    }

    /// Asks for large pages for all fresh memory from now on.
    pub(crate) fn want_huge_fresh(&mut self) {
        self.huge_fresh = true;
        for slot in self.slots.iter().filter(|slot| slot.base >= FRESH_BASE) {
            slot.memory.want_huge_pages(0, slot.memory.bytes());
        }
    }

    fn add_fresh(&mut self, bytes: u64) -> Result<()> {
        if self.slots.len() >= FRESH_SLOTS_MAX {
            return Err(Error::Exhausted("memory slots"));
        }
        let memory = HostMapping::anonymous(bytes)?;
        if self.huge_fresh {
            memory.want_huge_pages(0, bytes);
        }
        self.add(self.fresh_end, memory)?;
        self.fresh_end += bytes;
        Ok(())
    }

    pub(crate) fn vm(&self) -> Option<&VmFd> {
        self.vm.as_ref()
    }

    /// The system slot's memory.
    pub(crate) fn system(&self) -> &HostMapping {
        &self.slots[0].memory
    }

    /// Host memory of a region's first slot.
    pub(crate) fn slot_mut(&mut self, base: u64) -> Option<&mut HostMapping> {
        self.slots
            .iter_mut()
            .find(|slot| slot.base == base)
            .map(|slot| &mut slot.memory)
    }

    /// Host pointer to `bytes` bytes at a guest-physical address, when one slot holds them all.
    pub(crate) fn pointer(&self, physical: u64, bytes: u64) -> Option<*mut u8> {
        let (memory, offset) = self.locate(physical)?;
        memory.pointer(offset, bytes)
    }

    /// The mapping behind an address, and the offset in it.
    pub(crate) fn locate(&self, physical: u64) -> Option<(&HostMapping, u64)> {
        self.slots
            .iter()
            .find(|slot| (slot.base..slot.base + slot.memory.bytes()).contains(&physical))
            .map(|slot| (&slot.memory, physical - slot.base))
    }

    /// Takes 2 MiB of fresh zero memory.
    pub(crate) fn take_chunk(&mut self) -> Result<u64> {
        if let Some(chunk) = self.free_chunks.pop() {
            return Ok(chunk);
        }
        if self.next_fresh + CHUNK_BYTES > self.fresh_end {
            self.add_fresh(FRESH_SLOT_BYTES)?;
        }
        let chunk = self.next_fresh;
        self.next_fresh += CHUNK_BYTES;
        Ok(chunk)
    }

    /// Makes sure that an image of this size has a slot. A slot that is too small is replaced: slow, and only for
    /// images larger than the pool's slots are made for.
    pub(crate) fn ensure_image(&mut self, bytes: u64) -> Result<()> {
        let known = self.slots.iter().position(|slot| slot.base == IMAGE_BASE);
        match known {
            Some(at) if self.slots[at].memory.bytes() >= bytes => return Ok(()),
            Some(at) => {
                let memory = HostMapping::anonymous(bytes)?;
                self.set_slot(at as u32, IMAGE_BASE, &memory, 0)?;
                self.set_slot(at as u32, IMAGE_BASE, &memory, memory.bytes())?;
                self.slots[at].memory = memory;
            }
            None => self.add(IMAGE_BASE, HostMapping::anonymous(bytes.max(CHUNK_BYTES))?)?,
        }
        Ok(())
    }

    /// Drops all fresh memory: it reads as zero, and is taken from the start again.
    pub(crate) fn drop_fresh(&mut self) -> Result<()> {
        let used = self.next_fresh - FRESH_BASE;
        for slot in self.slots.iter().filter(|slot| slot.base >= FRESH_BASE) {
            let from = slot.base - FRESH_BASE;
            if from < used {
                slot.memory.discard(0, (used - from).min(slot.memory.bytes()))?;
            }
        }
        self.next_fresh = FRESH_BASE;
        self.free_chunks.clear();
        Ok(())
    }

    /// Gives a chunk back; its memory must have been discarded.
    pub(crate) fn return_chunk(&mut self, chunk: u64) {
        debug_assert_eq!(region_of(chunk), Region::Fresh);
        self.free_chunks.push(chunk);
    }

    /// Bytes of fresh memory that are bound to the guest's address space.
    pub(crate) fn bound_bytes(&self) -> u64 {
        self.next_fresh - FRESH_BASE - self.free_chunks.len() as u64 * CHUNK_BYTES
    }
}
