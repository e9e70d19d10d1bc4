//! A distribution as traces publish it: values at some quantiles.

/// Values at quantiles, both rising.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantiles(Vec<(f64, f64)>);

impl Quantiles {
    /// From pairs of quantile and value; `None` unless there is one at least, quantiles lie between 0 and 1 and rise, and
    /// values are finite, not negative and never fall.
    pub fn new(points: Vec<(f64, f64)>) -> Option<Self> {
        let sound = points
            .iter()
            .all(|(at, value)| (0.0..=1.0).contains(at) && value.is_finite() && *value >= 0.0);
        let rising = points
            .windows(2)
            .all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1);
        (!points.is_empty() && sound && rising).then_some(Self(points))
    }

    /// The same value always.
    pub fn constant(value: f64) -> Option<Self> {
        Self::new(vec![(0.0, value)])
    }

    /// The value at a quantile, on a straight line between its neighbours, as InVitro draws; the first or the last value
    /// outside of what is known.
    pub fn at(&self, quantile: f64) -> f64 {
        let above = self.0.partition_point(|(at, _)| *at < quantile);
        let (Some(low), Some(high)) = (self.0.get(above.wrapping_sub(1)), self.0.get(above)) else {
            return self.0[above.min(self.0.len() - 1)].1;
        };
        let part = (quantile - low.0) / (high.0 - low.0);
        low.1 + part * (high.1 - low.1)
    }

    /// Mean of what [`Self::at`] answers for uniform quantiles.
    pub fn mean(&self) -> f64 {
        let (first, last) = (self.0[0], self.0[self.0.len() - 1]);
        let between: f64 = self
            .0
            .windows(2)
            .map(|pair| (pair[1].0 - pair[0].0) * (pair[0].1 + pair[1].1) / 2.0)
            .sum();
        first.0 * first.1 + between + (1.0 - last.0) * last.1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_lie_on_lines() {
        let quantiles = Quantiles::new(vec![(0.0, 10.0), (0.5, 20.0), (1.0, 100.0)]).unwrap();
        for (at, value) in [(0.0, 10.0), (0.25, 15.0), (0.5, 20.0), (0.75, 60.0), (1.0, 100.0)] {
            assert_eq!(quantiles.at(at), value);
        }
        assert_eq!(quantiles.mean(), 0.5 * 15.0 + 0.5 * 60.0);
        let inner = Quantiles::new(vec![(0.01, 4.0), (0.5, 8.0)]).unwrap();
        assert_eq!((inner.at(0.0), inner.at(0.9)), (4.0, 8.0));
        assert_eq!(Quantiles::constant(3.0).unwrap().at(0.7), 3.0);
        assert_eq!(Quantiles::constant(3.0).unwrap().mean(), 3.0);
    }

    #[test]
    fn what_falls_is_no_distribution() {
        assert_eq!(Quantiles::new(vec![]), None);
        assert_eq!(Quantiles::new(vec![(0.0, 2.0), (0.5, 1.0)]), None);
        assert_eq!(Quantiles::new(vec![(0.5, 1.0), (0.5, 1.0)]), None);
        assert_eq!(Quantiles::new(vec![(0.0, f64::NAN)]), None);
        assert_eq!(Quantiles::new(vec![(0.0, -1.0)]), None);
    }
}
