//! What becomes of one call, whatever its function does.

use std::{os::unix::fs::PermissionsExt, sync::Arc, time::Duration};

use gust_node::{Failure, InvokeError, InvokeResult, Isolation, MemoryMode, StartKind};
use gust_worker::protocol::{GuestExit, LOG_BYTES_MAX};
use libtest_mimic::Failed;
use rustix::process::Signal;
use tokio::sync::{mpsc, oneshot};

use crate::world::{Called, IMAGES, World, device, equal, invocation, kill, response, signal, spec, until};

fn exited(called: Called) -> Result<GuestExit, Failed> {
    match called.outcome.result {
        InvokeResult::Exited(exit) => Ok(exit),
        other => Err(format!("{other:?}").into()),
    }
}

pub async fn calls_are_served_by_the_instance_that_is_there(isolation: Isolation) -> Result<(), Failed> {
    let world = World::new(isolation, |_| {}).await?;
    let deployed = world.node.deploy(device("echo")).await?;
    equal(
        (deployed.snapshot_bytes > 0, deployed.log.len()),
        (isolation == Isolation::Kvm, 0),
    )?;
    equal(deployed.init > Duration::ZERO && deployed.memory_bytes > 0, true)?;

    let id = world.ready(device("echo")).await?;
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
        world.settled().await?;
    }
    ids.dedup();
    equal(ids.len(), 1)?;

    world.node.evict(&id, true).await;
    let outcome = world.call(&id, "hello").await?.outcome;
    equal(outcome.start, world.cold_start())?;
    equal(
        outcome.start_duration.is_some_and(|took| took > Duration::ZERO),
        true,
    )?;
    let timings = outcome.timings;
    let is_restored = isolation == Isolation::Kvm;
    equal(
        (timings.boot_ns > 0, timings.map_ns > 0, timings.fill_ns > 0),
        (!is_restored, is_restored, is_restored),
    )?;
    equal(outcome.instance_id == ids[0], false)?;

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

pub async fn the_runtime_api_is_served(isolation: Isolation) -> Result<(), Failed> {
    let world = World::new(isolation, |_| {}).await?;
    let id = world.deploy(spec(&IMAGES.api, "echo")).await?;
    for payload in ["1", &"x".repeat(1 << 20)] {
        equal(response(&world.call(&id, payload).await?)? == payload, true)?;
    }
    let failed = world.call(&id, "fail").await?.outcome.result;
    equal(matches!(failed, InvokeResult::FunctionError(_)), true)?;
    world.stop().await;
    Ok(())
}

pub async fn a_function_that_cannot_be_initialised(isolation: Isolation) -> Result<(), Failed> {
    let world = World::new(isolation, |_| {}).await?;
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

pub async fn a_program_that_is_missing(isolation: Isolation) -> Result<(), Failed> {
    let world = World::new(isolation, |_| {}).await?;
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

pub async fn guests_end_and_the_next_call_works(isolation: Isolation) -> Result<(), Failed> {
    let world = World::new(isolation, |_| {}).await?;
    let id = world.ready(device("echo")).await?;
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
            ("next".to_owned(), world.cold_start()),
        )?;
        world.settled().await?;
    }
    world.stop().await;
    Ok(())
}

pub async fn an_event_that_no_worker_has_read_is_delivered_again(isolation: Isolation) -> Result<(), Failed> {
    let world = Arc::new(World::new(isolation, |_| {}).await?);
    let id = world.ready(device("echo")).await?;
    world.call(&id, "first").await?;
    world.settled().await?;
    // One that gets no processor time reads nothing, and takes what it is sent all the same.
    let stopped = world.workers();
    for worker in &stopped {
        signal(*worker, Signal::STOP)?;
    }
    let (log, _discarded) = mpsc::channel(4);
    let (sender, delivered) = oneshot::channel();
    let mut second = invocation("second", Duration::from_secs(20), log);
    second.delivered = Some(sender);
    let (calling, called) = (Arc::clone(&world), id.clone());
    let running = tokio::spawn(async move { calling.node.invoke(&called, second).await });
    delivered.await?;
    for worker in &stopped {
        kill(*worker)?;
    }
    match running.await??.result {
        InvokeResult::Success(body) => equal(body.as_ref(), b"second".as_slice())?,
        other => return Err(format!("{other:?}").into()),
    }
    world.node.stop(Duration::from_secs(10)).await;
    Ok(())
}

