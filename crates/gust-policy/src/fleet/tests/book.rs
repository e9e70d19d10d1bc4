//! Each mode by the book.

use super::world::{Phase, World};
use super::{MIB, MS, SECOND, function, node};
use crate::{
    CallId, Class, Decision, FleetConfig, FunctionCounts, FunctionId, FunctionSpec, InstanceId, Mode, NodeId,
    NodeSpec, Observation, Refusal, RegionConfig, Time,
};

const F: FunctionId = FunctionId(0);

fn world(mode: Mode) -> World {
    with(FleetConfig::new(mode), function(0))
}

fn with(config: FleetConfig, spec: FunctionSpec) -> World {
    let mut world = World::new(config);
    world.tell(Observation::Node(NodeId(0), node(100)));
    world.tell(Observation::Function(F, spec));
    world
}

fn arrive(world: &mut World, call: u64) -> Vec<Decision> {
    world.tell(Observation::Arrived(CallId(call), F))
}

fn counts(world: &World) -> FunctionCounts {
    world.fleet.function_counts(F).unwrap()
}

/// One call of 10 ms, then nothing for a while.
fn call(world: &mut World, name: u64, gap_ns: u64) {
    arrive(world, name);
    world.ready_all();
    world.pass(10 * MS);
    world.tell(Observation::Ended(CallId(name)));
    world.pass(gap_ns);
}

#[test]
fn dual_restores_at_once_and_keeps_by_cost() {
    let mut config = FleetConfig::new(Mode::Dual);
    config.rest.armed_ns = Some(0);
    // Nothing goes back.
    config.cost.rearm_bytes_max = 0;
    let mut world = with(config, function(0));
    let decisions = arrive(&mut world, 1);
    assert!(
        matches!(
            decisions[..],
            [Decision::Restore {
                call: CallId(1),
                function: F,
                ..
            }]
        ),
        "{decisions:?}"
    );
    world.ready_all();
    world.tell(Observation::Ended(CallId(1)));
    // Idle until keeping it has cost a restore.
    let keep = world.fleet.config().cost.break_even_ns(128 * MIB);
    assert_eq!(world.pass(keep - 1), []);
    assert_eq!(counts(&world).idle, 1);
    assert!(matches!(
        world.pass(1)[..],
        [Decision::Remove { armed_ns: 0, .. }]
    ));
    assert_eq!(counts(&world).emergency, 0);
}

#[test]
fn what_has_been_idle_waits_armed_and_the_next_call_goes_there() {
    let small = FunctionSpec {
        memory_bytes: 20 * MIB,
        ..function(0)
    };
    let mut world = World::new(FleetConfig::new(Mode::Dual));
    world.tell(Observation::Function(F, small));
    (0..50).for_each(|id| drop(world.tell(Observation::Node(NodeId(id), node(100)))));
    let arrives = |world: &mut World, name| match arrive(world, name)[..] {
        [Decision::Restore { node, .. }] => node,
        ref other => panic!("{other:?}"),
    };
    let first = arrives(&mut world, 1);
    world.ready_all();
    world.tell(Observation::Ended(CallId(1)));
    let cost = world.fleet.config().cost;
    let idle = cost.rearm(small.memory_bytes)
        / (cost.keep_per_ns(small.memory_bytes) - cost.memory_per_ns(cost.armed_bytes));
    assert_eq!(world.pass(idle as u64 - 1), []);
    let ended = world.pass(2);
    let [Decision::Remove { node, armed_ns, .. }] = ended[..] else {
        panic!("{ended:?}")
    };
    assert_eq!(node, first);
    // Armed it is kept for as long as that costs less than a restore.
    let armed = (cost.restore(small.memory_bytes) - cost.rearm(small.memory_bytes))
        / cost.memory_per_ns(cost.armed_bytes);
    assert!((idle as u64 + armed_ns).abs_diff(armed as u64) <= 2, "{armed_ns}");
    world.pass(armed_ns - 2);
    assert_eq!(arrives(&mut world, 2), first);
    // There was one.
    assert!((3..10).any(|name| arrives(&mut world, name) != first));
}

