//! The schedule of faults: a function of a seed and options, and of nothing else.
//!
//! Kinds come in rounds, each a permutation of all that are asked for, so that a short run has every kind. No fault
//! begins while as many as are allowed are there or have ended just now, none on a node that has one, and each is healed, and
//! has been for [`Plan::rest_ns`], when the run ends.

use serde::Serialize;

use crate::random::Random;

/// Stream of the schedule's random numbers.
const STREAM: u64 = 0xc4a0_5000;

/// Faults of a run at most.
const FAULTS_MAX: usize = 10_000;

/// Nodes of a plan at most.
pub const NODES_MAX: u32 = 200;

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FaultKind {
    /// A worker's process is killed: one of the node's, or all at once.
    Worker,
    /// A node's process is killed, and started again later.
    Agent,
    /// The control plane's process is killed, and started again at once.
    Control,
    /// A node's network goes away without a word, and comes back later.
    Silence,
    /// The same, but both sides are told: their connections are cut.
    Cut,
}

impl FaultKind {
    /// A word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Agent => "agent",
            Self::Control => "control",
            Self::Silence => "silence",
            Self::Cut => "cut",
        }
    }

    /// It lasts until it is healed, and is not over at once.
    fn lasts(self) -> bool {
        match self {
            Self::Agent | Self::Silence | Self::Cut => true,
            Self::Worker | Self::Control => false,
        }
    }
}

/// A fault to be. Moments are nanoseconds since the run began.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Fault {
    /// What is done.
    pub kind: FaultKind,
    /// To which node: 0 is the control plane's own, others are numbered from 1.
    pub node: u32,
    /// When.
    pub at_ns: u64,
    /// When it is healed.
    pub heals_ns: u64,
    /// Which of the node's workers, where it is one of them: the part of those before it, from 0 (included) to 1 (excluded).
    pub pick: f64,
    /// All workers of the node, and not one of them.
    pub is_all: bool,
}

/// From what a schedule is drawn. Times are in nanoseconds.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Seed.
    pub seed: u64,
    /// Length of the run.
    pub length_ns: u64,
    /// Nodes beside the control plane's own.
    pub nodes: u32,
    /// Kinds that are drawn; each once.
    pub kinds: Vec<FaultKind>,
    /// Mean time from the begin of a fault to that of the next, where the others leave room for it; drawn from half to one and
    /// a half of it.
    pub every_ns: u64,
    /// Shortest and longest time until what lasts is healed.
    pub lasts_ns: (u64, u64),
    /// Time that is left before the first fault, after each one for the cluster to be whole again, and after the last.
    pub rest_ns: u64,
    /// Faults that may be there at once.
    pub at_once: usize,
}

/// Why there is no such plan.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PlanError {
    /// No kind is asked for.
    #[error("no kind of fault is asked for")]
    NoKind,
    /// Too many nodes, or none for faults that need one.
    #[error("there are {nodes} nodes; faults need 1 to {NODES_MAX}")]
    Nodes {
        /// How many there are.
        nodes: u32,
    },
    /// A time is nothing, or the longest is shorter than the shortest.
    #[error("a time of the plan is nothing, or a shortest is longer than its longest")]
    Times,
    /// Nothing is allowed.
    #[error("at least one fault must be allowed at once")]
    NoneAtOnce,
    /// The run is over before a fault would be healed.
    #[error("a run of {length_s} s has no room for a fault; it takes {needed_s} s")]
    TooShort {
        /// Length of the run, in seconds.
        length_s: u64,
        /// What one fault takes, in seconds.
        needed_s: u64,
    },
}

impl Plan {
    fn check(&self) -> Result<(), PlanError> {
        if self.kinds.is_empty() {
            return Err(PlanError::NoKind);
        }
        if !(1..=NODES_MAX).contains(&self.nodes) {
            return Err(PlanError::Nodes { nodes: self.nodes });
        }
        let (shortest, longest) = self.lasts_ns;
        if self.every_ns == 0 || shortest == 0 || shortest > longest {
            return Err(PlanError::Times);
        }
        if self.at_once == 0 {
            return Err(PlanError::NoneAtOnce);
        }
        let needed = longest.saturating_add(self.rest_ns.saturating_mul(2));
        if needed >= self.length_ns {
            return Err(PlanError::TooShort {
                length_s: self.length_ns / 1_000_000_000,
                needed_s: needed.div_ceil(1_000_000_000),
            });
        }
        Ok(())
    }

