//! Whose turn it is when nodes are full.
//!
//! Max-min fairness in memory that runs calls: what becomes free goes to the tenant that uses least, and within it to the
//! function that uses least; among equals to the one that has waited longest, which is round-robin. Those that use more than
//! another who waits give an instance up when its call ends, until they are within one instance of each other. So a flood on
//! one function takes what others leave, and no more.
//!
//! The object knows functions that wait for room on nodes, and what each uses; it knows no calls.

use crate::TenantId;
use crate::slab::{Names, Slab, Slot};
use std::collections::BTreeSet;

/// Use in bytes, when the wait began, who: the least is next.
type Key = (u64, u64, Slot);

#[derive(Debug, Clone, Default)]
struct Tenant {
    id: u64,
    use_bytes: u64,
    /// Functions of this tenant that are known.
    members: u32,
    waiting: BTreeSet<Key>,
    /// Its own entry, if it has functions that wait.
    key: Option<Key>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Member {
    tenant: Slot,
    use_bytes: u64,
    key: Option<Key>,
}

/// Who uses what, and who waits.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fairness {
    tenants: Slab<Tenant>,
    names: Names,
    /// By the function's slot.
    members: Vec<Option<Member>>,
    waiting: BTreeSet<Key>,
    turns: u64,
}

impl Fairness {
    /// A function is there; one that was there before takes what it uses to its new tenant.
    pub(crate) fn add(&mut self, function: Slot, tenant: TenantId) {
        let used = self.member(function).map_or(0, |member| member.use_bytes);
        let waits = self.waits(function);
        self.remove(function);
        let id = u64::from(tenant.0);
        let tenants = &mut self.tenants;
        let tenant = *self.names.entry(id).or_insert_with(|| {
            tenants.insert(Tenant {
                id,
                ..Tenant::default()
            })
        });
        self.tenants[tenant].members += 1;
        if self.members.len() <= function as usize {
            self.members.resize(function as usize + 1, None);
        }
        self.members[function as usize] = Some(Member {
            tenant,
            use_bytes: 0,
            key: None,
        });
        self.more(function, used);
        if waits {
            self.join(function);
        }
    }

    /// A function is gone, with all that it uses.
    pub(crate) fn remove(&mut self, function: Slot) {
        let Some(member) = self.member(function) else {
            return;
        };
        self.leave(function);
        self.less(function, member.use_bytes);
        self.members[function as usize] = None;
        let tenant = &mut self.tenants[member.tenant];
        tenant.members -= 1;
        if tenant.members == 0 {
            self.names.remove(&tenant.id);
            self.tenants.remove(member.tenant);
        }
    }

    /// A function uses more.
    pub(crate) fn more(&mut self, function: Slot, bytes: u64) {
        self.change(function, |used| used + bytes);
    }

    /// A function uses less.
    pub(crate) fn less(&mut self, function: Slot, bytes: u64) {
        self.change(function, |used| used.saturating_sub(bytes));
    }

    /// A function waits for room, or waits again behind its equals.
    pub(crate) fn join(&mut self, function: Slot) {
        self.leave(function);
        let Some(member) = self.member(function) else {
            return;
        };
        self.turns += 1;
        let key = (member.use_bytes, self.turns, function);
        self.set_key(function, Some(key));
        self.tenants[member.tenant].waiting.insert(key);
        self.order(member.tenant);
    }

    /// A function does not wait any more.
    pub(crate) fn leave(&mut self, function: Slot) {
        let Some(Member {
            tenant,
            key: Some(key),
            ..
        }) = self.member(function)
        else {
            return;
        };
        self.set_key(function, None);
        self.tenants[tenant].waiting.remove(&key);
        self.order(tenant);
    }

    /// Whether a function waits.
    pub(crate) fn waits(&self, function: Slot) -> bool {
        self.member(function).is_some_and(|member| member.key.is_some())
    }

    /// Whether nobody waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Those whose turn is next, in order.
    pub(crate) fn next(&self) -> impl Iterator<Item = Slot> {
        self.waiting
            .iter()
            .flat_map(|tenant| self.tenants[tenant.2].waiting.iter().map(|key| key.2))
    }

    /// Whether `rich` has so much more than `poor` that it still has no less when `poor` takes another `bytes`: compared by
    /// tenant, and within one tenant by function.
    pub(crate) fn owes(&self, rich: Slot, poor: Slot, bytes: u64) -> bool {
        let (Some(rich), Some(poor)) = (self.member(rich), self.member(poor)) else {
            return false;
        };
        if rich.tenant == poor.tenant {
            poor.use_bytes + bytes <= rich.use_bytes
        } else {
            self.tenants[poor.tenant].use_bytes + bytes <= self.tenants[rich.tenant].use_bytes
        }
    }

