//! Contents of a file in memory: blocks that are shared between clones until one of them is written to.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

/// Bytes of a block.
const BLOCK_BYTES: u64 = 16 << 10;

/// A sparse file. Blocks are as long as what has been written to them, so that small files stay small.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Contents {
    blocks: BTreeMap<u64, Arc<Vec<u8>>>,
    size: u64,
}

impl Contents {
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Bytes that the blocks take.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.blocks.values().map(|block| block.len() as u64).sum()
    }

    /// Bytes that a write would add to [`Contents::memory_bytes`] at most.
    pub(crate) fn growth(&self, offset: u64, bytes: u64) -> u64 {
        let mut growth = 0;
        for (index, within, piece) in pieces(offset, bytes) {
            let have = self.blocks.get(&index).map_or(0, |block| block.len() as u64);
            growth += (within + piece).saturating_sub(have);
        }
        growth
    }

    /// Reads into `out` from `offset`; gives the bytes before the end of the file.
    pub(crate) fn read(&self, offset: u64, out: &mut [u8]) -> usize {
        let bytes = (out.len() as u64).min(self.size.saturating_sub(offset));
        let mut done = 0;
        for (index, within, piece) in pieces(offset, bytes) {
            let target = &mut out[done..done + piece as usize];
            let block = self.blocks.get(&index).map_or(&[][..], |block| block.as_slice());
            let have = block.get(within as usize..).unwrap_or_default();
            let copied = have.len().min(target.len());
            target[..copied].copy_from_slice(&have[..copied]);
            target[copied..].fill(0);
            done += piece as usize;
        }
        done
    }

    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) {
        let mut done = 0;
        for (index, within, piece) in pieces(offset, data.len() as u64) {
            let block = Arc::make_mut(self.blocks.entry(index).or_default());
            let end = (within + piece) as usize;
            if block.len() < end {
                block.resize(end, 0);
            }
            block[within as usize..end].copy_from_slice(&data[done..done + piece as usize]);
            done += piece as usize;
        }
        self.size = self.size.max(offset + data.len() as u64);
    }

    /// Cuts the file off or makes it longer, with zeros.
    pub(crate) fn set_size(&mut self, size: u64) {
        if size < self.size {
            self.blocks.split_off(&size.div_ceil(BLOCK_BYTES));
            let within = (size % BLOCK_BYTES) as usize;
            if let Some(last) = self.blocks.get_mut(&(size / BLOCK_BYTES))
                && last.len() > within
            {
                Arc::make_mut(last).truncate(within);
            }
        }
        self.size = size;
    }

    /// Makes a range read as zero without changing the size.
    pub(crate) fn punch(&mut self, offset: u64, bytes: u64) {
        let bytes = bytes.min(self.size.saturating_sub(offset));
        for (index, within, piece) in pieces(offset, bytes) {
            if piece == BLOCK_BYTES {
                self.blocks.remove(&index);
            } else if let Some(block) = self.blocks.get_mut(&index) {
                let block = Arc::make_mut(block);
                let end = ((within + piece) as usize).min(block.len());
                let start = (within as usize).min(end);
                block[start..end].fill(0);
            }
        }
    }
}

/// The parts of a range by block: index, offset in the block, bytes.
fn pieces(offset: u64, bytes: u64) -> impl Iterator<Item = (u64, u64, u64)> {
    let end = offset.saturating_add(bytes);
    let mut at = offset;
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let within = at % BLOCK_BYTES;
        let piece = (BLOCK_BYTES - within).min(end - at);
        let index = at / BLOCK_BYTES;
        at += piece;
        Some((index, within, piece))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Change {
        Write(u64, Vec<u8>),
        SetSize(u64),
        Punch(u64, u64),
    }

    fn changes() -> impl Strategy<Value = Vec<Change>> {
        let offset = 0..60_000u64;
        let change = prop_oneof![
            (offset.clone(), proptest::collection::vec(any::<u8>(), 0..20_000))
                .prop_map(|(at, data)| Change::Write(at, data)),
            offset.clone().prop_map(Change::SetSize),
            (offset.clone(), offset).prop_map(|(at, bytes)| Change::Punch(at, bytes)),
        ];
        proptest::collection::vec(change, 1..20)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn behaves_as_a_plain_vector(changes in changes(), at in 0..90_000u64, bytes in 0..90_000usize) {
            let mut contents = Contents::default();
            let mut model: Vec<u8> = Vec::new();
            for change in changes {
                match change {
                    Change::Write(at, data) => {
                        let growth = contents.growth(at, data.len() as u64);
                        let before = contents.memory_bytes();
                        contents.write(at, &data);
                        prop_assert_eq!(contents.memory_bytes() - before, growth);
                        let end = at as usize + data.len();
                        if model.len() < end {
                            model.resize(end, 0);
                        }
                        model[at as usize..end].copy_from_slice(&data);
                    }
                    Change::SetSize(size) => {
                        contents.set_size(size);
                        model.resize(size as usize, 0);
                    }
                    Change::Punch(at, bytes) => {
                        contents.punch(at, bytes);
                        let end = ((at + bytes) as usize).min(model.len());
                        let start = (at as usize).min(end);
                        model[start..end].fill(0);
                    }
                }
                prop_assert_eq!(contents.size(), model.len() as u64);
            }
            let mut out = vec![0xaa; bytes];
            let read = contents.read(at, &mut out);
            let start = (at as usize).min(model.len());
            let end = (start + bytes).min(model.len());
            prop_assert_eq!(&out[..read], &model[start..end]);
        }
    }
}
