//! The restore layout of one snapshot: which there is, and whose run the next is learned from.
//!
//! ```text
//!  no layout ── claim ──> one instance records its first run ── learned ──> layout of 1 run ── claim ──> ... 2 runs: done
//!      ^                           └ dropped: another may claim
//! ```
//!
//! A recorded run is slower than others, and so is the rest of its instance's life: no more are recorded than are needed.

use std::sync::{Arc, Mutex};

use super::{Resident, Snapshot, lock};

/// Runs that a layout is learned from. What a function touches is nearly complete after two different inputs; further ones
/// add a few pages, whose faults cost less than another recorded run.
pub(super) const RUNS_WANTED: u64 = 2;

/// Recorded runs that may come to nothing before a snapshot is used without a (better) layout.
const FAILURES_MAX: u32 = 3;

/// A restore layout.
#[derive(Debug)]
pub(crate) struct Layout {
    /// For reading only.
    pub file: Resident,
    /// Sets it apart from every other.
    pub id: u64,
    /// The layout of the runtime's base that it has a graft for.
    pub grafted_on: Option<u64>,
}

/// What a new layout was made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LearnedFrom {
    /// One more run.
    Run,
    /// The same runs; it has a graft for this layout of the runtime's base.
    Base(u64),
    /// So many functions: it is a base's.
    Functions(u64),
}

/// What has been learned of a snapshot's runs.
#[derive(Debug, Default)]
pub(super) struct Learning(Mutex<Learned>);

#[derive(Debug, Default)]
struct Learned {
    layout: Option<Arc<Layout>>,
    /// Runs that the layout is made from; for a base, functions.
    runs: u64,
    recording: bool,
    failures: u32,
}

/// The right and duty of one instance to record its first run. Dropped when that run has been learned from or has come
/// to nothing.
#[derive(Debug)]
pub(crate) struct Recording {
    snapshot: Arc<Snapshot>,
}

impl Learning {
    /// With a layout of so many runs.
    pub(super) fn new(layout: Option<(Arc<Layout>, u64)>) -> Self {
        let (layout, runs) = layout.map_or((None, 0), |(layout, runs)| (Some(layout), runs));
        Self(Mutex::new(Learned {
            layout,
            runs,
            ..Learned::default()
        }))
    }

    pub(super) fn held_bytes(&self) -> u64 {
        let layout = lock(&self.0).layout.clone();
        layout.map_or(0, |layout| layout.file.held_bytes())
    }

    /// Takes a layout; returns from how many runs or functions it is.
    pub(super) fn learned(&self, layout: Layout, from: LearnedFrom) -> u64 {
        let mut learned = lock(&self.0);
        learned.layout = Some(Arc::new(layout));
        learned.runs = match from {
            LearnedFrom::Run => learned.runs + 1,
            LearnedFrom::Base(_) => learned.runs,
            LearnedFrom::Functions(functions) => functions,
        };
        learned.runs
    }
}

impl Snapshot {
    /// The layout that was learned, if one was.
    pub(crate) fn layout(&self) -> Option<Arc<Layout>> {
        lock(&self.learning.0).layout.clone()
    }

    /// Runs that its layout is made from; for a base, functions.
    pub(crate) fn learned_from(&self) -> u64 {
        lock(&self.learning.0).runs
    }

    /// Whether more runs are to be recorded.
    pub(crate) fn is_learning(&self) -> bool {
        let learned = lock(&self.learning.0);
        learned.runs < RUNS_WANTED && learned.failures < FAILURES_MAX
    }

    /// Whether an instance records now, so that a better layout is to be expected soon.
    pub(crate) fn is_being_recorded(&self) -> bool {
        lock(&self.learning.0).recording
    }

    /// Has the next instance record its first run, if one is wanted and none does.
    pub(crate) fn claim_recording(self: &Arc<Self>) -> Option<Recording> {
        let mut learned = lock(&self.learning.0);
        let wanted = learned.runs < RUNS_WANTED && learned.failures < FAILURES_MAX && !learned.recording;
        wanted.then(|| {
            learned.recording = true;
            Recording {
                snapshot: Arc::clone(self),
            }
        })
    }
}

impl Recording {
    /// What is recorded.
    pub(crate) fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    /// The run was recorded, but no layout came of it.
    pub(crate) fn failed(&self) {
        lock(&self.snapshot.learning.0).failures += 1;
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        lock(&self.snapshot.learning.0).recording = false;
    }
}
