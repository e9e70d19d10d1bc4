//! `gust bench warm`: what a call of a ready instance costs beyond its handler, and how many calls a second there are.
//!
//! Memory `reuse` and `fresh` side by side: one client calls the two functions in turn; then 1, 8 and 64 clients call
//! each as fast as they are answered. Overhead is the client's time less what the runtime says that the handler took.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use clap::Args;
use tempfile::TempDir;

use super::{
    calls::{self, Sample},
    handlers::{self, PLAIN},
    machine::Machine,
    own::Server,
    report::{Report, Row},
    targets::Target,
};
use crate::{cli::ServerArgs, client::Client, output::progress, paths};

/// Most calls of one measurement.
const CALLS_MAX: usize = 1_000_000;

/// Overhead that a call may have at one client: median and tail.
const OVERHEAD_MAX: (Duration, Duration) = (Duration::from_micros(600), Duration::from_millis(5));

/// Clients that call at once, one measurement after the other.
const CLIENTS: [usize; 3] = [1, 8, 64];

/// What becomes of memory between calls.
const MODES: [&str; 2] = ["reuse", "fresh"];

/// What to measure.
#[derive(Debug, Args)]
pub struct WarmArgs {
    /// Calls of each measurement
    #[arg(short = 'n', long, default_value_t = 2000)]
    calls: usize,
    /// Calls before those that are measured
    #[arg(long, default_value_t = 50)]
    warm_up: usize,
    /// Data directory with the runtimes
    #[arg(long, env = paths::DATA_DIR_VARIABLE)]
    data_dir: Option<PathBuf>,
}

/// Measures.
pub async fn run(arguments: &WarmArgs, server: &ServerArgs) -> Result<Report> {
    ensure!(
        (1..=CALLS_MAX).contains(&arguments.calls),
        "between 1 and {CALLS_MAX} calls can be measured"
    );
    let machine = Machine::this();
    let data_dir = arguments.data_dir.clone().unwrap_or_else(paths::data_dir);
    let server = Server::named_or_started(server, &data_dir).await?;
    let dir = TempDir::with_prefix("gust-bench-code-").context("make a directory for code")?;
    PLAIN.write(dir.path())?;
    let names = MODES.map(|mode| format!("{}-{mode}", PLAIN.name));
    for (name, mode) in names.iter().zip(MODES) {
        server.deploy(&PLAIN, name, Some(mode), dir.path()).await?;
    }
    let event: Bytes = handlers::event().to_string().into();
    let (mut rows, targets) = in_turn(arguments, &server, &names, &event).await?;
    for clients in CLIENTS {
        for (name, mode) in names.iter().zip(MODES) {
            // One round without figures, so that there are as many instances as clients.
            at_once(server.client(), name, &event, clients, clients * 2).await?;
            let began = Instant::now();
            let samples = at_once(server.client(), name, &event, clients, arguments.calls).await?;
            let row = Row::of(format!("{mode}, {clients} client(s)"), &samples)?;
            rows.push(row.with_rate(samples.len(), began.elapsed()));
        }
    }
    for name in &names {
        server.delete(name).await?;
    }
    Ok(Report {
        name: "warm".to_owned(),
        method: format!("{} calls of {} for each row", arguments.calls, PLAIN.what),
        machine,
        rows,
        tables: Vec::new(),
        chart: None,
        targets,
        remarks: Vec::new(),
    })
}

/// One client calls the functions in turn.
async fn in_turn(
    arguments: &WarmArgs,
    server: &Server,
    names: &[String; 2],
    event: &Bytes,
) -> Result<(Vec<Row>, Vec<Target>)> {
    let mut connection = server.client().connect().await?;
    let mut taken: [Vec<Sample>; 2] = Default::default();
    let bar = progress("one client", arguments.calls + arguments.warm_up);
    for round in 0..arguments.warm_up + arguments.calls {
        for (name, taken) in names.iter().zip(&mut taken) {
            let sample = calls::call(&mut connection, name, event).await?;
            if round >= arguments.warm_up {
                taken.push(sample);
            }
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let (mut rows, mut targets) = (Vec::new(), Vec::new());
    for (mode, samples) in MODES.iter().zip(&taken) {
        let overheads: Vec<Duration> = samples.iter().filter_map(Sample::overhead).collect();
        ensure!(
            overheads.len() == samples.len(),
            "the server does not report the handler's time"
        );
        let overhead = Row::of_durations(format!("{mode}: overhead"), &overheads)?;
        let (median_max, tail_max) = OVERHEAD_MAX;
        let summary = overhead.summary;
        targets.push(Target::at_most(
            format!("{mode}: overhead, median"),
            median_max,
            summary.p50,
        ));
        targets.push(Target::at_most(
            format!("{mode}: overhead, p99"),
            tail_max,
            summary.p99,
        ));
        rows.extend([overhead, Row::of(format!("{mode}: call"), samples)?]);
    }
    Ok((rows, targets))
}

/// Some clients call as fast as they are answered.
async fn at_once(
    client: &Client,
    name: &str,
    event: &Bytes,
    clients: usize,
    calls: usize,
) -> Result<Vec<Sample>> {
    let mut running = Vec::new();
    for number in 0..clients {
        let share = calls / clients + usize::from(number < calls % clients);
        let (client, name, event) = (client.clone(), name.to_owned(), event.clone());
        running.push(tokio::spawn(async move {
            let mut connection = client.connect().await?;
            let mut samples = Vec::with_capacity(share);
            for _ in 0..share {
                samples.push(calls::call(&mut connection, &name, &event).await?);
            }
            Ok::<_, anyhow::Error>(samples)
        }));
    }
    let mut samples = Vec::new();
    for client in running {
        samples.extend(client.await.context("a client failed")??);
    }
    Ok(samples)
}
