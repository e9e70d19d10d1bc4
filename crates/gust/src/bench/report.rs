//! A report: figures with their machine, as a table, as JSON and as a plot.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::{
    calls::Sample,
    figures::{Chart, Table},
    machine::Machine,
    plot,
    stats::Summary,
    targets::Target,
};
use crate::output::{duration, table};

/// Parts of a call's time that the server reports.
const PARTS: &[&str] = &[
    "queue",
    "scheduling",
    "worker",
    "fetch",
    "map",
    "fill",
    "faults",
    "boot",
    "runtime",
    "handler",
];

/// One line of a report.
#[derive(Debug, Clone)]
pub struct Row {
    /// It is a peer's, not Gust's.
    pub is_peer: bool,
    /// What was measured.
    pub label: String,
    /// Its figures.
    pub summary: Summary,
    /// Further figures, each with its name and unit in it (`requests_per_s`).
    pub extra: Vec<(String, f64)>,
    /// Parts of the median, by name: where the time went.
    pub parts: Vec<(String, Duration)>,
}

impl Row {
    /// The figures of durations.
    pub fn of_durations(label: impl Into<String>, durations: &[Duration]) -> Result<Self> {
        Ok(Self {
            is_peer: false,
            label: label.into(),
            summary: Summary::of(durations).context("nothing was measured")?,
            extra: Vec::new(),
            parts: Vec::new(),
        })
    }

    /// The figures of calls, with the medians of their parts where the server reports any.
    pub fn of(label: impl Into<String>, samples: &[Sample]) -> Result<Self> {
        let latencies: Vec<Duration> = samples.iter().map(|sample| sample.latency).collect();
        let median = |pick: &dyn Fn(&Sample) -> Option<u64>| {
            let values: Vec<Duration> = samples
                .iter()
                .filter_map(pick)
                .map(Duration::from_nanos)
                .collect();
            Summary::of(&values).map(|summary| summary.p50)
        };
        let mut parts = Vec::new();
        for part in PARTS {
            let name = format!("{part}_ns");
            let value = median(&|sample| sample.timings[&name].as_u64());
            parts.extend(value.map(|value| ((*part).to_owned(), value)));
        }
        // What the client saw beyond the control plane's share: HTTP, its parsing, and the loopback interface.
        let http = |sample: &Sample| {
            let latency = u64::try_from(sample.latency.as_nanos()).ok()?;
            latency.checked_sub(sample.timings["total_ns"].as_u64()?)
        };
        parts.extend(median(&http).map(|part| ("http".to_owned(), part)));
        Ok(Self {
            parts,
            ..Self::of_durations(label, &latencies)?
        })
    }

    /// A duration that someone else has published, and that was not measured here.
    pub fn published(label: &str, duration: Duration) -> Self {
        let summary = Summary {
            count: 0,
            min: duration,
            p50: duration,
            p90: duration,
            p99: duration,
            max: duration,
            mean: duration,
        };
        Self {
            is_peer: true,
            label: format!("{label} (published, not measured here)"),
            summary,
            extra: Vec::new(),
            parts: Vec::new(),
        }
    }

    /// The row of a peer.
    pub fn into_peer(self) -> Self {
        Self {
            is_peer: true,
            ..self
        }
    }

    /// The row with how many calls were answered in a second.
    pub fn with_rate(self, calls: usize, elapsed: Duration) -> Self {
        self.with("requests_per_s", calls as f64 / elapsed.as_secs_f64())
    }

    /// The row with a further figure.
    pub fn with(mut self, name: &str, value: f64) -> Self {
        self.extra.push((name.to_owned(), value));
        self
    }
}

/// A measurement's result.
#[derive(Debug, Clone)]
pub struct Report {
    /// Name, fit for a file name.
    pub name: String,
    /// One sentence on what was measured and how.
    pub method: String,
    /// The machine.
    pub machine: Machine,
    /// The figures.
    pub rows: Vec<Row>,
    /// Figures that are no durations.
    pub tables: Vec<Table>,
    /// Curves.
    pub chart: Option<Chart>,
    /// What the project has set itself, and whether it was reached here.
    pub targets: Vec<Target>,
    /// What a reader must know: what was left out, and why.
    pub remarks: Vec<String>,
}

impl Report {
    /// The report for people.
    pub fn to_table(&self) -> String {
        let mut head: Vec<String> = ["", "N", "MIN", "P50", "P90", "P99", "MAX"]
            .map(str::to_owned)
            .to_vec();
        let extras = unique(
            self.rows
                .iter()
                .flat_map(|row| row.extra.iter().map(|(name, _)| name.clone())),
        );
        head.extend(extras.iter().cloned());
        let mut lines = vec![head];
        for Row {
            is_peer: _,
            label,
            summary,
            extra,
            parts: _,
        } in &self.rows
        {
            let mut line = vec![label.clone(), summary.count.to_string()];
            line.extend([summary.min, summary.p50, summary.p90, summary.p99, summary.max].map(duration));
            for name in &extras {
                let value = extra.iter().find(|(found, _)| found == name);
                line.push(value.map(|(_, value)| format!("{value:.1}")).unwrap_or_default());
            }
            lines.push(line);
        }
        let mut text = format!("{}: {}\n{}\n", self.name, self.method, self.machine.line());
        if !self.rows.is_empty() {
            text.push_str(&format!("\n{}", table(&lines)));
        }
        let names = unique(
            self.rows
                .iter()
                .flat_map(|row| row.parts.iter().map(|(name, _)| name.clone())),
        );
        if !names.is_empty() {
            text.push_str("\nmedian of each part\n");
            text.push_str(&table(&self.part_lines(&names)));
        }
        for figures in &self.tables {
            text.push_str(&format!("\n{}", figures.to_text()));
        }
        if !self.targets.is_empty() {
            text.push_str("\ntargets\n");
            let lines: Vec<Vec<String>> = self.targets.iter().map(Target::to_line).collect();
            text.push_str(&table(&lines));
        }
        for remark in &self.remarks {
            text.push_str(&format!("\nNOTE: {remark}"));
        }
        if !self.remarks.is_empty() {
            text.push('\n');
        }
        text
    }

