//! From counts a minute to single invocations, and from a workload to one that fits a machine.
//!
//! Every function draws from a stream of its own, so that leaving one out changes no other. Counts a minute are kept exactly.
//! Durations are drawn from a function's percentiles on straight lines between them and clamped to what InVitro allows.

use crate::{
    Arrival, Function, Workload,
    random::Random,
    trace::{INVOCATIONS_MAX, Trace, TraceFunction},
};

/// Shortest and longest duration that is asked of a handler, in milliseconds: InVitro's bounds.
const DURATION_MS: (f64, f64) = (1.0, 60_000.0);

/// Least and most memory of a function, in MiB: InVitro's bounds.
const MEMORY_MIB: (f64, f64) = (1.0, 10_240.0);

const NS_PER_MINUTE: u64 = 60_000_000_000;
const NS_PER_MS: f64 = 1e6;

/// Stream of the numbers that decide which functions or invocations are left out; those of functions are from 0 on.
const THINNING_STREAM: u64 = u64::MAX;

/// Where the invocations of a minute lie in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spacing {
    /// Gaps are exponential: a Poisson process that has come to this count.
    Exponential,
    /// Gaps are uniform.
    Uniform,
    /// Gaps are equal; each function begins at a random place of its first gap.
    Equidistant,
}

/// What is left out to fit a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thinning {
    /// Whole functions: every n-th in the order of their invocations, so that busy and quiet ones stay in proportion.
    Functions,
    /// Single invocations of all functions, at random.
    Invocations,
}

/// What is taken of a trace, and how.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Plan {
    /// Seed of everything random.
    pub seed: u64,
    /// Where invocations lie in their minute.
    pub spacing: Spacing,
    /// First minute that is taken, from 0.
    pub from_minute: usize,
    /// Minutes that are taken, of the trace's time; `None` for all.
    pub minutes: Option<usize>,
    /// Times that the trace's time runs faster. Durations stay as they are.
    pub speed: f64,
    /// Part of the load that stays, more than 0 and at most 1.
    pub scale: f64,
    /// How it is made smaller.
    pub thinning: Thinning,
    /// Factor of durations.
    pub durations: f64,
    /// Factor of memory.
    pub memory: f64,
    /// Quantile of a function's memory that all its invocations use.
    pub memory_quantile: f64,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            seed: 1,
            spacing: Spacing::Exponential,
            from_minute: 0,
            minutes: None,
            speed: 1.0,
            scale: 1.0,
            thinning: Thinning::Invocations,
            durations: 1.0,
            memory: 1.0,
            memory_quantile: 0.5,
        }
    }
}

/// Why there is no workload.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum PlanError {
    /// A factor makes no sense.
    #[error("{what} is {value}; it must be {must}")]
    Factor {
        /// Which.
        what: &'static str,
        /// As given.
        value: f64,
        /// What it must be.
        must: &'static str,
    },
    /// The minutes asked for lie outside of the trace.
    #[error("the trace has {minutes} minutes; there is nothing from minute {from} on")]
    Minutes {
        /// Minutes of the trace.
        minutes: usize,
        /// First one asked for.
        from: usize,
    },
    /// There would be too many invocations.
    #[error("{invocations} invocations are more than {INVOCATIONS_MAX}; take fewer minutes")]
    TooMany {
        /// How many.
        invocations: u64,
    },
}

impl Plan {
    fn check(&self) -> Result<(), PlanError> {
        let positive = |value: f64| value.is_finite() && value > 0.0;
        for (what, value, must, good) in [
            ("the speed", self.speed, "a positive number", positive(self.speed)),
            (
                "the scale",
                self.scale,
                "more than 0 and at most 1",
                positive(self.scale) && self.scale <= 1.0,
            ),
            (
                "the factor of durations",
                self.durations,
                "a positive number",
                positive(self.durations),
            ),
            (
                "the factor of memory",
                self.memory,
                "a positive number",
                positive(self.memory),
            ),
            (
                "the quantile of memory",
                self.memory_quantile,
                "between 0 and 1",
                (0.0..=1.0).contains(&self.memory_quantile),
            ),
        ] {
            if !good {
                return Err(PlanError::Factor { what, value, must });
            }
        }
        Ok(())
    }

