//! The last calls of each function and where their time went, for people and benches. In memory only.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use gust_node::{StartKind, Timings};
use gust_policy::Class;

use crate::ids::{FunctionName, VersionNumber};

/// Calls that are kept of each function.
const CALLS_MAX: usize = 32;

/// Functions of which calls are kept; one more makes room by forgetting all.
const FUNCTIONS_MAX: usize = 1024;

/// One call that an instance answered.
#[derive(Debug, Clone)]
pub struct Call {
    /// The invocation's id.
    pub request_id: String,
    /// When it began, in milliseconds of the Unix epoch.
    pub unix_ms: u64,
    /// The version that ran.
    pub version: VersionNumber,
    /// Id of the instance.
    pub instance_id: String,
    /// How the instance came to be.
    pub start: StartKind,
    /// Which track made it.
    pub class: Class,
    /// Duration of the run.
    pub duration: Duration,
    /// What deciding where it runs took: of its wait, all that was not waiting.
    pub scheduling: Duration,
    /// From the call's arrival in the control plane to its answer.
    pub total: Duration,
    /// Most memory used, in bytes.
    pub memory_bytes_max: u64,
    /// The function failed.
    pub is_error: bool,
    /// Where the time went.
    pub timings: Timings,
}

impl Call {
    /// How the instance came to be, in a word.
    pub fn start_label(&self) -> &'static str {
        match self.start {
            StartKind::Warm => "warm",
            StartKind::Armed => "armed",
            StartKind::Thawed => "thawed",
            StartKind::Restored => "restored",
            StartKind::Booted => "booted",
        }
    }
}

/// The last calls of each function.
#[derive(Debug, Default)]
pub(crate) struct Recent(Mutex<HashMap<FunctionName, VecDeque<Call>>>);

impl Recent {
    pub(crate) fn add(&self, name: &FunctionName, call: Call) {
        let mut functions = self.lock();
        if functions.len() >= FUNCTIONS_MAX && !functions.contains_key(name) {
            functions.clear();
        }
        let calls = functions.entry(name.clone()).or_default();
        if calls.len() == CALLS_MAX {
            calls.pop_front();
        }
        calls.push_back(call);
    }

    pub(crate) fn of(&self, name: &FunctionName) -> Vec<Call> {
        self.lock()
            .get(name)
            .map(|calls| calls.iter().cloned().collect())
            .unwrap_or_default()
    }

    pub(crate) fn forget(&self, name: &FunctionName) {
        self.lock().remove(name);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<FunctionName, VecDeque<Call>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
