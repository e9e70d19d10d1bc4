//! `gust bench sandbox`: the sandbox as a product of its own, part by part, each figure beside its peer of the same run.
//!
//! | part | what is measured | where |
//! |---|---|---|
//! | `syscall` | what a kernel does for a program: a null call, switches, a page fault, the clock | inside this process |
//! | `layouts` | one event in each layout of a snapshot | inside this process |
//! | `exits` | how often an event makes a guest come out | inside this process |
//! | `reap` | restores from a disk with a cold page cache, working set ahead or lazy | inside this process |
//! | `density` | memory of idle clones, and whether any of them answers | in a server of its own |
//! | `wasm` | the same handler under wasmtime, as a process, and in a sandbox | inside this process |
//! | `clients` | calls through the API, with one client and sixteen: latency, processor time | in a server of its own |
//!
//! Each part makes a report of its own. What cannot run here is left out, and the report says so.

mod clients;
mod density;
mod exits;
mod function;
mod guest;
mod lab;
mod layouts;
mod reap;
pub mod sidechannel;
mod syscall;
mod wasm;

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};

use super::report::Report;
use crate::paths;

/// Most rounds of one measurement.
const ROUNDS_MAX: u64 = 100_000;

/// What to measure.
#[derive(Debug, Args)]
pub struct SandboxArgs {
    /// Parts to measure; all unless some are named
    #[arg(long, value_enum, value_delimiter = ',')]
    part: Vec<Part>,
    /// Samples of each figure
    #[arg(short = 'n', long, default_value_t = 200)]
    rounds: u64,
    /// Data directory with the runtimes
    #[arg(long, env = paths::DATA_DIR_VARIABLE)]
    data_dir: Option<PathBuf>,
    #[command(flatten)]
    density: density::DensityArgs,
    #[command(flatten)]
    reap: reap::ReapArgs,
}

/// A part of the measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// A null system call, thread switches, a page fault, the clock
    Syscall,
    /// One event in each layout of a snapshot
    Layouts,
    /// Exits and system calls of one event
    Exits,
    /// Restores from a disk with a cold page cache, against lazy ones
    Reap,
    /// Memory of idle clones, and whether any of them answers
    Density,
    /// The same handler under wasmtime
    Wasm,
    /// Calls through the API with one client and sixteen: latency, and processor time of a call
    Clients,
}

/// What all parts need.
#[derive(Debug, Clone)]
struct Settings {
    rounds: u64,
    data_dir: PathBuf,
    scratch_dir: Option<PathBuf>,
}

impl Settings {
    /// The image of a runtime; `None`, with a remark, when it has not been built.
    fn runtime(&self, name: &str, remarks: &mut Vec<String>) -> Option<PathBuf> {
        let path = self.image(name);
        if path.exists() {
            return Some(path);
        }
        let reason = format!("{} is not there (gust runtime build {name})", path.display());
        leave_out(remarks, &format!("functions of {name}"), &reason);
        None
    }

    fn image(&self, name: &str) -> PathBuf {
        paths::runtimes_dir(&self.data_dir).join(format!("{name}.img"))
    }
}

/// Measures the parts that are asked for; each is shown as soon as it is there.
pub async fn run(arguments: &SandboxArgs, show: &mut dyn FnMut(&Report) -> Result<()>) -> Result<()> {
    ensure!(
        (1..=ROUNDS_MAX).contains(&arguments.rounds),
        "between 1 and {ROUNDS_MAX} rounds can be measured"
    );
    File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .context("open /dev/kvm: the sandbox is a micro-VM")?;
    let settings = Settings {
        rounds: arguments.rounds,
        data_dir: arguments.data_dir.clone().unwrap_or_else(paths::data_dir),
        scratch_dir: arguments.reap.scratch_dir.clone(),
    };
    let parts = match arguments.part.as_slice() {
        [] => Part::value_variants(),
        some => some,
    };
    for part in parts {
        let report = match part {
            Part::Syscall => apart(&settings, syscall::run).await,
            Part::Layouts => apart(&settings, layouts::run).await,
            Part::Exits => apart(&settings, exits::run).await,
            Part::Reap => apart(&settings, reap::run).await,
            Part::Wasm => apart(&settings, wasm::run).await,
            Part::Clients => clients::run(&settings).await,
            Part::Density => density::run(&settings, &arguments.density).await,
        };
        show(&report?)?;
    }
    Ok(())
}

/// Measures on a thread of its own: a guest runs on the thread that made its machine, and nothing else should.
async fn apart(settings: &Settings, measure: fn(&Settings) -> Result<Report>) -> Result<Report> {
    let settings = settings.clone();
    tokio::task::spawn_blocking(move || measure(&settings))
        .await
        .context("a measurement panicked")?
}

/// Says that something is not measured.
fn leave_out(remarks: &mut Vec<String>, name: &str, reason: &dyn std::fmt::Display) {
    let remark = format!("LEFT OUT: {name}: {reason:#}");
    eprintln!("{remark}");
    remarks.push(remark);
}

/// Where a program is, if it is on the path.
fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|file| is_file(file))
}

fn is_file(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file())
}
