//! How much the machine's processors have to do, as a control plane is told.

use std::{fs::File, os::unix::fs::FileExt, time::Duration};

use tokio::time::{Instant, sleep};

use crate::node::Inner;

/// How long a change of the load goes untold at least, and anything at most while calls run.
const TELL_PERIOD: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// Tasks for each processor up to which one load is like the other.
const LIGHT_PER_CPU: u32 = 2;

/// How much the processors of a node's machine have to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Tasks that run or could run, of whatever program.
    pub runnable: u32,
    /// Processors that the node may use.
    pub cpus: u32,
    /// Calls on the node's instances.
    pub calls: u32,
}

impl Load {
    /// Whether someone should be told who knows another load. A call that is sent counts as a runnable task until the
    /// node tells of it.
    fn is_news_to(self, told: Self) -> bool {
        let light = self.cpus * LIGHT_PER_CPU;
        let tasks = self.runnable.max(light).abs_diff(told.runnable.max(light));
        tasks >= self.cpus || self.calls.abs_diff(told.calls) >= self.cpus
    }
}

/// Counts tasks.
#[derive(Debug)]
pub(crate) struct LoadMeter {
    /// `/proc/loadavg`; `None` where there is none.
    file: Option<File>,
    cpus: u32,
}

impl LoadMeter {
    pub(crate) fn new() -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            file: File::open("/proc/loadavg").ok(),
            cpus: u32::try_from(cpus).unwrap_or(u32::MAX),
        }
    }

    /// Tasks that could run now, but for the one that asks.
    fn runnable(&self) -> Option<u32> {
        let mut text = [0; 128];
        let read = self.file.as_ref()?.read_at(&mut text, 0).ok()?;
        runnable_in(str::from_utf8(&text[..read]).ok()?)
    }
}

/// The fourth field of proc_loadavg(5), `runnable/all`.
fn runnable_in(loadavg: &str) -> Option<u32> {
    let (runnable, _) = loadavg.split(' ').nth(3)?.split_once('/')?;
    Some(runnable.parse::<u32>().ok()?.saturating_sub(1))
}

impl Inner {
    /// Waits, while no call runs or the load is like what was told before; answers with the load then.
    pub(crate) async fn load(&self, told: Option<Load>) -> Load {
        let asked = Instant::now();
        let mut running = self.calls();
        loop {
            // The sender is here.
            let calls = running
                .wait_for(|calls| *calls > 0)
                .await
                .map_or(0, |calls| *calls);
            let waited = asked.elapsed();
            let is_due = |load: &Load| {
                told.is_none_or(|told| {
                    waited >= TELL_PERIOD.1 || waited >= TELL_PERIOD.0 && load.is_news_to(told)
                })
            };
            if let Some(load) = self.load_now(calls).filter(is_due) {
                return load;
            }
            sleep(TELL_PERIOD.0).await;
        }
    }

    fn load_now(&self, calls: usize) -> Option<Load> {
        Some(Load {
            runnable: self.load_meter.runnable()?,
            cpus: self.load_meter.cpus,
            calls: u32::try_from(calls).unwrap_or(u32::MAX),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runnable_tasks_are_read_without_the_reader() {
        assert_eq!(runnable_in("0.20 0.18 0.12 3/80 11206\n"), Some(2));
        assert_eq!(runnable_in("0.20 0.18 0.12 0/80 11206\n"), Some(0));
        for bad in [
            "",
            "0.20 0.18 0.12",
            "0.20 0.18 0.12 x/80 1",
            "0.20 0.18 0.12 3 1",
        ] {
            assert_eq!(runnable_in(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn what_is_news_is_told() {
        let load = |runnable, calls| Load {
            runnable,
            cpus: 4,
            calls,
        };
        // Nothing waits for a processor, or hardly anything.
        assert!(!load(8, 0).is_news_to(load(0, 0)));
        assert!(load(12, 0).is_news_to(load(3, 0)));
        assert!(!load(33, 10).is_news_to(load(30, 8)));
        assert!(load(26, 10).is_news_to(load(30, 10)));
        // Calls that turn out to sleep.
        assert!(load(1, 10).is_news_to(load(1, 6)));
        assert!(load(1, 2).is_news_to(load(1, 6)));
    }
}
