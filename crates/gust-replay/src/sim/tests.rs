//! The simulator against queueing theory, and against itself.

use std::collections::VecDeque;

use gust_policy::{CallId, InstanceId, NodeId};
use proptest::prelude::*;
use rand_distr::{Distribution as _, Exp};
use rand_pcg::Pcg64Mcg;

use super::*;
use crate::{
    Arrival, Ending, Function, Start,
    synthetic::{Kind, Synthetic},
};

const SECOND_NS: u64 = 1_000_000_000;

/// A fixed number of instances, and one queue for them; or a restore for each call when there are none.
struct Fixed {
    instances: u64,
    /// How long an instance that has ended is armed.
    armed_ns: u64,
    made: bool,
    idle: Vec<InstanceId>,
    queue: VecDeque<CallId>,
    on: std::collections::HashMap<CallId, InstanceId>,
    names: u64,
}

impl Fixed {
    fn new(instances: u64) -> Self {
        Self {
            instances,
            armed_ns: 0,
            made: false,
            idle: Vec::new(),
            queue: VecDeque::new(),
            on: std::collections::HashMap::new(),
            names: 1000,
        }
    }

    fn serve(&mut self, decisions: &mut Vec<Decision>) {
        while let (Some(_), Some(_)) = (self.idle.last(), self.queue.front()) {
            let (Some(instance), Some(call)) = (self.idle.pop(), self.queue.pop_front()) else {
                return;
            };
            self.on.insert(call, instance);
            decisions.push(Decision::Run {
                call,
                instance,
                node: NodeId(0),
            });
        }
    }
}

impl Policy for Fixed {
    fn observe(&mut self, _: Time, observation: Observation, decisions: &mut Vec<Decision>) {
        match observation {
            Observation::Function(function, _) if !self.made => {
                self.made = true;
                decisions.extend((0..self.instances).map(|number| Decision::Create {
                    instance: InstanceId(number),
                    node: NodeId(0),
                    function,
                }));
            }
            Observation::Arrived(call, function) if self.instances == 0 => {
                self.names += 1;
                let instance = InstanceId(self.names);
                self.on.insert(call, instance);
                decisions.push(Decision::Restore {
                    call,
                    instance,
                    node: NodeId(0),
                    function,
                });
            }
            Observation::Arrived(call, _) => self.queue.push_back(call),
            Observation::Ready(instance) if self.instances > 0 => self.idle.push(instance),
            Observation::Ended(call) => {
                let instance = self.on.remove(&call).unwrap();
                match self.instances {
                    0 => decisions.push(Decision::Remove {
                        instance,
                        node: NodeId(0),
                        armed_ns: self.armed_ns,
                    }),
                    _ => self.idle.push(instance),
                }
            }
            _ => {}
        }
        self.serve(decisions);
    }

    fn tick(&mut self, _: Time, _: &mut Vec<Decision>) {}

    fn next_tick(&self) -> Option<Time> {
        None
    }
}

fn config(processors: u32, costs: SimCosts) -> SimConfig {
    SimConfig {
        nodes: vec![SimNode {
            spec: NodeSpec {
                memory_bytes: 1 << 40,
                instances_max: 1 << 20,
                restores_max: 1 << 20,
                region: 0,
            },
            processors,
        }],
        costs: vec![costs],
        functions: SimFunctions::default(),
        homes: Vec::new(),
        between_regions_ns: 0,
        seed: 1,
        sample_every_ns: SECOND_NS,
        ahead: Ahead::default(),
    }
}

/// Nothing takes any time but handlers.
fn free() -> SimCosts {
    SimCosts {
        way: Delay::Constant(0),
        call_cpu_ns: 0,
        restore: Delay::Constant(0),
        restore_cpu_ns: 0,
        unprepared_cpu_ns: 0,
        unprepared_bytes: 0,
        prepare_cpu_ns: 0,
        end_cpu_ns: 0,
        prepared: 1,
        create_cpu_ns: 0,
        armed_cpu_ns: 0,
        after_cpu_ns: 0,
        caller_cpu_ns: 0,
        touch: Delay::Constant(0),
        shared_bytes: 0,
        created_bytes: 0,
        created_shared_bytes: 0,
        ..SimCosts::default()
    }
}

