//! Which node gets a new instance: snapshot locality, load, spread.
//!
//! A few nodes are drawn and the least loaded of them is taken ("The Power of Two Choices", Mitzenmacher 2001), some of them
//! from those that hold the function's snapshot. The draw is a hash of the instance's name: the same history gives the same
//! nodes. Where none that was drawn has room, a tree over all nodes finds one that has in logarithmic time, so that a call
//! never waits because of an unlucky draw.

use crate::slab::{NONE, Slot, scatter};
use std::collections::BTreeMap;

/// Numbers by position, of which one that is large enough is found in logarithmic time.
#[derive(Debug, Clone)]
pub(crate) struct MaxTree {
    /// A power of two.
    leaves: usize,
    /// The root at 1, the children of `n` at `2n` and `2n + 1`.
    values: Vec<u64>,
}

impl Default for MaxTree {
    fn default() -> MaxTree {
        MaxTree {
            leaves: 1,
            values: vec![0; 2],
        }
    }
}

impl MaxTree {
    /// Makes a number another; what was never set is 0.
    pub(crate) fn set(&mut self, at: usize, value: u64) {
        while at >= self.leaves {
            self.grow();
        }
        let mut node = self.leaves + at;
        self.values[node] = value;
        while node > 1 {
            node /= 2;
            let larger = self.values[2 * node].max(self.values[2 * node + 1]);
            if self.values[node] == larger {
                return;
            }
            self.values[node] = larger;
        }
    }

    /// A position with at least so much, the first from `start` on, around the end; none if `need` is 0.
    pub(crate) fn find(&self, start: usize, need: u64) -> Option<usize> {
        if need == 0 || self.values[1] < need {
            return None;
        }
        let mut node = self.leaves + start % self.leaves;
        if self.values[node] >= need {
            return Some(node - self.leaves);
        }
        // Up until a part to the right has enough; at the right edge the whole tree is the next part.
        while node > 1 {
            if node.is_multiple_of(2) && self.values[node + 1] >= need {
                return Some(self.descend(node + 1, need));
            }
            node /= 2;
        }
        Some(self.descend(1, need))
    }

    fn descend(&self, mut node: usize, need: u64) -> usize {
        while node < self.leaves {
            node *= 2;
            if self.values[node] < need {
                node += 1;
            }
        }
        node - self.leaves
    }

    fn grow(&mut self) {
        let old = std::mem::replace(
            self,
            MaxTree {
                leaves: self.leaves * 2,
                values: vec![0; self.leaves * 4],
            },
        );
        for at in 0..old.leaves {
            self.set(at, old.values[old.leaves + at]);
        }
    }
}

/// Where a node stands in the placement.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Place {
    region: usize,
    at: usize,
}

/// The nodes of one region.
#[derive(Debug, Clone, Default)]
struct Part {
    /// By position; [`NONE`] where a node has gone.
    nodes: Vec<Slot>,
    vacant: Vec<usize>,
    calm: Rooms,
    all: Rooms,
}

impl Part {
    fn rooms(&self, among: Among) -> &Rooms {
        match among {
            Among::Calm => &self.calm,
            Among::All => &self.all,
        }
    }
}

/// Room on nodes by their position, in bytes.
#[derive(Debug, Clone, Default)]
struct Rooms {
    /// What is free on nodes that take instances.
    free: MaxTree,
    /// The same with what idle instances would give back.
    potential: MaxTree,
}

impl Rooms {
    fn set(&mut self, at: usize, room: Room) {
        self.free.set(at, room.free);
        self.potential.set(at, room.potential);
    }
}

/// Room on a node, in bytes; 0 if it takes nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Room {
    pub(crate) free: u64,
    /// With what idle instances would give back.
    pub(crate) potential: u64,
}

/// Which nodes there are to choose from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Among {
    /// Those whose processors are not saturated.
    Calm,
    All,
}

/// Nodes by region, and the room on them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Placement {
    parts: Vec<Part>,
    regions: BTreeMap<u16, usize>,
}

impl Placement {
    /// A node is there; it has no room yet.
    pub(crate) fn add(&mut self, node: Slot, region: u16) -> Place {
        let parts = &mut self.parts;
        let region = *self.regions.entry(region).or_insert_with(|| {
            parts.push(Part::default());
            parts.len() - 1
        });
        let part = &mut self.parts[region];
        let at = match part.vacant.pop() {
            Some(at) => {
                part.nodes[at] = node;
                at
            }
            None => {
                part.nodes.push(node);
                part.nodes.len() - 1
            }
        };
        Place { region, at }
    }

    /// A node is gone.
    pub(crate) fn remove(&mut self, place: Place) {
        self.set(place, Room::default(), false);
        let part = &mut self.parts[place.region];
        part.nodes[place.at] = NONE;
        part.vacant.push(place.at);
    }

    /// What room is on a node, and whether it is not saturated.
    pub(crate) fn set(&mut self, place: Place, room: Room, is_calm: bool) {
        let part = &mut self.parts[place.region];
        part.all.set(place.at, room);
        let calm = if is_calm { room } else { Room::default() };
        part.calm.set(place.at, calm);
    }

    /// A node of a region for a new instance with so many bytes; `local` are nodes with its snapshot, `score` says what it
    /// costs to take one, or that it cannot be taken; its second argument tells whether it was drawn from `local`.
    pub(crate) fn choose(
        &self,
        draw: Draw<'_>,
        mut score: impl FnMut(Slot, bool) -> Option<u64>,
    ) -> Option<Slot> {
        let part = &self.parts[*self.regions.get(&draw.region)?];
        let mut best = None;
        let mut key = draw.key;
        for (nodes, local) in [(draw.local, true), (&part.nodes[..], false)] {
            for _ in 0..draw.choices.min(nodes.len()) {
                key = scatter(key);
                let node = nodes[(key % nodes.len() as u64) as usize];
                if node == NONE {
                    continue;
                }
                if let Some(cost) = score(node, local)
                    && best.is_none_or(|(least, _)| cost < least)
                {
                    best = Some((cost, node));
                }
            }
        }
        if let Some((_, node)) = best {
            return Some(node);
        }
        let start = (key % part.nodes.len().max(1) as u64) as usize;
        let free = &part.rooms(draw.among).free;
        free.find(start, draw.need).map(|at| part.nodes[at])
    }

