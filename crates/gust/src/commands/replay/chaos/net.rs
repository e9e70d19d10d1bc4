//! Networks of a cluster: one for each node, which a cable joins to a bridge, in namespaces that end with their first process.

use std::{
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::exit::Hinted;

/// Set in the namespaces of this command.
const INSIDE: &str = "GUST_CHAOS_INSIDE";

/// Address of the server, and of nodes: this and the node's number.
pub const CONTROL: &str = "10.98.0.1";
const NODES: &str = "10.98.1.";

/// Longest time for a namespace to be there, and the pause between two looks.
const NAMESPACE_LIMIT: Duration = Duration::from_secs(10);
const NAMESPACE_PAUSE: Duration = Duration::from_millis(2);

/// The network of a node, which goes with this.
#[derive(Debug)]
pub struct Network {
    holder: Child,
    cable: String,
    address: String,
}

/// Goes on in namespaces of this command's own. Returns in them, or with why there are none.
pub fn enter() -> Result<()> {
    // The first of its processes, too: what is done here is never done to the machine's own network.
    if std::env::var_os(INSIDE).is_some() && std::process::id() == 1 {
        return bridge();
    }
    let refused = |message: String| Hinted {
        message,
        hint: "gust chaos makes network namespaces: it needs root, and unshare, nsenter, ip and ss"
            .to_owned(),
    };
    if !rustix::process::geteuid().is_root() {
        return Err(refused("only root may make network namespaces".to_owned()).into());
    }
    let program = std::env::current_exe().context("find this program")?;
    let error = Command::new("unshare")
        .args([
            "--net",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "--",
        ])
        .arg(program)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, "1")
        .exec();
    Err(refused(format!("running unshare failed: {error}")).into())
}

fn bridge() -> Result<()> {
    run("ip", "link set lo up")?;
    run("ip", "link add bridge type bridge")?;
    run("ip", &format!("addr add {CONTROL}/16 dev bridge"))?;
    run("ip", "link set bridge up")
}

/// Runs a program whose arguments have no spaces.
fn run(program: &str, arguments: &str) -> Result<()> {
    let output = Command::new(program)
        .args(arguments.split(' '))
        .output()
        .with_context(|| format!("run {program}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {arguments}: {}", said.trim());
    Ok(())
}

impl Network {
    /// Makes the network of a node and joins it to the bridge.
    pub fn new(number: u32) -> Result<Self> {
        let own = namespace(Path::new("/proc/self/ns/net"))?;
        let holder = Command::new("unshare")
            .args(["--net", "--", "sleep", "infinity"])
            .stdin(Stdio::null())
            .spawn()
            .context("make a network namespace")?;
        let network = Self {
            holder,
            cable: format!("cable{number}"),
            address: format!("{NODES}{number}"),
        };
        let (began, path) = (Instant::now(), network.path());
        while namespace(&path).ok().is_none_or(|space| space == own) {
            if began.elapsed() > NAMESPACE_LIMIT {
                bail!(
                    "there is no network namespace after {} s",
                    NAMESPACE_LIMIT.as_secs()
                );
            }
            std::thread::sleep(NAMESPACE_PAUSE);
        }
        let (cable, pid) = (&network.cable, network.holder.id());
        run(
            "ip",
            &format!("link add {cable} type veth peer name eth0 netns {pid}"),
        )?;
        run("ip", &format!("link set {cable} master bridge up"))?;
        network.run("ip link set lo up")?;
        network.run(&format!("ip addr add {}/16 dev eth0", network.address))?;
        network.run("ip link set eth0 up")?;
        Ok(network)
    }

    /// What it is entered by.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.holder.id()))
    }

    /// Runs a program in it.
    fn run(&self, command: &str) -> Result<()> {
        run("nsenter", &format!("--net={} {command}", self.path().display()))
    }

    /// Takes its cable out. With `cuts`, both ends of its connections are told.
    pub fn disconnect(&self, cuts: bool) -> Result<()> {
        run("ip", &format!("link set {} down", self.cable))?;
        if cuts {
            self.run(&format!("ss --kill dst {CONTROL}"))?;
            run("ss", &format!("--kill dst {}", self.address))?;
        }
        Ok(())
    }

    /// Puts the cable in again.
    pub fn connect(&self) -> Result<()> {
        run("ip", &format!("link set {} up", self.cable))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // It ends with this command at the latest.
        let _ended = self.holder.kill().and_then(|()| self.holder.wait());
    }
}

/// What names a namespace.
fn namespace(path: &Path) -> Result<PathBuf> {
    fs::read_link(path).with_context(|| format!("read {}", path.display()))
}
