//! Places whose instances have names.

use super::*;

/// How long one that has been ended is to wait armed.
const ARMED_FOR: Duration = Duration::from_secs(40);

const fn emergency(name: u64) -> Named {
    Named {
        name: InstanceName(name),
        class: InstanceClass::Emergency,
    }
}

impl World {
    fn claim_named(&mut self, version: &str, name: u64, patient: bool) -> Claim<Instance, Carried> {
        let (claim, consequences) = self.places.claim(&id(version), Some(emergency(name)), patient);
        self.carry_out(consequences);
        claim
    }

    fn claim_ahead(&mut self, version: &str, name: u64) -> oneshot::Receiver<Carried> {
        let named = Named {
            name: InstanceName(name),
            class: InstanceClass::Regular,
        };
        let (claim, consequences) = self.places.claim_ahead(&id(version), named);
        self.carry_out(consequences);
        match claim {
            Claim::Queued { turn, .. } => turn,
            other => panic!("{other:?}"),
        }
    }

    fn start_named(&mut self, version: &'static str, name: u64) -> Instance {
        let Claim::Queued {
            mut turn,
            settling: false,
        } = self.claim_named(version, name, false)
        else {
            panic!("something rests")
        };
        let place = started(&mut turn);
        let consequences = self.places.started(place);
        self.carry_out(consequences);
        Instance { place, version }
    }

