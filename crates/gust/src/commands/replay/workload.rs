//! From a path and options to a workload.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use gust_replay::{
    Workload,
    arrivals::{Plan, Spacing, Thinning},
    trace::{self, Source},
};

/// Where invocations lie in their minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SpacingChoice {
    /// Exponential gaps, as of independent callers
    Exponential,
    /// Uniform gaps
    Uniform,
    /// Equal gaps
    Equidistant,
}

/// What is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ThinningChoice {
    /// Whole functions, evenly over their order by invocations
    Functions,
    /// Invocations of every function, at random
    Invocations,
}

/// A trace, and what is taken of it.
#[derive(Debug, Clone, Args)]
pub struct WorkloadArgs {
    /// Directory with invocations.csv, durations.csv and memory.csv (Azure 2019 as InVitro has it), or a file with the columns
    /// app, func, end_timestamp and duration (Azure 2021); either may be gzip-compressed
    pub trace: PathBuf,
    /// Times that the trace's time runs faster; durations stay as they are
    #[arg(long, default_value_t = 1.0)]
    pub speed: f64,
    /// Minutes of the trace that are taken [default: all]
    #[arg(long)]
    pub minutes: Option<usize>,
    /// First minute that is taken, from 0
    #[arg(long, default_value_t = 0)]
    pub from_minute: usize,
    /// Part of the load that is kept, to fit a smaller machine
    #[arg(long, default_value_t = 1.0)]
    pub scale: f64,
    /// What is left out by --scale
    #[arg(long, value_enum, default_value = "invocations")]
    pub thin: ThinningChoice,
    /// Factor of durations
    #[arg(long, default_value_t = 1.0)]
    pub durations: f64,
    /// Factor of memory: a call that touches it takes time for that, so that it is best made smaller with durations
    #[arg(long, default_value_t = 1.0)]
    pub memory: f64,
    /// Gaps between the invocations of a minute, where the trace only counts them
    #[arg(long, value_enum, default_value = "exponential")]
    pub spacing: SpacingChoice,
    /// Quantile of each function's memory that its invocations use
    #[arg(long, default_value_t = 0.5)]
    pub memory_quantile: f64,
    /// Seed of everything random
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

impl WorkloadArgs {
    fn plan(&self) -> Plan {
        Plan {
            seed: self.seed,
            spacing: match self.spacing {
                SpacingChoice::Exponential => Spacing::Exponential,
                SpacingChoice::Uniform => Spacing::Uniform,
                SpacingChoice::Equidistant => Spacing::Equidistant,
            },
            from_minute: self.from_minute,
            minutes: self.minutes,
            speed: self.speed,
            scale: self.scale,
            thinning: match self.thin {
                ThinningChoice::Functions => Thinning::Functions,
                ThinningChoice::Invocations => Thinning::Invocations,
            },
            durations: self.durations,
            memory: self.memory,
            memory_quantile: self.memory_quantile,
        }
    }

    /// Reads the trace and takes what is asked for.
    pub fn workload(&self) -> Result<Workload> {
        let plan = self.plan();
        let workload = match trace::read(&self.trace)? {
            Source::Counts(trace) => plan.draw(&trace),
            Source::Invocations(workload) => plan.take(workload),
            Source::ColdStarts(_) => bail!(
                "{} has records of cold starts, which say nothing of invocations; gust trace describe shows them",
                self.trace.display()
            ),
        };
        workload.with_context(|| format!("take a workload from {}", self.trace.display()))
    }

    /// What is replayed, in words.
    pub fn describe(&self, workload: &Workload) -> String {
        let name = self.trace.file_name().unwrap_or(self.trace.as_os_str());
        let called: std::collections::HashSet<u32> =
            workload.arrivals.iter().map(|arrival| arrival.function).collect();
        format!(
            "{} of {} from minute {}: {} invocations of {} functions in {:.0} s; {}",
            match self.minutes {
                Some(minutes) => format!("{minutes} minutes"),
                None => "all minutes".to_owned(),
            },
            name.display(),
            self.from_minute,
            workload.arrivals.len(),
            called.len(),
            workload.length_ns as f64 / 1e9,
            self.plan().describe(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Alone {
        #[command(flatten)]
        workload: WorkloadArgs,
    }

    #[test]
    fn options_reach_the_workload() {
        let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/../../traces/azure2019-100");
        let parse = |more: &[&str]| {
            let arguments = ["x", sample, "--minutes", "6", "--from-minute", "2"];
            Alone::parse_from(arguments.iter().chain(more)).workload
        };
        let whole = parse(&[]);
        let workload = whole.workload().unwrap();
        assert_eq!(workload.length_ns, 360_000_000_000);
        assert!(
            whole
                .describe(&workload)
                .starts_with("6 minutes of azure2019-100 from minute 2: ")
        );
        let fast = parse(&["--speed", "6"]).workload().unwrap();
        assert_eq!(
            (fast.length_ns, fast.arrivals.len()),
            (60_000_000_000, workload.arrivals.len())
        );
        let tenth = parse(&["--scale", "0.1", "--thin", "functions"])
            .workload()
            .unwrap();
        assert!(
            (9..=11).contains(&tenth.functions.len()),
            "{}",
            tenth.functions.len()
        );
        let error = parse(&["--scale", "2"]).workload().unwrap_err();
        assert_eq!(
            error.root_cause().to_string(),
            "the scale is 2; it must be more than 0 and at most 1"
        );
    }
}
