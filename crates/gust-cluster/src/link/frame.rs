//! Frames: what a link consists of.
//!
//! ```text
//! length of the payload (4 bytes, little-endian), kind (1), call (8, little-endian), payload
//! ```
//!
//! Each side numbers the calls that it makes; the kind says whose call a frame belongs to. A message is its head in one
//! frame and, when it has a body, as many pieces as that takes; pieces of several messages alternate on the wire, so that
//! a long body holds up nothing else. Nothing here knows what messages say.

use bytes::Bytes;

/// Bytes of a frame before its payload.
pub const HEADER_BYTES: usize = 13;

/// Longest payload of a frame, in bytes: heads of messages, and pieces of bodies.
pub const PAYLOAD_BYTES_MAX: usize = 64 << 10;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Head of a request of the sender's.
    Request,
    /// Piece of its body.
    RequestBody,
    /// Head of a reply to a request of the receiver's.
    Reply,
    /// Piece of its body.
    ReplyBody,
    /// Output of a request of the receiver's that is still being carried out.
    Output,
    /// So much output of a request of the sender's has been taken: as much more may be sent. Four bytes, little-endian.
    Taken,
    /// Nobody waits for the reply any more.
    Forgotten,
    /// Are you there?
    Ping,
    /// I am.
    Pong,
}

/// Every kind, in the order of the numbers that stand for them on the wire, from 1 on. New ones are added at the end.
const KINDS: [Kind; 9] = [
    Kind::Request,
    Kind::RequestBody,
    Kind::Reply,
    Kind::ReplyBody,
    Kind::Output,
    Kind::Taken,
    Kind::Forgotten,
    Kind::Ping,
    Kind::Pong,
];

impl Kind {
    fn number(self) -> u8 {
        let at = KINDS.iter().position(|kind| *kind == self).unwrap_or_default();
        at as u8 + 1
    }

    /// Longest payload, in bytes.
    fn payload_bytes_max(self) -> usize {
        match self {
            Self::Request | Self::RequestBody | Self::Reply | Self::ReplyBody | Self::Output => {
                PAYLOAD_BYTES_MAX
            }
            Self::Taken => 4,
            Self::Forgotten | Self::Ping | Self::Pong => 0,
        }
    }
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub kind: Kind,
    /// The call that it belongs to; 0 for those that belong to none.
    pub call: u64,
    /// Its content.
    pub payload: Bytes,
}

/// A frame without its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What it is.
    pub kind: Kind,
    /// The call that it belongs to.
    pub call: u64,
    /// Bytes that follow.
    pub payload_bytes: usize,
}

/// Bytes that are no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Of another protocol, or of a later version of this one.
    #[error("a frame is of the unknown kind {0}")]
    Kind(u8),
    /// Longer than its kind may be.
    #[error("a frame of kind {kind:?} has {bytes} bytes")]
    Length {
        /// What it is.
        kind: Kind,
        /// Its length, in bytes.
        bytes: u32,
    },
}

impl Frame {
    /// A frame.
    pub fn new(kind: Kind, call: u64, payload: impl Into<Bytes>) -> Self {
        Self {
            kind,
            call,
            payload: payload.into(),
        }
    }

    /// What stands before the payload. A payload that is too long is the sender's mistake, and refused by the receiver.
    pub fn header(&self) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        let bytes = u32::try_from(self.payload.len()).unwrap_or(u32::MAX);
        header[..4].copy_from_slice(&bytes.to_le_bytes());
        header[4] = self.kind.number();
        header[5..].copy_from_slice(&self.call.to_le_bytes());
        header
    }
}

impl Header {
    /// Reads what stands before a payload.
    ///
    /// # Errors
    /// When it is none, or announces more than its kind may have.
    pub fn read(bytes: &[u8; HEADER_BYTES]) -> Result<Self, FrameError> {
        let [a, b, c, d, number, call @ ..] = *bytes;
        let kind = usize::from(number).checked_sub(1).and_then(|at| KINDS.get(at));
        let kind = *kind.ok_or(FrameError::Kind(number))?;
        let length = u32::from_le_bytes([a, b, c, d]);
        let payload_bytes = usize::try_from(length).unwrap_or(usize::MAX);
        if payload_bytes > kind.payload_bytes_max() {
            return Err(FrameError::Length { kind, bytes: length });
        }
        Ok(Self {
            kind,
            call: u64::from_le_bytes(call),
            payload_bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(at in 0..KINDS.len(), call: u64, bytes in 0..PAYLOAD_BYTES_MAX) {
            let kind = KINDS[at];
            let frame = Frame::new(kind, call, vec![0; bytes.min(kind.payload_bytes_max())]);
            let header = Header::read(&frame.header()).unwrap();
            prop_assert_eq!(header, Header { kind, call, payload_bytes: frame.payload.len() });
        }

        #[test]
        fn nothing_is_announced_that_is_too_long(bytes: [u8; HEADER_BYTES]) {
            if let Ok(header) = Header::read(&bytes) {
                prop_assert!(header.payload_bytes <= PAYLOAD_BYTES_MAX);
                let again = Frame::new(header.kind, header.call, vec![0; header.payload_bytes]);
                prop_assert_eq!(again.header(), bytes);
            }
        }
    }

    #[test]
    fn the_numbers_of_kinds_stay() {
        let numbers: Vec<u8> = KINDS.iter().map(|kind| kind.number()).collect();
        assert_eq!(numbers, [1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(
            Frame::new(Kind::Pong, 0x0102, Bytes::new()).header(),
            [0, 0, 0, 0, 9, 2, 1, 0, 0, 0, 0, 0, 0]
        );
        assert_eq!(Header::read(&[0; HEADER_BYTES]), Err(FrameError::Kind(0)));
    }
}
