//! How long a fleet takes to decide: 5,000 functions on 1,000 nodes that are not there, with a cluster manager that
//! answers in 5 to 50 ms.
//!
//! ```text
//! cargo run --release -p gust-policy --example decisions -- [dual|sync|async|dirigent] [CALLS] [CALLS A SECOND]
//! ```
//!
//! Everything happens in simulated time; only what is spent inside the fleet is timed, one observation or tick at a time.

use gust_policy::{
    CallId, Decision, Fleet, FleetConfig, FunctionId, FunctionSpec, InstanceId, Mode, NodeId, NodeSpec,
    Observation, TenantId, Time,
};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

const FUNCTIONS: u32 = 5_000;
const NODES: u32 = 1_000;
const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MS;
const MIB: u64 = 1 << 20;

/// Numbers that look random: SplitMix64.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Above 0, at most 1.
    fn unit(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrive(u64),
    Ready(u64),
    End(u64),
}

/// Which function the call is of: the n-th is called in proportion to 1/n.
fn function_of(call: u64) -> FunctionId {
    let mut numbers = Numbers(call.wrapping_mul(7));
    let at = f64::from(FUNCTIONS).powf(numbers.unit()) - 1.0;
    FunctionId((at as u32).min(FUNCTIONS - 1))
}

struct Driver {
    fleet: Fleet,
    events: BinaryHeap<Reverse<(u64, Event)>>,
    numbers: Numbers,
    out: Vec<Decision>,
    took_ns: Vec<u32>,
    decisions: [u64; 5],
    most: u32,
}

impl Driver {
    fn tell(&mut self, now: u64, observation: Observation) {
        let start = Instant::now();
        self.fleet.observe(Time(now), observation, &mut self.out);
        self.note(start);
        self.carry_out(now);
    }

    fn note(&mut self, start: Instant) {
        self.took_ns
            .push(u32::try_from(start.elapsed().as_nanos()).unwrap_or(u32::MAX));
    }

    fn carry_out(&mut self, now: u64) {
        for decision in self.out.drain(..) {
            let lasts = |numbers: &mut Numbers| (-numbers.unit().ln() * 100.0 * MS as f64) as u64;
            let at = match decision {
                Decision::Run { call, .. } => {
                    self.decisions[0] += 1;
                    (now + lasts(&mut self.numbers), Event::End(call.0))
                }
                Decision::Restore { call, instance, .. } => {
                    self.decisions[1] += 1;
                    let ready = now + MS / 2;
                    self.events.push(Reverse((ready, Event::Ready(instance.0))));
                    (ready + lasts(&mut self.numbers), Event::End(call.0))
                }
                Decision::Create { instance, .. } => {
                    self.decisions[2] += 1;
                    (
                        now + 5 * MS + self.numbers.next() % (45 * MS),
                        Event::Ready(instance.0),
                    )
                }
                Decision::Remove { .. } => {
                    self.decisions[3] += 1;
                    continue;
                }
                Decision::Refuse { .. } => {
                    self.decisions[4] += 1;
                    continue;
                }
            };
            self.events.push(Reverse(at));
        }
        let counts = self.fleet.counts();
        self.most = self.most.max(counts.regular + counts.emergency);
    }

