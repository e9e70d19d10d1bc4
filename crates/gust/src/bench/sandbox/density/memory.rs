//! Memory of the whole machine, and where it went: what a process alone cannot tell of pages that the kernel holds for it.

use std::fs;

use anyhow::{Context, Result};

/// Kinds of memory that are told apart, as `/proc/meminfo` calls them. `SecPageTables` are KVM's own page tables.
pub const KINDS: [&str; 7] = [
    "AnonPages",
    "Shmem",
    "Slab",
    "PageTables",
    "SecPageTables",
    "KernelStack",
    "Percpu",
];

/// Memory of the machine at one moment, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// What could be given to new programs.
    pub available: u64,
    /// By kind, in the order of [`KINDS`].
    pub kinds: [u64; KINDS.len()],
}

impl Memory {
    /// Now.
    pub fn now() -> Result<Self> {
        Self::parse(&fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?)
    }

    fn parse(text: &str) -> Result<Self> {
        let field = |name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                .and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok())
                .map(|kib| kib << 10)
        };
        Ok(Self {
            available: field("MemAvailable").context("/proc/meminfo does not tell MemAvailable")?,
            // Older kernels do not tell all of them.
            kinds: KINDS.map(|name| field(name).unwrap_or(0)),
        })
    }

    /// What is taken beyond what was taken before, in bytes; less than nothing when something else has let go of more.
    pub fn taken_since(&self, before: &Self) -> f64 {
        before.available as f64 - self.available as f64
    }

    /// The same by kind.
    pub fn kinds_since(&self, before: &Self) -> [f64; KINDS.len()] {
        let mut since = [0.0; KINDS.len()];
        for ((since, now), before) in since.iter_mut().zip(self.kinds).zip(before.kinds) {
            *since = now as f64 - before as f64;
        }
        since
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_told_apart() {
        let text = |available: u64, tables: u64| {
            format!(
                "MemTotal: 100 kB\nMemAvailable:   {available} kB\nPageTables: {tables} kB\nSecPageTables: 7 kB\n"
            )
        };
        let before = Memory::parse(&text(50, 1)).unwrap();
        let after = Memory::parse(&text(30, 4)).unwrap();
        assert_eq!(after.taken_since(&before), 20.0 * 1024.0);
        assert_eq!(before.taken_since(&after), -20.0 * 1024.0);
        let kinds = after.kinds_since(&before);
        assert_eq!((kinds[3], kinds[4]), (3.0 * 1024.0, 0.0));
        assert!(Memory::parse("MemTotal: 1 kB\n").is_err());
        assert!(Memory::now().unwrap().available > 0);
    }
}
