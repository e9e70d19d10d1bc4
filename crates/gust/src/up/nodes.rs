//! The port that nodes join at, where a server has one.

use std::{net::SocketAddr, os::fd::OwnedFd, time::Duration};

use anyhow::{Context, Result};
use gust_cluster::{Hub, HubConfig};
use gust_control::{Cluster, agent::Agent};
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};

use super::{UpConfig, listen};

/// The port, bound, and what serves it.
pub struct Nodes {
    hub: Hub,
    listener: TcpListener,
}

/// Nodes are being served.
pub struct ServedNodes {
    hub: Hub,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Nodes {
    /// Binds the port, if there is to be one and it has not been taken over.
    pub async fn open(
        config: &UpConfig,
        agent: &Agent,
        taken: Option<TcpListener>,
    ) -> Result<Option<(Cluster, Self)>> {
        let Some(address) = config.cluster_listen else {
            return Ok(None);
        };
        let listener = match taken {
            Some(listener) => listener,
            None => listen(address, "--cluster-listen").await?,
        };
        let local = match agent {
            Agent::Local(node) => Some(node.clone()),
            Agent::Fake(_) | Agent::Remote(_) => None,
        };
        let hub = HubConfig {
            directory: Hub::directory(&config.data_dir),
            local,
        };
        let (hub, events) = Hub::open(&hub).context("open the cluster's authority")?;
        let cluster = Cluster {
            hub: hub.clone(),
            events,
        };
        Ok(Some((cluster, Self { hub, listener })))
    }

    /// A second descriptor of the port's socket, for a process that takes over, and its address.
    pub fn socket(&self) -> Result<(OwnedFd, SocketAddr)> {
        super::duplicate(&self.listener)
    }

    /// Serves nodes until it is stopped.
    pub fn serve(self) -> ServedNodes {
        let (stop, stopped) = oneshot::channel::<()>();
        let hub = self.hub.clone();
        let task = tokio::spawn(async move {
            let shutdown = async {
                // Dropped is as good as said.
                let _ = stopped.await;
            };
            self.hub.run(self.listener, shutdown).await;
        });
        ServedNodes { hub, stop, task }
    }
}

impl ServedNodes {
    /// Has nodes link to the process that has taken over, each as soon as no call from here is under way to it.
    pub async fn let_go(&self, patience: Duration) {
        self.hub.let_go(patience).await;
    }

    /// Ends every link.
    pub async fn stop(self) {
        drop(self.stop);
        if let Err(error) = self.task.await {
            tracing::error!(%error, "serving nodes failed");
        }
    }
}
