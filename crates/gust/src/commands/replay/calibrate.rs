//! `gust calibrate`: what calls, restores and instances cost on this machine, as the simulator and the policies take it.
//!
//! Servers are started for it, and each figure is taken from many calls of the function of replays:
//!
//! | figure | from |
//! |---|---|
//! | `caller_cpu_ns` | processor time of this program for a warm call |
//! | `call_cpu_ns` | processor time of the server for a warm call, less its handler's; at most what the call takes beyond both |
//! | `after_cpu_ns` | what is more than that: done when the answer is out |
//! | `work_permille` | what a handler's work takes on its own, to what it takes at its quickest |
//! | `busy_permille` | what it takes while every processor does the same, to that |
//! | `way` | what warm calls take beyond handler and processor time |
//! | `touch_returned` | what the function says that it took to touch 80 MiB in a new instance, twelve of which are held at once, with memory that has been free for five seconds: a virtual machine may have given it back |
//! | `touch` | the same with the memory that those have just freed |
//! | `restore_cpu_ns` | worker, map, faults and what the runtime takes more than in a warm call, of calls that find nothing prepared |
//! | `unprepared_cpu_ns`, `unprepared_bytes` | processor time and memory of twelve calls at once, less what those take that find a prepared worker |
//! | `end_cpu_ns` | processor time while idle instances are ended |
//! | `prepare_cpu_ns` | processor time of whole cycles of restore and end, less all of the above |
//! | `create_cpu_ns` | preparing a worker and restoring into it |
//! | `armed_cpu_ns` | the same parts as of a restore, of calls that find their instance armed |
//! | `rearm_cpu_ns` | processor time of whole cycles of such calls, whose instances go back, less the call's |
//! | `rearm_mib_cpu_ns` | the same of calls that touch 48 MiB |
//! | `instance_bytes`, `shared_bytes` | memory that the second to twelfth idle instance add to the server's processes, and the first |
//! | `created_bytes`, `created_shared_bytes` | the same of provisioned instances that have had no call |
//! | `armed_bytes` | the same of instances that have run and gone back |
//! | `prepared_bytes` | memory of the server's processes but its own while there are only prepared workers |
//! | `thaw_cpu_ns`, `frozen_bytes` | processor time of rounds in which instances are frozen and called again; memory of all of the server's processes |
//! | `frozen_permille` | what instances that have touched 48 MiB take more of it |
//!
//! Delays of a cluster manager are not measured: there is none here. They stay at what they are.

mod measure;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, ensure};
use clap::Args;
use gust_node::ARMED_AGAIN_MAX;
use gust_policy::CostModel;
use gust_replay::sim::{Delay, SimCosts};
use gust_worker::protocol::FROZEN_BYTES_MAX;

use crate::{bench::own::Start, commands::print, output::table, paths};
use measure::{Lab, MEMORY_MIB, REARMED_MIB};

/// Measured calls that a user may ask for.
const CALLS_MAX: usize = 100_000;

/// Rounds in which memory is touched in several instances.
const TOUCH_ROUNDS: usize = 6;

/// Gaps between calls for which the table says what is cheapest, in seconds.
const GAPS_S: [f64; 7] = [0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0];

/// `gust calibrate`
#[derive(Debug, Args)]
pub struct CalibrateArgs {
    /// File to write
    #[arg(long, default_value = "costs.json")]
    out: PathBuf,
    /// Warm calls
    #[arg(long, default_value_t = 1000)]
    warm: usize,
    /// Restores, and starts of armed instances, each
    #[arg(long, default_value_t = 60)]
    restores: usize,
    /// Data directory with the runtimes
    #[arg(long, env = paths::DATA_DIR_VARIABLE)]
    data_dir: Option<PathBuf>,
    /// Option for gust up, such as --up-arg=--pool=8; can be given several times
    #[arg(long, allow_hyphen_values = true)]
    up_arg: Vec<String>,
}

/// Measures, and writes the costs.
pub async fn run(arguments: CalibrateArgs) -> Result<ExitCode> {
    ensure!(
        (10..=CALLS_MAX).contains(&arguments.warm) && (10..=CALLS_MAX).contains(&arguments.restores),
        "between 10 and {CALLS_MAX} calls can be measured"
    );
    let costs = measured(&arguments).await?;
    costs.check().context("check what was measured")?;
    let json = serde_json::to_string_pretty(&costs).context("write costs as JSON")?;
    std::fs::write(&arguments.out, format!("{json}\n"))
        .with_context(|| format!("write {}", arguments.out.display()))?;
    print(&parameters(&costs))?;
    print(&rests(&costs.cost_model()))?;
    eprintln!(
        "the costs are in {}; gust simulate --costs and gust up --costs take them",
        arguments.out.display()
    );
    Ok(ExitCode::SUCCESS)
}

