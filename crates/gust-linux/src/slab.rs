//! Objects under small numbers.
//!
//! The personality's objects refer to each other by number, so that its whole state can be cloned and stored.

use serde::{Deserialize, Serialize};

/// Numbered objects; the lowest free number is given out first, so that a run is repeatable.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Slab<T> {
    slots: Vec<Option<T>>,
    live: usize,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self {
            slots: Vec::new(),
            live: 0,
        }
    }
}

impl<T> Slab<T> {
    pub(crate) fn insert(&mut self, value: T) -> u32 {
        self.live += 1;
        let free = if self.live <= self.slots.len() {
            self.slots.iter().position(Option::is_none)
        } else {
            None
        };
        match free {
            Some(number) => {
                self.slots[number] = Some(value);
                number as u32
            }
            None => {
                self.slots.push(Some(value));
                (self.slots.len() - 1) as u32
            }
        }
    }

    pub(crate) fn get(&self, number: u32) -> Option<&T> {
        self.slots.get(number as usize)?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, number: u32) -> Option<&mut T> {
        self.slots.get_mut(number as usize)?.as_mut()
    }

    pub(crate) fn remove(&mut self, number: u32) -> Option<T> {
        let value = self.slots.get_mut(number as usize)?.take()?;
        self.live -= 1;
        Some(value)
    }

    pub(crate) fn len(&self) -> usize {
        self.live
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.slots.iter_mut().filter_map(Option::as_mut)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.slots
            .iter()
            .enumerate()
            .filter_map(|(number, slot)| Some((number as u32, slot.as_ref()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_free_number_comes_first() {
        let mut slab = Slab::default();
        let numbers: Vec<_> = (0..4).map(|value| slab.insert(value)).collect();
        assert_eq!(numbers, [0, 1, 2, 3]);
        assert_eq!(slab.remove(1), Some(1));
        assert_eq!(slab.remove(1), None);
        assert_eq!(slab.len(), 3);
        assert_eq!(slab.insert(9), 1);
        assert_eq!(slab.insert(10), 4);
    }
}
