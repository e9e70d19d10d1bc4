//! Calls.

use base64::{Engine, engine::general_purpose::STANDARD};
use gust_control::{Reply, Request as Call, limits};
use hyper::{HeaderMap, Response, StatusCode, header::HeaderValue};
use serde_json::{Value, json};

use crate::{
    body::Body,
    error::ApiError,
    request::{Answer, Request, json},
    server,
    validate::Violations,
};

const KIND_HEADER: &str = "x-amz-invocation-type";

/// Asks for the parts of the call's time in the response, in this header.
const TIMINGS_HEADER: &str = "x-gust-timings";

/// The call is asynchronous.
pub(super) fn is_async(headers: &HeaderMap) -> bool {
    headers.get(KIND_HEADER).is_some_and(|value| value == "Event")
}

pub(super) async fn invoke(request: Request<'_>) -> Answer {
    let kind = request.header(KIND_HEADER).unwrap_or("RequestResponse");
    let log_type = request.header("x-amz-log-type");
    let mut violations = Violations::default();
    violations.one_of(
        Some(kind),
        "invocationType",
        &["Event", "RequestResponse", "DryRun"],
    );
    violations.one_of(log_type, "logType", &["None", "Tail"]);
    violations.check()?;
    let kind = kind.to_owned();
    let want_tail = log_type == Some("Tail");
    let want_timings = request.header(TIMINGS_HEADER).is_some();
    let control = request.control().clone();
    let call = call(request, want_tail)?;
    match kind.as_str() {
        "DryRun" => {
            control.dry_run(&call.target)?;
            Ok(server::status(StatusCode::NO_CONTENT))
        }
        "Event" => {
            control.invoke_async(call).await?;
            Ok(server::status(StatusCode::ACCEPTED))
        }
        _ => Ok(answer(control.invoke(call).await?, want_timings)),
    }
}

/// The old form of an asynchronous call.
pub(super) async fn invoke_async(request: Request<'_>) -> Answer {
    let control = request.control().clone();
    let call = call(request, false)?;
    control.invoke_async(call).await?;
    json(StatusCode::ACCEPTED, &json!({ "Status": 202 }))
}

fn call(request: Request<'_>, want_tail: bool) -> Result<Call, ApiError> {
    let target = request.target()?;
    let client_context = request
        .header("x-amz-client-context")
        .map(client_context)
        .transpose()?;
    let trace_id = request.header("x-amzn-trace-id").map(str::to_owned);
    let payload = request.body.clone();
    if !payload.is_empty() {
        // Only whether it is JSON: the function gets the bytes as they are. What is skipped is not checked to be
        // UTF-8 by the parser.
        let no_json = |error: &dyn std::fmt::Display| {
            ApiError::invalid_content(format!("Could not parse request body into json: {error}"))
        };
        let text = std::str::from_utf8(&payload).map_err(|error| no_json(&error))?;
        serde_json::from_str::<serde::de::IgnoredAny>(text).map_err(|error| no_json(&error))?;
    }
    let payload = if payload.is_empty() {
        bytes::Bytes::from_static(b"{}")
    } else {
        payload
    };
    Ok(Call {
        target,
        request_id: request.id,
        payload,
        client_context,
        trace_id,
        want_tail,
    })
}

fn client_context(text: &str) -> Result<String, ApiError> {
    if text.len() > limits::CLIENT_CONTEXT_BYTES_MAX {
        return Err(ApiError::invalid_content(format!(
            "Client context must be no more than {} bytes",
            limits::CLIENT_CONTEXT_BYTES_MAX
        )));
    }
    let decoded = STANDARD
        .decode(text)
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok());
    decoded
        .filter(|json| serde_json::from_str::<serde::de::IgnoredAny>(json).is_ok())
        .ok_or_else(|| {
            ApiError::invalid_content("Client context must be a valid Base64-encoded JSON object.")
        })
}

fn answer(reply: Reply, want_timings: bool) -> Response<Body> {
    let mut response = Response::new(Body::full(reply.payload));
    let headers = response.headers_mut();
    headers.insert("content-type", HeaderValue::from_static("application/json"));
    let mut add = |name: &'static str, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    };
    add("x-amz-executed-version", &reply.version.to_string());
    if reply.is_error {
        add("x-amz-function-error", "Unhandled");
    }
    if let Some(tail) = reply.tail {
        add("x-amz-log-result", &STANDARD.encode(tail));
    }
    if want_timings {
        add(TIMINGS_HEADER, &timings(&reply.call).to_string());
    }
    response
}

/// A call's time and its parts, as the private API shows them.
pub(crate) fn timings(call: &gust_control::Call) -> Value {
    let parts = &call.timings;
    json!({
        "start": call.start_label(),
        "class": call.class,
        "instance": call.instance_id,
        "duration_ns": nanos(call.duration),
        "total_ns": nanos(call.total),
        "queue_ns": parts.queue_ns,
        "scheduling_ns": nanos(call.scheduling),
        "worker_ns": parts.worker_ns,
        "fetch_ns": parts.fetch_ns,
        "map_ns": parts.map_ns,
        "fill_ns": parts.fill_ns,
        "faults_ns": parts.faults_ns,
        "boot_ns": parts.boot_ns,
        "runtime_ns": parts.runtime_ns,
        "handler_ns": parts.handler_ns,
        "memory_bytes": call.memory_bytes_max,
    })
}

fn nanos(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
