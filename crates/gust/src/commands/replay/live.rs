//! `gust replay`: a trace on a live server.

use std::{
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, atomic::AtomicU64},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use gust_replay::{Origin, Run, Workload, sim::Ahead};
use tokio::sync::watch;

use super::{
    driver::{Driver, nanos},
    report,
    sampler::Sampler,
    simulate::mode_word,
    target::{self, FunctionsChoice, Language, Targets, Work},
    workload::WorkloadArgs,
};
use crate::{
    bench::{machine::Machine, own::Server},
    cli::{ModeChoice, OutputArgs, ServerArgs},
    output::progress,
    paths,
};

/// Calls in flight that a user may ask for.
const IN_FLIGHT_MAX: usize = 20_000;

/// Calls of each function before a run that a user may ask for.
const WARM_UP_MAX: usize = 1000;

/// Part of calls that may be later than [`LATE_MS`] before the report warns.
const LATE_PART: f64 = 0.01;
const LATE_MS: f64 = 10.0;

/// How a workload is run on a server.
#[derive(Debug, Clone, Args)]
pub struct LiveArgs {
    /// Functions that are made
    #[arg(long, value_enum, default_value = "own")]
    pub functions: FunctionsChoice,
    /// What handlers do
    #[arg(long, value_enum, default_value = "spin")]
    pub work: Work,
    /// What the functions are written in
    #[arg(long, value_enum, default_value = "python")]
    pub language: Language,
    /// Most calls in flight; what comes beyond is not sent, and counted
    #[arg(long, default_value_t = 1000)]
    pub in_flight: usize,
    /// Start a server for the run, with the runtimes of the data directory, and end it afterwards
    #[arg(long, conflicts_with = "endpoint")]
    pub up: bool,
    /// Calls of each function before the run: what a node learns from a version's first runs is not part of it then. The
    /// instances are ended
    #[arg(long, default_value_t = 0, requires = "up")]
    pub warm_up: usize,
    /// Option for gust up, such as --up-arg=--pool=8; can be given several times
    #[arg(long, requires = "up", allow_hyphen_values = true)]
    pub up_arg: Vec<String>,
    /// The wall around instances of a server that is started
    #[arg(long, default_value = "auto")]
    pub isolation: String,
    /// Data directory with the runtimes
    #[arg(long, env = paths::DATA_DIR_VARIABLE)]
    pub data_dir: Option<PathBuf>,
    #[command(flatten)]
    pub server: ServerArgs,
}

/// `gust replay`
#[derive(Debug, Args)]
pub struct ReplayArgs {
    #[command(flatten)]
    workload: WorkloadArgs,
    #[command(flatten)]
    live: LiveArgs,
    /// Modes of the control plane, one run each
    #[arg(long, requires = "up", value_enum, value_delimiter = ',')]
    mode: Vec<ModeChoice>,
    /// Name of the run [default: its mode, or "live"]
    #[arg(long, conflicts_with = "mode")]
    name: Option<String>,
    /// Directory for the runs and their report
    #[arg(long, default_value = "replay-results")]
    out: PathBuf,
    /// Write the records too, in InVitro's columns
    #[arg(long)]
    csv: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// Replays.
pub async fn run(arguments: ReplayArgs) -> Result<ExitCode> {
    let workload = arguments.workload.workload()?;
    let method = arguments.workload.describe(&workload);
    std::fs::create_dir_all(&arguments.out)
        .with_context(|| format!("make directory {}", arguments.out.display()))?;
    let modes: Vec<Option<&str>> = match arguments.mode.as_slice() {
        [] => vec![None],
        modes => modes.iter().map(|mode| Some(mode_word(*mode))).collect(),
    };
    let mut runs = Vec::new();
    for mode in modes {
        let name = mode.or(arguments.name.as_deref()).unwrap_or("live");
        let (run, _) = arguments.live.replay(name, mode, &workload, &method).await?;
        run.write(&arguments.out.join(format!("{}.run", report::file_name(name))))?;
        runs.push(run);
    }
    report::show(&runs, &arguments.out, arguments.csv, arguments.output.output)?;
    Ok(ExitCode::SUCCESS)
}

impl LiveArgs {
    /// The server that is named, or one that is started.
    async fn server(&self, mode: Option<&str>) -> Result<Server> {
        if !self.up {
            return Server::named(&self.server).await;
        }
        let mut options: Vec<&str> = self.up_arg.iter().map(String::as_str).collect();
        options.extend(mode.into_iter().flat_map(|mode| ["--mode", mode]));
        let data_dir = self.data_dir.clone().unwrap_or_else(paths::data_dir);
        Server::start_with(&data_dir, &self.isolation, &options).await
    }

