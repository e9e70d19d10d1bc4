//! From a code package to a version that the node can run.

use std::{fs::File, io::BufReader, sync::Arc, time::Duration};

use bytes::Bytes;
use gust_image::{
    Tree,
    build::package::{self, PackageError},
};
use gust_node::{NodeError, VersionId, VersionSpec};
use gust_store::{BlobId, Pin, StoreError};
use uuid::Uuid;

use crate::{
    calllog::CallLog,
    change::Next,
    clock,
    config::{egress, memory_mode},
    control::{CODE, CODE_IMAGES, Control, OWN_NODE, Runnable, log_scope},
    environment,
    error::ControlError,
    fault::Run,
    ids::{FunctionName, VersionNumber},
    limits, lines,
    model::{Broken, Code, Function, Version},
    ops,
};

/// What image files of packages say of themselves.
const IMAGE_METADATA: &[u8] = br#"{"kind":"package"}"#;

/// A package that has been unpacked once and is kept until its version is recorded.
pub(crate) struct Received {
    pub(crate) code: Code,
    pub(crate) _pin: Pin,
}

/// What became of a version that could run.
enum Placed {
    /// It runs, in the place of another or of none.
    Instead(Option<Arc<Runnable>>),
    /// It is not the version that is wanted any more.
    Stale,
}

enum ImageError {
    Empty,
    Package(PackageError),
    Store(StoreError),
}

impl From<StoreError> for ImageError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Control {
    /// The image of a runtime, if it has been built on this server.
    pub(crate) fn runtime_image(&self, runtime: &str) -> std::path::PathBuf {
        self.0.config.runtimes_dir.join(format!("{runtime}.img"))
    }

    /// Refuses a runtime that has not been built here.
    pub(crate) fn check_runtime(&self, runtime: &str) -> Result<(), ControlError> {
        if self.runtime_image(runtime).is_file() || !self.0.node.needs_runtimes() {
            return Ok(());
        }
        Err(ControlError::InvalidParameter(format!(
            "The runtime {runtime} has not been built on this server. Build it with: gust runtime build {runtime}"
        )))
    }

    /// Stores a package and unpacks it into an image, which shows whether it is one.
    pub(crate) async fn receive(&self, zip: Bytes) -> Result<Received, ControlError> {
        let control = self.clone();
        let unpack = tokio::task::spawn_blocking(move || control.receive_blocking(&zip));
        match unpack.await {
            Ok(result) => result,
            Err(panic) => Err(ControlError::Service(format!(
                "unpacking the package failed: {panic}"
            ))),
        }
    }

    /// Lets go of a package; one that no version has is removed. Called however the request that brought it ended.
    pub(crate) async fn release(&self, received: Received) {
        // No version is entered meanwhile, so what nobody needs now nobody will.
        let _no_changes = self.0.changing.lock().await;
        let blob = received.code.blob();
        drop(received);
        let needed = self.read(|published| published.account.code_blobs().contains(&blob));
        if !needed {
            self.remove_package(blob);
        }
    }

    /// Removes a package and its image.
    pub(crate) fn remove_package(&self, blob: BlobId) {
        for kind in [CODE, CODE_IMAGES] {
            if let Err(error) = self.0.store.blobs.remove(kind, blob) {
                tracing::warn!(%error, "a package that nothing needs could not be removed");
            }
        }
    }

    fn receive_blocking(&self, zip: &[u8]) -> Result<Received, ControlError> {
        if zip.is_empty() {
            return Err(refused(ImageError::Empty));
        }
        let id = BlobId::of(zip);
        let pin = self.0.store.blobs.pin(id);
        let unzipped_bytes = self.build_image(id, zip).map_err(refused)?;
        self.0.store.blobs.put(CODE, zip)?;
        let code = Code {
            sha256: *id.as_bytes(),
            zipped_bytes: zip.len() as u64,
            unzipped_bytes,
        };
        Ok(Received { code, _pin: pin })
    }

    /// Makes the image of a package and answers the bytes of its files.
    fn build_image(&self, id: BlobId, zip: &[u8]) -> Result<u64, ImageError> {
        let spool_dir = self.0.store.dir().to_owned();
        let mut unzipped_bytes = 0;
        self.0.store.blobs.derive(CODE_IMAGES, id, |output| {
            let mut tree =
                Tree::new(&spool_dir).map_err(|source| ImageError::Package(PackageError::Io(source)))?;
            let cursor = std::io::Cursor::new(zip);
            unzipped_bytes =
                package::add(&mut tree, cursor, limits::UNZIPPED_BYTES_MAX).map_err(ImageError::Package)?;
            if tree.names(b"/").next().is_none() {
                return Err(ImageError::Empty);
            }
            gust_image::write(&tree, IMAGE_METADATA, output)
                .map(drop)
                .map_err(|error| ImageError::Package(PackageError::Write(error)))
        })?;
        Ok(unzipped_bytes)
    }

