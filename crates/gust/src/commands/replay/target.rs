//! The functions that a replay calls, on a server.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::Permissions,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::Arc,
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use clap::ValueEnum;
use gust_control::TENANT_TAG;
use gust_replay::{Workload, sim::CallAhead};
use hyper::Method;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::Semaphore;

use super::driver::nanos;
use crate::{
    bench::{calls, own::Server},
    client::{Client, Connection, segment},
    commands::deploy,
    output::progress,
    package::{self, Package},
    project::Project,
};

/// Deployments at once: each boots a function and makes its snapshot.
const DEPLOYMENTS_AT_ONCE: usize = 2;

/// Functions of a replay at most.
const FUNCTIONS_MAX: usize = 10_000;

/// Memory that a function gets beyond what its events ask for, in MiB: its runtime's.
const RUNTIME_MIB: u32 = 64;

/// Least and most memory of a function, in MiB: AWS Lambda's.
const MEMORY_MIB: (u32, u32) = (128, 10_240);

/// Longest run of a function, in seconds: twice the longest duration of a trace, for a busy machine.
const TIMEOUT_S: u32 = 120;

/// Rounds of work whose time is taken: some milliseconds, less than a processor is taken away for; and how often. The quickest
/// counts, because everything else only makes it slower.
const MEASURED_ROUNDS: u64 = 100_000;
const MEASUREMENTS: usize = 20;

/// Name of the function that the work's speed is measured with.
const MEASURED_NAME: &str = "replay-speed";

/// The function of a replay in Python, and as a native program.
const PYTHON: &str = include_str!("trace_function.py");
const NATIVE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/replay"));

/// What the function is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Language {
    /// Python 3.11
    Python,
    /// A native program of a few kilobytes on provided.al2023: what a cold start takes at least
    Native,
}

impl Language {
    /// The runtime that it needs.
    pub fn runtime(self) -> &'static str {
        match self {
            Self::Python => "python3.11",
            Self::Native => "provided.al2023",
        }
    }

    /// Name of its file, what is in it, and whether it is a program.
    fn file(self) -> (&'static str, &'static [u8], u32) {
        match self {
            Self::Python => ("app.py", PYTHON.as_bytes(), 0o644),
            Self::Native => ("bootstrap", NATIVE, 0o755),
        }
    }
}

/// Which functions are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FunctionsChoice {
    /// One for each of the trace
    Own,
    /// One for each memory size; less to deploy, but cold starts are not the trace's
    Shared,
}

/// What handlers do for the time that they are asked to take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Work {
    /// A fixed amount of work, measured before on the quiet server: takes longer where processors are shared
    Spin,
    /// Work until the time has passed, however much that was
    Wall,
    /// Nothing: waits, as for another service
    Wait,
}

impl Work {
    /// What an event calls it.
    fn word(self) -> &'static str {
        match self {
            Self::Spin => "spin",
            Self::Wall => "wall",
            Self::Wait => "wait",
        }
    }

    /// Whether it uses a processor.
    pub fn is_busy(self) -> bool {
        match self {
            Self::Spin | Self::Wall => true,
            Self::Wait => false,
        }
    }
}

/// A function that is made.
#[derive(Debug, Clone, Copy)]
struct Made {
    /// Memory that it gets, in MiB.
    memory_mib: u32,
    /// Memory that it is asked to touch at most, in MiB.
    used_mib: u32,
    /// Index of the first function of the workload that it is.
    function: u32,
    /// Its owner in the trace, where it has one.
    tenant: Option<u32>,
}

/// Functions of a workload on a server.
#[derive(Debug, Clone)]
pub struct Targets {
    /// Those that are called, by name.
    made: BTreeMap<String, Made>,
    /// Path of each function's invocations, by index; empty for one that is never called.
    paths: Vec<String>,
    /// Memory that is asked for, in MiB, by index.
    memory_mib: Vec<u32>,
    work: Work,
    /// Rounds of work in a nanosecond.
    rounds_per_ns: f64,
}

