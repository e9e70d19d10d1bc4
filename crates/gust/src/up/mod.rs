//! `gust up`: the whole server in one process.
//!
//! ```text
//! configuration -> listener bound -> store -> node -> control plane -> calls are taken
//! signal -> no new calls; running ones end within the grace period -> instances ended -> store closed
//! taken over -> connections held back -> store let go of -> running calls end within the grace period -> ended
//! ```
//!
//! The listener is bound first, so that a port in use is told before anything is touched, and what arrives while the
//! rest starts waits in its queue. A second signal ends the process at once.

mod activation;
mod announce;
mod config;
mod ending;
mod handover;
mod nodes;
mod start;

use std::{
    fs::OpenOptions,
    io::IsTerminal,
    net::SocketAddr,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use gust_control::{ControlConfig, fleet::LiveConfig};
use gust_gateway::GatewayConfig;
use gust_node::{Isolation, Node, NodeConfig};
use gust_policy::{FleetConfig, NodeSpec};
use tokio::{net::TcpListener, sync::oneshot};
use tracing_subscriber::EnvFilter;

use crate::{
    cli::{IsolationChoice, UpArgs},
    exit::Hinted,
    paths,
};
use activation::Given;
use announce::announce;
pub use config::UpConfig;
use ending::{Signals, retire, stop};
use start::{Started, duplicate, start};

/// Threads that serve requests; what blocks has threads of its own, which come and go.
const SERVING_THREADS_MAX: usize = 4;

/// Stack of a thread, in bytes: futures are on the heap.
const THREAD_STACK_BYTES: usize = 512 << 10;

/// Threads for what blocks: unpacking packages, reading files.
const BLOCKING_THREADS_MAX: usize = 32;

/// How long an idle blocking thread stays.
const BLOCKING_THREAD_IDLE: Duration = Duration::from_secs(2);

/// Instances that a node restores at the same time, for each processor: more would only take it from each other.
const RESTORES_PER_CPU: usize = 4;

/// Instances that a node on this machine restores at the same time.
pub fn restores_max() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from) * RESTORES_PER_CPU
}

/// Restores at the same time where they take no processor.
const FAKE_RESTORES: u32 = 10_000;

/// Starts the server and serves until a signal comes.
pub fn run(arguments: UpArgs) -> Result<ExitCode> {
    let began = Instant::now();
    let (quiet, takes_over) = (arguments.quiet, arguments.take_over);
    let mut config = UpConfig::read(arguments)?;
    let given = Given::take()?;
    given.configure(&mut config)?;
    let runtime = runtime(&config)?;
    runtime.block_on(serve(config, given, began, takes_over, quiet))?;
    Ok(ExitCode::SUCCESS)
}

/// The runtime that a server or node serves on; and its log, from now on.
pub fn runtime(config: &UpConfig) -> Result<tokio::runtime::Runtime> {
    let filter =
        EnvFilter::try_new(&config.log).with_context(|| format!("read the log filter {:?}", config.log))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let threads = std::thread::available_parallelism()
        .map_or(1, usize::from)
        .min(SERVING_THREADS_MAX);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_keep_alive(BLOCKING_THREAD_IDLE)
        .thread_stack_size(THREAD_STACK_BYTES)
        .thread_name("gust-serve")
        .enable_all()
        .build()
        .context("start the runtime")
}

async fn serve(config: UpConfig, given: Given, began: Instant, takes_over: bool, quiet: bool) -> Result<()> {
    let signals = Signals::new()?;
    let started = start(&config, given, takes_over).await?;
    let (address, control) = (started.served.api.1, &started.served.control);
    let remark = started.remark.as_deref();
    announce(
        &config,
        address,
        started.wall,
        remark,
        control,
        began.elapsed(),
        quiet,
    );
    serve_to_the_end(&config, started, signals, quiet).await
}

/// Serves until a signal comes or another server has taken over, and what runs then has ended.
async fn serve_to_the_end(
    config: &UpConfig,
    started: Started,
    mut signals: Signals,
    quiet: bool,
) -> Result<()> {
    let Started {
        api,
        served,
        offer,
        nodes,
        ..
    } = started;
    let gateway = GatewayConfig {
        auth: config.auth.clone(),
        grace: config.grace,
    };
    let control = &served.control;
    let (end, ended) = oneshot::channel::<()>();
    let mut stopped = control.stopped();
    let shutdown = async move {
        tokio::select! {
            // The control plane outlives this future.
            _closed = stopped.wait_for(|stopped| *stopped) => {}
            // Dropped is as good as said.
            _ = ended => {}
        }
    };
    let serving = gust_gateway::run(api, control.clone(), gateway, served.doors.clone(), shutdown);
    let ending = async {
        tokio::select! {
            () = signals.next() => {
                stop(control, signals, config.grace, quiet).await;
                Ok(())
            }
            taken = offer.taken(&served) => {
                drop(end);
                retire(taken?, &served, nodes.as_ref(), signals, config.grace, quiet).await;
                Ok(())
            }
        }
    };
    let (ended, ()) = tokio::join!(ending, serving);
    if let Some(nodes) = nodes {
        nodes.stop().await;
    }
    if !quiet {
        eprintln!("stopped");
    }
    ended
}

