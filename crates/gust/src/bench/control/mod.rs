//! `gust bench control`: the control plane, part by part.
//!
//! | part | what is measured | where |
//! |---|---|---|
//! | `cold` | cold starts a second that are sustained, and what one costs | a server whose sandboxes are only waited for |
//! | `warm` | what the platform adds to a call of an instance that is there | the same |
//! | `scale` | decisions with thousands of functions and nodes, and a slow cluster manager | inside this process |
//! | `real` | cold starts a second with micro-VMs, and their components | a server of its own |
//! | `fairness` | a function that is called now and then, alone and beside a flood | a server whose sandboxes are only waited for |
//! | `handover` | a warm function before, while and after servers take over | servers of its own, with micro-VMs |
//!
//! Sandboxes that are only waited for are Dirigent's own test of scalability (SOSP'24, section 5): what is left is the
//! platform. Arrivals do not wait for answers ([`load`]); a call's time begins when it is due. Each part makes a report
//! of its own.

mod cold;
mod fairness;
mod handover;
mod load;
mod scale;
mod warm;

use std::{path::PathBuf, time::Duration};

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use tempfile::TempDir;

use super::{handlers::PLAIN, own::Server, report::Report};
use crate::paths;

/// Longest measurement of one rate, in seconds.
const SECONDS_MAX: u64 = 3600;

/// Most functions.
const FUNCTIONS_MAX: usize = 100_000;

/// Room for more instances than any rate needs.
const AMPLE: &str = "1000000";

/// Functions that are made at the same time.
const DEPLOYING: usize = 16;

/// What to measure.
#[derive(Debug, Args)]
pub struct ControlArgs {
    /// Parts to measure; all unless some are named
    #[arg(long, value_enum, value_delimiter = ',')]
    part: Vec<Part>,
    /// Seconds of each rate
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Functions of the part cold, which are called in turn
    #[arg(long, default_value_t = 100)]
    functions: usize,
    /// The same for micro-VMs
    #[arg(long, default_value_t = 20)]
    real_functions: usize,
    /// Rates of cold starts a second that are tried one after the other, until one is not sustained
    #[arg(long, value_delimiter = ',', default_values_t = [250, 500, 1000, 1500, 2000, 2500, 3000, 4000])]
    rates: Vec<u32>,
    /// The same for micro-VMs
    #[arg(long, value_delimiter = ',', default_values_t = [25, 50, 100, 150, 200, 300, 400, 500, 600])]
    real_rates: Vec<u32>,
    /// Mode of the server that is measured
    #[arg(long, default_value = "dual")]
    mode: String,
    #[command(flatten)]
    scale: scale::ScaleArgs,
    /// Data directory with the runtimes
    #[arg(long, env = paths::DATA_DIR_VARIABLE)]
    data_dir: Option<PathBuf>,
}

/// A part of the measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Cold starts a second with sandboxes that are only waited for
    Cold,
    /// What the platform adds to a call of an instance that is there
    Warm,
    /// Thousands of functions and nodes, and a slow cluster manager
    Scale,
    /// Cold starts a second with micro-VMs
    Real,
    /// A function beside a flood on another
    Fairness,
    /// A warm function while servers take over
    Handover,
}

/// What all parts need.
#[derive(Debug, Clone)]
struct Settings {
    length: Duration,
    functions: usize,
    real_functions: usize,
    rates: Vec<u32>,
    real_rates: Vec<u32>,
    mode: String,
    data_dir: PathBuf,
}

impl Settings {
    /// A server whose sandboxes are only waited for, with room for so many instances.
    async fn fake(&self, instances: &str, options: &[&str]) -> Result<Server> {
        let mut all = vec!["--fake-start-ms", "40", "--mode", &self.mode];
        // What is measured is not to be refused for its number.
        all.extend(["--concurrency", "1000000", "--instances", instances]);
        all.extend(options);
        Server::start_with(&self.data_dir, "fake", &all).await
    }
}

/// Measures the parts that are asked for; each is shown as soon as it is there.
pub async fn run(arguments: &ControlArgs, show: &mut dyn FnMut(&Report) -> Result<()>) -> Result<()> {
    ensure!(
        (1..=SECONDS_MAX).contains(&arguments.seconds),
        "a rate can be measured for 1 to {SECONDS_MAX} seconds"
    );
    ensure!(
        [arguments.functions, arguments.real_functions]
            .iter()
            .all(|functions| (1..=FUNCTIONS_MAX).contains(functions)),
        "between 1 and {FUNCTIONS_MAX} functions can be called in turn"
    );
    ensure!(
        arguments
            .rates
            .iter()
            .chain(&arguments.real_rates)
            .all(|rate| *rate > 0),
        "a rate of nothing cannot be measured"
    );
    arguments.scale.check()?;
    let settings = Settings {
        length: Duration::from_secs(arguments.seconds),
        functions: arguments.functions,
        real_functions: arguments.real_functions,
        rates: arguments.rates.clone(),
        real_rates: arguments.real_rates.clone(),
        mode: arguments.mode.clone(),
        data_dir: arguments.data_dir.clone().unwrap_or_else(paths::data_dir),
    };
    let parts = match arguments.part.as_slice() {
        [] => Part::value_variants(),
        some => some,
    };
    for part in parts {
        let report = match part {
            Part::Cold => cold::fake(&settings).await,
            Part::Warm => warm::run(&settings).await,
            Part::Scale => scale::run(&settings, &arguments.scale).await,
            Part::Real => cold::real(&settings).await,
            Part::Fairness => fairness::run(&settings).await,
            Part::Handover => handover::run(&settings).await,
        };
        show(&report?)?;
    }
    Ok(())
}

/// Makes functions of the same code; answers their names.
async fn deploy(server: &Server, count: usize) -> Result<Vec<String>> {
    let dir = TempDir::with_prefix("gust-bench-code-")?;
    PLAIN.write(dir.path())?;
    let names: Vec<String> = (0..count).map(|number| format!("f{number}")).collect();
    for group in names.chunks(DEPLOYING) {
        let deploying = group
            .iter()
            .map(|name| server.deploy(&PLAIN, name, None, dir.path()));
        for deployed in load::all(deploying).await {
            deployed?;
        }
    }
    Ok(names)
}
