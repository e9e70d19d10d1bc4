//! Frames on the socket between node and worker, without the socket: bytes in, messages out.
//!
//! A frame is a header ([`FRAME_HEADER_BYTES`]), a postcard-encoded message and a raw body. Lengths are checked against
//! their bounds before anything is allocated for them, because each side treats the other as able to say anything.
//! Descriptors travel beside the frames; the reader is told of them in their order of arrival and counts them out
//! to the frames that announce them.

use std::{collections::VecDeque, os::fd::OwnedFd};

use serde::{Serialize, de::DeserializeOwned};

use crate::protocol::{BODY_BYTES_MAX, DESCRIPTORS_MAX, FRAME_HEADER_BYTES, FRAME_MAGIC, META_BYTES_MAX};

/// Bytes that a reader takes in at a time; frames up to this size cost one read.
pub const READ_BYTES: usize = 16 << 10;

/// Frames whose descriptors may be waiting at once.
const FRAMES_AHEAD_MAX: usize = 2;

/// Why bytes are not the frames of this protocol.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The header does not start as one.
    #[error("a frame starts with {0:#010x}")]
    BadMagic(u32),
    /// A length or count is over its bound.
    #[error("a frame's {what} is {value}, and at most {limit} is allowed")]
    TooLarge {
        /// Of what.
        what: &'static str,
        /// What was announced or asked for.
        value: usize,
        /// The bound.
        limit: usize,
    },
    /// The message is not what is expected.
    #[error("a frame's message cannot be read")]
    Malformed(#[source] postcard::Error),
    /// A frame announces descriptors that did not come with it, or some came that no frame announces.
    #[error("a frame announces {announced} descriptors where {arrived} have arrived")]
    Descriptors {
        /// Announced in the header.
        announced: usize,
        /// At hand.
        arrived: usize,
    },
}

/// One message as it arrived.
#[derive(Debug)]
pub struct Frame<T> {
    /// The command or report.
    pub message: T,
    /// What travels raw.
    pub body: Vec<u8>,
    /// Descriptors, in the message's order.
    pub descriptors: Vec<OwnedFd>,
}

/// Header and message of a frame, ready to be sent before its body.
///
/// # Errors
/// When a bound is exceeded.
pub fn encode<T: Serialize>(
    message: &T,
    body_bytes: usize,
    descriptors: usize,
) -> Result<Vec<u8>, FrameError> {
    bounded("body length", body_bytes, BODY_BYTES_MAX)?;
    bounded("descriptor count", descriptors, DESCRIPTORS_MAX)?;
    let head = vec![0; FRAME_HEADER_BYTES];
    let mut head = postcard::to_extend(message, head).map_err(FrameError::Malformed)?;
    let meta_bytes = bounded("message length", head.len() - FRAME_HEADER_BYTES, META_BYTES_MAX)?;
    let fields = [
        FRAME_MAGIC,
        meta_bytes as u32,
        body_bytes as u32,
        descriptors as u32,
    ];
    for (place, field) in head.chunks_exact_mut(4).zip(fields) {
        place.copy_from_slice(&field.to_le_bytes());
    }
    Ok(head)
}

/// Puts frames together from what a socket gives.
///
/// The owner reads into [`space`](Self::space), says how much came with [`filled`](Self::filled), and takes messages
/// with [`next_frame`](Self::next_frame) until there is none.
#[derive(Debug, Default)]
pub struct FrameReader {
    /// Bytes not yet taken: `start..end` of the buffer.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// A body that does not fit into the buffer is read to its own place.
    body: Option<Body>,
    descriptors: VecDeque<OwnedFd>,
}

#[derive(Debug)]
struct Body {
    header: Header,
    /// The message's bytes.
    meta: Vec<u8>,
    bytes: Vec<u8>,
    filled: usize,
}

#[derive(Debug, Clone, Copy)]
struct Header {
    meta_bytes: usize,
    body_bytes: usize,
    descriptors: usize,
}

