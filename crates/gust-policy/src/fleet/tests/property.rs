//! Any observations, in any order: what must be so is so after each.

use super::world::{Phase, World};
use super::{MIB, MS, SECOND};
use crate::{
    CallId, Class, Decision, FleetConfig, FunctionId, FunctionSpec, InstanceId, Mode, NodeId, NodeLoad,
    NodeSpec, Observation, RegionConfig, TenantId, Time,
};
use proptest::prelude::*;

/// Names that the fleet gives begin here; instances that are found have lower ones.
const FIRST: u64 = 1_000_000;

const FUNCTIONS: u32 = 6;
const NODES: u32 = 5;

/// One step of a history; numbers choose among what is there.
#[derive(Debug, Clone)]
enum Step {
    Function(u32, FunctionSpec),
    FunctionGone(u32),
    Node(u32, NodeSpec),
    Load(u32, NodeLoad),
    NodeDrains(u32),
    NodeGone(u32, bool),
    Snapshot(u32, u32, bool),
    Found(u32, u32, bool),
    Arrive(u32, u8),
    Again(usize),
    GiveUp(usize),
    Ready(usize),
    End(usize),
    Gone(usize),
    Unknown(u64),
    Pass(u64),
}

fn spec() -> impl Strategy<Value = FunctionSpec> {
    let few = prop::option::weighted(0.3, 0u32..6);
    let memory = prop_oneof![Just(64u64), Just(128), Just(256), Just(1000)];
    (0u32..3, memory, 1u32..4, 0u32..3, few.clone(), few, 1u64..3000).prop_map(
        |(tenant, mib, concurrency_per_instance, instances_min, instances_max, reserved, timeout_ms)| {
            FunctionSpec {
                tenant: TenantId(tenant),
                memory_bytes: mib * MIB,
                concurrency_per_instance,
                instances_min: if instances_min == 2 { 1 } else { 0 },
                instances_max: instances_max.map(|max| max + 1),
                reserved: reserved.map(|max| max * 2),
                queue_timeout_ns: timeout_ms * MS,
                home: 0,
            }
        },
    )
}

fn node() -> impl Strategy<Value = NodeSpec> {
    (128u64..2048, 1u32..12, 1u32..5, 0u16..5).prop_map(|(mib, instances_max, restores_max, region)| {
        NodeSpec {
            memory_bytes: mib * MIB,
            instances_max,
            restores_max,
            // Most are where the functions are at home.
            region: region / 4,
        }
    })
}

fn load() -> impl Strategy<Value = NodeLoad> {
    (0u32..12, 0u32..3).prop_map(|(runnable, cpus)| NodeLoad { runnable, cpus })
}

fn step() -> impl Strategy<Value = Step> {
    let function = 0..FUNCTIONS;
    let on = 0..NODES;
    let any_one = any::<usize>();
    prop_oneof![
        2 => (function.clone(), spec()).prop_map(|(id, spec)| Step::Function(id, spec)),
        1 => function.clone().prop_map(Step::FunctionGone),
        2 => (on.clone(), node()).prop_map(|(id, spec)| Step::Node(id, spec)),
        4 => (on.clone(), load()).prop_map(|(id, load)| Step::Load(id, load)),
        1 => on.clone().prop_map(Step::NodeDrains),
        1 => (on.clone(), any::<bool>()).prop_map(|(id, before)| Step::NodeGone(id, before)),
        1 => (on.clone(), function.clone(), any::<bool>()).prop_map(|(node, id, there)| Step::Snapshot(node, id, there)),
        1 => (on, function.clone(), any::<bool>()).prop_map(|(node, id, regular)| Step::Found(node, id, regular)),
        20 => (function, 1u8..6).prop_map(|(id, count)| Step::Arrive(id, count)),
        1 => any_one.prop_map(Step::Again),
        2 => any_one.prop_map(Step::GiveUp),
        16 => any_one.prop_map(Step::Ready),
        24 => any_one.prop_map(Step::End),
        2 => any_one.prop_map(Step::Gone),
        1 => any::<u64>().prop_map(Step::Unknown),
        16 => prop_oneof![0..2 * MS, 0..SECOND, 0..100 * SECOND].prop_map(Step::Pass),
    ]
}

fn config() -> impl Strategy<Value = FleetConfig> {
    let mode = prop_oneof![
        3 => Just(Mode::Dual),
        1 => Just(Mode::Sync),
        1 => Just(Mode::Async),
        1 => Just(Mode::Dirigent),
    ];
    let regions = prop::bool::weighted(0.2);
    let few = prop::option::weighted(0.3, 5u32..40);
    (mode, 1u32..20, 10u32..60, few, 0u64..3, regions, 0u32..6).prop_map(
        |(mode, queue_max, waiting_max, concurrency_max, guard, regions, runnable_per_cpu)| {
            let ways = vec![vec![0, 20 * MS], vec![20 * MS, 0]];
            FleetConfig {
                queue_max,
                waiting_max: waiting_max + 200,
                concurrency_max,
                eviction_guard_ns: guard * SECOND,
                runnable_per_cpu,
                instances_from: FIRST,
                regions: RegionConfig {
                    round_trip_ns: if regions { ways } else { Vec::new() },
                    advantage_ns: 0,
                },
                ..FleetConfig::new(mode)
            }
        },
    )
}

struct History {
    world: World,
    calls: u64,
    found: u64,
}

impl History {
    fn new(config: FleetConfig) -> History {
        History {
            world: World::new(config),
            calls: 0,
            found: 0,
        }
    }