    /// Draws the invocations of a trace. Functions without any stay in the workload, except those that thinning leaves out.
    ///
    /// # Errors
    /// When a factor makes no sense, the trace does not have the minutes, or there would be too many invocations.
    pub fn draw(&self, trace: &Trace) -> Result<Workload, PlanError> {
        self.check()?;
        let taken = self.window(trace.minutes)?;
        let in_window = |function: &TraceFunction| -> u64 {
            function.per_minute[taken.clone()]
                .iter()
                .map(|n| u64::from(*n))
                .sum()
        };
        let invocations = trace.functions.iter().map(in_window).sum();
        if invocations > INVOCATIONS_MAX as u64 {
            return Err(PlanError::TooMany { invocations });
        }
        let counts: Vec<u64> = trace.functions.iter().map(in_window).collect();
        let kept = self.kept_functions(&counts);
        let mut workload = Workload {
            length_ns: taken.len() as u64 * NS_PER_MINUTE,
            ..Workload::default()
        };
        for (number, function) in trace.functions.iter().enumerate().filter(|(n, _)| kept[*n]) {
            let index = u32::try_from(workload.functions.len()).unwrap_or(u32::MAX);
            let memory = function.memory_mib.at(self.memory_quantile) * self.memory;
            workload.functions.push(Function {
                name: function.name.clone(),
                tenant: function.tenant,
                memory_mib: memory.clamp(MEMORY_MIB.0, MEMORY_MIB.1).ceil() as u32,
            });
            let mut random = Random::new(self.seed, number as u64);
            let phase = random.unit();
            for (minute, count) in function.per_minute[taken.clone()].iter().enumerate() {
                for part in parts(*count, self.spacing, phase, &mut random) {
                    let within = ((part * NS_PER_MINUTE as f64) as u64).min(NS_PER_MINUTE - 1);
                    let duration_ms = function.duration_ms.at(random.unit()) * self.durations;
                    workload.arrivals.push(Arrival {
                        at_ns: minute as u64 * NS_PER_MINUTE + within,
                        function: index,
                        duration_ns: (duration_ms.clamp(DURATION_MS.0, DURATION_MS.1) * NS_PER_MS) as u64,
                    });
                }
            }
        }
        self.finish(&mut workload);
        Ok(workload)
    }

    /// Takes of a workload of single invocations what is asked for. Durations are not drawn but kept.
    ///
    /// # Errors
    /// When a factor makes no sense or the workload does not have the minutes.
    pub fn take(&self, mut workload: Workload) -> Result<Workload, PlanError> {
        self.check()?;
        let minutes = usize::try_from(workload.length_ns.div_ceil(NS_PER_MINUTE)).unwrap_or(usize::MAX);
        let taken = self.window(minutes)?;
        let (from, to) = (
            taken.start as u64 * NS_PER_MINUTE,
            taken.end as u64 * NS_PER_MINUTE,
        );
        workload
            .arrivals
            .retain(|arrival| (from..to).contains(&arrival.at_ns));
        workload.length_ns = workload.length_ns.min(to) - from;
        let mut counts = vec![0_u64; workload.functions.len()];
        for arrival in &mut workload.arrivals {
            arrival.at_ns -= from;
            arrival.duration_ns = (arrival.duration_ns as f64 * self.durations) as u64;
            counts[arrival.function as usize] += 1;
        }
        for function in &mut workload.functions {
            let memory = f64::from(function.memory_mib) * self.memory;
            function.memory_mib = memory.clamp(MEMORY_MIB.0, MEMORY_MIB.1).ceil() as u32;
        }
        keep(&mut workload, &self.kept_functions(&counts));
        self.finish(&mut workload);
        Ok(workload)
    }

