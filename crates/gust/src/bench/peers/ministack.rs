//! MiniStack: the emulator of AWS among today's free ones that runs functions without a container engine, as processes
//! of its own interpreter without any wall. A cold start is the first call of a function that was just made.

use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use hyper::Method;
use serde_json::Value;
use tempfile::TempDir;

use super::Venv;
use crate::{
    bench::{calls, children, handlers::Handler},
    cli::ServerArgs,
    client::{Client, segment},
    commands::deploy,
    package::Package,
};

/// Time that it gets to start, in pauses of [`START_PAUSE`].
const START_PAUSES_MAX: usize = 600;

/// Pause between two looks at whether it takes calls.
const START_PAUSE: Duration = Duration::from_millis(100);

/// A running MiniStack.
#[derive(Debug)]
pub struct MiniStack {
    child: Child,
    client: Client,
    made: u64,
    _dir: TempDir,
}

impl MiniStack {
    /// Starts one, and waits until it takes calls.
    pub async fn start(venv: &Venv) -> Result<Self> {
        // Nobody else takes the port in this moment; and if someone does, it does not start and is left out.
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .context("find a free port")?
            .port();
        let dir = tempfile::Builder::new()
            .prefix("gust-bench-ministack-")
            .tempdir()
            .context("make a directory for MiniStack")?;
        let child = Command::new(venv.program("ministack"))
            .env("GATEWAY_PORT", port.to_string())
            .env("BIND_HOST", "127.0.0.1")
            .env("TMPDIR", dir.path())
            .env("LOG_LEVEL", "WARNING")
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start MiniStack")?;
        let client = Client::new(&ServerArgs {
            endpoint: Some(format!("http://127.0.0.1:{port}")),
            access_key: Some("test".to_owned()),
            secret_key: Some("test".to_owned()),
            region: "us-east-1".to_owned(),
        })?;
        let mut started = Self {
            child,
            client,
            made: 0,
            _dir: dir,
        };
        for _ in 0..START_PAUSES_MAX {
            if let Some(status) = started.child.try_wait().context("look at MiniStack")? {
                bail!("MiniStack ended with {status}");
            }
            if started.client.get("/2015-03-31/functions").await.is_ok() {
                return Ok(started);
            }
            tokio::time::sleep(START_PAUSE).await;
        }
        bail!("MiniStack does not take calls")
    }

    /// One event for a function that nobody has called yet.
    pub async fn sample(
        &mut self,
        handler: &Handler,
        package: &Package,
        event: &Bytes,
    ) -> Result<(Duration, Value)> {
        self.made += 1;
        let name = format!("{}-{}", handler.name, self.made);
        deploy::deploy(&self.client, &handler.project(&name, None), package)
            .await
            .context("make a function in MiniStack")?;
        let mut connection = self.client.connect().await?;
        let (latency, answer) = calls::timed(&mut connection, &name, event).await?;
        ensure!(
            answer.status.as_u16() == 200,
            "MiniStack answered {}",
            answer.status
        );
        let value = answer.json()?;
        let path = format!("/2015-03-31/functions/{}", segment(&name));
        self.client.send(Method::DELETE, &path, &[], Vec::new()).await?;
        Ok((latency, value))
    }

    /// Its version.
    pub fn version(venv: &Venv) -> String {
        let ask = "import importlib.metadata as m; print(m.version('ministack'))";
        let output = Command::new(venv.program("python3")).args(["-c", ask]).output();
        output.map_or_else(
            |_| "unknown".to_owned(),
            |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        )
    }
}

impl Drop for MiniStack {
    fn drop(&mut self) {
        children::end(&mut self.child);
    }
}
