//! A function that is called now and then, alone and beside a flood on another.
//!
//! The node has room for few instances, and the flood keeps more clients waiting than there is room. Sandboxes are only
//! waited for, so that it is places that run short and not this machine's processors, which the clients need too.

use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;

use super::{
    Settings, deploy,
    load::{self, Load},
};
use crate::bench::{
    machine::Machine,
    report::{Report, Row},
    targets::Target,
};

/// Instances that the node has room for.
const ROOM: &str = "32";

/// Calls of the flood that are there at the same time.
const FLOOD: usize = 128;

/// Calls a second that the flood offers: more than there is room for.
const FLOOD_RATE: f64 = 5000.0;

/// Calls a second of the bystander.
const RATE: f64 = 20.0;

/// How far the flood may move the bystander's 99th percentile.
const MOVED_MAX: f64 = 1.2;

/// Measures.
pub async fn run(settings: &Settings) -> Result<Report> {
    let machine = Machine::this();
    let server = settings.fake(ROOM, &[]).await?;
    let names = deploy(&server, 2).await?;
    let [flood, bystander] = [&names[0], &names[1]].map(|name| Load {
        names: vec![name.clone()],
        event: Bytes::from_static(b"{\"duration_ms\": 20}"),
        rate: RATE,
        length: settings.length,
        connections: 16,
    });
    let flood = Load {
        rate: FLOOD_RATE,
        connections: FLOOD,
        ..flood
    };
    let alone = load::offer(server.client(), &bystander).await?;
    let (flooding, beside) = tokio::join!(
        flood_for(&server, &flood),
        load::offer(server.client(), &bystander)
    );
    let (flooding, beside) = (flooding?, beside?);
    let row = |label: &str, taken: &load::Taken| -> Result<Row> {
        Ok(Row::of(label, &taken.samples)?
            .with_rate(taken.samples.len(), taken.elapsed)
            .with("failed", taken.failures.len() as f64))
    };
    let rows = vec![
        row("bystander alone", &alone)?,
        row("bystander beside the flood", &beside)?,
        row("flood", &flooding)?,
    ];
    let ratio = rows[1].summary.p99.as_secs_f64() / rows[0].summary.p99.as_secs_f64();
    Ok(Report {
        name: "control-fairness".to_owned(),
        method: format!(
            "{RATE} calls a second of 20 ms for one function, alone and while {FLOOD} clients flood another; room for {ROOM} \
             instances, mode {}",
            settings.mode
        ),
        machine,
        targets: vec![Target::ratio_at_most(
            "bystander's p99 beside the flood, over alone",
            MOVED_MAX,
            ratio,
        )],
        rows,
        tables: Vec::new(),
        chart: None,
        remarks: Vec::new(),
    })
}

/// The flood, for as long as the bystander's calls come.
async fn flood_for(server: &crate::bench::own::Server, load: &Load) -> Result<load::Taken> {
    let limit = load.length + Duration::from_secs(1);
    load::offer_until(server.client(), load, limit).await
}
