//! `gust chaos`: a replay on a cluster of which parts are taken away, by a seed.
//!
//! ```text
//! in namespaces of its own ([`lab`]): a server and nodes as processes, each node with a network of its own
//! the trace is replayed ([`caller`]) while faults are carried out by their schedule ([`inject`])
//! every event that is taken must have run in the end, and only calls that a fault can have hit may have failed
//! ([`gust_replay::chaos`], where both the schedule and the verdict are)
//! ```
//!
//! **Which calls have run** is what their functions say: a line with the call's number at the end of each run, read from the log on
//! disk when the server has ended. A function in a process has no way out to say it elsewhere. The platform cannot make up
//! such a line, as it does not know what functions write; it can only lose it, and then an event counts as lost that was not. So
//! the log can make a run fail for nothing, and cannot make it pass.

mod caller;
mod inject;
mod lab;
mod net;
mod outcome;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use gust_replay::{
    Workload,
    chaos::{Fault, FaultKind, Ledger, Plan},
};
use gust_store::{LogScope, Store, StoreConfig};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use super::{
    target::{FunctionsChoice, Language, Targets, Work},
    workload::WorkloadArgs,
};
use crate::{
    cli::OutputArgs,
    client::Client,
    commands::block_on,
    exit::{self, Hinted},
    output::progress,
    paths,
};
use caller::Caller;
use lab::{Lab, LabConfig};
use outcome::{Outcome, Watch};

/// Calls of one function at most: what a log keeps of them all.
const CALLS_OF_FUNCTION_MAX: usize = 20_000;

/// Lines that are read of a function's log at most.
const LOG_LINES_MAX: usize = 10_000_000;

/// Longest time for events that were taken to be delivered once nothing is taken away any more, and the pause between two
/// looks.
const DRAIN_LIMIT: Duration = Duration::from_secs(300);
const DRAIN_PAUSE: Duration = Duration::from_millis(100);

/// How the line of a run begins; the call's number follows (`trace_function.py`).
const RAN: &str = "ran ";

/// What can be taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FaultChoice {
    /// Workers of a node are killed: one, or all at once
    Worker,
    /// A node's process is killed, and started again later
    Agent,
    /// The server's process is killed, and started again at once
    Control,
    /// A node's network goes away and comes back: without a word, or with its connections cut
    Partition,
}

impl FaultChoice {
    fn kinds(self) -> &'static [FaultKind] {
        match self {
            Self::Worker => &[FaultKind::Worker],
            Self::Agent => &[FaultKind::Agent],
            Self::Control => &[FaultKind::Control],
            Self::Partition => &[FaultKind::Silence, FaultKind::Cut],
        }
    }
}

/// `gust chaos`
#[derive(Debug, Args)]
pub struct ChaosArgs {
    #[command(flatten)]
    workload: WorkloadArgs,
    /// Nodes beside the server, which runs functions too
    #[arg(long, default_value_t = 2)]
    nodes: u32,
    /// What is taken away
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "worker,agent,control,partition"
    )]
    faults: Vec<FaultChoice>,
    /// Seconds from one fault to the next, in the mean
    #[arg(long, default_value_t = 15.0)]
    every: f64,
    /// Seconds until a node comes back, at least and at most: MIN-MAX
    #[arg(long, default_value = "2-8", value_parser = parse_range)]
    down: (f64, f64),
    /// Seconds before the first fault, after each for the cluster to be whole again, and after the last
    #[arg(long, default_value_t = 5.0)]
    rest: f64,
    /// Faults that may be there at once
    #[arg(long, default_value_t = 1)]
    at_once: usize,
    /// Part of the calls that are events (asynchronous)
    #[arg(long, default_value_t = 0.5)]
    events: f64,
    /// Functions that are made
    #[arg(long, value_enum, default_value = "own")]
    functions: FunctionsChoice,
    /// What handlers do
    #[arg(long, value_enum, default_value = "wait")]
    work: Work,
    /// Most calls in flight; what comes beyond is not sent, and counted
    #[arg(long, default_value_t = 1000)]
    in_flight: usize,
    /// The wall around instances
    #[arg(long, default_value = "auto")]
    isolation: String,
    /// Option for gust up, such as --up-arg=--mode=sync; can be given several times
    #[arg(long, allow_hyphen_values = true)]
    up_arg: Vec<String>,
    /// Option for gust node; can be given several times
    #[arg(long, allow_hyphen_values = true)]
    node_arg: Vec<String>,
    /// Data directory with the runtimes
    #[arg(long, env = paths::DATA_DIR_VARIABLE)]
    data_dir: Option<PathBuf>,
    /// Directory for the report, and what server and nodes write of themselves
    #[arg(long, default_value = "chaos-results")]
    out: PathBuf,
    #[command(flatten)]
    output: OutputArgs,
}