/// Poisson arrivals of calls with exponential durations, in calls a second.
fn poisson(calls: usize, arrivals: f64, departures: f64, seed: u128) -> Workload {
    let mut random = Pcg64Mcg::new(seed << 1 | 1);
    let (between, lasts) = (Exp::new(arrivals).unwrap(), Exp::new(departures).unwrap());
    let mut at = 0.0;
    let mut draw = |distribution: Exp<f64>| distribution.sample(&mut random) * 1e9;
    let arrivals = (0..calls).map(|_| {
        at += draw(between);
        Arrival {
            at_ns: at as u64,
            function: 0,
            duration_ns: draw(lasts) as u64,
        }
    });
    let arrivals: Vec<Arrival> = arrivals.collect();
    Workload {
        functions: vec![Function {
            name: "f".to_owned(),
            tenant: 0,
            memory_mib: 128,
        }],
        length_ns: arrivals.last().map_or(0, |last| last.at_ns + 1),
        arrivals,
    }
}

/// Calls of one function at these times, of 500 ns each.
fn calls_at(times_ns: &[u64]) -> Workload {
    let arrivals = times_ns.iter().map(|at_ns| Arrival {
        at_ns: *at_ns,
        function: 0,
        duration_ns: 500,
    });
    Workload {
        arrivals: arrivals.collect(),
        ..poisson(1, 1.0, 1.0, 1)
    }
}

fn mean(values: impl Iterator<Item = u64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0.0), |(sum, count), value| {
        (sum + value as f64, count + 1.0)
    });
    sum / count
}

#[test]
fn a_queue_waits_as_theory_says() {
    // M/M/c: 3 instances, 2 calls a second, each of a second. Erlang's C formula: the part that waits is 4/9, and the mean
    // wait 4/9 seconds.
    let workload = poisson(1_000_000, 2.0, 1.0, 7);
    let result = run(&workload, &config(64, free()), &mut Fixed::new(3)).unwrap();
    let waited = mean(result.records.iter().map(|record| record.components.queue_ns)) / 1e9;
    assert!((waited / (4.0 / 9.0) - 1.0).abs() < 0.05, "{waited}");
    let waiting = result
        .records
        .iter()
        .filter(|record| record.components.queue_ns > 0)
        .count();
    let part = waiting as f64 / result.records.len() as f64;
    assert!((part / (4.0 / 9.0) - 1.0).abs() < 0.03, "{part}");
    // Little's law: what is there on average is arrivals a second times the time that each is there.
    let there = mean(
        result
            .samples
            .iter()
            .map(|sample| u64::from(sample.busy + sample.queued)),
    );
    let each = mean(
        result
            .records
            .iter()
            .map(|record| record.ended_ns - record.arrived_ns),
    ) / 1e9;
    assert!((there / (2.0 * each) - 1.0).abs() < 0.03, "{there} {each}");
}

#[test]
fn a_shared_processor_slows_down_as_theory_says() {
    // M/G/1 with its processor shared: a call of x seconds takes x / (1 - load), whatever the distribution.
    let workload = poisson(200_000, 0.5, 1.0, 3);
    let result = run(&workload, &config(1, free()), &mut Fixed::new(0)).unwrap();
    let took = mean(
        result
            .records
            .iter()
            .map(|record| record.ended_ns - record.arrived_ns),
    );
    let asked = mean(result.records.iter().map(|record| record.requested_ns));
    assert!((took / asked - 2.0).abs() < 0.1, "{}", took / asked);
}

#[test]
fn a_restore_has_its_parts() {
    let costs = SimCosts {
        way: Delay::Constant(1),
        call_cpu_ns: 2,
        restore: Delay::Constant(4),
        restore_cpu_ns: 8,
        unprepared_cpu_ns: 1008,
        prepare_cpu_ns: 1000,
        prepared: 1,
        ..free()
    };
    let workload = calls_at(&[0, 100]);
    let result = run(&workload, &config(8, costs), &mut Fixed::new(0)).unwrap();
    let [first, second] = [result.records[0], result.records[1]];
    assert_eq!((first.started_ns, first.ended_ns), (13, 515));
    assert_eq!((first.start, first.ending), (Start::Restored, Ending::Answered));
    // The one prepared worker is used: this one has its own made.
    assert_eq!((second.started_ns, second.ended_ns), (1113, 1615));
    assert_eq!(second.components.worker_ns, 1000);
    let last = result.samples.last().unwrap();
    // Two handlers with what goes around them, two restores, two workers prepared, one made.
    assert_eq!(last.cpu_ns, 2 * 502 + 2 * 8 + 2 * 1000);
    assert_eq!(last.overhead_cpu_ns, last.cpu_ns - 1000);
}

