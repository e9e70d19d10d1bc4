//! New threads. A new process is refused: there is one in a sandbox.

use crate::{
    abi::u64_at,
    errno::{EAGAIN, EINVAL, ENOSYS, Errno},
    kernel::{Cx, Flow, Kernel, SysResult},
    task::thread::GUEST_THREADS_MAX,
};

/// What a thread shares; all of it, or it would be a process.
const THREAD_FLAGS: u64 =
    (libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_SIGHAND | libc::CLONE_THREAD) as u64;

struct NewThread {
    flags: u64,
    stack: u64,
    parent_tid: u64,
    child_tid: u64,
    tls: u64,
}

impl Kernel {
    fn clone_thread(&mut self, cx: &mut Cx<'_>, new: &NewThread) -> SysResult {
        if new.flags & libc::CLONE_THREAD as u64 == 0 {
            return refuse_process();
        }
        if new.flags & THREAD_FLAGS != THREAD_FLAGS {
            return Err(EINVAL);
        }
        if self.threads.len() >= GUEST_THREADS_MAX {
            return Err(EAGAIN);
        }
        let parent = self.thread(cx.slot);
        let (mask, name, mut registers) = (parent.mask, parent.name, parent.registers);
        registers.rax = 0;
        if new.stack != 0 {
            registers.rsp = new.stack;
        }
        if new.flags & libc::CLONE_SETTLS as u64 != 0 {
            registers.fs_base = new.tls;
        }
        let mut state = [0; gust_vmm::XSAVE_BYTES];
        cx.vm.extended_state(cx.slot, &mut state).map_err(|_| EAGAIN)?;
        let (slot, thread) = self.threads.add(registers).ok_or(EAGAIN)?;
        (thread.mask, thread.name) = (mask, name);
        if new.flags & libc::CLONE_CHILD_CLEARTID as u64 != 0 {
            thread.clear_tid = new.child_tid;
        }
        let tid = thread.tid;
        cx.vm.set_extended_state(slot, &state).map_err(|_| EAGAIN)?;
        let told = self.tell_tid(cx, new, tid);
        if let Err(errno) = told {
            self.threads.remove(slot);
            return Err(errno);
        }
        self.queues.add(slot);
        Ok(Flow::Done(u64::from(tid)))
    }

    fn tell_tid(&mut self, cx: &mut Cx<'_>, new: &NewThread, tid: u32) -> Result<(), Errno> {
        if new.flags & libc::CLONE_PARENT_SETTID as u64 != 0 {
            self.copy_out(cx, new.parent_tid, &tid.to_le_bytes())?;
        }
        if new.flags & libc::CLONE_CHILD_SETTID as u64 != 0 {
            self.copy_out(cx, new.child_tid, &tid.to_le_bytes())?;
        }
        Ok(())
    }
}

fn refuse_process() -> SysResult {
    Err(ENOSYS)
}

pub(crate) fn sys_clone(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let [flags, stack, parent_tid, child_tid, tls, _] = *args;
    k.clone_thread(
        cx,
        &NewThread {
            flags,
            stack,
            parent_tid,
            child_tid,
            tls,
        },
    )
}

pub(crate) fn sys_clone3(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    const FIRST_VERSION_BYTES: u64 = 64;
    let [at, bytes, ..] = *args;
    if bytes < FIRST_VERSION_BYTES {
        return Err(EINVAL);
    }
    let raw: [u8; 64] = k.copy_in_array(cx, at)?;
    let field = |n: usize| u64_at(&raw, n * 8);
    let (stack, stack_bytes) = (field(5), field(6));
    k.clone_thread(
        cx,
        &NewThread {
            flags: field(0),
            child_tid: field(2),
            parent_tid: field(3),
            stack: if stack == 0 {
                0
            } else {
                stack.wrapping_add(stack_bytes)
            },
            tls: field(7),
        },
    )
}

/// `fork`, `vfork`.
pub(crate) fn sys_fork_refused(_k: &mut Kernel, _cx: &mut Cx<'_>, _args: &[u64; 6]) -> SysResult {
    refuse_process()
}
