//! The control plane's policies: where a call runs, which instances there are, and when they go.
//!
//! Everything here is a plain object, `(observations, time) -> decisions`, without a clock, without I/O and without
//! randomness of its own. The live control plane, tests and the simulator run the same ones: they tell a fleet what has
//! happened and when, and carry out what it decides.

mod types;

pub use types::*;
