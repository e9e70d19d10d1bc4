//! What the control plane knows of a node, as long as it runs.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use gust_node::{InstanceName, Load, NodeStats, Present};
use tokio::sync::{Notify, watch};

use crate::{
    convert,
    files::FileId,
    link::Link,
    message::{Hello, Report, Source},
    trust::NodeName,
};

/// Most files that are remembered of a node.
const FILES_MAX: usize = 64 << 10;

/// Most names of instances that wait to be asked for; a control plane that does not ask learns of more when it calls them.
const LOST_MAX: usize = 64 << 10;

/// Most versions that are remembered of a node.
const VERSIONS_MAX: usize = 1 << 20;

/// One node.
#[derive(Debug)]
pub(crate) struct Member {
    pub name: NodeName,
    state: Mutex<State>,
    /// Held while its link changes, so that what is told of it is told in order.
    pub turn: tokio::sync::Mutex<()>,
    /// There are instances that have been lost.
    has_lost: Notify,
    /// Its load is known, or another.
    has_load: Notify,
    /// Calls that are under way to it.
    calls: watch::Sender<Calls>,
}

#[derive(Debug, Default)]
struct State {
    link: Option<Link>,
    hello: Option<Hello>,
    /// Versions that it knows, and whether it has a snapshot of each.
    versions: HashMap<String, bool>,
    files: HashSet<FileId>,
    is_draining: bool,
    /// Instances with names, as it has reported them when its link was made.
    present: Vec<Present>,
    /// Names of instances that have ended by themselves and have not been asked for.
    lost: Vec<InstanceName>,
    /// The load that it told of last, if that has not been asked for.
    load: Option<Load>,
    stats: NodeStats,
}

/// Calls to a node.
#[derive(Debug, Default)]
struct Calls {
    under_way: usize,
    /// There are to be no more.
    are_over: bool,
}

/// A call that is counted.
struct Counted<'a>(&'a Member);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.calls.send_modify(|calls| calls.under_way -= 1);
    }
}

impl Member {
    pub(crate) fn new(name: NodeName) -> Self {
        Self {
            name,
            state: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            has_lost: Notify::new(),
            has_load: Notify::new(),
            calls: watch::Sender::default(),
        }
    }

    /// A call is under way to it until this is dropped; `None` after [`Member::end_calls`].
    pub(crate) fn count_call(&self) -> Option<impl Drop + Send + use<'_>> {
        let is_let = self.calls.send_if_modified(|calls| {
            calls.under_way += usize::from(!calls.are_over);
            !calls.are_over
        });
        is_let.then(|| Counted(self))
    }

    /// Waits for a moment at which no call is under way to it; there is none from then on.
    pub(crate) async fn end_calls(&self) {
        let mut calls = self.calls.subscribe();
        let end = |calls: &mut Calls| {
            calls.are_over = calls.under_way == 0;
            calls.are_over
        };
        while !self.calls.send_if_modified(end) {
            // The sender is here.
            drop(calls.wait_for(|calls| calls.under_way == 0).await);
        }
    }

    /// Its link, while there is one.
    pub(crate) fn link(&self) -> Option<Link> {
        self.state().link.clone().filter(|link| link.closed().is_none())
    }

    /// A link that it has made, and what it says; the link before, if that had not ended.
    pub(crate) fn attach(&self, link: Link, hello: Hello, report: Report) -> Option<Link> {
        let mut state = self.state();
        state.hello = Some(hello);
        state.versions = report.versions.into_iter().take(VERSIONS_MAX).collect();
        state.files = report.files.into_iter().take(FILES_MAX).collect();
        state.present = report.instances.into_iter().map(convert::from_present).collect();
        // The report says what is left.
        state.lost.clear();
        state.is_draining = false;
        state.link.replace(link)
    }

    /// A link has ended; whether it was the present one.
    pub(crate) fn detach(&self, link: &Link) -> bool {
        let mut state = self.state();
        let was_present = state.link.as_ref().is_some_and(|present| present.is(link));
        if was_present {
            state.link = None;
        }
        was_present
    }

    pub(crate) fn hello(&self) -> Option<Hello> {
        self.state().hello.clone()
    }

    pub(crate) fn drain(&self) {
        self.state().is_draining = true;
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.state().is_draining
    }

    pub(crate) fn knows(&self, version: &str) -> bool {
        self.state().versions.contains_key(version)
    }

    pub(crate) fn has_snapshot(&self, version: &str) -> bool {
        self.state().versions.get(version).copied().unwrap_or(false)
    }

    /// It knows a version now; whether it has a snapshot of it is added to what was known.
    pub(crate) fn learned(&self, version: &str, has_snapshot: bool) {
        let mut state = self.state();
        if state.versions.len() < VERSIONS_MAX {
            *state.versions.entry(version.to_owned()).or_default() |= has_snapshot;
        }
    }

    /// It does not know a version any more; whether it had.
    pub(crate) fn unlearned(&self, version: &str) -> bool {
        self.state().versions.remove(version).is_some()
    }

    pub(crate) fn holds(&self, files: Vec<FileId>) {
        let mut state = self.state();
        let room = FILES_MAX.saturating_sub(state.files.len());
        state.files.extend(files.into_iter().take(room));
    }

    pub(crate) fn has_file(&self, file: FileId) -> bool {
        self.state().files.contains(&file)
    }

    /// Instances with names, as it has reported them when its link was made.
    pub(crate) fn present(&self) -> Vec<Present> {
        self.state().present.clone()
    }

    /// Instances have ended by themselves.
    pub(crate) fn lose(&self, names: impl IntoIterator<Item = InstanceName>) {
        let mut state = self.state();
        let room = LOST_MAX.saturating_sub(state.lost.len());
        state.lost.extend(names.into_iter().take(room));
        drop(state);
        self.has_lost.notify_one();
    }

    /// Waits until instances have ended by themselves; each is told once.
    pub(crate) async fn lost(&self) -> Vec<InstanceName> {
        loop {
            let lost = std::mem::take(&mut self.state().lost);
            if !lost.is_empty() {
                return lost;
            }
            self.has_lost.notified().await;
        }
    }

    /// How much its processors have to do.
    pub(crate) fn set_load(&self, load: Load) {
        self.state().load = Some(load);
        self.has_load.notify_one();
    }

    /// Waits until it tells of its load.
    pub(crate) async fn load(&self) -> Load {
        loop {
            let load = self.state().load.take();
            if let Some(load) = load {
                return load;
            }
            self.has_load.notified().await;
        }
    }

    /// What it held when it was asked last.
    pub(crate) fn stats(&self) -> NodeStats {
        self.state().stats
    }

    pub(crate) fn set_stats(&self, stats: NodeStats) {
        self.state().stats = stats;
    }

    /// Where others get files from it, while it is there.
    pub(crate) fn source(&self) -> Option<Source> {
        let state = self.state();
        let address: SocketAddr = state.hello.as_ref().map(|hello| hello.files)?;
        state.link.as_ref().filter(|link| link.closed().is_none())?;
        Some(Source {
            name: self.name.as_str().to_owned(),
            address,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
