//! Carries faults out when their schedule says.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use gust_replay::chaos::{Fault, FaultKind, Injected};
use rustix::{
    io::Errno,
    process::{Pid, Signal, kill_process},
};
use tokio::task::JoinSet;

use super::{super::driver::nanos, lab::Lab};
use crate::client::Client;

/// Longest time for a cluster to have all its nodes again after a fault is healed, and the pause between two looks.
const WHOLE_LIMIT: Duration = Duration::from_secs(60);
const WHOLE_PAUSE: Duration = Duration::from_millis(10);

/// Waits until the fleet has so many nodes; answers whether it has come to that in time.
pub async fn whole(client: &Client, nodes: u32, limit: Duration) -> Result<Option<()>> {
    let began = Instant::now();
    while began.elapsed() < limit {
        // A server that is killed meanwhile by another fault is asked again.
        if let Ok(stats) = client.get("/_gust/v1/stats").await
            && stats["fleet"]["nodes"].as_u64() == Some(u64::from(nodes))
        {
            return Ok(Some(()));
        }
        tokio::time::sleep(WHOLE_PAUSE).await;
    }
    Ok(None)
}

/// Carries faults out, and tells in order of their begin what was done when.
pub async fn carry_out(
    lab: Arc<Lab>,
    client: Client,
    faults: Vec<Fault>,
    began: Instant,
) -> Result<Vec<Injected>> {
    let mut running = JoinSet::new();
    let nodes = lab.node_count() + 1;
    for fault in faults {
        let injecting = Injecting {
            lab: Arc::clone(&lab),
            client: client.clone(),
            nodes,
            began,
            fault,
        };
        running.spawn(injecting.run());
    }
    let mut done = Vec::new();
    while let Some(injected) = running.join_next().await {
        done.push(injected.context("carry a fault out")??);
    }
    done.sort_by_key(|injected| injected.began_ns);
    Ok(done)
}

struct Injecting {
    lab: Arc<Lab>,
    client: Client,
    nodes: u32,
    began: Instant,
    fault: Fault,
}

impl Injecting {
    async fn run(self) -> Result<Injected> {
        let fault = self.fault;
        let words = format!(
            "{} of node {} at {} ms",
            fault.kind.word(),
            fault.node,
            fault.at_ns / 1_000_000
        );
        self.until(fault.at_ns).await;
        let began_ns = nanos(self.began.elapsed());
        let workers = self
            .blocking(begin)
            .await
            .with_context(|| format!("begin {words}"))?;
        let done_ns = nanos(self.began.elapsed());
        self.until(fault.heals_ns).await;
        self.blocking(heal)
            .await
            .with_context(|| format!("heal {words}"))?;
        let healed_ns = nanos(self.began.elapsed());
        let whole = whole(&self.client, self.nodes, WHOLE_LIMIT).await?;
        Ok(Injected {
            fault,
            began_ns,
            done_ns,
            healed_ns,
            whole_ns: whole.map(|()| nanos(self.began.elapsed())),
            workers,
        })
    }

    async fn until(&self, moment_ns: u64) {
        let moment = self.began + Duration::from_nanos(moment_ns);
        tokio::time::sleep_until(moment.into()).await;
    }

    async fn blocking<T: Send + 'static>(&self, action: fn(&Lab, Fault) -> Result<T>) -> Result<T> {
        let (lab, fault) = (Arc::clone(&self.lab), self.fault);
        tokio::task::spawn_blocking(move || action(&lab, fault))
            .await
            .context("it was cut short")?
    }
}

/// Does what a fault says; how many workers were killed.
fn begin(lab: &Lab, fault: Fault) -> Result<u32> {
    match fault.kind {
        FaultKind::Worker => return kill_workers(lab, fault),
        FaultKind::Agent => lab.kill_agent(fault.node)?,
        FaultKind::Control => lab.kill_server()?,
        FaultKind::Silence => lab.network(fault.node)?.disconnect(false)?,
        FaultKind::Cut => lab.network(fault.node)?.disconnect(true)?,
    }
    Ok(0)
}

fn heal(lab: &Lab, fault: Fault) -> Result<()> {
    match fault.kind {
        FaultKind::Worker => Ok(()),
        FaultKind::Agent => lab.start_agent(fault.node),
        FaultKind::Control => lab.start_server(),
        FaultKind::Silence | FaultKind::Cut => lab.network(fault.node)?.connect(),
    }
}

fn kill_workers(lab: &Lab, fault: Fault) -> Result<u32> {
    let all = lab.workers(fault.node)?;
    let chosen = match fault.is_all {
        true => all.as_slice(),
        false => {
            let at = (fault.pick * all.len() as f64) as usize;
            all.get(at..=at).unwrap_or_default()
        }
    };
    for worker in chosen {
        let pid = i32::try_from(*worker).ok().and_then(Pid::from_raw);
        match kill_process(pid.context("a process has no id")?, Signal::KILL) {
            // It may have ended by itself.
            Ok(()) | Err(Errno::SRCH) => {}
            Err(error) => return Err(error).context("kill a worker"),
        }
    }
    Ok(u32::try_from(chosen.len()).unwrap_or(u32::MAX))
}
