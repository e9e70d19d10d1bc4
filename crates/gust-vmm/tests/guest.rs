//! Runs small pieces of machine code in real guests. Skipped, loudly, where /dev/kvm is missing.

use gust_vmm::{
    Exit, Hypervisor, PAGE_BYTES, PageRange, Populate, Prot, Registers, SlotSizes, Vm, XSAVE_BYTES,
};

const CODE: u64 = 0x40_0000;
const DATA: u64 = 0x60_0000;
const STACK_TOP: u64 = 0x80_0000;

/// A guest with a page of code at [`CODE`] and four pages of data at [`DATA`]; `None` without KVM.
fn guest(code: &[u8]) -> Option<Vm> {
    let hypervisor = match Hypervisor::open() {
        Ok(hypervisor) => hypervisor,
        Err(error) => {
            eprintln!("SKIPPED: no KVM on this host: {error}");
            return None;
        }
    };
    let mut vm = hypervisor.create_vm(SlotSizes::BOOT).unwrap();
    let space = vm.space_mut();
    space
        .map(
            PageRange::new(CODE, CODE + PAGE_BYTES),
            Prot::READ_EXECUTE,
            Populate::OnTouch,
        )
        .unwrap();
    space
        .map(
            PageRange::new(DATA, DATA + 4 * PAGE_BYTES),
            Prot::READ_WRITE,
            Populate::OnTouch,
        )
        .unwrap();
    space.write_backed(CODE, code).unwrap();
    vm.reset_extended_state(1).unwrap();
    vm.reset_extended_state(2).unwrap();
    Some(vm)
}

fn start() -> Registers {
    Registers {
        rip: CODE,
        rsp: STACK_TOP,
        rflags: 0x202,
        ..Registers::default()
    }
}

fn run(vm: &mut Vm, registers: &mut Registers) -> Exit {
    vm.run(1, registers, None).unwrap()
}

/// `mov rax, [rbx]; syscall`
const LOAD: &[u8] = &[0x48, 0x8b, 0x03, 0x0f, 0x05];
/// `mov [rbx], rax; syscall`
const STORE: &[u8] = &[0x48, 0x89, 0x03, 0x0f, 0x05];

#[test]
fn a_system_call_leaves_past_its_instruction() {
    let Some(mut vm) = guest(&[0x0f, 0x05, 0x0f, 0x05]) else {
        return;
    };
    let mut registers = Registers {
        rax: 39,
        rdi: 7,
        ..start()
    };
    assert_eq!(run(&mut vm, &mut registers), Exit::Syscall);
    assert_eq!((registers.rip, registers.rax, registers.rdi), (CODE + 2, 39, 7));
    registers.rax = 5;
    assert_eq!(run(&mut vm, &mut registers), Exit::Syscall);
    assert_eq!((registers.rip, registers.rax), (CODE + 4, 5));
}

#[test]
fn segment_bases_are_read_back() {
    // rdfsbase rax; wrgsbase rdi; syscall
    let Some(mut vm) = guest(&[
        0xf3, 0x48, 0x0f, 0xae, 0xc0, 0xf3, 0x48, 0x0f, 0xae, 0xdf, 0x0f, 0x05,
    ]) else {
        return;
    };
    let mut registers = Registers {
        fs_base: 0x1234_5000,
        rdi: 0x6789_a000,
        ..start()
    };
    assert_eq!(run(&mut vm, &mut registers), Exit::Syscall);
    assert_eq!(
        (registers.rax, registers.gs_base, registers.fs_base),
        (0x1234_5000, 0x6789_a000, 0x1234_5000)
    );
}

#[test]
fn faults_carry_address_and_kind() {
    let Some(mut vm) = guest(LOAD) else { return };
    let mut registers = Registers {
        rbx: 0x5634_1240_0000,
        ..start()
    };
    let Exit::Exception {
        vector: 14,
        error_code,
        address,
    } = run(&mut vm, &mut registers)
    else {
        panic!("no page fault")
    };
    assert_eq!(
        (error_code, address, registers.rip, registers.rsp),
        (4, 0x5634_1240_0000, CODE, STACK_TOP)
    );
}

