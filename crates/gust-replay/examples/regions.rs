//! What it saves to make cold starts in the region with the cheapest path.
//!
//! ```text
//! cargo run --release -p gust-replay --example regions -- [SEED]
//! ```
//!
//! Five regions whose cold starts have the medians that Huawei's study spans (0.1 to 2 s; "Serverless Cold Starts and Where
//! to Find Them", EuroSys'25) and the spread of its fit (sigma 1.326), functions as Azure's published distributions have
//! them, each at home in one region. The same workload once with all calls at home, and once with the policy, for several
//! delays between regions. The policy is told nothing of the regions but the delays: it learns their cold starts.

use gust_policy::{FleetConfig, Mode, NodeSpec, RegionConfig};
use gust_replay::Record;
use gust_replay::sim::{self, Ahead, Delay, SimConfig, SimCosts, SimFunctions, SimNode};
use gust_replay::synthetic::{Kind, Synthetic};
use std::collections::HashSet;
use std::error::Error;

const MS: u64 = 1_000_000;

/// Median cold start of each region, in seconds.
const MEDIANS_S: [f64; 5] = [0.1, 0.3, 0.7, 1.2, 2.0];

/// Deviation of the logarithm: Huawei's fit over all regions.
const SIGMA: f64 = 1.326;

const FUNCTIONS: usize = 400;

/// What the calls of a run had beyond their handlers, in milliseconds.
struct Delays {
    cold: Vec<f64>,
    mean_all: f64,
    away: f64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let seed = match std::env::args().nth(1) {
        None => 1,
        Some(text) => text
            .parse()
            .map_err(|error| format!("regions: {text}: {error}"))?,
    };
    let workload = Synthetic {
        kind: Kind::Azure,
        functions: FUNCTIONS,
        minutes: 60.0,
        duration_ms: 100.0,
        memory_mib: 128,
        seed,
    };
    let workload = workload.make()?;
    println!(
        "{} invocations of {FUNCTIONS} functions in five regions",
        workload.arrivals.len()
    );
    println!("mode  between   cold starts, delay (ms)               all calls   made away");
    println!("      regions   number     p50      p99     mean      mean (ms)   from home");
    for (name, mode) in [("dual", Mode::Dual), ("sync", Mode::Sync)] {
        for between_ms in [None, Some(20), Some(50), Some(100), Some(200), Some(400)] {
            let between_ns = between_ms.unwrap_or(0) * MS;
            let count = MEDIANS_S.len();
            let mut fleet = FleetConfig::new(mode);
            if between_ms.is_some() {
                let row = |home| {
                    (0..count)
                        .map(|to| if to == home { 0 } else { between_ns })
                        .collect()
                };
                fleet.regions = RegionConfig {
                    round_trip_ns: (0..count).map(row).collect(),
                    advantage_ns: 10 * MS,
                };
            }
            let config = cluster(&workload.functions, between_ns, seed);
            let result = sim::simulate(&workload, &config, fleet)?;
            let delays = delays(&result.records, &config);
            let cold = &delays.cold;
            let at = |part: f64| cold[((cold.len() - 1) as f64 * part) as usize];
            println!(
                "{name:5} {:8}  {:6} {:8.0} {:8.0} {:8.0}     {:8.1}      {:5.1}%",
                between_ms.map_or("at home".to_owned(), |ms| format!("{ms} ms")),
                cold.len(),
                at(0.5),
                at(0.99),
                cold.iter().sum::<f64>() / cold.len() as f64,
                delays.mean_all,
                100.0 * delays.away,
            );
        }
    }
    Ok(())
}

/// Ten nodes a region, with room for everything that moves there.
fn cluster(functions: &[gust_replay::Function], between_regions_ns: u64, seed: u64) -> SimConfig {
    let region = |at: usize| u16::try_from(at % MEDIANS_S.len()).unwrap_or(0);
    let node = |at: usize| SimNode {
        spec: NodeSpec {
            memory_bytes: 256 << 30,
            instances_max: 10_000,
            restores_max: 1_000,
            region: region(at),
        },
        processors: 256,
    };
    let costs = MEDIANS_S.map(|median| {
        let cold = Delay::LogNormal {
            mu: median.ln(),
            sigma: SIGMA,
        };
        SimCosts {
            restore: cold.clone(),
            create: cold,
            ..SimCosts::default()
        }
    });
    SimConfig {
        nodes: (0..50).map(node).collect(),
        costs: costs.to_vec(),
        functions: SimFunctions {
            queue_timeout_ns: 600_000 * MS,
            ..SimFunctions::default()
        },
        homes: (0..functions.len()).map(region).collect(),
        between_regions_ns,
        seed,
        sample_every_ns: 1_000 * MS,
        ahead: Ahead::default(),
    }
}

/// Delays of the calls that an instance was made for, which are the first on it, and of all.
fn delays(records: &[Record], config: &SimConfig) -> Delays {
    let mut by_start: Vec<&Record> = records
        .iter()
        .filter(|record| record.instance.is_some())
        .collect();
    by_start.sort_by_key(|record| record.started_ns);
    let mut seen = HashSet::new();
    let (mut cold, mut sum, mut away) = (Vec::new(), 0.0, 0);
    for record in &by_start {
        let delay =
            (record.ended_ns - record.arrived_ns).saturating_sub(record.requested_ns) as f64 / MS as f64;
        sum += delay;
        if seen.insert(record.instance) {
            cold.push(delay);
            // The way between regions is the only part of the runtime's time that is this long.
            let far =
                config.between_regions_ns > 0 && record.components.runtime_ns >= config.between_regions_ns;
            away += u32::from(far);
        }
    }
    cold.sort_by(f64::total_cmp);
    Delays {
        away: f64::from(away) / cold.len().max(1) as f64,
        mean_all: sum / by_start.len().max(1) as f64,
        cold,
    }
}
