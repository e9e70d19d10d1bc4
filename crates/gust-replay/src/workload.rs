//! What is to be run: functions, and when each is called.

use serde::{Deserialize, Serialize};

/// A function of a workload.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Function {
    /// Name in its trace; unlike any other of the workload.
    pub name: String,
    /// Tenant (the trace's owner), numbered from 0.
    pub tenant: u32,
    /// Memory that an invocation uses, in MiB.
    pub memory_mib: u32,
}

/// One invocation to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arrival {
    /// Nanoseconds since the beginning.
    pub at_ns: u64,
    /// Index of the function.
    pub function: u32,
    /// Time that its handler takes, in nanoseconds.
    pub duration_ns: u64,
}

/// Functions and arrivals.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Workload {
    /// Functions, by index.
    pub functions: Vec<Function>,
    /// In order of time.
    pub arrivals: Vec<Arrival>,
    /// Length, in nanoseconds; the last arrival is before it.
    pub length_ns: u64,
}
