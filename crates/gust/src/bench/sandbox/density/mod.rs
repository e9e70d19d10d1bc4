//! `--part density`: what an idle clone costs, all in, and whether any of a thousand still answers.
//!
//! Clones of one Python function in a server of this very program, workers and all; then the same handler in as many plain
//! processes and containers as are asked for. What is taken is the fall of the machine's available memory, which leaves nothing
//! out: guest, page tables, worker, KVM. Beside it stand the proportional sets of the processes, which leave out what the
//! kernel holds for them. The machine should do nothing else meanwhile.
//!
//! | kind | what it is |
//! |---|---|
//! | armed | laid out and touched ahead, never run |
//! | idle | has answered once, its memory as it was left |
//! | frozen | idle, and then put by until it is needed again, where the node does that |

mod clones;
mod memory;
mod peers;

use anyhow::Result;
use clap::Args;

use self::memory::{KINDS, Memory};
use super::{Settings, leave_out};
use crate::bench::{
    calls::Sample,
    figures::{Chart, Curve, Table, slope},
    handlers::Handler,
    machine::Machine,
    report::{Report, Row},
    targets::Target,
};
use std::time::Duration;

/// What a clone may cost.
const ARMED_BYTES_MAX: u64 = 2 << 20;
const FROZEN_BYTES_MAX: u64 = 300 << 10;

/// The longest that any of the clones may need beyond its handler.
const ANSWER_MAX: Duration = Duration::from_millis(20);

/// Memory that is left to the machine: a measurement that comes to it ends there.
const FLOOR_BYTES: u64 = 2 << 30;

/// The function.
const HOLD: Handler = Handler {
    name: "hold",
    what: "answers its event when it may",
    source: include_str!("../functions/hold.py"),
    compared: Clone::clone,
};

/// How many.
#[derive(Debug, Clone, Args)]
pub struct DensityArgs {
    /// Clones whose memory is measured
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    clones: u32,
    /// Peers whose memory is measured: plain processes, and containers
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    peer_clones: u32,
}

/// What some clones of one kind came to.
#[derive(Debug)]
struct Measured {
    label: &'static str,
    is_peer: bool,
    /// Before the first of them, and with all.
    before: Memory,
    after: Memory,
    /// Proportional set of their processes, what there was before taken off, in bytes.
    pss_bytes: u64,
    /// How many there were, and what they took together, in bytes.
    points: Vec<(f64, f64)>,
}

impl Measured {
    fn clones(&self) -> f64 {
        self.points.last().map_or(1.0, |(clones, _)| *clones)
    }

    /// What one more costs, in bytes.
    fn each_bytes(&self) -> f64 {
        slope(&self.points).unwrap_or_else(|| self.after.taken_since(&self.before) / self.clones())
    }

    /// Clones, what one more takes, what all took divided by them, the proportional set, and the kinds of memory.
    fn line(&self) -> (String, Vec<Option<f64>>) {
        let clones = self.clones();
        let kib = |bytes: f64| Some(bytes / 1024.0);
        let mut numbers = vec![
            Some(clones),
            kib(self.each_bytes()),
            kib(self.after.taken_since(&self.before) / clones),
            kib(self.pss_bytes as f64 / clones),
        ];
        let kinds = self.after.kinds_since(&self.before);
        numbers.extend(kinds.map(|bytes| kib(bytes / clones)));
        (self.label.to_owned(), numbers)
    }

    fn curve(&self) -> Curve {
        let mib = |(clones, bytes): &(f64, f64)| (*clones, bytes / f64::from(1 << 20));
        Curve {
            label: self.label.to_owned(),
            is_peer: self.is_peer,
            points: std::iter::once(&(0.0, 0.0))
                .chain(&self.points)
                .map(mib)
                .collect(),
        }
    }
}

/// Measures.
pub async fn run(settings: &Settings, arguments: &DensityArgs) -> Result<Report> {
    let machine = Machine::this();
    let mut remarks = Vec::new();
    let armed = clones::armed(settings, arguments.clones).await?;
    let (idle, frozen) = clones::idle(settings, arguments.clones, &mut remarks).await?;
    let mut targets = vec![answering(&armed.answers)?];
    let each = |what: &str, wanted: u64, measured: &Measured| {
        Target::bytes_at_most(what, wanted, measured.each_bytes().max(0.0) as u64)
    };
    targets.push(each("an armed clone, all in", ARMED_BYTES_MAX, &armed.measured));
    targets.extend(
        frozen
            .as_ref()
            .map(|frozen| each("a frozen clone, all in", FROZEN_BYTES_MAX, frozen)),
    );
    let mut rows = vec![Row::of_durations(
        "any armed clone: overhead",
        &overheads(&armed.answers),
    )?];
    rows.push(Row::of("any armed clone: call", &armed.answers)?);
    let mut all = vec![armed.measured, idle];
    all.extend(frozen);
    match peers::processes(arguments.peer_clones) {
        Ok(measured) => all.push(measured),
        Err(error) => leave_out(&mut remarks, "plain processes", &error),
    }
    match peers::containers(settings, arguments.peer_clones) {
        Ok(measured) => all.push(measured),
        Err(error) => leave_out(&mut remarks, "containers", &error),
    }
    let columns: Vec<String> = ["clones", "each_kib", "all_in_kib", "pss_kib"]
        .map(str::to_owned)
        .into_iter()
        .chain(KINDS.map(|kind| format!("{}_kib", kind.to_lowercase())))
        .collect();
    let title = "memory of one clone (each: what one more takes; all_in: what all took, by their number)";
    let lines = all.iter().map(Measured::line).collect();
    Ok(Report {
        name: "sandbox-density".to_owned(),
        method: format!("{} clones of one Python function in one server", arguments.clones),
        machine,
        rows,
        tables: vec![Table {
            title: title.to_owned(),
            columns,
            lines,
        }],
        chart: Some(Chart {
            title: "memory of idle clones of one Python function".to_owned(),
            axes: ["clones".to_owned(), "MiB".to_owned()],
            curves: all.iter().map(Measured::curve).collect(),
        }),
        targets,
        remarks,
    })
}

/// What the calls took beyond their handlers.
fn overheads(answers: &[Sample]) -> Vec<Duration> {
    answers.iter().filter_map(Sample::overhead).collect()
}

fn answering(answers: &[Sample]) -> Result<Target> {
    let slowest = overheads(answers).into_iter().max().unwrap_or_default();
    let what = format!("any of {} armed clones: slowest overhead", answers.len());
    Ok(Target::at_most(what, ANSWER_MAX, slowest))
}
