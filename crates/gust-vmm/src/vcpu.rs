//! One virtual CPU: enters the guest with a thread's registers and says why it came back.
//!
//! ```text
//!   prepare (flush tables, load extended state, set registers) -> enter (KVM_RUN) -> finish (read registers) -> Exit
//! ```
//!
//! Guest threads are records that their owner keeps; this module knows only which thread's extended state (XSAVE) the
//! processor holds, and switches it in ring 3 on the way in, without an exit.

use std::{io, os::fd::AsRawFd};

use kvm_bindings::{
    CpuId, KVM_SYNC_X86_REGS, KVM_SYNC_X86_SREGS, Msrs, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs,
};
use kvm_ioctls::{SyncReg, VcpuExit, VcpuFd};
use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    geometry::{
        BLOCK_GDT, BLOCK_STACK, BLOCK_STACK_TOP, BLOCK_STUB_CODE, BLOCK_STUB_DATA, BLOCK_TSS, IDT,
        KERNEL_BASE, PAGE_BYTES, PML4, SYSCALL_PAGE, VCPU_BLOCK_BYTES, VCPU_BLOCKS, XSAVE_AREAS,
    },
    ring0,
    space::AddressSpace,
    stats::FaultCounter,
    stubs::{
        EXCEPTIONS, PORT_EXCEPTIONS, PORT_RING0_DONE, PORT_SYSCALL, STUB_RAX, STUB_RDI, STUB_RDX, STUB_RIP,
        STUB_RSI, XSAVE_STUB_BYTES_MAX,
    },
    timer::PreemptionTimer,
    window::Window,
};

/// Bytes of a thread's extended state, as the XSAVE instruction lays it out (standard format), padded to a page.
pub const XSAVE_BYTES: usize = PAGE_BYTES as usize;

/// The XSAVE area that takes the state of no thread.
pub(crate) const NO_THREAD: usize = 0;

/// State components that guests use: x87, SSE, AVX and AVX-512. AMX is left out: its state is 8 KiB a thread.
pub(crate) const XCR0: u64 = 0xe7;

const SELECTOR_KERNEL_CODE: u16 = 0x08;
const SELECTOR_KERNEL_DATA: u16 = 0x10;
const SELECTOR_USER_DATA: u16 = 0x2b;
const SELECTOR_USER_CODE: u16 = 0x33;
const SELECTOR_TSS: u16 = 0x38;
/// The TSS and an I/O bitmap for ports 0 to 255 behind it; higher ports fault, being past the limit.
pub(crate) const TSS_LIMIT: u32 = 0x87;

/// Flags that a program may set: arithmetic, trap, direction, alignment check, identification. Never IOPL, which would
/// open every port.
const USER_FLAGS: u64 = 0x24_0dd5;
/// Always one, and interrupts enabled.
const FIXED_FLAGS: u64 = 0x202;

/// First time that a thread whose time is up gets to leave a stub, in nanoseconds.
const STUB_GRACE_NS: u64 = 50_000;
/// Longest such time: after it, a program has made the stub lead back to itself.
const STUB_GRACE_NS_MAX: u64 = 500_000_000;

const GENERAL_PROTECTION: u8 = 13;

/// Trap after each instruction.
const TRAP_FLAG: u64 = 1 << 8;

const MSR_STAR: u32 = 0xc000_0081;
const MSR_LSTAR: u32 = 0xc000_0082;
const MSR_FMASK: u32 = 0xc000_0084;

/// A thread's registers, without its extended state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are the architecture's registers")]
pub struct Registers {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rip: u64,
    pub rflags: u64,
    pub fs_base: u64,
    pub gs_base: u64,
}

/// Why the guest stopped running. The registers are the thread's at that moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// A system call; `rip` is past the instruction.
    Syscall,
    /// A processor exception at `rip`.
    Exception {
        /// Vector: 14 is a page fault.
        vector: u8,
        /// Error code; zero where the vector has none.
        error_code: u64,
        /// Faulting address, for vector 14.
        address: u64,
    },
    /// The timer rang; the thread goes on at `rip` whenever it is run again.
    Preempted,
}