    fn member(&self, function: Slot) -> Option<Member> {
        *self.members.get(function as usize)?
    }

    fn set_key(&mut self, function: Slot, key: Option<Key>) {
        if let Some(Some(member)) = self.members.get_mut(function as usize) {
            member.key = key;
        }
    }

    fn change(&mut self, function: Slot, change: impl Fn(u64) -> u64) {
        let Some(Some(member)) = self.members.get_mut(function as usize) else {
            return;
        };
        let tenant = member.tenant;
        let before = member.use_bytes;
        member.use_bytes = change(before);
        let after = member.use_bytes;
        let key = member.key.map(|(_, turn, slot)| (after, turn, slot));
        let old = std::mem::replace(&mut member.key, key);
        let owner = &mut self.tenants[tenant];
        owner.use_bytes = owner.use_bytes + after - before;
        if let (Some(old), Some(key)) = (old, key) {
            owner.waiting.remove(&old);
            owner.waiting.insert(key);
        }
        if owner.key.is_some() {
            self.order(tenant);
        }
    }

    /// Puts a tenant where it belongs now.
    fn order(&mut self, tenant: Slot) {
        let owner = &mut self.tenants[tenant];
        if let Some(key) = owner.key.take() {
            self.waiting.remove(&key);
        }
        if let Some(first) = owner.waiting.first() {
            let key = (owner.use_bytes, first.1, tenant);
            owner.key = Some(key);
            self.waiting.insert(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(members: &[u32]) -> Fairness {
        let mut fairness = Fairness::default();
        for (function, tenant) in (0..).zip(members) {
            fairness.add(function, TenantId(*tenant));
        }
        fairness
    }

    #[test]
    fn the_tenant_and_then_the_function_with_least_is_next() {
        let mut fairness = of(&[0, 0, 1]);
        fairness.more(0, 10);
        fairness.more(1, 5);
        fairness.more(2, 12);
        (0..3).for_each(|function| fairness.join(function));
        assert_eq!(fairness.next().collect::<Vec<_>>(), [2, 1, 0]);
        fairness.more(2, 10);
        assert_eq!(fairness.next().collect::<Vec<_>>(), [1, 0, 2]);
        fairness.leave(1);
        fairness.leave(1);
        assert_eq!(fairness.next().collect::<Vec<_>>(), [0, 2]);
    }

    #[test]
    fn equals_take_turns() {
        let mut fairness = of(&[0, 1, 2]);
        (0..3).for_each(|function| fairness.join(function));
        let mut turns = Vec::new();
        for _ in 0..6 {
            let next = fairness.next().next().unwrap();
            turns.push(next);
            fairness.join(next);
        }
        assert_eq!(turns, [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn the_rich_owe_until_they_are_within_one() {
        let mut fairness = of(&[0, 1]);
        fairness.more(0, 3);
        assert!(fairness.owes(0, 1, 1));
        fairness.more(1, 3);
        assert!(!fairness.owes(0, 1, 1) && !fairness.owes(1, 0, 1));
    }

    #[test]
    fn a_function_takes_its_use_to_another_tenant() {
        let mut fairness = of(&[0, 1]);
        fairness.more(0, 7);
        fairness.join(0);
        fairness.add(0, TenantId(1));
        assert!(fairness.waits(0));
        assert_eq!(fairness.tenants.len(), 1);
        assert!(fairness.owes(0, 1, 7));
    }

    proptest! {
        /// A room of a fixed size that is always asked for by all, calls of one size that end in any order: nobody stays
        /// behind the others by more than one instance.
        #[test]
        fn shares_become_equal(
            tenants in prop::collection::vec(0u32..4, 2..12), room in 12u64..60, ends in prop::collection::vec(any::<u64>(), 600),
        ) {
            let mut fairness = of(&tenants);
            let mut running: Vec<Slot> = vec![0; room as usize];
            fairness.more(0, room);
            (0..tenants.len() as Slot).for_each(|function| fairness.join(function));
            for end in ends {
                let at = (end % room) as usize;
                let function = running[at];
                fairness.less(function, 1);
                let next = fairness.next().next().unwrap();
                let next = if fairness.owes(function, next, 1) { next } else { function };
                fairness.more(next, 1);
                fairness.join(next);
                running[at] = next;
            }
            let mut used = std::collections::BTreeMap::new();
            tenants.iter().for_each(|tenant| { used.insert(tenant, 0u64); });
            running.iter().for_each(|function| *used.get_mut(&tenants[*function as usize]).unwrap() += 1);
            let (least, most) = (used.values().min().unwrap(), used.values().max().unwrap());
            prop_assert!(most - least <= 2, "{used:?}");
        }
    }
}
