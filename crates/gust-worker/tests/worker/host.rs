//! The node's side of these tests: starts the zygote, asks it for workers, and speaks with them.

use std::{
    fs::{self, File},
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{
            fs::{FileExt, PermissionsExt},
            net::UnixStream,
            process::CommandExt,
        },
    },
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::LazyLock,
    time::{Duration, Instant},
};

use gust_image::{
    Tree,
    build::directory::{self, Ownership},
};
use gust_worker::{
    channel::Channel,
    frame,
    protocol::{
        Answer, BootSpec, Command, GuestExit, Identity, InitSpec, Interface, InvokeSpec, Limits, MemoryMode,
        Report, RestoreSpec, Waiting, WaitsFor,
    },
    zygote::wire::{self, HostReport, WorkerKind, ZygoteReport, ZygoteRequest},
};
use libtest_mimic::Failed;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

/// Who runs the zygote, and what its workers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum As {
    /// Guest processes, root's.
    Root,
    /// Guest processes, an unprivileged user's.
    Nobody,
    /// Micro-VMs, root's.
    Vm,
}

impl As {
    fn kind(self) -> WorkerKind {
        match self {
            Self::Root | Self::Nobody => WorkerKind::Process,
            Self::Vm => WorkerKind::Kvm,
        }
    }

    /// The fixture's file or directory of this name, as this kind of worker takes it.
    fn fixture(self, name: &str) -> File {
        match self {
            Self::Root | Self::Nobody => FIXTURE.open(name),
            Self::Vm => IMAGES.open(&format!("{name}.gimg")),
        }
    }
}

const NOBODY: u32 = 65_534;

/// Runs a test where this user can make workers; says so otherwise.
pub fn guarded(who: As, test: fn(As) -> Result<(), Failed>) -> Result<(), Failed> {
    let is_root = rustix::process::geteuid().is_root();
    if who != As::Nobody && !is_root {
        eprintln!("SKIPPED: needs root");
        return Ok(());
    }
    let host = Zygote::start(who)?.host;
    if who == As::Vm && !host.kvm {
        eprintln!("SKIPPED: this host has no /dev/kvm");
        return Ok(());
    }
    if !host.processes {
        eprintln!("SKIPPED: this host lets {who:?} make no user namespaces");
        return Ok(());
    }
    test(who)
}

/// Directories that stand for a runtime, a function and its layers, readable by everyone.
struct Fixture {
    dir: tempfile::TempDir,
}

static FIXTURE: LazyLock<Fixture> = LazyLock::new(Fixture::new);
static IMAGES: LazyLock<Fixture> = LazyLock::new(|| FIXTURE.images());

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let fixture = Self { dir };
        let root = fixture.path("root");
        for directory in ["dev", "etc", "opt", "proc", "tmp", "var/task", "lib", "lib64"] {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        let program = std::env::current_exe().unwrap();
        fs::copy(&program, root.join("guest")).unwrap();
        fs::write(root.join("text"), "no program").unwrap();
        for library in libraries(&program) {
            let target = root.join(library.strip_prefix("/").unwrap());
            fs::create_dir_all(target.parent().unwrap()).unwrap();
            fs::copy(&library, target).unwrap();
        }
        for (path, content) in [
            ("code/app.txt", ""),
            ("lower/both", "lower"),
            ("lower/lower", ""),
            ("upper/both", "upper"),
            ("upper/upper", ""),
        ] {
            let path = fixture.path(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        fixture
    }

    /// The directories as images.
    fn images(&self) -> Self {
        let images = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        for name in ["root", "code", "upper"] {
            let mut tree = Tree::new(images.dir.path()).unwrap();
            directory::add(&mut tree, &self.path(name), b"", Ownership::Root).unwrap();
            gust_image::write(&tree, b"{}", &images.path(&format!("{name}.gimg"))).unwrap();
        }
        images
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn open(&self, name: &str) -> File {
        File::open(self.path(name)).unwrap()
    }
}

/// What a dynamic program needs, its loader included, as `ldd` prints it.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let printed = std::process::Command::new("ldd").arg(program).output().unwrap();
    let printed = String::from_utf8(printed.stdout).unwrap();
    printed
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from)
        .collect()
}

pub struct Zygote {
    child: Option<Child>,
    control: Option<OwnedFd>,
    host: HostReport,
    who: As,
}

