//! `gust validate-sim`: the same workload live and simulated, and how far the two are apart.
//!
//! The simulated node has the processors of this machine and the bounds of the server that is started; both reckon with the
//! same costs.

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
    let live = live.replay("live", mode, &workload, &method).await?;
    live.write(&arguments.out.join("live.run"))?;
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
    let simulated = cluster.simulate("simulated", arguments.mode, &workload, &method, shape)?;
    simulated.write(&arguments.out.join("simulated.run"))?;
    let compared = compare(&Figures::of(&live), &Figures::of(&simulated));
    report::write(&[live, simulated], &arguments.out)?;
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

/// A figure of both runs.
#[derive(Debug, Clone, PartialEq)]
struct Line {
    what: &'static str,
    live: f64,
    simulated: f64,
    /// How much more the simulated one is, of the live one.
    percent: f64,
}

fn compare(live: &Figures, simulated: &Figures) -> Vec<Line> {
    let line = |what, of: fn(&Figures) -> f64| {
        let (live, simulated) = (of(live), of(simulated));
        let percent = match (live == simulated, live == 0.0) {
            (true, _) => 0.0,
            (false, true) => f64::INFINITY,
            (false, false) => (simulated / live - 1.0) * 100.0,
        };
        Line {
            what,
            live,
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

fn show(lines: &[Line], output: Output) -> Result<()> {
    match output {
        Output::Json => {
            let lines: Vec<_> = lines
                .iter()
                .map(|line| {
                    json!({ "what": line.what, "live": line.live, "simulated": line.simulated, "percent": line.percent })
                })
                .collect();
            print(&format!("{:#}\n", json!(lines)))
        }
        Output::Text => {
            let head = ["FIGURE", "LIVE", "SIMULATED", "DIFFERENCE"].map(str::to_owned);
            let mut rows = vec![head.to_vec()];
            rows.extend(lines.iter().map(|line| {
                vec![
                    line.what.to_owned(),
                    format!("{:.3}", line.live),
                    format!("{:.3}", line.simulated),
                    format!("{:+.1} %", line.percent),
                ]
            }));
            print(&table(&rows))
        }
    }
}
