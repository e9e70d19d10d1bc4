//! What sets one instance apart from all others.

use std::time::SystemTime;

use gust_worker::protocol;

use crate::calendar::Utc;

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
        let Utc { year, month, day, .. } = Utc::from_unix_ms(u64::try_from(now.as_millis()).unwrap_or(0));
        format!("{year:04}/{month:02}/{day:02}/[{version}]{}", self.id)
    }
}

/// Fills a buffer from the kernel's random numbers.
pub fn fill_random(buffer: &mut [u8]) {
    let mut filled = 0;
    while filled < buffer.len() {
        // Once the kernel's generator is ready, this does not fail; a signal may cut it short.
        if let Ok(n) = rustix::rand::getrandom(&mut buffer[filled..], rustix::rand::GetRandomFlags::empty()) {
            filled += n;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
