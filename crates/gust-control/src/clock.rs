//! Time as the records and the log have it.

use std::time::{SystemTime, UNIX_EPOCH};

pub use gust_node::Utc;

/// Now, in milliseconds of the Unix epoch; zero on a clock before it.
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