/// One virtual CPU and the host thread's timer for it.
#[derive(Debug)]
pub(crate) struct Vcpu {
    fd: VcpuFd,
    index: u64,
    user: kvm_sregs,
    kernel: kvm_sregs,
    timer: PreemptionTimer,
    window: Window,
    /// The thread whose extended state is in the processor; [`NO_THREAD`] when it is nobody's.
    loaded: usize,
    /// Entries to the guest since the vCPU was made.
    entries: u64,
    faults: Option<FaultCounter>,
    tsc_khz: u32,
}

impl Vcpu {
    /// Takes over a vCPU whose block in the system slot has been filled.
    pub(crate) fn new(fd: VcpuFd, index: u64, cpuid: &CpuId) -> Result<Self> {
        let mut fd = fd;
        fd.set_cpuid2(cpuid)
            .map_err(Error::kvm("set the CPUID of a vCPU"))?;
        let mut xcrs = fd.get_xcrs().map_err(Error::kvm("get the XCRs of a vCPU"))?;
        xcrs.nr_xcrs = 1;
        xcrs.xcrs[0].xcr = 0;
        xcrs.xcrs[0].value = XCR0;
        let block = VCPU_BLOCKS + index * VCPU_BLOCK_BYTES;
        let user = system_registers(
            fd.get_sregs()
                .map_err(Error::kvm("get the registers of a vCPU"))?,
            block,
        );
        fd.set_sregs(&user)
            .map_err(Error::kvm("set the registers of a vCPU"))?;
        fd.set_xcrs(&xcrs).map_err(Error::kvm("set the XCRs of a vCPU"))?;
        set_msrs(&fd)?;
        share_host_tsc(&fd);
        // What KVM made of them, so that handing them back changes nothing.
        let user = fd
            .get_sregs()
            .map_err(Error::kvm("get the registers of a vCPU"))?;
        let kernel = kernel_registers(user);
        fd.set_sync_valid_reg(SyncReg::Register);
        fd.set_sync_valid_reg(SyncReg::SystemRegister);
        let timer = PreemptionTimer::new(&raw mut fd.get_kvm_run().immediate_exit)?;
        let tsc_khz = fd.get_tsc_khz().map_err(Error::kvm("get the TSC frequency"))?;
        let faults = FaultCounter::new(&fd);
        Ok(Self {
            fd,
            index,
            user,
            kernel,
            timer,
            window: Window::new(),
            loaded: NO_THREAD,
            entries: 0,
            faults,
            tsc_khz,
        })
    }

    /// Guest-physical address of this vCPU's block.
    pub(crate) fn block(&self) -> u64 {
        VCPU_BLOCKS + self.index * VCPU_BLOCK_BYTES
    }

    pub(crate) fn entries(&self) -> u64 {
        self.entries
    }

    /// Page faults that the host has resolved; zero where it does not count them.
    pub(crate) fn faults(&self) -> u64 {
        self.faults.as_ref().map_or(0, FaultCounter::count)
    }

    /// The next run is likely to end with a system call, and not with a fault.
    pub(crate) fn expect_no_faults(&mut self) {
        self.window.expect_success();
    }

    /// Frequency of the time-stamp counter, in kHz.
    pub(crate) fn tsc_khz(&self) -> u32 {
        self.tsc_khz
    }

    /// Runs a thread until it needs its owner. `quantum_ns` bounds the run; without it, nothing does.
    pub(crate) fn run(
        &mut self,
        space: &mut AddressSpace,
        thread: usize,
        registers: &mut Registers,
        quantum_ns: Option<u64>,
    ) -> Result<Exit> {
        if !is_canonical(registers.fs_base) || !is_canonical(registers.gs_base) {
            return Err(Error::GuestStopped("a segment base is no address".into()));
        }
        if !is_canonical(registers.rip) {
            // As the processor would say. Some hosts never come back from there.
            return Ok(Exit::Exception {
                vector: GENERAL_PROTECTION,
                error_code: 0,
                address: 0,
            });
        }
        ring0::flush(self, space)?;
        if self.loaded != thread && registers.rflags & TRAP_FLAG != 0 {
            self.load_apart(space, thread)?;
        }
        self.prepare(space, thread, registers);
        match quantum_ns {
            Some(quantum) => self.timer.arm(quantum),
            None => self.timer.disarm(),
        }
        self.enter_until_exit(space, registers)
    }

