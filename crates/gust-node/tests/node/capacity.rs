//! Many calls, few places; workers that are lost; the end of a node.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use gust_node::{InvokeError, InvokeResult, Isolation, NodeError, StartKind};
use libtest_mimic::Failed;

use crate::world::{Called, World, device, equal, has_ended, kill, response, ticks, until};

/// A call that goes on in the background.
fn calling(
    world: &Arc<World>,
    id: &gust_node::VersionId,
    payload: &str,
    timeout: Duration,
) -> tokio::task::JoinHandle<Result<Called, InvokeError>> {
    let (world, id, payload) = (Arc::clone(world), id.clone(), payload.to_owned());
    tokio::spawn(async move { world.call_within(&id, &payload, timeout).await })
}

const LONG: Duration = Duration::from_secs(60);

/// A node that prepares no workers ahead, so that those it has are instances.
async fn without_pool(isolation: Isolation) -> Result<Arc<World>, Failed> {
    Ok(Arc::new(
        World::new(isolation, |config| config.pool_size = 0).await?,
    ))
}

pub async fn a_worker_that_is_killed_during_a_call(isolation: Isolation) -> Result<(), Failed> {
    let world = without_pool(isolation).await?;
    let id = world.ready(device("echo")).await?;
    world.call(&id, "first").await?;
    world.settled().await?;
    // The instance rests, so what it does from now on it does for its event: one that has not read it is not lost with it.
    let spent = || world.workers().into_iter().map(ticks).sum::<u64>();
    let before = spent();
    let call = calling(&world, &id, "spin", LONG);
    until(|| async { spent() >= before + 10 }).await?;
    world.kill_workers()?;
    match call.await? {
        Err(InvokeError::WorkerLost { instance_id }) => equal(instance_id.len(), 32)?,
        other => return Err(format!("{other:?}").into()),
    }
    until(|| async { world.workers().is_empty() }).await?;
    equal(response(&world.call(&id, "next").await?)?, "next".to_owned())?;
    equal(world.workers().is_empty(), false)
}

pub async fn an_instance_that_is_killed_while_it_rests(isolation: Isolation) -> Result<(), Failed> {
    let world = without_pool(isolation).await?;
    let id = world.ready(device("echo")).await?;
    for _ in 0..3 {
        world.kill_workers()?;
        until(|| async { world.workers().is_empty() }).await?;
        let called = world.call(&id, "next").await?;
        equal(
            (response(&called)?, called.outcome.start),
            ("next".to_owned(), world.cold_start()),
        )?;
        world.settled().await?;
    }
    world.node.stop(LONG).await;
    Ok(())
}

pub async fn a_worker_that_is_killed_before_it_is_prepared(isolation: Isolation) -> Result<(), Failed> {
    let world = without_pool(isolation).await?;
    let id = world.ready(device("echo")).await?;
    world.kill_workers()?;
    until(|| async { world.workers().is_empty() }).await?;
    let (killing, is_over) = (Arc::clone(&world), Arc::new(AtomicBool::new(false)));
    let stop = Arc::clone(&is_over);
    // It takes milliseconds to be prepared, and is killed as soon as it can be seen.
    let killer = std::thread::spawn(move || {
        while !stop.load(Ordering::Acquire) {
            if let Some(worker) = killing.workers().first() {
                return kill(*worker).map(|()| true);
            }
        }
        Ok(false)
    });
    let called = world.call(&id, "next").await;
    is_over.store(true, Ordering::Release);
    let was_killed = killer.join().map_err(|_| "the killer failed")??;
    equal(was_killed, true)?;
    match called {
        // Where the killer was late, and its event had been read.
        Err(InvokeError::WorkerLost { .. }) => {}
        called => equal(response(&called?)?, "next".to_owned())?,
    }
    world.node.stop(LONG).await;
    Ok(())
}

pub async fn a_zygote_that_is_killed(isolation: Isolation) -> Result<(), Failed> {
    let world = World::new(isolation, |_| {}).await?;
    let id = world.ready(device("echo")).await?;
    let zygote = world.zygote().ok_or("there is no zygote")?;
    let workers = world.workers();
    kill(zygote)?;
    // They end with it.
    until(|| async { workers.iter().all(|worker| has_ended(*worker)) }).await?;
    equal(response(&world.call(&id, "next").await?)?, "next".to_owned())?;
    equal(world.zygote().is_some_and(|new| new != zygote), true)?;
    world.node.stop(LONG).await;
    equal((world.zygote(), world.workers().len()), (None, 0))
}