#[test]
fn an_armed_instance_serves_the_next_call() {
    let costs = SimCosts {
        unprepared_cpu_ns: 1000,
        unprepared_bytes: 50,
        rearm_cpu_ns: 10,
        rearm_mib_cpu_ns: 0,
        armed_cpu_ns: 4,
        end_cpu_ns: 2,
        instance_bytes: 1000,
        armed_bytes: 100,
        shared_bytes: 7,
        prepared: 0,
        rearm_bytes_max: 1 << 30,
        ..free()
    };
    // The second comes while the first is armed, the third when the second is no more.
    let workload = calls_at(&[0, 5_000, 50_000]);
    let mut policy = Fixed::new(0);
    policy.armed_ns = 10_000;
    let small = SimCosts {
        rearm_bytes_max: 1000,
        ..costs.clone()
    };
    let result = run(&workload, &config(2, costs), &mut policy).unwrap();
    let starts: Vec<Start> = result.records.iter().map(|record| record.start).collect();
    assert_eq!(starts, [Start::Restored, Start::Armed, Start::Restored]);
    let second = result.records[1];
    assert_eq!((second.started_ns, second.ended_ns), (5_004, 5_504));
    let last = result.samples.last().unwrap();
    // What is armed at the end, what it has more because no worker was prepared, and what is shared with it.
    assert_eq!(last.memory_bytes, 157);
    assert_eq!(last.overhead_cpu_ns, 2 * 1000 + 4 + 3 * 10 + 2);
    // One that has used more than it may cannot go back.
    let result = run(&workload, &config(2, small), &mut { policy }).unwrap();
    assert!(
        result
            .records
            .iter()
            .all(|record| record.start == Start::Restored)
    );
    assert_eq!(result.samples.last().unwrap().memory_bytes, 0);
}

#[test]
fn the_first_call_of_what_was_made_ahead_does_more() {
    let costs = SimCosts {
        armed_cpu_ns: 40,
        work_permille: 1500,
        ..free()
    };
    let workload = calls_at(&[1_000, 10_000]);
    let result = run(&workload, &config(2, costs), &mut Fixed::new(1)).unwrap();
    let [first, second] = [result.records[0], result.records[1]];
    assert_eq!((first.start, second.start), (Start::Armed, Start::Warm));
    assert_eq!((first.started_ns, first.ended_ns), (1_040, 1_790));
    assert_eq!((second.started_ns, second.ended_ns), (10_000, 10_750));
    let last = result.samples.last().unwrap();
    assert_eq!((last.cpu_ns, last.overhead_cpu_ns), (1_540, 540));
}

#[test]
fn instances_made_ahead_hold_their_snapshot_together() {
    let costs = SimCosts {
        prepared: 0,
        instance_bytes: 1000,
        created_bytes: 1030,
        created_shared_bytes: 500,
        ..free()
    };
    let workload = poisson(1, 1.0, 1.0, 1);
    let function_bytes = u64::from(workload.functions[0].memory_mib) << 20;
    let result = run(&workload, &config(2, costs.clone()), &mut Fixed::new(3)).unwrap();
    let last = result.samples.last().unwrap();
    assert_eq!(last.memory_bytes, 3 * 1030 + 500 + function_bytes);
    // One that is restored for a call holds none of it, and leaves nothing.
    let result = run(&workload, &config(2, costs.clone()), &mut Fixed::new(0)).unwrap();
    assert_eq!(result.samples.last().unwrap().memory_bytes, 0);
    // One that has gone back holds none of it any more.
    let armed = SimCosts {
        armed_bytes: 70,
        rearm_bytes_max: 1 << 30,
        ..costs
    };
    let result = run(&workload, &config(2, armed), &mut EndsWhatItMade(Fixed::new(1))).unwrap();
    assert_eq!(result.samples.last().unwrap().memory_bytes, 70 + 30);
}

/// Makes instances ahead, and ends each after its first call, to be armed.
struct EndsWhatItMade(Fixed);

impl Policy for EndsWhatItMade {
    fn observe(&mut self, now: Time, observation: Observation, decisions: &mut Vec<Decision>) {
        self.0.observe(now, observation, decisions);
        if let Observation::Ended(_) = observation
            && let Some(instance) = self.0.idle.pop()
        {
            decisions.push(Decision::Remove {
                instance,
                node: NodeId(0),
                armed_ns: SECOND_NS,
            });
        }
    }

