//! `--part clients`: calls through the API, with one client and with sixteen.
//!
//! With one client, each call waits until the server is at rest: its latency is that of a single request. Then one client, and
//! sixteen, call as fast as they are answered, and the processor time of the server, its workers and their guests is divided by
//! the calls. What it takes to end an instance and to prepare the next is part of that: it is part of such a call, if not of its
//! latency.
//!
//! The sixteen have a function each. That is fifteen more functions besides fifteen more clients, whose memory processors' caches
//! have to hold: so warm calls are made, too, by sixteen clients of one function, and by one client of sixteen functions.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use tempfile::TempDir;

use super::Settings;
use crate::{
    bench::{
        calls::{self, Sample},
        figures::Table,
        handlers::{self, PLAIN},
        machine::Machine,
        own::{Server, Start, UNSCALED},
        processes,
        report::{Report, Row},
        targets::Target,
    },
    client::Client,
    output::progress,
};

/// Clients that call at once.
const CLIENTS: [usize; 2] = [1, 16];

/// Calls of each function before anything is measured: layouts and grafts are learned from them.
const WARM_UP: usize = 8;

/// Calls without pauses for each sample that was asked for: warm ones take a twentieth of the time of others, and what becomes of
/// idle instances in the end is to be a small part of them.
const CALLS_PER_ROUND: usize = 4;
const WARM_CALLS_PER_ROUND: usize = 80;

/// How much more processor time a call may take with sixteen clients, and how far its tail may be from its median with one.
const GROWTH_MAX: f64 = 1.2;
const TAIL_MAX: f64 = 2.0;

/// Longest medians end to end, with one client.
const UNPREPARED_MAX: Duration = Duration::from_micros(1500);
const SHAPED_MAX: Duration = Duration::from_micros(900);
const ARMED_MAX: Duration = Duration::from_micros(700);

/// What a call is to find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Nothing of its version.
    Unprepared,
    /// An armed instance.
    Armed,
    /// An idle one.
    Warm,
}

impl Kind {
    fn calls_per_round(self) -> usize {
        match self {
            Self::Unprepared | Self::Armed => CALLS_PER_ROUND,
            Self::Warm => WARM_CALLS_PER_ROUND,
        }
    }
}

/// Which functions clients call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Choice {
    /// Each its own.
    Own,
    /// All the same.
    One,
    /// Each all sixteen, in turn.
    All,
}

impl Choice {
    /// The functions of each of so many clients.
    fn of(self, clients: usize, names: &[String]) -> Vec<Vec<String>> {
        let own = |client: usize| match self {
            Self::Own => vec![names[client].clone()],
            Self::One => vec![names[0].clone()],
            Self::All => names.to_vec(),
        };
        (0..clients).map(own).collect()
    }
}

/// What one client is compared with sixteen at.
struct Comparison {
    label: &'static str,
    kind: Kind,
    choices: [Choice; 2],
}

const COMPARISONS: [Comparison; 5] = [
    Comparison {
        label: "unprepared, a function each",
        kind: Kind::Unprepared,
        choices: [Choice::Own; 2],
    },
    Comparison {
        label: "armed, a function each",
        kind: Kind::Armed,
        choices: [Choice::Own; 2],
    },
    Comparison {
        label: "warm, one function",
        kind: Kind::Warm,
        choices: [Choice::One; 2],
    },
    Comparison {
        label: "warm, sixteen functions",
        kind: Kind::Warm,
        choices: [Choice::All, Choice::Own],
    },
    Comparison {
        label: "warm, a function each",
        kind: Kind::Warm,
        choices: [Choice::Own; 2],
    },
];

