//! The server's own API, under `/_gust/v1/`: what the command line and the benches need beyond AWS's.
//!
//! | request | answer |
//! |---|---|
//! | `GET health` | 200 as soon as calls are taken; needs no signature |
//! | `GET stats` | functions, waiting events, what the fleet and the node hold |
//! | `GET functions/{name}` | configuration, and the last calls with the parts of their time |
//! | `GET functions/{name}/logs?tail=N&since=MS&follow=1` | lines of the log, one JSON object each; with `follow` for ever |
//! | `POST functions/{name}/evict?armed=keep` | ends idle instances (armed ones too, unless kept): the next call is a cold start |
//! | `GET nodes` | the nodes on other machines that are linked |
//! | `POST nodes/{name}/revoke` | throws a node out of the cluster for good |
//! | `GET code/{sha256}?…` | a package, by a link of `GetFunction` |
//!
//! It is not AWS's and may change with the version in its path. Errors have AWS's form.

use std::time::Duration;

use bytes::Bytes;
use gust_control::Control;
use gust_store::LogLine;
use hyper::{Method, Response, StatusCode, header::HeaderValue};
use serde_json::json;
use tokio::sync::mpsc;

use crate::{
    body::Body,
    error::ApiError,
    handlers,
    operation::Captures,
    present::{self, Detail},
    request::{Answer, Request, json},
    server,
    text::percent_decode,
};

/// Largest body of a request.
pub(crate) const BODY_BYTES_MAX: usize = 64 << 10;

/// Says that the server takes calls.
pub(crate) const HEALTH_PATH: &str = "/_gust/v1/health";

const PREFIX: &str = "/_gust/v1/";

/// Lines that are shown when the caller states no number.
const TAIL_LINES_DEFAULT: usize = 100;

/// Most lines that are shown at once.
const TAIL_LINES_MAX: usize = 10_000;

/// Pieces of a followed log that wait for the client.
const PIECES_QUEUED_MAX: usize = 16;

/// A followed log sends an empty line this often, so that a client that has gone away is noticed.
const FOLLOW_HEARTBEAT: Duration = Duration::from_secs(15);

/// An operation of this API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Stats,
    Describe,
    Logs,
    Evict,
    Nodes,
    RevokeNode,
}

/// Finds the operation of a request; `None` when the path is not of this API.
pub(crate) fn route(method: &Method, path: &str) -> Option<Result<(Operation, Captures), ApiError>> {
    let rest = path.strip_prefix(PREFIX)?;
    let parts: Vec<&str> = rest.split('/').collect();
    let (wanted, operation, name) = match parts.as_slice() {
        ["stats"] => (Method::GET, Operation::Stats, None),
        ["functions", name] => (Method::GET, Operation::Describe, Some(*name)),
        ["functions", name, "logs"] => (Method::GET, Operation::Logs, Some(*name)),
        ["functions", name, "evict"] => (Method::POST, Operation::Evict, Some(*name)),
        ["nodes"] => (Method::GET, Operation::Nodes, None),
        ["nodes", name, "revoke"] => (Method::POST, Operation::RevokeNode, Some(*name)),
        _ => return Some(Err(ApiError::unknown_operation())),
    };
    if *method != wanted {
        return Some(Err(ApiError::wrong_method()));
    }
    let captures = name.map(percent_decode).into_iter().collect();
    Some(Ok((operation, captures)))
}

pub(crate) fn health() -> Answer {
    json(StatusCode::OK, &json!({ "status": "ready" }))
}

pub(crate) async fn handle(operation: Operation, request: Request<'_>) -> Answer {
    match operation {
        Operation::Stats => stats(request.control()),
        Operation::Describe => describe(&request),
        Operation::Logs => logs(&request).await,
        Operation::Evict => {
            let keep_armed = request.query("armed") == Some("keep");
            request.control().evict(&request.target()?, keep_armed).await?;
            Ok(server::status(StatusCode::NO_CONTENT))
        }
        Operation::Nodes => nodes(request.control()),
        Operation::RevokeNode => {
            let was_linked = request.control().revoke_node(request.captures.get(0)).await?;
            json(StatusCode::OK, &json!({ "was_linked": was_linked }))
        }
    }
}

fn stats(control: &Control) -> Answer {
    let stats = control.stats();
    json(
        StatusCode::OK,
        &json!({
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "functions": stats.functions,
            "code_bytes": stats.code_bytes,
            "events_waiting": stats.events,
            "fleet": {
                "functions": stats.fleet.functions,
                "nodes": stats.fleet.nodes,
                "regular": stats.fleet.regular,
                "emergency": stats.fleet.emergency,
                "waiting": stats.fleet.waiting,
                "running": stats.fleet.running,
            },
            "node": {
                "pooled": stats.node.pooled,
                "shaped": stats.node.shaped,
                "armed": stats.node.armed,
                "idle": stats.node.idle,
                "frozen": stats.node.frozen,
                "busy": stats.node.busy,
                "regular": stats.node.regular,
                "emergency": stats.node.emergency,
                "queued": stats.node.queued,
                "snapshots_on_disk": stats.node.snapshots_on_disk,
                "instances_started": stats.node.instances_started,
            },
        }),
    )
}

