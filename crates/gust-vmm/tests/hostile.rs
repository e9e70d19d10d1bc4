//! Machine code of a guest that knows everything about the hypervisor, run in real guests. Skipped, loudly, where
//! /dev/kvm is missing.
//!
//! Whatever a guest does, it comes back within its time as an exit that its owner answers, or it is stopped; and the next
//! guest is as good as new.

use gust_vmm::{
    Error, Exit, Hypervisor, PAGE_BYTES, PageRange, Populate, Prot, Registers, SlotSizes, USER_END, Vm,
};

const CODE: u64 = 0x40_0000;
const DATA: u64 = 0x60_0000;
const STACK: u64 = 0x80_0000;
/// The last page that user space may have.
const LAST: u64 = USER_END - PAGE_BYTES;
/// Where the hypervisor's own region begins, as a guest sees it.
const KERNEL_BASE: u64 = 0x7f80_0000_0000;
/// Longest run of one piece of code, and how often it is let go on: some instructions wait, and a busy host may take the
/// processor away.
const QUANTUM_NS: u64 = 5_000_000;
const RUNS_MAX: usize = 400;

const TRAP: u64 = 1 << 8;
const DIRECTION: u64 = 1 << 10;
const IOPL: u64 = 3 << 12;
const NESTED: u64 = 1 << 14;
const RESUME: u64 = 1 << 16;
const ALIGNMENT: u64 = 1 << 18;

/// How a piece of code came back; `Stopped` means that nothing more can run in this guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Came {
    Out(Exit),
    Stopped,
}

struct Guest {
    hypervisor: Hypervisor,
    vm: Vm,
}

fn machine(hypervisor: &Hypervisor) -> Vm {
    let mut vm = hypervisor.create_vm(SlotSizes::BOOT).unwrap();
    for (start, prot) in [
        (CODE, Prot::READ_EXECUTE),
        (DATA, Prot::READ_WRITE),
        (STACK, Prot::READ_WRITE),
        (LAST, Prot::ALL),
    ] {
        let page = PageRange::new(start, start + PAGE_BYTES);
        vm.space_mut().map(page, prot, Populate::OnTouch).unwrap();
    }
    for thread in 1..=3 {
        vm.reset_extended_state(thread).unwrap();
    }
    vm
}

impl Guest {
    fn new() -> Option<Self> {
        match Hypervisor::open() {
            Ok(hypervisor) => Some(Self {
                vm: machine(&hypervisor),
                hypervisor,
            }),
            Err(error) => {
                eprintln!("SKIPPED: no KVM on this host: {error}");
                None
            }
        }
    }

    /// Runs a thread until it comes back by itself.
    fn run_thread(&mut self, thread: usize, registers: &mut Registers) -> Came {
        let mut came = Came::Out(Exit::Preempted);
        for _ in 0..RUNS_MAX {
            if came != Came::Out(Exit::Preempted) {
                break;
            }
            came = self.run_once(thread, registers);
        }
        came
    }

    /// Runs a thread; a guest that had to be stopped is replaced by a new one.
    fn run_once(&mut self, thread: usize, registers: &mut Registers) -> Came {
        match self.vm.run(thread, registers, Some(QUANTUM_NS)) {
            Ok(exit) => {
                assert_eq!(registers.rflags & IOPL, 0, "the kernel's flags: {exit:?}");
                assert_ne!(registers.rflags & 1 << 9, 0, "interrupts are off: {exit:?}");
                Came::Out(exit)
            }
            Err(Error::GuestStopped(_) | Error::Kvm { .. }) => {
                self.vm = machine(&self.hypervisor);
                Came::Stopped
            }
            Err(other) => panic!("{other:?}"),
        }
    }

    fn run(&mut self, code: &[u8], registers: &mut Registers) -> Came {
        self.vm.space_mut().write_backed(CODE, code).unwrap();
        self.run_thread(1, registers)
    }

