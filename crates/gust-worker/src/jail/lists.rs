//! The policies of this crate.

use super::{Action, Policy, Rule, When};

/// Protection bits of `mmap` and `mprotect` that make memory executable.
const PROT_EXEC: u64 = libc::PROT_EXEC as u64;

/// What every worker needs to run at all: memory, its descriptors, time, and its own end.
pub fn worker_base() -> Policy {
    use When::{Always, HasNoBitOf, IsOneOf};
    const GETFD: &[u32] = &[libc::F_GETFD as u32];
    Policy {
        name: "worker-base",
        rules: vec![
            Rule::new("brk", libc::SYS_brk, Always, "heap"),
            Rule::new(
                "clock_gettime",
                libc::SYS_clock_gettime,
                Always,
                "time, where the vDSO has no clock",
            ),
            Rule::new(
                "close",
                libc::SYS_close,
                Always,
                "descriptors that are no longer needed",
            ),
            Rule::new("exit_group", libc::SYS_exit_group, Always, "end of the worker"),
            Rule::new(
                "fcntl",
                libc::SYS_fcntl,
                IsOneOf(1, GETFD),
                "checks of the standard library's debug builds",
            ),
            Rule::new("futex", libc::SYS_futex, Always, "locks of the standard library"),
            Rule::new("getrandom", libc::SYS_getrandom, Always, "keys of hash maps"),
            Rule::new("madvise", libc::SYS_madvise, Always, "giving memory back"),
            Rule::new(
                "mmap",
                libc::SYS_mmap,
                HasNoBitOf(2, PROT_EXEC),
                "memory, never executable",
            ),
            Rule::new(
                "mprotect",
                libc::SYS_mprotect,
                HasNoBitOf(2, PROT_EXEC),
                "memory, never executable",
            ),
            Rule::new("mremap", libc::SYS_mremap, Always, "growing memory"),
            Rule::new("munmap", libc::SYS_munmap, Always, "giving memory back"),
            Rule::new("read", libc::SYS_read, Always, "descriptors that were handed in"),
            Rule::new("recvmsg", libc::SYS_recvmsg, Always, "commands of the node"),
            Rule::new(
                "restart_syscall",
                libc::SYS_restart_syscall,
                Always,
                "the kernel's own, after a stop",
            ),
            Rule::new(
                "rt_sigprocmask",
                libc::SYS_rt_sigprocmask,
                Always,
                "a panic that aborts",
            ),
            Rule::new(
                "rt_sigreturn",
                libc::SYS_rt_sigreturn,
                Always,
                "end of a signal handler",
            ),
            Rule::new("sendmsg", libc::SYS_sendmsg, Always, "reports to the node"),
            Rule::new("sigaltstack", libc::SYS_sigaltstack, Always, "end of a thread"),
            Rule::new(
                "write",
                libc::SYS_write,
                Always,
                "descriptors that were handed in",
            ),
        ],
        listed: Action::Allow,
        others: Action::Kill,
    }
}

/// The supervisor of a guest process, once the guest runs.
pub fn supervisor() -> Policy {
    use When::Always;
    worker_base().with(
        "process-supervisor",
        &[
            Rule::new(
                "accept4",
                libc::SYS_accept4,
                Always,
                "connections to the Runtime API",
            ),
            Rule::new("exit", libc::SYS_exit, Always, "end of a thread"),
            Rule::new(
                "kill",
                libc::SYS_kill,
                Always,
                "stopping and continuing the guest; it sees no one else",
            ),
            Rule::new(
                "poll",
                libc::SYS_poll,
                Always,
                "waiting for the node and the guest",
            ),
            Rule::new(
                "ppoll",
                libc::SYS_ppoll,
                Always,
                "waiting for the node and the guest",
            ),
            Rule::new(
                "pread64",
                libc::SYS_pread64,
                Always,
                "counters of the guest's memory",
            ),
            Rule::new(
                "recvfrom",
                libc::SYS_recvfrom,
                Always,
                "requests to the Runtime API",
            ),
            Rule::new("sendto", libc::SYS_sendto, Always, "answers of the Runtime API"),
            Rule::new("wait4", libc::SYS_wait4, Always, "the guest's end"),
            Rule::new("writev", libc::SYS_writev, Always, "messages to the guest"),
        ],
    )
}

