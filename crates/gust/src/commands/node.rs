//! `gust node`: this machine's sandboxes, for a server on another.
//!
//! ```text
//! configuration -> data directory locked -> joined, the first time -> node started -> linked, again and again
//! signal -> the server is told; what runs ends within the grace period -> stopped
//! ```

use std::{
    io::Write,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::ExitCode,
};

use anyhow::{Context, Result, bail};
use gust_cluster::{
    Agent, AgentConfig,
    join::join,
    trust::{Identity, IdentityError, JoinToken},
};
use gust_node::Isolation;
use gust_store::DataDirLock;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    cli::NodeArgs,
    exit::Hinted,
    up::{self, UpConfig, Wall},
};

/// Exit code after a second signal.
const INTERRUPTED: i32 = 130;

/// Runs a node until a signal comes.
pub fn run(arguments: NodeArgs) -> Result<ExitCode> {
    let config = UpConfig::read(arguments.sandboxes())?;
    let runtime = up::runtime(&config)?;
    runtime.block_on(serve(&arguments, &config))?;
    Ok(ExitCode::SUCCESS)
}

async fn serve(arguments: &NodeArgs, config: &UpConfig) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let address = arguments.listen.unwrap_or((Ipv4Addr::UNSPECIFIED, 0).into());
    let listener = up::listen(address, "--listen").await?;
    let files: SocketAddr = listener.local_addr().context("read the listener's address")?;
    let isolation = match up::wall(config)? {
        (Wall::Sandbox(isolation), remark) => {
            if let Some(remark) = remark {
                eprintln!("warning: {remark}");
            }
            isolation
        }
        (Wall::Fake, _) => {
            bail!("a node on another machine runs functions: --isolation fake is for gust up alone")
        }
    };
    let data_dir = &config.data_dir;
    gust_store::make_data_dir(data_dir)
        .with_context(|| format!("make the data directory {}", data_dir.display()))?;
    let _lock = DataDirLock::take(data_dir).context("a node needs a data directory of its own")?;
    let directory = Agent::directory(data_dir);
    let identity = identity(arguments, &directory).await?;
    let (name, control) = (identity.name().to_string(), identity.control().to_owned());
    let agent = AgentConfig {
        directory,
        control: control.clone(),
        files,
        cache_bytes_max: arguments.chunk_cache.saturating_mul(1 << 20),
        memory_bytes: config.memory_budget_bytes,
        instances_max: config.instances,
        restores_max: up::restores_max(),
        region: arguments.region,
        grace: config.grace,
    };
    let node = up::start_node(config, isolation).await?;
    let agent = Agent::new(agent, identity, node).context("start the node's agent")?;
    announce(&name, &control, isolation, arguments.quiet);
    let (grace, quiet) = (config.grace, arguments.quiet);
    agent
        .run(listener, async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if !quiet {
                eprintln!(
                    "leaving; running calls get {} s (a second signal ends them)",
                    grace.as_secs()
                );
            }
            tokio::spawn(async move {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                std::process::exit(INTERRUPTED);
            });
        })
        .await;
    Ok(())
}

/// The identity that is there; otherwise one by joining.
async fn identity(arguments: &NodeArgs, directory: &Path) -> Result<Identity> {
    match (Identity::load(directory), &arguments.join) {
        (Ok(identity), None) => Ok(identity),
        (Ok(identity), Some(given)) => {
            let (token, control) = parse_join(given)?;
            if token.authority == identity.fingerprint() && control == identity.control() {
                // The same command again, as a service starts it: the token was used for what is there.
                return Ok(identity);
            }
            if token.authority != identity.fingerprint() {
                bail!(
                    "{} holds a member of another cluster; remove it to join this one",
                    directory.display()
                );
            }
            joined(arguments, directory, &token, control).await
        }
        (Err(IdentityError::Missing), Some(given)) => {
            let (token, control) = parse_join(given)?;
            joined(arguments, directory, &token, control).await
        }
        (Err(error @ IdentityError::Missing), None) => Err(Hinted {
            message: error.to_string(),
            hint: "on the server: gust cluster token; here: gust node --join TOKEN@HOST:PORT".to_owned(),
        }
        .into()),
        (Err(error), _) => Err(error).context("read the node's identity"),
    }
}

async fn joined(
    arguments: &NodeArgs,
    directory: &Path,
    token: &JoinToken,
    control: &str,
) -> Result<Identity> {
    let name = match &arguments.name {
        Some(name) => name.clone(),
        None => rustix::system::uname().nodename().to_string_lossy().into_owned(),
    };
    join(directory, token, control, &name)
        .await
        .with_context(|| format!("join the cluster at {control}"))
}

/// `TOKEN@HOST:PORT`. The text is not shown when it is wrong: it may hold a secret.
fn parse_join(given: &str) -> Result<(JoinToken, &str)> {
    let Some((token, control)) = given.split_once('@') else {
        bail!("the value of --join is not of the form TOKEN@HOST:PORT");
    };
    let is_port = |port: &str| port.parse::<u16>().is_ok_and(|port| port > 0);
    if !control
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && is_port(port))
    {
        bail!("{control:?}, where --join is to find the server, is not of the form HOST:PORT");
    }
    Ok((token.parse().context("read the token of --join")?, control))
}

fn announce(name: &str, control: &str, isolation: Isolation, quiet: bool) {
    let mut text = format!("gust {} is node {name} of {control}\n", env!("CARGO_PKG_VERSION"));
    if !quiet {
        text.push_str(match isolation {
            Isolation::Kvm => "  isolation  a KVM micro-VM for each instance\n",
            Isolation::Process => "  isolation  a process in namespaces for each instance (no KVM)\n",
        });
    }
    let mut out = std::io::stdout().lock();
    // Whoever started the node may not read what it prints.
    let _closed = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joins_are_a_token_and_an_address() {
        let token = JoinToken {
            id: [1; 8],
            secret: [2; 16],
            authority: gust_cluster::trust::Fingerprint([3; 32]),
        };
        let given = format!("{token}@control.example:4570");
        assert_eq!(
            parse_join(&given).unwrap(),
            (token.clone(), "control.example:4570")
        );
        assert!(parse_join(&format!("{token}@[fd00::1]:4570")).is_ok());
        for wrong in [
            "",
            "x",
            "x@y:1",
            &token.to_string(),
            &format!("{token}@host"),
            &format!("{token}@:1"),
            &format!("{token}@host:0"),
            &format!("{token}@host:65536"),
        ] {
            let error = parse_join(wrong).unwrap_err();
            assert!(
                !format!("{error:#}").contains(&token.to_string()),
                "no secret is shown"
            );
        }
    }
}
