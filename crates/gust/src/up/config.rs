//! The server's configuration: command line and environment, then a file, then the defaults.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use gust_control::{fleet::ManagerConfig, ids::Place, limits::AccountLimits};
use gust_gateway::AuthConfig;
use gust_node::{EgressPolicy, PageSharing};
use gust_policy::{CostModel, Mode, RestConfig};
use gust_replay::sim::SimCosts;
use gust_worker::protocol::MemoryMode;
use serde::Deserialize;

use crate::{
    cli::{IsolationChoice, MemoryChoice, ModeChoice, SharingChoice, UpArgs},
    commands::replay::read_json,
    paths,
};

/// Most prepared workers.
const POOL_MAX: usize = 256;

/// How long an instance is idle before it is frozen, in seconds, unless someone says otherwise.
const FREEZE_AFTER_S: u64 = 30;

/// Longest wait of a call for an instance, in seconds, unless someone says otherwise.
const QUEUE_TIMEOUT_S: u64 = 10;

/// Longest wait of a call for an instance that can be set.
const QUEUE_TIMEOUT_MAX: Duration = Duration::from_secs(900);

/// Longest delay of the cluster manager.
const MANAGER_DELAY_MAX: Duration = Duration::from_secs(60);

/// Longest time that an instance can be kept idle or armed, in seconds.
const KEEP_SECONDS_MAX: f64 = 86_400.0;

/// What a start takes where sandboxes are none, in milliseconds, unless someone says otherwise: as in Dirigent's test.
const FAKE_START_MS: u64 = 40;

/// Part of the memory budget that snapshots may take unless someone says otherwise.
const SNAPSHOTS_PART: u64 = 4;

/// The configuration file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    listen: Option<SocketAddr>,
    cluster_listen: Option<SocketAddr>,
    data_dir: Option<PathBuf>,
    isolation: Option<IsolationChoice>,
    pool: Option<usize>,
    armed: Option<usize>,
    instances: Option<usize>,
    memory_budget: Option<u64>,
    snapshot_memory: Option<u64>,
    freeze_after: Option<u64>,
    page_sharing: Option<SharingChoice>,
    idle_timeout: Option<u64>,
    mode: Option<ModeChoice>,
    manager_delay: Option<String>,
    memory_price: Option<f64>,
    costs: Option<PathBuf>,
    keep_idle: Option<f64>,
    keep_armed: Option<f64>,
    runnable_per_cpu: Option<u32>,
    autoscale_period: Option<u64>,
    queue_timeout: Option<u64>,
    fake_start_ms: Option<u64>,
    egress: Option<Vec<String>>,
    memory: Option<MemoryChoice>,
    region: Option<String>,
    account_id: Option<String>,
    #[serde(default)]
    access_keys: BTreeMap<String, String>,
    require_auth: Option<bool>,
    concurrency: Option<u32>,
    code_storage: Option<u64>,
    retry_wait_ms: Option<u64>,
    grace: Option<u64>,
    log: Option<String>,
}

/// The whole configuration of a server, checked.
#[derive(Debug, Clone)]
pub struct UpConfig {
    /// Address to listen on.
    pub listen: SocketAddr,
    /// Address to listen on for nodes.
    pub cluster_listen: Option<SocketAddr>,
    /// Data directory.
    pub data_dir: PathBuf,
    /// The wall around each instance.
    pub isolation: IsolationChoice,
    /// Prepared workers.
    pub pool: usize,
    /// Armed instances of each recently used version.
    pub armed: usize,
    /// Most instances.
    pub instances: usize,
    /// Memory that instances may use together.
    pub memory_budget_bytes: u64,
    /// Memory that snapshots may take.
    pub snapshot_memory_bytes: u64,
    /// How long an instance is idle before it is frozen.
    pub freeze_after: Option<Duration>,
    /// Which instances may map the same pages of memory.
    pub page_sharing: PageSharing,
    /// How long an idle instance is kept.
    pub idle_timeout: Duration,
    /// How calls get their instances.
    pub mode: Mode,
    /// What the cluster manager takes to answer.
    pub manager: ManagerConfig,
    /// What a gigabyte costs beside a processor; the policies' own price when `None`.
    pub memory_price: Option<f64>,
    /// What instances cost on this machine; the policies' own figures when `None`.
    pub costs: Option<CostModel>,
    /// Tasks for each processor that saturate a node; the policies' own figure when `None`, no bound when 0.
    pub runnable_per_cpu: Option<u32>,
    /// What idle instances become, where that is not left to the policies.
    pub rest: RestConfig,
    /// Time between two decisions of the autoscaler; the policies' own when `None`.
    pub autoscale_period: Option<Duration>,
    /// Longest wait of a call for an instance.
    pub queue_timeout: Duration,
    /// What a start takes where sandboxes are none.
    pub fake_start: Duration,
    /// What becomes of memory between calls.
    pub memory_mode: MemoryMode,
    /// Where functions may connect to.
    pub egress: Arc<EgressPolicy>,
    /// Region and account.
    pub place: Place,
    /// Who may call.
    pub auth: AuthConfig,
    /// Bounds.
    pub limits: AccountLimits,
    /// Wait before the first retry of an asynchronous event.
    pub retry_wait: Duration,
    /// How long running calls get when the server stops.
    pub grace: Duration,
    /// Filter of the server's own log.
    pub log: String,
}

