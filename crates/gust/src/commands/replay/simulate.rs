//! `gust simulate`: a trace in the simulator, under the policies of the live control plane.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use gust_policy::{FleetConfig, Mode, NodeSpec};
use gust_replay::{
    Origin, Run, Workload,
    sim::{self, Ahead, Delay, SimConfig, SimCosts, SimFunctions, SimNode},
};
use serde::de::DeserializeOwned;

use super::{report, workload::WorkloadArgs};
use crate::{
    bench::machine::Machine,
    cli::{ModeChoice, OutputArgs, UpArgs},
    output::spinner,
    up::{self, UpConfig},
};

/// Nodes that are simulated at most.
const NODES_MAX: usize = 100_000;

/// Largest file of costs or of a fleet's configuration.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// Time between two samples, in nanoseconds: as in a live run.
const SAMPLE_EVERY_NS: u64 = 1_000_000_000;

/// A mode as the policies have it.
fn policy_mode(mode: ModeChoice) -> Mode {
    match mode {
        ModeChoice::Dual => Mode::Dual,
        ModeChoice::Sync => Mode::Sync,
        ModeChoice::Async => Mode::Async,
        ModeChoice::Dirigent => Mode::Dirigent,
    }
}

/// A mode as the command line has it.
pub fn mode_word(mode: ModeChoice) -> &'static str {
    match mode {
        ModeChoice::Dual => "dual",
        ModeChoice::Sync => "sync",
        ModeChoice::Async => "async",
        ModeChoice::Dirigent => "dirigent",
    }
}

/// The cluster that is simulated.
#[derive(Debug, Clone, Args)]
pub struct ClusterArgs {
    /// Costs as gust calibrate writes them: one object, or an array with one for each region [default: built in]
    #[arg(long)]
    pub costs: Option<PathBuf>,
    /// Configuration of the policies as JSON; what it leaves out has its default, and --mode its mode
    #[arg(long)]
    pub fleet: Option<PathBuf>,
    /// Time that the cluster manager takes to answer, in milliseconds, between two bounds: 5-50; without a meaning for
    /// dirigent, which has none [default: that of the costs]
    #[arg(long, value_parser = parse_range)]
    pub manager_ms: Option<(f64, f64)>,
    /// Memory of a node for instances, in MiB
    #[arg(long, default_value_t = 65_536)]
    pub node_memory: u64,
    /// Instances of a node at most
    #[arg(long, default_value_t = 1000)]
    pub node_instances: u32,
    /// Restores in flight on a node at most
    #[arg(long, default_value_t = 64)]
    pub node_restores: u32,
    /// Seconds that a call waits for an instance at most
    #[arg(long, default_value_t = 60)]
    pub queue_timeout: u64,
}