/// `MIN-MAX`, in seconds.
fn parse_range(text: &str) -> Result<(f64, f64), String> {
    let (low, high) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| text.trim().parse::<f64>().ok().filter(|number| *number > 0.0);
    number(low)
        .zip(number(high))
        .ok_or_else(|| format!("{text:?} is not of the form MIN-MAX, in seconds"))
}

/// Seconds as nanoseconds.
fn ns(seconds: f64) -> u64 {
    (seconds.max(0.0) * 1e9) as u64
}

/// Runs it, in namespaces of its own.
pub fn run(arguments: ChaosArgs) -> Result<ExitCode> {
    let workload = arguments.workload.workload()?;
    let faults = arguments
        .plan(&workload)
        .draw()
        .context("draw a schedule of faults")?;
    check_calls(&workload)?;
    ensure!(
        (0.0..=1.0).contains(&arguments.events),
        "--events is a part, from 0 to 1"
    );
    ensure!(arguments.in_flight > 0, "--in-flight must be at least 1");
    net::enter()?;
    block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
        let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
        tokio::select! {
            done = arguments.carry_out(&workload, faults) => done,
            _ = interrupt.recv() => bail!("interrupted"),
            _ = terminate.recv() => bail!("terminated"),
        }
    })
}

fn check_calls(workload: &Workload) -> Result<()> {
    let mut calls: HashMap<u32, usize> = HashMap::new();
    for arrival in &workload.arrivals {
        *calls.entry(arrival.function).or_default() += 1;
    }
    let most = calls.values().copied().max().unwrap_or(0);
    if most > CALLS_OF_FUNCTION_MAX {
        return Err(Hinted {
            message: format!(
                "a function would be called {most} times, and logs keep {CALLS_OF_FUNCTION_MAX} calls"
            ),
            hint: "take fewer minutes, or a smaller --scale".to_owned(),
        }
        .into());
    }
    Ok(())
}

impl ChaosArgs {
    fn plan(&self, workload: &Workload) -> Plan {
        let mut kinds: Vec<FaultKind> = Vec::new();
        for kind in self.faults.iter().flat_map(|choice| choice.kinds()) {
            if !kinds.contains(kind) {
                kinds.push(*kind);
            }
        }
        Plan {
            seed: self.workload.seed,
            length_ns: workload.length_ns,
            nodes: self.nodes,
            kinds,
            every_ns: ns(self.every),
            lasts_ns: (ns(self.down.0), ns(self.down.1)),
            rest_ns: ns(self.rest),
            at_once: self.at_once,
        }
    }

