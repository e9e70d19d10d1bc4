//! A program: found by its name or through a script, loaded with its interpreter, its stack built.

use gust_vmm::{PageRange, Populate, Prot, Registers};
use rand_chacha::rand_core::RngCore as _;

use super::{BootError, reason};
use crate::{
    abi::{PAGE, Writer},
    elf::Loaded,
    errno::{EACCES, ELOOP, ENOEXEC, ENOMEM, Errno},
    fs::{Last, NodeType, Vnode},
    kernel::{Cx, Kernel},
    mm::{Name, NewArea},
};

/// Size of the first thread's stack.
const STACK_BYTES: u64 = 8 << 20;
/// First byte past the stack; it lies in chunks of its own.
const STACK_TOP: u64 = 0x7eff_ffe0_0000;
/// Stack that is made present at once.
const STACK_EAGER_BYTES: u64 = 64 << 10;
/// Most bytes of arguments and environment, and most pieces.
pub(super) const ARGUMENT_BYTES_MAX: usize = 1 << 20;
pub(super) const ARGUMENTS_MAX: usize = 10_000;
/// Flags that a program begins with: interrupts, and the bit that is always set.
const FIRST_FLAGS: u64 = 0x202;
/// Deepest nesting of scripts that are interpreted by scripts.
const SCRIPTS_MAX: usize = 4;

/// Whether arguments and environment are within the bounds.
pub(super) fn fit(arguments: &[Vec<u8>], environment: &[Vec<u8>]) -> bool {
    let bytes: usize = arguments
        .iter()
        .chain(environment)
        .map(|piece| piece.len() + 1)
        .sum();
    bytes <= ARGUMENT_BYTES_MAX && arguments.len() + environment.len() <= ARGUMENTS_MAX
}

/// A program and its interpreter, in memory.
#[derive(Debug)]
struct Program {
    loaded: Loaded,
    /// First instruction: the interpreter's, if there is one.
    start: u64,
    interpreter_base: u64,
    vdso: u64,
}

impl Kernel {
    /// The path that a program's name stands for, as `execvp` finds it: the first directory of `PATH` that has a program of
    /// this name. A name that none has is given back as it is.
    pub(super) fn find_in_path(&self, name: &str, environment: &[Vec<u8>]) -> Vec<u8> {
        /// Where programs are looked for when the environment does not say (`confstr(_CS_PATH)` and its neighbours).
        const DEFAULT_PATH: &[u8] = b"/usr/local/bin:/usr/bin:/bin";
        let name = name.as_bytes();
        if name.contains(&b'/') {
            return name.to_vec();
        }
        let path = environment
            .iter()
            .find_map(|variable| variable.strip_prefix(b"PATH="))
            .unwrap_or(DEFAULT_PATH);
        let mut candidates = path.split(|byte| *byte == b':').map(|directory| match directory {
            // An empty entry is the working directory.
            b"" => name.to_vec(),
            directory => [directory, b"/", name].concat(),
        });
        candidates
            .find(|path| self.find_program(1, path, &mut Vec::new()).is_ok())
            .unwrap_or_else(|| name.to_vec())
    }

    /// Finds what a path names: a program, or the interpreter of a script, whose arguments change then.
    pub(super) fn find_program(
        &self,
        slot: usize,
        path: &[u8],
        arguments: &mut Vec<Vec<u8>>,
    ) -> Result<(Vnode, Vec<u8>), Errno> {
        let mut path = path.to_vec();
        for _ in 0..SCRIPTS_MAX {
            let file = self
                .resolve(slot, self.process.directory, &path, Last::Follow)?
                .existing()?;
            if self.vfs.node_type(file)? != NodeType::Regular {
                return Err(EACCES);
            }
            self.check_access(file, libc::X_OK)?;
            let mut start = [0; 256];
            let read = self.vfs.read_any(file, 0, &mut start);
            let Some(line) = start[..read].strip_prefix(b"#!") else {
                return Ok((file, path));
            };
            let end = line.iter().position(|byte| *byte == b'\n').ok_or(ENOEXEC)?;
            let line = line[..end].trim_ascii();
            let split = line
                .iter()
                .position(|byte| *byte == b' ' || *byte == b'\t')
                .unwrap_or(line.len());
            let (interpreter, rest) = (line[..split].to_vec(), line[split..].trim_ascii());
            if interpreter.is_empty() {
                return Err(ENOEXEC);
            }
            let mut changed = vec![interpreter.clone()];
            if !rest.is_empty() {
                changed.push(rest.to_vec());
            }
            changed.push(path);
            changed.extend(arguments.drain(..).skip(1));
            *arguments = changed;
            path = interpreter;
        }
        Err(ELOOP)
    }