#[test]
fn other_exceptions_name_their_vector() {
    for (code, vector) in [
        (&[0x0f, 0x0b][..], 6),              // ud2
        (&[0xcc][..], 3),                    // int3
        (&[0x31, 0xc9, 0xf7, 0xf1][..], 0),  // div by zero
        (&[0xf4][..], 13),                   // hlt
        (&[0xe7, 0x20][..], 13),             // out on an exception port: not for ring 3
        (&[0xe7, 0x18][..], 13),             // out on the ring-0 stub's port
        (&[0x66, 0xba, 0, 3, 0xef][..], 13), // out on port 0x300, past the bitmap
    ] {
        let Some(mut vm) = guest(code) else { return };
        let mut registers = start();
        let exit = run(&mut vm, &mut registers);
        let Exit::Exception { vector: found, .. } = exit else {
            panic!("{code:x?}: {exit:?}")
        };
        assert_eq!(found, vector, "{code:x?}");
    }
}

#[test]
fn ring_3_cannot_raise_its_io_privilege() {
    // mov r11d, 0x3202; mov ecx, CODE + 16; out 0x10, eax (a forged call asking for IOPL 3); then out 0x20, eax
    let mut code = vec![0x41, 0xbb, 0x02, 0x32, 0, 0, 0xb9];
    code.extend_from_slice(&(CODE as u32 + 16).to_le_bytes());
    code.extend_from_slice(&[0xe7, 0x10]);
    code.resize(16, 0x90);
    code.extend_from_slice(&[0xe7, 0x20]);
    let Some(mut vm) = guest(&code) else { return };
    let mut registers = start();
    assert_eq!(run(&mut vm, &mut registers), Exit::Syscall);
    assert_eq!(registers.rflags & 0x3000, 0);
    registers.rflags |= 0x3000;
    assert!(matches!(
        run(&mut vm, &mut registers),
        Exit::Exception { vector: 13, .. }
    ));
}

#[test]
fn the_hypervisors_own_region_is_closed_to_ring_3() {
    for address in [
        0x7f80_0000_8000u64,
        0x7f80_0000_9000,
        0x7f80_0001_1000,
        0x7f80_0040_0000,
    ] {
        let Some(mut vm) = guest(LOAD) else { return };
        let mut registers = Registers {
            rbx: address,
            ..start()
        };
        let exit = run(&mut vm, &mut registers);
        assert!(
            matches!(
                exit,
                Exit::Exception {
                    vector: 14,
                    error_code: 5,
                    ..
                }
            ),
            "{address:#x}: {exit:?}"
        );
        assert!(vm.space().read(address, &mut [0; 8]).is_err());
        assert!(vm.space_mut().write(address, &[0; 8]).is_err());
    }
}

