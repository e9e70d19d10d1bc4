//! The node with isolation `process`: its own API, the real zygote, and guests that do what their events say. This
//! program is the test, the zygote (`zygote` as its argument) and the guest (`guest`).

#[path = "../../../gust-worker/tests/worker/guest.rs"]
mod guest;
mod world;

use std::{process::ExitCode, sync::Arc, time::Duration};

use gust_node::{Failure, InvokeError, InvokeResult, MemoryMode, StartKind, VersionSpec};
use gust_worker::protocol::{GuestExit, LOG_BYTES_MAX};
use libtest_mimic::{Arguments, Failed, Trial};
use tokio::sync::mpsc;
use world::{Called, IMAGES, World, equal, guests, invocation, kill, parent, response, spec, until};

/// Makes a trial of an async test.
macro_rules! trials {
    ($($test:ident),* $(,)?) => {
        vec![$(Trial::test(stringify!($test), || run($test()))),*]
    };
}

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("zygote") => return gust_worker::zygote::main(),
        Some("guest") => return guest::main(),
        _ => {}
    }
    let arguments = Arguments::from_args();
    let trials = trials![
        calls_are_served_by_the_instance_that_is_there,
        the_runtime_api_is_served,
        a_function_that_cannot_be_initialised,
        a_program_that_is_missing,
        guests_end_and_the_next_call_works,
        a_guest_that_runs_too_long,
        an_initialisation_that_takes_too_long,
        a_guest_that_wants_more_memory_than_it_may_have,
        log_arrives_and_is_bounded,
        large_responses_are_refused,
        guests_that_fork_and_open_files,
        a_worker_that_is_killed_during_a_call,
        an_instance_that_is_killed_while_it_rests,
        a_zygote_that_is_killed,
        places_are_bounded_and_calls_wait,
        calls_wait_so_long_and_no_longer,
        other_versions_give_way,
        fresh_memory_for_each_call,
        idle_instances_go,
        a_call_that_is_given_up_runs_to_its_end,
        a_stop_lets_calls_finish,
        a_stop_ends_what_takes_too_long,
        layers_and_environment,
        deployments_are_remembered_by_name,
    ];
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn run(test: impl Future<Output = Result<(), Failed>>) -> Result<(), Failed> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(test)
}

fn device(handler: &str) -> VersionSpec {
    spec(&IMAGES.device, handler)
}

/// A version whose guests can be found by this entry of their environment.
fn findable(handler: &str) -> (VersionSpec, String) {
    let mut spec = spec(&IMAGES.api, handler);
    let entry = format!("FIND={}-{}", std::process::id(), spec.id);
    spec.environment
        .insert("FIND".to_owned(), entry["FIND=".len()..].to_owned());
    (spec, entry)
}

/// Waits until an instance is ready for the next call, so that which one serves it is certain.
async fn settled(world: &World) -> Result<(), Failed> {
    until(|| async { world.node.stats().busy == 0 }).await
}

fn exited(called: Called) -> Result<GuestExit, Failed> {
    match called.outcome.result {
        InvokeResult::Exited(exit) => Ok(exit),
        other => Err(format!("{other:?}").into()),
    }
}

async fn calls_are_served_by_the_instance_that_is_there() -> Result<(), Failed> {
    let world = World::new(|_| {}).await?;
    let deployed = world.node.deploy(device("echo")).await?;
    equal((deployed.snapshot_bytes, deployed.log.len()), (0, 0))?;
    equal(deployed.init > Duration::ZERO && deployed.memory_bytes > 0, true)?;

    let id = world.deploy(device("echo")).await?;
    let mut ids = Vec::new();
    for _ in 0..3 {
        let called = world.call(&id, "hello").await?;
        equal(response(&called)?, "hello".to_owned())?;
        let outcome = called.outcome;
        equal((outcome.start, outcome.start_duration), (StartKind::Warm, None))?;
        equal(outcome.timings.handler_ns, 1234)?;
        equal(
            outcome.memory_bytes_max > 0 && outcome.duration > Duration::ZERO,
            true,
        )?;
        ids.push(outcome.instance_id);
        settled(&world).await?;
    }
    ids.dedup();
    equal(ids.len(), 1)?;

    world.node.evict(&id, true).await;
    let outcome = world.call(&id, "hello").await?.outcome;
    equal(outcome.start, StartKind::Booted)?;
    equal(
        outcome.start_duration.is_some_and(|took| took > Duration::ZERO),
        true,
    )?;
    equal(outcome.timings.boot_ns > 0 && outcome.instance_id != ids[0], true)?;

    let failed = world.call(&id, "fail").await?.outcome.result;
    equal(
        matches!(failed, InvokeResult::FunctionError(document) if document == "{\"errorType\":\"E\"}"),
        true,
    )?;
    let nothing = gust_node::VersionId("nothing".to_owned());
    equal(
        matches!(world.call(&nothing, "").await, Err(InvokeError::UnknownVersion(id)) if id == nothing),
        true,
    )?;
    world.stop().await;
    Ok(())
}

