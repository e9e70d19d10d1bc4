//! `--part layouts`: one event in each of the layouts that a snapshot can be given, inside the worker.
//!
//! The time runs from a machine as the pool has it to the answer, so it holds the restore and the handler, or, where the
//! restore was done ahead, the handler alone. Rounds are taken in blocks of one layout, and the blocks in turn, so that a noisy
//! moment of the machine falls on all of them.

use std::{
    ops::Range,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use gust_node::Scratch;
use gust_worker::{
    kvm::Sandbox,
    protocol::{MemoryMode, WorkerTimings},
};

use super::{
    Settings,
    function::{BOTO3, Function, NODE_PLAIN, PLAIN},
    guest::{anonymous_bytes, median, timings as told, until_waits},
    lab::{Lab, Layout},
};
use crate::{
    bench::{
        calls::Sample,
        handlers,
        machine::Machine,
        report::{Report, Row},
        targets::Target,
    },
    output::progress,
};
/// Samples of one layout that are taken in a row.
const BLOCK: u64 = 20;

/// Samples of each layout whose memory is looked at, which would disturb their time.
const MEMORY_SAMPLES: u64 = 3;

/// What a plain Python function is to take inside the worker.
const UNPREPARED_MAX: Duration = Duration::from_millis(1);
const GRAFTED_MAX: Duration = Duration::from_micros(300);
const ARMED_MAX: Duration = Duration::from_micros(120);

/// Zeroboot's published figures.
const ZEROBOOT: [(&str, Duration); 2] = [
    ("Zeroboot: fork of a VM", Duration::from_micros(790)),
    ("Zeroboot: until Python has run", Duration::from_millis(8)),
];

/// A way to meet an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Laid out for it.
    LaidOut(Layout),
    /// Copied back to the snapshot after the last one.
    Rewound,
    /// As the last one left it.
    Warm,
}

impl Way {
    /// Where nothing of the version is prepared.
    pub const UNPREPARED: Self = Self::LaidOut(Layout::Fast);
}

const WAYS: [(Way, &str, Option<Duration>); 7] = [
    (Way::LaidOut(Layout::Unknown), "no layout", None),
    (Way::LaidOut(Layout::Compact), "compact layout", None),
    (Way::UNPREPARED, "unprepared", Some(UNPREPARED_MAX)),
    (Way::LaidOut(Layout::Grafted), "base-shaped", Some(GRAFTED_MAX)),
    (Way::LaidOut(Layout::Armed), "armed", Some(ARMED_MAX)),
    (Way::Rewound, "copied back", Some(ARMED_MAX)),
    (Way::Warm, "warm, memory kept", None),
];

/// What one way has given.
#[derive(Debug, Default)]
struct Taken {
    samples: Vec<Sample>,
    /// What was done off the path: arming, copying back.
    aside: Vec<Duration>,
    faults: Vec<u64>,
    exits: Vec<u64>,
    private_bytes: Vec<u64>,
}

/// Measures.
pub fn run(settings: &Settings) -> Result<Report> {
    let machine = Machine::this();
    let (mut rows, mut targets, mut remarks) = (Vec::new(), Vec::new(), Vec::new());
    for function in [PLAIN, BOTO3, NODE_PLAIN] {
        let Some(image) = settings.runtime(function.runtime, &mut remarks) else {
            continue;
        };
        measure(settings, &image, &function, &mut rows, &mut targets)
            .with_context(|| format!("measure {}", function.name))?;
    }
    rows.extend(ZEROBOOT.map(|(label, took)| Row::published(label, took)));
    Ok(Report {
        name: "sandbox-layouts".to_owned(),
        method: format!(
            "{} rounds of each layout inside one process: from a pooled machine to the answer, every answer checked",
            settings.rounds
        ),
        machine,
        rows,
        tables: Vec::new(),
        chart: None,
        targets,
        remarks,
    })
}

fn measure(
    settings: &Settings,
    image: &Path,
    function: &Function,
    rows: &mut Vec<Row>,
    targets: &mut Vec<Target>,
) -> Result<()> {
    let scratch = Scratch::new();
    let events = [handlers::event(), handlers::another_event()];
    let lab = Lab::prepare(image, function, events, &|| scratch.file().map(Into::into))?;
    for (way, row) in all_ways(&lab, function.name, settings.rounds)? {
        let wanted = WAYS.iter().find(|(known, _, _)| *known == way);
        if let Some((_, _, Some(wanted))) = wanted.filter(|_| function.name == PLAIN.name) {
            let what = format!("{}: median", row.label);
            targets.push(Target::at_most(what, *wanted, row.summary.p50));
        }
        rows.push(row);
    }
    Ok(())
}