impl UpConfig {
    /// Reads and checks the configuration.
    pub fn read(arguments: UpArgs) -> Result<Self> {
        let path = arguments.config.clone().unwrap_or_else(paths::config_file);
        let file = match fs::read_to_string(&path) {
            Ok(text) => toml::from_str(&text).with_context(|| format!("read {}", path.display()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && arguments.config.is_none() => {
                File::default()
            }
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        Self::combine(arguments, file)
    }

    /// What is given on the command line, else in the file, else the default: a table, one setting after the other.
    fn combine(arguments: UpArgs, file: File) -> Result<Self> {
        let defaults = AccountLimits::default();
        let keys = match &arguments.access_keys {
            Some(pairs) => pairs.iter().map(|pair| key_pair(pair)).collect::<Result<_>>()?,
            None => file.access_keys,
        };
        let mib = |mib: u64, what: &str| {
            mib.checked_mul(1 << 20)
                .with_context(|| format!("{what} is too large"))
        };
        let memory_budget_bytes = match arguments.memory_budget.or(file.memory_budget) {
            Some(budget) => mib(budget, "the memory budget")?,
            None => three_quarters_of_memory(),
        };
        let snapshot_memory_bytes = match arguments.snapshot_memory.or(file.snapshot_memory) {
            Some(memory) => mib(memory, "the memory for snapshots")?,
            None => memory_budget_bytes / SNAPSHOTS_PART,
        };
        let code_storage_bytes = match arguments.code_storage.or(file.code_storage) {
            Some(storage) => mib(storage, "the code storage")?,
            None => defaults.code_storage_bytes,
        };
        let memory = arguments.memory.or(file.memory).unwrap_or(MemoryChoice::Reuse);
        let config = Self {
            listen: arguments
                .listen
                .or(file.listen)
                .unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 4566))),
            cluster_listen: arguments.cluster_listen.or(file.cluster_listen),
            data_dir: arguments
                .data_dir
                .or(file.data_dir)
                .unwrap_or_else(paths::data_dir),
            isolation: arguments
                .isolation
                .or(file.isolation)
                .unwrap_or(IsolationChoice::Auto),
            pool: arguments.pool.or(file.pool).unwrap_or(4),
            armed: arguments.armed.or(file.armed).unwrap_or(1),
            instances: arguments.instances.or(file.instances).unwrap_or(1000),
            memory_budget_bytes,
            snapshot_memory_bytes,
            freeze_after: match arguments
                .freeze_after
                .or(file.freeze_after)
                .unwrap_or(FREEZE_AFTER_S)
            {
                0 => None,
                seconds => Some(Duration::from_secs(seconds)),
            },
            page_sharing: match arguments.page_sharing.or(file.page_sharing) {
                Some(SharingChoice::Version) => PageSharing::Version,
                Some(SharingChoice::Runtime) | None => PageSharing::Runtime,
            },
            idle_timeout: Duration::from_secs(arguments.idle_timeout.or(file.idle_timeout).unwrap_or(300)),
            mode: match arguments.mode.or(file.mode) {
                Some(ModeChoice::Dual) | None => Mode::Dual,
                Some(ModeChoice::Sync) => Mode::Sync,
                Some(ModeChoice::Async) => Mode::Async,
                Some(ModeChoice::Dirigent) => Mode::Dirigent,
            },
            manager: match arguments.manager_delay.or(file.manager_delay) {
                Some(text) => manager(&text)?,
                None => ManagerConfig::default(),
            },
            memory_price: arguments.memory_price.or(file.memory_price),
            runnable_per_cpu: arguments.runnable_per_cpu.or(file.runnable_per_cpu),
            costs: match arguments.costs.or(file.costs) {
                Some(path) => Some(costs(&path)?),
                None => None,
            },
            rest: RestConfig {
                idle_ns: seconds(arguments.keep_idle.or(file.keep_idle))?,
                armed_ns: seconds(arguments.keep_armed.or(file.keep_armed))?,
            },
            autoscale_period: arguments
                .autoscale_period
                .or(file.autoscale_period)
                .map(Duration::from_secs),
            queue_timeout: Duration::from_secs(
                arguments
                    .queue_timeout
                    .or(file.queue_timeout)
                    .unwrap_or(QUEUE_TIMEOUT_S),
            ),
            fake_start: Duration::from_millis(
                arguments
                    .fake_start_ms
                    .or(file.fake_start_ms)
                    .unwrap_or(FAKE_START_MS),
            ),
            memory_mode: match memory {
                MemoryChoice::Reuse => MemoryMode::Reuse,
                MemoryChoice::Fresh => MemoryMode::Fresh,
            },
            egress: Arc::new(egress(arguments.egress.or(file.egress))?),
            place: Place {
                region: arguments
                    .region
                    .or(file.region)
                    .unwrap_or_else(|| "us-east-1".to_owned()),
                account_id: arguments
                    .account_id
                    .or(file.account_id)
                    .unwrap_or_else(|| "0".repeat(12)),
            },
            auth: AuthConfig {
                keys,
                require: arguments.require_auth.or(file.require_auth).unwrap_or(false),
            },
            limits: AccountLimits {
                concurrency: arguments
                    .concurrency
                    .or(file.concurrency)
                    .unwrap_or(defaults.concurrency),
                code_storage_bytes,
                ..defaults
            },
            retry_wait: Duration::from_millis(
                arguments.retry_wait_ms.or(file.retry_wait_ms).unwrap_or(60_000),
            ),
            grace: Duration::from_secs(arguments.grace.or(file.grace).unwrap_or(30)),
            log: arguments.log.or(file.log).unwrap_or_else(|| "warn".to_owned()),
        };
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        let Place { region, account_id } = &self.place;
        if account_id.len() != 12 || !account_id.bytes().all(|byte| byte.is_ascii_digit()) {
            bail!("the account id {account_id:?} is not made of twelve digits");
        }
        let is_region = |text: &str| {
            text.split('-').count() >= 3
                && text
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        };
        if !is_region(region) {
            bail!("the region {region:?} is not of the form us-east-1");
        }
        if self.pool > POOL_MAX {
            bail!("the pool of {} workers is larger than {POOL_MAX}", self.pool);
        }
        if self.instances == 0 || self.limits.concurrency == 0 {
            bail!("with no instance and no concurrency nothing could ever run");
        }
        if self.queue_timeout > QUEUE_TIMEOUT_MAX {
            bail!(
                "the queue timeout of {} s is longer than {} s",
                self.queue_timeout.as_secs(),
                QUEUE_TIMEOUT_MAX.as_secs()
            );
        }
        if self
            .memory_price
            .is_some_and(|price| !price.is_finite() || price <= 0.0)
        {
            bail!("the price of memory must be above 0");
        }
        if self.autoscale_period == Some(Duration::ZERO) {
            bail!("the autoscaler's period must be above 0");
        }
        if self.mode == Mode::Dirigent && self.manager != ManagerConfig::default() {
            bail!("in the mode dirigent no cluster manager is asked, so that it can have no delay");
        }
        if self.auth.require && self.auth.keys.is_empty() {
            bail!("a signature is required of everyone, but no access key is set: nobody could call");
        }
        Ok(())
    }
}

