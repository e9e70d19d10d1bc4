//! `gust deploy`: a directory becomes a function, or the next state of one.

use std::{
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use base64::{Engine, engine::general_purpose::STANDARD};
use hyper::Method;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use tokio::time::sleep;

use super::print;
use crate::{
    cli::{DeployArgs, Output},
    client::{Client, segment},
    exit::Hinted,
    output::{bytes, duration, spinner},
    package::{self, Package},
    project::{self, Project},
};

/// Role of a function that is deployed from here; nothing assumes it.
const ROLE: &str = "arn:aws:iam::000000000000:role/gust";

/// First and longest pause between two looks at a deployment.
const POLL_FIRST: Duration = Duration::from_millis(5);
const POLL_MAX: Duration = Duration::from_millis(200);

/// Longest wait for a deployment: an initialisation may take ten seconds, and others may be before it.
const DEPLOY_TIMEOUT: Duration = Duration::from_secs(120);

/// What a deployment changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The function is new.
    Created,
    /// It is another one now.
    Updated,
    /// It was the same already.
    Unchanged,
}

impl Change {
    fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Updated => "updated",
            Self::Unchanged => "unchanged",
        }
    }
}

pub(super) async fn run(arguments: DeployArgs) -> Result<ExitCode> {
    let began = Instant::now();
    let project = project::read(&arguments.dir, &arguments.function)?;
    let client = Client::new(&arguments.server)?;
    let bar = spinner(format!("packing {}", arguments.dir.display()));
    let package = package::build(&arguments.dir)?;
    bar.set_message(format!("deploying {}", project.name));
    let change = deploy(&client, &project, &package).await?;
    bar.finish_and_clear();
    let next = format!("gust invoke {} '{{}}'", project.name);
    match arguments.output.output {
        Output::Json => {
            let shown = json!({
                "name": project.name,
                "change": change.word(),
                "runtime": project.runtime,
                "handler": project.handler,
                "files": package.files,
                "package_bytes": package.zip.len(),
                "elapsed_ms": began.elapsed().as_millis() as u64,
                "invoke": next,
            });
            print(&format!("{shown:#}\n"))?;
        }
        Output::Text => {
            let Project {
                name,
                runtime,
                handler,
                ..
            } = &project;
            print(&format!(
                "{name} {} in {}: {runtime}, {handler}, {} files, {}\n\nnext:\n  {next}\n  gust logs {name} -f\n",
                change.word(),
                duration(began.elapsed()),
                package.files,
                bytes(package.zip.len() as u64),
            ))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Makes or updates a function and waits until it is active.
pub async fn deploy(client: &Client, project: &Project, package: &Package) -> Result<Change> {
    let path = function_path(&project.name);
    let present = match client.get(&format!("{path}/configuration")).await {
        Ok(configuration) => Some(configuration),
        Err(error) if error.is_not_found() => None,
        Err(error) => return Err(error.into()),
    };
    let Some(present) = present else {
        create(client, project, package).await?;
        return Ok(Change::Created);
    };
    let mut change = Change::Unchanged;
    let settings = settings_that_differ(project, &present);
    if !settings.is_empty() {
        wait_until_settled(client, &project.name).await?;
        let sent = Value::Object(settings);
        client
            .call(Method::PUT, &format!("{path}/configuration"), &sent)
            .await
            .context("change the settings")?;
        change = Change::Updated;
    }
    update_tags(client, project, &present).await?;
    if present["CodeSha256"].as_str() != Some(&STANDARD.encode(Sha256::digest(&package.zip))) {
        wait_until_settled(client, &project.name).await?;
        update_code(client, &project.name, package).await?;
        change = Change::Updated;
    }
    wait_until_settled(client, &project.name).await?;
    Ok(change)
}

/// Replaces a function's code and waits until it runs.
pub async fn update_code(client: &Client, name: &str, package: &Package) -> Result<()> {
    let path = format!("{}/code", function_path(name));
    let sent = json!({ "ZipFile": STANDARD.encode(&package.zip) });
    client
        .call(Method::PUT, &path, &sent)
        .await
        .context("change the code")?;
    wait_until_settled(client, name).await
}

async fn create(client: &Client, project: &Project, package: &Package) -> Result<()> {
    let mut sent = json!({
        "FunctionName": project.name,
        "Runtime": project.runtime,
        "Role": ROLE,
        "Handler": project.handler,
        "Code": { "ZipFile": STANDARD.encode(&package.zip) },
        "Environment": { "Variables": project.environment },
        "Tags": project.tags,
    });
    for (name, value) in [
        ("MemorySize", project.memory.map(Value::from)),
        ("Timeout", project.timeout.map(Value::from)),
        ("Description", project.description.clone().map(Value::from)),
    ] {
        if let Some(value) = value {
            sent[name] = value;
        }
    }
    client
        .call(Method::POST, "/2015-03-31/functions", &sent)
        .await
        .context("create the function")?;
    wait_until_settled(client, &project.name).await
}

/// Settings of the project that the function does not have; what the project does not state is left alone.
fn settings_that_differ(project: &Project, present: &Value) -> Map<String, Value> {
    let mut wanted = vec![
        ("Runtime", json!(project.runtime)),
        ("Handler", json!(project.handler)),
    ];
    wanted.extend(project.memory.map(|memory| ("MemorySize", json!(memory))));
    wanted.extend(project.timeout.map(|timeout| ("Timeout", json!(timeout))));
    wanted.extend(
        project
            .description
            .as_ref()
            .map(|text| ("Description", json!(text))),
    );
    let mut differ: Map<String, Value> = wanted
        .into_iter()
        .filter(|(name, value)| present[*name] != *value)
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
    let variables = json!(project.environment);
    let none = json!({});
    let before = present["Environment"].get("Variables").unwrap_or(&none);
    if *before != variables {
        differ.insert("Environment".to_owned(), json!({ "Variables": variables }));
    }
    differ
}

async fn update_tags(client: &Client, project: &Project, present: &Value) -> Result<()> {
    if project.tags.is_empty() {
        return Ok(());
    }
    let arn = present["FunctionArn"].as_str().unwrap_or_default();
    let path = format!("/2017-03-31/tags/{}", segment(arn));
    let sent = json!({ "Tags": project.tags }).to_string();
    client
        .send(Method::POST, &path, &[("content-type", "application/json")], sent)
        .await
        .context("set the tags")?;
    Ok(())
}

/// Waits until a function is neither being created nor being changed.
pub async fn wait_until_settled(client: &Client, name: &str) -> Result<()> {
    let path = format!("{}/configuration", function_path(name));
    let began = Instant::now();
    let mut pause = POLL_FIRST;
    loop {
        let configuration = client.get(&path).await?;
        let text = |member: &str| configuration[member].as_str().unwrap_or_default().to_owned();
        match (text("State").as_str(), text("LastUpdateStatus").as_str()) {
            ("Failed", _) => return Err(failed(name, &text("StateReason"))),
            ("Active", "Failed") => return Err(failed(name, &text("LastUpdateStatusReason"))),
            ("Active", "Successful") => return Ok(()),
            _ => {}
        }
        if began.elapsed() > DEPLOY_TIMEOUT {
            bail!("{name} is still not active after {} s", DEPLOY_TIMEOUT.as_secs());
        }
        sleep(pause).await;
        pause = (pause * 2).min(POLL_MAX);
    }
}

fn failed(name: &str, reason: &str) -> anyhow::Error {
    let message = format!("{name} could not be deployed: {reason}");
    Hinted {
        message,
        hint: format!("gust logs {name} may say more; gust doctor checks the machine"),
    }
    .into()
}

fn function_path(name: &str) -> String {
    format!("/2015-03-31/functions/{}", segment(name))
}

/// Directory as people see it.
pub(super) fn shown(dir: &Path) -> String {
    dir.canonicalize()
        .unwrap_or_else(|_| dir.to_owned())
        .display()
        .to_string()
}
