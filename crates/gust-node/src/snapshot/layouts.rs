//! Layouts on disk and in memory: each belongs to the snapshot that it was learned from.

use std::{fs::File, sync::Arc};

use super::{
    Key, Layout, LearnedFrom, Snapshot, SnapshotStore,
    format::{self, Description, FormatError, Reader},
    random_id,
    resident::Resident,
    scratch::read_only,
};

impl SnapshotStore {
    /// Takes in a layout that a worker has written: from now on every restore uses it. Blocks.
    pub(crate) fn keep_layout(
        &self,
        key: &Key,
        snapshot: &Snapshot,
        (draft, bytes): (&File, u64),
        from: LearnedFrom,
    ) -> Result<(), FormatError> {
        let path = self.path(&key.name, "layout");
        let file = read_only(draft).map_err(|source| FormatError::Io {
            path: path.clone(),
            source,
        })?;
        let grafted_on = match from {
            LearnedFrom::Base(layout) => Some(layout),
            LearnedFrom::Run | LearnedFrom::Functions(_) => None,
        };
        let id = random_id();
        let file = Resident::in_memory(file, bytes);
        let layout = Layout { file, id, grafted_on };
        let runs = snapshot.learning.learned(layout, from);
        if snapshot.stored_bytes == 0 {
            return Ok(());
        }
        let numbers = [Some(runs), Some(id), grafted_on].into_iter().flatten().collect();
        let description = self.layout_description(key, snapshot.checksum, numbers);
        format::write(&path, &description, (draft, bytes), &[])?;
        self.note_checked(&path, &description);
        Ok(())
    }

    pub(super) fn load_layout(&self, key: &Key, checksum: [u8; 32]) -> Option<(Arc<Layout>, u64)> {
        let path = self.path(&key.name, "layout");
        let expected = self.layout_description(key, checksum, Vec::new());
        let loaded = Reader::open(&path, &expected).and_then(|reader| {
            let file = self.resident(&path, &reader)?;
            let [runs, id, rest @ ..] = reader.description().numbers.as_slice() else {
                return Err(FormatError::Damaged("its numbers"));
            };
            let layout = Layout {
                file,
                id: *id,
                grafted_on: rest.first().copied(),
            };
            Ok((Arc::new(layout), *runs))
        });
        match loaded {
            Ok(layout) => Some(layout),
            Err(FormatError::Missing) => None,
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(name = key.name, error, "a layout is learned anew");
                None
            }
        }
    }

    pub(super) fn layout_description(&self, key: &Key, snapshot: [u8; 32], numbers: Vec<u64>) -> Description {
        Description {
            name: format!("layout of {}", key.name),
            fingerprint: self.fingerprint.clone(),
            inputs: vec![snapshot],
            numbers,
        }
    }
}
