//! How long an idle instance is kept, by cost.
//!
//! "Serverless in the Wild" (Shahrad et al., ATC'20) keeps a histogram of idle times for each function and covers most of
//! them. Here the histogram is of the gaps between uses, and the time is the one that would have been cheapest over it:
//! keeping until then costs memory, and each gap that is longer costs a restore besides. As long as little is known, it is the
//! break-even, which costs at most twice the best whatever comes.

use crate::demand::Prices;

/// Buckets of the histogram: the first is up to [`SHORTEST_NS`], each later one up to twice as long, the last without end.
const BUCKETS: usize = 18;

/// Longest gap of the first bucket, in nanoseconds; about a millisecond.
const SHORTEST_NS: u64 = 1 << 20;

/// Gaps from which on the histogram is believed.
const GAPS_MIN: u32 = 8;

/// Gaps at which all counts are halved, so that what is old fades.
const GAPS_MAX: u32 = 256;

/// Gaps between uses of a function's instances, counted by length.
#[derive(Debug, Clone, Default)]
pub struct Gaps {
    counts: [u16; BUCKETS],
    total: u32,
}

impl Gaps {
    /// Counts a gap.
    pub fn add(&mut self, gap_ns: u64) {
        if self.total >= GAPS_MAX {
            for count in &mut self.counts {
                *count /= 2;
            }
            self.total = self.counts.iter().map(|count| u32::from(*count)).sum();
        }
        let bucket = gap_ns.div_ceil(SHORTEST_NS).max(1).next_power_of_two().ilog2() as usize;
        self.counts[bucket.min(BUCKETS - 1)] += 1;
        self.total += 1;
    }

    /// The time that costs least, in nanoseconds; 0 if none pays.
    pub fn keep_alive_ns(&self, prices: &Prices) -> u64 {
        if self.total < GAPS_MIN {
            return (prices.restore / prices.keep_per_ns) as u64;
        }
        // What is paid for the gaps that end within the time, and how many they are.
        let (mut bridged_cost, mut bridged) = (0.0, 0);
        let mut best = (f64::from(self.total) * prices.restore, 0);
        for (bucket, count) in self.counts.iter().take(BUCKETS - 1).enumerate() {
            let end = SHORTEST_NS << bucket;
            let middle = if bucket == 0 { end / 2 } else { end / 4 * 3 };
            bridged_cost += f64::from(*count) * middle as f64 * prices.keep_per_ns;
            bridged += u32::from(*count);
            let missed = f64::from(self.total - bridged);
            let cost = bridged_cost + missed * (end as f64 * prices.keep_per_ns + prices.restore);
            if cost < best.0 {
                best = (cost, end);
            }
        }
        best.1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: u64 = 1_000_000;
    const PRICES: Prices = Prices {
        restore: 2e6,
        create: 30e6,
        keep_per_ns: 2e6 / 1e9,
    };

    #[test]
    fn little_known_means_the_break_even() {
        let mut gaps = Gaps::default();
        assert_eq!(gaps.keep_alive_ns(&PRICES), 1000 * MS);
        for _ in 0..GAPS_MIN - 1 {
            gaps.add(10 * MS);
        }
        assert_eq!(gaps.keep_alive_ns(&PRICES), 1000 * MS);
    }

    #[test]
    fn short_gaps_are_covered_and_long_ones_are_not_waited_for() {
        let mut gaps = Gaps::default();
        (0..100).for_each(|_| gaps.add(10 * MS));
        let keep = gaps.keep_alive_ns(&PRICES);
        assert!((10 * MS..40 * MS).contains(&keep), "{keep}");
        let mut gaps = Gaps::default();
        (0..100).for_each(|_| gaps.add(5000 * MS));
        assert_eq!(gaps.keep_alive_ns(&PRICES), 0);
        // Nine in ten are short: those are covered, the long ones are not.
        let mut gaps = Gaps::default();
        (0..100).for_each(|at| gaps.add(if at % 10 == 0 { 60_000 * MS } else { 30 * MS }));
        let keep = gaps.keep_alive_ns(&PRICES);
        assert!((30 * MS..120 * MS).contains(&keep), "{keep}");
    }

    #[test]
    fn what_is_old_fades() {
        let mut gaps = Gaps::default();
        (0..1000).for_each(|_| gaps.add(10 * MS));
        (0..1000).for_each(|_| gaps.add(5000 * MS));
        assert_eq!(gaps.keep_alive_ns(&PRICES), 0);
    }

    proptest! {
        #[test]
        fn no_fixed_time_is_much_cheaper(lengths in prop::collection::vec(1u64..20_000, 8..200), other in 0u64..20_000) {
            let mut gaps = Gaps::default();
            lengths.iter().for_each(|ms| gaps.add(ms * MS));
            let cost = |keep: u64| -> f64 {
                lengths.iter().map(|ms| {
                    let gap = ms * MS;
                    if gap <= keep {
                        gap as f64 * PRICES.keep_per_ns
                    } else {
                        keep as f64 * PRICES.keep_per_ns + PRICES.restore
                    }
                }).sum()
            };
            let chosen = cost(gaps.keep_alive_ns(&PRICES));
            prop_assert!(chosen <= 2.0 * cost(other * MS) + 1.0, "{chosen} against {}", cost(other * MS));
        }
    }
}