impl Zygote {
    pub fn start(who: As) -> Result<Self, Failed> {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        let mut command = std::process::Command::new(FIXTURE.path("root/guest"));
        command.arg("zygote").stdin(Stdio::from(theirs));
        if who == As::Nobody && rustix::process::geteuid().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        let child = command.spawn()?;
        let mut zygote = Self {
            child: Some(child),
            control: Some(ours),
            host: HostReport::default(),
            who,
        };
        match zygote.report()? {
            (ZygoteReport::Ready(host), _) => zygote.host = host,
            other => return Err(format!("{other:?}").into()),
        }
        Ok(zygote)
    }

    fn request(&self, descriptors: &[BorrowedFd<'_>]) -> Result<(), Failed> {
        let request = ZygoteRequest::Start {
            id: 5,
            kind: self.who.kind(),
            user: Some(0x6000_0000 + std::process::id() * 2),
            counts_memory: false,
        };
        let bytes = wire::encode(&request)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(descriptors));
        }
        let socket = self.control.as_ref().unwrap();
        sendmsg(socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::empty())?;
        Ok(())
    }

    fn report(&self) -> Result<(ZygoteReport, Option<OwnedFd>), Failed> {
        let mut bytes = [0; wire::MESSAGE_BYTES_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut into = [IoSliceMut::new(&mut bytes)];
        let socket = self.control.as_ref().unwrap();
        let length = recvmsg(socket, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC)?.bytes;
        let pidfd = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        Ok((wire::decode(&bytes[..length])?, pidfd))
    }

    /// A worker that has said that it is prepared.
    pub fn worker(&self) -> Result<Worker, Failed> {
        let (ours, theirs) = UnixStream::pair()?;
        self.request(&[theirs.as_fd()])?;
        let (pid, pidfd) = loop {
            match self.report()? {
                (ZygoteReport::Started { id: 5, pid }, Some(pidfd)) => break (pid, pidfd),
                // Of a worker before this one.
                (ZygoteReport::Exited { .. }, _) => {}
                other => return Err(format!("{other:?}").into()),
            }
        };
        let socket = ours.try_clone()?;
        let channel = Channel::new(ours.into());
        let mut worker = Worker {
            who: self.who,
            channel,
            socket,
            pid,
            pidfd,
            _zygote: None,
        };
        match worker.next_report()? {
            (Report::Pooled { .. }, _, _) => Ok(worker),
            other => Err(format!("{other:?}").into()),
        }
    }

    pub fn request_without_socket(&self) -> Result<String, Failed> {
        self.request(&[])?;
        match self.report()? {
            (ZygoteReport::Failed { id: 5, reason }, None) => Ok(reason),
            other => Err(format!("{other:?}").into()),
        }
    }

    /// Goes away as a node does that ends, and waits for the zygote's end.
    pub fn close_and_wait(mut self) -> Result<(), Failed> {
        self.control = None;
        let status = self.child.take().unwrap().wait()?;
        match status.success() {
            true => Ok(()),
            false => Err(format!("the zygote ended with {status}").into()),
        }
    }

    pub fn kill(mut self) -> Result<(), Failed> {
        let mut child = self.child.take().unwrap();
        let killed = child.kill();
        child.wait()?;
        Ok(killed?)
    }
}

impl Drop for Zygote {
    fn drop(&mut self) {
        self.control = None;
        if let Some(mut child) = self.child.take() {
            let _ = child.wait();
        }
    }
}

pub struct Worker {
    who: As,
    channel: Channel,
    socket: UnixStream,
    pid: i32,
    pidfd: OwnedFd,
    /// A zygote of its own, which goes with it.
    _zygote: Option<Zygote>,
}

/// What came of one event.
pub struct Invoked {
    pub answer: Answer,
    pub body: Vec<u8>,
    pub log: Vec<u8>,
    pub waiting: Option<Waiting>,
}

/// The files of a snapshot.
pub struct Snapshot {
    pub memory: File,
    pub state: File,
    pub layout: Option<File>,
    /// It is a runtime that waits for its function.
    pub is_base: bool,
}

impl Snapshot {
    pub fn new() -> Result<Self, Failed> {
        Ok(Self {
            memory: memory_file()?,
            state: memory_file()?,
            layout: None,
            is_base: false,
        })
    }