    /// The guest still does what an honest program asks of it.
    fn is_well(&mut self) {
        // mov rax, [rbx]; syscall
        self.vm.space_mut().write(DATA + 8, &77u64.to_le_bytes()).unwrap();
        let mut registers = Registers {
            rbx: DATA + 8,
            ..start()
        };
        let came = self.run(&[0x48, 0x8b, 0x03, 0x0f, 0x05], &mut registers);
        assert_eq!((came, registers.rax), (Came::Out(Exit::Syscall), 77));
        assert_eq!(
            vector(self.run(&[0x0f, 0x0b], &mut start())),
            Some(6),
            "an exception"
        );
    }
}

fn start() -> Registers {
    Registers {
        rip: CODE,
        rsp: STACK + 0x800,
        rbx: DATA,
        rflags: 0x202,
        ..Registers::default()
    }
}

fn vector(came: Came) -> Option<u8> {
    match came {
        Came::Out(Exit::Exception { vector, .. }) => Some(vector),
        Came::Out(Exit::Syscall | Exit::Preempted) | Came::Stopped => None,
    }
}

/// What `rax`, and so the operand of most of these, is tried with.
const OPERANDS: [u64; 6] = [
    0,
    u64::MAX,
    KERNEL_BASE + 0x1000,
    0x08,
    0x8000_0000_0000_0000,
    0x8005_0033,
];

#[test]
fn privileged_instructions_fault() {
    let Some(mut guest) = Guest::new() else { return };
    let instructions: &[(&str, &[u8])] = &[
        ("lgdt", &[0x0f, 0x01, 0x13]),
        ("lidt", &[0x0f, 0x01, 0x1b]),
        ("lldt", &[0x0f, 0x00, 0xd0]),
        ("ltr", &[0x0f, 0x00, 0xd8]),
        ("mov cr0", &[0x0f, 0x22, 0xc0]),
        ("mov cr3", &[0x0f, 0x22, 0xd8]),
        ("mov cr4", &[0x0f, 0x22, 0xe0]),
        ("mov cr8", &[0x44, 0x0f, 0x22, 0xc0]),
        ("mov from cr3", &[0x0f, 0x20, 0xd8]),
        ("mov dr7", &[0x0f, 0x23, 0xf8]),
        ("mov from dr7", &[0x0f, 0x21, 0xf8]),
        ("wrmsr", &[0x0f, 0x30]),
        ("rdmsr", &[0x0f, 0x32]),
        ("hlt", &[0xf4]),
        ("cli", &[0xfa]),
        ("sti", &[0xfb]),
        ("clts", &[0x0f, 0x06]),
        ("lmsw", &[0x0f, 0x01, 0xf0]),
        ("invd", &[0x0f, 0x08]),
        ("wbinvd", &[0x0f, 0x09]),
        ("invlpg", &[0x0f, 0x01, 0x3b]),
        ("invpcid", &[0x66, 0x0f, 0x38, 0x82, 0x03]),
        ("swapgs", &[0x0f, 0x01, 0xf8]),
        ("xsetbv", &[0x0f, 0x01, 0xd1]),
        ("sysret", &[0x48, 0x0f, 0x07]),
        ("sysexit", &[0x0f, 0x35]),
        ("sysenter", &[0x0f, 0x34]),
        ("vmlaunch", &[0x0f, 0x01, 0xc2]),
        ("vmxoff", &[0x0f, 0x01, 0xc4]),
        ("rsm", &[0x0f, 0xaa]),
        ("clac", &[0x0f, 0x01, 0xca]),
        ("in al, 0x60", &[0xe4, 0x60]),
        (
            "insb from a port past the bitmap",
            &[0x66, 0xba, 0xf8, 0x03, 0x6c],
        ),
    ];
    for (name, code) in instructions {
        for rax in OPERANDS {
            let mut registers = Registers {
                rax,
                rcx: 0xc000_0082,
                ..start()
            };
            let came = guest.run(code, &mut registers);
            // General protection, or no such instruction here.
            assert!(
                matches!(vector(came), Some(13 | 6)),
                "{name} with {rax:#x}: {came:?}"
            );
        }
    }
    guest.is_well();
}

