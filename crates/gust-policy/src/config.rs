//! How a fleet behaves.

use crate::{AutoscalerConfig, CostModel, Mode, RegionConfig};
use serde::{Deserialize, Serialize};

/// Configuration of a fleet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FleetConfig {
    /// How instances are made.
    pub mode: Mode,
    /// The autoscaler; `Sync` has none.
    pub autoscaler: AutoscalerConfig,
    /// What instances cost.
    pub cost: CostModel,
    /// Calls of one function that may wait.
    pub queue_max: u32,
    /// Calls that may wait altogether.
    pub waiting_max: u32,
    /// Calls that may be there at once, reserved ones too; `None` for no bound.
    pub concurrency_max: Option<u32>,
    /// How long `Sync` keeps an idle instance, in nanoseconds.
    pub keep_alive_ns: u64,
    /// What idle instances become, where that is not left to the cost model.
    pub rest: RestConfig,
    /// How long calls wait while there is no node at all, in nanoseconds.
    pub node_wait_ns: u64,
    /// For how long an instance is safe, after its last call, from functions that use more than its own, in nanoseconds.
    pub eviction_guard_ns: u64,
    /// Tasks for each processor of a node from which on it is saturated: it takes new instances only for functions that
    /// have none. 0 for no such bound.
    pub runnable_per_cpu: u32,
    /// Nodes that are drawn for a new instance.
    pub placement_choices: u32,
    /// What leaves its home region.
    pub regions: RegionConfig,
    /// Name of the first instance. A fleet that follows another must begin above all of that one's names.
    pub instances_from: u64,
}

/// Fixed times in place of those that the cost model has over a function's gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RestConfig {
    /// How long an emergency instance stays idle, in nanoseconds.
    pub idle_ns: Option<u64>,
    /// How long an instance that has ended waits as an armed one, in nanoseconds; 0 for not at all.
    pub armed_ns: Option<u64>,
}

impl Default for FleetConfig {
    fn default() -> FleetConfig {
        FleetConfig {
            mode: Mode::Dual,
            autoscaler: AutoscalerConfig::default(),
            cost: CostModel::default(),
            queue_max: 10_000,
            waiting_max: 200_000,
            concurrency_max: None,
            keep_alive_ns: 600_000_000_000,
            rest: RestConfig::default(),
            node_wait_ns: 2_000_000_000,
            eviction_guard_ns: 2_000_000_000,
            runnable_per_cpu: 4,
            placement_choices: 2,
            regions: RegionConfig::default(),
            instances_from: 1,
        }
    }
}

/// What cannot be in a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("fleet configuration: {field} must be {must}")]
pub struct ConfigError {
    /// The field.
    pub field: &'static str,
    /// What it must be.
    pub must: &'static str,
}

impl FleetConfig {
    /// Defaults in a mode.
    pub fn new(mode: Mode) -> FleetConfig {
        FleetConfig {
            mode,
            ..FleetConfig::default()
        }
    }

    /// Says what makes no sense.
    ///
    /// # Errors
    /// The first field that is out of its bounds.
    pub fn check(&self) -> Result<(), ConfigError> {
        let scaler = &self.autoscaler;
        let positive = |value: f64| value.is_finite() && value > 0.0;
        let ways = &self.regions.round_trip_ns;
        let checks = [
            ("autoscaler.period_ns", "above 0", scaler.period_ns > 0),
            (
                "autoscaler.stable_window_ns",
                "a second or more",
                scaler.stable_window_ns >= 1_000_000_000,
            ),
            (
                "autoscaler.panic_window_percent",
                "above 0 and at most 100",
                positive(scaler.panic_window_percent) && scaler.panic_window_percent <= 100.0,
            ),
            (
                "autoscaler.panic_threshold_percent",
                "above 100",
                positive(scaler.panic_threshold_percent) && scaler.panic_threshold_percent > 100.0,
            ),
            (
                "autoscaler.target_utilization",
                "above 0 and at most 1",
                positive(scaler.target_utilization) && scaler.target_utilization <= 1.0,
            ),
            (
                "autoscaler.scale_up_rate_max",
                "above 1",
                positive(scaler.scale_up_rate_max) && scaler.scale_up_rate_max > 1.0,
            ),
            (
                "autoscaler.scale_down_rate_max",
                "above 1",
                positive(scaler.scale_down_rate_max) && scaler.scale_down_rate_max > 1.0,
            ),
            ("cost.memory_price", "above 0", positive(self.cost.memory_price)),
            (
                "cost.delay_price",
                "0 or more",
                self.cost.delay_price.is_finite() && self.cost.delay_price >= 0.0,
            ),
            ("cost.idle_bytes", "above 0", self.cost.idle_bytes > 0),
            ("cost.restore_cpu_ns", "above 0", self.cost.restore_cpu_ns > 0),
            (
                "placement_choices",
                "1 to 16",
                (1..=16).contains(&self.placement_choices),
            ),
            (
                "regions.round_trip_ns",
                "a square table",
                ways.iter().all(|row| row.len() == ways.len()),
            ),
        ];
        match checks.into_iter().find(|check| !check.2) {
            None => Ok(()),
            Some((field, must, _)) => Err(ConfigError { field, must }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_make_sense_and_nonsense_is_named() {
        for mode in [Mode::Dual, Mode::Sync, Mode::Async, Mode::Dirigent] {
            assert_eq!(FleetConfig::new(mode).check(), Ok(()));
        }
        let mut config = FleetConfig::default();
        config.autoscaler.target_utilization = f64::NAN;
        let error = config.check().unwrap_err();
        assert_eq!(
            error.to_string(),
            "fleet configuration: autoscaler.target_utilization must be above 0 and at most 1"
        );
        let mut config = FleetConfig::default();
        config.regions.round_trip_ns = vec![vec![0, 1]];
        assert_eq!(config.check().unwrap_err().field, "regions.round_trip_ns");
    }
}
