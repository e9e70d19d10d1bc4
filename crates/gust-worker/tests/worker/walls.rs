//! A worker's walls as the host's kernel shows them from outside, while its guest runs.

use std::{collections::BTreeMap, fs, path::PathBuf};

use libtest_mimic::Failed;

use crate::{
    equal,
    host::{As, Worker},
    text,
};

/// Most descriptors of a worker that serves a guest: its sockets, its images and those of KVM.
const DESCRIPTORS_MAX: usize = 24;

/// Fields of `/proc/PID/status`.
fn status(pid: i32) -> Result<BTreeMap<String, String>, Failed> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let fields = status.lines().filter_map(|line| line.split_once(':'));
    Ok(fields
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect())
}

fn namespace(pid: &str, kind: &str) -> Result<PathBuf, Failed> {
    Ok(fs::read_link(format!("/proc/{pid}/ns/{kind}"))?)
}

pub fn hold_from_outside(who: As) -> Result<(), Failed> {
    let mut worker = Worker::started(who, "echo")?;
    equal(text(&worker.invoke(b"1")?), "1".to_owned())?;
    let mut pids = worker.guest_pids()?;
    pids.push(worker.pid());
    for pid in pids {
        check(who, pid, pid == worker.pid()).map_err(|error| format!("process {pid}: {error:?}"))?;
    }
    equal(text(&worker.invoke(b"2")?), "2".to_owned())
}

fn check(who: As, pid: i32, is_worker: bool) -> Result<(), Failed> {
    let status = status(pid)?;
    let field = |name: &str| status.get(name).map(String::as_str).unwrap_or_default();
    equal(field("Seccomp"), "2")?;
    equal(field("NoNewPrivs"), "1")?;
    // Those of a supervisor are in a user namespace of its own, and no more than to signal its guest (bit 5).
    let effective = u64::from_str_radix(field("CapEff"), 16)?;
    let bounds = if is_worker && who != As::Vm { 1 << 5 } else { 0 };
    equal(effective & !bounds, 0)?;
    for set in ["CapInh", "CapAmb"] {
        equal(field(set), "0000000000000000")?;
    }
    if who != As::Nobody {
        let users: Vec<&str> = field("Uid")
            .split_whitespace()
            .chain(field("Gid").split_whitespace())
            .collect();
        equal(users.iter().all(|user| *user != "0" && *user == users[0]), true)
            .map_err(|_| format!("{users:?}"))?;
        equal(field("Groups"), "")?;
    }
    for kind in ["pid", "mnt", "net", "ipc", "uts"] {
        equal(
            namespace(&pid.to_string(), kind)? == namespace("self", kind)?,
            false,
        )
        .map_err(|_| format!("the {kind} namespace is the host's"))?;
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root sees a worker's files and mappings");
        return Ok(());
    }
    if is_worker && who == As::Vm {
        equal(fs::read_dir(format!("/proc/{pid}/root"))?.count(), 0)?;
    }
    if is_worker {
        descriptors(pid)?;
    }
    // Code is never written, and what is written is never code.
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let mixed: Vec<&str> = maps.lines().filter(|line| line.contains(" rwx")).collect();
    match mixed.is_empty() {
        true => Ok(()),
        false => Err(format!("mappings that are written and run: {mixed:?}").into()),
    }
}

/// Nothing is open but sockets, files without a name on the host, what the node handed in, KVM, and what this process says
/// its words to.
fn descriptors(pid: i32) -> Result<(), Failed> {
    let mut open = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        open.push(fs::read_link(entry?.path())?.to_string_lossy().into_owned());
    }
    equal(open.len() <= DESCRIPTORS_MAX, true).map_err(|_| format!("{open:?}"))?;
    let own: Vec<String> = (0..3)
        .filter_map(|n| fs::read_link(format!("/proc/self/fd/{n}")).ok())
        .map(|path| path.to_string_lossy().into_owned())
        .collect();
    // Directories of images are handed to a supervisor; a file of the host by any other name is not.
    let allowed = |name: &String| {
        own.contains(name)
            || name.starts_with("socket:")
            || name.starts_with("pipe:")
            || name.starts_with("anon_inode:")
            || name.starts_with("/memfd:")
            || name == "/dev/null"
            // Counters of the memory of its own, and of its guest.
            || name.ends_with("/statm")
            || name.ends_with("/status")
            || name.ends_with(".gimg")
            || name.contains("(deleted)")
    };
    let others: Vec<&String> = open.iter().filter(|name| !allowed(name)).collect();
    match others.is_empty() {
        true => Ok(()),
        false => Err(format!("open: {others:?}").into()),
    }
}
