//! Tables for people: one column for each run.

use super::{
    figures::{Figures, Spread},
    starts::Part,
};
use crate::Origin;

/// Functions that are shown one by one.
const FUNCTIONS_SHOWN: usize = 10;

/// A heading with lines of label and one cell a run.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Section {
    pub(super) title: &'static str,
    pub(super) lines: Vec<Line>,
}

/// A label, and a cell for each run.
type Line = (String, Vec<String>);

/// The tables of some runs, side by side.
pub(super) fn sections(runs: &[Figures]) -> Vec<Section> {
    vec![
        Section {
            title: "Invocations",
            lines: invocations(runs),
        },
        Section {
            title: "Times of answered invocations",
            lines: times(runs),
        },
        Section {
            title: "Starts",
            lines: starts(runs),
        },
        Section {
            title: "Costs",
            lines: costs(runs),
        },
    ]
}

fn line(runs: &[Figures], label: &str, cell: &dyn Fn(&Figures) -> String) -> Line {
    (label.to_owned(), runs.iter().map(cell).collect())
}

/// A line for each figure of a spread.
fn spread(runs: &[Figures], label: &str, unit: &str, of: &dyn Fn(&Figures) -> Spread) -> Vec<Line> {
    type Figure = fn(Spread) -> f64;
    let figures: [(&str, Figure); 5] = [
        ("mean", |s| s.mean),
        ("p50", |s| s.p50),
        ("p90", |s| s.p90),
        ("p99", |s| s.p99),
        ("max", |s| s.max),
    ];
    figures
        .map(|(name, value)| line(runs, &format!("{label}, {name}{unit}"), &|f| number(value(of(f)))))
        .to_vec()
}

fn times(runs: &[Figures]) -> Vec<Line> {
    let mut lines = spread(runs, "response time", " (ms)", &|f| f.response_ms);
    lines.extend(spread(runs, "slowdown", "", &|f| f.slowdown));
    lines.extend(spread(runs, "slowdown by function", "", &|f| {
        f.slowdown_by_function
    }));
    lines.extend(spread(runs, "scheduling delay", " (ms)", &|f| f.scheduling_ms));
    lines.push(line(runs, "waited in a queue for 1 ms or more", &|f| {
        f.queued_ms.count.to_string()
    }));
    lines.extend(spread(runs, "their wait", " (ms)", &|f| f.queued_ms));
    lines
}

fn starts(runs: &[Figures]) -> Vec<Line> {
    type Parts = fn(&Figures) -> &[Part];
    let mut lines = vec![
        line(runs, "warm", &|f| f.starts.warm.to_string()),
        line(runs, "armed", &|f| f.starts.armed.to_string()),
        line(runs, "restored", &|f| f.starts.restored.to_string()),
        line(runs, "booted", &|f| f.starts.booted.to_string()),
        line(runs, "on regular instances", &|f| percent(f.regular_part)),
    ];
    lines.extend(spread(runs, "cold start", " (ms)", &|f| f.cold_ms));
    let kinds: [(&str, Parts); 2] = [("", |f| &f.parts), (" (Huawei's)", |f| &f.parts_huawei)];
    for (which, of) in kinds {
        let names = runs
            .first()
            .map(of)
            .unwrap_or_default()
            .iter()
            .map(|part| &part.name);
        lines.extend(names.enumerate().map(|(at, name)| {
            line(runs, &format!("{name}{which}, mean / p99 (ms)"), &|f| {
                of(f).get(at).map_or_else(String::new, |part| {
                    format!("{} / {}", number(part.ms.mean), number(part.ms.p99))
                })
            })
        }));
    }
    lines.push(line(runs, "pod utility ratio, p50", &|f| {
        number(f.utility_ratio.p50)
    }));
    lines.push(line(runs, "pods of less use than their start", &|f| {
        percent(f.utility_below_1)
    }));
    lines
}

