//! The way of a call: let in, sent to an instance or kept waiting, over.

use super::Fleet;
use super::state::{Call, Stage};
use crate::slab::{Link, Slot};
use crate::{CallId, Decision, FunctionId, Mode, Refusal, Time};

/// Least time after which a refused caller is told to try again, in nanoseconds.
const RETRY_AFTER_MIN_NS: u64 = 100_000_000;

/// Most such time.
const RETRY_AFTER_MAX_NS: u64 = 30_000_000_000;

/// Weight of one call in a function's average, as a power of two.
const RUN_WEIGHT_SHIFT: u32 = 3;

impl Fleet {
    pub(super) fn arrived(&mut self, now: Time, id: CallId, function: FunctionId, out: &mut Vec<Decision>) {
        if self.call_names.contains_key(&id.0) {
            return;
        }
        let Some(f) = self.function(function).filter(|f| !self.functions[*f].gone) else {
            refuse(id, Refusal::UnknownFunction, RETRY_AFTER_MAX_NS, out);
            return;
        };
        if let Err(reason) = self.admission.admit(f, self.functions[f].calls()) {
            refuse(id, reason, self.retry_after(f), out);
            return;
        }
        let call = self.calls.insert(Call {
            id,
            function: f,
            stage: Stage::Waiting,
            arrived: now,
            sent: now,
            lost_once: false,
            link: Link::default(),
        });
        self.call_names.insert(id.0, call);
        if !self.sees_what_runs() {
            self.demand_begins(now, f);
        }
        if self.functions[f].queue.is_empty() {
            if let Some(instance) = self.functions[f].with_room() {
                self.run(now, call, instance, out);
                return;
            }
            if self.config.mode == Mode::Dual && self.restore(now, f, call, out) {
                return;
            }
        }
        if !self
            .admission
            .may_wait(self.functions[f].queue.len(), self.config.queue_max)
        {
            let after = self.retry_after(f);
            self.forget(now, call);
            refuse(id, Refusal::QueueFull, after, out);
            return;
        }
        self.enqueue(call);
        if self.is_at_zero(f) {
            self.rescale(now, f);
        }
        self.pursue(now, f, out);
    }

    pub(super) fn given_up(&mut self, now: Time, id: CallId) {
        let Some(&call) = self.call_names.get(&id.0) else {
            return;
        };
        let f = self.calls[call].function;
        if self.calls[call].stage == Stage::Waiting {
            self.withdraw(now, call);
            self.settle(now, f);
        }
    }

    pub(super) fn ended(&mut self, now: Time, id: CallId, out: &mut Vec<Decision>) {
        let Some(&call) = self.call_names.get(&id.0) else {
            return;
        };
        match self.calls[call].stage {
            Stage::Waiting => self.given_up(now, id),
            Stage::Restoring(instance) => {
                let node = self.instances[instance].node;
                self.restored(instance);
                self.unload(now, call, instance);
                self.vacated(now, instance, out);
                self.feed(now, node, out);
            }
            Stage::Running(instance) => {
                let ran = now.0 - self.calls[call].sent.0;
                let average = &mut self.functions[self.calls[call].function].run_ns;
                *average = *average - (*average >> RUN_WEIGHT_SHIFT) + (ran >> RUN_WEIGHT_SHIFT);
                self.unload(now, call, instance);
                self.vacated(now, instance, out);
            }
        }
    }

    /// Sends a call that is in no list to an instance with room.
    pub(super) fn run(&mut self, now: Time, call: Slot, instance: Slot, out: &mut Vec<Decision>) {
        self.load(now, call, instance);
        self.calls[call].stage = Stage::Running(instance);
        self.offer(now, instance);
        let Self {
            instances,
            nodes,
            calls,
            ..
        } = self;
        let instance = &instances[instance];
        out.push(Decision::Run {
            call: calls[call].id,
            instance: instance.id,
            node: nodes[instance.node].id,
        });
    }

    /// Puts a call onto an instance, which is not on offer until [`Fleet::offer`].
    pub(super) fn load(&mut self, now: Time, call: Slot, instance: Slot) {
        self.withhold(instance);
        self.calls[call].sent = now;
        let it = &mut self.instances[instance];
        let first = it.calls.is_empty();
        it.calls.push_back(&mut self.calls, call);
        it.uses = it.uses.saturating_add(1);
        self.counts.running += 1;
        let (f, node, bytes) = (it.function, it.node, it.memory_bytes);
        self.uses[it.class as usize].called();
        self.functions[f].uses[it.class as usize].called();
        self.functions[f].running += 1;
        if self.sees_what_runs() {
            self.demand_begins(now, f);
        }
        self.count_call(node, true);
        if first {
            self.counts.busy += 1;
            self.nodes[node].busy_bytes += bytes;
            self.fairness.more(f, bytes);
        }
    }