    fn tick(&mut self, _: Time, _: &mut Vec<Decision>) {}

    fn next_tick(&self) -> Option<Time> {
        None
    }
}

#[test]
fn what_is_idle_for_long_is_frozen_and_thawed() {
    let costs = SimCosts {
        freeze_after_ns: 2 * SECOND_NS,
        thaw_cpu_ns: 1_500,
        prepare_cpu_ns: 1_000,
        restore_cpu_ns: 8,
        instance_bytes: 1_000,
        created_bytes: 1_030,
        created_shared_bytes: 500,
        prepared_bytes: 7,
        frozen_bytes: 10,
        frozen_permille: 1,
        ..free()
    };
    let workload = calls_at(&[SECOND_NS, 2 * SECOND_NS, 10 * SECOND_NS]);
    let function_bytes = u64::from(workload.functions[0].memory_mib) << 20;
    let starts_and_memory = |costs: &SimCosts| {
        let result = run(&workload, &config(2, costs.clone()), &mut Fixed::new(1)).unwrap();
        let starts: Vec<Start> = result.records.iter().map(|record| record.start).collect();
        let at = |seconds: u64| {
            let sample = result
                .samples
                .iter()
                .rfind(|sample| sample.at_ns <= seconds * SECOND_NS);
            sample.unwrap().memory_bytes
        };
        let last = result.samples.last().unwrap();
        let third = result.records[2];
        (
            starts,
            [at(3), at(8), last.memory_bytes],
            third,
            last.overhead_cpu_ns,
        )
    };
    let (starts, memory, third, overhead_ns) = starts_and_memory(&costs);
    assert_eq!(starts, [Start::Armed, Start::Warm, Start::Armed]);
    // Idle, it holds its snapshot and its function's memory; frozen a thousandth of that; thawed it is as one restored for a call.
    let idle = 1_030 + 500 + function_bytes + 7;
    let frozen = 10 + function_bytes / 1000 + 7;
    assert_eq!(memory[..2], [idle, frozen]);
    // Its worker's place is not yet taken by another.
    assert_eq!(memory[2], 1_000 + function_bytes);
    assert_eq!(third.started_ns, 10 * SECOND_NS + 8);
    assert_eq!(overhead_ns, (1_500 - 1_008) + 1_008);
    // What would be too large then, and what is never to be frozen, stays as it is.
    for never in [
        SimCosts {
            frozen_bytes_max: function_bytes / 1000,
            ..costs.clone()
        },
        SimCosts {
            freeze_after_ns: 0,
            ..costs
        },
    ] {
        let (starts, memory, ..) = starts_and_memory(&never);
        assert_eq!(starts, [Start::Armed, Start::Warm, Start::Warm]);
        assert_eq!(memory, [idle; 3]);
    }
}

#[test]
fn what_cannot_be_simulated_is_refused() {
    let mut workload = poisson(3, 1.0, 1.0, 1);
    let none = SimConfig {
        nodes: Vec::new(),
        ..config(1, free())
    };
    assert_eq!(run(&workload, &none, &mut Fixed::new(1)), Err(SimError::Nothing));
    workload.arrivals.swap(0, 2);
    let found = run(&workload, &config(1, free()), &mut Fixed::new(1));
    assert_eq!(found, Err(SimError::Arrival { index: 1 }));
    // A policy that answers nobody.
    struct Silent;
    impl Policy for Silent {
        fn observe(&mut self, _: Time, _: Observation, _: &mut Vec<Decision>) {}
        fn tick(&mut self, _: Time, _: &mut Vec<Decision>) {}
        fn next_tick(&self) -> Option<Time> {
            None
        }
    }
    let found = run(&poisson(3, 1.0, 1.0, 1), &config(1, free()), &mut Silent);
    assert!(matches!(found, Err(SimError::Policy(_))));
}

