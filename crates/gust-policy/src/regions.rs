//! In which region a cold start is made.
//!
//! "Serverless Cold Starts and Where to Find Them" (Huawei) finds medians from 0.1 to 2 seconds between regions at the same
//! hour, and suggests moving cold starts to where they are short. An instance that is made elsewhere is called there until
//! it goes: the cost of a path is the way there and back, as often as instances of that function and track are called, and the
//! region's usual cold start. That is learnt from those made: a median that each start moves by a few percent, since cold
//! starts have tails that would carry a mean away. Now and then another region is tried where the way alone would not
//! cost more than staying, so that what was learnt does not grow old. Without a table of ways every function stays at home.

use serde::{Deserialize, Serialize};

/// Regions that are tried for one instance, cheapest first.
pub const REGIONS_TRIED: usize = 4;

/// Share by which one cold start moves what is learnt of a region.
const STEP: f64 = 0.05;

/// One cold start in so many goes where the path was not the cheapest.
const EXPLORE_EVERY: u64 = 64;

/// Ways between regions.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegionConfig {
    /// Nanoseconds there and back, from the row's region to the column's. Empty: nothing leaves its home.
    pub round_trip_ns: Vec<Vec<u64>>,
    /// How much shorter a path must be to be worth leaving home, in nanoseconds.
    pub advantage_ns: u64,
}

/// What was learnt of regions.
#[derive(Debug, Clone, Default)]
pub struct Regions {
    config: RegionConfig,
    /// Usual cold start in nanoseconds, by region; `None` before the first.
    usual_ns: Vec<Option<f64>>,
    starts: u64,
}

/// How many calls instances take before they go.
#[derive(Debug, Clone, Copy, Default)]
pub struct Uses {
    made: u32,
    calls: u32,
}

impl Uses {
    /// Calls at which both counts are halved, so that what is old fades.
    const CALLS_MAX: u32 = 1 << 16;

    /// An instance is made.
    pub fn made(&mut self) {
        self.made += 1;
    }

    /// One takes a call.
    pub fn called(&mut self) {
        self.calls += 1;
        if self.calls >= Self::CALLS_MAX {
            self.calls /= 2;
            self.made /= 2;
        }
    }

    /// Calls of one instance on average, where one more that takes `usual` counts as seen: a new function's instances are
    /// expected to be called as others are.
    pub fn mean(&self, usual: f64) -> f64 {
        (f64::from(self.calls) + usual) / (f64::from(self.made) + 1.0)
    }

    /// The same without anything else.
    pub fn usual(&self) -> f64 {
        (f64::from(self.calls) / f64::from(self.made.max(1))).max(1.0)
    }
}

/// Regions in the order in which they are to be tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    regions: [u16; REGIONS_TRIED],
    length: usize,
}

impl Order {
    /// The regions.
    pub fn as_slice(&self) -> &[u16] {
        &self.regions[..self.length]
    }
}

impl Regions {
    /// With ways between regions.
    pub fn new(config: RegionConfig) -> Regions {
        Regions {
            usual_ns: vec![None; config.round_trip_ns.len()],
            config,
            starts: 0,
        }
    }

    /// Whether calls may leave their home.
    pub fn is_on(&self) -> bool {
        !self.config.round_trip_ns.is_empty()
    }

    /// A cold start was made in a region and took so long.
    pub fn learn(&mut self, region: u16, took_ns: u64) {
        let Some(usual) = self.usual_ns.get_mut(usize::from(region)) else {
            return;
        };
        let took = took_ns as f64;
        *usual = Some(match *usual {
            None => took,
            Some(median) if took > median => (median * (1.0 + STEP)).min(took),
            Some(median) => (median / (1.0 + STEP)).max(took),
        });
    }

    /// The usual cold start of a region in nanoseconds, as learnt.
    pub fn usual_ns(&self, region: u16) -> Option<u64> {
        self.usual_ns
            .get(usize::from(region))
            .copied()
            .flatten()
            .map(|usual| usual as u64)
    }

