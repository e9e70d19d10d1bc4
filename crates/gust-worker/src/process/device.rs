//! The runtime device of `docs/runtime-device.md` on a stream socket.

use std::{io, os::fd::OwnedFd};

use rustix::{
    event::{PollFd, PollFlags},
    io::Errno,
    net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair},
};

use crate::{
    device_text,
    protocol::{InitSpec, RESPONSE_BYTES_MAX},
    runtime_api::{Event, Said},
};

/// Kinds of messages to the program.
const FUNCTION: u32 = 1;
const EVENT: u32 = 2;

/// Kinds of answers from it.
const RESPONSE: u32 = 1;
const ERROR: u32 = 2;
const INIT_ERROR: u32 = 3;
const READY: u32 = 4;
const LAST_ERROR: u32 = 5;

/// Bytes of the header of an answer.
const ANSWER_HEADER_BYTES: usize = 16;

/// Bytes that are read at a time.
const READ_BYTES: usize = 16 << 10;

/// Answers that may be waiting to be worked on before no more are read; an honest program gives one at a time.
const SAID_MAX: usize = 2;

/// One socket with the device's messages on it.
#[derive(Debug)]
pub(crate) struct Device {
    socket: OwnedFd,
    /// To be sent, and how much of it has been.
    output: Vec<u8>,
    sent: usize,
    answer: Answer,
    handler_ns: u64,
    /// The program has closed its end; nothing more comes.
    closed: bool,
    /// The program has said that it ends by itself now.
    ends: bool,
    /// FUNCTION waits here for the program to be ready for it.
    function: Option<Vec<u8>>,
}

/// The answer that is being read.
#[derive(Debug, Default)]
struct Answer {
    header: Vec<u8>,
    body: Vec<u8>,
    body_bytes: u64,
}

impl Device {
    /// A device whose program gets this function. Returns the program's end of it, too.
    pub(crate) fn new(init: &InitSpec) -> io::Result<(Self, OwnedFd)> {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        let function = Some(message(FUNCTION, device_text::function(init).as_bytes(), b""));
        let device = Self {
            socket: ours,
            output: Vec::new(),
            sent: 0,
            answer: Answer::default(),
            handler_ns: 0,
            closed: false,
            ends: false,
            function,
        };
        Ok((device, theirs))
    }

    /// What to wait for; nothing once the program has closed its end, because that would be ready for ever.
    pub(super) fn poll_fd(&self) -> Option<PollFd<'_>> {
        let mut flags = PollFlags::IN;
        flags.set(PollFlags::OUT, self.sent < self.output.len());
        (!self.closed).then(|| PollFd::new(&self.socket, flags))
    }

    pub(super) fn handler_ns(&self) -> u64 {
        self.handler_ns
    }

    /// Whether the program has answered for the last time, and ends.
    pub(super) fn ends(&self) -> bool {
        self.ends
    }

    pub(super) fn deliver(&mut self, event: &Event) -> io::Result<()> {
        let meta = device_text::event(event, "");
        self.output = message(EVENT, meta.as_bytes(), &event.payload);
        self.sent = 0;
        self.write()
    }

    pub(super) fn turn(&mut self, said: &mut Vec<Said>) -> io::Result<()> {
        self.write()?;
        let mut buffer = [0; READ_BYTES];
        while said.len() < SAID_MAX {
            match rustix::io::read(&self.socket, &mut buffer) {
                // Its process may end too, which the kernel tells, or be ended when its time is over.
                Ok(0) | Err(Errno::CONNRESET) => {
                    self.closed = true;
                    break;
                }
                Err(Errno::AGAIN) => break,
                Ok(n) => self.take(&buffer[..n], said)?,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn write(&mut self) -> io::Result<()> {
        while self.sent < self.output.len() {
            match send(&self.socket, &self.output[self.sent..], SendFlags::NOSIGNAL) {
                Ok(n) => self.sent += n,
                Err(Errno::AGAIN | Errno::PIPE | Errno::CONNRESET) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.output = Vec::new();
        self.sent = 0;
        Ok(())
    }

    /// Takes in bytes of answers.
    pub(crate) fn take(&mut self, mut bytes: &[u8], said: &mut Vec<Said>) -> io::Result<()> {
        while !bytes.is_empty() || self.answer.is_complete() {
            bytes = self.answer.take(bytes);
            let (kind, handler_ns) = self.answer.kind_and_time();
            // Before its body is waited for, which may never come.
            if self.answer.has_header() && ![RESPONSE, ERROR, INIT_ERROR, READY, LAST_ERROR].contains(&kind) {
                return Err(io::Error::other(format!(
                    "the guest sent an answer of kind {kind}"
                )));
            }
            if !self.answer.is_complete() {
                continue;
            }
            let Answer { body, body_bytes, .. } = std::mem::take(&mut self.answer);
            let too_large = body_bytes > RESPONSE_BYTES_MAX;
            self.ends |= kind == LAST_ERROR;
            match kind {
                RESPONSE | ERROR | LAST_ERROR if too_large => said.push(Said::TooLarge(body_bytes)),
                RESPONSE => said.push(Said::Response(body)),
                ERROR | LAST_ERROR => said.push(Said::Error(body)),
                INIT_ERROR => said.push(Said::InitError(body)),
                _ready => match self.function.take() {
                    Some(function) => {
                        self.output = function;
                        self.write()?;
                    }
                    None => said.push(Said::Waits),
                },
            }
            self.handler_ns = handler_ns;
        }
        Ok(())
    }
}

impl Answer {
    fn is_complete(&self) -> bool {
        self.body_left() == Some(0)
    }

    fn has_header(&self) -> bool {
        self.header.len() == ANSWER_HEADER_BYTES
    }

    /// Bytes of the body still to come; `None` while the header is not whole.
    fn body_left(&self) -> Option<u64> {
        let bytes = self.header.get(4..8).filter(|_| self.has_header())?;
        let total = u32::from_le_bytes(bytes.try_into().ok()?);
        u64::from(total).checked_sub(self.body_bytes)
    }

    fn kind_and_time(&self) -> (u32, u64) {
        let kind = self
            .header
            .first_chunk()
            .map_or(0, |bytes| u32::from_le_bytes(*bytes));
        let time = self
            .header
            .last_chunk()
            .map_or(0, |bytes| u64::from_le_bytes(*bytes));
        (kind, time)
    }

    /// Takes what belongs to this answer; returns the rest. Of a body that is too long, only the length is kept.
    fn take<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let (head, bytes) = bytes.split_at(bytes.len().min(ANSWER_HEADER_BYTES - self.header.len()));
        self.header.extend_from_slice(head);
        let Some(left) = self.body_left() else {
            return bytes;
        };
        let (body, rest) = bytes.split_at(bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX)));
        let room = (RESPONSE_BYTES_MAX as usize).saturating_sub(self.body.len());
        self.body.extend_from_slice(&body[..body.len().min(room)]);
        self.body_bytes += body.len() as u64;
        rest
    }
}

fn message(kind: u32, meta: &[u8], body: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(16 + meta.len() + body.len());
    for field in [kind, meta.len() as u32, body.len() as u32, 0] {
        message.extend_from_slice(&field.to_le_bytes());
    }
    message.extend_from_slice(meta);
    message.extend_from_slice(body);
    message
}