/// What instances cost, from a file of `gust calibrate`.
fn costs(path: &Path) -> Result<CostModel> {
    let read: SimCosts = read_json(path)?;
    read.check()
        .with_context(|| format!("check the costs in {}", path.display()))?;
    Ok(read.cost_model())
}

/// A time that is given in seconds, in nanoseconds.
fn seconds(given: Option<f64>) -> Result<Option<u64>> {
    match given {
        None => Ok(None),
        Some(seconds) if (0.0..=KEEP_SECONDS_MAX).contains(&seconds) => Ok(Some((seconds * 1e9) as u64)),
        Some(seconds) => bail!("{seconds} is no number of seconds between 0 and {KEEP_SECONDS_MAX}"),
    }
}

/// A delay in milliseconds, `5`, or a range of them, `5-50`.
fn manager(text: &str) -> Result<ManagerConfig> {
    let (least, most) = text.split_once('-').unwrap_or((text, text));
    let milliseconds = |part: &str| part.parse().map(Duration::from_millis);
    match (milliseconds(least), milliseconds(most)) {
        (Ok(delay_min), Ok(delay_max)) if delay_min <= delay_max && delay_max <= MANAGER_DELAY_MAX => {
            Ok(ManagerConfig { delay_min, delay_max })
        }
        _ => bail!(
            "the cluster manager's delay {text:?} is neither a number of milliseconds nor MIN-MAX, up to {}",
            MANAGER_DELAY_MAX.as_millis()
        ),
    }
}

