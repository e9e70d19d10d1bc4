//! Control groups of workers, versions 1 and 2: bounds of memory, processor time and processes.
//!
//! The node makes one group for each worker ahead, and writes the bounds when the worker is given a function. What the
//! host does not allow is reported and left out; a worker then runs without that bound.
//!
//! ```text
//!  this process's group / gust-<process id>-<process namespace>-<n> / worker-<n>
//! ```
//!
//! Groups are removed when they are dropped; those of a node that was killed are removed by the next one. A node holds a lock
//! on its group, which ends with it however it ends: process ids say nothing to a node in another process namespace.

mod mounts;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

pub use mounts::Controller;
use mounts::Place;

/// Prefix of a node's group.
const NODE_PREFIX: &str = "gust-";

/// Times that a node makes its group at most.
const MAKES_MAX: u32 = 8;

/// Period over which processor time is counted, in microseconds.
const CPU_PERIOD_US: u64 = 100_000;

/// Bounds of one worker and its guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupLimits {
    /// Memory, in bytes, of all processes and of files in memory.
    pub memory_bytes: u64,
    /// Processors' worth of time.
    pub cpus: u32,
    /// Processes and threads.
    pub pids: u32,
}

/// Which version a hierarchy is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

/// The groups of one node.
#[derive(Debug)]
pub struct Groups {
    /// Name of the node's groups, unlike any other node's on the machine.
    name: String,
    /// The node's group for each controller that can be used.
    nodes: BTreeMap<Controller, (Version, PathBuf)>,
    /// Locks on these directories.
    held: BTreeMap<PathBuf, File>,
    missing: Vec<(Controller, String)>,
}

impl Groups {
    fn new() -> Self {
        static NODES: AtomicU64 = AtomicU64::new(0);
        let number = NODES.fetch_add(1, Ordering::Relaxed);
        // Where it cannot be told, all are taken to be of one namespace.
        let namespace = fs::metadata("/proc/self/ns/pid").map_or(0, |namespace| namespace.ino());
        Self {
            name: format!("{NODE_PREFIX}{}-{namespace}-{number}", std::process::id()),
            nodes: BTreeMap::new(),
            held: BTreeMap::new(),
            missing: Vec::new(),
        }
    }

    /// Finds out which controllers this process may use, and makes the node's groups.
    pub fn prepare() -> Self {
        let membership = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mut groups = Self::new();
        for controller in Controller::ALL {
            match mounts::find(controller, &membership, &mounts) {
                Some(place) => groups.add(controller, &place),
                None => groups
                    .missing
                    .push((controller, "the host has no hierarchy for it".to_owned())),
            }
        }
        groups
    }

    /// Makes the node's group for a controller, and holds it.
    fn make(&mut self, controller: Controller, place: &Place) -> io::Result<(Version, PathBuf)> {
        let (version, node) = match place {
            Place::V1(group) => (Version::V1, make_node_group(group, &self.name)?),
            Place::V2(group) => (Version::V2, prepare_v2(controller, group, &self.name)?),
        };
        if !self.held.contains_key(&node) {
            let lock = hold(&node)?;
            // Removed between its opening and its lock, it is no one's.
            fs::metadata(&node)?;
            self.held.insert(node.clone(), lock);
        }
        Ok((version, node))
    }

    fn add(&mut self, controller: Controller, place: &Place) {
        let mut held = self.make(controller, place);
        for _ in 1..MAKES_MAX {
            if held.is_ok() {
                break;
            }
            // Another node that is starting may have taken it for one that is no more.
            held = self.make(controller, place);
        }
        match held {
            Ok(node) => drop(self.nodes.insert(controller, node)),
            Err(error) => self.missing.push((controller, error.to_string())),
        }
    }

    /// Controllers that cannot be used, with the reason.
    pub fn missing(&self) -> &[(Controller, String)] {
        &self.missing
    }

