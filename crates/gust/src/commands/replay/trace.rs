//! `gust trace`: what a trace has, and traces that are made.

use std::{collections::HashMap, path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};
use gust_replay::{
    Workload,
    report::Spread,
    synthetic::{Kind, Synthetic},
    trace::{self, Source, Trace},
};
use serde_json::{Value, json};

use super::workload::WorkloadArgs;
use crate::{
    cli::{Output, OutputArgs},
    commands::print,
};

/// `gust trace`
#[derive(Debug, Args)]
pub struct TraceArgs {
    /// What to do
    #[command(subcommand)]
    command: TraceCommand,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Subcommand)]
enum TraceCommand {
    /// Show what a trace has
    Describe {
        /// A trace in any layout, or records of cold starts
        trace: PathBuf,
    },
    /// Draw the invocations of a trace and write them one by one
    Draw {
        #[command(flatten)]
        workload: WorkloadArgs,
        /// File to write: app, func, end_timestamp, duration, memory_mib; gzip where it ends in .gz
        #[arg(long)]
        out: PathBuf,
    },
    /// Make a trace after published fits, or a simple one
    Make(MakeArgs),
}

/// Kinds of traces that are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum KindChoice {
    /// Independent calls, all functions alike
    Poisson,
    /// All functions at once, again and again
    Burst,
    /// Rates, durations and memory as Azure Functions has them (Shahrad et al., ATC'20)
    Azure,
    /// Gaps as between Huawei's cold starts (Joosen et al., EuroSys'25), functions in turn
    Huawei,
}

#[derive(Debug, Args)]
struct MakeArgs {
    /// Which
    #[arg(value_enum)]
    kind: KindChoice,
    /// Functions
    #[arg(long, default_value_t = 10)]
    functions: usize,
    /// Minutes
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Calls a second of all functions together (poisson)
    #[arg(long, default_value_t = 10.0)]
    rate: f64,
    /// Calls of each function in a burst (burst)
    #[arg(long, default_value_t = 10)]
    calls: u32,
    /// Seconds from one burst to the next (burst)
    #[arg(long, default_value_t = 60.0)]
    every: f64,
    /// Duration of a call, in milliseconds (not azure)
    #[arg(long, default_value_t = 100.0)]
    duration_ms: f64,
    /// Memory of a call, in MiB (not azure)
    #[arg(long, default_value_t = 64)]
    memory_mib: u32,
    /// Seed of everything random
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// File to write: app, func, end_timestamp, duration, memory_mib; gzip where it ends in .gz
    #[arg(long)]
    out: PathBuf,
}

/// Does it.
pub fn run(arguments: TraceArgs) -> Result<ExitCode> {
    let shown = match arguments.command {
        TraceCommand::Describe { trace } => match trace::read(&trace)? {
            Source::Counts(trace) => describe_counts(&trace),
            Source::Invocations(workload) => describe_workload(&workload),
            Source::ColdStarts(records) => describe_cold_starts(&records),
        },
        TraceCommand::Draw { workload, out } => {
            let workload = workload.workload()?;
            trace::write_invocations(&workload, &out)?;
            describe_workload(&workload)
        }
        TraceCommand::Make(make) => {
            let workload = make.synthetic().make()?;
            trace::write_invocations(&workload, &make.out)?;
            describe_workload(&workload)
        }
    };
    print(&match arguments.output.output {
        Output::Json => format!("{shown:#}\n"),
        Output::Text => text(&shown),
    })?;
    Ok(ExitCode::SUCCESS)
}

impl MakeArgs {
    fn synthetic(&self) -> Synthetic {
        Synthetic {
            kind: match self.kind {
                KindChoice::Poisson => Kind::Poisson { rate: self.rate },
                KindChoice::Burst => Kind::Burst {
                    calls: self.calls,
                    every_s: self.every,
                },
                KindChoice::Azure => Kind::Azure,
                KindChoice::Huawei => Kind::Huawei,
            },
            functions: self.functions,
            minutes: self.minutes,
            duration_ms: self.duration_ms,
            memory_mib: self.memory_mib,
            seed: self.seed,
        }
    }
}

