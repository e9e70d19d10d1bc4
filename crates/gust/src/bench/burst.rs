//! `gust bench burst`: many requests at once for a function with nothing running.
//!
//! The connections are open before, and all requests are written in one moment. Reported are the time to each answer
//! and to the last one, how many instances there were for them, and the memory that the server's processes came to.

use std::{
    collections::HashSet,
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
    memory,
    own::Server,
    report::{Report, Row},
    targets::Target,
};
use crate::{cli::ServerArgs, output::progress, paths};

/// Most requests at once.
const REQUESTS_MAX: usize = 10_000;

/// What to measure.
#[derive(Debug, Args)]
pub struct BurstArgs {
    /// Requests at once
    #[arg(short = 'n', long, default_value_t = 200)]
    requests: usize,
    /// How often
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Data directory with the runtimes
    #[arg(long, env = paths::DATA_DIR_VARIABLE)]
    data_dir: Option<PathBuf>,
}

/// One burst.
struct Burst {
    answers: Vec<Sample>,
    failures: Vec<String>,
    last: Duration,
    memory_bytes: Option<u64>,
}

/// Measures.
pub async fn run(arguments: &BurstArgs, server: &ServerArgs) -> Result<Report> {
    ensure!(
        (1..=REQUESTS_MAX).contains(&arguments.requests) && arguments.rounds > 0,
        "between 1 and {REQUESTS_MAX} requests at once can be measured"
    );
    let machine = Machine::this();
    let data_dir = arguments.data_dir.clone().unwrap_or_else(paths::data_dir);
    let server = Server::named_or_started(server, &data_dir).await?;
    let dir = TempDir::with_prefix("gust-bench-code-").context("make a directory for code")?;
    PLAIN.write(dir.path())?;
    server.deploy(&PLAIN, PLAIN.name, None, dir.path()).await?;
    let event: Bytes = handlers::event().to_string().into();
    let bar = progress("bursts", arguments.rounds);
    let mut bursts = Vec::new();
    for _ in 0..arguments.rounds {
        bursts.push(burst(&server, &event, arguments.requests).await?);
        bar.inc(1);
    }
    bar.finish_and_clear();
    server.delete(PLAIN.name).await?;
    report(arguments, machine, &bursts)
}

async fn burst(server: &Server, event: &Bytes, requests: usize) -> Result<Burst> {
    server.quiet().await?;
    server.evict(PLAIN.name, false).await?;
    server.quiet().await?;
    let before = server.pid().map(memory::of_tree).transpose()?;
    let mut connections = Vec::new();
    for _ in 0..requests {
        connections.push(server.client().connect().await?);
    }
    let began = Instant::now();
    let mut running = Vec::new();
    for mut connection in connections {
        let event = event.clone();
        running.push(tokio::spawn(async move {
            calls::call(&mut connection, PLAIN.name, &event).await
        }));
    }
    let (mut answers, mut failures) = (Vec::new(), Vec::new());
    for request in running {
        match request.await.context("a client failed")? {
            Ok(sample) => answers.push(sample),
            Err(error) => failures.push(format!("{error:#}")),
        }
    }
    let last = began.elapsed();
    let after = server.pid().map(memory::of_tree).transpose()?;
    Ok(Burst {
        answers,
        failures,
        last,
        memory_bytes: before
            .zip(after)
            .map(|(before, after)| after.saturating_sub(before)),
    })
}

fn report(arguments: &BurstArgs, machine: Machine, bursts: &[Burst]) -> Result<Report> {
    let answered: Vec<&Sample> = bursts.iter().flat_map(|burst| &burst.answers).collect();
    let latencies: Vec<Duration> = answered.iter().map(|sample| sample.latency).collect();
    let lasts: Vec<Duration> = bursts.iter().map(|burst| burst.last).collect();
    let instances = mean(bursts.iter().map(|burst| {
        let different: HashSet<&str> = burst.answers.iter().map(Sample::instance).collect();
        different.len() as f64
    }));
    let mut last = Row::of_durations("the last answer of each burst", &lasts)?.with("instances", instances);
    let memory: Option<Vec<f64>> = bursts
        .iter()
        .map(|burst| burst.memory_bytes.map(|bytes| bytes as f64 / f64::from(1 << 20)))
        .collect();
    let mut remarks = Vec::new();
    match memory {
        Some(memory) => last = last.with("memory_mib", mean(memory.into_iter())),
        None => remarks.push("the memory of a server that runs elsewhere cannot be read".to_owned()),
    }
    let failures: Vec<&String> = bursts.iter().flat_map(|burst| &burst.failures).collect();
    if let Some(first) = failures.first() {
        remarks.push(format!(
            "{} requests were lost; the first: {first}",
            failures.len()
        ));
    }
    let what = format!("answers to {} requests", arguments.requests * bursts.len());
    Ok(Report {
        name: "burst".to_owned(),
        method: format!(
            "{} requests at once for {}, with nothing running, {} times",
            arguments.requests,
            PLAIN.what,
            bursts.len()
        ),
        machine,
        rows: vec![Row::of_durations("an answer", &latencies)?, last],
        tables: Vec::new(),
        chart: None,
        targets: vec![Target::exactly(
            what,
            arguments.requests * bursts.len(),
            answered.len(),
        )],
        remarks,
    })
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let values: Vec<f64> = values.collect();
    values.iter().sum::<f64>() / values.len().max(1) as f64
}
