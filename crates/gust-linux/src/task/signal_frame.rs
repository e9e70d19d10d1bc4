//! The frame that a signal handler runs on, and the way back from it.
//!
//! Layout as Linux builds it for x86-64: the extended state (XSAVE, 64-byte aligned) on top, then `siginfo`,
//! `ucontext` and the return address, which is the restorer's.

use gust_vmm::{Registers, XSAVE_BYTES};

use crate::{
    abi::{Writer, signal_bit, u32_at, u64_at},
    errno::{EFAULT, Errno},
    kernel::{Cx, Ended, Flow, Kernel, SysResult},
    task::{
        signals::{Action, Detail, SIG_DFL, SigInfo, UNBLOCKABLE},
        thread::AltStack,
    },
};

/// Bytes below the stack pointer that leaf functions use.
const RED_ZONE: u64 = 128;
/// `struct ucontext`: flags, link, stack, 23 registers, pointer to the extended state, reserved words, mask.
const UCONTEXT_BYTES: u64 = 304;
const SIGINFO_BYTES: u64 = 128;
const USER_CODE: u64 = 0x33;
const USER_DATA: u64 = 0x2b;

/// Marks an extended state in a frame as more than the legacy area.
const FP_XSTATE_MAGIC1: u32 = 0x4650_5853;
/// Follows the extended state in a frame.
const FP_XSTATE_MAGIC2: u32 = 0x4650_5845;
/// Where the legacy area has room for software: size, features, size of the state.
const SOFTWARE_AT: usize = 464;
/// The state components of a frame: x87, SSE, AVX, AVX-512.
const FEATURES: u64 = 0xe7;
/// Bytes of these components in the standard format, on processors that have them all and on ones that do not: offsets
/// are the processor's, so a page is taken.
const STATE_BYTES: u64 = XSAVE_BYTES as u64 - 64;

impl Kernel {
    /// Builds the frame and points the thread at the handler.
    pub(crate) fn push_frame(
        &mut self,
        cx: &mut Cx<'_>,
        info: &SigInfo,
        action: Action,
    ) -> Result<(), Errno> {
        self.settle_interrupted_call(cx.slot, action);
        self.tell_left_of_interrupted(cx);
        let mut state = [0; XSAVE_BYTES];
        cx.vm.extended_state(cx.slot, &mut state).map_err(|_| EFAULT)?;
        let thread = self.thread(cx.slot);
        let before = thread.registers;
        let alt = thread.alt_stack;
        let on_alt = alt.holds(before.rsp);
        let use_alt = action.flags & libc::SA_ONSTACK as u64 != 0 && alt.bytes > 0 && !on_alt;
        let top = if use_alt {
            alt.base.wrapping_add(alt.bytes)
        } else {
            before.rsp.wrapping_sub(RED_ZONE)
        };
        let state_at = top.wrapping_sub(STATE_BYTES + 4) & !63;
        let frame = (state_at.wrapping_sub(8 + UCONTEXT_BYTES + SIGINFO_BYTES) & !15).wrapping_sub(8);
        let (context_at, info_at) = (frame.wrapping_add(8), frame.wrapping_add(8 + UCONTEXT_BYTES));
        if use_alt && frame < alt.base {
            return Err(EFAULT);
        }
        let mask = thread.saved_mask.unwrap_or(thread.mask);
        let context = ucontext(&before, info, alt, on_alt, state_at, mask);
        mark_state(&mut state);
        self.copy_out(cx, state_at, &state[..STATE_BYTES as usize])?;
        self.copy_out(cx, state_at + STATE_BYTES, &FP_XSTATE_MAGIC2.to_le_bytes())?;
        self.copy_out(cx, info_at, &info.to_bytes())?;
        self.copy_out(cx, context_at, &context)?;
        self.copy_out(cx, frame, &action.restorer.to_le_bytes())?;
        // A handler begins with the state of a new program: control words that its code does not expect would be felt.
        cx.vm.reset_extended_state(cx.slot).map_err(|_| EFAULT)?;
        self.enter_handler(cx.slot, info, action, [frame, info_at, context_at]);
        Ok(())
    }

