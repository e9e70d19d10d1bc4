//! The live fleet on fake nodes: what is decided reaches calls and nodes, and what happens there reaches the policies.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use gust_control::{
    agent::Agent,
    fake::FakeNode,
    fleet::{Ending, LiveConfig, LiveFleet, ManagerConfig, Placed, Refused},
};
use gust_node::{Invocation, InvokeResult, Outcome, StartKind, VersionId};
use gust_policy::{Class, FleetConfig, FunctionId, FunctionSpec, Mode, NodeId, NodeSpec, Refusal, TenantId};
use tokio::sync::mpsc;

const NODE: NodeId = NodeId(0);
const LONG: Duration = Duration::from_secs(60);

struct World {
    fleet: LiveFleet,
    node: FakeNode,
}

fn fleet(mode: Mode) -> LiveFleet {
    LiveFleet::start(LiveConfig {
        policy: FleetConfig::new(mode),
        manager: ManagerConfig::default(),
    })
}

fn room(instances: u32) -> NodeSpec {
    NodeSpec {
        memory_bytes: 1 << 40,
        instances_max: instances,
        restores_max: 1000,
        region: 0,
    }
}

fn spec() -> FunctionSpec {
    FunctionSpec {
        tenant: TenantId(0),
        memory_bytes: 16 << 20,
        concurrency_per_instance: 1,
        instances_min: 0,
        instances_max: None,
        reserved: None,
        queue_timeout_ns: u64::try_from(LONG.as_nanos()).unwrap(),
        home: 0,
    }
}

fn version(name: &str) -> VersionId {
    VersionId(name.to_owned())
}

impl World {
    fn new(mode: Mode, instances: u32) -> Self {
        let node = FakeNode::new(Duration::from_millis(1), instances as usize);
        let fleet = fleet(mode);
        fleet.add_node(NODE, room(instances), Agent::Fake(node.clone()));
        Self { fleet, node }
    }

    fn function(&self, name: &str, spec: FunctionSpec) -> FunctionId {
        self.node.register(version(name));
        let function = self.fleet.function(&version(name), spec);
        self.fleet.snapshot(NODE, function, true);
        function
    }

    async fn call(&self, function: FunctionId, name: &str, ms: u64) -> Result<(Outcome, Class), Refused> {
        let placed = self.fleet.place(function).await?;
        Ok(run(placed, name, ms).await)
    }
}

/// Runs a call that has its place, as the control plane does.
async fn run(placed: Placed, name: &str, ms: u64) -> (Outcome, Class) {
    let (log, _discarded) = mpsc::channel::<Bytes>(1);
    let invocation = Invocation {
        request_id: String::new(),
        payload: Bytes::from(format!("{{\"duration_ms\": {ms}}}")),
        timeout: LONG,
        function_arn: String::new(),
        client_context: None,
        trace_id: None,
        log,
        wanted: placed.wanted(),
        delivered: None,
    };
    let class = placed.class();
    let outcome = placed
        .agent()
        .clone()
        .invoke(&version(name), invocation)
        .await
        .unwrap();
    placed.end(Ending::Kept {
        memory_bytes: outcome.memory_bytes,
    });
    (outcome, class)
}

/// Waits until something has come true.
async fn until(condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(LONG, waiting)
        .await
        .expect("it did not come true in time");
}

#[tokio::test]
async fn a_call_that_finds_nothing_is_restored_for_and_the_next_meets_its_instance() {
    let world = World::new(Mode::Dual, 10);
    let function = world.function("f", spec());
    let (first, class) = world.call(function, "f", 0).await.unwrap();
    assert_eq!((first.start, class), (StartKind::Restored, Class::Emergency));
    let (second, _) = world.call(function, "f", 0).await.unwrap();
    assert_eq!((second.start, second.replaced), (StartKind::Warm, false));
    assert_eq!(second.instance_id, first.instance_id);
    assert!(matches!(second.result, InvokeResult::Success(_)));
}

#[tokio::test]
async fn in_the_other_modes_the_cluster_manager_makes_instances_and_calls_wait_for_them() {
    for mode in [Mode::Sync, Mode::Async, Mode::Dirigent] {
        let world = World::new(mode, 10);
        let function = world.function("f", spec());
        let (first, class) = world.call(function, "f", 0).await.unwrap();
        // It was there when the call came to it.
        assert_eq!(
            (first.start, class),
            (StartKind::Warm, Class::Regular),
            "{mode:?}"
        );
        assert_eq!(world.fleet.counts().emergency, 0);
    }
}

