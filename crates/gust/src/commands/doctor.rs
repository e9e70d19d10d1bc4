//! `gust doctor`: what this machine has, and how to mend what it lacks.

use std::{
    fs::{self, OpenOptions},
    net::TcpListener,
    path::Path,
    process::ExitCode,
};

use anyhow::Result;
use landlock::{ABI, Access, AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr};
use serde_json::json;

use super::{print, runtime};
use crate::{
    cli::{DoctorArgs, Output},
    exit,
    output::bytes,
    paths,
};

/// Room that a few runtimes, packages and snapshots take.
const SPACE_BYTES_MIN: u64 = 2 << 30;

/// Memory below which few instances fit.
const MEMORY_BYTES_MIN: u64 = 1 << 30;

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// As it should be.
    Good,
    /// Gust works, but less well.
    Weak,
    /// Gust does not work.
    Bad,
}

#[derive(Debug)]
struct Check {
    name: &'static str,
    verdict: Verdict,
    found: String,
    mend: Option<String>,
}

impl Check {
    fn good(name: &'static str, found: impl Into<String>) -> Self {
        Self {
            name,
            verdict: Verdict::Good,
            found: found.into(),
            mend: None,
        }
    }

    fn lacking(
        name: &'static str,
        verdict: Verdict,
        found: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self {
            name,
            verdict,
            found: found.into(),
            mend: Some(mend.into()),
        }
    }
}

pub(super) fn run(arguments: &DoctorArgs) -> Result<ExitCode> {
    let data_dir = arguments.data_dir.clone().unwrap_or_else(paths::data_dir);
    let checks = [
        kvm(),
        user_namespaces(),
        cgroups(),
        landlock(),
        seccomp(),
        huge_pages(),
        memory(),
        port(arguments.listen),
        directory(&data_dir),
        space(&data_dir),
        runtimes(&data_dir),
    ];
    match arguments.output.output {
        Output::Json => {
            let shown: Vec<_> = checks
                .iter()
                .map(|check| {
                    json!({
                        "name": check.name,
                        "verdict": word(check.verdict),
                        "found": check.found,
                        "mend": check.mend,
                    })
                })
                .collect();
            print(&format!("{:#}\n", json!(shown)))?;
        }
        Output::Text => {
            for Check {
                name,
                verdict,
                found,
                mend,
            } in &checks
            {
                print(&format!("{:<5} {name:<16} {found}\n", word(*verdict)))?;
                if let Some(mend) = mend {
                    print(&format!("      {:<16} mend: {mend}\n", ""))?;
                }
            }
        }
    }
    let bad = checks.iter().any(|check| check.verdict == Verdict::Bad);
    Ok(if bad {
        ExitCode::from(exit::FAILED)
    } else {
        ExitCode::SUCCESS
    })
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Good => "ok",
        Verdict::Weak => "weak",
        Verdict::Bad => "BAD",
    }
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn kvm() -> Check {
    const NAME: &str = "kvm";
    match OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(_) => Check::good(NAME, "/dev/kvm can be opened"),
        Err(error) => {
            let mend = match error.kind() {
                std::io::ErrorKind::PermissionDenied => {
                    "add yourself to the group kvm (usermod -aG kvm USER) and log in again"
                }
                _ => {
                    "load the module kvm_intel or kvm_amd, and switch virtualisation on in the firmware or in the \
                      settings of the machine that this one runs on"
                }
            };
            let found = format!("/dev/kvm: {error}; functions run as processes instead");
            Check::lacking(NAME, Verdict::Weak, found, mend)
        }
    }
}

fn user_namespaces() -> Check {
    const NAME: &str = "namespaces";
    let root = rustix::process::geteuid().is_root();
    let max: u64 = read("/proc/sys/user/max_user_namespaces")
        .and_then(|text| text.parse().ok())
        .unwrap_or(0);
    let denied = read("/proc/sys/kernel/unprivileged_userns_clone").is_some_and(|text| text == "0");
    if max == 0 {
        let mend = "sysctl -w user.max_user_namespaces=15000";
        return Check::lacking(NAME, Verdict::Weak, "the kernel allows no user namespaces", mend);
    }
    if denied && !root {
        let mend = "sysctl -w kernel.unprivileged_userns_clone=1";
        return Check::lacking(NAME, Verdict::Weak, "user namespaces are for root only", mend);
    }
    Check::good(NAME, format!("up to {max} user namespaces"))
}

fn cgroups() -> Check {
    const NAME: &str = "cgroups";
    const WANTED: [&str; 3] = ["cpu", "memory", "pids"];
    let Some(controllers) = read("/sys/fs/cgroup/cgroup.controllers") else {
        // Hierarchies of version 1, each a directory.
        if WANTED
            .iter()
            .all(|one| Path::new("/sys/fs/cgroup").join(one).is_dir())
        {
            return Check::good(NAME, format!("version 1 with {}", WANTED.join(", ")));
        }
        let mend = "boot with systemd.unified_cgroup_hierarchy=1";
        return Check::lacking(NAME, Verdict::Weak, "no cgroups at /sys/fs/cgroup", mend);
    };
    let missing: Vec<&str> = WANTED
        .into_iter()
        .filter(|one| !controllers.split(' ').any(|c| c == *one))
        .collect();
    if missing.is_empty() {
        Check::good(NAME, format!("version 2 with {controllers}"))
    } else {
        let found = format!("version 2 without {}", missing.join(", "));
        Check::lacking(
            NAME,
            Verdict::Weak,
            found,
            "delegate the controllers to the user or container that runs Gust",
        )
    }
}

