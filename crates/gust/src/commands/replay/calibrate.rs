//! `gust calibrate`: what calls, restores and instances cost on this machine, as the simulator takes it.
//!
//! A server is started for it, and each figure is taken from many calls of the function of replays:
//!
//! | figure | from |
//! |---|---|
//! | `call_cpu_ns` | processor time of warm calls one after the other, less their handlers'; at most what they take beyond these |
//! | `way` | what warm calls take beyond handler and that processor time |
//! | `restore_cpu_ns` | worker, map, faults and what the runtime takes more than in a warm call, of calls that find nothing prepared |
//! | `prepare_cpu_ns`, `end_cpu_ns` | processor time of whole cycles of restore and end, less the above, in the proportion of the built-in costs |
//! | `create_cpu_ns` | preparing a worker and restoring into it |
//! | `instance_bytes` | memory that idle instances add to the server's processes |
//! | `prepared_bytes` | memory of the server's processes but its own while there are only prepared workers |
//!
//! Delays of a cluster manager are not measured: there is none here. They stay at what they are.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use gust_replay::{
    Arrival, Function, Workload,
    sim::{Delay, SimCosts},
};

use super::target::{FunctionsChoice, Language, Targets, Work};
use crate::{
    bench::{
        calls::{self, Sample},
        memory,
        own::{Server, Start, UNSCALED},
        processes,
    },
    commands::print,
    output::progress,
    paths,
};

/// Time that a handler is asked to take, in nanoseconds: as little as traces have.
const HANDLER_NS: u64 = 1_000_000;

/// Memory that it is asked to touch, in MiB.
const MEMORY_MIB: u32 = 1;

/// Instances whose memory is measured together.
const INSTANCES: usize = 8;

/// Time that their calls wait, so that each needs an instance of its own, in nanoseconds.
const HOLD_NS: u64 = 1_500_000_000;

/// Looks in a row that must find as many prepared workers, looks at most, and the pause between two.
const PREPARED_LOOKS: u32 = 5;
const PREPARED_LOOKS_MAX: u32 = 150;
const PREPARED_PAUSE: Duration = Duration::from_millis(200);

/// Measured calls that a user may ask for.
const CALLS_MAX: usize = 100_000;

/// `gust calibrate`
#[derive(Debug, Args)]
pub struct CalibrateArgs {
    /// File to write
    #[arg(long, default_value = "costs.json")]
    out: PathBuf,
    /// Warm calls
    #[arg(long, default_value_t = 1000)]
    warm: usize,
    /// Restores
    #[arg(long, default_value_t = 100)]
    restores: usize,
    /// Data directory with the runtimes
    #[arg(long, env = paths::DATA_DIR_VARIABLE)]
    data_dir: Option<PathBuf>,
    /// Option for gust up, such as --up-arg=--pool=8; can be given several times
    #[arg(long, allow_hyphen_values = true)]
    up_arg: Vec<String>,
}

/// What is called.
struct Calls {
    server: Server,
    pid: u64,
    name: String,
    event: bytes::Bytes,
}

/// Measures, and writes the costs.
pub async fn run(arguments: CalibrateArgs) -> Result<ExitCode> {
    ensure!(
        (10..=CALLS_MAX).contains(&arguments.warm) && (10..=CALLS_MAX).contains(&arguments.restores),
        "between 10 and {CALLS_MAX} calls can be measured"
    );
    let data_dir = arguments.data_dir.clone().unwrap_or_else(paths::data_dir);
    // Nothing armed and nothing frozen: each call meets what its measurement needs.
    let mut options = vec!["--armed=0", "--freeze-after=0"];
    options.extend(UNSCALED);
    options.extend(arguments.up_arg.iter().map(String::as_str));
    let server = Server::start_with(&data_dir, "auto", &options).await?;
    let pid = server.pid().context("the server runs elsewhere")?;
    let prepared = prepared(&server).await?;
    let empty_bytes = instances_bytes(pid)?;
    let targets = Targets::deploy(
        server.client(),
        &one_call(),
        FunctionsChoice::Own,
        Work::Spin,
        Language::Python,
    )
    .await?;
    let calls = Calls {
        server,
        pid,
        name: "replay-0".to_owned(),
        event: targets.event(0, HANDLER_NS).into(),
    };
    let defaults = SimCosts::default();
    let (way, call_cpu_ns, runtime_ns) = calls.warm(arguments.warm).await?;
    let (restore_cpu_ns, cycle_cpu_ns) = calls.restores(arguments.restores, runtime_ns).await?;
    let background_ns = cycle_cpu_ns.saturating_sub(restore_cpu_ns + call_cpu_ns);
    let end_part = defaults.end_cpu_ns as f64 / (defaults.end_cpu_ns + defaults.prepare_cpu_ns) as f64;
    let end_cpu_ns = (background_ns as f64 * end_part) as u64;
    let prepare_cpu_ns = background_ns - end_cpu_ns;
    let costs = SimCosts {
        way,
        call_cpu_ns,
        restore: Delay::Constant(0),
        restore_cpu_ns,
        prepare_cpu_ns,
        end_cpu_ns,
        prepared,
        create_cpu_ns: prepare_cpu_ns + restore_cpu_ns,
        instance_bytes: calls.instance_bytes().await?,
        prepared_bytes: empty_bytes / u64::from(prepared.max(1)),
        ..defaults
    };
    costs.check().context("check what was measured")?;
    let json = serde_json::to_string_pretty(&costs).context("write costs as JSON")?;
    std::fs::write(&arguments.out, format!("{json}\n"))
        .with_context(|| format!("write {}", arguments.out.display()))?;
    print(&format!("{json}\n"))?;
    eprintln!(
        "the costs are in {}; gust simulate --costs takes them",
        arguments.out.display()
    );
    Ok(ExitCode::SUCCESS)
}

