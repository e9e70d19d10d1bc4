//! A warm function while new servers take over from old ones (`gust up --take-over`), before that, and after it.
//!
//! One server after the other takes over for as long as the load lasts, the next a second after the last one began. Functions
//! run in micro-VMs where there is KVM: the first calls of a new server find no instance in it, and that is part of what a
//! hand-over costs.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;

use super::{
    Settings, deploy,
    load::{self, Load, Taken},
};
use crate::bench::{
    machine::Machine,
    own::Server,
    report::{Report, Row},
    targets::Target,
};

/// Calls a second.
const RATE: f64 = 100.0;

/// Connections that take them in turn.
const CONNECTIONS: usize = 16;

/// From the begin of one hand-over to that of the next, where it has ended by then.
const EVERY: Duration = Duration::from_secs(1);

/// What the 99th percentile after the hand-overs may be over that before.
const MOVED_MAX: f64 = 1.2;

/// Measures.
pub async fn run(settings: &Settings) -> Result<Report> {
    let machine = Machine::this();
    let options = ["--mode", &settings.mode];
    let mut server = Server::start_with(&settings.data_dir, "auto", &options).await?;
    let load = Load {
        names: deploy(&server, 1).await?,
        event: Bytes::from_static(b"{}"),
        rate: RATE,
        length: settings.length,
        connections: CONNECTIONS,
    };
    let client = server.client().clone();
    // Until it is sustained traffic.
    load::offer(&client, &load).await?;
    let before = load::offer(&client, &load).await?;
    let (during, times) = tokio::join!(
        load::offer(&client, &load),
        hand_over_for(&mut server, &options, settings.length)
    );
    let (during, times) = (during?, times?);
    let after = load::offer(&client, &load).await?;

    let rows = vec![
        row("before", &before)?,
        row("while servers take over", &during)?.with("hand_overs", times.len() as f64),
        row("after", &after)?,
        Row::of_durations("a hand-over, from start to the old one's end", &times)?,
    ];
    let ratio = rows[2].summary.p99.as_secs_f64() / rows[0].summary.p99.as_secs_f64();
    let failed: usize = [&before, &during, &after]
        .iter()
        .map(|taken| taken.failures.len())
        .sum();
    Ok(Report {
        name: "control-handover".to_owned(),
        method: format!(
            "{RATE} calls a second of one function for {} s each: before, while one server after the other takes over, \
             and after; mode {}",
            settings.length.as_secs(),
            settings.mode
        ),
        machine,
        targets: vec![
            Target::exactly("calls that failed", 0, failed),
            Target::ratio_at_most("p99 after the hand-overs, over before", MOVED_MAX, ratio),
        ],
        rows,
        tables: Vec::new(),
        chart: None,
        remarks: during.failures.into_iter().take(1).collect(),
    })
}

/// Has one server after the other take over; how long each took.
async fn hand_over_for(server: &mut Server, options: &[&str], length: Duration) -> Result<Vec<Duration>> {
    let (began, mut times) = (Instant::now(), Vec::new());
    while began.elapsed() < length {
        let next = Instant::now() + EVERY;
        let took = server.hand_over("auto", options).await;
        times.push(took.with_context(|| format!("take over for the {}. time", times.len() + 1))?);
        tokio::time::sleep_until(next.into()).await;
    }
    Ok(times)
}

fn row(label: &str, taken: &Taken) -> Result<Row> {
    let warm = taken.samples.iter().filter(|sample| sample.start() == "warm");
    let share = warm.count() as f64 / taken.samples.len().max(1) as f64;
    Ok(Row::of(label, &taken.samples)?
        .with("warm_percent", share * 100.0)
        .with("failed", taken.failures.len() as f64))
}
