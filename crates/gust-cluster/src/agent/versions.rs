//! Versions that the control plane has told this node of, and how they come to be here.
//!
//! ```text
//!  known ── first use ──> images are fetched
//!                         a snapshot that another node has made with the same processor features is fetched
//!                         the node is told ──> ready: restored from that snapshot, or booted where there is none
//! ```
//!
//! A version's files are the work of one; calls that come meanwhile wait for it. A failure is tried again by the next call.

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use gust_node::{Node, NodeError, SnapshotFiles, VersionId, VersionSpec};
use tokio::sync::OnceCell;

use super::Agent;
use crate::{
    convert::{self, Images, io_error},
    files::{FileId, Origin, Wanted},
    hub::blocking,
    message::{ControlRequest, Reply, Request, SnapshotRef, Source, Version, text},
};

/// Most versions that a node knows.
const VERSIONS_MAX: usize = 256 << 10;

/// Longest time for the control plane to say who has a file.
const LOCATE_LIMIT: Duration = Duration::from_secs(5);

/// Longest time for the control plane to find a snapshot: it asks other nodes, which may have to read it through.
const FIND_LIMIT: Duration = Duration::from_secs(60);

/// One version.
#[derive(Debug)]
pub(super) struct Entry {
    version: Version,
    ready: OnceCell<()>,
}

/// All that are known.
#[derive(Debug, Default)]
pub(super) struct Versions(Mutex<HashMap<String, Arc<Entry>>>);

impl Versions {
    /// One by its name.
    pub(super) fn get(&self, id: &str) -> Option<Arc<Entry>> {
        self.entries().get(id).cloned()
    }

    /// Knows one; one that is known is the same, because a name is one version's for ever.
    pub(super) fn insert(&self, version: Version) -> Option<Arc<Entry>> {
        let mut entries = self.entries();
        if entries.len() >= VERSIONS_MAX {
            return None;
        }
        let entry = entries.entry(version.id.clone()).or_insert_with(|| {
            Arc::new(Entry {
                version,
                ready: OnceCell::new(),
            })
        });
        Some(Arc::clone(entry))
    }

    /// Every name, and whether the node has a snapshot.
    pub(super) fn report(&self, node: &Node) -> Vec<(String, bool)> {
        let names: Vec<String> = self.entries().keys().cloned().collect();
        let has_snapshot = |id: &String| {
            let files = node.snapshot_files(&VersionId(id.clone()));
            files.is_some_and(|files| files.exist())
        };
        names
            .into_iter()
            .map(|id| (id.clone(), has_snapshot(&id)))
            .collect()
    }

    fn names_but(&self, kept: &HashSet<String>) -> Vec<String> {
        let entries = self.entries();
        entries.keys().filter(|id| !kept.contains(*id)).cloned().collect()
    }

