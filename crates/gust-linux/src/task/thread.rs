//! A guest thread is a record.

use gust_vmm::{Registers, THREADS_MAX};
use serde::{Deserialize, Serialize};

use crate::{
    kernel::{Call, Kernel, Wait},
    task::signals::Pending,
    time::Left,
};

/// Most threads of one guest. One record less than the machine has extended states, whose first is nobody's.
pub(crate) const GUEST_THREADS_MAX: usize = THREADS_MAX - 1;

/// An alternate signal stack.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AltStack {
    pub(crate) base: u64,
    /// Zero: there is none.
    pub(crate) bytes: u64,
    /// `SS_AUTODISARM`.
    pub(crate) auto_disarm: bool,
}

impl AltStack {
    /// Whether a stack pointer is on it.
    pub(crate) fn holds(&self, stack_pointer: u64) -> bool {
        self.bytes > 0 && stack_pointer > self.base && stack_pointer - self.base <= self.bytes
    }
}

/// One thread.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Thread {
    pub(crate) tid: u32,
    pub(crate) registers: Registers,
    /// The system call it is in: made again when the thread is runnable.
    pub(crate) call: Option<Call>,
    /// What it waits for; `None` when it is runnable.
    pub(crate) wait: Option<Wait>,
    /// The restartable call that a signal has ended, until the handler's frame is built.
    pub(crate) interrupted_call: Option<u64>,
    /// Where another call that a signal has ended says what was left until its deadline, until the frame is built.
    pub(crate) left: Option<(Left, u64)>,
    pub(crate) mask: u64,
    /// The mask to go back to when a call with a mask of its own ends.
    pub(crate) saved_mask: Option<u64>,
    pub(crate) pending: Pending,
    pub(crate) alt_stack: AltStack,
    /// Set to zero, and its futex woken, when the thread ends.
    pub(crate) clear_tid: u64,
    pub(crate) robust_list: u64,
    /// Bits that a futex waiter is woken by.
    pub(crate) futex_bits: u32,
    /// CPUs that it may run on, as a mask.
    pub(crate) affinity: u64,
    /// `PR_SET_NAME`.
    pub(crate) name: [u8; 16],
    /// Time in the guest, in nanoseconds.
    pub(crate) cpu_ns: u64,
}

impl Thread {
    pub(crate) fn new(tid: u32, registers: Registers) -> Self {
        Self {
            tid,
            registers,
            call: None,
            wait: None,
            interrupted_call: None,
            left: None,
            mask: 0,
            saved_mask: None,
            pending: Pending::default(),
            alt_stack: AltStack::default(),
            clear_tid: 0,
            robust_list: 0,
            futex_bits: u32::MAX,
            affinity: u64::MAX,
            name: [0; 16],
            cpu_ns: 0,
        }
    }
}

/// All threads, by the number of their record. Number 0 is never used: it is the machine's "no thread".
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Threads {
    records: Vec<Option<Thread>>,
    next_tid: u32,
}

impl Threads {
    /// The first thread; its id is the process's.
    pub(crate) fn first(pid: u32, registers: Registers) -> Self {
        Self {
            records: vec![None, Some(Thread::new(pid, registers))],
            next_tid: pid + 1,
        }
    }

    /// A new record for a thread; `None` when there are too many.
    pub(crate) fn add(&mut self, registers: Registers) -> Option<(usize, &mut Thread)> {
        let free = (1..self.records.len()).find(|slot| self.records[*slot].is_none());
        let slot = free.unwrap_or(self.records.len());
        if slot > GUEST_THREADS_MAX {
            return None;
        }
        if slot == self.records.len() {
            self.records.push(None);
        }
        let tid = self.next_tid;
        self.next_tid = self.next_tid.wrapping_add(1).max(2);
        let record = &mut self.records[slot];
        Some((slot, record.insert(Thread::new(tid, registers))))
    }

    pub(crate) fn get(&self, slot: usize) -> Option<&Thread> {
        self.records.get(slot)?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, slot: usize) -> Option<&mut Thread> {
        self.records.get_mut(slot)?.as_mut()
    }

    pub(crate) fn remove(&mut self, slot: usize) -> Option<Thread> {
        self.records.get_mut(slot)?.take()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, &Thread)> {
        self.records
            .iter()
            .enumerate()
            .filter_map(|(slot, thread)| Some((slot, thread.as_ref()?)))
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Thread> {
        self.records.iter_mut().flatten()
    }

    pub(crate) fn find_tid(&self, tid: u32) -> Option<usize> {
        self.iter()
            .find(|(_, thread)| thread.tid == tid)
            .map(|(slot, _)| slot)
    }

    pub(crate) fn len(&self) -> usize {
        self.records.iter().flatten().count()
    }
}

impl Kernel {
    /// A live thread. The scheduler hands out live numbers only.
    pub(crate) fn thread(&self, slot: usize) -> &Thread {
        match self.threads.get(slot) {
            Some(thread) => thread,
            None => unreachable!("thread record {slot} is not in use"),
        }
    }

    /// See [`Kernel::thread`].
    pub(crate) fn thread_mut(&mut self, slot: usize) -> &mut Thread {
        match self.threads.get_mut(slot) {
            Some(thread) => thread,
            None => unreachable!("thread record {slot} is not in use"),
        }
    }
}