/// Binds a port, for an option.
pub async fn listen(listen: SocketAddr, option: &str) -> Result<TcpListener> {
    TcpListener::bind(listen).await.map_err(|error| {
        let hint = match error.kind() {
            std::io::ErrorKind::AddrInUse => {
                format!(
                    "another program listens there; see ss -ltnp, or use {option} {}:0",
                    listen.ip()
                )
            }
            _ => format!("choose another address with {option}"),
        };
        Hinted {
            message: format!("cannot listen on {listen}: {error}"),
            hint,
        }
        .into()
    })
}

/// What is around instances.
#[derive(Debug, Clone, Copy)]
pub enum Wall {
    /// Each instance has one.
    Sandbox(Isolation),
    /// There are no instances.
    Fake,
}

/// The wall around instances, and what the user must know about it.
pub fn wall(config: &UpConfig) -> Result<(Wall, Option<String>)> {
    let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm");
    match (config.isolation, kvm) {
        (IsolationChoice::Fake, _) => Ok((
            Wall::Fake,
            Some("no function runs: starts and calls are only waited for".to_owned()),
        )),
        (IsolationChoice::Process, _) => Ok((Wall::Sandbox(Isolation::Process), None)),
        (IsolationChoice::Auto | IsolationChoice::Kvm, Ok(_)) => Ok((Wall::Sandbox(Isolation::Kvm), None)),
        (IsolationChoice::Auto, Err(error)) => {
            let remark = format!(
                "/dev/kvm cannot be opened ({error}): functions run as processes in namespaces, without micro-VMs \
                 and without snapshots. gust doctor says how to mend that."
            );
            Ok((Wall::Sandbox(Isolation::Process), Some(remark)))
        }
        (IsolationChoice::Kvm, Err(error)) => Err(Hinted {
            message: format!("cannot open /dev/kvm: {error}"),
            hint: "gust doctor says how to mend that; --isolation process runs functions without it"
                .to_owned(),
        }
        .into()),
    }
}

/// Starts a node for a configuration.
pub async fn start_node(config: &UpConfig, isolation: Isolation) -> Result<Node> {
    let dir = &config.data_dir;
    match isolation {
        Isolation::Kvm => {}
        // Root's workers are users of their own, who find the trees of functions by their paths.
        Isolation::Process if rustix::process::geteuid().is_root() => {
            if let Some(barrier) = paths::barrier(dir) {
                let barrier = barrier.display();
                return Err(Hinted {
                    message: format!("functions would run as users who cannot pass through {barrier}"),
                    hint: format!("chmod o+x {barrier}, or use another directory with --data-dir"),
                }
                .into());
            }
        }
        Isolation::Process => {}
    }
    let node = NodeConfig {
        data_dir: config.data_dir.join("node"),
        isolation,
        pool_size: config.pool,
        armed_per_version: config.armed,
        instances_max: config.instances,
        memory_budget_bytes: config.memory_budget_bytes,
        snapshot_memory_bytes: config.snapshot_memory_bytes,
        freeze_after: config.freeze_after,
        page_sharing: config.page_sharing,
        idle_timeout: config.idle_timeout,
        queue_timeout: config.queue_timeout,
        egress: Arc::clone(&config.egress),
        worker_program: None,
    };
    Node::start(node).await.context("start the node")
}

/// The policies, with what the operator has a say in.
fn policy(config: &UpConfig) -> FleetConfig {
    let mut policy = FleetConfig::new(config.mode);
    policy.keep_alive_ns = u64::try_from(config.idle_timeout.as_nanos()).unwrap_or(u64::MAX);
    if let Some(costs) = config.costs {
        policy.cost = costs;
    }
    policy.rest = config.rest;
    if let Some(price) = config.memory_price {
        // A gigabyte's second in processor seconds is the same number as a byte's second in processor nanoseconds.
        policy.cost.memory_price = price;
    }
    if let Some(tasks) = config.runnable_per_cpu {
        policy.runnable_per_cpu = tasks;
    }
    if let Some(period) = config.autoscale_period {
        policy.autoscaler.period_ns = u64::try_from(period.as_nanos()).unwrap_or(u64::MAX);
    }
    policy
}

/// What the policies are told of the server's own node.
pub fn node_spec(config: &UpConfig, wall: Wall) -> NodeSpec {
    NodeSpec {
        memory_bytes: match wall {
            Wall::Sandbox(_) => config.memory_budget_bytes,
            Wall::Fake => u64::MAX >> 1,
        },
        instances_max: u32::try_from(config.instances).unwrap_or(u32::MAX),
        restores_max: match wall {
            Wall::Sandbox(_) => u32::try_from(restores_max()).unwrap_or(u32::MAX),
            Wall::Fake => FAKE_RESTORES,
        },
        region: 0,
    }
}

fn control_config(config: &UpConfig, wall: Wall) -> ControlConfig {
    ControlConfig {
        fleet: LiveConfig {
            policy: policy(config),
            manager: config.manager,
        },
        node: node_spec(config, wall),
        queue_timeout: config.queue_timeout,
        place: config.place.clone(),
        limits: config.limits,
        memory_mode: config.memory_mode,
        retry_wait: config.retry_wait,
        runtimes_dir: paths::runtimes_dir(&config.data_dir),
    }
}