    /// Makes the image of a stored package again when it is missing.
    fn ensure_image(&self, id: BlobId) -> Result<(), Broken> {
        if self.0.store.blobs.exists(CODE_IMAGES, id) {
            return Ok(());
        }
        let path = self.0.store.blobs.path(CODE, id);
        let zip = std::fs::read(&path).map_err(|error| Broken {
            reason: format!("The package {} cannot be read: {error}", path.display()),
        })?;
        let built = self.build_image(id, &zip);
        built.map(drop).map_err(|error| Broken {
            reason: refused(error).to_string(),
        })
    }

    /// Tells the node of a version without booting it, and makes it runnable.
    pub(crate) fn register(&self, function: &Function, version: &Arc<Version>) {
        match self.spec(function, version) {
            Ok(spec) => {
                let id = spec.id.clone();
                self.offer_version(&spec);
                self.0.node.register(spec);
                let runnable = self.runnable_of(id, function, version);
                self.0.fleet.snapshot(OWN_NODE, runnable.function, true);
                drop(self.set_runnable(&function.shared.name, runnable));
            }
            Err(error) => {
                tracing::error!(function = %function.shared.name, version = %version.number, %error, "not registered");
            }
        }
    }

    /// Publishes what runs and answers what ran before, unless the version has been changed or deleted meanwhile.
    fn set_runnable(&self, name: &FunctionName, runnable: Runnable) -> Placed {
        self.write(|published| {
            let number = runnable.version.number;
            let present = published
                .account
                .get(name)
                .and_then(|function| function.version(number));
            if present.is_none_or(|present| present.deployment_id != runnable.version.deployment_id) {
                return Placed::Stale;
            }
            let runnables = published.runnables.entry(name.clone()).or_default();
            Placed::Instead(runnables.insert(number, Arc::new(runnable)))
        })
    }

    fn spec(&self, function: &Function, version: &Version) -> Result<VersionSpec, ControlError> {
        let config = &version.config;
        let name = &function.shared.name;
        Ok(VersionSpec {
            id: version_id(name, version),
            root_image: self.runtime_image(&config.runtime),
            code_image: self.0.store.blobs.path(CODE_IMAGES, version.code.blob()),
            layer_images: Vec::new(),
            handler: config.handler.clone(),
            environment: environment::variables(&self.0.config.place, name, version),
            memory_mib: config.memory_mib,
            tmp_mib: config.tmp_mib,
            init_timeout: Duration::from_secs(limits::INIT_TIMEOUT_S),
            memory_mode: memory_mode(&function.shared.tags, self.0.config.memory_mode)?,
            egress: Arc::new(egress(&function.shared.tags)?),
        })
    }

    /// Deploys a version in the background.
    pub(crate) fn spawn_deployment(&self, name: &FunctionName, version: &Version) {
        let (control, name) = (self.clone(), name.clone());
        let (number, deployment_id) = (version.number, version.deployment_id);
        drop(self.0.tasks.spawn(async move {
            // The semaphore is never closed.
            let Ok(_place) = control.0.deployments.acquire().await else {
                return;
            };
            control.deploy(&name, number, deployment_id).await;
        }));
    }

    async fn deploy(&self, name: &FunctionName, number: VersionNumber, deployment_id: Uuid) {
        let function = self.read(|published| published.account.get(name).cloned());
        let version = function
            .as_ref()
            .and_then(|function| function.version(number))
            .cloned();
        let (Some(function), Some(version)) = (function, version) else {
            return;
        };
        if version.deployment_id != deployment_id || self.is_stopping() {
            return;
        }
        let result = self.lay_out(&function, &version).await;
        let Some(result) = result else { return };
        // Runs before it is said to be active, so that whoever waits for that can call it at once.
        let mut replaced = None;
        if let Ok(id) = &result {
            let runnable = self.runnable_of(id.clone(), &function, &version);
            self.0.fleet.snapshot(OWN_NODE, runnable.function, true);
            match self.set_runnable(name, runnable) {
                Placed::Instead(old) => replaced = old.filter(|old| old.id != *id),
                Placed::Stale => {
                    self.0.fleet.remove_function(id);
                    return self.remove_version(id).await;
                }
            }
            // How it is to be scaled may have been changed while it was deployed.
            self.tell_fleet_of(name);
        }
        let step_name = name.clone();
        let change = self.change(name, move |account| {
            let Some(function) = account.get(&step_name) else {
                return Ok((Next::Same, ()));
            };
            let next = ops::deployed(function, number, deployment_id, result.map(drop));
            Ok((next.map_or(Next::Same, Next::Put), ()))
        });
        if let Err(error) = change.await {
            tracing::error!(function = %name, version = %number, %error, "the end of a deployment was not stored");
        }
        if let Some(old) = replaced {
            self.0.fleet.remove_function(&old.id);
            self.remove_version(&old.id).await;
        }
    }