    /// Takes a call from its instance, and forgets it.
    pub(super) fn unload(&mut self, now: Time, call: Slot, instance: Slot) {
        let it = &mut self.instances[instance];
        it.calls.remove(&mut self.calls, call);
        self.counts.running -= 1;
        let (f, node, bytes) = (it.function, it.node, it.memory_bytes);
        let is_idle = it.calls.is_empty();
        self.functions[f].running -= 1;
        if self.sees_what_runs() {
            self.demand_ends(now, f);
        }
        self.count_call(node, false);
        if is_idle {
            self.counts.busy -= 1;
            self.nodes[node].busy_bytes -= bytes;
            self.fairness.less(f, bytes);
        }
        self.forget(now, call);
    }

    /// A call waits at the end of its function's queue.
    fn enqueue(&mut self, call: Slot) {
        let f = self.calls[call].function;
        self.calls[call].stage = Stage::Waiting;
        self.functions[f].queue.push_back(&mut self.calls, call);
        self.admission.wait();
    }

    /// A call whose instance was lost before it ran waits again, where it would have been had it not left. If that has
    /// happened before, it is over.
    pub(super) fn wait_again(&mut self, now: Time, call: Slot, instance: Slot) {
        if self.calls[call].lost_once {
            self.unload(now, call, instance);
            return;
        }
        let it = &mut self.instances[instance];
        it.calls.remove(&mut self.calls, call);
        let (f, node, bytes) = (it.function, it.node, it.memory_bytes);
        self.counts.running -= 1;
        self.counts.busy -= 1;
        self.nodes[node].busy_bytes -= bytes;
        self.fairness.less(f, bytes);
        self.count_call(node, false);
        self.functions[f].running -= 1;
        if self.sees_what_runs() {
            self.demand_ends(now, f);
        }
        let function = &mut self.functions[f];
        self.calls[call].lost_once = true;
        self.calls[call].stage = Stage::Waiting;
        let arrived = self.calls[call].arrived;
        // Few can be before it: those that were lost with it.
        let mut behind = function.queue.first();
        while let Some(other) = behind
            && self.calls[other].arrived <= arrived
        {
            behind = function.queue.after(&self.calls, other);
        }
        match behind {
            Some(other) => function.queue.insert_before(&mut self.calls, call, other),
            None => function.queue.push_back(&mut self.calls, call),
        }
        self.admission.wait();
    }

    /// Takes the oldest call that waits out of its queue.
    pub(super) fn dequeue(&mut self, f: Slot) -> Option<Slot> {
        let call = self.functions[f].queue.first()?;
        self.functions[f].queue.remove(&mut self.calls, call);
        self.admission.waited();
        Some(call)
    }

    /// A call that waits is not wanted any more; its function is to be settled.
    fn withdraw(&mut self, now: Time, call: Slot) {
        let f = self.calls[call].function;
        self.functions[f].queue.remove(&mut self.calls, call);
        self.admission.waited();
        self.forget(now, call);
    }

    /// Forgets a call that is in no list.
    fn forget(&mut self, now: Time, call: Slot) {
        let Some(call) = self.calls.remove(call) else {
            return;
        };
        self.call_names.remove(&call.id.0);
        let f = call.function;
        self.admission.release(f);
        if !self.sees_what_runs() {
            self.demand_ends(now, f);
        }
    }

    /// Refuses what has waited too long, or everything; the function is to be settled.
    pub(super) fn expire(&mut self, now: Time, f: Slot, all: Option<Refusal>, out: &mut Vec<Decision>) {
        while let Some(call) = self.functions[f].queue.first() {
            let reason = match all {
                Some(reason) => reason,
                None if now >= self.deadline(f, call) && self.nodes.len() == 0 => Refusal::NoNode,
                None if now >= self.deadline(f, call) => Refusal::Deadline,
                None => return,
            };
            let id = self.calls[call].id;
            let after = self.retry_after(f);
            self.withdraw(now, call);
            refuse(id, reason, after, out);
        }
    }

    /// When a call that waits is refused.
    pub(super) fn deadline(&self, f: Slot, call: Slot) -> Time {
        let timeout = self.functions[f].spec.queue_timeout_ns;
        let wait = if self.nodes.len() == 0 {
            timeout.min(self.config.node_wait_ns)
        } else {
            timeout
        };
        Time(self.calls[call].arrived.0.saturating_add(wait))
    }

    /// When what waits now should have been served, at the pace of what runs.
    fn retry_after(&self, f: Slot) -> u64 {
        let function = &self.functions[f];
        let ahead = u64::from(function.queue.len()) + 1;
        let pace = u64::from(function.running.max(1));
        (function.run_ns.saturating_mul(ahead) / pace).clamp(RETRY_AFTER_MIN_NS, RETRY_AFTER_MAX_NS)
    }
}

fn refuse(call: CallId, reason: Refusal, retry_after_ns: u64, out: &mut Vec<Decision>) {
    out.push(Decision::Refuse {
        call,
        reason,
        retry_after_ns,
    });
}