/// One function in every way.
pub fn all_ways(lab: &Lab, name: &'static str, rounds: u64) -> Result<Vec<(Way, Row)>> {
    let bar = progress(name, rounds as usize * WAYS.len());
    let mut taken = WAYS.map(|_| Taken::default());
    let mut done = 0;
    while done < rounds {
        let block = BLOCK.min(rounds - done);
        for ((way, _, _), taken) in WAYS.iter().zip(&mut taken) {
            take(lab, *way, done..done + block, false, taken)?;
            bar.inc(block);
        }
        done += block;
    }
    bar.finish_and_clear();
    let mut rows = Vec::new();
    for ((way, label, _), mut taken) in WAYS.into_iter().zip(taken) {
        take(lab, way, 0..MEMORY_SAMPLES, true, &mut taken)?;
        rows.push((way, row(&format!("{name}: {label}"), &taken)?));
    }
    Ok(rows)
}

fn row(label: &str, taken: &Taken) -> Result<Row> {
    let mut row = Row::of(label, &taken.samples)?
        .with("faults", middle(&taken.faults))
        .with("exits", middle(&taken.exits))
        .with("private_mib", middle(&taken.private_bytes) / f64::from(1 << 20));
    if let Some(aside) = median(&taken.aside) {
        row = row.with("off_path_us", aside.as_secs_f64() * 1e6);
    }
    Ok(row)
}

/// The middle one of some counts; zero of none.
fn middle(counts: &[u64]) -> f64 {
    let mut sorted = counts.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).map_or(0.0, |count| *count as f64)
}

/// Takes samples in one way; their memory, or their time.
fn take(lab: &Lab, way: Way, rounds: Range<u64>, memory: bool, taken: &mut Taken) -> Result<()> {
    match way {
        Way::LaidOut(layout) => {
            for n in rounds {
                laid_out(lab, layout, n, memory, taken)?;
            }
        }
        Way::Rewound => stays(lab, MemoryMode::Fresh, rounds, memory, taken)?,
        Way::Warm => stays(lab, MemoryMode::Reuse, rounds, memory, taken)?,
    }
    Ok(())
}

fn laid_out(lab: &Lab, layout: Layout, n: u64, memory: bool, taken: &mut Taken) -> Result<()> {
    let before = if memory { anonymous_bytes()? } else { 0 };
    let room = lab.room(layout)?;
    let began = Instant::now();
    let mut sandbox = lab.lay_out(room, layout, n, MemoryMode::Reuse)?;
    let restored = began.elapsed();
    lab.answer(&mut sandbox, n)?;
    let latency = began.elapsed();
    if memory {
        let after = anonymous_bytes()?;
        taken.private_bytes.push(after.saturating_sub(before));
        return Ok(());
    }
    let is_ahead = layout == Layout::Armed;
    if is_ahead {
        taken.aside.push(restored);
    }
    let latency = if is_ahead { latency - restored } else { latency };
    note(&mut sandbox, latency, is_ahead, taken);
    Ok(())
}

/// One instance that meets all events of a block.
fn stays(lab: &Lab, mode: MemoryMode, rounds: Range<u64>, memory: bool, taken: &mut Taken) -> Result<()> {
    let before = if memory { anonymous_bytes()? } else { 0 };
    let mut sandbox = lab.lay_out(lab.room(Layout::Armed)?, Layout::Armed, rounds.start, mode)?;
    // The first event meets an armed instance, which is another way.
    let mut is_first = true;
    for n in std::iter::once(rounds.start).chain(rounds) {
        let began = Instant::now();
        lab.answer(&mut sandbox, n)?;
        let latency = began.elapsed();
        if !std::mem::take(&mut is_first) && !memory {
            note(&mut sandbox, latency, true, taken);
        }
        until_waits(&mut sandbox)?;
        if mode == MemoryMode::Fresh {
            let began = Instant::now();
            sandbox.rewind()?;
            taken.aside.push(began.elapsed());
        }
    }
    if memory {
        let after = anonymous_bytes()?;
        taken.private_bytes.push(after.saturating_sub(before));
    }
    Ok(())
}

fn note(sandbox: &mut Sandbox, latency: Duration, laid_out_ahead: bool, taken: &mut Taken) {
    let mut timings = sandbox.take_timings();
    if laid_out_ahead {
        timings = WorkerTimings {
            map_ns: 0,
            fill_ns: 0,
            ..timings
        };
    }
    taken.faults.push(timings.faults);
    taken.exits.push(timings.exits);
    taken.samples.push(Sample {
        latency,
        timings: told(&timings),
        body: bytes::Bytes::new(),
    });
}