    async fn carry_out(&self, workload: &Workload, faults: Vec<Fault>) -> Result<ExitCode> {
        std::fs::create_dir_all(&self.out)
            .with_context(|| format!("make directory {}", self.out.display()))?;
        eprintln!("{}", outcome::schedule(&faults));
        let config = LabConfig {
            runtimes_of: self.data_dir.clone().unwrap_or_else(paths::data_dir),
            isolation: self.isolation.clone(),
            up_args: self.up_arg.clone(),
            node_args: self.node_arg.clone(),
            logs: self.out.clone(),
        };
        let nodes = self.nodes;
        let lab = tokio::task::spawn_blocking(move || Lab::start(config, nodes));
        let lab = Arc::new(lab.await.context("make a cluster")??);
        let client = lab.client()?;
        inject::whole(&client, self.nodes + 1, lab::START_LIMIT)
            .await?
            .context("the nodes have not joined in time; their words are in the report's directory")?;
        let targets = Targets::deploy(&client, workload, self.functions, self.work, Language::Python).await?;
        let (ledger, watch, unsent) = self.run_through(&lab, &client, targets, workload, faults).await?;
        let outcome = Outcome {
            method: format!(
                "{}; {} nodes, {:.0} % events, work: {:?}, isolation: {}",
                self.workload.describe(workload),
                self.nodes,
                self.events * 100.0,
                self.work,
                self.isolation
            ),
            verdict: ledger.verdict(),
            ledger,
            watch,
            unsent,
            length_ns: workload.length_ns,
        };
        outcome.show(&self.out, self.output.output)?;
        Ok(if outcome.is_good() {
            ExitCode::SUCCESS
        } else {
            ExitCode::from(exit::FAILED)
        })
    }

    /// Replays the trace while faults are carried out, lets events be delivered, ends the cluster, and takes all that is to be
    /// known of it.
    async fn run_through(
        &self,
        lab: &Arc<Lab>,
        client: &Client,
        targets: Targets,
        workload: &Workload,
        faults: Vec<Fault>,
    ) -> Result<(Ledger, Watch, u64)> {
        let names: Vec<String> = targets.names().into_iter().map(str::to_owned).collect();
        let bar = progress("replaying", workload.arrivals.len());
        let began = Instant::now();
        let (stop, stopped) = watch::channel(false);
        let watching = tokio::spawn(outcome::watch(client.clone(), began, stopped));
        let injecting = tokio::spawn(inject::carry_out(Arc::clone(lab), client.clone(), faults, began));
        let caller = Caller::new(client.clone(), targets, began, self.workload.seed, self.events);
        let called = caller
            .call_all(workload, self.in_flight, |seen| bar.set_position(seen as u64))
            .await?;
        bar.finish_and_clear();
        let faults = injecting.await.context("carry faults out")??;
        drained(client).await?;
        stop.send_replace(true);
        let watch = watching.await.context("look at the server")?;
        let ending = Arc::clone(lab);
        let runs = tokio::task::spawn_blocking(move || {
            ending.stop_server()?;
            runs(&ending.server_dir(), &names)
        });
        let ledger = Ledger {
            calls: called.calls,
            faults,
            runs: runs.await.context("read the logs")??,
        };
        Ok((ledger, watch, called.unsent))
    }
}

/// Waits until no event waits any more; one that never ends is found by the ledger.
async fn drained(client: &Client) -> Result<()> {
    let began = Instant::now();
    while began.elapsed() < DRAIN_LIMIT {
        let stats = client.get("/_gust/v1/stats").await?;
        if stats["events_waiting"] == 0 {
            return Ok(());
        }
        tokio::time::sleep(DRAIN_PAUSE).await;
    }
    Ok(())
}

/// How often each call has run to its end, from the logs of a server that has ended.
fn runs(data_dir: &Path, names: &[String]) -> Result<HashMap<u64, u32>> {
    let store = Store::open(&StoreConfig::new(data_dir)).context("open the server's store")?;
    let mut runs = HashMap::new();
    for name in names {
        let scope = LogScope::new(name).with_context(|| format!("{name} is no name of a log"))?;
        let lines = store
            .logs
            .tail(&scope, LOG_LINES_MAX, None)
            .with_context(|| format!("read the log of {name}"))?;
        let numbers = lines
            .iter()
            .filter_map(|line| line.message.strip_prefix(RAN)?.parse::<u64>().ok());
        for number in numbers {
            *runs.entry(number).or_insert(0) += 1;
        }
    }
    Ok(runs)
}
