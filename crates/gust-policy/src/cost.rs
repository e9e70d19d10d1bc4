//! What instances cost: the one place where memory, processor time and delay are held against each other.
//!
//! Everything is told in nanoseconds of processor time. Its parameters are measured (`gust bench sandbox`, `gust calibrate`)
//! except for the prices, which are the operator's.

use serde::{Deserialize, Serialize};

/// Nanoseconds in a second.
const SECOND_NS: f64 = 1e9;

/// What an instance costs to make and to keep.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CostModel {
    /// Processor time of one emergency instance's life without its calls, in nanoseconds: its restore, its end, and the worker
    /// that is prepared in the stead of the one it took.
    pub restore_cpu_ns: u64,
    /// Processor time to make a regular instance and to end it, in nanoseconds.
    pub create_cpu_ns: u64,
    /// Processor time of one armed instance's life without its calls: as a restore's, only that it comes before the call.
    pub arm_cpu_ns: u64,
    /// Processor time of an instance that has run to go back to its snapshot, and of the call that begins in it then, beyond
    /// one of an idle instance, in nanoseconds.
    pub rearm_cpu_ns: u64,
    /// The same for each MiB that it holds beyond an idle instance's least.
    pub rearm_mib_cpu_ns: u64,
    /// Most memory, in bytes, that an instance may have used to go back.
    pub rearm_bytes_max: u64,
    /// Processor time of the first call in a new instance, or one that has gone back, for each MiB that it holds beyond an idle
    /// instance's least: its memory has to be got again.
    pub touch_mib_cpu_ns: u64,
    /// Processor time to freeze an idle instance and thaw it again, in nanoseconds: it gives its worker away, so this is a
    /// restore and more.
    pub thaw_cpu_ns: u64,
    /// Delay of a restore into an armed instance, in nanoseconds.
    pub restore_armed_ns: u64,
    /// Delay of a restore into a worker that holds the runtime's base.
    pub restore_shaped_ns: u64,
    /// Delay of a restore into an empty worker.
    pub restore_plain_ns: u64,
    /// Delay of making a snapshot's pages known to a node that has none of them, in nanoseconds.
    pub fetch_ns: u64,
    /// Memory of an armed instance, all in, in bytes.
    pub armed_bytes: u64,
    /// Memory of a frozen instance, in bytes.
    pub frozen_bytes: u64,
    /// Least memory of an idle instance that has run a call, in bytes; functions that say more take more.
    pub idle_bytes: u64,
    /// Processor nanoseconds that a byte costs for a second.
    pub memory_price: f64,
    /// Processor nanoseconds that a nanosecond of a caller's delay is worth; 0 looks at cost alone.
    pub delay_price: f64,
}

impl Default for CostModel {
    /// As measured on two processors of a Xeon (`gust calibrate`); prices are those of AWS Fargate in us-east-1, where a
    /// vCPU's hour costs 9.107 times a gigabyte's (0.04048 and 0.004445 dollars).
    fn default() -> CostModel {
        CostModel {
            restore_cpu_ns: 18_250_000,
            create_cpu_ns: 18_250_000,
            arm_cpu_ns: 18_250_000,
            rearm_cpu_ns: 2_330_000,
            rearm_mib_cpu_ns: 0,
            rearm_bytes_max: 256 << 20,
            touch_mib_cpu_ns: 330_000,
            thaw_cpu_ns: 45_000_000,
            restore_armed_ns: 730_000,
            restore_shaped_ns: 1_250_000,
            restore_plain_ns: 15_000_000,
            fetch_ns: 50_000_000,
            armed_bytes: 1_884_160,
            frozen_bytes: 65_536,
            idle_bytes: 2_088_960,
            memory_price: SECOND_NS / 9.107e9,
            delay_price: 1.0,
        }
    }
}

impl CostModel {
    /// What one more restore of a function costs, its delay priced in.
    pub fn restore(&self, function_bytes: u64) -> f64 {
        self.start(self.restore_cpu_ns, self.restore_shaped_ns, function_bytes)
    }

    /// A start of so much work and so long a delay, with the memory that the call gets then.
    fn start(&self, cpu_ns: u64, delay_ns: u64, function_bytes: u64) -> f64 {
        cpu_ns as f64 + self.delay_price * delay_ns as f64 + self.touch(function_bytes)
    }

    /// What going back to its snapshot costs an instance of a function, and the next call's start in it; without bound
    /// where it cannot go back.
    pub fn rearm(&self, function_bytes: u64) -> f64 {
        if function_bytes > self.rearm_bytes_max {
            return f64::INFINITY;
        }
        self.start(self.rearm_cpu_ns, self.restore_armed_ns, function_bytes)
            + self.mib_beyond(function_bytes) * self.rearm_mib_cpu_ns as f64
    }

    /// What it costs a function's first call in an instance to get its memory: work, during which its caller waits.
    fn touch(&self, function_bytes: u64) -> f64 {
        self.mib_beyond(function_bytes) * self.touch_mib_cpu_ns as f64 * (1.0 + self.delay_price)
    }

