//! Runs the ring-0 stub that writes page-table entries onto themselves.
//!
//! A host with shadow paging keeps its own copies of entries that the guest has used, and drops them when the guest
//! writes to a table. Rewriting a run costs one short stay in ring 0 (about 10 us, and half a microsecond an entry,
//! where ring 0 is emulated).

use crate::{
    error::Result,
    geometry::{BLOCK_RUNS, KERNEL_BASE, PAGE_BYTES, RING0_CODE},
    space::AddressSpace,
    stubs::{TABLE_STUB_GROUP, TABLE_STUB_OFFSET},
    vcpu::Vcpu,
};

/// Words of a vCPU's list.
const LIST_WORDS: usize = (PAGE_BYTES / 8) as usize;
/// Shortest run that is written as one; a shorter one is so many single entries.
const RUN_MIN: u64 = 5;
/// Longest stretch that one `rep movsq` is asked to write: a table.
const ENTRIES_MAX: u64 = 512;

/// Makes every remembered change visible to the guest. Call before the guest runs again.
pub(crate) fn flush(vcpu: &mut Vcpu, space: &mut AddressSpace) -> Result<()> {
    if !space.tables.needs_flush() {
        return Ok(());
    }
    for list in lists(&space.tables.take_stale_runs()) {
        let list: Vec<u8> = list.into_iter().flat_map(u64::to_le_bytes).collect();
        space.write_system(vcpu.block() + BLOCK_RUNS, &list);
        vcpu.run_ring0(
            KERNEL_BASE + RING0_CODE + TABLE_STUB_OFFSET,
            KERNEL_BASE + vcpu.block() + BLOCK_RUNS,
        )?;
    }
    Ok(())
}

/// Runs of entries in the stub's form, as many lists as it takes.
fn lists(runs: &[(u64, u64)]) -> Vec<Vec<u64>> {
    let of_length = |is_long| {
        runs.iter()
            .copied()
            .filter(move |(_, count)| (*count >= RUN_MIN) == is_long)
    };
    let singles: Vec<u64> = of_length(false)
        .flat_map(|(start, count)| (0..count).map(move |n| start + n * 8))
        .collect();
    let pieces: Vec<[u64; 2]> = of_length(true)
        .flat_map(|(start, count)| {
            (0..count.div_ceil(ENTRIES_MAX)).map(move |piece| {
                let first = piece * ENTRIES_MAX;
                [start + first * 8, (count - first).min(ENTRIES_MAX)]
            })
        })
        .collect();
    const SINGLES_MAX: usize = (LIST_WORDS - 2) / TABLE_STUB_GROUP * TABLE_STUB_GROUP;
    let mut lists: Vec<Vec<u64>> = singles
        .chunks(SINGLES_MAX)
        .map(|singles| {
            let filled = singles.len().next_multiple_of(TABLE_STUB_GROUP);
            let last = singles.last().copied().unwrap_or_default();
            let mut list = singles.to_vec();
            list.resize(filled, last);
            list.push(0);
            list
        })
        .collect();
    let mut pieces = pieces.as_slice();
    while !pieces.is_empty() {
        match lists.last_mut().filter(|list| list.len() + 3 <= LIST_WORDS) {
            Some(list) => {
                let fit = ((LIST_WORDS - 1 - list.len()) / 2).min(pieces.len());
                list.extend(pieces[..fit].iter().flatten());
                pieces = &pieces[fit..];
                list.push(0);
                if !pieces.is_empty() {
                    lists.push(vec![0]);
                }
            }
            None => lists.push(vec![0]),
        }
    }
    // A list without runs ends with their zero.
    for list in lists.iter_mut().filter(|list| list.len() < LIST_WORDS) {
        list.push(0);
    }
    lists
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads a list as the stub does.
    fn entries(list: &[u64]) -> Vec<u64> {
        let mut at = 0;
        let mut written = Vec::new();
        while list[at] != 0 {
            written.extend(&list[at..at + TABLE_STUB_GROUP]);
            at += TABLE_STUB_GROUP;
        }
        at += 1;
        while list[at] != 0 {
            written.extend((0..list[at + 1]).map(|n| list[at] + n * 8));
            at += 2;
        }
        written
    }

    #[test]
    fn every_entry_is_written() {
        for (short, long) in [
            (0, 1),
            (1, 0),
            (7, 3),
            (8, 0),
            (600, 0),
            (0, 700),
            (505, 2),
            (1200, 900),
        ] {
            let runs: Vec<(u64, u64)> = (0..short)
                .map(|n| (0x1_0000 + n * 0x1000, 1 + n % 4))
                .chain((0..long).map(|n| (0x9000_0000 + n * 0x2000, 5 + n * 3)))
                .collect();
            let mut expected: Vec<u64> = runs
                .iter()
                .flat_map(|(start, count)| (0..*count).map(move |n| start + n * 8))
                .collect();
            expected.sort_unstable();
            let lists = lists(&runs);
            assert!(lists.iter().all(|list| list.len() <= LIST_WORDS));
            let mut written: Vec<u64> = lists.iter().flat_map(|list| entries(list)).collect();
            written.sort_unstable();
            written.dedup();
            expected.dedup();
            assert_eq!(written, expected, "{short} short runs, {long} long");
        }
    }
}