    /// Brings a thread's extended state in and runs nothing of it: one that traps after each instruction would do so in the
    /// stub, and never get past it.
    fn load_apart(&mut self, space: &AddressSpace, thread: usize) -> Result<()> {
        /// A second time when the thread has spoilt its area, which is initial then.
        const ATTEMPTS: usize = 2;
        self.timer.disarm();
        for _ in 0..ATTEMPTS {
            let mut registers = Registers {
                rip: KERNEL_BASE + SYSCALL_PAGE,
                rflags: FIXED_FLAGS,
                ..Registers::default()
            };
            self.prepare(space, thread, &registers);
            if self.enter_until_exit(space, &mut registers)? == Exit::Syscall {
                return Ok(());
            }
        }
        Err(Error::GuestStopped(format!(
            "the extended state of thread {thread} cannot be loaded"
        )))
    }

    fn prepare(&mut self, space: &AddressSpace, thread: usize, registers: &Registers) {
        let mut entry = *registers;
        entry.rflags = sanitize_flags(entry.rflags);
        if self.loaded != thread {
            let data = self.block() + BLOCK_STUB_DATA;
            for (field, value) in [
                (STUB_RAX, entry.rax),
                (STUB_RDX, entry.rdx),
                (STUB_RSI, entry.rsi),
                (STUB_RDI, entry.rdi),
                (STUB_RIP, entry.rip),
            ] {
                space.write_system(data + field, &value.to_le_bytes());
            }
            entry.rdi = xsave_area(self.loaded);
            entry.rsi = xsave_area(thread);
            entry.rip = KERNEL_BASE + self.block() + BLOCK_STUB_CODE;
            self.loaded = thread;
        }
        let mut system = self.user;
        system.fs.base = registers.fs_base;
        system.gs.base = registers.gs_base;
        self.set_registers(&entry, &system);
    }

    fn set_registers(&mut self, registers: &Registers, system: &kvm_sregs) {
        let sync = self.fd.sync_regs_mut();
        sync.regs = to_kvm(registers);
        let mut dirty = KVM_SYNC_X86_REGS;
        // As the last exit told them, most often: KVM goes through every segment and control register otherwise.
        if sync.sregs != *system {
            sync.sregs = *system;
            dirty |= KVM_SYNC_X86_SREGS;
        }
        self.fd.get_kvm_run().kvm_dirty_regs = u64::from(dirty);
    }

    fn enter_until_exit(&mut self, space: &AddressSpace, registers: &mut Registers) -> Result<Exit> {
        self.fd.get_kvm_run().request_interrupt_window = u8::from(self.window.ask());
        let exit = self.enter_until_own_exit(space, registers);
        self.fd.get_kvm_run().request_interrupt_window = 0;
        exit
    }

    fn enter_until_own_exit(&mut self, space: &AddressSpace, registers: &mut Registers) -> Result<Exit> {
        let mut stub_grace_ns = STUB_GRACE_NS;
        loop {
            let came = self.enter()?;
            let rung = self.timer.take_rung();
            self.read_registers(registers);
            match came {
                Came::Out(PORT_SYSCALL) => return Ok(syscall_exit(registers)),
                Came::Out(port) if (PORT_EXCEPTIONS..PORT_EXCEPTIONS + EXCEPTIONS).contains(&port) => {
                    return self.exception_exit(space, (port - PORT_EXCEPTIONS) as u8, registers);
                }
                Came::Out(port) => return Err(Error::GuestStopped(format!("output on port {port:#x}"))),
                Came::Window if registers.rip == KERNEL_BASE + SYSCALL_PAGE => {
                    self.window.helped();
                    return Ok(syscall_exit(registers));
                }
                Came::Window => {
                    self.window.came_early();
                    self.fd.get_kvm_run().request_interrupt_window = 0;
                }
                Came::Interrupted => {}
            }
            self.fd.get_kvm_run().kvm_dirty_regs = 0;
            if !rung {
                // Nothing of ours: go on where the guest was.
                continue;
            }
            match self.interrupted_at(registers.rip)? {
                Interrupted::Program => return Ok(Exit::Preempted),
                // KVM skips the `out` when it is entered again at the same address: the call is made now.
                Interrupted::SyscallPage => return Ok(syscall_exit(registers)),
                // Its time is up, but a stub cannot be left half-way, nor a delivery. The timer rings once, so it is armed
                // again: without that the thread would run without a bound. The grace doubles, so that a slow entry
                // cannot use it up for ever.
                Interrupted::Midway if stub_grace_ns < STUB_GRACE_NS_MAX => {
                    self.timer.arm(stub_grace_ns);
                    stub_grace_ns *= 2;
                }
                Interrupted::Midway => {
                    return Err(Error::GuestStopped(
                        "a thread stays in the hypervisor's code".into(),
                    ));
                }
            }
        }
    }

