//! Runs the ring-0 stub that writes page-table entries onto themselves.
//!
//! A host with shadow paging keeps its own copies of entries that the guest has used, and drops them when the guest
//! writes to a table. Rewriting a run costs one short stay in ring 0 (about 10 us, and half a microsecond an entry,
//! where ring 0 is emulated).

use crate::{
    error::Result,
    geometry::{BLOCK_RUNS, KERNEL_BASE, PAGE_BYTES, RING0_CODE},
    space::AddressSpace,
    stubs::TABLE_STUB_OFFSET,
    vcpu::Vcpu,
};

/// Runs of entries that fit in a vCPU's run list, less its terminating zero.
const RUNS_MAX: usize = (PAGE_BYTES / 16) as usize - 1;
/// Longest stretch that one `rep movsq` is asked to write: a table.
const ENTRIES_MAX: u64 = 512;

/// Makes every remembered change visible to the guest. Call before the guest runs again.
pub(crate) fn flush(vcpu: &mut Vcpu, space: &mut AddressSpace) -> Result<()> {
    if !space.tables.needs_flush() {
        return Ok(());
    }
    let runs: Vec<(u64, u64)> = space
        .tables
        .take_stale_runs()
        .into_iter()
        .flat_map(|(start, count)| {
            (0..count.div_ceil(ENTRIES_MAX)).map(move |piece| {
                let first = piece * ENTRIES_MAX;
                (start + first * 8, (count - first).min(ENTRIES_MAX))
            })
        })
        .collect();
    for batch in runs.chunks(RUNS_MAX) {
        let mut list = Vec::with_capacity(batch.len() * 16 + 8);
        for (start, count) in batch {
            list.extend_from_slice(&start.to_le_bytes());
            list.extend_from_slice(&count.to_le_bytes());
        }
        list.extend_from_slice(&0u64.to_le_bytes());
        space.write_system(vcpu.block() + BLOCK_RUNS, &list);
        vcpu.run_ring0(
            KERNEL_BASE + RING0_CODE + TABLE_STUB_OFFSET,
            KERNEL_BASE + vcpu.block() + BLOCK_RUNS,
        )?;
    }
    Ok(())
}