async fn the_runtime_api_is_served() -> Result<(), Failed> {
    let world = World::new(|_| {}).await?;
    let id = world.deploy(spec(&IMAGES.api, "echo")).await?;
    for payload in ["1", &"x".repeat(1 << 20)] {
        equal(response(&world.call(&id, payload).await?)? == payload, true)?;
    }
    let failed = world.call(&id, "fail").await?.outcome.result;
    equal(matches!(failed, InvokeResult::FunctionError(_)), true)?;
    world.stop().await;
    Ok(())
}

async fn a_function_that_cannot_be_initialised() -> Result<(), Failed> {
    let world = World::new(|_| {}).await?;
    for root in [&IMAGES.device, &IMAGES.api] {
        let spec = spec(root, "init-error");
        let id = spec.id.clone();
        let (failure, log) = world.deploy_failing(spec).await?;
        equal(
            matches!(failure, Failure::InitFailed(document) if document == "{\"errorType\":\"Init\"}"),
            true,
        )?;
        equal(log.as_ref(), b"about to fail\n".as_slice())?;
        // It stays known, and each call tries again.
        let called = world.call(&id, "1").await?;
        equal(
            matches!(&called.outcome.result, InvokeResult::InitFailed(_)),
            true,
        )?;
        equal(called.log, b"about to fail\n".to_vec())?;
    }
    let (failure, _) = world.deploy_failing(device("exit-at-init")).await?;
    equal(matches!(failure, Failure::Exited(GuestExit::Exit(3))), true)?;
    equal(world.node.stats().busy, 0)?;
    world.stop().await;
    Ok(())
}

async fn a_program_that_is_missing() -> Result<(), Failed> {
    let world = World::new(|_| {}).await?;
    let (failure, _) = world.deploy_failing(spec(&IMAGES.provided, "x")).await?;
    let Failure::InitFailed(document) = failure else {
        return Err(format!("{failure:?}").into());
    };
    let document = String::from_utf8_lossy(&document).into_owned();
    let expected = "Error: Couldn't find valid bootstrap(s): [/var/task/bootstrap]";
    equal(
        document.contains("Runtime.InvalidEntrypoint") && document.contains(expected),
        true,
    )
    .map_err(|_| document)?;
    world.stop().await;
    Ok(())
}

async fn guests_end_and_the_next_call_works() -> Result<(), Failed> {
    let world = World::new(|_| {}).await?;
    let id = world.deploy(device("echo")).await?;
    for (payload, exit) in [
        ("exit 7", GuestExit::Exit(7)),
        ("segv", GuestExit::Signal(11)),
        ("abort", GuestExit::Signal(6)),
        ("kill", GuestExit::Signal(9)),
    ] {
        equal(exited(world.call(&id, payload).await?)?, exit)?;
        let next = world.call(&id, "next").await?;
        equal(
            (response(&next)?, next.outcome.start),
            ("next".to_owned(), StartKind::Booted),
        )?;
    }
    world.stop().await;
    Ok(())
}

async fn a_guest_that_runs_too_long() -> Result<(), Failed> {
    let world = World::new(|_| {}).await?;
    for root in [&IMAGES.device, &IMAGES.api] {
        let id = world.deploy(spec(root, "echo")).await?;
        let called = world.call_within(&id, "spin", Duration::from_millis(100)).await?;
        equal(matches!(called.outcome.result, InvokeResult::TimedOut), true)?;
        equal(called.outcome.duration >= Duration::from_millis(100), true)?;
        equal(response(&world.call(&id, "next").await?)?, "next".to_owned())?;
    }
    // What it had written until then arrives.
    let id = world.deploy(device("echo")).await?;
    let called = world
        .call_within(&id, "log-and-spin", Duration::from_millis(300))
        .await?;
    equal(matches!(called.outcome.result, InvokeResult::TimedOut), true)?;
    equal(called.log, b"about to spin\n".to_vec())?;
    world.stop().await;
    Ok(())
}

