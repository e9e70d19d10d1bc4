//! The program that `gust bench sandbox --part syscall` runs, in a guest and as a process of the host: it takes the time of
//! what a kernel does for it, in ticks of the processor's time-stamp counter.
//!
//! `probe KIND COUNT BATCH` writes COUNT little-endian words of eight bytes to its standard output, each the ticks of BATCH
//! operations in a row:
//!
//! | kind | operation |
//! |---|---|
//! | `null` | `getppid` |
//! | `yield` | `sched_yield`, where another thread does nothing else: two switches |
//! | `futex` | wakes another thread and waits until it is woken by it: four calls, two switches |
//! | `page` | the first write to a page of new anonymous memory |
//! | `clock` | `clock_gettime(CLOCK_MONOTONIC)` of the vDSO |
//!
//! It stands alone: no library, statically linked, so that the very same file runs everywhere. It stays on the first
//! processor where that can be asked for, because one thread is to give way to the other. Exit status 2: bad arguments; 3: the
//! two threads did not take turns; 4: there is no vDSO; 5: no memory or no thread.

#![no_std]
#![no_main]

mod bare;

use core::{
    arch::asm,
    ptr::{read_volatile, write_volatile},
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use bare::{call, exit, map, ticks};

const WRITE: usize = 1;
const SCHED_YIELD: usize = 24;
const MADVISE: usize = 28;
const CLONE: usize = 56;
const GETPPID: usize = 110;
const FUTEX: usize = 202;
const SCHED_SETAFFINITY: usize = 203;

const PAGE: usize = 4096;
const STACK_BYTES: usize = 64 << 10;
const COUNT_MAX: usize = 1 << 20;

/// `CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM`.
const THREAD_FLAGS: usize = 0x50f00;
const FUTEX_WAIT_PRIVATE: usize = 128;
const FUTEX_WAKE_PRIVATE: usize = 129;
const MADV_NOHUGEPAGE: usize = 15;
const AT_SYSINFO_EHDR: usize = 33;

/// Words that the two threads wake each other by, and turns of the second.
static MINE: AtomicU32 = AtomicU32::new(0);
static ITS: AtomicU32 = AtomicU32::new(0);
static TURNS: AtomicU64 = AtomicU64::new(0);

/// Starts a second thread, which never returns.
fn start_thread(entry: extern "C" fn() -> !) {
    let stack = map(STACK_BYTES) as usize + STACK_BYTES;
    let started: isize;
    // SAFETY: the thread has a stack of its own, and shares only atomics with this one.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "call r12",
            "ud2",
            "2:",
            inlateout("rax") CLONE as isize => started,
            in("rdi") THREAD_FLAGS, in("rsi") stack, in("rdx") 0, in("r10") 0, in("r8") 0,
            in("r12") entry as usize,
            lateout("rcx") _, lateout("r11") _,
        );
    }
    if started < 0 {
        exit(5);
    }
}

fn yields() {
    // SAFETY: it takes no argument.
    unsafe { call(SCHED_YIELD, [0; 6]) };
}

fn wait(word: &AtomicU32) {
    while word.swap(0, Ordering::AcqRel) == 0 {
        let at = word as *const AtomicU32 as usize;
        // SAFETY: the word lives as long as the program.
        unsafe { call(FUTEX, [at, FUTEX_WAIT_PRIVATE, 0, 0, 0, 0]) };
    }
}

fn wake(word: &AtomicU32) {
    word.store(1, Ordering::Release);
    let at = word as *const AtomicU32 as usize;
    // SAFETY: as above.
    unsafe { call(FUTEX, [at, FUTEX_WAKE_PRIVATE, 1, 0, 0, 0]) };
}

extern "C" fn yielding() -> ! {
    loop {
        TURNS.fetch_add(1, Ordering::Relaxed);
        yields();
    }
}

extern "C" fn answering() -> ! {
    loop {
        wait(&ITS);
        TURNS.fetch_add(1, Ordering::Relaxed);
        wake(&MINE);
    }
}

type ClockGettime = extern "C" fn(i32, *mut [i64; 2]) -> i32;

/// The vDSO's function, found as a dynamic linker would: through the auxiliary vector and the object's tables.
///
/// # Safety
/// `stack` must be the stack that the program was started with.
unsafe fn vdso_clock_gettime(stack: *const usize) -> ClockGettime {
    // SAFETY: the layout of the first stack and of ELF objects, as the kernel made both.
    unsafe {
        let mut at = stack.add(*stack + 2);
        while *at != 0 {
            at = at.add(1);
        }
        at = at.add(1);
        while *at != 0 && *at != AT_SYSINFO_EHDR {
            at = at.add(2);
        }
        if *at == 0 {
            exit(4);
        }
        let base = *at.add(1) as *const u8;
        let headers = base.add(*base.add(32).cast::<usize>());
        let count = *base.add(56).cast::<u16>() as usize;
        let (mut load, mut dynamic) = (0usize, core::ptr::null::<[usize; 2]>());
        for n in 0..count {
            let header = headers.add(n * 56);
            let address = *header.add(16).cast::<usize>();
            match *header.cast::<u32>() {
                1 => load = base as usize - (address - *header.add(8).cast::<usize>()),
                2 => dynamic = base.add(*header.add(8).cast::<usize>()).cast(),
                _ => {}
            }
        }
        if dynamic.is_null() {
            exit(4);
        }
        let (mut symbols, mut strings, mut hash) = (0usize, 0usize, 0usize);
        while (*dynamic)[0] != 0 {
            match (*dynamic)[0] {
                4 => hash = load + (*dynamic)[1],
                5 => strings = load + (*dynamic)[1],
                6 => symbols = load + (*dynamic)[1],
                _ => {}
            }
            dynamic = dynamic.add(1);
        }
        // Where there is no plain hash table, the strings follow the symbols.
        let count = match hash {
            0 => strings.saturating_sub(symbols) / 24,
            table => *(table as *const u32).add(1) as usize,
        };
        for n in 0..count {
            let symbol = (symbols + n * 24) as *const u8;
            let name = (strings + *symbol.cast::<u32>() as usize) as *const u8;
            if is_named(name, b"__vdso_clock_gettime\0") {
                let value = load + *symbol.add(8).cast::<usize>();
                return core::mem::transmute::<usize, ClockGettime>(value);
            }
        }
    }
    exit(4)
}

