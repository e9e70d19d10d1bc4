//! Tests of the places: each rule on its own, and all of them under arbitrary steps.

mod named;

use proptest::prelude::*;
use tokio::sync::oneshot;

use super::*;

/// An instance of the tests: its place, and the version that it serves.
#[derive(Debug, PartialEq, Eq)]
struct Instance {
    place: PlaceId,
    version: &'static str,
}

/// What the tests' channels carry.
type Carried = Grant<Instance>;

struct World {
    places: Places<Instance, Carried>,
    now: Instant,
}

fn id(name: &str) -> VersionId {
    VersionId(name.to_owned())
}

const MIB: u64 = 1 << 20;

impl World {
    fn new(instances_max: usize, memory_mib: u64) -> Self {
        let bounds = Bounds {
            instances_max,
            memory_bytes_max: memory_mib * MIB,
            starts_max: 4,
        };
        let mut world = Self {
            places: Places::new(bounds),
            now: Instant::now(),
        };
        for name in ["a", "b", "c"] {
            let (_, consequences) = world.places.register(id(name), 10 * MIB);
            world.carry_out(consequences);
        }
        world
    }

    /// Does what the node does with consequences; returns how many instances were dropped.
    fn carry_out(&mut self, consequences: Consequences<Instance, Carried>) -> usize {
        let mut dropped = consequences.dropped.len();
        for (sender, grant) in consequences.turns {
            if let Err(grant) = sender.send(grant) {
                match grant {
                    Grant::Use(instance, _) => dropped += self.rest(instance, 10, false),
                    Grant::Start(place) => {
                        let more = self.places.leave(place);
                        dropped += self.carry_out(more);
                    }
                }
            }
        }
        for instance in consequences.dropped {
            let more = self.places.leave(instance.place);
            dropped += self.carry_out(more);
        }
        dropped
    }

    fn claim(&mut self, version: &str) -> oneshot::Receiver<Carried> {
        match self.claim_with(version, false) {
            Claim::Queued {
                turn,
                settling: false,
            } => turn,
            other => panic!("{other:?}"),
        }
    }

    fn claim_with(&mut self, version: &str, patient: bool) -> Claim<Instance, Carried> {
        let (claim, consequences) = self.places.claim(&id(version), None, patient);
        self.carry_out(consequences);
        claim
    }

    /// Claims and starts an instance, which must be possible at once.
    fn start(&mut self, version: &'static str) -> Instance {
        let mut turn = self.claim(version);
        let place = started(&mut turn);
        let consequences = self.places.started(place);
        self.carry_out(consequences);
        Instance { place, version }
    }

    fn rest(&mut self, instance: Instance, mib: u64, armed: bool) -> usize {
        let version = id(instance.version);
        let generation = self
            .places
            .versions
            .get(&version)
            .map_or(0, |entry| entry.generation);
        let place = instance.place;
        self.now += Duration::from_secs(1);
        let rested = Rested {
            id: version,
            generation,
            place,
            instance,
            bytes: mib * MIB,
            armed,
            cold: Cold::Not,
        };
        let consequences = self.places.rest(rested, self.now);
        self.carry_out(consequences)
    }

    fn leave(&mut self, instance: Instance) {
        let consequences = self.places.leave(instance.place);
        self.carry_out(consequences);
    }
}

/// The place that a call was granted.
fn started(turn: &mut oneshot::Receiver<Carried>) -> PlaceId {
    match turn.try_recv() {
        Ok(Grant::Start(place)) => place,
        other => panic!("{other:?}"),
    }
}

fn waits(turn: &mut oneshot::Receiver<Carried>) -> bool {
    matches!(turn.try_recv(), Err(oneshot::error::TryRecvError::Empty))
}