    pub(super) fn start_program(
        &mut self,
        cx: &mut Cx<'_>,
        path: &[u8],
        mut arguments: Vec<Vec<u8>>,
        environment: &[Vec<u8>],
    ) -> Result<(), BootError> {
        let failed = |errno| BootError::Program {
            program: String::from_utf8_lossy(path).into_owned(),
            reason: reason(errno),
        };
        let (file, program) = self.find_program(cx.slot, path, &mut arguments).map_err(failed)?;
        if !fit(&arguments, environment) {
            return Err(BootError::TooManyArguments);
        }
        self.enter_program(cx, file, &program, &arguments, environment)
            .map_err(failed)
    }

    /// Loads a program that has been found, and has the current thread begin with it.
    pub(super) fn enter_program(
        &mut self,
        cx: &mut Cx<'_>,
        file: Vnode,
        program: &[u8],
        arguments: &[Vec<u8>],
        environment: &[Vec<u8>],
    ) -> Result<(), Errno> {
        let loaded = self.load_program(cx, file)?;
        self.process.program = self.canonical_program(cx.slot, program);
        self.mm
            .file_names
            .insert(file, self.process.program.as_slice().into());
        let name = program.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let length = name.len().min(15);
        let mut thread_name = [0; 16];
        thread_name[..length].copy_from_slice(&name[..length]);
        let stack = self.build_stack(cx, &loaded, program, arguments, environment)?;
        let thread = self.thread_mut(cx.slot);
        thread.name = thread_name;
        thread.registers = Registers {
            rip: loaded.start,
            rsp: stack,
            rflags: FIRST_FLAGS,
            ..Registers::default()
        };
        Ok(())
    }

    fn canonical_program(&self, slot: usize, path: &[u8]) -> Vec<u8> {
        match self.resolve(slot, self.process.directory, path, Last::Follow) {
            Ok(resolved) => self.path_in(resolved.parent, &resolved.name),
            Err(_) => path.to_vec(),
        }
    }

    fn load_program(&mut self, cx: &mut Cx<'_>, file: Vnode) -> Result<Program, Errno> {
        let interpreter = self.elf_interpreter(file)?;
        let executable_stack = self.elf_executable_stack(file)?;
        let program = self.load_elf(cx, file, false)?;
        self.mm.brk_start = program.end;
        self.mm.brk = program.end;
        let mut start = program.entry;
        let mut interpreter_base = 0;
        if let Some(path) = interpreter {
            let node = self
                .resolve(cx.slot, self.vfs.root(), &path, Last::Follow)?
                .existing()?;
            let loaded = self.load_elf(cx, node, true)?;
            self.mm.file_names.insert(node, path.into());
            (start, interpreter_base) = (loaded.entry, loaded.base);
        }
        let vdso = self.map_vdso(cx)?;
        let prot = if executable_stack {
            Prot::ALL
        } else {
            Prot::READ_WRITE
        };
        let stack = PageRange::new(STACK_TOP - STACK_BYTES, STACK_TOP);
        // A program may ask for any address, also for this one.
        if !self.mm.is_free(stack) {
            return Err(ENOMEM);
        }
        self.mm.add(
            cx.vm,
            stack,
            NewArea {
                name: Name::Stack,
                ..NewArea::anonymous(prot)
            },
        )?;
        let eager = PageRange::new(STACK_TOP - STACK_EAGER_BYTES, STACK_TOP);
        cx.vm
            .space_mut()
            .map(eager, prot, Populate::OnTouch)
            .map_err(|_| ENOMEM)?;
        Ok(Program {
            loaded: program,
            start,
            interpreter_base,
            vdso,
        })
    }

