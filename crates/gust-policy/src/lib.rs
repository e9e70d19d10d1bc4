//! The control plane's policies: where a call runs, which instances there are, and when they go.
//!
//! Everything here is a plain object, `(observations, time) -> decisions`, without a clock, without I/O and without
//! randomness of its own. The live control plane, tests and the simulator run the same ones: they tell a fleet what has
//! happened and when, and carry out what it decides.
//!
//! [`Fleet`] holds the others together: [`Autoscaler`] over [`Window`]s, [`Demand`] (the metric filter), [`CostModel`],
//! [`Gaps`] (keep-alive), [`Eviction`], [`Regions`], and inside it admission, fairness, placement and the pressure on nodes. Each is described, with its
//! source, in its own module.

#![forbid(unsafe_code)]

mod admission;
mod autoscaler;
mod config;
mod cost;
mod demand;
mod eviction;
mod fairness;
mod fleet;
mod keep_alive;
mod placement;
mod regions;
mod slab;
mod types;
mod window;

pub use autoscaler::{Autoscaler, AutoscalerConfig, Load};
pub use config::{ConfigError, FleetConfig, RestConfig};
pub use cost::{CostModel, Rest};
pub use demand::{Demand, Prices};
pub use eviction::{Eviction, Priority};
pub use fleet::{Counts, Fleet, FunctionCounts, NodeCounts};
pub use keep_alive::{Gaps, RestPlan};
pub use regions::{Order, RegionConfig, Regions, Uses};
pub use types::*;
pub use window::Window;
