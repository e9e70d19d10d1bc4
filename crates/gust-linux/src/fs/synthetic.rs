//! `/proc`, `/sys` and `/dev`: nodes that are the same in every guest, under numbers that never change within a
//! version of the program.

use std::sync::LazyLock;

/// A character device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Device {
    /// `/dev/null`
    Null,
    /// `/dev/zero`
    Zero,
    /// `/dev/full`
    Full,
    /// `/dev/random` and `/dev/urandom`
    Random,
    /// `/dev/tty`: there is none.
    Terminal,
    /// `/dev/gust`: takes events and gives answers (`docs/runtime-device.md`).
    Runtime,
}

impl Device {
    /// Major and minor number; those of Linux where it has the device.
    pub(crate) fn number(self) -> (u32, u32) {
        match self {
            Self::Null => (1, 3),
            Self::Zero => (1, 5),
            Self::Full => (1, 7),
            Self::Random => (1, 9),
            Self::Terminal => (5, 0),
            Self::Runtime => (10, 200),
        }
    }
}

/// A file whose text is made when it is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Text {
    Maps,
    Smaps,
    Cgroup,
    Stat,
    Statm,
    Status,
    CommandLine,
    Environment,
    Auxv,
    Comm,
    Limits,
    Mounts,
    MountInfo,
    IdMap,
    OomScoreAdj,
    Io,
    MemInfo,
    Igmp,
    CpuInfo,
    SystemStat,
    Uptime,
    LoadAverage,
    Version,
    FileSystems,
    Uuid,
    BootId,
    CpuList,
    MemoryMax,
    MemoryCurrent,
    CpuMax,
    Empty,
    /// The same in every guest.
    Fixed(&'static str),
}

/// A link whose target is made when it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LinkTo {
    /// The process's own directory in `/proc`.
    OwnDirectory,
    /// The current thread's directory, from `/proc`.
    OwnThread,
    /// The program.
    Program,
    /// The working directory.
    WorkingDirectory,
    /// A path.
    Path(&'static str),
}

/// What a synthetic node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Synthetic {
    Directory,
    /// The process's directory; its name is the process id.
    ProcessDirectory,
    /// `/proc/self/fd`
    Descriptors,
    /// `/proc/self/fdinfo`
    DescriptorInfos,
    /// `/proc/self/task`
    Tasks,
    File(Text),
    Link(LinkTo),
    Device(Device),
}

/// A node of the fixed tree.
#[derive(Debug)]
pub(crate) struct SyntheticNode {
    pub(crate) name: &'static str,
    pub(crate) parent: u16,
    pub(crate) what: Synthetic,
    pub(crate) children: Vec<u16>,
}

use Device::*;
use LinkTo::*;
use Synthetic::{DescriptorInfos, Descriptors, Device as Dev, File, Link, ProcessDirectory, Tasks};
use Text::*;

