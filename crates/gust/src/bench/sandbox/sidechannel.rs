//! `gust bench sidechannel`: what two sandboxes can signal to each other that have nothing in common but a machine.
//!
//! Both are restored from one snapshot, each on a thread and a processor of its own, as two instances of a version are, or two
//! functions on a runtime's base. One sends random bits by what it does in slots of time, the other takes the time of its loads:
//!
//! | means | sender, for a one | receiver |
//! |---|---|---|
//! | flush and reload | reads a line of a page of the snapshot that nobody writes | flushes the line, and reads it at the slot's end |
//! | memory banks | reads memory of its own past the caches | the same, all the time: contention makes it slower (Bankrupt) |
//!
//! Without sharing, the second sandbox is restored from a copy of the files: its pages have the same contents and are others.
//! The first quarter of the bits is known to the receiver, which takes its threshold from them; errors are counted in the rest. The
//! capacity is that of a binary symmetric channel with this rate of errors: what any code could get through. A machine that is
//! busy with something else takes the processors away in the middle of slots, so that less comes through.

use std::{
    fs,
    os::{fd::OwnedFd, unix::fs::PermissionsExt},
    sync::{Barrier, mpsc},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use clap::Args;
use gust_vmm::{Hypervisor, SlotSizes};
use gust_worker::{
    kvm::{Images, Restore, Sandbox, open_image},
    protocol::{BootSpec, InitSpec, Interface, Limits, MemoryMode},
};
use rustix::{
    fs::{MemfdFlags, memfd_create},
    thread::{CpuSet, sched_setaffinity},
};
use tempfile::TempDir;

use super::guest::{self, duplicate, identity, image_of, outside};
use crate::bench::{
    figures::{Chart, Curve, Table},
    machine::Machine,
    report::Report,
};

/// The program of both guests (`guest/channel.rs`).
const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/channel"));

const LIMITS: Limits = Limits {
    memory_bytes: 128 << 20,
    tmp_bytes: 1 << 20,
    cpus: 1,
};

/// Between the moment when both are ready and the first slot.
const LEAD: Duration = Duration::from_millis(150);
/// Fewest and most bits of one transmission.
const BITS_MIN: u64 = 160;
const BITS_MAX: u64 = 8000;
/// Part of the bits that the threshold is taken from.
const TRAINING: usize = 4;

/// `gust bench sidechannel`
#[derive(Debug, Clone, Args)]
pub struct SidechannelArgs {
    /// Longest transmission, in milliseconds; short slots are sent as many times as fit
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u64).range(100..=60_000))]
    transmission_ms: u64,
}

/// How bits are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Means {
    FlushReload,
    Banks,
}

impl Means {
    fn label(self) -> &'static str {
        match self {
            Self::FlushReload => "flush and reload",
            Self::Banks => "memory banks",
        }
    }

    /// Slots to try, in microseconds. On one processor the two take turns, of milliseconds.
    fn slots_us(self, is_one_processor: bool) -> &'static [u64] {
        match (self, is_one_processor) {
            (Self::FlushReload, false) => &[2, 5, 20, 100, 1000],
            (Self::Banks, false) => &[50, 200, 1000, 5000],
            (Self::FlushReload | Self::Banks, true) => &[5000, 20_000, 50_000],
        }
    }
}

/// One transmission.
#[derive(Debug, Clone, Copy)]
struct Transmission {
    means: Means,
    shares_pages: bool,
    processors: [usize; 2],
    slot_ticks: u64,
    bits: u64,
    seed: u64,
}

/// What came through.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Received {
    error_rate: f64,
    bits_per_s: f64,
    /// Bits that the errors were counted in.
    counted: usize,
}

impl Received {
    /// Bits a second that a code for this channel gets through. What lies within two standard deviations of guessing is taken
    /// for guessing.
    fn capacity(self) -> f64 {
        let chance = 1.0 / (self.counted.max(1) as f64).sqrt();
        let better_than_guessing = (0.5 - self.error_rate - chance).max(0.0);
        if self.error_rate == 0.0 {
            return self.bits_per_s;
        }
        let e = 0.5 - better_than_guessing;
        let entropy = |p: f64| if p > 0.0 { -p * p.log2() } else { 0.0 };
        self.bits_per_s * (1.0 - entropy(e) - entropy(1.0 - e))
    }
}

/// Measures.
pub async fn run(arguments: SidechannelArgs) -> Result<Report> {
    tokio::task::spawn_blocking(move || measure(&arguments))
        .await
        .context("the measurement panicked")?
}

