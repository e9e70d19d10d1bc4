//! The figures of a run, from its records and samples alone.
//!
//! - **Response time**: from arrival to answer. **Slowdown**: response time over the time that the trace asks for; of a function
//!   the geometric mean, as Dirigent (SOSP'24) and InVitro (IISWC'23) have it, and then quantiles over functions.
//! - **Scheduling delay**: response time without the handler's.
//! - **Useful life** of an instance: from the begin of its first handler to the end of its last. **Pod utility ratio**: the useful life
//!   over the time that its start took (Huawei, EuroSys'25). Instances that were ready before their first call have none.
//! - Memory-seconds and instances are sums over samples, each of which holds until the next.
//!
//! Only invocations that were answered have times; the others are counted.

use gust_policy::Class;
use serde::{Deserialize, Serialize};

use super::starts::{self, Part};
use crate::{Ending, Origin, Record, Run, Sample, Start};

pub(super) const NS_PER_MS: f64 = 1e6;
const NS_PER_S: f64 = 1e9;

/// Shortest requested time that a slowdown is taken against, in nanoseconds: a millisecond, as InVitro's traces have it at least.
const REQUESTED_NS_MIN: u64 = 1_000_000;

/// Shortest wait that counts as one, in nanoseconds: passing through an empty queue is none.
const QUEUED_NS_MIN: u64 = 1_000_000;

/// Figures of many values.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Values.
    pub count: u64,
    /// Mean.
    pub mean: f64,
    /// Half are no larger (nearest rank, as all quantiles here).
    pub p50: f64,
    /// Nine of ten are no larger.
    pub p90: f64,
    /// Ninety-nine of a hundred are no larger.
    pub p99: f64,
    /// Largest.
    pub max: f64,
}

impl Spread {
    /// Of values in any order; all zero of none.
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let Some(max) = values.last().copied() else {
            return Self::default();
        };
        Self {
            count: values.len() as u64,
            mean: values.iter().sum::<f64>() / values.len() as f64,
            p50: quantile(&values, 0.5),
            p90: quantile(&values, 0.9),
            p99: quantile(&values, 0.99),
            max,
        }
    }
}

/// The smallest of sorted values that at least this part of them does not exceed. There must be one.
pub(super) fn quantile(sorted: &[f64], part: f64) -> f64 {
    let rank = (part * sorted.len() as f64).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

/// How invocations ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endings {
    /// With a response.
    pub answered: u64,
    /// No place in time.
    pub refused: u64,
    /// With an error of the function.
    pub failed: u64,
    /// Lost with their instance or node.
    pub lost: u64,
}

/// How the instances of answered invocations came to be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Starts {
    /// There and idle.
    pub warm: u64,
    /// Armed or thawed.
    pub armed: u64,
    /// Restored.
    pub restored: u64,
    /// Booted.
    pub booted: u64,
}

/// Figures of a function.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FunctionFigures {
    /// Its name.
    pub name: String,
    /// Invocations.
    pub invocations: u64,
    /// Those that were answered.
    pub answered: u64,
    /// Geometric mean of slowdowns.
    pub slowdown: f64,
    /// 99th percentile of response times, in milliseconds.
    pub response_ms_p99: f64,
}

/// Costs of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Costs {
    /// Memory of instances over time, in GiB-seconds.
    pub memory_gib_s: f64,
    /// Processor time, in seconds.
    pub cpu_s: f64,
    /// The part of it that handlers did not use, in seconds.
    pub overhead_cpu_s: f64,
    /// The same for each answered invocation, in milliseconds.
    pub overhead_cpu_ms_per_call: f64,
    /// Regular instances on average over time.
    pub regular_mean: f64,
    /// Emergency instances on average over time.
    pub emergency_mean: f64,
    /// Most instances at one moment.
    pub instances_max: u32,
    /// Part of the instances' time in which they run a call.
    pub busy_part: f64,
}