/// Paths and what is there; directories on the way are made. The process's directory is written `PID`.
const TREE: &[(&str, Synthetic)] = &[
    ("proc/self", Link(OwnDirectory)),
    ("proc/thread-self", Link(OwnThread)),
    ("proc/PID", ProcessDirectory),
    ("proc/PID/auxv", File(Auxv)),
    ("proc/PID/cgroup", File(Cgroup)),
    ("proc/PID/cmdline", File(CommandLine)),
    ("proc/PID/comm", File(Comm)),
    ("proc/PID/cwd", Link(WorkingDirectory)),
    ("proc/PID/environ", File(Environment)),
    ("proc/PID/exe", Link(Program)),
    ("proc/PID/fd", Descriptors),
    ("proc/PID/fdinfo", DescriptorInfos),
    ("proc/PID/gid_map", File(IdMap)),
    ("proc/PID/io", File(Io)),
    ("proc/PID/limits", File(Limits)),
    ("proc/PID/maps", File(Maps)),
    ("proc/PID/mountinfo", File(MountInfo)),
    ("proc/PID/mounts", File(Mounts)),
    ("proc/PID/oom_score", File(Fixed("0\n"))),
    ("proc/PID/oom_score_adj", File(OomScoreAdj)),
    ("proc/PID/root", Link(Path("/"))),
    ("proc/PID/setgroups", File(Fixed("allow\n"))),
    ("proc/PID/smaps", File(Smaps)),
    ("proc/PID/stat", File(Stat)),
    ("proc/PID/statm", File(Statm)),
    ("proc/PID/status", File(Status)),
    ("proc/PID/task", Tasks),
    ("proc/PID/uid_map", File(IdMap)),
    (
        "proc/cgroups",
        File(Fixed("#subsys_name\thierarchy\tnum_cgroups\tenabled\n")),
    ),
    ("proc/cmdline", File(Fixed("\n"))),
    ("proc/cpuinfo", File(CpuInfo)),
    ("proc/filesystems", File(FileSystems)),
    ("proc/loadavg", File(LoadAverage)),
    ("proc/meminfo", File(MemInfo)),
    ("proc/mounts", Link(Path("self/mounts"))),
    (
        "proc/net/dev",
        File(Fixed(
            "Inter-|   Receive                                                |  Transmit\n face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    lo:       0       0    0    0    0     0          0         0        0       0    0    0    0     0       0          0\n  eth0:       0       0    0    0    0     0          0         0        0       0    0    0    0     0       0          0\n",
        )),
    ),
    ("proc/net/if_inet6", File(Empty)),
    ("proc/net/igmp", File(Igmp)),
    (
        "proc/net/igmp6",
        File(Fixed(
            "1    lo              ff020000000000000000000000000001     1 0000000C 0\n2    eth0            ff020000000000000000000000000001     1 0000000C 0\n",
        )),
    ),
    (
        "proc/net/route",
        File(Fixed(
            "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n",
        )),
    ),
    (
        "proc/net/tcp",
        File(Fixed(
            "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n",
        )),
    ),
    (
        "proc/net/unix",
        File(Fixed("Num       RefCount Protocol Flags    Type St Inode Path\n")),
    ),
    ("proc/stat", File(SystemStat)),
    (
        "proc/swaps",
        File(Fixed("Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n")),
    ),
    ("proc/sys/fs/file-max", File(Fixed("1024\n"))),
    ("proc/sys/fs/inotify/max_queued_events", File(Fixed("16384\n"))),
    ("proc/sys/fs/inotify/max_user_instances", File(Fixed("128\n"))),
    ("proc/sys/fs/inotify/max_user_watches", File(Fixed("8192\n"))),
    ("proc/sys/fs/nr_open", File(Fixed("1048576\n"))),
    ("proc/sys/fs/pipe-max-size", File(Fixed("1048576\n"))),
    ("proc/sys/kernel/cap_last_cap", File(Fixed("40\n"))),
    ("proc/sys/kernel/hostname", File(Fixed("gust\n"))),
    ("proc/sys/kernel/ngroups_max", File(Fixed("65536\n"))),
    ("proc/sys/kernel/osrelease", File(Fixed("6.1.0-gust\n"))),
    ("proc/sys/kernel/ostype", File(Fixed("Linux\n"))),
    ("proc/sys/kernel/pid_max", File(Fixed("32768\n"))),
    ("proc/sys/kernel/random/boot_id", File(BootId)),
    ("proc/sys/kernel/random/entropy_avail", File(Fixed("256\n"))),
    ("proc/sys/kernel/random/poolsize", File(Fixed("256\n"))),
    ("proc/sys/kernel/random/uuid", File(Uuid)),
    ("proc/sys/kernel/randomize_va_space", File(Fixed("2\n"))),
    ("proc/sys/kernel/sched_autogroup_enabled", File(Fixed("0\n"))),
    ("proc/sys/kernel/threads-max", File(Fixed("511\n"))),
    ("proc/sys/kernel/version", File(Fixed("#1 SMP\n"))),
    ("proc/sys/net/core/somaxconn", File(Fixed("4096\n"))),
    (
        "proc/sys/net/ipv4/ip_local_port_range",
        File(Fixed("32768\t60999\n")),
    ),
    ("proc/sys/vm/max_map_count", File(Fixed("65530\n"))),
    ("proc/sys/vm/mmap_min_addr", File(Fixed("65536\n"))),
    ("proc/sys/vm/nr_hugepages", File(Fixed("0\n"))),
    ("proc/sys/vm/overcommit_memory", File(Fixed("1\n"))),
    ("proc/sys/vm/swappiness", File(Fixed("60\n"))),
    ("proc/uptime", File(Uptime)),
    ("proc/version", File(Version)),
    ("sys/devices/system/cpu/kernel_max", File(Fixed("15\n"))),
    ("sys/devices/system/cpu/online", File(CpuList)),
    ("sys/devices/system/cpu/possible", File(CpuList)),
    ("sys/devices/system/cpu/present", File(CpuList)),
    ("sys/devices/system/node/node0/cpulist", File(CpuList)),
    ("sys/devices/system/node/online", File(Fixed("0\n"))),
    ("sys/devices/system/node/possible", File(Fixed("0\n"))),
    (
        "sys/fs/cgroup/cgroup.controllers",
        File(Fixed("cpu memory pids\n")),
    ),
    ("sys/fs/cgroup/cgroup.procs", File(Empty)),
    ("sys/fs/cgroup/cgroup.subtree_control", File(Empty)),
    ("sys/fs/cgroup/cpu.max", File(CpuMax)),
    ("sys/fs/cgroup/cpu.weight", File(Fixed("100\n"))),
    ("sys/fs/cgroup/memory.current", File(MemoryCurrent)),
    ("sys/fs/cgroup/memory.high", File(Fixed("max\n"))),
    ("sys/fs/cgroup/memory.max", File(MemoryMax)),
    (
        "sys/fs/cgroup/memory.stat",
        File(Fixed("anon 0\nfile 0\ninactive_file 0\n")),
    ),
    ("sys/fs/cgroup/memory.swap.max", File(Fixed("0\n"))),
    ("sys/fs/cgroup/pids.max", File(Fixed("511\n"))),
    (
        "sys/kernel/mm/transparent_hugepage/enabled",
        File(Fixed("always [madvise] never\n")),
    ),
    (
        "sys/kernel/mm/transparent_hugepage/hpage_pmd_size",
        File(Fixed("2097152\n")),
    ),
    (
        "sys/kernel/mm/transparent_hugepage/shmem_enabled",
        File(Fixed("always within_size advise [never] deny force\n")),
    ),
    ("dev/fd", Link(Path("/proc/self/fd"))),
    ("dev/full", Dev(Full)),
    ("dev/gust", Dev(Runtime)),
    ("dev/null", Dev(Null)),
    ("dev/random", Dev(Random)),
    ("dev/shm", Synthetic::Directory),
    ("dev/stderr", Link(Path("/proc/self/fd/2"))),
    ("dev/stdin", Link(Path("/proc/self/fd/0"))),
    ("dev/stdout", Link(Path("/proc/self/fd/1"))),
    ("dev/tty", Dev(Terminal)),
    ("dev/urandom", Dev(Random)),
    ("dev/zero", Dev(Zero)),
];

