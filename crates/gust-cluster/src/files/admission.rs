//! Which chunks a full cache keeps: TinyLFU (Einziger, Friedman, Manes: arXiv 1512.00727), as a plain object.
//!
//! A newcomer takes the place of the least recently used only if it has been asked for more often of late. A function's
//! package passes through a node once; a runtime's chunks and those of popular libraries come again with every function. A
//! plain LRU would give the second up for the first. How often something was asked for is counted in a sketch of a few
//! bits each, for what is not in the cache too, and the counts are halved every so often, so that what was popular once
//! has to stay so.

use std::collections::{BTreeMap, HashMap};

use super::ChunkId;

/// Counters of the sketch for each chunk that fits.
const COUNTERS_PER_CHUNK: usize = 8;

/// Rows of the sketch.
const ROWS: usize = 4;

/// Highest count.
const COUNT_MAX: u8 = 15;

/// Requests, as a multiple of the chunks that fit, after which counts are halved.
const SAMPLE: usize = 10;

/// Counts of late requests, never too low by collisions and seldom too high.
#[derive(Debug)]
struct Sketch {
    rows: [Vec<u8>; ROWS],
    mask: usize,
    counted: usize,
    halve_after: usize,
}

impl Sketch {
    fn new(chunks: usize) -> Self {
        let width = (chunks.max(1) * COUNTERS_PER_CHUNK).next_power_of_two();
        Self {
            rows: [0; ROWS].map(|_| vec![0; width]),
            mask: width - 1,
            counted: 0,
            halve_after: chunks.max(1) * SAMPLE,
        }
    }

    /// A chunk's counters. Its name is a hash already, so its words are as good as hashes.
    fn places(&self, id: &ChunkId) -> [usize; ROWS] {
        let (words, _) = id.0.as_chunks::<8>();
        let mut words = words
            .iter()
            .map(|word| u64::from_le_bytes(*word) as usize & self.mask);
        [0; ROWS].map(|_| words.next().unwrap_or_default())
    }

    fn count(&mut self, id: &ChunkId) {
        for (row, place) in self.places(id).into_iter().enumerate() {
            let counter = &mut self.rows[row][place];
            *counter = (*counter + 1).min(COUNT_MAX);
        }
        self.counted += 1;
        if self.counted >= self.halve_after {
            self.counted /= 2;
            self.rows.iter_mut().flatten().for_each(|counter| *counter /= 2);
        }
    }

    fn estimate(&self, id: &ChunkId) -> u8 {
        let counts = self.places(id).into_iter().enumerate();
        counts
            .map(|(row, place)| self.rows[row][place])
            .min()
            .unwrap_or(0)
    }
}

/// What becomes of a chunk that is offered.
#[derive(Debug, PartialEq, Eq)]
pub enum Offered {
    /// It is taken, and these go.
    Taken(Vec<ChunkId>),
    /// It is there.
    Present,
    /// Others are worth more.
    Declined,
}

/// Which chunks are kept. It knows names and lengths and holds no content.
#[derive(Debug)]
pub struct Admission {
    bytes_max: u64,
    bytes: u64,
    sketch: Sketch,
    /// Length and tick of the last use.
    kept: HashMap<ChunkId, (u64, u64)>,
    by_use: BTreeMap<u64, ChunkId>,
    tick: u64,
}

impl Admission {
    /// For a cache of so many bytes, of chunks of about `chunk_bytes`.
    pub fn new(bytes_max: u64, chunk_bytes: u64) -> Self {
        let chunks = usize::try_from(bytes_max / chunk_bytes.max(1)).unwrap_or(usize::MAX);
        Self {
            bytes_max,
            bytes: 0,
            // The sketch of a cache of a terabyte takes 64 MiB.
            sketch: Sketch::new(chunks.min(1 << 21)),
            kept: HashMap::new(),
            by_use: BTreeMap::new(),
            tick: 0,
        }
    }

    /// Counts a request for a chunk, whether it is kept or not.
    pub fn requested(&mut self, id: ChunkId) {
        self.sketch.count(&id);
        if let Some((bytes, _)) = self.kept.get(&id).copied() {
            self.used(id, bytes);
        }
    }

