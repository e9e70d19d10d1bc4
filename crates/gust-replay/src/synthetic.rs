//! Workloads that are made and not recorded: simple ones, and ones after published fits.
//!
//! | workload | arrivals | durations | memory |
//! |---|---|---|---|
//! | [`Kind::Poisson`] | Poisson, all functions alike | one | one |
//! | [`Kind::Burst`] | all functions at once, again and again | one | one |
//! | [`Kind::Azure`] | Poisson; rates log-normal through the two quantiles of "Serverless in the Wild" (ATC'20), section 3.2 | its log-normal fit (section 3.4) | its Burr fit (section 3.5) |
//! | [`Kind::Huawei`] | Weibull gaps as between cold starts in "Serverless Cold Starts and Where to Find Them" (EuroSys'25); each for another function in turn | one | one |

use crate::{
    Arrival, Function, Workload,
    random::Random,
    trace::{FUNCTIONS_MAX, INVOCATIONS_MAX},
};

/// Rates a day of Azure's applications: 45 % are called at most once an hour and 81 % at most once a minute (figure 5), which
/// a log-normal distribution meets with these parameters.
const AZURE_RATE: (f64, f64) = (3.691, 4.079);

/// Highest rate of one function, a day: the busiest that the paper shows.
const AZURE_RATE_MAX: f64 = 1e8;

/// Average durations in seconds: log-normal.
const AZURE_DURATION_S: (f64, f64) = (-0.38, 2.36);

/// Memory in MiB: Burr.
const AZURE_MEMORY_MIB: (f64, f64, f64) = (11.652, 0.221, 107.083);

/// Gaps between cold starts in seconds: Weibull.
const HUAWEI_GAP_S: (f64, f64) = (0.418, 0.422);

/// Bounds of durations and memory: InVitro's.
const DURATION_S: (f64, f64) = (0.001, 60.0);
const MEMORY_MIB: (f64, f64) = (1.0, 10_240.0);

const NS_PER_S: f64 = 1e9;
const S_PER_DAY: f64 = 86_400.0;

/// Which workload.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// Independent calls.
    Poisson {
        /// Calls a second of all functions together.
        rate: f64,
    },
    /// Calls at the same moment.
    Burst {
        /// Calls of each function in a burst.
        calls: u32,
        /// Seconds from one burst to the next.
        every_s: f64,
    },
    /// As Azure Functions.
    Azure,
    /// As Huawei's cold starts.
    Huawei,
}

/// A workload to be made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Synthetic {
    /// Which.
    pub kind: Kind,
    /// Functions.
    pub functions: usize,
    /// Minutes.
    pub minutes: f64,
    /// Duration of a call in milliseconds, where the kind has no distribution of its own.
    pub duration_ms: f64,
    /// Memory of a call in MiB, likewise.
    pub memory_mib: u32,
    /// Seed of everything random.
    pub seed: u64,
}

/// Why a workload cannot be made.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum SyntheticError {
    /// A parameter makes no sense.
    #[error("{what} is {value}; it must be {must}")]
    Parameter {
        /// Which.
        what: &'static str,
        /// As given.
        value: f64,
        /// What it must be.
        must: &'static str,
    },
    /// There would be too many invocations.
    #[error("the workload would have more than {INVOCATIONS_MAX} invocations")]
    TooMany,
}

impl Synthetic {
    fn check(&self) -> Result<(), SyntheticError> {
        let positive = |what, value: f64| {
            let good = value.is_finite() && value > 0.0;
            let must = "a positive number";
            good.then_some(())
                .ok_or(SyntheticError::Parameter { what, value, must })
        };
        if !(1..=FUNCTIONS_MAX).contains(&self.functions) {
            return Err(SyntheticError::Parameter {
                what: "the number of functions",
                value: self.functions as f64,
                must: "between 1 and 100000",
            });
        }
        positive("the number of minutes", self.minutes)?;
        positive("the duration", self.duration_ms)?;
        positive("the memory", f64::from(self.memory_mib))?;
        match self.kind {
            Kind::Poisson { rate } => positive("the rate", rate),
            Kind::Burst { calls, every_s } => {
                positive("the number of calls in a burst", f64::from(calls))?;
                positive("the time between bursts", every_s)
            }
            Kind::Azure | Kind::Huawei => Ok(()),
        }
    }

