//! The run queue and the wait queues. Their order decides which thread runs: nothing else does.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

use crate::{io::ObjectKey, kernel::RunQueue};

/// What a thread can wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) enum WaitKey {
    /// A pipe, socket, event counter, timer or epoll instance.
    Object(ObjectKey),
    /// A futex, by address: there is one address space.
    Futex(u64),
    /// A lock of a file that is given up.
    Locks,
    /// Nothing but a signal or the deadline, of this thread.
    Alone(usize),
}

/// All queues of one guest.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct WaitQueues {
    runnable: RunQueue,
    waiting: BTreeMap<WaitKey, VecDeque<usize>>,
    deadlines: BTreeSet<(u64, usize)>,
    /// Who is at the head of the run queue while others wait for their turn, and since when. A restored guest begins anew.
    #[serde(skip)]
    turn: Option<Turn>,
}

/// A turn that someone waits for the end of.
#[derive(Debug, Clone, Copy)]
struct Turn {
    slot: usize,
    began_ns: u64,
}

impl WaitQueues {
    /// Adds a new thread at the end of the run queue.
    pub(crate) fn add(&mut self, slot: usize) {
        self.runnable.push_back(slot);
    }

    /// The thread at the head of the run queue.
    pub(crate) fn next_runnable(&self) -> Option<usize> {
        self.runnable.front().copied()
    }

    /// The thread that is about to run stays at the head until it blocks, yields or uses up its time.
    pub(crate) fn keep_current(&self, slot: usize) {
        debug_assert_eq!(self.runnable.front(), Some(&slot));
    }

    /// The running thread goes to the end of the queue.
    pub(crate) fn yield_current(&mut self) {
        if self.runnable.len() > 1 {
            self.runnable.rotate_left(1);
        }
    }

    /// Notes whose turn it is, from the moment at which another thread could have one.
    pub(crate) fn count_turn(&mut self, now_ns: u64) {
        self.turn = match (self.turn, self.next_runnable()) {
            (Some(turn), Some(slot)) if turn.slot == slot && self.others_runnable() => Some(turn),
            (Some(_) | None, Some(slot)) if self.others_runnable() => Some(Turn {
                slot,
                began_ns: now_ns,
            }),
            (Some(_) | None, _) => None,
        };
    }

    /// Ends the turn of a thread that has had the processor for `quantum_ns` while others could run, at the end of a call:
    /// who makes calls all the time would otherwise never be preempted.
    pub(crate) fn end_turn_if_due(&mut self, now_ns: u64, quantum_ns: u64) {
        if self.others_runnable() && self.turn_left(now_ns, quantum_ns) == 0 {
            self.yield_current();
        }
    }

    /// Nanoseconds that the thread at the head may go on while others wait.
    pub(crate) fn turn_left(&self, now_ns: u64, quantum_ns: u64) -> u64 {
        match (self.turn, self.next_runnable()) {
            (Some(turn), Some(slot)) if turn.slot == slot => {
                quantum_ns.saturating_sub(now_ns.saturating_sub(turn.began_ns))
            }
            (Some(_) | None, _) => quantum_ns,
        }
    }

    /// Whether another thread could run.
    pub(crate) fn others_runnable(&self) -> bool {
        self.runnable.len() > 1
    }

    /// Takes a thread from the run queue and puts it on the queues of `keys`.
    pub(crate) fn block(&mut self, slot: usize, keys: &[WaitKey], deadline_ns: Option<u64>) {
        self.runnable.retain(|runnable| *runnable != slot);
        for key in keys {
            self.waiting.entry(*key).or_default().push_back(slot);
        }
        if let Some(deadline) = deadline_ns {
            self.deadlines.insert((deadline, slot));
        }
    }

    /// Takes a thread off the queues it was put on and makes it runnable.
    pub(crate) fn unblock(&mut self, slot: usize, keys: &[WaitKey], deadline_ns: Option<u64>) {
        self.leave(slot, keys, deadline_ns);
        self.runnable.push_back(slot);
    }

    fn leave(&mut self, slot: usize, keys: &[WaitKey], deadline_ns: Option<u64>) {
        for key in keys {
            if let Some(queue) = self.waiting.get_mut(key) {
                queue.retain(|waiter| *waiter != slot);
                if queue.is_empty() {
                    self.waiting.remove(key);
                }
            }
        }
        if let Some(deadline) = deadline_ns {
            self.deadlines.remove(&(deadline, slot));
        }
    }

    /// Takes a thread off every queue for good.
    pub(crate) fn remove(&mut self, slot: usize, keys: &[WaitKey], deadline_ns: Option<u64>) {
        self.leave(slot, keys, deadline_ns);
        self.runnable.retain(|runnable| *runnable != slot);
    }

    /// Who waits for `key`, in the order of arrival.
    pub(crate) fn waiters(&self, key: WaitKey) -> Vec<usize> {
        self.waiting
            .get(&key)
            .map(|queue| queue.iter().copied().collect())
            .unwrap_or_default()
    }

    /// Moves a waiter from one queue to another without waking it.
    pub(crate) fn requeue(&mut self, slot: usize, from: WaitKey, to: WaitKey) {
        self.leave(slot, &[from], None);
        self.waiting.entry(to).or_default().push_back(slot);
    }

    /// Threads whose deadline has passed.
    pub(crate) fn expired(&self, now_ns: u64) -> Vec<usize> {
        self.deadlines
            .iter()
            .take_while(|(deadline, _)| *deadline <= now_ns)
            .map(|(_, slot)| *slot)
            .collect()
    }

    /// The next deadline of a thread.
    pub(crate) fn next_deadline(&self) -> Option<u64> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }
}
