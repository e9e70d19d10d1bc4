//! KVM itself, and one guest made with it.

use std::{
    fs::File,
    io,
    os::fd::{IntoRawFd, OwnedFd},
};

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm};

use crate::{
    error::{Error, Result},
    geometry::{
        BLOCK_GDT, BLOCK_RUNS, BLOCK_STACK, BLOCK_STACK_TOP, BLOCK_STUB_CODE, BLOCK_STUB_DATA, BLOCK_TOUCH,
        BLOCK_TSS, IDT, KERNEL_BASE, PAGE_BYTES, RING0_CODE, SYSCALL_PAGE, SlotSizes, THREADS_MAX,
        TOUCH_BYTES, VCPU_BLOCK_BYTES, VCPU_BLOCKS, VCPUS_MAX, XSAVE_AREAS,
    },
    racing::Racer,
    snapshot::Restored,
    space::AddressSpace,
    stubs::{
        self, EXCEPTIONS, HANDLER_BYTES, PORT_EXCEPTIONS, PORT_SYSCALL, TABLE_STUB_OFFSET, TOUCH_STUB_OFFSET,
    },
    tables::{NO_EXECUTE, USER, WRITE},
    vcpu::{Exit, Registers, TSS_LIMIT, Vcpu, XSAVE_BYTES, initial_xsave},
};

/// An open `/dev/kvm` that has what guests need.
#[derive(Debug)]
pub struct Hypervisor {
    kvm: Kvm,
    cpuid: CpuId,
}

impl Hypervisor {
    /// Opens `/dev/kvm`.
    pub fn open() -> Result<Self> {
        const PATH: &str = "/dev/kvm";
        let file = File::options()
            .read(true)
            .write(true)
            .open(PATH)
            .map_err(|source| Error::OpenKvm {
                path: PATH.into(),
                source,
            })?;
        Self::from_fd(file.into())
    }

    /// Takes over an open `/dev/kvm`.
    pub fn from_fd(fd: OwnedFd) -> Result<Self> {
        let kvm = kvm_from_fd(fd);
        for (cap, name) in [
            (Cap::SyncRegs, "synchronised registers (KVM_CAP_SYNC_REGS)"),
            (Cap::ImmediateExit, "immediate exit (KVM_CAP_IMMEDIATE_EXIT)"),
            (Cap::Xsave, "extended state (KVM_CAP_XSAVE)"),
            (Cap::UserMemory, "user memory slots (KVM_CAP_USER_MEMORY)"),
        ] {
            if !kvm.check_extension(cap) {
                return Err(Error::Missing(name));
            }
        }
        let cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(Error::kvm("get the supported CPUID"))?;
        Ok(Self { kvm, cpuid })
    }

    /// Makes a guest with one vCPU, which the calling thread must run.
    pub fn create_vm(&self, sizes: SlotSizes) -> Result<Vm> {
        let vm = retry_interrupted(|| self.kvm.create_vm()).map_err(Error::kvm("create a VM"))?;
        let space = AddressSpace::new(Some(vm), sizes)?;
        fill_system(&space);
        let vm = space.physical.vm().ok_or(Error::Missing("a VM"))?;
        let fd = retry_interrupted(|| vm.create_vcpu(0)).map_err(Error::kvm("create a vCPU"))?;
        let vcpu = Vcpu::new(fd, 0, &self.cpuid)?;
        Ok(Vm {
            vcpu: Some(vcpu),
            space,
            restored: None,
        })
    }
}

fn kvm_from_fd(fd: OwnedFd) -> Kvm {
    use std::os::fd::FromRawFd;
    // SAFETY: the descriptor is owned, open and handed over.
    unsafe { Kvm::from_raw_fd(fd.into_raw_fd()) }
}