/// `gust simulate`
#[derive(Debug, Args)]
pub struct SimulateArgs {
    #[command(flatten)]
    workload: WorkloadArgs,
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Nodes
    #[arg(long, default_value_t = 1)]
    nodes: usize,
    /// Processors of a node
    #[arg(long, default_value_t = 16)]
    processors: u32,
    /// Regions that nodes and functions' homes are spread over
    #[arg(long, default_value_t = 1)]
    regions: u16,
    /// Delay that a call has more outside its home region, in milliseconds
    #[arg(long, default_value_t = 0.0)]
    between_regions_ms: f64,
    /// Modes of the control plane, one run each
    #[arg(long, value_enum, value_delimiter = ',', default_value = "dual")]
    mode: Vec<ModeChoice>,
    /// Directory for the runs and their report
    #[arg(long, default_value = "replay-results")]
    out: PathBuf,
    /// Write the records too, in InVitro's columns
    #[arg(long)]
    csv: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// Simulates.
pub fn run(arguments: SimulateArgs) -> Result<ExitCode> {
    let workload = arguments.workload.workload()?;
    let method = arguments.workload.describe(&workload);
    fs::create_dir_all(&arguments.out)
        .with_context(|| format!("make directory {}", arguments.out.display()))?;
    ensure!(
        (1..=NODES_MAX).contains(&arguments.nodes),
        "between 1 and {NODES_MAX} nodes can be simulated"
    );
    ensure!(
        arguments.processors > 0 && arguments.regions > 0,
        "a node needs a processor and a region"
    );
    ensure!(
        (0.0..=60_000.0).contains(&arguments.between_regions_ms),
        "a call can have between 0 and 60000 ms more between regions"
    );
    let shape = Shape {
        nodes: arguments.nodes,
        processors: arguments.processors,
        regions: arguments.regions,
        between_regions_ns: (arguments.between_regions_ms * 1e6) as u64,
        seed: arguments.workload.seed,
    };
    let mut runs = Vec::new();
    for mode in arguments.mode {
        let run =
            arguments
                .cluster
                .simulate(mode_word(mode), mode, &workload, &method, shape, Ahead::default())?;
        run.write(&arguments.out.join(format!("{}.run", mode_word(mode))))?;
        runs.push(run);
    }
    report::show(&runs, &arguments.out, arguments.csv, arguments.output.output)?;
    Ok(ExitCode::SUCCESS)
}

/// Size of the cluster.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Nodes.
    pub nodes: usize,
    /// Processors of each.
    pub processors: u32,
    /// Regions.
    pub regions: u16,
    /// Delay between regions, in nanoseconds.
    pub between_regions_ns: u64,
    /// Seed.
    pub seed: u64,
}

impl ClusterArgs {
    /// Runs a workload once in the simulator, after the calls before it.
    pub fn simulate(
        &self,
        name: &str,
        mode: ModeChoice,
        workload: &Workload,
        method: &str,
        shape: Shape,
        ahead: Ahead,
    ) -> Result<Run> {
        let config = SimConfig {
            ahead,
            ..self.config(mode, workload, shape)?
        };
        let fleet = self.fleet(mode, &config.costs[0])?;
        let bar = spinner(format!("simulating {name}"));
        let began = Instant::now();
        let result = sim::simulate(workload, &config, fleet).with_context(|| format!("simulate {name}"))?;
        let took_s = began.elapsed().as_secs_f64();
        bar.finish_and_clear();
        Ok(Run {
            name: name.to_owned(),
            origin: Origin::Simulated,
            method: format!(
                "{method}; {} nodes of {} processors and {} MiB",
                shape.nodes, shape.processors, self.node_memory
            ),
            machine: Machine::this().line(),
            functions: workload.functions.clone(),
            length_ns: workload.length_ns,
            records: result.records,
            samples: result.samples,
            lateness_ns: Vec::new(),
            unsent: 0,
            remarks: vec![format!(
                "{} events in {took_s:.1} s: {:.0} a second",
                result.events,
                result.events as f64 / took_s.max(1e-9)
            )],
        })
    }

    /// The same with the bounds that `gust up` has on this machine, without options.
    pub fn like_a_server(&self) -> Result<Self> {
        let config = UpConfig::read(UpArgs {
            config: Some("/dev/null".into()),
            ..UpArgs::default()
        })?;
        let node = up::node_spec(&config, up::wall(&config)?.0);
        Ok(Self {
            node_memory: node.memory_bytes >> 20,
            node_instances: node.instances_max,
            node_restores: node.restores_max,
            queue_timeout: config.queue_timeout.as_secs(),
            ..self.clone()
        })
    }

