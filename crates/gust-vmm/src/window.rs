//! When it pays to leave the guest as soon as an interrupt could be taken.
//!
//! A paravirtual KVM runs a guest's ring 3 and ring 0 alike in ring 3 of its host. A system call then takes two exits: one for the
//! instruction, after which KVM puts the thread at the system-call page and enters the guest again, and one for the `out`
//! that stands there. A VMM may ask to be told when an interrupt can be injected (`request_interrupt_window`); KVM looks for
//! that whenever it is back from the guest, so it comes to us between the two. But it also comes after every fault that it
//! resolves by itself, and hosts with hardware virtualization come at once, before the guest has run.
//!
//! A guess that was right saves a quarter of a null system call on the machine of the figures in `docs/bench.md`, and one
//! that was wrong costs up to twice as much. So entries ask twice as often after each that was right, and a quarter as often
//! after each that was wrong: where more than two thirds are right most will ask in the end, else one in [`WAIT_MAX`]. A
//! host on which asking never helps is not asked any more.

/// Most entries that do not ask between two that do.
const WAIT_MAX: u32 = 64;
/// Tries without any success after which none follows.
const TRIES_MAX: u32 = 32;

/// What has come of asking so far.
#[derive(Debug)]
pub(crate) struct Window {
    /// Entries still to come that do not ask.
    skip: u32,
    /// How many do not between two that do.
    wait: u32,
    /// Times that it came early before it helped for the first time.
    failed: u32,
    has_helped: bool,
}

impl Window {
    /// Asks first at the second entry: at the first one memory is touched that has just been laid out.
    pub(crate) fn new() -> Self {
        Self {
            skip: 1,
            wait: 1,
            failed: 0,
            has_helped: false,
        }
    }

    /// The next entry asks: something is known of it that what came of the last ones does not say.
    pub(crate) fn expect_success(&mut self) {
        self.skip = 0;
    }

    /// Whether the entry that comes now is to ask.
    pub(crate) fn ask(&mut self) -> bool {
        if self.failed >= TRIES_MAX {
            return false;
        }
        let is_over = self.skip == 0;
        self.skip = self.skip.saturating_sub(1);
        is_over
    }

    /// The guest was left at a system call.
    pub(crate) fn helped(&mut self) {
        self.has_helped = true;
        self.wait /= 2;
        self.skip = self.wait;
    }

    /// The guest was left for nothing.
    pub(crate) fn came_early(&mut self) {
        self.failed += u32::from(!self.has_helped);
        self.wait = (self.wait * 4).clamp(1, WAIT_MAX);
        self.skip = self.wait;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of `entries` ask, on a host where `helps` says what comes of each.
    fn asked(window: &mut Window, entries: u32, helps: impl Fn(u32) -> bool) -> u32 {
        let mut asked = 0;
        for _ in 0..entries {
            if window.ask() {
                asked += 1;
                if helps(asked) {
                    window.helped();
                } else {
                    window.came_early();
                }
            }
        }
        asked
    }

    #[test]
    fn what_helps_is_always_asked_for() {
        assert_eq!(asked(&mut Window::new(), 1000, |_| true), 999);
    }

    #[test]
    fn what_never_helps_is_given_up() {
        let mut window = Window::new();
        assert_eq!(asked(&mut window, 1 << 20, |_| false), TRIES_MAX);
        assert!(!window.ask());
    }

    #[test]
    fn what_helps_in_more_than_two_thirds_is_asked_for() {
        let mostly = asked(&mut Window::new(), 6400, |nth| nth % 6 != 0);
        assert!(mostly > 4500, "{mostly} of 6400");
        let seldom = asked(&mut Window::new(), 6400, |nth| nth % 2 == 0);
        assert!(seldom < 200, "{seldom} of 6400");
    }

    #[test]
    fn a_bad_time_costs_little_and_is_got_over() {
        let mut window = Window::new();
        asked(&mut window, 100, |_| true);
        let bad = asked(&mut window, 6400, |_| false);
        assert!((95..110).contains(&bad), "{bad} of 6400");
        let good = asked(&mut window, 1000, |_| true);
        assert!(good > 1000 - 3 * WAIT_MAX, "{good} of 1000");
    }
}
