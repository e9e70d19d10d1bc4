//! Network namespaces, a bridge between them, and agents in them.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use gust_cluster::{
    Event, Hub, HubConfig, RemoteNode,
    trust::{Authority, Tokens},
};
use gust_node::{Isolation, Present, VersionId};
use libtest_mimic::Failed;
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

use crate::world::until;

/// Set in the namespace of this test.
const INSIDE: &str = "GUST_CLUSTER_TEST_INSIDE";

/// Address of the control plane.
const CONTROL: &str = "10.99.0.1";

/// Numbers of addresses and devices of agents.
static NUMBER: AtomicU32 = AtomicU32::new(2);

/// Goes on in a namespace of its own, with a bridge in it. Returns in the namespace, or with why there is none.
pub fn enter() -> Result<(), String> {
    if std::env::var_os(INSIDE).is_none() {
        if !rustix::process::geteuid().is_root() {
            return Err("only root may make namespaces".to_owned());
        }
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let mut command = Command::new("unshare");
        command
            .args(["--net", "--"])
            .arg(program)
            .args(std::env::args_os().skip(1));
        let error = command.env(INSIDE, "1").exec();
        return Err(format!("running unshare failed: {error}"));
    }
    let bridge = || {
        run("ip", "link set lo up")?;
        run("ip", "link add bridge type bridge")?;
        run("ip", &format!("addr add {CONTROL}/16 dev bridge"))?;
        run("ip", "link set bridge up")
    };
    bridge().map_err(|error| error.to_string())
}

fn run(program: &str, arguments: &str) -> io::Result<()> {
    let output = Command::new(program).args(arguments.split(' ')).output()?;
    match output.status.success() {
        true => Ok(()),
        false => {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(io::Error::other(format!("{program} {arguments}: {said}")))
        }
    }
}

/// A control plane's side, and what it has been told.
pub struct Control {
    pub hub: Hub,
    pub address: SocketAddr,
    pub events: Arc<Mutex<Vec<Told>>>,
    stop: oneshot::Sender<()>,
    tasks: Vec<JoinHandle<()>>,
}

/// An event, kept.
#[derive(Debug, Clone)]
pub enum Told {
    Joined(RemoteNode, Vec<Present>, Vec<VersionId>),
    Draining(RemoteNode),
    Lost(RemoteNode),
    Snapshot(RemoteNode, VersionId),
}

impl Control {
    pub async fn start(directory: &Path, ip: &str) -> Result<Self, Failed> {
        let listener = TcpListener::bind((ip, 0)).await?;
        Self::start_on(directory, listener).await
    }

    /// The next one, at the same place.
    pub async fn start_again(directory: &Path, address: SocketAddr) -> Result<Self, Failed> {
        Self::start_on(directory, TcpListener::bind(address).await?).await
    }

    async fn start_on(directory: &Path, listener: TcpListener) -> Result<Self, Failed> {
        let directory = directory.to_path_buf();
        let (hub, taken) = Hub::open(&HubConfig {
            directory,
            local: None,
        })?;
        let address = listener.local_addr()?;
        let (stop, stopped) = oneshot::channel::<()>();
        let events = Arc::default();
        let serving = hub.clone();
        let tasks = vec![
            tokio::spawn(keep(taken, Arc::clone(&events))),
            tokio::spawn(async move {
                let stopped = async {
                    let _ = stopped.await;
                };
                serving.run(listener, stopped).await;
            }),
        ];
        Ok(Self {
            hub,
            address,
            events,
            stop,
            tasks,
        })
    }

    pub fn told(&self) -> Vec<Told> {
        self.events.lock().unwrap().clone()
    }

    /// Ends it as the end of its process would.
    pub async fn stop(self) {
        let Self { hub, stop, tasks, .. } = self;
        drop((hub, stop));
        for task in tasks {
            task.abort();
            let _ = task.await;
        }
    }
}

async fn keep(mut taken: mpsc::Receiver<Event>, events: Arc<Mutex<Vec<Told>>>) {
    while let Some(event) = taken.recv().await {
        let told = match event {
            Event::Joined {
                node,
                instances,
                snapshots,
            } => Told::Joined(node, instances, snapshots),
            Event::Draining { node, done } => {
                // Whoever chooses a node looks at the list first.
                events.lock().unwrap().push(Told::Draining(node));
                let _ = done.send(());
                continue;
            }
            Event::Lost { node } => Told::Lost(node),
            Event::Snapshot { node, version } => Told::Snapshot(node, version),
        };
        events.lock().unwrap().push(told);
    }
}

