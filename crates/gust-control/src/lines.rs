//! The platform's lines in a function's log, in AWS Lambda's form, and the text of a function as lines.

use std::time::Duration;

use crate::{clock::Utc, ids::VersionNumber};

/// What a REPORT line says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report<'a> {
    /// The invocation's id.
    pub request_id: &'a str,
    /// How long the run took.
    pub duration: Duration,
    /// How long the instance took to come to be, when this call waited for it.
    pub start: Option<(StartPhase, Duration)>,
    /// Memory of the function, in MiB.
    pub memory_mib: u32,
    /// Most memory used, in bytes.
    pub memory_bytes_max: u64,
    /// How the run ended, when not well.
    pub status: Option<Status>,
    /// X-Ray trace header, when the call has one.
    pub trace_id: Option<&'a str>,
}

/// How an instance came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartPhase {
    /// It was started from nothing.
    Init,
    /// It was restored from a snapshot.
    Restore,
}

/// How a run ended, when not well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Over its time.
    Timeout,
    /// With an error of this type.
    Error(&'static str),
}

/// Milliseconds as Lambda bills them: begun ones count.
pub fn billed_ms(duration: Duration) -> u128 {
    duration.as_nanos().div_ceil(1_000_000)
}

fn ms(duration: Duration) -> String {
    format!("{:.2}", duration.as_secs_f64() * 1000.0)
}

/// `START RequestId: … Version: …`
pub fn start(request_id: &str, version: VersionNumber) -> String {
    format!("START RequestId: {request_id} Version: {version}\n")
}

/// `END RequestId: …`
pub fn end(request_id: &str) -> String {
    format!("END RequestId: {request_id}\n")
}

/// `REPORT RequestId: …` with its tabs.
pub fn report(report: &Report<'_>) -> String {
    let Report {
        request_id,
        duration,
        start,
        memory_mib,
        memory_bytes_max,
        status,
        trace_id,
    } = report;
    let billed = match start {
        Some((StartPhase::Init, init)) => billed_ms(*duration + *init),
        Some((StartPhase::Restore, _)) | None => billed_ms(*duration),
    };
    let used_mib = memory_bytes_max.div_ceil(1 << 20);
    let mut line = format!(
        "REPORT RequestId: {request_id}\tDuration: {} ms\tBilled Duration: {billed} ms\tMemory Size: {memory_mib} MB\t\
         Max Memory Used: {used_mib} MB\t",
        ms(*duration)
    );
    match start {
        Some((StartPhase::Init, init)) => line.push_str(&format!("Init Duration: {} ms\t", ms(*init))),
        Some((StartPhase::Restore, restore)) => line.push_str(&format!(
            "Restore Duration: {} ms\tBilled Restore Duration: {} ms\t",
            ms(*restore),
            billed_ms(*restore)
        )),
        None => {}
    }
    match status {
        Some(Status::Timeout) => line.push_str("Status: timeout"),
        Some(Status::Error(kind)) => line.push_str(&format!("Status: error\tError Type: {kind}")),
        None => {}
    }
    line.push('\n');
    if let Some(root) =
        trace_id.and_then(|header| header.split(';').find_map(|part| part.strip_prefix("Root=")))
    {
        line.push_str(&format!("XRAY TraceId: {root}\t\n"));
    }
    line
}

/// The line of a run that took too long.
pub fn timed_out(unix_ms: u64, request_id: &str, timeout: Duration) -> String {
    format!(
        "{}Z {request_id} {}\n\n",
        Utc::from_unix_ms(unix_ms).iso8601(),
        timed_out_message(timeout)
    )
}

/// `Task timed out after 3.00 seconds`
pub fn timed_out_message(timeout: Duration) -> String {
    format!("Task timed out after {:.2} seconds", timeout.as_secs_f64())
}

/// `INIT_START …`
pub fn init_start(runtime: &str) -> String {
    format!("INIT_START Runtime Version: {}\n", runtime_label(runtime))
}

/// `INIT_REPORT …`, with a status when the initialisation failed.
pub fn init_report(duration: Duration, status: Option<Status>) -> String {
    let status = match status {
        Some(Status::Timeout) => "\tStatus: timeout".to_owned(),
        Some(Status::Error(kind)) => format!("\tStatus: error\tError Type: {kind}"),
        None => String::new(),
    };
    format!(
        "INIT_REPORT Init Duration: {} ms\tPhase: init{status}\n",
        ms(duration)
    )
}

