//! Snapshots, states and layouts, damaged or made by someone hostile.
//!
//! Layouts and states are written by a jailed worker, and their checksums are the node's, so who reads them reads what a
//! worker of the same version wrote. Reading a bad one may end the worker that reads it, by an error or by a panic; it
//! may never touch memory that is not the machine's, hang, or take memory without bound.

use std::{
    os::fd::{AsFd, OwnedFd},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{LazyLock, Once},
};

use gust_linux::Kernel;
use gust_vmm::{
    CHUNK_BYTES, Costs, Layout, MachineState, MappedArea, PAGE_BYTES, PageRange, Populate, Prot, SlotSizes,
    Source, Vm, WorkingSet,
};

use crate::bytes::Bytes;

/// Where the template's pages are: code, data, and a chunk with a guard.
const CODE: u64 = 2 * CHUNK_BYTES;
const DATA: u64 = 3 * CHUNK_BYTES;
const STACK: u64 = 0x7000_0000_0000;
/// Memory file of a state that has any chunks; more are not there.
const CHUNKS_MAX: u64 = 64;

const SIZES: SlotSizes = SlotSizes {
    system: 16 << 20,
    image: 16 << 20,
    hot: 8 << 20,
    fresh: 16 << 20,
};

const COSTS: Costs = Costs {
    fault_ns: 20_000,
    copy_chunk_ns: 100_000,
};

/// The description of a stored snapshot.
pub fn snapshot_file(data: &[u8]) {
    gust_node::fuzzing::snapshot_description(data);
}

/// Runs what may panic, and says nothing of it if it does.
fn survived(run: impl FnOnce()) {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| std::panic::set_hook(Box::new(|_| {})));
    let _ = catch_unwind(AssertUnwindSafe(run));
}

/// The state of a machine and of a guest's kernel; what can be read is laid out.
pub fn snapshot_state(data: &[u8]) {
    let mut input = Bytes::new(data);
    let split = usize::from(input.u16());
    let (machine, kernel) = (input.take(split), input.rest());
    if let Ok(kernel) = postcard::from_bytes::<Kernel>(kernel) {
        let again = postcard::to_stdvec(&kernel).expect("a state that was read can be stored");
        assert!(postcard::from_bytes::<Kernel>(&again).is_ok());
    }
    let Ok(state) = postcard::from_bytes::<MachineState>(machine) else {
        return;
    };
    survived(|| {
        let memory = file(&[]);
        let bytes = state.memory_bytes().min(CHUNKS_MAX * CHUNK_BYTES);
        rustix::fs::ftruncate(&memory, bytes).expect("a sparse file");
        let mut vm = Vm::detached_with(SIZES).expect("a machine");
        let set = WorkingSet::empty(state.chunks.len());
        if vm.restore(&state, memory.as_fd(), Source::Record).is_ok() {
            use_space(&mut vm, &mut Bytes::new(data));
            let _ = vm.working_set();
        }
        if state.chunks.len() as u64 <= CHUNKS_MAX {
            let out = file(&[]);
            let _ = Layout::write(&state, &set, COSTS, None, memory.as_fd(), out.as_fd());
        }
    });
}

struct Template {
    state: MachineState,
    memory: OwnedFd,
    layout: Vec<u8>,
}

/// A layout of which parts have been overwritten or replaced; what can be read is laid out, used and undone.
pub fn snapshot_layout(data: &[u8]) {
    static TEMPLATE: LazyLock<Template> = LazyLock::new(template);
    let template = &*TEMPLATE;
    let mut input = Bytes::new(data);
    let mut layout = template.layout.clone();
    let patches = input.u8() % 16;
    for _ in 0..patches {
        // The header's words say where sections are; contents are patched where they are.
        let at = match input.u8() {
            0..=79 => usize::from(input.u8()),
            _ => usize::from(input.u16()),
        };
        let length = usize::from(input.u8() % 32);
        let bytes = input.take(length);
        for (place, byte) in layout.iter_mut().skip(at).zip(bytes) {
            *place = *byte;
        }
    }
    survived(|| {
        let layout = file(&layout);
        let Ok(layout) = Layout::open(layout.as_fd()) else {
            return;
        };
        let memory = template.memory.as_fd();
        let mut vm = Vm::detached_with(SIZES).expect("a machine");
        let source = match input.u8() % 3 {
            0 => Source::Compact(layout),
            1 => Source::Fast(layout),
            _ => Source::Graft(layout),
        };
        // Learning from it reads all of the memory file, so few inputs do it, and none that has ended.
        if let (63, Ok(set)) = (input.u8() % 64, layout.working_set()) {
            let out = file(&[]);
            let _ = Layout::write(&template.state, &set, COSTS, None, memory, out.as_fd());
            let functions = [gust_vmm::Descendant {
                state: &template.state,
                memory,
                set: &set,
            }];
            let _ = Layout::write_base(&template.state, COSTS, &functions, memory, out.as_fd());
        }
        if vm.restore(&template.state, memory, source).is_ok() {
            use_space(&mut vm, &mut input);
        }
    });
}

