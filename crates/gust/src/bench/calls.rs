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
};
use crate::{
    cli::ServerArgs,
    client::{Answer, Client, Connection, segment},
};

/// Most calls of one measurement.
const CALLS_MAX: usize = 1_000_000;

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
    /// What the server said of it; null where it says nothing.
    pub timings: Value,
    /// The function's answer.
    pub body: Bytes,
}

impl Sample {
    /// A sample that no server has said anything of.
    pub fn plain(latency: Duration) -> Self {
        Self {
            latency,
            timings: Value::Null,
            body: Bytes::new(),
        }
    }

    /// How its instance came to be, in the server's word.
    pub fn start(&self) -> &str {
        self.timings["start"].as_str().unwrap_or_default()
    }

    /// Id of its instance.
    pub fn instance(&self) -> &str {
        self.timings["instance"].as_str().unwrap_or_default()
    }

    /// What the call took beyond its handler.
    pub fn overhead(&self) -> Option<Duration> {
        let handler = Duration::from_nanos(self.timings["handler_ns"].as_u64()?);
        self.latency.checked_sub(handler)
    }
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
        rows: vec![Row::of(label, &samples)?.with_rate(samples.len(), elapsed)],
        tables: Vec::new(),
        chart: None,
        targets: Vec::new(),
        remarks: Vec::new(),
    })
}

/// Makes one call of any server of the Lambda API, and takes its time.
pub async fn timed(connection: &mut Connection, name: &str, payload: &Bytes) -> Result<(Duration, Answer)> {
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
    Ok((latency, answer))
}

/// Makes one call, and takes its time and what the server says of it.
pub async fn call(connection: &mut Connection, name: &str, payload: &Bytes) -> Result<Sample> {
    let (latency, answer) = timed(connection, name, payload).await?;
    let timings = answer
        .header("x-gust-timings")
        .context("the server does not report timings")?;
    let timings = serde_json::from_str(timings).context("read the server's timings")?;
    Ok(Sample {
        latency,
        timings,
        body: answer.body,
    })
}

/// Ends the idle instances of a function, and its armed ones unless they are to be kept.
pub async fn evict(connection: &mut Connection, name: &str, keep_armed: bool) -> Result<()> {
    let armed = if keep_armed { "?armed=keep" } else { "" };
    let path = format!("/_gust/v1/functions/{}/evict{armed}", segment(name));
    connection.send(Method::POST, &path, &[], Bytes::new()).await?;
    Ok(())
}
