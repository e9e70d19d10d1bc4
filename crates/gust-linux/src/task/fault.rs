//! Processor exceptions: page faults that make pages present, and the signals that the others become.

use crate::{
    kernel::{Cx, Ended, Kernel},
    mm::{Access, Unresolved},
    task::signals::{Detail, SigInfo},
};

const PAGE_FAULT: u8 = 14;
/// Bits of a page fault's error code.
const FAULT_WRITE: u64 = 1 << 1;
const FAULT_FETCH: u64 = 1 << 4;

const SEGV_MAPERR: i32 = 1;
const SEGV_ACCERR: i32 = 2;
const BUS_ADRERR: i32 = 2;
const FPE_INTDIV: i32 = 1;
const FPE_FLTINV: i32 = 7;
const TRAP_BRKPT: i32 = 1;
const TRAP_TRACE: i32 = 2;
const ILL_ILLOPN: i32 = 2;
const BUS_ADRALN: i32 = 1;
const SI_KERNEL: i32 = 0x80;

impl Kernel {
    /// An exception in the guest: a page becomes present, or the thread gets a signal.
    pub(crate) fn on_exception(&mut self, cx: &mut Cx<'_>, vector: u8, error_code: u64, address: u64) {
        if vector == PAGE_FAULT {
            let access = if error_code & FAULT_FETCH != 0 {
                Access::Execute
            } else if error_code & FAULT_WRITE != 0 {
                Access::Write
            } else {
                Access::Read
            };
            let (signal, code) = match self.resolve_fault(cx, address, access) {
                Ok(()) => return,
                Err(Unresolved::NoMapping) => (libc::SIGSEGV, SEGV_MAPERR),
                Err(Unresolved::NoRight) => (libc::SIGSEGV, SEGV_ACCERR),
                Err(Unresolved::PastEnd) => (libc::SIGBUS, BUS_ADRERR),
                Err(Unresolved::NoMemory) => {
                    self.end(Ended::OutOfMemory);
                    return;
                }
            };
            self.raise_fault(cx.slot, signal, code, address, vector, error_code);
            return;
        }
        let rip = self.thread(cx.slot).registers.rip;
        let (signal, code, address) = match vector {
            0 => (libc::SIGFPE, FPE_INTDIV, rip),
            1 => (libc::SIGTRAP, TRAP_TRACE, rip),
            3 => (libc::SIGTRAP, TRAP_BRKPT, 0),
            6 => (libc::SIGILL, ILL_ILLOPN, rip),
            16 | 19 => (libc::SIGFPE, FPE_FLTINV, rip),
            17 => (libc::SIGBUS, BUS_ADRALN, 0),
            _ => (libc::SIGSEGV, SI_KERNEL, 0),
        };
        self.raise_fault(cx.slot, signal, code, address, vector, error_code);
    }

    fn raise_fault(
        &mut self,
        slot: usize,
        signal: i32,
        code: i32,
        address: u64,
        vector: u8,
        error_code: u64,
    ) {
        let detail = Detail::Fault {
            address,
            vector,
            error_code,
        };
        tracing::debug!(
            signal,
            code,
            address = format_args!("{address:#x}"),
            rip = format_args!("{:#x}", self.thread(slot).registers.rip),
            "fault"
        );
        self.force_signal(
            slot,
            SigInfo {
                signal: signal as u32,
                code,
                errno: 0,
                detail,
            },
        );
    }
}
