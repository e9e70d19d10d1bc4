//! How a server starts: alone, or in place of one that runs.

use std::{
    collections::HashSet,
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
};

use anyhow::{Context, Result};
use gust_control::{Control, agent::Agent, fake::FakeNode};
use gust_gateway::Doors;
use gust_store::{Store, StoreConfig, StoreError};
use tokio::net::TcpListener;

use super::{
    UpConfig, Wall,
    activation::Given,
    control_config,
    handover::{Listeners, Offer, Predecessor, Served},
    listen,
    nodes::{Nodes, ServedNodes},
    start_node, wall,
};
use crate::exit::Hinted;

/// A server that serves nodes, and is about to serve the API.
pub struct Started {
    pub api: TcpListener,
    pub served: Served,
    pub offer: Offer,
    pub nodes: Option<ServedNodes>,
    pub wall: Wall,
    /// What the user must know about the wall.
    pub remark: Option<String>,
}

/// Starts a server, in place of the one that has the data directory if it `takes_over`, otherwise on the sockets that it was
/// given.
pub async fn start(config: &UpConfig, given: Given, takes_over: bool) -> Result<Started> {
    let predecessor = match takes_over {
        true => Predecessor::reach(config).await?,
        false => None,
    };
    let (predecessor, listeners) = predecessor.unzip();
    let Listeners { api, cluster } = match listeners {
        Some(listeners) => listeners,
        None => Listeners {
            api: match given.api {
                Some(api) => TcpListener::from_std(api).context("listen on the socket that was given")?,
                None => listen(config.listen, "--listen").await?,
            },
            cluster: given
                .cluster
                .map(TcpListener::from_std)
                .transpose()
                .context("listen for nodes on the socket that was given")?,
        },
    };
    // Before anything is started, where that is possible.
    let store = match &predecessor {
        Some(_) => None,
        None => Some(open_store(config)?),
    };
    let (wall, remark) = wall(config)?;
    let agent = match wall {
        Wall::Sandbox(isolation) => Agent::Local(start_node(config, isolation).await?),
        Wall::Fake => Agent::Fake(FakeNode::new(config.fake_start, config.instances)),
    };
    let nodes = Nodes::open(config, &agent, cluster).await?;
    let (cluster, nodes) = nodes.map_or((None, None), |(cluster, nodes)| (Some(cluster), Some(nodes)));
    // From here until requests are served they wait.
    let elsewhere = match &predecessor {
        Some(predecessor) => predecessor.take_store().await?,
        None => HashSet::new(),
    };
    let store = match store {
        Some(store) => store,
        None => open_store(config)?,
    };
    let control = Control::start(control_config(config, wall), store, agent, cluster, &elsewhere)
        .context("read the metadata")?;
    let served = Served {
        control,
        doors: Doors::default(),
        api: duplicate(&api)?,
        cluster: nodes.as_ref().map(Nodes::socket).transpose()?,
    };
    let offer = Offer::open(&config.data_dir)?;
    // After the control plane knows what nodes may have instances of.
    let nodes = nodes.map(Nodes::serve);
    if let Some(predecessor) = predecessor {
        let taking_in = predecessor.serving(served.control.clone(), served.doors.clone());
        drop(taking_in.await?);
    }
    Ok(Started {
        api,
        served,
        offer,
        nodes,
        wall,
        remark,
    })
}

/// A second descriptor of a listening socket, and its address.
pub fn duplicate(listener: &TcpListener) -> Result<(OwnedFd, SocketAddr)> {
    let socket = listener.as_fd().try_clone_to_owned();
    let socket = socket.context("duplicate a listening socket")?;
    Ok((
        socket,
        listener.local_addr().context("read the listener's address")?,
    ))
}

fn open_store(config: &UpConfig) -> Result<Store> {
    Store::open(&StoreConfig::new(&config.data_dir)).map_err(|error| {
        let hint = match &error {
            StoreError::Locked { .. } => {
                Some("stop that server, or give this one another directory with --data-dir")
            }
            StoreError::DiskFull { .. } => Some("make room, or use another disk with --data-dir"),
            StoreError::Io { .. } => Some("choose a directory that you may write to with --data-dir"),
            StoreError::Database { .. }
            | StoreError::Record { .. }
            | StoreError::Conflict { .. }
            | StoreError::TooLarge { .. }
            | StoreError::Busy
            | StoreError::Closed => None,
        };
        match hint {
            Some(hint) => Hinted {
                message: with_causes(&error),
                hint: hint.to_owned(),
            }
            .into(),
            None => anyhow::Error::new(error),
        }
    })
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}
