//! `--part exits`: how often one event makes a guest come out to its worker, and what for.
//!
//! Counted in an instance that was armed: its first event, and one after it. Up to the answer, and up to the wait for the next
//! event, which is off the caller's path.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use gust_node::Scratch;
use gust_worker::{
    kvm::{Exits, Sandbox},
    protocol::MemoryMode,
};

use super::{
    Settings,
    function::{BOTO3, ECHO, NODE_ECHO, PLAIN},
    guest::until_waits,
    lab::{Lab, Layout},
};
use crate::bench::{figures::Table, handlers, machine::Machine, report::Report, targets::Target};

/// Exits that a Python echo may need.
const ECHO_EXITS_MAX: u64 = 3;

const COLUMNS: [&str; 6] = [
    "exits",
    "system_calls",
    "exceptions",
    "preemptions",
    "hypervisor",
    "exits_until_next_wait",
];

/// Counts.
pub fn run(settings: &Settings) -> Result<Report> {
    let machine = Machine::this();
    let mut table = Table::new("exits of one event", &COLUMNS);
    let (mut targets, mut remarks) = (Vec::new(), Vec::new());
    for function in [ECHO, PLAIN, BOTO3, NODE_ECHO] {
        let Some(image) = settings.runtime(function.runtime, &mut remarks) else {
            continue;
        };
        let scratch = Scratch::new();
        let events = [handlers::event(), handlers::another_event()];
        let counted = count(&Lab::prepare(&image, &function, events, &|| {
            scratch.file().map(Into::into)
        })?)
        .with_context(|| format!("count exits of {}", function.name))?;
        for (which, (answered, waiting, calls)) in ["first event", "further event"].iter().zip(counted) {
            let label = format!("{}: {which}", function.name);
            let numbers = [
                answered.entries,
                answered.system_calls,
                answered.exceptions,
                answered.preemptions,
                answered.own(),
                waiting.entries,
            ];
            let numbers = numbers.map(|number| Some(number as f64)).to_vec();
            remarks.push(format!("{label}: {}", named(&calls)));
            if function.name == ECHO.name {
                let what = format!("{label}: exits until the next wait");
                targets.push(Target::count_at_most(what, ECHO_EXITS_MAX, waiting.entries));
            }
            table.lines.push((label, numbers));
        }
    }
    Ok(Report {
        name: "sandbox-exits".to_owned(),
        method: "one event in an armed instance, and one after it".to_owned(),
        machine,
        rows: Vec::new(),
        tables: vec![table],
        chart: None,
        targets,
        remarks,
    })
}

/// Exits to the answer, exits to the next wait, and the system calls of both by name.
type Counted = (Exits, Exits, BTreeMap<&'static str, u64>);

fn count(lab: &Lab) -> Result<[Counted; 2]> {
    let room = lab.room(Layout::Armed)?;
    let mut sandbox = lab.lay_out(room, Layout::Armed, 0, MemoryMode::Reuse)?;
    Ok([one(lab, &mut sandbox, 0)?, one(lab, &mut sandbox, 1)?])
}

fn one(lab: &Lab, sandbox: &mut Sandbox, n: u64) -> Result<Counted> {
    let before = sandbox.exits();
    let calls_before: BTreeMap<_, _> = sandbox.system_calls().collect();
    lab.answer(sandbox, n)?;
    let answered = sandbox.exits().since(before);
    until_waits(sandbox)?;
    let waiting = sandbox.exits().since(before);
    let calls = sandbox
        .system_calls()
        .map(|(name, count)| (name, count - calls_before.get(name).copied().unwrap_or(0)))
        .filter(|(_, count)| *count > 0)
        .collect();
    Ok((answered, waiting, calls))
}

/// System calls by name, most frequent first.
fn named(calls: &BTreeMap<&'static str, u64>) -> String {
    let mut calls: Vec<_> = calls.iter().collect();
    calls.sort_by_key(|(name, count)| (std::cmp::Reverse(**count), **name));
    let named: Vec<String> = calls
        .into_iter()
        .map(|(name, count)| format!("{name} {count}"))
        .collect();
    named.join(", ")
}