impl Targets {
    /// Deploys the functions that the workload calls, and measures the speed of their work.
    pub async fn deploy(
        client: &Client,
        workload: &Workload,
        choice: FunctionsChoice,
        work: Work,
        language: Language,
    ) -> Result<Self> {
        let mut called = vec![false; workload.functions.len()];
        for arrival in &workload.arrivals {
            called[arrival.function as usize] = true;
        }
        let mut names: BTreeMap<String, Made> = BTreeMap::new();
        let mut paths = Vec::with_capacity(called.len());
        for (number, function) in workload.functions.iter().enumerate() {
            if !called[number] {
                paths.push(String::new());
                continue;
            }
            let size = (function.memory_mib + RUNTIME_MIB).clamp(MEMORY_MIB.0, MEMORY_MIB.1);
            let (name, size) = match choice {
                FunctionsChoice::Own => (format!("replay-{number}"), size),
                FunctionsChoice::Shared => {
                    let size = size.next_power_of_two().min(MEMORY_MIB.1);
                    (format!("replay-shared-{size}"), size)
                }
            };
            paths.push(format!("/2015-03-31/functions/{}/invocations", segment(&name)));
            let tenant = match choice {
                FunctionsChoice::Own => Some(function.tenant),
                FunctionsChoice::Shared => None,
            };
            let memory_mib = size;
            let made = names.entry(name).or_insert(Made {
                memory_mib,
                used_mib: 0,
                function: number as u32,
                tenant,
            });
            made.used_mib = made.used_mib.max(function.memory_mib);
        }
        ensure!(
            names.len() <= FUNCTIONS_MAX,
            "{} functions are more than {FUNCTIONS_MAX}; use --functions shared or a smaller --scale",
            names.len()
        );
        let made = names.clone();
        if work == Work::Spin {
            // A function of its own: policies learn from calls, and these are none of the workload's.
            let measured = Made {
                memory_mib: MEMORY_MIB.0,
                used_mib: 0,
                function: 0,
                tenant: None,
            };
            names.insert(MEASURED_NAME.to_owned(), measured);
        }
        deploy_all(client, names, language).await?;
        let mut targets = Self {
            made,
            memory_mib: workload.functions.iter().map(|f| f.memory_mib).collect(),
            paths,
            work,
            rounds_per_ns: 0.0,
        };
        if work == Work::Spin {
            let path = format!("/2015-03-31/functions/{MEASURED_NAME}");
            let mut connection = client.connect().await?;
            targets.rounds_per_ns = speed(&mut connection, &format!("{path}/invocations")).await?;
            delete_at(client, &path).await?;
        }
        Ok(targets)
    }

    /// Path of a function's invocations.
    pub fn path(&self, function: u32) -> &str {
        &self.paths[function as usize]
    }

    /// Names of the functions, each once.
    pub fn names(&self) -> BTreeSet<&str> {
        let called = self.paths.iter().filter(|path| !path.is_empty());
        called.filter_map(|path| path.rsplit('/').nth(1)).collect()
    }

    /// The event of an invocation.
    pub fn event(&self, function: u32, duration_ns: u64) -> String {
        self.fields(function, duration_ns).to_string()
    }

    /// The same for one that says its number in its log when it has run to its end (Python only).
    pub fn numbered_event(&self, function: u32, duration_ns: u64, number: u64) -> String {
        let mut fields = self.fields(function, duration_ns);
        fields["number"] = number.into();
        fields.to_string()
    }

    fn fields(&self, function: u32, duration_ns: u64) -> Value {
        event(
            self.work,
            duration_ns,
            (duration_ns as f64 * self.rounds_per_ns) as u64,
            self.memory_mib[function as usize],
        )
    }
}

fn event(work: Work, ns: u64, rounds: u64, memory_mib: u32) -> Value {
    json!({ "work": work.word(), "ns": ns, "rounds": rounds, "memory_mib": memory_mib })
}