#[test]
fn an_idle_instance_goes_first_and_the_last_used_before_others() {
    let mut world = World::new(10, 1000);
    let (first, second, armed) = (world.start("a"), world.start("a"), world.start("a"));
    let (first_place, second_place, armed_place) = (first.place, second.place, armed.place);
    world.rest(armed, 10, true);
    world.rest(first, 10, false);
    world.rest(second, 10, false);
    for (place, kind) in [
        (second_place, StartKind::Warm),
        (first_place, StartKind::Warm),
        (armed_place, StartKind::Armed),
    ] {
        match world.claim_with("a", true) {
            Claim::Use(instance, found) => assert_eq!((instance.place, found), (place, kind)),
            other => panic!("{other:?}"),
        }
    }
    started(&mut world.claim("a"));
    assert!(matches!(world.claim_with("nothing", true), Claim::Unknown));
}

#[test]
fn starts_are_bounded_and_their_queue_is_served_in_order() {
    let mut world = World::new(10, 1000);
    let mut turns: Vec<_> = (0..6).map(|_| world.claim("a")).collect();
    let places: Vec<_> = turns[..4].iter_mut().map(started).collect();
    assert!(waits(&mut turns[4]) && waits(&mut turns[5]));
    let consequences = world.places.started(places[0]);
    world.carry_out(consequences);
    started(&mut turns[4]);
    assert!(waits(&mut turns[5]));
    // A start that fails makes room as well.
    let consequences = world.places.leave(places[1]);
    world.carry_out(consequences);
    started(&mut turns[5]);
    assert_eq!(world.places.counts().busy, 5);
}

#[test]
fn a_freed_instance_goes_to_the_first_waiting_call_of_its_version() {
    let mut world = World::new(2, 1000);
    let (a, b) = (world.start("a"), world.start("b"));
    let (mut for_c, mut for_a, mut later_a) = (world.claim("c"), world.claim("a"), world.claim("a"));
    let place = a.place;
    world.rest(a, 10, false);
    assert!(matches!(for_a.try_recv(), Ok(Grant::Use(instance, StartKind::Warm)) if instance.place == place));
    assert!(waits(&mut for_c) && waits(&mut later_a));
    // No call waits for this one, so it gives way to the first in the queue.
    assert_eq!(world.rest(b, 10, false), 1);
    started(&mut for_c);
    assert!(waits(&mut later_a));
}

#[test]
fn the_longest_at_rest_gives_way_whatever_its_version() {
    let mut world = World::new(3, 1000);
    let (a, b, c) = (world.start("a"), world.start("b"), world.start("b"));
    world.rest(b, 10, false);
    world.rest(a, 10, true);
    world.rest(c, 10, false);
    started(&mut world.claim("c"));
    assert_eq!(
        world.places.counts(),
        Counts {
            armed: 1,
            idle: 1,
            frozen: 0,
            busy: 1,
            queued: 0,
            memory_bytes: 30 * MIB,
            regular: 0,
            emergency: 0,
        }
    );
    started(&mut world.claim("c"));
    assert_eq!(world.places.counts().armed, 0);
}

#[test]
fn memory_is_bounded_by_what_instances_are_seen_to_use() {
    let mut world = World::new(100, 50);
    let instances: Vec<_> = (0..4).map(|_| world.start("a")).collect();
    let mut turns: Vec<_> = (0..2).map(|_| world.claim("a")).collect();
    started(&mut turns[0]);
    assert!(waits(&mut turns[1]));
    // Each uses more than was expected: some at rest have to go, and starts expect more from now on.
    let mut dropped = 0;
    for instance in instances {
        dropped += world.rest(instance, 20, false);
    }
    assert!(dropped >= 1);
    assert!(world.places.counts().memory_bytes <= 50 * MIB);
    assert!(world.places.versions[&id("a")].expected_bytes == 20 * MIB);
}

#[test]
fn one_instance_always_has_room() {
    let mut world = World::new(100, 1);
    let mut first = world.claim("a");
    let mut second = world.claim("a");
    let place = started(&mut first);
    assert!(waits(&mut second));
    world.leave(Instance { place, version: "a" });
    started(&mut second);
}

