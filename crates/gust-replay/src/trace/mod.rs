//! Traces as they are published, and what is read from them.
//!
//! A [`Trace`] counts the invocations of each function minute by minute and has percentiles of what they take; single invocations
//! are drawn from it ([`crate::arrivals`]). A trace that has the moments themselves (Azure's of 2021) becomes a
//! [`Workload`] at once. Files are read record by record, gzip where the name ends in `.gz`; what is wrong is told with file,
//! line and column. Nothing is guessed: a function without durations or memory is an error.

mod azure2019;
mod azure2021;
mod huawei;
mod quantiles;
mod table;

use std::path::Path;

pub use azure2021::write as write_invocations;
pub use huawei::ColdStart;
pub use quantiles::Quantiles;
pub use table::TraceError;

use crate::Workload;

/// Most functions of a trace.
pub const FUNCTIONS_MAX: usize = 100_000;

/// Most invocations of a workload: some 24 bytes each.
pub const INVOCATIONS_MAX: usize = 30_000_000;

/// Functions with counts a minute.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    /// Functions in the order of the trace.
    pub functions: Vec<TraceFunction>,
    /// Minutes that it covers.
    pub minutes: usize,
}

/// A function of a trace.
#[derive(Debug, Clone, PartialEq)]
pub struct TraceFunction {
    /// Its name (`HashFunction`).
    pub name: String,
    /// Its owner, numbered in the order of appearance.
    pub tenant: u32,
    /// What calls it (`http`, `timer`, `queue`, ...).
    pub trigger: String,
    /// Invocations in each minute.
    pub per_minute: Vec<u32>,
    /// Durations, in milliseconds.
    pub duration_ms: Quantiles,
    /// Memory, in MiB.
    pub memory_mib: Quantiles,
}

impl TraceFunction {
    /// All its invocations.
    pub fn invocations(&self) -> u64 {
        self.per_minute.iter().map(|count| u64::from(*count)).sum()
    }
}

/// What a path holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// Counts a minute: single invocations are still to be drawn.
    Counts(Trace),
    /// Single invocations.
    Invocations(Workload),
    /// Where the time of cold starts went: nothing to be replayed, but to stand beside.
    ColdStarts(Vec<ColdStart>),
}

/// Reads a trace: a directory in InVitro's layout, a file of single invocations in the layout of Azure's trace of 2021, or
/// Huawei's records of cold starts, which are known by their columns.
///
/// # Errors
/// When a file cannot be read or has anything in it that does not belong there; names file, line and column.
pub fn read(path: &Path) -> Result<Source, TraceError> {
    if path.is_dir() {
        azure2019::read(path).map(Source::Counts)
    } else {
        let table = table::open(path)?;
        if huawei::is_it(&table) {
            huawei::parse(table).map(Source::ColdStarts)
        } else {
            azure2021::parse(table).map(Source::Invocations)
        }
    }
}
