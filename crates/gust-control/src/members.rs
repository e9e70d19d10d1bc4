//! Who the nodes of the cluster are, and which of them have been thrown out.
//!
//! That a node was thrown out is a record, so that it stays out after a restart. The record goes when no certificate of
//! the node can be valid any more.

use std::time::Duration;

use gust_cluster::trust::{NodeName, REVOCATION_KEPT, REVOKED_MAX};
use gust_store::{Batch, Meta, Record, StoreError};
use serde::{Deserialize, Serialize};

use crate::{clock, control::Control, error::ControlError};

/// A node on another machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// Version of its program.
    pub program: String,
    /// Region that it lies in.
    pub region: u16,
    /// Memory for instances, in bytes.
    pub memory_bytes: u64,
    /// Most instances.
    pub instances_max: u64,
    /// It has said that it leaves.
    pub is_draining: bool,
}

/// A node has been thrown out; its key is its name.
#[derive(Debug, Serialize, Deserialize)]
struct RevokedNode {
    revoked_unix_ms: u64,
}

impl Record for RevokedNode {
    const TABLE: &'static str = "revoked-nodes";
    const KIND: u8 = 7;
    const VERSION: u8 = 1;
}

impl RevokedNode {
    fn counts(&self, now_unix_ms: u64) -> bool {
        let age = Duration::from_millis(now_unix_ms.saturating_sub(self.revoked_unix_ms));
        age < REVOCATION_KEPT
    }
}

impl Control {
    /// The nodes on other machines that are linked, by their names.
    pub fn nodes(&self) -> Vec<NodeStatus> {
        let Some(hub) = &self.0.hub else {
            return Vec::new();
        };
        let linked = hub.nodes().into_iter().filter_map(|node| {
            let info = node.info()?;
            Some(NodeStatus {
                name: node.name().to_string(),
                program: info.program,
                region: info.region,
                memory_bytes: info.memory_bytes,
                instances_max: info.instances_max,
                is_draining: node.is_draining(),
            })
        });
        let mut nodes: Vec<_> = linked.collect();
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        nodes
    }

    /// Throws a node out for good: writes that down, then ends its connections. Calls that run on it are lost. Answers
    /// whether it was linked; one that is not known here is kept out as well. Carried out to its end even if the caller
    /// goes away.
    ///
    /// # Errors
    /// When there is no cluster, the name is none, too many nodes have been thrown out, or the store fails; then
    /// nothing has changed.
    pub async fn revoke_node(&self, name: &str) -> Result<bool, ControlError> {
        let name: NodeName = name.parse().map_err(|error: gust_cluster::trust::NameError| {
            ControlError::InvalidParameter(error.to_string())
        })?;
        let control = self.clone();
        let work = async move { control.revoke_now(name).await };
        match self.0.tasks.spawn(work).await {
            Ok(result) => result,
            Err(panic) => Err(ControlError::Service(format!(
                "throwing a node out failed: {panic}"
            ))),
        }
    }

    async fn revoke_now(&self, name: NodeName) -> Result<bool, ControlError> {
        let Some(hub) = &self.0.hub else {
            let reason = "This server has no nodes: it was started without --cluster-listen";
            return Err(ControlError::Conflict(reason.to_owned()));
        };
        // As for every change: the store may be about to be another process's.
        let _one_at_a_time = self.0.changing.lock().await;
        let meta = &self.0.store.meta;
        if !hub.can_revoke(&name) {
            let reason = format!("{REVOKED_MAX} nodes have been thrown out already: make a new authority");
            return Err(ControlError::Conflict(reason));
        }
        let (now, mut batch) = (clock::unix_ms(), Batch::new());
        for (key, record) in meta.scan::<RevokedNode>()? {
            if !record.counts(now) {
                batch.delete::<RevokedNode>(&key);
            }
        }
        let record = RevokedNode { revoked_unix_ms: now };
        batch.put(name.as_str().as_bytes(), &record);
        meta.commit(batch).await?;
        let was_linked = hub.nodes().iter().any(|node| *node.name() == name);
        tracing::warn!(%name, was_linked, "a node is thrown out");
        // There is room: it was looked for under the lock.
        hub.revoke([name]);
        Ok(was_linked)
    }
}

/// The nodes that stay out.
pub(crate) fn revoked(meta: &Meta) -> Result<Vec<NodeName>, StoreError> {
    let now = clock::unix_ms();
    let names = meta.scan::<RevokedNode>()?.into_iter();
    let names = names.filter(|(_, record)| record.counts(now));
    // Nothing else is written than what is a name.
    Ok(names
        .filter_map(|(key, _)| std::str::from_utf8(&key).ok()?.parse().ok())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn records_count_as_long_as_certificates_can() {
        let meta = Meta::in_memory();
        let now = clock::unix_ms();
        let kept_ms = u64::try_from(REVOCATION_KEPT.as_millis()).unwrap();
        let mut batch = Batch::new();
        for (name, ago_ms) in [("new", 0), ("old", kept_ms - 60_000), ("expired", kept_ms)] {
            let revoked_unix_ms = now - ago_ms;
            batch.put(name.as_bytes(), &RevokedNode { revoked_unix_ms });
        }
        meta.commit(batch).await.unwrap();
        let names: Vec<_> = revoked(&meta).unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(names, ["new", "old"]);
    }

    #[test]
    fn the_record_is_pinned() {
        let record = RevokedNode { revoked_unix_ms: 300 };
        assert_eq!(gust_store::encode(&record), [7, 1, 0xac, 2]);
    }
}
