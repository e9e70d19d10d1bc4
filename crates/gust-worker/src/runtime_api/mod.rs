//! The AWS Lambda Runtime API as a machine without sockets: bytes of the runtime's connections in, bytes out.
//!
//! Whoever owns the connections (the supervisor of a guest process, or a micro-VM's personality, in which the guest's
//! loopback connections end) moves bytes between them and this machine, delivers events, and takes what the runtime
//! says. The machine has no clock and no I/O, so its state can be stored in a snapshot with the guest's.
//!
//! ```text
//!  Starting ── GET next ──> Idle ── deliver ──> Working ── POST response or error ──> Answered ── GET next ──> Idle
//!      └── POST init/error ──> Failed
//! ```
//!
//! Responses that a runtime streams are taken in whole before they are given on. Extensions are not served.

mod http;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::protocol::{BODY_BYTES_MAX, RESPONSE_BYTES_MAX};
use http::{Connection, Request, Response};

/// Where runtimes look for the API, as `AWS_LAMBDA_RUNTIME_API` states it.
pub const ADDRESS: &str = "127.0.0.1:9001";

/// The port of [`ADDRESS`].
pub const PORT: u16 = 9001;

/// Most connections at a time; runtimes use one or two.
pub const CONNECTIONS_MAX: usize = 16;

/// Bytes of a connection that are taken in at a time: what is asked for in them is answered first, so that a long input of short
/// requests is not all answered before the first answer has been sent.
const PIECE_BYTES: usize = 16 << 10;

/// Prefix of the API's paths.
const PREFIX: &str = "/2018-06-01/runtime/";

/// Names a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ConnectionId(u32);

/// An event to deliver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// The invocation's id.
    pub request_id: String,
    /// Milliseconds of the Unix epoch at which the call is ended.
    pub deadline_unix_ms: u64,
    /// ARN as the caller named it.
    pub function_arn: String,
    /// X-Ray trace header, empty when there is none.
    pub trace_id: String,
    /// Client context (JSON), empty when there is none.
    pub client_context: String,
    /// What the caller sent.
    pub payload: Vec<u8>,
}

/// What the runtime has said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// The event's response.
    Response(Vec<u8>),
    /// The handler failed; Lambda's error document.
    Error(Vec<u8>),
    /// The response has this many bytes, which is more than [`RESPONSE_BYTES_MAX`].
    TooLarge(u64),
    /// The runtime cannot start; Lambda's error document.
    InitError(Vec<u8>),
    /// The runtime waits for an event.
    Waits,
}

/// Where the runtime stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum State {
    /// It has not asked for an event yet.
    Starting,
    /// It waits for an event on this connection.
    Idle(ConnectionId),
    /// An event has been delivered: its id.
    Working(String),
    /// It has answered, and has not asked for the next.
    Answered,
    /// It has said that it cannot start.
    Failed,
}

/// The API for one runtime.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RuntimeApi {
    connections: BTreeMap<ConnectionId, Connection>,
    next_connection: u32,
    state: State,
}

impl Default for RuntimeApi {
    fn default() -> Self {
        Self::new()
    }
}

impl RuntimeApi {
    /// A runtime that has not connected yet.
    pub fn new() -> Self {
        Self {
            connections: BTreeMap::new(),
            next_connection: 0,
            state: State::Starting,
        }
    }

    /// Takes in a new connection. `None` when there are too many; it is then to be closed.
    pub fn open(&mut self) -> Option<ConnectionId> {
        if self.connections.len() >= CONNECTIONS_MAX {
            return None;
        }
        let id = ConnectionId(self.next_connection);
        self.next_connection = self.next_connection.wrapping_add(1);
        self.connections.insert(id, Connection::default());
        Some(id)
    }

    /// Forgets a connection that its peer has closed or that [`is_done`](Self::is_done).
    pub fn close(&mut self, id: ConnectionId) {
        self.connections.remove(&id);
        // Whoever waited there will ask again.
        if self.state == State::Idle(id) {
            self.state = State::Answered;
        }
    }

    /// How many bytes [`receive`](Self::receive) would take from a connection now.
    pub fn capacity(&self, id: ConnectionId) -> usize {
        self.connections.get(&id).map_or(0, Connection::capacity)
    }

    /// Takes in bytes of a connection; returns how many, and gives out what the runtime said with them, in order.
    pub fn receive(&mut self, id: ConnectionId, bytes: &[u8], said: &mut Vec<Said>) -> usize {
        let mut taken = 0;
        // Each round takes what there is room for and uses it up, as far as whole requests reach.
        while let Some(connection) = self.connections.get_mut(&id) {
            let end = bytes.len().min(taken + PIECE_BYTES);
            let more = connection.receive(&bytes[taken..end]);
            taken += more;
            let progressed = self.work(id, said);
            if (more == 0 || taken == bytes.len()) && !progressed {
                break;
            }
        }
        taken
    }

    /// Bytes to be sent on a connection.
    pub fn output(&self, id: ConnectionId) -> &[u8] {
        self.connections.get(&id).map_or(&[], Connection::output)
    }

