//! The way of a function: there, changed, gone, forgotten.

use super::Fleet;
use super::state::{Armed, Function, Room};
use crate::demand::{Demand, Prices};
use crate::slab::{List, Slot};
use crate::window::Window;
use crate::{Autoscaler, Decision, FunctionId, FunctionSpec, Refusal, Time};

impl Fleet {
    pub(super) fn function_is(
        &mut self,
        now: Time,
        id: FunctionId,
        spec: FunctionSpec,
        out: &mut Vec<Decision>,
    ) {
        let prices = Prices::of(&self.config.cost, spec.memory_bytes);
        let sees_what_runs = self.sees_what_runs();
        let f = match self.function(id) {
            Some(f) => {
                let function = &mut self.functions[f];
                // A change of what one instance takes would leave levels of another measure behind.
                if function.concurrency() != spec.concurrency_per_instance.max(1) {
                    let calls = if sees_what_runs {
                        function.running
                    } else {
                        function.calls()
                    };
                    function.demand = Demand::default();
                    for _ in 0..calls {
                        function
                            .demand
                            .begin(now, &prices, spec.concurrency_per_instance, function.regular);
                    }
                }
                function.spec = spec;
                function.prices = prices;
                function.gone = false;
                f
            }
            None => self.function_new(id, spec, prices),
        };
        self.admission
            .reserve(f, spec.reserved, self.functions[f].calls());
        self.fairness.add(f, spec.tenant);
        self.remeasure(now, f);
        self.shrink(now, f, out);
        self.pursue(now, f, out);
    }

    fn function_new(&mut self, id: FunctionId, spec: FunctionSpec, prices: Prices) -> Slot {
        let f = self.functions.insert(Function {
            id,
            spec,
            gone: false,
            prices,
            demand: Demand::default(),
            window: Window::new(self.config.autoscaler.stable_window_ns),
            scaler: Autoscaler::default(),
            queue: List::default(),
            room: Default::default(),
            regular: 0,
            starting: 0,
            emergency: 0,
            running: 0,
            target: 0,
            worth: 0,
            scale_at: None,
            wake: None,
            failures: 0,
            retry_at: Time(0),
            held: false,
            snapshots: Vec::new(),
            armed: Armed::default(),
            uses: Default::default(),
            run_ns: 0,
        });
        self.function_names.insert(u64::from(id.0), f);
        f
    }

    pub(super) fn function_gone(&mut self, now: Time, id: FunctionId, out: &mut Vec<Decision>) {
        let Some(f) = self.function(id) else { return };
        self.functions[f].gone = true;
        self.functions[f].target = 0;
        self.expire(now, f, Some(Refusal::UnknownFunction), out);
        for room in [Room::IdleRegular, Room::IdleEmergency] {
            while let Some(instance) = self.functions[f].room[room as usize].first() {
                let node = self.instances[instance].node;
                self.dismiss(instance, out);
                self.feed(now, node, out);
            }
        }
        self.settle(now, f);
    }

    /// Says what a function wants, sets its timer, and forgets it if it is gone with all that it had.
    pub(super) fn settle(&mut self, now: Time, f: Slot) {
        let function = &self.functions[f];
        if function.gone && function.instances() == 0 && function.queue.is_empty() {
            self.forget_function(f);
            return;
        }
        match (self.need(now, f).is_some(), self.fairness.waits(f)) {
            (true, false) => self.fairness.join(f),
            (false, true) => self.fairness.leave(f),
            (true, true) | (false, false) => {}
        }
        self.set_wake(now, f);
    }

    fn forget_function(&mut self, f: Slot) {
        self.admission.reserve(f, None, 0);
        self.fairness.remove(f);
        let Some(function) = self.functions.remove(f) else {
            return;
        };
        self.function_names.remove(&u64::from(function.id.0));
        if let Some(wake) = function.wake {
            self.timers.remove(&(wake, f));
        }
        if function.held {
            self.held.retain(|held| *held != f);
        }
        for node in function.snapshots {
            self.nodes[node].snapshots.remove(&f);
        }
    }
}