    fn step(&mut self, step: &Step) {
        let world = &mut self.world;
        let pick = |from: Vec<CallId>, at: usize| from.get(at % from.len().max(1)).copied();
        match *step {
            Step::Function(id, spec) => drop(world.tell(Observation::Function(FunctionId(id), spec))),
            Step::FunctionGone(id) => drop(world.tell(Observation::FunctionGone(FunctionId(id)))),
            Step::Node(id, spec) => drop(world.tell(Observation::Node(NodeId(id), spec))),
            Step::Load(id, load) => drop(world.tell(Observation::Load(NodeId(id), load))),
            Step::NodeDrains(id) => drop(world.tell(Observation::NodeDrains(NodeId(id)))),
            Step::NodeGone(id, before) => node_gone(world, NodeId(id), before),
            Step::Snapshot(node, id, there) => {
                world.tell(Observation::Snapshot(NodeId(node), FunctionId(id), there));
            }
            Step::Found(node, id, regular) => {
                self.found += 1;
                let class = if regular { Class::Regular } else { Class::Emergency };
                let instance = InstanceId(self.found);
                world.tell(Observation::Found(instance, NodeId(node), FunctionId(id), class));
            }
            Step::Arrive(id, count) => {
                for _ in 0..count {
                    self.calls += 1;
                    world.tell(Observation::Arrived(CallId(self.calls), FunctionId(id)));
                }
            }
            Step::Again(at) => {
                if let Some(call) = pick(world.calls.keys().copied().collect(), at) {
                    let function = world.calls[&call].function;
                    assert_eq!(world.tell(Observation::Arrived(call, function)), []);
                }
            }
            Step::GiveUp(at) => {
                if let Some(call) = pick(world.calls.keys().copied().collect(), at) {
                    world.tell(Observation::GivenUp(call));
                }
            }
            Step::Ready(at) => {
                let made = [world.in_phase(Phase::Starting), world.in_phase(Phase::Restoring)].concat();
                if let Some(id) = made.get(at % made.len().max(1)) {
                    world.tell(Observation::Ready(*id));
                }
            }
            Step::End(at) => {
                if let Some(call) = pick(world.sent(), at) {
                    world.tell(Observation::Ended(call));
                }
            }
            Step::Gone(at) => {
                let all: Vec<_> = world.instances.keys().copied().collect();
                if let Some(id) = all.get(at % all.len().max(1)) {
                    world.tell(Observation::Gone(*id));
                }
            }
            Step::Unknown(name) => unknown(world, name | 1 << 63),
            Step::Pass(ns) => drop(world.pass(ns)),
        }
    }

    /// Lets everything end, and sees that nothing is left.
    fn finish(&mut self) {
        let world = &mut self.world;
        for _ in 0..10_000 {
            world.ready_all();
            world
                .sent()
                .into_iter()
                .for_each(|call| drop(world.tell(Observation::Ended(call))));
            if world.calls.is_empty() {
                break;
            }
            world.pass(SECOND);
        }
        assert!(world.calls.is_empty(), "calls are left: {:?}", world.calls);
        (0..FUNCTIONS).for_each(|id| drop(world.tell(Observation::FunctionGone(FunctionId(id)))));
        world.ready_all();
        assert!(
            world.instances.is_empty(),
            "instances are left: {:?}",
            world.instances
        );
        world.go_to(Time(world.now.0 + 1000 * SECOND));
        assert_eq!(world.fleet.next_tick(), None);
    }
}

/// A node is lost; its calls that ran are ended before or after that is said.
fn node_gone(world: &mut World, id: NodeId, before: bool) {
    let there: Vec<_> = world.instances.values().filter(|it| it.node == id).collect();
    let restoring = |call: &CallId| {
        there
            .iter()
            .any(|it| it.phase == Phase::Restoring && it.calls.contains(call))
    };
    let calls: Vec<_> = there.iter().flat_map(|it| it.calls.iter().copied()).collect();
    let ran: Vec<_> = calls.into_iter().filter(|call| !restoring(call)).collect();
    if before {
        ran.iter()
            .for_each(|call| drop(world.tell(Observation::Ended(*call))));
    }
    world.tell(Observation::NodeGone(id));
    if !before {
        ran.iter()
            .for_each(|call| drop(world.tell(Observation::Ended(*call))));
    }
}

/// Nothing comes of what is said of a name that nobody knows.
fn unknown(world: &mut World, name: u64) {
    for observation in [
        Observation::Ended(CallId(name)),
        Observation::GivenUp(CallId(name)),
        Observation::Ready(InstanceId(name)),
        Observation::Gone(InstanceId(name)),
        Observation::NodeGone(NodeId(77)),
        Observation::NodeDrains(NodeId(77)),
        Observation::Load(NodeId(77), NodeLoad { runnable: 9, cpus: 1 }),
        Observation::FunctionGone(FunctionId(77)),
        Observation::Found(InstanceId(FIRST - 1), NodeId(77), FunctionId(0), Class::Regular),
    ] {
        assert_eq!(world.tell(observation), []);
    }
}

fn play(config: &FleetConfig, steps: &[Step]) -> Vec<(Time, Decision)> {
    let mut history = History::new(config.clone());
    steps.iter().for_each(|step| history.step(step));
    history.finish();
    history.world.log
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_is_borne(config in config(), steps in prop::collection::vec(step(), 1..150)) {
        let first = play(&config, &steps);
        prop_assert_eq!(first, play(&config, &steps));
    }
}