    fn go_to(&mut self, time: u64) {
        while let Some(at) = self.fleet.next_tick().filter(|at| at.0 <= time) {
            let start = Instant::now();
            self.fleet.tick(at, &mut self.out);
            self.note(start);
            self.carry_out(at.0);
        }
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mode = match arguments.next().as_deref() {
        None | Some("dual") => Mode::Dual,
        Some("sync") => Mode::Sync,
        Some("async") => Mode::Async,
        Some("dirigent") => Mode::Dirigent,
        Some(other) => {
            eprintln!("decisions: there is no mode {other}: dual, sync, async or dirigent");
            std::process::exit(2);
        }
    };
    let mut number = |default: u64| match arguments.next() {
        None => default,
        Some(text) => text.parse().unwrap_or_else(|error| {
            eprintln!("decisions: {text} is no number: {error}");
            std::process::exit(2);
        }),
    };
    let (calls, rate) = (number(5_000_000), number(100_000));
    let mut driver = Driver {
        fleet: Fleet::new(FleetConfig::new(mode)),
        events: BinaryHeap::new(),
        numbers: Numbers(1),
        out: Vec::new(),
        took_ns: Vec::new(),
        decisions: [0; 5],
        most: 0,
    };
    settle(&mut driver);
    driver.took_ns.clear();
    driver.events.push(Reverse((0, Event::Arrive(0))));
    let start = Instant::now();
    let mut last = 0;
    while let Some(Reverse((at, event))) = driver.events.pop() {
        driver.go_to(at);
        last = at;
        match event {
            Event::Arrive(call) => {
                driver.tell(at, Observation::Arrived(CallId(call), function_of(call)));
                if call + 1 < calls {
                    let gap = -driver.numbers.unit().ln() / rate as f64 * SECOND as f64;
                    driver
                        .events
                        .push(Reverse((at + gap as u64, Event::Arrive(call + 1))));
                }
            }
            Event::Ready(instance) => driver.tell(at, Observation::Ready(InstanceId(instance))),
            Event::End(call) => driver.tell(at, Observation::Ended(CallId(call))),
        }
    }
    report(driver, start, last);
}

/// Nodes, functions, and three nodes with each function's snapshot.
fn settle(driver: &mut Driver) {
    for node in 0..NODES {
        let spec = NodeSpec {
            memory_bytes: 16 << 30,
            instances_max: 1_000,
            restores_max: 32,
            region: 0,
        };
        driver.tell(0, Observation::Node(NodeId(node), spec));
    }
    for function in 0..FUNCTIONS {
        let spec = FunctionSpec {
            tenant: TenantId(function / 10),
            memory_bytes: 128 * MIB,
            concurrency_per_instance: 1,
            instances_min: 0,
            instances_max: None,
            reserved: None,
            queue_timeout_ns: 60 * SECOND,
            home: 0,
        };
        driver.tell(0, Observation::Function(FunctionId(function), spec));
        for node in 0..3 {
            let node = NodeId((function * 31 + node * 331) % NODES);
            driver.tell(0, Observation::Snapshot(node, FunctionId(function), true));
        }
    }
}

fn report(mut driver: Driver, start: Instant, simulated_ns: u64) {
    let wall = start.elapsed().as_secs_f64();
    let count = driver.took_ns.len();
    let inside = driver.took_ns.iter().map(|ns| f64::from(*ns)).sum::<f64>() / 1e9;
    driver.took_ns.sort_unstable();
    let at = |part: f64| f64::from(driver.took_ns[((count - 1) as f64 * part) as usize]) / 1e3;
    println!(
        "{:?}: {FUNCTIONS} functions, {NODES} nodes, {} s simulated",
        driver.fleet.config().mode,
        simulated_ns / SECOND
    );
    println!(
        "  observations and ticks  {count}, {:.2} million a second inside the fleet, {:.2} with the driver",
        count as f64 / inside / 1e6,
        count as f64 / wall / 1e6
    );
    println!(
        "  one of them, us         p50 {:.2}, p99 {:.2}, p99.9 {:.2}, most {:.0}",
        at(0.5),
        at(0.99),
        at(0.999),
        at(1.0)
    );
    let [runs, restores, creates, removes, refusals] = driver.decisions;
    println!(
        "  decisions               run {runs}, restore {restores}, create {creates}, remove {removes}, refuse {refusals}"
    );
    println!("  most instances          {}", driver.most);
    if let Ok(status) = std::fs::read_to_string("/proc/self/status")
        && let Some(line) = status.lines().find(|line| line.starts_with("VmHWM"))
    {
        println!(
            "  memory with the driver  {}, of which {} MiB are its list of times",
            line[6..].trim(),
            count * 4 / (1 << 20)
        );
    }
}
