//! Guests whose memory is known page by page, to compare with.

use std::os::fd::{AsFd, OwnedFd};

use gust_vmm::{
    Base, CHUNK_BYTES, Costs, Descendant, Hypervisor, Layout, MachineState, MappedArea, PAGE_BYTES,
    PageRange, Populate, Prot, Registers, SlotSizes, Source, Vm, WorkingSet,
};
use proptest::{
    prelude::{Strategy, prop_oneof},
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};

const BASE: u64 = 0x4000_0000;
const CHUNKS: u64 = 4;
pub const CHUNK_PAGES: u64 = CHUNK_BYTES / PAGE_BYTES;
/// A chunk has three stretches of pages that are used; the rest of it stays as it was.
const STRETCH: u64 = 24;
const STRETCHES: u64 = 3;
/// A page with a program that writes and asks to be let out, apart from the rest.
const CODE: u64 = 0x2000_0000;
/// `mov [rbx], rax; syscall`
const STORE: &[u8] = &[0x48, 0x89, 0x03, 0x0f, 0x05];

/// What may happen to a guest's memory.
#[derive(Debug, Clone)]
pub enum Op {
    Map(u64, u64, Prot),
    Unmap(u64, u64),
    Protect(u64, u64, Prot),
    HostWrites(u64, u8),
    GuestWrites(u64, u8),
    Discard(u64, u64),
    MapLarge(u64),
}

/// What should be mapped, page by page.
#[derive(Debug, Clone)]
pub struct Model(pub Vec<Option<Prot>>);

pub fn address(page: u64) -> u64 {
    BASE + page * PAGE_BYTES
}

pub fn range(page: u64, pages: u64) -> PageRange {
    PageRange::new(address(page), address(page + pages))
}

