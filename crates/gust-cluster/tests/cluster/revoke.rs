//! A node that is thrown out.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use gust_cluster::{
    Agent,
    files::ChunkId,
    link::{self, Link},
    message::{FileRequest, Reply, Request},
    trust::{Identity, NodeName, Revoked, Trust, control_name},
};
use gust_node::Isolation;
use libtest_mimic::Failed;
use rustls::pki_types::ServerName;
use tokio::{net::TcpStream, time::timeout};

use crate::{
    lab::{Lab, Told},
    world::{equal, until},
};

const LIMIT: Duration = Duration::from_secs(20);

/// A connection by which a node gets files from a member, as an answer has shown; an error when it is not let in.
async fn files_from(
    as_node: &Identity,
    address: SocketAddr,
    name: ServerName<'static>,
) -> Result<Link, Failed> {
    let trust = Trust::of_node(as_node, &Revoked::default())?;
    let stream = TcpStream::connect(address).await?;
    let connector = trust.connector().ok_or("a node makes connections")?;
    let (link, driver, _incoming) = link::new(connector.connect(name, stream).await?);
    tokio::spawn(driver.run());
    let request = Request::File(FileRequest::Chunk(ChunkId([1; 32])));
    let (reply, _) = link.call(&request, Bytes::new(), LIMIT).await?;
    equal(reply, Reply::Missing)?;
    Ok(link)
}

fn certified(name: &NodeName) -> Result<ServerName<'static>, Failed> {
    Ok(ServerName::try_from(format!("{name}.node.gust.internal"))?)
}

pub async fn a_node_that_is_thrown_out_is_let_in_by_no_one(isolation: Isolation) -> Result<(), Failed> {
    let lab = Lab::new(isolation).await?;
    let (bad, good) = (lab.agent("bad").await?, lab.agent("good").await?);
    let identity = Identity::load(&Agent::directory(&lab.dir.path().join("bad")))?;
    let (control, peer) = (lab.control.address, good.files_address()?);
    let peer_name = certified(good.node.name())?;
    let links = [
        files_from(&identity, control, control_name()).await?,
        files_from(&identity, peer, peer_name.clone()).await?,
    ];

    equal(lab.control.hub.revoke([bad.node.name().clone()]), true)?;
    // Those that it has end, and so does its own.
    for link in links {
        timeout(LIMIT, link.wait_closed()).await?;
    }
    let is_lost = |told: &Told| matches!(told, Told::Lost(node) if *node == bad.node);
    until(|| async { lab.control.told().iter().any(is_lost) }).await?;
    // It gets no new ones.
    for (address, name) in [(control, control_name()), (peer, peer_name.clone())] {
        equal(files_from(&identity, address, name).await.is_err(), true)?;
    }
    // Nobody else has lost anything, and who comes later is told.
    equal(good.node.is_connected(), true)?;
    let late = lab.agent("late").await?;
    let (address, name) = (late.files_address()?, certified(late.node.name())?);
    until(|| async { files_from(&identity, address, name.clone()).await.is_err() }).await?;
    let identity = Identity::load(&Agent::directory(&lab.dir.path().join("late")))?;
    files_from(&identity, peer, peer_name).await?;
    equal(bad.node.is_connected(), false)?;
    equal(lab.control.hub.nodes().len(), 2)
}