    /// The minutes that are taken.
    fn window(&self, minutes: usize) -> Result<std::ops::Range<usize>, PlanError> {
        let end = self
            .minutes
            .map_or(minutes, |taken| self.from_minute.saturating_add(taken));
        if self.from_minute >= minutes.min(end) {
            return Err(PlanError::Minutes {
                minutes,
                from: self.from_minute,
            });
        }
        Ok(self.from_minute..end.min(minutes))
    }

    /// Which functions stay.
    fn kept_functions(&self, counts: &[u64]) -> Vec<bool> {
        match self.thinning {
            Thinning::Invocations => vec![true; counts.len()],
            Thinning::Functions => {
                let mut by_count: Vec<usize> = (0..counts.len()).collect();
                by_count.sort_by_key(|number| (std::cmp::Reverse(counts[*number]), *number));
                let mut random = Random::new(self.seed, THINNING_STREAM);
                // Systematic sampling: wherever the running sum of parts passes a whole number.
                let mut sum = random.unit();
                let mut kept = vec![false; counts.len()];
                for number in by_count {
                    sum += self.scale;
                    if sum >= 1.0 {
                        sum -= 1.0;
                        kept[number] = true;
                    }
                }
                kept
            }
        }
    }

    /// Thins, sorts, and makes time run faster.
    fn finish(&self, workload: &mut Workload) {
        if self.thinning == Thinning::Invocations && self.scale < 1.0 {
            // By function, so that what one has does not depend on the others.
            let mut streams: Vec<Random> = (0..workload.functions.len() as u64)
                .map(|function| Random::new(!self.seed, function))
                .collect();
            workload
                .arrivals
                .retain(|arrival| streams[arrival.function as usize].unit() < self.scale);
        }
        workload
            .arrivals
            .sort_by_key(|arrival| (arrival.at_ns, arrival.function));
        if self.speed != 1.0 {
            for arrival in &mut workload.arrivals {
                arrival.at_ns = (arrival.at_ns as f64 / self.speed) as u64;
            }
            workload.length_ns = (workload.length_ns as f64 / self.speed).ceil() as u64;
        }
    }

    /// What the plan leaves out and changes, in words.
    pub fn describe(&self) -> String {
        let spacing = match self.spacing {
            Spacing::Exponential => "exponential",
            Spacing::Uniform => "uniform",
            Spacing::Equidistant => "equal",
        };
        let mut text = format!("{spacing} gaps within a minute, seed {}", self.seed);
        if self.speed != 1.0 {
            text.push_str(&format!(", {} times as fast", self.speed));
        }
        if self.scale < 1.0 {
            let what = match self.thinning {
                Thinning::Functions => "of the functions, evenly over their order by invocations",
                Thinning::Invocations => "of each function's invocations, at random",
            };
            text.push_str(&format!(", {} % {what}", self.scale * 100.0));
        }
        if self.durations != 1.0 {
            text.push_str(&format!(", durations times {}", self.durations));
        }
        if self.memory != 1.0 {
            text.push_str(&format!(", memory times {}", self.memory));
        }
        text
    }
}

/// Leaves out functions with their invocations.
fn keep(workload: &mut Workload, kept: &[bool]) {
    let mut number = 0;
    let renumbered: Vec<Option<u32>> = kept
        .iter()
        .map(|kept| {
            kept.then(|| {
                number += 1;
                number - 1
            })
        })
        .collect();
    let mut functions = kept.iter();
    workload
        .functions
        .retain(|_| functions.next().copied().unwrap_or(false));
    workload.arrivals.retain_mut(|arrival| {
        let number = renumbered[arrival.function as usize];
        arrival.function = number.unwrap_or_default();
        number.is_some()
    });
}