/// All figures of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// The run's name.
    pub name: String,
    /// Where it took place.
    pub origin: Origin,
    /// What was run, in words.
    pub method: String,
    /// The machine, in words.
    pub machine: String,
    /// Invocations.
    pub invocations: u64,
    /// How they ended.
    pub endings: Endings,
    /// Invocations that the generator did not send.
    pub unsent: u64,
    /// Lateness of the generator, in milliseconds.
    pub lateness_ms: Spread,
    /// Response times, in milliseconds.
    pub response_ms: Spread,
    /// Slowdown of each invocation.
    pub slowdown: Spread,
    /// Geometric mean of each function's slowdowns, over functions.
    pub slowdown_by_function: Spread,
    /// Scheduling delays, in milliseconds.
    pub scheduling_ms: Spread,
    /// Waits in a queue, in milliseconds, of those answered invocations that waited for a millisecond or longer.
    pub queued_ms: Spread,
    /// How instances came to be.
    pub starts: Starts,
    /// Part of the answered invocations that ran on regular instances.
    pub regular_part: f64,
    /// Scheduling delays of cold starts alone, in milliseconds.
    pub cold_ms: Spread,
    /// Where cold starts spent their time, by our parts.
    pub parts: Vec<Part>,
    /// The same by the parts of Huawei's study.
    pub parts_huawei: Vec<Part>,
    /// Instances' useful life over the time that their start took.
    pub utility_ratio: Spread,
    /// Part of the instances whose useful life was no longer than their start.
    pub utility_below_1: f64,
    /// What it cost.
    pub costs: Costs,
    /// Functions that were invoked, those with most invocations first.
    pub functions: Vec<FunctionFigures>,
    /// What a reader must know besides.
    pub remarks: Vec<String>,
}

impl Figures {
    /// The figures of a run.
    pub fn of(run: &Run) -> Self {
        let answered: Vec<&Record> = run
            .records
            .iter()
            .filter(|r| r.ending == Ending::Answered)
            .collect();
        let spread = |value: &dyn Fn(&Record) -> f64| Spread::of(answered.iter().map(|r| value(r)).collect());
        let cold: Vec<&Record> = answered
            .iter()
            .copied()
            .filter(|r| r.start != Start::Warm)
            .collect();
        let functions = functions(run);
        let regular = answered.iter().filter(|r| r.class == Class::Regular).count();
        let ratios = starts::utility_ratios(&answered);
        let below = ratios.iter().filter(|ratio| **ratio <= 1.0).count();
        Self {
            name: run.name.clone(),
            origin: run.origin,
            method: run.method.clone(),
            machine: run.machine.clone(),
            invocations: run.records.len() as u64,
            endings: endings(&run.records),
            unsent: run.unsent,
            lateness_ms: Spread::of(run.lateness_ns.iter().map(|ns| *ns as f64 / NS_PER_MS).collect()),
            response_ms: spread(&|r| response_ns(r) as f64 / NS_PER_MS),
            slowdown: spread(&slowdown),
            slowdown_by_function: Spread::of(
                functions
                    .iter()
                    .filter(|f| f.answered > 0)
                    .map(|f| f.slowdown)
                    .collect(),
            ),
            scheduling_ms: spread(&|r| scheduling_ns(r) as f64 / NS_PER_MS),
            queued_ms: Spread::of(
                answered
                    .iter()
                    .map(|r| r.components.queue_ns)
                    .filter(|ns| *ns >= QUEUED_NS_MIN)
                    .map(|ns| ns as f64 / NS_PER_MS)
                    .collect(),
            ),
            starts: counted_starts(&answered),
            regular_part: part_of(regular, answered.len()),
            cold_ms: Spread::of(cold.iter().map(|r| scheduling_ns(r) as f64 / NS_PER_MS).collect()),
            parts: starts::parts(&cold, starts::OURS),
            parts_huawei: starts::parts(&cold, starts::HUAWEI),
            utility_below_1: part_of(below, ratios.len()),
            utility_ratio: Spread::of(ratios),
            costs: costs(&run.samples, answered.len()),
            functions,
            remarks: run.remarks.clone(),
        }
    }
}

fn part_of(count: usize, all: usize) -> f64 {
    if all == 0 { 0.0 } else { count as f64 / all as f64 }
}

