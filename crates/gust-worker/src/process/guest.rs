//! The guest process: its start with everything taken away that it must not have, its stops, and its end.

use std::{
    ffi::OsStr,
    fs::File,
    io,
    os::{
        fd::OwnedFd,
        unix::{fs::FileExt, process::ExitStatusExt},
    },
    process::{Command, Stdio},
};

use rustix::{
    io::{Errno, FdFlags, fcntl_setfd},
    pipe::{PipeFlags, pipe_with},
    process::{Gid, Pid, Resource, Rlimit, Signal, Uid, WaitOptions},
    thread::CapabilitySet,
};

use crate::{
    jail::{self, Policy, lists},
    protocol::{GuestExit, Limits},
    sys,
    zygote::{GUEST_GID, GUEST_UID, MemoryFiles},
};

/// Descriptors that a guest may have open, as on AWS Lambda.
const DESCRIPTORS_MAX: u64 = 1024;

/// Processes and threads that a guest may have, as on AWS Lambda.
const PROCESSES_MAX: u64 = 1024;

/// Longest status file of a process that is looked at.
const STATUS_BYTES_MAX: usize = 4096;

/// A program to start.
pub(super) struct Program<'a> {
    /// Program and arguments.
    pub argv: &'a [String],
    /// Environment.
    pub environment: &'a [(String, String)],
    /// Working directory.
    pub directory: &'a str,
    /// Bounds.
    pub limits: Limits,
    /// The control group bounds the memory; otherwise a limit of the process does.
    pub memory_is_bounded: bool,
    /// A descriptor for the program to inherit.
    pub inherit: Option<OwnedFd>,
}

/// The ends of the pipes that the guest writes its log to.
pub(super) struct Pipes {
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

/// A guest that has been started.
#[derive(Debug)]
pub(super) struct Guest {
    pid: Pid,
    status: File,
    memory: Option<MemoryFiles>,
    /// Ends for want of memory in the control group before the guest started.
    ended_before: u64,
}

impl Guest {
    /// Starts a program in the root that this process is in.
    pub(super) fn start(program: Program<'_>, memory: Option<MemoryFiles>) -> io::Result<(Self, Pipes)> {
        let (stdout, out) = pipe_with(PipeFlags::CLOEXEC)?;
        let (stderr, err) = pipe_with(PipeFlags::CLOEXEC)?;
        for end in [&stdout, &stderr] {
            rustix::io::ioctl_fionbio(end, true)?;
        }
        let (name, arguments) = program
            .argv
            .split_first()
            .ok_or_else(|| io::Error::other("the runtime names no program"))?;
        let mut command = Command::new(name);
        command
            .args(arguments)
            .env_clear()
            .envs(
                program
                    .environment
                    .iter()
                    .map(|(name, value)| (OsStr::new(name), value)),
            )
            .current_dir(program.directory)
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err);
        confine(
            &mut command,
            program.limits,
            program.memory_is_bounded,
            program.inherit,
        )?;
        let pid = command.spawn()?.id();
        let pid = Pid::from_raw(pid.cast_signed()).ok_or_else(|| io::Error::other("the guest has no id"))?;
        let status = File::open(format!("/proc/{}/status", pid.as_raw_nonzero()))?;
        let ended_before = memory
            .as_ref()
            .map_or(0, |memory| ends_for_want_of_memory(&memory.events));
        Ok((
            Self {
                pid,
                status,
                memory,
                ended_before,
            },
            Pipes { stdout, stderr },
        ))
    }

    /// Waits for children that have ended, the guest's orphans among them. The guest's own end, if it is there.
    pub(super) fn reap(&self) -> io::Result<Option<GuestExit>> {
        let mut end = None;
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) if pid == self.pid => end = Some(self.end(status.as_raw())),
                Ok(Some(_)) | Err(Errno::INTR) => {}
                Ok(None) | Err(Errno::CHILD) => return Ok(end),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn end(&self, status: i32) -> GuestExit {
        let status = std::process::ExitStatus::from_raw(status);
        let starved = self
            .memory
            .as_ref()
            .is_some_and(|memory| ends_for_want_of_memory(&memory.events) > self.ended_before);
        match status.signal() {
            Some(signal) if signal == Signal::KILL.as_raw() && starved => GuestExit::OutOfMemory,
            Some(signal) => GuestExit::Signal(signal),
            None => GuestExit::Exit(status.code().unwrap_or(-1)),
        }
    }