/// A cluster of this test's.
pub struct Lab {
    pub dir: tempfile::TempDir,
    pub control: Control,
    isolation: Isolation,
}

/// An agent's process.
pub struct AgentProcess {
    pub node: RemoteNode,
    child: Child,
    device: String,
    ip: Ipv4Addr,
}

impl Drop for AgentProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = run("ip", &format!("link del {}", self.device));
    }
}

impl AgentProcess {
    pub fn signal(&self, signal: rustix::process::Signal) -> Result<(), Failed> {
        let pid = rustix::process::Pid::from_raw(self.child.id().cast_signed()).ok_or("no process id")?;
        Ok(rustix::process::kill_process(pid, signal)?)
    }

    /// Takes the cable out, or puts it in again.
    pub fn connect(&self, connected: bool) -> Result<(), Failed> {
        let state = if connected { "up" } else { "down" };
        Ok(run("ip", &format!("link set {} {state}", self.device))?)
    }

    /// Where it gives files to other members: the one socket at which it listens.
    pub fn files_address(&self) -> Result<SocketAddr, Failed> {
        let sockets = std::fs::read_to_string(format!("/proc/{}/net/tcp", self.child.id()))?;
        // Lines of "0: ADDRESS:PORT PEER:PORT STATE", in hexadecimal; 0A is a listening socket.
        let listening = sockets.lines().find_map(|line| {
            let [_, own, _, "0A", ..] = line.split_whitespace().collect::<Vec<_>>()[..] else {
                return None;
            };
            u16::from_str_radix(own.split_once(':')?.1, 16).ok()
        });
        Ok((self.ip, listening.ok_or("it does not listen")?).into())
    }

    pub async fn ended(&mut self) -> Result<std::process::ExitStatus, Failed> {
        let mut status = None;
        while status.is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
            status = self.child.try_wait()?;
        }
        status.ok_or_else(|| "it has not ended".into())
    }
}

impl Lab {
    pub async fn new(isolation: Isolation) -> Result<Self, Failed> {
        let dir = tempfile::tempdir()?;
        // Workers that are users of their own find the trees of functions by their paths.
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o711))?;
        let control = Control::start(&dir.path().join("control"), CONTROL).await?;
        Ok(Self {
            dir,
            control,
            isolation,
        })
    }

    /// Ends the control plane and starts the next one.
    pub async fn restart_control(self) -> Result<Self, Failed> {
        let Self {
            dir,
            control,
            isolation,
        } = self;
        let address = control.address;
        control.stop().await;
        let control = Control::start_again(&dir.path().join("control"), address).await?;
        Ok(Self {
            dir,
            control,
            isolation,
        })
    }

    /// Starts an agent in a network namespace of its own, and waits until it has joined.
    pub async fn agent(&self, name: &str) -> Result<AgentProcess, Failed> {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let directory = self.dir.path().join("control");
        let fingerprint = Authority::open(&directory)?.fingerprint();
        let token = Tokens::new(&directory).make(fingerprint, Duration::from_secs(60), false)?;
        let known = self.control.hub.nodes().len();
        let child = Command::new("unshare")
            .args(["--net", "--"])
            .arg(std::env::current_exe()?)
            .args(["agent", &self.control.address.to_string(), &token.to_string()])
            .arg(self.dir.path().join(name))
            .args([
                name,
                if self.isolation == Isolation::Kvm {
                    "kvm"
                } else {
                    "process"
                },
            ])
            .stdin(Stdio::null())
            .spawn()?;
        let pid = child.id();
        let device = format!("cable{number}");
        let own = std::fs::read_link("/proc/self/ns/net")?;
        until(|| async { std::fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|space| space != own) })
            .await?;
        run(
            "ip",
            &format!("link add {device} type veth peer name eth0 netns {pid}"),
        )?;
        run("ip", &format!("link set {device} master bridge up"))?;
        let inside = |arguments: &str| run("nsenter", &format!("--net=/proc/{pid}/ns/net ip {arguments}"));
        inside("link set lo up")?;
        let ip = Ipv4Addr::new(10, 99, 1 + (number / 250) as u8, (number % 250) as u8);
        inside(&format!("addr add {ip}/16 dev eth0"))?;
        inside("link set eth0 up")?;
        until(|| async { self.control.hub.nodes().len() > known }).await?;
        let begins = |node: &RemoteNode| node.name().as_str().starts_with(&format!("{name}-"));
        let node = self
            .control
            .hub
            .nodes()
            .into_iter()
            .find(begins)
            .ok_or("it has not joined")?;
        Ok(AgentProcess {
            node,
            child,
            device,
            ip,
        })
    }
}
