//! How many calls may run at once. Pure: whoever holds the book asks it before a call and tells it afterwards.
//!
//! The account has a bound. A function with reserved concurrency has that much of it for itself, as its own bound;
//! all other functions share what is left, of which at least [`UNRESERVED_MIN`] must stay when something is reserved.

use std::{collections::HashMap, time::Duration};

use crate::ids::FunctionName;

/// Concurrency that may not be reserved.
pub const UNRESERVED_MIN: u32 = 100;

/// Which bound a call met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThrottleReason {
    /// The share that is reserved for no function is used up.
    Account,
    /// The function's reserved concurrency is used up.
    Reserved,
    /// The node has no place for another instance.
    Node,
    /// As many calls wait for an instance as may.
    Queue,
    /// The call has waited for an instance as long as it may.
    Deadline,
    /// More asynchronous events wait than may.
    EventQueue,
}

impl ThrottleReason {
    /// AWS Lambda's name for it.
    pub fn code(self) -> &'static str {
        match self {
            Self::Account | Self::Node | Self::Queue | Self::Deadline => "ConcurrentInvocationLimitExceeded",
            Self::Reserved => "ReservedFunctionConcurrentInvocationLimitExceeded",
            Self::EventQueue => "FunctionInvocationRateLimitExceeded",
        }
    }

    /// For the caller.
    pub fn message(self) -> &'static str {
        match self {
            Self::Account | Self::Reserved => "Rate Exceeded.",
            Self::Node => "Rate Exceeded. The node has no capacity for another instance.",
            Self::Queue => "Rate Exceeded. Too many calls wait for an instance.",
            Self::Deadline => "Rate Exceeded. No instance came free in time.",
            Self::EventQueue => "Rate Exceeded. Too many asynchronous events are waiting.",
        }
    }
}

/// When trying again makes sense after a bound of this book: calls end all the time.
pub const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Calls that run now.
#[derive(Debug)]
pub struct Book {
    account_max: u32,
    unreserved_running: u32,
    functions: HashMap<FunctionName, Account>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Account {
    running: u32,
    reserved: Option<u32>,
}

/// What a running call was counted against; give it back with [`Book::release`].
#[derive(Debug)]
#[must_use]
pub struct Ticket {
    name: FunctionName,
    unreserved: bool,
}

impl Book {
    /// An empty book.
    pub fn new(account_max: u32) -> Self {
        Self {
            account_max,
            unreserved_running: 0,
            functions: HashMap::new(),
        }
    }

    /// Sets or lifts a reservation. Calls that run already stay counted as they were.
    pub fn reserve(&mut self, name: &FunctionName, reserved: Option<u32>) {
        let account = self.functions.entry(name.clone()).or_default();
        account.reserved = reserved;
        self.forget_if_idle(name);
    }

    /// What is reserved for functions other than `name`.
    pub fn reserved_by_others(&self, name: &FunctionName) -> u32 {
        self.functions
            .iter()
            .filter(|(other, _)| *other != name)
            .filter_map(|(_, account)| account.reserved)
            .sum()
    }

    /// Concurrency that no function has reserved.
    pub fn unreserved_max(&self) -> u32 {
        let reserved: u32 = self
            .functions
            .values()
            .filter_map(|account| account.reserved)
            .sum();
        self.account_max.saturating_sub(reserved)
    }

    /// Counts a call, or says which bound it met.
    ///
    /// # Errors
    /// The bound.
    pub fn acquire(&mut self, name: &FunctionName) -> Result<Ticket, ThrottleReason> {
        let reserved = self.check(name)?;
        if reserved.is_none() {
            self.unreserved_running += 1;
        }
        let account = match self.functions.get_mut(name) {
            Some(account) => account,
            None => self.functions.entry(name.clone()).or_default(),
        };
        account.running += 1;
        Ok(Ticket {
            name: name.clone(),
            unreserved: reserved.is_none(),
        })
    }