    /// Makes it.
    ///
    /// # Errors
    /// When a parameter makes no sense or there would be too many invocations.
    pub fn make(&self) -> Result<Workload, SyntheticError> {
        self.check()?;
        let length_s = self.minutes * 60.0;
        let mut functions: Vec<Function> = (0..self.functions)
            .map(|number| Function {
                name: format!("f{number}"),
                tenant: u32::try_from(number).unwrap_or(u32::MAX),
                memory_mib: self.memory_mib,
            })
            .collect();
        let mut calls = Calls {
            length_s,
            arrivals: Vec::new(),
        };
        match self.kind {
            Kind::Poisson { rate } => self.poisson(rate, &mut calls)?,
            Kind::Burst { calls: each, every_s } => self.burst(each, every_s, &mut calls)?,
            Kind::Azure => self.azure(&mut functions, &mut calls)?,
            Kind::Huawei => self.huawei(&mut calls)?,
        }
        let mut arrivals = calls.arrivals;
        arrivals.sort_by_key(|arrival| (arrival.at_ns, arrival.function));
        Ok(Workload {
            functions,
            arrivals,
            length_ns: (length_s * NS_PER_S).ceil() as u64,
        })
    }

    fn poisson(&self, rate: f64, calls: &mut Calls) -> Result<(), SyntheticError> {
        for function in 0..self.functions {
            let mut random = Random::new(self.seed, function as u64);
            let mean_gap_s = self.functions as f64 / rate;
            let mut at_s = random.exponential() * mean_gap_s;
            while calls.add(at_s, function, self.duration_ms / 1000.0)? {
                at_s += random.exponential() * mean_gap_s;
            }
        }
        Ok(())
    }

    fn burst(&self, each: u32, every_s: f64, calls: &mut Calls) -> Result<(), SyntheticError> {
        let bursts = (calls.length_s / every_s).ceil() as u64;
        for burst in 0..bursts {
            for function in 0..self.functions {
                for _ in 0..each {
                    calls.add(burst as f64 * every_s, function, self.duration_ms / 1000.0)?;
                }
            }
        }
        Ok(())
    }

    fn azure(&self, functions: &mut [Function], calls: &mut Calls) -> Result<(), SyntheticError> {
        for (number, function) in functions.iter_mut().enumerate() {
            let mut random = Random::new(self.seed, number as u64);
            let per_day = random.log_normal(AZURE_RATE.0, AZURE_RATE.1).min(AZURE_RATE_MAX);
            let duration_s = random.log_normal(AZURE_DURATION_S.0, AZURE_DURATION_S.1);
            let (c, k, lambda) = AZURE_MEMORY_MIB;
            let memory_mib = random.burr(c, k, lambda);
            function.memory_mib = memory_mib.clamp(MEMORY_MIB.0, MEMORY_MIB.1).ceil() as u32;
            let mut at_s = random.exponential() * S_PER_DAY / per_day;
            while calls.add(at_s, number, duration_s)? {
                at_s += random.exponential() * S_PER_DAY / per_day;
            }
        }
        Ok(())
    }

    fn huawei(&self, calls: &mut Calls) -> Result<(), SyntheticError> {
        let mut random = Random::new(self.seed, 0);
        let (k, lambda) = HUAWEI_GAP_S;
        let mut at_s = random.weibull(k, lambda);
        let mut function = 0;
        while calls.add(at_s, function, self.duration_ms / 1000.0)? {
            at_s += random.weibull(k, lambda);
            function = (function + 1) % self.functions;
        }
        Ok(())
    }
}

/// Calls so far.
struct Calls {
    length_s: f64,
    arrivals: Vec<Arrival>,
}

