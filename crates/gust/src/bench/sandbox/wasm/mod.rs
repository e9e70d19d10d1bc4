//! `--part wasm`: the same Python handler under wasmtime, as a process, and in a sandbox.
//!
//! componentize-py puts CPython, compiled to WebAssembly, and the handler into one component that is initialised ahead: its
//! memory is a snapshot, too. wasmtime runs it through its Python package, whose own share of a call is shown (`empty`). Both
//! come from PyPI into a virtual environment of their own in the cache. wasmtime's pooling allocator cannot be asked for
//! there; memory is copy-on-write.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use gust_node::Scratch;
use serde_json::Value;
use tempfile::TempDir;

use super::{
    Settings,
    function::PLAIN,
    lab::Lab,
    layouts::{self, Way},
    leave_out,
};
use crate::{
    bench::{
        children,
        figures::Table,
        handlers,
        machine::Machine,
        peers::{Python, Venv},
        report::{Report, Row},
        targets::Target,
    },
    output::spinner,
    paths,
};

/// What comes from PyPI.
const PACKAGES: &[&str] = &["componentize-py==0.25.1", "wasmtime==50.0.1"];

/// Directory of the environment in the cache.
const VENV: &str = "bench-wasm-venv";

/// How much longer than under a wasm hypervisor a call may take: where Nexus says that it stays.
const TIMES_MAX: f64 = 1.2;

/// Processes that are started for each sample that was asked for.
const PROCESS_SHARE: u64 = 5;

/// What a program that takes the time of its own calls has said.
#[derive(Debug)]
struct Said {
    samples: Value,
    answers: Value,
}

impl Said {
    fn durations(&self, kind: &str) -> Result<Vec<Duration>> {
        let list = self.samples[kind]
            .as_array()
            .with_context(|| format!("the program told no {kind}"))?;
        list.iter()
            .map(|ns| {
                ns.as_u64()
                    .map(Duration::from_nanos)
                    .context("a sample is no number")
            })
            .collect()
    }

    fn row(&self, label: &str, kind: &str) -> Result<Row> {
        Ok(Row::of_durations(label, &self.durations(kind)?)?.into_peer())
    }
}

/// Measures.
pub fn run(settings: &Settings) -> Result<Report> {
    let machine = Machine::this();
    let dir = TempDir::with_prefix("gust-bench-wasm-").context("make a directory")?;
    let code = dir.path().join("code");
    PLAIN.write(&code)?;
    let events = [handlers::event(), handlers::another_event()];
    let mut remarks = Vec::new();
    let (mut rows, mut targets) = (Vec::new(), Vec::new());
    let mut table = Table::new("wasmtime: parts, in us", &["p50"]);
    let wasm = Venv::make_with(&paths::cache_dir(), VENV, PACKAGES)
        .and_then(|venv| under_wasmtime(&venv, &code, dir.path(), &events, settings.rounds));
    let mut own = Vec::new();
    if let Some(image) = settings.runtime(PLAIN.runtime, &mut remarks) {
        let scratch = Scratch::new();
        let files = || scratch.file().map(Into::into);
        let lab = Lab::prepare(&image, &PLAIN, events.clone(), &files)?;
        own = layouts::all_ways(&lab, PLAIN.name, settings.rounds)?;
        rows.extend(own.iter().map(|(_, row)| row.clone()));
    }
    match &wasm {
        Ok(said) => {
            let (cold, warm) = (
                said.row("wasmtime: instantiated and called", "cold")?,
                said.row("wasmtime: warm", "warm")?,
            );
            for part in ["compiled", "instantiated", "empty"] {
                let us = said.row(part, part)?.summary.p50.as_secs_f64() * 1e6;
                table.lines.push((part.to_owned(), vec![Some(us)]));
            }
            targets = held_against(&own, &cold, &warm);
            rows.extend([cold, warm]);
            remarks.push(format!("peers: {}", PACKAGES.join(", ")));
        }
        Err(error) => leave_out(&mut remarks, "wasmtime", error),
    }
    match natively(&code, &events, settings.rounds) {
        Ok((said, started)) => {
            if let Ok(wasm) = &wasm {
                ensure!(
                    wasm.answers == said.answers,
                    "wasmtime answered {}, a process {}",
                    wasm.answers,
                    said.answers
                );
            }
            rows.extend([said.row("python3: warm", "warm")?, started]);
        }
        Err(error) => leave_out(&mut remarks, "bare python3", &error),
    }
    Ok(Report {
        name: "sandbox-wasm".to_owned(),
        method: format!(
            "{} samples of {}, the same handler everywhere",
            settings.rounds, PLAIN.name
        ),
        machine,
        rows,
        tables: vec![table],
        chart: None,
        targets,
        remarks,
    })
}

