//! A node on another machine, as the control plane uses it: the operations of [`gust_node::Node`], over its link.
//!
//! A node whose link is lost fails what was asked of it with [`InvokeError::NodeLost`], at the latest when the link's
//! silence bound has passed, and fails what is asked of it from then on at once. It is the same node when it comes back.

mod ask;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use gust_node::{
    Deployed, InstanceName, Invocation, InvokeError, Load, Named, NodeError, NodeStats, Outcome, Present,
    VersionId, VersionSpec,
};

use crate::{
    convert,
    hub::{Hub, Member},
    link::{CallError, Next, Pending},
    message::{NodeRequest, NotRun, Reply, Request, text},
    trust::NodeName,
};
use ask::{AskError, unexpected};

/// Longest deployment: files are fetched, a runtime and a function are started.
const DEPLOY_LIMIT: Duration = Duration::from_secs(15 * 60);

/// Longest time for what is done without a function's code running.
const SHORT_LIMIT: Duration = Duration::from_secs(30);

/// What a call may take beyond its own time-out: files that are fetched, the wait for a place, an initialisation, and the
/// way. A node that is lost is noticed long before that.
const CALL_EXTRA: Duration = Duration::from_secs(5 * 60);

/// How often a node is asked what it holds.
pub const STATS_PERIOD: Duration = Duration::from_secs(1);

/// Times that a node is told of a version that it turns out not to know.
const REGISTRATIONS_MAX: u32 = 2;

/// What a control plane has to know of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeInfo {
    /// Memory for instances, in bytes.
    pub memory_bytes: u64,
    /// Most instances.
    pub instances_max: u64,
    /// Instances that are restored at a time.
    pub restores_max: u64,
    /// Region that it lies in.
    pub region: u16,
    /// Each instance is a micro-VM.
    pub is_kvm: bool,
    /// Features of its processor.
    pub fingerprint: String,
    /// Version of its program.
    pub program: String,
}

/// A node on another machine; clones are the same.
#[derive(Debug, Clone)]
pub struct RemoteNode {
    hub: Hub,
    member: Arc<Member>,
}

impl PartialEq for RemoteNode {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.member, &other.member)
    }
}

impl RemoteNode {
    pub(crate) fn new(hub: Hub, member: Arc<Member>) -> Self {
        Self { hub, member }
    }

    /// Its name: unlike any other's, and the same after its restarts.
    pub fn name(&self) -> &NodeName {
        &self.member.name
    }

    /// Whether its link is there.
    pub fn is_connected(&self) -> bool {
        self.member.link().is_some()
    }

    /// Whether it has said that it leaves.
    pub fn is_draining(&self) -> bool {
        self.member.is_draining()
    }

    /// What it has said of itself; `None` before it has said anything.
    pub fn info(&self) -> Option<NodeInfo> {
        let hello = self.member.hello()?;
        Some(NodeInfo {
            memory_bytes: hello.memory_bytes,
            instances_max: hello.instances_max,
            restores_max: hello.restores_max,
            region: hello.region,
            is_kvm: hello.is_kvm,
            fingerprint: hello.fingerprint,
            program: hello.program,
        })
    }

    /// Makes a version known to the hub and ready on this node: see [`gust_node::Node::deploy`].
    ///
    /// # Errors
    /// As there; [`NodeError::Io`] when the node is lost.
    pub async fn deploy(&self, spec: VersionSpec) -> Result<Deployed, NodeError> {
        self.hub.register(spec.clone());
        let failed =
            |error: AskError| convert::io_error(format!("deploying on node {}", self.name()), text(&error));
        let version = self.described(&spec).await.map_err(failed)?;
        let request = NodeRequest::Deploy(version);
        let (reply, log) = self.ask(request, DEPLOY_LIMIT).await.map_err(failed)?;
        match reply {
            Reply::Deployed(deployed) => {
                self.member.learned(&spec.id.0, deployed.snapshot_bytes > 0);
                Ok(convert::from_deployed(&deployed, log))
            }
            Reply::NotDeployed(failure) => {
                // Known all the same when the failure is the function's own.
                self.member.learned(&spec.id.0, false);
                Err(convert::from_not_deployed(failure, log))
            }
            other => Err(failed(unexpected(&other))),
        }
    }

    /// Has the node bring a version's files, and its snapshot where another node has one that fits, before they are needed.
    ///
    /// # Errors
    /// When the version is not known to the hub, the node is lost, or the files cannot be got.
    pub async fn prepare(&self, id: &VersionId) -> Result<(), InvokeError> {
        self.knowing(id, || NodeRequest::Prepare(id.0.clone()), DEPLOY_LIMIT)
            .await
    }

    /// Runs one event: see [`gust_node::Node::invoke`].
    ///
    /// # Errors
    /// As there; [`InvokeError::NodeLost`] when the node is lost before it has answered.
    pub async fn invoke(&self, id: &VersionId, mut invocation: Invocation) -> Result<Outcome, InvokeError> {
        let limit = invocation.timeout + CALL_EXTRA;
        let Some(_counted) = self.member.count_call() else {
            return Err(self.is_lost(false));
        };
        match tokio::time::timeout(limit, self.run(id, &mut invocation)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(self.refused(AskError::Call(CallError::Late(limit)), "running an event")),
        }
    }

    /// Makes an instance under a name: see [`gust_node::Node::create`].
    ///
    /// # Errors
    /// As there; [`InvokeError::NodeLost`] when the node is lost.
    pub async fn create(&self, id: &VersionId, named: Named) -> Result<(), InvokeError> {
        let request = || NodeRequest::Create {
            version: id.0.clone(),
            named: convert::named(named),
        };
        self.knowing(id, request, DEPLOY_LIMIT).await
    }