/// Does with memory what a guest's kernel does.
fn use_space(vm: &mut Vm, input: &mut Bytes<'_>) {
    const STEPS_MAX: usize = 24;
    for _ in 0..STEPS_MAX {
        let page = u64::from(input.u16() % 1024) * PAGE_BYTES;
        let start = [CODE, DATA, STACK, 0][usize::from(input.u8() % 4)] + page;
        let range = PageRange::new(start, start + u64::from(input.u8() % 8 + 1) * PAGE_BYTES);
        let prot = Prot::from_bits(input.u8());
        let space = vm.space_mut();
        match input.u8() % 8 {
            0 => drop(space.read(start + page % 4000, &mut [0; 600])),
            1 => drop(space.write(start + page % 4000, &[7; 600])),
            2 => drop(space.map(range, prot, Populate::OnTouch)),
            3 => drop(space.unmap(range)),
            4 => drop(space.protect(range, prot)),
            5 => drop(space.discard(range)),
            6 => drop(space.write_backed(start, &[9; 9])),
            _ => drop((space.first_absent(range), space.rights_at(start))),
        }
        if input.is_empty() {
            break;
        }
    }
}

fn file(content: &[u8]) -> OwnedFd {
    let file = rustix::fs::memfd_create("fuzz", rustix::fs::MemfdFlags::CLOEXEC).expect("a file in memory");
    let written = rustix::io::pwrite(&file, content, 0).expect("its content");
    assert_eq!(written, content.len());
    file
}

/// A captured machine, and a layout that was learned from writing to some of its pages.
fn template() -> Template {
    let mut vm = Vm::detached_with(SIZES).expect("a machine");
    let areas = [
        (CODE, 20, Prot::READ_EXECUTE),
        (DATA, 40, Prot::READ_WRITE),
        (STACK, 4, Prot::READ_WRITE),
        (STACK + 4 * PAGE_BYTES, 1, Prot::NONE),
    ]
    .map(|(start, pages, prot)| MappedArea {
        range: PageRange::new(start, start + pages * PAGE_BYTES),
        prot,
    });
    for area in &areas {
        vm.space_mut()
            .map(area.range, area.prot, Populate::OnTouch)
            .expect("pages");
        vm.space_mut()
            .write_backed(
                area.range.start,
                &[5; 5000][..area.range.bytes().min(5000) as usize],
            )
            .expect("contents");
    }
    let memory = file(&[]);
    let state = vm
        .capture(&areas, &[1], memory.as_fd())
        .expect("a captured machine");
    let mut vm = Vm::detached_with(SIZES).expect("a machine");
    vm.restore(&state, memory.as_fd(), Source::Record)
        .expect("a restored machine");
    for page in 0..9 {
        let at = DATA + page * 3 * PAGE_BYTES;
        vm.space_mut().write(at, b"x").expect("a write");
    }
    let set = vm.working_set().expect("a recorded run");
    let layout = file(&[]);
    Layout::write(&state, &set, COSTS, None, memory.as_fd(), layout.as_fd()).expect("a layout");
    let length = rustix::fs::fstat(&layout).expect("its length").st_size as usize;
    let mut bytes = vec![0; length];
    let read = rustix::io::pread(&layout, &mut bytes[..], 0).expect("its bytes");
    assert_eq!(read, length);
    Template {
        state,
        memory,
        layout: bytes,
    }
}

/// A captured machine and a guest's kernel, as [`snapshot_state`] takes them.
pub fn state_seed() -> Vec<u8> {
    let machine = postcard::to_stdvec(&template().state).expect("a state can be stored");
    let kernel = postcard::to_stdvec(&crate::guest::Guest::new().kernel).expect("a state can be stored");
    [&(machine.len() as u16).to_le_bytes(), machine.as_slice(), &kernel].concat()
}
