//! How many regular instances a function should have: Knative's pod autoscaler (KPA).
//!
//! Source: Knative Serving, `pkg/autoscaler/scaling/autoscaler.go` and the autoscaler's configuration, whose names and
//! defaults the configuration here has. Averages of concurrency over a stable and a panic window, held against a target, give
//! a number of instances; a panic takes the larger one and does not go down. It knows nothing of instances or nodes.

use crate::Time;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Least target, as Knative has it.
const TARGET_MIN: f64 = 0.01;

/// Most decisions that a scale-down delay remembers; a longer delay forgets its oldest.
const DELAYED_MAX: usize = 4096;

/// How an autoscaler behaves. Defaults are Knative's.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AutoscalerConfig {
    /// Time between two decisions about one function, in nanoseconds.
    pub period_ns: u64,
    /// Window of the average, in nanoseconds.
    pub stable_window_ns: u64,
    /// Share of the stable window that the panic window has, in percent.
    pub panic_window_percent: f64,
    /// What the panic window wants over what is there, in percent, from which on there is panic.
    pub panic_threshold_percent: f64,
    /// Share of an instance's concurrency that is aimed at; 0.7.
    pub target_utilization: f64,
    /// Most instances after a decision, over those before.
    pub scale_up_rate_max: f64,
    /// Most instances before a decision, over those after.
    pub scale_down_rate_max: f64,
    /// How long the last instance stays when none is wanted, in nanoseconds.
    pub scale_to_zero_grace_ns: u64,
    /// For how long a lower number must be wanted until it is taken, in nanoseconds; 0 takes it at once.
    pub scale_down_delay_ns: u64,
}

impl Default for AutoscalerConfig {
    fn default() -> AutoscalerConfig {
        AutoscalerConfig {
            period_ns: 2_000_000_000,
            stable_window_ns: 60_000_000_000,
            panic_window_percent: 10.0,
            panic_threshold_percent: 200.0,
            target_utilization: 0.7,
            scale_up_rate_max: 1000.0,
            scale_down_rate_max: 2.0,
            scale_to_zero_grace_ns: 30_000_000_000,
            scale_down_delay_ns: 0,
        }
    }
}

/// What an autoscaler is told of a function when it decides.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Load {
    /// Average concurrency over the stable window.
    pub stable: f64,
    /// Average concurrency over the panic window.
    pub panic: f64,
    /// Instances that are ready.
    pub ready: u32,
    /// Calls that one instance takes at once.
    pub concurrency_per_instance: u32,
}

/// The autoscaler of one function.
#[derive(Debug, Clone, Default)]
pub struct Autoscaler {
    panic_since: Option<Time>,
    panic_instances: u32,
    /// Decisions within the delay that are larger than every later one, oldest first.
    delayed: VecDeque<(Time, u32)>,
    /// Since when none is wanted.
    zero_since: Option<Time>,
}

impl Autoscaler {
    /// An autoscaler of a function that has instances already: it begins in panic, so that it does not go below them
    /// before it has seen a window of traffic.
    pub fn adopt(&mut self, now: Time, instances: u32) {
        if instances > 1 {
            self.panic_since = Some(now);
            self.panic_instances = self.panic_instances.max(instances);
        }
    }

    /// Whether it is in panic.
    pub fn panics(&self) -> bool {
        self.panic_since.is_some()
    }