    /// Makes the group of a worker.
    ///
    /// # Errors
    /// When a directory cannot be made; none is left then.
    pub fn create(&self, worker: u64) -> io::Result<Group> {
        let mut group = Group {
            parts: BTreeMap::new(),
        };
        for (controller, (version, node)) in &self.nodes {
            let path = node.join(format!("worker-{worker}"));
            match fs::create_dir(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => made.map_err(|error| named("making", &path, &error))?,
            }
            group.parts.insert(*controller, (*version, path));
        }
        Ok(group)
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        for (_, node) in self.nodes.values() {
            // Workers' groups that still have processes keep it; the next node removes it.
            remove_groups(node);
        }
    }
}

/// The group of one worker. Removed when it is dropped, once no process is in it.
#[derive(Debug)]
pub struct Group {
    parts: BTreeMap<Controller, (Version, PathBuf)>,
}

impl Group {
    /// Puts a process into the group; what it starts is in it, too.
    ///
    /// # Errors
    /// When a controller does not take it.
    pub fn enter(&self, pid: i32) -> io::Result<()> {
        // Controllers of version 2 share a directory.
        let directories: std::collections::BTreeSet<&PathBuf> =
            self.parts.values().map(|(_, path)| path).collect();
        directories
            .into_iter()
            .try_for_each(|directory| put(directory, "cgroup.procs", pid))
    }

    /// Writes the bounds.
    ///
    /// # Errors
    /// When one is refused.
    pub fn limit(&self, limits: GroupLimits) -> io::Result<()> {
        let quota_us = u64::from(limits.cpus) * CPU_PERIOD_US;
        for (controller, (version, directory)) in &self.parts {
            match (controller, version) {
                (Controller::Memory, Version::V1) => limit_memory_v1(directory, limits.memory_bytes)?,
                (Controller::Memory, Version::V2) => {
                    put(directory, "memory.max", limits.memory_bytes)?;
                    put_if_there(directory, "memory.swap.max", 0)?;
                }
                (Controller::Cpu, Version::V1) => {
                    put(directory, "cpu.cfs_period_us", CPU_PERIOD_US)?;
                    put(directory, "cpu.cfs_quota_us", quota_us)?;
                }
                (Controller::Cpu, Version::V2) => {
                    put(directory, "cpu.max", format!("{quota_us} {CPU_PERIOD_US}"))?;
                }
                (Controller::Pids, Version::V1 | Version::V2) => put(directory, "pids.max", limits.pids)?,
            }
        }
        Ok(())
    }

    /// Has the group's processes leave the processors to others that want them, or take their share again. Best effort:
    /// without it, they only hold others up.
    pub fn stand_back(&self, stand_back: bool) {
        let Some((version, directory)) = self.parts.get(&Controller::Cpu) else {
            return;
        };
        // The least, and the kernel's default.
        let (file, value) = match (version, stand_back) {
            (Version::V1, true) => ("cpu.shares", 2),
            (Version::V1, false) => ("cpu.shares", 1024),
            (Version::V2, true) => ("cpu.weight", 1),
            (Version::V2, false) => ("cpu.weight", 100),
        };
        let _ = put_if_there(directory, file, value);
    }

    /// The files that hold the most memory used and the counts of events; `None` where memory is not bounded or the
    /// kernel does not count.
    pub fn memory_files(&self) -> Option<(File, File)> {
        let (version, directory) = self.parts.get(&Controller::Memory)?;
        let (peak, events) = match version {
            Version::V1 => ("memory.max_usage_in_bytes", "memory.oom_control"),
            Version::V2 => ("memory.peak", "memory.events"),
        };
        Some((
            File::open(directory.join(peak)).ok()?,
            File::open(directory.join(events)).ok()?,
        ))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for (_, directory) in self.parts.values() {
            // One that is not empty is removed by the next node.
            let _ = fs::remove_dir(directory);
        }
    }
}

