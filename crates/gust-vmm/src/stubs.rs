//! The few instructions that run in the guest on the hypervisor's behalf.
//!
//! `unsafe`: the code is assembled into this binary's read-only data between pairs of symbols, and read from there as
//! bytes. Nothing of it ever runs in this process.

use std::slice;

use crate::vcpu::XCR0;

/// `out imm8, eax` on this port is a system call. The guest may execute it too: it then makes a system call.
pub(crate) const PORT_SYSCALL: u16 = 0x10;
/// Written by the ring-0 stub when it has done its list. The I/O bitmap keeps it from ring 3.
pub(crate) const PORT_RING0_DONE: u16 = 0x18;
/// Port of exception vector 0; the vectors follow. The I/O bitmap keeps them from ring 3.
pub(crate) const PORT_EXCEPTIONS: u16 = 0x20;
/// Exception vectors.
pub(crate) const EXCEPTIONS: u16 = 32;

/// Bytes between two exception handlers.
pub(crate) const HANDLER_BYTES: u64 = 16;
/// Offset of the page-table stub in the ring-0 code page, past the handlers.
pub(crate) const TABLE_STUB_OFFSET: u64 = 0x400;
/// Single entries that the stub takes at a time; a list is filled up with its last.
pub(crate) const TABLE_STUB_GROUP: usize = 8;
/// Offset of the touch stub in a vCPU's stub page.
pub(crate) const TOUCH_STUB_OFFSET: u64 = 0x100;
/// Bytes of the XSAVE stub: a thread that is interrupted inside it is not switched.
pub(crate) const XSAVE_STUB_BYTES_MAX: u64 = 0x100;

/// Fields of the XSAVE stub's data page, by offset: the areas to save to and load from, then the registers that the
/// stub used and the address to go on at.
pub(crate) const STUB_RAX: u64 = 0;
pub(crate) const STUB_RDX: u64 = 8;
pub(crate) const STUB_RSI: u64 = 16;
pub(crate) const STUB_RDI: u64 = 24;
pub(crate) const STUB_RIP: u64 = 32;

std::arch::global_asm!(
    ".pushsection .rodata.gust_stubs, \"a\"",
    // Ring 3: save the extended state of the thread that leaves to [rdi], load that of the one that comes from [rsi],
    // put back the four registers that this took, and go on. No instruction changes the flags, and all the data lie
    // one page above the code, whatever address the page has. The components are named: a host may leave more of them
    // enabled than the vCPU was told (AMX alone is two pages), and an area has one page.
    ".global gust_stub_xsave_start",
    "gust_stub_xsave_start:",
    "mov eax, {components}",
    "mov edx, 0",
    "xsave64 [rdi]",
    "xrstor64 [rsi]",
    "mov rax, [rip + gust_stub_xsave_start + 0x1000 + 0]",
    "mov rdx, [rip + gust_stub_xsave_start + 0x1000 + 8]",
    "mov rsi, [rip + gust_stub_xsave_start + 0x1000 + 16]",
    "mov rdi, [rip + gust_stub_xsave_start + 0x1000 + 24]",
    "jmp [rip + gust_stub_xsave_start + 0x1000 + 32]",
    ".global gust_stub_xsave_end",
    "gust_stub_xsave_end:",
    // Ring 3: touch every address of the zero-terminated list at [rsi], for writing when bit 0 is set, so that the
    // host maps the pages before an event comes.
    ".global gust_stub_touch_start",
    "gust_stub_touch_start:",
    "2: lodsq",
    "test rax, rax",
    "jz 4f",
    "test al, 1",
    "jnz 3f",
    "mov cl, [rax]",
    "jmp 2b",
    "3: lock or byte ptr [rax - 1], 0",
    "jmp 2b",
    "4: out 0x10, eax",
    ".global gust_stub_touch_end",
    "gust_stub_touch_end:",
    // Ring 0: write page-table entries onto themselves, as the list at [rsi] says: addresses of single entries by
    // eight, a zero, (address, count) of runs, a zero. Where ring 0 is emulated an instruction costs most of a
    // microsecond, so single entries take two and a half each. The write is what makes a hypervisor with shadow paging drop its copies; the reload of CR3 is what
    // makes a processor with nested paging drop its own.
    ".global gust_stub_tables_start",
    "gust_stub_tables_start:",
    "5: lodsq",
    "test rax, rax",
    "jz 2f",
    "or qword ptr [rax], 0",
    ".rept {group} - 1",
    "lodsq",
    "or qword ptr [rax], 0",
    ".endr",
    "jmp 5b",
    "2: lodsq",
    "test rax, rax",
    "jz 3f",
    "mov rdi, rax",
    "lodsq",
    "mov rcx, rax",
    "mov rdx, rsi",
    "mov rsi, rdi",
    "rep movsq",
    "mov rsi, rdx",
    "jmp 2b",
    "3: mov rax, cr3",
    "mov cr3, rax",
    "out 0x18, eax",
    ".global gust_stub_tables_end",
    "gust_stub_tables_end:",
    ".popsection",
    components = const XCR0,
    group = const TABLE_STUB_GROUP,
);

unsafe extern "C" {
    static gust_stub_xsave_start: u8;
    static gust_stub_xsave_end: u8;
    static gust_stub_touch_start: u8;
    static gust_stub_touch_end: u8;
    static gust_stub_tables_start: u8;
    static gust_stub_tables_end: u8;
}

fn between(start: *const u8, end: *const u8) -> &'static [u8] {
    let bytes = end as usize - start as usize;
    // SAFETY: both symbols delimit one piece of this binary's read-only data, as assembled above.
    unsafe { slice::from_raw_parts(start, bytes) }
}

/// Switches extended state; see [`STUB_RAX`] for its data.
pub(crate) fn xsave() -> &'static [u8] {
    between(&raw const gust_stub_xsave_start, &raw const gust_stub_xsave_end)
}

/// Touches a list of addresses.
pub(crate) fn touch() -> &'static [u8] {
    between(&raw const gust_stub_touch_start, &raw const gust_stub_touch_end)
}

/// Rewrites runs of page-table entries.
pub(crate) fn tables() -> &'static [u8] {
    between(&raw const gust_stub_tables_start, &raw const gust_stub_tables_end)
}

/// `out port, eax`: all that an exception handler or the system-call landing page is.
pub(crate) fn out(port: u16) -> [u8; 2] {
    [0xe7, port as u8]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stubs_fit_where_they_are_put() {
        assert!(xsave().len() as u64 <= XSAVE_STUB_BYTES_MAX);
        const { assert!(TOUCH_STUB_OFFSET >= XSAVE_STUB_BYTES_MAX) };
        const { assert!(TABLE_STUB_OFFSET >= EXCEPTIONS as u64 * HANDLER_BYTES) };
        assert!(TABLE_STUB_OFFSET as usize + tables().len() <= 4096);
        assert!(TOUCH_STUB_OFFSET as usize + touch().len() <= 4096);
        assert_eq!(tables().last_chunk::<2>(), Some(&out(PORT_RING0_DONE)));
        assert_eq!(touch().last_chunk::<2>(), Some(&out(PORT_SYSCALL)));
    }
}