/// The live control plane's policies, on two small nodes that are too small for what comes: every call is answered or refused
/// once, nothing is over the nodes' memory, and a seed gives the same twice.
#[test]
fn the_fleet_loses_nothing_in_any_mode() {
    use gust_policy::Mode;
    let workload = Synthetic {
        kind: Kind::Burst {
            calls: 30,
            every_s: 7.0,
        },
        functions: 5,
        minutes: 0.5,
        duration_ms: 300.0,
        memory_mib: 100,
        seed: 1,
    };
    let workload = workload.make().unwrap();
    for mode in [Mode::Dual, Mode::Sync, Mode::Async, Mode::Dirigent] {
        let costs = SimCosts {
            manager: Delay::Uniform(5_000_000, 50_000_000),
            // What a node has beside named instances is not the policy's to bound.
            armed_max: 0,
            unprepared_bytes: 0,
            created_shared_bytes: 0,
            ..SimCosts::default()
        };
        let prepared = u64::from(costs.prepared) * costs.prepared_bytes;
        let mut config = config(2, costs);
        config.nodes[0].spec.memory_bytes = 2 << 30;
        config.nodes[0].spec.restores_max = 3;
        config.nodes.push(config.nodes[0]);
        config.functions.queue_timeout_ns = 2 * SECOND_NS;
        let fleet = FleetConfig {
            queue_max: 25,
            ..FleetConfig::new(mode)
        };
        let result = simulate(&workload, &config, fleet.clone()).unwrap();
        assert_eq!(result.records.len(), workload.arrivals.len());
        let count = |ending| {
            result
                .records
                .iter()
                .filter(|record| record.ending == ending)
                .count()
        };
        let (answered, refused) = (count(Ending::Answered), count(Ending::Refused));
        assert_eq!(answered + refused, result.records.len(), "{mode:?}");
        assert!(
            answered > 0 && refused > 0,
            "{mode:?}: {answered} answered, {refused} refused"
        );
        for record in result
            .records
            .iter()
            .filter(|record| record.ending == Ending::Refused)
        {
            assert!(
                record.ended_ns - record.arrived_ns <= 2 * SECOND_NS + 1,
                "{mode:?}: waited too long"
            );
        }
        let most = result
            .samples
            .iter()
            .map(|sample| sample.memory_bytes)
            .max()
            .unwrap();
        assert!(most <= (4 << 30) + 2 * prepared, "{mode:?}: {most} bytes");
        assert_eq!(simulate(&workload, &config, fleet).unwrap(), result, "{mode:?}");
    }
}

/// Two functions ask two processors for three times what they can do: the longer one's calls wait for its instances.
#[test]
fn saturated_nodes_share_themselves_among_few_instances() {
    use gust_policy::Mode;
    let workload = Synthetic {
        kind: Kind::Poisson { rate: 60.0 },
        functions: 2,
        minutes: 0.5,
        duration_ms: 100.0,
        memory_mib: 1,
        seed: 1,
    };
    let workload = workload.make().unwrap();
    let most = |runnable_per_cpu| {
        let fleet = FleetConfig {
            runnable_per_cpu,
            ..FleetConfig::new(Mode::Dual)
        };
        let result = simulate(&workload, &config(2, SimCosts::default()), fleet).unwrap();
        let instances = result
            .samples
            .iter()
            .map(|sample| sample.emergency + sample.regular);
        instances.max().unwrap()
    };
    let (free, bound) = (most(0), most(4));
    assert!(bound <= 12 && free > 5 * bound, "{free} and {bound}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Every call is answered once, after what it asked for, and a seed gives the same twice.
    #[test]
    fn runs_repeat_and_lose_nothing(seed in any::<u64>(), calls in 1usize..300, instances in 0u64..4, processors in 1u32..4) {
        let workload = poisson(calls, 5.0, 2.0, u128::from(seed));
        let costs = SimCosts {
            way: Delay::LogNormal { mu: -6.0, sigma: 1.0 },
            restore: Delay::Uniform(1000, 100_000),
            manager: Delay::Quantiles(vec![5_000_000, 8_000_000, 50_000_000]),
            freeze_after_ns: 100_000_000,
            frozen_permille: 1,
            ..SimCosts::default()
        };
        let config = SimConfig { seed, ..config(processors, costs) };
        let result = run(&workload, &config, &mut Fixed::new(instances)).unwrap();
        prop_assert_eq!(result.records.len(), calls);
        for (record, arrival) in result.records.iter().zip(&workload.arrivals) {
            prop_assert_eq!(record.ending, Ending::Answered);
            prop_assert_eq!(record.arrived_ns, arrival.at_ns);
            prop_assert!(record.started_ns >= record.arrived_ns);
            // A nanosecond is lost where ends are rounded.
            prop_assert!(record.ended_ns + 1 >= record.started_ns + record.requested_ns);
        }
        let last = result.samples.last().unwrap();
        prop_assert_eq!((last.busy, last.queued, last.emergency), (0, 0, 0));
        prop_assert_eq!(&run(&workload, &config, &mut Fixed::new(instances)).unwrap(), &result);
    }
}
