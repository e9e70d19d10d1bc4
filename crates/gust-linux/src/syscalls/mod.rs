//! Which system calls there are.

mod table;

use crate::kernel::{Cx, Kernel, SysResult};

/// How much of a call is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Support {
    /// As on Linux, as far as one process can tell.
    Full,
    /// All but, or no more than, this.
    Partial(&'static str),
    /// Succeeds and does nothing, since there is nothing that it could do here.
    Accepted(&'static str),
    /// Fails, for this reason.
    Refused(&'static str),
}

/// Answers a call; the arguments are as the guest's registers had them.
pub(crate) type Call = fn(&mut Kernel, &mut Cx<'_>, &[u64; 6]) -> SysResult;

/// One call.
#[derive(Clone, Copy)]
pub(crate) struct SystemCall {
    pub(crate) number: u64,
    pub(crate) name: &'static str,
    pub(crate) support: Support,
    pub(crate) call: Call,
}

/// The entry of a number.
pub(crate) fn find(number: u64) -> Option<&'static SystemCall> {
    let at = table::TABLE
        .binary_search_by_key(&number, |entry| entry.number)
        .ok()?;
    Some(&table::TABLE[at])
}

/// Name of a number, for logs.
pub(crate) fn name(number: u64) -> &'static str {
    find(number).map_or("unknown", |entry| entry.name)
}

/// Number, name and support of every call, for the documentation.
pub fn support() -> impl Iterator<Item = (u64, &'static str, Support)> {
    table::TABLE
        .iter()
        .map(|entry| (entry.number, entry.name, entry.support))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_names_are_linuxs() {
        assert!(table::TABLE.is_sorted_by(|a, b| a.number < b.number));
        for (name, number) in [
            ("read", libc::SYS_read),
            ("futex", libc::SYS_futex),
            ("statx", libc::SYS_statx),
        ] {
            assert_eq!(find(number as u64).map(|entry| entry.name), Some(name));
        }
        assert!(find(100_000).is_none());
    }
}
