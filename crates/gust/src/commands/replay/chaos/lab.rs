//! A cluster whose parts can be taken away: a server and nodes as processes, each node with a network of its own ([`net`]).
//!
//! All of it is in namespaces of this command, made by running it again in them: of processes, in which it is the first, so
//! that the kernel ends everything with it, however it ends; of networks; and of mounts, for `/proc`. Nothing of the machine
//! changes. Only its directory outlives a command that is killed, and the next one removes that.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use gust_cluster::{
    Hub,
    trust::{Authority, Tokens},
};
use gust_store::DataDirLock;
use tempfile::TempDir;

use super::net::{CONTROL, Network};
use crate::{
    bench::{children, own, processes},
    cli::ServerArgs,
    client::Client,
};

/// Prefix of the directories of clusters.
const PREFIX: &str = "gust-chaos-";

/// Where clients find the server: in its own namespace only.
const API: &str = "127.0.0.1:4566";

/// Port at which nodes find it.
const CLUSTER_PORT: u16 = 4570;

/// How workers' processes are called.
const WORKER: &str = "gust-worker";

/// Longest time for a cluster to be complete at its start.
pub const START_LIMIT: Duration = Duration::from_secs(60);

/// How long join tokens are good: longer than any run.
const TOKEN_VALID: Duration = Duration::from_secs(30 * 24 * 3600);

/// What a cluster is to be.
#[derive(Debug)]
pub struct LabConfig {
    /// Data directory with the runtimes.
    pub runtimes_of: PathBuf,
    /// The wall around instances.
    pub isolation: String,
    /// Options for the server.
    pub up_args: Vec<String>,
    /// Options for nodes.
    pub node_args: Vec<String>,
    /// Directory for what they write of themselves.
    pub logs: PathBuf,
}

/// A cluster.
#[derive(Debug)]
pub struct Lab {
    config: LabConfig,
    token: String,
    server: Slot,
    nodes: Vec<LabNode>,
    // Last: the directory goes when everything has ended.
    _lock: DataDirLock,
    dir: TempDir,
}

/// A node: its network, which stays, and its process, which comes and goes.
#[derive(Debug)]
struct LabNode {
    agent: Slot,
    network: Network,
}

/// A process, where there is one; killed when dropped.
#[derive(Debug, Default)]
struct Slot(Mutex<Option<Child>>);

impl Slot {
    fn put(&self, child: Child) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(child);
    }

    fn take(&self) -> Option<Child> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn pid(&self) -> Option<u64> {
        let slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        slot.as_ref().map(|child| u64::from(child.id()))
    }

    fn kill(&self) -> io::Result<()> {
        match self.take() {
            Some(mut child) => child.kill().and_then(|()| child.wait()).map(|_| ()),
            None => Ok(()),
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // It may have ended.
        let _ended = self.kill();
    }
}

/// Removes directories of commands that were killed: those that no one holds.
fn remove_left_over() {
    let entries = fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten();
    for dir in entries.map(|entry| entry.path()) {
        let name = dir.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(PREFIX) && dir.join("lock").is_file() && DataDirLock::take(&dir).is_ok() {
            // What cannot be removed now is tried again by the next.
            let _ = fs::remove_dir_all(&dir);
        }
    }
}

impl Lab {
    /// Starts a server and nodes. Blocks until the server takes calls; the nodes may not have joined yet.
    pub fn start(config: LabConfig, nodes: u32) -> Result<Self> {
        remove_left_over();
        let dir = tempfile::Builder::new()
            .prefix(PREFIX)
            .tempdir()
            .context("make a directory for the cluster")?;
        // Workers that are users of their own find the trees of functions by their paths.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711))
            .context("open the cluster's directory")?;
        let lock = DataDirLock::take(dir.path()).context("hold the cluster's directory")?;
        let server_dir = dir.path().join("server");
        gust_store::make_data_dir(&server_dir).context("make the server's directory")?;
        own::link_runtimes(&config.runtimes_of, &server_dir)?;
        let hub = Hub::directory(&server_dir);
        let authority = Authority::open(&hub).context("make the cluster's authority")?;
        let token = Tokens::new(&hub).make(authority.fingerprint(), TOKEN_VALID, true);
        let mut lab = Self {
            config,
            token: token.context("make a join token")?.to_string(),
            server: Slot::default(),
            nodes: Vec::new(),
            _lock: lock,
            dir,
        };
        lab.start_server()?;
        for number in 1..=nodes {
            lab.nodes.push(LabNode {
                network: Network::new(number)?,
                agent: Slot::default(),
            });
            lab.start_agent(number)?;
        }
        Ok(lab)
    }