    /// MiB of a function's instance beyond an idle one's least.
    fn mib_beyond(&self, function_bytes: u64) -> f64 {
        function_bytes.saturating_sub(self.idle_bytes) as f64 / f64::from(1 << 20)
    }

    /// What one more regular instance of a function costs to make, with the memory that its first call gets.
    pub fn create(&self, function_bytes: u64) -> f64 {
        self.create_cpu_ns as f64 + self.touch(function_bytes)
    }

    /// What an idle instance of a function costs for each nanosecond.
    pub fn keep_per_ns(&self, function_bytes: u64) -> f64 {
        self.memory_per_ns(function_bytes.max(self.idle_bytes))
    }

    /// What memory costs for each nanosecond.
    pub fn memory_per_ns(&self, bytes: u64) -> f64 {
        bytes as f64 * self.memory_price / SECOND_NS
    }

    /// How long an idle instance may be kept until that has cost as much as a restore: whoever keeps it so long, and no
    /// longer, pays at most twice what one who knew the future would (ski rental; Karlin et al., Algorithmica 1988).
    pub fn break_even_ns(&self, function_bytes: u64) -> u64 {
        (self.restore(function_bytes) / self.keep_per_ns(function_bytes)) as u64
    }

    /// What it costs for an instance that has run to wait for the next call, which comes after a given time: each way, with
    /// what that call takes more than it would in an idle instance.
    pub fn rests(&self, gap_ns: u64, function_bytes: u64) -> [(Rest, f64); 4] {
        let gap = gap_ns as f64;
        // A thaw brings back what the instance holds, which takes no less than to get that memory anew.
        let thaw = self.start(self.thaw_cpu_ns, self.restore_shaped_ns, function_bytes);
        [
            (Rest::Idle, gap * self.keep_per_ns(function_bytes)),
            (
                Rest::Armed,
                gap * self.memory_per_ns(self.armed_bytes) + self.rearm(function_bytes),
            ),
            (Rest::Frozen, gap * self.memory_per_ns(self.frozen_bytes) + thaw),
            (Rest::Gone, self.restore(function_bytes)),
        ]
    }

    /// The cheapest of [`CostModel::rests`].
    pub fn cheapest_rest(&self, gap_ns: u64, function_bytes: u64) -> (Rest, f64) {
        let ways = self.rests(gap_ns, function_bytes);
        ways.into_iter()
            .fold(ways[0], |best, way| if way.1 < best.1 { way } else { best })
    }
}

/// How an instance can wait for its next call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rest {
    /// As the last call left it.
    Idle,
    /// Laid out as its snapshot has it: gone back to it, or never run.
    Armed,
    /// Its memory compressed, its worker kept.
    Frozen,
    /// Not at all: the next call restores one.
    Gone,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keeping_until_the_break_even_costs_a_restore() {
        let cost = CostModel::default();
        for bytes in [0, 128 << 20, 4 << 30] {
            let kept = cost.break_even_ns(bytes) as f64 * cost.keep_per_ns(bytes);
            assert!((kept / cost.restore(bytes) - 1.0).abs() < 1e-6, "{bytes}: {kept}");
        }
        // What was measured: an instance of the least size is worth 85 seconds, one of 128 MiB seven.
        assert_eq!(cost.break_even_ns(0) / 1_000_000_000, 85);
        assert_eq!(cost.break_even_ns(128 << 20) / 1_000_000, 6966);
    }

    #[test]
    fn short_gaps_stay_idle_and_long_ones_do_not() {
        let cost = CostModel::default();
        assert_eq!(cost.cheapest_rest(1_000_000, 0).0, Rest::Idle);
        // One that holds no more than an armed one stays as it is; one that holds more goes back.
        assert_eq!(cost.cheapest_rest(10_000_000_000, 0).0, Rest::Idle);
        assert_eq!(cost.cheapest_rest(10_000_000_000, 64 << 20).0, Rest::Armed);
        assert_eq!(cost.cheapest_rest(3_600_000_000_000, 0).0, Rest::Gone);
        // What has used too much memory cannot go back.
        assert_eq!(cost.cheapest_rest(10_000_000_000, 1 << 30).0, Rest::Gone);
        // Where delay is dear, an armed instance pays for longer.
        let patient = CostModel {
            delay_price: 100.0,
            ..cost
        };
        assert_eq!(patient.cheapest_rest(310_000_000_000, 64 << 20).0, Rest::Armed);
        assert_eq!(cost.cheapest_rest(310_000_000_000, 64 << 20).0, Rest::Gone);
    }

    proptest! {
        #[test]
        fn no_rest_is_cheaper_than_the_cheapest(gap in 0u64..1 << 42, bytes in 0u64..1 << 34) {
            let cost = CostModel::default();
            let (_, best) = cost.cheapest_rest(gap, bytes);
            prop_assert!(best <= gap as f64 * cost.keep_per_ns(bytes) && best <= cost.restore(bytes));
        }
    }
}
