//! What a caller gets for each way in which a run can end, in AWS Lambda's error documents.

use std::time::Duration;

use bytes::Bytes;
use gust_node::{Failure, InvokeResult};
use gust_worker::protocol::GuestExit;
use serde::Serialize;

use crate::{
    limits::RESPONSE_BYTES_MAX,
    lines::{self, Status},
};

/// What a caller gets, and what the log says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The response, or an error document.
    pub payload: Bytes,
    /// The payload is an error document.
    pub is_error: bool,
    /// How the run ended, when the platform has something to say.
    pub status: Option<Status>,
    /// What the platform adds to the log before END.
    pub log: Option<String>,
}

/// Error types in the documents.
mod kind {
    pub(super) const EXIT: &str = "Runtime.ExitError";
    pub(super) const OUT_OF_MEMORY: &str = "Runtime.OutOfMemory";
    pub(super) const TIMED_OUT: &str = "Sandbox.Timedout";
    pub(super) const FAULT: &str = "Sandbox.Fault";
    pub(super) const TOO_LARGE: &str = "Function.ResponseSizeTooLarge";
}

/// One run, as far as its error documents name it.
#[derive(Debug, Clone, Copy)]
pub struct Run<'a> {
    /// The invocation's id.
    pub request_id: &'a str,
    /// Longest run.
    pub timeout: Duration,
    /// Longest initialisation.
    pub init_timeout: Duration,
    /// When the run ended, in milliseconds of the Unix epoch.
    pub ended_unix_ms: u64,
}

impl Run<'_> {
    /// The answer for a result.
    pub fn answer(&self, result: InvokeResult) -> Answer {
        match result {
            InvokeResult::Success(payload) if payload.len() > RESPONSE_BYTES_MAX => self.too_large(),
            InvokeResult::Success(payload) => Answer {
                payload,
                is_error: false,
                status: None,
                log: None,
            },
            InvokeResult::FunctionError(payload) => Answer {
                payload,
                is_error: true,
                status: None,
                log: None,
            },
            InvokeResult::ResponseTooLarge { bytes: _ } => self.too_large(),
            InvokeResult::InitFailed(payload) => Answer {
                payload,
                is_error: true,
                status: Some(Status::Error("Runtime.InitError")),
                log: None,
            },
            InvokeResult::InitTimedOut => self.timed_out(self.init_timeout),
            InvokeResult::TimedOut => self.timed_out(self.timeout),
            InvokeResult::Exited(exit) => self.exited(&exit),
        }
    }

    /// The answer for a deployment whose initialisation failed.
    pub fn init_failure(&self, failure: Failure) -> Answer {
        self.answer(match failure {
            Failure::InitFailed(document) => InvokeResult::InitFailed(document),
            Failure::InitTimedOut => InvokeResult::InitTimedOut,
            Failure::Exited(exit) => InvokeResult::Exited(exit),
        })
    }

    fn too_large(&self) -> Answer {
        let message = format!(
            "Response payload size exceeded maximum allowed payload size ({RESPONSE_BYTES_MAX} bytes)."
        );
        Answer {
            payload: document(kind::TOO_LARGE, &message),
            is_error: true,
            status: Some(Status::Error(kind::TOO_LARGE)),
            log: None,
        }
    }

    fn timed_out(&self, timeout: Duration) -> Answer {
        let message = format!(
            "RequestId: {} Error: {}",
            self.request_id,
            lines::timed_out_message(timeout)
        );
        Answer {
            payload: document(kind::TIMED_OUT, &message),
            is_error: true,
            status: Some(Status::Timeout),
            log: Some(lines::timed_out(self.ended_unix_ms, self.request_id, timeout)),
        }
    }

    fn exited(&self, exit: &GuestExit) -> Answer {
        let (kind, how) = match exit {
            GuestExit::Exit(0) => (kind::EXIT, "Runtime exited without providing a reason".to_owned()),
            GuestExit::Exit(status) => (
                kind::EXIT,
                format!("Runtime exited with error: exit status {status}"),
            ),
            GuestExit::Signal(signal) => (
                kind::EXIT,
                format!("Runtime exited with error: signal: {}", signal_name(*signal)),
            ),
            GuestExit::OutOfMemory => (
                kind::OUT_OF_MEMORY,
                "Runtime exited with error: signal: killed".to_owned(),
            ),
            GuestExit::Fault(reason) => (kind::FAULT, format!("The sandbox ended the runtime: {reason}")),
        };
        let message = format!("RequestId: {} Error: {how}", self.request_id);
        let log = format!("{message}\n{kind}\n");
        Answer {
            payload: document(kind, &message),
            is_error: true,
            status: Some(Status::Error(kind)),
            log: Some(log),
        }
    }
}

