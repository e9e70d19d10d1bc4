//! Traces, replays, simulations and their reports: `gust trace`, `gust replay`, `gust simulate`, `gust report`,
//! `gust validate-sim`, `gust calibrate`, `gust chaos`.
//!
//! A trace becomes a workload ([`workload`]); a replay makes functions for it on a server ([`target`]), calls them when the
//! workload says ([`driver`]) and looks at the server meanwhile ([`sampler`]). What came of it is a run, which is kept, and from which
//! reports are made.

mod calibrate;
mod chaos;
mod driver;
mod live;
mod report;
mod sampler;
mod simulate;
mod target;
mod trace;
mod validate;
mod workload;

pub use calibrate::{CalibrateArgs, run as calibrate};
pub use chaos::{ChaosArgs, run as chaos};
pub use live::{ReplayArgs, run as replay};
pub use report::{ReportArgs, run as report};
pub use simulate::{SimulateArgs, read_json, run as simulate};
pub use trace::{TraceArgs, run as trace};
pub use validate::{ValidateArgs, run as validate};