fn measure(arguments: &SidechannelArgs) -> Result<Report> {
    let machine = Machine::this();
    let files = Files::prepare()?;
    let mut table = Table::new(
        "bits from one sandbox to another",
        &["slot_us", "sent_bit_per_s", "error_percent", "capacity_bit_per_s"],
    );
    let mut remarks = Vec::new();
    let mut curves = Vec::new();
    for (place, processors) in places(&mut remarks) {
        for (means, shares_pages) in [
            (Means::FlushReload, true),
            (Means::FlushReload, false),
            (Means::Banks, false),
        ] {
            let sharing = if shares_pages {
                "pages shared"
            } else {
                "no page shared"
            };
            let label = format!("{}, {sharing}, {place}", means.label());
            let mut points = Vec::new();
            for slot_us in means.slots_us(processors[0] == processors[1]) {
                let transmission = Transmission {
                    means,
                    shares_pages,
                    processors,
                    slot_ticks: slot_us * files.tsc_khz / 1000,
                    bits: (arguments.transmission_ms * 1000 / slot_us).clamp(BITS_MIN, BITS_MAX),
                    seed: 0x9e37_79b9_7f4a_7c15 ^ slot_us,
                };
                let received =
                    transmit(&files, transmission).with_context(|| format!("{label}, {slot_us} us"))?;
                table.lines.push((
                    label.clone(),
                    vec![
                        Some(*slot_us as f64),
                        Some(received.bits_per_s),
                        Some(received.error_rate * 100.0),
                        Some(received.capacity()),
                    ],
                ));
                points.push((received.bits_per_s / 1000.0, received.capacity() / 1000.0));
            }
            points.reverse();
            curves.push(Curve {
                label,
                is_peer: !shares_pages,
                points,
            });
        }
    }
    remarks.push(
        "Bankrupt (USENIX Security 2023) reports up to 74 kbit/s through memory banks between servers"
            .to_owned(),
    );
    Ok(Report {
        name: "sidechannel".to_owned(),
        method: "random bits, one a slot; threshold from the first quarter, errors in the rest".to_owned(),
        machine,
        rows: Vec::new(),
        tables: vec![table],
        chart: Some(Chart {
            title: "capacity of side channels between two sandboxes".to_owned(),
            axes: ["sent, kbit/s".to_owned(), "capacity, kbit/s".to_owned()],
            curves,
        }),
        targets: Vec::new(),
        remarks,
    })
}

/// Pairs of processors that say something different here.
fn places(remarks: &mut Vec<String>) -> Vec<(&'static str, [usize; 2])> {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let siblings = fs::read_to_string("/sys/devices/system/cpu/cpu0/topology/thread_siblings_list");
    let siblings = listed(siblings.unwrap_or_default().trim());
    let mut places = vec![("one processor", [0, 0])];
    match siblings.iter().find(|processor| **processor != 0) {
        Some(sibling) => places.push(("two threads of a core", [0, *sibling])),
        None => remarks.push("LEFT OUT: two threads of a core: this machine shows none".to_owned()),
    }
    match (1..processors).find(|processor| !siblings.contains(processor)) {
        Some(other) => places.push(("two cores", [0, other])),
        None => remarks.push("LEFT OUT: two cores: this machine has one".to_owned()),
    }
    places
}

/// Processors of a list as the kernel writes it (`0-1,4`).
fn listed(text: &str) -> Vec<usize> {
    text.split(',')
        .filter_map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(first.parse().ok()?..=last.parse().ok()?)
        })
        .flatten()
        .collect()
}

/// A snapshot of the program that waits for its event, and the same in other files.
struct Files {
    root: OwnedFd,
    code: OwnedFd,
    snapshots: [(OwnedFd, OwnedFd); 2],
    tsc_khz: u64,
    _dir: TempDir,
}

