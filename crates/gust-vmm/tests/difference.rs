//! Machines that are made again from their snapshot and a difference, in any layout. Skipped, loudly, where /dev/kvm is
//! missing.

use std::os::fd::{AsFd, OwnedFd};

use gust_vmm::{
    CHUNK_BYTES, Costs, Hypervisor, Layout, MachineState, MappedArea, PAGE_BYTES, PageRange, Populate, Prot,
    Registers, SlotSizes, Source, Vm, XSAVE_BYTES,
};
use proptest::{
    prelude::{Just, Strategy, prop_oneof},
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};

const BASE: u64 = 0x4000_0000;
const CHUNKS: u64 = 4;
const CHUNK_PAGES: u64 = CHUNK_BYTES / PAGE_BYTES;
/// A chunk has three stretches of pages that are used; the rest of it stays as it was.
const STRETCH: u64 = 24;
const STRETCHES: u64 = 3;
/// A page with a program that writes and asks to be let out, apart from the rest.
const CODE: u64 = 0x2000_0000;
/// `mov [rbx], rax; syscall`
const STORE: &[u8] = &[0x48, 0x89, 0x03, 0x0f, 0x05];

/// What may happen to a guest's memory.
#[derive(Debug, Clone)]
enum Op {
    Map(u64, u64, Prot),
    Unmap(u64, u64),
    Protect(u64, u64, Prot),
    HostWrites(u64, u8),
    GuestWrites(u64, u8),
}

/// What should be mapped, page by page.
#[derive(Debug, Clone)]
struct Model(Vec<Option<Prot>>);

fn address(page: u64) -> u64 {
    BASE + page * PAGE_BYTES
}

fn range(page: u64, pages: u64) -> PageRange {
    PageRange::new(address(page), address(page + pages))
}

impl Model {
    fn areas(&self) -> Vec<MappedArea> {
        let code = MappedArea {
            range: PageRange::new(CODE, CODE + PAGE_BYTES),
            prot: Prot::READ_EXECUTE,
        };
        let pages = self.0.iter().enumerate();
        let mapped = pages.filter_map(|(page, prot)| {
            Some(MappedArea {
                range: range(page as u64, 1),
                prot: (*prot)?,
            })
        });
        std::iter::once(code).chain(mapped).collect()
    }

    fn of(&mut self, page: u64, pages: u64) -> &mut [Option<Prot>] {
        &mut self.0[page as usize..(page + pages) as usize]
    }

    /// Does an operation as a kernel would, with its own knowledge of what is mapped.
    fn apply(&mut self, vm: &mut Vm, op: &Op) {
        match *op {
            Op::Map(page, pages, prot) => {
                let space = vm.space_mut();
                for at in page..page + pages {
                    if self.0[at as usize].is_none() {
                        space.clear_phantoms(range(at, 1)).unwrap();
                    }
                }
                space.map(range(page, pages), prot, Populate::OnTouch).unwrap();
                self.of(page, pages).iter_mut().for_each(|known| {
                    known.get_or_insert(prot);
                });
            }
            Op::Unmap(page, pages) => {
                vm.space_mut().unmap(range(page, pages)).unwrap();
                self.of(page, pages).fill(None);
            }
            Op::Protect(page, pages, prot) => {
                for at in page..page + pages {
                    if self.0[at as usize].is_some() {
                        vm.space_mut().protect(range(at, 1), prot).unwrap();
                        self.0[at as usize] = Some(prot);
                    }
                }
            }
            Op::HostWrites(page, value) => {
                if self.0[page as usize].is_some() {
                    vm.space_mut()
                        .write_backed(address(page) + 100, &[value; 40])
                        .unwrap();
                }
            }
            Op::GuestWrites(page, value) => {
                if self.0[page as usize].is_some_and(Prot::writable) {
                    store(vm, address(page) + 2000, u64::from(value));
                }
            }
        }
    }
}

