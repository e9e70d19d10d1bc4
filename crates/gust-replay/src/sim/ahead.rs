//! Calls before a run, which it begins with what is left of.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::SimError;
use crate::{Arrival, Workload};

/// Calls before a run. Policies learn from them, and instances may be left; neither they nor what they use is part of the run.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Ahead {
    /// In order of time.
    pub calls: Vec<CallAhead>,
    /// From the time of which the calls count to the beginning of the run, in nanoseconds.
    pub length_ns: u64,
}

/// A call before a run: its handler does nothing but to touch its function's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallAhead {
    /// Index of the function.
    pub function: u32,
    /// When it is made, in nanoseconds.
    pub at_ns: u64,
    /// When its function's idle instances, armed ones too, are ended, in nanoseconds.
    pub evicted_ns: u64,
}

impl Ahead {
    /// All arrivals, those of a workload after those that come before it.
    ///
    /// # Errors
    /// [`SimError::Ahead`] for a call, or an end of instances, after the beginning of the run.
    pub(super) fn arrivals<'a>(&self, workload: &'a Workload) -> Result<Cow<'a, [Arrival]>, SimError> {
        if *self == Self::default() {
            return Ok(Cow::Borrowed(&workload.arrivals));
        }
        let late = |call: &CallAhead| call.at_ns.max(call.evicted_ns) > self.length_ns;
        if let Some(index) = self.calls.iter().position(late) {
            return Err(SimError::Ahead { index });
        }
        let before = self.calls.iter().map(|call| Arrival {
            at_ns: call.at_ns,
            function: call.function,
            duration_ns: 0,
        });
        let after = workload.arrivals.iter().map(|arrival| Arrival {
            at_ns: arrival.at_ns.saturating_add(self.length_ns),
            ..*arrival
        });
        Ok(before.chain(after).collect())
    }
}

#[cfg(test)]
mod tests {
    use gust_policy::{FleetConfig, NodeSpec};

    use super::*;
    use crate::{
        Function, Start,
        sim::{SimConfig, SimCosts, SimFunctions, SimNode, SimResult, simulate},
    };

    const MS: u64 = 1_000_000;

    /// One call 10 ms after the beginning, and one of the same function before it.
    fn run(evicted_ns: u64, length_ns: u64) -> Result<SimResult, SimError> {
        let workload = Workload {
            functions: vec![Function {
                name: "f".to_owned(),
                tenant: 0,
                memory_mib: 64,
            }],
            arrivals: vec![Arrival {
                at_ns: 10 * MS,
                function: 0,
                duration_ns: MS,
            }],
            length_ns: 20 * MS,
        };
        let config = SimConfig {
            nodes: vec![SimNode {
                spec: NodeSpec {
                    memory_bytes: 1 << 40,
                    instances_max: 10,
                    restores_max: 10,
                    region: 0,
                },
                processors: 1,
            }],
            costs: vec![SimCosts::default()],
            functions: SimFunctions::default(),
            homes: Vec::new(),
            between_regions_ns: 0,
            seed: 1,
            sample_every_ns: MS,
            ahead: Ahead {
                calls: vec![CallAhead {
                    function: 0,
                    at_ns: MS,
                    evicted_ns,
                }],
                length_ns,
            },
        };
        simulate(&workload, &config, FleetConfig::default())
    }

    #[test]
    fn a_run_begins_with_what_calls_before_it_have_left() {
        let (evicted, kept) = (run(40 * MS, 50 * MS).unwrap(), run(MS, 50 * MS).unwrap());
        let starts = [&evicted, &kept].map(|result| result.records[0].start);
        assert_eq!(starts, [Start::Restored, Start::Warm]);
        let memory = [&evicted, &kept].map(|result| result.samples[0].memory_bytes);
        assert_eq!(
            memory[1] - memory[0],
            SimCosts::default().instance_bytes + (64 << 20)
        );
        for result in [evicted, kept] {
            assert_eq!((result.records.len(), result.records[0].arrived_ns), (1, 10 * MS));
            let first = result.samples[0];
            assert_eq!((first.at_ns, first.cpu_ns, first.overhead_cpu_ns), (0, 0, 0));
            assert!(result.samples.is_sorted_by_key(|sample| sample.at_ns));
        }
    }

    #[test]
    fn what_is_before_a_run_is_not_after_its_beginning() {
        assert_eq!(run(40 * MS, 30 * MS), Err(SimError::Ahead { index: 0 }));
    }
}