/// From arrival to answer.
pub(super) fn response_ns(record: &Record) -> u64 {
    record.ended_ns.saturating_sub(record.arrived_ns)
}

/// The response time without the handler's.
pub(super) fn scheduling_ns(record: &Record) -> u64 {
    record.started_ns.saturating_sub(record.arrived_ns)
}

/// Response time over requested time.
pub(super) fn slowdown(record: &Record) -> f64 {
    response_ns(record) as f64 / record.requested_ns.max(REQUESTED_NS_MIN) as f64
}

fn endings(records: &[Record]) -> Endings {
    let mut endings = Endings::default();
    for record in records {
        match record.ending {
            Ending::Answered => endings.answered += 1,
            Ending::Refused => endings.refused += 1,
            Ending::Failed => endings.failed += 1,
            Ending::Lost => endings.lost += 1,
        }
    }
    endings
}

fn counted_starts(answered: &[&Record]) -> Starts {
    let mut starts = Starts::default();
    for record in answered {
        match record.start {
            Start::Warm => starts.warm += 1,
            Start::Armed => starts.armed += 1,
            Start::Restored => starts.restored += 1,
            Start::Booted => starts.booted += 1,
        }
    }
    starts
}

fn functions(run: &Run) -> Vec<FunctionFigures> {
    let mut records: Vec<Vec<&Record>> = vec![Vec::new(); run.functions.len()];
    for record in &run.records {
        if let Some(of_function) = records.get_mut(record.function as usize) {
            of_function.push(record);
        }
    }
    let mut found: Vec<FunctionFigures> = run
        .functions
        .iter()
        .zip(records)
        .filter(|(_, records)| !records.is_empty())
        .map(|(function, records)| {
            let answered: Vec<&&Record> = records.iter().filter(|r| r.ending == Ending::Answered).collect();
            let logarithms: f64 = answered.iter().map(|r| slowdown(r).ln()).sum();
            let response_ms = answered
                .iter()
                .map(|r| response_ns(r) as f64 / NS_PER_MS)
                .collect();
            FunctionFigures {
                name: function.name.clone(),
                invocations: records.len() as u64,
                answered: answered.len() as u64,
                slowdown: (logarithms / answered.len().max(1) as f64).exp(),
                response_ms_p99: Spread::of(response_ms).p99,
            }
        })
        .collect();
    found.sort_by(|a, b| (b.invocations, &a.name).cmp(&(a.invocations, &b.name)));
    found
}

fn costs(samples: &[Sample], answered: usize) -> Costs {
    let mut costs = Costs::default();
    let (mut seconds, mut busy_s, mut instances_s) = (0.0, 0.0, 0.0);
    for pair in samples.windows(2) {
        let (now, next) = (&pair[0], &pair[1]);
        let held_s = next.at_ns.saturating_sub(now.at_ns) as f64 / NS_PER_S;
        seconds += held_s;
        costs.memory_gib_s += held_s * now.memory_bytes as f64 / f64::from(1 << 30);
        costs.regular_mean += held_s * f64::from(now.regular);
        costs.emergency_mean += held_s * f64::from(now.emergency);
        busy_s += held_s * f64::from(now.busy);
        instances_s += held_s * f64::from(now.regular + now.emergency);
    }
    if seconds > 0.0 {
        costs.regular_mean /= seconds;
        costs.emergency_mean /= seconds;
    }
    if instances_s > 0.0 {
        costs.busy_part = busy_s / instances_s;
    }
    costs.instances_max = samples.iter().map(|s| s.regular + s.emergency).max().unwrap_or(0);
    if let (Some(first), Some(last)) = (samples.first(), samples.last()) {
        costs.cpu_s = last.cpu_ns.saturating_sub(first.cpu_ns) as f64 / NS_PER_S;
        costs.overhead_cpu_s = last.overhead_cpu_ns.saturating_sub(first.overhead_cpu_ns) as f64 / NS_PER_S;
        costs.overhead_cpu_ms_per_call = costs.overhead_cpu_s * 1000.0 / answered.max(1) as f64;
    }
    costs
}
