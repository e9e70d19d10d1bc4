//! Just enough of HTTP/1.1 to serve the Runtime API on one connection: requests in, responses out, every length bounded.
//!
//! Understood are bodies with a length and chunked ones (with trailers), `Expect: 100-continue`, and connections that are
//! kept or closed. A request is given out only when the response to the one before has been put in, so that requests
//! sent ahead wait in the input.

use serde::{Deserialize, Serialize};

/// Longest request line and headers, in bytes. AWS's client for Java describes an error's cause for X-Ray in a header of up
/// to 1 MiB, and ends its process when the request is refused.
pub const HEAD_BYTES_MAX: usize = (1 << 20) + (16 << 10);

/// Most header fields of a request, and most trailers.
const FIELDS_MAX: usize = 64;

/// Longest line that states the size of a chunk, with its extensions.
const CHUNK_LINE_BYTES_MAX: usize = 1 << 10;

/// Responses that may wait to be sent before no more requests are taken in, in bytes.
const OUTPUT_BYTES_MAX: usize = 64 << 10;

/// Request headers and trailers that the Runtime API looks at; others are passed over.
const FIELDS_KEPT: [&str; 3] = [
    "lambda-runtime-function-error-type",
    "lambda-runtime-function-response-mode",
    "lambda-runtime-function-error-body",
];

/// One request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Request {
    /// Method, upper case.
    pub method: String,
    /// Path, without the query.
    pub path: String,
    /// Body, up to the connection's limit.
    pub body: Vec<u8>,
    /// Bytes that the body had; more than `body` holds when it was over the limit.
    pub body_bytes: u64,
    /// Headers and trailers that matter, names in lower case.
    pub fields: Vec<(String, String)>,
}

impl Request {
    /// Value of a header or trailer that matters.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }
}

/// One response. Bodies are whole and JSON, or raw bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Header fields besides length and type.
    pub fields: Vec<(&'static str, String)>,
    /// Body.
    pub body: Vec<u8>,
}

impl Response {
    /// A JSON response without further headers.
    pub fn json(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            fields: Vec::new(),
            body: body.into(),
        }
    }
}

/// State of one connection.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Connection {
    /// Received and not used.
    input: Vec<u8>,
    /// To be sent.
    output: Vec<u8>,
    /// How much of `output` has been sent.
    sent: usize,
    stage: Stage,
    /// Of the request in work.
    head: Head,
    body: Vec<u8>,
    body_bytes: u64,
    closing: bool,
}

/// What the connection does with its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
enum Stage {
    /// Collects a head.
    #[default]
    Head,
    /// Takes so many more bytes of a body.
    Sized(u64),
    /// Looks for the size of a chunk.
    ChunkSize,
    /// Takes so many more bytes of a chunk.
    Chunk(u64),
    /// Looks for the line end behind a chunk.
    ChunkEnd,
    /// Takes trailers, up to an empty line.
    Trailers,
    /// Waits for the response to be put in.
    Responding,
    /// Takes nothing any more: the input made no sense, and the answer to it says so.
    Failed,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Head {
    method: String,
    path: String,
    fields: Vec<(String, String)>,
}

/// A request that makes no sense; the status of its response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bad(u16);

impl Connection {
    /// Bytes that [`receive`](Self::receive) would take now: the bound of what is held for a request ahead. None while
    /// the peer does not take the responses that it asked for.
    pub fn capacity(&self) -> usize {
        if self.output().len() > OUTPUT_BYTES_MAX {
            return 0;
        }
        (2 * HEAD_BYTES_MAX).saturating_sub(self.input.len())
    }

    /// Takes in bytes of the peer, at most [`capacity`](Self::capacity) of them; returns how many.
    pub fn receive(&mut self, bytes: &[u8]) -> usize {
        if self.stage == Stage::Failed {
            return bytes.len();
        }
        let taken = bytes.len().min(self.capacity());
        self.input.extend_from_slice(&bytes[..taken]);
        taken
    }

