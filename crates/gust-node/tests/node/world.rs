//! A node of these tests, with images to run and calls to make.

use std::{
    collections::BTreeMap,
    fs,
    future::Future,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use gust_image::{Attributes, Tree, write};
use gust_node::{
    Deployed, Invocation, InvokeError, InvokeResult, Isolation, MemoryMode, Node, NodeConfig, NodeError,
    Outcome, PageSharing, StartKind, VersionId, VersionSpec, Wanted,
};
use libtest_mimic::{Failed, Trial};
use tokio::{sync::mpsc, task::JoinHandle};

/// Images that all tests share.
pub struct Images {
    _dir: tempfile::TempDir,
    pub device: PathBuf,
    pub api: PathBuf,
    pub provided: PathBuf,
    /// Their programs are none.
    pub broken_device: PathBuf,
    pub broken_api: PathBuf,
    pub code: PathBuf,
    pub layers: [PathBuf; 2],
}

pub static IMAGES: LazyLock<Images> = LazyLock::new(Images::new);

impl Images {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let runtime = |name: &str, description: &str| {
            let mut tree = guest_tree(dir.path());
            let path = gust_image::runtime::DESCRIPTION_PATH.as_bytes();
            tree.file(path, Attributes::root(0o644), &mut description.as_bytes())
                .unwrap();
            store(&tree, &dir.path().join(name))
        };
        let described = |interface: &str, program: &str| {
            format!(
                r#"{{"name":"guest","interface":"{interface}","commands":[["{program}","guest"]],"directory":"/var/task",
                    "environment":{{"PATH":"/"}}}}"#
            )
        };
        let files = |name: &str, files: &[(&str, &str)]| {
            let mut tree = Tree::new(dir.path()).unwrap();
            for (path, content) in files {
                tree.file(path.as_bytes(), Attributes::root(0o755), &mut content.as_bytes())
                    .unwrap();
            }
            store(&tree, &dir.path().join(name))
        };
        Self {
            device: runtime("device.img", &described("device", "/guest")),
            api: runtime("api.img", &described("runtime-api", "/guest")),
            provided: runtime("provided.img", &described("runtime-api", "/var/task/bootstrap")),
            broken_device: runtime("broken-device.img", &described("device", "/etc/broken")),
            broken_api: runtime("broken-api.img", &described("runtime-api", "/etc/broken")),
            code: files("code.img", &[("app.txt", "")]),
            layers: [
                files(
                    "lower.img",
                    &[("both", "lower"), ("lower", "1"), ("bin/lower", "3")],
                ),
                files(
                    "upper.img",
                    &[("both", "upper"), ("upper", "2"), ("bin/upper", "4")],
                ),
            ],
            _dir: dir,
        }
    }
}

fn store(tree: &Tree, path: &Path) -> PathBuf {
    write(tree, b"", path).unwrap();
    path.to_path_buf()
}

/// A file system with this very program in it, and what it needs to run.
pub fn guest_tree(spool: &Path) -> Tree {
    let mut tree = Tree::new(spool).unwrap();
    for directory in ["dev", "etc", "opt", "proc", "tmp", "var/task"] {
        tree.directory(directory.as_bytes(), Attributes::root(0o755))
            .unwrap();
    }
    let broken = &mut b"\x7fELF, but no program".as_slice();
    tree.file(b"etc/broken", Attributes::root(0o755), broken).unwrap();
    let program = std::env::current_exe().unwrap();
    let mut files = libraries(&program);
    files.push((program, PathBuf::from("/guest")));
    for (from, to) in files {
        let mut content = fs::File::open(&from).unwrap();
        tree.file(
            to.to_str().unwrap().as_bytes(),
            Attributes::root(0o755),
            &mut content,
        )
        .unwrap();
    }
    tree
}

/// What a dynamic program needs, its loader included, as `ldd` prints it; each under its own path.
pub fn libraries(program: &Path) -> Vec<(PathBuf, PathBuf)> {
    let printed = Command::new("ldd").arg(program).output().unwrap();
    let printed = String::from_utf8(printed.stdout).unwrap();
    let paths = printed
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from);
    paths.map(|path| (path.clone(), path)).collect()
}

/// A node with a directory of its own.
pub struct World {
    pub isolation: Isolation,
    pub node: Node,
    pub dir: Arc<tempfile::TempDir>,
    /// What its zygote was started as, unlike any other.
    program: PathBuf,
}

/// An error with what caused it.
fn with_causes(error: &dyn std::error::Error) -> Failed {
    let causes = std::iter::successors(Some(error), |error| error.source());
    Failed::from(causes.map(ToString::to_string).collect::<Vec<_>>().join(": "))
}

/// What came of a call, with its log.
#[derive(Debug)]
pub struct Called {
    pub outcome: Outcome,
    pub log: Vec<u8>,
}

impl World {
    pub async fn new(isolation: Isolation, change: impl FnOnce(&mut NodeConfig)) -> Result<Self, Failed> {
        Self::in_dir(isolation, Arc::new(tempfile::tempdir()?), change).await
    }