#[test]
fn a_patient_call_waits_for_an_instance_that_has_answered() {
    let mut world = World::new(10, 1000);
    let instance = world.start("a");
    let generation = world.places.versions[&id("a")].generation;
    world.places.settle(&id("a"), generation, instance.place);
    let Claim::Queued {
        turn: mut patient,
        settling: true,
    } = world.claim_with("a", true)
    else {
        panic!()
    };
    // Only as many as there are such instances; and the impatient never.
    let Claim::Queued {
        mut turn,
        settling: false,
    } = world.claim_with("a", true)
    else {
        panic!()
    };
    started(&mut turn);
    started(&mut world.claim("a"));
    assert!(waits(&mut patient));
    let place = instance.place;
    world.rest(instance, 10, false);
    let consequences = world.places.unsettle(&id("a"), generation, (place, None));
    world.carry_out(consequences);
    assert!(matches!(patient.try_recv(), Ok(Grant::Use(_, StartKind::Warm))));
}

#[test]
fn patience_ends_with_what_was_waited_for() {
    let mut world = World::new(10, 1000);
    let generation = world.places.versions[&id("a")].generation;
    for kind in [None, Some(StartKind::Armed)] {
        let instance = world.start("a");
        world.places.settle(&id("a"), generation, instance.place);
        if kind.is_some() {
            let armed = world.start("a");
            world.rest(armed, 10, true);
        }
        // An armed one is left alone for the moment.
        let Claim::Queued {
            turn: mut patient,
            settling: true,
        } = world.claim_with("a", true)
        else {
            panic!()
        };
        assert!(waits(&mut patient));
        let place = instance.place;
        world.leave(instance);
        let consequences = world.places.unsettle(&id("a"), generation, (place, None));
        world.carry_out(consequences);
        let granted = match patient.try_recv() {
            Ok(Grant::Use(_, kind)) => Some(kind),
            Ok(Grant::Start(place)) => {
                let consequences = world.places.started(place);
                world.carry_out(consequences);
                None
            }
            Err(error) => panic!("{error}"),
        };
        assert_eq!(granted, kind);
    }
}

#[test]
fn calls_that_were_given_up_are_passed_over() {
    let mut world = World::new(1, 1000);
    let a = world.start("a");
    let given_up = world.claim("a");
    let mut waiting = world.claim("a");
    drop(given_up);
    assert_eq!(world.places.counts().queued, 1);
    world.rest(a, 10, false);
    assert!(matches!(waiting.try_recv(), Ok(Grant::Use(..))));
}

#[test]
fn a_removed_version_lets_go_of_everything() {
    let mut world = World::new(3, 1000);
    let (idle, busy, other) = (world.start("a"), world.start("a"), world.start("b"));
    let mut waiting = world.claim("b");
    let consequences = world.places.remove(&id("b"));
    world.carry_out(consequences);
    assert!(matches!(
        waiting.try_recv(),
        Err(oneshot::error::TryRecvError::Closed)
    ));
    world.rest(idle, 10, false);
    // What is busy goes when it comes to rest, also when the name is known again.
    let generation = world.places.versions[&id("a")].generation;
    let (_, consequences) = world.places.register(id("a"), MIB);
    assert_eq!(world.carry_out(consequences), 1);
    let place = busy.place;
    let rested = Rested {
        id: id("a"),
        generation,
        place,
        instance: busy,
        bytes: 0,
        armed: false,
        cold: Cold::Not,
    };
    let consequences = world.places.rest(rested, world.now);
    assert_eq!(world.carry_out(consequences), 1);
    world.leave(other);
    assert_eq!(world.places.counts(), Counts::default());
}

#[test]
fn what_rests_too_long_or_has_died_is_taken_out() {
    let mut world = World::new(10, 1000);
    let (old, dead, young) = (world.start("a"), world.start("b"), world.start("a"));
    let dead_place = dead.place;
    world.rest(old, 10, false);
    world.now += Duration::from_secs(100);
    world.rest(dead, 10, true);
    world.rest(young, 10, false);
    let gone = world
        .places
        .expire(world.now, Duration::from_secs(60), |instance| {
            instance.place == dead_place
        });
    assert_eq!(gone.len(), 2);
    assert_eq!(world.places.counts().idle, 1);
    gone.into_iter().for_each(|instance| world.leave(instance));
    assert_eq!(world.places.evict(&id("a"), true).len(), 1);
}

