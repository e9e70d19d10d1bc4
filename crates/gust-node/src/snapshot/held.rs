//! Which snapshots can be laid out at once: as many as there is memory for, and descriptors.

use std::{collections::HashMap, sync::Arc};

use super::{Key, Snapshot, SnapshotStore, lock};

/// Snapshots on disk that are kept open. Each has two descriptors.
pub(super) const OPEN_MAX: usize = 64;

/// What can be laid out at once.
#[derive(Debug, Default)]
pub(super) struct Held {
    pub(super) snapshots: HashMap<String, HeldSnapshot>,
    pub(super) tick: u64,
}

#[derive(Debug)]
pub(super) struct HeldSnapshot {
    pub(super) snapshot: Arc<Snapshot>,
    /// What it was made from.
    pub(super) inputs: Vec<[u8; 32]>,
    /// Tick of its last use.
    pub(super) used: u64,
}

impl SnapshotStore {
    /// Keeps a snapshot in memory, and lets go of others for it, the least recently used first.
    pub(super) fn hold(&self, key: &Key, snapshot: &Arc<Snapshot>) {
        let mut held = lock(&self.held);
        held.tick += 1;
        let entry = HeldSnapshot {
            snapshot: Arc::clone(snapshot),
            inputs: key.inputs.clone(),
            used: held.tick,
        };
        held.snapshots.insert(key.name.clone(), entry);
        self.make_room(&mut held);
    }

    /// Lets go of what is too much, the least recently used first, but never of the last used.
    pub(super) fn make_room(&self, held: &mut Held) {
        let bytes = |held: &HeldSnapshot| held.snapshot.held_bytes();
        let is_open = |held: &HeldSnapshot| held.snapshot.is_on_disk();
        let mut sum: u64 = held.snapshots.values().map(bytes).sum();
        let mut open = held.snapshots.values().filter(|held| is_open(held)).count();
        let mut oldest_first: Vec<(u64, String)> = held
            .snapshots
            .iter()
            .map(|(name, held)| (held.used, name.clone()))
            .collect();
        oldest_first.sort_unstable();
        oldest_first.pop();
        for (_, name) in oldest_first {
            if sum <= self.held_bytes_max && open <= OPEN_MAX {
                return;
            }
            let Some(oldest) = held.snapshots.get(&name) else {
                continue;
            };
            // Each is let go of for what there is too much of, and no other.
            if is_open(oldest) && open > OPEN_MAX || !is_open(oldest) && sum > self.held_bytes_max {
                sum -= bytes(oldest);
                open -= usize::from(is_open(oldest));
                held.snapshots.remove(&name);
            }
        }
    }
}
