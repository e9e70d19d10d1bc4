//! `gust logs`

use std::process::ExitCode;

use anyhow::{Context, Result};
use gust_control::clock::{self, Utc};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::Value;

use super::print;
use crate::{
    cli::{LogsArgs, Output},
    client::{Client, segment},
};

/// Longest line that is put together from pieces.
const LINE_BYTES_MAX: usize = 4 << 20;

pub(super) async fn run(arguments: LogsArgs) -> Result<ExitCode> {
    let client = Client::new(&arguments.server)?;
    let mut path = format!(
        "/_gust/v1/functions/{}/logs?tail={}",
        segment(&arguments.name),
        arguments.lines
    );
    if let Some(age) = arguments.since {
        let since = clock::unix_ms().saturating_sub(u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
        path.push_str(&format!("&since={since}"));
    }
    if arguments.follow {
        path.push_str("&follow=1");
    }
    let body = client.stream(&path).await?;
    let output = arguments.output.output;
    each_line(body, |line| match output {
        Output::Json => print(&format!("{line}\n")),
        Output::Text => print(&shown(line)?),
    })
    .await?;
    Ok(ExitCode::SUCCESS)
}

/// Calls `take` with every line of a body that comes in pieces.
pub(super) async fn each_line(mut body: Incoming, mut take: impl FnMut(&str) -> Result<()>) -> Result<()> {
    let mut partial = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.context("read the log")?.into_data() else {
            continue;
        };
        partial.extend_from_slice(&data);
        let Some(end) = partial.iter().rposition(|byte| *byte == b'\n') else {
            anyhow::ensure!(
                partial.len() <= LINE_BYTES_MAX,
                "the server sent a line without end"
            );
            continue;
        };
        let rest = partial.split_off(end + 1);
        for line in String::from_utf8_lossy(&partial)
            .lines()
            .filter(|line| !line.is_empty())
        {
            take(line)?;
        }
        partial = rest;
    }
    Ok(())
}

/// A line for people.
pub(super) fn shown(line: &str) -> Result<String> {
    let line: Value = serde_json::from_str(line).context("read a line of the log")?;
    let time = Utc::from_unix_ms(line["unix_ms"].as_u64().unwrap_or(0)).iso8601();
    Ok(format!(
        "{time}Z  {}\n",
        line["message"].as_str().unwrap_or_default()
    ))
}
