//! What a cluster does, and what it does when something in it ends.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use gust_cluster::RemoteNode;
use gust_node::{
    InstanceClass, InstanceName, InvokeError, InvokeResult, Isolation, Named, Outcome, StartKind, VersionId,
    Wanted,
};
use libtest_mimic::Failed;
use rustix::process::Signal;
use tokio::{sync::oneshot, task::JoinHandle};

use crate::{
    lab::{AgentProcess, Control, Lab, Told},
    world::{device, equal, invocation, log, until},
};

/// What a call came to: its response, how its instance came to be, and its log.
#[derive(Debug)]
struct Called {
    response: String,
    outcome: Outcome,
    log: Vec<u8>,
}

async fn call_wanting(
    node: &RemoteNode,
    id: &VersionId,
    payload: &str,
    wanted: Wanted,
) -> Result<Called, InvokeError> {
    let (sender, collecting) = log();
    let mut invocation = invocation(payload, Duration::from_secs(60), sender);
    invocation.wanted = wanted;
    let (delivered, was_delivered) = oneshot::channel();
    invocation.delivered = Some(delivered);
    let outcome = node.invoke(id, invocation).await;
    let log = collecting.await.unwrap_or_default();
    let outcome = outcome?;
    // Every event that has an outcome here has been handed to an instance, except where there was none to hand it to.
    let has_run = !matches!(outcome.result, InvokeResult::InitFailed(_));
    assert_eq!(was_delivered.await.is_ok(), has_run);
    let response = match &outcome.result {
        InvokeResult::Success(body) => String::from_utf8_lossy(body).into_owned(),
        other => format!("{other:?}"),
    };
    Ok(Called {
        response,
        outcome,
        log,
    })
}

async fn call(node: &RemoteNode, id: &VersionId, payload: &str) -> Result<Called, InvokeError> {
    call_wanting(node, id, payload, Wanted::Any).await
}

/// Deploys a version on a node.
async fn deploy(agent: &AgentProcess) -> Result<VersionId, Failed> {
    let spec = device("handler");
    let id = spec.id.clone();
    agent.node.deploy(spec).await?;
    Ok(id)
}

/// Waits until a call of an instance runs on a node.
async fn busy(node: &RemoteNode) -> Result<(), Failed> {
    until(|| async { node.stats_now().await.is_some_and(|stats| stats.busy > 0) }).await
}

fn is_lost<T>(result: Result<T, InvokeError>, node: &RemoteNode) -> Result<(), Failed> {
    match result {
        Err(InvokeError::NodeLost { node: lost, .. }) => equal(lost, node.name().to_string()),
        Err(error) => Err(error.into()),
        Ok(_) => Err("it was answered".into()),
    }
}

fn was_lost(control: &Control, node: &RemoteNode) -> bool {
    control
        .told()
        .iter()
        .any(|told| matches!(told, Told::Lost(lost) if lost == node))
}

/// Calls that follow each other on a node for as long as they are wanted; how many there were, all answered well.
struct Load {
    wanted: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    tasks: Vec<JoinHandle<Result<(), InvokeError>>>,
}

impl Load {
    /// `choose` says where the next call goes.
    fn start(
        clients: usize,
        id: &VersionId,
        choose: impl Fn() -> RemoteNode + Send + Sync + 'static,
    ) -> Self {
        let (wanted, answered) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU64::new(0)));
        let choose = Arc::new(choose);
        let client = || {
            let (wanted, answered, choose) =
                (Arc::clone(&wanted), Arc::clone(&answered), Arc::clone(&choose));
            let id = id.clone();
            tokio::spawn(async move {
                while wanted.load(Ordering::Relaxed) {
                    let called = call(&choose(), &id, "load").await?;
                    assert_eq!(called.response, "load");
                    answered.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            })
        };
        let tasks = (0..clients).map(|_| client()).collect();
        Self {
            wanted,
            answered,
            tasks,
        }
    }

    /// Waits until so many more calls have been answered.
    async fn more(&self, calls: u64) -> Result<(), Failed> {
        let before = self.answered.load(Ordering::Relaxed);
        until(|| async {
            self.answered.load(Ordering::Relaxed) >= before + calls
                || self.tasks.iter().any(JoinHandle::is_finished)
        })
        .await
    }

    /// Ends it: no call may have failed.
    async fn end(self) -> Result<(), Failed> {
        self.wanted.store(false, Ordering::Relaxed);
        for task in self.tasks {
            task.await??;
        }
        Ok(())
    }
}

