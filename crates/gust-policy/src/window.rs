//! Concurrency, averaged over the last minute and the last seconds.
//!
//! Where Knative samples each second what its proxies report, a fleet knows every change: the average is exact but for the
//! oldest bucket, which counts by the share of it that is still inside the window.

use crate::Time;

/// Buckets of the longer window; the shorter one is a number of them.
pub const BUCKETS: u32 = 60;

/// Those of the window, and the one that is leaving it.
const RING: usize = BUCKETS as usize + 1;

/// Averages of a number that changes.
#[derive(Debug, Clone)]
pub struct Window {
    bucket_ns: u64,
    /// Sum of value times nanoseconds, for each bucket.
    sums: [u64; RING],
    value: u32,
    /// Until when the sums are filled.
    filled: u64,
    /// When the first value other than zero came after a whole window of nothing.
    first: Option<u64>,
}

impl Window {
    /// A window of a length, in nanoseconds, whose number has been 0 so far.
    pub fn new(length_ns: u64) -> Window {
        let bucket_ns = (length_ns / u64::from(BUCKETS)).max(1);
        Window {
            bucket_ns,
            sums: [0; RING],
            value: 0,
            filled: 0,
            first: None,
        }
    }

    /// The number is another from now on.
    pub fn set(&mut self, now: Time, value: u32) {
        self.advance(now.0);
        if value > 0 && self.first.is_none() {
            self.first = Some(now.0);
        }
        self.value = value;
    }

    /// The number now.
    pub fn value(&self) -> u32 {
        self.value
    }

    /// Average over the last `buckets` (at most [`BUCKETS`]), or since the first value if that is shorter, but over no
    /// less than one bucket; the number itself before that. Knative's buckets have it so (`aggregation/bucketing.go`).
    pub fn average(&mut self, now: Time, buckets: u32) -> f64 {
        self.advance(now.0);
        let Some(first) = self.first else { return 0.0 };
        let lasting = now.0.saturating_sub(first);
        if lasting < self.bucket_ns {
            return f64::from(self.value).max(self.sum(now.0, 1) / self.bucket_ns as f64);
        }
        let buckets = buckets.clamp(1, BUCKETS);
        let length = (u64::from(buckets) * self.bucket_ns).min(lasting);
        self.sum(now.0, buckets) / length as f64
    }

    /// Whether nothing has been there for a whole window.
    pub fn is_empty(&mut self, now: Time) -> bool {
        self.advance(now.0);
        self.first.is_none()
    }

    fn sum(&self, now: u64, buckets: u32) -> f64 {
        let current = now / self.bucket_ns;
        let mut sum = 0;
        for back in 0..u64::from(buckets) {
            let Some(bucket) = current.checked_sub(back) else {
                break;
            };
            sum += self.sums[(bucket % RING as u64) as usize];
        }
        let oldest = current
            .checked_sub(u64::from(buckets))
            .map_or(0, |bucket| self.sums[(bucket % RING as u64) as usize]);
        let inside = 1.0 - (now % self.bucket_ns) as f64 / self.bucket_ns as f64;
        sum as f64 + oldest as f64 * inside
    }

    /// Fills the sums until `now`: at most one round of the ring.
    fn advance(&mut self, now: u64) {
        if now <= self.filled {
            return;
        }
        let ring_ns = self.bucket_ns * RING as u64;
        if now - self.filled > ring_ns {
            self.filled = now - ring_ns;
            self.sums = [0; RING];
        }
        while self.filled < now {
            let bucket = self.filled / self.bucket_ns;
            let end = ((bucket + 1) * self.bucket_ns).min(now);
            let at = (bucket % RING as u64) as usize;
            if self.filled.is_multiple_of(self.bucket_ns) {
                self.sums[at] = 0;
            }
            self.sums[at] += u64::from(self.value) * (end - self.filled);
            self.filled = end;
        }
        if now.is_multiple_of(self.bucket_ns) {
            self.sums[((now / self.bucket_ns) % RING as u64) as usize] = 0;
        }
        if self.value == 0 && self.sums.iter().all(|sum| *sum == 0) {
            self.first = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_constant_is_its_own_average() {
        let mut window = Window::new(60 * SECOND);
        window.set(Time(5 * SECOND), 7);
        for now in [5, 6, 10, 65, 66, 500] {
            assert_eq!(window.average(Time(now * SECOND), 60), 7.0, "{now}");
            assert_eq!(window.average(Time(now * SECOND), 6), 7.0, "{now}");
        }
    }

    #[test]
    fn a_burst_leaves_the_short_window_first_and_then_the_long_one() {
        let mut window = Window::new(60 * SECOND);
        window.set(Time(0), 1);
        window.set(Time(60 * SECOND), 11);
        window.set(Time(66 * SECOND), 1);
        assert_eq!(window.average(Time(66 * SECOND), 6), 11.0);
        assert_eq!(window.average(Time(66 * SECOND), 60), 2.0);
        assert_eq!(window.average(Time(72 * SECOND), 6), 1.0);
        assert_eq!(window.average(Time(126 * SECOND), 60), 1.0);
        window.set(Time(126 * SECOND), 0);
        assert!(!window.is_empty(Time(180 * SECOND)));
        assert!(window.is_empty(Time(188 * SECOND)));
    }

    proptest! {
        #[test]
        fn averages_are_those_of_the_whole_history(
            changes in prop::collection::vec((0u64..9_000_000_000, 0u32..50), 1..60),
        ) {
            let mut window = Window::new(60 * SECOND);
            let mut history = vec![(0, 0)];
            let mut now = 0;
            for (gap, value) in changes {
                now += gap;
                window.set(Time(now), value);
                history.push((now, value));
            }
            let area = |from: u64, to: u64| -> f64 {
                let mut sum = 0.0;
                for (at, &(start, value)) in history.iter().enumerate() {
                    let end = history.get(at + 1).map_or(u64::MAX, |next| next.0);
                    let inside = end.min(to).saturating_sub(start.max(from));
                    sum += inside as f64 * f64::from(value);
                }
                sum
            };
            let first = history.iter().find(|change| change.1 > 0).map_or(u64::MAX, |change| change.0);
            if now > first && now - first >= 60 * SECOND && window.first == Some(first) {
                let exact = area(now - 60 * SECOND, now) / (60.0 * SECOND as f64);
                // Off by no more than what a bucket can hold.
                prop_assert!((window.average(Time(now), 60) - exact).abs() <= 50.0 / 60.0);
            }
        }
    }
}