#[tokio::test]
async fn what_is_provisioned_is_made_without_a_call() {
    let world = World::new(Mode::Dual, 10);
    // It was there before anything was asked of it.
    world.function("f", spec());
    let function = world.function(
        "f",
        FunctionSpec {
            instances_min: 3,
            ..spec()
        },
    );
    until(|| world.fleet.regular_ready(function) == 3).await;
    let (outcome, class) = world.call(function, "f", 0).await.unwrap();
    assert_eq!((outcome.start, class), (StartKind::Warm, Class::Regular));
    world.fleet.remove_function(&version("f"));
    until(|| world.node.stats().regular == 0).await;
    let refused = world.fleet.place(function).await.unwrap_err();
    assert_eq!(refused.reason, Refusal::UnknownFunction);
}

#[tokio::test]
async fn instances_that_are_lost_are_made_anew() {
    let world = World::new(Mode::Dual, 10);
    let function = world.function("f", spec());
    let (first, _) = world.call(function, "f", 0).await.unwrap();
    world.node.evict(&version("f"));
    until(|| world.fleet.counts().emergency == 0).await;
    let (second, _) = world.call(function, "f", 0).await.unwrap();
    assert_eq!((second.start, second.replaced), (StartKind::Restored, false));
    assert_ne!(first.instance_id, second.instance_id);
    // A call that ends with its instance says so itself.
    let placed = world.fleet.place(function).await.unwrap();
    placed.end(Ending::Gone);
    assert_eq!(world.fleet.counts().emergency, 0);
}

#[tokio::test]
async fn calls_wait_no_longer_than_they_may_and_can_be_given_up() {
    let world = World::new(Mode::Dual, 10);
    let function = world.function(
        "f",
        FunctionSpec {
            instances_max: Some(1),
            queue_timeout_ns: 30_000_000,
            ..spec()
        },
    );
    let held = world.fleet.place(function).await.unwrap();
    let refused = world.fleet.place(function).await.unwrap_err();
    assert_eq!(refused.reason, Refusal::Deadline);
    assert!(refused.retry_after > Duration::ZERO);
    // One that is given up leaves nothing behind: the place goes to the next.
    let given_up = tokio::time::timeout(Duration::from_millis(1), world.fleet.place(function)).await;
    assert!(given_up.is_err());
    assert_eq!(world.fleet.counts().waiting, 0);
    drop(held);
    world.fleet.place(function).await.unwrap();
}

#[tokio::test]
async fn a_control_plane_that_starts_again_finds_the_instances_of_its_nodes() {
    let world = World::new(Mode::Dual, 10);
    let function = world.function("f", spec());
    world.function("g", spec());
    let (first, _) = world.call(function, "f", 0).await.unwrap();
    let World { fleet: old, node } = world;
    old.stop();
    drop(old);

    let fleet = fleet(Mode::Dual);
    let function = fleet.function(&version("f"), spec());
    fleet.add_node(NODE, room(10), Agent::Fake(node.clone()));
    let world = World { fleet, node };
    let (second, _) = world.call(function, "f", 0).await.unwrap();
    assert_eq!(
        (second.start, &second.instance_id),
        (StartKind::Warm, &first.instance_id)
    );
    // Names are not given twice.
    let held = world.fleet.place(function).await.unwrap();
    let (third, _) = world.call(function, "f", 0).await.unwrap();
    assert_ne!(third.instance_id, first.instance_id);
    drop(held);
}

#[tokio::test]
async fn instances_of_functions_that_are_not_known_any_more_end() {
    let world = World::new(Mode::Dual, 10);
    let function = world.function("f", spec());
    world.call(function, "f", 0).await.unwrap();
    let World { fleet: old, node } = world;
    old.stop();
    drop(old);
    assert_eq!(node.stats().emergency, 1);
    let fleet = fleet(Mode::Dual);
    fleet.add_node(NODE, room(10), Agent::Fake(node.clone()));
    assert_eq!(node.stats().emergency, 0);
}

/// A flood fills every place and the queue; a function that is called now and then still has its turn.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_on_one_function_does_not_starve_another() {
    const FLOOD: usize = 400;
    let world = Arc::new(World::new(Mode::Dual, 4));
    let (flood, quiet) = (world.function("flood", spec()), world.function("quiet", spec()));
    let answered = Arc::new(AtomicUsize::new(0));
    let mut calls = Vec::new();
    for _ in 0..FLOOD {
        let (world, answered) = (Arc::clone(&world), Arc::clone(&answered));
        calls.push(tokio::spawn(async move {
            world.call(flood, "flood", 5).await.unwrap();
            answered.fetch_add(1, Ordering::Relaxed);
        }));
    }
    until(|| world.fleet.counts().waiting > FLOOD / 2).await;
    for _ in 0..10 {
        world.call(quiet, "quiet", 1).await.unwrap();
    }
    assert!(
        answered.load(Ordering::Relaxed) < FLOOD,
        "it was served after the whole flood"
    );
    for call in calls {
        call.await.unwrap();
    }
}