#[test]
fn evicted_instances_go_now_or_when_they_come_to_rest() {
    let mut world = World::new(10, 1000);
    let generation = world.places.versions[&id("a")].generation;
    let [idle, busy, other] = [world.start("a"), world.start("a"), world.start("b")];
    world.rest(idle, 10, false);
    let mut arm = || world.places.claim_armed(&id("a"), generation, 10).unwrap();
    let [armed, arming] = [arm(), arm()].map(|place| Instance { place, version: "a" });
    world.rest(armed, 10, true);
    assert_eq!(world.places.evict(&id("a"), true).len(), 1);
    // The busy one goes, what is armed or made to be stays, and serves a call as any other.
    assert_eq!(world.rest(busy, 10, false), 1);
    assert_eq!(world.rest(arming, 10, true), 0);
    assert_eq!(world.places.counts().armed, 2);
    let Claim::Use(served, StartKind::Armed) = world.claim_with("a", true) else {
        panic!("an armed instance is there");
    };
    assert_eq!(world.rest(served, 10, false), 0);
    assert_eq!(world.places.evict(&id("a"), false).len(), 2);
    assert_eq!(world.rest(other, 10, false), 0);
}

#[test]
fn armed_instances_never_push_others_out() {
    let mut world = World::new(3, 1000);
    let generation = world.places.versions[&id("a")].generation;
    let first = world.places.claim_armed(&id("a"), generation, 2).unwrap();
    world.places.claim_armed(&id("a"), generation, 2).unwrap();
    assert_eq!(world.places.claim_armed(&id("a"), generation, 2), None);
    world.places.armed(&id("a"), generation);
    let instance = Instance {
        place: first,
        version: "a",
    };
    world.rest(instance, 10, true);
    assert_eq!(world.places.claim_armed(&id("a"), generation, 2), None);
    world.places.claim_armed(&id("a"), generation, 3).unwrap();
    let generation = world.places.versions[&id("b")].generation;
    assert_eq!(
        world.places.claim_armed(&id("b"), generation, 2),
        None,
        "every place is taken"
    );
}

#[derive(Debug, Clone)]
enum Step {
    Claim(usize, bool),
    GiveUp(usize),
    Finish(usize, u64, bool),
    Die(usize),
    Expire,
    Evict(usize, bool),
    Arm(usize),
    Remove(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0_usize..3, any::<bool>()).prop_map(|(version, patient)| Step::Claim(version, patient)),
        1 => (0_usize..50).prop_map(Step::GiveUp),
        6 => (0_usize..50, 0_u64..40, any::<bool>()).prop_map(|(at, mib, armed)| Step::Finish(at, mib, armed)),
        1 => (0_usize..50).prop_map(Step::Die),
        1 => Just(Step::Expire),
        1 => (0_usize..3, any::<bool>()).prop_map(|(version, keep)| Step::Evict(version, keep)),
        2 => (0_usize..3).prop_map(Step::Arm),
        1 => (0_usize..3).prop_map(Step::Remove),
    ];
    prop::collection::vec(step, 0..120)
}