    /// Ends an instance, in the background: see [`gust_node::Node::end`]. One on a node that is lost is gone, or reported when the
    /// node is back.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn end(&self, InstanceName(name): InstanceName, armed_for: Duration) {
        let node = self.clone();
        let armed_ms = u64::try_from(armed_for.as_millis()).unwrap_or(u64::MAX);
        tokio::spawn(async move {
            if armed_ms > 0 {
                let request = NodeRequest::EndArmed { name, armed_ms };
                // A member of the release before can only end one.
                if let Ok((Reply::Done, _)) = node.ask(request, SHORT_LIMIT).await {
                    return;
                }
            }
            node.told(NodeRequest::End(name)).await;
        });
    }

    /// Waits for instances to end that were not told to: see [`gust_node::Node::lost`]. One caller at a time.
    pub async fn lost(&self) -> Vec<InstanceName> {
        self.member.lost().await
    }

    /// Waits until the node tells how much its processors have to do: see [`gust_node::Node::load`]. One caller at a time.
    pub async fn load(&self) -> Load {
        self.member.load().await
    }

    /// Every instance that has a name, as the node reported it when its link was made.
    pub fn present(&self) -> Vec<Present> {
        self.member.present()
    }

    /// Makes a version known; the node is told of it when it first needs it.
    pub fn register(&self, spec: VersionSpec) {
        self.hub.register(spec);
    }

    /// Has the node forget a version in the background, and tells no node of it any more.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn remove(&self, id: &VersionId) {
        self.hub.unregister(id);
        self.forget(id);
    }

    /// Ends the idle instances of a version: see [`gust_node::Node::evict`].
    pub async fn evict(&self, id: &VersionId, keep_armed: bool) {
        let version = id.0.clone();
        self.told(NodeRequest::Evict { version, keep_armed }).await;
    }

    /// What the node held when it was asked last, at most [`STATS_PERIOD`] ago while it is there.
    pub fn stats(&self) -> NodeStats {
        self.member.stats()
    }

    /// What the node holds now; `None` when it is lost.
    pub async fn stats_now(&self) -> Option<NodeStats> {
        match self.ask(NodeRequest::Stats, SHORT_LIMIT).await {
            Ok((Reply::Stats(stats), _)) => {
                let stats = convert::from_stats(stats);
                self.member.set_stats(stats);
                Some(stats)
            }
            Ok(_) | Err(_) => None,
        }
    }

    /// Asks for what the node holds again and again, until it is lost.
    pub(crate) async fn watch_stats(&self) {
        while self.stats_now().await.is_some() {
            tokio::time::sleep(STATS_PERIOD).await;
        }
    }

    /// Has the node forget a version in the background, if it knows it.
    pub(crate) fn forget(&self, id: &VersionId) {
        if self.member.unlearned(&id.0) {
            let (node, id) = (self.clone(), id.0.clone());
            tokio::spawn(async move { node.told(NodeRequest::Remove(id)).await });
        }
    }

    async fn run(&self, id: &VersionId, invocation: &mut Invocation) -> Result<Outcome, InvokeError> {
        let request = Request::Node(NodeRequest::Invoke(convert::call(id, invocation)));
        let mut introduced = Duration::ZERO;
        for _ in 0..REGISTRATIONS_MAX {
            let asked = Instant::now();
            self.introduce(id).await?;
            introduced += asked.elapsed();
            let link = self.member.link().ok_or_else(|| self.is_lost(false))?;
            let refused = |error: CallError| self.refused(error.into(), "running an event");
            let pending = link
                .begin(&request, invocation.payload.clone())
                .await
                .map_err(refused)?;
            let (reply, body) = self.await_reply(pending, invocation).await.map_err(refused)?;
            match reply {
                Reply::Outcome(outcome) => {
                    let mut outcome = convert::from_outcome(outcome, body);
                    let fetch_ns = &mut outcome.timings.fetch_ns;
                    *fetch_ns = fetch_ns.saturating_add(convert::nanos(introduced));
                    return Ok(outcome);
                }
                Reply::NotRun(NotRun::UnknownVersion(_)) => drop(self.member.unlearned(&id.0)),
                Reply::NotRun(not_run) => return Err(convert::from_not_run(not_run, body)),
                Reply::Busy => {
                    return Err(InvokeError::NoCapacity {
                        reason: "too many calls are under way to the node",
                    });
                }
                other => return Err(self.refused(unexpected(&other), "running an event")),
            }
        }
        Err(InvokeError::UnknownVersion(id.clone()))
    }

    /// The reply of a call, its output passed on meanwhile. An empty piece says that the event has been handed to its instance.
    async fn await_reply(
        &self,
        mut pending: Pending,
        invocation: &mut Invocation,
    ) -> Result<(Reply, Bytes), CallError> {
        loop {
            match pending.next().await? {
                Next::Output(piece) => {
                    pass_on(invocation, piece.clone()).await;
                    pending.took(&piece).await;
                }
                Next::Reply(answer) => {
                    while let Some(piece) = pending.try_output() {
                        pass_on(invocation, piece).await;
                    }
                    return Ok(answer);
                }
            }
        }
    }
}

async fn pass_on(invocation: &mut Invocation, piece: Bytes) {
    if !piece.is_empty() {
        // A dropped receiver discards output.
        let _ = invocation.log.send(piece).await;
    } else if let Some(delivered) = invocation.delivered.take() {
        // Nobody may want to know.
        let _ = delivered.send(());
    }
}
