//! What starts of instances took, part by part, and how long instances were of use.

use std::collections::HashMap;

use gust_policy::InstanceId;
use serde::{Deserialize, Serialize};

use super::figures::{NS_PER_MS, Spread};
use crate::{Components, Record, Start};

/// A part of cold starts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// Its name.
    pub name: String,
    /// Its times in milliseconds, over all cold starts.
    pub ms: Spread,
}

/// A part's name and its time in a record.
pub(super) type PartOf = (&'static str, fn(&Components) -> u64);

/// Our parts.
pub(super) const OURS: &[PartOf] = &[
    ("queue", |c| c.queue_ns),
    ("scheduling", |c| c.scheduling_ns),
    ("worker", |c| c.worker_ns),
    ("fetch", |c| c.fetch_ns),
    ("map", |c| c.map_ns),
    ("faults", |c| c.faults_ns),
    ("boot", |c| c.boot_ns),
    ("runtime", |c| c.runtime_ns),
];

/// Those of Huawei's study. Code and dependencies are one thing here: a snapshot has both, and bringing it to life stands for
/// loading them.
pub(super) const HUAWEI: &[PartOf] = &[
    ("pod allocation", |c| c.worker_ns),
    ("code", |c| c.fetch_ns),
    ("dependencies", |c| {
        c.map_ns + c.faults_ns + c.boot_ns + c.runtime_ns
    }),
    ("scheduling", |c| c.queue_ns + c.scheduling_ns),
];

/// The times of parts, over all cold starts.
pub(super) fn parts(cold: &[&Record], which: &[PartOf]) -> Vec<Part> {
    which
        .iter()
        .map(|(name, time)| Part {
            name: (*name).to_owned(),
            ms: Spread::of(
                cold.iter()
                    .map(|r| time(&r.components) as f64 / NS_PER_MS)
                    .collect(),
            ),
        })
        .collect()
}

/// For each instance whose start a call waited for: its useful life over that wait.
pub(super) fn utility_ratios(answered: &[&Record]) -> Vec<f64> {
    struct Life {
        first_ns: u64,
        last_ns: u64,
        start_ns: u64,
    }
    let mut lives: HashMap<InstanceId, Life> = HashMap::new();
    for record in answered {
        let Some(instance) = record.instance else { continue };
        let start_ns = match record.start {
            Start::Warm => 0,
            Start::Armed | Start::Restored | Start::Booted => start_ns(&record.components),
        };
        let life = lives.entry(instance).or_insert(Life {
            first_ns: record.started_ns,
            last_ns: record.ended_ns,
            start_ns: 0,
        });
        life.first_ns = life.first_ns.min(record.started_ns);
        life.last_ns = life.last_ns.max(record.ended_ns);
        life.start_ns = life.start_ns.max(start_ns);
    }
    let mut ratios: Vec<f64> = lives
        .into_values()
        .filter(|life| life.start_ns > 0)
        .map(|life| life.last_ns.saturating_sub(life.first_ns) as f64 / life.start_ns as f64)
        .collect();
    ratios.sort_by(f64::total_cmp);
    ratios
}

/// What the start of an instance took: everything but waiting for a place.
fn start_ns(c: &Components) -> u64 {
    c.scheduling_ns + c.worker_ns + c.fetch_ns + c.map_ns + c.faults_ns + c.boot_ns
}
