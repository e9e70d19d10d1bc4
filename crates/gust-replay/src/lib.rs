//! Traces of functions in production: read, made, replayed against a live Gust, simulated, and reported.
//!
//! A trace becomes a [`Workload`]: functions, and arrivals in order of time. A replay and a simulation of it both make
//! [`Record`]s, one for each invocation, and [`Sample`]s of what was used meanwhile; reports are made from these alone, so a
//! live run and a simulated one are compared on equal terms.

pub mod arrivals;
pub mod chaos;
pub mod random;
mod record;
pub mod report;
mod run;
pub mod sim;
pub mod synthetic;
pub mod trace;
mod workload;

pub use record::{Components, Ending, Record, Sample, Start};
pub use run::{Origin, Run, RunError};
pub use workload::{Arrival, Function, Workload};
