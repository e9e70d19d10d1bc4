//! The functions that are measured: the examples, as they are, with one event.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::{
    package::{self, Package},
    project::Project,
};

/// Entries of the event's document.
const EVENT_ENTRIES: usize = 24;

/// Memory of a function, in MiB: Lambda's default.
const MEMORY_MIB: u32 = 128;

/// Longest run of a function, in seconds. A peer that starts a process with boto3 on a busy machine needs some, and so does a
/// function that waits for a thousand others to be called.
const TIMEOUT_S: u32 = 300;

/// File that a handler's source is in.
const MODULE_FILE: &str = "app.py";

/// A function that is measured.
#[derive(Debug, Clone, Copy)]
pub struct Handler {
    /// Its name, which is its example's.
    pub name: &'static str,
    /// What it stands for.
    pub what: &'static str,
    /// Its source.
    pub source: &'static str,
    /// What of its answer is the same wherever it runs; null when the answer is wrong.
    pub compared: fn(&Value) -> Value,
}

/// json and hashlib: little more than the runtime itself.
pub const PLAIN: Handler = Handler {
    name: "json-hash",
    what: "json and hashlib",
    source: include_str!("../../../../examples/json-hash/app.py"),
    compared: |answer| answer["sha256"].clone(),
};

/// A boto3 client made at import: an initialisation of half a second.
pub const BOTO3: Handler = Handler {
    name: "s3-client",
    what: "boto3 S3 client at import",
    source: include_str!("../../../../examples/s3-client/app.py"),
    // How many operations there are depends on boto3's version, and where they are sent on the server.
    compared: |answer| match answer["operations"].as_u64() {
        Some(count) => json!(count > 0),
        None => Value::Null,
    },
};

impl Handler {
    /// Writes the function's source into a directory that there is not yet.
    pub fn write(&self, dir: &Path) -> Result<()> {
        fs::create_dir_all(dir).with_context(|| format!("make directory {}", dir.display()))?;
        let path = dir.join(MODULE_FILE);
        fs::write(&path, self.source).with_context(|| format!("write {}", path.display()))
    }

    /// The function's package, from the directory that it was written to.
    pub fn package(&self, dir: &Path) -> Result<Package> {
        package::build(dir)
    }

    /// The function under a name of its own.
    pub fn project(&self, name: &str, memory_mode: Option<&str>) -> Project {
        Project {
            name: name.to_owned(),
            handler: "app.handler".to_owned(),
            runtime: "python3.11".to_owned(),
            memory: Some(MEMORY_MIB),
            timeout: Some(TIMEOUT_S),
            description: None,
            environment: [].into(),
            tags: memory_mode
                .map(|mode| ("gust:memory".to_owned(), mode.to_owned()))
                .into_iter()
                .collect(),
        }
    }
}

/// The event that every call brings: a document of a few kilobytes.
pub fn event() -> Value {
    event_of("order")
}

/// Another of the same size, where a wrong answer would be that to the event before.
pub fn another_event() -> Value {
    event_of("offer")
}

fn event_of(kind: &str) -> Value {
    let entries = (0..EVENT_ENTRIES).map(|number| {
        json!({
            "id": number,
            "name": format!("entry {number}"),
            "tags": ["alpha", "beta", format!("gamma-{}", number % 5)],
            "price": number as f64 * 1.25,
        })
    });
    json!({ "kind": kind, "entries": entries.collect::<Vec<_>>() })
}
