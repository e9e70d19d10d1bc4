//! System calls for which no safe wrapper is at hand. This file holds the crate's `unsafe` code.
//!
//! Each function does one call and turns its result into a `Result`; nothing here decides anything.

#![expect(
    unsafe_code,
    reason = "raw system calls of the zygote and the jail, each with its own reason"
)]

use std::{
    io,
    mem::{self, MaybeUninit},
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    process::Command,
};

use rustix::process::{Pid, Signal};

/// Namespaces of their own for a new process, as `CLONE_NEW*` flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Namespaces(u64);

impl Namespaces {
    /// None: everything is shared with the parent.
    pub(crate) const NONE: Self = Self(0);

    /// Processes, mounts, network, IPC and host name.
    pub(crate) const ALL: Self = Self(
        (libc::CLONE_NEWPID
            | libc::CLONE_NEWNS
            | libc::CLONE_NEWNET
            | libc::CLONE_NEWIPC
            | libc::CLONE_NEWUTS) as u64,
    );

    /// The same, and users.
    pub(crate) const ALL_AND_USER: Self = Self(Self::ALL.0 | libc::CLONE_NEWUSER as u64);

    /// Whether users are among them.
    pub(crate) fn has_user(self) -> bool {
        self.0 & libc::CLONE_NEWUSER as u64 != 0
    }
}

/// On which side of [`clone_process`] the caller stands now.
pub(crate) enum Cloned {
    /// In the new process.
    Child,
    /// In the old one.
    Parent {
        /// The new process.
        pid: Pid,
        /// A descriptor of it, close-on-exec.
        pidfd: OwnedFd,
    },
}

/// Makes a copy of this process, with namespaces of its own; its end is reported by SIGCHLD.
///
/// # Safety
/// The process must have one thread: the copy has this thread only, and locks that others hold would stay locked in it.
pub(crate) unsafe fn clone_process(namespaces: Namespaces) -> io::Result<Cloned> {
    let mut pidfd: RawFd = -1;
    // SAFETY: all-zero bytes are a valid `clone_args`: integers, of which zero means "not used".
    let mut arguments: libc::clone_args = unsafe { mem::zeroed() };
    arguments.flags = namespaces.0 | libc::CLONE_PIDFD as u64;
    arguments.pidfd = (&raw mut pidfd).addr() as u64;
    arguments.exit_signal = libc::SIGCHLD as u64;
    // SAFETY: the structure and the place for the descriptor live across the call. No stack is given and no memory is
    // shared, so the child goes on with a copy of this stack, as after a fork; the caller vouches for one thread.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw mut arguments,
            size_of::<libc::clone_args>(),
        )
    };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Cloned::Child),
        pid => {
            // SAFETY: the kernel has just put a new descriptor there, which no one else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            let pid = i32::try_from(pid)
                .ok()
                .and_then(Pid::from_raw)
                .expect("the kernel gives positive ids");
            Ok(Cloned::Parent { pid, pidfd })
        }
    }
}

/// Closes every descriptor but these and the standard ones.
///
/// # Safety
/// No owner of another descriptor may be used or dropped afterwards.
pub(crate) unsafe fn close_all_but(keep: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut keep: Vec<u32> = keep
        .iter()
        .map(|descriptor| descriptor.as_raw_fd().unsigned_abs())
        .collect();
    keep.sort_unstable();
    keep.push(u32::MAX);
    let mut first = 3;
    for descriptor in keep {
        if descriptor > first {
            // SAFETY: takes no pointers; the caller vouches for the owners of what is closed.
            check(unsafe { libc::syscall(libc::SYS_close_range, first, descriptor - 1, 0) })?;
        }
        first = first.max(descriptor.saturating_add(1));
    }
    Ok(())
}

/// Sends a signal to every process that this one may signal and sees, itself and the first process excepted.
pub(crate) fn signal_all(signal: Signal) -> io::Result<()> {
    // SAFETY: takes no pointers.
    check(i64::from(unsafe { libc::kill(-1, signal.as_raw()) })).map(|_| ())
}