impl Calls {
    /// Adds one; `false` when the workload ends before it.
    fn add(&mut self, at_s: f64, function: usize, duration_s: f64) -> Result<bool, SyntheticError> {
        if at_s >= self.length_s {
            return Ok(false);
        }
        if self.arrivals.len() == INVOCATIONS_MAX {
            return Err(SyntheticError::TooMany);
        }
        self.arrivals.push(Arrival {
            at_ns: (at_s * NS_PER_S) as u64,
            function: u32::try_from(function).unwrap_or(u32::MAX),
            duration_ns: (duration_s.clamp(DURATION_S.0, DURATION_S.1) * NS_PER_S) as u64,
        });
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: Synthetic = Synthetic {
        kind: Kind::Poisson { rate: 100.0 },
        functions: 4,
        minutes: 2.0,
        duration_ms: 20.0,
        memory_mib: 64,
        seed: 3,
    };

    #[test]
    fn poisson_has_its_rate() {
        let workload = BASE.make().unwrap();
        assert!(
            (11_600..12_400).contains(&workload.arrivals.len()),
            "{}",
            workload.arrivals.len()
        );
        for function in 0..4 {
            let count = workload
                .arrivals
                .iter()
                .filter(|a| a.function == function)
                .count();
            assert!((2_800..3_200).contains(&count), "{count}");
        }
        assert!(
            workload
                .arrivals
                .iter()
                .all(|a| a.duration_ns == 20_000_000 && a.at_ns < workload.length_ns)
        );
        assert_eq!(BASE.make().unwrap(), workload);
        assert_ne!(Synthetic { seed: 4, ..BASE }.make().unwrap(), workload);
    }

    #[test]
    fn bursts_come_at_once() {
        let kind = Kind::Burst {
            calls: 5,
            every_s: 60.0,
        };
        let workload = Synthetic { kind, ..BASE }.make().unwrap();
        assert_eq!(workload.arrivals.len(), 2 * 4 * 5);
        assert!(
            workload
                .arrivals
                .iter()
                .all(|a| a.at_ns == 0 || a.at_ns == 60_000_000_000)
        );
    }

    #[test]
    fn azure_has_the_quantiles_of_the_paper() {
        let workload = Synthetic {
            kind: Kind::Azure,
            functions: 2000,
            minutes: 0.01,
            ..BASE
        }
        .make()
        .unwrap();
        let mut memory: Vec<u32> = workload.functions.iter().map(|f| f.memory_mib).collect();
        memory.sort_unstable();
        // The paper: half of the applications allocate at most 170 MB.
        assert!(
            (130..190).contains(&memory[memory.len() / 2]),
            "{}",
            memory[memory.len() / 2]
        );
        let mut random = Random::new(1, 1);
        let mut rates: Vec<f64> = (0..20_000)
            .map(|_| random.log_normal(AZURE_RATE.0, AZURE_RATE.1))
            .collect();
        rates.sort_by(f64::total_cmp);
        let part = |rate: f64| rates.partition_point(|r| *r <= rate) as f64 / rates.len() as f64;
        assert!((part(24.0) - 0.45).abs() < 0.02 && (part(1440.0) - 0.81).abs() < 0.02);
    }

    #[test]
    fn huawei_takes_functions_in_turn() {
        let workload = Synthetic {
            kind: Kind::Huawei,
            ..BASE
        }
        .make()
        .unwrap();
        assert!(workload.arrivals.len() > 20);
        let functions: Vec<u32> = workload
            .arrivals
            .iter()
            .take(8)
            .map(|arrival| arrival.function)
            .collect();
        assert_eq!(functions, [0, 1, 2, 3, 0, 1, 2, 3]);
    }

    #[test]
    fn parameters_are_checked() {
        for wrong in [
            Synthetic { functions: 0, ..BASE },
            Synthetic {
                minutes: f64::NAN,
                ..BASE
            },
            Synthetic {
                kind: Kind::Poisson { rate: 0.0 },
                ..BASE
            },
            Synthetic {
                kind: Kind::Burst {
                    calls: 1,
                    every_s: -1.0,
                },
                ..BASE
            },
        ] {
            assert!(
                matches!(wrong.make(), Err(SyntheticError::Parameter { .. })),
                "{wrong:?}"
            );
        }
        let many = Synthetic {
            kind: Kind::Poisson { rate: 1e9 },
            ..BASE
        };
        assert_eq!(many.make(), Err(SyntheticError::TooMany));
    }
}
