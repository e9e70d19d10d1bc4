//! Instances that have names: what serves a call is what the control plane says, as long as it is there.

use std::{collections::HashSet, sync::Arc, time::Duration};

use bytes::Bytes;
use gust_node::{
    InstanceClass, InstanceName, InvokeError, InvokeResult, Isolation, MemoryMode, Named, Outcome, StartKind,
    VersionId, Wanted,
};
use libtest_mimic::Failed;
use tokio::sync::mpsc;

use crate::world::{World, device, equal, invocation, until};

const LONG: Duration = Duration::from_secs(60);

const fn regular(name: u64) -> Named {
    Named {
        name: InstanceName(name),
        class: InstanceClass::Regular,
    }
}

const fn emergency(name: u64) -> Named {
    Named {
        name: InstanceName(name),
        class: InstanceClass::Emergency,
    }
}

async fn call(world: &World, id: &VersionId, payload: &str, wanted: Wanted) -> Result<Outcome, InvokeError> {
    let (log, _discarded) = mpsc::channel::<Bytes>(1);
    let mut invocation = invocation(payload, LONG, log);
    invocation.wanted = wanted;
    world.node.invoke(id, invocation).await
}

/// A world with no worker but its instances, whose version has been learned of and has none.
async fn bare(isolation: Isolation) -> Result<(Arc<World>, VersionId), Failed> {
    let world = World::new(isolation, |config| config.pool_size = 0).await?;
    let id = world.ready(device("echo")).await?;
    world.node.evict(&id, false).await;
    until(|| async { world.workers().is_empty() }).await?;
    Ok((Arc::new(world), id))
}

async fn stop(world: Arc<World>) -> Result<(), Failed> {
    world.node.stop(LONG).await;
    Ok(())
}

pub async fn calls_are_served_by_the_instance_that_is_meant(isolation: Isolation) -> Result<(), Failed> {
    let (world, id) = bare(isolation).await?;
    let mut ids = Vec::new();
    for name in [1, 2] {
        let outcome = call(&world, &id, "new", Wanted::New(emergency(name))).await?;
        equal(
            (outcome.start, outcome.kept, outcome.replaced),
            (world.cold_start(), true, false),
        )?;
        ids.push(outcome.instance_id);
    }
    world.settled().await?;
    let stats = world.node.stats();
    equal((stats.idle, stats.emergency, stats.regular), (2, 2, 0))?;
    for turn in [0, 1, 1, 0, 0] {
        world.settled().await?;
        let outcome = call(&world, &id, "again", Wanted::Resting(emergency(turn as u64 + 1))).await?;
        equal(outcome.instance_id.as_str(), ids[turn].as_str())?;
        equal((outcome.start, outcome.replaced), (StartKind::Warm, false))?;
    }
    let outcome = call(&world, &id, "any", Wanted::Any).await?;
    equal(ids.contains(&outcome.instance_id), false)?;
    world.settled().await?;
    let present = world.node.present();
    let names: HashSet<_> = present.iter().map(|present| present.named.name.0).collect();
    equal(names, HashSet::from([1, 2]))?;
    equal(
        present
            .iter()
            .all(|present| present.rests && present.version == id),
        true,
    )?;
    stop(world).await
}

pub async fn instances_are_made_ahead(isolation: Isolation) -> Result<(), Failed> {
    let (world, id) = bare(isolation).await?;
    world.node.create(&id, regular(7)).await?;
    let stats = world.node.stats();
    equal((stats.idle, stats.regular), (1, 1))?;
    let first = call(&world, &id, "first", Wanted::Resting(regular(7))).await?;
    equal((first.start, first.start_duration), (StartKind::Armed, None))?;
    world.settled().await?;
    let second = call(&world, &id, "second", Wanted::Resting(regular(7))).await?;
    equal(
        (second.start, second.instance_id),
        (StartKind::Warm, first.instance_id),
    )?;
    match world.node.create(&VersionId("none".to_owned()), regular(8)).await {
        Err(InvokeError::UnknownVersion(_)) => {}
        other => return Err(format!("{other:?}").into()),
    }
    stop(world).await
}

