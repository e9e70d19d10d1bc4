//! The node's side of its zygote: workers are asked for here, and their ends are heard here.
//!
//! The zygote is started with the node and again whenever it has ended; its workers are gone with it then. Each worker has
//! two user ids of its own, where the zygote may give them, and a control group of its own, where the host lets it be made.

mod connection;

use std::{
    collections::HashMap,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use gust_worker::{
    cgroup::{Group, Groups},
    zygote::wire::{HostReport, WorkerEnd, WorkerKind, ZygoteReport, ZygoteRequest},
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use tokio::{
    net::UnixDatagram,
    sync::{oneshot, watch},
};

use crate::{link::Link, users::Users, worker::Worker};
use connection::{Connection, receive};

/// Longest time for the zygote to start, and for it to make a worker.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// Zygotes that are tried for one worker.
const ATTEMPTS_MAX: u32 = 3;

/// The hidden subcommand that is the zygote.
const SUBCOMMAND: &str = "zygote";

/// The zygote of a node.
#[derive(Debug)]
pub(crate) struct Zygote {
    program: PathBuf,
    kind: WorkerKind,
    groups: Groups,
    state: Mutex<State>,
    /// Held while a zygote is being started.
    starting: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    /// The zygote that runs now.
    connection: Option<Arc<Connection>>,
    next_id: u64,
    next_number: u64,
    users: Users,
    workers: HashMap<u64, Record>,
    stopped: bool,
}

/// What the node keeps of a worker until it has ended.
#[derive(Debug)]
struct Record {
    /// Number of the zygote that makes it.
    zygote: u64,
    user: Option<u32>,
    /// Held until the worker has ended, because only then can it be removed.
    _group: Arc<Group>,
    /// Told once the worker has been made.
    started: Option<oneshot::Sender<io::Result<(i32, OwnedFd)>>>,
    ended: watch::Sender<Option<WorkerEnd>>,
}

impl Zygote {
    /// Starts the zygote program and hears what the host allows.
    pub(crate) async fn start(program: PathBuf, kind: WorkerKind) -> io::Result<(Arc<Self>, HostReport)> {
        let groups = tokio::task::spawn_blocking(Groups::prepare)
            .await
            .map_err(io::Error::other)?;
        for (controller, reason) in groups.missing() {
            tracing::warn!(
                controller = controller.name(),
                reason,
                "workers run without this control group"
            );
        }
        let zygote = Arc::new(Self {
            program,
            kind,
            groups,
            state: Mutex::default(),
            starting: tokio::sync::Mutex::default(),
        });
        let connection = zygote.connection().await?;
        Ok((zygote, connection.host))
    }

    /// Makes a worker. It has not reported yet. A zygote that turns out to have ended is replaced.
    pub(crate) async fn spawn(self: &Arc<Self>) -> io::Result<Worker> {
        let mut attempt = 1;
        loop {
            let connection = self.connection().await?;
            match self.spawn_on(&connection).await {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe && attempt < ATTEMPTS_MAX => {
                    self.lost(&connection);
                    attempt += 1;
                }
                result => return result,
            }
        }
    }

    /// Makes a worker with one zygote. An error of kind `BrokenPipe` says that the zygote is gone.
    async fn spawn_on(self: &Arc<Self>, connection: &Arc<Connection>) -> io::Result<Worker> {
        let (ours, theirs) = UnixStream::pair()?;
        let (started, starting) = oneshot::channel();
        let (ended, end) = watch::channel(None);
        let (id, user) = {
            let mut state = self.state();
            state.next_id += 1;
            let user = connection.host.users.then(|| state.users.take()).transpose()?;
            (state.next_id, user)
        };
        let zygote = Arc::clone(self);
        let group = tokio::task::spawn_blocking(move || zygote.groups.create(id)).await;
        let group = group.map_err(io::Error::other).flatten().map(Arc::new);
        let group = group.inspect_err(|_| self.state().give_back(user))?;
        let (zygote, held) = (connection.number, Arc::clone(&group));
        let record = Record {
            zygote,
            user,
            _group: held,
            started: Some(started),
            ended,
        };
        self.state().workers.insert(id, record);

        let files = group.memory_files();
        let request = ZygoteRequest::Start {
            id,
            kind: self.kind,
            user,
            counts_memory: files.is_some(),
        };
        let mut descriptors = vec![theirs.as_fd()];
        descriptors.extend(
            files
                .iter()
                .flat_map(|(peak, events)| [peak.as_fd(), events.as_fd()]),
        );
        let asked = async {
            connection.send(&request, &descriptors).await?;
            starting.await.map_err(|_| io::ErrorKind::BrokenPipe)?
        };
        let made = tokio::time::timeout(START_TIMEOUT, asked).await;
        let made = made.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        drop(theirs);
        let (pid, pidfd) = made.inspect_err(|_| drop(self.state().forget(id)))?;
        // From here on the worker's own end tells the zygote, which tells us.
        let worker = Worker::new(Link::new(ours)?, Some(pidfd), end, Arc::clone(&group));
        let entered = tokio::task::spawn_blocking(move || group.enter(pid)).await;
        entered.map_err(io::Error::other).flatten()?;
        Ok(worker)
    }

    /// Ends the zygote and with it every worker; returns when they are gone.
    pub(crate) async fn stop(&self) {
        let connection = {
            let mut state = self.state();
            state.stopped = true;
            state.connection.take()
        };
        let Some(connection) = connection else { return };
        let child = lock(&connection.child).take();
        // The zygote reads the end of its socket; the reading task's copy must not keep it open.
        let _ = rustix::net::shutdown(&connection.socket, rustix::net::Shutdown::Both);
        drop(connection);
        wait(child).await;
    }

    /// Whether it has been stopped.
    pub(crate) fn is_stopped(&self) -> bool {
        self.state().stopped
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// The zygote that runs; starts one when there is none.
    async fn connection(self: &Arc<Self>) -> io::Result<Arc<Connection>> {
        let _one_at_a_time = self.starting.lock().await;
        {
            let state = self.state();
            if state.stopped {
                return Err(io::Error::other("the node is stopping"));
            }
            if let Some(connection) = &state.connection {
                return Ok(Arc::clone(connection));
            }
        }
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        // Nothing of the node's environment is a worker's business.
        let child = Command::new(&self.program)
            .arg(SUBCOMMAND)
            .env_clear()
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .spawn()?;
        let socket = UnixDatagram::from_std(ours.into())?;
        let first = tokio::time::timeout(START_TIMEOUT, receive(&socket)).await;
        let host = match first.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(Some((ZygoteReport::Ready(host), _))) => host,
            result => {
                let mut child = child;
                let _ = child.kill();
                wait(Some(child)).await;
                return Err(result
                    .err()
                    .unwrap_or_else(|| io::Error::other("the zygote ended at once")));
            }
        };
        let child = Mutex::new(Some(child));
        let connection = {
            let mut state = self.state();
            state.next_number += 1;
            let connection = Arc::new(Connection {
                number: state.next_number,
                socket,
                host,
                child,
            });
            state.connection = Some(Arc::clone(&connection));
            connection
        };
        tokio::spawn(listen(Arc::downgrade(self), Arc::clone(&connection)));
        Ok(connection)
    }

    fn heard(&self, report: ZygoteReport, pidfd: Option<OwnedFd>) {
        let mut state = self.state();
        match report {
            ZygoteReport::Ready(_) => {}
            ZygoteReport::Started { id, pid } => {
                let Some(pidfd) = pidfd else { return };
                let started = state
                    .workers
                    .get_mut(&id)
                    .and_then(|record| record.started.take());
                // One that no one waits for any more is ended, and told about by the zygote.
                if let Some(Err(Ok((_, pidfd)))) = started.map(|started| started.send(Ok((pid, pidfd)))) {
                    let _ = rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
                }
            }
            ZygoteReport::Failed { id, reason } => {
                let record = state.forget(id);
                drop(state);
                if let Some(started) = record.and_then(|mut record| record.started.take()) {
                    let _ = started.send(Err(io::Error::other(reason)));
                }
            }
            ZygoteReport::Exited { id, end } => {
                let record = state.forget(id);
                drop(state);
                if let Some(record) = record {
                    record.ended.send_replace(Some(end));
                    discard(record);
                }
            }
        }
    }

    /// The zygote has ended, and every worker with it.
    fn lost(&self, connection: &Arc<Connection>) {
        let mut state = self.state();
        let is_current = state
            .connection
            .as_ref()
            .is_some_and(|current| current.number == connection.number);
        if is_current {
            state.connection = None;
        }
        let theirs = |(_, record): &(&u64, &Record)| record.zygote == connection.number;
        let ids: Vec<u64> = state.workers.iter().filter(theirs).map(|(id, _)| *id).collect();
        let records: Vec<Record> = ids.into_iter().filter_map(|id| state.forget(id)).collect();
        let stopped = state.stopped;
        drop(state);
        if !stopped {
            tracing::error!(
                workers = records.len(),
                "the zygote ended, and its workers with it"
            );
        }
        for record in records {
            record
                .ended
                .send_replace(Some(WorkerEnd::Signal(rustix::process::Signal::KILL.as_raw())));
            discard(record);
        }
    }
}

impl State {
    fn forget(&mut self, id: u64) -> Option<Record> {
        let record = self.workers.remove(&id)?;
        self.give_back(record.user);
        Some(record)
    }

    fn give_back(&mut self, user: Option<u32>) {
        if let Some(user) = user {
            self.users.give_back(user);
        }
    }
}

/// Hears a zygote out, to its end.
async fn listen(zygote: Weak<Zygote>, connection: Arc<Connection>) {
    while let Ok(Some((report, pidfd))) = receive(&connection.socket).await {
        let Some(zygote) = zygote.upgrade() else { return };
        zygote.heard(report, pidfd);
    }
    if let Some(zygote) = zygote.upgrade() {
        zygote.lost(&connection);
    }
    let child = lock(&connection.child).take();
    wait(child).await;
}

/// Removes a worker's control group, which may take the kernel a moment.
fn discard(record: Record) {
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        runtime.spawn_blocking(move || drop(record));
    }
}

/// Waits for a process without holding up others.
async fn wait(child: Option<Child>) {
    if let Some(mut child) = child {
        let _ = tokio::task::spawn_blocking(move || child.wait()).await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What a panicked holder left is whole: no step here leaves it half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
