//! Thousands of functions and nodes, and a cluster manager that takes its time: what a decision takes, and what the
//! control plane needs of memory and processor.
//!
//! The fleet runs in this process with fake nodes; calls are placed, waited for and ended as the control plane does it,
//! without HTTP. How often a function is called falls with its rank (Zipf's law), as in every trace of such platforms.

use std::{
    future::Future,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use clap::Args;
use gust_control::{
    agent::Agent,
    fake::FakeNode,
    fleet::{Ending, LiveConfig, LiveFleet, ManagerConfig},
};
use gust_node::{Invocation, VersionId};
use gust_policy::{FleetConfig, FunctionId, FunctionSpec, Mode, NodeId, NodeSpec, TenantId};
use tokio::sync::mpsc;

use super::{
    Settings,
    load::{self, Random},
};
use crate::bench::{
    figures::Table,
    machine::Machine,
    memory, processes,
    report::{Report, Row},
};

/// Most functions or nodes.
const COUNT_MAX: u32 = 100_000;

/// What a call takes.
const EVENT: &[u8] = b"{\"duration_ms\": 50}";

/// What a start takes.
const START: Duration = Duration::from_millis(40);

/// Instances that a node has room for.
const ROOM: u32 = 64;

/// How large the fleet is.
#[derive(Debug, Clone, Args)]
pub struct ScaleArgs {
    /// Functions of the part scale
    #[arg(long, default_value_t = 5000)]
    scale_functions: u32,
    /// Nodes of the part scale
    #[arg(long, default_value_t = 1000)]
    scale_nodes: u32,
    /// Calls a second of the part scale
    #[arg(long, default_value_t = 2000)]
    scale_rate: u32,
}

impl ScaleArgs {
    pub(super) fn check(&self) -> Result<()> {
        for (count, name) in [
            (self.scale_functions, "functions"),
            (self.scale_nodes, "nodes"),
            (self.scale_rate, "calls a second"),
        ] {
            ensure!(
                (1..=COUNT_MAX).contains(&count),
                "between 1 and {COUNT_MAX} {name} can be measured"
            );
        }
        Ok(())
    }
}

/// One call, as it went.
struct Called {
    decision: Duration,
    waited: Duration,
    is_answered: bool,
}

/// Measures.
pub async fn run(settings: &Settings, arguments: &ScaleArgs) -> Result<Report> {
    let machine = Machine::this();
    let own = u64::from(std::process::id());
    let memory_before = memory::of_tree(own)?;
    let (fleet, functions) = build(arguments, mode(&settings.mode)?);
    let memory_built = memory::of_tree(own)?;
    let picked = ranks(arguments.scale_functions);
    let due = load::arrivals(f64::from(arguments.scale_rate), settings.length);
    let mut random = Random(0xca11);
    let (cpu_before, origin) = (processes::cpu_of_tree(own)?, Instant::now());
    let mut running = Vec::with_capacity(due.len());
    for due in &due {
        tokio::time::sleep_until((origin + *due).into()).await;
        let draw = random.unit();
        let index = picked
            .partition_point(|share| *share <= draw)
            .min(functions.len() - 1);
        running.push(tokio::spawn(call(fleet.clone(), functions[index].clone())));
    }
    let mut calls = Vec::with_capacity(running.len());
    for call in running {
        calls.push(call.await.context("a call failed")??);
    }
    let used = processes::cpu_of_tree(own)?.saturating_sub(cpu_before);
    let memory_used = memory::of_tree(own)?;
    let counts = fleet.counts();
    fleet.stop();
    let refused = calls.iter().filter(|call| !call.is_answered).count();
    let decisions: Vec<Duration> = calls.iter().map(|call| call.decision).collect();
    let waits: Vec<Duration> = calls.iter().map(|call| call.waited).collect();
    let mib = |bytes: u64| Some(bytes as f64 / f64::from(1 << 20));
    let mut table = Table::new(
        "the control plane, with the load and the fake nodes in the same process",
        &[
            "built_mib",
            "after_mib",
            "cpu_us_a_call",
            "processors_busy",
            "refused",
            "regular",
            "emergency",
        ],
    );
    table.lines.push((
        format!(
            "{} functions, {} nodes",
            arguments.scale_functions, arguments.scale_nodes
        ),
        vec![
            mib(memory_built.saturating_sub(memory_before)),
            mib(memory_used.saturating_sub(memory_before)),
            Some(used.as_secs_f64() * 1e6 / calls.len() as f64),
            Some(used.as_secs_f64() / origin.elapsed().as_secs_f64()),
            Some(refused as f64),
            Some(counts.regular as f64),
            Some(counts.emergency as f64),
        ],
    ));
    Ok(Report {
        name: "control-scale".to_owned(),
        method: format!(
            "{} functions called by Zipf's law on {} fake nodes, {} calls of 50 ms a second, a cluster manager of 5 to 50 ms, \
             mode {}",
            arguments.scale_functions, arguments.scale_nodes, arguments.scale_rate, settings.mode
        ),
        machine,
        rows: vec![
            Row::of_durations("a decision (the policies and their lock)", &decisions)?,
            Row::of_durations("until a call has its place", &waits)?,
        ],
        tables: vec![table],
        chart: None,
        targets: Vec::new(),
        remarks: vec![
            "processor time is that of this whole process, load and fake nodes included".to_owned(),
        ],
    })
}

fn mode(name: &str) -> Result<Mode> {
    let modes = [
        ("dual", Mode::Dual),
        ("sync", Mode::Sync),
        ("async", Mode::Async),
        ("dirigent", Mode::Dirigent),
    ];
    let found = modes.iter().find(|(of, _)| *of == name);
    found
        .map(|(_, mode)| *mode)
        .with_context(|| format!("{name} is no mode"))
}

/// A fleet with its functions on all of its nodes.
fn build(arguments: &ScaleArgs, mode: Mode) -> (LiveFleet, Vec<(VersionId, FunctionId)>) {
    let fleet = LiveFleet::start(LiveConfig {
        policy: FleetConfig::new(mode),
        manager: ManagerConfig {
            delay_min: Duration::from_millis(5),
            delay_max: Duration::from_millis(50),
        },
    });
    let spec = FunctionSpec {
        tenant: TenantId(0),
        memory_bytes: 16 << 20,
        concurrency_per_instance: 1,
        instances_min: 0,
        instances_max: None,
        reserved: None,
        queue_timeout_ns: 10_000_000_000,
        home: 0,
    };
    let functions: Vec<(VersionId, FunctionId)> = (0..arguments.scale_functions)
        .map(|number| {
            let version = VersionId(format!("f{number}"));
            let function = fleet.function(&version, spec);
            (version, function)
        })
        .collect();
    for number in 0..arguments.scale_nodes {
        let node = FakeNode::with_all_versions(START, ROOM as usize);
        let room = NodeSpec {
            memory_bytes: u64::from(ROOM) << 24,
            instances_max: ROOM,
            restores_max: ROOM,
            region: 0,
        };
        fleet.add_node(NodeId(number), room, Agent::Fake(node));
        // Snapshots lie where they were made: each function's on a few nodes.
        for (_, function) in functions
            .iter()
            .skip(number as usize)
            .step_by(arguments.scale_nodes as usize)
        {
            fleet.snapshot(NodeId(number), *function, true);
        }
    }
    (fleet, functions)
}

/// Shares of the functions' calls, summed up: the n-th gets one n-th of the first's.
fn ranks(count: u32) -> Arc<[f64]> {
    let total: f64 = (1..=count).map(|rank| 1.0 / f64::from(rank)).sum();
    let mut sum = 0.0;
    (1..=count)
        .map(|rank| {
            sum += 1.0 / f64::from(rank) / total;
            sum
        })
        .collect()
}

async fn call(fleet: LiveFleet, (version, function): (VersionId, FunctionId)) -> Result<Called> {
    let began = Instant::now();
    let mut placing = Box::pin(fleet.place(function));
    // What is decided at once is decided in the first poll.
    let first = std::future::poll_fn(|context| Poll::Ready(placing.as_mut().poll(context))).await;
    let decision = began.elapsed();
    let placed = match first {
        Poll::Ready(placed) => placed,
        Poll::Pending => placing.await,
    };
    let waited = began.elapsed();
    let Ok(placed) = placed else {
        return Ok(Called {
            decision,
            waited,
            is_answered: false,
        });
    };
    let (log, _discarded) = mpsc::channel(1);
    let invocation = Invocation {
        request_id: String::new(),
        payload: Bytes::from_static(EVENT),
        timeout: Duration::from_secs(60),
        function_arn: String::new(),
        client_context: None,
        trace_id: None,
        log,
        wanted: placed.wanted(),
        delivered: None,
    };
    let outcome = placed.agent().clone().invoke(&version, invocation).await;
    let is_answered = outcome.is_ok();
    placed.end(match outcome {
        Ok(outcome) => Ending::Kept {
            memory_bytes: outcome.memory_bytes_max,
        },
        Err(_) => Ending::Gone,
    });
    Ok(Called {
        decision,
        waited,
        is_answered,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_fall_with_the_rank_and_make_a_whole() {
        let ranks = ranks(1000);
        assert!((ranks[999] - 1.0).abs() < 1e-9 && ranks.is_sorted());
        let (first, second) = (ranks[0], ranks[1] - ranks[0]);
        assert!((first / second - 2.0).abs() < 1e-9);
    }
}
