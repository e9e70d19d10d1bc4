//! `gust ls`, `gust describe`, `gust rm`

use std::{process::ExitCode, time::Duration};

use anyhow::Result;
use hyper::Method;
use serde_json::{Value, json};

use super::print;
use crate::{
    cli::{DescribeArgs, ListArgs, Output, RemoveArgs},
    client::{Client, segment},
    output::{bytes, duration, table},
};

/// Pages of a list that are asked for: more functions than anyone has.
const PAGES_MAX: usize = 10_000;

pub(super) async fn list(arguments: ListArgs) -> Result<ExitCode> {
    let client = Client::new(&arguments.server)?;
    let mut functions = Vec::new();
    let mut marker = String::new();
    for _ in 0..PAGES_MAX {
        let mut page = client
            .get(&format!("/2015-03-31/functions?Marker={}", segment(&marker)))
            .await?;
        if let Some(listed) = page["Functions"].as_array_mut() {
            functions.append(listed);
        }
        match page["NextMarker"].as_str() {
            Some(next) => next.clone_into(&mut marker),
            None => break,
        }
    }
    if arguments.output.output == Output::Json {
        print(&format!("{:#}\n", Value::Array(functions)))?;
        return Ok(ExitCode::SUCCESS);
    }
    if functions.is_empty() {
        eprintln!("no functions yet; make one with: gust deploy DIR");
        return Ok(ExitCode::SUCCESS);
    }
    let mut lines = vec![
        [
            "NAME", "RUNTIME", "HANDLER", "MEMORY", "TIMEOUT", "CODE", "CHANGED",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    for function in &functions {
        let text = |name: &str| function[name].as_str().unwrap_or_default().to_owned();
        lines.push(vec![
            text("FunctionName"),
            text("Runtime"),
            text("Handler"),
            format!("{} MB", function["MemorySize"]),
            format!("{} s", function["Timeout"]),
            bytes(function["CodeSize"].as_u64().unwrap_or(0)),
            text("LastModified").chars().take(19).collect(),
        ]);
    }
    print(&table(&lines))?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn describe(arguments: DescribeArgs) -> Result<ExitCode> {
    let client = Client::new(&arguments.server)?;
    let mut path = format!("/_gust/v1/functions/{}", segment(&arguments.name));
    if let Some(qualifier) = &arguments.qualifier {
        path.push_str(&format!("?Qualifier={}", segment(qualifier)));
    }
    let described = client.get(&path).await?;
    if arguments.output.output == Output::Json {
        print(&format!("{described:#}\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let configuration = &described["configuration"];
    let text = |name: &str| configuration[name].as_str().unwrap_or_default();
    let mut lines = vec![
        ["name", text("FunctionName")].map(str::to_owned).to_vec(),
        ["arn", text("FunctionArn")].map(str::to_owned).to_vec(),
        ["runtime", text("Runtime")].map(str::to_owned).to_vec(),
        ["handler", text("Handler")].map(str::to_owned).to_vec(),
        vec!["state".to_owned(), state(configuration)],
        vec!["memory".to_owned(), format!("{} MB", configuration["MemorySize"])],
        vec!["timeout".to_owned(), format!("{} s", configuration["Timeout"])],
        vec![
            "code".to_owned(),
            bytes(configuration["CodeSize"].as_u64().unwrap_or(0)),
        ],
        vec![
            "versions".to_owned(),
            format!(
                "$LATEST {}",
                joined(&described["versions"], |number| number.to_string())
            ),
        ],
        vec!["aliases".to_owned(), joined(&described["aliases"], alias)],
        vec!["tags".to_owned(), described["tags"].to_string()],
    ];
    if !described["reserved_concurrency"].is_null() {
        lines.push(vec![
            "reserved".to_owned(),
            described["reserved_concurrency"].to_string(),
        ]);
    }
    print(&table(&lines))?;
    print(&calls(&described["calls"]))?;
    Ok(ExitCode::SUCCESS)
}

fn state(configuration: &Value) -> String {
    let parts = [
        "State",
        "StateReason",
        "LastUpdateStatus",
        "LastUpdateStatusReason",
    ];
    let parts: Vec<&str> = parts
        .iter()
        .filter_map(|name| configuration[*name].as_str())
        .collect();
    parts.join(", ")
}

fn joined(list: &Value, show: impl Fn(&Value) -> String) -> String {
    list.as_array()
        .into_iter()
        .flatten()
        .map(show)
        .collect::<Vec<_>>()
        .join(" ")
}

fn alias(alias: &Value) -> String {
    let text = |name: &str| alias[name].as_str().unwrap_or_default();
    format!("{}->{}", text("Name"), text("FunctionVersion"))
}

/// The last calls and where their time went.
fn calls(calls: &Value) -> String {
    let calls = calls.as_array().map(Vec::as_slice).unwrap_or_default();
    if calls.is_empty() {
        return "\nno calls yet\n".to_owned();
    }
    let parts = [
        "queue", "worker", "map", "fill", "faults", "boot", "runtime", "handler",
    ];
    let mut head = vec!["\nSTART".to_owned(), "TOTAL".to_owned()];
    head.extend(parts.iter().map(|part| part.to_uppercase()));
    head.push("RESULT".to_owned());
    let mut lines = vec![head];
    for call in calls {
        let time = |name: &str| duration(Duration::from_nanos(call[name].as_u64().unwrap_or(0)));
        let mut line = vec![
            call["start"].as_str().unwrap_or_default().to_owned(),
            time("total_ns"),
        ];
        line.extend(parts.iter().map(|part| time(&format!("{part}_ns"))));
        line.push(
            if call["error"] == json!(true) {
                "failed"
            } else {
                "ok"
            }
            .to_owned(),
        );
        lines.push(line);
    }
    table(&lines)
}

pub(super) async fn remove(arguments: RemoveArgs) -> Result<ExitCode> {
    let client = Client::new(&arguments.server)?;
    for name in &arguments.names {
        let mut path = format!("/2015-03-31/functions/{}", segment(name));
        if let Some(qualifier) = &arguments.qualifier {
            path.push_str(&format!("?Qualifier={}", segment(qualifier)));
        }
        client.send(Method::DELETE, &path, &[], Vec::new()).await?;
        eprintln!("removed {name}");
    }
    Ok(ExitCode::SUCCESS)
}
