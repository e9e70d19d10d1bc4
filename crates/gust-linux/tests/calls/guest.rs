//! A guest on a machine without a processor: its threads do what a test has them do. The fuzz targets (`fuzz/`) use it,
//! too.

use std::sync::{Arc, LazyLock};

use gust_image::{Attributes, Image, Tree};
use gust_linux::{BootConfig, BootError, Ended, Host, Kernel, Step, Stream};
use gust_vmm::{Exit, Registers, Vm};

/// Where tests keep what calls read and write.
pub const SCRATCH: u64 = 0x1000_0000;
pub const SCRATCH_BYTES: u64 = 1 << 20;
/// An address that no guest has anything at.
pub const NOWHERE: u64 = 0x6666_0000_0000;

/// Turns that other threads get while one is waited for.
const TURNS_MAX: usize = 64;

/// A world outside in which time passes only when the guest sleeps.
#[derive(Debug, Default)]
pub struct World {
    pub now_ns: u64,
    pub output: Vec<u8>,
    pub resident_bytes: u64,
}

/// Most bytes of a guest's output that are kept: one call can write two gigabytes of zeros.
const OUTPUT_BYTES_MAX: usize = 1 << 20;

impl Host for World {
    fn monotonic_ns(&mut self) -> u64 {
        self.now_ns
    }

    fn realtime_ns(&mut self) -> u64 {
        1_700_000_000_000_000_000_u64.saturating_add(self.now_ns)
    }

    fn output(&mut self, _stream: Stream, bytes: &[u8]) {
        let room = OUTPUT_BYTES_MAX.saturating_sub(self.output.len());
        self.output.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    fn resident_bytes(&mut self) -> u64 {
        self.resident_bytes
    }
}

/// What came of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Came {
    /// It is over; what was in `rax`.
    Back(i64),
    /// It waits for what cannot come by itself.
    Blocked,
    /// The guest has ended.
    Ended,
}

pub struct Guest {
    pub vm: Vm,
    pub kernel: Kernel,
    pub world: World,
    /// The first thread.
    pub main: usize,
}

/// A static program of one page that is never run.
pub fn program() -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    let mut elf = vec![0; 0x1000];
    elf[..16].copy_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    let mut put = |at: usize, bytes: &[u8]| elf[at..at + bytes.len()].copy_from_slice(bytes);
    put(16, &2u16.to_le_bytes());
    put(18, &62u16.to_le_bytes());
    put(20, &1u32.to_le_bytes());
    put(24, &(BASE + 0x100).to_le_bytes());
    put(32, &64u64.to_le_bytes());
    put(52, &64u16.to_le_bytes());
    put(54, &56u16.to_le_bytes());
    put(56, &1u16.to_le_bytes());
    put(64, &1u32.to_le_bytes());
    put(68, &5u32.to_le_bytes());
    put(80, &BASE.to_le_bytes());
    put(88, &BASE.to_le_bytes());
    put(96, &0x1000u64.to_le_bytes());
    put(104, &0x1000u64.to_le_bytes());
    put(112, &0x1000u64.to_le_bytes());
    elf
}

/// The tree that guests start in, with these bytes as its program.
pub fn image(program: &[u8]) -> Image {
    let directory = tempfile::tempdir().unwrap();
    let mut tree = Tree::new(directory.path()).unwrap();
    for name in ["dev", "etc", "proc", "tmp"] {
        tree.directory(name.as_bytes(), Attributes::root(0o755)).unwrap();
    }
    let mut add = |path: &str, mode, content: &[u8]| {
        let mut content = content;
        tree.file(path.as_bytes(), Attributes::root(mode), &mut content)
            .unwrap();
    };
    add("program", 0o755, program);
    add("etc/hostname", 0o644, b"guest\n");
    let path = directory.path().join("root.gimg");
    gust_image::write(&tree, b"", &path).unwrap();
    Image::open(Arc::new(std::fs::read(&path).unwrap())).unwrap()
}

