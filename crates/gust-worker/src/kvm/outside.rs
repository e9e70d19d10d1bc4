//! The world as a guest's personality sees it: the host's clocks, and a log.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    time::{Duration, Instant, SystemTime},
};

use gust_linux::{Host, Stream};

use crate::protocol::LOG_BYTES_MAX;

/// Log that is held back while the guest runs, in bytes and for how long.
const LOG_FLUSH_BYTES: usize = 16 << 10;
const LOG_DELAY: Duration = Duration::from_millis(50);

/// The world outside of one guest.
#[derive(Debug)]
pub struct Outside {
    began: Instant,
    /// `/proc/self/statm`, opened before the jail was entered.
    statm: Option<File>,
    /// What was resident before there was a guest, in bytes.
    own_bytes: u64,
    log: Vec<u8>,
    /// When the first of it was written.
    log_since: Option<Instant>,
    /// Bytes of log in this invocation so far, and bytes over the bound.
    logged: u64,
    dropped: u64,
}

impl Outside {
    /// The world of a guest to come; `statm` is `/proc/self/statm`.
    pub fn new(statm: Option<File>) -> Self {
        let mut outside = Self {
            began: Instant::now(),
            statm,
            own_bytes: 0,
            log: Vec::new(),
            log_since: None,
            logged: 0,
            dropped: 0,
        };
        outside.own_bytes = outside.process_bytes();
        outside
    }

    /// Takes what the guest has written since the last call.
    pub fn take_log(&mut self) -> Vec<u8> {
        self.log_since = None;
        std::mem::take(&mut self.log)
    }

    /// How long what waits to be taken may wait on; `None` when there is none.
    pub fn log_due_in(&self) -> Option<Duration> {
        let since = self.log_since?;
        match self.log.len() < LOG_FLUSH_BYTES {
            true => Some(LOG_DELAY.saturating_sub(since.elapsed())),
            false => Some(Duration::ZERO),
        }
    }

    /// Bytes that wait to be taken.
    pub fn log_bytes(&self) -> usize {
        self.log.len()
    }

    /// Starts counting anew, for the next invocation.
    pub fn start_counting(&mut self) {
        (self.logged, self.dropped) = (0, 0);
    }

    /// Bytes that were dropped over the bound of an invocation.
    pub fn dropped_bytes(&self) -> u64 {
        self.dropped
    }

    /// Memory that this process has of its own. Pages of a snapshot that are only read are the file's, which all instances
    /// share.
    fn process_bytes(&self) -> u64 {
        const PAGE_BYTES: u64 = 4096;
        let mut raw = [0; 128];
        let read = self
            .statm
            .as_ref()
            .and_then(|file| file.read_at(&mut raw, 0).ok())
            .unwrap_or(0);
        let text = str::from_utf8(&raw[..read]).unwrap_or_default();
        // proc(5): size, resident, shared.
        let mut fields = text
            .split(' ')
            .skip(1)
            .map(|pages| pages.parse::<u64>().unwrap_or(0));
        let (resident, shared) = (fields.next().unwrap_or(0), fields.next().unwrap_or(0));
        resident.saturating_sub(shared) * PAGE_BYTES
    }
}

impl Host for Outside {
    fn monotonic_ns(&mut self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }

    fn realtime_ns(&mut self) -> u64 {
        SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or(Duration::ZERO)
            .as_nanos() as u64
    }

    fn output(&mut self, _stream: Stream, bytes: &[u8]) {
        let room = LOG_BYTES_MAX.saturating_sub(self.logged) as usize;
        let kept = bytes.len().min(room);
        if kept > 0 {
            self.log_since.get_or_insert_with(Instant::now);
        }
        self.log.extend_from_slice(&bytes[..kept]);
        self.logged += kept as u64;
        self.dropped += (bytes.len() - kept) as u64;
    }

    fn resident_bytes(&mut self) -> u64 {
        self.process_bytes().saturating_sub(self.own_bytes)
    }
}