/// Measures.
pub async fn run(settings: &Settings) -> Result<Report> {
    let machine = Machine::this();
    let dir = TempDir::with_prefix("gust-bench-code-").context("make a directory for code")?;
    let code = dir.path().join("code");
    PLAIN.write(&code)?;
    // As many instances may be idle as there are clients; none is to wait for another's place.
    let options = [&["--concurrency", "1000"], UNSCALED].concat();
    let server = Server::start_with(&settings.data_dir, "kvm", &options).await?;
    let event = Bytes::from(handlers::event().to_string());
    let most = CLIENTS.into_iter().max().unwrap_or(1);
    let names: Vec<String> = (0..most).map(|n| format!("{}-{n}", PLAIN.name)).collect();
    let bar = progress("functions", names.len());
    for name in &names {
        server.deploy(&PLAIN, name, None, &code).await?;
        for _ in 0..WARM_UP {
            server.quiet().await?;
            server.evict(name, true).await?;
            calls::call(&mut server.client().connect().await?, name, &event).await?;
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let (mut rows, mut targets) = one_by_one(&server, &names[0], &event, settings.rounds).await?;
    let columns: Vec<String> = CLIENTS
        .iter()
        .flat_map(|clients| {
            ["cpu_ms", "calls_per_s", "as_meant_percent"].map(|column| format!("{column}_{clients}"))
        })
        .chain(["growth".to_owned()])
        .collect();
    let mut table = Table {
        title: "processor time of one call (server, workers, guests), with 1 client and with 16".to_owned(),
        columns,
        lines: Vec::new(),
    };
    for Comparison { label, kind, choices } in COMPARISONS {
        let (mut numbers, mut spent) = (Vec::new(), Vec::new());
        for (clients, choice) in CLIENTS.into_iter().zip(choices) {
            let calls = settings.rounds as usize * kind.calls_per_round();
            let load = at_once(&server, kind, choice.of(clients, &names), &event, calls)
                .await
                .with_context(|| format!("call {label} instances with {clients} clients"))?;
            let cpu_ms = load.cpu.as_secs_f64() * 1e3 / load.samples.len() as f64;
            spent.push(cpu_ms);
            let rate = load.samples.len() as f64 / load.elapsed.as_secs_f64();
            numbers.extend([cpu_ms, rate, load.as_meant_percent(kind)].map(Some));
            let row = Row::of(format!("{label}, {clients} client(s), no pause"), &load.samples)?;
            rows.push(row.with_rate(load.samples.len(), load.elapsed));
        }
        let growth = spent[1] / spent[0];
        numbers.push(Some(growth));
        table.lines.push((label.to_owned(), numbers));
        let what = format!("{label}: processor time of a call with 16 clients, against 1");
        targets.push(Target::ratio_at_most(what, GROWTH_MAX, growth));
    }
    Ok(Report {
        name: "sandbox-clients".to_owned(),
        method: format!(
            "calls of {} through the API, {} samples of one client",
            PLAIN.what, settings.rounds
        ),
        machine,
        rows,
        tables: vec![table],
        chart: None,
        targets,
        remarks: Vec::new(),
    })
}

/// One client that waits for the server to be at rest before each call.
async fn one_by_one(
    server: &Server,
    name: &str,
    event: &Bytes,
    rounds: u64,
) -> Result<(Vec<Row>, Vec<Target>)> {
    let mut taken: BTreeMap<&str, (Duration, Vec<Sample>)> = BTreeMap::new();
    let bar = progress("one client", rounds as usize);
    for _ in 0..rounds {
        // What the node has at hand decides: a worker with the runtime's base in it, or an empty one.
        server.quiet().await?;
        let shaped = server.node().await?["shaped"].as_u64().unwrap_or(0) > 0;
        let (label, wanted) = match shaped {
            true => ("base-shaped", SHAPED_MAX),
            false => ("unprepared", UNPREPARED_MAX),
        };
        let sample = server.cold_call(name, event, Start::Unprepared).await?;
        taken.entry(label).or_insert((wanted, Vec::new())).1.push(sample);
        let sample = server.cold_call(name, event, Start::Armed).await?;
        taken
            .entry("armed")
            .or_insert((ARMED_MAX, Vec::new()))
            .1
            .push(sample);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let (mut rows, mut targets) = (Vec::new(), Vec::new());
    for (label, (wanted, samples)) in taken {
        let row = Row::of(format!("{label}, 1 client, server at rest"), &samples)?;
        let (median, tail) = (row.summary.p50, row.summary.p99);
        targets.push(Target::at_most(format!("{}: median", row.label), wanted, median));
        let what = format!("{}: p99 against the median", row.label);
        targets.push(Target::times_as_long(what, TAIL_MAX, tail, median));
        rows.push(row);
    }
    Ok((rows, targets))
}

/// What some clients came to.
#[derive(Debug)]
struct Load {
    samples: Vec<Sample>,
    elapsed: Duration,
    cpu: Duration,
}

impl Load {
    /// Share of calls whose instance came to be as it was to.
    fn as_meant_percent(&self, kind: Kind) -> f64 {
        let meant = match kind {
            Kind::Unprepared => "restored",
            Kind::Armed => "armed",
            Kind::Warm => "warm",
        };
        let count = self
            .samples
            .iter()
            .filter(|sample| sample.start() == meant)
            .count();
        100.0 * count as f64 / self.samples.len() as f64
    }
}

/// Clients that each call their functions in turn, as fast as they are answered.
async fn at_once(
    server: &Server,
    kind: Kind,
    clients: Vec<Vec<String>>,
    event: &Bytes,
    calls: usize,
) -> Result<Load> {
    let pid = server.pid().context("the server was not started here")?;
    let each = calls.div_ceil(clients.len());
    if kind == Kind::Warm {
        // Emergency instances have given way to regular ones by then, as many as these clients need.
        for name in clients.iter().flatten() {
            server.evict(name, false).await?;
        }
        all(server, kind, &clients, event, each).await?;
    }
    server.quiet().await?;
    let cpu_before = processes::cpu_of_tree(pid)?;
    let began = Instant::now();
    let samples = all(server, kind, &clients, event, each).await?;
    let elapsed = began.elapsed();
    // What the last calls still cause belongs to them.
    server.quiet().await?;
    let cpu = processes::cpu_of_tree(pid)?.saturating_sub(cpu_before);
    ensure!(!samples.is_empty(), "no call was made");
    Ok(Load {
        samples,
        elapsed,
        cpu,
    })
}

/// So many calls of each client, all at once, but of each of its functions one at least.
async fn all(
    server: &Server,
    kind: Kind,
    clients: &[Vec<String>],
    event: &Bytes,
    calls: usize,
) -> Result<Vec<Sample>> {
    let mut running = Vec::new();
    for names in clients {
        let (client, names, event) = (server.client().clone(), names.clone(), event.clone());
        running.push(tokio::spawn(async move {
            one(&client, kind, &names, &event, calls.max(names.len())).await
        }));
    }
    let mut samples = Vec::new();
    for client in running {
        samples.extend(client.await.context("a client failed")??);
    }
    Ok(samples)
}

async fn one(
    client: &Client,
    kind: Kind,
    names: &[String],
    event: &Bytes,
    calls: usize,
) -> Result<Vec<Sample>> {
    let mut connection = client.connect().await?;
    let mut samples = Vec::with_capacity(calls);
    for name in names.iter().cycle().take(calls) {
        match kind {
            Kind::Unprepared => calls::evict(&mut connection, name, false).await?,
            Kind::Armed => calls::evict(&mut connection, name, true).await?,
            Kind::Warm => {}
        }
        samples.push(calls::call(&mut connection, name, event).await?);
    }
    Ok(samples)
}