    /// Draws the schedule, in order of time.
    ///
    /// # Errors
    /// When the plan makes no sense; see [`PlanError`].
    pub fn draw(&self) -> Result<Vec<Fault>, PlanError> {
        self.check()?;
        let mut random = Random::new(self.seed, STREAM);
        let mut faults: Vec<Fault> = Vec::new();
        let mut round: Vec<FaultKind> = Vec::new();
        let mut due_ns = self.rest_ns;
        while faults.len() < FAULTS_MAX {
            if round.is_empty() {
                round = permutation(&self.kinds, &mut random);
            }
            let Some(kind) = round.pop() else { break };
            // All is drawn for every fault, whatever it needs: what one takes from the numbers changes no other.
            let (gap, lasting, place, pick, share) = (
                random.unit(),
                random.unit(),
                random.unit(),
                random.unit(),
                random.unit(),
            );
            let at_ns = self.free_from(due_ns, &faults);
            let there: Vec<&Fault> = faults
                .iter()
                .filter(|fault| self.over_ns(fault) > at_ns)
                .collect();
            let candidates: Vec<u32> = nodes_of(kind, self.nodes)
                .filter(|node| there.iter().all(|fault| fault.node != *node))
                .collect();
            let lasts_ns = match kind.lasts() {
                true => between(self.lasts_ns, lasting),
                false => 0,
            };
            let heals_ns = at_ns.saturating_add(lasts_ns);
            if heals_ns.saturating_add(self.rest_ns) > self.length_ns {
                break;
            }
            // A round's fault for which there is no node now is left out.
            if !candidates.is_empty() {
                faults.push(Fault {
                    kind,
                    node: candidates[index(place, candidates.len())],
                    at_ns,
                    heals_ns,
                    pick,
                    is_all: share < 0.5,
                });
            }
            let half = self.every_ns / 2;
            due_ns = at_ns.saturating_add(between((half.max(1), self.every_ns.saturating_add(half)), gap));
        }
        Ok(faults)
    }

    /// When a fault leaves room for the next.
    fn over_ns(&self, fault: &Fault) -> u64 {
        fault.heals_ns.saturating_add(self.rest_ns)
    }

    /// The first moment from one on at which a further fault is allowed.
    fn free_from(&self, due_ns: u64, faults: &[Fault]) -> u64 {
        let mut over: Vec<u64> = faults.iter().map(|fault| self.over_ns(fault)).collect();
        over.sort_unstable_by(|a, b| b.cmp(a));
        // Of those that are over last, so many are allowed beside it.
        over.get(self.at_once - 1)
            .map_or(due_ns, |over| due_ns.max(*over))
    }
}

/// Nodes that a kind can be done to.
fn nodes_of(kind: FaultKind, nodes: u32) -> std::ops::RangeInclusive<u32> {
    match kind {
        FaultKind::Worker => 0..=nodes,
        FaultKind::Control => 0..=0,
        FaultKind::Agent | FaultKind::Silence | FaultKind::Cut => 1..=nodes,
    }
}

/// The element that a number from 0 (included) to 1 (excluded) means.
fn index(unit: f64, count: usize) -> usize {
    ((unit * count as f64) as usize).min(count.saturating_sub(1))
}

fn between((low, high): (u64, u64), unit: f64) -> u64 {
    low + ((high - low) as f64 * unit) as u64
}

