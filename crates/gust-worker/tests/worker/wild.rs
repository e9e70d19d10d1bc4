//! What a hostile program does inside of a micro-VM. It runs in the guest; [`crate::hostile`] asks for it.

use std::{
    arch::asm,
    sync::{
        LazyLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

/// Calls of each number.
const CALLS_EACH: u64 = 24;
/// How long the calls of one number are waited for: some wait for ever.
const WAIT: Duration = Duration::from_millis(60);

/// Memory that wild pointers lead to, so that some calls get further than their first check. Nothing can be written
/// behind it: a call with a wild length that is told to fill it would overwrite this program's own state.
static SCRATCH: LazyLock<&'static [AtomicU64; 512]> = LazyLock::new(|| {
    const BYTES: usize = 4096;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping, of zeros, that is never given back; the array fills its first page.
    unsafe {
        let at = libc::mmap(std::ptr::null_mut(), 2 * BYTES, libc::PROT_NONE, flags, -1, 0);
        assert_ne!(at, libc::MAP_FAILED, "map scratch memory");
        let open = libc::mprotect(at, BYTES, libc::PROT_READ | libc::PROT_WRITE);
        assert_eq!(open, 0, "open scratch memory");
        &*at.cast()
    }
});

/// A stream of choices that follows from its seed.
struct Choices(u64);

impl Choices {
    fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }

    fn argument(&mut self) -> u64 {
        let scratch = SCRATCH.as_ptr() as u64;
        match self.next(16) {
            0..=4 => self.next(8),
            5..=7 => scratch + self.next(256) * 8,
            8 => u64::MAX - self.next(3),
            9 => 1 << 63,
            10 => i64::MAX as u64,
            11 => 0x7f80_0000_8000 + self.next(4096) * 4096,
            12 => 0x8000_0000_0000,
            13 => u64::from(u32::MAX) + self.next(2),
            14 => 1 << self.next(48),
            _ => 0x6666_0000_0000,
        }
    }
}

fn call(number: u64, [a, b, c, d, e, f]: [u64; 6]) -> i64 {
    let result: i64;
    // SAFETY: none can be given; whatever becomes of this program is what the test is about.
    unsafe {
        asm!("syscall", inlateout("rax") number as i64 => result, in("rdi") a, in("rsi") b, in("rdx") c,
             in("r10") d, in("r8") e, in("r9") f, lateout("rcx") _, lateout("r11") _);
    }
    result
}

/// Does what the words of an event say.
pub fn run(words: &str) -> String {
    let numbers: Vec<u64> = words.split(' ').filter_map(|word| word.parse().ok()).collect();
    match (words.split(' ').next(), numbers.as_slice()) {
        (Some("calls"), [first, count, seed]) => calls(*first..first + count, *seed),
        (Some("race"), [seed]) => race(*seed),
        (Some("waits"), _) => waits(),
        (Some("code"), [which]) => code(*which),
        _ => format!("what is {words}?"),
    }
}

/// Makes calls of each number with arguments of every kind, each number's on a thread that may never come back.
fn calls(numbers: std::ops::Range<u64>, seed: u64) -> String {
    let mut made = 0;
    for number in numbers {
        // Those that end this thread or all of them, and have nothing else to show.
        if matches!(
            number as i64,
            libc::SYS_exit | libc::SYS_exit_group | libc::SYS_rt_sigreturn
        ) {
            continue;
        }
        let (done, finished) = mpsc::channel();
        let spawned = thread::Builder::new().stack_size(64 << 10).spawn(move || {
            let mut choices = Choices(seed ^ (number + 1) << 20 | 1);
            for _ in 0..CALLS_EACH {
                for word in &SCRATCH[..16] {
                    word.store(choices.argument(), Ordering::Relaxed);
                }
                call(number, std::array::from_fn(|_| choices.argument()));
            }
            done.send(())
        });
        // One that waits for ever is left behind.
        if spawned.is_ok() && finished.recv_timeout(WAIT).is_ok() {
            made += CALLS_EACH;
        }
    }
    made.to_string()
}

/// Calls whose structures another thread changes all the time.
fn race(seed: u64) -> String {
    static OVER: AtomicBool = AtomicBool::new(false);
    const ROUNDS: u64 = 3000;
    let other = thread::spawn(move || {
        let mut choices = Choices(seed | 1);
        while !OVER.load(Ordering::Relaxed) {
            let at = choices.next(64) as usize;
            SCRATCH[at].store(choices.argument(), Ordering::Relaxed);
            // With one processor, the other has its turn in the middle only if it is given one.
            if choices.next(4) == 0 {
                thread::yield_now();
            }
        }
    });
    let scratch = SCRATCH.as_ptr() as u64;
    let mut choices = Choices(seed.wrapping_add(99) | 1);
    let pair = SCRATCH[100..].as_ptr() as u64;
    call(
        libc::SYS_socketpair as u64,
        [1, 1 | libc::SOCK_NONBLOCK as u64, 0, pair, 0, 0],
    );
    let (one, two) = (
        SCRATCH[100].load(Ordering::Relaxed) & 0xffff_ffff,
        SCRATCH[100].load(Ordering::Relaxed) >> 32,
    );
    let mut came_back = 0;
    for _ in 0..ROUNDS {
        let at = scratch + choices.next(32) * 8;
        let nowait = libc::MSG_DONTWAIT as u64;
        let (number, arguments) = match choices.next(8) {
            0 => (libc::SYS_writev, [one, at, choices.next(16), 0, 0, 0]),
            1 => (libc::SYS_readv, [two, at, choices.next(16), 0, 0, 0]),
            2 => (libc::SYS_sendmsg, [one, at, nowait, 0, 0, 0]),
            3 => (libc::SYS_recvmsg, [two, at, nowait, 0, 0, 0]),
            4 => (libc::SYS_poll, [at, choices.next(16), 0, 0, 0, 0]),
            5 => (libc::SYS_newfstatat, [u64::MAX - 99, at, at, 0, 0, 0]),
            6 => (libc::SYS_rt_sigprocmask, [choices.next(3), at, 0, 8, 0, 0]),
            _ => (libc::SYS_connect, [one, at, choices.next(120), 0, 0, 0]),
        };
        // SIGSTOP cannot be blocked; other signals that are do not matter here.
        call(number as u64, arguments);
        came_back += 1;
    }
    OVER.store(true, Ordering::Relaxed);
    let _ = other.join();
    came_back.to_string()
}

