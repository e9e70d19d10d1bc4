//! What becomes of an instance that gets no call: how long it stays idle, how long it waits armed after that.
//!
//! ```text
//!  idle ── idle_ns ──> armed: back to its snapshot ── armed_ns ──> gone
//! ```
//!
//! An idle instance costs its memory and its next call nothing; an armed one costs a fraction of the memory, and processor time to
//! go back and to begin again; one that is gone costs nothing until the next call, and then a restore with its worker.
//!
//! "Serverless in the Wild" (Shahrad et al., ATC'20) keeps a histogram of idle times for each function and covers most of
//! them. Here the histogram is of the gaps between uses, and the two times are those that would have been cheapest over it. As
//! long as little is known, a stage lasts until the next one would have been cheaper from the start: at most three times the
//! best whatever comes, and at most twice without a stage between (the lower envelope of Irani, Shukla and Gupta, "Online strategies for dynamic power management in
//! systems with multiple power-saving states", TECS 2003; with one stage it is ski rental).
//!
//! A frozen instance is no stage here: to thaw it takes a restore and more, so that it saves nothing over one that is gone but
//! its state, which the node keeps for instances that a policy leaves idle for long.

use crate::demand::Prices;

/// Buckets of the histogram: the first is up to [`SHORTEST_NS`], each later one up to twice as long, the last without end.
const BUCKETS: usize = 18;

/// Longest gap of the first bucket, in nanoseconds; about a millisecond.
const SHORTEST_NS: u64 = 1 << 20;

/// Gaps from which on the histogram is believed.
const GAPS_MIN: u32 = 8;

/// Gaps at which all counts are halved, so that what is old fades.
const GAPS_MAX: u32 = 256;

/// How an idle instance waits for its next call: idle, then armed, then not at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RestPlan {
    /// How long it stays idle, in nanoseconds; 0 for not at all.
    pub idle_ns: u64,
    /// How long it is armed after that, in nanoseconds; 0 for not at all.
    pub armed_ns: u64,
}

impl RestPlan {
    /// Each stage until the next would have been cheaper from the start.
    fn unknowing(prices: &Prices) -> Self {
        let idle_only = Self {
            idle_ns: (prices.restore / prices.keep_per_ns) as u64,
            armed_ns: 0,
        };
        let dearer = prices.keep_per_ns - prices.armed_per_ns;
        if dearer <= 0.0 || prices.rearm >= prices.restore {
            return idle_only;
        }
        let idle_ns = prices.rearm / dearer;
        let until_ns = (prices.restore - prices.rearm) / prices.armed_per_ns;
        if until_ns <= idle_ns {
            return idle_only;
        }
        Self {
            idle_ns: idle_ns as u64,
            armed_ns: (until_ns - idle_ns) as u64,
        }
    }
}

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

    /// What costs least over these gaps.
    pub fn rest(&self, prices: &Prices) -> RestPlan {
        if self.total < GAPS_MIN {
            return RestPlan::unknowing(prices);
        }
        // What is paid for the gaps that end while the instance is idle, and how many they are.
        let (mut bridged_cost, mut bridged) = (0.0, 0);
        let mut best = (f64::INFINITY, RestPlan::default());
        let tails = self.armed_tails(prices);
        for (boundary, (tail, until)) in tails.into_iter().enumerate() {
            let end = boundary_ns(boundary);
            let missed = f64::from(self.total - bridged);
            let idle = bridged_cost + missed * end as f64 * prices.keep_per_ns;
            // Where going back is infinitely dear, the second is never less.
            for (cost, armed_ns) in [
                (idle + missed * prices.restore, 0),
                (idle + missed * prices.rearm + tail, until - end),
            ] {
                if cost < best.0 {
                    let idle_ns = end;
                    best = (cost, RestPlan { idle_ns, armed_ns });
                }
            }
            let count = self.counts[boundary];
            bridged_cost += f64::from(count) * middle_ns(boundary) as f64 * prices.keep_per_ns;
            bridged += u32::from(count);
        }
        best.1
    }

    /// For each boundary between buckets, with an instance that becomes armed there: what the longer gaps cost besides, and
    /// until when it is best kept. That boundary itself means not at all, and then it has been armed for nothing.
    fn armed_tails(&self, prices: &Prices) -> [(f64, u64); BUCKETS] {
        // Seen from a boundary `from`, keeping until `until` costs what follows, less a part that is the same for all `until`.
        let mut tails = [(0.0, 0); BUCKETS];
        let (mut later, mut best) = (0.0, (f64::INFINITY, 0));
        // Cost of the gaps after a boundary if all were bridged.
        let mut spent = [0.0; BUCKETS + 1];
        for bucket in (0..BUCKETS).rev() {
            let count = f64::from(self.counts[bucket]);
            spent[bucket] = spent[bucket + 1] + count * middle_ns(bucket) as f64 * prices.armed_per_ns;
        }
        for boundary in (0..BUCKETS).rev() {
            later += f64::from(self.counts[boundary]);
            let until = boundary_ns(boundary);
            // Gaps that are longer than `until` pay for the time until then and for a restore in place of all that they take.
            let cost = later * (until as f64 * prices.armed_per_ns + prices.restore) - spent[boundary];
            // Of equals the shortest.
            if cost <= best.0 {
                best = (cost, until);
            }
            let from = boundary_ns(boundary) as f64;
            tails[boundary] = (
                best.0 + spent[boundary] - later * from * prices.armed_per_ns,
                best.1,
            );
        }
        tails
    }
}

