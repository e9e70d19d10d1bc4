//! What the platform adds to a call whose instance is there: one client, a sandbox that answers at once.

use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;

use super::{AMPLE, Settings, deploy};
use crate::bench::{
    calls,
    machine::Machine,
    processes,
    report::{Report, Row},
    targets::Target,
};

/// Calls before those that are measured.
const WARM_UP: usize = 200;

/// Calls a second of length that are measured.
const CALLS_PER_SECOND: u64 = 500;

/// What a call may take at the median, and of the processor.
const OVERHEAD: (Duration, Duration) = (Duration::from_millis(1), Duration::from_micros(100));

/// Measures.
pub async fn run(settings: &Settings) -> Result<Report> {
    let machine = Machine::this();
    let server = settings.fake(AMPLE, &[]).await?;
    let names = deploy(&server, 1).await?;
    let event = Bytes::from_static(b"{}");
    let mut connection = server.client().connect().await?;
    for _ in 0..WARM_UP {
        calls::call(&mut connection, &names[0], &event).await?;
    }
    let pid = server.pid().context("the server was not started here")?;
    let before = processes::cpu_of_tree(pid)?;
    let count = settings.length.as_secs() * CALLS_PER_SECOND;
    let mut samples = Vec::new();
    for _ in 0..count {
        let sample = calls::call(&mut connection, &names[0], &event).await?;
        // The first of an instance is another figure.
        if sample.start() == "warm" {
            samples.push(sample);
        }
    }
    let used = processes::cpu_of_tree(pid)?.saturating_sub(before);
    let cpu = used / u32::try_from(count).unwrap_or(u32::MAX);
    let row = Row::of("a warm call through the API", &samples)?
        .with("cpu_us_each", cpu.as_secs_f64() * 1e6)
        .with("warm_percent", samples.len() as f64 * 100.0 / count as f64);
    Ok(Report {
        name: "control-warm".to_owned(),
        method: format!(
            "{count} calls by one client of a sandbox that answers at once, mode {}",
            settings.mode
        ),
        machine,
        targets: vec![
            Target::at_most("a warm call, median", OVERHEAD.0, row.summary.p50),
            Target::at_most("a warm call, processor time", OVERHEAD.1, cpu),
        ],
        rows: vec![row],
        tables: Vec::new(),
        chart: None,
        remarks: Vec::new(),
    })
}
