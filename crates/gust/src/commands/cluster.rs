//! `gust cluster`: who may join a server.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context, Result};
use gust_cluster::{
    Hub,
    trust::{Authority, Tokens},
};

use crate::{
    cli::{ClusterArgs, ClusterCommand},
    paths,
};

/// Carries a command out.
pub fn run(arguments: ClusterArgs) -> Result<ExitCode> {
    match arguments.command {
        ClusterCommand::Token {
            data_dir,
            valid,
            reusable,
        } => token(&data_dir.unwrap_or_else(paths::data_dir), valid, reusable),
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
    super::print(&format!("{token}\n"))?;
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
