//! Discrete-event simulation of a cluster that runs a workload under the policies of the live control plane.
//!
//! ```text
//!  workload ──> arrivals ──> policy (gust_policy) ──> decisions ──> nodes: delays, shared processors, memory
//!                               └────────── what came of them, and when ──────────┘
//! ```
//!
//! What a policy is told and decides is what the live control plane tells it and carries out; only the nodes are models: a
//! restore, a creation, a handler are delays and work on processors that share their time ([`SimCosts`]). Nothing
//! is left to chance but what is drawn from distributions, by one generator in the order of events, so one seed gives
//! the same records bit for bit.
//!
//! Not modelled: that a node lets armed and frozen instances go when it needs their memory for others, the host's caches, the order in which a kernel runs tasks, networks but for their delay.

mod ahead;
mod costs;
mod engine;
mod processors;
#[cfg(test)]
mod tests;

use gust_policy::{ConfigError, Decision, Fleet, FleetConfig, NodeSpec, Observation, Time};
use serde::{Deserialize, Serialize};

pub use ahead::{Ahead, CallAhead};
pub use costs::{CostsError, Delay, QUANTILES_MAX, SimCosts};

use crate::{Record, Sample, Workload};

/// What decides: the policies of the control plane.
pub trait Policy {
    /// Is told what has happened, and appends what is to be done.
    fn observe(&mut self, now: Time, observation: Observation, decisions: &mut Vec<Decision>);
    /// Is told that the time that it asked for has come.
    fn tick(&mut self, now: Time, decisions: &mut Vec<Decision>);
    /// When it wants to be told the time; `None` while nothing depends on it.
    fn next_tick(&self) -> Option<Time>;
}

/// A node of the simulated cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SimNode {
    /// What the policy is told of it. Its region says which [`SimCosts`] it has.
    pub spec: NodeSpec,
    /// Processors; 1 or more.
    pub processors: u32,
}

/// A function as the policy is told of it, beside what the workload says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SimFunctions {
    /// Calls that an instance takes at once.
    pub concurrency_per_instance: u32,
    /// Longest wait for an instance, in nanoseconds.
    pub queue_timeout_ns: u64,
}

impl Default for SimFunctions {
    fn default() -> Self {
        Self {
            concurrency_per_instance: 1,
            queue_timeout_ns: 60_000_000_000,
        }
    }
}

/// What is simulated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SimConfig {
    /// The cluster.
    pub nodes: Vec<SimNode>,
    /// What things take, by region; the last counts for regions beyond it. One at least.
    pub costs: Vec<SimCosts>,
    /// How functions are told of.
    pub functions: SimFunctions,
    /// Home of each function, by index; region 0 beyond its end.
    pub homes: Vec<u16>,
    /// Delay that a call has more on a node outside its function's home, to and fro together, in nanoseconds.
    pub between_regions_ns: u64,
    /// Seed of what is drawn.
    pub seed: u64,
    /// Time between samples, in nanoseconds.
    pub sample_every_ns: u64,
    /// Calls before the run.
    #[serde(default)]
    pub ahead: Ahead,
}

/// What came of a simulation.
#[derive(Debug, Clone, PartialEq)]
pub struct SimResult {
    /// One for each arrival, in order of arrival.
    pub records: Vec<Record>,
    /// What was used meanwhile.
    pub samples: Vec<Sample>,
    /// Events that were simulated.
    pub events: u64,
}

/// Why nothing is simulated.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum SimError {
    /// There is nothing to run on.
    #[error("a simulation needs a node, and costs for it")]
    Nothing,
    /// Arrivals that are out of order, or of functions that are not there.
    #[error("arrival {index} of the workload, after the calls before it, is out of order or of no function")]
    Arrival {
        /// Which, from 0.
        index: usize,
    },
    /// Calls before the run that are not.
    #[error("call {index} of those before the run, or the end of its instances, comes after its beginning")]
    Ahead {
        /// Which, from 0.
        index: usize,
    },
    /// Costs that cannot be used.
    #[error(transparent)]
    Costs(#[from] CostsError),
    /// A fleet that makes no sense.
    #[error(transparent)]
    Fleet(#[from] ConfigError),
    /// The policy did something that no cluster can do: a defect of it.
    #[error("the policy {0}")]
    Policy(&'static str),
}

/// Runs a workload to the end of its last call.
///
/// # Errors
/// See [`SimError`].
pub fn run(workload: &Workload, config: &SimConfig, policy: &mut impl Policy) -> Result<SimResult, SimError> {
    if config.nodes.is_empty() || config.costs.is_empty() {
        return Err(SimError::Nothing);
    }
    config.costs.iter().try_for_each(SimCosts::check)?;
    let arrivals = config.ahead.arrivals(workload)?;
    let mut last = 0;
    for (index, arrival) in arrivals.iter().enumerate() {
        if arrival.at_ns < last || arrival.function as usize >= workload.functions.len() {
            return Err(SimError::Arrival { index });
        }
        last = arrival.at_ns;
    }
    engine::Engine::new(workload, config, policy).run(&arrivals)
}

impl Policy for Fleet {
    fn observe(&mut self, now: Time, observation: Observation, decisions: &mut Vec<Decision>) {
        Fleet::observe(self, now, observation, decisions);
    }

    fn tick(&mut self, now: Time, decisions: &mut Vec<Decision>) {
        Fleet::tick(self, now, decisions);
    }

    fn next_tick(&self) -> Option<Time> {
        Fleet::next_tick(self)
    }
}

/// Runs a workload to the end of its last call under the policies of the live control plane.
///
/// # Errors
/// See [`SimError`].
pub fn simulate(workload: &Workload, config: &SimConfig, fleet: FleetConfig) -> Result<SimResult, SimError> {
    fleet.check()?;
    run(workload, config, &mut Fleet::new(fleet))
}