/// Makes the node's group in the version 2 hierarchy and has the controller handed down to its children. A group that
/// hands controllers down may hold no process, so this process moves out of the way when it has to.
fn prepare_v2(controller: Controller, group: &Path, name: &str) -> io::Result<PathBuf> {
    let available = fs::read_to_string(group.join("cgroup.controllers"))?;
    if !available.split_whitespace().any(|name| name == controller.name()) {
        return Err(io::Error::other(format!(
            "{} does not hand it down",
            group.display()
        )));
    }
    let node = make_node_group(group, name)?;
    let enable = format!("+{}", controller.name());
    match put(group, "cgroup.subtree_control", &enable) {
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
            let own = node.join("node");
            fs::create_dir_all(&own)?;
            put(&own, "cgroup.procs", std::process::id())?;
            put(group, "cgroup.subtree_control", &enable)?;
        }
        result => result?,
    }
    put(&node, "cgroup.subtree_control", &enable)?;
    Ok(node)
}

/// Makes this node's group, and removes those of nodes that are no more.
fn make_node_group(group: &Path, name: &str) -> io::Result<PathBuf> {
    for entry in fs::read_dir(group)?.flatten() {
        let found = entry.file_name();
        let is_node = found.to_str().is_some_and(|found| found.starts_with(NODE_PREFIX));
        // Held while it is removed. One that someone has just made and not locked yet, that one makes again.
        if is_node && let Ok(_lock) = hold(&entry.path()) {
            remove_groups(&entry.path());
        }
    }
    let node = group.join(name);
    match fs::create_dir(&node) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(node),
        made => made
            .map(|()| node.clone())
            .map_err(|error| named("making", &node, &error)),
    }
}

/// Locks a node's group, unless another has; the lock is the opened directory's.
fn hold(node: &Path) -> io::Result<File> {
    let directory = File::open(node).map_err(|error| named("opening", node, &error))?;
    match directory.try_lock() {
        Ok(()) => Ok(directory),
        Err(error) => Err(named("locking", node, &error.into())),
    }
}

/// Removes a group with its children, as far as they are empty.
fn remove_groups(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let _ = fs::remove_dir(entry.path());
        }
    }
    let _ = fs::remove_dir(group);
}

/// Memory with swap may never be bounded tighter than memory, so a bound that grows is written in the other order.
fn limit_memory_v1(directory: &Path, bytes: u64) -> io::Result<()> {
    let (memory, with_swap) = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes");
    match put(directory, memory, bytes) {
        Ok(()) => put_if_there(directory, with_swap, bytes),
        Err(_) => {
            put_if_there(directory, with_swap, bytes)?;
            put(directory, memory, bytes)
        }
    }
}

fn put(directory: &Path, file: &str, value: impl std::fmt::Display) -> io::Result<()> {
    let path = directory.join(file);
    // The kernel's files cannot be made, only written.
    let written = File::options()
        .write(true)
        .truncate(true)
        .open(&path)
        .and_then(|mut file| {
            use io::Write;
            file.write_all(value.to_string().as_bytes())
        });
    written.map_err(|error| named("writing", &path, &error))
}

