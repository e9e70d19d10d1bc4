//! The commands as their users run them.

mod common;

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    process::Stdio,
};

use common::{Server, data_dir, gust, project, run, runtimes, text};

const ECHO: &str = "def handler(event, context):\n    print('called')\n    return event\n";

#[test]
fn without_a_server_there_is_a_hint_and_a_code() {
    let output = run(&["ls", "--endpoint", "http://127.0.0.1:1"]);
    assert_eq!(output.status.code(), Some(4));
    assert!(text(&output.stderr).contains("hint: start one with: gust up"));
    let output = run(&["ls", "--endpoint", "localhost:4566"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("http://HOST:PORT"));
}

#[test]
fn wrong_command_lines_are_code_2() {
    for arguments in [
        &["fly"][..],
        &["invoke"],
        &["up", "--listen", "here"],
        &["logs", "f", "--since", "5w"],
    ] {
        assert_eq!(run(arguments).status.code(), Some(2), "{arguments:?}");
    }
    assert!(text(&run(&["--help"]).stdout).contains("Exit codes:"));
}

#[test]
fn the_zygote_ends_with_its_node() {
    // Its standard input is the node's socket; this one's end has come already.
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let zygote = gust()
        .arg("zygote")
        .stdin(std::os::fd::OwnedFd::from(theirs))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(ours);
    let output = zygote.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[test]
fn completions_are_printed() {
    for shell in ["bash", "zsh", "fish"] {
        let output = run(&["completion", shell]);
        assert!(
            output.status.success() && text(&output.stdout).contains("gust"),
            "{shell}"
        );
    }
}

#[test]
fn the_doctor_says_how_to_mend() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("data");
    let output = run(&[
        "doctor",
        "-o",
        "json",
        "--listen",
        "127.0.0.1:0",
        "--data-dir",
        data_dir.to_str().unwrap(),
    ]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let checks: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let checks = checks.as_array().unwrap();
    for name in [
        "kvm",
        "namespaces",
        "cgroups",
        "landlock",
        "seccomp",
        "huge pages",
        "port",
        "disk space",
        "runtimes",
    ] {
        assert!(checks.iter().any(|check| check["name"] == name), "{name}");
    }
    for check in checks {
        assert_eq!(check["verdict"] == "ok", check["mend"].is_null(), "{check}");
    }
    let bad = run(&["doctor", "--data-dir", "/proc/nowhere"]);
    assert_eq!(bad.status.code(), Some(1));
}

#[test]
fn runtimes_are_named_and_checked() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let unknown = run(&["runtime", "build", "cobol", "--data-dir", path]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(
        text(&unknown.stderr).contains("python3.11"),
        "{}",
        text(&unknown.stderr)
    );
    for name in ["../x", ".hidden", "a/b", ""] {
        let source = tempfile::tempdir().unwrap();
        let output = run(&[
            "runtime",
            "add",
            name,
            source.path().to_str().unwrap(),
            "--data-dir",
            path,
        ]);
        assert_eq!(output.status.code(), Some(1), "{name}");
    }
    let nothing = run(&["runtime", "ls", "-o", "json", "--data-dir", path]);
    assert_eq!(text(&nothing.stdout).trim(), "[]");
}

#[test]
fn a_runtime_is_added_from_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let root = tempfile::tempdir().unwrap();
    let add = || {
        run(&[
            "runtime",
            "add",
            "mine",
            root.path().to_str().unwrap(),
            "--data-dir",
            path,
        ])
    };
    fs::write(root.path().join("run"), "#!/bin/sh\n").unwrap();
    assert!(text(&add().stderr).contains("/.gust/runtime.json"));
    fs::create_dir(root.path().join(".gust")).unwrap();
    let description =
        r#"{"name":"mine","interface":"runtime-api","commands":[["/run"]],"directory":"/var/task"}"#;
    fs::write(root.path().join(".gust/runtime.json"), description).unwrap();
    let output = add();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&run(&["runtime", "ls", "--data-dir", path]).stdout).contains("mine"));
    assert!(
        run(&["runtime", "rm", "mine", "--data-dir", path])
            .status
            .success()
    );
    assert_eq!(
        run(&["runtime", "rm", "mine", "--data-dir", path]).status.code(),
        Some(1)
    );
}