/// Creating a VM or a vCPU fails with EINTR, or with EBADF on some hosts, when a signal comes; trying again is right.
fn retry_interrupted<T>(
    mut create: impl FnMut() -> std::result::Result<T, kvm_ioctls::Error>,
) -> std::result::Result<T, kvm_ioctls::Error> {
    const ATTEMPTS: usize = 20;
    let mut result = create();
    for _ in 1..ATTEMPTS {
        match &result {
            Err(error) if error.errno() == libc::EINTR || error.errno() == libc::EBADF => result = create(),
            Ok(_) | Err(_) => break,
        }
    }
    result
}

/// Writes the descriptor tables, handlers and stubs, and maps them in the kernel region.
fn fill_system(space: &AddressSpace) {
    const SUPERVISOR_DATA: u64 = WRITE | NO_EXECUTE;
    for vector in 0..u64::from(EXCEPTIONS) {
        let handler = KERNEL_BASE + RING0_CODE + vector * HANDLER_BYTES;
        space.write_system(
            RING0_CODE + vector * HANDLER_BYTES,
            &stubs::out(PORT_EXCEPTIONS + vector as u16),
        );
        // Breakpoint and overflow can be raised by instructions of their own; other vectors not by `int`.
        let dpl = if vector == 3 || vector == 4 { 3u64 } else { 0 };
        let low = (handler & 0xffff) | 0x08 << 16 | (0x8e | dpl << 5) << 40 | (handler >> 16 & 0xffff) << 48;
        space.write_system(IDT + vector * 16, &low.to_le_bytes());
        space.write_system(IDT + vector * 16 + 8, &(handler >> 32).to_le_bytes());
    }
    space.write_system(RING0_CODE + TABLE_STUB_OFFSET, stubs::tables());
    space.write_system(SYSCALL_PAGE, &stubs::out(PORT_SYSCALL));
    space.tables.map_kernel_page(IDT, NO_EXECUTE);
    space.tables.map_kernel_page(RING0_CODE, 0);
    space.tables.map_kernel_page(SYSCALL_PAGE, USER);
    for vcpu in 0..VCPUS_MAX as u64 {
        let block = VCPU_BLOCKS + vcpu * VCPU_BLOCK_BYTES;
        space.tables.map_kernel_page(block + BLOCK_GDT, SUPERVISOR_DATA);
        space.tables.map_kernel_page(block + BLOCK_TSS, SUPERVISOR_DATA);
        space.tables.map_kernel_page(block + BLOCK_STACK, SUPERVISOR_DATA);
        space.tables.map_kernel_page(block + BLOCK_RUNS, SUPERVISOR_DATA);
        space.tables.map_kernel_page(block + BLOCK_STUB_CODE, USER);
        space
            .tables
            .map_kernel_page(block + BLOCK_STUB_DATA, USER | WRITE | NO_EXECUTE);
        for page in 0..TOUCH_BYTES / PAGE_BYTES {
            space
                .tables
                .map_kernel_page(block + BLOCK_TOUCH + page * PAGE_BYTES, USER | NO_EXECUTE);
        }
    }
    fill_vcpu_block(space, 0);
}

fn fill_vcpu_block(space: &AddressSpace, index: u64) {
    let block = VCPU_BLOCKS + index * VCPU_BLOCK_BYTES;
    let tss = KERNEL_BASE + block + BLOCK_TSS;
    let gdt: [u64; 9] = [
        0,
        0x00af_9b00_0000_ffff, // ring-0 code
        0x00cf_9300_0000_ffff, // ring-0 data
        0,
        0,
        0x00cf_f300_0000_ffff, // ring-3 data
        0x00af_fb00_0000_ffff, // ring-3 code
        u64::from(TSS_LIMIT) | (tss & 0xff_ffff) << 16 | 0x8b << 40 | (tss >> 24 & 0xff) << 56,
        tss >> 32,
    ];
    for (n, descriptor) in gdt.iter().enumerate() {
        space.write_system(block + BLOCK_GDT + n as u64 * 8, &descriptor.to_le_bytes());
    }
    let mut task = [0u8; TSS_LIMIT as usize + 1];
    task[4..12].copy_from_slice(&(KERNEL_BASE + block + BLOCK_STACK_TOP).to_le_bytes());
    task[0x66..0x68].copy_from_slice(&0x68u16.to_le_bytes());
    // One bit a port; a set bit forbids it. The system-call port is written as four bytes, so four bits are clear.
    task[0x68..].fill(0xff);
    task[0x68 + PORT_SYSCALL as usize / 8] &= !0x0f;
    space.write_system(block + BLOCK_TSS, &task);
    space.write_system(block + BLOCK_STUB_CODE, stubs::xsave());
    space.write_system(block + BLOCK_STUB_CODE + TOUCH_STUB_OFFSET, stubs::touch());
}