#[test]
fn dual_makes_a_regular_instance_only_for_what_lasts() {
    let mut world = world(Mode::Dual);
    // A burst of fifty: fifty emergency instances, nothing else, and none of it is left.
    for name in 0..50 {
        assert!(matches!(arrive(&mut world, name)[..], [Decision::Restore { .. }]));
        world.ready_all();
    }
    (0..50).for_each(|name| drop(world.tell(Observation::Ended(CallId(name)))));
    world.pass(100 * SECOND);
    assert!(
        !world
            .log
            .iter()
            .any(|(_, decision)| matches!(decision, Decision::Create { .. }))
    );
    assert_eq!(counts(&world), FunctionCounts::default());
    // A call every 20 ms for some seconds.
    (100..600).for_each(|name| call(&mut world, name, 10 * MS));
    assert!(counts(&world).regular >= 1, "{:?}", counts(&world));
    let before = world.log.len();
    (600..700).for_each(|name| call(&mut world, name, 10 * MS));
    let restores = world.log[before..]
        .iter()
        .filter(|step| matches!(step.1, Decision::Restore { .. }));
    assert_eq!(restores.count(), 0, "sustained traffic is restored for");
    // It goes once what it saved is used up: 30 ms of processor time pay for about 2 seconds of 128 MiB.
    world.pass(10 * SECOND);
    assert_eq!(counts(&world).regular, 0);
    world.pass(100 * SECOND);
    assert_eq!(world.fleet.next_tick(), None);
}

#[test]
fn sync_makes_instances_on_the_path_and_keeps_them_for_ten_minutes() {
    let mut world = world(Mode::Sync);
    let first = arrive(&mut world, 1);
    assert!(
        matches!(first[..], [Decision::Create { function: F, .. }]),
        "{first:?}"
    );
    assert!(matches!(arrive(&mut world, 2)[..], [Decision::Create { .. }]));
    let made = world.in_phase(Phase::Starting);
    let ready = world.tell(Observation::Ready(made[0]));
    assert!(matches!(ready[..], [Decision::Run { call: CallId(1), .. }]));
    // The first ends before the second's own instance is there: the call that waits takes what is idle.
    let ended = world.tell(Observation::Ended(CallId(1)));
    assert!(matches!(ended[..], [Decision::Run { call: CallId(2), .. }]));
    world.tell(Observation::Ready(made[1]));
    world.tell(Observation::Ended(CallId(2)));
    assert_eq!(world.pass(600 * SECOND - 1), []);
    assert_eq!(world.pass(SECOND).len(), 2);
    assert_eq!(counts(&world).regular, 0);
}

#[test]
fn async_scales_from_averages() {
    let mut world = world(Mode::Async);
    let first = arrive(&mut world, 0);
    // From none, the autoscaler is asked at once: one call at a target of 0.7 wants two.
    assert_eq!(
        first
            .iter()
            .filter(|decision| matches!(decision, Decision::Create { .. }))
            .count(),
        2
    );
    for name in 1..50 {
        assert_eq!(arrive(&mut world, name), []);
    }
    world.ready_all();
    assert_eq!(counts(&world).running, 2);
    assert_eq!(counts(&world).waiting, 48);
    // Panic: 50 calls that want 72 instances, and two are there.
    world.pass(2 * SECOND);
    assert!(counts(&world).regular > 50, "{:?}", counts(&world));
    world.ready_all();
    assert_eq!(counts(&world).running, 50);
    (0..50).for_each(|name| drop(world.tell(Observation::Ended(CallId(name)))));
    // No scale-down for a stable window, then by halves, and the last goes after the grace.
    world.pass(50 * SECOND);
    assert!(counts(&world).regular > 50);
    world.pass(100 * SECOND);
    assert_eq!(counts(&world), FunctionCounts::default());
}

#[test]
fn dirigent_decides_as_async_does() {
    let play = |mode| {
        let mut world = world(mode);
        (0..300).for_each(|name| call(&mut world, name, (name * 37 % 400) * MS));
        world.pass(200 * SECOND);
        world.log
    };
    assert_eq!(play(Mode::Async), play(Mode::Dirigent));
}