fn spread(values: Vec<f64>) -> Value {
    let spread = Spread::of(values);
    let rounded = |value: f64| (value * 1000.0).round() / 1000.0;
    json!({
        "mean": rounded(spread.mean),
        "p50": rounded(spread.p50),
        "p90": rounded(spread.p90),
        "p99": rounded(spread.p99),
        "max": rounded(spread.max),
    })
}

/// Part of all invocations that the busiest functions make.
fn share_of_busiest(counts: &[u64], busiest: usize) -> f64 {
    let mut counts = counts.to_vec();
    counts.sort_unstable_by(|a, b| b.cmp(a));
    let all: u64 = counts.iter().sum();
    let first: u64 = counts.iter().take(busiest).sum();
    (first as f64 / all.max(1) as f64 * 1000.0).round() / 1000.0
}

fn describe_counts(trace: &Trace) -> Value {
    let counts: Vec<u64> = trace
        .functions
        .iter()
        .map(trace::TraceFunction::invocations)
        .collect();
    let mut triggers: HashMap<&str, u64> = HashMap::new();
    for (function, count) in trace.functions.iter().zip(&counts) {
        *triggers.entry(&function.trigger).or_default() += count;
    }
    let busy_ms: f64 = trace
        .functions
        .iter()
        .zip(&counts)
        .map(|(function, count)| function.duration_ms.mean() * *count as f64)
        .sum();
    let minutes: Vec<f64> = (0..trace.minutes)
        .map(|minute| {
            let counts = trace.functions.iter().map(|f| f64::from(f.per_minute[minute]));
            counts.sum()
        })
        .collect();
    json!({
        "functions": trace.functions.len(),
        "called": counts.iter().filter(|count| **count > 0).count(),
        "invocations": counts.iter().sum::<u64>(),
        "minutes": trace.minutes,
        "invocations_per_minute": spread(minutes),
        "share_of_busiest": share_of_busiest(&counts, 1),
        "share_of_busiest_10": share_of_busiest(&counts, 10),
        "concurrency_mean": (busy_ms / (trace.minutes as f64 * 600.0)).round() / 100.0,
        "duration_ms_p50_of_functions": spread(trace.functions.iter().map(|f| f.duration_ms.at(0.5)).collect()),
        "memory_mib_p50_of_functions": spread(trace.functions.iter().map(|f| f.memory_mib.at(0.5)).collect()),
        "invocations_by_trigger": triggers,
    })
}

fn describe_workload(workload: &Workload) -> Value {
    let mut counts = vec![0_u64; workload.functions.len()];
    for arrival in &workload.arrivals {
        counts[arrival.function as usize] += 1;
    }
    let busy_ns: f64 = workload.arrivals.iter().map(|a| a.duration_ns as f64).sum();
    let memory = workload.functions.iter().map(|f| f64::from(f.memory_mib));
    json!({
        "functions": workload.functions.len(),
        "called": counts.iter().filter(|count| **count > 0).count(),
        "invocations": workload.arrivals.len(),
        "minutes": (workload.length_ns as f64 / 6e8).round() / 100.0,
        "share_of_busiest": share_of_busiest(&counts, 1),
        "share_of_busiest_10": share_of_busiest(&counts, 10),
        "concurrency_mean": (busy_ns / workload.length_ns.max(1) as f64 * 100.0).round() / 100.0,
        "duration_ms": spread(workload.arrivals.iter().map(|a| a.duration_ns as f64 / 1e6).collect()),
        "memory_mib_of_functions": spread(memory.collect()),
    })
}

fn describe_cold_starts(records: &[trace::ColdStart]) -> Value {
    let of = |value: fn(&trace::ColdStart) -> f64| spread(records.iter().map(value).collect());
    json!({
        "cold_starts": records.len(),
        "total": of(|r| r.total),
        "pod_allocation": of(|r| r.allocation),
        "code": of(|r| r.code),
        "dependencies": of(|r| r.dependencies),
        "scheduling": of(|r| r.scheduling),
    })
}

/// One line for each member.
fn text(shown: &Value) -> String {
    let lines = shown.as_object().into_iter().flatten().map(|(name, value)| {
        let value = match value {
            Value::Object(members) => {
                let members: Vec<String> = members
                    .iter()
                    .map(|(name, value)| format!("{name} {value}"))
                    .collect();
                members.join(", ")
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                value.to_string()
            }
        };
        format!("{:<30}{value}\n", name.replace('_', " "))
    });
    lines.collect()
}