    fn config(&self, mode: ModeChoice, workload: &Workload, shape: Shape) -> Result<SimConfig> {
        let mut costs: Vec<SimCosts> = match &self.costs {
            None => vec![SimCosts::default()],
            Some(path) => read_json::<OneOrMany>(path)?.into(),
        };
        for costs in &mut costs {
            match (mode, self.manager_ms) {
                (ModeChoice::Dirigent, _) => costs.manager = Delay::Constant(0),
                (ModeChoice::Dual | ModeChoice::Sync | ModeChoice::Async, None) => {}
                (ModeChoice::Dual | ModeChoice::Sync | ModeChoice::Async, Some((low, high))) => {
                    costs.manager = Delay::Uniform((low * 1e6) as u64, (high * 1e6) as u64);
                }
            }
        }
        let node = |number: usize| SimNode {
            spec: NodeSpec {
                memory_bytes: self.node_memory << 20,
                instances_max: self.node_instances,
                restores_max: self.node_restores,
                region: u16::try_from(number % usize::from(shape.regions)).unwrap_or(0),
            },
            processors: shape.processors,
        };
        let homes = workload
            .functions
            .iter()
            .map(|function| u16::try_from(function.tenant % u32::from(shape.regions)).unwrap_or(0));
        Ok(SimConfig {
            nodes: (0..shape.nodes).map(node).collect(),
            costs,
            functions: SimFunctions {
                queue_timeout_ns: self.queue_timeout.saturating_mul(1_000_000_000),
                ..SimFunctions::default()
            },
            homes: homes.collect(),
            between_regions_ns: shape.between_regions_ns,
            seed: shape.seed,
            sample_every_ns: SAMPLE_EVERY_NS,
            ahead: Ahead::default(),
        })
    }

    /// What policies reckon with is what the nodes cost, unless a file says otherwise.
    fn fleet(&self, mode: ModeChoice, costs: &SimCosts) -> Result<FleetConfig> {
        let mut config: FleetConfig = match &self.fleet {
            None => FleetConfig {
                cost: costs.cost_model(),
                ..FleetConfig::default()
            },
            Some(path) => read_json(path)?,
        };
        config.mode = policy_mode(mode);
        Ok(config)
    }
}

/// Costs of one region, or of several.
#[derive(Debug, serde::Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(Box<SimCosts>),
    Many(Vec<SimCosts>),
}

impl From<OneOrMany> for Vec<SimCosts> {
    fn from(costs: OneOrMany) -> Self {
        match costs {
            OneOrMany::One(costs) => vec![*costs],
            OneOrMany::Many(costs) => costs,
        }
    }
}

/// Reads a file of JSON.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let shown = path.display();
    let length = fs::metadata(path).with_context(|| format!("read {shown}"))?.len();
    ensure!(
        length <= FILE_BYTES_MAX,
        "{shown} is larger than {FILE_BYTES_MAX} bytes"
    );
    let bytes = fs::read(path).with_context(|| format!("read {shown}"))?;
    serde_json::from_slice(&bytes).with_context(|| format!("read {shown}"))
}

fn parse_range(text: &str) -> Result<(f64, f64), String> {
    let (low, high) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| {
        let parsed: Option<f64> = text.trim().parse().ok();
        parsed
            .filter(|ms| (0.0..=3_600_000.0).contains(ms))
            .ok_or_else(|| format!("{text:?} is no number of milliseconds up to an hour"))
    };
    let (low, high) = (number(low)?, number(high)?);
    if low > high {
        return Err(format!("{low} is more than {high}"));
    }
    Ok((low, high))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read() {
        assert_eq!(parse_range("5-50"), Ok((5.0, 50.0)));
        assert_eq!(parse_range("0.5"), Ok((0.5, 0.5)));
        for wrong in ["", "5-", "-5", "50-5", "x-y", "1e300"] {
            assert!(parse_range(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn costs_are_of_one_region_or_of_several() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("costs.json");
        let one = serde_json::to_string(&SimCosts::default()).unwrap();
        for (text, count) in [(one.clone(), 1), (format!("[{one},{one}]"), 2)] {
            fs::write(&path, text).unwrap();
            let costs: Vec<SimCosts> = read_json::<OneOrMany>(&path).unwrap().into();
            assert_eq!(costs, vec![SimCosts::default(); count]);
        }
        fs::write(&path, "{\"no\":1}").unwrap();
        assert!(read_json::<OneOrMany>(&path).is_err());
    }
}