#[test]
fn instructions_that_may_pass_change_nothing() {
    let Some(mut guest) = Guest::new() else { return };
    // Hypercalls, waits, stores of tables' addresses, transactions, enclaves, other states of the processor.
    let instructions: &[(&str, &[u8])] = &[
        ("vmcall", &[0x0f, 0x01, 0xc1, 0x0f, 0x05]),
        ("vmmcall", &[0x0f, 0x01, 0xd9, 0x0f, 0x05]),
        ("monitor", &[0x0f, 0x01, 0xc8, 0x0f, 0x05]),
        ("mwait", &[0x0f, 0x01, 0xc9, 0x0f, 0x05]),
        ("umonitor", &[0xf3, 0x0f, 0xae, 0xf3, 0x0f, 0x05]),
        ("umwait", &[0xf2, 0x0f, 0xae, 0xf1, 0x0f, 0x05]),
        ("tpause", &[0x66, 0x0f, 0xae, 0xf1, 0x0f, 0x05]),
        ("sgdt", &[0x0f, 0x01, 0x03, 0x0f, 0x05]),
        ("sidt", &[0x0f, 0x01, 0x0b, 0x0f, 0x05]),
        ("str", &[0x66, 0x0f, 0x00, 0xc8, 0x0f, 0x05]),
        ("smsw", &[0x0f, 0x01, 0xe0, 0x0f, 0x05]),
        ("rdpmc", &[0x0f, 0x33, 0x0f, 0x05]),
        ("rdpkru", &[0x0f, 0x01, 0xee, 0x0f, 0x05]),
        ("wrpkru", &[0x0f, 0x01, 0xef, 0x0f, 0x05]),
        ("enclu", &[0x0f, 0x01, 0xd7, 0x0f, 0x05]),
        ("getsec", &[0x0f, 0x37, 0x0f, 0x05]),
        ("pconfig", &[0x0f, 0x01, 0xc5, 0x0f, 0x05]),
        (
            "xbegin over a call",
            &[0xc7, 0xf8, 0x02, 0, 0, 0, 0x0f, 0x05, 0x0f, 0x05],
        ),
        ("cpuid", &[0x0f, 0xa2, 0x0f, 0x05]),
        ("rdtscp", &[0x0f, 0x01, 0xf9, 0x0f, 0x05]),
        ("xrstor of zeros", &[0x0f, 0xae, 0x2b, 0x0f, 0x05]),
        ("wrfsbase", &[0xf3, 0x48, 0x0f, 0xae, 0xd0, 0x0f, 0x05]),
        ("int1", &[0xf1, 0x0f, 0x05]),
        ("popfq of all flags", &[0x50, 0x9d, 0x0f, 0x05]),
        ("lar", &[0x0f, 0x02, 0xc0, 0x0f, 0x05]),
        ("verw", &[0x0f, 0x00, 0xe8, 0x0f, 0x05]),
    ];
    for (name, code) in instructions {
        for rax in OPERANDS {
            let mut registers = Registers {
                rax,
                rdx: u64::MAX,
                ..start()
            };
            let came = guest.run(code, &mut registers);
            assert_ne!(came, Came::Stopped, "{name} with {rax:#x} stopped the guest");
        }
        guest.is_well();
    }
}

#[test]
fn every_software_interrupt_is_an_exception() {
    let Some(mut guest) = Guest::new() else { return };
    for number in 0..=255 {
        let came = guest.run(&[0xcd, number], &mut start());
        // Breakpoint and overflow have gates that ring 3 may use. Others are protected or not there; hosts that emulate the
        // instruction make several exceptions of it, each of which a program can raise anyway.
        match number {
            3 | 4 => assert_eq!(vector(came), Some(number), "int {number:#x}"),
            _ => assert!(vector(came).is_some(), "int {number:#x}: {came:?}"),
        }
    }
    guest.is_well();
}

