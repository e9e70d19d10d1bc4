//! What may come of faults, and whether what came of them is that.
//!
//! ```text
//! a call that failed       is excused by a fault, or a bystander
//! an event that was taken  has run to its end, or is lost
//! a fault                  the cluster is whole again after it, or is not
//! ```
//!
//! A fault excuses a call that it can have hit, and no other: one that had been sent before what it needed was gone (or before
//! that could be known), that failed in the time in which that must be noticed, and with the error that is stated for
//! it. A killed worker excuses one call. Of a call that a fault excuses it is asked that it can be tried again: the
//! error says so.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::schedule::{Fault, FaultKind};

/// Time in which the end of a connection is noticed, in nanoseconds; a bound for a busy machine, not what it takes.
const NOTICED_NS: u64 = 1_000_000_000;

/// Silence after which a link is given up, in nanoseconds (`gust_cluster::link::SILENCE_MAX`).
const SILENCE_NS: u64 = 3_000_000_000;

/// How a call ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CallEnd {
    /// With a response.
    Answered,
    /// As an event that is taken.
    Accepted,
    /// With the stated error of a lost worker.
    WorkerLost,
    /// With the stated error of a lost node: its number.
    NodeLost(u32),
    /// No connection, or one that broke.
    Unreachable,
    /// With anything else.
    Failed(String),
}

/// A call. Moments are nanoseconds since the run began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Its number, by which its function says that it has run.
    pub number: u64,
    /// Index of its function.
    pub function: u32,
    /// It is an event.
    pub is_event: bool,
    /// When it was sent.
    pub sent_ns: u64,
    /// When it ended.
    pub ended_ns: u64,
    /// How.
    pub end: CallEnd,
    /// When it was answered after all, tried again after an error that says that it can be.
    pub retried_ns: Option<u64>,
}

impl Call {
    fn is_good(&self) -> bool {
        match self.end {
            CallEnd::Answered | CallEnd::Accepted => true,
            CallEnd::WorkerLost | CallEnd::NodeLost(_) | CallEnd::Unreachable | CallEnd::Failed(_) => false,
        }
    }
}

/// A fault that was carried out. Moments are nanoseconds since the run began.
#[derive(Debug, Clone, PartialEq)]
pub struct Injected {
    /// What was to be.
    pub fault: Fault,
    /// When it began to be carried out.
    pub began_ns: u64,
    /// When that was done.
    pub done_ns: u64,
    /// When it was healed: the node started or linked again, the control plane ready.
    pub healed_ns: u64,
    /// When the fleet had all its nodes again; `None` when it had not in time.
    pub whole_ns: Option<u64>,
    /// Workers that were killed.
    pub workers: u32,
}

/// All that was noted of a run.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    /// Calls.
    pub calls: Vec<Call>,
    /// Faults, in order of their begin.
    pub faults: Vec<Injected>,
    /// How often each call has run to its end, by number, by what functions said.
    pub runs: HashMap<u64, u32>,
}

/// Something that must not be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "what")]
pub enum Finding {
    /// A call failed that no fault excuses.
    Bystander {
        /// Its number.
        call: u64,
        /// When it was sent.
        sent_ns: u64,
        /// When it failed.
        ended_ns: u64,
        /// How.
        end: CallEnd,
    },
    /// A call was to be tried again and was not answered.
    NotRetried {
        /// Its number.
        call: u64,
        /// How it had failed.
        end: CallEnd,
    },
    /// An event that was taken has not run to its end.
    LostEvent {
        /// Its number.
        call: u64,
        /// When it was taken.
        ended_ns: u64,
    },
    /// The fleet had not all its nodes again in time.
    NotWhole {
        /// Index of the fault.
        fault: usize,
    },
}