#[test]
fn calls_are_refused_with_a_reason() {
    let config = FleetConfig {
        queue_max: 1,
        concurrency_max: Some(12),
        ..FleetConfig::new(Mode::Dual)
    };
    let spec = FunctionSpec {
        instances_max: Some(1),
        reserved: Some(10),
        ..function(0)
    };
    let mut world = with(config, spec);
    let refusal = |decisions: Vec<Decision>| match decisions[..] {
        [
            Decision::Refuse {
                reason,
                retry_after_ns,
                ..
            },
        ] if retry_after_ns >= 100 * MS => Some(reason),
        _ => None,
    };
    assert_eq!(
        refusal(world.tell(Observation::Arrived(CallId(0), FunctionId(9)))),
        Some(Refusal::UnknownFunction)
    );
    arrive(&mut world, 1);
    assert_eq!(arrive(&mut world, 2), []);
    assert_eq!(refusal(arrive(&mut world, 3)), Some(Refusal::QueueFull));
    assert_eq!(world.pass(10 * SECOND - 1), []);
    assert_eq!(refusal(world.pass(1)), Some(Refusal::Deadline));
    world.tell(Observation::Function(
        F,
        FunctionSpec {
            reserved: Some(1),
            ..spec
        },
    ));
    assert_eq!(refusal(arrive(&mut world, 4)), Some(Refusal::Reserved));
    // Others share what is not reserved: 11 of 12.
    let other = FunctionId(1);
    world.tell(Observation::Function(other, function(0)));
    for name in 10..21 {
        assert_eq!(
            refusal(world.tell(Observation::Arrived(CallId(name), other))),
            None
        );
    }
    assert_eq!(
        refusal(world.tell(Observation::Arrived(CallId(21), other))),
        Some(Refusal::Account)
    );
}

#[test]
fn without_a_node_calls_wait_a_little_for_one() {
    let mut world = World::new(FleetConfig::new(Mode::Dual));
    world.tell(Observation::Function(F, function(0)));
    assert_eq!(arrive(&mut world, 1), []);
    world.pass(SECOND);
    let joined = world.tell(Observation::Node(NodeId(0), node(1)));
    assert!(
        matches!(joined[..], [Decision::Restore { call: CallId(1), .. }]),
        "{joined:?}"
    );
    world.tell(Observation::NodeGone(NodeId(0)));
    assert_eq!(world.fleet.waiting(), 1);
    world.pass(2 * SECOND);
    assert_eq!(world.refused, [(CallId(1), Refusal::NoNode)]);
}

#[test]
fn provisioned_instances_are_always_there() {
    for mode in [Mode::Dual, Mode::Sync, Mode::Async, Mode::Dirigent] {
        let mut world = with(
            FleetConfig::new(mode),
            FunctionSpec {
                instances_min: 3,
                ..function(0)
            },
        );
        assert_eq!(counts(&world).starting, 3);
        let lost = world.in_phase(Phase::Starting)[0];
        // One that cannot be made is tried again, later each time.
        assert_eq!(world.tell(Observation::Gone(lost)), []);
        assert!(matches!(world.pass(100 * MS)[..], [Decision::Create { .. }]));
        world.tell(Observation::Gone(
            *world.in_phase(Phase::Starting).last().unwrap(),
        ));
        assert_eq!(world.pass(199 * MS), []);
        assert!(matches!(world.pass(MS)[..], [Decision::Create { .. }]));
        world.ready_all();
        world.pass(3600 * SECOND);
        assert_eq!(counts(&world).idle, 3, "{mode:?}");
        // Fewer are wanted: the others go as any others.
        world.tell(Observation::Function(F, function(0)));
        world.pass(3600 * SECOND);
        assert_eq!(counts(&world).regular, 0, "{mode:?}");
    }
}

#[test]
fn a_drained_node_gets_nothing_and_empties() {
    let mut world = with(
        FleetConfig::new(Mode::Dual),
        FunctionSpec {
            instances_min: 2,
            ..function(0)
        },
    );
    world.ready_all();
    arrive(&mut world, 1);
    world.tell(Observation::Node(NodeId(1), node(100)));
    let drained = world.tell(Observation::NodeDrains(NodeId(0)));
    // The idle one goes, and is made again elsewhere; the busy one follows when its call ends.
    assert!(
        matches!(
            drained[..],
            [
                Decision::Remove { node: NodeId(0), .. },
                Decision::Create { node: NodeId(1), .. }
            ]
        ),
        "{drained:?}"
    );
    let ended = world.tell(Observation::Ended(CallId(1)));
    assert!(
        matches!(
            ended[..],
            [
                Decision::Remove { node: NodeId(0), .. },
                Decision::Create { node: NodeId(1), .. }
            ]
        ),
        "{ended:?}"
    );
    assert_eq!(world.fleet.node_counts(NodeId(0)).unwrap().instances, 0);
}