    /// The same contents in other files.
    pub fn copy(&self) -> Result<Self, Failed> {
        let copy = |file: &File| -> Result<File, Failed> {
            let mut bytes = vec![0; file.metadata()?.len() as usize];
            file.read_exact_at(&mut bytes, 0)?;
            let copy = memory_file()?;
            copy.write_all_at(&bytes, 0)?;
            Ok(copy)
        };
        Ok(Self {
            memory: copy(&self.memory)?,
            state: copy(&self.state)?,
            layout: self.layout.as_ref().map(copy).transpose()?,
            is_base: self.is_base,
        })
    }
}

fn memory_file() -> Result<File, Failed> {
    Ok(rustix::fs::memfd_create("snapshot", rustix::fs::MemfdFlags::CLOEXEC)?.into())
}

/// What was reported, with its texts as texts.
fn unexpected((report, body, log): &(Report, Vec<u8>, Vec<u8>)) -> Failed {
    let text = |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(2000)]).into_owned();
    format!("{report:?}, {}\n{}", text(body), text(log)).into()
}

const LIMITS: Limits = Limits {
    memory_bytes: 256 << 20,
    tmp_bytes: 4 << 20,
    cpus: 1,
};

impl Worker {
    /// A worker of a zygote of its own.
    pub fn pooled(who: As) -> Result<Self, Failed> {
        let zygote = Zygote::start(who)?;
        let mut worker = zygote.worker()?;
        worker._zygote = Some(zygote);
        Ok(worker)
    }

    pub fn prepared(who: As, api: bool) -> Result<Self, Failed> {
        let mut worker = Self::pooled(who)?;
        worker.boot_program("/guest", api)?;
        Ok(worker)
    }

    pub fn started(who: As, handler: &str) -> Result<Self, Failed> {
        let mut worker = Self::pooled(who)?;
        worker.start(handler, false)?;
        Ok(worker)
    }

    pub fn started_with_api(who: As, handler: &str) -> Result<Self, Failed> {
        let mut worker = Self::pooled(who)?;
        worker.start(handler, true)?;
        Ok(worker)
    }