pub async fn the_pool_refills(isolation: Isolation) -> Result<(), Failed> {
    let world = World::new(isolation, |config| config.pool_size = 2).await?;
    let full = || until(|| async { world.node.stats().pooled == 2 });
    full().await?;
    let id = world.ready(device("echo")).await?;
    full().await?;
    equal(response(&world.call(&id, "1").await?)?, "1".to_owned())?;
    // Those that are lost are replaced as well.
    world.node.evict(&id, false).await;
    let killed = world.kill_workers()?;
    until(|| async { killed.iter().all(|worker| has_ended(*worker)) }).await?;
    full().await?;
    equal(response(&world.call(&id, "2").await?)?, "2".to_owned())?;
    world.stop().await;
    Ok(())
}

pub async fn places_are_bounded_and_calls_wait(isolation: Isolation) -> Result<(), Failed> {
    let world = Arc::new(World::new(isolation, |config| config.instances_max = 2).await?);
    let id = world.ready(device("echo")).await?;
    let before = world.node.stats().instances_started;
    let calls: Vec<_> = (0..20)
        .map(|n| calling(&world, &id, &n.to_string(), LONG))
        .collect();
    for (n, call) in calls.into_iter().enumerate() {
        equal(response(&call.await??)?, n.to_string())?;
    }
    equal(world.node.stats().instances_started - before <= 1, true)?;
    world.node.stop(LONG).await;
    Ok(())
}

/// More calls at once than the memory is for: most wait, and all are answered.
pub async fn memory_is_bounded(isolation: Isolation) -> Result<(), Failed> {
    let world = Arc::new(
        World::new(isolation, |config| {
            // One that is to start is expected to use 48 MiB, whatever those at rest have been seen to use.
            config.memory_budget_bytes = 60 << 20;
            config.instances_max = 50;
        })
        .await?,
    );
    let id = world.deploy(device("echo")).await?;
    let calls: Vec<_> = (0..30)
        .map(|n| calling(&world, &id, &n.to_string(), LONG))
        .collect();
    for (n, call) in calls.into_iter().enumerate() {
        let stats = world.node.stats();
        equal(stats.busy + stats.idle <= 8, true).map_err(|_| format!("{stats:?}"))?;
        equal(response(&call.await??)?, n.to_string())?;
    }
    world.node.stop(LONG).await;
    Ok(())
}

pub async fn calls_wait_so_long_and_no_longer(isolation: Isolation) -> Result<(), Failed> {
    let world = Arc::new(
        World::new(isolation, |config| {
            config.instances_max = 1;
            config.queue_timeout = Duration::from_secs(1);
        })
        .await?,
    );
    let id = world.ready(device("echo")).await?;
    let spinning = calling(&world, &id, "spin", Duration::from_secs(4));
    until(|| async { world.node.stats().busy == 1 }).await?;
    equal(
        matches!(world.call(&id, "1").await, Err(InvokeError::NoCapacity { .. })),
        true,
    )?;
    equal(
        matches!(spinning.await??.outcome.result, InvokeResult::TimedOut),
        true,
    )?;
    equal(response(&world.call(&id, "2").await?)?, "2".to_owned())?;
    world.node.stop(LONG).await;
    Ok(())
}

pub async fn other_versions_give_way(isolation: Isolation) -> Result<(), Failed> {
    let world = World::new(isolation, |config| config.instances_max = 2).await?;
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(world.ready(device("echo")).await?);
    }
    equal(world.node.stats().idle, 2)?;
    for id in &ids {
        equal(response(&world.call(id, "1").await?)?, "1".to_owned())?;
    }
    until(|| async { world.node.stats().idle == 2 }).await?;
    world.node.remove(&ids[3]).await;
    equal(
        matches!(
            world.call(&ids[3], "1").await,
            Err(InvokeError::UnknownVersion(_))
        ),
        true,
    )?;
    equal(world.node.stats().idle, 1)?;
    world.stop().await;
    Ok(())
}

pub async fn idle_instances_go(isolation: Isolation) -> Result<(), Failed> {
    let world = World::new(isolation, |config| {
        config.pool_size = 0;
        config.idle_timeout = Duration::from_secs(2);
    })
    .await?;
    let id = world.ready(device("echo")).await?;
    until(|| async { world.node.stats().idle == 0 && world.workers().is_empty() }).await?;
    equal(world.call(&id, "1").await?.outcome.start, world.cold_start())?;
    world.stop().await;
    Ok(())
}