/// # Safety
/// `name` must be a terminated string.
unsafe fn is_named(name: *const u8, wanted: &[u8]) -> bool {
    for (n, byte) in wanted.iter().enumerate() {
        // SAFETY: no byte is read past the first that differs, and the terminator is among those wanted.
        if unsafe { read_volatile(name.add(n)) } != *byte {
            return false;
        }
    }
    true
}

/// What is measured.
enum Kind {
    Null,
    Yield,
    Futex,
    Page,
    Clock,
}

/// # Safety
/// `name` must be a terminated string.
unsafe fn kind(name: *const u8) -> Kind {
    // SAFETY: as the caller says.
    let is = |wanted: &[u8]| unsafe { is_named(name, wanted) };
    if is(b"null\0") {
        Kind::Null
    } else if is(b"yield\0") {
        Kind::Yield
    } else if is(b"futex\0") {
        Kind::Futex
    } else if is(b"page\0") {
        Kind::Page
    } else if is(b"clock\0") {
        Kind::Clock
    } else {
        exit(2)
    }
}

/// # Safety
/// `text` must be a terminated string.
unsafe fn number(text: *const u8) -> usize {
    let (mut value, mut at) = (0usize, text);
    // SAFETY: ends at the terminator.
    unsafe {
        while (*at).is_ascii_digit() {
            value = value.wrapping_mul(10).wrapping_add((*at - b'0') as usize);
            at = at.add(1);
        }
        if *at != 0 || value == 0 || value > COUNT_MAX {
            exit(2);
        }
    }
    value
}

/// Takes the time of each batch.
fn measure(out: *mut u64, count: usize, batch: usize, mut operation: impl FnMut()) {
    for n in 0..count {
        let began = ticks();
        for _ in 0..batch {
            operation();
        }
        let took = ticks() - began;
        // SAFETY: there is room for all.
        unsafe { write_volatile(out.add(n), took) };
    }
}

extern "C" fn main(stack: *const usize) -> ! {
    // SAFETY: this is the stack that the program was started with, and its strings are terminated.
    let (kind, count, batch) = unsafe {
        if *stack != 4 {
            exit(2);
        }
        let argument = |n: usize| *stack.add(1 + n) as *const u8;
        (kind(argument(1)), number(argument(2)), number(argument(3)))
    };
    let first = 1u64;
    // SAFETY: the mask lives through the call. Where it is refused, the program goes on.
    unsafe { call(SCHED_SETAFFINITY, [0, 8, &raw const first as usize, 0, 0, 0]) };
    let bytes = count * 8;
    let out = map(bytes).cast::<u64>();
    for n in 0..count {
        // SAFETY: within what was mapped; brings the page in ahead.
        unsafe { write_volatile(out.add(n), 0) };
    }
    match kind {
        Kind::Null => measure(out, count, batch, || {
            // SAFETY: it takes no argument.
            unsafe { call(GETPPID, [0; 6]) };
        }),
        Kind::Yield => {
            start_thread(yielding);
            yields();
            measure(out, count, batch, yields);
            check_turns(count * batch);
        }
        Kind::Futex => {
            start_thread(answering);
            measure(out, count, batch, || {
                wake(&ITS);
                wait(&MINE);
            });
            check_turns(count * batch);
        }
        Kind::Page => {
            let region = map(count * batch * PAGE);
            // SAFETY: advice on memory of its own.
            unsafe {
                call(
                    MADVISE,
                    [region as usize, count * batch * PAGE, MADV_NOHUGEPAGE, 0, 0, 0],
                );
            }
            let mut page = 0;
            measure(out, count, batch, || {
                // SAFETY: as many pages as operations were mapped.
                unsafe { write_volatile(region.add(page * PAGE), 1) };
                page += 1;
            });
        }
        Kind::Clock => {
            // SAFETY: this is the first stack.
            let clock = unsafe { vdso_clock_gettime(stack) };
            let mut now = [0i64; 2];
            measure(out, count, batch, || {
                clock(1, &mut now);
            });
        }
    }
    write_out(out.cast(), bytes)
}

/// Writes all samples, and ends the program.
fn write_out(from: *const u8, bytes: usize) -> ! {
    let mut written = 0;
    while written < bytes {
        // SAFETY: within what was mapped.
        let wrote = unsafe { call(WRITE, [1, from as usize + written, bytes - written, 0, 0, 0]) };
        if wrote <= 0 {
            exit(1);
        }
        written += wrote as usize;
    }
    exit(0)
}

/// Figures of switches are only that when the other thread had its turns, which on a busy machine
/// are not quite as many as this one's.
fn check_turns(operations: usize) {
    if TURNS.load(Ordering::Relaxed) < operations as u64 / 2 {
        exit(3);
    }
}
