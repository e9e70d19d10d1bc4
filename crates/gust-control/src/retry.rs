//! When an asynchronous event is tried again. Pure: outcome and time go in, a decision comes out.

use std::time::Duration;

/// Further attempts after a failed one, unless the function says otherwise.
pub const RETRIES_DEFAULT: u32 = 2;

/// Longest time that an event is kept, unless the function says otherwise.
pub const AGE_MAX_DEFAULT: Duration = Duration::from_secs(6 * 60 * 60);

/// First wait after a throttled delivery; each further one doubles it.
const THROTTLE_WAIT_FIRST: Duration = Duration::from_secs(1);

/// Longest wait after a throttled delivery.
const THROTTLE_WAIT_MAX: Duration = Duration::from_secs(5 * 60);

/// Rules for one event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Further attempts after a failed one.
    pub retries_max: u32,
    /// Longest time that the event is kept.
    pub age_max: Duration,
    /// Wait before the first retry; the second waits twice as long.
    pub wait: Duration,
}

/// How a delivery ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// The function answered.
    Answered,
    /// The function failed: it raised, timed out or ended.
    Failed,
    /// A concurrency bound or a lost worker kept the event from the function; that is no attempt.
    NotDelivered,
}

/// What becomes of the event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It is done with.
    Done,
    /// It is tried again after this wait, as attempt `attempts`.
    Retry {
        /// Wait.
        after: Duration,
        /// Attempts that count so far.
        attempts: u32,
    },
    /// It is given up.
    GiveUp(Reason),
}

/// Why an event is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Every attempt failed.
    RetriesExhausted,
    /// It would be too old by the next attempt.
    TooOld,
}

impl RetryPolicy {
    /// Decides after a delivery. `attempts` counts the failed ones before it, `undelivered` the deliveries before it
    /// that did not reach the function since the last attempt, `age` is the event's.
    pub fn decide(&self, delivery: Delivery, attempts: u32, undelivered: u32, age: Duration) -> Decision {
        let (after, attempts) = match delivery {
            Delivery::Answered => return Decision::Done,
            Delivery::Failed if attempts >= self.retries_max => {
                return Decision::GiveUp(Reason::RetriesExhausted);
            }
            Delivery::Failed => (self.wait.saturating_mul(attempts + 1), attempts + 1),
            Delivery::NotDelivered => {
                let doubled = THROTTLE_WAIT_FIRST.saturating_mul(1 << undelivered.min(16));
                (doubled.min(THROTTLE_WAIT_MAX), attempts)
            }
        };
        if age.saturating_add(after) > self.age_max {
            return Decision::GiveUp(Reason::TooOld);
        }
        Decision::Retry { after, attempts }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const POLICY: RetryPolicy = RetryPolicy {
        retries_max: RETRIES_DEFAULT,
        age_max: AGE_MAX_DEFAULT,
        wait: Duration::from_secs(60),
    };

    #[test]
    fn two_retries_after_one_and_two_minutes() {
        let age = Duration::from_secs(1);
        let retry = |secs, attempts| Decision::Retry {
            after: Duration::from_secs(secs),
            attempts,
        };
        assert_eq!(POLICY.decide(Delivery::Failed, 0, 0, age), retry(60, 1));
        assert_eq!(POLICY.decide(Delivery::Failed, 1, 0, age), retry(120, 2));
        assert_eq!(
            POLICY.decide(Delivery::Failed, 2, 0, age),
            Decision::GiveUp(Reason::RetriesExhausted)
        );
        assert_eq!(POLICY.decide(Delivery::Answered, 2, 0, age), Decision::Done);
    }

    #[test]
    fn throttled_deliveries_back_off_to_five_minutes_and_count_nothing() {
        let age = Duration::from_secs(1);
        for (undelivered, secs) in [(0, 1), (1, 2), (2, 4), (8, 256), (9, 300), (1000, 300)] {
            assert_eq!(
                POLICY.decide(Delivery::NotDelivered, 1, undelivered, age),
                Decision::Retry {
                    after: Duration::from_secs(secs),
                    attempts: 1
                }
            );
        }
    }

    proptest! {
        /// Every event is done with in the end: attempts and age are both bounded.
        #[test]
        fn an_event_never_lives_for_ever(
            deliveries in proptest::collection::vec(prop_oneof![Just(Delivery::Failed), Just(Delivery::NotDelivered)], 200),
            retries_max in 0u32..3,
        ) {
            let policy = RetryPolicy { retries_max, ..POLICY };
            let (mut age, mut attempts, mut undelivered) = (Duration::ZERO, 0, 0);
            let mut given_up = false;
            for delivery in deliveries {
                match policy.decide(delivery, attempts, undelivered, age) {
                    Decision::Retry { after, attempts: next } => {
                        prop_assert!(after > Duration::ZERO && next <= retries_max);
                        undelivered = if next == attempts { undelivered + 1 } else { 0 };
                        attempts = next;
                        age += after;
                        prop_assert!(age <= policy.age_max);
                    }
                    Decision::GiveUp(_) => {
                        given_up = true;
                        break;
                    }
                    Decision::Done => prop_assert!(false, "a failure is not done"),
                }
            }
            prop_assert!(given_up);
        }
    }
}
