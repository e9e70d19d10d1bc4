//! The Gregorian calendar, for texts that people read.

/// A moment's parts in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Utc {
    /// Year.
    pub year: i64,
    /// Month, 1 to 12.
    pub month: u32,
    /// Day, 1 to 31.
    pub day: u32,
    /// Hour, 0 to 23.
    pub hour: u32,
    /// Minute, 0 to 59.
    pub minute: u32,
    /// Second, 0 to 59.
    pub second: u32,
    /// Millisecond, 0 to 999.
    pub ms: u32,
}

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

impl Utc {
    /// Parts of a moment given in milliseconds of the Unix epoch. The Gregorian calendar is counted in eras of 400
    /// years that begin in March, so that the leap day is a year's last.
    pub fn from_unix_ms(unix_ms: u64) -> Self {
        let part = |unit_ms: u64, modulus: u64| u32::try_from(unix_ms / unit_ms % modulus).unwrap_or(0);
        let days = (unix_ms / DAY_MS) as i64 + 719_468;
        let era = days.div_euclid(146_097);
        let day_of_era = days.rem_euclid(146_097);
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let month = if month_from_march < 10 {
            month_from_march + 3
        } else {
            month_from_march - 9
        };
        Self {
            year: year_of_era + era * 400 + i64::from(month <= 2),
            month: u32::try_from(month).unwrap_or(0),
            day: u32::try_from(day_of_year - (153 * month_from_march + 2) / 5 + 1).unwrap_or(0),
            hour: part(3_600_000, 24),
            minute: part(60_000, 60),
            second: part(1000, 60),
            ms: part(1, 1000),
        }
    }

    /// Milliseconds of the Unix epoch; `None` before it or when a part is out of range.
    pub fn unix_ms(&self) -> Option<u64> {
        let in_range = (1..=12).contains(&self.month)
            && (1..=31).contains(&self.day)
            && self.hour < 24
            && self.minute < 60
            && self.second < 61
            && (1970..=9999).contains(&self.year);
        if !in_range {
            return None;
        }
        let year = self.year - i64::from(self.month <= 2);
        let era = year.div_euclid(400);
        let year_of_era = year.rem_euclid(400);
        let month_from_march = i64::from((self.month + 9) % 12);
        let day_of_year = (153 * month_from_march + 2) / 5 + i64::from(self.day) - 1;
        let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
        let days = u64::try_from(era * 146_097 + day_of_era - 719_468).ok()?;
        let seconds = u64::from(self.hour * 3600 + self.minute * 60 + self.second);
        Some(days * DAY_MS + seconds * 1000 + u64::from(self.ms))
    }

    /// `2024-01-31T12:00:00.000`, without the zone.
    pub fn iso8601(&self) -> String {
        let Self {
            year,
            month,
            day,
            hour,
            minute,
            second,
            ms,
        } = self;
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_moments() {
        for (unix_ms, text) in [
            (0, "1970-01-01T00:00:00.000"),
            (951_782_399_999, "2000-02-28T23:59:59.999"),
            (951_782_400_000, "2000-02-29T00:00:00.000"),
            (951_868_800_000, "2000-03-01T00:00:00.000"),
            (1_709_251_199_999, "2024-02-29T23:59:59.999"),
            (4_102_444_800_000, "2100-01-01T00:00:00.000"),
            (4_107_542_399_999, "2100-02-28T23:59:59.999"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000"),
        ] {
            assert_eq!(Utc::from_unix_ms(unix_ms).iso8601(), text);
        }
    }

    proptest! {
        #[test]
        fn parts_come_back_whole(unix_ms in 0u64..253_402_300_800_000) {
            prop_assert_eq!(Utc::from_unix_ms(unix_ms).unix_ms(), Some(unix_ms));
        }
    }
}