    fn interrupted_at(&mut self, rip: u64) -> Result<Interrupted> {
        if self.fd.sync_regs().sregs.cs.dpl != 3 {
            return Ok(Interrupted::Midway);
        }
        Ok(if self.is_in_stub(rip) || self.delivers_exception()? {
            Interrupted::Midway
        } else if rip == KERNEL_BASE + SYSCALL_PAGE {
            Interrupted::SyscallPage
        } else {
            Interrupted::Program
        })
    }

    /// Whether KVM has an exception to deliver that the guest has not seen yet. It belongs to the thread that runs, but KVM
    /// would deliver it at the next entry, whatever the registers are by then.
    fn delivers_exception(&mut self) -> Result<bool> {
        // Told at an exit, and asked for at this one alone: each of the others would have to pay for it.
        self.fd.set_sync_valid_reg(SyncReg::VcpuEvents);
        self.fd.set_kvm_immediate_exit(1);
        let came = self.run_fd();
        self.fd.set_kvm_immediate_exit(0);
        self.fd.clear_sync_valid_reg(SyncReg::VcpuEvents);
        match came? {
            Came::Interrupted => {}
            other => {
                return Err(Error::GuestStopped(format!(
                    "{other:?} by a vCPU that was not to run"
                )));
            }
        }
        let exception = self.fd.sync_regs().events.exception;
        Ok(exception.injected != 0 || exception.pending != 0)
    }

    /// Runs the guest once.
    fn enter(&mut self) -> Result<Came> {
        self.entries += 1;
        self.run_fd()
    }

    fn run_fd(&mut self) -> Result<Came> {
        match self.fd.run() {
            Ok(VcpuExit::IoOut(port, _)) => Ok(Came::Out(port)),
            Ok(VcpuExit::Intr) => Ok(Came::Interrupted),
            Ok(VcpuExit::IrqWindowOpen) => Ok(Came::Window),
            Ok(other) => {
                let what = format!("{other:?}");
                Err(Error::GuestStopped(format!(
                    "{what} at {:#x}",
                    self.fd.sync_regs().regs.rip
                )))
            }
            Err(error) if error.errno() == libc::EINTR || error.errno() == libc::EAGAIN => {
                Ok(Came::Interrupted)
            }
            Err(error) => Err(Error::Kvm {
                action: "run a vCPU",
                source: io::Error::from_raw_os_error(error.errno()),
            }),
        }
    }

    fn read_registers(&mut self, registers: &mut Registers) {
        let sync = self.fd.sync_regs_mut();
        *registers = from_kvm(&sync.regs);
        registers.fs_base = sync.sregs.fs.base;
        registers.gs_base = sync.sregs.gs.base;
    }

