//! Regular instances that are wanted while a node makes as many as it may at a time.
//!
//! What sustained traffic is worth can be more than a machine can make at once, and what it makes takes processors from calls.
//! A function is held then, which is not to wait for room: it takes no turn of those who do. It has its own turn when an
//! instance in the making is made, or will not be.

use super::Fleet;
use crate::slab::Slot;
use crate::{Decision, Time};

impl Fleet {
    /// A function wants a regular instance, and gets one when one of those in the making is made.
    pub(super) fn hold(&mut self, f: Slot) {
        if !std::mem::replace(&mut self.functions[f].held, true) {
            self.held.push_back(f);
        }
    }

    /// A node may make another regular instance: functions that are held have their turns, each until it is held again.
    pub(super) fn resume_held(&mut self, now: Time, out: &mut Vec<Decision>) {
        for _ in 0..self.held.len() {
            let Some(f) = self.held.pop_front() else { return };
            self.functions[f].held = false;
            self.pursue(now, f, out);
            if self.held.back() == Some(&f) {
                return;
            }
        }
    }
}
