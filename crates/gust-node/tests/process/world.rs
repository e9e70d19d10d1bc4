//! A node of these tests, with images to run and calls to make.

use std::{
    collections::BTreeMap,
    fs,
    future::Future,
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
    Outcome, VersionId, VersionSpec,
};
use libtest_mimic::Failed;
use tokio::sync::mpsc;

/// Images that all tests share.
pub struct Images {
    _dir: tempfile::TempDir,
    pub device: PathBuf,
    pub api: PathBuf,
    pub provided: PathBuf,
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
        let one_file = |name: &str, path: &str, content: &str| {
            let mut tree = Tree::new(dir.path()).unwrap();
            tree.file(path.as_bytes(), Attributes::root(0o755), &mut content.as_bytes())
                .unwrap();
            store(&tree, &dir.path().join(name))
        };
        Self {
            device: runtime("device.img", &described("device", "/guest")),
            api: runtime("api.img", &described("runtime-api", "/guest")),
            provided: runtime("provided.img", &described("runtime-api", "/var/task/bootstrap")),
            code: one_file("code.img", "app.txt", ""),
            layers: [
                one_file("lower.img", "both", "lower"),
                one_file("upper.img", "both", "upper"),
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
    pub node: Node,
    pub dir: Arc<tempfile::TempDir>,
}

/// What came of a call, with its log.
#[derive(Debug)]
pub struct Called {
    pub outcome: Outcome,
    pub log: Vec<u8>,
}

impl World {
    pub async fn new(change: impl FnOnce(&mut NodeConfig)) -> Result<Self, Failed> {
        Self::in_dir(Arc::new(tempfile::tempdir()?), change).await
    }

    /// A node over the directory of an earlier one.
    pub async fn in_dir(
        dir: Arc<tempfile::TempDir>,
        change: impl FnOnce(&mut NodeConfig),
    ) -> Result<Self, Failed> {
        // Workers of other users find their way to the files.
        let readable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(dir.path(), readable)?;
        let mut config = NodeConfig {
            data_dir: dir.path().join("node"),
            isolation: Isolation::Process,
            pool_size: 1,
            armed_per_version: 1,
            instances_max: 8,
            memory_budget_bytes: 4 << 30,
            idle_timeout: Duration::from_secs(600),
            queue_timeout: Duration::from_secs(20),
            worker_program: None,
        };
        change(&mut config);
        Ok(Self {
            node: Node::start(config).await?,
            dir,
        })
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
        let (sender, mut receiver) = mpsc::channel::<Bytes>(4);
        let collecting = tokio::spawn(async move {
            let mut log = Vec::new();
            while let Some(piece) = receiver.recv().await {
                log.extend_from_slice(&piece);
            }
            log
        });
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
    }
}

/// The response of a call that succeeded.
pub fn response(called: &Called) -> Result<String, Failed> {
    match &called.outcome.result {
        InvokeResult::Success(body) => Ok(String::from_utf8_lossy(body).into_owned()),
        other => Err(format!("{other:?}, log {}", String::from_utf8_lossy(&called.log)).into()),
    }
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

/// Waits until something has come true, at most ten seconds.
pub async fn until<F: Future<Output = bool>>(condition: impl Fn() -> F) -> Result<(), Failed> {
    let start = Instant::now();
    while !condition().await {
        if start.elapsed() > Duration::from_secs(10) {
            return Err("it did not come true in time".into());
        }
        tokio::task::yield_now().await;
    }
    Ok(())
}

/// Processes of this machine whose environment has this entry: guests of one version.
pub fn guests(entry: &str) -> Vec<i32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|process| process.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &i32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment
            .split(|&byte| byte == 0)
            .any(|variable| variable == entry.as_bytes())
    })
    .collect()
}

/// Parent of a process.
pub fn parent(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

pub fn kill(pid: i32) -> Result<(), Failed> {
    let pid = rustix::process::Pid::from_raw(pid).ok_or("no process id")?;
    Ok(rustix::process::kill_process(pid, rustix::process::Signal::KILL)?)
}

/// Children of this process: its zygotes.
pub fn zygotes() -> Vec<i32> {
    let threads = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| {
            list.split_whitespace()
                .filter_map(|pid| pid.parse().ok())
                .collect::<Vec<i32>>()
        })
        .collect()
}