    /// Has the node boot a version. `None` when the server stops meanwhile: the version stays as it is.
    async fn lay_out(
        &self,
        function: &Function,
        version: &Arc<Version>,
    ) -> Option<Result<VersionId, Broken>> {
        let name = &function.shared.name;
        let blob = version.code.blob();
        let control = self.clone();
        let image = tokio::task::spawn_blocking(move || control.ensure_image(blob)).await;
        let broken = |reason: String| Some(Err(Broken { reason }));
        match image {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Some(Err(error)),
            Err(panic) => return broken(format!("Unpacking the package failed: {panic}")),
        }
        let spec = match self.spec(function, version) {
            Ok(spec) => spec,
            Err(error) => return broken(error.to_string()),
        };
        let id = spec.id.clone();
        self.offer_version(&spec);
        match self.0.node.deploy(spec).await {
            Ok(deployed) => {
                self.log_init(name, version, &deployed.log, Ok(deployed.init))
                    .await;
                Some(Ok(id))
            }
            // As in AWS Lambda: the function is active, and every call is answered with the error.
            Err(NodeError::Init { failure, log }) => {
                self.log_init(name, version, &log, Err(failure)).await;
                Some(Ok(id))
            }
            Err(NodeError::Stopping) => None,
            Err(error @ NodeError::Io { .. }) => {
                let cause = std::error::Error::source(&error)
                    .map(|cause| format!(": {cause}"))
                    .unwrap_or_default();
                tracing::error!(function = %name, version = %version.number, %error, cause, "deployment failed");
                broken(format!("The function could not be deployed: {error}{cause}"))
            }
        }
    }

    async fn log_init(
        &self,
        name: &FunctionName,
        version: &Version,
        output: &[u8],
        result: Result<Duration, gust_node::Failure>,
    ) {
        let stream = format!("[{}]deployment", version.number);
        let mut log = CallLog::new(&self.0.store.logs, log_scope(name), stream, false);
        log.platform(&lines::init_start(&version.config.runtime)).await;
        log.output(output).await;
        let init_timeout = Duration::from_secs(limits::INIT_TIMEOUT_S);
        match result {
            Ok(init) => log.platform(&lines::init_report(init, None)).await,
            Err(failure) => {
                let request_id = Uuid::nil().to_string();
                let run = Run {
                    request_id: &request_id,
                    timeout: init_timeout,
                    init_timeout,
                    ended_unix_ms: clock::unix_ms(),
                };
                let answer = run.init_failure(failure);
                log.platform(&String::from_utf8_lossy(&answer.payload)).await;
                log.platform(&lines::init_report(Duration::ZERO, answer.status))
                    .await;
            }
        }
    }

    /// The stored package of a version, opened for reading.
    ///
    /// # Errors
    /// When it is not there.
    pub fn open_code(&self, sha256: [u8; 32]) -> std::io::Result<BufReader<File>> {
        File::open(self.0.store.blobs.path(CODE, BlobId::from_bytes(sha256))).map(BufReader::new)
    }
}

/// The node's name for a version: fit for a file name, and new at every deployment.
fn version_id(name: &FunctionName, version: &Version) -> VersionId {
    let number = match version.number {
        VersionNumber::Latest => "latest".to_owned(),
        VersionNumber::Published(number) => number.to_string(),
    };
    VersionId(format!("{name}-{number}-{}", version.deployment_id.simple()))
}

fn refused(error: ImageError) -> ControlError {
    let invalid = |message: String| ControlError::InvalidParameter(message);
    match error {
        ImageError::Store(error) => ControlError::Store(error),
        ImageError::Empty => invalid("Uploaded file must be a non-empty zip".to_owned()),
        ImageError::Package(PackageError::NotAZip(_)) => invalid(
            "Could not unzip uploaded file. Please check your file, then try to upload again.".to_owned(),
        ),
        ImageError::Package(PackageError::TooLarge { limit }) => {
            invalid(format!("Unzipped size must be smaller than {limit} bytes"))
        }
        ImageError::Package(
            error @ (PackageError::BadEntry { .. } | PackageError::TooManyEntries { .. }),
        ) => invalid(format!("Could not unzip uploaded file: {error}")),
        ImageError::Package(PackageError::Io(source)) => StoreError::io("unpack the package", source).into(),
        ImageError::Package(PackageError::Write(error)) => {
            StoreError::io(format!("write the image {}", error.path.display()), error.source).into()
        }
    }
}