/// Holds SIGCHLD back and gives a descriptor, close-on-exec and not blocking, that is readable while one is pending.
pub(crate) fn child_signals() -> io::Result<OwnedFd> {
    let set = signal_set(&[libc::SIGCHLD]);
    // SAFETY: the set is valid; no old set is asked for.
    check(i64::from(unsafe {
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut())
    }))?;
    // SAFETY: the set is valid; -1 asks for a new descriptor.
    let descriptor = check(i64::from(unsafe {
        libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    }))?;
    // SAFETY: the kernel has just made it, and no one else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor as RawFd) })
}

/// Takes pending signals off the descriptor that [`child_signals`] made.
pub(crate) fn drain_signals(descriptor: impl AsFd) {
    let mut buffer = [0_u8; size_of::<libc::signalfd_siginfo>()];
    while rustix::io::read(&descriptor, &mut buffer).is_ok_and(|n| n > 0) {}
}

/// Lets every signal through again, as a program expects it at its start.
pub(crate) fn unblock_signals() -> io::Result<()> {
    let set = signal_set(&[]);
    // SAFETY: the set is valid; no old set is asked for.
    check(i64::from(unsafe {
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut())
    }))
    .map(|_| ())
}

fn signal_set(signals: &[libc::c_int]) -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: the call initialises the set that it is given.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    for &signal in signals {
        // SAFETY: the set has been initialised above.
        unsafe { libc::sigaddset(set.as_mut_ptr(), signal) };
    }
    // SAFETY: initialised above.
    unsafe { set.assume_init() }
}

/// Capabilities of this thread: permitted and effective are `mask`, inheritable none.
pub(crate) fn set_capabilities(mask: u64) -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    /// `_LINUX_CAPABILITY_VERSION_3` of `linux/capability.h`.
    const VERSION: u32 = 0x2008_0522;
    let header = Header {
        version: VERSION,
        pid: 0,
    };
    let data = [mask as u32, (mask >> 32) as u32].map(|half| Data {
        effective: half,
        permitted: half,
        inheritable: 0,
    });
    // SAFETY: both structures have the layout that this version has, and live across the call.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) }).map(|_| ())
}

/// Sets attributes (`MOUNT_ATTR_*`) on a mount and all beneath it.
pub(crate) fn set_mount_attributes(mount: impl AsFd, attributes: u64) -> io::Result<()> {
    let arguments = libc::mount_attr {
        attr_set: attributes,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: the empty path is a valid string and the structure lives across the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const arguments,
            size_of::<libc::mount_attr>(),
        )
    })
    .map(|_| ())
}

/// Brings up the loopback interface of this network namespace.
pub(crate) fn loopback_up() -> io::Result<()> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: all-zero bytes are a valid `ifreq`: a name and a union of integers.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(c"lo".to_bytes()) {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the request is what SIOCSIFFLAGS takes and lives across the call.
    check(i64::from(unsafe {
        libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request)
    }))
    .map(|_| ())
}

/// Has `before_exec` run in the process that `command` starts, right before its program does. Refused when this process
/// has more than one thread, because in the copy the locks of the others would stay locked.
pub(crate) fn before_exec(
    command: &mut Command,
    before_exec: impl FnMut() -> io::Result<()> + Send + Sync + 'static,
) -> io::Result<()> {
    use std::os::unix::process::CommandExt;
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other(
            "a process with several threads cannot prepare its child",
        ));
    }
    // SAFETY: this is the only thread, so no other can hold a lock when the copy is made, and it may allocate. Nothing
    // in this crate starts a thread between here and the start of the program.
    unsafe { command.pre_exec(before_exec) };
    Ok(())
}

fn check(result: i64) -> io::Result<i64> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        value => Ok(value),
    }
}