impl FrameReader {
    /// A reader at the start of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Where the next bytes go; never empty.
    pub fn space(&mut self) -> &mut [u8] {
        if let Some(body) = &mut self.body {
            return &mut body.bytes[body.filled..];
        }
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            // One long message must not stay in memory for good.
            if self.buffer.len() > READ_BYTES {
                self.buffer = Vec::new();
            }
        }
        if self.end == self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.end == self.buffer.len() {
            // A message longer than what is usual: its length has been checked against its bound.
            self.buffer.resize((self.buffer.len() * 2).max(READ_BYTES), 0);
        }
        &mut self.buffer[self.end..]
    }

    /// Takes note of `bytes` that were put at the start of [`space`](Self::space).
    pub fn filled(&mut self, bytes: usize) {
        match &mut self.body {
            Some(body) => body.filled += bytes,
            None => self.end += bytes,
        }
    }

    /// Takes in descriptors that arrived with the bytes.
    ///
    /// # Errors
    /// When more arrive than any frames could announce.
    pub fn arrived(&mut self, descriptors: impl IntoIterator<Item = OwnedFd>) -> Result<(), FrameError> {
        self.descriptors.extend(descriptors);
        let limit = FRAMES_AHEAD_MAX * DESCRIPTORS_MAX;
        bounded("number of descriptors ahead", self.descriptors.len(), limit).map(|_| ())
    }

    /// Whether the stream stands between two frames, where it may end.
    pub fn is_between_frames(&self) -> bool {
        self.body.is_none() && self.start == self.end
    }

    /// The next whole message, if there is one.
    ///
    /// # Errors
    /// See [`FrameError`]. The stream cannot be used further then.
    pub fn next_frame<T: DeserializeOwned>(&mut self) -> Result<Option<Frame<T>>, FrameError> {
        if let Some(body) = &self.body {
            if body.filled < body.bytes.len() {
                return Ok(None);
            }
            let body = self.body.take().expect("it was there");
            return self.frame(body.header, &body.meta, body.bytes).map(Some);
        }
        let Some(header) = self.header()? else {
            return Ok(None);
        };
        let meta_at = self.start + FRAME_HEADER_BYTES;
        let body_at = meta_at + header.meta_bytes;
        if self.end < body_at {
            return Ok(None);
        }
        let meta = self.buffer[meta_at..body_at].to_vec();
        let here = header.body_bytes.min(self.end - body_at);
        let mut bytes = Vec::with_capacity(header.body_bytes);
        bytes.extend_from_slice(&self.buffer[body_at..body_at + here]);
        self.start = body_at + here;
        if here == header.body_bytes {
            return self.frame(header, &meta, bytes).map(Some);
        }
        bytes.resize(header.body_bytes, 0);
        self.body = Some(Body {
            header,
            meta,
            bytes,
            filled: here,
        });
        Ok(None)
    }

    fn header(&self) -> Result<Option<Header>, FrameError> {
        let Some(bytes) = self.buffer[self.start..self.end].first_chunk::<FRAME_HEADER_BYTES>() else {
            return Ok(None);
        };
        let field = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        if field(0) != FRAME_MAGIC {
            return Err(FrameError::BadMagic(field(0)));
        }
        Ok(Some(Header {
            meta_bytes: bounded("message length", field(4) as usize, META_BYTES_MAX)?,
            body_bytes: bounded("body length", field(8) as usize, BODY_BYTES_MAX)?,
            descriptors: bounded("descriptor count", field(12) as usize, DESCRIPTORS_MAX)?,
        }))
    }

    fn frame<T: DeserializeOwned>(
        &mut self,
        header: Header,
        meta: &[u8],
        body: Vec<u8>,
    ) -> Result<Frame<T>, FrameError> {
        if header.descriptors > self.descriptors.len() {
            let arrived = self.descriptors.len();
            return Err(FrameError::Descriptors {
                announced: header.descriptors,
                arrived,
            });
        }
        let message = postcard::from_bytes(meta).map_err(FrameError::Malformed)?;
        let descriptors = self.descriptors.drain(..header.descriptors).collect();
        Ok(Frame {
            message,
            body,
            descriptors,
        })
    }
}

