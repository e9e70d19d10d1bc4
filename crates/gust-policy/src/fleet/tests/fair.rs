//! Overload: what a flood leaves to others.

use super::world::{Phase, World};
use super::{MIB, MS, SECOND, function, node};
use crate::{CallId, FleetConfig, FunctionId, Mode, NodeId, Observation, Time};
use std::collections::{BTreeMap, BTreeSet};

/// What a call takes.
const CALL_NS: u64 = 10 * MS;

/// Plays arrivals, each `(when, function)`, on what restores and creates take no time; gives what each call waited, in
/// nanoseconds, by function. Refused calls are left out.
fn play(world: &mut World, arrivals: &[(u64, u32)]) -> BTreeMap<u32, Vec<u64>> {
    let mut waits: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
    let mut ends: BTreeSet<(u64, CallId)> = BTreeSet::new();
    let mut known: BTreeSet<CallId> = BTreeSet::new();
    let mut next = 0;
    loop {
        let arrival = arrivals.get(next).map(|arrival| arrival.0);
        let end = ends.first().map(|end| end.0);
        let Some(at) = arrival.into_iter().chain(end).min() else {
            return waits;
        };
        world.go_to(Time(at));
        if end == Some(at) {
            let (_, call) = ends.pop_first().unwrap();
            world.tell(Observation::Ended(call));
        } else {
            world.tell(Observation::Arrived(
                CallId(next as u64),
                FunctionId(arrivals[next].1),
            ));
            next += 1;
        }
        while let Some(made) = [world.in_phase(Phase::Starting), world.in_phase(Phase::Restoring)]
            .concat()
            .pop()
        {
            world.tell(Observation::Ready(made));
        }
        for call in world.sent() {
            if known.insert(call) {
                let (arrived, of) = arrivals[call.0 as usize];
                waits.entry(of).or_default().push(at - arrived);
                ends.insert((at + CALL_NS, call));
            }
        }
    }
}

/// Calls at even distances.
fn every(gap_ns: u64, from: u64, to: u64, of: u32) -> impl Iterator<Item = (u64, u32)> {
    (from..to).step_by(gap_ns as usize).map(move |at| (at, of))
}

fn p99(waits: &mut [u64]) -> u64 {
    waits.sort_unstable();
    waits[waits.len() * 99 / 100]
}

fn flooded(mode: Mode, tenants: [u32; 2]) -> World {
    let config = FleetConfig {
        queue_max: 200,
        ..FleetConfig::new(mode)
    };
    let mut world = World::new(config).lenient();
    world.tell(Observation::Node(NodeId(0), node(8)));
    for (id, tenant) in (0..).zip(tenants) {
        world.tell(Observation::Function(FunctionId(id), function(tenant)));
    }
    world
}

/// The bound: a flood on one function moves the 99th percentile of another by no more than a fifth.
#[test]
fn a_flood_does_not_move_anothers_p99_by_a_fifth() {
    for mode in [Mode::Dual, Mode::Sync] {
        for tenants in [[0, 1], [0, 0]] {
            let steady = every(SECOND / 40, 0, 4 * SECOND, 1);
            let flood = every(MS / 4, SECOND, 4 * SECOND, 0);
            let mut arrivals: Vec<_> = steady.chain(flood).collect();
            arrivals.sort_unstable();
            let mut world = flooded(mode, tenants);
            let mut waits = play(&mut world, &arrivals);
            let moved = p99(waits.get_mut(&1).unwrap());
            assert!(moved <= CALL_NS / 5, "{mode:?} {tenants:?}: {moved}");
            assert_eq!(waits[&1].len(), 160);
            // The flood has what is left: seven of eight instances at least, nearly all the time.
            assert!(
                waits[&0].len() > 3 * 700 * 9 / 10,
                "{mode:?} {tenants:?}: {}",
                waits[&0].len()
            );
            assert!(
                world
                    .refused
                    .iter()
                    .all(|(call, _)| arrivals[call.0 as usize].1 == 0)
            );
        }
    }
}

#[test]
fn two_floods_share_evenly_whoever_was_first() {
    let mut arrivals: Vec<_> = every(MS / 2, 0, 4 * SECOND, 0)
        .chain(every(MS / 2, SECOND, 4 * SECOND, 1))
        .collect();
    arrivals.sort_unstable();
    let mut world = flooded(Mode::Dual, [0, 1]);
    let waits = play(&mut world, &arrivals);
    let [first, second] = [0, 1].map(|of| waits[&of].len() as f64);
    // The first alone for a second: 800 calls.
    assert!(((first - 800.0) / second - 1.0).abs() < 0.1, "{first} {second}");
}

#[test]
fn large_and_small_share_by_memory() {
    let mut arrivals: Vec<_> = every(MS / 2, 0, 4 * SECOND, 0)
        .chain(every(MS / 2, 0, 4 * SECOND, 1))
        .collect();
    arrivals.sort_unstable();
    let mut world = flooded(Mode::Dual, [0, 1]);
    let small = crate::FunctionSpec {
        memory_bytes: 64 * MIB,
        ..function(0)
    };
    world.tell(Observation::Function(FunctionId(0), small));
    let waits = play(&mut world, &arrivals);
    let [small, large] = [0, 1].map(|of| waits[&of].len() as f64);
    assert!((1.5..2.7).contains(&(small / large)), "{small} {large}");
}
