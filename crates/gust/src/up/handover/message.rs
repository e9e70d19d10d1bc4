//! What the two say to each other, and how that is written: JSON in one line, and behind it bytes as they are. Sockets go
//! beside it.

use std::{io, net::SocketAddr};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::EventEnd;

/// Version of the conversation. Servers of different versions do not take over from each other.
pub const VERSION: u32 = 1;

/// Longest message with its bytes: a request's head that was not looked at (64 KiB), or a thousand ids.
pub const MESSAGE_BYTES_MAX: usize = 160 << 10;

/// Between a message's text and its bytes: no JSON that is written in one line has it.
const END_OF_TEXT: u8 = b'\n';

/// What is said.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Message {
    /// New to old: there is someone.
    Hello {
        /// [`VERSION`].
        version: u32,
        /// Process id, for people.
        pid: u32,
    },
    /// Old to new: the listening sockets, in this order.
    Listeners {
        api: SocketAddr,
        cluster: Option<SocketAddr>,
    },
    /// New to old: the store can be handed over.
    Ready,
    /// Old to new: the store has been let go of. These events are being delivered.
    Store { running: Vec<Uuid> },
    /// New to old: requests are served.
    Serving,
    /// Old to new: a connection that rests, with what was received and not looked at.
    Connection,
    /// Old to new: what has become of an event.
    EventEnded(EventEnd),
    /// Old to new: it cannot be, and why.
    Refused(String),
}

/// A message with its bytes, as it is sent.
///
/// # Errors
/// When it is longer than [`MESSAGE_BYTES_MAX`].
pub fn encode(message: &Message, bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut said = serde_json::to_vec(message)?;
    said.push(END_OF_TEXT);
    said.extend_from_slice(bytes);
    match said.len() <= MESSAGE_BYTES_MAX {
        true => Ok(said),
        false => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// A message and its bytes, of what was received.
///
/// # Errors
/// When it is none.
pub fn decode(received: Vec<u8>) -> io::Result<(Message, Bytes)> {
    let end = received.iter().position(|byte| *byte == END_OF_TEXT);
    let end = end.ok_or_else(|| io::Error::other("a message has no end"))?;
    let message = serde_json::from_slice(&received[..end])?;
    Ok((message, Bytes::from(received).slice(end + 1..)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_whatever_they_are() {
        let bytes = b"POST / HTTP/1.1\r\n\r\n\0\n";
        let said = encode(&Message::Connection, bytes).unwrap();
        assert_eq!(said[..13], *b"\"Connection\"\n");
        let (message, read) = decode(said).unwrap();
        assert_eq!((message, read.as_ref()), (Message::Connection, bytes.as_slice()));
        let (message, read) = decode(b"{\"Refused\":\"no\\n\"}\n".to_vec()).unwrap();
        assert_eq!((message, read.len()), (Message::Refused("no\n".to_owned()), 0));
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for bytes in [
            &b""[..],
            b"\"Ready\"",
            b"\n",
            b"\"Ready\" 1\n",
            b"{\"Hello\":1}\n",
        ] {
            assert!(decode(bytes.to_vec()).is_err(), "{bytes:?}");
        }
        let long = vec![0; MESSAGE_BYTES_MAX];
        assert!(encode(&Message::Connection, &long).is_err());
    }
}