/// One guest: an address space and a vCPU.
#[derive(Debug)]
pub struct Vm {
    // Dropped first: the vCPU runs in the space's VM. `None` for a machine that runs nothing.
    vcpu: Option<Vcpu>,
    space: AddressSpace,
    restored: Option<Restored>,
}

impl Vm {
    /// A machine without a processor, for tests and fuzzers of what stands on it; works on hosts without KVM.
    pub fn detached() -> Result<Self> {
        Self::detached_with(SlotSizes::DETACHED)
    }

    /// As [`Vm::detached`], with slots of these sizes: a snapshot can be laid out in one that has an image and a hot slot.
    pub fn detached_with(sizes: SlotSizes) -> Result<Self> {
        Ok(Self {
            vcpu: None,
            space: AddressSpace::detached(sizes)?,
            restored: None,
        })
    }

    /// Has another thread of the guest write to what the owner reads, as a hostile one would; see [`Racer`]. Only in a
    /// machine without a processor, where no such thread can be.
    pub fn race(&mut self, racer: Racer) {
        if self.vcpu.is_none() {
            self.space.race(racer);
        }
    }

    /// Asks for large pages for all new memory of the guest: faster, and right for a guest that is captured and dropped.
    pub fn want_huge_memory(&mut self) {
        self.space.physical.want_huge_fresh();
    }

    /// The address space.
    pub fn space(&self) -> &AddressSpace {
        &self.space
    }

    /// The address space, to change it. What is taken away is gone for the guest at its next entry.
    pub fn space_mut(&mut self) -> &mut AddressSpace {
        &mut self.space
    }

    /// Runs a thread until it needs its owner, or for at most `quantum_ns` nanoseconds when given.
    ///
    /// `thread` numbers the XSAVE area, from 1 to [`THREADS_MAX`] - 1.
    pub fn run(&mut self, thread: usize, registers: &mut Registers, quantum_ns: Option<u64>) -> Result<Exit> {
        check_thread(thread)?;
        let vcpu = self
            .vcpu
            .as_mut()
            .ok_or(Error::Missing("a vCPU in a detached machine"))?;
        vcpu.run(&mut self.space, thread, registers, quantum_ns)
    }

    /// Entries to the guest so far.
    pub fn entries(&self) -> u64 {
        self.vcpu.as_ref().map_or(0, Vcpu::entries)
    }

    /// Page faults of the guest that the host has resolved so far; zero where KVM does not count them.
    pub fn faults(&self) -> u64 {
        self.vcpu.as_ref().map_or(0, Vcpu::faults)
    }

    /// Gives a thread the initial extended state.
    pub fn reset_extended_state(&mut self, thread: usize) -> Result<()> {
        self.set_extended_state(thread, &initial_xsave())
    }

    /// Copies a thread's extended state out, in the XSAVE instruction's standard format.
    pub fn extended_state(&mut self, thread: usize, out: &mut [u8; XSAVE_BYTES]) -> Result<()> {
        check_thread(thread)?;
        if let Some(vcpu) = &mut self.vcpu {
            vcpu.save_extended_state(&self.space, thread)?;
        }
        self.space
            .read_system(XSAVE_AREAS + thread as u64 * PAGE_BYTES, out);
        Ok(())
    }