    /// Says which bound a call would meet if it ran now; the function's reservation when none. A call that waits for an
    /// instance is not counted before it has one: what waits must not keep others from running.
    ///
    /// # Errors
    /// The bound.
    pub fn check(&self, name: &FunctionName) -> Result<Option<u32>, ThrottleReason> {
        let account = self.functions.get(name).copied().unwrap_or_default();
        match account.reserved {
            Some(reserved) if account.running >= reserved => Err(ThrottleReason::Reserved),
            None if self.unreserved_running >= self.unreserved_max() => Err(ThrottleReason::Account),
            reserved => Ok(reserved),
        }
    }

    /// A call has ended.
    pub fn release(&mut self, ticket: Ticket) {
        if let Some(account) = self.functions.get_mut(&ticket.name) {
            account.running -= 1;
        }
        self.unreserved_running -= u32::from(ticket.unreserved);
        self.forget_if_idle(&ticket.name);
    }

    /// Calls of a function that run now.
    pub fn running(&self, name: &FunctionName) -> u32 {
        self.functions.get(name).map_or(0, |account| account.running)
    }

    fn forget_if_idle(&mut self, name: &FunctionName) {
        if self
            .functions
            .get(name)
            .is_some_and(|account| account.running == 0 && account.reserved.is_none())
        {
            self.functions.remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(n: u8) -> FunctionName {
        FunctionName::new(&format!("f{n}")).unwrap()
    }

    #[test]
    fn a_reservation_bounds_and_guarantees() {
        let mut book = Book::new(3);
        book.reserve(&name(0), Some(1));
        let first = book.acquire(&name(0)).unwrap();
        assert_eq!(book.acquire(&name(0)).unwrap_err(), ThrottleReason::Reserved);
        let others = [book.acquire(&name(1)).unwrap(), book.acquire(&name(2)).unwrap()];
        assert_eq!(book.acquire(&name(3)).unwrap_err(), ThrottleReason::Account);
        book.release(first);
        assert_eq!(book.acquire(&name(3)).unwrap_err(), ThrottleReason::Account);
        drop(book.acquire(&name(0)).unwrap());
        for ticket in others {
            book.release(ticket);
        }
    }

    #[test]
    fn zero_reserved_stops_a_function() {
        let mut book = Book::new(10);
        book.reserve(&name(0), Some(0));
        assert_eq!(book.acquire(&name(0)).unwrap_err(), ThrottleReason::Reserved);
        book.reserve(&name(0), None);
        let ticket = book.acquire(&name(0)).unwrap();
        book.release(ticket);
        assert!(book.functions.is_empty());
    }

    proptest! {
        /// Whatever comes in whatever order: the bounds hold, and when all calls have ended nothing is counted.
        #[test]
        fn bounds_hold_and_counts_return_to_zero(
            steps in proptest::collection::vec((0u8..4, 0u8..4, proptest::option::of(0u32..4)), 0..200)
        ) {
            let mut book = Book::new(6);
            let mut running: Vec<(u8, Ticket)> = Vec::new();
            for (kind, function, reserved) in steps {
                match kind {
                    0 | 1 => {
                        let before = book.running(&name(function));
                        let bound = book.functions.get(&name(function)).and_then(|account| account.reserved);
                        if let Ok(ticket) = book.acquire(&name(function)) {
                            running.push((function, ticket));
                            prop_assert!(bound.is_none_or(|bound| before < bound));
                        }
                    }
                    2 => {
                        if let Some((_, ticket)) = running.pop() {
                            book.release(ticket);
                        }
                    }
                    _ => book.reserve(&name(function), reserved),
                }
                let unreserved = running.iter().filter(|(_, ticket)| ticket.unreserved).count();
                prop_assert_eq!(book.unreserved_running as usize, unreserved);
            }
            for (_, ticket) in running.drain(..) {
                book.release(ticket);
            }
            prop_assert_eq!(book.unreserved_running, 0);
            for function in 0..4 {
                book.reserve(&name(function), None);
            }
            prop_assert!(book.functions.is_empty());
        }
    }
}
