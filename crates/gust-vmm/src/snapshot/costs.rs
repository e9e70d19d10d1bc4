//! What faults and copies cost on this machine.
//!
//! `unsafe`: reads a file into a mapping that is dropped again.

use std::{
    os::fd::BorrowedFd,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::{
    error::Result,
    geometry::{CHUNK_BYTES, CHUNK_PAGES, IMAGE_BASE, PAGE_BYTES},
    host_memory::HostMapping,
    machine::Vm,
    snapshot::layout::read_into,
    tables::{ACCESSED, ADDRESS, PRESENT, USER},
};

/// What a fault and a copy cost on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Costs {
    /// A fault that the host resolves by mapping pages, in nanoseconds.
    pub fault_ns: u64,
    /// Copying a chunk into new memory, in nanoseconds.
    pub copy_chunk_ns: u64,
}

impl Costs {
    /// A host with nested shadow paging, before anything has been measured.
    pub const DEFAULT: Self = Self {
        fault_ns: 10_000,
        copy_chunk_ns: 150_000,
    };
}

/// Faults that are timed.
const SAMPLES: usize = 64;
/// Measurements of each cost, of which the least counts: the others met something else that ran.
const REPEATS: usize = 4;
/// Distance between pages that are touched: a host with shadow paging brings neighbours in with the first.
const STRIDE_PAGES: usize = 16;

impl Vm {
    /// Measures with a machine that has recorded a run. What cannot be measured, because the
    /// run has touched everything, is [`Costs::DEFAULT`]'s.
    pub fn measure_costs(&mut self, memory: BorrowedFd<'_>) -> Result<Costs> {
        let mut costs = Costs::DEFAULT;
        let addresses = self.untouched();
        if !addresses.is_empty() {
            let mut entering = Duration::MAX;
            for _ in 0..REPEATS {
                let began = Instant::now();
                self.touch(&[])?;
                entering = entering.min(began.elapsed());
            }
            let mut fault_ns = u64::MAX;
            for some in addresses.chunks(SAMPLES / REPEATS) {
                let began = Instant::now();
                self.touch(some)?;
                let faults = began.elapsed().saturating_sub(entering);
                fault_ns = fault_ns.min(faults.as_nanos() as u64 / some.len() as u64);
            }
            costs.fault_ns = fault_ns.max(100);
        }
        if self.restored().is_some_and(|restored| restored.chunks > 0) {
            let mut copy_chunk_ns = u64::MAX;
            for _ in 0..REPEATS {
                let target = HostMapping::anonymous(CHUNK_BYTES)?;
                target.want_huge_pages(0, CHUNK_BYTES);
                let began = Instant::now();
                // SAFETY: the mapping has this many bytes and is dropped after the call.
                unsafe { read_into(memory, target.base(), CHUNK_BYTES, 0) }?;
                copy_chunk_ns = copy_chunk_ns.min(began.elapsed().as_nanos() as u64);
            }
            costs.copy_chunk_ns = copy_chunk_ns;
        }
        Ok(costs)
    }

    /// Some pages of the snapshot that have not been touched, far apart.
    fn untouched(&self) -> Vec<u64> {
        const WANTED: u64 = PRESENT | USER;
        let Some(restored) = self.restored().filter(|restored| restored.recording) else {
            return Vec::new();
        };
        let pages = restored
            .plan
            .bindings
            .iter()
            .enumerate()
            .flat_map(|(index, (chunk, _))| {
                (0..CHUNK_PAGES).step_by(STRIDE_PAGES).map(move |page| {
                    let offset = page as u64 * PAGE_BYTES;
                    (
                        chunk * CHUNK_BYTES + offset,
                        IMAGE_BASE + index as u64 * CHUNK_BYTES + offset,
                    )
                })
            });
        let untouched = pages.filter(|(address, source)| {
            let entry = self.space().entry(*address);
            entry & (WANTED | ACCESSED) == WANTED && entry & ADDRESS == *source
        });
        untouched.map(|(address, _)| address).take(SAMPLES).collect()
    }
}