pub async fn functions_run_on_every_node(isolation: Isolation) -> Result<(), Failed> {
    let lab = Lab::new(isolation).await?;
    let (one, two) = (lab.agent("one").await?, lab.agent("two").await?);
    let id = deploy(&one).await?;
    for agent in [&one, &two] {
        let info = agent.node.info().ok_or("it has said nothing")?;
        equal(
            (info.is_kvm, info.memory_bytes),
            (isolation == Isolation::Kvm, 4 << 30),
        )?;
        let called = call(&agent.node, &id, "log 7").await?;
        equal(called.response.as_str(), "log 7")?;
        let log = String::from_utf8_lossy(&called.log).into_owned();
        equal(log.contains("out 7") && log.contains("err 7"), true)?;
        let big = call(&agent.node, &id, "big 5000000").await?;
        equal(big.response.len(), 5_000_000)?;
        let flood = call(&agent.node, &id, "flood 3000000").await?;
        equal(
            flood.log.len() as u64 + flood.outcome.log_bytes_dropped,
            3_000_000,
        )?;
        let failed = call(&agent.node, &id, "fail").await?;
        equal(failed.response.starts_with("FunctionError"), true)?;
        let exited = call(&agent.node, &id, "exit 3").await?;
        equal(exited.response.as_str(), "Exited(Exit(3))")?;
    }
    // A named instance that ends by itself is told.
    let named = Named {
        name: InstanceName(9),
        class: InstanceClass::Emergency,
    };
    call_wanting(&two.node, &id, "exit 3", Wanted::New(named)).await?;
    equal(two.node.lost().await, vec![named.name])?;
    // A call that runs has its node tell of its load.
    let (running, load) = tokio::join!(call(&two.node, &id, "wait 500"), two.node.load());
    equal((running?.response.as_str(), load.cpus > 0), ("wait 500", true))?;
    let unknown = call(&one.node, &VersionId("unknown".to_owned()), "x").await;
    equal(matches!(unknown, Err(InvokeError::UnknownVersion(_))), true)?;
    let failing = device("init-error");
    match one.node.deploy(failing.clone()).await {
        Err(gust_node::NodeError::Init { log, .. }) => equal(log.starts_with(b"about to fail"), true)?,
        other => return Err(format!("{other:?}").into()),
    }
    let called = call(&one.node, &failing.id, "x").await?;
    equal(called.response.starts_with("InitFailed"), true)
}

pub async fn a_snapshot_of_one_node_is_restored_on_another(isolation: Isolation) -> Result<(), Failed> {
    let lab = Lab::new(isolation).await?;
    let (one, two) = (lab.agent("one").await?, lab.agent("two").await?);
    let id = deploy(&one).await?;
    let called = call(&two.node, &id, "count").await?;
    equal(called.outcome.start, StartKind::Restored)?;
    equal(called.response.as_str(), "1")?;
    equal(called.outcome.timings.fetch_ns > 0, true)?;
    // It is the other's, byte for byte.
    let snapshots = |name: &str| -> Result<Vec<(std::ffi::OsString, blake3::Hash)>, Failed> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(lab.dir.path().join(name).join("node/snapshots"))? {
            let entry = entry?;
            if entry.path().to_string_lossy().ends_with(".snapshot-data") {
                files.push((entry.file_name(), blake3::hash(&std::fs::read(entry.path())?)));
            }
        }
        Ok(files)
    };
    let own = snapshots("two")?;
    let theirs = snapshots("one")?;
    equal(own.iter().any(|file| theirs.contains(file)), true)?;
    until(|| async {
        let told = lab.control.told();
        told.iter()
            .any(|told| matches!(told, Told::Snapshot(node, of) if *node == two.node && *of == id))
    })
    .await?;

    // A third gets it from the second when the first has gone, and the images too.
    one.signal(Signal::KILL)?;
    until(|| async { !one.node.is_connected() }).await?;
    let three = lab.agent("three").await?;
    three.node.prepare(&id).await?;
    let called = call(&three.node, &id, "x").await?;
    equal(called.outcome.start, StartKind::Restored)
}