    /// How many instances there should be. Bounds that the function asks for are the caller's to apply.
    pub fn decide(&mut self, now: Time, config: &AutoscalerConfig, load: Load) -> u32 {
        let target = (f64::from(load.concurrency_per_instance) * config.target_utilization).max(TARGET_MIN);
        let ready = f64::from(load.ready.max(1));
        let up = (config.scale_up_rate_max * ready).ceil();
        let down = (f64::from(load.ready) / config.scale_down_rate_max.max(1.0)).floor();
        let wanted_stable = (load.stable / target).ceil();
        let wanted_panic = (load.panic / target).ceil();
        // Rates bound every decision except the last step to none, which the grace bounds.
        let bounded = |wanted: f64| wanted.max(down).min(up) as u32;

        if wanted_panic / ready >= config.panic_threshold_percent / 100.0 {
            self.panic_since = Some(now);
        } else if self
            .panic_since
            .is_some_and(|since| now.0 - since.0 > config.stable_window_ns)
        {
            self.panic_since = None;
            self.panic_instances = 0;
        }
        let mut wanted = bounded(wanted_stable);
        if self.panic_since.is_some() {
            self.panic_instances = self.panic_instances.max(wanted).max(bounded(wanted_panic));
            wanted = self.panic_instances;
        }
        let wanted = self.delay(now, config, wanted);
        self.grace(now, config, wanted, load.ready)
    }

    /// The largest decision of the delay's time.
    fn delay(&mut self, now: Time, config: &AutoscalerConfig, wanted: u32) -> u32 {
        if config.scale_down_delay_ns == 0 {
            return wanted;
        }
        while self.delayed.back().is_some_and(|last| last.1 <= wanted) {
            self.delayed.pop_back();
        }
        self.delayed.push_back((now, wanted));
        while self.delayed.len() > DELAYED_MAX
            || self
                .delayed
                .front()
                .is_some_and(|first| now.0 - first.0.0 >= config.scale_down_delay_ns)
        {
            self.delayed.pop_front();
        }
        self.delayed.front().map_or(wanted, |first| first.1.max(wanted))
    }

