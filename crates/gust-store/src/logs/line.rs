//! One line of a log and its form in a file.

/// Longest message that is written, in bytes; the rest of a longer one is cut off.
pub(super) const MESSAGE_BYTES_MAX: usize = 256 << 10;

/// One line of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// When it was written, in milliseconds of the Unix epoch.
    pub unix_ms: u64,
    /// Which of the log's streams it belongs to; tabs and control characters in it become spaces.
    pub stream: String,
    /// The text, without its line feed.
    pub message: String,
}

impl LogLine {
    pub(super) fn write_to(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.unix_ms.to_string().as_bytes());
        out.push(b'\t');
        out.extend(
            self.stream
                .bytes()
                .map(|byte| if byte.is_ascii_control() { b' ' } else { byte }),
        );
        out.push(b'\t');
        let end = self.message.floor_char_boundary(MESSAGE_BYTES_MAX);
        for byte in self.message[..end].bytes() {
            match byte {
                b'\\' => out.extend_from_slice(b"\\\\"),
                b'\n' => out.extend_from_slice(b"\\n"),
                b'\r' => out.extend_from_slice(b"\\r"),
                byte => out.push(byte),
            }
        }
        out.push(b'\n');
    }

    /// Reads a line without its line feed; `None` when it is damaged.
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let (unix_ms, rest) = text.split_once('\t')?;
        let (stream, escaped) = rest.split_once('\t')?;
        let mut message = String::with_capacity(escaped.len());
        let mut characters = escaped.chars();
        while let Some(character) = characters.next() {
            message.push(match character {
                '\\' => match characters.next()? {
                    'n' => '\n',
                    'r' => '\r',
                    '\\' => '\\',
                    _ => return None,
                },
                other => other,
            });
        }
        Some(Self {
            unix_ms: unix_ms.parse().ok()?,
            stream: stream.to_owned(),
            message,
        })
    }
}