impl Files {
    fn prepare() -> Result<Self> {
        let dir = TempDir::with_prefix("gust-bench-channel-").context("make a directory")?;
        let root = dir.path().join("root");
        for path in ["dev", "proc", "tmp", "var/task"] {
            fs::create_dir_all(root.join(path)).context("make a directory")?;
        }
        let program = root.join("channel");
        fs::write(&program, PROGRAM).with_context(|| format!("write {}", program.display()))?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("make {} executable", program.display()))?;
        let root = image_of(&root, dir.path())?;
        let code = dir.path().join("code");
        fs::create_dir(&code).context("make a directory")?;
        let code = image_of(&code, dir.path())?;
        let hypervisor = Hypervisor::open().context("open the hypervisor")?;
        let vm = hypervisor.create_vm(SlotSizes::POOLED)?;
        let tsc_khz = u64::from(vm.tsc_khz()?);
        let boot = BootSpec {
            argv: vec!["/channel".to_owned()],
            environment: Vec::new(),
            directory: "/".to_owned(),
            interface: Interface::Device,
            limits: LIMITS,
            identity: identity(0),
        };
        let mut sandbox = Sandbox::boot(vm, outside(), boot, open_image(&root)?)?;
        guest::until_waits(&mut sandbox).context("boot the program")?;
        let init = InitSpec {
            handler: String::new(),
            environment: Vec::new(),
            task_root: "/var/task".to_owned(),
            limits: LIMITS,
        };
        sandbox.init(&init, vec![open_image(&code)?])?;
        guest::until_waits(&mut sandbox).context("initialise the program")?;
        let mut capture = || -> Result<(OwnedFd, OwnedFd)> {
            let files = (file()?, file()?);
            sandbox
                .capture(&files.0, &files.1)
                .context("capture the program")?;
            Ok(files)
        };
        let snapshots = [capture()?, capture()?];
        Ok(Self {
            root,
            code,
            snapshots,
            tsc_khz,
            _dir: dir,
        })
    }

    /// Lays an instance out on the calling thread.
    fn instance(&self, which: usize, n: u64) -> Result<Sandbox> {
        let mut vm = Hypervisor::open()?.create_vm(SlotSizes::POOLED)?;
        vm.warm_up()?;
        let (memory, state) = &self.snapshots[which];
        let restore = Restore {
            memory: duplicate(memory)?,
            state: duplicate(state)?,
            layout: None,
            images: Images {
                root: open_image(&self.root)?,
                mounted: vec![open_image(&self.code)?],
            },
            arm: false,
            on_base: false,
            frozen: None,
            record: false,
            memory_mode: MemoryMode::Reuse,
            limits: LIMITS,
            identity: identity(n),
            environment: Vec::new(),
        };
        Ok(Sandbox::restore(vm, outside(), restore)?)
    }
}

fn file() -> Result<OwnedFd> {
    memfd_create("gust-bench", MemfdFlags::CLOEXEC).context("make a file in memory")
}

/// Sends bits from one new instance to another.
fn transmit(files: &Files, transmission: Transmission) -> Result<Received> {
    let Transmission {
        shares_pages,
        processors,
        slot_ticks,
        bits,
        seed,
        ..
    } = transmission;
    let ready = Barrier::new(3);
    let clock = Hypervisor::open()?.create_vm(SlotSizes::POOLED)?;
    let (heard, taken) = thread::scope(|scope| {
        let (starts, roles): (Vec<_>, Vec<_>) = [0u64, 1]
            .into_iter()
            .map(|role| {
                let (start, at) = mpsc::channel();
                let ready = &ready;
                // The sender may have pages of its own.
                let which = usize::from(role == 1 && !shares_pages);
                let run = move || -> Result<Vec<u8>> {
                    let placed = place(processors[role as usize]);
                    let sandbox = placed.and_then(|()| files.instance(which, role + 1));
                    ready.wait();
                    let mut sandbox = sandbox?;
                    let start: u64 = at.recv().context("the measurement was given up")?;
                    deliver(&mut sandbox, transmission, role, start)
                };
                (start, scope.spawn(run))
            })
            .unzip();
        ready.wait();
        let start = clock.tsc() + LEAD.as_millis() as u64 * files.tsc_khz;
        // A thread that has failed does not listen; its error is told below.
        for to in &starts {
            let _ = to.send(start);
        }
        let mut answers = roles
            .into_iter()
            .map(|role| role.join().map_err(|_| anyhow!("a guest's thread panicked"))?);
        (answers.next(), answers.next())
    });
    let heard = heard.context("there is a receiver")??;
    taken.context("there is a sender")??;
    let ticks: Vec<u32> = heard
        .as_chunks::<4>()
        .0
        .iter()
        .map(|word| u32::from_le_bytes(*word))
        .collect();
    ensure!(
        ticks.len() as u64 == bits,
        "the receiver has {} samples of {bits} bits",
        ticks.len()
    );
    let slot_s = slot_ticks as f64 / (files.tsc_khz as f64 * 1000.0);
    Ok(Received {
        error_rate: error_rate(&ticks, &sent(seed, ticks.len())),
        bits_per_s: 1.0 / slot_s,
        counted: ticks.len() - ticks.len() / TRAINING,
    })
}