#[test]
fn a_lost_node_loses_no_call_that_did_not_run() {
    let mut world = world(Mode::Dual);
    arrive(&mut world, 1);
    world.ready_all();
    arrive(&mut world, 2);
    world.tell(Observation::Node(NodeId(1), node(1)));
    // Call 1 ran: its caller fails it. Call 2's instance was still being restored: it goes elsewhere.
    let gone = world.tell(Observation::NodeGone(NodeId(0)));
    assert!(
        matches!(
            gone[..],
            [Decision::Restore {
                call: CallId(2),
                node: NodeId(1),
                ..
            }]
        ),
        "{gone:?}"
    );
    assert_eq!(world.tell(Observation::Ended(CallId(1))), []);
    // Once only: a second loss ends it.
    assert_eq!(world.tell(Observation::NodeGone(NodeId(1))), []);
    assert_eq!(world.fleet.waiting(), 0);
    assert_eq!(world.fleet.counts().running, 0);
}

#[test]
fn instances_found_after_a_restart_are_used_and_kept() {
    for mode in [Mode::Dual, Mode::Sync, Mode::Async] {
        let mut world = world(mode);
        for name in 500..503 {
            let found = Observation::Found(InstanceId(name), NodeId(0), F, Class::Regular);
            assert_eq!(world.tell(found), []);
            assert_eq!(world.tell(found), [], "told twice");
        }
        let ran = arrive(&mut world, 1);
        assert!(matches!(ran[..], [Decision::Run { .. }]), "{ran:?}");
        // Names go on above those that were found.
        (2..10).for_each(|name| drop(arrive(&mut world, name)));
        assert_eq!(counts(&world).running.min(3), 3);
        (1..10).for_each(|name| drop(world.tell(Observation::Ended(CallId(name)))));
        let kept = world.in_phase(Phase::Ready);
        assert!(kept.len() >= 3);
        // What does not fit, or is not known, is ended.
        let unknown = Observation::Found(InstanceId(900), NodeId(0), FunctionId(5), Class::Regular);
        assert!(matches!(
            world.tell(unknown)[..],
            [Decision::Remove {
                instance: InstanceId(900),
                ..
            }]
        ));
    }
}

#[test]
fn instances_take_as_many_calls_as_they_may() {
    let mut world = with(
        FleetConfig::new(Mode::Dual),
        FunctionSpec {
            concurrency_per_instance: 3,
            ..function(0)
        },
    );
    assert!(matches!(arrive(&mut world, 1)[..], [Decision::Restore { .. }]));
    world.ready_all();
    for name in 2..4 {
        assert!(matches!(arrive(&mut world, name)[..], [Decision::Run { .. }]));
    }
    assert!(matches!(arrive(&mut world, 4)[..], [Decision::Restore { .. }]));
    assert_eq!(counts(&world).emergency, 2);
}

#[test]
fn restores_in_flight_are_bounded_on_each_node() {
    let mut world = World::new(FleetConfig::new(Mode::Dual));
    world.tell(Observation::Function(F, function(0)));
    world.tell(Observation::Node(
        NodeId(0),
        NodeSpec {
            restores_max: 2,
            ..node(100)
        },
    ));
    (0..5).for_each(|name| drop(arrive(&mut world, name)));
    assert_eq!(world.fleet.counts().restoring, 2);
    let first = world.in_phase(Phase::Restoring)[0];
    let ready = world.tell(Observation::Ready(first));
    assert!(
        matches!(ready[..], [Decision::Restore { call: CallId(2), .. }]),
        "{ready:?}"
    );
    // A call that ends without a word of its restore ends that too.
    let ended = world.tell(Observation::Ended(CallId(1)));
    assert!(
        ended
            .iter()
            .any(|decision| matches!(decision, Decision::Run { call: CallId(3), .. })),
        "{ended:?}"
    );
}

/// Regular instances in the making of two functions that want five each, and how many there are.
fn creations(world: &World) -> [(u32, u32); 2] {
    [F, FunctionId(1)].map(|function| {
        let counts = world.fleet.function_counts(function).unwrap();
        (counts.starting, counts.regular)
    })
}

#[test]
fn creations_in_flight_are_bounded_on_each_node_and_taken_in_turn() {
    let mut world = World::new(FleetConfig::new(Mode::Dual));
    world.tell(Observation::Node(
        NodeId(0),
        NodeSpec {
            restores_max: 2,
            ..node(100)
        },
    ));
    for (tenant, id) in [F, FunctionId(1)].into_iter().enumerate() {
        let spec = FunctionSpec {
            instances_min: 5,
            ..function(tenant as u32)
        };
        world.tell(Observation::Function(id, spec));
    }
    assert_eq!(creations(&world), [(2, 2), (0, 0)]);
    // Calls do not wait behind them.
    assert!(matches!(arrive(&mut world, 1)[..], [Decision::Restore { .. }]));
    let mut seen = Vec::new();
    while let Some(first) = world.in_phase(Phase::Starting).first().copied() {
        world.tell(Observation::Ready(first));
        seen.push(creations(&world).map(|(_, regular)| regular));
    }
    assert_eq!(seen[..4], [[3, 0], [3, 1], [4, 1], [4, 2]], "{seen:?}");
    assert_eq!(creations(&world), [(0, 5), (0, 5)]);
}