pub async fn a_snapshot_that_cannot_be_had_is_made(isolation: Isolation) -> Result<(), Failed> {
    let lab = Lab::new(isolation).await?;
    let (one, two) = (lab.agent("one").await?, lab.agent("two").await?);
    let id = deploy(&one).await?;
    one.signal(Signal::KILL)?;
    until(|| async { !one.node.is_connected() }).await?;
    let called = call(&two.node, &id, "x").await?;
    equal(called.outcome.start, StartKind::Booted)?;
    // Now there is one again.
    let three = lab.agent("three").await?;
    let called = call(&three.node, &id, "x").await?;
    equal(called.outcome.start, StartKind::Restored)
}

pub async fn a_node_that_is_killed_fails_its_calls_alone(isolation: Isolation) -> Result<(), Failed> {
    let lab = Lab::new(isolation).await?;
    let (one, two) = (lab.agent("one").await?, lab.agent("two").await?);
    let id = deploy(&one).await?;
    let bystander = two.node.clone();
    let load = Load::start(2, &id, move || bystander.clone());
    let running = tokio::spawn({
        let (node, id) = (one.node.clone(), id.clone());
        async move { call(&node, &id, "spin").await }
    });
    busy(&one.node).await?;
    one.signal(Signal::KILL)?;
    is_lost(running.await?, &one.node)?;
    is_lost(call(&one.node, &id, "x").await, &one.node)?;
    until(|| async { was_lost(&lab.control, &one.node) }).await?;
    load.more(10).await?;
    load.end().await
}

pub async fn a_node_that_is_cut_off_fails_its_calls_alone_and_comes_back(
    isolation: Isolation,
) -> Result<(), Failed> {
    let lab = Lab::new(isolation).await?;
    let (one, two) = (lab.agent("one").await?, lab.agent("two").await?);
    let id = deploy(&one).await?;
    let named = Named {
        name: InstanceName(7),
        class: InstanceClass::Emergency,
    };
    equal(
        call_wanting(&one.node, &id, "count", Wanted::New(named))
            .await?
            .response
            .as_str(),
        "1",
    )?;
    let bystander = two.node.clone();
    let load = Load::start(2, &id, move || bystander.clone());
    let running = tokio::spawn({
        let (node, id) = (one.node.clone(), id.clone());
        async move { call(&node, &id, "wait 10000").await }
    });
    busy(&one.node).await?;
    // Nothing is said any more, not even that the connection has ended.
    one.connect(false)?;
    is_lost(running.await?, &one.node)?;
    load.more(10).await?;
    one.connect(true)?;
    until(|| async { one.node.is_connected() }).await?;
    // The instance has gone on being there.
    let called = call_wanting(&one.node, &id, "count", Wanted::Resting(named)).await?;
    equal((called.response.as_str(), called.outcome.replaced), ("2", false))?;
    let told = lab.control.told();
    let joined = told.iter().filter_map(|told| match told {
        Told::Joined(node, instances, _) if *node == one.node => Some(instances.clone()),
        _ => None,
    });
    let names: Vec<Vec<InstanceName>> = joined
        .map(|instances| instances.iter().map(|present| present.named.name).collect())
        .collect();
    equal(names, vec![vec![], vec![named.name]])?;
    load.end().await
}

