//! Slots with small numbers, lists through them, and a map from names to slots.
//!
//! A fleet is told of many small things that point at one another. They lie in slabs, and name each other by slot: no
//! allocation an event, and nothing whose order depends on a hash. Slots are used again; names that callers hold are not
//! slots.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// A slot of a slab.
pub(crate) type Slot = u32;

/// No slot.
pub(crate) const NONE: Slot = Slot::MAX;

/// Values by slot.
#[derive(Debug, Clone)]
pub(crate) struct Slab<T> {
    values: Vec<Option<T>>,
    free: Vec<Slot>,
}

impl<T> Default for Slab<T> {
    fn default() -> Slab<T> {
        Slab {
            values: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T> Slab<T> {
    /// Puts a value into a free slot.
    pub(crate) fn insert(&mut self, value: T) -> Slot {
        match self.free.pop() {
            Some(slot) => {
                self.values[slot as usize] = Some(value);
                slot
            }
            None => {
                self.values.push(Some(value));
                Slot::try_from(self.values.len() - 1).expect("fewer than 2^32 slots")
            }
        }
    }

    /// Takes the value of a slot out.
    pub(crate) fn remove(&mut self, slot: Slot) -> Option<T> {
        let value = self.values.get_mut(slot as usize)?.take();
        if value.is_some() {
            self.free.push(slot);
        }
        value
    }

    /// The value of a slot, if there is one.
    pub(crate) fn get(&self, slot: Slot) -> Option<&T> {
        self.values.get(slot as usize)?.as_ref()
    }

    /// Values that are there.
    pub(crate) fn len(&self) -> usize {
        self.values.len() - self.free.len()
    }
}

impl<T> std::ops::Index<Slot> for Slab<T> {
    type Output = T;

    fn index(&self, slot: Slot) -> &T {
        self.values[slot as usize]
            .as_ref()
            .expect("a slot that is in use")
    }
}

impl<T> std::ops::IndexMut<Slot> for Slab<T> {
    fn index_mut(&mut self, slot: Slot) -> &mut T {
        self.values[slot as usize]
            .as_mut()
            .expect("a slot that is in use")
    }
}

/// A value's neighbours in a list.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Link {
    previous: Slot,
    next: Slot,
}

impl Default for Link {
    fn default() -> Link {
        Link {
            previous: NONE,
            next: NONE,
        }
    }
}

/// A value that can stand in one list of each kind `K`.
pub(crate) trait Linked<K> {
    /// Its place in its list of that kind.
    fn link(&mut self) -> &mut Link;
    /// The same, to read.
    fn link_of(&self) -> &Link;
}

/// A list through a slab. Whoever puts a value in sees to it that it is in no other list of the same kind.
#[derive(Debug, Clone)]
pub(crate) struct List<K> {
    first: Slot,
    last: Slot,
    length: u32,
    kind: std::marker::PhantomData<K>,
}

impl<K> Default for List<K> {
    fn default() -> List<K> {
        List {
            first: NONE,
            last: NONE,
            length: 0,
            kind: std::marker::PhantomData,
        }
    }
}

impl<K> List<K> {
    /// Values in the list.
    pub(crate) fn len(&self) -> u32 {
        self.length
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The one that is longest in.
    pub(crate) fn first(&self) -> Option<Slot> {
        (self.first != NONE).then_some(self.first)
    }

    /// The one that came last.
    pub(crate) fn last(&self) -> Option<Slot> {
        (self.last != NONE).then_some(self.last)
    }

    /// The one behind a value of the list.
    pub(crate) fn after<T: Linked<K>>(&self, slab: &Slab<T>, slot: Slot) -> Option<Slot> {
        let next = slab[slot].link_of().next;
        (next != NONE).then_some(next)
    }

    /// Puts a value at the end.
    pub(crate) fn push_back<T: Linked<K>>(&mut self, slab: &mut Slab<T>, slot: Slot) {
        *slab[slot].link() = Link {
            previous: self.last,
            next: NONE,
        };
        match self.last {
            NONE => self.first = slot,
            last => slab[last].link().next = slot,
        }
        self.last = slot;
        self.length += 1;
    }

    /// Puts a value before another of the list.
    pub(crate) fn insert_before<T: Linked<K>>(&mut self, slab: &mut Slab<T>, slot: Slot, other: Slot) {
        let previous = slab[other].link_of().previous;
        *slab[slot].link() = Link {
            previous,
            next: other,
        };
        slab[other].link().previous = slot;
        match previous {
            NONE => self.first = slot,
            previous => slab[previous].link().next = slot,
        }
        self.length += 1;
    }

    /// Takes a value of the list out.
    pub(crate) fn remove<T: Linked<K>>(&mut self, slab: &mut Slab<T>, slot: Slot) {
        let Link { previous, next } = std::mem::take(slab[slot].link());
        match previous {
            NONE => self.first = next,
            previous => slab[previous].link().next = next,
        }
        match next {
            NONE => self.last = previous,
            next => slab[next].link().previous = previous,
        }
        self.length -= 1;
    }
}

/// Slots by name. Nothing iterates over it, so its order does not matter; names are the platform's own, so nobody can make
/// them collide.
pub(crate) type Names = HashMap<u64, Slot, BuildHasherDefault<NameHasher>>;

/// Spreads numbers over a map: the finalizer of SplitMix64 (Steele, Lea, Flood, OOPSLA'14), by its first round.
#[derive(Debug, Default)]
pub(crate) struct NameHasher(u64);

impl Hasher for NameHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, value: u64) {
        let mixed = (self.0 ^ value).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        self.0 = mixed ^ (mixed >> 32);
    }
}

/// A number that looks random and depends on its argument alone: SplitMix64.
pub(crate) fn scatter(value: u64) -> u64 {
    let mut mixed = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    struct Any;
    struct Item {
        link: Link,
    }
    impl Linked<Any> for Item {
        fn link(&mut self) -> &mut Link {
            &mut self.link
        }
        fn link_of(&self) -> &Link {
            &self.link
        }
    }

    proptest! {
        #[test]
        fn a_list_is_a_queue_with_removal_from_the_middle(steps in prop::collection::vec((0..4u8, 0..64usize), 0..200)) {
            let mut slab = Slab::default();
            let mut list = List::<Any>::default();
            let mut expected = VecDeque::new();
            for (what, at) in steps {
                if what < 2 || expected.is_empty() {
                    let slot = slab.insert(Item { link: Link::default() });
                    if what == 0 && !expected.is_empty() {
                        let place = at % expected.len();
                        list.insert_before(&mut slab, slot, expected[place]);
                        expected.insert(place, slot);
                    } else {
                        list.push_back(&mut slab, slot);
                        expected.push_back(slot);
                    }
                } else {
                    let slot = expected.remove(at % expected.len()).unwrap();
                    list.remove(&mut slab, slot);
                    prop_assert!(slab.remove(slot).is_some());
                }
                let mut seen = Vec::new();
                let mut next = list.first();
                while let Some(slot) = next {
                    seen.push(slot);
                    next = list.after(&slab, slot);
                }
                prop_assert_eq!(&seen, &expected.iter().copied().collect::<Vec<_>>());
                prop_assert_eq!(list.len() as usize, expected.len());
                prop_assert_eq!(list.last(), expected.back().copied());
                prop_assert_eq!(slab.len(), expected.len());
            }
        }
    }
}
