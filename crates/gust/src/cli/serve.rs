//! Arguments of what serves: `gust up`, `gust node`, and `gust cluster`, which says who may be a node.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Subcommand, ValueEnum};

use super::{OutputArgs, ServerArgs, parse_age};
use crate::paths;

/// The wall around each instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IsolationChoice {
    /// KVM where there is one, processes otherwise
    Auto,
    /// A KVM micro-VM of its own
    Kvm,
    /// A process in namespaces of its own
    Process,
    /// None: a start and a call are only waited for, to measure the control plane
    #[value(hide = true)]
    Fake,
}

/// How calls get their instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModeChoice {
    /// Kept by an autoscaler for sustained traffic, restored by the node at once for the rest
    Dual,
    /// Made by the cluster manager when a call finds none, as on Lambda-like platforms
    Sync,
    /// Made by an autoscaler alone, while calls wait, as Knative does
    Async,
    /// As async, by a cluster manager without delay, as Dirigent does
    Dirigent,
}

/// What becomes of memory between calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemoryChoice {
    /// Kept, as AWS Lambda keeps it
    Reuse,
    /// Given back its snapshot state before every call
    Fresh,
}

/// Which instances may map the same pages of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SharingChoice {
    /// Those of all functions of a runtime, as far as no function has changed them
    Runtime,
    /// Those of one version of one function only
    Version,
}

/// `gust node`
#[derive(Debug, Args)]
pub struct NodeArgs {
    /// Join token, made with gust cluster token, and where the server listens for nodes; only needed once
    #[arg(
        long,
        env = "GUST_JOIN",
        value_name = "TOKEN@HOST:PORT",
        hide_env_values = true
    )]
    pub join: Option<String>,
    /// Name to go by in the cluster; what makes it unlike others is added [default: the host's name]
    #[arg(long, env = "GUST_NODE_NAME")]
    pub name: Option<String>,
    /// Where other nodes get files from this one [default: a free port on every address]
    #[arg(long, env = "GUST_NODE_LISTEN")]
    pub listen: Option<SocketAddr>,
    /// Data directory, of this node alone [default: /var/lib/gust for root, ~/.local/share/gust for others]
    #[arg(long, env = paths::DATA_DIR_VARIABLE)]
    pub data_dir: Option<PathBuf>,
    /// The wall around each instance [default: auto]
    #[arg(long, env = "GUST_ISOLATION", value_enum)]
    pub isolation: Option<IsolationChoice>,
    /// Prepared workers that are kept ready [default: 4]
    #[arg(long, env = "GUST_POOL")]
    pub pool: Option<usize>,
    /// Armed instances that are kept for each recently used version [default: 1]
    #[arg(long, env = "GUST_ARMED")]
    pub armed: Option<usize>,
    /// Most instances of all functions together [default: 1000]
    #[arg(long, env = "GUST_INSTANCES")]
    pub instances: Option<usize>,
    /// Memory that instances may use together, in MiB [default: three quarters of the machine's]
    #[arg(long, env = "GUST_MEMORY_BUDGET")]
    pub memory_budget: Option<u64>,
    /// Memory that snapshots may take, in MiB [default: a quarter of the memory budget]
    #[arg(long, env = "GUST_SNAPSHOT_MEMORY")]
    pub snapshot_memory: Option<u64>,
    /// Disk for pieces of files that no function here needs at the moment, in MiB
    #[arg(long, env = "GUST_CHUNK_CACHE", default_value_t = 4096)]
    pub chunk_cache: u64,
    /// Seconds after which an idle instance is frozen; 0 for never [default: 30]
    #[arg(long, env = "GUST_FREEZE_AFTER")]
    pub freeze_after: Option<u64>,
    /// Whose instances may share pages of memory [default: runtime]
    #[arg(long, env = "GUST_PAGE_SHARING", value_enum)]
    pub page_sharing: Option<SharingChoice>,
    /// Where functions may connect to, as gust up has it [default: public]
    #[arg(long, env = "GUST_EGRESS", value_delimiter = ',')]
    pub egress: Option<Vec<String>>,
    /// Number of the region that the node lies in
    #[arg(long, env = "GUST_NODE_REGION", default_value_t = 0)]
    pub region: u16,
    /// Seconds that running calls get to end when the node leaves [default: 30]
    #[arg(long, env = "GUST_GRACE")]
    pub grace: Option<u64>,
    /// What the node writes of itself [default: warn]
    #[arg(long, env = "GUST_LOG")]
    pub log: Option<String>,
    /// Print one line only
    #[arg(short, long)]
    pub quiet: bool,
}