#[test]
fn a_creation_that_fails_gives_its_turn_to_another_function() {
    let mut world = World::new(FleetConfig::new(Mode::Sync));
    let spec = NodeSpec {
        restores_max: 1,
        ..node(100)
    };
    world.tell(Observation::Node(NodeId(0), spec));
    let other = FunctionId(1);
    world.tell(Observation::Function(F, function(0)));
    world.tell(Observation::Function(other, function(1)));
    arrive(&mut world, 1);
    assert_eq!(world.tell(Observation::Arrived(CallId(2), other)), []);
    let first = world.in_phase(Phase::Starting)[0];
    let gone = world.tell(Observation::Gone(first));
    assert!(
        matches!(gone[..], [Decision::Create { function, .. }] if function == other),
        "{gone:?}"
    );
    // What is held when its node goes is made on the next.
    world.tell(Observation::NodeGone(NodeId(0)));
    world.tell(Observation::Node(NodeId(1), spec));
    world.pass(SECOND);
    assert_eq!(world.fleet.counts().starting, 1);
}

#[test]
fn idle_instances_of_others_make_room() {
    let mut world = World::new(FleetConfig::new(Mode::Sync));
    let other = FunctionId(1);
    world.tell(Observation::Node(NodeId(0), node(2)));
    world.tell(Observation::Function(F, function(0)));
    world.tell(Observation::Function(other, function(1)));
    for name in 0..2 {
        arrive(&mut world, name);
    }
    world.ready_all();
    (0..2).for_each(|name| drop(world.tell(Observation::Ended(CallId(name)))));
    let room = world.tell(Observation::Arrived(CallId(2), other));
    // Just used, but by those who use no more than who asks: a guard protects them for two seconds.
    assert_eq!(room, []);
    world.pass(2 * SECOND);
    let room = world.tell(Observation::Arrived(CallId(3), other));
    let removed = room
        .iter()
        .filter(|decision| matches!(decision, Decision::Remove { .. }))
        .count();
    let made = room
        .iter()
        .filter(|decision| matches!(decision, Decision::Create { .. }))
        .count();
    assert_eq!((removed, made), (2, 2), "{room:?}");
}

#[test]
fn nodes_with_the_snapshot_come_first() {
    let mut world = World::new(FleetConfig::new(Mode::Dual));
    world.tell(Observation::Function(F, function(0)));
    (0..50).for_each(|id| drop(world.tell(Observation::Node(NodeId(id), node(20)))));
    world.tell(Observation::Snapshot(NodeId(31), F, true));
    let on = |decisions: Vec<Decision>| match decisions[..] {
        [Decision::Restore { node, .. }] => node,
        _ => panic!("{decisions:?}"),
    };
    // As long as that is quicker than to fetch it elsewhere.
    assert!((0..6).all(|name| on(arrive(&mut world, name)) == NodeId(31)));
    world.tell(Observation::Snapshot(NodeId(31), F, false));
    assert!((10..20).any(|name| on(arrive(&mut world, name)) != NodeId(31)));
}

#[test]
fn cold_starts_leave_home_where_the_path_is_shorter() {
    let regions = RegionConfig {
        round_trip_ns: vec![vec![0, 20 * MS], vec![20 * MS, 0]],
        advantage_ns: 0,
    };
    let mut world = World::new(FleetConfig {
        regions,
        ..FleetConfig::new(Mode::Dual)
    });
    world.tell(Observation::Function(F, function(0)));
    world.tell(Observation::Node(NodeId(0), node(1000)));
    world.tell(Observation::Node(
        NodeId(1),
        NodeSpec {
            region: 1,
            ..node(1000)
        },
    ));
    let mut away = 0;
    for name in 0..200 {
        let decisions = arrive(&mut world, name);
        let [Decision::Restore { instance, node, .. }] = decisions[..] else {
            panic!("{decisions:?}")
        };
        let slow = node == NodeId(0);
        away += u32::from(!slow);
        world.go_to(Time(world.now.0 + if slow { 500 * MS } else { 30 * MS }));
        world.tell(Observation::Ready(instance));
    }
    assert!(away > 150, "{away}");
}
