//! What nodes take whose processors have enough to do.

use super::world::World;
use super::{MS, SECOND, function, node};
use crate::{CallId, Decision, FleetConfig, FunctionId, Mode, NodeId, NodeLoad, Observation};

const NODE: NodeId = NodeId(0);

/// Two processors, saturated by eight tasks; three functions of two tenants.
fn world(mode: Mode) -> World {
    let config = FleetConfig {
        runnable_per_cpu: 4,
        ..FleetConfig::new(mode)
    };
    let mut world = World::new(config);
    world.tell(Observation::Node(NODE, node(100)));
    for (id, tenant) in [(0, 0), (1, 0), (2, 1)] {
        world.tell(Observation::Function(FunctionId(id), function(tenant)));
    }
    world
}

fn arrive(world: &mut World, call: u64, function: u32) -> Vec<Decision> {
    world.tell(Observation::Arrived(CallId(call), FunctionId(function)))
}

fn load(world: &mut World, runnable: u32) -> Vec<Decision> {
    world.tell(Observation::Load(NODE, NodeLoad { runnable, cpus: 2 }))
}

/// Eight calls of function 0 at work, two more that wait.
fn crowded(mode: Mode) -> World {
    let mut world = world(mode);
    load(&mut world, 0);
    (0..10).for_each(|call| drop(arrive(&mut world, call, 0)));
    world.ready_all();
    world
}

#[test]
fn what_was_sent_counts_as_running_until_the_node_tells_that_it_sleeps() {
    let mut world = crowded(Mode::Dual);
    assert_eq!(world.waiting(None), [CallId(8), CallId(9)]);
    // They wait for something that takes no processor: there is room for as many as there are tasks missing.
    let made = load(&mut world, 7);
    assert!(
        matches!(made[..], [Decision::Restore { call: CallId(8), .. }]),
        "{made:?}"
    );
    let made = load(&mut world, 0);
    assert!(
        matches!(made[..], [Decision::Restore { call: CallId(9), .. }]),
        "{made:?}"
    );
}

#[test]
fn calls_of_a_saturated_node_wait_for_the_instances_that_are_there() {
    let mut world = crowded(Mode::Dual);
    assert_eq!(load(&mut world, 8), []);
    let ended = world.tell(Observation::Ended(CallId(3)));
    assert!(
        matches!(ended[..], [Decision::Run { call: CallId(8), .. }]),
        "{ended:?}"
    );
    // Whoever is not let in is refused in time.
    world.pass(11 * SECOND);
    assert_eq!(world.refused.len(), 1);
}

#[test]
fn functions_without_an_instance_get_one_of_a_saturated_node() {
    for mode in [Mode::Dual, Mode::Sync] {
        let mut world = crowded(mode);
        load(&mut world, 20);
        for (call, function) in [(20, 1), (21, 2)] {
            let made = arrive(&mut world, call, function);
            assert!(
                matches!(made[..], [Decision::Restore { .. } | Decision::Create { .. }]),
                "{mode:?}: {made:?}"
            );
            assert_eq!(arrive(&mut world, call + 10, function), [], "{mode:?}");
        }
    }
}

#[test]
fn a_node_is_not_idle_because_of_what_else_runs_on_its_machine() {
    let mut world = world(Mode::Dual);
    load(&mut world, 1000);
    for call in 0..8 {
        assert!(matches!(
            arrive(&mut world, call, 0)[..],
            [Decision::Restore { .. }]
        ));
    }
    assert_eq!(arrive(&mut world, 8, 0), []);
}

#[test]
fn the_calm_one_of_two_nodes_is_taken() {
    let mut world = crowded(Mode::Dual);
    load(&mut world, 8);
    let calm = NodeId(1);
    let made = world.tell(Observation::Node(calm, node(100)));
    assert_eq!(made.len(), 2, "{made:?}");
    for (call, function) in (20..40).zip([0, 1, 2].into_iter().cycle()) {
        let made = arrive(&mut world, call, function);
        assert!(
            matches!(made[..], [Decision::Restore { node, .. }] if node == calm),
            "{made:?}"
        );
    }
}

#[test]
fn without_a_bound_nothing_is_kept_back() {
    let mut world = World::new(FleetConfig {
        runnable_per_cpu: 0,
        ..FleetConfig::new(Mode::Dual)
    });
    world.tell(Observation::Node(NODE, node(100)));
    world.tell(Observation::Function(FunctionId(0), function(0)));
    load(&mut world, 1000);
    (0..50).for_each(|call| drop(arrive(&mut world, call, 0)));
    assert_eq!(world.fleet.counts().emergency, 50);
}

#[test]
fn calls_that_a_saturated_node_keeps_waiting_are_no_demand_for_regular_instances() {
    let mut world = crowded(Mode::Dual).lenient();
    let mut name = 100;
    for _ in 0..2_000 {
        load(&mut world, 8);
        let ended = world.sent();
        ended
            .into_iter()
            .for_each(|call| drop(world.tell(Observation::Ended(call))));
        while world.waiting(None).len() < 40 {
            arrive(&mut world, name, 0);
            name += 1;
        }
        world.pass(10 * MS);
        world.ready_all();
    }
    let counts = world.fleet.function_counts(FunctionId(0)).unwrap();
    assert!((1..=8).contains(&counts.target), "{counts:?}");
}
