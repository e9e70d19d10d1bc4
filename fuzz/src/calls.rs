//! Sequences of system calls, with any arguments, by several threads of a guest, on memory that changes while it is read.
//!
//! An input is a choice of how often memory changes, then actions. Arguments are chosen so that calls get past their
//! first check now and then: small numbers, pointers to scratch memory, names of files, results of earlier calls, and
//! values at the edges.

use gust_linux::Kernel;
use gust_vmm::{Exit, Racer};

use crate::{
    bytes::Bytes,
    guest::{Came, Guest, NOWHERE, SCRATCH, SCRATCH_BYTES},
};

/// Most actions of a sequence.
const ACTIONS_MAX: usize = 96;
/// Most threads of a guest.
const THREADS_MAX: usize = 6;
/// Results that can be arguments later.
const RESULTS_MAX: usize = 16;
/// Longest encoded state of a guest that makes so few calls.
const STATE_BYTES_MAX: usize = 96 << 20;

/// Names that calls are given, each in a page of its own at the end of the scratch memory.
const NAMES: [&str; 16] = [
    "/",
    "/tmp",
    "/tmp/a",
    "/tmp/b",
    "/tmp/d/../a",
    "a",
    "/program",
    "/proc/self/maps",
    "/proc/self/fd/3",
    "/dev/gust",
    "/dev/urandom",
    "/dev/null",
    "/dev/shm/x",
    "/sys/fs/cgroup/memory.max",
    "..",
    "",
];

/// Values that calls have trouble with.
const EDGES: [u64; 20] = [
    u64::MAX,
    u64::MAX - 1,
    1 << 63,
    i64::MAX as u64,
    i32::MAX as u64,
    i32::MIN as u64,
    u32::MAX as u64,
    NOWHERE,
    SCRATCH - 1,
    SCRATCH + SCRATCH_BYTES - 1,
    SCRATCH + SCRATCH_BYTES,
    0x40_0000,
    0x7eff_ffff_f000,
    0x7f00_0000_0000,
    0x7f80_0000_8000,
    0xffff_8000_0000_0000,
    0x7fff_f000,
    4096,
    1 << 21,
    1 << 40,
];

/// Calls on memory.
const MEMORY: &[i64] = &[
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_munmap,
    libc::SYS_brk,
    libc::SYS_mremap,
    libc::SYS_msync,
    libc::SYS_mincore,
    libc::SYS_madvise,
    libc::SYS_mlock,
    libc::SYS_pkey_mprotect,
    libc::SYS_memfd_create,
    libc::SYS_ftruncate,
    libc::SYS_openat,
    libc::SYS_pwrite64,
    libc::SYS_pread64,
    libc::SYS_close,
];

/// Calls on files and the runtime's device.
const FILES: &[i64] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_close,
    libc::SYS_stat,
    libc::SYS_fstat,
    libc::SYS_lseek,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_access,
    libc::SYS_dup,
    libc::SYS_dup2,
    libc::SYS_dup3,
    libc::SYS_sendfile,
    libc::SYS_copy_file_range,
    libc::SYS_fcntl,
    libc::SYS_ioctl,
    libc::SYS_truncate,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_chdir,
    libc::SYS_fchdir,
    libc::SYS_rename,
    libc::SYS_renameat2,
    libc::SYS_mkdir,
    libc::SYS_rmdir,
    libc::SYS_link,
    libc::SYS_linkat,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    libc::SYS_symlink,
    libc::SYS_readlink,
    libc::SYS_chmod,
    libc::SYS_fchmodat,
    libc::SYS_chown,
    libc::SYS_statx,
    libc::SYS_newfstatat,
    libc::SYS_statfs,
    libc::SYS_utimensat,
    libc::SYS_mknod,
    libc::SYS_getxattr,
    libc::SYS_close_range,
    libc::SYS_memfd_create,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_rm_watch,
];

/// Calls that wait, and what they wait for.
const EVENTS: &[i64] = &[
    libc::SYS_pipe,
    libc::SYS_pipe2,
    libc::SYS_eventfd2,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_select,
    libc::SYS_pselect6,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_fcntl,
    libc::SYS_nanosleep,
    libc::SYS_socketpair,
    libc::SYS_splice,
    libc::SYS_tee,
    libc::SYS_clone,
];