pub async fn evicted_instances_end(isolation: Isolation) -> Result<(), Failed> {
    let world = without_pool(isolation).await?;
    let id = world.ready(device("echo")).await?;
    for _ in 0..3 {
        equal(world.node.stats().idle, 1)?;
        // One that has been let go may still be on its way out.
        until(|| async { world.workers().len() == 1 }).await?;
        world.node.evict(&id, false).await;
        equal(world.node.stats().idle, 0)?;
        until(|| async { world.workers().is_empty() }).await?;
        equal(world.call(&id, "1").await?.outcome.start, world.cold_start())?;
        world.settled().await?;
    }
    // One that serves a call when it is told to go ends with its answer; the next call finds none.
    let call = calling(&world, &id, "wait 500", LONG);
    until(|| async { world.node.stats().busy == 1 }).await?;
    world.node.evict(&id, false).await;
    equal(response(&call.await??)?, "wait 500".to_owned())?;
    until(|| async { world.workers().is_empty() }).await?;
    equal(world.call(&id, "1").await?.outcome.start, world.cold_start())?;
    world.node.stop(LONG).await;
    Ok(())
}

pub async fn a_version_that_is_removed_while_it_runs(isolation: Isolation) -> Result<(), Failed> {
    let world = without_pool(isolation).await?;
    let spec = device("echo");
    let id = world.ready(spec.clone()).await?;
    let call = calling(&world, &id, "wait 500", LONG);
    until(|| async { world.node.stats().busy == 1 }).await?;
    world.node.remove(&id).await;
    equal(
        matches!(world.call(&id, "1").await, Err(InvokeError::UnknownVersion(_))),
        true,
    )?;
    equal(response(&call.await??)?, "wait 500".to_owned())?;
    // What served it belongs to no version any more.
    until(|| async { world.workers().is_empty() && world.node.stats().busy == 0 }).await?;
    let again = world.ready(spec).await?;
    equal(response(&world.call(&again, "2").await?)?, "2".to_owned())?;
    world.node.stop(LONG).await;
    Ok(())
}

pub async fn a_call_that_is_given_up_runs_to_its_end(isolation: Isolation) -> Result<(), Failed> {
    let world = Arc::new(World::new(isolation, |_| {}).await?);
    let id = world.ready(device("echo")).await?;
    let call = calling(&world, &id, "wait 1000", LONG);
    until(|| async { world.node.stats().busy == 1 }).await?;
    call.abort();
    equal(call.await.is_err_and(|error| error.is_cancelled()), true)?;
    equal(world.node.stats().busy, 1)?;
    until(|| async { world.node.stats().idle == 1 }).await?;
    equal(world.call(&id, "1").await?.outcome.start, StartKind::Warm)?;
    world.node.stop(LONG).await;
    Ok(())
}

pub async fn a_stop_lets_calls_finish(isolation: Isolation) -> Result<(), Failed> {
    let world = Arc::new(World::new(isolation, |_| {}).await?);
    let id = world.ready(device("echo")).await?;
    let call = calling(&world, &id, "wait 500", LONG);
    until(|| async { world.node.stats().busy == 1 }).await?;
    world.node.stop(LONG).await;
    equal(response(&call.await??)?, "wait 500".to_owned())?;
    equal((world.zygote(), world.workers().len()), (None, 0))?;
    equal(
        matches!(world.call(&id, "1").await, Err(InvokeError::Stopping)),
        true,
    )?;
    let deployed = world.node.deploy(device("echo")).await;
    equal(matches!(deployed, Err(NodeError::Stopping)), true)
}

pub async fn a_stop_ends_what_takes_too_long(isolation: Isolation) -> Result<(), Failed> {
    let world = Arc::new(World::new(isolation, |_| {}).await?);
    let id = world.ready(device("echo")).await?;
    let call = calling(&world, &id, "spin", LONG);
    until(|| async { world.node.stats().busy == 1 }).await?;
    world.node.stop(Duration::from_millis(50)).await;
    equal(matches!(call.await?, Err(InvokeError::Stopping)), true)?;
    equal((world.zygote(), world.workers().len()), (None, 0))
}