    fn part_lines(&self, names: &[String]) -> Vec<Vec<String>> {
        let mut head = vec![String::new()];
        head.extend(names.iter().map(|name| name.to_uppercase()));
        let mut lines = vec![head];
        for row in &self.rows {
            let mut line = vec![row.label.clone()];
            for name in names {
                let part = row.parts.iter().find(|(found, _)| found == name);
                line.push(part.map(|(_, part)| duration(*part)).unwrap_or_default());
            }
            lines.push(line);
        }
        lines
    }

    /// The report for programs.
    pub fn to_json(&self) -> Value {
        let rows = self.rows.iter().map(|row| {
            let us = |duration: &Duration| duration.as_nanos() as f64 / 1000.0;
            let parts: Map<String, Value> = row
                .parts
                .iter()
                .map(|(name, part)| (format!("{name}_us"), json!(us(part))))
                .collect();
            let extra: Map<String, Value> = row
                .extra
                .iter()
                .map(|(name, value)| (name.clone(), json!(value)))
                .collect();
            json!({
                "label": row.label,
                "peer": row.is_peer,
                "latency": row.summary.to_json(),
                "parts": parts,
                "extra": extra,
            })
        });
        json!({
            "name": self.name,
            "method": self.method,
            "version": env!("CARGO_PKG_VERSION"),
            "machine": self.machine.to_json(),
            "rows": rows.collect::<Vec<_>>(),
            "tables": self.tables.iter().map(Table::to_json).collect::<Vec<_>>(),
            "chart": self.chart.as_ref().map(Chart::to_json),
            "targets": self.targets.iter().map(Target::to_json).collect::<Vec<_>>(),
            "remarks": self.remarks,
        })
    }

    /// Writes JSON, plot and chart into a directory.
    pub fn write(&self, dir: &Path) -> Result<()> {
        fs::create_dir_all(dir).with_context(|| format!("make directory {}", dir.display()))?;
        let path = dir.join(format!("bench-{}.json", self.name));
        fs::write(&path, format!("{:#}\n", self.to_json()))
            .with_context(|| format!("write {}", path.display()))?;
        if let Some(chart) = &self.chart {
            chart.write(&dir.join(format!("bench-{}-curve.svg", self.name)))?;
        }
        match self.rows.is_empty() {
            true => Ok(()),
            false => plot::write(self, &dir.join(format!("bench-{}.svg", self.name))),
        }
    }
}

fn unique(names: impl Iterator<Item = String>) -> Vec<String> {
    let mut seen = Vec::new();
    for name in names {
        if !seen.contains(&name) {
            seen.push(name);
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_written_whole() {
        let samples: Vec<Duration> = (1..=200).map(|n| Duration::from_micros(n * 10)).collect();
        let row = |label: &str| Row {
            parts: vec![("map".to_owned(), Duration::from_micros(40))],
            ..Row::of_durations(label, &samples)
                .unwrap()
                .with("requests_per_s", 1234.5)
        };
        let report = Report {
            name: "sample".to_owned(),
            method: "made up".to_owned(),
            machine: Machine::this(),
            rows: vec![row("armed"), row("restored <&>").into_peer()],
            tables: Vec::new(),
            chart: None,
            targets: vec![Target::at_most(
                "armed: median",
                Duration::from_micros(1),
                Duration::from_micros(2),
            )],
            remarks: vec!["nothing was left out".to_owned()],
        };
        let text = report.to_table();
        assert!(text.contains("restored <&>") && text.contains("MISSED") && text.contains("NOTE: nothing"));
        let dir = tempfile::tempdir().unwrap();
        report.write(dir.path()).unwrap();
        let json: Value =
            serde_json::from_str(&fs::read_to_string(dir.path().join("bench-sample.json")).unwrap()).unwrap();
        assert_eq!(json["rows"][0]["latency"]["p50_us"], json!(1000.0));
        assert_eq!(
            (&json["rows"][1]["peer"], &json["targets"][0]["met"]),
            (&json!(true), &json!(false))
        );
        let svg = fs::read_to_string(dir.path().join("bench-sample.svg")).unwrap();
        assert!(
            svg.starts_with("<svg") && svg.contains("restored &lt;&amp;&gt;") && svg.ends_with("</svg>\n")
        );
    }
}