async fn an_initialisation_that_takes_too_long() -> Result<(), Failed> {
    let world = World::new(|_| {}).await?;
    let mut spec = device("spin-at-init");
    spec.init_timeout = Duration::from_millis(300);
    let id = spec.id.clone();
    let (failure, log) = world.deploy_failing(spec).await?;
    equal(
        (matches!(failure, Failure::InitTimedOut), log.as_ref()),
        (true, b"about to spin\n".as_slice()),
    )?;
    equal(
        matches!(
            world.call(&id, "1").await?.outcome.result,
            InvokeResult::InitTimedOut
        ),
        true,
    )?;
    world.stop().await;
    Ok(())
}

async fn a_guest_that_wants_more_memory_than_it_may_have() -> Result<(), Failed> {
    let world = World::new(|_| {}).await?;
    let id = world.deploy(device("echo")).await?;
    let exit = exited(world.call(&id, "allocate").await?)?;
    let told = match exit {
        GuestExit::OutOfMemory => true,
        // Without a control group its allocation fails, and the guest ends itself.
        GuestExit::Signal(6) => {
            eprintln!(
                "SKIPPED: this host lets no control group bound the memory; a limit of the process did"
            );
            true
        }
        _ => false,
    };
    equal(told, true).map_err(|_| format!("{exit:?}"))?;
    equal(response(&world.call(&id, "next").await?)?, "next".to_owned())?;
    world.stop().await;
    Ok(())
}

async fn log_arrives_and_is_bounded() -> Result<(), Failed> {
    let world = World::new(|_| {}).await?;
    let id = world.deploy(device("echo")).await?;
    equal(world.call(&id, "log 5").await?.log, b"out 5\nerr 5\n".to_vec())?;
    let flood = 1 << 30;
    let called = world.call(&id, &format!("flood {flood}")).await?;
    equal(called.log.len() as u64, LOG_BYTES_MAX)?;
    equal(called.outcome.log_bytes_dropped, flood - LOG_BYTES_MAX)?;
    // No one listens: the call is served all the same.
    let (sender, receiver) = mpsc::channel(1);
    drop(receiver);
    let outcome = world
        .node
        .invoke(&id, invocation("flood 1000000", Duration::from_secs(20), sender))
        .await?;
    equal(matches!(outcome.result, InvokeResult::Success(_)), true)?;
    world.stop().await;
    Ok(())
}

async fn large_responses_are_refused() -> Result<(), Failed> {
    let world = World::new(|_| {}).await?;
    for root in [&IMAGES.device, &IMAGES.api] {
        let id = world.deploy(spec(root, "echo")).await?;
        let result = world.call(&id, "big 7000000").await?.outcome.result;
        equal(
            matches!(result, InvokeResult::ResponseTooLarge { bytes: 7_000_000 }),
            true,
        )?;
        settled(&world).await?;
        let called = world.call(&id, "big 6291556").await?;
        equal(
            (response(&called)?.len(), called.outcome.start),
            (6_291_556, StartKind::Warm),
        )?;
    }
    world.stop().await;
    Ok(())
}

async fn guests_that_fork_and_open_files() -> Result<(), Failed> {
    let world = World::new(|_| {}).await?;
    let id = world.deploy(device("echo")).await?;
    equal(response(&world.call(&id, "files").await?)?, "EMFILE".to_owned())?;
    equal(response(&world.call(&id, "forks").await?)?, "EAGAIN".to_owned())?;
    equal(
        response(&world.call(&id, "background").await?)?,
        "background".to_owned(),
    )?;
    settled(&world).await?;
    let called = world.call(&id, "next").await?;
    equal(
        (response(&called)?, called.outcome.start),
        ("next".to_owned(), StartKind::Warm),
    )?;
    world.stop().await;
    Ok(())
}

