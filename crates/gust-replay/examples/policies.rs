//! The four modes on one trace in the simulator, side by side in a few columns.
//!
//! ```text
//! cargo run --release -p gust-replay --example policies -- TRACE [key=value]...
//! ```
//!
//! Keys: `minutes`, `from`, `nodes`, `processors`, `memory` (GiB of a node), `manager` (5-50, milliseconds), `modes`
//! (dual,sync,async,dirigent), `fleet` (a JSON file as of [`gust_policy::FleetConfig`]), `costs` (one of
//! [`gust_replay::sim::SimCosts`]). `gust simulate` prints much more of one run; this compares runs.

use gust_policy::{FleetConfig, Mode, NodeSpec};
use gust_replay::arrivals::Plan;
use gust_replay::report::Figures;
use gust_replay::sim::{self, Ahead, Delay, SimConfig, SimCosts, SimFunctions, SimNode};
use gust_replay::trace::{self, Source};
use gust_replay::{Origin, Run, Workload};
use std::collections::BTreeMap;
use std::error::Error;
use std::time::Instant;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MS;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

struct Arguments(BTreeMap<String, String>);

impl Arguments {
    fn number(&self, key: &str, default: u64) -> Result<u64> {
        match self.0.get(key) {
            None => Ok(default),
            Some(text) => Ok(text.parse().map_err(|error| format!("{key}={text}: {error}"))?),
        }
    }

    fn json<T: serde::de::DeserializeOwned + Default>(&self, key: &str) -> Result<T> {
        match self.0.get(key) {
            None => Ok(T::default()),
            Some(path) => Ok(serde_json::from_slice(&std::fs::read(path)?)?),
        }
    }
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("policies: which trace?")?;
    let mut keys = BTreeMap::new();
    for argument in arguments {
        let (key, value) = argument
            .split_once('=')
            .ok_or(format!("policies: {argument} is no key=value"))?;
        keys.insert(key.to_owned(), value.to_owned());
    }
    let arguments = Arguments(keys);
    let workload = workload(&path, &arguments)?;
    println!(
        "{} invocations of {} functions",
        workload.arrivals.len(),
        workload.functions.len()
    );
    let modes = arguments
        .0
        .get("modes")
        .map_or("dual,sync,async,dirigent", String::as_str);
    println!(
        "mode      slowdown by function      response ms      on        memory  overhead      cost    refused  million"
    );
    println!(
        "          geo   p50    p99     mean   p50      p99  regular    GiB s     CPU s     CPU s           events/s"
    );
    for mode in modes.split(',') {
        let which = match mode {
            "dual" => Mode::Dual,
            "sync" => Mode::Sync,
            "async" => Mode::Async,
            "dirigent" => Mode::Dirigent,
            other => return Err(format!("policies: there is no mode {other}").into()),
        };
        one(mode, which, &workload, &arguments)?;
    }
    Ok(())
}

fn workload(path: &str, arguments: &Arguments) -> Result<Workload> {
    let minutes = arguments.number("minutes", 0)?;
    let plan = Plan {
        from_minute: arguments.number("from", 0)? as usize,
        minutes: (minutes > 0).then_some(minutes as usize),
        ..Plan::default()
    };
    match trace::read(path.as_ref())? {
        Source::Counts(trace) => Ok(plan.draw(&trace)?),
        Source::Invocations(workload) => Ok(plan.take(workload)?),
        Source::ColdStarts(_) => Err("policies: records of cold starts say nothing of invocations".into()),
    }
}

fn one(name: &str, mode: Mode, workload: &Workload, arguments: &Arguments) -> Result<()> {
    let mut costs: SimCosts = arguments.json("costs")?;
    let mut fleet = match arguments.0.contains_key("fleet") {
        true => arguments.json("fleet")?,
        false => FleetConfig {
            cost: costs.cost_model(),
            ..FleetConfig::default()
        },
    };
    fleet.mode = mode;
    if let Some(factor) = arguments.0.get("price") {
        fleet.cost.memory_price *= factor.parse::<f64>()?;
    }
    if let Some(factor) = arguments.0.get("delay") {
        fleet.cost.delay_price *= factor.parse::<f64>()?;
    }
    if let Some(seconds) = arguments.0.get("armed") {
        fleet.rest.armed_ns = Some((seconds.parse::<f64>()? * SECOND as f64) as u64);
    }
    let memory_price = fleet.cost.memory_price;
    if let Some(text) = arguments.0.get("manager") {
        let (low, high) = text.split_once('-').unwrap_or((text, text));
        costs.manager = Delay::Uniform(low.parse::<u64>()? * MS, high.parse::<u64>()? * MS);
    }
    if mode == Mode::Dirigent {
        costs.manager = Delay::Constant(0);
    }
    let spec = NodeSpec {
        memory_bytes: arguments.number("memory", 64)? << 30,
        instances_max: 10_000,
        restores_max: 64,
        region: 0,
    };
    let processors = arguments.number("processors", 32)? as u32;
    let config = SimConfig {
        nodes: vec![SimNode { spec, processors }; arguments.number("nodes", 10)? as usize],
        costs: vec![costs],
        functions: SimFunctions::default(),
        homes: Vec::new(),
        between_regions_ns: 0,
        seed: 1,
        sample_every_ns: SECOND,
        ahead: Ahead::default(),
    };
    let began = Instant::now();
    let result = sim::simulate(workload, &config, fleet)?;
    let took = began.elapsed().as_secs_f64();
    let run = Run {
        name: name.to_owned(),
        origin: Origin::Simulated,
        method: String::new(),
        machine: String::new(),
        functions: workload.functions.clone(),
        length_ns: workload.length_ns,
        records: result.records,
        samples: result.samples,
        lateness_ns: Vec::new(),
        unsent: 0,
        remarks: Vec::new(),
    };
    let figures = Figures::of(&run);
    let by_function = figures.slowdown_by_function;
    println!(
        "{name:8} {:5.2} {:5.2} {:6.1}  {:7.1} {:5.1} {:8.1}  {:6.2}% {:8.0} {:9.1} {:9.0}  {:9} {:8.2}",
        by_function.mean,
        by_function.p50,
        by_function.p99,
        figures.response_ms.mean,
        figures.response_ms.p50,
        figures.response_ms.p99,
        100.0 * figures.regular_part,
        figures.costs.memory_gib_s,
        figures.costs.overhead_cpu_s,
        // A byte's second is priced in processor nanoseconds.
        figures.costs.overhead_cpu_s + figures.costs.memory_gib_s * (1u64 << 30) as f64 * memory_price / 1e9,
        figures.endings.refused,
        result.events as f64 / took / 1e6,
    );
    Ok(())
}