#[test]
fn ports_are_closed_but_for_one() {
    let Some(mut guest) = Guest::new() else { return };
    let ports = (0..=0x1ff).chain([0x3f8, 0x510, 0xcf8, 0xcfc, 0x8000, 0xfffc, 0xffff]);
    for port in ports {
        // out dx, al; out dx, eax; in al, dx; in eax, dx; outsb; insb
        for code in [&[0xee][..], &[0xef], &[0xec], &[0xed], &[0x6e], &[0x6c]] {
            let mut registers = Registers {
                rdx: port,
                rsi: DATA,
                rdi: DATA,
                rcx: CODE,
                ..start()
            };
            let came = guest.run(code, &mut registers);
            match port {
                // The system-call port; four bytes there, so three ports more, of which nothing comes.
                0x10..=0x13 => assert!(
                    matches!(
                        came,
                        Came::Out(Exit::Syscall | Exit::Exception { vector: 13, .. }) | Came::Stopped
                    ),
                    "port {port:#x}: {came:?}"
                ),
                _ => assert_eq!(vector(came), Some(13), "port {port:#x} by {code:x?}"),
            }
        }
    }
    guest.is_well();
}

/// Reads, writes and runs every page of the hypervisor's region that has a use, and pages around them.
#[test]
fn supervisor_pages_can_not_be_reached() {
    let Some(mut guest) = Guest::new() else { return };
    let low = (0..0x20_0000).step_by(0x1000);
    let tables = (0x40_0000..0x48_0000).step_by(0x4000);
    let beyond = [
        0x20_0000 + 0x20_0000,
        0xff_f000,
        0x100_0000,
        0x4000_0000,
        0x7f_ffff_f000,
    ];
    for page in low.chain(tables).chain(beyond) {
        let address = KERNEL_BASE + page;
        let block = page.wrapping_sub(0x1_0000) % 0x8000;
        let in_block = (0x1_0000..0x1_0000 + 16 * 0x8000).contains(&page);
        // What ring 3 may see: the call page, each processor's stubs with their data, and what they are to touch.
        let readable = page == 0xa000 || (in_block && matches!(block, 0x4000 | 0x5000 | 0x6000 | 0x7000));
        let writable = in_block && block == 0x5000;
        let runnable = page == 0xa000 || (in_block && block == 0x4000);
        for (code, allowed, what) in [
            (&[0x48, 0x8b, 0x03, 0x0f, 0x05][..], readable, "read"),
            (&[0x48, 0x87, 0x03, 0x0f, 0x05], writable, "write"),
            (&[0xff, 0xe3], runnable, "run"),
        ] {
            let mut registers = Registers {
                rbx: address,
                rcx: CODE,
                ..start()
            };
            let came = guest.run(code, &mut registers);
            if allowed {
                // What ends there is not the access: an unused stub page holds no code that leads anywhere.
                assert!(
                    what == "run" || came == Came::Out(Exit::Syscall),
                    "{what} {page:#x}: {came:?}"
                );
            } else {
                assert_eq!(vector(came), Some(14), "{what} {page:#x}: {came:?}");
            }
        }
    }
    guest.is_well();
}

/// Selectors of the descriptor table, and some that it does not have.
const SELECTORS: [u16; 14] = [
    0, 0x08, 0x0b, 0x10, 0x13, 0x18, 0x1b, 0x23, 0x2b, 0x33, 0x38, 0x3b, 0x43, 0xffff,
];

