//! A function version as its node knows it.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU32},
};

use gust_worker::protocol::{Command, InitSpec, Limits, MemoryMode};
use tokio::sync::OnceCell;

use crate::{
    api::{NodeError, VersionId, VersionSpec},
    files::{FileStore, Files},
    identity::Identity,
};

/// Where a function's code is seen in its sandbox.
pub(crate) const TASK_ROOT: &str = "/var/task";

/// Memory for which AWS Lambda grants one processor, in MiB.
const MIB_PER_CPU: u32 = 1769;

/// Most processors that a function is granted.
const CPUS_MAX: u32 = 6;

/// Memory that an instance is expected to use before one has been seen, in bytes.
const EXPECTED_BYTES: u64 = 48 << 20;

/// A version that is known, under the generation of its registration.
#[derive(Debug)]
pub(crate) struct Version {
    pub spec: VersionSpec,
    pub generation: u64,
    files: OnceCell<Arc<Files>>,
    /// Nothing of it is to be kept any more.
    pub removed: AtomicBool,
    /// A graft on its runtime's base is being made.
    pub grafting: AtomicBool,
    /// An instance that is kept is being learned from.
    pub learning: AtomicBool,
    /// Grafts that came to nothing.
    pub graft_failures: AtomicU32,
    /// Held while its snapshot or its first instance is made, so that only one is.
    pub making: tokio::sync::Mutex<()>,
}

impl Version {
    pub(crate) fn new(spec: VersionSpec, generation: u64) -> Self {
        Self {
            spec,
            generation,
            files: OnceCell::new(),
            removed: AtomicBool::new(false),
            grafting: AtomicBool::new(false),
            learning: AtomicBool::new(false),
            graft_failures: AtomicU32::new(0),
            making: tokio::sync::Mutex::default(),
        }
    }

    pub(crate) fn id(&self) -> &VersionId {
        &self.spec.id
    }

    /// Its files, opened once.
    pub(crate) async fn files(&self, store: &Arc<FileStore>) -> Result<Arc<Files>, NodeError> {
        let open = || async {
            let (store, spec) = (Arc::clone(store), self.spec.clone());
            let opened = tokio::task::spawn_blocking(move || store.open(&spec)).await;
            let opened = opened.unwrap_or_else(|error| {
                Err(io_error(
                    "opening a version's files",
                    std::io::Error::other(error),
                ))
            });
            opened.map(Arc::new)
        };
        self.files.get_or_try_init(open).await.map(Arc::clone)
    }

    /// Bounds of one instance.
    pub(crate) fn limits(&self) -> Limits {
        Limits {
            memory_bytes: u64::from(self.spec.memory_mib) << 20,
            tmp_bytes: u64::from(self.spec.tmp_mib) << 20,
            cpus: self.spec.memory_mib.div_ceil(MIB_PER_CPU).clamp(1, CPUS_MAX),
        }
    }

    /// Memory that an instance is expected to use before one has been seen.
    pub(crate) fn expected_bytes(spec: &VersionSpec) -> u64 {
        EXPECTED_BYTES.min(u64::from(spec.memory_mib) << 20)
    }

    /// Whether an instance keeps its memory between calls.
    pub(crate) fn keeps_memory(&self) -> bool {
        match self.spec.memory_mode {
            MemoryMode::Reuse => true,
            MemoryMode::Fresh => false,
        }
    }

    /// What an instance's environment has beside the version's own.
    pub(crate) fn own_environment(&self, identity: &Identity) -> Vec<(String, String)> {
        let number = self.spec.environment.get("AWS_LAMBDA_FUNCTION_VERSION");
        let stream = identity.log_stream(number.map_or("$LATEST", String::as_str));
        vec![("AWS_LAMBDA_LOG_STREAM_NAME".to_owned(), stream)]
    }

    /// The command that gives a booted runtime this function.
    pub(crate) fn init_command(&self, identity: &Identity) -> Command {
        let given = self
            .spec
            .environment
            .iter()
            .map(|(name, value)| (name.clone(), value.clone()));
        Command::Init(InitSpec {
            handler: self.spec.handler.clone(),
            environment: given.chain(self.own_environment(identity)).collect(),
            task_root: TASK_ROOT.to_owned(),
            limits: self.limits(),
        })
    }
}

/// A failure of the host, with what was tried.
pub(crate) fn io_error(action: impl Into<String>, source: std::io::Error) -> NodeError {
    NodeError::Io {
        action: action.into(),
        source,
    }
}