fn nodes(control: &Control) -> Answer {
    let nodes = control.nodes().into_iter().map(|node| {
        json!({
            "name": node.name,
            "version": node.program,
            "region": node.region,
            "memory_bytes": node.memory_bytes,
            "instances_max": node.instances_max,
            "draining": node.is_draining,
        })
    });
    json(StatusCode::OK, &json!({ "nodes": nodes.collect::<Vec<_>>() }))
}

fn describe(request: &Request<'_>) -> Answer {
    let target = request.target()?;
    let (function, version) = request.control().version(&target)?;
    let configuration = present::configuration(
        request.place(),
        &function,
        &version,
        target.qualifier.as_ref(),
        Detail::Full,
    );
    let calls = request
        .control()
        .recent_calls(&target.name)
        .into_iter()
        .map(|call| {
            let mut shown = handlers::timings(&call);
            shown["request_id"] = json!(call.request_id);
            shown["unix_ms"] = json!(call.unix_ms);
            shown["version"] = json!(call.version.to_string());
            shown["error"] = json!(call.is_error);
            shown
        });
    let calls: Vec<_> = calls.collect();
    json(
        StatusCode::OK,
        &json!({
            "configuration": configuration,
            "unzipped_bytes": version.code.unzipped_bytes,
            "versions": function.published.keys().collect::<Vec<_>>(),
            "aliases": function.shared.aliases.iter()
                .map(|(name, alias)| present::alias(request.place(), &target.name, name, alias))
                .collect::<Vec<_>>(),
            "tags": function.shared.tags,
            "reserved_concurrency": function.shared.reserved_concurrency,
            "calls": calls,
        }),
    )
}

async fn logs(request: &Request<'_>) -> Answer {
    let target = request.target()?;
    let number = |name: &str| match request.query(name) {
        None => Ok(None),
        Some(text) => match text.parse::<u64>() {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(ApiError::validation(format!(
                "The parameter {name} is no number: {text}"
            ))),
        },
    };
    let since = number("since")?;
    let tail = number("tail")?
        .and_then(|lines| usize::try_from(lines).ok())
        .unwrap_or(TAIL_LINES_DEFAULT);
    let control = request.control();
    // The follower starts before the tail is read: a line may come twice, none is missed.
    let follower = match request.query("follow") {
        Some("1" | "true") => Some(control.log_follow(&target.name)?),
        Some(_) | None => None,
    };
    let lines = control
        .log_tail(&target.name, tail.min(TAIL_LINES_MAX), since)
        .await?;
    let newest = lines.last().cloned();
    let first = render(&lines);
    let Some(mut follower) = follower else {
        return Ok(stream(Body::full(first)));
    };
    let (pieces, body) = mpsc::channel(PIECES_QUEUED_MAX);
    let mut stopped = control.stopped();
    tokio::spawn(async move {
        let mut piece = Bytes::from(first);
        let mut repeated = newest;
        loop {
            // An empty line as heartbeat; clients skip it.
            let piece_now = if piece.is_empty() {
                Bytes::from_static(b"\n")
            } else {
                piece
            };
            if pieces.send(piece_now).await.is_err() {
                return;
            }
            let next = tokio::select! {
                next = tokio::time::timeout(FOLLOW_HEARTBEAT, follower.next()) => next,
                _ = stopped.wait_for(|stopped| *stopped) => return,
                () = pieces.closed() => return,
            };
            piece = match next {
                Err(_elapsed) => Bytes::new(),
                Ok(Ok(Some(mut lines))) => {
                    if let Some(newest) = repeated.take()
                        && let Some(at) = lines.iter().rposition(|line| *line == newest)
                    {
                        lines.drain(..=at);
                    }
                    Bytes::from(render(&lines))
                }
                Ok(Ok(None)) => return,
                Ok(Err(error)) => {
                    tracing::error!(%error, cause = ?error.source, "a followed log cannot be read");
                    return;
                }
            };
        }
    });
    Ok(stream(Body::Stream(body)))
}

fn stream(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response
        .headers_mut()
        .insert("content-type", HeaderValue::from_static("application/x-ndjson"));
    response
}

fn render(lines: &[LogLine]) -> String {
    let mut text = String::new();
    for LogLine {
        unix_ms,
        stream,
        message,
    } in lines
    {
        text.push_str(&json!({ "unix_ms": unix_ms, "stream": stream, "message": message }).to_string());
        text.push('\n');
    }
    text
}
