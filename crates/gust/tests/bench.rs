//! `gust bench sandbox` as a program: what it counts must be right. How long things take is never asserted.

mod common;

use std::fs;

use common::{gust, runtimes, text};
use serde_json::Value;

fn has_kvm() -> bool {
    let kvm = fs::File::options().read(true).write(true).open("/dev/kvm");
    if kvm.is_err() {
        eprintln!("SKIPPED: /dev/kvm cannot be opened");
    }
    kvm.is_ok()
}

/// Runs a part, and takes its report.
fn report(part: &str, arguments: &[&str]) -> Value {
    report_of("sandbox", part, arguments)
}

fn report_of(bench: &str, part: &str, arguments: &[&str]) -> Value {
    let dir = tempfile::tempdir().unwrap();
    let output = gust()
        .args(["bench", bench, "--output", "json", "--part", part, "--report-dir"])
        .arg(dir.path())
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "{part}: {}", text(&output.stderr));
    let written = fs::read_to_string(dir.path().join(format!("bench-{bench}-{part}.json"))).unwrap();
    let report: Value = serde_json::from_str(&written).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap(), report);
    report
}

/// The row whose label is this.
fn row<'a>(report: &'a Value, label: &str) -> &'a Value {
    let rows = report["rows"].as_array().unwrap();
    rows.iter()
        .find(|row| row["label"] == label)
        .unwrap_or_else(|| panic!("no row {label:?} in {rows:#?}"))
}

#[test]
fn the_same_program_runs_in_a_guest_and_natively() {
    if !has_kvm() {
        return;
    }
    let report = report("syscall", &["-n", "2"]);
    for place in ["Gust", "native process"] {
        for what in [
            "null system call",
            "two switches by futex",
            "first write to a page",
            "clock_gettime, vDSO",
        ] {
            let row = row(&report, &format!("{what}: {place}"));
            assert_eq!(row["latency"]["count"], 100, "{row}");
            assert_eq!(row["peer"], place != "Gust", "{row}");
        }
    }
}

#[test]
fn an_echo_comes_out_to_read_and_to_write() {
    let Some(runtimes) = runtimes().filter(|_| has_kvm()) else {
        return;
    };
    let data_dir = runtimes.parent().unwrap().to_str().unwrap();
    let report = report("exits", &["-n", "1", "--data-dir", data_dir]);
    let lines = report["tables"][0]["lines"].as_array().unwrap();
    let echo: Vec<&Value> = lines
        .iter()
        .filter(|line| line["label"].as_str().unwrap().starts_with("echo: "))
        .collect();
    assert_eq!(echo.len(), 2, "{lines:#?}");
    for line in echo {
        assert_eq!(line["system_calls"], 1.0, "{line}");
        assert!(line["exits_until_next_wait"].as_f64().unwrap() <= 3.0, "{line}");
    }
}

#[test]
fn every_layout_answers() {
    let Some(runtimes) = runtimes().filter(|_| has_kvm()) else {
        return;
    };
    let data_dir = runtimes.parent().unwrap().to_str().unwrap();
    let report = report("layouts", &["-n", "3", "--data-dir", data_dir]);
    for layout in [
        "no layout",
        "compact layout",
        "unprepared",
        "base-shaped",
        "armed",
        "copied back",
    ] {
        let row = row(&report, &format!("json-hash: {layout}"));
        assert_eq!(row["latency"]["count"], 3, "{row}");
    }
    let faults = |layout: &str| {
        let row = row(&report, &format!("json-hash: {layout}"));
        row["extra"]["faults"].as_f64().unwrap()
    };
    // Zero where KVM does not count them.
    assert!(faults("unprepared") <= faults("no layout") && faults("armed") <= faults("unprepared"));
}

#[test]
fn a_fleet_of_many_functions_and_nodes_is_measured() {
    let size = [
        "--scale-functions",
        "50",
        "--scale-nodes",
        "5",
        "--scale-rate",
        "200",
    ];
    let report = report_of("control", "scale", &[&["--seconds", "1"], &size[..]].concat());
    let decisions = row(&report, "a decision (the policies and their lock)");
    assert!(
        decisions["latency"]["count"].as_u64().unwrap() > 100,
        "{decisions}"
    );
    let line = &report["tables"][0]["lines"][0];
    assert_eq!(line["refused"], 0.0, "{line}");
    assert!(
        line["emergency"].as_f64().unwrap() + line["regular"].as_f64().unwrap() > 0.0,
        "{line}"
    );
}

#[test]
fn cold_starts_are_offered_at_a_rate() {
    let Some(runtimes) = runtimes() else { return };
    let data_dir = runtimes.parent().unwrap().to_str().unwrap();
    let size = [
        "--seconds",
        "1",
        "--functions",
        "5",
        "--rates",
        "20",
        "--data-dir",
        data_dir,
    ];
    let report = report_of("control", "cold", &size);
    let offered = row(&report, "20 a second");
    assert_eq!(offered["extra"]["failed"], 0.0, "{offered}");
    assert_eq!(offered["extra"]["cold_percent"], 100.0, "{offered}");
    assert!(
        offered["latency"]["min_us"].as_f64().unwrap() >= 40_000.0,
        "{offered}"
    );
}

#[test]
fn no_call_fails_while_servers_take_over() {
    let Some(runtimes) = runtimes() else { return };
    let data_dir = runtimes.parent().unwrap().to_str().unwrap();
    let report = report_of("control", "handover", &["--seconds", "1", "--data-dir", data_dir]);
    for load in ["before", "while servers take over", "after"] {
        let offered = row(&report, load);
        assert_eq!(offered["extra"]["failed"], 0.0, "{offered}");
        assert!(offered["latency"]["count"].as_u64().unwrap() > 10, "{offered}");
    }
    let during = row(&report, "while servers take over");
    assert!(during["extra"]["hand_overs"].as_f64().unwrap() >= 1.0, "{during}");
}

#[test]
fn what_cannot_be_measured_is_refused() {
    for (arguments, said) in [
        (&["-n", "0"][..], "between 1 and"),
        (&["--part", "nothing"], "invalid value"),
        (&["--part", "density", "--clones", "0"], "--clones"),
        (&["--part", "reap", "--scratch-dir", "/not/there"], "/not/there"),
    ] {
        if arguments.contains(&"reap") && !has_kvm() {
            continue;
        }
        let output = gust()
            .args(["bench", "sandbox"])
            .args(arguments)
            .output()
            .unwrap();
        let stderr = text(&output.stderr);
        assert!(
            !output.status.success() && stderr.contains(said),
            "{arguments:?}: {stderr}"
        );
    }
}