    /// Where an instance of a function with this home should be made that will take so many calls.
    pub fn order(&mut self, home: u16, calls: f64) -> Order {
        let mut order = Order {
            regions: [home; REGIONS_TRIED],
            length: 1,
        };
        let Some(ways) = self.config.round_trip_ns.get(usize::from(home)) else {
            return order;
        };
        self.starts += 1;
        let stay = self
            .usual_ns
            .get(usize::from(home))
            .copied()
            .flatten()
            .unwrap_or(0.0);
        let mut paths: Vec<(f64, u16)> = Vec::with_capacity(ways.len());
        for (region, way) in (0u16..).zip(ways) {
            // A region of which nothing is known counts as quick, so that it is tried.
            let usual = self
                .usual_ns
                .get(usize::from(region))
                .copied()
                .flatten()
                .unwrap_or(0.0);
            let path = if region == home {
                stay
            } else {
                *way as f64 * calls.max(1.0) + usual
            };
            if region == home || path + self.config.advantage_ns as f64 <= stay {
                paths.push((path, region));
            }
        }
        paths.sort_by(|one, other| one.0.total_cmp(&other.0).then(one.1.cmp(&other.1)));
        order.length = paths.len().min(REGIONS_TRIED);
        for (place, path) in order.regions.iter_mut().zip(&paths) {
            *place = path.1;
        }
        if !order.as_slice().contains(&home) {
            order.regions[order.length - 1] = home;
        }
        let turn = (self.starts / EXPLORE_EVERY) % ways.len() as u64;
        if self.starts.is_multiple_of(EXPLORE_EVERY) && ways[turn as usize] as f64 * calls.max(1.0) <= stay {
            order.regions.copy_within(0..REGIONS_TRIED - 1, 1);
            order.regions[0] = turn as u16;
            order.length = (order.length + 1).min(REGIONS_TRIED);
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn regions() -> Regions {
        let round_trip_ns = vec![
            vec![0, 40 * MS, 80 * MS],
            vec![40 * MS, 0, 40 * MS],
            vec![80 * MS, 40 * MS, 0],
        ];
        Regions::new(RegionConfig {
            round_trip_ns,
            advantage_ns: 5 * MS,
        })
    }

    #[test]
    fn without_ways_all_stay_at_home() {
        let mut regions = Regions::new(RegionConfig::default());
        assert!(!regions.is_on());
        assert_eq!(regions.order(7, 1.0).as_slice(), [7]);
    }

    #[test]
    fn cold_starts_go_where_the_path_is_shortest() {
        let mut regions = regions();
        for _ in 0..200 {
            regions.learn(0, 2000 * MS);
            regions.learn(1, 500 * MS);
            regions.learn(2, 100 * MS);
        }
        assert_eq!(regions.order(0, 1.0).as_slice(), [2, 1, 0]);
        assert_eq!(regions.order(1, 1.0).as_slice(), [2, 1]);
        assert_eq!(regions.order(2, 1.0).as_slice(), [2]);
    }

    #[test]
    fn instances_that_are_called_often_stay_near() {
        let mut regions = regions();
        (0..100).for_each(|_| regions.learn(0, 2000 * MS));
        (0..100).for_each(|_| regions.learn(1, 500 * MS));
        (0..100).for_each(|_| regions.learn(2, 100 * MS));
        for (calls, first) in [(9, 2), (30, 1), (100, 0)] {
            assert_eq!(regions.order(0, f64::from(calls)).as_slice()[0], first, "{calls}");
        }
        let mut uses = Uses::default();
        assert_eq!((uses.usual(), uses.mean(50.0)), (1.0, 50.0));
        (0..3).for_each(|_| uses.made());
        (0..30).for_each(|_| uses.called());
        assert_eq!((uses.usual(), uses.mean(50.0)), (10.0, 20.0));
        (0..1 << 20).for_each(|_| uses.called());
        assert!(uses.calls < 1 << 16);
    }

    #[test]
    fn a_region_that_becomes_slow_is_left() {
        let mut regions = regions();
        (0..100).for_each(|_| regions.learn(0, 300 * MS));
        (0..100).for_each(|_| regions.learn(1, 100 * MS));
        (0..100).for_each(|_| regions.learn(2, 290 * MS));
        assert_eq!(regions.order(0, 1.0).as_slice()[0], 1);
        (0..100).for_each(|_| regions.learn(1, 3000 * MS));
        assert_eq!(regions.order(0, 1.0).as_slice()[0], 0);
    }

    #[test]
    fn others_are_tried_now_and_then() {
        let mut regions = regions();
        (0..3).for_each(|region| regions.learn(region, u64::from(region) * 1000 * MS + 500 * MS));
        let away = (0..1000)
            .filter(|_| regions.order(0, 1.0).as_slice()[0] != 0)
            .count();
        assert_eq!(away, 10);
    }

    #[test]
    fn the_learnt_median_bears_with_tails() {
        let mut regions = regions();
        for at in 0..2000u64 {
            regions.learn(
                0,
                if at % 10 == 0 {
                    100_000 * MS
                } else {
                    100 * MS + at % 7 * MS
                },
            );
        }
        let usual = regions.usual_ns(0).unwrap() / MS;
        assert!((90..=115).contains(&usual), "{usual}");
    }
}
