//! Making one worker: the copy, its users, its descriptors, and its way into its own main function.

#![expect(
    unsafe_code,
    reason = "copying the process and closing what the copy must not have"
)]

use std::{
    fs::{self, File},
    io,
    os::fd::{AsFd, OwnedFd},
    panic::{AssertUnwindSafe, catch_unwind},
    process::exit,
};

use rustix::{
    pipe::{PipeFlags, pipe_with},
    process::{Gid, Pid, Signal, Uid, WaitOptions},
};

use super::wire::{HostReport, WorkerKind};
use crate::{
    channel::Channel,
    kvm, process,
    sys::{self, Cloned, Namespaces},
};

/// Users of a guest process inside its namespace, with AWS Lambda's numbers.
pub(crate) const GUEST_UID: u32 = 993;
pub(crate) const GUEST_GID: u32 = 990;

/// Status of a worker that panicked.
const PANICKED: i32 = 101;

/// Files of a worker's control group, opened ahead.
#[derive(Debug)]
pub struct MemoryFiles {
    /// The most memory used so far, in bytes, as text.
    pub peak: File,
    /// Counts of events, with a line `oom_kill N`.
    pub events: File,
}

/// What a worker starts with.
#[derive(Debug)]
pub struct WorkerContext {
    /// The socket to the node.
    pub channel: Channel,
    /// It has process, mount, network, IPC and host name namespaces of its own.
    pub namespaces: bool,
    /// User to become when the jail is entered; `None` when that has been done or cannot be.
    pub user: Option<u32>,
    /// `/dev/kvm`, where there is one.
    pub kvm: Option<OwnedFd>,
    /// Its control group's files, where it has one.
    pub memory: Option<MemoryFiles>,
}

/// A request with its descriptors sorted out.
pub(super) struct Request {
    kind: WorkerKind,
    user: Option<u32>,
    socket: OwnedFd,
    memory: Option<(OwnedFd, OwnedFd)>,
}

impl Request {
    pub(super) fn new(
        kind: WorkerKind,
        user: Option<u32>,
        counts_memory: bool,
        descriptors: Vec<OwnedFd>,
    ) -> Option<Self> {
        let mut descriptors = descriptors.into_iter();
        let socket = descriptors.next()?;
        let memory = match counts_memory {
            true => Some((descriptors.next()?, descriptors.next()?)),
            false => None,
        };
        descriptors.next().is_none().then_some(Self {
            kind,
            user,
            socket,
            memory,
        })
    }
}

/// What this host allows.
pub(super) struct Host {
    root: bool,
    /// Namespaces for a worker that needs no users of its own inside.
    plain: Namespaces,
    /// Namespaces with users of their own can be made.
    users: bool,
    kvm: Option<OwnedFd>,
    null: File,
}

impl Host {
    /// Tries out what there is.
    pub(super) fn probe() -> io::Result<Self> {
        let root = rustix::process::geteuid().is_root();
        let users = can_clone(Namespaces::ALL_AND_USER);
        let plain = match (can_clone(Namespaces::ALL), users) {
            (true, _) => Namespaces::ALL,
            (false, true) => Namespaces::ALL_AND_USER,
            (false, false) => Namespaces::NONE,
        };
        let kvm = File::options()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .ok()
            .map(OwnedFd::from);
        let null = File::options().read(true).write(true).open("/dev/null")?;
        Ok(Self {
            root,
            plain,
            users,
            kvm,
            null,
        })
    }

    pub(super) fn report(&self) -> HostReport {
        HostReport {
            users: self.root,
            namespaces: self.plain != Namespaces::NONE,
            processes: self.users,
            kvm: self.kvm.is_some(),
        }
    }

    /// Makes a worker.
    pub(super) fn spawn(&self, request: Request) -> io::Result<(Pid, OwnedFd)> {
        let namespaces = match request.kind {
            WorkerKind::Kvm => self.plain,
            WorkerKind::Process if self.users => Namespaces::ALL_AND_USER,
            WorkerKind::Process => {
                return Err(io::Error::other(
                    "this host lets no user namespaces be made, which guest processes need",
                ));
            }
        };
        let (go, went) = pipe_with(PipeFlags::CLOEXEC)?;
        // SAFETY: the zygote has one thread. It starts none, and neither does anything that it calls.
        match unsafe { sys::clone_process(namespaces) }? {
            Cloned::Child => {
                drop(went);
                let status = catch_unwind(AssertUnwindSafe(|| self.worker(request, namespaces, go)));
                exit(status.unwrap_or(PANICKED))
            }
            Cloned::Parent { pid, pidfd } => {
                drop(go);
                let mapped = match namespaces.has_user() {
                    true => self.map_users(pid, request.user),
                    false => Ok(()),
                };
                if let Err(error) = mapped.and_then(|()| Ok(rustix::io::write(&went, &[1]).map(|_| ())?)) {
                    let _ = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
                    let _ = rustix::process::waitpid(Some(pid), WaitOptions::empty());
                    return Err(error);
                }
                Ok((pid, pidfd))
            }
        }
    }

