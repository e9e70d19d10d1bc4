//! `execve`: the process goes on as another program, with its id, its directory and the descriptors that are not closed by it.
//!
//! All that a program's files tell is checked while the old program is still there to be told. Should the new one then not
//! be loaded, for want of memory or room, the process ends, as on Linux.

use gust_vmm::{PageRange, Registers, USER_END, USER_START};
use libc::{AT_EMPTY_PATH, AT_FDCWD, AT_SYMLINK_NOFOLLOW};

use super::program::{ARGUMENT_BYTES_MAX, ARGUMENTS_MAX, fit};
use crate::{
    errno::{E2BIG, EBADF, EINVAL, ELOOP, ENAMETOOLONG, ENOENT, ENOMEM, Errno},
    fs::{Last, NodeType, Vnode},
    kernel::{Cx, Ended, Flow, Kernel, SysResult},
    task::Thread,
};

impl Kernel {
    /// Copies a list of strings in: pointers up to a zero. A missing list is an empty one.
    fn copy_in_strings(&mut self, cx: &mut Cx<'_>, at: u64) -> Result<Vec<Vec<u8>>, Errno> {
        let mut strings = Vec::new();
        let mut room = ARGUMENT_BYTES_MAX;
        if at == 0 {
            return Ok(strings);
        }
        for place in 0..=ARGUMENTS_MAX as u64 {
            let pointer = self.copy_in_u64(cx, at.wrapping_add(8 * place))?;
            if pointer == 0 {
                return Ok(strings);
            }
            let string = self
                .copy_in_string(cx, pointer, room)
                .map_err(|errno| if errno == ENAMETOOLONG { E2BIG } else { errno })?;
            room -= string.len() + 1;
            strings.push(string);
        }
        Err(E2BIG)
    }

    fn exec(&mut self, cx: &mut Cx<'_>, path: &[u8], arguments: u64, environment: u64) -> SysResult {
        let mut arguments = self.copy_in_strings(cx, arguments)?;
        if arguments.is_empty() {
            // A program may rely on having a name, so it gets an empty one, as on Linux.
            arguments.push(Vec::new());
        }
        let environment = self.copy_in_strings(cx, environment)?;
        if path.is_empty() {
            return Err(ENOENT);
        }
        let (file, program) = self.find_program(cx.slot, path, &mut arguments)?;
        if !fit(&arguments, &environment) {
            return Err(E2BIG);
        }
        self.check_elf(file)?;
        if let Some(interpreter) = self.elf_interpreter(file)? {
            let found = self.resolve(cx.slot, self.vfs.root(), &interpreter, Last::Follow)?;
            self.check_elf(found.existing()?)?;
        }
        cx.vm.reset_extended_state(cx.slot).map_err(|_| ENOMEM)?;
        // The file may have no name, and no descriptor but one that is closed now.
        if let Vnode::Memory(number) = file {
            self.vfs.memory.hold(number);
        }
        self.leave_program(cx);
        let entered = self.enter_program(cx, file, &program, &arguments, &environment);
        if let Vnode::Memory(number) = file {
            self.vfs.memory.release(number);
        }
        if entered.is_err() {
            self.end(Ended::Signal(libc::SIGKILL));
        }
        self.check_memory(cx);
        Ok(Flow::Replaced)
    }

    /// Takes away what a process does not keep when it becomes another program: other threads, descriptors that say so,
    /// memory, handlers of signals, timers, registrations for barriers.
    fn leave_program(&mut self, cx: &mut Cx<'_>) {
        for slot in self.thread_slots() {
            if slot != cx.slot {
                self.remove_thread(slot);
            }
        }
        let descriptors: Vec<u32> = self.files.descriptors().collect();
        for fd in descriptors.into_iter().map(u64::from) {
            if self.files.close_on_exec(fd) == Some(true) {
                // It is there: nothing else runs between the list and this.
                let _ = self.close(fd);
            }
        }
        self.unmap(cx, PageRange::new(USER_START, USER_END));
        self.mm.file_names.clear();
        self.signals.forget_handlers();
        self.clock.forget_timers();
        self.process.dumpable = 1;
        self.process.barriers = 0;
        let pid = self.process.pid;
        let thread = self.thread_mut(cx.slot);
        // Whichever thread it was, it is the first one now.
        *thread = Thread {
            mask: thread.mask,
            pending: std::mem::take(&mut thread.pending),
            affinity: thread.affinity,
            cpu_ns: thread.cpu_ns,
            ..Thread::new(pid, Registers::default())
        };
    }
}

pub(crate) fn sys_execve(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let path = k.copy_in_path(cx, args[0])?;
    k.exec(cx, &path, args[1], args[2])
}

pub(crate) fn sys_execveat(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let [fd, path, arguments, environment, flags, _] = *args;
    let flags = flags as i32;
    if flags & !(AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) != 0 {
        return Err(EINVAL);
    }
    let mut path = k.copy_in_path(cx, path)?;
    let by_descriptor = path.is_empty() && flags & AT_EMPTY_PATH != 0;
    if flags & AT_SYMLINK_NOFOLLOW != 0 && !by_descriptor {
        let node = k.resolve_at(cx, fd, &path, Last::Keep)?.existing()?;
        if k.vfs.node_type(node)? == NodeType::Symlink {
            return Err(ELOOP);
        }
    }
    // A name for what the descriptor means, as Linux makes one for interpreters of scripts.
    if by_descriptor || fd as i32 != AT_FDCWD && !path.is_empty() && path[0] != b'/' {
        let fd = fd as u32;
        k.files.get(u64::from(fd)).ok_or(EBADF)?;
        let separator = if by_descriptor { "" } else { "/" };
        path = [format!("/dev/fd/{fd}{separator}").as_bytes(), &path].concat();
    }
    k.exec(cx, &path, arguments, environment)
}
