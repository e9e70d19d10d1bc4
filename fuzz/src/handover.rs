//! What a server says to the one that takes over from it, and the other way.

#[path = "../../crates/gust/src/up/handover/message.rs"]
mod message;

/// In place of the control plane's, which would take longer to build than all targets, and is read by derived code, too.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum EventEnd {
    Done(Box<Event>),
    Again(Box<Event>),
}

/// Some members of an event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    id: Uuid,
    name: String,
    due_unix_ms: u64,
    attempts: u32,
    trace_id: Option<String>,
}

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use message::{MESSAGE_BYTES_MAX, Message, VERSION, decode, encode};

/// Any bytes are a message, which can be said again, or none.
pub fn handover_messages(data: &[u8]) {
    let Ok((message, bytes)) = decode(data.to_vec()) else {
        return;
    };
    assert!(bytes.len() < data.len());
    if let Message::Hello { version, .. } = message {
        let _ = version == VERSION;
    }
    match encode(&message, &bytes) {
        Ok(said) => assert_eq!(decode(said).expect("what was said"), (message, bytes)),
        // Numbers and quotes may take more room than they came in.
        Err(_) => assert!(data.len() > MESSAGE_BYTES_MAX / 8),
    }
}

/// Inputs to begin with.
pub fn seeds() -> Vec<Vec<u8>> {
    let api = std::net::SocketAddr::from(([127, 0, 0, 1], 4566));
    let messages = [
        Message::Hello {
            version: VERSION,
            pid: 1,
        },
        Message::Listeners {
            api,
            cluster: Some(api),
        },
        Message::Store {
            running: vec![Uuid::nil()],
        },
        Message::Serving,
        Message::Connection,
        Message::EventEnded(EventEnd::Again(Box::new(Event {
            id: Uuid::nil(),
            name: "f".to_owned(),
            due_unix_ms: 1,
            attempts: 2,
            trace_id: None,
        }))),
        Message::Refused("no".to_owned()),
    ];
    let said = messages
        .iter()
        .filter_map(|message| encode(message, b"GET ").ok());
    said.collect()
}
