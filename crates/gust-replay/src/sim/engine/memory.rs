//! Where the memory comes from that calls touch: freed a while ago on the node, or from the machine beneath it.
//!
//! A virtual machine may give free memory back to its host (virtio's balloon, "free page reporting"; Linux does so two seconds after it
//! was freed). To touch it again takes several times as long as memory that was freed just now, which is used first.

use std::collections::VecDeque;

use super::{Call, Engine, Instance, Policy};

/// Memory of a node that was freed and is still there, the newest last.
#[derive(Debug, Default)]
pub(super) struct Freed(VecDeque<Parcel>);

#[derive(Debug, Clone, Copy)]
struct Parcel {
    freed_ns: u64,
    mib: u64,
}

impl Freed {
    fn add(&mut self, now_ns: u64, after_ns: u64, mib: u64) {
        self.forget(now_ns, after_ns);
        self.0.push_back(Parcel {
            freed_ns: now_ns,
            mib,
        });
    }

    /// Takes memory, the newest first, and says how much of what is wanted there was.
    fn take(&mut self, now_ns: u64, after_ns: u64, wanted_mib: u64) -> u64 {
        self.forget(now_ns, after_ns);
        let mut found = 0;
        while let Some(parcel) = self.0.back_mut() {
            let taken = parcel.mib.min(wanted_mib - found);
            found += taken;
            parcel.mib -= taken;
            if parcel.mib > 0 {
                break;
            }
            self.0.pop_back();
        }
        found
    }

    fn forget(&mut self, now_ns: u64, after_ns: u64) {
        while let Some(oldest) = self.0.front()
            && now_ns - oldest.freed_ns >= after_ns
        {
            self.0.pop_front();
        }
    }
}

impl<P: Policy> Engine<'_, P> {
    /// What it takes a call to touch its function's memory, in nanoseconds of work: nothing in an instance that has it.
    pub(super) fn touch(&mut self, sent: Call, function: u32) -> u64 {
        let costs = self.costs_of(sent.node);
        let mib = u64::from(self.memory_mib(function));
        let Some(instance) = self.instances.get_mut(&sent.instance) else {
            return 0;
        };
        if std::mem::replace(&mut instance.touched, true) {
            return 0;
        }
        instance.bytes += mib << 20;
        self.use_now.memory_bytes += mib << 20;
        let freed = &mut self.nodes[sent.node as usize].freed;
        let found = freed.take(self.now_ns, costs.returned_after_ns, mib);
        let here = costs.touch.draw(&mut self.random).saturating_mul(found);
        let returned = costs.touch_returned.draw(&mut self.random);
        here.saturating_add(returned.saturating_mul(mib - found))
    }

    /// An instance has given its function's memory up.
    pub(super) fn free(&mut self, instance: &Instance) {
        if !instance.touched {
            return;
        }
        let after_ns = self.costs_of(instance.node).returned_after_ns;
        let mib = u64::from(self.memory_mib(instance.function));
        let freed = &mut self.nodes[instance.node as usize].freed;
        freed.add(self.now_ns, after_ns, mib);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_freed_last_is_taken_first_and_what_is_old_is_gone() {
        let mut freed = Freed::default();
        assert_eq!(freed.take(0, 10, 5), 0);
        freed.add(0, 10, 3);
        freed.add(5, 10, 4);
        // Four of the newer, one of the older.
        assert_eq!(freed.take(6, 10, 5), 5);
        freed.add(8, 10, 1);
        // Two of the older are left, and are gone by now.
        assert_eq!(freed.take(10, 10, 9), 1);
        assert!(freed.0.is_empty());
    }
}
