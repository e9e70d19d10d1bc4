//! Cold starts a second: rates are tried one after the other until one is not sustained.
//!
//! Memory has a price at which no instance is worth keeping, so that every call is a cold start: of the fake sandbox, or of
//! a micro-VM from its snapshot. A rate is sustained when no call fails, the 99th percentile stays within its bound, and
//! answers do not fall behind arrivals.

use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;

use super::{
    AMPLE, Settings, deploy,
    load::{self, CONNECTIONS, Load, Taken},
};
use crate::bench::{
    calls,
    figures::{Chart, Curve, Table},
    handlers,
    machine::Machine,
    own::Server,
    processes,
    report::{Report, Row},
    targets::Target,
};

/// A price of memory at which nothing is worth keeping.
const DEAR: &str = "1000000000";

/// What one start of the fake sandbox takes, and its bound at the 99th percentile.
const FAKE_P99_MAX: Duration = Duration::from_millis(100);

/// The bound for micro-VMs.
const REAL_P99_MAX: Duration = Duration::from_millis(20);

/// What a modified Dirigent has reached on such a machine, and what is to be reached, in cold starts a second.
const FAKE_RATES: (f64, f64) = (400.0, 2000.0);

/// Processor time that a life cycle of Dirigent's takes (3.9 to 5 ms), and that ours may take.
const LIFE_CYCLE: (Duration, Duration) = (Duration::from_micros(3900), Duration::from_micros(600));

/// Seconds that instances wait armed: memory that is so dear would not be kept for that either.
const KEEP_ARMED: &str = "300";

/// Cold starts of micro-VMs a second that are to be reached.
const REAL_RATE: f64 = 500.0;

/// Part of the arrivals that must have been answered when the last is due.
const KEEPS_UP: f64 = 0.95;

/// Part of the calls that must have been cold starts for a rate to count.
const COLD: f64 = 0.95;

/// First calls of each function, one after the other.
const LEARNING: usize = 5;

/// Before a rate is measured, it is offered for so long.
const WARM_UP: Duration = Duration::from_secs(1);

/// One rate, measured.
struct Rate {
    row: Row,
    rate: f64,
    cpu: Option<Duration>,
    is_sustained: bool,
}

/// With sandboxes that are only waited for.
pub async fn fake(settings: &Settings) -> Result<Report> {
    let machine = Machine::this();
    let server = settings.fake(AMPLE, &["--memory-price", DEAR]).await?;
    let event = Bytes::from_static(b"{}");
    let names = deploy(&server, settings.functions).await?;
    let rates = measure(settings, &server, &settings.rates, (names, event, FAKE_P99_MAX)).await?;
    let best = rates.iter().rev().find(|rate| rate.is_sustained);
    let reached = best.map_or(0.0, |rate| rate.rate);
    let mut targets = vec![Target::at_least(
        "cold starts sustained with p99 under 100 ms",
        FAKE_RATES.1,
        reached,
        "/s",
    )];
    if let Some(cpu) = best.and_then(|rate| rate.cpu) {
        targets.push(Target::at_most(
            "processor time of a cold start's life cycle",
            LIFE_CYCLE.1,
            cpu,
        ));
    }
    let mut report = report("control-cold", settings, machine, rates);
    report.method = format!(
        "cold starts of a sandbox of 40 ms through the API, {} functions in turn, exponential arrivals, {} s each rate, \
         mode {}",
        settings.functions,
        settings.length.as_secs(),
        settings.mode
    );
    report.targets = targets;
    report.remarks.push(format!(
        "published or measured here before, not in this run: a modified Dirigent {} cold starts a second, {} to 5 ms of \
         processor time each",
        FAKE_RATES.0,
        LIFE_CYCLE.0.as_secs_f64() * 1e3
    ));
    report
        .remarks
        .push("the clients run on the same processors as the server".to_owned());
    Ok(report)
}

/// With micro-VMs.
pub async fn real(settings: &Settings) -> Result<Report> {
    let machine = Machine::this();
    let options = [
        "--memory-price",
        DEAR,
        "--keep-armed",
        KEEP_ARMED,
        "--mode",
        &settings.mode,
    ];
    let server = Server::start_with(&settings.data_dir, "auto", &options).await?;
    let event: Bytes = handlers::event().to_string().into();
    let names = deploy(&server, settings.real_functions).await?;
    // What a node learns from a version's first runs is not what its starts cost from then on.
    for name in names.iter().flat_map(|name| std::iter::repeat_n(name, LEARNING)) {
        server.quiet().await?;
        calls::call(&mut server.client().connect().await?, name, &event).await?;
    }
    let rates = measure(
        settings,
        &server,
        &settings.real_rates,
        (names, event, REAL_P99_MAX),
    )
    .await?;
    let best = rates.iter().rev().find(|rate| rate.is_sustained);
    let reached = best.map_or(0.0, |rate| rate.rate);
    let mut report = report("control-real", settings, machine, rates);
    report.method = format!(
        "cold starts of json and hashlib in sandboxes through the API, {} functions in turn, exponential arrivals, {} s each \
         rate, mode {}",
        settings.real_functions,
        settings.length.as_secs(),
        settings.mode
    );
    report.targets = vec![Target::at_least(
        "cold starts sustained with p99 under 20 ms",
        REAL_RATE,
        reached,
        "/s",
    )];
    Ok(report)
}