/// Places of `count` invocations in a minute, as parts of it, rising.
fn parts(count: u32, spacing: Spacing, phase: f64, random: &mut Random) -> Vec<f64> {
    let mut gap = |_| match spacing {
        Spacing::Exponential => random.exponential(),
        Spacing::Uniform => random.unit(),
        Spacing::Equidistant => 1.0,
    };
    // One gap more than invocations: the last ends the minute.
    let gaps: Vec<f64> = (0..=count).map(&mut gap).collect();
    if spacing == Spacing::Equidistant {
        return (0..count)
            .map(|number| (f64::from(number) + phase) / f64::from(count))
            .collect();
    }
    // All gaps may be zero, though no one will see it.
    let total = gaps.iter().sum::<f64>().max(f64::MIN_POSITIVE);
    let mut sum = 0.0;
    gaps[..count as usize]
        .iter()
        .map(|gap| {
            sum += gap;
            sum / total
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::trace::Quantiles;

    fn trace(per_minute: Vec<Vec<u32>>) -> Trace {
        let minutes = per_minute[0].len();
        let functions = per_minute
            .into_iter()
            .enumerate()
            .map(|(number, per_minute)| TraceFunction {
                name: format!("f{number}"),
                tenant: 0,
                trigger: "http".to_owned(),
                per_minute,
                duration_ms: Quantiles::new(vec![(0.0, 0.0), (0.5, 10.0), (1.0, 100_000.0)]).unwrap(),
                memory_mib: Quantiles::new(vec![(0.0, 0.2), (1.0, 200.5)]).unwrap(),
            });
        Trace {
            functions: functions.collect(),
            minutes,
        }
    }

    /// Invocations of each function in each minute.
    fn counts(workload: &Workload, minutes: usize) -> Vec<Vec<u32>> {
        let mut counts = vec![vec![0; minutes]; workload.functions.len()];
        for arrival in &workload.arrivals {
            counts[arrival.function as usize][(arrival.at_ns / NS_PER_MINUTE) as usize] += 1;
        }
        counts
    }

    fn spacing() -> impl Strategy<Value = Spacing> {
        prop_oneof![
            Just(Spacing::Exponential),
            Just(Spacing::Uniform),
            Just(Spacing::Equidistant)
        ]
    }

    proptest! {
        #[test]
        fn counts_are_kept(
            per_minute in (1_usize..6).prop_flat_map(|minutes| {
                prop::collection::vec(prop::collection::vec(0_u32..40, minutes), 1..5)
            }),
            seed in any::<u64>(),
            spacing in spacing(),
        ) {
            let trace = trace(per_minute.clone());
            let plan = Plan { seed, spacing, ..Plan::default() };
            let workload = plan.draw(&trace).unwrap();
            prop_assert_eq!(counts(&workload, trace.minutes), per_minute);
            prop_assert!(workload.arrivals.is_sorted_by_key(|arrival| arrival.at_ns));
            for arrival in &workload.arrivals {
                prop_assert!(arrival.at_ns < workload.length_ns);
                prop_assert!((1_000_000..=60_000_000_000).contains(&arrival.duration_ns));
            }
            prop_assert_eq!(&plan.draw(&trace).unwrap(), &workload);
        }

        #[test]
        fn a_function_does_not_depend_on_the_others(
            per_minute in prop::collection::vec(prop::collection::vec(0_u32..40, 3), 2..5),
            scale in 0.1_f64..=1.0,
        ) {
            let plan = Plan { scale, ..Plan::default() };
            let all = plan.draw(&trace(per_minute.clone())).unwrap();
            let first = plan.draw(&trace(per_minute[..1].to_vec())).unwrap();
            let of_first: Vec<Arrival> = all.arrivals.into_iter().filter(|arrival| arrival.function == 0).collect();
            prop_assert_eq!(of_first, first.arrivals);
        }

        #[test]
        fn faster_is_the_same_in_less_time(speed in 0.5_f64..100.0) {
            let trace = trace(vec![vec![5, 9], vec![1, 30]]);
            let slow = Plan::default().draw(&trace).unwrap();
            let fast = Plan { speed, ..Plan::default() }.draw(&trace).unwrap();
            prop_assert_eq!(slow.arrivals.len(), fast.arrivals.len());
            for (slow, fast) in slow.arrivals.iter().zip(&fast.arrivals) {
                prop_assert_eq!((slow.function, slow.duration_ns), (fast.function, fast.duration_ns));
                prop_assert_eq!((slow.at_ns as f64 / speed) as u64, fast.at_ns);
            }
            prop_assert!(fast.arrivals.iter().all(|arrival| arrival.at_ns < fast.length_ns));
        }
    }

    #[test]
    fn a_part_of_the_functions_is_taken_evenly() {
        let per_minute: Vec<Vec<u32>> = (0..100).map(|number| vec![number]).collect();
        let plan = Plan {
            scale: 0.1,
            thinning: Thinning::Functions,
            ..Plan::default()
        };
        let workload = plan.draw(&trace(per_minute)).unwrap();
        let numbers: Vec<u32> = workload
            .functions
            .iter()
            .map(|f| f.name[1..].parse().unwrap())
            .collect();
        assert!((9..=11).contains(&numbers.len()), "{numbers:?}");
        assert!(
            numbers
                .windows(2)
                .all(|pair| (9..=11).contains(&(pair[1] - pair[0]))),
            "{numbers:?}"
        );
        let total: u32 = numbers.iter().sum();
        assert_eq!(workload.arrivals.len(), total as usize);
    }

    #[test]
    fn a_part_of_the_invocations_is_taken_at_random() {
        let plan = Plan {
            scale: 0.25,
            ..Plan::default()
        };
        let workload = plan.draw(&trace(vec![vec![4000], vec![4000]])).unwrap();
        for count in counts(&workload, 1).concat() {
            assert!((900..1100).contains(&count), "{count}");
        }
        assert!(
            plan.describe()
                .ends_with("25 % of each function's invocations, at random")
        );
    }

    #[test]
    fn minutes_are_cut_out() {
        let plan = Plan {
            from_minute: 1,
            minutes: Some(2),
            ..Plan::default()
        };
        let whole = trace(vec![vec![3, 5, 7, 9]]);
        let workload = plan.draw(&whole).unwrap();
        assert_eq!(counts(&workload, 2), [[5, 7]]);
        assert_eq!(workload.length_ns, 2 * NS_PER_MINUTE);
        let all = Plan::default().draw(&whole).unwrap();
        let taken = plan.take(all).unwrap();
        assert_eq!(counts(&taken, 2), [[5, 7]]);
        assert_eq!(taken.length_ns, 2 * NS_PER_MINUTE);
        let late = Plan {
            from_minute: 4,
            ..Plan::default()
        };
        assert_eq!(late.draw(&whole), Err(PlanError::Minutes { minutes: 4, from: 4 }));
    }

    #[test]
    fn factors_are_checked() {
        let whole = trace(vec![vec![1]]);
        for plan in [
            Plan {
                speed: 0.0,
                ..Plan::default()
            },
            Plan {
                scale: 1.5,
                ..Plan::default()
            },
            Plan {
                durations: f64::NAN,
                ..Plan::default()
            },
            Plan {
                memory: 0.0,
                ..Plan::default()
            },
            Plan {
                memory_quantile: -0.1,
                ..Plan::default()
            },
        ] {
            assert!(
                matches!(plan.draw(&whole), Err(PlanError::Factor { .. })),
                "{plan:?}"
            );
        }
    }

    #[test]
    fn memory_is_the_quantile_asked_for() {
        let plan = Plan {
            memory_quantile: 1.0,
            ..Plan::default()
        };
        let whole = trace(vec![vec![1]]);
        assert_eq!(plan.draw(&whole).unwrap().functions[0].memory_mib, 201);
        let least = Plan {
            memory_quantile: 0.0,
            ..plan
        };
        assert_eq!(least.draw(&whole).unwrap().functions[0].memory_mib, 1);
        let tenth = Plan {
            memory_quantile: 1.0,
            memory: 0.1,
            ..least
        };
        assert_eq!(tenth.draw(&whole).unwrap().functions[0].memory_mib, 21);
    }
}
