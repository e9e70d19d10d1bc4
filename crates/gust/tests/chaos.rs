//! `gust chaos` as a program: a short run, and what a killed one leaves. How long things take is never asserted.

mod common;

use std::{
    collections::BTreeSet,
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use common::{gust, runtimes, text};
use serde_json::Value;

/// Longest wait for something to come true: a failure, not a figure.
const LIMIT: Duration = Duration::from_secs(60);

/// A directory for a run with the runtimes, or a loud skip.
fn place() -> Option<(tempfile::TempDir, PathBuf)> {
    let can = Command::new("unshare")
        .args(["--net", "--mount", "--pid", "--fork", "true"])
        .output();
    if !can.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: no namespaces can be made here, which gust chaos needs");
        return None;
    }
    let runtimes = runtimes()?;
    let dir = tempfile::tempdir().unwrap();
    // Workers that are users of their own pass through it.
    fs::set_permissions(dir.path(), Permissions::from_mode(0o711)).unwrap();
    Some((dir, runtimes.parent().unwrap().to_owned()))
}

/// A run with functions in processes, whose directories lie in `dir`.
fn chaos(dir: &Path, data_dir: &Path, arguments: &[&str]) -> Command {
    let trace = dir.join("t.csv");
    if !trace.exists() {
        let make = [
            "trace",
            "make",
            "poisson",
            "--functions",
            "3",
            "--rate",
            "6",
            "--minutes",
            "1",
        ];
        let mut command = gust();
        command
            .args(make)
            .args(["--duration-ms", "400", "--memory-mib", "2", "--out"])
            .arg(&trace);
        assert!(command.output().unwrap().status.success());
    }
    let mut command = gust();
    command
        .env("TMPDIR", dir)
        .env_remove("GUST_ISOLATION")
        .arg("chaos")
        .arg(&trace)
        .args(["--isolation", "process", "--output", "json", "--data-dir"])
        .arg(data_dir)
        .arg("--out")
        .arg(dir.join("out"))
        .args(arguments);
    command
}

fn until(what: &str, condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < LIMIT, "{what} has not come true in time");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn clusters(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().flatten().map(|entry| entry.path());
    entries
        .filter(|path| {
            path.file_name()
                .unwrap()
                .to_string_lossy()
                .starts_with("gust-chaos-")
        })
        .collect()
}

/// Processes that name a directory on their command lines.
fn processes_with(dir: &Path) -> usize {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let lines = entries.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    let name = dir.to_str().unwrap();
    lines.filter(|line| text(line).contains(name)).count()
}

#[test]
fn every_kind_of_fault_is_survived() {
    let Some((dir, data_dir)) = place() else { return };
    let options = [
        "--speed", "2", "--every", "3", "--down", "1-4", "--rest", "1", "--seed", "5",
    ];
    let output = chaos(dir.path(), &data_dir, &options).output().unwrap();
    let (out, said) = (text(&output.stdout), text(&output.stderr));
    let outcome: Value = serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out} {said}"));
    let verdict = &outcome["verdict"];
    assert_eq!(
        verdict["findings"],
        Value::Array(Vec::new()),
        "{said}\n{outcome:#}"
    );
    assert!(
        output.status.success() && outcome["good"] == true,
        "{said}\n{outcome:#}"
    );
    let consequences = verdict["consequences"].as_array().unwrap();
    let kinds: BTreeSet<&str> = consequences
        .iter()
        .map(|one| one["fault"]["kind"].as_str().unwrap())
        .collect();
    assert_eq!(
        kinds,
        BTreeSet::from(["agent", "control", "cut", "silence", "worker"])
    );
    for one in consequences {
        assert!(
            one["whole_after_ns"].as_u64() >= one["healed_after_ns"].as_u64(),
            "{one}"
        );
    }
    let (answered, accepted) = (&verdict["answered"], &verdict["accepted"]);
    assert!(
        answered.as_u64() > Some(20) && accepted.as_u64() > Some(20),
        "{verdict}"
    );
    let picture = fs::read_to_string(dir.path().join("out/chaos.svg")).unwrap();
    assert!(picture.contains("control server") && picture.contains("events not done with"));
    assert_eq!(clusters(dir.path()), Vec::<PathBuf>::new());
}

#[test]
fn a_run_that_is_killed_leaves_nothing_for_long() {
    let Some((dir, data_dir)) = place() else { return };
    let mut running = chaos(dir.path(), &data_dir, &[])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    until("a node's identity", || {
        let joined = |cluster: &PathBuf| cluster.join("node1/cluster/identity").exists();
        clusters(dir.path()).iter().any(joined)
    });
    running.kill().unwrap();
    running.wait().unwrap();
    until("the end of all its processes", || processes_with(dir.path()) == 0);
    assert_eq!(clusters(dir.path()).len(), 1);
    // The next one removes its directory, and its own, even if it fails.
    let next = chaos(dir.path(), &data_dir, &["--up-arg=--no-such-option"])
        .output()
        .unwrap();
    assert!(!next.status.success());
    assert!(
        text(&next.stderr).contains("gust up did not start"),
        "{}",
        text(&next.stderr)
    );
    assert_eq!(clusters(dir.path()), Vec::<PathBuf>::new());
}