fn permutation(kinds: &[FaultKind], random: &mut Random) -> Vec<FaultKind> {
    let mut kinds = kinds.to_vec();
    for last in (1..kinds.len()).rev() {
        kinds.swap(last, index(random.unit(), last + 1));
    }
    kinds
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const S: u64 = 1_000_000_000;

    const ALL: [FaultKind; 5] = [
        FaultKind::Worker,
        FaultKind::Agent,
        FaultKind::Control,
        FaultKind::Silence,
        FaultKind::Cut,
    ];

    /// What seed 1 draws first: kind, node, milliseconds.
    const PINNED: [(&str, u32, u64); 5] = [
        ("worker", 0, 3000),
        ("silence", 2, 8981),
        ("control", 0, 17551),
        ("cut", 2, 26897),
        ("agent", 2, 34211),
    ];

    fn plan(seed: u64) -> Plan {
        Plan {
            seed,
            length_ns: 600 * S,
            nodes: 3,
            kinds: ALL.to_vec(),
            every_ns: 10 * S,
            lasts_ns: (2 * S, 6 * S),
            rest_ns: 3 * S,
            at_once: 1,
        }
    }

    #[test]
    fn a_seed_gives_one_schedule_and_another_gives_another() {
        assert_eq!(plan(1).draw(), plan(1).draw());
        assert_ne!(plan(1).draw(), plan(2).draw());
    }

    #[test]
    fn the_first_faults_of_a_seed_are_pinned() {
        let drawn = plan(1).draw().unwrap();
        let first: Vec<(&str, u32, u64)> = drawn
            .iter()
            .take(5)
            .map(|fault| (fault.kind.word(), fault.node, fault.at_ns / 1_000_000))
            .collect();
        assert_eq!(first, PINNED);
    }

    #[test]
    fn every_kind_comes_once_a_round() {
        let drawn = plan(7).draw().unwrap();
        for round in drawn.chunks_exact(ALL.len()) {
            let mut kinds: Vec<FaultKind> = round.iter().map(|fault| fault.kind).collect();
            kinds.sort_unstable();
            assert_eq!(kinds, ALL);
        }
        assert!(drawn.len() >= 2 * ALL.len(), "{}", drawn.len());
    }

    #[test]
    fn plans_that_make_no_sense_are_refused() {
        let refused = |change: fn(&mut Plan)| {
            let mut plan = plan(1);
            change(&mut plan);
            plan.draw().unwrap_err()
        };
        assert_eq!(refused(|plan| plan.kinds.clear()), PlanError::NoKind);
        assert_eq!(refused(|plan| plan.nodes = 0), PlanError::Nodes { nodes: 0 });
        assert_eq!(refused(|plan| plan.lasts_ns = (2, 1)), PlanError::Times);
        assert_eq!(refused(|plan| plan.every_ns = 0), PlanError::Times);
        assert_eq!(refused(|plan| plan.at_once = 0), PlanError::NoneAtOnce);
        assert_eq!(
            refused(|plan| plan.length_ns = 12 * S),
            PlanError::TooShort {
                length_s: 12,
                needed_s: 12
            }
        );
    }

    proptest! {
        #[test]
        fn schedules_are_bounded_and_always_healed(
            seed in any::<u64>(),
            length_s in 20u64..2000,
            nodes in 1u32..6,
            kinds in proptest::sample::subsequence(ALL.to_vec(), 1..=ALL.len()),
            every_ms in 1u64..60_000,
            lasts_ms in (1u64..4000, 0u64..6000),
            rest_ms in 0u64..5000,
            at_once in 1usize..5,
        ) {
            let plan = Plan {
                seed,
                length_ns: length_s * S,
                nodes,
                kinds,
                every_ns: every_ms * 1_000_000,
                lasts_ns: (lasts_ms.0 * 1_000_000, (lasts_ms.0 + lasts_ms.1) * 1_000_000),
                rest_ns: rest_ms * 1_000_000,
                at_once,
            };
            let Ok(faults) = plan.draw() else { return Ok(()) };
            prop_assert!(faults.len() <= FAULTS_MAX);
            prop_assert!(faults.is_sorted_by_key(|fault| fault.at_ns));
            for fault in &faults {
                prop_assert!(plan.kinds.contains(&fault.kind));
                prop_assert!(nodes_of(fault.kind, nodes).contains(&fault.node));
                prop_assert!(fault.at_ns >= plan.rest_ns && fault.heals_ns >= fault.at_ns);
                prop_assert!(fault.heals_ns + plan.rest_ns <= plan.length_ns);
                prop_assert!((0.0..1.0).contains(&fault.pick));
                // The largest number at once is there when one begins.
                let there: Vec<&Fault> = faults
                    .iter()
                    .filter(|other| other.at_ns <= fault.at_ns && fault.at_ns < other.heals_ns + plan.rest_ns)
                    .collect();
                prop_assert!(there.len() <= at_once, "{there:?}");
                let on_it = there.iter().filter(|other| other.node == fault.node).count();
                prop_assert!(on_it <= 1, "{there:?}");
            }
        }
    }
}