    /// Images of one that is forgotten which no other version has.
    fn remove(&self, id: &str) -> Vec<FileId> {
        let mut entries = self.entries();
        let Some(removed) = entries.remove(id) else {
            return Vec::new();
        };
        let used: HashSet<FileId> = entries
            .values()
            .flat_map(|entry| images(&entry.version))
            .collect();
        images(&removed.version)
            .filter(|file| !used.contains(file))
            .collect()
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<String, Arc<Entry>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn images(version: &Version) -> impl Iterator<Item = FileId> {
    [version.root_image, version.code_image]
        .into_iter()
        .chain(version.layer_images.iter().copied())
}

impl Agent {
    /// Has a version's files and another node's snapshot of it here, and the node know it.
    pub(super) async fn make_ready(&self, entry: &Entry) -> Result<(), NodeError> {
        let made = entry.ready.get_or_try_init(|| async {
            let spec = self.spec(entry).await?;
            self.get_snapshot(&spec.id).await;
            self.0.node.register(spec);
            Ok(())
        });
        made.await.copied()
    }

    /// A version as the node is told of it, with its images here.
    pub(super) async fn spec(&self, entry: &Entry) -> Result<VersionSpec, NodeError> {
        let version = &entry.version;
        let mut paths = Vec::new();
        let mut fetched = Vec::new();
        for id in images(version) {
            match self.0.library.file(id) {
                Some(path) => paths.push(path),
                None => {
                    paths.push(self.image(id).await?);
                    fetched.push(id);
                }
            }
        }
        if !fetched.is_empty() {
            self.tell(ControlRequest::Holds(fetched)).await;
        }
        let layers = paths.split_off(2);
        let [root, code] = <[_; 2]>::try_from(paths).unwrap_or_default();
        let images = Images { root, code, layers };
        convert::spec(version, images)
            .map_err(|error| io_error("reading where a version may connect to", text(&error)))
    }

    /// An image, from wherever it is.
    async fn image(&self, id: FileId) -> Result<PathBuf, NodeError> {
        let asked = self.ask(ControlRequest::Locate(id), LOCATE_LIMIT).await;
        let sources = match asked {
            Some(Reply::Sources(sources)) => sources,
            Some(_) | None => Vec::new(),
        };
        let origins = self.origins(&sources).await;
        self.obtain(id, origins).await
    }

    /// Members to get files from: those that are named, the control plane last.
    async fn origins(&self, sources: &[Source]) -> Vec<Origin> {
        let mut origins = self.0.peers.origins(sources).await;
        match self.0.peers.control().await {
            Ok(control) => origins.push(control),
            Err(error) => tracing::info!(%error, "the control plane cannot be reached for files"),
        }
        origins
    }

    async fn obtain(&self, id: FileId, origins: Vec<Origin>) -> Result<PathBuf, NodeError> {
        let obtained = self.0.library.obtain(&Wanted { id, origins }).await;
        obtained.map_err(|error| io_error(format!("getting the file {id} from other members"), text(&error)))
    }

    /// Gets another node's snapshot, if there is one that this processor can use and none is here. Without one, the version is
    /// booted here.
    async fn get_snapshot(&self, id: &VersionId) {
        let (Some(fingerprint), Some(places)) = (self.0.node.fingerprint(), self.0.node.snapshot_files(id))
        else {
            return;
        };
        if places.exist() {
            return;
        }
        let request = ControlRequest::FindSnapshot {
            version: id.0.clone(),
            fingerprint: fingerprint.to_owned(),
        };
        let Some(Reply::Snapshot(files, sources)) = self.ask(request, FIND_LIMIT).await else {
            return;
        };
        match self.fetch_snapshot(&files, &sources, &places).await {
            Ok(()) => self.tell(ControlRequest::HasSnapshot(id.0.clone())).await,
            Err(error) => {
                let error = text(&error);
                tracing::info!(version = %id, error, "another node's snapshot is not used");
            }
        }
    }

    /// Fetches a snapshot's files and puts them where the node looks for them: the description last, without which the others
    /// are nothing.
    async fn fetch_snapshot(
        &self,
        files: &SnapshotRef,
        sources: &[Source],
        places: &SnapshotFiles,
    ) -> Result<(), NodeError> {
        let origins = self.origins(sources).await;
        let mut wanted = Vec::new();
        if let Some((description, data)) = files.layout {
            wanted.extend([
                (data, &places.layout.1, false),
                (description, &places.layout.0, false),
            ]);
        }
        wanted.extend([
            (files.data, &places.data, true),
            (files.description, &places.description, true),
        ]);
        for (id, place, is_needed) in wanted {
            match self.obtain(id, origins.clone()).await {
                Ok(_) => {}
                // A layout is learned again.
                Err(_) if !is_needed => continue,
                Err(error) => return Err(error),
            }
            let (library, place) = (Arc::clone(&self.0.library), place.clone());
            let given = blocking(move || library.give_away(id, &place))
                .await
                .and_then(|given| given);
            given.map_err(|error| io_error("putting a snapshot into its place", text(&error)))?;
        }
        Ok(())
    }

    /// Tells the control plane that a version's snapshot is here now, if it is.
    pub(super) async fn announce_snapshot(&self, id: &VersionId) {
        if self.0.node.snapshot_files(id).is_some_and(|files| files.exist()) {
            self.tell(ControlRequest::HasSnapshot(id.0.clone())).await;
        }
    }

    /// Forgets a version and its files that no other needs.
    pub(super) async fn forget(&self, id: &str) {
        let unused = self.0.versions.remove(id);
        let id = VersionId(id.to_owned());
        if let Some(files) = self.0.node.snapshot_files(&id) {
            for path in [&files.description, &files.data, &files.layout.0, &files.layout.1] {
                self.0.library.withdraw(path);
            }
        }
        self.0.node.remove(&id).await;
        let library = Arc::clone(&self.0.library);
        // It blocks on nothing but the disk, and a panic there is logged by its thread.
        let _ = blocking(move || unused.into_iter().for_each(|file| library.drop_file(file))).await;
    }

    /// Forgets every version but these.
    pub(super) async fn retain(&self, kept: Vec<String>) {
        for id in self.0.versions.names_but(&kept.into_iter().collect()) {
            self.forget(&id).await;
        }
    }

    async fn ask(&self, request: ControlRequest, limit: Duration) -> Option<Reply> {
        let link = self.control()?;
        let asked = link.call(&Request::Control(request), Bytes::new(), limit).await;
        asked.ok().map(|(reply, _)| reply)
    }
}
