//! Where the host's control groups are, as the kernel tells it in two files.

use std::path::{Component, Path, PathBuf};

/// A controller that workers are bounded by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Controller {
    /// Bytes of memory.
    Memory,
    /// Processor time.
    Cpu,
    /// Processes and threads.
    Pids,
}

impl Controller {
    /// Every controller.
    pub const ALL: [Self; 3] = [Self::Memory, Self::Cpu, Self::Pids];

    /// The kernel's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::Pids => "pids",
        }
    }
}

/// This process's group in the hierarchy that has a controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// A hierarchy of the controller's own (version 1).
    V1(PathBuf),
    /// The one hierarchy (version 2).
    V2(PathBuf),
}

/// Finds this process's group for a controller. `membership` is `/proc/self/cgroup`, `mounts` is
/// `/proc/self/mountinfo`. A version 1 hierarchy goes first, because a controller is in one hierarchy only.
pub(super) fn find(controller: Controller, membership: &str, mounts: &str) -> Option<Place> {
    let v1 = || {
        let path = membership.lines().find_map(|line| {
            let [_, controllers, path] = fields(line)?;
            controllers
                .split(',')
                .any(|name| name == controller.name())
                .then_some(path)
        })?;
        let has = |options: &str| options.split(',').any(|option| option == controller.name());
        Some(Place::V1(mounted(mounts, "cgroup", has, path)?))
    };
    let v2 = || {
        let path = membership.lines().find_map(|line| match fields(line)? {
            ["0", "", path] => Some(path),
            _ => None,
        })?;
        Some(Place::V2(mounted(mounts, "cgroup2", |_| true, path)?))
    };
    v1().or_else(v2)
}

/// `id:controllers:path`.
fn fields(line: &str) -> Option<[&str; 3]> {
    let mut fields = line.splitn(3, ':');
    Some([fields.next()?, fields.next()?, fields.next()?])
}

/// Where a group of a hierarchy is seen in the file system.
fn mounted(mounts: &str, kind: &str, options: impl Fn(&str) -> bool, group: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        // "id parent device root mount-point options... - kind source super-options"
        let (before, after) = line.split_once(" - ")?;
        let mut after = after.split(' ');
        let (found, super_options) = (after.next()?, after.nth(1)?);
        if found != kind || !options(super_options) {
            return None;
        }
        let mut before = before.split(' ').skip(3);
        let (root, point) = (before.next()?, before.next()?);
        // A group outside of what is mounted here cannot be named; neither can one above this namespace's top.
        let within = Path::new(group).strip_prefix(root).ok()?;
        let plain = within
            .components()
            .all(|part| matches!(part, Component::Normal(_)));
        plain.then(|| Path::new(point).join(within))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "31 25 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
                      32 25 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      33 25 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
    const V2: &str = "25 20 0:22 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";

    #[test]
    fn groups_are_found_in_both_versions() {
        let check = |controller, membership: &str, mounts: &str, expected: Option<Place>| {
            assert_eq!(find(controller, membership, mounts), expected, "{membership}");
        };
        let membership = "4:memory:/a/b\n3:cpu,cpuacct:/\n0::/unified\n";
        let v1 = |path: &str| Some(Place::V1(PathBuf::from(path)));
        let v2 = |path: &str| Some(Place::V2(PathBuf::from(path)));
        check(
            Controller::Memory,
            membership,
            V1,
            v1("/sys/fs/cgroup/memory/a/b"),
        );
        check(Controller::Cpu, membership, V1, v1("/sys/fs/cgroup/cpu,cpuacct/"));
        check(
            Controller::Pids,
            membership,
            V1,
            v2("/sys/fs/cgroup/unified/unified"),
        );
        check(
            Controller::Memory,
            "0::/user.slice/x:y\n",
            V2,
            v2("/sys/fs/cgroup/user.slice/x:y"),
        );
        check(Controller::Memory, "0::/../outside\n", V2, None);
        check(Controller::Memory, "", V2, None);
        check(Controller::Memory, "0::/\n", "", None);
        let bound = "25 20 0:22 /docker/x /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        check(
            Controller::Memory,
            "0::/docker/x/y\n",
            bound,
            v2("/sys/fs/cgroup/y"),
        );
        check(Controller::Memory, "0::/elsewhere\n", bound, None);
    }
}