/// Binds the calling thread to a processor.
fn place(processor: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(processor);
    sched_setaffinity(None, &set).with_context(|| format!("run on processor {processor}"))
}

/// Gives a guest its event, and takes its answer.
fn deliver(sandbox: &mut Sandbox, transmission: Transmission, role: u64, start: u64) -> Result<Vec<u8>> {
    let means = match transmission.means {
        Means::FlushReload => 0,
        Means::Banks => 1,
    };
    let words = [
        role,
        means,
        start,
        transmission.slot_ticks,
        transmission.bits,
        transmission.seed,
        role + 7,
    ];
    let event = words.into_iter().flat_map(u64::to_le_bytes).collect();
    guest::deliver(sandbox, role, event)
}

/// The bits that follow from a seed, as the program has them.
fn sent(seed: u64, bits: usize) -> Vec<bool> {
    let mut state = seed;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state >> 33 & 1 != 0
    };
    std::iter::repeat_with(next).take(bits).collect()
}

/// Wrong bits among those behind the training, as a part of one: with the threshold, and the side of it that means one, that
/// made fewest errors in the training.
fn error_rate(ticks: &[u32], bits: &[bool]) -> f64 {
    let training = ticks.len() / TRAINING;
    let mut known: Vec<(u32, bool)> = ticks
        .iter()
        .copied()
        .zip(bits.iter().copied())
        .take(training)
        .collect();
    known.sort_unstable();
    let ones = known.iter().filter(|(_, bit)| *bit).count();
    // Errors when all that is below the threshold is taken for ones, for a threshold at each place.
    let (mut wrong, mut best) = (ones, (usize::MAX, 0, true));
    for (at, (tick, bit)) in known.iter().enumerate() {
        for (errors, below_is_one) in [(wrong, true), (known.len() - wrong, false)] {
            let is_between = at == 0 || known[at - 1].0 != *tick;
            if is_between && errors < best.0 {
                best = (errors, *tick, below_is_one);
            }
        }
        wrong = if *bit { wrong - 1 } else { wrong + 1 };
    }
    let (_, threshold, below_is_one) = best;
    let rest = ticks.iter().zip(bits).skip(training);
    let count = rest.clone().count().max(1);
    let errors = rest
        .filter(|(tick, bit)| ((**tick < threshold) == below_is_one) != **bit)
        .count();
    errors as f64 / count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_told_apart_on_either_side() {
        let bits = sent(99, 4000);
        assert!((1800..2200).contains(&bits.iter().filter(|bit| **bit).count()));
        for (zero, one) in [(300, 80), (80, 300)] {
            let ticks: Vec<u32> = bits.iter().map(|bit| if *bit { one } else { zero }).collect();
            assert_eq!(error_rate(&ticks, &bits), 0.0);
        }
        // A tenth of the samples is turned round.
        let ticks: Vec<u32> = bits
            .iter()
            .enumerate()
            .map(|(n, bit)| if *bit != (n % 10 == 0) { 80 } else { 300 })
            .collect();
        assert!((error_rate(&ticks, &bits) - 0.1).abs() < 0.01);
        // Nothing comes through.
        assert!((error_rate(&vec![100; 4000], &bits) - 0.5).abs() < 0.1);
    }

    #[test]
    fn a_channel_carries_what_its_errors_leave() {
        let capacity = |error_rate, counted| {
            let received = Received {
                error_rate,
                bits_per_s: 1000.0,
                counted,
            };
            received.capacity()
        };
        assert_eq!(capacity(0.0, 100), 1000.0);
        assert!((capacity(0.11, 100_000_000) - 500.0).abs() < 1.0);
        // Guessing, and what could be guessing.
        assert!(capacity(0.5, 1000).abs() < 1e-9 && capacity(0.9, 1000).abs() < 1e-9);
        assert!(capacity(0.45, 100).abs() < 1e-9 && capacity(0.45, 10_000) > 1.0);
    }

    #[test]
    fn lists_of_processors_are_read() {
        assert_eq!(listed("0-1,4"), [0, 1, 4]);
        assert_eq!(listed("0"), [0]);
        assert!(listed("").is_empty());
    }
}
