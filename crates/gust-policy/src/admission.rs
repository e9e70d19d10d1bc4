//! Which calls are let in at all: reserved concurrency, the account's, and the bounds of queues.
//!
//! Lambda's rules: a function with reserved concurrency has it for itself and no more; all others share what is left of the
//! account's. Calls that wait count, since their callers wait. How many restores a node bears is the node's own bound.

use crate::Refusal;
use crate::slab::Slot;

/// What is let in, and how much of it is there.
#[derive(Debug, Clone, Default)]
pub(crate) struct Admission {
    account_max: Option<u32>,
    waiting_max: u32,
    reserved: u64,
    shared: u32,
    waiting: u32,
    /// Reservation by the function's slot.
    reservations: Vec<Option<u32>>,
}

impl Admission {
    /// With the account's concurrency and the most calls that wait altogether.
    pub(crate) fn new(account_max: Option<u32>, waiting_max: u32) -> Admission {
        Admission {
            account_max,
            waiting_max,
            ..Admission::default()
        }
    }

    /// A function's reservation is another, while it has so many calls.
    pub(crate) fn reserve(&mut self, function: Slot, reserved: Option<u32>, calls: u32) {
        if self.reservations.len() <= function as usize {
            self.reservations.resize(function as usize + 1, None);
        }
        let before = std::mem::replace(&mut self.reservations[function as usize], reserved);
        self.reserved = self.reserved - u64::from(before.unwrap_or(0)) + u64::from(reserved.unwrap_or(0));
        match (before, reserved) {
            (None, Some(_)) => self.shared -= calls,
            (Some(_), None) => self.shared += calls,
            (None, None) | (Some(_), Some(_)) => {}
        }
    }

    /// Lets a call of a function in that has so many, or says why not.
    pub(crate) fn admit(&mut self, function: Slot, calls: u32) -> Result<(), Refusal> {
        if let Some(reserved) = self.reservations[function as usize] {
            return if calls < reserved {
                Ok(())
            } else {
                Err(Refusal::Reserved)
            };
        }
        if let Some(max) = self.account_max
            && u64::from(self.shared) + self.reserved >= u64::from(max)
        {
            return Err(Refusal::Account);
        }
        self.shared += 1;
        Ok(())
    }

    /// A call that was let in is over.
    pub(crate) fn release(&mut self, function: Slot) {
        if self.reservations[function as usize].is_none() {
            self.shared -= 1;
        }
    }

    /// Whether one more may wait, where so many of its function do.
    pub(crate) fn may_wait(&self, of_function: u32, queue_max: u32) -> bool {
        of_function < queue_max && self.waiting < self.waiting_max
    }

    /// One more waits.
    pub(crate) fn wait(&mut self) {
        self.waiting += 1;
    }

    /// One less waits.
    pub(crate) fn waited(&mut self) {
        self.waiting -= 1;
    }

    /// Calls that wait.
    pub(crate) fn waiting(&self) -> u32 {
        self.waiting
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_concurrency_is_a_bound_and_a_guarantee() {
        let mut admission = Admission::new(Some(5), 10);
        admission.reserve(0, Some(2), 0);
        admission.reserve(1, None, 0);
        for calls in 0..3 {
            assert_eq!(admission.admit(1, calls), Ok(()));
        }
        assert_eq!(admission.admit(1, 3), Err(Refusal::Account));
        assert_eq!(admission.admit(0, 0), Ok(()));
        assert_eq!(admission.admit(0, 1), Ok(()));
        assert_eq!(admission.admit(0, 2), Err(Refusal::Reserved));
        admission.release(1);
        assert_eq!(admission.admit(1, 2), Ok(()));
        // Without its reservation, what the function has counts for all.
        admission.reserve(0, None, 2);
        assert_eq!(admission.admit(1, 3), Err(Refusal::Account));
        admission.release(0);
        assert_eq!(admission.admit(0, 1), Ok(()));
    }

    #[test]
    fn a_reservation_of_none_lets_nothing_in() {
        let mut admission = Admission::new(None, 10);
        admission.reserve(0, Some(0), 0);
        assert_eq!(admission.admit(0, 0), Err(Refusal::Reserved));
    }

    #[test]
    fn queues_are_bounded_each_and_together() {
        let mut admission = Admission::new(None, 3);
        assert!(admission.may_wait(1, 2) && !admission.may_wait(2, 2));
        (0..3).for_each(|_| admission.wait());
        assert!(!admission.may_wait(0, 2));
        admission.waited();
        assert!(admission.may_wait(0, 2));
        assert_eq!(admission.waiting(), 2);
    }
}
