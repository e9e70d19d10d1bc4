//! A server of this very program, started for a measurement: own data directory, own port, ended with it.

use std::{
    os::unix::fs::symlink,
    path::Path,
    process::{Child, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use hyper::Method;
use serde_json::Value;
use tempfile::TempDir;

use super::{
    calls::{self, Sample},
    children,
    handlers::Handler,
};
use crate::{
    cli::ServerArgs,
    client::{Client, segment},
    commands::{deploy, runtime},
    exit::Hinted,
    paths,
};

/// The runtime of the measured functions.
const RUNTIME: &str = "python3.11";

/// Options for a server whose instances come and go as a measurement has it: its calls would look like sustained traffic,
/// and instances would be made for that.
pub const UNSCALED: &[&str] = &["--autoscale-period", "86400"];

/// Time that a server gets to become quiet before a sample, in pauses of [`QUIET_PAUSE`].
const QUIET_PAUSES_MAX: usize = 2000;

/// Pause between two looks at a server.
const QUIET_PAUSE: Duration = Duration::from_millis(2);

/// Looks in a row that must find a server as it was.
const QUIET_LOOKS: usize = 5;

/// Samples that may be thrown away because their instance came to be otherwise than it should have.
const RETRIES_MAX: usize = 20;

/// A server that is measured.
#[derive(Debug)]
pub struct Server {
    client: Client,
    /// Of the server's process.
    pid: u64,
    started: Option<Started>,
    /// Times that it was asked what its node holds.
    looks: AtomicU64,
}

/// A server that was started here.
#[derive(Debug)]
struct Started {
    child: Child,
    dir: TempDir,
}

/// How the instance of a sample must have come to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Nothing of the version is prepared; its snapshot is in the page cache.
    Unprepared,
    /// An instance was armed.
    Armed,
    /// A process was started.
    Process,
}

impl Start {
    /// What the server calls it.
    fn label(self) -> &'static str {
        match self {
            Self::Unprepared => "restored",
            Self::Armed => "armed",
            Self::Process => "booted",
        }
    }
}

impl Server {
    /// The server that the command line names, or one that is started.
    pub async fn named_or_started(server: &ServerArgs, data_dir: &Path) -> Result<Self> {
        match &server.endpoint {
            Some(_) => Self::named(server).await,
            None => Self::start(data_dir, "auto").await,
        }
    }

    /// The server that the command line names, or the usual one.
    pub async fn named(server: &ServerArgs) -> Result<Self> {
        Self::running(Client::new(server)?, None).await
    }

    /// Starts a server with the runtimes of another data directory.
    pub async fn start(data_dir: &Path, isolation: &str) -> Result<Self> {
        Self::start_with(data_dir, isolation, UNSCALED).await
    }