    /// Lays out arguments, environment and auxiliary vector; gives the stack pointer.
    fn build_stack(
        &mut self,
        cx: &mut Cx<'_>,
        program: &Program,
        path: &[u8],
        arguments: &[Vec<u8>],
        environment: &[Vec<u8>],
    ) -> Result<u64, Errno> {
        let mut top = STACK_TOP;
        let mut push = |k: &mut Self, cx: &mut Cx<'_>, data: &[u8]| {
            top -= data.len() as u64;
            k.copy_out(cx, top, data).map(|()| top)
        };
        let terminated = |piece: &[u8]| [piece, &[0]].concat();
        let mut random = [0; 16];
        self.random.fill_bytes(&mut random);
        let path_at = push(self, cx, &terminated(path))?;
        let platform_at = push(self, cx, b"x86_64\0")?;
        let random_at = push(self, cx, &random)?;
        self.process.random_at = random_at;
        // Each list lies in order, so that /proc shows it as it was given.
        let mut place = |k: &mut Self, cx: &mut Cx<'_>, pieces: &[Vec<u8>]| {
            let joined: Vec<u8> = pieces.iter().flat_map(|piece| terminated(piece)).collect();
            let start = push(k, cx, &joined)?;
            let mut at = start;
            let mut pointers = Vec::with_capacity(pieces.len());
            for piece in pieces {
                pointers.push(at);
                at += piece.len() as u64 + 1;
            }
            Ok::<_, Errno>((start, at, pointers))
        };
        let (start, end, environment) = place(self, cx, environment)?;
        self.mm.environment = (start, end);
        let (start, end, arguments) = place(self, cx, arguments)?;
        self.mm.arguments = (start, end);
        let auxv = self.auxiliary_vector(program, path_at, platform_at, random_at);
        self.process.auxv.clone_from(&auxv);
        let mut words = Writer::default().u64(arguments.len() as u64);
        for pointer in arguments.iter().chain([&0]).chain(&environment).chain([&0]) {
            words = words.u64(*pointer);
        }
        let table = words.bytes(&auxv).done();
        let stack = (start - table.len() as u64) & !15;
        self.copy_out(cx, stack, &table)?;
        Ok(stack)
    }

    fn auxiliary_vector(&self, program: &Program, path_at: u64, platform_at: u64, random_at: u64) -> Vec<u8> {
        /// CPUID leaf 1, register edx, of every x86-64 processor since SSE2.
        const HWCAP: u64 = 0x178b_fbff;
        /// Ring 3 may write the segment bases.
        const HWCAP2_FSGSBASE: u64 = 1 << 1;
        const MINSIGSTKSZ: u64 = 5 << 10;
        const AT_MINSIGSTKSZ: u64 = 51;
        let loaded = &program.loaded;
        let (uid, gid) = (u64::from(self.process.uid), u64::from(self.process.gid));
        [
            (libc::AT_SYSINFO_EHDR, program.vdso),
            (libc::AT_HWCAP, HWCAP),
            (libc::AT_PAGESZ, PAGE),
            (libc::AT_CLKTCK, 100),
            (libc::AT_PHDR, loaded.headers),
            (libc::AT_PHENT, 56),
            (libc::AT_PHNUM, loaded.header_count),
            (libc::AT_BASE, program.interpreter_base),
            (libc::AT_FLAGS, 0),
            (libc::AT_ENTRY, loaded.entry),
            (libc::AT_UID, uid),
            (libc::AT_EUID, uid),
            (libc::AT_GID, gid),
            (libc::AT_EGID, gid),
            (libc::AT_SECURE, 0),
            (libc::AT_RANDOM, random_at),
            (libc::AT_HWCAP2, HWCAP2_FSGSBASE),
            (AT_MINSIGSTKSZ, MINSIGSTKSZ),
            (libc::AT_EXECFN, path_at),
            (libc::AT_PLATFORM, platform_at),
            (libc::AT_NULL, 0),
        ]
        .iter()
        .fold(Writer::default(), |out, (tag, value)| out.u64(*tag).u64(*value))
        .done()
    }
}