    /// Stops every process of the guest; it gets no processor time until it is continued.
    pub(super) fn stop() -> io::Result<()> {
        signal_all(Signal::STOP)
    }

    /// Continues every process of the guest.
    pub(super) fn go_on() -> io::Result<()> {
        signal_all(Signal::CONT)
    }

    /// Memory that the guest uses now, in bytes.
    pub(super) fn memory_bytes(&self) -> u64 {
        self.status_field("VmRSS:")
    }

    /// The most memory that the guest has used, in bytes: all its processes where a control group counts, else its first.
    pub(super) fn memory_bytes_max(&self) -> u64 {
        let counted = self.memory.as_ref().and_then(|memory| {
            let text = read_again(&memory.peak).ok()?;
            text.trim().parse().ok()
        });
        counted.unwrap_or_else(|| self.status_field("VmHWM:"))
    }

    fn status_field(&self, name: &str) -> u64 {
        let text = read_again(&self.status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|value| value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
        kib.unwrap_or(0) * 1024
    }
}

/// Has the program start without rights, behind its filters and within its limits.
fn confine(
    command: &mut Command,
    limits: Limits,
    memory_is_bounded: bool,
    inherit: Option<OwnedFd>,
) -> io::Result<()> {
    // Compiled here and not in the new process, where an error could not be told.
    let filters = [lists::guest_clone3(), lists::guest()].map(|policy| policy.compile());
    let [first, second] = filters;
    let filters = [
        Policy::native_only(),
        first.map_err(io::Error::other)?,
        second.map_err(io::Error::other)?,
    ];
    let take_away = move || {
        let _ = rustix::process::setsid();
        sys::unblock_signals()?;
        // First to go when memory runs short; best effort, because nothing depends on it.
        let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
        set_limits(limits, memory_is_bounded)?;
        jail::narrow_capabilities(CapabilitySet::empty())?;
        become_guest()?;
        sys::set_capabilities(0)?;
        rustix::thread::set_no_new_privs(true)?;
        if let Some(descriptor) = &inherit {
            fcntl_setfd(descriptor, FdFlags::empty())?;
        }
        for filter in &filters {
            seccompiler::apply_filter(filter).map_err(io::Error::other)?;
        }
        Ok(())
    };
    sys::before_exec(command, take_away)
}

fn set_limits(limits: Limits, memory_is_bounded: bool) -> io::Result<()> {
    let both = |value| Rlimit {
        current: Some(value),
        maximum: Some(value),
    };
    rustix::process::setrlimit(Resource::Core, both(0))?;
    rustix::process::setrlimit(Resource::Nofile, both(DESCRIPTORS_MAX))?;
    rustix::process::setrlimit(Resource::Nproc, both(PROCESSES_MAX))?;
    if !memory_is_bounded {
        // Bounds writable private memory, process by process. Address space is not bounded, because many runtimes
        // reserve far more of it than they use.
        rustix::process::setrlimit(Resource::Data, both(limits.memory_bytes))?;
    }
    Ok(())
}

/// Becomes the guest's user. Where only one user is mapped, the process is that one already.
fn become_guest() -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(GUEST_UID), Gid::from_raw(GUEST_GID));
    if rustix::process::geteuid() != uid {
        rustix::thread::set_thread_groups(&[])?;
        rustix::thread::set_thread_res_gid(gid, gid, gid)?;
        rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    }
    Ok(())
}

/// A guest whose last process has just ended has no one left to signal.
fn signal_all(signal: Signal) -> io::Result<()> {
    match sys::signal_all(signal) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        result => result,
    }
}

/// Count of `oom_kill` in a control group's event file.
fn ends_for_want_of_memory(events: &File) -> u64 {
    let text = read_again(events).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    line.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

/// The content of a file of the kernel, made anew by each read from its start.
fn read_again(file: &File) -> io::Result<String> {
    let mut buffer = [0; STATUS_BYTES_MAX];
    let length = file.read_at(&mut buffer, 0)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}