impl Model {
    pub fn areas(&self) -> Vec<MappedArea> {
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
    pub fn apply(&mut self, vm: &mut Vm, op: &Op) {
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
            Op::Protect(page, pages, prot) if self.of(page, pages).iter().all(Option::is_some) => {
                vm.space_mut().protect(range(page, pages), prot).unwrap();
                self.of(page, pages).fill(Some(prot));
            }
            Op::Protect(page, pages, prot) => {
                for at in page..page + pages {
                    if self.0[at as usize].is_some() {
                        vm.space_mut().protect(range(at, 1), prot).unwrap();
                        self.0[at as usize] = Some(prot);
                    }
                }
            }
            Op::MapLarge(page) => {
                if self.of(page, CHUNK_PAGES).iter().all(Option::is_none) {
                    vm.space_mut().clear_phantoms(range(page, CHUNK_PAGES)).unwrap();
                    vm.space_mut()
                        .map(range(page, CHUNK_PAGES), Prot::READ_WRITE, Populate::Large)
                        .unwrap();
                    self.of(page, CHUNK_PAGES).fill(Some(Prot::READ_WRITE));
                }
            }
            Op::Discard(page, pages) => {
                for at in page..page + pages {
                    if self.0[at as usize].is_some() {
                        vm.space_mut().discard(range(at, 1)).unwrap();
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
pub fn store(vm: &mut Vm, at: u64, value: u64) {
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

pub fn ops() -> impl Strategy<Value = Vec<Op>> {
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
    let chunk_prot = proptest::sample::select(vec![Prot::READ_WRITE, Prot::READ, Prot::READ_EXECUTE]);
    let prot = proptest::sample::select(prots.to_vec());
    let value = proptest::num::u8::ANY;
    let op = prop_oneof![
        (stretch.clone(), prot.clone()).prop_map(|((page, pages), prot)| Op::Map(page, pages, prot)),
        stretch.clone().prop_map(|(page, pages)| Op::Unmap(page, pages)),
        (stretch.clone(), prot).prop_map(|((page, pages), prot)| Op::Protect(page, pages, prot)),
        (stretch.clone(), value).prop_map(|((page, _), value)| Op::HostWrites(page, value)),
        (stretch.clone(), value).prop_map(|((page, _), value)| Op::GuestWrites(page, value)),
        (stretch, chunk_prot.clone()).prop_map(|((page, pages), _)| Op::Discard(page, pages)),
        // A chunk as a whole.
        (0..CHUNKS, chunk_prot).prop_map(|(chunk, prot)| Op::Protect(chunk * CHUNK_PAGES, CHUNK_PAGES, prot)),
        (0..CHUNKS).prop_map(|chunk| Op::Map(chunk * CHUNK_PAGES, CHUNK_PAGES, Prot::READ_WRITE)),
        (0..CHUNKS).prop_map(|chunk| Op::MapLarge(chunk * CHUNK_PAGES)),
        (0..CHUNKS).prop_map(|chunk| Op::Unmap(chunk * CHUNK_PAGES, CHUNK_PAGES)),
    ];
    proptest::collection::vec(op, 0..30)
}

pub fn file() -> OwnedFd {
    rustix::fs::memfd_create("difference", rustix::fs::MemfdFlags::CLOEXEC).unwrap()
}

pub fn content(vm: &Vm, model: &Model) -> Vec<(Option<Prot>, Vec<u8>)> {
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
pub struct Snapshot {
    pub state: MachineState,
    pub memory: OwnedFd,
    pub layout: OwnedFd,
    pub model: Model,
    /// What it descends from; that has a layout for grafts.
    base: Option<Box<Self>>,
}

/// How a snapshot is put into a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LaidOut {
    Recording,
    Compact,
    Fast,
    /// Into its base, or compact when it has none.
    Grafted,
}

/// A snapshot of a guest that did what `before` says, with the layout that is learned from a run.
pub fn snapshot(hypervisor: &Hypervisor, before: &[Op], recorded: &[Op]) -> Snapshot {
    let mut vm = hypervisor.create_vm(SlotSizes::BOOT).unwrap();
    vm.reset_extended_state(1).unwrap();
    let space = vm.space_mut();
    let code = PageRange::new(CODE, CODE + PAGE_BYTES);
    space.map(code, Prot::READ_EXECUTE, Populate::OnTouch).unwrap();
    space.write_backed(CODE, STORE).unwrap();
    let mut model = Model(vec![None; (CHUNKS * CHUNK_PAGES) as usize]);
    before.iter().for_each(|op| model.apply(&mut vm, op));
    let snapshot = Snapshot::capture(&mut vm, model);
    let set = snapshot.learn(hypervisor, recorded);
    snapshot.write_layout(&set);
    snapshot
}

impl Snapshot {
    fn capture(vm: &mut Vm, model: Model) -> Self {
        let memory = file();
        let state = vm.capture(&model.areas(), &[1], memory.as_fd()).unwrap();
        Self {
            state,
            memory,
            layout: file(),
            model,
            base: None,
        }
    }

    /// What a run touches.
    fn learn(&self, hypervisor: &Hypervisor, recorded: &[Op]) -> WorkingSet {
        let mut vm = self.restored(hypervisor, LaidOut::Recording);
        let mut changed = self.model.clone();
        recorded.iter().for_each(|op| changed.apply(&mut vm, op));
        vm.working_set().unwrap()
    }

    fn write_layout(&self, set: &WorkingSet) {
        let base = self.base.as_deref().map(|base| Base {
            state: &base.state,
            memory: base.memory.as_fd(),
            layout: Layout::open(base.layout.as_fd()).unwrap(),
        });
        let (memory, layout) = (self.memory.as_fd(), self.layout.as_fd());
        Layout::write(&self.state, set, Costs::DEFAULT, base, memory, layout).unwrap();
    }

    /// A snapshot of a guest that went on from this one's, which becomes its base.
    pub fn descendant(mut self, hypervisor: &Hypervisor, before: &[Op], recorded: &[Op]) -> Self {
        let mut vm = self.restored(hypervisor, LaidOut::Recording);
        let mut model = self.model.clone();
        before.iter().for_each(|op| model.apply(&mut vm, op));
        let mut snapshot = Self::capture(&mut vm, model);
        let set = snapshot.learn(hypervisor, recorded);
        let function = Descendant {
            state: &snapshot.state,
            memory: snapshot.memory.as_fd(),
            set: &set,
        };
        self.layout = file();
        let (memory, layout) = (self.memory.as_fd(), self.layout.as_fd());
        Layout::write_base(&self.state, Costs::DEFAULT, &[function], memory, layout).unwrap();
        snapshot.base = Some(Box::new(self));
        snapshot.write_layout(&set);
        snapshot
    }

    /// A machine in which it has just been laid out.
    pub fn restored(&self, hypervisor: &Hypervisor, how: LaidOut) -> Vm {
        let known = || Layout::open(self.layout.as_fd()).unwrap();
        let mut vm = hypervisor.create_vm(SlotSizes::POOLED).unwrap();
        let source = match (how, &self.base) {
            (LaidOut::Recording, _) => Source::Record,
            (LaidOut::Fast, _) => Source::Fast(known()),
            (LaidOut::Compact, _) | (LaidOut::Grafted, None) => Source::Compact(known()),
            (LaidOut::Grafted, Some(base)) => {
                vm = base.restored(hypervisor, LaidOut::Compact);
                vm.touch_ahead().unwrap();
                Source::Graft(known())
            }
        };
        vm.restore(&self.state, self.memory.as_fd(), source).unwrap();
        vm
    }
}

/// Runs a property with as many cases as are asked for, the same ones every time. Skipped, loudly, without KVM.
pub fn check<S: Strategy>(cases: u32, strategy: &S, property: impl Fn(&Hypervisor, S::Value)) {
    let hypervisor = match Hypervisor::open() {
        Ok(hypervisor) => hypervisor,
        Err(error) => {
            eprintln!("SKIPPED: no KVM on this host: {error}");
            return;
        }
    };
    let config = Config {
        cases: std::env::var("GUST_FUZZ_CASES").map_or(cases, |cases| cases.parse().unwrap()),
        failure_persistence: None,
        ..Config::default()
    };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let result = runner.run(strategy, |value| {
        property(&hypervisor, value);
        Ok(())
    });
    result.unwrap();
}

/// Fails where two guests have not the same memory.
pub fn assert_same(found: &[(Option<Prot>, Vec<u8>)], expected: &[(Option<Prot>, Vec<u8>)]) {
    for (page, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!(
            found.0 == expected.0,
            "page {page}: {:?}, {:?}",
            found.0,
            expected.0
        );
        assert!(found.1 == expected.1, "content of page {page}");
    }
}