    /// A node of a region that would have the room if idle instances went.
    pub(crate) fn evictable(&self, region: u16, key: u64, need: u64, among: Among) -> Option<Slot> {
        let part = &self.parts[*self.regions.get(&region)?];
        let start = (scatter(key) % part.nodes.len().max(1) as u64) as usize;
        let potential = &part.rooms(among).potential;
        potential.find(start, need).map(|at| part.nodes[at])
    }
}

/// What a choice starts from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Draw<'a> {
    /// Where the node has to be.
    pub(crate) region: u16,
    /// Bytes that it must have.
    pub(crate) need: u64,
    pub(crate) among: Among,
    /// What the draw depends on.
    pub(crate) key: u64,
    /// How many nodes are drawn from either list.
    pub(crate) choices: usize,
    /// Nodes with the snapshot.
    pub(crate) local: &'a [Slot],
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn even(bytes: u64) -> Room {
        Room {
            free: bytes,
            potential: bytes,
        }
    }

    /// Two choices among calm nodes, none of which has the snapshot.
    fn draw(region: u16, need: u64, key: u64) -> Draw<'static> {
        Draw {
            region,
            need,
            among: Among::Calm,
            key,
            choices: 2,
            local: &[],
        }
    }

    proptest! {
        #[test]
        fn a_tree_finds_what_a_walk_finds(
            values in prop::collection::vec(0u64..10, 1..70),
            changes in prop::collection::vec((0usize..70, 0u64..10), 0..50),
            start in 0usize..200, need in 0u64..12,
        ) {
            let mut tree = MaxTree::default();
            let mut plain = vec![0; 128];
            for (at, value) in values.into_iter().enumerate().chain(changes) {
                tree.set(at, value);
                plain[at] = value;
            }
            plain.truncate(tree.leaves);
            let begin = start % tree.leaves;
            let walk = (0..tree.leaves).map(|step| (begin + step) % tree.leaves)
                .find(|at| need > 0 && plain[*at] >= need);
            prop_assert_eq!(tree.find(start, need), walk);
        }

        #[test]
        fn whoever_has_room_is_found(rooms in prop::collection::vec(0u64..5, 1..50), need in 1u64..6, key in any::<u64>()) {
            let mut placement = Placement::default();
            for (node, room) in (0..).zip(&rooms) {
                let place = placement.add(node, 3);
                placement.set(place, even(*room), true);
            }
            let draw = draw(3, need, key);
            let score = |node: Slot, _| (rooms[node as usize] >= need).then_some(10 - rooms[node as usize]);
            let found = placement.choose(draw, score);
            prop_assert_eq!(found.is_some(), rooms.iter().any(|room| *room >= need));
            if let Some(node) = found {
                prop_assert!(rooms[node as usize] >= need);
            }
            prop_assert_eq!(found, placement.choose(draw, score));
            prop_assert_eq!(placement.choose(Draw { region: 0, ..draw }, score), None);
        }
    }

    #[test]
    fn two_choices_spread_better_than_one() {
        let fullest = |choices| {
            let mut placement = Placement::default();
            let places: Vec<_> = (0..100).map(|node| placement.add(node, 0)).collect();
            let mut load = vec![0u64; 100];
            places
                .iter()
                .for_each(|place| placement.set(*place, even(1 << 30), true));
            for key in 0..1000 {
                let draw = Draw {
                    choices,
                    ..draw(0, 1, key)
                };
                let node = placement
                    .choose(draw, |node, _| Some(load[node as usize]))
                    .unwrap();
                load[node as usize] += 1;
            }
            load.into_iter().max().unwrap()
        };
        assert!(fullest(2) < fullest(1), "{} and {}", fullest(2), fullest(1));
        assert!(fullest(2) <= 14, "{}", fullest(2));
    }

    #[test]
    fn saturated_nodes_are_found_only_among_all() {
        let mut placement = Placement::default();
        let places = [placement.add(5, 0), placement.add(6, 0)];
        placement.set(places[0], even(100), false);
        placement.set(places[1], even(10), true);
        let draw = draw(0, 50, 1);
        assert_eq!(placement.choose(draw, |_, _| None), None);
        assert_eq!(placement.evictable(0, 1, 50, Among::Calm), None);
        let among = Among::All;
        assert_eq!(placement.choose(Draw { among, ..draw }, |_, _| None), Some(5));
        assert_eq!(placement.evictable(0, 1, 50, among), Some(5));
        placement.set(places[0], even(100), true);
        assert_eq!(placement.choose(draw, |_, _| None), Some(5));
    }

    #[test]
    fn nodes_that_went_are_not_found() {
        let mut placement = Placement::default();
        let place = placement.add(7, 0);
        let room = Room {
            free: 100,
            potential: 200,
        };
        placement.set(place, room, true);
        let draw = draw(0, 50, 1);
        assert_eq!(placement.choose(draw, |_, _| None), Some(7));
        assert_eq!(placement.evictable(0, 1, 150, Among::Calm), Some(7));
        placement.remove(place);
        assert_eq!(placement.choose(draw, |_, _| None), None);
        assert_eq!(placement.evictable(0, 1, 150, Among::Calm), None);
    }
}