fn key_pair(pair: &str) -> Result<(String, String)> {
    match pair.split_once(':') {
        Some((id, secret)) if !id.is_empty() && !secret.is_empty() => Ok((id.to_owned(), secret.to_owned())),
        // The text is not shown: it may be a secret.
        Some(_) | None => bail!("an access key is not of the form ID:SECRET"),
    }
}

/// Functions reach the internet unless someone says otherwise, as on AWS, and nothing that is private.
fn egress(rules: Option<Vec<String>>) -> Result<EgressPolicy> {
    let rules = rules.unwrap_or_else(|| vec!["public".to_owned()]);
    EgressPolicy::parse(rules.iter().map(String::as_str)).context("read where functions may connect to")
}

fn three_quarters_of_memory() -> u64 {
    let system = rustix::system::sysinfo();
    let total = (system.totalram as u64).saturating_mul(system.mem_unit.into());
    total / 4 * 3
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Arguments, Command};

    fn combine(arguments: &[&str], file: &str) -> Result<UpConfig> {
        let arguments = ["gust", "up"].iter().chain(arguments);
        let Command::Up(arguments) = Arguments::parse_from(arguments).command else {
            panic!("not up")
        };
        UpConfig::combine(*arguments, toml::from_str(file)?)
    }

    #[test]
    fn the_command_line_wins_over_the_file() {
        let file = "listen = '127.0.0.1:1'\npool = 7\nmemory = 'fresh'\n[access_keys]\nA = 's'\n";
        let config = combine(&["--listen", "127.0.0.1:2", "--require-auth"], file).unwrap();
        assert_eq!((config.listen.port(), config.pool), (2, 7));
        assert_eq!(config.memory_mode, MemoryMode::Fresh);
        assert!(config.auth.require && config.auth.keys.contains_key("A"));
        let config = combine(&["--access-keys", "B:x:y,C:z", "--require-auth=false"], file).unwrap();
        assert_eq!(config.auth.keys.get("B").map(String::as_str), Some("x:y"));
        assert!(!config.auth.require);
        assert_eq!(config.page_sharing, PageSharing::Runtime);
        let config = combine(&[], "page_sharing = 'version'").unwrap();
        assert_eq!(config.page_sharing, PageSharing::Version);
        let config = combine(&["--manager-delay", "5-50"], "mode = 'async'").unwrap();
        assert_eq!(
            (config.mode, config.manager.delay_max.as_millis()),
            (Mode::Async, 50)
        );
        let config = combine(&["--page-sharing", "runtime"], "page_sharing = 'version'").unwrap();
        assert_eq!(config.page_sharing, PageSharing::Runtime);
    }

    #[test]
    fn what_cannot_work_is_refused() {
        for (arguments, file) in [
            (&["--account-id", "12"][..], ""),
            (&["--region", "here"], ""),
            (&["--require-auth"], ""),
            (&["--access-keys", "nosecret"], ""),
            (&["--pool", "100000"], ""),
            (&["--mode", "dirigent", "--manager-delay", "5"], ""),
            (&["--manager-delay", "50-5"], ""),
            (&["--manager-delay", "soon"], ""),
            (&["--queue-timeout", "100000"], ""),
            (&["--memory-price", "0"], ""),
            (&["--autoscale-period", "0"], ""),
            (&["--memory-price", "NaN"], ""),
            (&["--keep-idle", "NaN"], ""),
            (&["--keep-armed", "100000"], ""),
            (&["--costs", "/nowhere/costs.json"], ""),
            (&[], "mode = 'none'"),
            (&["--egress", "everywhere"], ""),
            (&[], "egress = ['10.0.0.1/8']"),
            (&["--concurrency", "0"], ""),
            (&[], "lisen = 1"),
            (&["--memory-budget", "18446744073709551615"], ""),
        ] {
            assert!(combine(arguments, file).is_err(), "{arguments:?} {file}");
        }
    }
}