/// Has the guest itself write a word.
fn store(vm: &mut Vm, at: u64, value: u64) {
    let mut registers = Registers {
        rip: CODE,
        rflags: 0x202,
        rax: value,
        rbx: at,
        ..Registers::default()
    };
    let exit = vm.run(1, &mut registers, None).unwrap();
    assert_eq!(exit, gust_vmm::Exit::Syscall);
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let stretch =
        (0..CHUNKS, 0..STRETCHES, 0..STRETCH, 1..=STRETCH).prop_map(|(chunk, stretch, from, pages)| {
            let first = chunk * CHUNK_PAGES + stretch * 40 + from;
            (first, pages.min(STRETCH - from))
        });
    let prots = [
        Prot::READ_WRITE,
        Prot::READ_WRITE,
        Prot::READ,
        Prot::READ_EXECUTE,
        Prot::NONE,
    ];
    let prot = proptest::sample::select(prots.to_vec());
    let value = proptest::num::u8::ANY;
    let op = prop_oneof![
        (stretch.clone(), prot.clone()).prop_map(|((page, pages), prot)| Op::Map(page, pages, prot)),
        stretch.clone().prop_map(|(page, pages)| Op::Unmap(page, pages)),
        (stretch.clone(), prot).prop_map(|((page, pages), prot)| Op::Protect(page, pages, prot)),
        (stretch.clone(), value).prop_map(|((page, _), value)| Op::HostWrites(page, value)),
        (stretch, value).prop_map(|((page, _), value)| Op::GuestWrites(page, value)),
        // A chunk as a whole.
        (0..CHUNKS, Just(Prot::READ_WRITE)).prop_map(|(chunk, prot)| Op::Map(
            chunk * CHUNK_PAGES,
            CHUNK_PAGES,
            prot
        )),
    ];
    proptest::collection::vec(op, 0..30)
}

fn file() -> OwnedFd {
    rustix::fs::memfd_create("difference", rustix::fs::MemfdFlags::CLOEXEC).unwrap()
}

fn content(vm: &Vm, model: &Model) -> Vec<(Option<Prot>, Vec<u8>)> {
    let page = |(page, known): (usize, &Option<Prot>)| {
        let mut bytes = vec![0; PAGE_BYTES as usize];
        let at = address(page as u64);
        if known.is_some() {
            vm.space().read_backed(at, &mut bytes).unwrap();
        }
        // Where nothing is mapped, what a large page shows does not count. A large page of what is only read may be run if
        // any of it may.
        let rights = known.and_then(|_| vm.space().rights_at(at));
        let rights = match rights {
            Some(Prot::READ_EXECUTE) => Some(Prot::READ),
            rights => rights,
        };
        (rights, bytes)
    };
    model.0.iter().enumerate().map(page).collect()
}

/// A snapshot of a guest, its files, and what is mapped in it.
struct Snapshot {
    state: MachineState,
    memory: OwnedFd,
    layout: OwnedFd,
    model: Model,
}

fn snapshot(hypervisor: &Hypervisor, before: &[Op], recorded: &[Op]) -> Snapshot {
    let mut vm = hypervisor.create_vm(SlotSizes::BOOT).unwrap();
    vm.reset_extended_state(1).unwrap();
    let space = vm.space_mut();
    let code = PageRange::new(CODE, CODE + PAGE_BYTES);
    space.map(code, Prot::READ_EXECUTE, Populate::OnTouch).unwrap();
    space.write_backed(CODE, STORE).unwrap();
    let mut model = Model(vec![None; (CHUNKS * CHUNK_PAGES) as usize]);
    before.iter().for_each(|op| model.apply(&mut vm, op));
    let (memory, layout) = (file(), file());
    let state = vm.capture(&model.areas(), &[1], memory.as_fd()).unwrap();
    let mut vm = hypervisor.create_vm(SlotSizes::POOLED).unwrap();
    vm.restore(&state, memory.as_fd(), Source::Record).unwrap();
    let mut changed = model.clone();
    recorded.iter().for_each(|op| changed.apply(&mut vm, op));
    let set = vm.working_set().unwrap();
    Layout::write(&state, &set, Costs::DEFAULT, None, memory.as_fd(), layout.as_fd()).unwrap();
    Snapshot {
        state,
        memory,
        layout,
        model,
    }
}