/// Calls on threads, signals and time.
const TASKS: &[i64] = &[
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_futex,
    libc::SYS_exit,
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_tgkill,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_rt_sigsuspend,
    libc::SYS_sigaltstack,
    libc::SYS_pause,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_alarm,
    libc::SYS_getitimer,
    libc::SYS_setitimer,
    libc::SYS_timer_create,
    libc::SYS_timer_settime,
    libc::SYS_timer_gettime,
    libc::SYS_timer_delete,
    libc::SYS_set_robust_list,
    libc::SYS_get_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_arch_prctl,
    libc::SYS_prctl,
    libc::SYS_sched_yield,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_getaffinity,
    libc::SYS_wait4,
    libc::SYS_rseq,
    libc::SYS_execve,
    libc::SYS_execveat,
];

/// Calls on sockets.
const SOCKETS: &[i64] = &[
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvmmsg,
    libc::SYS_shutdown,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_setsockopt,
    libc::SYS_getsockopt,
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_close,
    libc::SYS_fcntl,
    libc::SYS_ioctl,
    libc::SYS_poll,
    libc::SYS_clone,
    libc::SYS_unlink,
];

/// Memory: mappings, their rights, files behind them.
pub fn calls_memory(data: &[u8]) {
    Run::new(MEMORY, data).go();
}

/// Files, directories, descriptors, the runtime's device.
pub fn calls_files(data: &[u8]) {
    Run::new(FILES, data).go();
}

/// Pipes, counters, timers, and waiting for several of them.
pub fn calls_events(data: &[u8]) {
    Run::new(EVENTS, data).go();
}

/// Threads, futexes, signals and their frames, clocks.
pub fn calls_tasks(data: &[u8]) {
    Run::new(TASKS, data).go();
}

/// Sockets of every family and kind.
pub fn calls_sockets(data: &[u8]) {
    Run::new(SOCKETS, data).go();
}

/// Every number, those that are no call included.
pub fn calls_misc(data: &[u8]) {
    Run::new(&[], data).go();
}

struct Run<'a> {
    guest: Guest,
    family: &'static [i64],
    input: Bytes<'a>,
    /// What calls gave: descriptors, addresses, thread ids.
    results: [u64; RESULTS_MAX],
    result: usize,
    current: usize,
}

impl<'a> Run<'a> {
    fn new(family: &'static [i64], data: &'a [u8]) -> Self {
        let mut guest = Guest::new();
        for (place, name) in (0..).zip(NAMES) {
            guest.text(place, name);
        }
        // All that it maps counts as used, so that it ends where a real one would.
        guest.world.resident_bytes = u64::MAX;
        let mut input = Bytes::new(data);
        let races = input.u8();
        if races & 1 != 0 {
            // From every read to one in eight.
            let one_in = 1 << (races >> 1 & 3);
            guest.vm.race(Racer::new(u64::from(races) << 8 | 1, one_in));
        }
        Self {
            current: guest.main,
            guest,
            family,
            input,
            results: [0; RESULTS_MAX],
            result: 0,
        }
    }

    fn go(mut self) {
        for _ in 0..ACTIONS_MAX {
            if self.input.is_empty() || self.act() == Came::Ended {
                break;
            }
        }
        self.check();
    }

    /// What is left is a state that can be stored, read and cloned.
    fn check(mut self) {
        let slots = self.guest.kernel.thread_slots();
        assert!(self.guest.kernel.clone().thread_slots() == slots);
        for (_, _) in self.guest.kernel.call_counts() {}
        while self.guest.kernel.take_device_answer().is_some() {}
        let areas = self.guest.kernel.mapped_areas();
        assert!(
            areas
                .windows(2)
                .all(|pair| pair[0].range.end <= pair[1].range.start)
        );
        // The most expensive check, for some inputs only.
        if self.results.iter().fold(0, |sum, value| sum ^ value) % 8 == 0 {
            let stored = postcard::to_stdvec(&self.guest.kernel).expect("a state can be stored");
            assert!(stored.len() < STATE_BYTES_MAX, "{} bytes of state", stored.len());
            let read: Kernel = postcard::from_bytes(&stored).expect("a stored state can be read");
            assert!(read.thread_slots() == slots);
        }
    }

    fn act(&mut self) -> Came {
        match self.input.u8() {
            0..=199 => self.call(),
            200..=214 => self.put_bytes(),
            215..=234 => self.put_words(),
            235..=239 => self.another_thread(),
            240..=243 => {
                let exit = Exit::Exception {
                    vector: self.input.u8() % 32,
                    error_code: u64::from(self.input.u8()),
                    address: self.argument(),
                };
                self.leave(exit)
            }
            244..=247 => self.leave(Exit::Preempted),
            248..=250 => {
                let (meta, body) = (self.input.u8() % 64, self.input.u16() % 2048);
                let meta = self.input.take(usize::from(meta)).to_vec();
                self.guest.kernel.device_send(
                    gust_linux::DeviceMessageKind::Event,
                    false,
                    &meta,
                    &vec![b'e'; usize::from(body)],
                );
                Came::Back(0)
            }
            251..=255 => {
                self.guest.world.now_ns += u64::from(self.input.u16()) << 10;
                Came::Back(0)
            }
        }
    }