/// An error document, its members in the order in which AWS Lambda writes them.
#[derive(Serialize)]
struct Document<'a> {
    #[serde(rename = "errorType")]
    kind: &'a str,
    #[serde(rename = "errorMessage")]
    message: &'a str,
}

fn document(kind: &str, message: &str) -> Bytes {
    let text = serde_json::to_string(&Document { kind, message });
    text.expect("two texts can be written as JSON").into()
}

/// A signal as Go's `syscall.Signal` prints it, which is what Lambda shows.
fn signal_name(signal: i32) -> String {
    match signal {
        1 => "hangup",
        2 => "interrupt",
        3 => "quit",
        4 => "illegal instruction",
        5 => "trace/breakpoint trap",
        6 => "aborted",
        7 => "bus error",
        8 => "floating point exception",
        9 => "killed",
        10 => "user defined signal 1",
        11 => "segmentation fault",
        12 => "user defined signal 2",
        13 => "broken pipe",
        14 => "alarm clock",
        15 => "terminated",
        other => return format!("signal {other}"),
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: Run<'_> = Run {
        request_id: "id-1",
        timeout: Duration::from_secs(3),
        init_timeout: Duration::from_secs(10),
        ended_unix_ms: 0,
    };

    #[track_caller]
    fn check(result: InvokeResult, payload: &str, status: Option<Status>) {
        let answer = RUN.answer(result);
        let document: serde_json::Value = serde_json::from_slice(&answer.payload).unwrap();
        assert_eq!(
            document,
            serde_json::from_str::<serde_json::Value>(payload).unwrap()
        );
        assert!(answer.is_error);
        assert_eq!(answer.status, status);
    }

    #[test]
    fn documents() {
        check(
            InvokeResult::TimedOut,
            r#"{"errorType":"Sandbox.Timedout","errorMessage":"RequestId: id-1 Error: Task timed out after 3.00 seconds"}"#,
            Some(Status::Timeout),
        );
        check(
            InvokeResult::Exited(GuestExit::Exit(1)),
            r#"{"errorType":"Runtime.ExitError","errorMessage":"RequestId: id-1 Error: Runtime exited with error: exit status 1"}"#,
            Some(Status::Error("Runtime.ExitError")),
        );
        check(
            InvokeResult::Exited(GuestExit::Signal(11)),
            r#"{"errorType":"Runtime.ExitError","errorMessage":"RequestId: id-1 Error: Runtime exited with error: signal: segmentation fault"}"#,
            Some(Status::Error("Runtime.ExitError")),
        );
        check(
            InvokeResult::Exited(GuestExit::OutOfMemory),
            r#"{"errorType":"Runtime.OutOfMemory","errorMessage":"RequestId: id-1 Error: Runtime exited with error: signal: killed"}"#,
            Some(Status::Error("Runtime.OutOfMemory")),
        );
        check(
            InvokeResult::Success(vec![b'1'; RESPONSE_BYTES_MAX + 1].into()),
            r#"{"errorType":"Function.ResponseSizeTooLarge","errorMessage":"Response payload size exceeded maximum allowed payload size (6291556 bytes)."}"#,
            Some(Status::Error("Function.ResponseSizeTooLarge")),
        );
        check(
            InvokeResult::FunctionError(Bytes::from_static(b"{\"errorType\":\"ValueError\"}")),
            r#"{"errorType":"ValueError"}"#,
            None,
        );
    }
}
