//! From an image and a command line to a first thread that is about to run.

mod exec;
mod program;

use gust_image::Image;
use gust_vmm::{Registers, Vm};
use rand_chacha::{
    ChaCha20Rng,
    rand_core::{RngCore as _, SeedableRng},
};

use crate::{
    errno::{EACCES, ELOOP, ENOENT, ENOEXEC, ENOMEM, ENOTDIR, Errno},
    fs::{FileKind, Files, Last, NodeType, OpenFile, Vfs, Vnode},
    host::{Host, Stream},
    kernel::{Cx, Kernel},
    mm::Mm,
    net::Network,
    process::Process,
    runtime::RuntimeDevice,
    slab::Slab,
    task::{Signals, Threads, WaitQueues},
    time::Clock,
};
pub(crate) use exec::{sys_execve, sys_execveat};
use program::{ARGUMENT_BYTES_MAX, ARGUMENTS_MAX};

/// A program to start, and what it may use.
#[derive(Debug)]
pub struct BootConfig {
    /// The root file system.
    pub root: Image,
    /// Further images and the directories that they are seen at.
    pub images: Vec<(String, Image)>,
    /// Path of the program in the image. A name without a slash is looked up in `PATH` of the environment.
    pub program: String,
    /// Arguments, the program's name included.
    pub arguments: Vec<String>,
    /// Environment, as `NAME=value`.
    pub environment: Vec<String>,
    /// Working directory.
    pub directory: String,
    /// User and group.
    pub uid: u32,
    /// See [`BootConfig::uid`].
    pub gid: u32,
    /// Memory that may be used, in bytes.
    pub memory_bytes: u64,
    /// Room in `/tmp`, in bytes.
    pub tmp_bytes: u64,
    /// CPUs that the guest sees.
    pub cpus: u32,
    /// Host name.
    pub host_name: String,
    /// Process id.
    pub pid: u32,
    /// Seed of the guest's randomness.
    pub seed: [u8; 32],
}

/// Why a program could not be started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BootError {
    /// The program or its interpreter.
    #[error("start {program}: {reason}")]
    Program {
        /// Its path.
        program: String,
        /// Why, in words.
        reason: &'static str,
    },
    /// A directory that must be there.
    #[error("the image has no directory {0}")]
    NoDirectory(String),
    /// Arguments and environment.
    #[error("arguments and environment have more than {ARGUMENT_BYTES_MAX} bytes or {ARGUMENTS_MAX} pieces")]
    TooManyArguments,
    /// Guest memory.
    #[error("the guest's memory cannot be set up")]
    Memory,
}

/// Why a path leads nowhere.
const NO_SUCH_FILE: &str = "No such file or directory";

impl BootError {
    /// Whether the program, or its interpreter, is not there, rather than there and not startable.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Program { reason, .. } if *reason == NO_SUCH_FILE)
    }
}

fn reason(errno: Errno) -> &'static str {
    match errno {
        ENOENT => NO_SUCH_FILE,
        ENOTDIR => "Not a directory",
        EACCES => "Permission denied",
        ENOEXEC => "Exec format error: neither a 64-bit x86 ELF program nor a script",
        ELOOP => "Too many levels of symbolic links or scripts",
        ENOMEM => "Cannot allocate memory: its segments do not fit",
        _ => "it cannot be loaded",
    }
}

impl Kernel {
    /// Prepares a guest: its tree, its memory, its first thread.
    pub fn boot(config: BootConfig, vm: &mut Vm, host: &mut dyn Host) -> Result<Self, BootError> {
        let mut kernel = Self::new(&config);
        for (path, image) in config.images {
            kernel.mount_image(&path, image)?;
        }
        kernel.clock.continue_from(host, BOOT_CLOCK_NS);
        let directory = config.directory.as_bytes();
        let resolved = kernel.resolve(1, kernel.vfs.root(), directory, Last::Follow);
        kernel.process.directory = resolved
            .and_then(|resolved| resolved.existing())
            .map_err(|_| BootError::NoDirectory(config.directory.clone()))?;
        let arguments: Vec<Vec<u8>> = config.arguments.into_iter().map(String::into_bytes).collect();
        let environment: Vec<Vec<u8>> = config.environment.into_iter().map(String::into_bytes).collect();
        let mut cx = Cx { vm, host, slot: 1 };
        cx.vm.reset_extended_state(1).map_err(|_| BootError::Memory)?;
        kernel.open_standard_files()?;
        let program = kernel.find_in_path(&config.program, &environment);
        kernel.start_program(&mut cx, &program, arguments, &environment)?;
        kernel.queues.add(1);
        Ok(kernel)
    }