    /// A node over the directory of an earlier one.
    pub async fn in_dir(
        isolation: Isolation,
        dir: Arc<tempfile::TempDir>,
        change: impl FnOnce(&mut NodeConfig),
    ) -> Result<Self, Failed> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let program = dir.path().join(format!("program-{number}"));
        symlink(std::env::current_exe()?, &program)?;
        let mut config = NodeConfig {
            worker_program: Some(program.clone()),
            ..config(dir.path(), isolation)
        };
        change(&mut config);
        Ok(Self {
            isolation,
            node: Node::start(config).await.map_err(|error| with_causes(&error))?,
            dir,
            program,
        })
    }

    /// Deploys a version and calls it until it has an idle instance: what learns from its run ends with it.
    pub async fn ready(&self, spec: VersionSpec) -> Result<VersionId, Failed> {
        let id = self.deploy(spec).await?;
        self.learned(&id).await?;
        Ok(id)
    }

    /// Has a version's first runs recorded, each on an instance of its own, and leaves one that rests.
    pub async fn learned(&self, id: &VersionId) -> Result<(), Failed> {
        const RUNS: usize = 3;
        for _ in 0..RUNS {
            self.node.evict(id, false).await;
            self.call(id, "ready").await?;
            self.settled().await?;
        }
        Ok(())
    }

    /// Waits until nothing is done but rest, so that which instance serves the next call is certain.
    pub async fn settled(&self) -> Result<(), Failed> {
        until(|| async { self.node.stats().busy == 0 }).await
    }

    /// How an instance of a version that has been deployed comes to be when none rests.
    pub fn cold_start(&self) -> StartKind {
        match self.isolation {
            Isolation::Kvm => StartKind::Restored,
            Isolation::Process => StartKind::Booted,
        }
    }

    /// The node's zygote.
    pub fn zygote(&self) -> Option<i32> {
        let program = self.program.to_str()?.as_bytes();
        children(std::process::id().cast_signed())
            .into_iter()
            .find(|pid| {
                let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                command.split(|&byte| byte == 0).next() == Some(program)
            })
    }

    /// The node's workers.
    pub fn workers(&self) -> Vec<i32> {
        self.zygote().map(children).unwrap_or_default()
    }

    /// Kills all workers, and says which. One may end by itself before its turn comes.
    pub fn kill_workers(&self) -> Result<Vec<i32>, Failed> {
        let workers = self.workers();
        for worker in &workers {
            kill(*worker)?;
        }
        Ok(workers)
    }

    /// Files of a kind that the node keeps of its snapshots.
    pub fn snapshot_files(&self, kind: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.dir.path().join("node/snapshots"));
        let paths = entries.into_iter().flatten().flatten().map(|entry| entry.path());
        paths
            .filter(|path| path.extension().is_some_and(|extension| extension == kind))
            .collect()
    }

    /// Calls a version, collecting what it logs.
    pub async fn call(&self, id: &VersionId, payload: &str) -> Result<Called, InvokeError> {
        self.call_within(id, payload, Duration::from_secs(20)).await
    }

    pub async fn call_within(
        &self,
        id: &VersionId,
        payload: &str,
        timeout: Duration,
    ) -> Result<Called, InvokeError> {
        let (sender, collecting) = log();
        let outcome = self.node.invoke(id, invocation(payload, timeout, sender)).await;
        let log = collecting.await.unwrap();
        outcome.map(|outcome| Called { outcome, log })
    }

    pub async fn deploy(&self, spec: VersionSpec) -> Result<VersionId, Failed> {
        let id = spec.id.clone();
        match self.node.deploy(spec).await {
            Ok(_) => Ok(id),
            Err(error) => Err(chain(&error).into()),
        }
    }

    /// Deploys what cannot be initialised; the failure with the log.
    pub async fn deploy_failing(&self, spec: VersionSpec) -> Result<(gust_node::Failure, Bytes), Failed> {
        match self.node.deploy(spec).await {
            Err(NodeError::Init { failure, log }) => Ok((failure, log)),
            Err(error) => Err(chain(&error).into()),
            Ok(Deployed { .. }) => Err("it was initialised".into()),
        }
    }

    pub async fn stop(self) {
        self.node.stop(Duration::from_secs(10)).await;
    }
}

pub fn invocation(payload: &str, timeout: Duration, log: mpsc::Sender<Bytes>) -> Invocation {
    Invocation {
        request_id: "8476a536-e9f4-11e8-9739-2dfe598c3fcd".to_owned(),
        payload: Bytes::from(payload.to_owned()),
        timeout,
        function_arn: "arn:aws:lambda:us-east-1:000000000000:function:f".to_owned(),
        client_context: None,
        trace_id: None,
        log,
        wanted: Wanted::Any,
        delivered: None,
    }
}

