//! What things take in a simulation: delays, processor time and memory.
//!
//! Delays have distributions; each is drawn anew. Work is processor time: how long it lasts depends on what else the node's
//! processors do. `gust calibrate` measures all of it on a machine and writes it as JSON.

use gust_policy::CostModel;
use rand_distr::{Distribution as _, LogNormal, Uniform};
use rand_pcg::Pcg64Mcg;
use serde::{Deserialize, Serialize};

const SECOND_NS: f64 = 1e9;

/// Longest delay that is drawn, in nanoseconds: a day.
const DELAY_MAX_NS: f64 = 86_400e9;

/// Most quantiles of an empirical distribution.
pub const QUANTILES_MAX: usize = 10_001;

/// A distribution of delays.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Delay {
    /// Always the same, in nanoseconds.
    Constant(u64),
    /// Between two bounds, in nanoseconds, both included.
    Uniform(u64, u64),
    /// The logarithm of its seconds is normal.
    LogNormal {
        /// Mean of the logarithm.
        mu: f64,
        /// Standard deviation of the logarithm, 0 or more.
        sigma: f64,
    },
    /// Evenly spaced quantiles from the least to the most, in nanoseconds, in order; between them lies a line.
    Quantiles(Vec<u64>),
}

/// Why costs cannot be used.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum CostsError {
    /// A distribution is none.
    #[error("{name} is no distribution of delays: {reason}")]
    Delay {
        /// Which.
        name: &'static str,
        /// Why not.
        reason: &'static str,
    },
}

/// What things take on nodes of one region.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SimCosts {
    /// From a call's arrival to its decision, and the way to the instance and back: what no processor is busy with.
    pub way: Delay,
    /// Processor time of a call around its handler: gateway, control plane, node, runtime, in nanoseconds.
    pub call_cpu_ns: u64,
    /// Delay of a restore that no processor is busy with.
    pub restore: Delay,
    /// Processor time of a restore into a prepared worker, before the handler begins, in nanoseconds.
    pub restore_cpu_ns: u64,
    /// Processor time to prepare a worker, in nanoseconds; in the background while there are prepared ones.
    pub prepare_cpu_ns: u64,
    /// Processor time to end an instance, in nanoseconds; in the background.
    pub end_cpu_ns: u64,
    /// Prepared workers of a node.
    pub prepared: u32,
    /// What the cluster manager takes before a node is asked for a regular instance.
    pub manager: Delay,
    /// Delay of making a regular instance that no processor is busy with.
    pub create: Delay,
    /// Processor time of making a regular instance, in nanoseconds.
    pub create_cpu_ns: u64,
    /// Memory of an instance beside what its function uses, in bytes.
    pub instance_bytes: u64,
    /// Memory of a prepared worker, in bytes.
    pub prepared_bytes: u64,
}

impl Default for SimCosts {
    /// As measured on two processors of a Xeon (`docs/bench.md`, `gust bench sandbox --part clients`).
    fn default() -> Self {
        Self {
            way: Delay::Constant(200_000),
            call_cpu_ns: 450_000,
            restore: Delay::Constant(200_000),
            restore_cpu_ns: 1_200_000,
            prepare_cpu_ns: 10_000_000,
            end_cpu_ns: 1_500_000,
            prepared: 4,
            manager: Delay::Constant(0),
            create: Delay::Constant(0),
            create_cpu_ns: 14_000_000,
            instance_bytes: 15_204_352,
            prepared_bytes: 2_621_440,
        }
    }
}

impl SimCosts {
    /// What policies reckon with on such nodes: the life of an instance of either track, and its memory. Prices and what is
    /// not in here are the built-in ones.
    pub fn cost_model(&self) -> CostModel {
        CostModel {
            restore_cpu_ns: self.restore_cpu_ns + self.prepare_cpu_ns + self.end_cpu_ns,
            create_cpu_ns: self.create_cpu_ns + self.end_cpu_ns,
            idle_bytes: self.instance_bytes,
            ..CostModel::default()
        }
    }

    /// Checks every distribution.
    ///
    /// # Errors
    /// Which one cannot be drawn from, and why.
    pub fn check(&self) -> Result<(), CostsError> {
        for (name, delay) in [
            ("way", &self.way),
            ("restore", &self.restore),
            ("manager", &self.manager),
            ("create", &self.create),
        ] {
            delay
                .check()
                .map_err(|reason| CostsError::Delay { name, reason })?;
        }
        Ok(())
    }
}