    /// Decides whether the call that the signal interrupted fails or is made again after the handler.
    fn settle_interrupted_call(&mut self, slot: usize, action: Action) {
        let thread = self.thread_mut(slot);
        if let Some(number) = thread.interrupted_call.take()
            && action.flags & libc::SA_RESTART as u64 != 0
        {
            thread.registers.rax = number;
            thread.registers.rip -= 2;
        }
    }

    fn enter_handler(&mut self, slot: usize, info: &SigInfo, action: Action, at: [u64; 3]) {
        let [frame, info_at, context_at] = at;
        let thread = self.thread_mut(slot);
        thread.saved_mask = None;
        thread.mask |= action.mask & !UNBLOCKABLE;
        if action.flags & libc::SA_NODEFER as u64 == 0 {
            thread.mask |= signal_bit(info.signal) & !UNBLOCKABLE;
        }
        if thread.alt_stack.auto_disarm {
            thread.alt_stack = AltStack::default();
        }
        const TRAP_AND_DIRECTION: u64 = 0x500;
        let registers = &mut thread.registers;
        registers.rip = action.handler;
        registers.rsp = frame;
        registers.rdi = u64::from(info.signal);
        registers.rsi = info_at;
        registers.rdx = context_at;
        registers.rax = 0;
        registers.rflags &= !TRAP_AND_DIRECTION;
        if action.flags & libc::SA_RESETHAND as u32 as u64 != 0 {
            self.signals.set_action(
                info.signal,
                Action {
                    handler: SIG_DFL,
                    ..action
                },
            );
        }
    }
}

/// Fills the software part of the extended state's legacy area, by which programs know what a frame holds.
fn mark_state(state: &mut [u8; XSAVE_BYTES]) {
    let marker = Writer::with_capacity(48)
        .u32(FP_XSTATE_MAGIC1)
        .u32(STATE_BYTES as u32 + 4)
        .u64(FEATURES)
        .u32(STATE_BYTES as u32)
        .pad_to(48)
        .done();
    state[SOFTWARE_AT..SOFTWARE_AT + 48].copy_from_slice(&marker);
}

fn ucontext(r: &Registers, info: &SigInfo, alt: AltStack, on_alt: bool, state_at: u64, mask: u64) -> Vec<u8> {
    /// The extended state is there, and the stack segment is to be taken from the frame.
    const FLAGS: u64 = 0x7;
    let stack_flags = match (alt.bytes, on_alt) {
        (0, _) => libc::SS_DISABLE,
        (_, true) => libc::SS_ONSTACK,
        (_, false) => 0,
    };
    let (address, vector, error_code) = match info.detail {
        Detail::Fault {
            address,
            vector,
            error_code,
        } => (address, u64::from(vector), error_code),
        Detail::None | Detail::Sender { .. } | Detail::Timer { .. } | Detail::Raw(_) => (0, 0, 0),
    };
    let out = Writer::with_capacity(UCONTEXT_BYTES as usize)
        .u64(FLAGS)
        .u64(0)
        .u64(alt.base)
        .i32(stack_flags)
        .u32(0)
        .u64(alt.bytes);
    [
        r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15, r.rdi, r.rsi, r.rbp, r.rbx, r.rdx, r.rax,
        r.rcx, r.rsp,
    ]
    .iter()
    .fold(out, |out, register| out.u64(*register))
    .u64(r.rip)
    .u64(r.rflags)
    .u64(USER_CODE | USER_DATA << 48)
    .u64(error_code)
    .u64(vector)
    .u64(mask)
    .u64(address)
    .u64(state_at)
    .pad_to(40 + 23 * 8 + 8 + 64)
    .u64(mask)
    .done()
}

