//! `--part syscall`: what a kernel does for a program, in a guest, natively, and under a tracer.
//!
//! The very same file runs everywhere (`guest/probe.rs`): it takes the time of each operation itself, with the processor's
//! counter, and writes the samples out. A tracer (`strace`, by ptrace) is the peer that answers for system calls in another
//! process, too; it decodes what it sees, which is its own cost.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use gust_linux::Ended;
use gust_vmm::{Hypervisor, SlotSizes};
use gust_worker::{
    kvm::{Heard, Sandbox, open_image},
    protocol::{BootSpec, Interface, Limits},
};
use tempfile::TempDir;

use super::{Settings, guest, leave_out, program};
use crate::bench::{
    figures::Table,
    machine::Machine,
    report::{Report, Row},
    stats::Summary,
    targets::Target,
};

/// The program.
const PROBE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/probe"));

/// What a null call and a switch over it may take.
const NULL_MAX: Duration = Duration::from_micros(30);
const SWITCH_MAX: Duration = Duration::from_micros(5);

/// Times that a guest may be heard before it has ended.
const HEARD_MAX: usize = 100_000;

/// What is done, what it is called, and how often in one sample.
const KINDS: [(&str, &str, u64); 5] = [
    ("null", "null system call", 1),
    ("yield", "two switches by sched_yield", 1),
    ("futex", "two switches by futex", 1),
    ("page", "first write to a page", 1),
    ("clock", "clock_gettime, vDSO", 100),
];

/// Samples for each round that was asked for: one takes microseconds.
const SAMPLES_PER_ROUND: u64 = 50;
/// Most samples of one kind; the program takes no more.
const SAMPLES_MAX: u64 = 20_000;

/// Where the program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Guest,
    Native,
    Traced,
}

impl Place {
    fn label(self) -> &'static str {
        match self {
            Self::Guest => "Gust",
            Self::Native => "native process",
            Self::Traced => "under strace",
        }
    }
}