/// The least gap of a bucket, in nanoseconds.
fn boundary_ns(bucket: usize) -> u64 {
    match bucket {
        0 => 0,
        bucket => SHORTEST_NS << (bucket - 1),
    }
}

/// A gap of a bucket, in nanoseconds.
fn middle_ns(bucket: usize) -> u64 {
    match bucket {
        0 => SHORTEST_NS / 2,
        bucket => boundary_ns(bucket) / 2 * 3,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: u64 = 1_000_000;
    /// A restore takes 2 ms, and keeping an instance costs as much in a second.
    pub(crate) const PRICES: Prices = Prices {
        restore: 2e6,
        rearm: f64::INFINITY,
        create: 30e6,
        keep_per_ns: 2e6 / 1e9,
        armed_per_ns: 2e5 / 1e9,
    };
    /// The same for a function whose instances can go back.
    const BACK: Prices = Prices {
        rearm: 0.2e6,
        ..PRICES
    };

    /// What a plan costs for a gap.
    fn cost(plan: RestPlan, prices: &Prices, gap: u64) -> f64 {
        let idle = gap.min(plan.idle_ns) as f64 * prices.keep_per_ns;
        let left = gap.saturating_sub(plan.idle_ns);
        if left == 0 {
            return idle;
        }
        if plan.armed_ns == 0 {
            return idle + prices.restore;
        }
        let armed = left.min(plan.armed_ns) as f64 * prices.armed_per_ns + prices.rearm;
        idle + armed + if left > plan.armed_ns { prices.restore } else { 0.0 }
    }

    #[test]
    fn little_known_means_the_break_even() {
        let mut gaps = Gaps::default();
        assert_eq!(gaps.rest(&PRICES).idle_ns, 1000 * MS);
        for _ in 0..GAPS_MIN - 1 {
            gaps.add(10 * MS);
        }
        assert_eq!(gaps.rest(&PRICES).idle_ns, 1000 * MS);
    }

    #[test]
    fn short_gaps_are_covered_and_long_ones_are_not_waited_for() {
        let mut gaps = Gaps::default();
        (0..100).for_each(|_| gaps.add(10 * MS));
        let keep = gaps.rest(&PRICES).idle_ns;
        assert!((10 * MS..40 * MS).contains(&keep), "{keep}");
        let mut gaps = Gaps::default();
        (0..100).for_each(|_| gaps.add(5000 * MS));
        assert_eq!(gaps.rest(&PRICES).idle_ns, 0);
        // Nine in ten are short: those are covered, the long ones are not.
        let mut gaps = Gaps::default();
        (0..100).for_each(|at| gaps.add(if at % 10 == 0 { 60_000 * MS } else { 30 * MS }));
        let keep = gaps.rest(&PRICES).idle_ns;
        assert!((30 * MS..120 * MS).contains(&keep), "{keep}");
    }

    #[test]
    fn what_armed_instances_bridge_for_less_is_left_to_them() {
        // Gaps of 5 s cost 10 ms idle, 1.2 ms armed and 2 ms of restores.
        let mut gaps = Gaps::default();
        (0..100).for_each(|_| gaps.add(5000 * MS));
        let plan = gaps.rest(&BACK);
        assert_eq!(plan.idle_ns, 0);
        assert!((5000 * MS..20_000 * MS).contains(&plan.armed_ns), "{plan:?}");
        // Gaps of a minute cost 12 ms armed.
        let mut gaps = Gaps::default();
        (0..100).for_each(|_| gaps.add(60_000 * MS));
        assert_eq!(gaps.rest(&BACK), RestPlan::default());
        // Of many short and some long ones the short ones are bridged idle, the long ones armed.
        let mut gaps = Gaps::default();
        (0..100).for_each(|at| gaps.add(if at % 4 == 0 { 3000 * MS } else { 10 * MS }));
        let plan = gaps.rest(&BACK);
        assert!(
            (10 * MS..100 * MS).contains(&plan.idle_ns) && plan.armed_ns > 2500 * MS,
            "{plan:?}"
        );
        // Nothing is armed where an instance cannot go back.
        assert_eq!(gaps.rest(&PRICES).armed_ns, 0);
    }

    #[test]
    fn little_known_means_each_stage_until_the_next_is_cheaper() {
        let plan = Gaps::default().rest(&BACK);
        // 0.2 ms of going back against 1.8 ms a second more: 111 ms. 1.8 ms less than a restore for 9 s of being armed.
        assert_eq!(
            (plan.idle_ns / MS, (plan.idle_ns + plan.armed_ns) / MS),
            (111, 8999)
        );
        // Where going back costs nearly what a restore does, being armed never pays.
        let dear = Prices {
            rearm: 1.9e6,
            ..PRICES
        };
        assert_eq!(Gaps::default().rest(&dear).armed_ns, 0);
    }

    #[test]
    fn what_is_old_fades() {
        let mut gaps = Gaps::default();
        (0..1000).for_each(|_| gaps.add(10 * MS));
        (0..1000).for_each(|_| gaps.add(5000 * MS));
        assert_eq!(gaps.rest(&PRICES).idle_ns, 0);
    }

    proptest! {
        #[test]
        fn no_fixed_times_are_much_cheaper(
            lengths in prop::collection::vec(1u64..20_000, 8..200),
            (idle, armed) in (0u64..20_000, 0u64..20_000),
            rearm in prop_oneof![Just(f64::INFINITY), 0.0f64..2e6],
        ) {
            let prices = Prices { rearm, ..PRICES };
            let mut gaps = Gaps::default();
            lengths.iter().for_each(|ms| gaps.add(ms * MS));
            let total = |plan| -> f64 { lengths.iter().map(|ms| cost(plan, &prices, ms * MS)).sum() };
            let chosen = total(gaps.rest(&prices));
            let other = total(RestPlan { idle_ns: idle * MS, armed_ns: armed * MS });
            prop_assert!(chosen <= 2.0 * other + 1.0, "{chosen} against {other}");
        }

        /// Whatever comes, knowing nothing costs at most three times what knowing the gap would.
        #[test]
        fn knowing_nothing_costs_at_most_three_times_the_best(
            gap_ms in 1u64..100_000,
            rearm in prop_oneof![Just(f64::INFINITY), 0.0f64..2e6],
        ) {
            let prices = Prices { rearm, ..PRICES };
            let gap = gap_ms * MS;
            let best = (gap as f64 * prices.keep_per_ns).min(prices.without_idle(gap));
            let paid = cost(RestPlan::unknowing(&prices), &prices, gap);
            let most = if rearm.is_infinite() { 2.0 } else { 3.0 };
            prop_assert!(paid <= most * best + 1.0, "paid {paid}, best {best}");
        }
    }
}