    /// Keeps the last instance for a while.
    fn grace(&mut self, now: Time, config: &AutoscalerConfig, wanted: u32, ready: u32) -> u32 {
        if wanted > 0 || ready == 0 {
            self.zero_since = None;
            return wanted;
        }
        let since = *self.zero_since.get_or_insert(now);
        if now.0 - since.0 >= config.scale_to_zero_grace_ns {
            0
        } else {
            1
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: u64 = 1_000_000_000;

    fn config() -> AutoscalerConfig {
        AutoscalerConfig {
            target_utilization: 1.0,
            scale_up_rate_max: 10.0,
            ..AutoscalerConfig::default()
        }
    }

    fn load(stable: f64, panic: f64, ready: u32, concurrency: u32) -> Load {
        Load {
            stable,
            panic,
            ready,
            concurrency_per_instance: concurrency,
        }
    }

    fn check(config: AutoscalerConfig, stable: f64, panic: f64, ready: u32, concurrency: u32, wanted: u32) {
        let mut scaler = Autoscaler::default();
        let got = scaler.decide(
            Time(100 * SECOND),
            &config,
            load(stable, panic, ready, concurrency),
        );
        assert_eq!(
            got, wanted,
            "stable {stable}, panic {panic}, ready {ready}, concurrency {concurrency}"
        );
    }

    /// The cases of Knative's own tests and documentation (`autoscaler_test.go`: stable, rate limits, panic).
    #[test]
    fn decides_as_knative_documents() {
        // The documentation's example: a target of 10 with a load of 50 gives 5.
        check(config(), 50.0, 50.0, 5, 10, 5);
        check(config(), 50.0, 100.0, 10, 10, 5);
        check(config(), 50.0, 0.0, 5, 10, 5);
        // Up by the rate: 10 instances for 1 at most, though 1000 are wanted.
        check(config(), 10_000.0, 10_000.0, 1, 10, 10);
        // Growing by one at least, though the rate is near one.
        let slow = AutoscalerConfig {
            scale_up_rate_max: 1.1,
            ..config()
        };
        check(slow, 3.0, 3.0, 2, 1, 3);
        // Down by the rate: to a half.
        check(config(), 1.0, 1.0, 100, 10, 50);
        let fast = AutoscalerConfig {
            scale_down_rate_max: 10.0,
            ..config()
        };
        check(fast, 1.0, 1.0, 100, 10, 10);
        // Utilization: 10 calls at once, one each, want 15 at 70%.
        check(AutoscalerConfig::default(), 10.0, 10.0, 10, 1, 15);
        // Panic looks at the short window.
        check(config(), 10.0, 100.0, 1, 10, 10);
    }

    #[test]
    fn panic_lasts_a_stable_window_and_does_not_go_down() {
        let config = AutoscalerConfig {
            scale_up_rate_max: 1000.0,
            ..config()
        };
        let mut scaler = Autoscaler::default();
        assert_eq!(scaler.decide(Time(0), &config, load(20.0, 100.0, 1, 1)), 100);
        assert!(scaler.panics());
        assert_eq!(
            scaler.decide(Time(2 * SECOND), &config, load(25.0, 10.0, 100, 1)),
            100
        );
        assert_eq!(
            scaler.decide(Time(60 * SECOND), &config, load(25.0, 10.0, 100, 1)),
            100
        );
        assert_eq!(
            scaler.decide(Time(61 * SECOND), &config, load(25.0, 10.0, 100, 1)),
            50
        );
        assert!(!scaler.panics());
    }

    #[test]
    fn the_last_instance_stays_for_the_grace() {
        let config = config();
        let mut scaler = Autoscaler::default();
        assert_eq!(scaler.decide(Time(0), &config, load(0.0, 0.0, 1, 1)), 1);
        assert_eq!(scaler.decide(Time(29 * SECOND), &config, load(0.0, 0.0, 1, 1)), 1);
        assert_eq!(scaler.decide(Time(30 * SECOND), &config, load(0.0, 0.0, 1, 1)), 0);
        // Traffic begins it anew.
        assert_eq!(scaler.decide(Time(31 * SECOND), &config, load(0.5, 0.5, 1, 1)), 1);
        assert_eq!(scaler.decide(Time(32 * SECOND), &config, load(0.0, 0.0, 1, 1)), 1);
    }

    #[test]
    fn a_scale_down_waits_for_its_delay() {
        let config = AutoscalerConfig {
            scale_down_delay_ns: 10 * SECOND,
            ..config()
        };
        let mut scaler = Autoscaler::default();
        assert_eq!(scaler.decide(Time(0), &config, load(8.0, 8.0, 8, 1)), 8);
        assert_eq!(scaler.decide(Time(8 * SECOND), &config, load(4.0, 4.0, 8, 1)), 8);
        assert_eq!(scaler.decide(Time(12 * SECOND), &config, load(5.0, 5.0, 8, 1)), 5);
    }

    #[test]
    fn instances_that_were_there_before_are_kept_for_a_window() {
        let config = config();
        let mut scaler = Autoscaler::default();
        scaler.adopt(Time(0), 9);
        assert_eq!(scaler.decide(Time(2 * SECOND), &config, load(1.0, 1.0, 9, 1)), 9);
        assert!(scaler.decide(Time(62 * SECOND), &config, load(1.0, 1.0, 9, 1)) < 9);
    }

    proptest! {
        #[test]
        fn decisions_lie_between_the_rates(
            loads in prop::collection::vec((0.0f64..500.0, 0.0f64..500.0), 1..60),
            concurrency in 1u32..100,
        ) {
            let config = AutoscalerConfig { scale_up_rate_max: 3.0, ..AutoscalerConfig::default() };
            let mut scaler = Autoscaler::default();
            let mut ready = 0;
            for (step, (stable, panic)) in (0u64..).zip(loads) {
                let now = Time(step * config.period_ns);
                let wanted = scaler.decide(now, &config, load(stable, panic, ready, concurrency));
                prop_assert!(wanted <= ready.max(1) * 3, "{ready} to {wanted}");
                prop_assert!(wanted >= ready / 2, "{ready} to {wanted}");
                prop_assert!(!scaler.panics() || wanted >= ready, "down in panic: {ready} to {wanted}");
                ready = wanted;
            }
        }
    }
}