    /// Takes the interrupted state from the frame that the processor pushed on the ring-0 stack.
    fn exception_exit(
        &mut self,
        space: &AddressSpace,
        vector: u8,
        registers: &mut Registers,
    ) -> Result<Exit> {
        let has_code = matches!(vector, 8 | 10..=14 | 17 | 21 | 29 | 30);
        let words = if has_code { 6 } else { 5 };
        let stack = KERNEL_BASE + self.block();
        let frame = registers.rsp.wrapping_sub(stack);
        if frame < BLOCK_STACK || frame + words * 8 > BLOCK_STACK_TOP {
            return Err(Error::GuestStopped(format!(
                "exception {vector} off the ring-0 stack"
            )));
        }
        let mut raw = [0u8; 48];
        let bytes = (words * 8) as usize;
        space.read_system(self.block() + frame, &mut raw[..bytes]);
        let word = |n: usize| u64::from_le_bytes(raw[n * 8..n * 8 + 8].try_into().unwrap_or_default());
        let first = usize::from(has_code);
        let (rip, selector, flags, rsp) = (word(first), word(first + 1), word(first + 2), word(first + 3));
        if selector & 3 != 3 {
            return Err(Error::GuestStopped(format!(
                "exception {vector} in ring 0 at {rip:#x}"
            )));
        }
        registers.rip = rip;
        registers.rsp = rsp;
        registers.rflags = sanitize_flags(flags);
        let address = if vector == 14 {
            self.fd.sync_regs().sregs.cr2
        } else {
            0
        };
        if self.is_in_stub(rip) {
            // A thread spoilt its own XSAVE area. It gets the initial state and goes on where it was.
            self.recover_in_stub(space, registers);
            return Ok(Exit::Preempted);
        }
        Ok(Exit::Exception {
            vector,
            error_code: if has_code { word(0) } else { 0 },
            address,
        })
    }

    fn is_in_stub(&self, rip: u64) -> bool {
        let stub = KERNEL_BASE + self.block() + BLOCK_STUB_CODE;
        (stub..stub + XSAVE_STUB_BYTES_MAX).contains(&rip)
    }

    fn recover_in_stub(&mut self, space: &AddressSpace, registers: &mut Registers) {
        let data = self.block() + BLOCK_STUB_DATA;
        let saved = |field: u64| {
            let mut raw = [0; 8];
            space.read_system(data + field, &mut raw);
            u64::from_le_bytes(raw)
        };
        registers.rax = saved(STUB_RAX);
        registers.rdx = saved(STUB_RDX);
        registers.rsi = saved(STUB_RSI);
        registers.rdi = saved(STUB_RDI);
        registers.rip = saved(STUB_RIP);
        space.write_system(XSAVE_AREAS + (self.loaded as u64) * PAGE_BYTES, &initial_xsave());
        self.loaded = NO_THREAD;
    }

    /// Runs a ring-0 stub to its end.
    pub(crate) fn run_ring0(&mut self, rip: u64, rsi: u64) -> Result<()> {
        let registers = kvm_regs {
            rip,
            rsi,
            rsp: KERNEL_BASE + self.block() + BLOCK_STACK_TOP,
            rflags: 2,
            ..Default::default()
        };
        let kernel = self.kernel;
        let sync = self.fd.sync_regs_mut();
        sync.regs = registers;
        sync.sregs = kernel;
        self.fd.get_kvm_run().kvm_dirty_regs = u64::from(KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS);
        loop {
            match self.enter()? {
                Came::Out(PORT_RING0_DONE) => return Ok(()),
                Came::Out(port) => {
                    return Err(Error::GuestStopped(format!(
                        "the page-table stub ended on port {port:#x}"
                    )));
                }
                Came::Window | Came::Interrupted => {
                    // The timer may ring here; its time is up all the same once the guest runs.
                    self.fd.set_kvm_immediate_exit(0);
                    self.fd.get_kvm_run().kvm_dirty_regs = 0;
                }
            }
        }
    }

    /// Runs ring-3 code of ours to its system call, with `rsi` given. For the touch stub.
    pub(crate) fn run_user_stub(&mut self, rip: u64, rsi: u64) -> Result<()> {
        let registers = Registers {
            rip,
            rsi,
            rflags: FIXED_FLAGS,
            ..Default::default()
        };
        let user = self.user;
        self.set_registers(&registers, &user);
        loop {
            match self.enter()? {
                Came::Out(PORT_SYSCALL) => return Ok(()),
                Came::Out(port) => {
                    return Err(Error::GuestStopped(format!(
                        "the touch stub ended on port {port:#x}"
                    )));
                }
                Came::Window | Came::Interrupted => {
                    self.fd.set_kvm_immediate_exit(0);
                    self.fd.get_kvm_run().kvm_dirty_regs = 0;
                }
            }
        }
    }

