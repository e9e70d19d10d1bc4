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
    /// A relation is out of range.
    #[error("{name} of {permille} is not between {least} and 10,000 thousandths")]
    Permille {
        /// Which.
        name: &'static str,
        /// What it is.
        permille: u32,
        /// What it can be at least.
        least: u32,
    },
}

/// What things take on nodes of one region. Processor time is in nanoseconds, memory in bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SimCosts {
    /// From a call's arrival to its decision, and the way to the instance and back: what no processor is busy with.
    pub way: Delay,
    /// Processor time of a call around its handler that its caller waits for: gateway, control plane, node, runtime.
    pub call_cpu_ns: u64,
    /// Processor time of a call when its answer is out: logs, accounts, its instance's way to rest.
    pub after_cpu_ns: u64,
    /// Processor time of a handler's work while a processor is idle, as thousandths of what the work takes at its quickest, which is
    /// how long it is asked to take.
    pub work_permille: u32,
    /// Time that any work takes while all processors of a node are busy, as thousandths of what it takes while one is idle.
    pub busy_permille: u32,
    /// Processor time of whoever makes a call, where that is done on the nodes' own processors; 0 where it is not.
    pub caller_cpu_ns: u64,
    /// What touching a MiB of memory takes that an instance has not touched before, beside the time that a handler is asked to
    /// take.
    pub touch: Delay,
    /// The same where that memory has to come from the machine beneath, which takes back what is free.
    pub touch_returned: Delay,
    /// For how long memory is free, at least, when that has happened, in nanoseconds. A node that has used none yet has it all
    /// to get.
    pub returned_after_ns: u64,
    /// Delay of a restore that no processor is busy with.
    pub restore: Delay,
    /// Processor time of a restore into a prepared worker, before the handler begins.
    pub restore_cpu_ns: u64,
    /// Processor time of a restore while no worker is prepared, with the worker that is made for it.
    pub unprepared_cpu_ns: u64,
    /// Processor time to prepare a worker; in the background while there are prepared ones.
    pub prepare_cpu_ns: u64,
    /// Processor time to end an instance; in the background.
    pub end_cpu_ns: u64,
    /// Processor time of a call that begins in an armed instance, beyond a call of one that has run before.
    pub armed_cpu_ns: u64,
    /// Processor time of an instance that has run to go back to its snapshot, armed; in the background.
    pub rearm_cpu_ns: u64,
    /// The same for each MiB that its function uses.
    pub rearm_mib_cpu_ns: u64,
    /// Most memory that an instance may have used to go back; one that has used more ends.
    pub rearm_bytes_max: u64,
    /// Armed instances of one function that a node keeps.
    pub armed_max: u32,
    /// Prepared workers of a node.
    pub prepared: u32,
    /// What the cluster manager takes before a node is asked for a regular instance.
    pub manager: Delay,
    /// Delay of making a regular instance that no processor is busy with.
    pub create: Delay,
    /// Processor time of making a regular instance of which none is armed: preparing a worker, and restoring into it.
    pub create_cpu_ns: u64,
    /// Memory of an instance beside what its function uses.
    pub instance_bytes: u64,
    /// Memory that an instance has more which was restored while no worker was prepared.
    pub unprepared_bytes: u64,
    /// Memory of an instance that was made ahead, as a regular one, beside what its function uses.
    pub created_bytes: u64,
    /// Memory of a function's snapshot that such instances hold together on a node: there while one of them is.
    pub created_shared_bytes: u64,
    /// Memory of an armed instance.
    pub armed_bytes: u64,
    /// Memory that instances of one function share on a node: there while one of them is.
    pub shared_bytes: u64,
    /// Memory of a prepared worker.
    pub prepared_bytes: u64,
    /// How long an instance is idle until its node freezes it, in nanoseconds; 0 for never.
    pub freeze_after_ns: u64,
    /// Processor time to freeze an idle instance and to thaw it again, with the worker that it takes.
    pub thaw_cpu_ns: u64,
    /// Memory of a frozen instance beside what it keeps of its function's.
    pub frozen_bytes: u64,
    /// What it keeps of its function's memory, compressed, as thousandths of that.
    pub frozen_permille: u32,
    /// Most memory that a frozen instance may take; one that would take more stays as it is.
    pub frozen_bytes_max: u64,
}

impl Default for SimCosts {
    /// As measured on two processors of a Xeon (`gust calibrate`). There is no caller and no cluster manager, and nothing for touching
    /// memory: the durations of traces have that.
    fn default() -> Self {
        Self {
            way: Delay::Constant(0),
            call_cpu_ns: 300_000,
            after_cpu_ns: 130_000,
            work_permille: 1000,
            busy_permille: 1000,
            caller_cpu_ns: 0,
            touch: Delay::Constant(0),
            touch_returned: Delay::Constant(0),
            returned_after_ns: 2_000_000_000,
            restore: Delay::Constant(0),
            restore_cpu_ns: 1_250_000,
            unprepared_cpu_ns: 31_000_000,
            prepare_cpu_ns: 12_000_000,
            end_cpu_ns: 5_000_000,
            armed_cpu_ns: 730_000,
            rearm_cpu_ns: 1_600_000,
            rearm_mib_cpu_ns: 0,
            rearm_bytes_max: 256 << 20,
            armed_max: 64,
            prepared: 4,
            manager: Delay::Constant(0),
            create: Delay::Constant(0),
            create_cpu_ns: 13_250_000,
            instance_bytes: 2_088_960,
            unprepared_bytes: 13_369_344,
            created_bytes: 2_088_960,
            created_shared_bytes: 25_165_824,
            armed_bytes: 1_884_160,
            shared_bytes: 0,
            prepared_bytes: 12_582_912,
            freeze_after_ns: 30_000_000_000,
            thaw_cpu_ns: 45_000_000,
            frozen_bytes: 65_536,
            // Nobody knows what the memory of a trace's functions holds: this is an assumption, what LZ4 makes of most programs'.
            frozen_permille: 400,
            frozen_bytes_max: 2 << 20,
        }
    }
}