#[test]
fn a_function_from_deployment_to_removal() {
    let Some(runtimes) = runtimes() else { return };
    let dir = data_dir(&runtimes);
    let server = Server::start(dir.path(), &[]);
    let code = project(ECHO);
    let path = code.path().to_str().unwrap();
    let deploy = |more: &[&str]| {
        let output = server.cli(&[&["deploy", path, "--name", "hello", "-o", "json"], more].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        let shown: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        shown["change"].as_str().unwrap().to_owned()
    };
    assert_eq!(deploy(&[]), "created");
    assert_eq!(deploy(&[]), "unchanged");
    assert_eq!(deploy(&["--memory", "256", "--env", "AA=1"]), "updated");
    fs::write(code.path().join("data.txt"), "new").unwrap();
    assert_eq!(deploy(&["--env", "AA=1"]), "updated");
    assert!(text(&server.cli(&["ls"]).stdout).contains("hello"));

    let answer = server.cli(&["invoke", "hello", r#"{"a":1}"#, "--tail"]);
    assert_eq!(text(&answer.stdout).trim(), r#"{"a": 1}"#);
    assert!(text(&answer.stderr).contains("called") && text(&answer.stderr).contains("REPORT RequestId:"));
    let mut piped = gust()
        .args([
            "invoke",
            "hello",
            "-",
            "--endpoint",
            &format!("http://{}", server.address),
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    piped.stdin.take().unwrap().write_all(b"[2]").unwrap();
    assert_eq!(text(&piped.wait_with_output().unwrap().stdout).trim(), "[2]");
    assert!(server.cli(&["invoke", "hello", "--async"]).status.success());
    assert_eq!(server.cli(&["invoke", "hello", "no json"]).status.code(), Some(1));
    assert_eq!(server.cli(&["invoke", "missing"]).status.code(), Some(5));

    assert!(text(&server.cli(&["logs", "hello"]).stdout).contains("called"));
    assert!(text(&server.cli(&["describe", "hello"]).stdout).contains("HANDLER"));
    let described = server.cli(&["describe", "hello", "-o", "json"]);
    let described: serde_json::Value = serde_json::from_slice(&described.stdout).unwrap();
    assert_eq!(described["configuration"]["MemorySize"], 256);
    assert!(server.cli(&["rm", "hello"]).status.success());
    assert_eq!(server.cli(&["describe", "hello"]).status.code(), Some(5));
}

#[test]
fn a_failing_function_has_its_own_code() {
    let Some(runtimes) = runtimes() else { return };
    let dir = data_dir(&runtimes);
    let server = Server::start(dir.path(), &[]);
    let code = project("def handler(event, context):\n    raise ValueError('no')\n");
    let deployed = server.cli(&["deploy", code.path().to_str().unwrap(), "--name", "bad"]);
    assert!(deployed.status.success(), "{}", text(&deployed.stderr));
    let answer = server.cli(&["invoke", "bad"]);
    assert_eq!(answer.status.code(), Some(3));
    assert!(text(&answer.stdout).contains("ValueError"));
}

#[test]
fn dev_redeploys_at_every_save_and_survives_broken_code() {
    let Some(runtimes) = runtimes() else { return };
    let dir = data_dir(&runtimes);
    let server = Server::start(dir.path(), &[]);
    let endpoint = format!("http://{}", server.address);
    let code = project("def handler(event, context):\n    return 1\n");
    let mut dev = gust()
        .args([
            "dev",
            code.path().to_str().unwrap(),
            "--name",
            "edited",
            "--endpoint",
            &endpoint,
        ])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(dev.stderr.take().unwrap()).lines();
    let mut wait_for = |expected: &str| {
        let found = lines
            .by_ref()
            .map(Result::unwrap)
            .any(|line| line.contains(expected));
        assert!(found, "gust dev ended before it said {expected:?}");
    };
    let answer = || text(&server.cli(&["invoke", "edited"]).stdout).trim().to_owned();
    wait_for("watching");
    assert_eq!(answer(), "1");
    let save = |source: &str| fs::write(code.path().join("app.py"), source).unwrap();
    save("def handler(event, context):\n    return 2\n");
    wait_for("deployed");
    assert_eq!(answer(), "2");
    save("def handler(event, context:\n    return 3\n");
    wait_for("deployed");
    assert_eq!(server.cli(&["invoke", "edited"]).status.code(), Some(3));
    save("def handler(event, context):\n    return 4\n");
    wait_for("deployed");
    assert_eq!(answer(), "4");
    dev.kill().unwrap();
    dev.wait().unwrap();
}

#[test]
fn calls_are_measured_and_reported() {
    let Some(runtimes) = runtimes() else { return };
    let dir = data_dir(&runtimes);
    let server = Server::start(dir.path(), &[]);
    let code = project(ECHO);
    let deployed = server.cli(&["deploy", code.path().to_str().unwrap(), "--name", "measured"]);
    assert!(deployed.status.success(), "{}", text(&deployed.stderr));
    let reports = tempfile::tempdir().unwrap();
    let report_dir = reports.path().to_str().unwrap();
    let output = server.cli(&[
        "bench",
        "calls",
        "measured",
        "-n",
        "30",
        "--clients",
        "2",
        "--warm-up",
        "1",
        "-o",
        "json",
        "--report-dir",
        report_dir,
    ]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["rows"][0]["latency"]["count"], 30);
    assert!(
        reports.path().join("bench-calls.svg").is_file() && reports.path().join("bench-calls.json").is_file()
    );
}

/// What only micro-VMs have, or a loud skip.
fn has_kvm() -> bool {
    let found = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_ok();
    if !found {
        eprintln!("SKIPPED: /dev/kvm cannot be opened");
    }
    found
}

/// Runs a bench with a server of its own, and answers its report.
fn bench(arguments: &[&str], runtimes: &std::path::Path) -> serde_json::Value {
    let reports = tempfile::tempdir().unwrap();
    let data_dir = runtimes.parent().unwrap();
    let output = gust()
        .arg("bench")
        .args(arguments)
        .args(["-o", "json", "--data-dir"])
        .arg(data_dir)
        .arg("--report-dir")
        .arg(reports.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    for ending in ["json", "svg"] {
        let file = reports.path().join(format!("bench-{}.{ending}", arguments[0]));
        assert!(file.is_file(), "{}", file.display());
    }
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn cold_starts_are_measured_by_kind() {
    let Some(runtimes) = runtimes().filter(|_| has_kvm()) else {
        return;
    };
    let report = bench(
        &["coldstart", "-n", "2", "--warm-up", "1", "--no-peers"],
        &runtimes,
    );
    let rows = report["rows"].as_array().unwrap();
    assert_eq!(
        rows.len(),
        6,
        "two handlers, each unprepared, armed and as a process"
    );
    for row in rows {
        assert_eq!(row["latency"]["count"], 2, "{row}");
        assert!(row["parts"]["handler_us"].as_f64().unwrap() > 0.0, "{row}");
    }
    assert_eq!(report["targets"].as_array().unwrap().len(), 7);
    assert!(report["remarks"].to_string().contains("left out"), "{report}");
}

#[test]
fn warm_calls_and_bursts_are_measured() {
    let Some(runtimes) = runtimes() else { return };
    let report = bench(&["warm", "-n", "70", "--warm-up", "2"], &runtimes);
    assert_eq!(report["rows"].as_array().unwrap().len(), 10);
    let report = bench(&["burst", "-n", "20", "--rounds", "1"], &runtimes);
    assert_eq!(report["targets"][0]["met"], true, "{report}");
    let last = &report["rows"][1]["extra"];
    assert!(last["instances"].as_f64().unwrap() >= 1.0 && last["memory_mib"].as_f64().is_some());
}