pub async fn a_control_plane_that_starts_again_learns_what_is_there(
    isolation: Isolation,
) -> Result<(), Failed> {
    let lab = Lab::new(isolation).await?;
    let (one, two) = (lab.agent("one").await?, lab.agent("two").await?);
    let spec = device("handler");
    let id = spec.id.clone();
    one.node.deploy(spec.clone()).await?;
    let named = |name| Named {
        name: InstanceName(name),
        class: InstanceClass::Regular,
    };
    one.node.create(&id, named(1)).await?;
    two.node.create(&id, named(2)).await?;
    two.node.create(&id, named(3)).await?;
    for (agent, name) in [(&one, 1), (&two, 2)] {
        let called = call_wanting(&agent.node, &id, "count", Wanted::Resting(named(name))).await?;
        equal(called.response.as_str(), "1")?;
    }
    two.node.end(InstanceName(3), Duration::ZERO);
    until(|| async { two.node.stats_now().await.is_some_and(|stats| stats.regular == 1) }).await?;
    // What learns from a run has ended: the instances rest.
    for agent in [&one, &two] {
        until(|| async { agent.node.stats_now().await.is_some_and(|stats| stats.busy == 0) }).await?;
    }

    let lab = lab.restart_control().await?;
    // As whoever uses it does from its own store.
    lab.control.hub.register(spec);
    until(|| async { lab.control.told().len() == 2 }).await?;
    let mut found = Vec::new();
    for told in lab.control.told() {
        let Told::Joined(node, instances, snapshots) = told else {
            return Err(format!("{told:?}").into());
        };
        let has_snapshot = snapshots.contains(&id);
        equal(has_snapshot, isolation == Isolation::Kvm)?;
        for present in instances {
            equal(
                (&present.version, present.named.class, present.rests),
                (&id, InstanceClass::Regular, true),
            )?;
            found.push((node.clone(), present.named));
        }
    }
    found.sort_by_key(|(_, named)| named.name);
    equal(
        found.iter().map(|(_, named)| named.name.0).collect::<Vec<_>>(),
        vec![1, 2],
    )?;
    for (node, named) in found {
        let called = call_wanting(&node, &id, "count", Wanted::Resting(named)).await?;
        equal(
            (called.response.as_str(), called.outcome.start),
            ("2", StartKind::Warm),
        )?;
    }
    Ok(())
}

pub async fn a_node_that_leaves_fails_no_call(isolation: Isolation) -> Result<(), Failed> {
    let lab = Lab::new(isolation).await?;
    let mut one = lab.agent("one").await?;
    let id = deploy(&one).await?;
    let hub = lab.control.hub.clone();
    let turn = AtomicU64::new(0);
    let load = Load::start(4, &id, move || {
        let nodes: Vec<RemoteNode> = hub
            .nodes()
            .into_iter()
            .filter(|node| !node.is_draining())
            .collect();
        let turn = turn.fetch_add(1, Ordering::Relaxed) as usize;
        nodes[turn % nodes.len()].clone()
    });
    load.more(20).await?;
    // The next version of the program joins while the first one serves, then the first one leaves.
    let two = lab.agent("two").await?;
    load.more(20).await?;
    one.signal(Signal::TERM)?;
    let status = one.ended().await?;
    equal(status.success(), true)?;
    load.more(20).await?;
    until(|| async { was_lost(&lab.control, &one.node) }).await?;
    let told = lab.control.told();
    let at = |is: &dyn Fn(&Told) -> bool| told.iter().position(is);
    let draining = at(&|told| matches!(told, Told::Draining(node) if *node == one.node));
    let lost = at(&|told| matches!(told, Told::Lost(node) if *node == one.node));
    equal(draining.is_some() && draining < lost, true)?;
    equal(lab.control.hub.nodes() == [two.node.clone()], true)?;
    load.end().await
}

pub async fn what_is_removed_is_removed_everywhere(isolation: Isolation) -> Result<(), Failed> {
    let lab = Lab::new(isolation).await?;
    let (one, two) = (lab.agent("one").await?, lab.agent("two").await?);
    let (first, second) = (deploy(&one).await?, deploy(&one).await?);
    for id in [&first, &second] {
        call(&two.node, id, "x").await?;
    }
    let files = |name: &str, kind: &str| {
        let entries = std::fs::read_dir(lab.dir.path().join(name).join(kind));
        entries.into_iter().flatten().count()
    };
    // Two images with their manifests.
    equal(files("two", "cluster/library/files"), 4)?;
    lab.control.hub.remove(&first);
    let removed = call(&two.node, &first, "x").await;
    equal(matches!(removed, Err(InvokeError::UnknownVersion(_))), true)?;
    equal(call(&two.node, &second, "x").await?.response.as_str(), "x")?;
    equal(files("two", "cluster/library/files"), 4)?;
    lab.control.hub.remove(&second);
    for name in ["one", "two"] {
        until(|| async { files(name, "cluster/library/files") == 0 }).await?;
        let stats = if name == "one" { &one.node } else { &two.node }
            .stats_now()
            .await;
        equal(stats.map(|stats| stats.idle), Some(0))?;
    }
    Ok(())
}