/// What a fault has come to. Times are in nanoseconds, from its begin.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Consequence {
    /// The fault as it was planned.
    pub fault: Fault,
    /// When it began, since the begin of the run.
    pub began_ns: u64,
    /// Workers that were killed.
    pub workers: u32,
    /// Synchronous calls that failed by it.
    pub failed: u64,
    /// Events that could not be handed in because of it.
    pub refused: u64,
    /// Until the last call that failed by it was answered, tried again; `None` when none failed.
    pub answered_after_ns: Option<u64>,
    /// Until it was healed.
    pub healed_after_ns: u64,
    /// Until the fleet had all its nodes.
    pub whole_after_ns: Option<u64>,
}

/// What came of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verdict {
    /// Synchronous calls that were answered.
    pub answered: u64,
    /// Events that were taken.
    pub accepted: u64,
    /// Answered calls that the log has nothing of: the log's own loss, when the control plane is killed with lines in its hands.
    pub unheard: u64,
    /// Calls that have run to their end more than once.
    pub repeated: u64,
    /// For each fault.
    pub consequences: Vec<Consequence>,
    /// What must not be; nothing when all is well.
    pub findings: Vec<Finding>,
}

impl Injected {
    /// Whether this fault can have made a call fail so.
    fn excuses(&self, call: &Call) -> bool {
        // What is hit is known at the latest then.
        let until_ns = |noticed_ns: u64| self.done_ns.saturating_add(noticed_ns);
        let failed_in = |noticed_ns: u64| {
            (self.began_ns..=until_ns(noticed_ns.saturating_add(NOTICED_NS))).contains(&call.ended_ns)
        };
        let is_node = |node: u32| node == self.fault.node;
        match (&call.end, self.fault.kind) {
            (CallEnd::WorkerLost, FaultKind::Worker) => call.sent_ns <= self.done_ns && failed_in(0),
            (CallEnd::NodeLost(node), FaultKind::Agent | FaultKind::Cut) => {
                is_node(*node) && call.sent_ns <= until_ns(NOTICED_NS) && failed_in(NOTICED_NS)
            }
            (CallEnd::NodeLost(node), FaultKind::Silence) => {
                let known_ns = until_ns(SILENCE_NS + NOTICED_NS);
                is_node(*node) && call.sent_ns <= known_ns && failed_in(SILENCE_NS)
            }
            (CallEnd::Unreachable, FaultKind::Control) => {
                call.ended_ns >= self.began_ns && call.sent_ns <= self.healed_ns
            }
            (
                CallEnd::Answered
                | CallEnd::Accepted
                | CallEnd::WorkerLost
                | CallEnd::NodeLost(_)
                | CallEnd::Unreachable
                | CallEnd::Failed(_),
                FaultKind::Worker
                | FaultKind::Agent
                | FaultKind::Control
                | FaultKind::Silence
                | FaultKind::Cut,
            ) => false,
        }
    }
}

impl Ledger {
    /// Judges.
    pub fn verdict(&self) -> Verdict {
        let mut findings = Vec::new();
        let mut excused: BTreeMap<usize, Vec<&Call>> = BTreeMap::new();
        for call in self.calls.iter().filter(|call| !call.is_good()) {
            // The newest that does: an earlier one has had its time.
            let by = (0..self.faults.len())
                .rev()
                .find(|at| self.faults[*at].excuses(call) && self.has_room(*at, &excused));
            let Some(by) = by else {
                findings.push(Finding::Bystander {
                    call: call.number,
                    sent_ns: call.sent_ns,
                    ended_ns: call.ended_ns,
                    end: call.end.clone(),
                });
                continue;
            };
            if !call.is_event && call.retried_ns.is_none() {
                findings.push(Finding::NotRetried {
                    call: call.number,
                    end: call.end.clone(),
                });
            }
            excused.entry(by).or_default().push(call);
        }
        let has_not_run = |call: &&Call| !self.runs.contains_key(&call.number);
        let of = |end: CallEnd| self.calls.iter().filter(move |call| call.end == end);
        findings.extend(
            of(CallEnd::Accepted)
                .filter(has_not_run)
                .map(|call| Finding::LostEvent {
                    call: call.number,
                    ended_ns: call.ended_ns,
                }),
        );
        let unhealed = self
            .faults
            .iter()
            .enumerate()
            .filter(|(_, fault)| fault.whole_ns.is_none());
        findings.extend(unhealed.map(|(fault, _)| Finding::NotWhole { fault }));
        Verdict {
            answered: of(CallEnd::Answered).count() as u64,
            accepted: of(CallEnd::Accepted).count() as u64,
            unheard: of(CallEnd::Answered).filter(has_not_run).count() as u64,
            repeated: self.runs.values().filter(|runs| **runs > 1).count() as u64,
            consequences: self
                .faults
                .iter()
                .enumerate()
                .map(|(at, fault)| consequence(fault, excused.get(&at).map_or(&[], Vec::as_slice)))
                .collect(),
            findings,
        }
    }

