//! A report: figures with their machine, as a table, as JSON and as a plot.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{machine::Machine, plot, stats::Summary};
use crate::output::{duration, table};

/// One line of a report.
#[derive(Debug, Clone)]
pub struct Row {
    /// What was measured.
    pub label: String,
    /// Its figures.
    pub summary: Summary,
    /// Further figures, each with its name and unit in it (`requests_per_s`).
    pub extra: Vec<(String, f64)>,
    /// Parts of the median, by name: where the time went.
    pub parts: Vec<(String, Duration)>,
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
        let mut text = format!(
            "{}: {}\n{}\n\n{}",
            self.name,
            self.method,
            self.machine.line(),
            table(&lines)
        );
        let names = unique(
            self.rows
                .iter()
                .flat_map(|row| row.parts.iter().map(|(name, _)| name.clone())),
        );
        if !names.is_empty() {
            text.push_str("\nmedian of each part\n");
            text.push_str(&table(&self.part_lines(&names)));
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
            let parts: serde_json::Map<String, Value> = row
                .parts
                .iter()
                .map(|(name, part)| (format!("{name}_us"), json!(us(part))))
                .collect();
            let extra: serde_json::Map<String, Value> = row
                .extra
                .iter()
                .map(|(name, value)| (name.clone(), json!(value)))
                .collect();
            json!({ "label": row.label, "latency": row.summary.to_json(), "parts": parts, "extra": extra })
        });
        json!({
            "name": self.name,
            "method": self.method,
            "version": env!("CARGO_PKG_VERSION"),
            "machine": self.machine.to_json(),
            "rows": rows.collect::<Vec<_>>(),
        })
    }

    /// Writes JSON and plot into a directory.
    pub fn write(&self, dir: &Path) -> Result<()> {
        fs::create_dir_all(dir).with_context(|| format!("make directory {}", dir.display()))?;
        let path = dir.join(format!("bench-{}.json", self.name));
        fs::write(&path, format!("{:#}\n", self.to_json()))
            .with_context(|| format!("write {}", path.display()))?;
        plot::write(self, &dir.join(format!("bench-{}.svg", self.name)))
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
            label: label.to_owned(),
            summary: Summary::of(&samples).unwrap(),
            extra: vec![("requests_per_s".to_owned(), 1234.5)],
            parts: vec![("map".to_owned(), Duration::from_micros(40))],
        };
        let report = Report {
            name: "sample".to_owned(),
            method: "made up".to_owned(),
            machine: Machine::this(),
            rows: vec![row("armed"), row("restored <&>")],
        };
        assert!(report.to_table().contains("restored <&>"));
        let dir = tempfile::tempdir().unwrap();
        report.write(dir.path()).unwrap();
        let json: Value =
            serde_json::from_str(&fs::read_to_string(dir.path().join("bench-sample.json")).unwrap()).unwrap();
        assert_eq!(json["rows"][0]["latency"]["p50_us"], json!(1000.0));
        let svg = fs::read_to_string(dir.path().join("bench-sample.svg")).unwrap();
        assert!(
            svg.starts_with("<svg") && svg.contains("restored &lt;&amp;&gt;") && svg.ends_with("</svg>\n")
        );
    }
}
