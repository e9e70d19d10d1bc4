//! Which of a function's traffic is sustained: the metric filter between the expedited track and the autoscaler.
//!
//! Source: WaveLink (arXiv 2505.24551) hides from the autoscaler what emergency instances absorb, unless it lasts. Here that
//! is a question of cost. A function's concurrency is seen as levels: the k-th level is busy while k instances are needed at
//! once, so it is what a k-th instance would have to do if calls always took the first idle one. Each time that a level
//! becomes busy again, an instance kept for it would have saved a restore (or what an armed one costs where that is less) and
//! have cost its memory for the gap before.
//! Savings add up, never below nothing; once they pay for making a regular instance, the level is *kept*: the autoscaler sees it.
//! From then on gaps are paid from what was saved, and when it is used up the level is traffic for restores again. Renting
//! until the rent has paid the price, then buying, costs at most twice the best (ski rental).
//!
//! The object knows no instances: levels are the same whichever track served them, so that traffic which moves from one track
//! to the other does not change what is seen of it.

use crate::keep_alive::{Gaps, RestPlan};
use crate::{CostModel, Time};

/// Most levels that are looked at; concurrency above counts as the last one.
pub const LEVELS_MAX: usize = 1 << 14;

/// What the instances of one function cost, in processor nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prices {
    /// One restore, with the worker that it takes.
    pub restore: f64,
    /// An instance's way back to its snapshot and the next call's start in it; infinite where it cannot go back.
    pub rearm: f64,
    /// Making one regular instance.
    pub create: f64,
    /// Keeping one idle, for a nanosecond.
    pub keep_per_ns: f64,
    /// Keeping one armed, for a nanosecond.
    pub armed_per_ns: f64,
}

impl Prices {
    /// Prices of a function that takes so much memory.
    pub fn of(cost: &CostModel, function_bytes: u64) -> Prices {
        Prices {
            restore: cost.restore(function_bytes),
            rearm: cost.rearm(function_bytes),
            create: cost.create(function_bytes),
            keep_per_ns: cost.keep_per_ns(function_bytes),
            armed_per_ns: cost.memory_per_ns(cost.armed_bytes),
        }
    }

    /// The least that a call after such a gap costs without an idle instance: restored for, or in an armed one.
    pub fn without_idle(&self, gap_ns: u64) -> f64 {
        self.restore.min(self.rearm + gap_ns as f64 * self.armed_per_ns)
    }
}

/// One level of concurrency.
#[derive(Debug, Clone, Copy, Default)]
struct Level {
    /// When it was last busy; `None` if it never was.
    ended: Option<Time>,
    /// What an instance would have saved so far.
    saved: f64,
    /// Whether an instance is worth its cost.
    kept: bool,
}

impl Level {
    /// It becomes busy after a gap.
    fn begin(&mut self, gap_ns: u64, prices: &Prices) {
        let saved = self.saved + prices.without_idle(gap_ns) - gap_ns as f64 * prices.keep_per_ns;
        self.saved = saved.clamp(0.0, prices.create);
        // Instances that save nothing by being made would be wanted for nothing, so the first gain must come first.
        self.kept = if self.kept {
            saved >= 0.0
        } else {
            saved >= prices.create && saved > 0.0
        };
    }

    /// It has been idle for a while.
    fn wait(&mut self, gap_ns: u64, prices: &Prices) {
        if self.kept && self.saved < gap_ns as f64 * prices.keep_per_ns {
            self.kept = false;
            self.saved = 0.0;
        }
    }
}

/// Demand for one function.
#[derive(Debug, Clone, Default)]
pub struct Demand {
    levels: Vec<Level>,
    busy: usize,
    calls: u32,
    gaps: Gaps,
}

impl Demand {
    /// A call has come. Gaps of levels above `regular` are what emergency instances would have bridged.
    pub fn begin(&mut self, now: Time, prices: &Prices, concurrency_per_instance: u32, regular: u32) {
        self.calls += 1;
        if self.instances(concurrency_per_instance) <= self.busy {
            return;
        }
        if self.busy == self.levels.len() {
            self.levels.push(Level::default());
        }
        let level = &mut self.levels[self.busy];
        if let Some(ended) = level.ended {
            let gap = now.0.saturating_sub(ended.0);
            level.begin(gap, prices);
            if self.busy >= regular as usize {
                self.gaps.add(gap);
            }
        }
        self.busy += 1;
    }