fn landlock() -> Check {
    const NAME: &str = "landlock";
    // A set of rules is made and thrown away: that asks the kernel itself, wherever its settings are shown.
    let tried = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(ABI::V1))
        .and_then(Ruleset::create);
    match tried {
        Ok(_) => Check::good(NAME, "active"),
        Err(error) => Check::lacking(
            NAME,
            Verdict::Weak,
            format!("not available: {error}"),
            "use a kernel with CONFIG_SECURITY_LANDLOCK, and boot it with lsm=landlock,... on its command line",
        ),
    }
}

fn seccomp() -> Check {
    const NAME: &str = "seccomp";
    match read("/proc/sys/kernel/seccomp/actions_avail") {
        Some(actions) if actions.contains("kill_process") => Check::good(NAME, "filters are available"),
        Some(_) | None => {
            let mend = "use a kernel with CONFIG_SECCOMP_FILTER";
            Check::lacking(NAME, Verdict::Bad, "the kernel has no filters", mend)
        }
    }
}

fn huge_pages() -> Check {
    const NAME: &str = "huge pages";
    let path = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
    match read(path) {
        Some(modes)
            if modes.contains("[advise]")
                || modes.contains("[always]")
                || modes.contains("[within_size]") =>
        {
            Check::good(NAME, format!("for shared memory: {modes}"))
        }
        Some(modes) => {
            let found = format!("not for shared memory ({modes}): restores take about twice as long");
            Check::lacking(NAME, Verdict::Weak, found, format!("echo advise > {path}"))
        }
        None => Check::lacking(
            NAME,
            Verdict::Weak,
            "the kernel has none: restores take about twice as long",
            "use a kernel with CONFIG_TRANSPARENT_HUGEPAGE",
        ),
    }
}

fn memory() -> Check {
    const NAME: &str = "memory";
    let system = rustix::system::sysinfo();
    let total = (system.totalram as u64).saturating_mul(system.mem_unit.into());
    if total >= MEMORY_BYTES_MIN {
        Check::good(NAME, bytes(total))
    } else {
        Check::lacking(
            NAME,
            Verdict::Weak,
            bytes(total),
            "few instances fit; use a machine with more",
        )
    }
}

fn port(listen: std::net::SocketAddr) -> Check {
    const NAME: &str = "port";
    match TcpListener::bind(listen) {
        Ok(_) => Check::good(NAME, format!("{listen} is free")),
        Err(error) => {
            let mend = "a server may be running already; otherwise use gust up --listen with another address";
            Check::lacking(NAME, Verdict::Weak, format!("{listen}: {error}"), mend)
        }
    }
}

/// The data directory, or what there is on the way to it: a check makes nothing.
fn nearest(data_dir: &Path) -> &Path {
    data_dir
        .ancestors()
        .find(|dir| dir.exists())
        .unwrap_or(Path::new("/"))
}

fn directory(data_dir: &Path) -> Check {
    const NAME: &str = "data directory";
    let mend = "use another one with --data-dir or GUST_DATA_DIR";
    let nearest = nearest(data_dir);
    if let Err(error) = tempfile::tempfile_in(nearest) {
        let found = format!(
            "{}: {} cannot be written: {error}",
            data_dir.display(),
            nearest.display()
        );
        return Check::lacking(NAME, Verdict::Bad, found, mend);
    }
    match paths::barrier(nearest) {
        Some(barrier) if rustix::process::geteuid().is_root() => {
            let found = format!("other users cannot pass through {}", barrier.display());
            let mend = format!(
                "for isolation without KVM: chmod o+x {}, or {mend}",
                barrier.display()
            );
            Check::lacking(NAME, Verdict::Weak, found, mend)
        }
        Some(_) | None => Check::good(NAME, data_dir.display().to_string()),
    }
}

fn space(data_dir: &Path) -> Check {
    const NAME: &str = "disk space";
    match rustix::fs::statvfs(nearest(data_dir)) {
        Ok(disk) => {
            let free = disk.f_bavail.saturating_mul(disk.f_frsize);
            if free >= SPACE_BYTES_MIN {
                Check::good(NAME, format!("{} free", bytes(free)))
            } else {
                let mend = format!("make room: {} are enough to begin with", bytes(SPACE_BYTES_MIN));
                Check::lacking(NAME, Verdict::Weak, format!("{} free", bytes(free)), mend)
            }
        }
        Err(error) => {
            let found = format!("cannot tell for {}: {error}", data_dir.display());
            let mend = "use another directory with --data-dir";
            Check::lacking(NAME, Verdict::Weak, found, mend)
        }
    }
}

fn runtimes(data_dir: &Path) -> Check {
    const NAME: &str = "runtimes";
    let names: Vec<String> = runtime::built(&paths::runtimes_dir(data_dir))
        .into_iter()
        .map(|built| built.name)
        .collect();
    if names.is_empty() {
        Check::lacking(NAME, Verdict::Weak, "none yet", "gust runtime build python3.11")
    } else {
        Check::good(NAME, names.join(", "))
    }
}