fn access(vm: &mut Vm, code: &[u8], address: u64) -> Result<u64, u64> {
    vm.space_mut().write_backed(CODE, code).unwrap();
    let mut registers = Registers {
        rbx: address,
        rax: 0x77,
        ..start()
    };
    match run(vm, &mut registers) {
        Exit::Syscall => Ok(registers.rax),
        Exit::Exception {
            vector: 14,
            error_code,
            ..
        } => Err(error_code),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_taken_away_is_gone_at_once() {
    let Some(mut vm) = guest(LOAD) else { return };
    let page = |n: u64| PageRange::new(DATA + n * PAGE_BYTES, DATA + (n + 1) * PAGE_BYTES);
    for n in 0..4 {
        assert_eq!(access(&mut vm, STORE, page(n).start), Ok(0x77));
    }
    vm.space_mut().protect(page(0), Prot::READ).unwrap();
    assert_eq!(access(&mut vm, LOAD, page(0).start), Ok(0x77));
    assert_eq!(
        access(&mut vm, STORE, page(0).start),
        Err(7),
        "write to a read-only page"
    );
    vm.space_mut().protect(page(1), Prot::NONE).unwrap();
    assert_eq!(
        access(&mut vm, LOAD, page(1).start),
        Err(4),
        "read of a page without rights"
    );
    vm.space_mut().protect(page(1), Prot::READ_WRITE).unwrap();
    assert_eq!(
        access(&mut vm, LOAD, page(1).start),
        Ok(0x77),
        "contents survive a time without rights"
    );
    vm.space_mut().unmap(page(2)).unwrap();
    assert_eq!(
        access(&mut vm, LOAD, page(2).start),
        Err(4),
        "read of an unmapped page"
    );
    vm.space_mut()
        .map(page(2), Prot::READ_WRITE, Populate::OnTouch)
        .unwrap();
    assert_eq!(access(&mut vm, LOAD, page(2).start), Ok(0), "a new page is zero");
    vm.space_mut().discard(page(3)).unwrap();
    assert_eq!(
        access(&mut vm, LOAD, page(3).start),
        Ok(0),
        "a discarded page is zero"
    );
    assert_eq!(access(&mut vm, STORE, page(3).start), Ok(0x77));
}

/// The memory of a large page that was unmapped shows at its next address only. On hosts with shadow paging it once
/// showed at the old one, too, when something was mapped there again: the stacks of threads were mixed up.
#[test]
fn a_reused_large_page_has_one_address() {
    const CHUNK: u64 = gust_vmm::CHUNK_BYTES;
    let Some(mut vm) = guest(STORE) else { return };
    let chunk = |n: u64| PageRange::new(0x4000_0000 + n * CHUNK, 0x4000_0000 + (n + 1) * CHUNK);
    let last_page = |n: u64| chunk(n).end - PAGE_BYTES;
    let map = |vm: &mut Vm, n: u64| {
        vm.space_mut()
            .map(chunk(n), Prot::READ_WRITE, Populate::Large)
            .unwrap();
    };
    let mark = |vm: &mut Vm, n: u64| {
        // A page that is given back makes the host hold the chunk in small pages.
        let first = PageRange::new(chunk(n).start, chunk(n).start + PAGE_BYTES);
        assert_eq!(access(vm, STORE, first.start), Ok(0x77));
        vm.space_mut().discard(first).unwrap();
        assert_eq!(access(vm, STORE, last_page(n)), Ok(0x77));
    };
    map(&mut vm, 0);
    mark(&mut vm, 0);
    vm.space_mut().unmap(chunk(0)).unwrap();
    map(&mut vm, 1);
    mark(&mut vm, 1);
    map(&mut vm, 0);
    assert_eq!(access(&mut vm, LOAD, last_page(0)), Ok(0), "new memory is zero");
    assert_eq!(access(&mut vm, LOAD, last_page(1)), Ok(0x77));
    vm.space_mut().unmap(chunk(0)).unwrap();
    assert_eq!(access(&mut vm, LOAD, last_page(0)), Err(4));
}

#[test]
fn pages_without_execute_right_do_not_run() {
    let Some(mut vm) = guest(LOAD) else { return };
    vm.space_mut().write(DATA, &[0x0f, 0x05]).unwrap();
    let mut registers = Registers { rip: DATA, ..start() };
    assert!(matches!(
        run(&mut vm, &mut registers),
        Exit::Exception {
            vector: 14,
            error_code: 0x15,
            ..
        }
    ));
    vm.space_mut()
        .protect(PageRange::new(DATA, DATA + PAGE_BYTES), Prot::READ_EXECUTE)
        .unwrap();
    let mut registers = Registers { rip: DATA, ..start() };
    assert_eq!(run(&mut vm, &mut registers), Exit::Syscall);
}

/// A random walk over map, protect, unmap and discard, each followed by guest accesses that are compared with a model.
/// Entries that the guest has used are where stale translations would show.
#[test]
fn stale_translations_never_show() {
    const PAGES: usize = 1040; // two chunks and a bit: tables of their own
    let Some(mut vm) = guest(LOAD) else { return };
    let base = 0x2000_0000 - 8 * PAGE_BYTES;
    let at = |page: usize| base + page as u64 * PAGE_BYTES;
    let mut model: Vec<Option<(Prot, u64)>> = vec![None; PAGES];
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move |bound: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % bound as u64) as usize
    };
    for step in 0..400 {
        let first = random(PAGES);
        let count = 1 + random(if step % 7 == 0 { PAGES } else { 16 });
        let last = (first + count).min(PAGES);
        let range = PageRange::new(at(first), at(last));
        match random(5) {
            0 | 1 => {
                let populate = [Populate::OnTouch, Populate::Now, Populate::Large][random(3)];
                vm.space_mut().map(range, Prot::READ_WRITE, populate).unwrap();
                for page in &mut model[first..last] {
                    page.get_or_insert((Prot::READ_WRITE, 0));
                }
            }
            2 => {
                let prot = [Prot::NONE, Prot::READ, Prot::READ_WRITE, Prot::ALL][random(4)];
                vm.space_mut().protect(range, prot).unwrap();
                model[first..last]
                    .iter_mut()
                    .flatten()
                    .for_each(|page| page.0 = prot);
            }
            3 => {
                vm.space_mut().unmap(range).unwrap();
                model[first..last].fill(None);
            }
            _ => {
                vm.space_mut().discard(range).unwrap();
                model[first..last]
                    .iter_mut()
                    .flatten()
                    .for_each(|page| page.1 = 0);
            }
        }
        for probe in 0..12 {
            let page = if probe < 6 {
                first + random(last - first)
            } else {
                random(PAGES)
            };
            let loaded = access(&mut vm, LOAD, at(page));
            let expected = model[page]
                .filter(|(prot, _)| prot.readable())
                .map(|(_, value)| value);
            assert_eq!(
                loaded.ok(),
                expected,
                "step {step}, load from page {page}: {loaded:?}"
            );
            let stored = access(&mut vm, STORE, at(page));
            let writable = model[page].is_some_and(|(prot, _)| prot.writable());
            assert_eq!(
                stored.is_ok(),
                writable,
                "step {step}, store to page {page}: {stored:?}"
            );
            if let (true, Some(page)) = (writable, &mut model[page]) {
                page.1 = 0x77;
            }
            assert_eq!(vm.space().rights_at(at(page)), model[page].map(|(prot, _)| prot));
        }
    }
}