impl Delay {
    fn check(&self) -> Result<(), &'static str> {
        match self {
            Self::Constant(_) => Ok(()),
            Self::Uniform(low, high) if low > high => Err("its bounds are the wrong way round"),
            Self::Uniform(..) => Ok(()),
            Self::LogNormal { mu, sigma } if !mu.is_finite() || !sigma.is_finite() || *sigma < 0.0 => {
                Err("its parameters are out of range")
            }
            Self::LogNormal { .. } => Ok(()),
            Self::Quantiles(quantiles) if quantiles.is_empty() => Err("it has no quantiles"),
            Self::Quantiles(quantiles) if quantiles.len() > QUANTILES_MAX => Err("it has too many quantiles"),
            Self::Quantiles(quantiles) if !quantiles.is_sorted() => Err("its quantiles are not in order"),
            Self::Quantiles(_) => Ok(()),
        }
    }

    /// Evenly spaced quantiles of samples; a constant 0 of none.
    pub fn of_samples(mut samples: Vec<u64>) -> Self {
        const KEPT: usize = 101;
        samples.sort_unstable();
        match samples.len() {
            0 => Self::Constant(0),
            count if count <= KEPT => Self::Quantiles(samples),
            count => Self::Quantiles((0..KEPT).map(|n| samples[n * (count - 1) / (KEPT - 1)]).collect()),
        }
    }

    /// A delay, in nanoseconds. The distribution has been checked.
    pub(super) fn draw(&self, random: &mut Pcg64Mcg) -> u64 {
        match self {
            Self::Constant(ns) => *ns,
            Self::Uniform(low, high) => {
                Uniform::new_inclusive(*low, *high).map_or(*low, |uniform| uniform.sample(random))
            }
            Self::LogNormal { mu, sigma } => {
                let seconds = LogNormal::new(*mu, *sigma).map_or(0.0, |normal| normal.sample(random));
                (seconds * SECOND_NS).min(DELAY_MAX_NS) as u64
            }
            Self::Quantiles(quantiles) => {
                let at = unit(random) * (quantiles.len() - 1) as f64;
                let (below, part) = (at as usize, at.fract());
                let low = quantiles[below] as f64;
                let high = quantiles[(below + 1).min(quantiles.len() - 1)] as f64;
                (low + (high - low) * part) as u64
            }
        }
    }
}

/// A number from 0 (included) to 1 (excluded).
fn unit(random: &mut Pcg64Mcg) -> f64 {
    Uniform::new(0.0, 1.0).map_or(0.0, |uniform| uniform.sample(random))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_follow_their_distribution() {
        let mut random = Pcg64Mcg::new(1);
        let mut mean = |delay: &Delay| {
            let sum: u64 = (0..20_000).map(|_| delay.draw(&mut random)).sum();
            sum as f64 / 20_000.0
        };
        assert_eq!(mean(&Delay::Constant(7)), 7.0);
        assert!((mean(&Delay::Uniform(100, 300)) - 200.0).abs() < 2.0);
        assert!((mean(&Delay::Quantiles(vec![0, 100, 1000])) - 300.0).abs() < 6.0);
        // The mean of a log-normal distribution is exp(mu + sigma^2 / 2).
        let expected = (0.125_f64 - 3.0).exp() * SECOND_NS;
        let found = mean(&Delay::LogNormal { mu: -3.0, sigma: 0.5 });
        assert!((found / expected - 1.0).abs() < 0.02, "{found} {expected}");
    }

    #[test]
    fn policies_reckon_with_what_the_built_in_costs_are() {
        assert_eq!(SimCosts::default().cost_model(), CostModel::default());
    }

    #[test]
    fn what_cannot_be_drawn_from_is_refused() {
        for delay in [
            Delay::Uniform(2, 1),
            Delay::LogNormal { mu: 0.0, sigma: -1.0 },
            Delay::LogNormal {
                mu: f64::NAN,
                sigma: 1.0,
            },
            Delay::Quantiles(vec![]),
            Delay::Quantiles(vec![2, 1]),
        ] {
            let costs = SimCosts {
                manager: delay,
                ..SimCosts::default()
            };
            assert!(matches!(
                costs.check(),
                Err(CostsError::Delay { name: "manager", .. })
            ));
        }
        assert_eq!(SimCosts::default().check(), Ok(()));
        assert_eq!(Delay::of_samples(vec![3, 1, 2]), Delay::Quantiles(vec![1, 2, 3]));
    }
}
