//! A snapshot's files as other nodes get them and give them.
//!
//! They are moved whole and looked at no further: whoever loads a snapshot checks that it was made with this processor's
//! features and from the version's images, and every byte of it, so that files of another node are believed no more than
//! files of an earlier start of this one.

use std::path::PathBuf;

use super::{SnapshotStore, format};

/// Where the files of one version's snapshot lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotFiles {
    /// Description and state.
    pub description: PathBuf,
    /// Memory.
    pub data: PathBuf,
    /// Description and data of the layout that was learned.
    pub layout: (PathBuf, PathBuf),
}

impl SnapshotFiles {
    /// Whether there is a snapshot.
    pub fn exist(&self) -> bool {
        self.description.exists() && self.data.exists()
    }

    /// Whether there is a layout too.
    pub fn have_layout(&self) -> bool {
        self.layout.0.exists() && self.layout.1.exists()
    }
}

impl SnapshotStore {
    /// Where the files of a snapshot are, or would be.
    pub(crate) fn files(&self, name: &str) -> SnapshotFiles {
        let [description, layout] = ["snapshot", "layout"].map(|kind| self.path(name, kind));
        SnapshotFiles {
            data: format::data_path(&description),
            layout: (layout.clone(), format::data_path(&layout)),
            description,
        }
    }

    /// Names the processor features that its snapshots are made with.
    pub(crate) fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}
