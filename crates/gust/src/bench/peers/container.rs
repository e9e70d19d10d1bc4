//! A container made by `crun` for each event: the runtime's image unpacked as a read-only root, own namespaces, the
//! event on standard input. What a container engine does around that is left out, which is in the container's favour.

use std::{
    fs,
    io::{BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use gust_image::ImageFile;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::SCRIPT;
use crate::bench::children;

/// The interpreter in the runtime's image.
const PYTHON: &str = "/usr/bin/python3.11";

/// Where the container sees the function's code.
const TASK_ROOT: &str = "/var/task";

/// Makes containers from one runtime image.
#[derive(Debug)]
pub struct Container {
    dir: TempDir,
    made: u64,
    /// Where containers are made, if not here.
    elsewhere: Option<Elsewhere>,
    /// The version of `crun`.
    pub version: String,
}

impl Container {
    /// Unpacks a runtime's image.
    ///
    /// # Errors
    /// When there is no `crun`, or the caller is not root.
    pub fn prepare(image: &Path) -> Result<Self> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "only root can make containers in this way"
        );
        let output = Command::new("crun")
            .arg("--version")
            .output()
            .context("start crun (Debian package crun)")?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let dir = tempfile::Builder::new()
            .prefix("gust-bench-crun-")
            .tempdir()
            .context("make a directory for containers")?;
        let file = ImageFile::open(image).with_context(|| format!("open {}", image.display()))?;
        file.extract(&dir.path().join("root"))
            .with_context(|| format!("unpack {}", image.display()))?;
        Ok(Self {
            dir,
            made: 0,
            elsewhere: Elsewhere::make_if_needed()?,
            version: said.lines().next().unwrap_or("crun").to_owned(),
        })
    }

    /// Makes the containers run the code of a directory from now on.
    pub fn serve(&self, code: &Path) -> Result<()> {
        self.serve_with(code, SCRIPT)
    }

    /// The same with another script around the code.
    pub fn serve_with(&self, code: &Path, script: &str) -> Result<()> {
        let root = self.dir.path().join("root");
        let mount_point = root.join(TASK_ROOT.trim_start_matches('/'));
        fs::create_dir_all(&mount_point).with_context(|| format!("make {}", mount_point.display()))?;
        let path = self.bundle().join("config.json");
        fs::create_dir_all(self.bundle()).with_context(|| format!("make {}", path.display()))?;
        fs::write(&path, config(&root, code, script).to_string())
            .with_context(|| format!("write {}", path.display()))
    }

    /// One event in a container of its own.
    pub fn sample(&mut self, event: &[u8]) -> Result<(Duration, Value)> {
        self.made += 1;
        let name = format!("gust-bench-{}-{}", std::process::id(), self.made);
        let mut command = self.command();
        command.args(["run", "--bundle"]).arg(self.bundle()).arg(name);
        children::ask(&mut command, event)
    }

    /// A container that goes on until its input ends. `n` tells it from others.
    pub fn start_idle(&self, n: u32) -> Result<Idle> {
        let name = format!("gust-bench-{}-idle-{n}", std::process::id());
        let pid_file = self.dir.path().join(&name);
        let mut child = self
            .command()
            .args(["run", "--detach", "--pid-file"])
            .arg(&pid_file)
            .arg("--bundle")
            .arg(self.bundle())
            .arg(&name)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start crun")?;
        let stdin = child.stdin.take().context("no standard input")?;
        let stdout = BufReader::new(child.stdout.take().context("no standard output")?);
        let status = child.wait().context("wait for crun")?;
        ensure!(status.success(), "crun ended with {status}");
        let mut delete = self.command();
        delete.args(["delete", "--force", &name]);
        let text = fs::read_to_string(&pid_file).with_context(|| format!("read {}", pid_file.display()))?;
        Ok(Idle {
            stdin,
            stdout,
            pid: text.trim().parse().context("read the container's process id")?,
            delete,
        })
    }

    fn command(&self) -> Command {
        let mut command = match &self.elsewhere {
            Some(elsewhere) => elsewhere.command(),
            None => Command::new("crun"),
        };
        command
            .args(["--cgroup-manager", "disabled", "--root"])
            .arg(self.dir.path().join("state"));
        command
    }

    fn bundle(&self) -> PathBuf {
        self.dir.path().join("bundle")
    }
}

/// A container that waits for its next event.
#[derive(Debug)]
pub struct Idle {
    /// Events.
    pub stdin: ChildStdin,
    /// Answers.
    pub stdout: BufReader<ChildStdout>,
    /// Its first process.
    pub pid: u64,
    delete: Command,
}

impl Drop for Idle {
    fn drop(&mut self) {
        // What is left is in the directory of the containers, which goes, too.
        let _deleted = self.delete.stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}

/// Both versions of control groups at once, which `crun` refuses: the second one's mount point.
const HYBRID: &str = "/sys/fs/cgroup/unified";

/// A mount namespace without the second version of control groups. It lives as long as its one process, which waits
/// for the end of its input.
#[derive(Debug)]
struct Elsewhere {
    holder: Child,
}

impl Elsewhere {
    fn make_if_needed() -> Result<Option<Self>> {
        let controllers = fs::read_to_string(format!("{HYBRID}/cgroup.controllers")).unwrap_or_default();
        if controllers.trim().is_empty() {
            return Ok(None);
        }
        let script = format!("umount -l {HYBRID} && echo ready && exec cat");
        let holder = Command::new("unshare")
            .args(["--mount", "sh", "-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start unshare (Debian package util-linux)")?;
        let mut elsewhere = Self { holder };
        let mut ready = [0; 5];
        let stdout = elsewhere.holder.stdout.as_mut().context("no standard output")?;
        stdout
            .read_exact(&mut ready)
            .context("make a mount namespace for crun")?;
        Ok(Some(elsewhere))
    }

    /// `crun` there. `nsenter` adds about a millisecond.
    fn command(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount=/proc/{}/ns/mnt", self.holder.id()));
        command.args(["--", "crun"]);
        command
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        children::end(&mut self.holder);
    }
}

/// The container's configuration (OCI runtime specification 1.0).
fn config(root: &Path, code: &Path, script: &str) -> Value {
    let namespaces = ["pid", "network", "ipc", "uts", "mount"];
    let tmpfs = |at: &str| json!({ "destination": at, "type": "tmpfs", "source": "tmpfs" });
    json!({
        "ociVersion": "1.0.0",
        "hostname": "bench",
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": [PYTHON, "-c", script, TASK_ROOT],
            "env": ["PATH=/usr/bin:/bin", "LANG=C.UTF-8"],
            "cwd": "/",
            "noNewPrivileges": true,
        },
        "root": { "path": root, "readonly": true },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            tmpfs("/dev"),
            tmpfs("/tmp"),
            { "destination": TASK_ROOT, "type": "bind", "source": code, "options": ["bind", "ro"] },
        ],
        "linux": { "namespaces": namespaces.map(|kind| json!({ "type": kind })) },
    })
}
