//! What sets one instance apart from all others.

use std::time::{Duration, SystemTime};

use gust_worker::protocol;

/// Fresh identity of an instance.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    /// 32 hexadecimal digits.
    pub id: String,
    seed: [u8; 32],
}

impl Identity {
    /// A new one, from the kernel's random numbers.
    pub(crate) fn new() -> Self {
        let mut random = [0; 48];
        fill_random(&mut random);
        let (id, seed) = random.split_at(16);
        let id = id.iter().map(|byte| format!("{byte:02x}")).collect();
        Self {
            id,
            seed: seed.try_into().unwrap_or_default(),
        }
    }

    /// Of an instance that has one already; what it is random by is its own.
    pub(crate) fn known(id: String) -> Self {
        Self { id, ..Self::new() }
    }

    /// As the worker is told.
    pub(crate) fn spec(&self) -> protocol::Identity {
        protocol::Identity {
            instance_id: self.id.clone(),
            seed: self.seed,
        }
    }

    /// Name of the instance's log stream, as AWS Lambda forms it.
    pub(crate) fn log_stream(&self, version: &str) -> String {
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let (year, month, day) = date(now);
        format!("{year:04}/{month:02}/{day:02}/[{version}]{}", self.id)
    }
}

/// Fills a buffer from the kernel's random numbers.
pub(crate) fn fill_random(buffer: &mut [u8]) {
    let mut filled = 0;
    while filled < buffer.len() {
        // Once the kernel's generator is ready, this does not fail; a signal may cut it short.
        if let Ok(n) = rustix::rand::getrandom(&mut buffer[filled..], rustix::rand::GetRandomFlags::empty()) {
            filled += n;
        }
    }
}

/// The day of a time since the Unix epoch in the Gregorian calendar. Years count from March, so that the leap day is last.
fn date(since_epoch: Duration) -> (u64, u64, u64) {
    let days = since_epoch.as_secs() / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_have_their_dates() {
        let check = |seconds, expected| assert_eq!(date(Duration::from_secs(seconds)), expected, "{seconds}");
        check(0, (1970, 1, 1));
        check(951_782_399, (2000, 2, 28));
        check(951_782_400, (2000, 2, 29));
        check(951_868_800, (2000, 3, 1));
        check(1_700_000_000, (2023, 11, 14));
        check(4_107_542_399, (2100, 2, 28));
        check(4_107_542_400, (2100, 3, 1));
    }

    #[test]
    fn identities_differ_and_name_their_log_stream() {
        let (one, two) = (Identity::new(), Identity::new());
        assert_ne!(one.id, two.id);
        assert_ne!(one.seed, two.seed);
        assert_eq!(one.id.len(), 32);
        let stream = one.log_stream("7");
        assert!(
            stream.ends_with(&format!("/[7]{}", one.id)) && stream.len() == 10 + 1 + 3 + 32,
            "{stream}"
        );
    }
}