    /// The same with further options of `gust up`.
    pub async fn start_with(data_dir: &Path, isolation: &str, options: &[&str]) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("gust-bench-")
            .tempdir()
            .context("make a data directory")?;
        link_runtimes(data_dir, dir.path())?;
        let (child, endpoint) = up(dir.path(), isolation, options)?;
        let client = Client::new(&ServerArgs {
            endpoint: Some(endpoint),
            access_key: None,
            secret_key: None,
            region: "us-east-1".to_owned(),
        })?;
        Self::running(client, Some(Started { child, dir })).await
    }

    /// Another process, with the same options, takes over from the one that was started here. How long that was, from its start
    /// until the old one has ended.
    pub async fn hand_over(&mut self, isolation: &str, options: &[&str]) -> Result<Duration> {
        let started = self.started.as_mut().context("the server was not started here")?;
        let began = Instant::now();
        let (dir, isolation) = (started.dir.path().to_owned(), isolation.to_owned());
        let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
        let starting = tokio::task::spawn_blocking(move || {
            let options: Vec<&str> = options.iter().map(String::as_str).collect();
            up(&dir, &isolation, &[options.as_slice(), &["--take-over"]].concat())
        });
        let (child, _endpoint) = starting.await.context("start a server")??;
        self.pid = u64::from(child.id());
        let mut old = std::mem::replace(&mut started.child, child);
        let ending = tokio::task::spawn_blocking(move || old.wait());
        let status = ending.await.context("wait for the old server")??;
        ensure!(status.success(), "the old server ended with {status}");
        Ok(began.elapsed())
    }

    async fn running(client: Client, started: Option<Started>) -> Result<Self> {
        let stats = client.get("/_gust/v1/stats").await?;
        let pid = stats["pid"]
            .as_u64()
            .context("the server does not say its process id")?;
        Ok(Self {
            client,
            pid,
            started,
            looks: AtomicU64::new(0),
        })
    }

    /// A client of it.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Its process id, when it is a process of this machine that was started here.
    pub fn pid(&self) -> Option<u64> {
        self.started.as_ref().map(|_| self.pid)
    }

    /// Makes a function, and waits until it can be called.
    pub async fn deploy(
        &self,
        handler: &Handler,
        name: &str,
        memory_mode: Option<&str>,
        dir: &Path,
    ) -> Result<()> {
        let project = handler.project(name, memory_mode);
        deploy::deploy(&self.client, &project, &handler.package(dir)?)
            .await
            .with_context(|| format!("deploy {name}"))?;
        Ok(())
    }

    /// Deletes a function.
    pub async fn delete(&self, name: &str) -> Result<()> {
        let path = format!("/2015-03-31/functions/{}", segment(name));
        self.client.send(Method::DELETE, &path, &[], Vec::new()).await?;
        Ok(())
    }

    /// What its node holds now.
    pub async fn node(&self) -> Result<Value> {
        self.looks.fetch_add(1, Ordering::Relaxed);
        Ok(self.client.get("/_gust/v1/stats").await?["node"].take())
    }

    /// How often it has been asked what its node holds: what that takes is no part of what is measured.
    pub fn looks(&self) -> u64 {
        self.looks.load(Ordering::Relaxed)
    }

    /// Waits until nothing is being called, prepared or taken down: until some looks in a row find the same.
    pub async fn quiet(&self) -> Result<()> {
        let (mut before, mut same) = (Value::Null, 0);
        for _ in 0..QUIET_PAUSES_MAX {
            let node = self.node().await?;
            same = if node == before && node["busy"] == 0 {
                same + 1
            } else {
                0
            };
            if same >= QUIET_LOOKS {
                return Ok(());
            }
            before = node;
            tokio::time::sleep(QUIET_PAUSE).await;
        }
        bail!("the server does not become quiet: {before}")
    }

    /// Ends the idle instances of a function, and its armed ones unless they are to be kept.
    pub async fn evict(&self, name: &str, keep_armed: bool) -> Result<()> {
        calls::evict(&mut self.client.connect().await?, name, keep_armed).await
    }

    /// One call that meets no idle instance.
    pub async fn cold_call(&self, name: &str, payload: &bytes::Bytes, start: Start) -> Result<Sample> {
        let mut last = String::new();
        for _ in 0..RETRIES_MAX {
            self.quiet().await?;
            self.evict(name, start == Start::Armed).await?;
            self.quiet().await?;
            let mut connection = self.client.connect().await?;
            let sample = calls::call(&mut connection, name, payload).await?;
            last = sample.start().to_owned();
            if last == start.label() {
                return Ok(sample);
            }
        }
        bail!(
            "{RETRIES_MAX} calls of {name} in a row were to find their instance {}, but it was {last}",
            start.label()
        )
    }
}

/// Starts `gust up` on a data directory, and waits until it serves; where that is.
fn up(dir: &Path, isolation: &str, options: &[&str]) -> Result<(Child, String)> {
    let mut child = children::gust()?
        .args([
            "up",
            "--quiet",
            "--listen",
            "127.0.0.1:0",
            "--isolation",
            isolation,
        ])
        .args(options)
        .arg("--data-dir")
        .arg(dir)
        .stdout(Stdio::piped())
        .spawn()
        .context("start gust up")?;
    let line = children::first_line(&mut child)?;
    match line.trim().rsplit_once("http://") {
        Some((_, address)) => Ok((child, format!("http://{address}"))),
        None => {
            children::end(&mut child);
            bail!("gust up did not start; it said {line:?}")
        }
    }
}

/// Gives a data directory the runtimes of another.
pub fn link_runtimes(data_dir: &Path, dir: &Path) -> Result<()> {
    let runtimes = paths::runtimes_dir(data_dir);
    if !runtime::built(&runtimes)
        .iter()
        .any(|built| built.name == RUNTIME)
    {
        return Err(Hinted {
            message: format!("{} has no runtime {RUNTIME}", runtimes.display()),
            hint: format!("gust runtime build {RUNTIME}"),
        }
        .into());
    }
    let runtimes = runtimes
        .canonicalize()
        .with_context(|| format!("find {}", runtimes.display()))?;
    symlink(&runtimes, paths::runtimes_dir(dir)).context("link the runtimes")
}

impl Drop for Started {
    fn drop(&mut self) {
        children::end(&mut self.child);
    }
}
