//! Random numbers that a seed repeats bit for bit, and the distributions that traces are made from.
//!
//! The generator is PCG XSL 128/64 (O'Neill, "PCG: A Family of Simple Fast Space-Efficient Statistically Good Algorithms", 2014),
//! whose sequence its specification fixes. Floating-point numbers are made from its words here, so that no library's next version changes
//! a workload.

use rand_pcg::{Pcg64, rand_core::Rng};

/// Random numbers of one purpose.
#[derive(Debug, Clone)]
pub struct Random(Pcg64);

impl Random {
    /// The numbers of a seed for one of many purposes: those of different streams have nothing to do with each other, so
    /// that one more function in a workload leaves the others as they are.
    pub fn new(seed: u64, stream: u64) -> Self {
        // Neighbouring seeds must not give neighbouring states (SplitMix64's finisher).
        let mix = |word: u64| {
            let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            word ^ (word >> 31)
        };
        let state = u128::from(mix(seed)) << 64 | u128::from(mix(!seed));
        Self(Pcg64::new(state, u128::from(stream)))
    }

    /// Uniform in `[0, 1)`.
    pub fn unit(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Uniform in `(0, 1]`: what a logarithm can be taken of.
    fn unit_above_zero(&mut self) -> f64 {
        1.0 - self.unit()
    }

    /// Exponential with mean 1.
    pub fn exponential(&mut self) -> f64 {
        -self.unit_above_zero().ln()
    }

    /// Weibull with shape `k` and scale `lambda`.
    pub fn weibull(&mut self, k: f64, lambda: f64) -> f64 {
        lambda * self.exponential().powf(1.0 / k)
    }

    /// Normal with mean 0 and deviation 1 (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        let radius = (2.0 * self.exponential()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }

    /// Log-normal with parameters `mu` and `sigma` of the logarithm.
    pub fn log_normal(&mut self, mu: f64, sigma: f64) -> f64 {
        (mu + sigma * self.normal()).exp()
    }

    /// Burr XII with shapes `c` and `k` and scale `lambda`, by its inverse.
    pub fn burr(&mut self, c: f64, k: f64, lambda: f64) -> f64 {
        lambda * (self.unit_above_zero().powf(-1.0 / k) - 1.0).powf(1.0 / c)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mean and median of many draws.
    fn figures(draw: impl Fn(&mut Random) -> f64) -> (f64, f64) {
        let mut random = Random::new(7, 0);
        let mut draws: Vec<f64> = (0..40_000).map(|_| draw(&mut random)).collect();
        draws.sort_by(f64::total_cmp);
        (
            draws.iter().sum::<f64>() / draws.len() as f64,
            draws[draws.len() / 2],
        )
    }

    fn near(value: f64, wanted: f64, part: f64) {
        assert!(
            (value / wanted - 1.0).abs() < part,
            "{value} is not near {wanted}"
        );
    }

    #[test]
    fn distributions_have_their_moments() {
        let (mean, median) = figures(Random::unit);
        near(mean, 0.5, 0.02);
        near(median, 0.5, 0.02);
        let (mean, median) = figures(Random::exponential);
        near(mean, 1.0, 0.03);
        near(median, std::f64::consts::LN_2, 0.03);
        let (mean, median) = figures(|r| r.normal() + 10.0);
        near(mean, 10.0, 0.01);
        near(median, 10.0, 0.01);
        // The mean and the median that Huawei's study gives for its fit.
        let (_, median) = figures(|r| r.log_normal(0.296, 1.326));
        near(median, 1.35, 0.05);
        let (_, median) = figures(|r| r.weibull(0.418, 0.422));
        near(median, 0.422 * std::f64::consts::LN_2.powf(1.0 / 0.418), 0.06);
        let (_, median) = figures(|r| r.burr(11.652, 0.221, 107.083));
        near(
            median,
            107.083 * (0.5_f64.powf(-1.0 / 0.221) - 1.0).powf(1.0 / 11.652),
            0.03,
        );
    }

    #[test]
    fn seeds_and_streams_differ_and_repeat() {
        let draws = |seed, stream| -> Vec<u64> {
            let mut random = Random::new(seed, stream);
            (0..4).map(|_| random.unit().to_bits()).collect()
        };
        assert_eq!(draws(1, 1), draws(1, 1));
        assert_ne!(draws(1, 1), draws(2, 1));
        assert_ne!(draws(1, 1), draws(1, 2));
    }
}