impl Guest {
    pub fn new() -> Self {
        static IMAGE: LazyLock<Image> = LazyLock::new(|| image(&program()));
        let mut guest = Self::boot(IMAGE.clone()).unwrap();
        let fixed = (libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
        let mapped = guest.done(libc::SYS_mmap, &[SCRATCH, SCRATCH_BYTES, 3, fixed, u64::MAX, 0]);
        assert_eq!(mapped, SCRATCH as i64);
        guest
    }

    /// A guest that has the program of an image and nothing else.
    pub fn boot(root: Image) -> Result<Self, BootError> {
        let mut vm = Vm::detached().unwrap();
        let mut world = World::default();
        let config = BootConfig {
            root,
            images: Vec::new(),
            program: "/program".into(),
            arguments: vec!["program".into()],
            environment: Vec::new(),
            directory: "/".into(),
            uid: 993,
            gid: 990,
            memory_bytes: 64 << 20,
            tmp_bytes: 1 << 20,
            cpus: 1,
            host_name: "guest".into(),
            pid: 1,
            seed: [7; 32],
        };
        let mut kernel = Kernel::boot(config, &mut vm, &mut world)?;
        let Step::Run { slot, .. } = kernel.schedule(&mut vm, &mut world) else {
            panic!("a booted guest runs")
        };
        Ok(Self {
            vm,
            kernel,
            world,
            main: slot,
        })
    }

    /// Makes a call on a thread and lets it come to an end, if it does by itself.
    pub fn call_on(&mut self, slot: usize, number: i64, args: &[u64]) -> Came {
        match self.turn_of(slot) {
            Came::Back(_) => {}
            other => return other,
        }
        let registers = self.kernel.registers_mut(slot);
        let mut all = [0; 6];
        all[..args.len()].copy_from_slice(args);
        let [rdi, rsi, rdx, r10, r8, r9] = all;
        *registers = Registers {
            rax: number as u64,
            rdi,
            rsi,
            rdx,
            r10,
            r8,
            r9,
            ..*registers
        };
        self.kernel
            .on_exit(&mut self.vm, &mut self.world, slot, Exit::Syscall);
        self.turn_of(slot)
    }

    /// Runs the others until a thread has its turn again.
    pub fn turn_of(&mut self, wanted: usize) -> Came {
        for _ in 0..TURNS_MAX {
            match self.kernel.schedule(&mut self.vm, &mut self.world) {
                Step::Run { slot, .. } if slot == wanted => {
                    return Came::Back(self.kernel.registers_mut(slot).rax as i64);
                }
                Step::Run { slot, .. } => {
                    self.kernel
                        .on_exit(&mut self.vm, &mut self.world, slot, Exit::Preempted);
                }
                Step::Sleep { for_ns } => self.world.now_ns = self.world.now_ns.saturating_add(for_ns),
                Step::Idle => return Came::Blocked,
                Step::Ended => return Came::Ended,
            }
        }
        Came::Blocked
    }

    pub fn call(&mut self, number: i64, args: &[u64]) -> Came {
        self.call_on(self.main, number, args)
    }

    /// A call of the first thread that ends.
    pub fn done(&mut self, number: i64, args: &[u64]) -> i64 {
        match self.call(number, args) {
            Came::Back(value) => value,
            other => panic!("call {number}: {other:?}"),
        }
    }

    /// A call that fails; its error number.
    pub fn fails(&mut self, number: i64, args: &[u64]) -> i32 {
        let value = self.done(number, args);
        assert!((-4095..0).contains(&value), "call {number} gave {value}");
        -value as i32
    }

    /// Puts bytes into the guest's memory, as its own code would: a page that is not there yet faults.
    pub fn put(&mut self, address: u64, bytes: &[u8]) -> u64 {
        for (n, page) in pages(address, bytes.len()) {
            if self.vm.space_mut().write(n, &bytes[page.clone()]).is_err() {
                self.page_fault(n, true);
                self.vm.space_mut().write(n, &bytes[page]).unwrap();
            }
        }
        address
    }

    /// Puts a string at the end of the scratch memory, a page for each `place`.
    pub fn text(&mut self, place: u64, text: &str) -> u64 {
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        self.put(SCRATCH + SCRATCH_BYTES - (place + 1) * 0x1000, &bytes)
    }

    /// What is in the guest's memory.
    pub fn get(&mut self, address: u64, bytes: usize) -> Vec<u8> {
        let mut out = vec![0; bytes];
        for (n, page) in pages(address, bytes) {
            if self.vm.space().read(n, &mut out[page.clone()]).is_err() {
                self.page_fault(n, false);
                self.vm.space().read(n, &mut out[page]).unwrap();
            }
        }
        out
    }

    pub fn word(&mut self, address: u64) -> u64 {
        u64::from_le_bytes(self.get(address, 8).try_into().unwrap())
    }

    /// Opens a file with these flags.
    pub fn open(&mut self, path: &str, flags: i32) -> i64 {
        let path = self.text(0, path);
        self.done(libc::SYS_openat, &[AT_FDCWD, path, flags as u64, 0o644])
    }

    /// A second thread.
    pub fn thread(&mut self) -> usize {
        let before = self.kernel.thread_slots();
        assert!(matches!(self.call_for_thread(self.main), Came::Back(1..)));
        let after = self.kernel.thread_slots();
        after.into_iter().find(|slot| !before.contains(slot)).unwrap()
    }

    /// A thread's call for another thread.
    pub fn call_for_thread(&mut self, slot: usize) -> Came {
        let flags = libc::CLONE_VM
            | libc::CLONE_FS
            | libc::CLONE_FILES
            | libc::CLONE_SIGHAND
            | libc::CLONE_THREAD
            | libc::CLONE_SYSVSEM;
        let stack = SCRATCH + SCRATCH_BYTES / 2;
        self.call_on(slot, libc::SYS_clone, &[flags as u64, stack, 0, 0, 0])
    }

    pub fn ended(&self) -> Option<Ended> {
        self.kernel.ended().cloned()
    }

    /// A fault of a thread, as the processor reports it.
    pub fn page_fault(&mut self, address: u64, write: bool) -> Came {
        let exit = Exit::Exception {
            vector: 14,
            error_code: 4 | u64::from(write) << 1,
            address,
        };
        self.kernel
            .on_exit(&mut self.vm, &mut self.world, self.main, exit);
        self.turn_of(self.main)
    }
}

/// The parts of a range that lie in one page each: address, and which bytes of the range.
fn pages(address: u64, bytes: usize) -> impl Iterator<Item = (u64, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = address + done as u64;
        let piece = (0x1000 - (at % 0x1000) as usize).min(bytes - done);
        let part = (at, done..done + piece);
        done += piece;
        (piece > 0).then_some(part)
    })
}

pub const AT_FDCWD: u64 = libc::AT_FDCWD as i64 as u64;

/// What a call gives for an error.
pub fn error(errno: i32) -> Came {
    Came::Back(-i64::from(errno))
}