async fn measure(
    settings: &Settings,
    server: &Server,
    rates: &[u32],
    (names, event, p99_max): (Vec<String>, Bytes, Duration),
) -> Result<Vec<Rate>> {
    server.quiet().await?;
    let mut measured: Vec<Rate> = Vec::new();
    for rate in rates {
        let mut load = Load {
            names: names.clone(),
            event: event.clone(),
            rate: f64::from(*rate),
            length: WARM_UP,
            connections: CONNECTIONS,
        };
        load::offer(server.client(), &load).await?;
        load.length = settings.length;
        let pid = server.pid().context("the server was not started here")?;
        let before = processes::cpu_of_tree(pid)?;
        let taken = load::offer(server.client(), &load).await?;
        let used = processes::cpu_of_tree(pid)?.saturating_sub(before);
        let rate = judge(&load, &taken, used, p99_max)?;
        eprintln!(
            "  {} a second: {}",
            load.rate,
            if rate.is_sustained {
                "sustained"
            } else {
                "not sustained"
            }
        );
        let is_over = !rate.is_sustained;
        measured.push(rate);
        if is_over {
            break;
        }
    }
    Ok(measured)
}

fn judge(load: &Load, taken: &Taken, used: Duration, p99_max: Duration) -> Result<Rate> {
    let cold = |start: &str| matches!(start, "restored" | "armed" | "booted");
    let count = taken.samples.len();
    let cold = taken.samples.iter().filter(|sample| cold(sample.start())).count();
    let row = Row::of(format!("{} a second", load.rate), &taken.samples)
        .with_context(|| format!("no call was answered: {:?}", taken.failures.first()))?;
    let share = cold as f64 / count.max(1) as f64;
    let kept_up = load.length.as_secs_f64() / taken.elapsed.as_secs_f64().max(f64::EPSILON);
    let cpu = used.checked_div(u32::try_from(count).unwrap_or(u32::MAX));
    let is_sustained =
        taken.failures.is_empty() && row.summary.p99 < p99_max && share >= COLD && kept_up >= KEEPS_UP;
    let cpu_us = cpu.map_or(0.0, |cpu| cpu.as_secs_f64() * 1e6);
    Ok(Rate {
        row: row
            .with_rate(count, taken.elapsed)
            .with("cold_percent", share * 100.0)
            .with("failed", taken.failures.len() as f64)
            .with("cpu_us_each", cpu_us),
        rate: load.rate,
        cpu,
        is_sustained,
    })
}

fn report(name: &str, settings: &Settings, machine: Machine, rates: Vec<Rate>) -> Report {
    let point = |rate: &Rate, of: Duration| (rate.rate, of.as_secs_f64() * 1e3);
    let curve = |label: &str, of: fn(&Row) -> Duration| Curve {
        label: label.to_owned(),
        is_peer: false,
        points: rates.iter().map(|rate| point(rate, of(&rate.row))).collect(),
    };
    let chart = Chart {
        title: format!("cold starts, mode {}", settings.mode),
        axes: ["cold starts a second".to_owned(), "milliseconds".to_owned()],
        curves: vec![
            curve("p50", |row| row.summary.p50),
            curve("p99", |row| row.summary.p99),
        ],
    };
    let mut table = Table::new("sustained", &["rate_per_s", "sustained", "cpu_us_each"]);
    for rate in &rates {
        let cpu = rate.cpu.map(|cpu| cpu.as_secs_f64() * 1e6);
        let numbers = vec![Some(rate.rate), Some(f64::from(u8::from(rate.is_sustained))), cpu];
        table.lines.push((rate.row.label.clone(), numbers));
    }
    Report {
        name: name.to_owned(),
        method: String::new(),
        machine,
        rows: rates.into_iter().map(|rate| rate.row).collect(),
        tables: vec![table],
        chart: Some(chart),
        targets: Vec::new(),
        remarks: Vec::new(),
    }
}
