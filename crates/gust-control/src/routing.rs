//! Which version a weighted alias leads to. Pure.

use crate::{ids::VersionNumber, model::Alias};

/// The version for a draw from 0 (included) to 1 (excluded).
pub fn choose(alias: &Alias, draw: f64) -> VersionNumber {
    match alias.additional {
        Some((number, weight)) if draw < weight => VersionNumber::Published(number),
        Some(_) | None => alias.version,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    fn alias(weight: f64) -> Alias {
        Alias {
            version: VersionNumber::Published(1),
            description: String::new(),
            additional: Some((2, weight)),
            revision_id: Uuid::nil(),
        }
    }

    #[test]
    fn a_weight_of_zero_gets_nothing_and_one_everything() {
        for draw in [0.0, 0.5, 0.999_999] {
            assert_eq!(choose(&alias(0.0), draw), VersionNumber::Published(1));
            assert_eq!(choose(&alias(1.0), draw), VersionNumber::Published(2));
        }
    }

    proptest! {
        /// Evenly spread draws are shared as the weight says.
        #[test]
        fn shares_follow_the_weight(percent in 0u32..=100) {
            let alias = alias(f64::from(percent) / 100.0);
            let second = (0..1000)
                .filter(|n| choose(&alias, (f64::from(*n) + 0.5) / 1000.0) == VersionNumber::Published(2))
                .count();
            prop_assert_eq!(second, percent as usize * 10);
        }
    }
}