impl NodeArgs {
    /// What the node has in common with a server's.
    pub fn sandboxes(&self) -> UpArgs {
        UpArgs {
            data_dir: self.data_dir.clone(),
            isolation: self.isolation,
            pool: self.pool,
            armed: self.armed,
            instances: self.instances,
            memory_budget: self.memory_budget,
            snapshot_memory: self.snapshot_memory,
            freeze_after: self.freeze_after,
            page_sharing: self.page_sharing,
            egress: self.egress.clone(),
            grace: self.grace,
            log: self.log.clone(),
            quiet: self.quiet,
            ..UpArgs::default()
        }
    }
}

/// `gust cluster`
#[derive(Debug, Args)]
pub struct ClusterArgs {
    /// What to do
    #[command(subcommand)]
    pub command: ClusterCommand,
}

/// What to do with a cluster.
#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Print a token with which a node can join the server of a data directory
    Token {
        /// Data directory of the server [default: /var/lib/gust for root, ~/.local/share/gust for others]
        #[arg(long, env = paths::DATA_DIR_VARIABLE)]
        data_dir: Option<PathBuf>,
        /// How long it is good: 30s, 10m, 2h, 1d
        #[arg(long, default_value = "1h", value_parser = parse_age)]
        valid: std::time::Duration,
        /// Good for any number of nodes while it is valid, and not for one only
        #[arg(long)]
        reusable: bool,
    },
    /// List the nodes that are linked to a server
    Nodes(ClusterNodesArgs),
    /// Throw a node out for good: it is cut off at once, and let in by no member again
    Revoke(RevokeArgs),
}