/// Measures.
pub fn run(settings: &Settings) -> Result<Report> {
    let machine = Machine::this();
    let dir = TempDir::with_prefix("gust-bench-probe-").context("make a directory")?;
    let image = dir.path().join("image");
    fs::create_dir(&image).context("make a directory")?;
    let path = image.join("probe");
    fs::write(&path, PROBE).with_context(|| format!("write {}", path.display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("make {} executable", path.display()))?;
    let tsc_khz = Hypervisor::open()?.create_vm(SlotSizes::POOLED)?.tsc_khz()?;
    let mut remarks =
        vec!["the guest is not jailed here: seccomp adds its filter to each exit of a worker".to_owned()];
    let mut places = vec![Place::Guest, Place::Native];
    match program("strace") {
        Some(_) => places.push(Place::Traced),
        None => leave_out(
            &mut remarks,
            "a traced process",
            &"there is no strace (Debian package strace)",
        ),
    }
    let samples = (settings.rounds * SAMPLES_PER_ROUND).min(SAMPLES_MAX);
    let (mut rows, mut targets) = (Vec::new(), Vec::new());
    let mut table = Table::new(
        "thread switch over a null call, in us",
        &["by_sched_yield", "by_futex"],
    );
    for place in places {
        let all = everything(place, &image, dir.path(), samples, tsc_khz)?;
        let medians = [0, 1, 2].map(|kind| all[kind].summary.p50);
        let switches = switches(medians);
        let us = |duration: Duration| Some(duration.as_secs_f64() * 1e6);
        table
            .lines
            .push((place.label().to_owned(), switches.map(us).to_vec()));
        if place == Place::Guest {
            let what = "null system call: median";
            targets.push(Target::at_most(what, NULL_MAX, medians[0]));
            let what = "switch by sched_yield over a null call";
            targets.push(Target::at_most(what, SWITCH_MAX, switches[0]));
        }
        rows.extend(all);
    }
    rows.sort_by_key(|row| {
        let of_kind = |what: &str| row.label.starts_with(what);
        KINDS.iter().position(|(_, what, _)| of_kind(what))
    });
    Ok(Report {
        name: "sandbox-syscall".to_owned(),
        method: format!("{samples} samples of each, taken by the program itself with the time-stamp counter"),
        machine,
        rows,
        tables: vec![table],
        chart: None,
        targets,
        remarks,
    })
}

/// All kinds in one place.
fn everything(
    place: Place,
    image: &Path,
    dir: &Path,
    samples: u64,
    tsc_khz: u32,
) -> Result<[Row; KINDS.len()]> {
    let mut rows = Vec::new();
    for (kind, what, batch) in KINDS {
        let output = match place {
            Place::Guest => in_guest(image, dir, kind, samples, batch),
            Place::Native => as_process(&mut Command::new(image.join("probe")), kind, samples, batch),
            Place::Traced => {
                let mut command = Command::new("strace");
                command
                    .args(["-f", "-o", "/dev/null", "--"])
                    .arg(image.join("probe"));
                as_process(&mut command, kind, samples, batch)
            }
        };
        let output = output.with_context(|| format!("run the probe {kind:?}: {}", place.label()))?;
        let durations = durations(&output, samples, batch, tsc_khz)?;
        let row = Row::of_durations(format!("{what}: {}", place.label()), &durations)?;
        let row = row.with("mean_us", mean_us(&durations)?);
        rows.push(match place {
            Place::Guest => row,
            Place::Native | Place::Traced => row.into_peer(),
        });
    }
    rows.try_into()
        .map_err(|_| anyhow!("not every kind was measured"))
}

/// What a switch costs over a null call: by a round of two yields, and by one of two waits and two wakes.
fn switches([null, by_yield, by_futex]: [Duration; 3]) -> [Duration; 2] {
    [
        (by_yield / 2).saturating_sub(null),
        by_futex.saturating_sub(null * 4) / 2,
    ]
}

fn mean_us(durations: &[Duration]) -> Result<f64> {
    let summary = Summary::of(durations).context("nothing was measured")?;
    Ok(summary.mean.as_nanos() as f64 / 1000.0)
}

/// What the program has written, as durations of one operation.
fn durations(output: &[u8], samples: u64, batch: u64, tsc_khz: u32) -> Result<Vec<Duration>> {
    let (words, rest) = output.as_chunks::<8>();
    ensure!(
        words.len() as u64 == samples && rest.is_empty(),
        "the probe wrote {} bytes for {samples} samples",
        output.len()
    );
    let ns = |word: &[u8; 8]| u64::from_le_bytes(*word) as f64 * 1e6 / f64::from(tsc_khz) / batch as f64;
    Ok(words
        .iter()
        .map(|word| Duration::from_secs_f64(ns(word) / 1e9))
        .collect())
}

fn as_process(command: &mut Command, kind: &str, samples: u64, batch: u64) -> Result<Vec<u8>> {
    let output = command
        .args([kind, &samples.to_string(), &batch.to_string()])
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {:?}", command.get_program()))?;
    ensure!(
        output.status.success(),
        "it ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output.stdout)
}

/// The program as the first and only one of a guest.
fn in_guest(image: &Path, dir: &Path, kind: &str, samples: u64, batch: u64) -> Result<Vec<u8>> {
    let mut vm = Hypervisor::open()?.create_vm(SlotSizes::POOLED)?;
    vm.warm_up()?;
    let boot = BootSpec {
        argv: ["/probe", kind, &samples.to_string(), &batch.to_string()]
            .map(str::to_owned)
            .to_vec(),
        environment: Vec::new(),
        directory: "/".to_owned(),
        interface: Interface::Device,
        limits: Limits {
            memory_bytes: 512 << 20,
            tmp_bytes: 1 << 20,
            cpus: 1,
        },
        identity: guest::identity(1),
    };
    let root = open_image(&guest::image_of(image, dir)?)?;
    let mut sandbox = Sandbox::boot(vm, guest::outside(), boot, root)?;
    let mut output = Vec::new();
    for _ in 0..HEARD_MAX {
        let heard = sandbox.run()?;
        output.append(&mut sandbox.take_log());
        match heard {
            Heard::Log => {}
            Heard::Ended(Ended::Exit(0)) => return Ok(output),
            other @ (Heard::Ended(Ended::Exit(_) | Ended::Signal(_) | Ended::OutOfMemory)
            | Heard::Said(_)
            | Heard::Outside(_)
            | Heard::Stuck) => bail!("it does not end: {other:?}"),
        }
    }
    bail!("it does not end")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_measures_natively() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("probe");
        fs::write(&path, PROBE).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        // Whether two threads take turns by yielding is up to a machine that does other things, too.
        for (kind, _, _) in KINDS.into_iter().filter(|(kind, _, _)| *kind != "yield") {
            let output = as_process(&mut Command::new(&path), kind, 100, 2).unwrap();
            let taken = durations(&output, 100, 2, 1_000_000).unwrap();
            assert!(taken.iter().all(|duration| !duration.is_zero()), "{kind}");
        }
        for arguments in [["nothing", "1", "1"], ["null", "0", "1"], ["null", "1x", "1"]] {
            let status = Command::new(&path).args(arguments).status().unwrap();
            assert_eq!(status.code(), Some(2), "{arguments:?}");
        }
    }

    #[test]
    fn ticks_become_durations() {
        let output: Vec<u8> = [2000u64, 3000].iter().flat_map(|n| n.to_le_bytes()).collect();
        let taken = durations(&output, 2, 10, 2_000_000).unwrap();
        assert_eq!(taken, [Duration::from_nanos(100), Duration::from_nanos(150)]);
        assert!(durations(&output, 3, 1, 1).is_err() && durations(&output[1..], 2, 1, 1).is_err());
    }

    #[test]
    fn switches_are_what_is_left() {
        let us = Duration::from_micros;
        assert_eq!(switches([us(10), us(28), us(50)]), [us(4), us(5)]);
        assert_eq!(switches([us(10), us(18), us(30)]), [us(0), us(0)]);
    }
}
