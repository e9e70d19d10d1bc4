//! What the project has set itself, held against what was measured.

use std::time::Duration;

use serde_json::{Value, json};

use crate::output::{bytes, duration};

/// A figure that is to be reached.
#[derive(Debug, Clone)]
pub struct Target {
    what: String,
    wanted: String,
    got: String,
    met: bool,
}

impl Target {
    /// A duration that is not to be longer than another.
    pub fn at_most(what: impl Into<String>, wanted: Duration, got: Duration) -> Self {
        Self {
            what: what.into(),
            wanted: format!("at most {}", duration(wanted)),
            got: duration(got),
            met: got <= wanted,
        }
    }

    /// A duration that another is to be a number of times as long as.
    pub fn times_faster(what: impl Into<String>, wanted: f64, got: Duration, than: Duration) -> Self {
        let ratio = than.as_secs_f64() / got.as_secs_f64();
        Self {
            what: what.into(),
            wanted: format!("at most 1/{wanted}"),
            got: format!("1/{ratio:.1}"),
            met: ratio >= wanted,
        }
    }

    /// A duration that is to be at most a number of times as long as another.
    pub fn times_as_long(what: impl Into<String>, wanted: f64, got: Duration, than: Duration) -> Self {
        let ratio = got.as_secs_f64() / than.as_secs_f64();
        Self {
            what: what.into(),
            wanted: format!("at most {wanted}x"),
            got: format!("{ratio:.1}x"),
            met: ratio <= wanted,
        }
    }

    /// A ratio that is not to be larger than another.
    pub fn ratio_at_most(what: impl Into<String>, wanted: f64, got: f64) -> Self {
        Self {
            what: what.into(),
            wanted: format!("at most {wanted}x"),
            got: format!("{got:.2}x"),
            met: got <= wanted,
        }
    }

    /// A count that is not to be larger than another.
    pub fn count_at_most(what: impl Into<String>, wanted: u64, got: u64) -> Self {
        Self {
            what: what.into(),
            wanted: format!("at most {wanted}"),
            got: got.to_string(),
            met: got <= wanted,
        }
    }

    /// A number of bytes that is not to be larger than another.
    pub fn bytes_at_most(what: impl Into<String>, wanted: u64, got: u64) -> Self {
        Self {
            what: what.into(),
            wanted: format!("at most {}", bytes(wanted)),
            got: bytes(got),
            met: got <= wanted,
        }
    }

    /// A number that is to be at least another; both are shown with a unit.
    pub fn at_least(what: impl Into<String>, wanted: f64, got: f64, unit: &str) -> Self {
        Self {
            what: what.into(),
            wanted: format!("at least {wanted}{unit}"),
            got: format!("{got:.2}{unit}"),
            met: got >= wanted,
        }
    }

    /// A count that is to be exactly another.
    pub fn exactly(what: impl Into<String>, wanted: usize, got: usize) -> Self {
        Self {
            what: what.into(),
            wanted: wanted.to_string(),
            got: got.to_string(),
            met: got == wanted,
        }
    }

    /// For a table.
    pub fn to_line(&self) -> Vec<String> {
        let met = if self.met { "met" } else { "MISSED" };
        vec![
            self.what.clone(),
            self.wanted.clone(),
            self.got.clone(),
            met.to_owned(),
        ]
    }

    /// For programs.
    pub fn to_json(&self) -> Value {
        json!({ "what": self.what, "wanted": self.wanted, "got": self.got, "met": self.met })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_met_or_missed() {
        let ms = Duration::from_millis;
        assert!(Target::at_most("", ms(2), ms(2)).met && !Target::at_most("", ms(2), ms(3)).met);
        assert!(Target::times_faster("", 30.0, ms(1), ms(30)).met);
        assert!(!Target::times_faster("", 30.0, ms(2), ms(30)).met);
        assert!(Target::times_as_long("", 3.0, ms(3), ms(1)).met);
        assert!(!Target::times_as_long("", 3.0, ms(4), ms(1)).met);
        assert!(!Target::exactly("", 200, 199).met);
        assert!(Target::ratio_at_most("", 1.2, 1.2).met && !Target::ratio_at_most("", 1.2, 1.3).met);
        assert!(Target::count_at_most("", 3, 3).met && !Target::count_at_most("", 3, 4).met);
        assert!(Target::bytes_at_most("", 2 << 20, 2 << 20).met);
        assert!(!Target::bytes_at_most("", 2 << 20, (2 << 20) + 1).met);
        assert!(Target::at_least("", 4.0, 4.0, "x").met && !Target::at_least("", 4.0, 3.99, "x").met);
    }
}