/// `gust cluster nodes`
#[derive(Debug, Args)]
pub struct ClusterNodesArgs {
    #[command(flatten)]
    pub server: ServerArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `gust cluster revoke`
#[derive(Debug, Args)]
pub struct RevokeArgs {
    /// Names of nodes, as gust cluster nodes shows them
    #[arg(required = true)]
    pub names: Vec<String>,
    #[command(flatten)]
    pub server: ServerArgs,
}

/// `gust up`. What is not given here is taken from the configuration file, then from the defaults.
#[derive(Debug, Clone, Default, Args)]
pub struct UpArgs {
    /// Configuration file (TOML; keys are these options with `_` for `-`) [default: ~/.config/gust/gust.toml]
    #[arg(long, env = "GUST_CONFIG")]
    pub config: Option<PathBuf>,
    /// Address to listen on [default: 127.0.0.1:4566]
    #[arg(long, env = "GUST_LISTEN")]
    pub listen: Option<SocketAddr>,
    /// Address to listen on for nodes that join [default: none may]
    #[arg(long, env = "GUST_CLUSTER_LISTEN")]
    pub cluster_listen: Option<SocketAddr>,
    /// Data directory [default: /var/lib/gust for root, ~/.local/share/gust for others]
    #[arg(long, env = paths::DATA_DIR_VARIABLE)]
    pub data_dir: Option<PathBuf>,
    /// Take over from the server that runs on the data directory, if one does: no request fails
    #[arg(long)]
    pub take_over: bool,
    /// The wall around each instance [default: auto]
    #[arg(long, env = "GUST_ISOLATION", value_enum)]
    pub isolation: Option<IsolationChoice>,
    /// Prepared workers that are kept ready [default: 4]
    #[arg(long, env = "GUST_POOL")]
    pub pool: Option<usize>,
    /// Armed instances that are kept for each recently used version [default: 1]
    #[arg(long, env = "GUST_ARMED")]
    pub armed: Option<usize>,
    /// Most instances of all functions together [default: 1000]
    #[arg(long, env = "GUST_INSTANCES")]
    pub instances: Option<usize>,
    /// Memory that instances may use together, in MiB [default: three quarters of the machine's]
    #[arg(long, env = "GUST_MEMORY_BUDGET")]
    pub memory_budget: Option<u64>,
    /// Memory that snapshots may take, in MiB; others are used in place on disk [default: a quarter of the memory budget]
    #[arg(long, env = "GUST_SNAPSHOT_MEMORY")]
    pub snapshot_memory: Option<u64>,
    /// Seconds after which an idle instance is frozen: kept without its process, at some hundred KiB; 0 for never [default: 30]
    #[arg(long, env = "GUST_FREEZE_AFTER")]
    pub freeze_after: Option<u64>,
    /// Whose instances may share pages of memory, through which they can tell what the others use [default: runtime]
    #[arg(long, env = "GUST_PAGE_SHARING", value_enum)]
    pub page_sharing: Option<SharingChoice>,
    /// Seconds that an idle instance is kept, where its mode keeps it for a fixed time (sync), and one that nothing has used
    /// yet [default: 300]
    #[arg(long, env = "GUST_IDLE_TIMEOUT")]
    pub idle_timeout: Option<u64>,
    /// How calls get their instances [default: dual]
    #[arg(long, env = "GUST_MODE", value_enum)]
    pub mode: Option<ModeChoice>,
    /// Milliseconds that the cluster manager takes to answer, or MIN-MAX: for comparison with conventional ones [default: 0]
    #[arg(long, env = "GUST_MANAGER_DELAY")]
    pub manager_delay: Option<String>,
    /// What a gigabyte of memory costs beside a processor, for the same time: the dearer it is, the shorter instances are kept
    /// [default: 0.11]
    #[arg(long, env = "GUST_MEMORY_PRICE")]
    pub memory_price: Option<f64>,
    /// File of costs as gust calibrate writes them: what instances cost on this machine [default: as measured on another]
    #[arg(long, env = "GUST_COSTS")]
    pub costs: Option<PathBuf>,
    /// Seconds that an instance which a node has made for a call stays idle [default: what costs least]
    #[arg(long, env = "GUST_KEEP_IDLE")]
    pub keep_idle: Option<f64>,
    /// Seconds that an instance which has ended waits armed; 0 for not at all [default: what costs least]
    #[arg(long, env = "GUST_KEEP_ARMED")]
    pub keep_armed: Option<f64>,
    /// Tasks that want a processor, for each one, from which on a node makes new instances only for functions that have none:
    /// other calls wait for those that are there; 0 for no such bound [default: 4]
    #[arg(long, env = "GUST_RUNNABLE_PER_CPU")]
    pub runnable_per_cpu: Option<u32>,
    /// Seconds between two decisions of the autoscaler about a function [default: 2]
    #[arg(long, env = "GUST_AUTOSCALE_PERIOD")]
    pub autoscale_period: Option<u64>,
    /// Seconds that a call waits for an instance at most, before it is answered with 429 [default: 10]
    #[arg(long, env = "GUST_QUEUE_TIMEOUT")]
    pub queue_timeout: Option<u64>,
    /// Milliseconds that a start takes with --isolation fake [default: 40]
    #[arg(long, env = "GUST_FAKE_START_MS", hide = true)]
    pub fake_start_ms: Option<u64>,
    /// What becomes of memory between calls, unless a function's tag gust:memory says otherwise [default: reuse]
    #[arg(long, env = "GUST_MEMORY", value_enum)]
    pub memory: Option<MemoryChoice>,
    /// Where functions may connect to: public, dns, none, host:PORT, ADDRESS[/PREFIX][:PORT[-PORT]], separated by commas; a
    /// function's tag gust:egress can narrow it [default: public]
    #[arg(long, env = "GUST_EGRESS", value_delimiter = ',')]
    pub egress: Option<Vec<String>>,
    /// Region in ARNs [default: us-east-1]
    #[arg(long, env = "GUST_REGION")]
    pub region: Option<String>,
    /// Account id in ARNs, twelve digits [default: 000000000000]
    #[arg(long, env = "GUST_ACCOUNT_ID")]
    pub account_id: Option<String>,
    /// Access keys that may call from anywhere: ID:SECRET, separated by commas
    #[arg(long, env = "GUST_ACCESS_KEYS", value_delimiter = ',', hide_env_values = true)]
    pub access_keys: Option<Vec<String>>,
    /// Ask callers on this machine for a signature too
    #[arg(long, env = "GUST_REQUIRE_AUTH", num_args = 0..=1, default_missing_value = "true")]
    pub require_auth: Option<bool>,
    /// Concurrent calls of all functions [default: 1000]
    #[arg(long, env = "GUST_CONCURRENCY")]
    pub concurrency: Option<u32>,
    /// All code packages together, in MiB [default: 76800]
    #[arg(long, env = "GUST_CODE_STORAGE")]
    pub code_storage: Option<u64>,
    /// Milliseconds before the first retry of an asynchronous event; the second waits twice as long [default: 60000]
    #[arg(long, env = "GUST_RETRY_WAIT_MS")]
    pub retry_wait_ms: Option<u64>,
    /// Seconds that running calls get to end when the server stops [default: 30]
    #[arg(long, env = "GUST_GRACE")]
    pub grace: Option<u64>,
    /// What the server writes of itself: error, warn, info, debug, or a filter of the crate tracing [default: warn]
    #[arg(long, env = "GUST_LOG")]
    pub log: Option<String>,
    /// Print one line only, once calls are taken
    #[arg(short, long)]
    pub quiet: bool,
}