    fn used(&mut self, version: &str, name: u64) -> (Instance, StartKind) {
        match self.claim_named(version, name, true) {
            Claim::Use(instance, kind) => (instance, kind),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn what_is_made_ahead_of_calls_holds_none_of_them_up() {
    let mut world = World::new(12, 1000);
    // As many as may be started at a time, and more; none of them gets on.
    let mut ahead: Vec<_> = (0..6).map(|name| world.claim_ahead("a", name)).collect();
    let places: Vec<_> = ahead.iter_mut().map(started).collect();
    let mut calls: Vec<_> = (0..5).map(|_| world.claim("b")).collect();
    let first = started(&mut calls[0]);
    for turn in &mut calls[1..4] {
        started(turn);
    }
    assert!(waits(&mut calls[4]), "calls have no more turns than before");
    // It needs no turn of theirs, and gives back none.
    started(&mut world.claim_ahead("a", 6));
    let consequences = world.places.started(places[0]);
    world.carry_out(consequences);
    assert!(waits(&mut calls[4]));
    let consequences = world.places.started(first);
    world.carry_out(consequences);
    started(&mut calls[4]);
}

#[test]
fn calls_get_room_before_what_is_made_ahead_of_them() {
    let mut world = World::new(2, 1000);
    let (one, two) = (world.start("a"), world.start("a"));
    let (mut ahead, mut call) = (world.claim_ahead("b", 1), world.claim("b"));
    assert!(waits(&mut ahead) && waits(&mut call));
    world.leave(one);
    started(&mut call);
    assert!(waits(&mut ahead));
    world.leave(two);
    started(&mut ahead);
    // The same for an instance that comes to rest.
    let mut world = World::new(1, 1000);
    let one = world.start("a");
    let (mut ahead, mut call) = (world.claim_ahead("a", 1), world.claim("a"));
    world.rest(one, 10, false);
    assert!(matches!(call.try_recv(), Ok(Grant::Use(..))));
    assert!(waits(&mut ahead));
}

#[test]
fn names_lead_to_their_instances_and_others_do_not_get_them() {
    let mut world = World::new(10, 1000);
    let (one, two) = (world.start_named("a", 1), world.start_named("a", 2));
    let (first, second) = (one.place, two.place);
    world.rest(one, 10, false);
    world.rest(two, 10, false);
    started(&mut world.claim("a"));
    let (found, kind) = world.used("a", 1);
    assert_eq!((found.place, kind), (first, StartKind::Warm));
    assert_eq!(world.used("a", 2).0.place, second);
    assert_eq!(world.places.counts().emergency, 2);
}

#[test]
fn a_new_name_is_given_to_what_has_none() {
    let mut world = World::new(10, 1000);
    let (idle, armed) = (world.start("a"), world.start("a"));
    let (idle_place, armed_place) = (idle.place, armed.place);
    world.rest(idle, 10, false);
    world.rest(armed, 10, true);
    let (instance, kind) = world.used("a", 1);
    assert_eq!((instance.place, kind), (idle_place, StartKind::Warm));
    let (instance, kind) = world.used("a", 2);
    assert_eq!((instance.place, kind), (armed_place, StartKind::Armed));
    // As its snapshot left it, but its own: it is not for whoever comes.
    world.rest(instance, 10, true);
    assert_eq!((world.places.counts().armed, world.places.counts().idle), (0, 1));
    started(&mut world.claim("a"));
    assert_eq!(world.used("a", 2).1, StartKind::Armed);
}

#[test]
fn a_named_call_waits_for_its_own_instance_that_has_answered() {
    let mut world = World::new(10, 1000);
    let generation = world.places.versions[&id("a")].generation;
    for comes_to_rest in [true, false] {
        let (one, other) = (world.start_named("a", 1), world.start("a"));
        let (place, other_place) = (one.place, other.place);
        let name = world.places.settle(&id("a"), generation, place);
        assert_eq!(name, Some(InstanceName(1)));
        let Claim::Queued {
            mut turn,
            settling: true,
        } = world.claim_named("a", 1, true)
        else {
            panic!()
        };
        // Nothing else will do while it is waited for.
        world.rest(other, 10, false);
        assert!(waits(&mut turn));
        if comes_to_rest {
            world.rest(one, 10, false);
        } else {
            world.leave(one);
        }
        let consequences = world.places.unsettle(&id("a"), generation, (place, name));
        world.carry_out(consequences);
        let expected = if comes_to_rest { place } else { other_place };
        match turn.try_recv() {
            Ok(Grant::Use(instance, StartKind::Warm)) => {
                assert_eq!(instance.place, expected);
                world.leave(instance);
            }
            other => panic!("{other:?}"),
        }
        let gone = world.places.evict(&id("a"), false);
        gone.into_iter().for_each(|instance| world.leave(instance));
        drop(world.places.take_lost());
    }
}

#[test]
fn a_name_that_is_given_anew_is_no_more_the_old_ones() {
    let mut world = World::new(10, 1000);
    let old = world.start_named("a", 1);
    let new = world.start_named("a", 1);
    let place = new.place;
    // The old one goes when it comes to rest, and nothing is said of it.
    assert_eq!(world.rest(old, 10, false), 1);
    assert!(!world.places.has_lost());
    world.rest(new, 10, false);
    assert_eq!(world.used("a", 1).0.place, place);
}

#[test]
fn lost_names_are_told_once_and_ended_ones_never() {
    let mut world = World::new(2, 1000);
    let (one, two) = (world.start_named("a", 1), world.start_named("a", 2));
    world.rest(one, 10, false);
    let gone = world.places.end(InstanceName(1), ARMED_FOR).unwrap();
    world.leave(gone);
    assert_eq!(world.places.end(InstanceName(2), ARMED_FOR), None);
    assert_eq!(world.rest(two, 10, false), 1);
    assert!(!world.places.has_lost());
    let three = world.start_named("a", 3);
    world.rest(three, 10, false);
    let four = world.start_named("b", 4);
    started(&mut world.claim("c"));
    assert_eq!(world.places.take_lost(), [InstanceName(3)], "it gave way");
    world.leave(four);
    assert_eq!(world.places.take_lost(), [InstanceName(4)]);
    assert!(world.places.take_lost().is_empty());
}

#[test]
fn one_that_has_ended_is_armed_for_as_long_as_it_is_to_be() {
    let mut world = World::new(10, 1000);
    let retire = |world: &mut World, instance: &Instance, wanted| {
        let generation = world.places.versions[&id("a")].generation;
        world.places.retire(&id("a"), generation, instance.place, wanted)
    };
    let ended = |world: &mut World, name, armed_for| {
        let instance = world.start_named("a", name);
        world.rest(instance, 10, false);
        world.places.end(InstanceName(name), armed_for).unwrap()
    };
    let none = ended(&mut world, 1, Duration::ZERO);
    assert!(!retire(&mut world, &none, 1));
    world.leave(none);
    let one = ended(&mut world, 2, ARMED_FOR);
    assert!(!retire(&mut world, &one, 0));
    assert!(retire(&mut world, &one, 1));
    let generation = world.places.versions[&id("a")].generation;
    world.places.armed(&id("a"), generation);
    let place = one.place;
    world.rest(one, 10, true);
    // Its own time counts, whatever the node's is.
    let early = world.now + ARMED_FOR - Duration::from_secs(1);
    assert!(world.places.expire(early, Duration::ZERO, |_| false).is_empty());
    let gone = world
        .places
        .expire(world.now + ARMED_FOR, Duration::MAX, |_| false);
    assert_eq!(
        gone.iter().map(|instance| instance.place).collect::<Vec<_>>(),
        [place]
    );
}

#[test]
fn age_is_no_reason_for_one_that_has_a_name() {
    let mut world = World::new(10, 1000);
    let (named, nameless) = (world.start_named("a", 1), world.start("a"));
    let place = nameless.place;
    world.rest(named, 10, false);
    world.rest(nameless, 10, false);
    let gone = world.places.expire(world.now, Duration::ZERO, |_| false);
    assert_eq!(
        gone.iter().map(|instance| instance.place).collect::<Vec<_>>(),
        [place]
    );
    let gone = world.places.expire(world.now, Duration::ZERO, |_| true);
    assert_eq!(gone.len(), 1);
}

#[derive(Debug, Clone)]
enum Step {
    Claim(usize, u64, bool),
    Finish(usize, bool),
    Settle(usize),
    Die(usize),
    End(u64),
    Evict(usize),
    Arm(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0_usize..2, 0_u64..6, any::<bool>()).prop_map(|(version, name, patient)| Step::Claim(version, name, patient)),
        5 => (0_usize..50, any::<bool>()).prop_map(|(at, armed)| Step::Finish(at, armed)),
        3 => (0_usize..50).prop_map(Step::Settle),
        1 => (0_usize..50).prop_map(Step::Die),
        2 => (0_u64..6).prop_map(Step::End),
        1 => (0_usize..2).prop_map(Step::Evict),
        1 => (0_usize..2).prop_map(Step::Arm),
    ];
    prop::collection::vec(step, 0..120)
}

proptest! {
    /// Whatever happens: a name has one place at most and a place one name, what is told as lost is no more there, and
    /// nobody waits for an instance that will not come.
    #[test]
    fn names_and_places_agree(steps in steps()) {
        const NAMES: [&str; 2] = ["a", "b"];
        let mut world = World::new(4, 1000);
        let mut waiting: Vec<(&'static str, oneshot::Receiver<Carried>)> = Vec::new();
        let mut busy: Vec<Instance> = Vec::new();
        let mut settling: Vec<(Instance, Option<InstanceName>)> = Vec::new();
        for step in steps {
            match step {
                Step::Claim(version, name, patient) => {
                    // A version has names of its own, as the control plane gives them.
                    let name = name * 2 + version as u64;
                    match world.claim_named(NAMES[version], name, patient) {
                        Claim::Use(instance, _) => busy.push(instance),
                        Claim::Queued { turn, .. } => waiting.push((NAMES[version], turn)),
                        other => prop_assert!(false, "{:?}", other),
                    }
                }
                Step::Settle(at) if !busy.is_empty() => {
                    let instance = busy.swap_remove(at % busy.len());
                    let version = id(instance.version);
                    let generation = world.places.versions[&version].generation;
                    let name = world.places.settle(&version, generation, instance.place);
                    settling.push((instance, name));
                }
                Step::Finish(at, armed) if !settling.is_empty() => {
                    let (instance, name) = settling.swap_remove(at % settling.len());
                    let (version, place) = (id(instance.version), instance.place);
                    let generation = world.places.versions[&version].generation;
                    world.rest(instance, 10, armed);
                    let consequences = world.places.unsettle(&version, generation, (place, name));
                    world.carry_out(consequences);
                }
                Step::Die(at) if !busy.is_empty() => {
                    let instance = busy.swap_remove(at % busy.len());
                    world.leave(instance);
                }
                Step::End(name) => {
                    let gone = world.places.end(InstanceName(name), ARMED_FOR);
                    gone.into_iter().for_each(|instance| world.leave(instance));
                }
                Step::Evict(version) => {
                    let gone = world.places.evict(&id(NAMES[version]), false);
                    gone.into_iter().for_each(|instance| world.leave(instance));
                }
                Step::Arm(version) => {
                    let version = NAMES[version];
                    let generation = world.places.versions[&id(version)].generation;
                    if let Some(place) = world.places.claim_armed(&id(version), generation, 1) {
                        world.places.armed(&id(version), generation);
                        world.rest(Instance { place, version }, 10, true);
                    }
                }
                Step::Settle(_) | Step::Finish(..) | Step::Die(_) => {}
            }
            // Taking what was granted may lead to further grants.
            loop {
                let mut granted = Vec::new();
                waiting.retain_mut(|(version, turn)| match turn.try_recv() {
                    Ok(grant) => {
                        granted.push((*version, grant));
                        false
                    }
                    Err(oneshot::error::TryRecvError::Empty) => true,
                    Err(oneshot::error::TryRecvError::Closed) => false,
                });
                if granted.is_empty() {
                    break;
                }
                for (version, grant) in granted {
                    match grant {
                        Grant::Use(instance, _) => busy.push(instance),
                        Grant::Start(place) => {
                            let consequences = world.places.started(place);
                            world.carry_out(consequences);
                            busy.push(Instance { place, version });
                        }
                    }
                }
            }
            for (name, (place, _)) in &world.places.names {
                let named = world.places.taken[place].named;
                prop_assert_eq!(named.map(|named| named.name), Some(*name));
            }
            let named = world.places.taken.values().filter(|taken| taken.named.is_some()).count();
            prop_assert_eq!(named, world.places.names.len());
            for lost in world.places.take_lost() {
                prop_assert_eq!(world.places.place_of(lost), None);
            }
            let counts = world.places.counts();
            prop_assert_eq!(counts.busy, busy.len() + settling.len());
            prop_assert!(counts.queued == 0 || counts.busy > 0, "{:?}", counts);
        }
    }
}
