//! What is open on a link, as a plain object: calls of this side's that wait for their reply, and requests of the other
//! side's whose body is still coming. It is told what frames arrive and says what has become whole; it does no I/O.
//!
//! A peer that breaks a rule ([`Broken`]) is not bargained with: the link ends, and with it what was open.

use std::collections::HashMap;

use bytes::{Bytes, BytesMut};
use tokio::sync::{mpsc, oneshot};

use super::frame::{Frame, Kind};
use crate::message::{Head, MessageError, Reply, Request};

/// Most requests of a member's that are open at a time, their carrying out included.
pub const OPEN_MAX: usize = 16 << 10;

/// Most bytes of unfinished bodies of a member's requests.
pub const INCOMING_BYTES_MAX: usize = 512 << 20;

/// What the other side of a link may have open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Most requests, their carrying out included; more are refused.
    pub open_max: usize,
    /// Most bytes of their bodies while those are coming.
    pub incoming_bytes_max: usize,
}

impl Bounds {
    /// Of a member.
    pub const MEMBER: Self = Self {
        open_max: OPEN_MAX,
        incoming_bytes_max: INCOMING_BYTES_MAX,
    };

    /// Of someone whom nobody knows yet: what a newcomer asks has no body.
    pub const NEWCOMER: Self = Self {
        open_max: 4,
        incoming_bytes_max: 0,
    };
}

/// Output of one request that may be under way or wait to be taken, in bytes.
pub const OUTPUT_WINDOW_BYTES: usize = 256 << 10;

/// Frames of output that may wait to be taken; small ones count against this bound rather than the window.
pub const OUTPUT_FRAMES_MAX: usize = OUTPUT_WINDOW_BYTES / OUTPUT_COST_BYTES_MIN;

/// What a frame of output counts for at least, in bytes.
pub const OUTPUT_COST_BYTES_MIN: usize = 512;

/// What the other side may not do.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// A message that is none.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// A body that is longer than was announced, or was not.
    #[error("a body of call {0} is longer than was announced")]
    Body(u64),
    /// More output than its window.
    #[error("the output of call {0} is more than its window")]
    Output(u64),
    /// A number that is in use.
    #[error("call {0} was begun twice")]
    Twice(u64),
    /// A frame that means something else.
    #[error("call {0} has a frame with a wrong number of bytes")]
    Number(u64),
}

/// A reply with its body.
pub type Answer = (Reply, Bytes);

/// A request that is whole.
#[derive(Debug)]
pub struct Arrived {
    /// Its number.
    pub call: u64,
    /// What is asked.
    pub request: Request,
    /// Its body; empty for most.
    pub body: Bytes,
}

/// What an arriving frame leads to.
#[derive(Debug)]
pub enum Step {
    /// Nothing yet.
    Nothing,
    /// A request is to be carried out.
    Arrived(Arrived),
    /// A request is refused with this reply: too much is open, or this program does not know it.
    Refused(u64, Reply),
    /// The other side has taken so much output of a request.
    Taken {
        /// Which.
        call: u64,
        /// Bytes.
        bytes: u32,
    },
    /// The other side does not wait for a reply any more.
    Forgotten(u64),
    /// An answer to a ping is wanted.
    Pinged,
}

/// A message whose body is coming.
#[derive(Debug)]
struct Partial<T> {
    message: T,
    body: BytesMut,
    body_bytes: usize,
}

impl<T> Partial<T> {
    /// Takes a piece; whether the body is whole.
    fn take(&mut self, call: u64, piece: &[u8]) -> Result<bool, Broken> {
        if piece.is_empty() || self.body.len() + piece.len() > self.body_bytes {
            return Err(Broken::Body(call));
        }
        self.body.extend_from_slice(piece);
        Ok(self.body.len() == self.body_bytes)
    }
}

/// A call of this side's.
#[derive(Debug)]
struct Waiting {
    reply: oneshot::Sender<Answer>,
    partial: Option<Partial<Reply>>,
    output: mpsc::Sender<Bytes>,
}

/// What is open.
#[derive(Debug)]
pub struct Table {
    bounds: Bounds,
    waiting: HashMap<u64, Waiting>,
    partial: HashMap<u64, Partial<Request>>,
    partial_bytes: usize,
    /// Requests of the other side's that are open, those whose body is coming included.
    open: usize,
}

/// What a frame of output counts for against its window, in bytes.
pub fn output_cost(bytes: usize) -> usize {
    bytes.clamp(OUTPUT_COST_BYTES_MIN, OUTPUT_WINDOW_BYTES)
}