pub async fn instances_end_when_they_are_told_to(isolation: Isolation) -> Result<(), Failed> {
    let (world, id) = bare(isolation).await?;
    world.node.create(&id, regular(1)).await?;
    world.node.end(InstanceName(1), Duration::ZERO);
    until(|| async { world.workers().is_empty() }).await?;
    // One that serves a call does so to its end.
    let (calling, called) = (Arc::clone(&world), id.clone());
    let running =
        tokio::spawn(async move { call(&calling, &called, "wait 500", Wanted::New(emergency(2))).await });
    until(|| async { world.node.stats().emergency == 1 && world.workers().len() == 1 }).await?;
    world.node.end(InstanceName(2), Duration::ZERO);
    match running.await??.result {
        InvokeResult::Success(body) => equal(body.as_ref(), b"wait 500".as_slice())?,
        other => return Err(format!("{other:?}").into()),
    }
    until(|| async { world.workers().is_empty() }).await?;
    // Only what it did not end itself is told to the control plane.
    world.node.create(&id, regular(3)).await?;
    world.node.evict(&id, false).await;
    equal(world.node.lost().await, vec![InstanceName(3)])?;
    stop(world).await
}

pub async fn loads_are_told_while_calls_run(isolation: Isolation) -> Result<(), Failed> {
    let (world, id) = bare(isolation).await?;
    let nothing = tokio::time::timeout(Duration::from_millis(50), world.node.load(None)).await;
    equal(nothing.is_err(), true)?;
    let (calling, called) = (Arc::clone(&world), id.clone());
    let running =
        tokio::spawn(async move { call(&calling, &called, "wait 3000", Wanted::New(emergency(1))).await });
    let first = tokio::time::timeout(LONG, world.node.load(None)).await?;
    equal((first.calls, first.cpus > 0), (1, true))?;
    // Without news it is told again.
    let again = tokio::time::timeout(LONG, world.node.load(Some(first))).await?;
    equal((again.calls, again.cpus), (1, first.cpus))?;
    running.await??;
    stop(world).await
}

pub async fn lost_instances_are_told_and_replaced(isolation: Isolation) -> Result<(), Failed> {
    let (world, id) = bare(isolation).await?;
    let first = call(&world, &id, "1", Wanted::New(emergency(1))).await?;
    world.settled().await?;
    world.kill_workers()?;
    equal(
        tokio::time::timeout(LONG, world.node.lost()).await?,
        vec![InstanceName(1)],
    )?;
    let second = call(&world, &id, "2", Wanted::Resting(emergency(1))).await?;
    equal(
        (second.start, second.replaced, second.kept),
        (world.cold_start(), true, true),
    )?;
    equal(second.instance_id == first.instance_id, false)?;
    world.settled().await?;
    let exited = call(&world, &id, "exit 3", Wanted::Resting(emergency(1))).await?;
    equal((exited.kept, exited.replaced), (false, false))?;
    equal(matches!(exited.result, InvokeResult::Exited(_)), true)?;
    equal(
        tokio::time::timeout(LONG, world.node.lost()).await?,
        vec![InstanceName(1)],
    )?;
    stop(world).await
}

pub async fn only_the_nameless_go_for_their_age(isolation: Isolation) -> Result<(), Failed> {
    let world = World::new(isolation, |config| {
        config.pool_size = 0;
        config.idle_timeout = Duration::from_millis(500);
    })
    .await?;
    let id = world.ready(device("echo")).await?;
    until(|| async { world.workers().is_empty() }).await?;
    call(&world, &id, "1", Wanted::New(emergency(1))).await?;
    call(&world, &id, "any", Wanted::Any).await?;
    world.settled().await?;
    until(|| async { world.node.stats().idle == 1 }).await?;
    equal(world.node.present().len(), 1)?;
    let outcome = call(&world, &id, "2", Wanted::Resting(emergency(1))).await?;
    equal((outcome.start, outcome.replaced), (StartKind::Warm, false))?;
    world.stop().await;
    Ok(())
}