    /// A worker takes one event at a time.
    fn has_room(&self, at: usize, excused: &BTreeMap<usize, Vec<&Call>>) -> bool {
        let fault = &self.faults[at];
        match fault.fault.kind {
            FaultKind::Worker => excused.get(&at).map_or(0, Vec::len) < fault.workers as usize,
            FaultKind::Agent | FaultKind::Control | FaultKind::Silence | FaultKind::Cut => true,
        }
    }
}

fn consequence(fault: &Injected, calls: &[&Call]) -> Consequence {
    let after = |moment: u64| moment.saturating_sub(fault.began_ns);
    let events = calls.iter().filter(|call| call.is_event).count() as u64;
    Consequence {
        fault: fault.fault,
        began_ns: fault.began_ns,
        workers: fault.workers,
        failed: calls.len() as u64 - events,
        refused: events,
        answered_after_ns: calls.iter().filter_map(|call| call.retried_ns).max().map(after),
        healed_after_ns: after(fault.healed_ns),
        whole_after_ns: fault.whole_ns.map(after),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    fn injected(kind: FaultKind, node: u32) -> Injected {
        Injected {
            fault: Fault {
                kind,
                node,
                at_ns: 10 * S,
                heals_ns: 14 * S,
                pick: 0.0,
                is_all: false,
            },
            began_ns: 10 * S,
            done_ns: 10 * S + 1000,
            healed_ns: 14 * S,
            whole_ns: Some(15 * S),
            workers: u32::from(kind == FaultKind::Worker),
        }
    }

    fn call(number: u64, sent_ns: u64, ended_ns: u64, end: CallEnd) -> Call {
        Call {
            number,
            function: 0,
            is_event: false,
            sent_ns,
            ended_ns,
            end,
            retried_ns: Some(ended_ns + S),
        }
    }

    fn findings(fault: Injected, calls: Vec<Call>) -> Vec<Finding> {
        let ledger = Ledger {
            runs: calls.iter().map(|call| (call.number, 1)).collect(),
            calls,
            faults: vec![fault],
        };
        ledger.verdict().findings
    }

    #[test]
    fn a_fault_excuses_what_it_can_have_hit_and_nothing_else() {
        use {CallEnd::*, FaultKind::*};
        let (before, at, later) = (9 * S, 10 * S, 16 * S);
        let refused = || Failed("429".to_owned());
        for (kind, sent, ended, end, is_excused) in [
            (Worker, before, at + 5, WorkerLost, true),
            (Worker, at + S, at + S + 5, WorkerLost, false),
            (Worker, before, later, WorkerLost, false),
            (Worker, before, at - 5, WorkerLost, false),
            (Worker, before, at + 5, NodeLost(1), false),
            (Worker, before, at + 5, Unreachable, false),
            (Agent, before, at + 5, NodeLost(1), true),
            (Agent, before, at + 5, NodeLost(2), false),
            (Agent, before, at + 5, WorkerLost, false),
            (Agent, before, at + 4 * S, NodeLost(1), false),
            (Agent, at + 2 * S, at + 2 * S + 5, NodeLost(1), false),
            (Cut, before, at + 5, NodeLost(1), true),
            (Cut, before, at + 4 * S, NodeLost(1), false),
            (Silence, before, at + 3 * S, NodeLost(1), true),
            (Silence, at + 2 * S, at + 3 * S, NodeLost(1), true),
            (Silence, at + 3 * S + 5, at + 3 * S + 7, NodeLost(1), true),
            (Silence, before, at + 5 * S, NodeLost(1), false),
            (Silence, at + 5 * S, at + 5 * S, NodeLost(1), false),
            (Control, before, at + 5, Unreachable, true),
            (Control, at + 2 * S, at + 2 * S + 5, Unreachable, true),
            (Control, later, later + 5, Unreachable, false),
            (Control, before, at + 5, WorkerLost, false),
            (Control, before, at + 5, refused(), false),
            (Agent, before, at + 5, refused(), false),
        ] {
            let found = findings(injected(kind, 1), vec![call(0, sent, ended, end.clone())]);
            assert_eq!(
                found.is_empty(),
                is_excused,
                "{kind:?} {sent} {ended} {end:?}: {found:?}"
            );
        }
    }

    #[test]
    fn a_worker_excuses_one_call() {
        let lost = |number| call(number, 9 * S, 10 * S + 5, CallEnd::WorkerLost);
        assert_eq!(findings(injected(FaultKind::Worker, 1), vec![lost(0)]), []);
        let found = findings(injected(FaultKind::Worker, 1), vec![lost(0), lost(1)]);
        assert!(
            matches!(found.as_slice(), [Finding::Bystander { call: 1, .. }]),
            "{found:?}"
        );
        let both = Injected {
            workers: 2,
            ..injected(FaultKind::Worker, 1)
        };
        assert_eq!(findings(both, vec![lost(0), lost(1)]), []);
    }

    #[test]
    fn events_that_have_not_run_are_found() {
        let accepted = |number| Call {
            is_event: true,
            retried_ns: None,
            ..call(number, 1, 2, CallEnd::Accepted)
        };
        let ledger = Ledger {
            calls: vec![
                accepted(0),
                accepted(1),
                accepted(2),
                call(3, 1, 2, CallEnd::Answered),
            ],
            faults: Vec::new(),
            runs: HashMap::from([(0, 1), (1, 2)]),
        };
        let verdict = ledger.verdict();
        assert_eq!((verdict.answered, verdict.accepted), (1, 3));
        assert_eq!((verdict.unheard, verdict.repeated), (1, 1));
        assert_eq!(verdict.findings, [Finding::LostEvent { call: 2, ended_ns: 2 }]);
    }

    #[test]
    fn what_is_never_whole_or_never_answered_is_found() {
        let fault = Injected {
            whole_ns: None,
            ..injected(FaultKind::Control, 0)
        };
        let never = Call {
            retried_ns: None,
            ..call(0, 9 * S, 10 * S, CallEnd::Unreachable)
        };
        let found = findings(fault, vec![never]);
        let end = CallEnd::Unreachable;
        assert_eq!(
            found,
            [
                Finding::NotRetried { call: 0, end },
                Finding::NotWhole { fault: 0 }
            ]
        );
    }

    #[test]
    fn recovery_is_counted_from_the_fault() {
        let ledger = Ledger {
            calls: vec![
                call(0, 9 * S, 10 * S, CallEnd::Unreachable),
                Call {
                    is_event: true,
                    retried_ns: None,
                    ..call(1, 11 * S, 11 * S, CallEnd::Unreachable)
                },
            ],
            faults: vec![injected(FaultKind::Control, 0)],
            runs: HashMap::from([(0, 1)]),
        };
        let verdict = ledger.verdict();
        assert_eq!(verdict.findings, []);
        let [consequence] = verdict.consequences.as_slice() else {
            panic!("{verdict:?}");
        };
        assert_eq!((consequence.failed, consequence.refused), (1, 1));
        assert_eq!(consequence.answered_after_ns, Some(S));
        assert_eq!(
            (consequence.healed_after_ns, consequence.whole_after_ns),
            (4 * S, Some(5 * S))
        );
    }
}
