//! What every measurement inside this process needs around a guest: its world, its events, its answers, its image.

use std::{
    fs::File,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use gust_image::{
    Tree,
    build::directory::{self, Ownership},
};
use gust_worker::{
    kvm::{Heard, Outside, Sandbox},
    protocol::{Identity, InvokeSpec, WorkerTimings},
    runtime_api::Said,
};
use serde_json::Value;

/// Times that a guest may speak without answering.
const SAID_MAX: usize = 10_000;

/// Runs a guest until it waits for its next event.
pub fn until_waits(sandbox: &mut Sandbox) -> Result<()> {
    for _ in 0..SAID_MAX {
        match sandbox.run()? {
            Heard::Said(Said::Waits) => return Ok(()),
            Heard::Log => drop(sandbox.take_log()),
            Heard::Said(Said::InitError(document)) => {
                bail!("the runtime reports {}", String::from_utf8_lossy(&document))
            }
            other @ (Heard::Said(Said::Response(_) | Said::Error(_) | Said::TooLarge(_))
            | Heard::Ended(_)
            | Heard::Outside(_)
            | Heard::Stuck) => {
                bail!("the guest does not wait for an event: {other:?}")
            }
        }
    }
    bail!("the guest speaks on and on")
}

/// Sends an event, and takes the answer's bytes. `n` tells the request from others.
pub fn deliver(sandbox: &mut Sandbox, n: u64, event: Vec<u8>) -> Result<Vec<u8>> {
    let spec = InvokeSpec {
        request_id: format!("00000000-0000-0000-0000-{n:012}"),
        deadline_unix_ms: u64::MAX >> 12,
        function_arn: "arn:aws:lambda:us-east-1:000000000000:function:measured".to_owned(),
        trace_id: String::new(),
        client_context: String::new(),
    };
    sandbox.deliver(spec, event)?;
    for _ in 0..SAID_MAX {
        match sandbox.run()? {
            Heard::Said(Said::Response(body)) => return Ok(body),
            Heard::Said(Said::Waits) => {}
            Heard::Log => drop(sandbox.take_log()),
            Heard::Said(Said::Error(document) | Said::InitError(document)) => {
                bail!("the function failed: {}", String::from_utf8_lossy(&document))
            }
            other @ (Heard::Said(Said::TooLarge(_)) | Heard::Ended(_) | Heard::Outside(_) | Heard::Stuck) => {
                bail!("the guest does not answer: {other:?}")
            }
        }
    }
    bail!("the guest speaks on and on")
}

/// A worker's timings in the words of the server's.
pub fn timings(timings: &WorkerTimings) -> Value {
    serde_json::json!({
        "map_ns": timings.map_ns,
        "fill_ns": timings.fill_ns,
        "faults_ns": timings.faults_ns,
        "runtime_ns": timings.runtime_ns,
        "handler_ns": timings.handler_ns,
    })
}

/// The world of a guest.
pub fn outside() -> Outside {
    Outside::new(File::open("/proc/self/statm").ok())
}

/// An identity of its own for each number.
pub fn identity(n: u64) -> Identity {
    let mut seed = [3; 32];
    seed[..8].copy_from_slice(&n.to_le_bytes());
    Identity {
        instance_id: n.to_string(),
        seed,
    }
}

/// Another descriptor of a file.
pub fn duplicate(file: &OwnedFd) -> Result<OwnedFd> {
    file.as_fd()
        .try_clone_to_owned()
        .context("duplicate a descriptor")
}

/// An image of what is in a directory, written into another.
pub fn image_of(source: &Path, dir: &Path) -> Result<OwnedFd> {
    let mut tree = Tree::new(dir).context("make an image")?;
    directory::add(&mut tree, source, b"", Ownership::Root)?;
    let path = dir.join("image.gimg");
    gust_image::write(&tree, b"{}", &path)?;
    Ok(File::open(&path)
        .with_context(|| format!("open {}", path.display()))?
        .into())
}

/// Anonymous memory of this process, in bytes: what it has of its own.
pub fn anonymous_bytes() -> Result<u64> {
    let rollup =
        std::fs::read_to_string("/proc/self/smaps_rollup").context("read /proc/self/smaps_rollup")?;
    let kib = rollup
        .lines()
        .find_map(|line| line.strip_prefix("Anonymous:"))
        .and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok())
        .context("/proc/self/smaps_rollup does not tell anonymous memory")?;
    Ok(kib << 10)
}

/// Median of durations of which there is at least one.
pub fn median(samples: &[Duration]) -> Option<Duration> {
    crate::bench::stats::Summary::of(samples).map(|summary| summary.p50)
}