impl Table {
    /// Nothing is open.
    pub fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            waiting: HashMap::new(),
            partial: HashMap::new(),
            partial_bytes: 0,
            open: 0,
        }
    }

    /// A call of this side's begins. `output` has room for [`OUTPUT_FRAMES_MAX`].
    pub fn begin(&mut self, call: u64, reply: oneshot::Sender<Answer>, output: mpsc::Sender<Bytes>) {
        let partial = None;
        self.waiting.insert(
            call,
            Waiting {
                reply,
                partial,
                output,
            },
        );
    }

    /// Nobody waits for a call any more; whether it was open.
    pub fn forget(&mut self, call: u64) -> bool {
        self.waiting.remove(&call).is_some()
    }

    /// A request of the other side's has been carried out.
    pub fn done(&mut self) {
        self.open = self.open.saturating_sub(1);
    }

    /// Ends all calls of this side's: their waiters see that their senders are gone.
    pub fn clear(&mut self) {
        self.waiting.clear();
        self.partial.clear();
        self.partial_bytes = 0;
    }

    /// Calls of this side's that wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Takes a frame.
    ///
    /// # Errors
    /// When the other side has broken a rule.
    pub fn take(&mut self, frame: Frame) -> Result<Step, Broken> {
        let Frame { kind, call, payload } = frame;
        match kind {
            Kind::Request => self.request(call, &payload),
            Kind::RequestBody => self.request_body(call, &payload),
            Kind::Reply => self.reply(call, &payload),
            Kind::ReplyBody => self.reply_body(call, &payload),
            Kind::Output => {
                // A window's worth fits; a call that has been forgotten is none.
                if let Some(waiting) = self.waiting.get(&call)
                    && let Err(mpsc::error::TrySendError::Full(_)) = waiting.output.try_send(payload)
                {
                    return Err(Broken::Output(call));
                }
                Ok(Step::Nothing)
            }
            Kind::Taken => match payload.as_ref().try_into() {
                Ok(bytes) => Ok(Step::Taken {
                    call,
                    bytes: u32::from_le_bytes(bytes),
                }),
                Err(_) => Err(Broken::Number(call)),
            },
            Kind::Forgotten => {
                if let Some(partial) = self.partial.remove(&call) {
                    self.partial_bytes -= partial.body_bytes;
                    self.done();
                }
                Ok(Step::Forgotten(call))
            }
            Kind::Ping => Ok(Step::Pinged),
            Kind::Pong => Ok(Step::Nothing),
        }
    }

    fn request(&mut self, call: u64, payload: &[u8]) -> Result<Step, Broken> {
        let Head { message, body_bytes } = Head::<Request>::decode(payload)?;
        if self.partial.contains_key(&call) {
            return Err(Broken::Twice(call));
        }
        let Some(message) = message else {
            return Ok(Step::Refused(call, Reply::Unknown));
        };
        let Bounds {
            open_max,
            incoming_bytes_max,
        } = self.bounds;
        if self.open >= open_max || self.partial_bytes + body_bytes > incoming_bytes_max {
            return Ok(Step::Refused(call, Reply::Busy));
        }
        self.open += 1;
        if body_bytes == 0 {
            return Ok(Step::Arrived(Arrived {
                call,
                request: message,
                body: Bytes::new(),
            }));
        }
        self.partial_bytes += body_bytes;
        self.partial.insert(
            call,
            Partial {
                message,
                body: BytesMut::new(),
                body_bytes,
            },
        );
        Ok(Step::Nothing)
    }

    fn request_body(&mut self, call: u64, piece: &[u8]) -> Result<Step, Broken> {
        // Of a request that was refused or forgotten.
        let Some(partial) = self.partial.get_mut(&call) else {
            return Ok(Step::Nothing);
        };
        if !partial.take(call, piece)? {
            return Ok(Step::Nothing);
        }
        let Some(partial) = self.partial.remove(&call) else {
            return Ok(Step::Nothing);
        };
        self.partial_bytes -= partial.body_bytes;
        Ok(Step::Arrived(Arrived {
            call,
            request: partial.message,
            body: partial.body.freeze(),
        }))
    }

    fn reply(&mut self, call: u64, payload: &[u8]) -> Result<Step, Broken> {
        let Head { message, body_bytes } = Head::<Reply>::decode(payload)?;
        let Some(waiting) = self.waiting.get_mut(&call) else {
            return Ok(Step::Nothing);
        };
        if waiting.partial.is_some() {
            return Err(Broken::Twice(call));
        }
        waiting.partial = Some(Partial {
            message: message.unwrap_or(Reply::Unknown),
            body: BytesMut::new(),
            body_bytes,
        });
        if body_bytes == 0 {
            self.answer(call);
        }
        Ok(Step::Nothing)
    }

    fn reply_body(&mut self, call: u64, piece: &[u8]) -> Result<Step, Broken> {
        let Some(waiting) = self.waiting.get_mut(&call) else {
            return Ok(Step::Nothing);
        };
        let partial = waiting.partial.as_mut().ok_or(Broken::Body(call))?;
        if partial.take(call, piece)? {
            self.answer(call);
        }
        Ok(Step::Nothing)
    }

    fn answer(&mut self, call: u64) {
        if let Some(waiting) = self.waiting.remove(&call)
            && let Some(partial) = waiting.partial
        {
            // Whoever waited may just have gone away.
            drop(waiting.reply.send((partial.message, partial.body.freeze())));
        }
    }
}