#[test]
fn segments_lead_nowhere() {
    let Some(mut guest) = Guest::new() else { return };
    for selector in SELECTORS {
        // mov to ss, ds, es, fs, gs; then a call. What is loaded lasts no longer than this stay in the guest.
        for register in [0xd0, 0xd8, 0xc0, 0xe0, 0xe8] {
            let mut registers = Registers {
                rax: u64::from(selector),
                ..start()
            };
            let came = guest.run(&[0x8e, register, 0x0f, 0x05], &mut registers);
            let fine = matches!(selector, 0x2b | 0..=3 | 0x33);
            // A host that does not keep the table's bounds looks for the descriptor below user space, where nothing is.
            let came_well = matches!(
                came,
                Came::Out(
                    Exit::Syscall
                        | Exit::Exception {
                            vector: 6 | 11..=14,
                            ..
                        }
                )
            );
            assert!(
                came_well && (fine || came != Came::Out(Exit::Syscall)),
                "{selector:#x}: {came:?}"
            );
        }
        // Far jumps, calls and returns, and a return from an interrupt that asks for every flag.
        let mut target = (CODE + 0x100).to_le_bytes().to_vec();
        target.extend(selector.to_le_bytes());
        guest.vm.space_mut().write(DATA, &target).unwrap();
        for code in [
            &[0x48, 0xff, 0x2b][..],
            &[0x48, 0xff, 0x1b],
            &[0xff, 0x2b],
            &[0xff, 0x1b],
        ] {
            let mut all = code.to_vec();
            all.resize(0x100, 0x90);
            // out 0x20, eax: open to ring 0 only.
            all.extend([0xe7, 0x20]);
            let came = guest.run(&all, &mut start());
            assert!(
                matches!(vector(came), Some(6 | 11..=14)),
                "far to {selector:#x}: {came:?}"
            );
        }
        for flags in [0x202, 0x202 | IOPL, NESTED, RESUME | DIRECTION | TRAP, u64::MAX] {
            let frame = [CODE + 0x10, u64::from(selector), flags, STACK + 0x400, 0x2b];
            let frame: Vec<u8> = frame.into_iter().flat_map(u64::to_le_bytes).collect();
            guest.vm.space_mut().write(STACK + 0x800, &frame).unwrap();
            let mut code = vec![0x48, 0xcf];
            code.resize(0x10, 0x90);
            code.extend([0xe7, 0x20]);
            let came = guest.run(&code, &mut start());
            assert!(
                matches!(vector(came), Some(1 | 6 | 11..=14)),
                "iretq to {selector:#x} with {flags:#x}: {came:?}"
            );
        }
    }
    guest.is_well();
}

#[test]
fn odd_registers_at_a_call_end_in_an_exit() {
    let Some(mut guest) = Guest::new() else { return };
    let addresses = [
        0,
        u64::MAX,
        0x7fff_ffff_ffff,
        0x8000_0000_0000,
        0xffff_8000_0000_0000,
        KERNEL_BASE,
        KERNEL_BASE + 0x9000,
        USER_END,
        USER_END - 1,
    ];
    for address in addresses {
        // A forged call may come back anywhere, with any stack and any segment base.
        for case in 0..4 {
            let mut registers = start();
            match case {
                0 => registers.rip = address,
                1 => registers.rsp = address,
                2 => registers.fs_base = address,
                _ => registers.gs_base = address,
            }
            // push rax; mov rax, fs:[0]; mov rax, gs:[0]; syscall
            let code = [
                0x50, 0x64, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0, 0x65, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0,
                0x0f, 0x05,
            ];
            let came = guest.run(&code, &mut registers);
            assert!(
                matches!(came, Came::Stopped) || vector(came).is_some(),
                "{case} {address:#x}: {came:?}"
            );
        }
        let mut registers = Registers {
            rcx: address,
            r11: u64::MAX,
            ..start()
        };
        // A forged call says where it goes on.
        let came = guest.run(&[0xe7, 0x10], &mut registers);
        assert_eq!(came, Came::Out(Exit::Syscall));
        assert_eq!(registers.rip, address);
        let came = guest.run_thread(1, &mut registers);
        assert!(
            matches!(came, Came::Stopped) || vector(came).is_some(),
            "{address:#x}: {came:?}"
        );
    }
    guest.is_well();
}

/// The first thing that a machine runs, and again after that: a host may treat the two differently.
#[test]
fn no_address_is_run_that_is_none() {
    for rip in [0x8000_0000_0000, 0xffff_7fff_ffff_ffff, 1 << 63] {
        let Some(mut guest) = Guest::new() else { return };
        for _ in 0..3 {
            let mut registers = Registers { rip, ..start() };
            let came = guest.run_once(1, &mut registers);
            assert_eq!((vector(came), registers.rip), (Some(13), rip));
            let base = |registers: &mut Registers, which: usize| match which {
                0 => registers.fs_base = rip,
                _ => registers.gs_base = rip,
            };
            for which in 0..2 {
                let mut registers = start();
                base(&mut registers, which);
                assert_eq!(guest.run_once(1, &mut registers), Came::Stopped);
            }
        }
        guest.is_well();
    }
}

