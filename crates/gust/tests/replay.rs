//! `gust trace`, `replay`, `simulate` and `report` as programs. How long things take is never asserted.

mod common;

use std::{fs, path::Path};

use common::{gust, runtimes, text};
use serde_json::Value;

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../traces/azure2019-100");

/// Runs the program, which must do what it is told, and takes what it prints as JSON.
fn json(arguments: &[&str], paths: &[(&str, &Path)]) -> Value {
    let mut command = gust();
    command.args(arguments).args(["--output", "json"]);
    for (option, path) in paths {
        command.arg(option).arg(path);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Runs the program, which must refuse, and takes what it says.
fn refused(arguments: &[&str]) -> String {
    let output = common::run(arguments);
    assert!(!output.status.success(), "{arguments:?}");
    text(&output.stderr)
}

#[test]
fn traces_are_described_drawn_and_made() {
    let dir = tempfile::tempdir().unwrap();
    let shown = json(&["trace", "describe", SAMPLE], &[]);
    assert_eq!(
        (&shown["functions"], &shown["invocations"]),
        (&100.into(), &339_657.into())
    );
    let drawn = dir.path().join("drawn.csv.gz");
    let shown = json(&["trace", "draw", SAMPLE, "--minutes", "5"], &[("--out", &drawn)]);
    let again = json(&["trace", "describe", drawn.to_str().unwrap()], &[]);
    assert_eq!(again["invocations"], shown["invocations"]);
    let made = dir.path().join("made.csv");
    let arguments = [
        "trace",
        "make",
        "burst",
        "--functions",
        "3",
        "--calls",
        "4",
        "--every",
        "30",
        "--minutes",
        "1",
    ];
    assert_eq!(json(&arguments, &[("--out", &made)])["invocations"], 24);
}

#[test]
fn what_cannot_be_used_is_refused_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.csv");
    fs::write(&path, "app,func,end_timestamp,duration\na,f,1,0.1\na,f,2,soon\n").unwrap();
    let trace = path.to_str().unwrap();
    let said = refused(&["trace", "describe", trace]);
    assert!(
        said.contains(&format!(
            "read {trace}, line 3, column duration: \"soon\" is no amount"
        )),
        "{said}"
    );
    let said = refused(&["simulate", SAMPLE, "--from-minute", "480"]);
    assert!(said.contains("there is nothing from minute 480 on"), "{said}");
    let said = refused(&["report", trace]);
    assert!(said.contains("it is not the file of a run"), "{said}");
    assert!(refused(&["replay", trace, "--mode", "dual"]).contains("--up"));
}

#[test]
fn a_seed_repeats_a_simulation_and_reports_stand_side_by_side() {
    let dir = tempfile::tempdir().unwrap();
    let simulate = |name: &str, modes: &str| {
        let out = dir.path().join(name);
        let arguments = [
            "simulate",
            SAMPLE,
            "--minutes",
            "5",
            "--nodes",
            "3",
            "--mode",
            modes,
        ];
        let figures = json(&arguments, &[("--out", &out)]);
        (figures, out)
    };
    let (figures, out) = simulate("first", "dual,async");
    let names: Vec<&str> = figures
        .as_array()
        .unwrap()
        .iter()
        .map(|f| f["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["dual", "async"]);
    for run in figures.as_array().unwrap() {
        assert_eq!(run["endings"]["answered"], run["invocations"], "{run}");
    }
    let (again, _) = simulate("second", "dual");
    for what in ["response_ms", "slowdown", "costs", "starts"] {
        assert_eq!(again[0][what], figures[0][what], "{what}");
    }
    let runs = [out.join("dual.run"), out.join("async.run")].map(|path| path.to_str().unwrap().to_owned());
    let both = dir.path().join("both");
    let report = json(&["report", &runs[0], &runs[1], "--csv"], &[("--out", &both)]);
    assert_eq!(report, figures);
    let lines = fs::read_to_string(both.join("dual.csv")).unwrap().lines().count() as u64;
    assert_eq!(lines, 1 + figures[0]["invocations"].as_u64().unwrap());
    let page = fs::read_to_string(both.join("report.html")).unwrap();
    assert!(page.contains("<h1>Replay: dual, async</h1>"));
}

/// A minute of calls against a real server: every one is sent, answered, and accounted for.
fn replay(isolation: &str, language: &str) {
    let Some(runtimes) = runtimes() else { return };
    if language == "native" && !runtimes.join("provided.al2023.img").is_file() {
        eprintln!("SKIPPED: there is no runtime provided.al2023");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("t.csv");
    let arguments = [
        "trace",
        "make",
        "poisson",
        "--functions",
        "3",
        "--rate",
        "5",
        "--minutes",
        "1",
        "--duration-ms",
        "5",
        "--memory-mib",
        "2",
    ];
    let made = json(&arguments, &[("--out", &trace)]);
    let data_dir = runtimes.parent().unwrap();
    // Six times as fast, so that the test is short.
    let arguments = [
        "replay",
        trace.to_str().unwrap(),
        "--speed",
        "6",
        "--up",
        "--isolation",
        isolation,
        "--language",
        language,
        "--csv",
    ];
    let out = dir.path().join("out");
    let figures = json(&arguments, &[("--data-dir", data_dir), ("--out", &out)]);
    let run = &figures[0];
    assert_eq!(
        (&run["unsent"], &run["invocations"]),
        (&0.into(), &made["invocations"]),
        "{run:#}"
    );
    assert_eq!(
        run["endings"]["answered"], made["invocations"],
        "{:#}",
        run["remarks"]
    );
    assert_eq!(run["functions"].as_array().unwrap().len(), 3);
    let starts = &run["starts"];
    let cold: u64 = ["armed", "restored", "booted"]
        .iter()
        .map(|kind| starts[kind].as_u64().unwrap())
        .sum();
    assert!(cold >= 3, "each function has a first call: {starts}");
    let all = cold + starts["warm"].as_u64().unwrap();
    assert_eq!(all, made["invocations"].as_u64().unwrap());
    // A call takes at least what it was asked to, as far as its work was measured right; memory was there to be used.
    assert!(run["costs"]["memory_gib_s"].as_f64().unwrap() > 0.0);
    assert!(run["costs"]["cpu_s"].as_f64().unwrap() > 0.0);
    assert!(run["costs"]["instances_max"].as_u64().unwrap() >= 3);
    let records = fs::read_to_string(out.join("live.csv")).unwrap();
    assert_eq!(records.lines().count() as u64, 1 + all);
}

fn replay_in_micro_vms(language: &str) {
    match fs::File::options().read(true).write(true).open("/dev/kvm") {
        Ok(_) => replay("kvm", language),
        Err(error) => eprintln!("SKIPPED: /dev/kvm cannot be opened: {error}"),
    }
}

#[test]
fn a_minute_is_replayed_in_processes() {
    replay("process", "python");
}

#[test]
fn a_minute_is_replayed_in_micro_vms() {
    replay_in_micro_vms("python");
}

#[test]
fn a_minute_is_replayed_natively_in_micro_vms() {
    replay_in_micro_vms("native");
}