/// What the control plane ends goes back to its snapshot, and is there for whoever comes: nothing of its calls is left in
/// it, it has another identity and other randomness, and no worker was made for it.
pub async fn ended_instances_are_armed_again(isolation: Isolation) -> Result<(), Failed> {
    let world = World::new(isolation, |config| config.armed_per_version = 1).await?;
    let id = world.ready(device("echo")).await?;
    until(|| async { world.node.stats().armed == 1 && world.node.stats().busy == 0 }).await?;
    world.node.evict(&id, true).await;
    let started = world.node.stats().instances_started;
    let body = |outcome: &Outcome| match &outcome.result {
        InvokeResult::Success(body) => Ok(String::from_utf8_lossy(body).into_owned()),
        other => Err(Failed::from(format!("{other:?}"))),
    };
    let mut seen = HashSet::new();
    for name in 1..=20 {
        let named = emergency(name);
        let first = call(&world, &id, "count", Wanted::New(named)).await?;
        equal((first.start, body(&first)?), (StartKind::Armed, "1".to_owned()))?;
        equal(seen.insert(first.instance_id.clone()), true)?;
        world.settled().await?;
        let second = call(&world, &id, "count", Wanted::Resting(named)).await?;
        equal(
            (body(&second)?, second.instance_id),
            ("2".to_owned(), first.instance_id),
        )?;
        world.settled().await?;
        let random = call(&world, &id, "random", Wanted::Resting(named)).await?;
        equal(seen.insert(body(&random)?), true)?;
        world.settled().await?;
        let litter = call(&world, &id, "litter", Wanted::Resting(named)).await?;
        equal(body(&litter)?, "clean".to_owned())?;
        // Told while it settles, or when it rests already.
        if name % 2 == 0 {
            world.settled().await?;
        }
        world.node.end(named.name, LONG);
        until(|| async {
            let stats = world.node.stats();
            stats.armed >= 1 && stats.busy == 0 && stats.emergency == 0
        })
        .await?;
    }
    equal(world.node.stats().instances_started, started)?;
    // One that is not to wait is gone.
    let armed = world.node.stats().armed;
    call(&world, &id, "count", Wanted::New(emergency(100))).await?;
    world.settled().await?;
    world.node.end(InstanceName(100), Duration::ZERO);
    until(|| async {
        let stats = world.node.stats();
        stats.armed == armed - 1 && stats.busy == 0 && stats.emergency == 0
    })
    .await?;
    world.stop().await;
    Ok(())
}

/// Where memory is given back after every call, an instance of a micro-VM is the same one afterwards; a process ends.
pub async fn fresh_instances_keep_their_names(isolation: Isolation) -> Result<(), Failed> {
    let world = World::new(isolation, |config| config.pool_size = 0).await?;
    let mut spec = device("echo");
    spec.memory_mode = MemoryMode::Fresh;
    let id = world.deploy(spec).await?;
    world.node.create(&id, regular(1)).await?;
    // The first runs are learned from, and end with that.
    for _ in 0..3 {
        call(&world, &id, "learn", Wanted::Resting(regular(1))).await?;
        world.settled().await?;
    }
    let first = call(&world, &id, "1", Wanted::Resting(regular(1))).await?;
    world.settled().await?;
    let second = call(&world, &id, "2", Wanted::Resting(regular(1))).await?;
    match isolation {
        Isolation::Kvm => equal(
            (second.start, second.instance_id),
            (StartKind::Armed, first.instance_id),
        )?,
        Isolation::Process => equal((second.start, second.replaced), (StartKind::Booted, true))?,
    }
    world.stop().await;
    Ok(())
}