    /// Replaces a thread's extended state.
    pub fn set_extended_state(&mut self, thread: usize, state: &[u8; XSAVE_BYTES]) -> Result<()> {
        check_thread(thread)?;
        if let Some(vcpu) = &mut self.vcpu {
            vcpu.forget_extended_state(thread);
        }
        self.space
            .write_system(XSAVE_AREAS + thread as u64 * PAGE_BYTES, state);
        Ok(())
    }

    pub(crate) fn restored(&self) -> Option<&Restored> {
        self.restored.as_ref()
    }

    pub(crate) fn set_restored(&mut self, restored: Restored) {
        self.restored = Some(restored);
    }

    pub(crate) fn take_restored(&mut self) -> Option<Restored> {
        self.restored.take()
    }

    /// Enters the guest once, so that what KVM makes at the first entry is there, and has it touch the pages of the kernel
    /// region that every guest uses: each would be a fault of the first run.
    pub fn warm_up(&mut self) -> Result<()> {
        /// Extended states that are warm: most programs have few threads, and each is a page.
        const STATES: u64 = 4;
        let block = self
            .vcpu
            .as_ref()
            .ok_or(Error::Missing("a vCPU in a detached machine"))?
            .block();
        let states = (0..STATES).map(|thread| (XSAVE_AREAS + thread * PAGE_BYTES) | 1);
        let pages = [SYSCALL_PAGE, (block + BLOCK_STUB_DATA) | 1];
        let touches: Vec<u64> = states.chain(pages).map(|at| KERNEL_BASE + at).collect();
        self.touch(&touches)
    }

    /// Has the guest touch addresses, for writing where bit 0 is set.
    pub(crate) fn touch(&mut self, addresses: &[u64]) -> Result<()> {
        let vcpu = self
            .vcpu
            .as_mut()
            .ok_or(Error::Missing("a vCPU in a detached machine"))?;
        crate::ring0::flush(vcpu, &mut self.space)?;
        let block = vcpu.block();
        // The list ends with a zero.
        let room = (TOUCH_BYTES / 8) as usize - 1;
        let empty: &[u64] = &[];
        let batches = addresses
            .chunks(room)
            .chain(addresses.is_empty().then_some(empty));
        for batch in batches {
            let list: Vec<u8> = batch
                .iter()
                .chain([&0])
                .flat_map(|address| address.to_le_bytes())
                .collect();
            self.space.write_system(block + BLOCK_TOUCH, &list);
            let stub = KERNEL_BASE + block + BLOCK_STUB_CODE + TOUCH_STUB_OFFSET;
            vcpu.run_user_stub(stub, KERNEL_BASE + block + BLOCK_TOUCH)?;
        }
        Ok(())
    }

    /// Says that what the guest does next is likely to be a system call, and not a fault.
    pub(crate) fn expect_no_faults(&mut self) {
        if let Some(vcpu) = &mut self.vcpu {
            vcpu.expect_no_faults();
        }
    }

    /// Frequency of the guest's time-stamp counter, in kHz.
    pub fn tsc_khz(&self) -> Result<u32> {
        let vcpu = self
            .vcpu
            .as_ref()
            .ok_or(Error::Missing("a vCPU in a detached machine"))?;
        Ok(vcpu.tsc_khz())
    }

    /// The guest's time-stamp counter now. The vCPU's offset is zero, so it is the host's.
    pub fn tsc(&self) -> u64 {
        // SAFETY: every x86-64 processor has the instruction.
        unsafe { std::arch::x86_64::_rdtsc() }
    }
}

fn check_thread(thread: usize) -> Result<()> {
    if (1..THREADS_MAX).contains(&thread) {
        Ok(())
    } else {
        Err(Error::Exhausted("thread records"))
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        Self::other(error)
    }
}