/// As [`put`], but a kernel that does not have the file is content without it.
fn put_if_there(directory: &Path, file: &str, value: impl std::fmt::Display) -> io::Result<()> {
    match put(directory, file, value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn named(action: &str, path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{action} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: GroupLimits = GroupLimits {
        memory_bytes: 64 << 20,
        cpus: 2,
        pids: 10,
    };

    /// A group directory with the kernel's files, which tests cannot have the kernel make.
    fn fake(directory: &Path, files: &[&str]) {
        for file in files {
            fs::write(directory.join(file), "").unwrap();
        }
    }

    #[test]
    fn version_2_is_written_as_the_kernel_reads_it() {
        let top = tempfile::tempdir().unwrap();
        let mut groups = Groups::new();
        let node = top.path().join(&groups.name);
        fs::create_dir(&node).unwrap();
        fake(&node, &["cgroup.subtree_control"]);
        fake(top.path(), &["cgroup.subtree_control"]);
        fs::write(top.path().join("cgroup.controllers"), "cpuset cpu memory pids\n").unwrap();
        let gone = top.path().join(format!("{NODE_PREFIX}999999999-0"));
        fs::create_dir_all(gone.join("worker-1")).unwrap();

        for controller in Controller::ALL {
            groups.add(controller, &Place::V2(top.path().to_path_buf()));
        }
        assert_eq!(groups.missing(), []);
        assert!(!gone.exists());
        // One that is held stays, whatever its name says.
        fs::create_dir(&gone).unwrap();
        let held = hold(&gone).unwrap();
        Groups::new().add(Controller::Cpu, &Place::V1(top.path().to_path_buf()));
        assert!(gone.exists() && node.exists());
        drop(held);
        Groups::new().add(Controller::Cpu, &Place::V1(top.path().to_path_buf()));
        assert!(!gone.exists() && node.exists());
        let read = |path: PathBuf| fs::read_to_string(path).unwrap();
        assert_eq!(read(node.join("cgroup.subtree_control")), "+pids");

        let group = groups.create(7).unwrap();
        let worker = node.join("worker-7");
        fake(
            &worker,
            &[
                "cgroup.procs",
                "memory.max",
                "memory.swap.max",
                "cpu.max",
                "cpu.weight",
                "pids.max",
            ],
        );
        fake(&worker, &["memory.peak", "memory.events"]);
        group.limit(LIMITS).unwrap();
        group.enter(42).unwrap();
        group.stand_back(true);
        assert_eq!(read(worker.join("cpu.weight")), "1");
        group.stand_back(false);
        for (file, expected) in [
            ("memory.max", "67108864"),
            ("memory.swap.max", "0"),
            ("cpu.weight", "100"),
            ("cpu.max", "200000 100000"),
            ("pids.max", "10"),
            ("cgroup.procs", "42"),
        ] {
            assert_eq!(read(worker.join(file)), expected, "{file}");
        }
        assert!(group.memory_files().is_some());
    }

    #[test]
    fn what_the_host_does_not_allow_is_reported() {
        let top = tempfile::tempdir().unwrap();
        let mut groups = Groups::new();
        fs::write(top.path().join("cgroup.controllers"), "cpu\n").unwrap();
        groups.add(Controller::Memory, &Place::V2(top.path().to_path_buf()));
        groups.add(Controller::Pids, &Place::V1(top.path().join("missing")));
        assert_eq!(groups.missing().len(), 2);
        assert!(groups.missing()[0].1.contains("does not hand it down"));
        // A worker without bounds can still be made.
        let group = groups.create(1).unwrap();
        group.limit(LIMITS).unwrap();
        assert!(group.memory_files().is_none());
    }

    #[test]
    fn real_groups_bound_a_real_process() {
        let groups = Groups::prepare();
        if !groups.missing().is_empty() {
            eprintln!(
                "SKIPPED: this process may not use all control groups: {:?}",
                groups.missing()
            );
            return;
        }
        let group = groups.create(1).unwrap();
        // Growing and shrinking both work.
        group
            .limit(GroupLimits {
                memory_bytes: 512 << 20,
                ..LIMITS
            })
            .unwrap();
        group.limit(LIMITS).unwrap();
        let (_, events) = group.memory_files().unwrap();
        let mut shell = std::process::Command::new("sh")
            .args(["-c", "read go; head -c 200m /dev/zero | tail | wc -c"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        group.enter(shell.id().cast_signed()).unwrap();
        drop(shell.stdin.take());
        shell.wait().unwrap();
        let text = io::read_to_string(events).unwrap();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("oom_kill "))
            .unwrap();
        assert!(line.parse::<u64>().unwrap() >= 1, "{text}");
        let directory = group.parts[&Controller::Memory].1.clone();
        drop(group);
        assert!(!directory.exists());
    }
}
