//! Memory of a process and of everything that it has started: pages that several share count as parts.

use std::fs;

use anyhow::Result;

use super::processes;

/// Proportional set size of a process and its descendants, in bytes. Those that end in the meantime do not count.
///
/// # Errors
/// When `/proc` cannot be listed.
pub fn of_tree(root: u64) -> Result<u64> {
    Ok(processes::tree(root)?.into_iter().filter_map(of_process).sum())
}

/// Proportional set size of one process, in bytes; `None` when it is not there.
pub fn of_process(pid: u64) -> Option<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_this_process_is_told() {
        assert!(of_tree(std::process::id().into()).unwrap() > 0);
    }
}
