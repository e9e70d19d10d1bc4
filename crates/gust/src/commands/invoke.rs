//! `gust invoke`

use std::{io::Read, process::ExitCode};

use anyhow::{Context, Result};
use base64::{Engine, engine::general_purpose::STANDARD};
use hyper::Method;
use serde_json::{Value, json};

use super::print;
use crate::{
    cli::{InvokeArgs, Output},
    client::{Client, segment},
    exit,
};

pub(super) async fn run(arguments: InvokeArgs) -> Result<ExitCode> {
    let payload = payload(&arguments.payload)?;
    let client = Client::new(&arguments.server)?;
    let mut path = format!("/2015-03-31/functions/{}/invocations", segment(&arguments.name));
    if let Some(qualifier) = &arguments.qualifier {
        path.push_str(&format!("?Qualifier={}", segment(qualifier)));
    }
    let mut headers = Vec::new();
    if arguments.asynchronous {
        headers.push(("x-amz-invocation-type", "Event"));
    }
    if arguments.tail {
        headers.push(("x-amz-log-type", "Tail"));
    }
    let answer = client.send(Method::POST, &path, &headers, payload).await?;
    let failed = answer.header("x-amz-function-error").is_some();
    let tail = answer
        .header("x-amz-log-result")
        .and_then(|text| STANDARD.decode(text).ok());
    let tail = tail.map(|tail| String::from_utf8_lossy(&tail).into_owned());
    let request_id = answer.header("x-amzn-requestid").unwrap_or_default();
    let output = arguments.output.output;
    match output {
        Output::Json => {
            let text = String::from_utf8_lossy(&answer.body);
            let payload = serde_json::from_str(&text).unwrap_or_else(|_| Value::String(text.into_owned()));
            let shown = json!({
                "request_id": request_id,
                "status": answer.status.as_u16(),
                "version": answer.header("x-amz-executed-version"),
                "failed": failed,
                "payload": if answer.body.is_empty() { Value::Null } else { payload },
                "log": tail,
            });
            print(&format!("{shown:#}\n"))?;
        }
        Output::Text => {
            if let Some(tail) = tail {
                eprint!("{tail}");
            }
            if arguments.asynchronous {
                eprintln!("accepted as {request_id}");
            } else {
                print(&format!("{}\n", String::from_utf8_lossy(&answer.body)))?;
            }
        }
    }
    if failed {
        if output == Output::Text {
            eprintln!("error: the function failed");
            eprintln!("hint: gust logs {}", arguments.name);
        }
        return Ok(ExitCode::from(exit::FUNCTION_ERROR));
    }
    Ok(ExitCode::SUCCESS)
}

/// The event: as it is, from a file, or from standard input.
fn payload(text: &str) -> Result<Vec<u8>> {
    if text == "-" {
        let mut payload = Vec::new();
        std::io::stdin()
            .read_to_end(&mut payload)
            .context("read the event from standard input")?;
        return Ok(payload);
    }
    match text.strip_prefix('@') {
        Some(path) => std::fs::read(path).with_context(|| format!("read the event from {path}")),
        None => Ok(text.as_bytes().to_vec()),
    }
}