    /// Brings the XSAVE area of the thread that is loaded up to date.
    pub(crate) fn save_extended_state(&mut self, space: &AddressSpace, thread: usize) -> Result<()> {
        if thread == NO_THREAD || self.loaded != thread {
            return Ok(());
        }
        let state = self
            .fd
            .get_xsave()
            .map_err(Error::kvm("get the extended state of a vCPU"))?;
        let mut raw = [0u8; XSAVE_BYTES];
        for (chunk, word) in raw.as_chunks_mut::<4>().0.iter_mut().zip(state.region) {
            *chunk = word.to_le_bytes();
        }
        space.write_system(XSAVE_AREAS + thread as u64 * PAGE_BYTES, &raw);
        Ok(())
    }

    /// The XSAVE area of this thread has been changed: it is loaded anew at the next entry.
    pub(crate) fn forget_extended_state(&mut self, thread: usize) {
        if self.loaded == thread {
            self.loaded = NO_THREAD;
        }
    }
}

/// Why KVM came back.
#[derive(Debug, Clone, Copy)]
enum Came {
    /// An `out` on a port.
    Out(u16),
    /// An interrupt could be taken, and that was asked for: see [`Window`].
    Window,
    /// A signal came.
    Interrupted,
}

/// What an interrupted vCPU was doing.
enum Interrupted {
    Program,
    SyscallPage,
    /// Ring 0, a ring-3 stub of ours, or an exception that is being delivered: not a moment to switch threads.
    Midway,
}

fn syscall_exit(registers: &mut Registers) -> Exit {
    registers.rip = registers.rcx;
    registers.rflags = sanitize_flags(registers.r11);
    Exit::Syscall
}

/// Whether a processor with four levels of tables takes a number for an address: bits 47 to 63 are the same.
fn is_canonical(address: u64) -> bool {
    let upper = address.cast_signed() >> 47;
    upper == 0 || upper == -1
}

/// Keeps what a program may set of its flags.
pub(crate) fn sanitize_flags(flags: u64) -> u64 {
    (flags & USER_FLAGS) | FIXED_FLAGS
}

/// An XSAVE area in its initial state: everything zero but the SSE control word.
pub(crate) fn initial_xsave() -> [u8; XSAVE_BYTES] {
    let mut area = [0; XSAVE_BYTES];
    area[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
    area
}

fn xsave_area(thread: usize) -> u64 {
    KERNEL_BASE + XSAVE_AREAS + thread as u64 * PAGE_BYTES
}

fn segment(selector: u16, type_: u8, dpl: u8, long_code: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        dpl,
        db: u8::from(!long_code),
        s: 1,
        l: u8::from(long_code),
        g: 1,
        ..Default::default()
    }
}

/// Registers of a vCPU whose guest is in ring 3, long mode, with our tables.
fn system_registers(initial: kvm_sregs, block: u64) -> kvm_sregs {
    /// PAE, FXSR, SSE exceptions, FS and GS base instructions, XSAVE.
    const CR4: u64 = 1 << 5 | 1 << 9 | 1 << 10 | 1 << 16 | 1 << 18;
    /// Protection, monitor, extension type, numeric errors, write protection, alignment mask, paging.
    const CR0: u64 = 0x8005_0033;
    /// System-call instruction, long mode, no-execute.
    const EFER: u64 = 0xd01;
    let mut system = initial;
    system.cr0 = CR0;
    system.cr3 = PML4;
    system.cr4 = CR4;
    system.efer = EFER;
    system.cs = segment(SELECTOR_USER_CODE, 11, 3, true);
    let data = segment(SELECTOR_USER_DATA, 3, 3, false);
    system.ds = data;
    system.es = data;
    system.fs = data;
    system.gs = data;
    system.ss = data;
    system.idt.base = KERNEL_BASE + IDT;
    system.idt.limit = EXCEPTIONS * 16 - 1;
    system.gdt.base = KERNEL_BASE + block + BLOCK_GDT;
    system.gdt.limit = 9 * 8 - 1;
    system.tr = kvm_segment {
        base: KERNEL_BASE + block + BLOCK_TSS,
        limit: TSS_LIMIT,
        selector: SELECTOR_TSS,
        type_: 11,
        present: 1,
        ..Default::default()
    };
    system
}