    /// A client of the server.
    pub fn client(&self) -> Result<Client> {
        let server = ServerArgs {
            endpoint: Some(format!("http://{API}")),
            access_key: None,
            secret_key: None,
            region: "us-east-1".to_owned(),
        };
        Ok(Client::new(&server)?)
    }

    /// The server's data directory.
    pub fn server_dir(&self) -> PathBuf {
        self.dir.path().join("server")
    }

    /// What a process writes of itself.
    fn log(&self, name: &str) -> Result<File> {
        let path = self.config.logs.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&path);
        file.with_context(|| format!("write {}", path.display()))
    }

    /// Starts the server, and waits until it takes calls.
    pub fn start_server(&self) -> Result<()> {
        let mut child = children::gust()?
            .args([
                "up",
                "--quiet",
                "--listen",
                API,
                "--retry-wait-ms",
                "1000",
                "--cluster-listen",
            ])
            .arg(format!("{CONTROL}:{CLUSTER_PORT}"))
            .args(["--isolation", &self.config.isolation])
            .args(&self.config.up_args)
            .arg("--data-dir")
            .arg(self.server_dir())
            .stdout(Stdio::piped())
            .stderr(self.log("server")?)
            .spawn()
            .context("start gust up")?;
        let line = children::first_line(&mut child)?;
        self.server.put(child);
        ensure!(
            line.contains("http://"),
            "gust up did not start; it said {line:?}"
        );
        Ok(())
    }

    /// Kills the server.
    pub fn kill_server(&self) -> Result<()> {
        self.server.kill().context("kill the server")
    }

    /// Has the server end in peace.
    pub fn stop_server(&self) -> Result<()> {
        let mut child = self.server.take().context("the server is not there")?;
        children::end(&mut child);
        Ok(())
    }

    /// Nodes beside the server.
    pub fn node_count(&self) -> u32 {
        u32::try_from(self.nodes.len()).unwrap_or(u32::MAX)
    }

    fn node(&self, number: u32) -> Result<&LabNode> {
        let node = (number as usize).checked_sub(1).and_then(|at| self.nodes.get(at));
        node.with_context(|| format!("there is no node {number}"))
    }

    /// Starts the process of a node.
    pub fn start_agent(&self, number: u32) -> Result<()> {
        let node = self.node(number)?;
        let gust = children::gust()?;
        let mut command = Command::new("nsenter");
        for (name, value) in gust.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let child = command
            .arg(format!("--net={}", node.network.path().display()))
            .arg("--")
            .arg(gust.get_program())
            .args(["node", "--quiet", "--name", &format!("node{number}"), "--join"])
            .arg(format!("{}@{CONTROL}:{CLUSTER_PORT}", self.token))
            .args(["--isolation", &self.config.isolation])
            .args(&self.config.node_args)
            .arg("--data-dir")
            .arg(self.dir.path().join(format!("node{number}")))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(self.log(&format!("node{number}"))?)
            .spawn()
            .context("start gust node")?;
        node.agent.put(child);
        Ok(())
    }

    /// Kills the process of a node.
    pub fn kill_agent(&self, number: u32) -> Result<()> {
        self.node(number)?
            .agent
            .kill()
            .with_context(|| format!("kill node {number}"))
    }

    /// The network of a node.
    pub fn network(&self, number: u32) -> Result<&Network> {
        Ok(&self.node(number)?.network)
    }

    /// Processes of a node's workers (of the server's for 0), in order of their ids.
    pub fn workers(&self, number: u32) -> Result<Vec<u64>> {
        let slot = match number {
            0 => &self.server,
            number => &self.node(number)?.agent,
        };
        let root = slot
            .pid()
            .with_context(|| format!("node {number} has no process"))?;
        let is_worker = |pid: &u64| {
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == WORKER)
        };
        let mut workers: Vec<u64> = processes::tree(root)?.into_iter().filter(is_worker).collect();
        workers.sort_unstable();
        Ok(workers)
    }
}