    fn call(&mut self) -> Came {
        let number = match self.family {
            [] => i64::from(self.input.u16() % 470),
            family => family[usize::from(self.input.u8()) % family.len()],
        };
        let mut arguments = [0; 6];
        for argument in &mut arguments {
            *argument = self.argument();
        }
        let threads = self.guest.kernel.thread_slots().len();
        if threads >= THREADS_MAX && (number == libc::SYS_clone || number == libc::SYS_clone3) {
            return Came::Back(0);
        }
        let came = self.guest.call_on(self.current, number, &arguments);
        match came {
            Came::Back(value) => {
                self.results[self.result % RESULTS_MAX] = value as u64;
                self.result += 1;
            }
            Came::Blocked => self.current = self.any_thread(),
            Came::Ended => {}
        }
        came
    }

    /// A thread leaves the guest for another reason than a call, if it can run.
    fn leave(&mut self, exit: Exit) -> Came {
        let current = self.current;
        match self.guest.turn_of(current) {
            Came::Back(_) => {}
            other => return other,
        }
        let guest = &mut self.guest;
        guest
            .kernel
            .on_exit(&mut guest.vm, &mut guest.world, current, exit);
        guest.turn_of(current)
    }

    fn any_thread(&mut self) -> usize {
        let slots = self.guest.kernel.thread_slots();
        match slots.len() {
            0 => self.current,
            count => slots[usize::from(self.input.u8()) % count],
        }
    }

    /// Goes on as another thread, which is made if need be.
    fn another_thread(&mut self) -> Came {
        if self.input.u8() < 128 && self.guest.kernel.thread_slots().len() < THREADS_MAX {
            let came = self.guest.call_for_thread(self.current);
            if came == Came::Ended {
                return came;
            }
        }
        self.current = self.any_thread();
        Came::Back(0)
    }

    fn put(&mut self, at: u64, bytes: &[u8]) -> Came {
        // Where the guest itself could not write, it does not.
        if self.guest.vm.space_mut().write(at, bytes).is_err() {
            let main = self.guest.main;
            if matches!(self.guest.turn_of(main), Came::Back(_)) {
                return self.guest.page_fault(at, true);
            }
        }
        Came::Back(0)
    }

    fn put_bytes(&mut self) -> Came {
        let at = SCRATCH + u64::from(self.input.u16());
        let length = usize::from(self.input.u8());
        let bytes = self.input.take(length).to_vec();
        self.put(at, &bytes)
    }

    /// Structures are mostly words, some of them pointers.
    fn put_words(&mut self) -> Came {
        let at = SCRATCH + u64::from(self.input.u8()) * 0x100;
        let shape = self.input.u8();
        let mut bytes = Vec::new();
        for _ in 0..=shape % 16 {
            let word = self.argument();
            match shape & 16 {
                0 => bytes.extend_from_slice(&word.to_le_bytes()),
                _ => bytes.extend_from_slice(&(word as u32).to_le_bytes()),
            }
        }
        self.put(at, &bytes)
    }

    fn argument(&mut self) -> u64 {
        let kind = self.input.u8();
        match kind {
            0..=63 => u64::from(kind),
            64..=111 => SCRATCH + u64::from(self.input.u8()) * 0x100,
            112..=127 => SCRATCH + u64::from(self.input.u16()),
            128..=143 => SCRATCH + SCRATCH_BYTES - (u64::from(kind - 128) + 1) * 0x1000,
            144..=175 => self.results[usize::from(kind) % RESULTS_MAX],
            176..=195 => EDGES[usize::from(kind - 176) % EDGES.len()],
            196..=203 => SCRATCH + u64::from(self.input.u8()) * 0x1000,
            204 => libc::AT_FDCWD as i64 as u64,
            205..=219 => 1 << (self.input.u8() & 63),
            220..=229 => u64::from(self.input.u16()),
            230..=239 => u64::from(self.input.u32()),
            240..=247 => self.input.u64(),
            248..=255 => (u64::from(kind - 247)).wrapping_neg(),
        }
    }
}
