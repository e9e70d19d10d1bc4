//! Memory of a process and of everything that it has started: pages that several share count as parts.

use std::{collections::HashMap, fs};

use anyhow::{Context, Result};

/// Proportional set size of a process and its descendants, in bytes. Those that end in the meantime do not count.
///
/// # Errors
/// When `/proc` cannot be listed.
pub fn of_tree(root: u64) -> Result<u64> {
    let mut children: HashMap<u64, Vec<u64>> = HashMap::new();
    for entry in fs::read_dir("/proc").context("list /proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if let Some(parent) = parent_of(pid) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let (mut bytes, mut pending) = (0, vec![root]);
    while let Some(pid) = pending.pop() {
        bytes += of_process(pid).unwrap_or(0);
        pending.extend(children.remove(&pid).unwrap_or_default());
    }
    Ok(bytes)
}

fn parent_of(pid: u64) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; the state and the parent follow its end.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(1)?.parse().ok()
}

fn of_process(pid: u64) -> Option<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_holds_its_children() {
        let alone = of_tree(std::process::id().into()).unwrap();
        assert!(alone > 0);
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        assert_eq!(parent_of(child.id().into()), Some(std::process::id().into()));
        drop(child.stdin.take());
        child.wait().unwrap();
    }
}