pub async fn a_guest_that_runs_too_long(isolation: Isolation) -> Result<(), Failed> {
    let world = World::new(isolation, |_| {}).await?;
    for root in [&IMAGES.device, &IMAGES.api] {
        let id = world.deploy(spec(root, "echo")).await?;
        let called = world.call_within(&id, "spin", Duration::from_millis(500)).await?;
        equal(matches!(called.outcome.result, InvokeResult::TimedOut), true)?;
        equal(called.outcome.duration >= Duration::from_millis(500), true)?;
        equal(response(&world.call(&id, "next").await?)?, "next".to_owned())?;
    }
    // What it had written until then arrives.
    let id = world.deploy(device("echo")).await?;
    let called = world
        .call_within(&id, "log-and-spin", Duration::from_secs(2))
        .await?;
    equal(matches!(called.outcome.result, InvokeResult::TimedOut), true)?;
    equal(called.log, b"about to spin\n".to_vec())?;
    world.stop().await;
    Ok(())
}

pub async fn an_initialisation_that_takes_too_long(isolation: Isolation) -> Result<(), Failed> {
    let world = World::new(isolation, |_| {}).await?;
    let mut spec = device("spin-at-init");
    spec.init_timeout = Duration::from_secs(2);
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

pub async fn memory_that_was_given_back_is_told(isolation: Isolation) -> Result<(), Failed> {
    const BORROWED: u64 = 32 << 20;
    let world = World::new(isolation, |_| {}).await?;
    let id = world.ready(device("echo")).await?;
    let used = async |payload: &str| -> Result<(u64, u64), Failed> {
        let called = world.call(&id, payload).await?;
        response(&called)?;
        world.settled().await?;
        Ok((called.outcome.memory_bytes, called.outcome.memory_bytes_max))
    };
    let (_, before) = used("first").await?;
    let (held, most) = used(&format!("borrow {BORROWED}")).await?;
    equal(
        (before < BORROWED, held < BORROWED, most > BORROWED),
        (true, true, true),
    )?;
    // It is the instance's, as on AWS.
    equal(used("last").await?.1 >= most, true)?;
    world.stop().await;
    Ok(())
}

pub async fn a_guest_that_wants_more_memory_than_it_may_have(isolation: Isolation) -> Result<(), Failed> {
    let world = World::new(isolation, |_| {}).await?;
    let id = world.deploy(device("echo")).await?;
    let called = world.call(&id, "allocate").await?;
    let used = called.outcome.memory_bytes_max;
    let exit = exited(called)?;
    let told = match exit {
        GuestExit::OutOfMemory => used == u64::from(device("echo").memory_mib) << 20,
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

pub async fn log_arrives_and_is_bounded(isolation: Isolation) -> Result<(), Failed> {
    let world = World::new(isolation, |_| {}).await?;
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

pub async fn large_responses_are_refused(isolation: Isolation) -> Result<(), Failed> {
    let world = World::new(isolation, |_| {}).await?;
    for root in [&IMAGES.device, &IMAGES.api] {
        let id = world.ready(spec(root, "echo")).await?;
        let result = world.call(&id, "big 7000000").await?.outcome.result;
        equal(
            matches!(result, InvokeResult::ResponseTooLarge { bytes: 7_000_000 }),
            true,
        )?;
        world.settled().await?;
        let called = world.call(&id, "big 6291556").await?;
        equal(
            (response(&called)?.len(), called.outcome.start),
            (6_291_556, StartKind::Warm),
        )?;
    }
    world.stop().await;
    Ok(())
}

pub async fn guests_that_fork_and_open_files(isolation: Isolation) -> Result<(), Failed> {
    let world = World::new(isolation, |_| {}).await?;
    let id = world.ready(device("echo")).await?;
    equal(response(&world.call(&id, "files").await?)?, "EMFILE".to_owned())?;
    // A micro-VM has one process.
    let refused = match isolation {
        Isolation::Kvm => "ENOSYS",
        Isolation::Process => "EAGAIN",
    };
    equal(response(&world.call(&id, "forks").await?)?, refused.to_owned())?;
    equal(
        response(&world.call(&id, "background").await?)?,
        "background".to_owned(),
    )?;
    world.settled().await?;
    let called = world.call(&id, "next").await?;
    equal(
        (response(&called)?, called.outcome.start),
        ("next".to_owned(), StartKind::Warm),
    )?;
    world.stop().await;
    Ok(())
}

pub async fn layers_and_environment(isolation: Isolation) -> Result<(), Failed> {
    let world = World::new(isolation, |_| {}).await?;
    let mut spec = device("echo");
    spec.layer_images = IMAGES.layers.to_vec();
    let id = world.deploy(spec).await?;
    for (file, content) in [
        ("both", "upper"),
        ("lower", "1"),
        ("upper", "2"),
        ("bin/lower", "3"),
        ("bin/upper", "4"),
    ] {
        equal(
            response(&world.call(&id, &format!("read /opt/{file}")).await?)?,
            content.to_owned(),
        )?;
    }
    let names = ["AWS_LAMBDA_LOG_STREAM_NAME", "OWN", "AWS_LAMBDA_FUNCTION_VERSION"];
    for name in names {
        let called = world.call(&id, &format!("environment {name}")).await?;
        let value = response(&called)?;
        let expected = match name {
            "OWN" => value == "value",
            "AWS_LAMBDA_FUNCTION_VERSION" => value == "7",
            _ => value.ends_with(&format!("/[7]{}", called.outcome.instance_id)),
        };
        equal(expected, true).map_err(|_| format!("{name}: {value}"))?;
    }
    world.stop().await;
    Ok(())
}

pub async fn deployments_are_remembered_by_name(isolation: Isolation) -> Result<(), Failed> {
    let world = World::new(isolation, |_| {}).await?;
    let spec = device("echo");
    let id = spec.id.clone();
    world.node.register(spec.clone());
    let both = tokio::join!(
        world.node.deploy(spec.clone()),
        world.node.deploy(spec.clone()),
        async { world.node.register(spec.clone()) },
        world.call(&id, "1"),
    );
    equal(both.0.is_ok() && both.1.is_ok(), true)?;
    equal(response(&both.3?)?, "1".to_owned())?;
    equal(world.node.stats().instances_started <= 2, true)?;
    let dir = Arc::clone(&world.dir);
    world.stop().await;

    // After a restart it is made known, and started at its first call.
    let world = World::in_dir(isolation, dir, |_| {}).await?;
    world.node.register(spec);
    equal(world.call(&id, "1").await?.outcome.start, world.cold_start())?;
    world.stop().await;
    Ok(())
}

pub async fn two_versions_at_once(isolation: Isolation) -> Result<(), Failed> {
    let world = Arc::new(World::new(isolation, |_| {}).await?);
    let mut specs = [device("echo"), spec(&IMAGES.api, "echo"), device("echo")];
    specs[2].memory_mib = 512;
    let deployed: Vec<_> = specs
        .into_iter()
        .map(|spec| {
            let world = Arc::clone(&world);
            tokio::spawn(async move { world.deploy(spec).await.map_err(|failed| format!("{failed:?}")) })
        })
        .collect();
    let mut ids = Vec::new();
    for one in deployed {
        ids.push(one.await??);
    }
    let calls: Vec<_> = (0..30)
        .map(|n| {
            let (world, id) = (Arc::clone(&world), ids[n % ids.len()].clone());
            tokio::spawn(async move { world.call(&id, &format!("{id} {n}")).await })
        })
        .collect();
    for (n, call) in calls.into_iter().enumerate() {
        equal(response(&call.await??)?, format!("{} {n}", ids[n % ids.len()]))?;
    }
    until(|| async { world.node.stats().busy == 0 }).await
}

/// A program that is there and is none.
pub async fn a_program_that_cannot_be_run(isolation: Isolation) -> Result<(), Failed> {
    let world = World::new(isolation, |_| {}).await?;
    for root in [&IMAGES.broken_device, &IMAGES.broken_api] {
        let spec = spec(root, "x");
        let id = spec.id.clone();
        let (failure, _) = world.deploy_failing(spec).await?;
        let Failure::InitFailed(document) = failure else {
            return Err(format!("{failure:?}").into());
        };
        let document = String::from_utf8_lossy(&document).into_owned();
        equal(document.contains("Runtime.InvalidEntrypoint"), true).map_err(|_| document)?;
        let called = world.call(&id, "1").await?;
        equal(matches!(called.outcome.result, InvokeResult::InitFailed(_)), true)?;
    }
    world.stop().await;
    Ok(())
}

/// A place where only its owner may go is no obstacle for a worker that is another user.
pub async fn a_directory_that_others_may_not_enter(isolation: Isolation) -> Result<(), Failed> {
    let dir = Arc::new(tempfile::tempdir()?);
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700))?;
    let world = World::in_dir(isolation, dir, |_| {}).await?;
    let mut spec = device("echo");
    spec.layer_images = IMAGES.layers.to_vec();
    let id = world.deploy(spec).await?;
    equal(
        response(&world.call(&id, "read /opt/lower").await?)?,
        "1".to_owned(),
    )?;
    world.stop().await;
    Ok(())
}

pub async fn fresh_memory_for_each_call(isolation: Isolation) -> Result<(), Failed> {
    let world = World::new(isolation, |_| {}).await?;
    let mut spec = device("echo");
    spec.memory_mode = MemoryMode::Fresh;
    let id = world.deploy(spec).await?;
    let (first, second) = (world.call(&id, "1").await?, world.call(&id, "2").await?);
    equal(
        (first.outcome.start, second.outcome.start),
        (StartKind::Booted, StartKind::Booted),
    )?;
    equal(first.outcome.instance_id == second.outcome.instance_id, false)?;
    world.settled().await?;
    equal(world.node.stats().idle, 0)?;
    world.stop().await;
    Ok(())
}