/// What is cold against what is cold there, and warm against warm.
fn held_against(own: &[(Way, Row)], cold: &Row, warm: &Row) -> Vec<Target> {
    let target = |row: &Row, against: &Row| {
        let what = format!("{} against {}", row.label, against.label);
        Target::times_as_long(what, TIMES_MAX, row.summary.p50, against.summary.p50)
    };
    own.iter()
        .filter_map(|(way, row)| match *way {
            Way::UNPREPARED => Some(target(row, cold)),
            Way::Warm => Some(target(row, warm)),
            Way::LaidOut(_) | Way::Rewound => None,
        })
        .collect()
}

/// Makes the component and runs it.
fn under_wasmtime(venv: &Venv, code: &Path, dir: &Path, events: &[Value; 2], rounds: u64) -> Result<Said> {
    let write = |name: &str, text: &str| {
        let path = dir.join(name);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    };
    write("world.wit", include_str!("world.wit"))?;
    write("entry.py", include_str!("entry.py"))?;
    write("host.py", include_str!("host.py"))?;
    let component = dir.join("function.wasm");
    let spinner = spinner("making a component of the handler");
    let mut make = Command::new(venv.program("componentize-py"));
    make.current_dir(dir)
        .args([
            "-d",
            "world.wit",
            "-w",
            "function",
            "componentize",
            "entry",
            "-p",
            ".",
            "-p",
        ])
        .arg(code)
        .arg("-o")
        .arg(&component);
    let made = make.output().context("start componentize-py");
    spinner.finish_and_clear();
    let made = made?;
    if !made.status.success() {
        let said = String::from_utf8_lossy(&made.stderr);
        bail!(
            "componentize-py failed: {}",
            said.lines().last().unwrap_or_default()
        );
    }
    let mut host = Command::new(venv.program("python3"));
    host.arg(dir.join("host.py"))
        .arg(&component)
        .arg(rounds.to_string());
    said(&mut host, events)
}

/// The handler in a process: its calls, and the start of a process for each.
fn natively(code: &Path, events: &[Value; 2], rounds: u64) -> Result<(Said, Row)> {
    let python = Python::find(Path::new("python3"))?;
    let mut loops = Command::new(python.program());
    loops
        .args(["-c", include_str!("native.py")])
        .arg(code)
        .arg(rounds.to_string());
    let said = said(&mut loops, events)?;
    let mut latencies = Vec::new();
    for _ in 0..(rounds / PROCESS_SHARE).max(1) {
        let (latency, answer) = python.sample(code, events[0].to_string().as_bytes())?;
        ensure!(answer == said.answers[0], "a process answered {answer}");
        latencies.push(latency);
    }
    let started = Row::of_durations("python3: a process for each", &latencies)?.into_peer();
    Ok((said, started))
}

/// Gives a program both events, and takes what it says at its end.
fn said(command: &mut Command, events: &[Value; 2]) -> Result<Said> {
    let shown = format!("{:?}", command.get_program());
    let mut child = children::piped(command)?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    let text = format!("{}\n{}\n", events[0], events[1]);
    // Both lines fit into a pipe. A program that has failed already says why at its end.
    let _written = std::io::Write::write_all(&mut stdin, text.as_bytes());
    drop(stdin);
    let output = child
        .wait_with_output()
        .with_context(|| format!("wait for {shown}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{shown} failed: {}", said.lines().last().unwrap_or_default());
    }
    let mut said: Value =
        serde_json::from_slice(&output.stdout).with_context(|| format!("read what {shown} said"))?;
    Ok(Said {
        samples: said["samples"].take(),
        answers: said["answers"].take(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_read() {
        let said = Said {
            samples: serde_json::json!({ "warm": [1000, 3000], "bad": ["x"] }),
            answers: Value::Null,
        };
        let us = Duration::from_micros;
        assert_eq!(said.durations("warm").unwrap(), [us(1), us(3)]);
        assert!(said.durations("bad").is_err() && said.durations("cold").is_err());
    }

    #[test]
    fn a_program_that_fails_is_told() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo no luck >&2; exit 1"]);
        let error = said(&mut command, &[Value::Null, Value::Null]).unwrap_err();
        assert!(error.to_string().contains("no luck"), "{error}");
    }
}