async fn a_worker_that_is_killed_during_a_call() -> Result<(), Failed> {
    let world = Arc::new(World::new(|_| {}).await?);
    let (spec, entry) = findable("echo");
    let id = world.deploy(spec).await?;
    let calling = {
        let (world, id) = (Arc::clone(&world), id.clone());
        tokio::spawn(async move { world.call(&id, "spin").await })
    };
    until(|| async { world.node.stats().busy == 1 }).await?;
    let guest = *guests(&entry).first().ok_or("there is no guest")?;
    kill(parent(guest).ok_or("the guest has no parent")?)?;
    match calling.await? {
        Err(InvokeError::WorkerLost { instance_id }) => equal(instance_id.len(), 32)?,
        other => return Err(format!("{other:?}").into()),
    }
    until(|| async { guests(&entry).is_empty() }).await?;
    equal(response(&world.call(&id, "next").await?)?, "next".to_owned())?;
    equal(guests(&entry).len(), 1)
}

async fn an_instance_that_is_killed_while_it_rests() -> Result<(), Failed> {
    let world = World::new(|_| {}).await?;
    let (spec, entry) = findable("echo");
    let id = world.deploy(spec).await?;
    for _ in 0..3 {
        let guest = *guests(&entry).first().ok_or("there is no guest")?;
        kill(parent(guest).ok_or("the guest has no parent")?)?;
        until(|| async { guests(&entry).is_empty() }).await?;
        equal(response(&world.call(&id, "next").await?)?, "next".to_owned())?;
    }
    world.stop().await;
    Ok(())
}

async fn a_zygote_that_is_killed() -> Result<(), Failed> {
    let before = world::zygotes();
    let world = World::new(|_| {}).await?;
    let (spec, entry) = findable("echo");
    let id = world.deploy(spec).await?;
    let guest = *guests(&entry).first().ok_or("there is no guest")?;
    let zygote = parent(parent(guest).ok_or("no worker")?).ok_or("no zygote")?;
    equal(before.contains(&zygote), false)?;
    kill(zygote)?;
    until(|| async { guests(&entry).is_empty() }).await?;
    equal(response(&world.call(&id, "next").await?)?, "next".to_owned())?;
    world.stop().await;
    equal(guests(&entry).len(), 0)
}

async fn places_are_bounded_and_calls_wait() -> Result<(), Failed> {
    let world = Arc::new(World::new(|config| config.instances_max = 2).await?);
    let id = world.deploy(device("echo")).await?;
    let calls: Vec<_> = (0..20)
        .map(|n| {
            let (world, id) = (Arc::clone(&world), id.clone());
            tokio::spawn(async move { world.call(&id, &format!("{n}")).await })
        })
        .collect();
    for (n, call) in calls.into_iter().enumerate() {
        equal(response(&call.await??)?, n.to_string())?;
    }
    equal(world.node.stats().instances_started <= 2, true)
}

async fn calls_wait_so_long_and_no_longer() -> Result<(), Failed> {
    let world = Arc::new(
        World::new(|config| {
            config.instances_max = 1;
            config.queue_timeout = Duration::from_millis(200);
        })
        .await?,
    );
    let id = world.deploy(device("echo")).await?;
    let spinning = {
        let (world, id) = (Arc::clone(&world), id.clone());
        tokio::spawn(async move { world.call_within(&id, "spin", Duration::from_secs(2)).await })
    };
    until(|| async { world.node.stats().busy == 1 }).await?;
    equal(
        matches!(world.call(&id, "1").await, Err(InvokeError::NoCapacity { .. })),
        true,
    )?;
    equal(
        matches!(spinning.await??.outcome.result, InvokeResult::TimedOut),
        true,
    )?;
    equal(response(&world.call(&id, "2").await?)?, "2".to_owned())
}

