//! Who has a file or a snapshot: asked of the nodes that are there, never stored.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;

use gust_node::{Node, VersionId};

use super::{Hub, Member, blocking};
use crate::{
    files::{FileId, Library},
    message::{NodeRequest, Reply, Request, SnapshotRef, Source},
};

/// Most members that are named for one file.
const SOURCES_MAX: usize = 3;

/// Most nodes that are asked for one snapshot.
const ASKED_MAX: usize = 8;

/// Longest time for a node to name the files of a snapshot: it may have to read them through.
const EXPORT_LIMIT: Duration = Duration::from_secs(30);

impl Hub {
    /// Nodes that have a file, but the one that asks. Not always the same of many, so that they share the work.
    pub(super) fn locate(&self, file: FileId, asking: &Member) -> Vec<Source> {
        let members = self.members();
        let others = members.values().filter(|member| member.name != asking.name);
        let having = others.filter(|member| member.has_file(file));
        // A map's order differs from process to process, and a node that is asked soon has company.
        having
            .filter_map(|member| member.source())
            .take(SOURCES_MAX)
            .collect()
    }

    /// The files of a snapshot of the node in this process: they are got from here.
    async fn local_snapshot(&self, version: &str, fingerprint: &str) -> Option<SnapshotRef> {
        let local = self.0.local.as_ref()?;
        if local.fingerprint() != Some(fingerprint) {
            return None;
        }
        export(local, &self.0.library, version).await
    }

    /// The files of a version's snapshot and who has them, made with these processor features. Those that are known to have one are
    /// asked first; others may have kept one over a restart.
    pub(super) async fn find_snapshot(&self, version: &str, fingerprint: &str, asking: &Member) -> Reply {
        if let Some(files) = self.local_snapshot(version, fingerprint).await {
            return Reply::Snapshot(files, Vec::new());
        }
        let mut candidates: Vec<Arc<Member>> = {
            let members = self.members();
            let fits = |member: &&Arc<Member>| {
                member.name != asking.name
                    && member
                        .hello()
                        .is_some_and(|hello| hello.fingerprint == fingerprint && hello.is_kvm)
            };
            members.values().filter(fits).map(Arc::clone).collect()
        };
        candidates.sort_by_key(|member| !member.has_snapshot(version));
        for member in candidates.into_iter().take(ASKED_MAX) {
            let (Some(link), Some(source)) = (member.link(), member.source()) else {
                continue;
            };
            let request = Request::Node(NodeRequest::Export(version.to_owned()));
            if let Ok((Reply::Snapshot(files, _), _)) = link.call(&request, Bytes::new(), EXPORT_LIMIT).await
            {
                member.learned_snapshot(version);
                return Reply::Snapshot(files, vec![source]);
            }
        }
        Reply::Missing
    }
}

/// The files of a version's snapshot on a node, published for others to get; `None` when there is none.
pub(crate) async fn export(node: &Node, library: &Arc<Library>, version: &str) -> Option<SnapshotRef> {
    let files = node.snapshot_files(&VersionId(version.to_owned()))?;
    let library = Arc::clone(library);
    let published = blocking(move || {
        if !files.exist() {
            return None;
        }
        let publish = |path| library.publish(path).ok();
        let layout = match files.have_layout() {
            true => publish(&files.layout.0).zip(publish(&files.layout.1)),
            false => None,
        };
        Some(SnapshotRef {
            description: publish(&files.description)?,
            data: publish(&files.data)?,
            layout,
        })
    });
    published.await.ok().flatten()
}

impl Member {
    /// It has turned out to have a snapshot of a version that it knows.
    fn learned_snapshot(&self, version: &str) {
        if self.knows(version) {
            self.learned(version, true);
        }
    }
}
