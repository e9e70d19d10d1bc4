//! The agent of these tests: `agent CONTROL TOKEN DIRECTORY NAME process|kvm`, ended by SIGTERM. It joins if it has not yet.

use std::{path::Path, process::ExitCode, time::Duration};

use gust_cluster::{
    Agent, AgentConfig,
    join::{JoinError, join},
    trust::Identity,
};
use gust_node::{Isolation, Node};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

use crate::world;

pub fn main() -> ExitCode {
    crate::log();
    let arguments: Vec<String> = std::env::args().skip(2).collect();
    let [control, token, directory, name, isolation] = arguments.as_slice() else {
        panic!("agent CONTROL TOKEN DIRECTORY NAME process|kvm, not {arguments:?}");
    };
    let isolation = match isolation.as_str() {
        "kvm" => Isolation::Kvm,
        _ => Isolation::Process,
    };
    world::run(async {
        serve(control, token, Path::new(directory), name, isolation).await;
        Ok(())
    })
    .unwrap();
    ExitCode::SUCCESS
}

async fn serve(control: &str, token: &str, directory: &Path, name: &str, isolation: Isolation) {
    let mut terminate = signal(SignalKind::terminate()).unwrap();
    let cluster = Agent::directory(directory);
    let identity = match Identity::load(&cluster) {
        Ok(identity) => identity,
        Err(_) => joined(&cluster, token, control, name).await,
    };
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let agent = AgentConfig {
        directory: cluster,
        control: control.to_owned(),
        files: listener.local_addr().unwrap(),
        cache_bytes_max: 64 << 20,
        memory_bytes: 4 << 30,
        instances_max: 8,
        restores_max: 4,
        region: 0,
        grace: Duration::from_secs(60),
    };
    let agent = Agent::new(
        agent,
        identity,
        Node::start(world::config(directory, isolation)).await.unwrap(),
    )
    .unwrap();
    agent
        .run(listener, async move {
            terminate.recv().await;
        })
        .await;
}

/// Joins as soon as the network that the test gives this process is there.
async fn joined(cluster: &Path, token: &str, control: &str, name: &str) -> Identity {
    let token = token.parse().unwrap();
    loop {
        match join(cluster, &token, control, name).await {
            Ok(identity) => return identity,
            Err(JoinError::Connect { .. }) => tokio::time::sleep(Duration::from_millis(20)).await,
            Err(error) => panic!("{error}"),
        }
    }
}