/// `ioctl` requests of a micro-VM, as the kernel numbers them.
const VM_REQUESTS: &[u32] = &[
    0xae80,      // KVM_RUN
    0x4020_ae46, // KVM_SET_USER_MEMORY_REGION
    0x9000_aea4, // KVM_GET_XSAVE
];

/// A micro-VM's worker, once its machine has been made.
pub fn micro_vm() -> Policy {
    use When::{Always, IsOneOf};
    worker_base().with(
        "micro-vm",
        &[
            Rule::new("fstat", libc::SYS_fstat, Always, "lengths of a snapshot's files"),
            Rule::new("ftruncate", libc::SYS_ftruncate, Always, "writing a snapshot"),
            Rule::new(
                "ioctl",
                libc::SYS_ioctl,
                IsOneOf(1, VM_REQUESTS),
                "KVM_RUN, KVM_SET_USER_MEMORY_REGION, KVM_GET_XSAVE",
            ),
            Rule::new(
                "ppoll",
                libc::SYS_ppoll,
                Always,
                "a guest that sleeps, or waits for what lies outside",
            ),
            Rule::new("pread64", libc::SYS_pread64, Always, "reading a snapshot"),
            Rule::new("pwrite64", libc::SYS_pwrite64, Always, "writing a snapshot"),
            Rule::new(
                "rt_sigtimedwait",
                libc::SYS_rt_sigtimedwait,
                Always,
                "end of a machine's timer",
            ),
            Rule::new(
                "timer_delete",
                libc::SYS_timer_delete,
                Always,
                "end of a machine's timer",
            ),
            Rule::new(
                "timer_settime",
                libc::SYS_timer_settime,
                Always,
                "taking the processor from a guest",
            ),
        ],
    )
}

/// Socket families that a guest may use; its network namespace holds nothing but its own loopback. Others lead to
/// places that a network namespace does not cut off (the hypervisor's sockets, the kernel's cryptography).
const GUEST_FAMILIES: &[u32] = &[
    libc::AF_UNIX as u32,
    libc::AF_INET as u32,
    libc::AF_INET6 as u32,
    libc::AF_NETLINK as u32,
];

/// Namespaces that a guest may not make: in them it would have rights of its own.
const NEW_NAMESPACES: u64 = (libc::CLONE_NEWUSER
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP) as u64;