    /// Runs a workload once; says what was called before it, too.
    pub async fn replay(
        &self,
        name: &str,
        mode: Option<&str>,
        workload: &Workload,
        method: &str,
    ) -> Result<(Run, Ahead)> {
        ensure!(
            (1..=IN_FLIGHT_MAX).contains(&self.in_flight),
            "between 1 and {IN_FLIGHT_MAX} calls can be in flight"
        );
        ensure!(
            self.warm_up <= WARM_UP_MAX,
            "each function can be called {WARM_UP_MAX} times before the run at most"
        );
        let machine = Machine::this().line();
        let server = self.server(mode).await?;
        let client = server.client().clone();
        let targets = Targets::deploy(&client, workload, self.functions, self.work, self.language).await?;
        let targets = Arc::new(targets);
        let before = Instant::now();
        let mut ahead = Ahead::default();
        if self.up {
            // What deployments have left behind, and the measurement of the work's speed, are not part of the run.
            server.quiet().await?;
            ahead.calls = target::warm_up(&server, &targets, self.warm_up, before).await?;
        }
        let handlers_ns = Arc::new(AtomicU64::new(0));
        let began = Instant::now();
        ahead.length_ns = nanos(before.elapsed());
        let sampler = Sampler::new(client.clone(), began, Arc::clone(&handlers_ns)).await?;
        let mut remarks = Vec::new();
        if !sampler.reads_processes() {
            remarks.push("the server runs elsewhere: its memory and processor time are not known".to_owned());
        }
        let (stop, stopped) = watch::channel(false);
        let sampling = tokio::spawn(sampler.run(stopped));
        let bar = progress(format!("replaying {name}"), workload.arrivals.len());
        let driver = Driver {
            client: client.clone(),
            targets: Arc::clone(&targets),
            work: self.work,
            in_flight_max: self.in_flight,
            began,
            handlers_ns,
        };
        let driven = driver
            .drive(workload, |seen| bar.set_position(seen as u64))
            .await?;
        bar.finish_and_clear();
        stop.send_replace(true);
        let samples = sampling.await.context("look at the server")??;
        if !self.up {
            target::delete(&client, &targets).await?;
        }
        if let Some(error) = driven.first_error {
            remarks.push(format!("the first call that was not answered: {error}"));
        }
        remarks.extend(lateness_remark(&driven.lateness_ns));
        let run = Run {
            name: name.to_owned(),
            origin: Origin::Live,
            method: format!(
                "{method}; work: {:?}, functions: {:?}, {:?}",
                self.work, self.functions, self.language
            ),
            machine,
            functions: workload.functions.clone(),
            length_ns: workload.length_ns,
            records: driven.records,
            samples,
            lateness_ns: driven.lateness_ns,
            unsent: driven.unsent,
            remarks,
        };
        Ok((run, ahead))
    }
}

/// A generator that is late does not make the workload that it should.
fn lateness_remark(lateness_ns: &[u64]) -> Option<String> {
    let late = lateness_ns
        .iter()
        .filter(|ns| **ns as f64 > LATE_MS * 1e6)
        .count();
    let part = late as f64 / lateness_ns.len().max(1) as f64;
    (part > LATE_PART).then(|| {
        format!(
            "{:.1} % of the calls were sent more than {LATE_MS} ms late: this machine is too busy for the generator",
            part * 100.0
        )
    })
}