    /// Whether a chunk is kept.
    pub fn contains(&self, id: &ChunkId) -> bool {
        self.kept.contains_key(id)
    }

    /// Bytes that are kept.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Offers a chunk.
    pub fn offer(&mut self, id: ChunkId, bytes: u64) -> Offered {
        if self.contains(&id) {
            return Offered::Present;
        }
        if bytes > self.bytes_max {
            return Offered::Declined;
        }
        let wanted = self.sketch.estimate(&id);
        let mut gone = Vec::new();
        let mut freed = 0;
        for victim in self.by_use.values() {
            if self.bytes - freed + bytes <= self.bytes_max {
                break;
            }
            if self.sketch.estimate(victim) >= wanted {
                return Offered::Declined;
            }
            freed += self.kept.get(victim).map_or(0, |(bytes, _)| *bytes);
            gone.push(*victim);
        }
        for victim in &gone {
            self.forget(victim);
        }
        self.bytes += bytes;
        self.used(id, bytes);
        Offered::Taken(gone)
    }

    /// A chunk is not there any more.
    pub fn forget(&mut self, id: &ChunkId) {
        if let Some((bytes, used)) = self.kept.remove(id) {
            self.by_use.remove(&used);
            self.bytes -= bytes;
        }
    }

    fn used(&mut self, id: ChunkId, bytes: u64) {
        self.tick += 1;
        if let Some((_, before)) = self.kept.insert(id, (bytes, self.tick)) {
            self.by_use.remove(&before);
        }
        self.by_use.insert(self.tick, id);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn id(n: u32) -> ChunkId {
        ChunkId(*blake3::hash(&n.to_le_bytes()).as_bytes())
    }

    proptest! {
        /// Whatever happens, no more is kept than fits, and what is kept is what was taken and has not gone.
        #[test]
        fn no_more_is_kept_than_fits(
            bytes_max in 0u64..100,
            steps in prop::collection::vec((0u32..30, 1u64..40, 0u8..4), 0..300)
        ) {
            let mut admission = Admission::new(bytes_max, 10);
            let mut kept: HashSet<ChunkId> = HashSet::new();
            for (n, bytes, what) in steps {
                match what {
                    0 => admission.requested(id(n)),
                    1 => {
                        admission.forget(&id(n));
                        kept.remove(&id(n));
                    }
                    _ => match admission.offer(id(n), bytes) {
                        Offered::Taken(gone) => {
                            for victim in gone {
                                prop_assert!(kept.remove(&victim));
                            }
                            prop_assert!(kept.insert(id(n)));
                        }
                        Offered::Present => prop_assert!(kept.contains(&id(n))),
                        Offered::Declined => prop_assert!(!kept.contains(&id(n))),
                    },
                }
                prop_assert!(admission.bytes() <= bytes_max);
                prop_assert!((0..30).all(|n| admission.contains(&id(n)) == kept.contains(&id(n))));
            }
        }

        /// What is asked for again and again survives any number of chunks that pass once.
        #[test]
        fn what_passes_once_does_not_push_out_what_comes_again(passing in 100u32..2000, popular in 1u32..20) {
            let mut admission = Admission::new(20, 1);
            for n in 0..popular {
                admission.requested(id(n));
                admission.requested(id(n));
                admission.offer(id(n), 1);
            }
            for n in 0..passing {
                admission.requested(id(n % popular));
                admission.requested(id(1000 + n));
                admission.offer(id(1000 + n), 1);
            }
            let left = (0..popular).filter(|n| admission.contains(&id(*n))).count();
            prop_assert_eq!(left, popular as usize);
        }
    }

    #[test]
    fn what_was_popular_once_gives_way() {
        let mut admission = Admission::new(4, 1);
        for n in 0..4 {
            for _ in 0..20 {
                admission.requested(id(n));
            }
            admission.offer(id(n), 1);
        }
        admission.requested(id(9));
        assert_eq!(admission.offer(id(9), 1), Offered::Declined);
        // Time goes by: others are asked for, and the counts of the old are halved.
        for n in 0..400 {
            admission.requested(id(100 + n));
        }
        for _ in 0..6 {
            admission.requested(id(9));
        }
        assert_eq!(admission.offer(id(9), 1), Offered::Taken(vec![id(0)]));
    }
}