fn bounded(what: &'static str, value: usize, limit: usize) -> Result<usize, FrameError> {
    match value <= limit {
        true => Ok(value),
        false => Err(FrameError::TooLarge { what, value, limit }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(n: usize) -> Vec<u8> {
        (0..n).map(|at| at as u8).collect()
    }

    /// A message and its body.
    type Pair = (Vec<u8>, Vec<u8>);

    /// Feeds bytes in pieces and collects what comes out.
    fn read(stream: &[u8], pieces: &[usize]) -> Result<Vec<Pair>, FrameError> {
        let mut reader = FrameReader::new();
        let mut out = Vec::new();
        let mut rest = stream;
        let mut pieces = pieces.iter().cycle();
        while !rest.is_empty() {
            let space = reader.space();
            let n = space.len().min(rest.len()).min((*pieces.next().unwrap()).max(1));
            space[..n].copy_from_slice(&rest[..n]);
            reader.filled(n);
            rest = &rest[n..];
            while let Some(frame) = reader.next_frame::<Vec<u8>>()? {
                out.push((frame.message, frame.body));
            }
        }
        assert!(reader.is_between_frames());
        Ok(out)
    }

    fn stream(frames: &[(usize, usize)]) -> Vec<u8> {
        let mut stream = Vec::new();
        for &(meta, body) in frames {
            stream.extend(encode(&message(meta), body, 0).unwrap());
            stream.extend(message(body));
        }
        stream
    }

    proptest! {
        #[test]
        fn frames_survive_any_cut(
            frames in prop::collection::vec((0_usize..40_000, 0_usize..100_000), 1..5),
            pieces in prop::collection::vec(1_usize..50_000, 1..20),
        ) {
            let expected: Vec<_> = frames.iter().map(|&(meta, body)| (message(meta), message(body))).collect();
            prop_assert_eq!(read(&stream(&frames), &pieces).unwrap(), expected);
        }

        #[test]
        fn any_bytes_end_in_an_error_or_in_waiting(bytes in prop::collection::vec(any::<u8>(), 1..200), tame: bool) {
            let mut bytes = bytes;
            if tame && bytes.len() >= FRAME_HEADER_BYTES {
                bytes[..4].copy_from_slice(&FRAME_MAGIC.to_le_bytes());
                bytes[6..8].fill(0);
                bytes[10..16].fill(0);
            }
            let mut reader = FrameReader::new();
            reader.space()[..bytes.len()].copy_from_slice(&bytes);
            reader.filled(bytes.len());
            while let Ok(Some(_)) = reader.next_frame::<crate::protocol::Report>() {}
        }
    }

    #[test]
    fn the_largest_frame_passes_and_a_larger_one_is_refused_before_it_is_allocated() {
        let body = message(BODY_BYTES_MAX);
        let mut bytes = encode(&0_u8, body.len(), 0).unwrap();
        bytes.extend(&body);
        let mut reader = FrameReader::new();
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let space = reader.space();
            let n = space.len().min(rest.len());
            space[..n].copy_from_slice(&rest[..n]);
            reader.filled(n);
            rest = &rest[n..];
            if let Some(frame) = reader.next_frame::<u8>().unwrap() {
                assert_eq!(frame.body, body);
            }
        }
        assert!(encode(&0_u8, BODY_BYTES_MAX + 1, 0).is_err());
        assert!(encode(&message(META_BYTES_MAX), 0, 0).is_err());
        for (at, value) in [
            (4, META_BYTES_MAX + 1),
            (8, BODY_BYTES_MAX + 1),
            (12, DESCRIPTORS_MAX + 1),
        ] {
            let mut header = encode(&0_u8, 0, 0).unwrap();
            header[at..at + 4].copy_from_slice(&(value as u32).to_le_bytes());
            let mut reader = FrameReader::new();
            reader.space()[..header.len()].copy_from_slice(&header);
            reader.filled(header.len());
            assert!(matches!(
                reader.next_frame::<u8>(),
                Err(FrameError::TooLarge { .. })
            ));
            assert!(reader.buffer.len() <= READ_BYTES);
        }
    }

    #[test]
    fn descriptors_go_to_the_frames_that_announce_them() {
        let open = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let mut reader = FrameReader::new();
        let mut stream = encode(&1_u8, 0, 2).unwrap();
        stream.extend(encode(&2_u8, 0, 1).unwrap());
        stream.extend(encode(&3_u8, 0, 1).unwrap());
        reader.space()[..stream.len()].copy_from_slice(&stream);
        reader.filled(stream.len());
        reader.arrived([open(), open(), open()]).unwrap();
        assert_eq!(reader.next_frame::<u8>().unwrap().unwrap().descriptors.len(), 2);
        assert_eq!(reader.next_frame::<u8>().unwrap().unwrap().descriptors.len(), 1);
        assert!(matches!(
            reader.next_frame::<u8>(),
            Err(FrameError::Descriptors {
                announced: 1,
                arrived: 0
            })
        ));
        let too_many = (0..FRAMES_AHEAD_MAX * DESCRIPTORS_MAX + 1).map(|_| open());
        assert!(reader.arrived(too_many).is_err());
    }
}
