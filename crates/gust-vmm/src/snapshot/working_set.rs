//! The pages that runs touched and wrote, chunk by chunk.

use serde::{Deserialize, Serialize};

use crate::geometry::CHUNK_PAGES;

const WORDS: usize = CHUNK_PAGES / 64;

/// One bit a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct PageBits([u64; WORDS]);

impl PageBits {
    pub(crate) const NONE: Self = Self([0; WORDS]);

    pub(crate) fn set(&mut self, page: usize) {
        self.0[page / 64] |= 1 << (page % 64);
    }

    pub(crate) fn has(&self, page: usize) -> bool {
        self.0[page / 64] & 1 << (page % 64) != 0
    }

    pub(crate) fn any(&self) -> bool {
        self.0.iter().any(|word| *word != 0)
    }

    pub(crate) fn count(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        for (mine, others) in self.0.iter_mut().zip(other.0) {
            *mine |= others;
        }
    }

    /// Aligned groups of eight pages of which one is in the set: what a host with shadow paging maps in one fault.
    pub(crate) fn groups(&self) -> usize {
        self.0
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .filter(|group| *group != 0)
            .count()
    }
}

/// Pages of one chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct ChunkSet {
    pub(crate) touched: PageBits,
    pub(crate) written: PageBits,
}

impl ChunkSet {
    pub(crate) const NOTHING: Self = Self {
        touched: PageBits::NONE,
        written: PageBits::NONE,
    };
}

/// What runs of a snapshot touched, in the order of its chunks.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct WorkingSet {
    pub(crate) chunks: Vec<ChunkSet>,
    /// Runs that went into it.
    pub runs: u32,
}

impl WorkingSet {
    /// An empty set for a snapshot of so many chunks.
    pub fn empty(chunks: usize) -> Self {
        Self {
            chunks: vec![ChunkSet::default(); chunks],
            runs: 0,
        }
    }

    /// Adds another set of the same snapshot; one of another length is left out.
    pub fn merge(&mut self, other: &Self) {
        if self.chunks.len() != other.chunks.len() {
            return;
        }
        for (mine, others) in self.chunks.iter_mut().zip(&other.chunks) {
            mine.touched.merge(&others.touched);
            mine.written.merge(&others.written);
        }
        self.runs = self.runs.saturating_add(other.runs);
    }

    /// Pages touched, and pages written.
    pub fn pages(&self) -> (usize, usize) {
        self.chunks.iter().fold((0, 0), |(touched, written), set| {
            (touched + set.touched.count(), written + set.written.count())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_counted_by_eight() {
        let mut bits = PageBits::default();
        for page in [0, 7, 8, 511] {
            bits.set(page);
        }
        assert_eq!((bits.count(), bits.groups()), (4, 3));
        assert!(bits.has(511) && !bits.has(510));
    }

    #[test]
    fn sets_of_another_snapshot_are_left_out() {
        let mut set = WorkingSet::empty(2);
        let mut other = WorkingSet::empty(3);
        other.chunks[0].touched.set(1);
        set.merge(&other);
        assert_eq!(set.pages(), (0, 0));
    }
}
