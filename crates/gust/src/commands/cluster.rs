//! `gust cluster`: who may join a server, who has, and who is thrown out.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context, Result};
use gust_cluster::{
    Hub,
    trust::{Authority, Tokens},
};

use hyper::Method;
use serde_json::{Value, json};

use super::print;
use crate::{
    cli::{ClusterArgs, ClusterCommand, ClusterNodesArgs, Output, RevokeArgs},
    client::{Client, segment},
    output::{bytes, table},
    paths,
};

/// Carries a command out.
pub async fn run(arguments: ClusterArgs) -> Result<ExitCode> {
    match arguments.command {
        ClusterCommand::Token {
            data_dir,
            valid,
            reusable,
        } => token(&data_dir.unwrap_or_else(paths::data_dir), valid, reusable),
        ClusterCommand::Nodes(arguments) => nodes(arguments).await,
        ClusterCommand::Revoke(arguments) => revoke(arguments).await,
    }
}

/// Needs no running server: what is printed is good from its next start on at the latest.
fn token(data_dir: &std::path::Path, valid: Duration, reusable: bool) -> Result<ExitCode> {
    gust_store::make_data_dir(data_dir)
        .with_context(|| format!("make the data directory {}", data_dir.display()))?;
    let directory = Hub::directory(data_dir);
    let authority = Authority::open(&directory).context("open the cluster's authority")?;
    let token = Tokens::new(&directory)
        .make(authority.fingerprint(), valid, reusable)
        .context("make a join token")?;
    print(&format!("{token}\n"))?;
    let times = if reusable {
        "any number of nodes"
    } else {
        "one node"
    };
    eprintln!(
        "good for {times} within {} minutes; on the node: gust node --join TOKEN@HOST:PORT, with the port of gust up \
         --cluster-listen",
        valid.as_secs() / 60
    );
    Ok(ExitCode::SUCCESS)
}

async fn nodes(arguments: ClusterNodesArgs) -> Result<ExitCode> {
    let mut answer = Client::new(&arguments.server)?.get("/_gust/v1/nodes").await?;
    let nodes = answer["nodes"].take();
    if arguments.output.output == Output::Json {
        print(&format!("{nodes:#}\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let nodes = nodes.as_array().map(Vec::as_slice).unwrap_or_default();
    if nodes.is_empty() {
        eprintln!("no node is linked to this server; let one join with: gust cluster token");
        return Ok(ExitCode::SUCCESS);
    }
    let head = ["NAME", "VERSION", "REGION", "MEMORY", "INSTANCES", "STATE"];
    let mut lines = vec![head.map(str::to_owned).to_vec()];
    lines.extend(nodes.iter().map(line));
    print(&table(&lines))?;
    Ok(ExitCode::SUCCESS)
}

fn line(node: &Value) -> Vec<String> {
    let text = |name: &str| node[name].as_str().unwrap_or_default().to_owned();
    let state = match node["draining"] == json!(true) {
        true => "leaves",
        false => "linked",
    };
    vec![
        text("name"),
        text("version"),
        node["region"].to_string(),
        bytes(node["memory_bytes"].as_u64().unwrap_or(0)),
        node["instances_max"].to_string(),
        state.to_owned(),
    ]
}

async fn revoke(arguments: RevokeArgs) -> Result<ExitCode> {
    let client = Client::new(&arguments.server)?;
    for name in &arguments.names {
        let path = format!("/_gust/v1/nodes/{}/revoke", segment(name));
        let revoked = client.call(Method::POST, &path, &json!({})).await?;
        match revoked["was_linked"] == json!(true) {
            true => eprintln!("threw {name} out"),
            false => eprintln!(
                "threw {name} out; no node of this name was linked, so look whether it is the right one"
            ),
        }
    }
    Ok(ExitCode::SUCCESS)
}
