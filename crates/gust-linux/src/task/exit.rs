//! The end of a thread, and of the process.

use crate::{
    errno::EINVAL,
    kernel::{Cx, Ended, Flow, Kernel, SysResult},
    task::Thread,
};

/// Most entries of a robust list that are looked at.
const ROBUST_ENTRIES_MAX: usize = 2048;

impl Kernel {
    /// Takes a thread's record away, and it from every queue.
    pub(crate) fn remove_thread(&mut self, slot: usize) -> Option<Thread> {
        let mut thread = self.threads.remove(slot)?;
        let wait = thread.wait.as_ref();
        let keys = wait.map(|wait| wait.keys.as_slice()).unwrap_or_default();
        self.queues
            .remove(slot, keys, wait.and_then(|wait| wait.deadline_ns));
        self.release_held(thread.call.take());
        Some(thread)
    }

    fn exit_thread(&mut self, cx: &mut Cx<'_>, status: i32) {
        self.release_robust_locks(cx);
        let Some(thread) = self.remove_thread(cx.slot) else {
            return;
        };
        if self.threads.len() == 0 {
            self.end(Ended::Exit(status));
            return;
        }
        if thread.clear_tid != 0 {
            // The joiner waits on this word. A bad address is the program's own affair.
            let _ = cx.vm.space_mut().write(thread.clear_tid, &0u32.to_le_bytes());
            self.futex_wake(thread.clear_tid, 1, u32::MAX);
        }
    }

    /// Marks the locks that a dying thread holds, so that waiters learn of its death.
    fn release_robust_locks(&mut self, cx: &mut Cx<'_>) {
        let thread = self.thread(cx.slot);
        let (head, tid) = (thread.robust_list, thread.tid);
        if head == 0 {
            return;
        }
        let word = |cx: &Cx<'_>, at: u64| {
            let mut raw = [0; 8];
            cx.vm
                .space()
                .read(at, &mut raw)
                .map(|()| u64::from_le_bytes(raw))
                .ok()
        };
        let Some(offset) = word(cx, head.wrapping_add(8)) else {
            return;
        };
        let mut entries = Vec::new();
        let mut entry = word(cx, head);
        while let Some(at) = entry.filter(|at| *at & !1 != head && entries.len() < ROBUST_ENTRIES_MAX) {
            entries.push(at & !1);
            entry = word(cx, at & !1);
        }
        // The lock that was just being taken or given back.
        entries.extend(word(cx, head.wrapping_add(16)).filter(|at| *at != 0));
        for entry in entries {
            let futex = entry.wrapping_add(offset);
            let mut mine = false;
            let mut mark = |word: u32| {
                mine = word & libc::FUTEX_TID_MASK == tid;
                if mine {
                    word & libc::FUTEX_WAITERS | libc::FUTEX_OWNER_DIED
                } else {
                    word
                }
            };
            if cx.vm.space_mut().update_u32(futex, &mut mark).is_ok() && mine {
                self.futex_wake(futex, 1, u32::MAX);
            }
        }
    }
}

pub(crate) fn sys_exit(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    k.exit_thread(cx, args[0] as i32 & 0xff);
    Ok(Flow::Replaced)
}

pub(crate) fn sys_exit_group(k: &mut Kernel, _cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    k.end(Ended::Exit(args[0] as i32 & 0xff));
    Ok(Flow::Replaced)
}

pub(crate) fn sys_set_tid_address(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let thread = k.thread_mut(cx.slot);
    thread.clear_tid = args[0];
    Ok(Flow::Done(u64::from(thread.tid)))
}

pub(crate) fn sys_set_robust_list(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    const HEAD_BYTES: u64 = 24;
    if args[1] != HEAD_BYTES {
        return Err(EINVAL);
    }
    k.thread_mut(cx.slot).robust_list = args[0];
    Ok(Flow::Done(0))
}