fn kernel_registers(user: kvm_sregs) -> kvm_sregs {
    let mut kernel = user;
    kernel.cs.selector = SELECTOR_KERNEL_CODE;
    kernel.cs.dpl = 0;
    let mut data = kernel.ss;
    data.selector = SELECTOR_KERNEL_DATA;
    data.dpl = 0;
    kernel.ss = data;
    kernel.ds = data;
    kernel.es = data;
    kernel
}

/// Where the system-call instruction leads. It is never returned from with `sysret`: the owner sets every register.
fn set_msrs(fd: &VcpuFd) -> Result<()> {
    let entry = |index, data| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    let star = u64::from(SELECTOR_KERNEL_CODE) << 32 | 0x23 << 48;
    /// Trap, direction, IOPL, nested task and alignment flags are cleared on the way in. Not that of interrupts, without which no
    /// window opens.
    const FMASK: u64 = 0x4_7500;
    let msrs = Msrs::from_entries(&[
        entry(MSR_STAR, star),
        entry(MSR_LSTAR, KERNEL_BASE + SYSCALL_PAGE),
        entry(MSR_FMASK, FMASK),
    ])
    .map_err(|_| Error::Missing("room for three MSRs"))?;
    let set = fd
        .set_msrs(&msrs)
        .map_err(Error::kvm("set the system-call MSRs of a vCPU"))?;
    if set == 3 {
        Ok(())
    } else {
        Err(Error::Missing("system-call MSRs"))
    }
}

/// Makes the guest's time-stamp counter the host's, so that the clock page can be written from here. A host that cannot
/// set the offset shows the guest its own counter anyway (paravirtual hosts) or gets it set by value, good to a
/// microsecond.
fn share_host_tsc(fd: &VcpuFd) {
    const KVM_VCPU_TSC_CTRL: u32 = 0;
    const KVM_VCPU_TSC_OFFSET: u64 = 0;
    let offset = 0u64;
    let attribute = kvm_bindings::kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr: KVM_VCPU_TSC_OFFSET,
        addr: (&raw const offset) as u64,
        flags: 0,
    };
    /// `_IOW(KVMIO, 0xe1, struct kvm_device_attr)`; kvm-ioctls has it for other architectures only.
    const KVM_SET_DEVICE_ATTR: libc::c_ulong = 0x4018_aee1;
    // SAFETY: the ioctl reads the structure and the eight bytes that it points to, both alive here.
    if unsafe { libc::ioctl(fd.as_raw_fd(), KVM_SET_DEVICE_ATTR, &raw const attribute) } == 0 {
        return;
    }
    const MSR_TSC: u32 = 0x10;
    // SAFETY: every x86-64 processor has the instruction.
    let now = unsafe { std::arch::x86_64::_rdtsc() };
    if let Ok(msrs) = Msrs::from_entries(&[kvm_msr_entry {
        index: MSR_TSC,
        data: now,
        ..Default::default()
    }]) {
        let _ = fd.set_msrs(&msrs);
    }
}

fn to_kvm(r: &Registers) -> kvm_regs {
    kvm_regs {
        rax: r.rax,
        rbx: r.rbx,
        rcx: r.rcx,
        rdx: r.rdx,
        rsi: r.rsi,
        rdi: r.rdi,
        rsp: r.rsp,
        rbp: r.rbp,
        r8: r.r8,
        r9: r.r9,
        r10: r.r10,
        r11: r.r11,
        r12: r.r12,
        r13: r.r13,
        r14: r.r14,
        r15: r.r15,
        rip: r.rip,
        rflags: r.rflags,
    }
}

fn from_kvm(r: &kvm_regs) -> Registers {
    Registers {
        rax: r.rax,
        rbx: r.rbx,
        rcx: r.rcx,
        rdx: r.rdx,
        rsi: r.rsi,
        rdi: r.rdi,
        rsp: r.rsp,
        rbp: r.rbp,
        r8: r.r8,
        r9: r.r9,
        r10: r.r10,
        r11: r.r11,
        r12: r.r12,
        r13: r.r13,
        r14: r.r14,
        r15: r.r15,
        rip: r.rip,
        rflags: r.rflags,
        fs_base: 0,
        gs_base: 0,
    }
}