async fn measured(arguments: &CalibrateArgs) -> Result<SimCosts> {
    let data_dir = arguments.data_dir.clone().unwrap_or_else(paths::data_dir);
    let (count, more) = (arguments.restores, &arguments.up_arg);
    // Instances stay idle, and none is armed or frozen.
    let idle = ["--armed", "0", "--freeze-after", "0", "--keep-idle", "3600"];
    let lab = Lab::start(&data_dir, &idle, more).await?;
    let warm = lab.warm(arguments.warm).await?;
    let work = lab.work().await?;
    let restored = lab.cycles(count, Start::Unprepared, MEMORY_MIB, &warm).await?;
    let (touch_returned, touch) = lab.touch(TOUCH_ROUNDS).await?;
    let held = lab.held().await?;
    let unprepared = lab.unprepared(&warm, &restored, &held).await?;
    let (created_bytes, created_shared_bytes) = lab.created().await?;
    let prepared = lab.prepared;
    drop(lab);
    // Instances go back as soon as they have answered.
    let back = ["--armed", "1", "--keep-idle", "0", "--keep-armed", "3600"];
    let lab = Lab::start(&data_dir, &back, more).await?;
    let armed = lab.cycles(count, Start::Armed, MEMORY_MIB, &warm).await?;
    let touching = lab.cycles(count, Start::Armed, REARMED_MIB, &warm).await?;
    let more_ns = touching.background_ns.saturating_sub(armed.background_ns);
    let (armed_bytes, _) = lab.armed_bytes().await?;
    drop(lab);
    let cold = ["--armed", "0", "--freeze-after", "1", "--keep-idle", "3600"];
    let lab = Lab::start(&data_dir, &cold, more).await?;
    let frozen = lab.frozen(&warm).await?;
    let prepare_cpu_ns = restored.background_ns.saturating_sub(held.end_cpu_ns);
    Ok(SimCosts {
        way: warm.way,
        call_cpu_ns: warm.call_cpu_ns,
        after_cpu_ns: warm.after_cpu_ns,
        caller_cpu_ns: warm.caller_cpu_ns,
        work_permille: work.alone_permille,
        busy_permille: work.busy_permille,
        touch,
        touch_returned,
        restore: Delay::Constant(0),
        restore_cpu_ns: restored.start_ns,
        unprepared_cpu_ns: unprepared.0,
        unprepared_bytes: unprepared.1,
        prepare_cpu_ns,
        end_cpu_ns: held.end_cpu_ns,
        armed_cpu_ns: armed.start_ns,
        rearm_cpu_ns: armed.background_ns,
        rearm_mib_cpu_ns: more_ns / u64::from(REARMED_MIB - MEMORY_MIB),
        armed_max: u32::try_from(ARMED_AGAIN_MAX).unwrap_or(u32::MAX),
        prepared: prepared.0,
        create_cpu_ns: prepare_cpu_ns + restored.start_ns,
        instance_bytes: held.each,
        created_bytes,
        created_shared_bytes,
        armed_bytes,
        shared_bytes: held.shared,
        prepared_bytes: prepared.1,
        thaw_cpu_ns: frozen.thaw_cpu_ns,
        frozen_bytes: frozen.bytes,
        frozen_permille: frozen.permille,
        frozen_bytes_max: FROZEN_BYTES_MAX as u64,
        ..SimCosts::default()
    })
}

/// What was measured, as a table.
fn parameters(costs: &SimCosts) -> String {
    let us = |ns: u64| format!("{:.0} us", ns as f64 / 1e3);
    let kib = |bytes: u64| format!("{} KiB", bytes >> 10);
    let times = |permille: u32| format!("{:.3} times", f64::from(permille) / 1e3);
    let lines = [
        ("call: the server's, waited for", us(costs.call_cpu_ns)),
        ("call: the server's, afterwards", us(costs.after_cpu_ns)),
        ("call: the caller's", us(costs.caller_cpu_ns)),
        ("call: no processor's, median", us(costs.way.median())),
        ("a handler's work, to its quickest", times(costs.work_permille)),
        (
            "any work while all processors are busy",
            times(costs.busy_permille),
        ),
        ("touching a MiB, median", us(costs.touch.median())),
        (
            "touching a MiB that was free for long, median",
            us(costs.touch_returned.median()),
        ),
        ("restore", us(costs.restore_cpu_ns)),
        ("restore without a prepared worker", us(costs.unprepared_cpu_ns)),
        ("preparing a worker", us(costs.prepare_cpu_ns)),
        ("ending an instance", us(costs.end_cpu_ns)),
        ("start of an armed instance", us(costs.armed_cpu_ns)),
        ("going back to be armed", us(costs.rearm_cpu_ns)),
        ("going back, for each MiB more", us(costs.rearm_mib_cpu_ns)),
        ("freezing and thawing", us(costs.thaw_cpu_ns)),
        ("memory: idle instance", kib(costs.instance_bytes)),
        (
            "memory: without a prepared worker, more",
            kib(costs.unprepared_bytes),
        ),
        ("memory: made ahead", kib(costs.created_bytes)),
        (
            "memory: shared by a function's that were made ahead",
            kib(costs.created_shared_bytes),
        ),
        ("memory: armed instance", kib(costs.armed_bytes)),
        ("memory: frozen instance", kib(costs.frozen_bytes)),
        (
            "memory: frozen instance, of its function's",
            times(costs.frozen_permille),
        ),
        ("memory: shared by a function's", kib(costs.shared_bytes)),
        ("memory: prepared worker", kib(costs.prepared_bytes)),
        ("prepared workers", costs.prepared.to_string()),
    ];
    let mut rows = vec![vec!["WHAT".to_owned(), "MEASURED".to_owned()]];
    rows.extend(lines.map(|(what, value)| vec![what.to_owned(), value]));
    table(&rows) + "\n"
}

/// What each way to wait for the next call costs at the model's prices, in milliseconds of processor time, at the least size.
fn rests(model: &CostModel) -> String {
    let mut rows = vec![
        ["GAP (s)", "IDLE", "ARMED", "FROZEN", "GONE", "CHEAPEST"]
            .map(str::to_owned)
            .to_vec(),
    ];
    rows.extend(GAPS_S.iter().map(|gap_s| {
        let gap_ns = (gap_s * 1e9) as u64;
        let ways = model.rests(gap_ns, 0);
        let (cheapest, _) = model.cheapest_rest(gap_ns, 0);
        let mut row = vec![gap_s.to_string()];
        row.extend(ways.map(|(_, cost)| format!("{:.2}", cost / 1e6)));
        row.push(format!("{cheapest:?}").to_lowercase());
        row
    }));
    table(&rows)
}