/// Every call that takes a time-out, with none and with the longest.
fn waits() -> String {
    static ZERO: [i64; 4] = [0; 4];
    static LONGEST: [i64; 4] = [i64::MAX, 999_999_999, i64::MAX, 999_999_999];
    static WORD: AtomicU64 = AtomicU64::new(7);
    let mut back = 0;
    for (times, comes_back) in [(&ZERO, true), (&LONGEST, false)] {
        let at = times.as_ptr() as u64;
        let word = WORD.as_ptr() as u64;
        let milliseconds = if comes_back { 0 } else { i32::MAX as u64 };
        let epoll = call(libc::SYS_epoll_create1 as u64, [0; 6]) as u64;
        let set = &raw const ZERO as u64;
        let all: [(libc::c_long, [u64; 6]); 10] = [
            (libc::SYS_nanosleep, [at, 0, 0, 0, 0, 0]),
            (libc::SYS_clock_nanosleep, [1, 0, at, 0, 0, 0]),
            (libc::SYS_futex, [word, libc::FUTEX_WAIT as u64, 7, at, 0, 0]),
            (libc::SYS_poll, [0, 0, milliseconds, 0, 0, 0]),
            (libc::SYS_ppoll, [0, 0, at, 0, 8, 0]),
            (libc::SYS_select, [0, 0, 0, 0, if comes_back { at } else { 0 }, 0]),
            (libc::SYS_pselect6, [0, 0, 0, 0, at, 0]),
            (libc::SYS_epoll_wait, [epoll, word, 1, milliseconds, 0, 0]),
            (libc::SYS_epoll_pwait2, [epoll, word, 1, at, 0, 8]),
            (libc::SYS_rt_sigtimedwait, [set, 0, at, 8, 0, 0]),
        ];
        for (number, arguments) in all {
            let (done, finished) = mpsc::channel();
            thread::spawn(move || {
                call(number as u64, arguments);
                done.send(())
            });
            let limit = if comes_back { Duration::from_secs(10) } else { WAIT };
            match finished.recv_timeout(limit).is_ok() == comes_back {
                true => back += 1,
                false => return format!("call {number} with {times:?}"),
            }
        }
    }
    back.to_string()
}

/// Pieces of code that no honest program has.
pub const CODES: u64 = 12;

fn code(which: u64) -> String {
    // SAFETY: as for `call`.
    unsafe {
        match which {
            0 => asm!("hlt"),
            1 => asm!("mov cr3, {}", in(reg) 0u64),
            2 => asm!("lidt [{}]", in(reg) SCRATCH.as_ptr()),
            3 => asm!("wrmsr", in("ecx") 0xc000_0082u32, in("eax") 0u32, in("edx") 0u32),
            // The port of a page fault.
            4 => asm!("out 0x2e, eax", in("eax") 0u32),
            // The port at which ring 0 says that it is done.
            5 => asm!("out 0x18, eax", in("eax") 0u32),
            // A forged call that is to come back among the tables, with every flag.
            6 => asm!("out 0x10, eax", in("eax") libc::SYS_getpid as u32, in("rcx") 0x7f80_0040_0000u64,
                      in("r11") u64::MAX),
            7 => asm!("out 0x10, eax", in("eax") libc::SYS_getpid as u32, in("rcx") 0x8000_0000_0000u64,
                      in("r11") 0x202u64),
            // A signal's frame that was never one: the stack holds noise.
            8 => asm!("mov rsp, {}", "mov eax, 15", "syscall", in(reg) noise(), options(noreturn)),
            9 => asm!("lgdt [{}]", in(reg) SCRATCH.as_ptr()),
            10 => asm!("mov [{}], {}", in(reg) 0x7f80_0040_0000u64, in(reg) 7u64),
            _ => asm!("jmp {}", in(reg) 0x7f80_0000_9400u64),
        }
    }
    "it came back".to_owned()
}

/// The middle of a page of words that make no frame: every register and selector is odd.
fn noise() -> u64 {
    for (n, word) in SCRATCH.iter().enumerate() {
        word.store(0x8000_1234_5678_0000 | n as u64, Ordering::Relaxed);
    }
    SCRATCH[128..].as_ptr() as u64
}