#[test]
fn an_endless_loop_is_preempted_and_goes_on() {
    // inc rax; jmp back
    let Some(mut vm) = guest(&[0x48, 0xff, 0xc0, 0xeb, 0xfb]) else {
        return;
    };
    let mut registers = start();
    for _ in 0..5 {
        let before = registers.rax;
        let exit = vm.run(1, &mut registers, Some(2_000_000)).unwrap();
        assert_eq!(exit, Exit::Preempted);
        assert!(registers.rax > before, "the loop went on");
        assert!((CODE..CODE + 5).contains(&registers.rip));
    }
}

/// Time that is up before a switch of threads has ended was lost once, and the thread ran without a bound.
#[test]
fn time_that_is_up_during_a_switch_still_ends_the_run() {
    // inc rax; jmp back
    let Some(mut vm) = guest(&[0x48, 0xff, 0xc0, 0xeb, 0xfb]) else {
        return;
    };
    let mut threads = [(1, start()), (2, start())];
    for _ in 0..50 {
        for (slot, registers) in &mut threads {
            assert_eq!(vm.run(*slot, registers, Some(1)).unwrap(), Exit::Preempted);
        }
    }
}

#[test]
fn threads_have_extended_states_of_their_own() {
    // movq xmm5, rdi; syscall; movq rax, xmm5; syscall
    let code = [
        0x66, 0x48, 0x0f, 0x6e, 0xef, 0x0f, 0x05, 0x66, 0x48, 0x0f, 0x7e, 0xe8, 0x0f, 0x05,
    ];
    let Some(mut vm) = guest(&code) else { return };
    let mut threads = [(1, 0x1111u64), (2, 0x2222)].map(|(slot, value)| {
        (
            slot,
            value,
            Registers {
                rdi: value,
                rbx: value,
                rsi: value + 1,
                rdx: value + 2,
                rax: value + 3,
                ..start()
            },
        )
    });
    for (slot, _, registers) in &mut threads {
        assert_eq!(vm.run(*slot, registers, None).unwrap(), Exit::Syscall);
    }
    for (slot, value, registers) in &mut threads {
        assert_eq!(vm.run(*slot, registers, None).unwrap(), Exit::Syscall);
        assert_eq!(registers.rax, *value, "xmm5 of thread {slot}");
        let kept = (registers.rdi, registers.rbx, registers.rsi, registers.rdx);
        assert_eq!(
            kept,
            (*value, *value, *value + 1, *value + 2),
            "the switch leaves no trace"
        );
    }
    let mut state = [0; XSAVE_BYTES];
    vm.extended_state(2, &mut state).unwrap();
    // XMM registers start at byte 160 of the area, 16 bytes each.
    assert_eq!(state[160 + 5 * 16..160 + 5 * 16 + 8], 0x2222u64.to_le_bytes());
    state[160 + 5 * 16] = 0x99;
    vm.set_extended_state(2, &state).unwrap();
    let registers = &mut threads[1].2;
    registers.rip = CODE + 7;
    assert_eq!(vm.run(2, registers, None).unwrap(), Exit::Syscall);
    assert_eq!(registers.rax, 0x2299);
}