#[test]
fn a_call_at_the_end_of_user_space_comes_back() {
    let Some(mut guest) = Guest::new() else { return };
    guest.vm.space_mut().write(USER_END - 2, &[0x0f, 0x05]).unwrap();
    let mut registers = Registers {
        rip: USER_END - 2,
        ..start()
    };
    assert_eq!(guest.run_thread(1, &mut registers), Came::Out(Exit::Syscall));
    assert_eq!(registers.rip, USER_END);
    assert_eq!(vector(guest.run_thread(1, &mut registers)), Some(14));
}

#[test]
fn every_flag_survives_a_call_or_is_taken_away() {
    let Some(mut guest) = Guest::new() else { return };
    for bit in (0..22).chain([63]) {
        let flags = 0x202 | 1u64 << bit;
        // push flags; popfq; syscall
        guest.vm.space_mut().write(STACK, &flags.to_le_bytes()).unwrap();
        let mut registers = Registers {
            rsp: STACK,
            ..start()
        };
        let came = guest.run(&[0x9d, 0x0f, 0x05], &mut registers);
        let trapped = vector(came) == Some(1);
        assert!(
            trapped || came == Came::Out(Exit::Syscall),
            "flag {bit}: {came:?}"
        );
        // Going on with what came back, and with the flag as a signal's frame could give it.
        registers.rip = CODE + 1;
        registers.rflags |= 1 << bit;
        let came = guest.run_thread(1, &mut registers);
        assert!(
            matches!(vector(came), Some(1)) || came == Came::Out(Exit::Syscall),
            "flag {bit} again: {came:?}"
        );
    }
    guest.is_well();
}

/// A thread that asks for a trap after each instruction gets it in its own code, and not in the stub that brings it in.
#[test]
fn a_thread_that_traps_goes_on_after_a_switch() {
    let Some(mut guest) = Guest::new() else { return };
    // inc rax; inc rax; inc rax; syscall
    let code = [0x48, 0xff, 0xc0, 0x48, 0xff, 0xc0, 0x48, 0xff, 0xc0, 0x0f, 0x05];
    guest.vm.space_mut().write_backed(CODE, &code).unwrap();
    let mut traced = Registers {
        rflags: 0x202 | TRAP | ALIGNMENT,
        rdi: 11,
        rsi: 12,
        rdx: 13,
        ..start()
    };
    for step in 1..=3 {
        let mut other = Registers {
            rip: CODE + 9,
            ..start()
        };
        assert_eq!(guest.run_thread(2, &mut other), Came::Out(Exit::Syscall));
        let came = guest.run_thread(1, &mut traced);
        assert_eq!(vector(came), Some(1), "step {step}: {came:?}");
        assert_eq!((traced.rip, traced.rax), (CODE + 3 * step, step));
        assert_eq!((traced.rdi, traced.rsi, traced.rdx), (11, 12, 13));
    }
}

/// The stub's data are a page that ring 3 writes. A program that makes the stub lead to itself runs in it for ever, where
/// no switch is possible.
#[test]
fn a_thread_that_stays_in_the_stub_is_stopped() {
    let Some(mut guest) = Guest::new() else { return };
    const STUB: u64 = KERNEL_BASE + 0x1_4000;
    // mov [rbx], rax; lea rdi/rsi are areas of no one; jmp rax
    let mut registers = Registers {
        rbx: STUB + 0x1000 + 32,
        rax: STUB + 10,
        rsi: KERNEL_BASE + 0x20_0000 + 200 * PAGE_BYTES,
        rdi: KERNEL_BASE + 0x20_0000 + 201 * PAGE_BYTES,
        ..start()
    };
    guest
        .vm
        .space_mut()
        .write_backed(CODE, &[0x48, 0x89, 0x03, 0xff, 0xe0])
        .unwrap();
    let came = guest.run_once(1, &mut registers);
    assert_eq!(came, Came::Stopped);
    guest.is_well();
}
