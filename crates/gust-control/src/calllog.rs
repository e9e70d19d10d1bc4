//! The log of one call: its lines go to the store as they come, its end is kept for a caller who asks for it.

use bytes::Bytes;
use gust_store::{LogLine, LogScope, Logs};

use crate::{clock, limits::LOG_TAIL_BYTES};

/// Longest line, in bytes; a longer one is broken.
const LINE_BYTES_MAX: usize = 128 << 10;

/// The log of one call.
pub(crate) struct CallLog<'a> {
    logs: &'a Logs,
    scope: LogScope,
    stream: String,
    partial: Vec<u8>,
    /// The last [`LOG_TAIL_BYTES`], when the caller wants them.
    tail: Option<Vec<u8>>,
}

impl<'a> CallLog<'a> {
    pub(crate) fn new(logs: &'a Logs, scope: LogScope, stream: String, want_tail: bool) -> Self {
        Self {
            logs,
            scope,
            stream,
            partial: Vec::new(),
            tail: want_tail.then(Vec::new),
        }
    }

    /// Takes what the function wrote, in pieces that need not end where lines do.
    pub(crate) async fn output(&mut self, piece: &[u8]) {
        self.keep(piece);
        let mut lines = Vec::new();
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            self.partial.extend_from_slice(part);
            if part.ends_with(b"\n") || self.partial.len() >= LINE_BYTES_MAX {
                lines.push(self.take_line());
            }
        }
        self.logs.append(&self.scope, lines).await;
    }

    /// Takes lines of the platform; a line of the function that is not ended yet is ended before them.
    pub(crate) async fn platform(&mut self, text: &str) {
        let mut lines = Vec::new();
        if !self.partial.is_empty() {
            lines.push(self.take_line());
            self.keep(b"\n");
        }
        self.keep(text.as_bytes());
        lines.extend(
            text.lines()
                .filter(|line| !line.is_empty())
                .map(|line| self.line(line.to_owned())),
        );
        self.logs.append(&self.scope, lines).await;
    }

    /// The end of the log, when the caller wanted it.
    pub(crate) fn into_tail(self) -> Option<Bytes> {
        self.tail.map(|mut tail| {
            let start = tail.len().saturating_sub(LOG_TAIL_BYTES);
            tail.split_off(start).into()
        })
    }

    fn keep(&mut self, piece: &[u8]) {
        let Some(tail) = &mut self.tail else { return };
        let piece = &piece[piece.len().saturating_sub(LOG_TAIL_BYTES)..];
        tail.extend_from_slice(piece);
        // Shortened only now and then, so that a chatty function does not move bytes at every line.
        if tail.len() > 4 * LOG_TAIL_BYTES {
            tail.drain(..tail.len() - LOG_TAIL_BYTES);
        }
    }

    fn take_line(&mut self) -> LogLine {
        let mut bytes = std::mem::take(&mut self.partial);
        while matches!(bytes.last(), Some(b'\n' | b'\r')) {
            bytes.pop();
        }
        self.line(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn line(&self, message: String) -> LogLine {
        LogLine {
            unix_ms: clock::unix_ms(),
            stream: self.stream.clone(),
            message,
        }
    }
}

#[cfg(test)]
mod tests {
    use gust_store::{Store, StoreConfig};

    use super::*;

    #[tokio::test]
    async fn pieces_become_lines_and_the_tail_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&StoreConfig::new(dir.path())).unwrap();
        let scope = LogScope::new("f").unwrap();
        let mut log = CallLog::new(&store.logs, scope.clone(), "s".to_owned(), true);
        log.platform("START\n").await;
        for piece in [
            "one\ntw",
            "o\r\n",
            &"x".repeat(3 * LOG_TAIL_BYTES),
            "\n",
            "unended",
        ] {
            log.output(piece.as_bytes()).await;
        }
        log.platform("END\n\n").await;
        store.logs.flush().await;
        let lines = store.logs.tail(&scope, 100, None).unwrap();
        let messages: Vec<&str> = lines.iter().map(|line| line.message.as_str()).collect();
        assert_eq!(
            messages,
            [
                "START",
                "one",
                "two",
                &"x".repeat(3 * LOG_TAIL_BYTES),
                "unended",
                "END"
            ]
        );
        let tail = log.into_tail().unwrap();
        assert_eq!(tail.len(), LOG_TAIL_BYTES);
        assert!(tail.ends_with(b"x\nunended\nEND\n\n"));
    }
}