/// KVM keeps a fault that it had begun to deliver when the time was up, and would deliver it at the next entry, whichever thread
/// that is for: in the stub that switches them, where both lost their extended states.
#[test]
fn a_fault_under_way_is_no_other_threads() {
    // movq xmm5, rdi; mov [rbx], al; movq rax, xmm5; syscall
    let code = [
        0x66, 0x48, 0x0f, 0x6e, 0xef, 0x88, 0x03, 0x66, 0x48, 0x0f, 0x7e, 0xe8, 0x0f, 0x05,
    ];
    let Some(mut vm) = guest(&code) else { return };
    const STORE_AT: u64 = CODE + 5;
    const NOWHERE: u64 = 0x5634_1240_0000;
    let [mut faulting, mut other] =
        [(0x1111, NOWHERE), (0x2222, DATA)].map(|(rdi, rbx)| Registers { rdi, rbx, ..start() });
    assert_eq!(vm.run(2, &mut other, None).unwrap(), Exit::Syscall);
    let (mut faults, mut preempted) = (0, 0);
    // A turn takes some 50 us here and 2 us on hardware: the end of its time is moved through all of it.
    for turn in 0..4000u64 {
        match vm.run(1, &mut faulting, Some(1 + turn * 13 % 60_000)).unwrap() {
            Exit::Preempted => preempted += 1,
            Exit::Exception {
                vector: 14, address, ..
            } => {
                assert_eq!((address, faulting.rip), (faulting.rbx, STORE_AT));
                faulting.rbx += PAGE_BYTES;
                faults += 1;
            }
            exit => panic!("turn {turn}: {exit:?}"),
        }
        other.rip = STORE_AT;
        assert_eq!(vm.run(2, &mut other, None).unwrap(), Exit::Syscall, "turn {turn}");
        assert_eq!(other.rax, 0x2222, "xmm5 of the other thread, turn {turn}");
    }
    assert!(
        faults > 0 && preempted > 0,
        "{faults} faults, {preempted} times preempted"
    );
    faulting.rbx = DATA;
    assert_eq!(run(&mut vm, &mut faulting), Exit::Syscall);
    assert_eq!(faulting.rax, 0x1111, "xmm5 of the thread that faulted");
}

#[test]
fn a_spoilt_xsave_area_harms_its_thread_only() {
    let Some(mut vm) = guest(&[0x0f, 0x05]) else {
        return;
    };
    let mut spoilt = [0; XSAVE_BYTES];
    spoilt[512..576].fill(0xff); // reserved bits of the XSAVE header
    vm.set_extended_state(2, &spoilt).unwrap();
    let mut registers = Registers {
        rax: 12,
        rdi: 34,
        ..start()
    };
    assert_eq!(vm.run(2, &mut registers, None).unwrap(), Exit::Preempted);
    assert_eq!((registers.rip, registers.rax, registers.rdi), (CODE, 12, 34));
    assert_eq!(vm.run(2, &mut registers, None).unwrap(), Exit::Syscall);
}

#[test]
fn words_change_in_one_step() {
    let Some(mut vm) = guest(LOAD) else { return };
    let space = vm.space_mut();
    space.write(DATA, &5u32.to_le_bytes()).unwrap();
    assert_eq!(space.update_u32(DATA, &mut |word| word + 2), Ok(5));
    assert_eq!(space.load_u32(DATA), Ok(7));
    assert!(space.load_u32(DATA + 2).is_err(), "unaligned");
    assert!(space.update_u32(CODE, &mut |word| word).is_err(), "read-only");
}

#[test]
fn moved_pages_keep_their_contents() {
    let Some(mut vm) = guest(LOAD) else { return };
    assert_eq!(access(&mut vm, STORE, DATA), Ok(0x77));
    let from = PageRange::new(DATA, DATA + 2 * PAGE_BYTES);
    let to = 0x7000_0000;
    vm.space_mut().move_pages(from, to, Prot::READ_WRITE).unwrap();
    assert_eq!(access(&mut vm, LOAD, to), Ok(0x77));
    assert_eq!(access(&mut vm, LOAD, DATA), Err(4));
}
