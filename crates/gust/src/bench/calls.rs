//! `gust bench calls`: a deployed function is called again and again, as it is.
//!
//! Each client keeps one connection and calls as fast as it is answered. The time of a call is the client's: from
//! before the request is written to after the answer is read. Where the server's share went comes back with each
//! answer. A call that fails ends the measurement: figures of failures would mean nothing.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use clap::Args;
use hyper::Method;
use serde_json::Value;

use super::{
    machine::Machine,
    report::{Report, Row},
    stats::Summary,
};
use crate::{
    cli::ServerArgs,
    client::{Client, Connection, segment},
};

/// Most calls of one measurement.
const CALLS_MAX: usize = 1_000_000;

/// Parts that the server reports.
const PARTS: &[&str] = &[
    "queue", "worker", "map", "fill", "faults", "boot", "runtime", "handler",
];

/// What to measure.
#[derive(Debug, Args)]
pub struct CallsArgs {
    /// Name of the function
    name: String,
    /// The event
    #[arg(default_value = "{}")]
    payload: String,
    /// Calls that are measured
    #[arg(short = 'n', long, default_value_t = 1000)]
    calls: usize,
    /// Clients that call at once
    #[arg(short, long, default_value_t = 1)]
    clients: usize,
    /// Calls before those that are measured
    #[arg(long, default_value_t = 20)]
    warm_up: usize,
    /// End the idle instances before each call: every call is a cold start (one client only)
    #[arg(long)]
    cold: bool,
    /// With --cold: let armed instances live
    #[arg(long, requires = "cold")]
    armed: bool,
}

/// One call as its client saw it.
#[derive(Debug)]
pub struct Sample {
    /// From request to answer.
    pub latency: Duration,
    /// What the server said of it.
    pub timings: Value,
}

/// Measures.
pub async fn run(arguments: &CallsArgs, server: &ServerArgs) -> Result<Report> {
    ensure!(
        (1..=CALLS_MAX).contains(&arguments.calls),
        "between 1 and {CALLS_MAX} calls can be measured"
    );
    ensure!(
        arguments.clients >= 1 && (arguments.clients == 1 || !arguments.cold),
        "--cold needs --clients 1"
    );
    let client = Client::new(server)?;
    let mut connection = client.connect().await?;
    let payload = Bytes::from(arguments.payload.clone());
    for _ in 0..arguments.warm_up {
        call(&mut connection, &arguments.name, &payload)
            .await
            .context("warm up")?;
    }
    let began = Instant::now();
    let mut clients = Vec::new();
    for number in 0..arguments.clients {
        let share =
            arguments.calls / arguments.clients + usize::from(number < arguments.calls % arguments.clients);
        let (client, name, payload) = (client.clone(), arguments.name.clone(), payload.clone());
        let (cold, armed) = (arguments.cold, arguments.armed);
        clients.push(tokio::spawn(async move {
            let mut connection = client.connect().await?;
            let mut samples = Vec::with_capacity(share);
            for _ in 0..share {
                if cold {
                    evict(&mut connection, &name, armed).await?;
                }
                samples.push(call(&mut connection, &name, &payload).await?);
            }
            Ok::<_, anyhow::Error>(samples)
        }));
    }
    let mut samples = Vec::new();
    for client in clients {
        samples.extend(client.await.context("a client failed")??);
    }
    let elapsed = began.elapsed();
    let label = format!(
        "{}, {} client(s){}",
        arguments.name,
        arguments.clients,
        if arguments.cold { ", cold" } else { "" }
    );
    Ok(Report {
        name: "calls".to_owned(),
        method: format!("{} calls of {} over HTTP", arguments.calls, arguments.name),
        machine: Machine::this(),
        rows: vec![row(label, &samples, elapsed)?],
    })
}

/// Makes one call and takes its time.
pub async fn call(connection: &mut Connection, name: &str, payload: &Bytes) -> Result<Sample> {
    let path = format!("/2015-03-31/functions/{}/invocations", segment(name));
    let began = Instant::now();
    let answer = connection
        .send(Method::POST, &path, &[("x-gust-timings", "1")], payload.clone())
        .await?;
    let latency = began.elapsed();
    ensure!(
        answer.header("x-amz-function-error").is_none(),
        "{name} failed: {}",
        String::from_utf8_lossy(&answer.body)
    );
    let timings = answer
        .header("x-gust-timings")
        .context("the server does not report timings")?;
    let timings = serde_json::from_str(timings).context("read the server's timings")?;
    Ok(Sample { latency, timings })
}

/// Ends the idle instances of a function, and its armed ones unless they are to be kept.
pub async fn evict(connection: &mut Connection, name: &str, keep_armed: bool) -> Result<()> {
    let armed = if keep_armed { "?armed=keep" } else { "" };
    let path = format!("/_gust/v1/functions/{}/evict{armed}", segment(name));
    connection.send(Method::POST, &path, &[], Bytes::new()).await?;
    Ok(())
}

/// Figures of samples.
pub fn row(label: String, samples: &[Sample], elapsed: Duration) -> Result<Row> {
    let latencies: Vec<Duration> = samples.iter().map(|sample| sample.latency).collect();
    let summary = Summary::of(&latencies).context("nothing was measured")?;
    let median = |pick: &dyn Fn(&Sample) -> Option<u64>| {
        let values: Vec<Duration> = samples
            .iter()
            .filter_map(pick)
            .map(Duration::from_nanos)
            .collect();
        Summary::of(&values).map(|summary| summary.p50)
    };
    let mut parts = Vec::new();
    for part in PARTS {
        let name = format!("{part}_ns");
        parts.extend(
            median(&|sample| sample.timings[&name].as_u64()).map(|part_of| ((*part).to_owned(), part_of)),
        );
    }
    // What the client saw beyond the control plane's share: HTTP, its parsing, and the loopback interface.
    let http = |sample: &Sample| {
        let latency = u64::try_from(sample.latency.as_nanos()).ok()?;
        latency.checked_sub(sample.timings["total_ns"].as_u64()?)
    };
    parts.extend(median(&http).map(|part| ("http".to_owned(), part)));
    let rate = samples.len() as f64 / elapsed.as_secs_f64();
    Ok(Row {
        label,
        summary,
        extra: vec![("requests_per_s".to_owned(), rate)],
        parts,
    })
}