/// A workload of one function and one call.
fn one_call() -> Workload {
    Workload {
        functions: vec![Function {
            name: "calibrated".to_owned(),
            tenant: 0,
            memory_mib: MEMORY_MIB,
        }],
        arrivals: vec![Arrival {
            at_ns: 0,
            function: 0,
            duration_ns: HANDLER_NS,
        }],
        length_ns: 1,
    }
}

/// Prepared workers of a server, once there are no more of them than before.
async fn prepared(server: &Server) -> Result<u32> {
    let (mut before, mut same) = (0, 0);
    for _ in 0..PREPARED_LOOKS_MAX {
        let node = server.node().await?;
        let count = |name: &str| node[name].as_u64().unwrap_or(0);
        let now = count("pooled") + count("shaped");
        same = if now == before && now > 0 { same + 1 } else { 0 };
        if same == PREPARED_LOOKS {
            return Ok(u32::try_from(now).unwrap_or(u32::MAX));
        }
        before = now;
        tokio::time::sleep(PREPARED_PAUSE).await;
    }
    bail!("the server prepares no workers: {before} are there")
}

/// Memory of the server's processes but its own.
fn instances_bytes(pid: u64) -> Result<u64> {
    let own = memory::of_process(pid).context("read the server's memory")?;
    Ok(memory::of_tree(pid)?.saturating_sub(own))
}

fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn timing(sample: &Sample, name: &str) -> u64 {
    sample.timings[name].as_u64().unwrap_or(0)
}

fn mean(values: &[u64]) -> u64 {
    values.iter().sum::<u64>() / values.len().max(1) as u64
}

fn median(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0)
}

impl Calls {
    /// Warm calls: the way, processor time of a call, and the runtime's part of it.
    async fn warm(&self, count: usize) -> Result<(Delay, u64, u64)> {
        let mut connection = self.server.client().connect().await?;
        for _ in 0..10 {
            calls::call(&mut connection, &self.name, &self.event).await?;
        }
        let bar = progress("warm calls", count);
        let before = processes::cpu_of_tree(self.pid)?;
        let mut samples = Vec::with_capacity(count);
        for _ in 0..count {
            samples.push(calls::call(&mut connection, &self.name, &self.event).await?);
            bar.inc(1);
        }
        let used = ns(processes::cpu_of_tree(self.pid)?.saturating_sub(before));
        bar.finish_and_clear();
        let handlers: u64 = samples.iter().map(|sample| timing(sample, "handler_ns")).sum();
        let overheads: Vec<u64> = samples.iter().filter_map(Sample::overhead).map(ns).collect();
        // Some of the work is done when the answer is out already (logs, accounts): no caller waits for that.
        let call_cpu_ns = (used.saturating_sub(handlers) / count as u64).min(median(overheads.clone()));
        let beyond = overheads
            .iter()
            .map(|overhead| overhead.saturating_sub(call_cpu_ns));
        let runtime = samples.iter().map(|sample| timing(sample, "runtime_ns"));
        Ok((
            Delay::of_samples(beyond.collect()),
            call_cpu_ns,
            median(runtime.collect()),
        ))
    }

    /// Restores into prepared workers: processor time of one, and of a whole cycle with its end and the next one's preparation.
    async fn restores(&self, count: usize, runtime_ns: u64) -> Result<(u64, u64)> {
        let bar = progress("restores", count);
        self.server.evict(&self.name, false).await?;
        self.server.quiet().await?;
        let before = processes::cpu_of_tree(self.pid)?;
        let (mut restores, mut cycles) = (Vec::with_capacity(count), 0_u64);
        for _ in 0..count {
            let sample = self
                .server
                .cold_call(&self.name, &self.event, Start::Unprepared)
                .await?;
            let parts = ["worker_ns", "map_ns", "fill_ns", "faults_ns"];
            let inside: u64 = parts.iter().map(|part| timing(&sample, part)).sum();
            let runtime = timing(&sample, "runtime_ns").saturating_sub(runtime_ns);
            restores.push(inside + runtime);
            cycles += 1;
            bar.inc(1);
        }
        self.server.evict(&self.name, false).await?;
        self.server.quiet().await?;
        bar.finish_and_clear();
        let used = ns(processes::cpu_of_tree(self.pid)?.saturating_sub(before));
        // Handlers are part of the cycles' processor time, not of what a cycle costs.
        let handlers = HANDLER_NS * cycles;
        Ok((mean(&restores), used.saturating_sub(handlers) / cycles.max(1)))
    }

    /// Memory that an idle instance adds.
    async fn instance_bytes(&self) -> Result<u64> {
        self.server.evict(&self.name, false).await?;
        self.server.quiet().await?;
        let before = instances_bytes(self.pid)?;
        let hold =
            serde_json::json!({ "work": "wait", "ns": HOLD_NS, "rounds": 0, "memory_mib": MEMORY_MIB });
        let event: bytes::Bytes = hold.to_string().into();
        let mut running = tokio::task::JoinSet::new();
        for _ in 0..INSTANCES {
            let mut connection = self.server.client().connect().await?;
            let (name, event) = (self.name.clone(), event.clone());
            running.spawn(async move { calls::call(&mut connection, &name, &event).await });
        }
        while let Some(called) = running.join_next().await {
            called.context("a call was cut short")??;
        }
        self.server.quiet().await?;
        let held = instances_bytes(self.pid)?.saturating_sub(before) / INSTANCES as u64;
        Ok(held.saturating_sub(u64::from(MEMORY_MIB) << 20))
    }
}