/// `RESTORE_START …`
pub fn restore_start(runtime: &str) -> String {
    format!("RESTORE_START Runtime Version: {}\n", runtime_label(runtime))
}

/// `RESTORE_REPORT …`
pub fn restore_report(duration: Duration) -> String {
    format!("RESTORE_REPORT Restore Duration: {} ms\n", ms(duration))
}

/// `python3.11` as `python:3.11.gust`, `provided.al2023` as it is: Lambda writes language, version and build.
fn runtime_label(runtime: &str) -> String {
    match runtime.find(|c: char| c.is_ascii_digit()) {
        Some(at) if !runtime.contains('.') || !runtime[..at].ends_with("al") => {
            format!("{}:{}.gust", &runtime[..at], &runtime[at..])
        }
        Some(_) | None => format!("{runtime}.gust"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "8f5f6a2e-0000-4000-8000-000000000001";

    fn plain() -> Report<'static> {
        Report {
            request_id: ID,
            duration: Duration::from_micros(1234),
            start: None,
            memory_mib: 128,
            memory_bytes_max: 35 << 20,
            status: None,
            trace_id: None,
        }
    }

    #[track_caller]
    fn check(report: &Report<'_>, rest: &str) {
        assert_eq!(super::report(report), format!("REPORT RequestId: {ID}\t{rest}"));
    }

    #[test]
    fn report_lines() {
        check(
            &plain(),
            "Duration: 1.23 ms\tBilled Duration: 2 ms\tMemory Size: 128 MB\tMax Memory Used: 35 MB\t\n",
        );
        check(
            &Report {
                start: Some((StartPhase::Init, Duration::from_millis(100))),
                ..plain()
            },
            "Duration: 1.23 ms\tBilled Duration: 102 ms\tMemory Size: 128 MB\tMax Memory Used: 35 MB\t\
             Init Duration: 100.00 ms\t\n",
        );
        check(
            &Report {
                start: Some((StartPhase::Restore, Duration::from_micros(650))),
                ..plain()
            },
            "Duration: 1.23 ms\tBilled Duration: 2 ms\tMemory Size: 128 MB\tMax Memory Used: 35 MB\t\
             Restore Duration: 0.65 ms\tBilled Restore Duration: 1 ms\t\n",
        );
        check(
            &Report {
                status: Some(Status::Timeout),
                duration: Duration::from_secs(3),
                ..plain()
            },
            "Duration: 3000.00 ms\tBilled Duration: 3000 ms\tMemory Size: 128 MB\tMax Memory Used: 35 MB\t\
             Status: timeout\n",
        );
        check(
            &Report {
                status: Some(Status::Error("Runtime.ExitError")),
                ..plain()
            },
            "Duration: 1.23 ms\tBilled Duration: 2 ms\tMemory Size: 128 MB\tMax Memory Used: 35 MB\t\
             Status: error\tError Type: Runtime.ExitError\n",
        );
        check(
            &Report {
                trace_id: Some("Root=1-5759e988-bd862e3fe1be46a994272793;Sampled=1"),
                ..plain()
            },
            "Duration: 1.23 ms\tBilled Duration: 2 ms\tMemory Size: 128 MB\tMax Memory Used: 35 MB\t\n\
             XRAY TraceId: 1-5759e988-bd862e3fe1be46a994272793\t\n",
        );
    }

    #[test]
    fn the_other_lines() {
        assert_eq!(
            start(ID, VersionNumber::Latest),
            format!("START RequestId: {ID} Version: $LATEST\n")
        );
        assert_eq!(end(ID), format!("END RequestId: {ID}\n"));
        assert_eq!(
            timed_out(0, ID, Duration::from_secs(3)),
            format!("1970-01-01T00:00:00.000Z {ID} Task timed out after 3.00 seconds\n\n")
        );
        assert_eq!(
            init_start("python3.11"),
            "INIT_START Runtime Version: python:3.11.gust\n"
        );
        assert_eq!(
            init_start("provided.al2023"),
            "INIT_START Runtime Version: provided.al2023.gust\n"
        );
        assert_eq!(
            init_report(Duration::from_millis(5), Some(Status::Error("Runtime.ExitError"))),
            "INIT_REPORT Init Duration: 5.00 ms\tPhase: init\tStatus: error\tError Type: Runtime.ExitError\n"
        );
    }
}
