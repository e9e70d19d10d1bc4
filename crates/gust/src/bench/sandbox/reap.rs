//! `--part reap`: restores from a disk whose contents are not in memory, with the working set brought in ahead and without.
//!
//! REAP (ASPLOS 2021) records the pages that the first invocations touch, keeps them in one block, and reads that before the
//! guest runs. Here the block is the layout; without it every page is read when the guest meets it. With it there are two
//! ways: in a blank machine, and, as the platform restores a function of a runtime of its own, in one that holds the runtime's
//! base, which has been laid out ahead and is no tenant's. Snapshots lie in files
//! of a directory on a disk, each instance has copies of its own, and before each sample they are dropped from the page cache.
//! That they were is checked by what the process then reads from the disk. The runtime's image is not part of that: what of it
//! a function needs is in its snapshot.

use std::{
    fs::{self, File},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use clap::Args;
use rustix::fs::{Advice, fadvise, fstat, fstatfs, statvfs};
use serde_json::json;

use super::{
    Settings,
    function::{Function, SUITE},
    guest::{duplicate, median},
    lab::{Lab, Layout},
};
use crate::{
    bench::{
        figures::Table,
        machine::Machine,
        report::{Report, Row},
        targets::Target,
    },
    output::{bytes, progress},
};

/// Instances at once.
const AT_ONCE: [usize; 3] = [1, 8, 64];

/// How many times as fast a restore is to be with its working set, and the share of faults that is to be gone.
const TIMES_FASTER: f64 = 4.0;
const GONE_PERCENT: f64 = 95.0;

/// What REAP has published: mean over its functions.
const REAP_TIMES: f64 = 3.7;

/// Samples of one instance alone, for each sample that was asked for.
const ALONE_SHARE: u64 = 20;

/// Room that is left to others on the disk.
const SPARE_BYTES: u64 = 1 << 30;

/// File systems that lie in memory (`statfs(2)`).
const TMPFS: i64 = 0x0102_1994;

/// Where files lie.
#[derive(Debug, Clone, Args)]
pub struct ReapArgs {
    /// Directory on a disk, for snapshots that are restored from there [default: that for temporary files]
    #[arg(long)]
    pub scratch_dir: Option<PathBuf>,
}

/// What some samples of one way came to.
#[derive(Debug, Default)]
struct Taken {
    latencies: Vec<Duration>,
    faults: Vec<u64>,
    read_bytes: u64,
    samples: u64,
}

impl Taken {
    fn median(&self) -> Result<Duration> {
        median(&self.latencies).context("nothing was measured")
    }

    fn mean_faults(&self) -> f64 {
        self.faults.iter().sum::<u64>() as f64 / self.faults.len().max(1) as f64
    }

    fn read_mib(&self) -> f64 {
        self.read_bytes as f64 / self.samples.max(1) as f64 / f64::from(1 << 20)
    }
}

/// A snapshot's files, one instance's own: memory, state, layout, and the layout with a graft.
type Copied = [OwnedFd; 4];

/// The ways that are compared: lazily, with the working set in a blank machine, and in one with the runtime's base.
const WAYS: [(Layout, &str); 3] = [
    (Layout::Unknown, "lazy"),
    (Layout::Fast, "prefetched, blank machine"),
    (Layout::Grafted, "prefetched, on the base"),
];

/// Measures.
pub fn run(settings: &Settings) -> Result<Report> {
    let machine = Machine::this();
    let scratch = settings.scratch_dir.clone().unwrap_or_else(std::env::temp_dir);
    check_disk(&scratch)?;
    let mut remarks = vec![format!(
        "REAP's mean over its functions is {REAP_TIMES}x (published, not measured here), on a local SSD with Firecracker"
    )];
    let mut columns = Vec::new();
    for count in AT_ONCE {
        columns.extend(
            ["lazy_ms", "blank_ms", "base_ms", "times_blank", "times_base"]
                .map(|column| format!("{column}_{count}")),
        );
    }
    columns.extend(
        [
            "lazy_faults",
            "blank_faults",
            "base_faults",
            "gone_percent",
            "lazy_mib",
            "blank_mib",
            "base_mib",
        ]
        .map(str::to_owned),
    );
    let mut table = Table {
        title:
            "time to the first answer with 1, 8 and 64 instances at once, and faults and bytes read of one"
                .to_owned(),
        columns,
        lines: Vec::new(),
    };
    let (mut rows, mut gone) = (Vec::new(), Vec::new());
    let mut times = AT_ONCE.map(|_| [Vec::new(), Vec::new()]);
    if let Some(image) = settings.runtime("python3.11", &mut remarks) {
        let bar = progress("functions", SUITE.len());
        for function in SUITE {
            let measured = measure(settings, &image, &function, &scratch)
                .with_context(|| format!("measure {}", function.name))?;
            let mut numbers = Vec::new();
            for ([lazy, blank, base], times) in measured.iter().zip(&mut times) {
                let seconds = |taken: &Taken| Ok::<_, anyhow::Error>(taken.median()?.as_secs_f64());
                let (lazy, blank, base) = (seconds(lazy)?, seconds(blank)?, seconds(base)?);
                times[0].push(lazy / blank);
                times[1].push(lazy / base);
                numbers.extend([lazy * 1e3, blank * 1e3, base * 1e3, lazy / blank, lazy / base].map(Some));
            }
            let [lazy, blank, base] = &measured[0];
            let share = 100.0 * (1.0 - base.mean_faults() / lazy.mean_faults().max(1.0));
            gone.push(share);
            let faults = [lazy, blank, base].map(Taken::mean_faults);
            numbers.extend(faults.into_iter().chain([share]).map(Some));
            numbers.extend([lazy, blank, base].map(|taken| Some(taken.read_mib())));
            table.lines.push((function.name.to_owned(), numbers));
            for ((_, what), taken) in WAYS.iter().zip(&measured[0]) {
                let row = Row::of_durations(format!("{}: {what}", function.name), &taken.latencies)?;
                rows.push(if *what == WAYS[0].1 { row.into_peer() } else { row });
            }
            bar.inc(1);
        }
        bar.finish_and_clear();
    }
    Ok(Report {
        name: "sandbox-reap".to_owned(),
        method: format!(
            "restores of {} Python functions from {} with a cold page cache, to the first answer",
            SUITE.len(),
            scratch.display()
        ),
        machine,
        rows,
        tables: vec![table],
        chart: None,
        targets: held_against(&times, &gone),
        remarks,
    })
}

fn held_against(times: &[[Vec<f64>; 2]; AT_ONCE.len()], gone: &[f64]) -> Vec<Target> {
    if gone.is_empty() {
        return Vec::new();
    }
    let mut targets: Vec<Target> = AT_ONCE
        .iter()
        .zip(times)
        .flat_map(|(count, times)| {
            let target = |(way, times): (&(Layout, &str), &Vec<f64>)| {
                let what = format!(
                    "{count} at once: {} against lazy, geometric mean (REAP {REAP_TIMES}x)",
                    way.1
                );
                Target::at_least(what, TIMES_FASTER, geometric_mean(times), "x")
            };
            WAYS[1..].iter().zip(times).map(target).collect::<Vec<_>>()
        })
        .collect();
    let least = gone.iter().copied().fold(f64::INFINITY, f64::min);
    targets.push(Target::at_least(
        "faults gone on the base, least of all functions",
        GONE_PERCENT,
        least,
        "%",
    ));
    targets
}

fn geometric_mean(values: &[f64]) -> f64 {
    (values.iter().map(|value| value.ln()).sum::<f64>() / values.len().max(1) as f64).exp()
}

fn check_disk(dir: &Path) -> Result<()> {
    let file = File::open(dir).with_context(|| format!("open the scratch directory {}", dir.display()))?;
    let kind = fstatfs(&file)
        .with_context(|| format!("look at {}", dir.display()))?
        .f_type;
    ensure!(
        kind != TMPFS,
        "the scratch directory {} lies in memory: name one on a disk (--scratch-dir)",
        dir.display()
    );
    Ok(())
}

/// All ways, lazy first, for each number of instances at once.
fn measure(
    settings: &Settings,
    image: &Path,
    function: &Function,
    scratch: &Path,
) -> Result<Vec<[Taken; 3]>> {
    let files = || tempfile::tempfile_in(scratch).map(Into::into);
    let events = [json!({ "n": 1 }), json!({ "n": 2 })];
    let lab = Lab::prepare(image, function, events, &files)?;
    let mut copies: Vec<Copied> = Vec::new();
    let mut measured = Vec::new();
    for count in AT_ONCE {
        check_room(&lab, count - copies.len(), scratch)?;
        while copies.len() < count {
            copies.push(copy(&lab, scratch)?);
        }
        let rounds = (settings.rounds / ALONE_SHARE / count as u64).max(1);
        let mut taken = [Taken::default(), Taken::default(), Taken::default()];
        for round in 0..rounds {
            for ((layout, _), taken) in WAYS.iter().zip(&mut taken) {
                at_once(&lab, &copies[..count], *layout, round, taken)
                    .with_context(|| format!("restore {count} at once"))?;
            }
        }
        measured.push(taken);
    }
    Ok(measured)
}

/// A disk that fills up would harm others than this measurement.
fn check_room(lab: &Lab, copies: usize, scratch: &Path) -> Result<()> {
    let mut needed = 0;
    for file in lab.files() {
        needed += fstat(file)
            .context("measure a snapshot's file")?
            .st_size
            .unsigned_abs();
    }
    let needed = needed.saturating_mul(copies as u64);
    let disk = statvfs(scratch).with_context(|| format!("look at {}", scratch.display()))?;
    let room = disk
        .f_bavail
        .saturating_mul(disk.f_frsize)
        .saturating_sub(SPARE_BYTES);
    ensure!(
        needed <= room,
        "the scratch directory {} has no room for {copies} copies of a snapshot, {} together: name another (--scratch-dir)",
        scratch.display(),
        bytes(needed)
    );
    Ok(())
}

/// Copies of a snapshot's files, written to the disk.
fn copy(lab: &Lab, scratch: &Path) -> Result<Copied> {
    let [memory, state, layout, grafted] = lab.files().map(|file| -> Result<OwnedFd> {
        let mut from = File::from(duplicate(file)?);
        std::io::Seek::rewind(&mut from).context("read a snapshot's file")?;
        let mut to = tempfile::tempfile_in(scratch).context("make a copy of a snapshot's file")?;
        std::io::copy(&mut from, &mut to).context("copy a snapshot's file")?;
        to.sync_all().context("write a snapshot's file to the disk")?;
        Ok(to.into())
    });
    Ok([memory?, state?, layout?, grafted?])
}

/// Drops files from the page cache; they must have been written to the disk.
fn drop_cached(copies: &[Copied]) -> Result<()> {
    for file in copies.iter().flatten() {
        fadvise(file, 0, None, Advice::DontNeed).context("drop a snapshot from the page cache")?;
    }
    Ok(())
}

/// Bytes that this process has read from disks.
fn bytes_read() -> Result<u64> {
    let text = fs::read_to_string("/proc/self/io").context("read /proc/self/io")?;
    text.lines()
        .find_map(|line| line.strip_prefix("read_bytes: ")?.parse().ok())
        .context("/proc/self/io does not tell read_bytes")
}

/// Restores of all copies at once, each by a thread of its own.
fn at_once(lab: &Lab, copies: &[Copied], layout: Layout, round: u64, taken: &mut Taken) -> Result<()> {
    drop_cached(copies)?;
    let read_before = bytes_read()?;
    let start = Barrier::new(copies.len());
    let results: Vec<Result<(Duration, u64)>> = thread::scope(|scope| {
        let threads: Vec<_> = copies
            .iter()
            .zip(0u64..)
            .map(|(files, number)| {
                let start = &start;
                scope.spawn(move || {
                    // Whatever fails, the others must not wait for it.
                    let room = lab.room(layout);
                    start.wait();
                    let began = Instant::now();
                    let n = round * copies.len() as u64 + number;
                    let mut sandbox = lab.lay_out_from(files.each_ref(), room?, layout, n)?;
                    lab.answer(&mut sandbox, n)?;
                    let latency = began.elapsed();
                    Ok((latency, sandbox.take_timings().faults))
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| anyhow!("a restore panicked"))?)
            .collect()
    });
    for result in results {
        let (latency, faults) = result?;
        taken.latencies.push(latency);
        taken.faults.push(faults);
    }
    let read = bytes_read()? - read_before;
    ensure!(
        read > 0,
        "nothing was read from the disk: the page cache could not be dropped"
    );
    taken.read_bytes += read;
    taken.samples += copies.len() as u64;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_are_geometric() {
        assert!((geometric_mean(&[2.0, 8.0]) - 4.0).abs() < 1e-9);
        assert!((geometric_mean(&[3.0]) - 3.0).abs() < 1e-9);
    }

    #[test]
    fn directories_in_memory_are_refused() {
        let said = check_disk(Path::new("/dev/shm")).unwrap_err().to_string();
        assert!(
            said.contains("lies in memory") || said.contains("open the scratch directory"),
            "{said}"
        );
        let said = check_disk(Path::new("/not/there")).unwrap_err().to_string();
        assert!(said.contains("/not/there"), "{said}");
    }
}
