//! What a program without any library needs: a start, system calls, memory, and the processor's time-stamp counter.
//!
//! Exit status 5: no memory; 101: a panic.

use core::{
    arch::{
        asm, global_asm,
        x86_64::{_mm_lfence, _rdtsc},
    },
    panic::PanicInfo,
};

use super::main;

const MMAP: usize = 9;
const EXIT_GROUP: usize = 231;

// The start leaves the stack pointer as it was, beneath which the kernel has put the arguments, to `main`.
global_asm!(
    ".global _start",
    "_start:",
    "xor ebp, ebp",
    "mov rdi, rsp",
    "and rsp, -16",
    "call {main}",
    "ud2",
    main = sym main,
);

#[panic_handler]
fn panicked(_: &PanicInfo) -> ! {
    exit(101)
}

/// Ends the program.
pub fn exit(status: usize) -> ! {
    loop {
        // SAFETY: ends the program.
        unsafe { call(EXIT_GROUP, [status, 0, 0, 0, 0, 0]) };
    }
}

/// A system call.
///
/// # Safety
/// The call must be sound with these arguments.
pub unsafe fn call(number: usize, a: [usize; 6]) -> isize {
    let result;
    // SAFETY: as the caller says; the instruction changes rcx and r11 besides the result.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") a[0], in("rsi") a[1], in("rdx") a[2], in("r10") a[3], in("r8") a[4], in("r9") a[5],
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    result
}

/// New memory, private and zero.
pub fn map(bytes: usize) -> *mut u8 {
    const READ_WRITE: usize = 3;
    const PRIVATE_ANONYMOUS: usize = 0x22;
    // SAFETY: new memory at an address of the kernel's choice.
    let at = unsafe { call(MMAP, [0, bytes, READ_WRITE, PRIVATE_ANONYMOUS, usize::MAX, 0]) };
    if at < 0 {
        exit(5);
    }
    at as *mut u8
}

/// Ticks now, with everything before done and nothing after begun.
pub fn ticks() -> u64 {
    // SAFETY: every x86-64 processor has the instructions.
    unsafe {
        _mm_lfence();
        let now = _rdtsc();
        _mm_lfence();
        now
    }
}