proptest! {
    /// Whatever happens: the bounds hold, nothing is counted wrong, and no call waits while it could be served.
    #[test]
    fn bounds_hold_and_no_call_is_forgotten(steps in steps()) {
        const NAMES: [&str; 3] = ["a", "b", "c"];
        let mut world = World::new(5, 100);
        let mut waiting: Vec<(&'static str, oneshot::Receiver<Carried>)> = Vec::new();
        let mut busy: Vec<Instance> = Vec::new();
        for step in steps {
            match step {
                Step::Claim(version, patient) => match world.claim_with(NAMES[version], patient) {
                    Claim::Use(instance, _) => busy.push(instance),
                    Claim::Queued { turn, settling } => {
                        prop_assert!(!settling);
                        waiting.push((NAMES[version], turn));
                    }
                    other => prop_assert!(false, "{:?}", other),
                },
                Step::GiveUp(at) if !waiting.is_empty() => drop(waiting.remove(at % waiting.len())),
                Step::Finish(at, mib, armed) if !busy.is_empty() => {
                    let instance = busy.swap_remove(at % busy.len());
                    world.rest(instance, mib, armed);
                }
                Step::Die(at) if !busy.is_empty() => {
                    let instance = busy.swap_remove(at % busy.len());
                    world.leave(instance);
                }
                Step::Expire => {
                    let gone = world.places.expire(world.now, Duration::from_secs(3), |_| false);
                    gone.into_iter().for_each(|instance| world.leave(instance));
                }
                Step::Evict(version, keep_armed) => {
                    let gone = world.places.evict(&id(NAMES[version]), keep_armed);
                    gone.into_iter().for_each(|instance| world.leave(instance));
                }
                Step::Arm(version) => {
                    let version = NAMES[version];
                    let generation = world.places.versions[&id(version)].generation;
                    if let Some(place) = world.places.claim_armed(&id(version), generation, 2) {
                        world.places.armed(&id(version), generation);
                        let consequences = world.places.started(place);
                        world.carry_out(consequences);
                        world.rest(Instance { place, version }, 10, true);
                    }
                }
                Step::Remove(version) => {
                    let consequences = world.places.remove(&id(NAMES[version]));
                    world.carry_out(consequences);
                    let (_, consequences) = world.places.register(id(NAMES[version]), 10 * MIB);
                    world.carry_out(consequences);
                }
                Step::GiveUp(_) | Step::Finish(..) | Step::Die(_) => {}
            }
            // The calls take what they were granted.
            let mut place_started = Vec::new();
            waiting.retain_mut(|(version, turn)| match turn.try_recv() {
                Ok(Grant::Use(instance, _)) => {
                    busy.push(instance);
                    false
                }
                Ok(Grant::Start(place)) => {
                    place_started.push(Instance { place, version });
                    false
                }
                Err(oneshot::error::TryRecvError::Empty) => true,
                Err(oneshot::error::TryRecvError::Closed) => false,
            });
            for instance in place_started {
                let consequences = world.places.started(instance.place);
                world.carry_out(consequences);
                busy.push(instance);
            }
            let counts = world.places.counts();
            prop_assert!(world.places.taken.len() <= 5);
            prop_assert_eq!(counts.busy, busy.len());
            prop_assert_eq!(world.places.leaving, 0);
            let sum: u64 = world.places.taken.values().map(|taken| taken.bytes).sum();
            prop_assert_eq!(sum, counts.memory_bytes);
            prop_assert_eq!(world.places.starting, 0);
            // What runs may have grown over the bound; then nothing rests.
            prop_assert!(sum <= 100 * MIB || counts.idle + counts.armed == 0 || world.places.taken.len() == 1);
            if counts.queued > 0 {
                prop_assert!(!busy.is_empty(), "someone must give something back");
                prop_assert!(counts.idle + counts.armed == 0, "{:?}", counts);
            }
        }
    }
}

#[test]
fn what_rests_is_frozen_in_time_and_taken_last() {
    let mut world = World::new(4, 1000);
    let [one, two] = [world.start("a"), world.start("a")];
    let (first, second) = (one.place, two.place);
    world.rest(one, 10, false);
    world.rest(two, 10, false);
    let after = |world: &mut World, seconds| {
        let now = world.now;
        world.places.freezable(now, Duration::from_secs(seconds), 8)
    };
    assert!(after(&mut world, 2).is_empty(), "one second ago at the earliest");
    let mut taken = after(&mut world, 1);
    let (instance, since) = taken.pop().unwrap();
    assert!(taken.is_empty() && instance.place == first);
    let generation = world.places.versions[&id("a")].generation;
    let rested = Rested {
        id: id("a"),
        generation,
        place: first,
        instance,
        bytes: 1,
        armed: false,
        cold: Cold::Frozen,
    };
    let consequences = world.places.rest(rested, since);
    assert_eq!(world.carry_out(consequences), 0);
    let counts = world.places.counts();
    assert_eq!(
        (counts.idle, counts.frozen, counts.memory_bytes),
        (2, 1, 10 * MIB + 1)
    );
    // It is not frozen twice, and the other is taken before it.
    assert!(after(&mut world, 1).is_empty());
    for place in [second, first] {
        match world.claim_with("a", true) {
            Claim::Use(instance, StartKind::Warm) => assert_eq!(instance.place, place),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(world.places.counts().frozen, 0);
}
