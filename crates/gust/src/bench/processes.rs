//! Processes of this machine: a process with everything that it has started, and what they have used.

use std::{collections::HashMap, fs, time::Duration};

use anyhow::{Context, Result, ensure};

/// A process and its descendants. Those that end in the meantime may be among them.
///
/// # Errors
/// When `/proc` cannot be listed.
pub fn tree(root: u64) -> Result<Vec<u64>> {
    let mut children: HashMap<u64, Vec<u64>> = HashMap::new();
    for entry in fs::read_dir("/proc").context("list /proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if let Some(stat) = Stat::of(pid) {
            children.entry(stat.parent).or_default().push(pid);
        }
    }
    let (mut found, mut pending) = (Vec::new(), vec![root]);
    while let Some(pid) = pending.pop() {
        pending.extend(children.remove(&pid).unwrap_or_default());
        found.push(pid);
    }
    Ok(found)
}

/// Processor time of a process and its descendants, of those that have ended and were waited for, too: in programs, in the
/// kernel for them, and in their guests.
///
/// # Errors
/// When `/proc` cannot be listed, or the process is not there.
pub fn cpu_of_tree(root: u64) -> Result<Duration> {
    ensure!(Stat::of(root).is_some(), "the process {root} is not there");
    let ticks: u64 = tree(root)?
        .into_iter()
        .filter_map(Stat::of)
        .map(|stat| stat.ticks)
        .sum();
    let per_second = rustix::param::clock_ticks_per_second();
    Ok(Duration::from_secs_f64(ticks as f64 / per_second as f64))
}

/// What `/proc/PID/stat` says of a process (proc(5)).
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    parent: u64,
    /// Its own processor time, and that of its children that have ended.
    ticks: u64,
}

impl Stat {
    fn of(pid: u64) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(stat: &str) -> Option<Self> {
        // The name in parentheses may hold anything; the state and the parent follow its end.
        let (_, rest) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        // Fields 14 to 17 of the line; the third is the first here.
        let ticks = fields
            .get(11..15)?
            .iter()
            .map(|field| field.parse::<u64>().ok())
            .sum::<Option<u64>>()?;
        Some(Self {
            parent: fields.get(1)?.parse().ok()?,
            ticks,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read() {
        let line = "77 (a (b) c) S 42 77 77 0 -1 4194304 100 0 0 0 5 6 7 8 20 0 1 0 100 200 300";
        assert_eq!(
            Stat::parse(line),
            Some(Stat {
                parent: 42,
                ticks: 26
            })
        );
        assert_eq!(Stat::parse("77 (a) S"), None);
    }

    #[test]
    fn a_tree_holds_its_children() {
        let own = u64::from(std::process::id());
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let all = tree(own).unwrap();
        assert!(all.contains(&own) && all.contains(&u64::from(child.id())));
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(cpu_of_tree(own).is_ok() && cpu_of_tree(u64::MAX >> 1).is_err());
    }
}