async fn deploy_all(client: &Client, names: BTreeMap<String, Made>, language: Language) -> Result<()> {
    let dir = TempDir::with_prefix("gust-replay-").context("make a directory for code")?;
    let package = Arc::new(package(dir.path(), language)?);
    let bar = progress("deploying", names.len());
    let slots = Arc::new(Semaphore::new(DEPLOYMENTS_AT_ONCE));
    let mut running = tokio::task::JoinSet::new();
    for (name, made) in names {
        let (client, package, slots) = (client.clone(), Arc::clone(&package), Arc::clone(&slots));
        running.spawn(async move {
            let _slot = slots.acquire().await.context("wait for a deployment")?;
            deploy::deploy(&client, &project(&name, made, language), &package)
                .await
                .with_context(|| format!("deploy {name}"))
        });
    }
    while let Some(deployed) = running.join_next().await {
        deployed.context("a deployment was cut short")??;
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(())
}

fn package(dir: &Path, language: Language) -> Result<Package> {
    let (name, contents, mode) = language.file();
    let path = dir.join(name);
    std::fs::write(&path, contents).with_context(|| format!("write {}", path.display()))?;
    std::fs::set_permissions(&path, Permissions::from_mode(mode))
        .with_context(|| format!("set the mode of {}", path.display()))?;
    package::build(dir)
}

fn project(name: &str, made: Made, language: Language) -> Project {
    let tenant = made
        .tenant
        .map(|tenant| (TENANT_TAG.to_owned(), format!("replay-{tenant}")));
    Project {
        name: name.to_owned(),
        handler: "app.handler".to_owned(),
        runtime: language.runtime().to_owned(),
        memory: Some(made.memory_mib),
        timeout: Some(TIMEOUT_S),
        description: None,
        environment: BTreeMap::new(),
        tags: tenant.into_iter().collect(),
    }
}

/// Rounds of work in a nanosecond on this server while nothing else runs there: what many rounds take more than none.
async fn speed(connection: &mut Connection, path: &str) -> Result<f64> {
    let none = quickest(connection, path, 0).await?;
    let many = quickest(connection, path, MEASURED_ROUNDS).await?;
    ensure!(
        many > none,
        "the function's work takes no time: {MEASURED_ROUNDS} rounds took {many} ns, none {none} ns"
    );
    Ok(MEASURED_ROUNDS as f64 / (many - none))
}

/// The least time that a call with so many rounds of work has taken in the function, in nanoseconds.
async fn quickest(connection: &mut Connection, path: &str, rounds: u64) -> Result<f64> {
    // So long that nothing is left out for what memory has cost: none is asked for.
    let asked = event(Work::Spin, u64::MAX >> 1, rounds, 0).to_string();
    let mut quickest = f64::INFINITY;
    for _ in 0..MEASUREMENTS {
        let answer = connection
            .send(Method::POST, path, &[], asked.clone().into())
            .await
            .context("measure the speed of the function's work")?;
        let took = took_ns(&answer.body).with_context(|| {
            let body = String::from_utf8_lossy(&answer.body).into_owned();
            format!("measure the speed of the function's work: it answered {body}")
        })?;
        quickest = quickest.min(took as f64);
    }
    Ok(quickest)
}

/// What a function of a replay says that its work took, in nanoseconds.
pub fn took_ns(answer: &[u8]) -> Option<u64> {
    serde_json::from_slice::<Value>(answer).ok()?["ns"].as_u64()
}

/// Calls every function so many times, one call after the other, and ends the instances that this has made, armed ones too.
///
/// It goes round the functions: what a node prepares for a runtime is made anew as it gets to know more functions, and those that
/// were called before that would begin the run with what they have learned of something that is no longer there.
///
/// Says what was called and ended when, counted from a moment.
pub async fn warm_up(
    server: &Server,
    targets: &Targets,
    calls: usize,
    since: Instant,
) -> Result<Vec<CallAhead>> {
    let mut made = Vec::with_capacity(targets.made.len() * calls);
    if calls == 0 {
        return Ok(made);
    }
    let bar = progress("calling functions ahead", targets.made.len() * calls);
    let mut connection = server.client().connect().await?;
    for _ in 0..calls {
        for (name, of) in &targets.made {
            // The memory that it will use is known then, too.
            let event = Bytes::from(event(targets.work, 1, 0, of.used_mib).to_string());
            let at_ns = nanos(since.elapsed());
            calls::call(&mut connection, name, &event).await?;
            // What is learned from a run is learned when its instance has come to rest.
            server.quiet().await?;
            let evicted_ns = nanos(since.elapsed());
            // Each is a start, from which more is learned.
            server.evict(name, false).await?;
            made.push(CallAhead {
                function: of.function,
                at_ns,
                evicted_ns,
            });
            bar.inc(1);
        }
    }
    server.quiet().await?;
    bar.finish_and_clear();
    Ok(made)
}

/// Deletes the functions of a replay.
pub async fn delete(client: &Client, targets: &Targets) -> Result<()> {
    let mut paths: Vec<&str> = targets
        .paths
        .iter()
        .filter_map(|path| path.strip_suffix("/invocations"))
        .collect();
    paths.sort_unstable();
    paths.dedup();
    for path in paths {
        delete_at(client, path).await?;
    }
    Ok(())
}

async fn delete_at(client: &Client, path: &str) -> Result<()> {
    let answer = client.send(Method::DELETE, path, &[], Value::Null.to_string());
    answer.await.map(drop).with_context(|| format!("delete {path}"))
}
