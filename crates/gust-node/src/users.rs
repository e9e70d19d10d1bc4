//! User ids for workers: two each, unlike those of any other worker and of any other node on the machine.

use std::io;

/// First id that is given out. Below are the ids of people, services and containers.
const FIRST: u32 = 0x4000_0000;

/// Ids of one node; nodes are told apart by their process ids.
const NODE_IDS: u32 = 1 << 16;

/// Nodes that are told apart.
const NODES: u32 = 1 << 14;

/// Ids that are free.
#[derive(Debug)]
pub(crate) struct Users {
    first: u32,
    /// Ids from here on have never been given out.
    next: u32,
    given_back: Vec<u32>,
}

impl Default for Users {
    fn default() -> Self {
        let first = FIRST + (std::process::id() % NODES) * NODE_IDS;
        Self {
            first,
            next: first,
            given_back: Vec::new(),
        }
    }
}

impl Users {
    /// The first of two ids that no one else has.
    pub(crate) fn take(&mut self) -> io::Result<u32> {
        if let Some(user) = self.given_back.pop() {
            return Ok(user);
        }
        if self.next - self.first + 2 > NODE_IDS {
            return Err(io::Error::other("every user id for workers is taken"));
        }
        self.next += 2;
        Ok(self.next - 2)
    }

    /// Takes back what [`take`](Self::take) gave.
    pub(crate) fn give_back(&mut self, user: u32) {
        self.given_back.push(user);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ids_are_unique_until_they_are_given_back() {
        let mut users = Users::default();
        let mut taken = HashSet::new();
        while let Ok(user) = users.take() {
            assert!(taken.insert(user) && taken.insert(user + 1));
            assert!((FIRST..u32::MAX - 1).contains(&user));
        }
        assert_eq!(taken.len(), NODE_IDS as usize);
        users.give_back(users.first + 2);
        assert_eq!(users.take().unwrap(), users.first + 2);
    }
}