    pub fn start(&mut self, handler: &str, api: bool) -> Result<(), Failed> {
        self.boot_program("/guest", api)?;
        self.init(handler)?;
        match self.next_report()? {
            (Report::Waiting(waiting), _, _) if waiting.waits_for == WaitsFor::Event => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    pub fn boot_command(&self, program: &str, api: bool) -> Command {
        Command::Boot(BootSpec {
            argv: vec![program.to_owned(), "guest".to_owned()],
            environment: vec![("PATH".to_owned(), "/".to_owned())],
            directory: "/var/task".to_owned(),
            interface: if api {
                Interface::RuntimeApi
            } else {
                Interface::Device
            },
            limits: LIMITS,
            identity: Identity {
                instance_id: "instance".to_owned(),
                seed: [0; 32],
            },
        })
    }

    pub fn boot_program(&mut self, program: &str, api: bool) -> Result<(), Failed> {
        let root = self.who.fixture("root");
        self.send(&self.boot_command(program, api), b"", &[root.as_fd()])?;
        match self.next_report()? {
            (Report::Waiting(waiting), _, _) if waiting.waits_for == WaitsFor::Function => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Boots a program that cannot be; the error document.
    pub fn fail_to_boot(&mut self, program: &str) -> Result<Vec<u8>, Failed> {
        let root = self.who.fixture("root");
        self.send(&self.boot_command(program, false), b"", &[root.as_fd()])?;
        match self.next_report()? {
            (Report::InitFailed, document, _) => Ok(document),
            other => Err(unexpected(&other)),
        }
    }

    pub fn init(&mut self, handler: &str) -> Result<(), Failed> {
        let command = Command::Init(InitSpec {
            handler: handler.to_owned(),
            environment: vec![
                ("OWN".to_owned(), "value".to_owned()),
                ("_HANDLER".to_owned(), handler.to_owned()),
            ],
            task_root: "/var/task".to_owned(),
            limits: LIMITS,
        });
        // Layers of a micro-VM have been laid over each other before.
        let directories = match self.who {
            As::Root | As::Nobody => vec!["code", "lower", "upper"],
            As::Vm => vec!["code", "upper"],
        };
        let directories: Vec<File> = directories
            .into_iter()
            .map(|name| self.who.fixture(name))
            .collect();
        let descriptors: Vec<_> = directories.iter().map(AsFd::as_fd).collect();
        self.send(&command, b"", &descriptors)
    }

    pub fn send(&self, command: &Command, body: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<(), Failed> {
        let head = frame::encode(command, body.len(), descriptors.len())?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(descriptors));
        }
        let sent = sendmsg(
            &self.socket,
            &[IoSlice::new(&head)],
            &mut control,
            SendFlags::NOSIGNAL,
        )?;
        assert_eq!(sent, head.len());
        let mut rest = body;
        while !rest.is_empty() {
            let n = rustix::net::send(&self.socket, rest, SendFlags::NOSIGNAL)?;
            rest = &rest[n..];
        }
        Ok(())
    }

    pub fn send_event(&self, payload: &[u8]) -> Result<(), Failed> {
        let command = Command::Invoke(InvokeSpec {
            request_id: "id".to_owned(),
            deadline_unix_ms: 12345,
            function_arn: "arn".to_owned(),
            trace_id: "trace".to_owned(),
            client_context: "{\n}".to_owned(),
        });
        self.send(&command, payload, &[])
    }

    pub fn send_capture(&self, files: &Snapshot) -> Result<(), Failed> {
        self.send(
            &Command::Capture,
            b"",
            &[files.memory.as_fd(), files.state.as_fd()],
        )
    }

    /// Captures the guest.
    pub fn capture(&mut self) -> Result<Snapshot, Failed> {
        let files = Snapshot::new()?;
        self.send_capture(&files)?;
        match self.next_report()? {
            (Report::Captured(captured), _, _) if captured.memory_bytes > 0 && captured.state_bytes > 0 => {
                Ok(files)
            }
            other => Err(unexpected(&other)),
        }
    }

    pub fn send_restore(
        &self,
        snapshot: &Snapshot,
        arm: bool,
        record: bool,
        memory_mode: MemoryMode,
    ) -> Result<(), Failed> {
        let mut seed = [0; 32];
        rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())?;
        let command = Command::Restore(RestoreSpec {
            arm,
            record,
            has_layout: snapshot.layout.is_some(),
            thaw: false,
            memory_mode,
            limits: LIMITS,
            identity: Identity {
                instance_id: "instance".to_owned(),
                seed,
            },
            environment: Vec::new(),
        });
        let images = ["root", "code", "upper"].map(|name| self.who.fixture(name));
        let images = if snapshot.is_base { &images[..1] } else { &images };
        let files = [
            Some(&snapshot.memory),
            Some(&snapshot.state),
            snapshot.layout.as_ref(),
        ];
        let descriptors: Vec<_> = files
            .into_iter()
            .flatten()
            .chain(images)
            .map(AsFd::as_fd)
            .collect();
        self.send(&command, b"", &descriptors)
    }

    /// Lays a snapshot out in a pooled worker.
    pub fn restore(
        &mut self,
        snapshot: &Snapshot,
        arm: bool,
        record: bool,
        memory_mode: MemoryMode,
    ) -> Result<(), Failed> {
        self.send_restore(snapshot, arm, record, memory_mode)?;
        if !arm {
            return Ok(());
        }
        match self.next_report()? {
            (Report::Waiting(waiting), _, _)
                if (waiting.waits_for == WaitsFor::Function) == snapshot.is_base && waiting.pristine =>
            {
                Ok(())
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Has a layout written from other files: of a base, or of a version on its base.
    pub fn relayout(&mut self, command: &Command, files: &[&File]) -> Result<File, Failed> {
        let layout = memory_file()?;
        let descriptors: Vec<_> = std::iter::once(&layout)
            .chain(files.iter().copied())
            .map(AsFd::as_fd)
            .collect();
        self.send(command, b"", &descriptors)?;
        match self.next_report()? {
            (Report::Replanned { .. }, _, _) => Ok(layout),
            other => Err(unexpected(&other)),
        }
    }

    /// A layout learned from the run of a restored guest that recorded it.
    pub fn replan(&mut self, snapshot: &Snapshot) -> Result<File, Failed> {
        let layout = memory_file()?;
        self.send(&Command::Replan, b"", &[layout.as_fd(), snapshot.memory.as_fd()])?;
        match self.next_report()? {
            (Report::Replanned { hot_pages, .. }, _, _) if hot_pages > 0 => Ok(layout),
            other => Err(unexpected(&other)),
        }
    }

    /// The next report that is no log, its body, and the log before it.
    pub fn next_report(&mut self) -> Result<(Report, Vec<u8>, Vec<u8>), Failed> {
        let mut log = Vec::new();
        loop {
            let frame = self
                .channel
                .receive::<Report>()?
                .ok_or("the worker closed its socket")?;
            match frame.message {
                Report::Log => log.extend(frame.body),
                // What is asked next is what it does with its event.
                Report::LaidOut => {}
                report => return Ok((report, frame.body, log)),
            }
        }
    }

    /// Whether the worker says something more, or ends, within this time.
    pub fn has_more_within(&self, limit: Duration) -> Result<bool, Failed> {
        let mut ready = [rustix::event::PollFd::new(
            &self.channel,
            rustix::event::PollFlags::IN,
        )];
        let limit = rustix::event::Timespec {
            tv_sec: limit.as_secs() as i64,
            tv_nsec: 0,
        };
        Ok(rustix::event::poll(&mut ready, Some(&limit))? > 0)
    }

    pub fn invoke(&mut self, payload: &[u8]) -> Result<Invoked, Failed> {
        self.send_event(payload)?;
        let (answer, body, log) = match self.next_report()? {
            (Report::Answer(answer), body, log) => (answer, body, log),
            other => return Err(unexpected(&other)),
        };
        let waiting = match self.next_report()? {
            (Report::Waiting(waiting), _, _) => Some(waiting),
            _ => None,
        };
        Ok(Invoked {
            answer,
            body,
            log,
            waiting,
        })
    }

    /// Sends an event after which the guest ends; how it does.
    pub fn invoke_to_end(&mut self, payload: &[u8]) -> Result<GuestExit, Failed> {
        self.send_event(payload)?;
        loop {
            match self.next_report()? {
                (Report::Exited(exit), _, _) => return Ok(exit),
                (Report::Answer(_) | Report::Waiting(_), _, _) => {}
                other => return Err(unexpected(&other)),
            }
        }
    }

    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The worker closes its socket and its process ends.
    pub fn expect_end(&mut self) -> Result<(), Failed> {
        while let Ok(Some(_)) = self.channel.receive::<Report>() {}
        let mut ready = [rustix::event::PollFd::new(
            &self.pidfd,
            rustix::event::PollFlags::IN,
        )];
        let limit = rustix::event::Timespec {
            tv_sec: 10,
            tv_nsec: 0,
        };
        match rustix::event::poll(&mut ready, Some(&limit))? {
            0 => Err("the worker did not end".into()),
            _ => Ok(()),
        }
    }

    pub fn kill(&self) -> Result<(), Failed> {
        rustix::process::pidfd_send_signal(&self.pidfd, rustix::process::Signal::KILL)?;
        Ok(())
    }

    /// Host's ids of the guest's processes: all descendants of the worker, once there are any.
    pub fn guest_pids(&self) -> Result<Vec<i32>, Failed> {
        let mut found = Vec::new();
        let mut parents = vec![self.pid];
        while let Some(parent) = parents.pop() {
            let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))?;
            for child in children.split_whitespace() {
                let child = child.parse()?;
                found.push(child);
                parents.push(child);
            }
        }
        Ok(found)
    }

    /// Whether the worker sleeps: it does not spin.
    pub fn sleeps(&self) -> Result<bool, Failed> {
        Ok(state(self.pid)? == 'S')
    }
}

/// State letter of a process, as `/proc` has it.
pub fn state(pid: i32) -> Result<char, Failed> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, rest) = stat.rsplit_once(") ").ok_or("no state")?;
    Ok(rest.chars().next().ok_or("no state")?)
}

/// The process's share of memory, in KiB.
pub fn pss_kib(pid: i32) -> Result<u64, Failed> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = rollup
        .lines()
        .find_map(|line| line.strip_prefix("Pss:"))
        .ok_or("no Pss")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse()?)
}

/// Waits until something has come true, at most so long.
pub fn until(limit: Duration, condition: impl Fn() -> Result<bool, Failed>) -> Result<(), Failed> {
    let start = Instant::now();
    while !condition()? {
        if start.elapsed() > limit {
            return Err("it did not come true in time".into());
        }
        std::thread::yield_now();
    }
    Ok(())
}