static NODES: LazyLock<Vec<SyntheticNode>> = LazyLock::new(|| {
    let mut nodes: Vec<SyntheticNode> = Vec::with_capacity(TREE.len() * 2);
    // Number 0 holds the three mounted trees; it is not reachable itself.
    nodes.push(SyntheticNode {
        name: "",
        parent: 0,
        what: Synthetic::Directory,
        children: Vec::new(),
    });
    for (path, what) in TREE {
        let mut at = 0;
        let mut names = path.split('/').peekable();
        while let Some(name) = names.next() {
            let child = nodes[at as usize]
                .children
                .iter()
                .copied()
                .find(|child| nodes[*child as usize].name == name);
            at = child.unwrap_or_else(|| {
                let number = nodes.len() as u16;
                let what = if names.peek().is_none() {
                    *what
                } else {
                    Synthetic::Directory
                };
                nodes.push(SyntheticNode {
                    name,
                    parent: at,
                    what,
                    children: Vec::new(),
                });
                nodes[at as usize].children.push(number);
                number
            });
        }
    }
    nodes
});

/// A node by number.
pub(crate) fn node(number: u16) -> Option<&'static SyntheticNode> {
    NODES.get(number as usize)
}

/// Number of a node by path, without a leading slash.
pub(crate) fn number_of(path: &str) -> Option<u16> {
    path.split('/').try_fold(0u16, child)
}

/// A child of a directory by name.
pub(crate) fn child(directory: u16, name: &str) -> Option<u16> {
    let node = node(directory)?;
    node.children
        .iter()
        .copied()
        .find(|child| NODES[*child as usize].name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_is_found() {
        for (path, what) in TREE {
            let number = number_of(path).unwrap_or_else(|| panic!("{path}"));
            assert_eq!(node(number).map(|node| node.what), Some(*what), "{path}");
        }
        assert_eq!(number_of("proc/nothing"), None);
    }
}