    /// A call is over, or is not wanted any more.
    pub fn end(&mut self, now: Time, concurrency_per_instance: u32) {
        self.calls = self.calls.saturating_sub(1);
        if self.instances(concurrency_per_instance) < self.busy {
            self.busy -= 1;
            self.levels[self.busy].ended = Some(now);
        }
    }

    /// Calls that are there.
    pub fn calls(&self) -> u32 {
        self.calls
    }

    /// Instances that are worth having now: the highest kept level. Forgets levels that are long out of use.
    pub fn worth(&mut self, now: Time, prices: &Prices) -> u32 {
        while self.levels.len() > self.busy
            && self
                .levels
                .last()
                .and_then(|level| level.ended)
                .is_some_and(|ended| {
                    (now.0.saturating_sub(ended.0)) as f64 * prices.keep_per_ns
                        > 2.0 * (prices.create + prices.restore)
                })
        {
            self.levels.pop();
        }
        for level in &mut self.levels[self.busy..] {
            if let Some(ended) = level.ended {
                level.wait(now.0.saturating_sub(ended.0), prices);
            }
        }
        self.levels
            .iter()
            .rposition(|level| level.kept)
            .map_or(0, |at| at as u32 + 1)
    }

    /// Instances that were there before: their levels are taken as paid for.
    pub fn adopt(&mut self, now: Time, prices: &Prices, instances: u32) {
        for at in 0..(instances as usize).min(LEVELS_MAX) {
            if at == self.levels.len() {
                self.levels.push(Level {
                    ended: Some(now),
                    ..Level::default()
                });
            }
            let level = &mut self.levels[at];
            level.saved = prices.create;
            level.kept = true;
        }
    }

    /// What becomes of an idle emergency instance.
    pub fn rest(&self, prices: &Prices) -> RestPlan {
        self.gaps.rest(prices)
    }