/// Goes back to what a signal interrupted. Everything in the frame is the guest's to forge; what it can reach so is
/// what it can reach by itself.
pub(crate) fn sys_rt_sigreturn(k: &mut Kernel, cx: &mut Cx<'_>, _args: &[u64; 6]) -> SysResult {
    if restore_frame(k, cx).is_err() {
        k.end(Ended::Signal(libc::SIGSEGV));
    }
    Ok(Flow::Replaced)
}

fn restore_frame(k: &mut Kernel, cx: &mut Cx<'_>) -> Result<(), Errno> {
    // The handler's `ret` has taken the return address off, so the context is on top.
    let at = k.thread(cx.slot).registers.rsp;
    let raw: [u8; UCONTEXT_BYTES as usize] = k.copy_in_array(cx, at)?;
    let word = |n: usize| u64_at(&raw, 40 + n * 8);
    let thread = k.thread_mut(cx.slot);
    let registers = &mut thread.registers;
    *registers = Registers {
        r8: word(0),
        r9: word(1),
        r10: word(2),
        r11: word(3),
        r12: word(4),
        r13: word(5),
        r14: word(6),
        r15: word(7),
        rdi: word(8),
        rsi: word(9),
        rbp: word(10),
        rbx: word(11),
        rdx: word(12),
        rax: word(13),
        rcx: word(14),
        rsp: word(15),
        rip: word(16),
        rflags: word(17),
        ..*registers
    };
    thread.mask = u64_at(&raw, UCONTEXT_BYTES as usize - 8) & !UNBLOCKABLE;
    let flags = u32_at(&raw, 24) as i32;
    if flags & libc::SS_DISABLE == 0 && u64_at(&raw, 32) > 0 {
        thread.alt_stack.base = u64_at(&raw, 16);
        thread.alt_stack.bytes = u64_at(&raw, 32);
    }
    let state_at = word(23);
    if state_at == 0 {
        return cx.vm.reset_extended_state(cx.slot).map_err(|_| EFAULT);
    }
    let mut state = [0; XSAVE_BYTES];
    k.copy_in(cx, state_at, &mut state[..STATE_BYTES as usize])?;
    sanitize_state(&mut state);
    cx.vm.set_extended_state(cx.slot, &state).map_err(|_| EFAULT)
}

/// Makes an extended state one that the processor will load: known components, standard format, no reserved bit in
/// the control word of SSE.
fn sanitize_state(state: &mut [u8; XSAVE_BYTES]) {
    const LEGACY: u64 = 3;
    /// Control bits that every processor since SSE2 has.
    const MXCSR_MASK: u32 = 0xffff;
    let extended = u32_at(state, SOFTWARE_AT) == FP_XSTATE_MAGIC1;
    let present = u64_at(state, 512);
    let kept = if extended { present & FEATURES } else { LEGACY };
    state[512..520].copy_from_slice(&kept.to_le_bytes());
    state[520..576].fill(0);
    state[SOFTWARE_AT..512].fill(0);
    let control = u32_at(state, 24) & MXCSR_MASK;
    state[24..28].copy_from_slice(&control.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_context_has_linuxs_layout() {
        let registers = Registers {
            rip: 0x1111,
            rsp: 0x2222,
            rax: 0x3333,
            ..Registers::default()
        };
        let info = SigInfo::kernel(11);
        let raw = ucontext(&registers, &info, AltStack::default(), false, 0x4444, 0x5555);
        assert_eq!(raw.len() as u64, UCONTEXT_BYTES);
        let registers_at = std::mem::offset_of!(libc::ucontext_t, uc_mcontext);
        let register = |n: i32| u64_at(&raw, registers_at + n as usize * 8);
        assert_eq!(register(libc::REG_RIP), 0x1111);
        assert_eq!(register(libc::REG_RSP), 0x2222);
        assert_eq!(register(libc::REG_RAX), 0x3333);
        assert_eq!(
            u64_at(&raw, std::mem::offset_of!(libc::ucontext_t, uc_sigmask)),
            0x5555
        );
        assert_eq!(u64_at(&raw, registers_at + 23 * 8), 0x4444);
    }
}