async fn other_versions_give_way() -> Result<(), Failed> {
    let world = World::new(|config| config.instances_max = 2).await?;
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(world.deploy(device("echo")).await?);
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

async fn fresh_memory_for_each_call() -> Result<(), Failed> {
    let world = World::new(|_| {}).await?;
    let mut spec = device("echo");
    spec.memory_mode = MemoryMode::Fresh;
    let id = world.deploy(spec).await?;
    let (first, second) = (world.call(&id, "1").await?, world.call(&id, "2").await?);
    equal(
        (first.outcome.start, second.outcome.start),
        (StartKind::Booted, StartKind::Booted),
    )?;
    equal(first.outcome.instance_id == second.outcome.instance_id, false)?;
    until(|| async { world.node.stats().busy == 0 }).await?;
    equal(world.node.stats().idle, 0)?;
    world.stop().await;
    Ok(())
}

async fn idle_instances_go() -> Result<(), Failed> {
    let world = World::new(|config| config.idle_timeout = Duration::from_millis(80)).await?;
    let (spec, entry) = findable("echo");
    let id = world.deploy(spec).await?;
    until(|| async { world.node.stats().idle == 0 && guests(&entry).is_empty() }).await?;
    equal(world.call(&id, "1").await?.outcome.start, StartKind::Booted)?;
    world.stop().await;
    Ok(())
}

async fn a_call_that_is_given_up_runs_to_its_end() -> Result<(), Failed> {
    let world = World::new(|_| {}).await?;
    let id = world.deploy(device("echo")).await?;
    {
        let call = world.call(&id, "wait 200");
        let given_up = tokio::time::timeout(Duration::from_millis(50), call).await;
        equal(given_up.is_err(), true)?;
    }
    equal(world.node.stats().busy, 1)?;
    until(|| async { world.node.stats().idle == 1 }).await?;
    equal(world.call(&id, "1").await?.outcome.start, StartKind::Warm)?;
    world.stop().await;
    Ok(())
}

async fn a_stop_lets_calls_finish() -> Result<(), Failed> {
    let world = Arc::new(World::new(|_| {}).await?);
    let (spec, entry) = findable("echo");
    let id = world.deploy(spec).await?;
    let calling = {
        let (world, id) = (Arc::clone(&world), id.clone());
        tokio::spawn(async move { world.call(&id, "wait 300").await })
    };
    until(|| async { world.node.stats().busy == 1 }).await?;
    world.node.stop(Duration::from_secs(10)).await;
    equal(response(&calling.await??)?, "wait 300".to_owned())?;
    equal(guests(&entry).len(), 0)?;
    equal(
        matches!(world.call(&id, "1").await, Err(InvokeError::Stopping)),
        true,
    )?;
    let deployed = world.node.deploy(device("echo")).await;
    equal(matches!(deployed, Err(gust_node::NodeError::Stopping)), true)
}

async fn a_stop_ends_what_takes_too_long() -> Result<(), Failed> {
    let world = Arc::new(World::new(|_| {}).await?);
    let (spec, entry) = findable("echo");
    let id = world.deploy(spec).await?;
    let calling = {
        let (world, id) = (Arc::clone(&world), id.clone());
        tokio::spawn(async move { world.call(&id, "spin").await })
    };
    until(|| async { world.node.stats().busy == 1 }).await?;
    world.node.stop(Duration::from_millis(50)).await;
    equal(matches!(calling.await?, Err(InvokeError::Stopping)), true)?;
    equal(guests(&entry).len(), 0)
}

async fn layers_and_environment() -> Result<(), Failed> {
    let world = World::new(|_| {}).await?;
    let mut spec = device("echo");
    spec.layer_images = IMAGES.layers.to_vec();
    let id = world.deploy(spec).await?;
    equal(
        response(&world.call(&id, "read /opt/both").await?)?,
        "upper".to_owned(),
    )?;
    let called = world.call(&id, "environment AWS_LAMBDA_LOG_STREAM_NAME").await?;
    let stream = response(&called)?;
    equal(
        stream.ends_with(&format!("/[7]{}", called.outcome.instance_id)),
        true,
    )
    .map_err(|_| stream)?;
    world.stop().await;
    Ok(())
}

async fn deployments_are_remembered_by_name() -> Result<(), Failed> {
    let world = World::new(|_| {}).await?;
    let spec = device("echo");
    let started = world.node.stats().instances_started;
    let both = tokio::join!(world.node.deploy(spec.clone()), world.node.deploy(spec.clone()));
    equal(both.0.is_ok() && both.1.is_ok(), true)?;
    equal(world.node.stats().instances_started - started, 1)?;
    let dir = Arc::clone(&world.dir);
    world.stop().await;

    // After a restart it is made known, and started at its first call. The directories that its files were put into
    // are used again.
    let world = World::in_dir(dir, |_| {}).await?;
    let id = spec.id.clone();
    world.node.register(spec);
    equal(world.call(&id, "1").await?.outcome.start, StartKind::Booted)?;
    world.stop().await;
    Ok(())
}