    fn instances(&self, concurrency_per_instance: u32) -> usize {
        (self.calls.div_ceil(concurrency_per_instance.max(1)) as usize).min(LEVELS_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keep_alive::tests::PRICES;
    use proptest::prelude::*;

    const MS: u64 = 1_000_000;

    /// `count` calls of 10 ms, a gap apart, and how many instances are worth it then.
    fn after(demand: &mut Demand, now: &mut u64, count: u32, gap_ms: u64) -> u32 {
        for _ in 0..count {
            *now += gap_ms * MS;
            demand.begin(Time(*now), &PRICES, 1, 0);
            *now += 10 * MS;
            demand.end(Time(*now), 1);
        }
        demand.worth(Time(*now), &PRICES)
    }

    #[test]
    fn traffic_counts_once_it_has_paid_for_an_instance() {
        // Each gap of 100 ms costs 0.2 ms and saves 2 ms: 30 ms are saved after 17 gaps.
        let (mut demand, mut now) = (Demand::default(), 0);
        assert_eq!(after(&mut demand, &mut now, 17, 100), 0);
        assert_eq!(after(&mut demand, &mut now, 1, 100), 1);
        // 30 ms pay for 15 seconds of nothing, and not for more.
        assert_eq!(demand.worth(Time(now + 14_999 * MS), &PRICES), 1);
        assert_eq!(demand.worth(Time(now + 15_001 * MS), &PRICES), 0);
    }

    #[test]
    fn traffic_with_longer_gaps_than_the_break_even_never_counts() {
        let (mut demand, mut now) = (Demand::default(), 0);
        assert_eq!(after(&mut demand, &mut now, 10_000, 1_001), 0);
    }

    #[test]
    fn what_armed_instances_serve_for_less_never_counts() {
        // A gap of 500 ms costs 1 ms idle, and 0.4 ms armed.
        let prices = Prices {
            rearm: 0.3e6,
            ..PRICES
        };
        let (mut demand, mut now) = (Demand::default(), 0);
        for _ in 0..10_000 {
            now += 500 * MS;
            demand.begin(Time(now), &prices, 1, 0);
            demand.end(Time(now), 1);
        }
        assert_eq!(demand.worth(Time(now), &prices), 0);
        assert_eq!(after(&mut Demand::default(), &mut now, 100, 500), 1);
    }

    #[test]
    fn a_burst_does_not_count() {
        let mut demand = Demand::default();
        for burst in 0..100u64 {
            let now = burst * 60_000 * MS;
            for _ in 0..50 {
                demand.begin(Time(now), &PRICES, 1, 0);
            }
            assert_eq!(demand.worth(Time(now + MS), &PRICES), 0);
            for _ in 0..50 {
                demand.end(Time(now + 10 * MS), 1);
            }
        }
        assert_eq!(demand.calls(), 0);
    }

    #[test]
    fn levels_follow_concurrency_inside_an_instance() {
        let mut demand = Demand::default();
        for round in 0..40u64 {
            for _ in 0..10 {
                demand.begin(Time(round * 20 * MS), &PRICES, 4, 0);
            }
            for _ in 0..10 {
                demand.end(Time(round * 20 * MS + 10 * MS), 4);
            }
        }
        assert_eq!(demand.worth(Time(800 * MS), &PRICES), 3);
    }

    #[test]
    fn instances_found_are_taken_as_paid_for() {
        let mut demand = Demand::default();
        demand.adopt(Time(0), &PRICES, 3);
        assert_eq!(demand.worth(Time(10_000 * MS), &PRICES), 3);
        assert_eq!(demand.worth(Time(16_000 * MS), &PRICES), 0);
    }

    proptest! {
        /// The bound of ski rental: what this rule pays for one level, against the cheapest choice for each gap if one
        /// knew them all.
        #[test]
        fn costs_at_most_a_few_times_the_best(gaps in prop::collection::vec(1u64..20_000, 1..400)) {
            let (mut demand, mut now) = (Demand::default(), 0u64);
            let (mut paid, mut best, mut kept) = (0.0, 0.0, false);
            for gap_ms in gaps {
                demand.begin(Time(now), &PRICES, 1, 0);
                demand.end(Time(now), 1);
                let gap = gap_ms * MS;
                let keep = gap as f64 * PRICES.keep_per_ns;
                let worth = demand.worth(Time(now), &PRICES) > 0;
                if worth && !kept {
                    paid += PRICES.create;
                }
                kept = worth;
                if kept {
                    // Given up when the savings are used up: within this gap, or not.
                    let until = (0..=gap_ms).find(|ms| demand.clone().worth(Time(now + ms * MS), &PRICES) == 0);
                    paid += until.map_or(keep, |ms| ms as f64 * MS as f64 * PRICES.keep_per_ns + PRICES.restore);
                    kept = until.is_none();
                    now += gap;
                    demand.worth(Time(now), &PRICES);
                } else {
                    paid += PRICES.restore;
                    now += gap;
                }
                best += keep.min(PRICES.restore);
            }
            prop_assert!(paid <= 4.0 * best + 2.0 * PRICES.create, "paid {paid}, best {best}");
        }

        #[test]
        fn never_loses_count(steps in prop::collection::vec((any::<bool>(), 0u64..100), 0..500), c in 1u32..5) {
            let mut demand = Demand::default();
            let (mut now, mut calls) = (0, 0u32);
            for (begin, gap) in steps {
                now += gap * MS;
                if begin {
                    demand.begin(Time(now), &PRICES, c, 0);
                    calls += 1;
                } else if calls > 0 {
                    demand.end(Time(now), c);
                    calls -= 1;
                }
                prop_assert_eq!(demand.calls(), calls);
                prop_assert_eq!(demand.busy, calls.div_ceil(c) as usize);
                prop_assert!(demand.worth(Time(now), &PRICES) as usize <= demand.levels.len());
            }
        }
    }
}
