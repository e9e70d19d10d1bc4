//! `/dev/gust`: how our own runtimes take events and give answers (`docs/runtime-device.md`).
//!
//! A read takes what is left of the current message and waits when there is none; that wait is where a guest is
//! frozen, and where it is captured. Writes build answers.

use serde::{Deserialize, Serialize};

use crate::{
    abi::{Writer, u32_at, u64_at},
    errno::{EINVAL, Errno},
    fs::Transfer,
    io::ObjectKey,
    kernel::{Cx, Flow, Kernel, SysResult},
    task::WaitKey,
    user::{UserSlice, total},
};

/// Bytes of a message's header, in both directions.
const HEADER_BYTES: usize = 16;
/// Longest body that is kept, in bytes; of a longer one only the length is. The platform's own limit is lower.
const BODY_BYTES_MAX: u64 = 8 << 20;
/// Answers that are kept until someone takes them.
const ANSWERS_MAX: usize = 4;

/// What the guest said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceAnswer {
    /// What kind of answer it is.
    pub kind: DeviceAnswerKind,
    /// Time in the handler as the runtime measured it, in nanoseconds.
    pub handler_ns: u64,
    /// Response or error document; empty when it is longer than the device keeps.
    pub body: Vec<u8>,
    /// Length of the body as the guest gave it.
    pub body_bytes: u64,
}

/// Kinds of answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceAnswerKind {
    /// The handler's response.
    Response,
    /// The handler failed.
    Error,
    /// The initialisation failed.
    InitError,
}

/// What a message to the guest is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceMessageKind {
    /// The function that the runtime is to load.
    Function,
    /// An event.
    Event,
}

/// The device's state.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct RuntimeDevice {
    message: Vec<u8>,
    /// Bytes of the message that have been read.
    read: usize,
    incoming: Incoming,
    answers: Vec<DeviceAnswer>,
}

/// An answer of which a part has been written.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Incoming {
    header: Vec<u8>,
    body: Vec<u8>,
    /// Bytes of the body that are to come.
    left: u64,
}

impl Incoming {
    /// Bytes that the next part takes.
    fn wanted(&self) -> u64 {
        match HEADER_BYTES.saturating_sub(self.header.len()) {
            0 => self.left,
            header => header as u64,
        }
    }
}

impl RuntimeDevice {
    pub(crate) fn has_message(&self) -> bool {
        self.read < self.message.len()
    }

    /// Takes a part that is no longer than what is wanted.
    fn take_in(&mut self, data: Vec<u8>) -> Result<(), Errno> {
        let incoming = &mut self.incoming;
        if incoming.header.len() < HEADER_BYTES {
            incoming.header.extend_from_slice(&data);
            if incoming.header.len() < HEADER_BYTES {
                return Ok(());
            }
            incoming.left = u64::from(u32_at(&incoming.header, 4));
        } else {
            incoming.left = incoming.left.saturating_sub(data.len() as u64);
            let kept = u64::from(u32_at(&incoming.header, 4)) <= BODY_BYTES_MAX;
            match (kept, incoming.body.is_empty()) {
                (false, _) => {}
                (true, true) => incoming.body = data,
                (true, false) => incoming.body.extend_from_slice(&data),
            }
        }
        if incoming.left == 0 {
            let whole = std::mem::take(incoming);
            self.answers.push(answer(whole)?);
        }
        // A program that has more to say than it was asked is at fault; the owner sees what it said first.
        match self.answers.len() > ANSWERS_MAX {
            true => Err(EINVAL),
            false => Ok(()),
        }
    }
}

fn answer(whole: Incoming) -> Result<DeviceAnswer, Errno> {
    let kind = match u32_at(&whole.header, 0) {
        1 => DeviceAnswerKind::Response,
        // The second is the program's last, which shows when it ends.
        2 | 5 => DeviceAnswerKind::Error,
        3 => DeviceAnswerKind::InitError,
        _ => return Err(EINVAL),
    };
    Ok(DeviceAnswer {
        kind,
        handler_ns: u64_at(&whole.header, 8),
        body: whole.body,
        body_bytes: u64::from(u32_at(&whole.header, 4)),
    })
}

impl Kernel {
    /// Gives the guest a message. `restored` marks the first event after a restore.
    pub fn device_send(&mut self, kind: DeviceMessageKind, restored: bool, meta: &[u8], body: &[u8]) {
        let number = match kind {
            DeviceMessageKind::Function => 1,
            DeviceMessageKind::Event => 2,
        };
        let mut message = Writer::with_capacity(HEADER_BYTES + meta.len() + body.len())
            .u32(number)
            .u32(meta.len() as u32)
            .u32(body.len() as u32)
            .u32(u32::from(restored))
            .done();
        message.extend_from_slice(meta);
        message.extend_from_slice(body);
        self.runtime.message = message;
        self.runtime.read = 0;
        self.wake_object(ObjectKey::Runtime);
    }

    /// Whether a thread waits for a message that is not there.
    pub fn device_waits(&self) -> bool {
        !self.runtime.has_message()
            && !self
                .queues
                .waiters(WaitKey::Object(ObjectKey::Runtime))
                .is_empty()
    }

    /// Takes the oldest answer.
    pub fn take_device_answer(&mut self) -> Option<DeviceAnswer> {
        if self.runtime.answers.is_empty() {
            None
        } else {
            Some(self.runtime.answers.remove(0))
        }
    }

    pub(crate) fn read_runtime(&mut self, cx: &mut Cx<'_>, slices: &[UserSlice]) -> Result<Transfer, Errno> {
        let device = &self.runtime;
        if !device.has_message() {
            return Ok(Transfer::NotReady(ObjectKey::Runtime));
        }
        // Taken out for the copy, so that the message is not copied once more.
        let message = std::mem::take(&mut self.runtime.message);
        let placed = self.scatter(cx, slices, 0, &message[self.runtime.read..]);
        self.runtime.message = message;
        let placed = placed?;
        self.runtime.read += placed as usize;
        if !self.runtime.has_message() {
            // An event leaves no trace in what may be captured.
            self.runtime.message = Vec::new();
            self.runtime.read = 0;
        }
        Ok(Transfer::Bytes(placed))
    }

    pub(crate) fn write_runtime(&mut self, cx: &mut Cx<'_>, slices: &[UserSlice]) -> SysResult {
        let bytes = total(slices);
        let mut done = 0;
        while done < bytes {
            let wanted = self.runtime.incoming.wanted().min(bytes - done);
            let data = self.gather(cx, slices, done, wanted as usize)?;
            done += data.len() as u64;
            self.runtime.take_in(data)?;
        }
        Ok(Flow::Done(bytes))
    }
}
