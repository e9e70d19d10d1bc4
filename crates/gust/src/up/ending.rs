//! How a server ends: by a signal, or because another one has taken over.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use gust_control::Control;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{
    handover::{Served, Taken},
    nodes::ServedNodes,
};

/// Exit code after a second signal.
const INTERRUPTED: i32 = 130;

/// What asks a server to end.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From now on they are waited for, and do not end the process by themselves.
    pub fn new() -> Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("listen for SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("listen for SIGINT")?,
        })
    }

    /// Waits for the next one.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Does something to its end, unless a signal comes: then the process ends.
    async fn or_exit<T>(mut self, work: impl Future<Output = T>) -> T {
        tokio::select! {
            done = work => done,
            () = self.next() => std::process::exit(INTERRUPTED),
        }
    }
}

/// Takes no more calls and waits for those that run.
pub async fn stop(control: &Control, signals: Signals, grace: Duration, quiet: bool) {
    if !quiet {
        let seconds = grace.as_secs();
        eprintln!("stopping; running calls get {seconds} s (a second signal ends them)");
    }
    signals.or_exit(control.stop(grace)).await;
}

/// Another process serves: finishes what runs here.
pub async fn retire(
    taken: Taken,
    served: &Served,
    nodes: Option<&ServedNodes>,
    signals: Signals,
    grace: Duration,
    quiet: bool,
) {
    let (pid, pause_ms) = (taken.pid, taken.pause.as_secs_f64() * 1000.0);
    tracing::info!(pid, pause_ms, "another process has taken over");
    if !quiet {
        let seconds = grace.as_secs();
        eprintln!(
            "process {pid} has taken over, requests waited for {pause_ms:.1} ms; running calls get {seconds} s (a signal \
             ends them)"
        );
    }
    let began = Instant::now();
    let finishing = async {
        let letting_go = async {
            if let Some(nodes) = nodes {
                served.control.leave_nodes(grace).await;
                nodes.let_go(grace.saturating_sub(began.elapsed())).await;
            }
        };
        tokio::join!(taken.finish(&served.doors, grace), letting_go);
        served.control.stop(grace.saturating_sub(began.elapsed())).await;
    };
    signals.or_exit(finishing).await;
}