    fn new(config: &BootConfig) -> Self {
        let mut vfs = Vfs::new(config.root.clone(), config.tmp_bytes);
        vfs.mount_standard_trees();
        vfs.process_owner = (config.uid, config.gid);
        Self {
            mm: Mm::new(config.memory_bytes),
            threads: Threads::first(config.pid, Registers::default()),
            queues: WaitQueues::default(),
            signals: Signals::default(),
            files: Files::default(),
            vfs,
            pipes: Slab::default(),
            event_fds: Slab::default(),
            epolls: Slab::default(),
            timer_fds: Slab::default(),
            signal_fds: Slab::default(),
            file_events: Default::default(),
            network: Network::default(),
            watchers: Default::default(),
            clock: Clock::default(),
            process: Process {
                pid: config.pid,
                former_pids: Vec::new(),
                uid: config.uid,
                gid: config.gid,
                directory: Vnode::Image { image: 0, node: 0 },
                umask: 0o022,
                program: Vec::new(),
                auxv: Vec::new(),
                cpus: config.cpus.clamp(1, 63),
                host_name: config.host_name.clone(),
                started_ns: BOOT_CLOCK_NS,
                dumpable: 1,
                no_new_privileges: false,
                barriers: 0,
                limits: Default::default(),
                random_at: 0,
            },
            runtime: RuntimeDevice::default(),
            random: ChaCha20Rng::from_seed(config.seed),
            ended: None,
            calls: Default::default(),
        }
    }

    /// A guest without a program, until there is one.
    pub fn empty(root: &Image) -> Self {
        Self::new(&BootConfig {
            root: root.clone(),
            images: Vec::new(),
            program: String::new(),
            arguments: Vec::new(),
            environment: Vec::new(),
            directory: "/".into(),
            uid: 0,
            gid: 0,
            memory_bytes: 0,
            tmp_bytes: 0,
            cpus: 1,
            host_name: String::new(),
            pid: 1,
            seed: [0; 32],
        })
    }

    /// Lays an image over a directory.
    pub fn mount_image(&mut self, path: &str, image: Image) -> Result<(), BootError> {
        let missing = || BootError::NoDirectory(path.to_owned());
        let at = self
            .resolve(1, self.vfs.root(), path.as_bytes(), Last::Follow)
            .and_then(|resolved| resolved.existing())
            .map_err(|_| missing())?;
        if self.vfs.node_type(at) != Ok(NodeType::Directory) {
            return Err(missing());
        }
        let root = self.vfs.add_image(image);
        self.vfs.mount(at, root, path, "erofs");
        Ok(())
    }

    fn open_standard_files(&mut self) -> Result<(), BootError> {
        let files = [
            OpenFile::new(FileKind::Null, libc::O_RDWR),
            OpenFile::new(FileKind::Output(Stream::Output), libc::O_WRONLY),
            OpenFile::new(FileKind::Output(Stream::Error), libc::O_WRONLY),
        ];
        for file in files {
            self.install(file, false).map_err(|_| BootError::Memory)?;
        }
        Ok(())
    }

    /// Makes a restored guest another than the one that was captured: randomness, id, clocks.
    pub fn renew(&mut self, vm: &mut Vm, host: &mut dyn Host, seed: [u8; 32], pid: u32) {
        /// Ids that are remembered; libraries keep at most the one from before the snapshot.
        const FORMER_MAX: usize = 4;
        self.reseed(seed);
        let former = std::mem::replace(&mut self.process.pid, pid);
        self.process.former_pids.insert(0, former);
        self.process.former_pids.truncate(FORMER_MAX);
        let mut random = [0; 16];
        self.random.fill_bytes(&mut random);
        // The program may have unmapped its first stack; then nobody reads these bytes either.
        let _ = vm.space_mut().write_backed(self.process.random_at, &random);
        let mut cx = Cx { vm, host, slot: 1 };
        self.write_clock_page(&mut cx);
    }
}

/// Monotonic time at which a guest begins: some seconds up, as programs expect of a machine.
const BOOT_CLOCK_NS: u64 = 10_000_000_000;