    /// Takes note that so many bytes of [`output`](Self::output) have been sent.
    pub fn sent(&mut self, id: ConnectionId, bytes: usize) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.sent(bytes);
        }
    }

    /// Whether a connection is to be closed by this side now.
    pub fn is_done(&self, id: ConnectionId) -> bool {
        self.connections.get(&id).is_none_or(Connection::is_done)
    }

    /// Whether the runtime waits for an event.
    pub fn waits(&self) -> bool {
        matches!(self.state, State::Idle(_))
    }

    /// Gives the waiting runtime an event; what is to be sent then stands in that connection's output. Requests that
    /// were sent ahead on it are worked on, with what the runtime says in them.
    ///
    /// Does nothing and returns `None` when the runtime does not [wait](Self::waits).
    pub fn deliver(&mut self, event: Event, said: &mut Vec<Said>) -> Option<ConnectionId> {
        let State::Idle(id) = self.state else {
            return None;
        };
        let connection = self.connections.get_mut(&id)?;
        let mut fields = vec![
            ("Lambda-Runtime-Aws-Request-Id", event.request_id.clone()),
            ("Lambda-Runtime-Deadline-Ms", event.deadline_unix_ms.to_string()),
            ("Lambda-Runtime-Invoked-Function-Arn", event.function_arn),
        ];
        if !event.trace_id.is_empty() {
            fields.push(("Lambda-Runtime-Trace-Id", event.trace_id));
        }
        if !event.client_context.is_empty() {
            fields.push(("Lambda-Runtime-Client-Context", event.client_context));
        }
        connection.respond(&Response {
            status: 200,
            fields,
            body: event.payload,
        });
        self.state = State::Working(event.request_id);
        self.work(id, said);
        Some(id)
    }

    /// Answers whole requests of a connection. `true` when there was one.
    fn work(&mut self, id: ConnectionId, said: &mut Vec<Said>) -> bool {
        let mut progressed = false;
        while let Some(request) = self
            .connections
            .get_mut(&id)
            .and_then(|connection| connection.next_request(BODY_BYTES_MAX))
        {
            progressed = true;
            if let Some(response) = self.request(id, request, said)
                && let Some(connection) = self.connections.get_mut(&id)
            {
                connection.respond(&response);
            }
        }
        progressed
    }

    /// What to answer to a request; `None` when the answer is the next event.
    fn request(&mut self, id: ConnectionId, request: Request, said: &mut Vec<Said>) -> Option<Response> {
        let Some(path) = request.path.strip_prefix(PREFIX) else {
            return Some(not_found());
        };
        let words: Vec<&str> = path.split('/').collect();
        match (request.method.as_str(), words.as_slice()) {
            ("GET", ["invocation", "next"]) => self.next(id, said),
            ("POST", ["invocation", of, "response"]) => {
                let of = (*of).to_owned();
                Some(self.answer(&of, request, said, false))
            }
            ("POST", ["invocation", of, "error"]) => {
                let of = (*of).to_owned();
                Some(self.answer(&of, request, said, true))
            }
            ("POST", ["init", "error"]) => Some(self.init_error(request, said)),
            (_, ["invocation", "next"] | ["invocation", _, "response" | "error"] | ["init", "error"]) => {
                Some(Response::json(405, r#"{"errorType":"InvalidMethod"}"#))
            }
            _ => Some(not_found()),
        }
    }

    fn next(&mut self, id: ConnectionId, said: &mut Vec<Said>) -> Option<Response> {
        match &self.state {
            State::Starting | State::Answered => {
                self.state = State::Idle(id);
                said.push(Said::Waits);
                None
            }
            // A second wait takes the first one's place, which never gets an answer then.
            State::Idle(_) => {
                self.state = State::Idle(id);
                None
            }
            State::Working(_) | State::Failed => Some(invalid_state()),
        }
    }

    fn answer(&mut self, of: &str, request: Request, said: &mut Vec<Said>, is_error: bool) -> Response {
        match &self.state {
            State::Working(current) if current == of => {}
            State::Working(_) => {
                return Response::json(
                    400,
                    r#"{"errorMessage":"Invalid request ID","errorType":"InvalidRequestID"}"#,
                );
            }
            State::Starting | State::Idle(_) | State::Answered | State::Failed => return invalid_state(),
        }
        self.state = State::Answered;
        if request.body_bytes > RESPONSE_BYTES_MAX {
            said.push(Said::TooLarge(request.body_bytes));
            let text = format!(
                r#"{{"errorMessage":"Exceeded maximum allowed payload size ({RESPONSE_BYTES_MAX} bytes).","errorType":"RequestEntityTooLarge"}}"#
            );
            return Response::json(413, text);
        }
        // A streamed response that breaks off says so in its trailers.
        let broken_off = request
            .field("lambda-runtime-function-error-type")
            .filter(|_| !is_error);
        said.push(match broken_off {
            Some(kind) => Said::Error(stream_error(kind)),
            None if is_error => Said::Error(request.body),
            None => Said::Response(request.body),
        });
        accepted()
    }

    fn init_error(&mut self, request: Request, said: &mut Vec<Said>) -> Response {
        match self.state {
            State::Starting => {
                self.state = State::Failed;
                said.push(Said::InitError(request.body));
                accepted()
            }
            State::Idle(_) | State::Working(_) | State::Answered | State::Failed => invalid_state(),
        }
    }
}

fn accepted() -> Response {
    Response::json(202, r#"{"status":"OK"}"#)
}

fn invalid_state() -> Response {
    Response::json(
        403,
        r#"{"errorMessage":"State transition is not allowed","errorType":"InvalidStateTransition"}"#,
    )
}

fn not_found() -> Response {
    Response::json(
        404,
        r#"{"errorMessage":"No such resource","errorType":"NotFound"}"#,
    )
}

/// The error document of a response that broke off while it was streamed.
fn stream_error(kind: &str) -> Vec<u8> {
    serde_json::json!({ "errorType": kind, "errorMessage": "The response stream ended with an error" })
        .to_string()
        .into_bytes()
}
