//! What a server holds and uses, looked at once a second.
//!
//! Instances and queues are what the server says. Memory and processor time are read from `/proc` where the server runs on this machine: of
//! all its processes but its own (instances, pooled workers, the process that makes them), each page that several share counted in parts.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use gust_replay::Sample;
use serde_json::Value;
use tokio::sync::watch;

use crate::{
    bench::{memory, processes},
    client::Client,
};

/// Time between two samples.
const PERIOD: Duration = Duration::from_secs(1);

/// Samples of a run at most: more than eleven days.
const SAMPLES_MAX: usize = 1_000_000;

/// Looks at a server.
#[derive(Debug)]
pub struct Sampler {
    client: Client,
    /// The server's process, where it runs here.
    pid: Option<u64>,
    began: Instant,
    /// Processor time that handlers were asked to use in calls that have ended, in nanoseconds.
    handlers_ns: Arc<AtomicU64>,
}

impl Sampler {
    /// Of a server; `began` is the begin of the run.
    pub async fn new(client: Client, began: Instant, handlers_ns: Arc<AtomicU64>) -> Result<Self> {
        let stats = client.get("/_gust/v1/stats").await?;
        let pid = stats["pid"].as_u64().filter(|pid| is_gust(*pid));
        Ok(Self {
            client,
            pid,
            began,
            handlers_ns,
        })
    }

    /// Whether memory and processor time can be read.
    pub fn reads_processes(&self) -> bool {
        self.pid.is_some()
    }

    /// Takes samples until `stop` becomes true, and one at the end.
    pub async fn run(self, mut stop: watch::Receiver<bool>) -> Result<Vec<Sample>> {
        let mut samples = vec![self.sample().await?];
        let mut interval = tokio::time::interval_at(tokio::time::Instant::now() + PERIOD, PERIOD);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            let stopped = tokio::select! {
                _ = interval.tick() => false,
                _ = stop.wait_for(|stop| *stop) => true,
            };
            if stopped || samples.len() < SAMPLES_MAX {
                samples.push(self.sample().await?);
            }
            if stopped {
                return Ok(samples);
            }
        }
    }

    async fn sample(&self) -> Result<Sample> {
        let stats = self
            .client
            .get("/_gust/v1/stats")
            .await
            .context("read the server's statistics")?;
        let (memory_bytes, cpu_ns) = match self.pid {
            None => (0, 0),
            Some(pid) => tokio::task::spawn_blocking(move || used(pid))
                .await
                .context("read what the server uses")??,
        };
        let handlers_ns = self.handlers_ns.load(Ordering::Relaxed);
        Ok(Sample {
            at_ns: u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX),
            memory_bytes,
            cpu_ns,
            overhead_cpu_ns: cpu_ns.saturating_sub(handlers_ns),
            ..counts(&stats)
        })
    }
}

/// What the server says: by track where it has tracks, otherwise everything it holds is regular.
fn counts(stats: &Value) -> Sample {
    let number = |part: &str, name: &str| {
        let value = stats[part][name].as_u64()?;
        u32::try_from(value).ok()
    };
    let node = |name: &str| number("node", name).unwrap_or(0);
    let regular = number("fleet", "regular").or_else(|| number("node", "regular"));
    let emergency = number("fleet", "emergency").or_else(|| number("node", "emergency"));
    Sample {
        regular: regular.unwrap_or_else(|| node("idle") + node("frozen") + node("busy")),
        emergency: emergency.unwrap_or(0),
        busy: node("busy"),
        queued: number("fleet", "waiting").unwrap_or_else(|| node("queued")),
        ..Sample::default()
    }
}

/// The process is on this machine, and is a program called as this one.
fn is_gust(pid: u64) -> bool {
    let name = |pid: &str| fs::read_to_string(format!("/proc/{pid}/comm")).ok();
    let ours = name("self");
    ours.is_some() && name(&pid.to_string()) == ours
}

/// Memory of a server's instances, in bytes, and processor time of all of it, in nanoseconds.
fn used(pid: u64) -> Result<(u64, u64)> {
    let cpu = processes::cpu_of_tree(pid)?;
    let all = memory::of_tree(pid)?;
    let own = memory::of_process(pid).unwrap_or(0);
    let cpu_ns = u64::try_from(cpu.as_nanos()).unwrap_or(u64::MAX);
    Ok((all.saturating_sub(own), cpu_ns))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn instances_are_counted_by_track_where_there_are_tracks() {
        let old = json!({ "node": { "idle": 2, "frozen": 1, "busy": 3, "queued": 4 } });
        let sample = counts(&old);
        assert_eq!(
            (sample.regular, sample.emergency, sample.busy, sample.queued),
            (6, 0, 3, 4)
        );
        let new = json!({
            "fleet": { "regular": 5, "emergency": 2, "waiting": 9 },
            "node": { "idle": 2, "busy": 3, "queued": 0 },
        });
        let sample = counts(&new);
        assert_eq!(
            (sample.regular, sample.emergency, sample.busy, sample.queued),
            (5, 2, 3, 9)
        );
    }
}