impl Snapshot {
    fn restored(&self, hypervisor: &Hypervisor, layout: usize) -> Vm {
        let known = Layout::open(self.layout.as_fd()).unwrap();
        let source = [Source::Record, Source::Compact(known), Source::Fast(known)][layout];
        let mut vm = hypervisor.create_vm(SlotSizes::POOLED).unwrap();
        vm.restore(&self.state, self.memory.as_fd(), source).unwrap();
        vm
    }
}

#[test]
fn a_machine_is_made_again_from_what_sets_it_apart() {
    let hypervisor = match Hypervisor::open() {
        Ok(hypervisor) => hypervisor,
        Err(error) => {
            eprintln!("SKIPPED: no KVM on this host: {error}");
            return;
        }
    };
    let config = Config {
        cases: std::env::var("GUST_FUZZ_CASES").map_or(60, |cases| cases.parse().unwrap()),
        failure_persistence: None,
        ..Config::default()
    };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let layouts = (0_usize..3, 0_usize..3);
    let result = runner.run(
        &(ops(), ops(), ops(), layouts),
        |(before, recorded, after, (first, second))| {
            let snapshot = snapshot(&hypervisor, &before, &recorded);
            let mut vm = snapshot.restored(&hypervisor, first);
            let mut model = snapshot.model.clone();
            after.iter().for_each(|op| model.apply(&mut vm, op));
            let mut extended = [0; XSAVE_BYTES];
            vm.extended_state(1, &mut extended).unwrap();
            extended[0] ^= 1;
            vm.set_extended_state(1, &extended).unwrap();
            let difference = vm
                .difference(&model.areas(), &[1], &snapshot.state, snapshot.memory.as_fd())
                .unwrap()
                .expect("it is small");
            let expected = content(&vm, &model);
            drop(vm);

            let mut again = snapshot.restored(&hypervisor, second);
            again.apply(&difference).unwrap();
            let found = content(&again, &model);
            for (page, (found, expected)) in found.iter().zip(&expected).enumerate() {
                assert!(
                    found.0 == expected.0,
                    "page {page}: {:?}, {:?}",
                    found.0,
                    expected.0
                );
                assert!(found.1 == expected.1, "content of page {page}");
            }
            let mut same = [0; XSAVE_BYTES];
            again.extended_state(1, &mut same).unwrap();
            assert!(same == extended);
            // It is a machine like any other.
            let writable = model.0.iter().position(|prot| prot.is_some_and(Prot::writable));
            if let Some(page) = writable {
                let at = address(page as u64) + 8;
                store(&mut again, at, 0x1234_5678);
                assert_eq!(again.space().load_u32(at).unwrap(), 0x1234_5678);
            }
            Ok(())
        },
    );
    result.unwrap();
}

/// A page that was mapped and never touched has no contents in the snapshot; its large page gives the guest some.
#[test]
fn what_is_written_where_the_snapshot_had_nothing_outlives_the_large_page() {
    let Ok(hypervisor) = Hypervisor::open() else {
        eprintln!("SKIPPED: no KVM on this host");
        return;
    };
    let before = [Op::Map(0, 10, Prot::READ_WRITE), Op::HostWrites(3, 7)];
    let snapshot = snapshot(&hypervisor, &before, &[]);
    for layout in [1, 2] {
        let mut vm = snapshot.restored(&hypervisor, layout);
        let untouched = address(100);
        store(&mut vm, untouched, 0x1234_5678);
        // Something else in the chunk changes, so that the large page is split.
        vm.space_mut().protect(range(3, 1), Prot::READ).unwrap();
        store(&mut vm, untouched + 8, 1);
        assert_eq!(vm.space().load_u32(untouched).unwrap(), 0x1234_5678, "{layout}");
        // Where nothing is mapped any more, nothing is seen.
        vm.space_mut().clear_phantoms(range(200, 1)).unwrap();
        assert!(vm.space().rights_at(address(200)).is_none());
        assert_eq!(vm.space().load_u32(untouched).unwrap(), 0x1234_5678, "{layout}");
    }
}
