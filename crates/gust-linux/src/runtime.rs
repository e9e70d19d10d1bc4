//! `/dev/gust`: how our own runtimes take events and give answers (`docs/runtime-device.md`).
//!
//! A read takes what is left of the current message and waits when there is none; that wait is where a guest is
//! frozen, and where it is captured. Writes build answers.

use serde::{Deserialize, Serialize};

use crate::{
    abi::{Writer, u32_at, u64_at},
    errno::{EINVAL, EMSGSIZE, Errno},
    fs::Transfer,
    io::ObjectKey,
    kernel::{Cx, Flow, Kernel, SysResult},
    task::WaitKey,
    user::{UserSlice, total},
};

/// Bytes of a message's header, in both directions.
const HEADER_BYTES: usize = 16;
/// Longest answer that is taken in, in bytes; the platform's limit is lower, and tells the caller.
const ANSWER_BYTES_MAX: usize = 32 << 20;
/// Answers that are kept until someone takes them.
const ANSWERS_MAX: usize = 4;

/// What the guest said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceAnswer {
    /// What kind of answer it is.
    pub kind: DeviceAnswerKind,
    /// Time in the handler as the runtime measured it, in nanoseconds.
    pub handler_ns: u64,
    /// Response or error document.
    pub body: Vec<u8>,
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
    partial: Vec<u8>,
    answers: Vec<DeviceAnswer>,
}

impl RuntimeDevice {
    pub(crate) fn has_message(&self) -> bool {
        self.read < self.message.len()
    }
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
        let bytes = total(slices) as usize;
        if self.runtime.partial.len() + bytes > ANSWER_BYTES_MAX + HEADER_BYTES {
            self.runtime.partial = Vec::new();
            return Err(EMSGSIZE);
        }
        let mut done = 0;
        while done < bytes {
            let data = self.gather(cx, slices, done as u64, bytes - done)?;
            done += data.len();
            self.runtime.partial.extend_from_slice(&data);
        }
        self.finish_answer()?;
        Ok(Flow::Done(bytes as u64))
    }

    fn finish_answer(&mut self) -> Result<(), Errno> {
        let partial = &mut self.runtime.partial;
        if partial.len() < HEADER_BYTES {
            return Ok(());
        }
        let body_bytes = u32_at(partial, 4) as usize;
        if body_bytes > ANSWER_BYTES_MAX {
            *partial = Vec::new();
            return Err(EMSGSIZE);
        }
        let whole = HEADER_BYTES + body_bytes;
        if partial.len() < whole {
            return Ok(());
        }
        let kind = match u32_at(partial, 0) {
            1 => Some(DeviceAnswerKind::Response),
            2 => Some(DeviceAnswerKind::Error),
            3 => Some(DeviceAnswerKind::InitError),
            _ => None,
        };
        let handler_ns = u64_at(partial, 8);
        let mut body = std::mem::take(partial);
        if body.len() > whole || kind.is_none() || self.runtime.answers.len() >= ANSWERS_MAX {
            return Err(EINVAL);
        }
        body.drain(..HEADER_BYTES);
        self.runtime.answers.extend(kind.map(|kind| DeviceAnswer {
            kind,
            handler_ns,
            body,
        }));
        Ok(())
    }
}