/// An error with its causes.
pub fn chain(error: &NodeError) -> String {
    if let NodeError::Init { failure, log } = error {
        return format!("{failure:?}, log {}", String::from_utf8_lossy(log));
    }
    let error: &dyn std::error::Error = error;
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// A version of its own that runs the guest of these tests.
pub fn spec(root: &Path, handler: &str) -> VersionSpec {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    VersionSpec {
        id: VersionId(format!("{handler}:{number}")),
        root_image: root.to_path_buf(),
        code_image: IMAGES.code.clone(),
        layer_images: Vec::new(),
        handler: handler.to_owned(),
        environment: BTreeMap::from([
            ("OWN".to_owned(), "value".to_owned()),
            ("_HANDLER".to_owned(), handler.to_owned()),
            ("AWS_LAMBDA_FUNCTION_VERSION".to_owned(), "7".to_owned()),
        ]),
        memory_mib: 256,
        tmp_mib: 16,
        init_timeout: Duration::from_secs(10),
        memory_mode: MemoryMode::Reuse,
        egress: Arc::default(),
    }
}

/// A small node beneath a directory.
pub fn config(directory: &Path, isolation: Isolation) -> NodeConfig {
    NodeConfig {
        data_dir: directory.join("node"),
        isolation,
        pool_size: 1,
        armed_per_version: 0,
        instances_max: 8,
        memory_budget_bytes: 4 << 30,
        snapshot_memory_bytes: 1 << 30,
        freeze_after: None,
        page_sharing: PageSharing::Runtime,
        idle_timeout: Duration::from_secs(600),
        queue_timeout: Duration::from_secs(20),
        egress: Arc::default(),
        worker_program: None,
    }
}

/// Collects what a call logs, until its sender is dropped.
pub fn log() -> (mpsc::Sender<Bytes>, JoinHandle<Vec<u8>>) {
    let (sender, mut receiver) = mpsc::channel::<Bytes>(4);
    let collecting = tokio::spawn(async move {
        let mut log = Vec::new();
        while let Some(piece) = receiver.recv().await {
            log.extend_from_slice(&piece);
        }
        log
    });
    (sender, collecting)
}

/// A version with a runtime that speaks to the device.
pub fn device(handler: &str) -> VersionSpec {
    spec(&IMAGES.device, handler)
}

/// The response of a call that succeeded.
pub fn response(called: &Called) -> Result<String, Failed> {
    match &called.outcome.result {
        InvokeResult::Success(body) => Ok(String::from_utf8_lossy(body).into_owned()),
        other => Err(format!("{other:?}, log {}", String::from_utf8_lossy(&called.log)).into()),
    }
}

/// A test of an isolation.
pub fn trial(
    isolation: Isolation,
    name: &str,
    test: impl FnOnce() -> Result<(), Failed> + Send + 'static,
) -> Trial {
    Trial::test(format!("{isolation:?}::{name}").to_lowercase(), test)
}

/// Runs an async test.
pub fn run(test: impl Future<Output = Result<(), Failed>>) -> Result<(), Failed> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(test)
}

/// Fails with the place and the values when they differ.
#[track_caller]
pub fn equal<T: PartialEq + std::fmt::Debug>(found: T, expected: T) -> Result<(), Failed> {
    match found == expected {
        true => Ok(()),
        false => Err(format!(
            "{}: {found:?} is not {expected:?}",
            std::panic::Location::caller()
        )
        .into()),
    }
}

/// Waits until something has come true, at most a minute.
pub async fn until<F: Future<Output = bool>>(condition: impl Fn() -> F) -> Result<(), Failed> {
    let start = Instant::now();
    while !condition().await {
        if start.elapsed() > Duration::from_secs(60) {
            let caller = std::panic::Location::caller();
            return Err(format!("{caller}: it did not come true in time").into());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

/// Kills a process, unless it has ended.
pub fn kill(pid: i32) -> Result<(), Failed> {
    signal(pid, rustix::process::Signal::KILL)
}

/// Sends a signal to a process, unless it has ended.
pub fn signal(pid: i32, signal: rustix::process::Signal) -> Result<(), Failed> {
    let pid = rustix::process::Pid::from_raw(pid).ok_or("no process id")?;
    match rustix::process::kill_process(pid, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Processor time that a process and its children have had, in ticks of the kernel's clock (10 ms).
pub fn ticks(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    // Fields 14 and 15 (proc_pid_stat(5)); the state, which is the first here, is field 3.
    let own = after_name.split(' ').skip(11).take(2);
    let own: u64 = own.filter_map(|field| field.parse::<u64>().ok()).sum();
    own + children(pid).into_iter().map(ticks).sum::<u64>()
}

/// Whether a process has ended, reaped or not.
pub fn has_ended(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_none_or(|(_, rest)| rest.starts_with('Z'))
}

/// Children of a process.
fn children(pid: i32) -> Vec<i32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten();
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| {
            list.split_whitespace()
                .filter_map(|pid| pid.parse().ok())
                .collect::<Vec<i32>>()
        })
        .collect()
}