    /// Says which users of the host the users in a worker's namespace are. A zygote that may gives two of the worker's
    /// own, for the supervisor and for its guest; another can only give itself.
    fn map_users(&self, pid: Pid, user: Option<u32>) -> io::Result<()> {
        let write = |file: &str, text: String| {
            let path = format!("/proc/{}/{file}", pid.as_raw_nonzero());
            fs::write(&path, text).map_err(|error| io::Error::other(format!("writing {path}: {error}")))
        };
        match user.filter(|_| self.root) {
            Some(first) => {
                let second = first
                    .checked_add(1)
                    .ok_or_else(|| io::Error::other("user id out of range"))?;
                write("uid_map", format!("0 {first} 1\n{GUEST_UID} {second} 1\n"))?;
                write("gid_map", format!("0 {first} 1\n{GUEST_GID} {second} 1\n"))
            }
            None => {
                let (uid, gid) = (
                    rustix::process::geteuid().as_raw(),
                    rustix::process::getegid().as_raw(),
                );
                write("setgroups", "deny".to_owned())?;
                write("uid_map", format!("{GUEST_UID} {uid} 1\n"))?;
                write("gid_map", format!("{GUEST_GID} {gid} 1\n"))
            }
        }
    }

    /// The new process from its first step to its end.
    fn worker(&self, request: Request, namespaces: Namespaces, go: OwnedFd) -> i32 {
        // A copy of its own, so that the zygote's is closed with the rest; a guest process has no use for any.
        let kvm = match request.kind {
            WorkerKind::Kvm => self.kvm.as_ref().and_then(|kvm| kvm.try_clone().ok()),
            WorkerKind::Process => None,
        };
        match self.prepare(&request, namespaces, &go, kvm.as_ref()) {
            Ok(()) => {}
            Err(error) => {
                eprintln!("gust worker: {error}");
                return 1;
            }
        }
        drop(go);
        let kind = request.kind;
        // The standard library's own hook asks for the thread's id, which the jail kills a worker for.
        std::panic::set_hook(Box::new(|panic| eprintln!("gust worker: {panic}")));
        let context = WorkerContext {
            channel: Channel::new(request.socket),
            namespaces: namespaces != Namespaces::NONE,
            user: request.user.filter(|_| self.root && !namespaces.has_user()),
            kvm,
            memory: request.memory.map(|(peak, events)| MemoryFiles {
                peak: peak.into(),
                events: events.into(),
            }),
        };
        match kind {
            WorkerKind::Process => process::run(context),
            WorkerKind::Kvm => kvm::run(context),
        }
    }

    fn prepare(
        &self,
        request: &Request,
        namespaces: Namespaces,
        go: &OwnedFd,
        kvm: Option<&OwnedFd>,
    ) -> io::Result<()> {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        // Nothing comes when the zygote has given up on this worker.
        if rustix::io::read(go, &mut [0; 1])? == 0 {
            return Err(io::Error::other("the zygote could not set up the worker's users"));
        }
        let memory = request
            .memory
            .iter()
            .flat_map(|(peak, events)| [peak.as_fd(), events.as_fd()]);
        let mut keep = vec![request.socket.as_fd(), go.as_fd(), self.null.as_fd()];
        keep.extend(memory);
        keep.extend(kvm.map(AsFd::as_fd));
        // SAFETY: of what this copy of the zygote owns, only the request's and this host's descriptors are used from here
        // on, and they are kept; the rest is never dropped, because the process ends by `exit`.
        unsafe { sys::close_all_but(&keep) }?;
        rustix::stdio::dup2_stdin(&self.null)?;
        rustix::stdio::dup2_stdout(&self.null)?;
        sys::unblock_signals()?;
        rustix::thread::set_name(c"gust-worker")?;
        if namespaces.has_user() && self.root && request.user.is_some() {
            let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
            rustix::thread::set_thread_groups(&[])?;
            rustix::thread::set_thread_res_gid(gid, gid, gid)?;
            rustix::thread::set_thread_res_uid(uid, uid, uid)?;
            // Changing the user has taken it back.
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        }
        Ok(())
    }
}

/// Whether a process can be made with these namespaces.
fn can_clone(namespaces: Namespaces) -> bool {
    // SAFETY: the zygote has one thread.
    match unsafe { sys::clone_process(namespaces) } {
        Ok(Cloned::Child) => exit(0),
        Ok(Cloned::Parent { pid, .. }) => rustix::process::waitpid(Some(pid), WaitOptions::empty())
            .is_ok_and(|ended| ended.is_some_and(|(_, status)| status.exit_status() == Some(0))),
        Err(_) => false,
    }
}
