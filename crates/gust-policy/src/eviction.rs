//! Which idle instance goes when a node needs its memory.
//!
//! Source: FaasCache (Fuerst and Sharma, ASPLOS'21), which treats keep-alive as caching by Greedy-Dual-Size-Frequency: an
//! instance's priority is the node's clock at its last use plus what it would cost to make it again, times its uses, over its
//! bytes; the least goes, and the clock becomes its priority, so that what is not used ages.

/// Uses beyond which an instance is not worth more.
const USES_MAX: u32 = 64;

/// Scale of priorities, so that they are whole numbers: cost in processor nanoseconds per byte times this.
const SCALE: f64 = (1u64 << 20) as f64;

/// Where an idle instance stands among those of its node; the least goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Priority(pub u64);

/// The clock of one node.
#[derive(Debug, Clone, Copy, Default)]
pub struct Eviction {
    clock: Priority,
}

impl Eviction {
    /// Priority of an instance that becomes idle: what making it again costs in processor nanoseconds, its memory, and how
    /// many calls it has run.
    pub fn priority(&self, cost: f64, memory_bytes: u64, uses: u32) -> Priority {
        let value = cost * f64::from(uses.clamp(1, USES_MAX)) / memory_bytes.max(1) as f64 * SCALE;
        Priority(self.clock.0.saturating_add(value as u64))
    }

    /// An instance with this priority was evicted.
    pub fn evicted(&mut self, priority: Priority) {
        self.clock = self.clock.max(priority);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn cheap_large_and_seldom_used_instances_go_first() {
        let eviction = Eviction::default();
        let emergency = eviction.priority(1.7e6, 128 * MIB, 1);
        assert!(emergency < eviction.priority(30e6, 128 * MIB, 1));
        assert!(emergency < eviction.priority(1.7e6, 64 * MIB, 1));
        assert!(emergency < eviction.priority(1.7e6, 128 * MIB, 2));
    }

    #[test]
    fn what_is_not_used_ages() {
        let mut eviction = Eviction::default();
        let dear = eviction.priority(30e6, 128 * MIB, 4);
        let mut rounds = 0;
        while eviction.priority(1.7e6, 128 * MIB, 1) <= dear {
            eviction.evicted(eviction.priority(1.7e6, 128 * MIB, 1));
            rounds += 1;
            assert!(rounds < 1000, "the clock does not go on");
        }
        assert!(rounds > 10);
    }

    proptest! {
        #[test]
        fn the_clock_never_goes_back(evictions in prop::collection::vec((0.0f64..1e9, 0u64..1 << 36, 0u32..1000), 0..100)) {
            let mut eviction = Eviction::default();
            for (cost, bytes, uses) in evictions {
                let before = eviction.clock;
                let priority = eviction.priority(cost, bytes, uses);
                prop_assert!(priority >= before);
                eviction.evicted(priority);
                prop_assert!(eviction.clock >= before);
            }
        }
    }
}