/// What a guest process may not do. It runs programs that no one has seen before, so all else is allowed: its walls are
/// the namespaces, its user and the missing capabilities, and this list takes away kernel interfaces behind them.
pub fn guest() -> Policy {
    use When::{Always, HasBitOf, IsNoneOf};
    let denied = |name, number, why| Rule::new(name, number, Always, why);
    Policy {
        name: "process-guest",
        rules: vec![
            denied("acct", libc::SYS_acct, "administration"),
            denied(
                "add_key",
                libc::SYS_add_key,
                "the kernel's key rings are not in a namespace",
            ),
            denied("adjtimex", libc::SYS_adjtimex, "the host's clock"),
            denied("bpf", libc::SYS_bpf, "programs in the kernel"),
            denied("chroot", libc::SYS_chroot, "another root"),
            Rule::new(
                "clone",
                libc::SYS_clone,
                HasBitOf(0, NEW_NAMESPACES),
                "namespaces of its own",
            ),
            denied("clock_adjtime", libc::SYS_clock_adjtime, "the host's clock"),
            denied("clock_settime", libc::SYS_clock_settime, "the host's clock"),
            denied("delete_module", libc::SYS_delete_module, "kernel modules"),
            denied("fanotify_init", libc::SYS_fanotify_init, "watching file systems"),
            denied("finit_module", libc::SYS_finit_module, "kernel modules"),
            denied("fsconfig", libc::SYS_fsconfig, "mounts"),
            denied("fsmount", libc::SYS_fsmount, "mounts"),
            denied("fsopen", libc::SYS_fsopen, "mounts"),
            denied("fspick", libc::SYS_fspick, "mounts"),
            denied("init_module", libc::SYS_init_module, "kernel modules"),
            denied("ioperm", libc::SYS_ioperm, "hardware"),
            denied("iopl", libc::SYS_iopl, "hardware"),
            denied(
                "io_uring_enter",
                libc::SYS_io_uring_enter,
                "calls that no filter sees",
            ),
            denied(
                "io_uring_register",
                libc::SYS_io_uring_register,
                "calls that no filter sees",
            ),
            denied(
                "io_uring_setup",
                libc::SYS_io_uring_setup,
                "calls that no filter sees",
            ),
            denied("kexec_file_load", libc::SYS_kexec_file_load, "another kernel"),
            denied("kexec_load", libc::SYS_kexec_load, "another kernel"),
            denied(
                "keyctl",
                libc::SYS_keyctl,
                "the kernel's key rings are not in a namespace",
            ),
            denied("mount", libc::SYS_mount, "mounts"),
            denied("mount_setattr", libc::SYS_mount_setattr, "mounts"),
            denied("move_mount", libc::SYS_move_mount, "mounts"),
            denied(
                "name_to_handle_at",
                libc::SYS_name_to_handle_at,
                "files past their directories",
            ),
            denied(
                "open_by_handle_at",
                libc::SYS_open_by_handle_at,
                "files past their directories",
            ),
            denied("open_tree", libc::SYS_open_tree, "mounts"),
            denied(
                "perf_event_open",
                libc::SYS_perf_event_open,
                "counters of the machine",
            ),
            denied(
                "pidfd_getfd",
                libc::SYS_pidfd_getfd,
                "descriptors of other processes",
            ),
            denied("pivot_root", libc::SYS_pivot_root, "another root"),
            denied(
                "process_vm_readv",
                libc::SYS_process_vm_readv,
                "memory of other processes",
            ),
            denied(
                "process_vm_writev",
                libc::SYS_process_vm_writev,
                "memory of other processes",
            ),
            denied("ptrace", libc::SYS_ptrace, "other processes"),
            denied("quotactl", libc::SYS_quotactl, "administration"),
            denied("reboot", libc::SYS_reboot, "administration"),
            denied(
                "request_key",
                libc::SYS_request_key,
                "the kernel's key rings are not in a namespace",
            ),
            denied("setns", libc::SYS_setns, "namespaces of others"),
            denied("settimeofday", libc::SYS_settimeofday, "the host's clock"),
            Rule::new(
                "socket",
                libc::SYS_socket,
                IsNoneOf(0, GUEST_FAMILIES),
                "sockets that lead out",
            ),
            denied("swapoff", libc::SYS_swapoff, "administration"),
            denied("swapon", libc::SYS_swapon, "administration"),
            denied("syslog", libc::SYS_syslog, "the kernel's log"),
            denied("umount2", libc::SYS_umount2, "mounts"),
            denied("unshare", libc::SYS_unshare, "namespaces of its own"),
            denied(
                "userfaultfd",
                libc::SYS_userfaultfd,
                "stopping the kernel in its copies",
            ),
            denied("vhangup", libc::SYS_vhangup, "administration"),
        ],
        listed: Action::Fail(libc::EPERM as u32),
        others: Action::Allow,
    }
}

/// `clone3` takes its flags from memory, where no filter sees them. Programs fall back to `clone` when it is missing.
pub fn guest_clone3() -> Policy {
    Policy {
        name: "process-guest-clone3",
        rules: vec![Rule::new(
            "clone3",
            libc::SYS_clone3,
            When::Always,
            "flags that no filter sees; programs then use `clone`",
        )],
        listed: Action::Fail(libc::ENOSYS as u32),
        others: Action::Allow,
    }
}
