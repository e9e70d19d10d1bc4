//! `gust validate-sim`: the same workload live and simulated, once or some times, and how far the two are apart.
//!
//! The simulated node has the processors of this machine and the bounds of the server that is started; both reckon with the
//! same costs, and begin after the same calls.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use clap::Args;
use gust_replay::report::Figures;
use serde_json::json;

use super::{
    live::LiveArgs,
    report,
    simulate::{ClusterArgs, Shape, mode_word},
    workload::WorkloadArgs,
};
use crate::{
    cli::{ModeChoice, Output, OutputArgs},
    commands::print,
    exit,
    output::table,
};

/// Most runs.
const RUNS_MAX: u64 = 100;

/// `gust validate-sim`
#[derive(Debug, Args)]
pub struct ValidateArgs {
    #[command(flatten)]
    workload: WorkloadArgs,
    #[command(flatten)]
    live: LiveArgs,
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Mode of the control plane that is simulated; a server that is started with --up gets it too, one that runs must have it
    #[arg(long, value_enum, default_value = "dual")]
    mode: ModeChoice,
    /// Processors of the simulated node [default: this machine's]
    #[arg(long)]
    processors: Option<u32>,
    /// How often both are run; medians are compared, since live runs differ from each other
    #[arg(long, default_value_t = 1, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=RUNS_MAX))]
    runs: usize,
    /// Fail when a figure of the simulation is further from the live one, in percent
    #[arg(long)]
    within: Option<f64>,
    /// Directory for both runs and their report
    #[arg(long, default_value = "replay-results")]
    out: PathBuf,
    #[command(flatten)]
    output: OutputArgs,
}

/// Runs both.
pub async fn run(arguments: ValidateArgs) -> Result<ExitCode> {
    let workload = arguments.workload.workload()?;
    let method = arguments.workload.describe(&workload);
    std::fs::create_dir_all(&arguments.out)
        .with_context(|| format!("make directory {}", arguments.out.display()))?;
    let mode = arguments.live.up.then_some(mode_word(arguments.mode));
    let mut live = arguments.live.clone();
    if let (true, Some(costs)) = (live.up, &arguments.cluster.costs) {
        // The live policies reckon with what the simulated ones do.
        let costs = costs
            .to_str()
            .context("the name of the file of costs is no text")?;
        live.up_arg.push(format!("--costs={costs}"));
    }
    let here = std::thread::available_parallelism().map_or(1, usize::from);
    // A server that is started has the usual bounds of its node.
    let cluster = match arguments.live.up {
        true => arguments.cluster.like_a_server()?,
        false => arguments.cluster.clone(),
    };
    let shape = Shape {
        nodes: 1,
        processors: match arguments.processors {
            Some(processors) => processors,
            None => u32::try_from(here).unwrap_or(1),
        },
        regions: 1,
        between_regions_ns: 0,
        seed: arguments.workload.seed,
    };
    let mut figures = Vec::with_capacity(arguments.runs);
    for number in 1..=arguments.runs {
        let file = |what: &str| match number {
            1 => arguments.out.join(format!("{what}.run")),
            _ => arguments.out.join(format!("{what}-{number}.run")),
        };
        let (live, ahead) = live.replay("live", mode, &workload, &method).await?;
        live.write(&file("live"))?;
        let simulated = cluster.simulate("simulated", arguments.mode, &workload, &method, shape, ahead)?;
        simulated.write(&file("simulated"))?;
        figures.push((Figures::of(&live), Figures::of(&simulated)));
        if number == 1 {
            report::write(&[live, simulated], &arguments.out)?;
        }
    }
    let compared = compare(&figures);
    show(&compared, arguments.output.output)?;
    let far = compared
        .iter()
        .any(|line| arguments.within.is_some_and(|bound| line.percent.abs() > bound));
    Ok(if far {
        ExitCode::from(exit::FAILED)
    } else {
        ExitCode::SUCCESS
    })
}

/// A figure of the live runs and the simulated ones.
#[derive(Debug, Clone, PartialEq)]
struct Line {
    what: &'static str,
    /// Median of the live runs.
    live: f64,
    /// The least and the most of them.
    between: (f64, f64),
    /// Median of the simulated runs.
    simulated: f64,
    /// How much more the simulated one is, of the live one.
    percent: f64,
}

fn compare(figures: &[(Figures, Figures)]) -> Vec<Line> {
    let line = |what, of: fn(&Figures) -> f64| {
        let mut live: Vec<f64> = figures.iter().map(|(live, _)| of(live)).collect();
        let mut simulated: Vec<f64> = figures.iter().map(|(_, simulated)| of(simulated)).collect();
        let between = live
            .iter()
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), value| {
                (value.min(least), value.max(most))
            });
        let (live, simulated) = (median(&mut live), median(&mut simulated));
        let percent = match (live == simulated, live == 0.0) {
            (true, _) => 0.0,
            (false, true) => f64::INFINITY,
            (false, false) => (simulated / live - 1.0) * 100.0,
        };
        Line {
            what,
            live,
            between,
            simulated,
            percent,
        }
    };
    vec![
        line("response time, p50 (ms)", |f| f.response_ms.p50),
        line("response time, p99 (ms)", |f| f.response_ms.p99),
        line("memory (GiB s)", |f| f.costs.memory_gib_s),
    ]
}

/// The one in the middle, or the mean of the two that are; 0 for none.
fn median(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values {
        [] => 0.0,
        _ if values.len() % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

fn show(lines: &[Line], output: Output) -> Result<()> {
    match output {
        Output::Json => {
            let lines: Vec<_> = lines
                .iter()
                .map(|line| {
                    json!({
                        "what": line.what,
                        "live": line.live,
                        "live_least": line.between.0,
                        "live_most": line.between.1,
                        "simulated": line.simulated,
                        "percent": line.percent,
                    })
                })
                .collect();
            print(&format!("{:#}\n", json!(lines)))
        }
        Output::Text => {
            let head = ["FIGURE", "LIVE", "LEAST", "MOST", "SIMULATED", "DIFFERENCE"].map(str::to_owned);
            let mut rows = vec![head.to_vec()];
            rows.extend(lines.iter().map(|line| {
                vec![
                    line.what.to_owned(),
                    format!("{:.3}", line.live),
                    format!("{:.3}", line.between.0),
                    format!("{:.3}", line.between.1),
                    format!("{:.3}", line.simulated),
                    format!("{:+.1} %", line.percent),
                ]
            }));
            print(&table(&rows))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&mut [4.0, 1.0]), 2.5);
        assert_eq!(median(&mut []), 0.0);
    }
}