fn invocations(runs: &[Figures]) -> Vec<Line> {
    let line = |label: &str, cell: &dyn Fn(&Figures) -> String| line(runs, label, cell);
    vec![
        line("run", &|f| match f.origin {
            Origin::Live => "live".to_owned(),
            Origin::Simulated => "simulated".to_owned(),
        }),
        line("invocations", &|f| f.invocations.to_string()),
        line("answered", &|f| f.endings.answered.to_string()),
        line("refused", &|f| f.endings.refused.to_string()),
        line("failed", &|f| f.endings.failed.to_string()),
        line("lost", &|f| f.endings.lost.to_string()),
        line("not sent", &|f| f.unsent.to_string()),
        line("generator late, p99 / max (ms)", &|f| match f.lateness_ms.count {
            0 => "-".to_owned(),
            _ => format!("{} / {}", number(f.lateness_ms.p99), number(f.lateness_ms.max)),
        }),
    ]
}

fn costs(runs: &[Figures]) -> Vec<Line> {
    let line = |label: &str, cell: &dyn Fn(&Figures) -> String| line(runs, label, cell);
    vec![
        line("memory (GiB s)", &|f| number(f.costs.memory_gib_s)),
        line("processor (s)", &|f| number(f.costs.cpu_s)),
        line("processor without handlers (s)", &|f| {
            number(f.costs.overhead_cpu_s)
        }),
        line("the same for a call (ms)", &|f| {
            number(f.costs.overhead_cpu_ms_per_call)
        }),
        line("regular instances, mean", &|f| number(f.costs.regular_mean)),
        line("emergency instances, mean", &|f| number(f.costs.emergency_mean)),
        line("instances, most", &|f| f.costs.instances_max.to_string()),
        line("instances' time that is busy", &|f| percent(f.costs.busy_part)),
    ]
}

/// The tables as text.
pub(super) fn render(runs: &[Figures]) -> String {
    let mut text = String::new();
    for run in runs {
        text.push_str(&format!("{}: {}\n", run.name, run.method));
    }
    if let Some(run) = runs.first() {
        text.push_str(&format!("{}\n", run.machine));
    }
    let sections = sections(runs);
    let width = |cells: &mut dyn Iterator<Item = &str>| cells.map(|c| c.chars().count()).max().unwrap_or(0);
    let all = || sections.iter().flat_map(|section| &section.lines);
    let first = width(&mut all().map(|(label, _)| label.as_str()));
    let columns: Vec<usize> = (0..runs.len())
        .map(|column| {
            width(&mut all().map(|(_, cells)| &*cells[column])).max(runs[column].name.chars().count())
        })
        .collect();
    for section in &sections {
        text.push_str(&format!("\n{:<first$}", section.title));
        for (run, width) in runs.iter().zip(&columns) {
            text.push_str(&format!("  {:>width$}", run.name));
        }
        text.push('\n');
        for (label, cells) in &section.lines {
            text.push_str(&format!("{label:<first$}"));
            for (cell, width) in cells.iter().zip(&columns) {
                text.push_str(&format!("  {cell:>width$}"));
            }
            text.push('\n');
        }
    }
    for run in runs {
        text.push_str(&format!("\n{}: functions with most invocations\n", run.name));
        for function in run.functions.iter().take(FUNCTIONS_SHOWN) {
            let name: String = function.name.chars().take(16).collect();
            text.push_str(&format!(
                "{name:<16}  {:>8} invocations  slowdown {:>8}  p99 {:>8} ms\n",
                function.invocations,
                number(function.slowdown),
                number(function.response_ms_p99)
            ));
        }
    }
    for (run, remark) in runs
        .iter()
        .flat_map(|run| run.remarks.iter().map(move |r| (run, r)))
    {
        text.push_str(&format!("\n{}: {remark}", run.name));
    }
    text.push('\n');
    text
}

fn percent(part: f64) -> String {
    format!("{:.1} %", part * 100.0)
}

/// Three significant digits, or all before the point.
pub(super) fn number(value: f64) -> String {
    let decimals = match value.abs() {
        0.0 => 0,
        v if v < 0.1 => 4,
        v if v < 10.0 => 2,
        v if v < 100.0 => 1,
        _ => 0,
    };
    format!("{value:.decimals$}")
}
