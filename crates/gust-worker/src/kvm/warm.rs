//! The worker's own program, brought into its page tables ahead.
//!
//! A worker is a fork of the zygote, and a fork does not take the page-table entries of mapped files along: each page of code
//! would cost a fault of its own in the first call, a dozen of them 0.1 ms where memory is virtual itself.

#![expect(
    unsafe_code,
    reason = "advises the kernel on mappings of the program's own file"
)]

use std::{fs, io, os::unix::fs::MetadataExt};

use rustix::mm::{Advice, madvise};

/// Most mappings that are looked at.
const MAPPINGS_MAX: usize = 1000;

/// Brings the program's code and constants in; what is written stays as it is. Nothing depends on its success.
pub(super) fn own_program() {
    if let Ok(mappings) = mappings_of_program() {
        for (start, bytes) in mappings {
            // SAFETY: the mapping is the program's own and stays; reading its pages in changes nothing in them.
            let _ = unsafe { madvise(start as *mut _, bytes, Advice::LinuxPopulateRead) };
        }
    }
}

/// Start and length of the mappings of this program's file that cannot be written.
fn mappings_of_program() -> io::Result<Vec<(usize, usize)>> {
    let inode = fs::metadata("/proc/self/exe")?.ino();
    let maps = fs::read_to_string("/proc/self/maps")?;
    Ok(read_only_mappings(&maps, inode))
}

/// Lines of `/proc/self/maps` (proc(5)): `start-end rights offset device inode path`.
fn read_only_mappings(maps: &str, inode: u64) -> Vec<(usize, usize)> {
    let mapping = |line: &str| {
        let mut fields = line.split_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let rights = fields.next()?;
        let of: u64 = fields.nth(2)?.parse().ok()?;
        let start = usize::from_str_radix(start, 16).ok()?;
        let end = usize::from_str_radix(end, 16).ok()?;
        (of == inode && rights.starts_with("r-")).then(|| (start, end.saturating_sub(start)))
    };
    maps.lines().take(MAPPINGS_MAX).filter_map(mapping).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_and_constants_of_the_program_are_found() {
        let maps = "\
55a000000000-55a000001000 r--p 00000000 08:01 77    /bin/program
55a000001000-55a000004000 r-xp 00001000 08:01 77    /bin/program
55a000004000-55a000005000 rw-p 00004000 08:01 77    /bin/program
7f0000000000-7f0000002000 r-xp 00000000 08:01 78    /lib/other
7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0     [stack]
";
        let expected = [(0x55a0_0000_0000, 0x1000), (0x55a0_0000_1000, 0x3000)];
        assert_eq!(read_only_mappings(maps, 77), expected);
    }

    #[test]
    fn the_running_program_is_among_its_mappings() {
        let here = own_program as fn() as usize;
        let mappings = mappings_of_program().unwrap();
        assert!(
            mappings
                .iter()
                .any(|(start, bytes)| (*start..start + bytes).contains(&here))
        );
        own_program();
    }
}
