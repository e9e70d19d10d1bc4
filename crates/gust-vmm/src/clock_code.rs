//! Code with which a guest reads its clocks without leaving: the text of a vDSO.
//!
//! The code finds its data one page below the page that it is put in, so both can be mapped anywhere. What the
//! functions mean to a program, and the file that wraps them, is the personality's affair.
//!
//! `unsafe`: the code is read as bytes from this binary, as in [`crate::stubs`].

use std::slice;

/// Offset in its page at which the code must be put.
pub const CLOCK_CODE_OFFSET: u64 = 0x800;

/// Data of the clock page, by offset: a sequence number (odd while the page is being written), the counter at which
/// the two clocks had the values that follow, and nanoseconds a tick, times 2^32.
pub const CLOCK_SEQUENCE: u64 = 0;
/// See [`CLOCK_SEQUENCE`].
pub const CLOCK_TSC: u64 = 8;
/// See [`CLOCK_SEQUENCE`].
pub const CLOCK_MULTIPLIER: u64 = 16;
/// See [`CLOCK_SEQUENCE`].
pub const CLOCK_MONOTONIC: u64 = 24;
/// See [`CLOCK_SEQUENCE`].
pub const CLOCK_REALTIME: u64 = 32;

std::arch::global_asm!(
    ".pushsection .rodata.gust_clock, \"a\"",
    ".global gust_clock_start",
    "gust_clock_start:",
    // rax = nanoseconds of the clock that r8d chooses: not zero is real time. Clobbers rcx, rdx, r9.
    "2: mov r9, [rip + gust_clock_start - 0x1800 + 0]",
    "test r9d, 1",
    "jnz 5f",
    "lfence",
    "rdtsc",
    "shl rdx, 32",
    "or rax, rdx",
    "sub rax, [rip + gust_clock_start - 0x1800 + 8]",
    "jnc 3f",
    "xor eax, eax",
    "3: mul qword ptr [rip + gust_clock_start - 0x1800 + 16]",
    "shrd rax, rdx, 32",
    "mov rcx, [rip + gust_clock_start - 0x1800 + 24]",
    "test r8d, r8d",
    "jz 4f",
    "mov rcx, [rip + gust_clock_start - 0x1800 + 32]",
    "4: add rax, rcx",
    "cmp r9, [rip + gust_clock_start - 0x1800 + 0]",
    "jne 2b",
    "ret",
    "5: pause",
    "jmp 2b",
    // int clock_gettime(clockid_t edi, struct timespec *rsi)
    ".global gust_clock_gettime",
    "gust_clock_gettime:",
    "cmp edi, 7",
    "ja 2f",
    "mov ecx, edi",
    "mov r8d, 1",
    "shl r8d, cl",
    "test r8d, 0xf3",
    "jz 2f",
    "and r8d, 0x21",
    "call gust_clock_start",
    "xor edx, edx",
    "mov ecx, 1000000000",
    "div rcx",
    "mov [rsi], rax",
    "mov [rsi + 8], rdx",
    "xor eax, eax",
    "ret",
    "2: mov eax, 228",
    "syscall",
    "ret",
    // int gettimeofday(struct timeval *rdi, struct timezone *rsi)
    ".global gust_gettimeofday",
    "gust_gettimeofday:",
    "test rdi, rdi",
    "jz 2f",
    "mov r8d, 1",
    "call gust_clock_start",
    "xor edx, edx",
    "mov ecx, 1000000000",
    "div rcx",
    "mov [rdi], rax",
    "mov rax, rdx",
    "xor edx, edx",
    "mov ecx, 1000",
    "div rcx",
    "mov [rdi + 8], rax",
    "2: test rsi, rsi",
    "jz 3f",
    "mov qword ptr [rsi], 0",
    "3: xor eax, eax",
    "ret",
    // time_t time(time_t *rdi)
    ".global gust_time",
    "gust_time:",
    "mov r8d, 1",
    "call gust_clock_start",
    "xor edx, edx",
    "mov ecx, 1000000000",
    "div rcx",
    "test rdi, rdi",
    "jz 2f",
    "mov [rdi], rax",
    "2: ret",
    // int clock_getres(clockid_t edi, struct timespec *rsi)
    ".global gust_clock_getres",
    "gust_clock_getres:",
    "cmp edi, 1",
    "ja 3f",
    "test rsi, rsi",
    "jz 2f",
    "mov qword ptr [rsi], 0",
    "mov qword ptr [rsi + 8], 1",
    "2: xor eax, eax",
    "ret",
    "3: mov eax, 229",
    "syscall",
    "ret",
    // int getcpu(unsigned *rdi, unsigned *rsi, void *rdx): one processor runs a guest's threads in turn.
    ".global gust_getcpu",
    "gust_getcpu:",
    "test rdi, rdi",
    "jz 2f",
    "mov dword ptr [rdi], 0",
    "2: test rsi, rsi",
    "jz 3f",
    "mov dword ptr [rsi], 0",
    "3: xor eax, eax",
    "ret",
    ".global gust_clock_end",
    "gust_clock_end:",
    ".popsection",
);

unsafe extern "C" {
    static gust_clock_start: u8;
    static gust_clock_gettime: u8;
    static gust_gettimeofday: u8;
    static gust_time: u8;
    static gust_clock_getres: u8;
    static gust_getcpu: u8;
    static gust_clock_end: u8;
}

/// The code, and where its functions begin in it.
#[derive(Debug, Clone, Copy)]
pub struct ClockCode {
    /// To be put at [`CLOCK_CODE_OFFSET`] of a page.
    pub bytes: &'static [u8],
    /// `int clock_gettime(clockid_t, struct timespec *)`
    pub clock_gettime: u64,
    /// `int gettimeofday(struct timeval *, struct timezone *)`
    pub gettimeofday: u64,
    /// `time_t time(time_t *)`
    pub time: u64,
    /// `int clock_getres(clockid_t, struct timespec *)`
    pub clock_getres: u64,
    /// `int getcpu(unsigned *, unsigned *, void *)`
    pub getcpu: u64,
}

/// The code that reads the clock page.
pub fn clock_code() -> ClockCode {
    let start = &raw const gust_clock_start as u64;
    let end = &raw const gust_clock_end as u64;
    // SAFETY: both symbols delimit one piece of this binary's read-only data, as assembled above.
    let bytes = unsafe { slice::from_raw_parts(&raw const gust_clock_start, (end - start) as usize) };
    ClockCode {
        bytes,
        clock_gettime: &raw const gust_clock_gettime as u64 - start,
        gettimeofday: &raw const gust_gettimeofday as u64 - start,
        time: &raw const gust_time as u64 - start,
        clock_getres: &raw const gust_clock_getres as u64 - start,
        getcpu: &raw const gust_getcpu as u64 - start,
    }
}