    /// Works on the input up to the next whole request. `body_bytes_max` bounds what is kept of its body.
    pub fn next_request(&mut self, body_bytes_max: usize) -> Option<Request> {
        loop {
            let before = (self.stage, self.input.len());
            let advanced = match self.stage {
                Stage::Head => self.read_head(),
                Stage::Sized(left) => self.read_body(left, body_bytes_max, Stage::Sized),
                Stage::ChunkSize => self.read_chunk_size(),
                Stage::Chunk(left) => self.read_body(left, body_bytes_max, Stage::Chunk),
                Stage::ChunkEnd => self.read_chunk_end(),
                Stage::Trailers => self.read_trailers(),
                Stage::Responding | Stage::Failed => return None,
            };
            match advanced {
                Ok(true) => {
                    self.stage = Stage::Responding;
                    let head = std::mem::take(&mut self.head);
                    return Some(Request {
                        method: head.method,
                        path: head.path,
                        fields: head.fields,
                        body: std::mem::take(&mut self.body),
                        body_bytes: std::mem::take(&mut self.body_bytes),
                    });
                }
                Ok(false) if before == (self.stage, self.input.len()) => return None,
                Ok(false) => {}
                Err(Bad(status)) => {
                    self.closing = true;
                    self.respond(&Response::json(status, r#"{"errorType":"InvalidRequest"}"#));
                    self.stage = Stage::Failed;
                    self.input = Vec::new();
                    return None;
                }
            }
        }
    }

    /// Puts in the response to the request that was given out last.
    pub fn respond(&mut self, response: &Response) {
        let reason = match response.status {
            200 => "OK",
            202 => "Accepted",
            400 => "Bad Request",
            403 => "Forbidden",
            404 => "Not Found",
            405 => "Method Not Allowed",
            413 => "Payload Too Large",
            431 => "Request Header Fields Too Large",
            _ => "Error",
        };
        let mut head = format!(
            "HTTP/1.1 {} {reason}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n",
            response.status,
            response.body.len()
        );
        for (name, value) in &response.fields {
            // A line break in a value would start another header.
            let value = value.replace(['\r', '\n'], " ");
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if self.closing {
            head.push_str("Connection: close\r\n");
        }
        head.push_str("\r\n");
        self.output.extend_from_slice(head.as_bytes());
        self.output.extend_from_slice(&response.body);
        self.stage = Stage::Head;
    }

    /// Bytes to be sent.
    pub fn output(&self) -> &[u8] {
        &self.output[self.sent..]
    }

    /// Takes note that so many bytes of [`output`](Self::output) have been sent.
    pub fn sent(&mut self, bytes: usize) {
        self.sent += bytes;
        if self.sent == self.output.len() {
            self.output = Vec::new();
            self.sent = 0;
        }
    }

    /// Whether the connection is to be closed now.
    pub fn is_done(&self) -> bool {
        self.closing && self.output().is_empty() && matches!(self.stage, Stage::Head | Stage::Failed)
    }

    /// Collects a head; `true` when the request has no body.
    fn read_head(&mut self) -> Result<bool, Bad> {
        let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
        let mut parsed = httparse::Request::new(&mut fields);
        let head_bytes = match parsed.parse(&self.input) {
            Ok(httparse::Status::Complete(bytes)) if bytes <= HEAD_BYTES_MAX => bytes,
            Ok(httparse::Status::Partial) if self.input.len() <= HEAD_BYTES_MAX => return Ok(false),
            Ok(_) | Err(httparse::Error::TooManyHeaders) => return Err(Bad(431)),
            Err(_) => return Err(Bad(400)),
        };
        let path = parsed
            .path
            .unwrap_or_default()
            .split('?')
            .next()
            .unwrap_or_default();
        self.head = Head {
            method: parsed.method.unwrap_or_default().to_owned(),
            path: path.to_owned(),
            fields: kept(parsed.headers),
        };
        let framing = Framing::of(parsed.headers)?;
        self.closing = framing.close.unwrap_or(parsed.version == Some(0));
        if framing.expects && (framing.chunked || framing.length > 0) {
            self.output.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        self.input.drain(..head_bytes);
        self.stage = match (framing.chunked, framing.length) {
            (true, _) => Stage::ChunkSize,
            (false, 0) => return Ok(true),
            (false, length) => Stage::Sized(length),
        };
        Ok(false)
    }

    /// Moves input into the body; `true` at the end of a body with a length.
    fn read_body(&mut self, left: u64, body_bytes_max: usize, stage: fn(u64) -> Stage) -> Result<bool, Bad> {
        let taken = usize::try_from(left).unwrap_or(usize::MAX).min(self.input.len());
        let kept = taken.min(body_bytes_max.saturating_sub(self.body.len()));
        self.body.extend_from_slice(&self.input[..kept]);
        self.input.drain(..taken);
        self.body_bytes = self.body_bytes.saturating_add(taken as u64);
        let left = left - taken as u64;
        self.stage = stage(left);
        match (left, self.stage) {
            (0, Stage::Chunk(_)) => self.stage = Stage::ChunkEnd,
            (0, Stage::Sized(_)) => return Ok(true),
            _ => {}
        }
        Ok(false)
    }

    fn read_chunk_size(&mut self) -> Result<bool, Bad> {
        match httparse::parse_chunk_size(&self.input) {
            Ok(httparse::Status::Complete((line_bytes, size))) => {
                self.input.drain(..line_bytes);
                self.stage = if size == 0 {
                    Stage::Trailers
                } else {
                    Stage::Chunk(size)
                };
                Ok(false)
            }
            Ok(httparse::Status::Partial) if self.input.len() <= CHUNK_LINE_BYTES_MAX => Ok(false),
            Ok(httparse::Status::Partial) | Err(_) => Err(Bad(400)),
        }
    }

    fn read_chunk_end(&mut self) -> Result<bool, Bad> {
        match self.input.as_slice() {
            [b'\r', b'\n', ..] => {
                self.input.drain(..2);
                self.stage = Stage::ChunkSize;
                Ok(false)
            }
            [] | [b'\r'] => Ok(false),
            _ => Err(Bad(400)),
        }
    }

    fn read_trailers(&mut self) -> Result<bool, Bad> {
        let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
        match httparse::parse_headers(&self.input, &mut fields) {
            Ok(httparse::Status::Complete((bytes, fields))) => {
                let trailers = kept(fields);
                self.head.fields.extend(trailers);
                self.input.drain(..bytes);
                Ok(true)
            }
            Ok(httparse::Status::Partial) if self.input.len() <= HEAD_BYTES_MAX => Ok(false),
            Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => Err(Bad(431)),
            Err(_) => Err(Bad(400)),
        }
    }
}

/// What a head says of the body behind it and of the connection.
#[derive(Default)]
struct Framing {
    chunked: bool,
    length: u64,
    expects: bool,
    close: Option<bool>,
}

impl Framing {
    fn of(fields: &[httparse::Header<'_>]) -> Result<Self, Bad> {
        let mut framing = Self::default();
        let mut lengths = None;
        for field in fields {
            let value = std::str::from_utf8(field.value).map_err(|_| Bad(400))?.trim();
            match field.name.to_ascii_lowercase().as_str() {
                "content-length" => {
                    let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
                    let length = value.parse().ok().filter(|_| digits).ok_or(Bad(400))?;
                    // Two lengths that differ would let two readers see two different requests.
                    if lengths.replace(length).is_some_and(|before| before != length) {
                        return Err(Bad(400));
                    }
                }
                "transfer-encoding" if value.eq_ignore_ascii_case("chunked") => framing.chunked = true,
                "transfer-encoding" => return Err(Bad(400)),
                "expect" => framing.expects = value.eq_ignore_ascii_case("100-continue"),
                "connection" => {
                    for option in value.split(',').map(str::trim) {
                        if option.eq_ignore_ascii_case("close") {
                            framing.close = Some(true);
                        } else if option.eq_ignore_ascii_case("keep-alive") {
                            framing.close.get_or_insert(false);
                        }
                    }
                }
                _ => {}
            }
        }
        if framing.chunked && lengths.is_some() {
            return Err(Bad(400));
        }
        framing.length = lengths.unwrap_or(0);
        Ok(framing)
    }
}

fn kept(fields: &[httparse::Header<'_>]) -> Vec<(String, String)> {
    let keep = |field: &httparse::Header<'_>| {
        let name = field.name.to_ascii_lowercase();
        let value = std::str::from_utf8(field.value).ok()?;
        FIELDS_KEPT
            .contains(&name.as_str())
            .then(|| (name, value.to_owned()))
    };
    fields.iter().filter_map(keep).collect()
}
