//! Workers with runtimes' bases in them: a version that descends from one is laid out there in a fraction of the time.
//!
//! ```text
//!  version's runs learned ── Shape ──> base's layout, for the functions known so far
//!                         └─ Graft ──> version's layout, with a graft on that base's layout
//!  restore: a worker of the pool of that base's layout, or a blank one while there is none
//! ```
//!
//! A base is shaped for the first function of its runtime, and again for each of the next few; after that for one that it
//! does not know, but not often. Grafts on an earlier shape are made anew when their versions are used. All of it
//! happens off the path of calls, one at a time.

use std::{
    os::fd::{AsFd, BorrowedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

use gust_worker::protocol::{Command, Interface, Report, SHAPED_FOR_MAX};

use crate::{
    arm::{LAYOUT_BYTES_MAX, LearnError},
    capture::{WRITE_TIMEOUT, answer},
    files::Files,
    link::Outgoing,
    node::Inner,
    pool::Pool,
    restore::Based,
    snapshot::{Key, Layout, LearnedFrom, Snapshot, SnapshotStore},
    source::Source,
    version::Version,
    worker::{Worker, unexpected},
};

/// Shapes that are remembered.
const SHAPES_MAX: usize = 16;

/// Runtimes whose bases are kept laid out at a time.
const POOLS_MAX: usize = 2;

/// Shortest time between two shapes of bases that know as many functions as they can: each makes all workers and grafts
/// of the earlier one useless.
const RESHAPE_PAUSE: Duration = Duration::from_secs(60);

/// Attempts to graft a version after which it is restored without.
const FAILURES_MAX: u32 = 3;

/// What is known of the shapes that were made since the start.
#[derive(Debug, Default)]
pub(crate) struct Shaping {
    /// Id of the latest shape of each runtime's base, and the snapshots that it was made for.
    made_for: Vec<(u64, Vec<[u8; 32]>)>,
    last: Option<Instant>,
}

impl Shaping {
    /// Whether a shape is for a function: it was made for it, or, before the last start, for it or others.
    fn knows(&self, shape: &Layout, function: &Snapshot) -> bool {
        match self.made_for.iter().find(|(id, _)| *id == shape.id) {
            Some((_, functions)) => functions.contains(&function.checksum),
            None => function
                .layout()
                .is_some_and(|layout| layout.grafted_on == Some(shape.id)),
        }
    }

    fn may_reshape(&self, functions_known: u64) -> bool {
        functions_known < SHAPED_FOR_MAX as u64 || self.last.is_none_or(|last| last.elapsed() > RESHAPE_PAUSE)
    }

    fn made(&mut self, shape: u64, instead_of: Option<u64>, functions: Vec<[u8; 32]>) {
        self.made_for.retain(|(id, _)| Some(*id) != instead_of);
        self.made_for.push((shape, functions));
        // One for each runtime; those of runtimes that are gone are forgotten in time.
        let over = self.made_for.len().saturating_sub(SHAPES_MAX);
        self.made_for.drain(..over);
        self.last = Some(Instant::now());
    }
}

/// The pools of workers with a base in them.
#[derive(Debug)]
pub(crate) struct Shaped {
    source: Source,
    /// Workers in each.
    size: usize,
    /// The most recently used last.
    pools: Mutex<Vec<ShapedPool>>,
}

#[derive(Debug)]
struct ShapedPool {
    /// Id of the base's layout.
    layout: u64,
    pool: Arc<Pool>,
}

impl Shaped {
    pub(crate) fn new(source: Source, size: usize) -> Self {
        Self {
            source,
            size,
            pools: Mutex::default(),
        }
    }

    /// A worker with a base in it, laid out by this layout; none when there is none ready.
    pub(crate) fn take(&self, layout: u64) -> Option<Worker> {
        let pool = {
            let mut pools = self.pools();
            let at = pools.iter().position(|pool| pool.layout == layout)?;
            pools[at..].rotate_left(1);
            Arc::clone(&pools.last()?.pool)
        };
        pool.take_ready()
    }

    /// Whether workers with this layout are kept.
    pub(crate) fn has(&self, layout: u64) -> bool {
        self.pools().iter().any(|pool| pool.layout == layout)
    }

    /// Keeps workers with a base in them from now on, in the stead of those with an earlier layout of the same base.
    fn keep(&self, based: Based, instead_of: Option<u64>) {
        let layout = based.layout.id;
        let gone: Vec<ShapedPool> = {
            let mut pools = self.pools();
            if pools.iter().any(|pool| pool.layout == layout) {
                return;
            }
            let mut gone: Vec<ShapedPool> = pools
                .extract_if(.., |pool| Some(pool.layout) == instead_of)
                .collect();
            let over = (pools.len() + 1).saturating_sub(POOLS_MAX);
            gone.extend(pools.drain(..over));
            let pool = Pool::start(self.source.clone(), self.size, Some(based));
            pools.push(ShapedPool { layout, pool });
            gone
        };
        gone.iter().for_each(|pool| pool.pool.close());
    }

    /// How many workers are ready.
    pub(crate) fn len(&self) -> usize {
        self.pools().iter().map(|pool| pool.pool.len()).sum()
    }

    /// Has workers replaced that have ended by themselves.
    pub(crate) fn tend(&self) {
        self.pools().iter().for_each(|pool| pool.pool.tend());
    }

    /// Lets go of every worker.
    pub(crate) fn close(&self) {
        let pools = std::mem::take(&mut *self.pools());
        pools.iter().for_each(|pool| pool.pool.close());
    }

    fn pools(&self) -> MutexGuard<'_, Vec<ShapedPool>> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Sees to it in the background that a version can be laid out on its runtime's base, unless it can already.
    pub(crate) fn tend_graft(self: &Arc<Self>, version: &Arc<Version>, snapshot: &Arc<Snapshot>) {
        let is_ready = snapshot
            .layout()
            .and_then(|layout| layout.grafted_on)
            .is_some_and(|layout| self.shaped.has(layout));
        let is_due = !is_ready
            && self.shaped.size > 0
            && snapshot.layout().is_some()
            && !snapshot.is_learning()
            && version.graft_failures.load(Ordering::Relaxed) < FAILURES_MAX;
        if !is_due || version.grafting.swap(true, Ordering::Relaxed) {
            return;
        }
        let (inner, version, snapshot) = (Arc::clone(self), Arc::clone(version), Arc::clone(snapshot));
        tokio::spawn(async move {
            let grafted = inner.graft(&version, &snapshot).await;
            version.grafting.store(false, Ordering::Relaxed);
            if let Err(error) = grafted
                && !inner.is_stopping()
            {
                version.graft_failures.fetch_add(1, Ordering::Relaxed);
                let error: &dyn std::error::Error = &error;
                tracing::warn!(version = %version.id(), error, "a version is not laid out on its runtime's base");
            }
        });
    }

    async fn graft(&self, version: &Arc<Version>, snapshot: &Arc<Snapshot>) -> Result<(), LearnError> {
        let Some(store) = &self.snapshots else {
            return Ok(());
        };
        let files = version.files(&self.files).await.map_err(LearnError::Node)?;
        match files.interface() {
            Interface::Device => {}
            // It starts with its function, and has no base.
            Interface::RuntimeApi => {
                version.graft_failures.store(FAILURES_MAX, Ordering::Relaxed);
                return Ok(());
            }
        }
        let mut shaping = self.shaping.lock().await;
        let base = self.base(store, &files).await.map_err(LearnError::Start)?;
        let (shape, earlier) = self.shape(store, (&base, snapshot), &files, &mut shaping).await?;
        if let Some(layout) = snapshot.layout()
            && layout.grafted_on != Some(shape.id)
        {
            let files = [
                snapshot.memory(),
                layout.file.file(),
                base.memory(),
                shape.file.file(),
            ];
            let [memory, own_layout, base_memory, shape_file] = files.each_ref().map(|file| file.as_fd());
            let inputs = [
                memory,
                snapshot.state.as_fd(),
                own_layout,
                base_memory,
                base.state.as_fd(),
                shape_file,
            ];
            let key = Key {
                name: version.id().0.clone(),
                inputs: Vec::new(),
            };
            let from = LearnedFrom::Base(shape.id);
            self.relayout(store, &Command::Graft, &inputs, (key, snapshot, from))
                .await?;
            self.forget_removed(version).await;
        }
        let based = Based {
            snapshot: base,
            layout: shape,
            files,
        };
        self.shaped.keep(based, earlier);
        Ok(())
    }

    /// The layout of a base, made (anew) when there are functions that it does not know and might; and the id of the one
    /// before.
    async fn shape(
        &self,
        store: &Arc<SnapshotStore>,
        (base, function): (&Arc<Snapshot>, &Arc<Snapshot>),
        files: &Files,
        shaping: &mut Shaping,
    ) -> Result<(Arc<Layout>, Option<u64>), LearnError> {
        let earlier = base.layout();
        if let Some(layout) = &earlier
            && (shaping.knows(layout, function) || !shaping.may_reshape(base.learned_from()))
        {
            return Ok((Arc::clone(layout), None));
        }
        let known = functions_to_know(store, function, &files.root.checksum);
        let base_memory = base.memory();
        let known_files: Vec<_> = known
            .iter()
            .map(|(snapshot, layout)| (snapshot.memory(), layout.file.file()))
            .collect();
        let mut inputs = vec![base_memory.as_fd(), base.state.as_fd()];
        for ((snapshot, _), (memory, layout)) in known.iter().zip(&known_files) {
            inputs.extend([memory.as_fd(), snapshot.state.as_fd(), layout.as_fd()]);
        }
        let key = Key {
            name: files.base_name(),
            inputs: Vec::new(),
        };
        let from = LearnedFrom::Functions(known.len() as u64);
        self.relayout(store, &Command::Shape, &inputs, (key, base, from))
            .await?;
        let layout = base.layout().ok_or(LearnError::Length(0))?;
        let earlier = earlier.map(|layout| layout.id);
        let made_for = known.iter().map(|(snapshot, _)| snapshot.checksum).collect();
        shaping.made(layout.id, earlier, made_for);
        Ok((layout, earlier))
    }

    /// Has a blank worker write a layout from files, and uses it from now on.
    async fn relayout(
        &self,
        store: &Arc<SnapshotStore>,
        command: &Command,
        inputs: &[BorrowedFd<'_>],
        (key, snapshot, from): (Key, &Arc<Snapshot>, LearnedFrom),
    ) -> Result<(), LearnError> {
        let draft = store.layout_draft().map_err(LearnError::Draft)?;
        let mut worker = self
            .take_worker(crate::restore::RUNTIME_LIMITS)
            .await
            .map_err(LearnError::Start)?;
        let outgoing = Outgoing {
            command,
            body: b"",
            descriptors: std::iter::once(draft.as_fd())
                .chain(inputs.iter().copied())
                .collect(),
        };
        worker.send(&[outgoing]).await?;
        match answer(&mut worker, WRITE_TIMEOUT).await?.message {
            Report::Replanned { .. } => {}
            other => return Err(unexpected(&other).into()),
        }
        drop(worker);
        self.keep_layout(store, key, snapshot, draft, from).await
    }

    /// Takes in a layout that a worker has written. What is there counts, and not what the worker says is there.
    pub(crate) async fn keep_layout(
        &self,
        store: &Arc<SnapshotStore>,
        key: Key,
        snapshot: &Arc<Snapshot>,
        draft: std::fs::File,
        from: LearnedFrom,
    ) -> Result<(), LearnError> {
        let bytes = draft.metadata().map_err(LearnError::Draft)?.len();
        if bytes == 0 || bytes > LAYOUT_BYTES_MAX {
            return Err(LearnError::Length(bytes));
        }
        let (store, snapshot) = (Arc::clone(store), Arc::clone(snapshot));
        let kept = tokio::task::spawn_blocking(move || {
            let kept = store.keep_layout(&key, &snapshot, (&draft, bytes), from);
            if let Err(error) = kept {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(name = key.name, error, "a layout is kept in memory only");
            }
        });
        // A panic there is logged by its thread.
        let _ = kept.await;
        Ok(())
    }
}

/// A function, and others of its runtime, that a base is to be laid out for.
fn functions_to_know(
    store: &SnapshotStore,
    function: &Arc<Snapshot>,
    runtime: &[u8; 32],
) -> Vec<(Arc<Snapshot>, Arc<Layout>)> {
    let others = store
        .descendants(runtime)
        .into_iter()
        .filter(|other| !Arc::ptr_eq(other, function));
    std::iter::once(Arc::clone(function))
        .chain(others)
        .filter_map(|snapshot| {
            let layout = snapshot.layout()?;
            Some((snapshot, layout))
        })
        .take(SHAPED_FOR_MAX)
        .collect()
}