impl SimCosts {
    /// What policies reckon with on such nodes: the life of an instance of either track, what it can be when it is idle, and
    /// its memory. Prices and what is not in here are the built-in ones.
    pub fn cost_model(&self) -> CostModel {
        CostModel {
            restore_cpu_ns: self.restore_cpu_ns + self.prepare_cpu_ns + self.end_cpu_ns,
            create_cpu_ns: self.create_cpu_ns + self.end_cpu_ns,
            arm_cpu_ns: self.restore_cpu_ns + self.prepare_cpu_ns + self.end_cpu_ns,
            rearm_cpu_ns: self.rearm_cpu_ns + self.armed_cpu_ns,
            rearm_mib_cpu_ns: self.rearm_mib_cpu_ns,
            rearm_bytes_max: self.rearm_bytes_max,
            // Gaps that matter are long enough for memory to be gone.
            touch_mib_cpu_ns: self.touch.median().max(self.touch_returned.median()),
            thaw_cpu_ns: self.thaw_cpu_ns,
            restore_armed_ns: self.armed_cpu_ns,
            restore_shaped_ns: self.restore_cpu_ns,
            armed_bytes: self.armed_bytes,
            frozen_bytes: self.frozen_bytes,
            idle_bytes: self.instance_bytes,
            ..CostModel::default()
        }
    }

    /// Processor time to freeze an instance: what a freezing and a thaw take together without what a thaw has in common with a
    /// restore.
    pub(super) fn freeze_cpu_ns(&self) -> u64 {
        let restore_ns = self.restore_cpu_ns.saturating_add(self.prepare_cpu_ns);
        self.thaw_cpu_ns.saturating_sub(restore_ns)
    }

    /// Memory of a frozen instance of a function with so much; `None` where it is too much to be frozen.
    pub(super) fn frozen(&self, memory_mib: u32) -> Option<u64> {
        let kept = (u64::from(memory_mib) << 20).saturating_mul(u64::from(self.frozen_permille)) / 1000;
        Some(self.frozen_bytes.saturating_add(kept)).filter(|bytes| *bytes <= self.frozen_bytes_max)
    }

    /// Checks every distribution and relation.
    ///
    /// # Errors
    /// Which one cannot be drawn from or is out of range, and why.
    pub fn check(&self) -> Result<(), CostsError> {
        for (name, delay) in [
            ("way", &self.way),
            ("touch", &self.touch),
            ("touch_returned", &self.touch_returned),
            ("restore", &self.restore),
            ("manager", &self.manager),
            ("create", &self.create),
        ] {
            delay
                .check()
                .map_err(|reason| CostsError::Delay { name, reason })?;
        }
        for (name, permille, least) in [
            ("work_permille", self.work_permille, 100),
            ("busy_permille", self.busy_permille, 100),
            ("frozen_permille", self.frozen_permille, 0),
        ] {
            if !(least..=10_000).contains(&permille) {
                return Err(CostsError::Permille {
                    name,
                    permille,
                    least,
                });
            }
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

    /// The median, in nanoseconds. The distribution has been checked.
    pub fn median(&self) -> u64 {
        match self {
            Self::Constant(ns) => *ns,
            Self::Uniform(low, high) => low + (high - low) / 2,
            Self::LogNormal { mu, .. } => (mu.exp() * SECOND_NS).min(DELAY_MAX_NS) as u64,
            Self::Quantiles(quantiles) => between(quantiles, 0.5),
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
            Self::Quantiles(quantiles) => between(quantiles, unit(random)),
        }
    }
}

/// The value at a part of the way from the first to the last of evenly spaced quantiles.
fn between(quantiles: &[u64], part: f64) -> u64 {
    let at = part * (quantiles.len() - 1) as f64;
    let (below, part) = (at as usize, at.fract());
    let low = quantiles[below] as f64;
    let high = quantiles[(below + 1).min(quantiles.len() - 1)] as f64;
    (low + (high - low) * part) as u64
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
        // Traces have the time in their durations that it takes to touch memory; a live system has not.
        let costs = SimCosts {
            touch: Delay::Constant(CostModel::default().touch_mib_cpu_ns),
            ..SimCosts::default()
        };
        assert_eq!(costs.cost_model(), CostModel::default());
    }

    #[test]
    fn costs_that_cannot_be_are_refused() {
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
        let costs = SimCosts {
            busy_permille: 0,
            ..SimCosts::default()
        };
        let name = "busy_permille";
        assert_eq!(
            costs.check(),
            Err(CostsError::Permille {
                name,
                permille: 0,
                least: 100
            })
        );
        assert_eq!(SimCosts::default().check(), Ok(()));
        assert_eq!(Delay::of_samples(vec![3, 1, 2]), Delay::Quantiles(vec![1, 2, 3]));
        for (delay, median) in [
            (Delay::Constant(7), 7),
            (Delay::Uniform(2, 6), 4),
            (Delay::LogNormal { mu: 0.0, sigma: 2.0 }, 1_000_000_000),
            (Delay::Quantiles(vec![1, 3, 9]), 3),
        ] {
            assert_eq!(delay.median(), median);
        }
    }
}
