//! Figures from samples.

use std::time::Duration;

use serde_json::{Value, json};

/// The figures of some samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Samples.
    pub count: usize,
    /// Smallest.
    pub min: Duration,
    /// Half are no larger.
    pub p50: Duration,
    /// Nine of ten are no larger.
    pub p90: Duration,
    /// Ninety-nine of a hundred are no larger.
    pub p99: Duration,
    /// Largest.
    pub max: Duration,
    /// Mean.
    pub mean: Duration,
}

impl Summary {
    /// The figures of samples in any order; `None` of none.
    pub fn of(samples: &[Duration]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_unstable();
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let total: Duration = sorted.iter().sum();
        Some(Self {
            count: sorted.len(),
            min,
            p50: percentile(&sorted, 50.0),
            p90: percentile(&sorted, 90.0),
            p99: percentile(&sorted, 99.0),
            max,
            mean: total / u32::try_from(sorted.len()).unwrap_or(u32::MAX),
        })
    }

    /// As JSON, in microseconds.
    pub fn to_json(self) -> Value {
        let us = |duration: Duration| duration.as_nanos() as f64 / 1000.0;
        json!({
            "count": self.count,
            "min_us": us(self.min),
            "p50_us": us(self.p50),
            "p90_us": us(self.p90),
            "p99_us": us(self.p99),
            "max_us": us(self.max),
            "mean_us": us(self.mean),
        })
    }
}

/// The smallest of the sorted samples that at least `percent` of them do not exceed (nearest rank). There must be one.
pub fn percentile(sorted: &[Duration], percent: f64) -> Duration {
    let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn percentiles_are_samples() {
        let samples: Vec<Duration> = (1..=100).rev().map(Duration::from_millis).collect();
        let summary = Summary::of(&samples).unwrap();
        assert_eq!(
            [summary.min, summary.p50, summary.p90, summary.p99, summary.max].map(|value| value.as_millis()),
            [1, 50, 90, 99, 100]
        );
        assert_eq!(
            Summary::of(&samples[..1]).unwrap().p99,
            Duration::from_millis(100)
        );
        assert_eq!(Summary::of(&[]), None);
    }

    proptest! {
        #[test]
        fn figures_are_in_order(samples in proptest::collection::vec(0u64..1_000_000, 1..200)) {
            let samples: Vec<Duration> = samples.into_iter().map(Duration::from_nanos).collect();
            let s = Summary::of(&samples).unwrap();
            prop_assert!(s.min <= s.p50 && s.p50 <= s.p90 && s.p90 <= s.p99 && s.p99 <= s.max);
            prop_assert!(s.min <= s.mean && s.mean <= s.max);
            let below = samples.iter().filter(|sample| **sample <= s.p90).count();
            prop_assert!(below * 10 >= samples.len() * 9);
        }
    }
}
