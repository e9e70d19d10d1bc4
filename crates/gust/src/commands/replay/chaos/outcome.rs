//! What a run has come to, for people and programs: a table, JSON and a picture.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use gust_replay::chaos::{Consequence, Fault, FaultKind, Finding, Ledger, Verdict};
use plotters::prelude::*;
use serde::Serialize;
use serde_json::json;
use tokio::sync::watch;

use super::super::driver::nanos;
use crate::{
    cli::Output,
    client::Client,
    commands::print,
    output::{duration, table},
};

/// Findings that are shown to people; all are in the JSON.
const FINDINGS_SHOWN_MAX: usize = 20;

/// Time between two looks at the server, and looks of a run at most: a week.
const WATCH_PERIOD: Duration = Duration::from_millis(500);
const LOOKS_MAX: usize = 1_209_600;

/// Size of the picture, and its columns at most.
const SIZE: (u32, u32) = (960, 420);
const COLUMNS_MAX: u64 = 480;

const GREY: RGBColor = RGBColor(128, 128, 128);
/// Colours that the colour-blind can tell apart (Okabe and Ito).
const BLUE: RGBColor = RGBColor(0, 114, 178);
const GREEN: RGBColor = RGBColor(0, 158, 115);
const ORANGE: RGBColor = RGBColor(230, 159, 0);
const RED: RGBColor = RGBColor(213, 94, 0);

/// Label, colour and points of a curve.
type Curve = (&'static str, RGBColor, Vec<(f64, f64)>);

/// What the server has said of itself.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Look {
    /// Nanoseconds since the run began.
    at_ns: u64,
    /// Calls that wait for an instance.
    waiting: u64,
    /// Events that are taken and not done with.
    events: u64,
    /// Nodes of the fleet.
    nodes: u64,
}

/// All looks of a run; none from when the server was not there.
pub type Watch = Vec<Look>;

/// Looks at a server, which comes and goes, until `stop` becomes true.
pub async fn watch(client: Client, began: Instant, mut stop: watch::Receiver<bool>) -> Watch {
    let mut looks = Watch::new();
    let mut interval = tokio::time::interval(WATCH_PERIOD);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    while looks.len() < LOOKS_MAX {
        tokio::select! {
            _ = interval.tick() => {}
            _ = stop.wait_for(|stop| *stop) => break,
        }
        if let Ok(stats) = client.get("/_gust/v1/stats").await {
            looks.push(Look {
                at_ns: nanos(began.elapsed()),
                waiting: stats["fleet"]["waiting"].as_u64().unwrap_or(0),
                events: stats["events_waiting"].as_u64().unwrap_or(0),
                nodes: stats["fleet"]["nodes"].as_u64().unwrap_or(0),
            });
        }
    }
    looks
}

/// What a run has come to.
#[derive(Debug)]
pub struct Outcome {
    /// What was run, in words.
    pub method: String,
    /// What was noted.
    pub ledger: Ledger,
    /// What that means.
    pub verdict: Verdict,
    /// What the server said meanwhile.
    pub watch: Watch,
    /// Calls that were not sent.
    pub unsent: u64,
    /// Length of the workload, in nanoseconds.
    pub length_ns: u64,
}

fn seconds(ns: u64) -> String {
    format!("{:.2}", ns as f64 / 1e9)
}

fn since(ns: Option<u64>) -> String {
    ns.map_or("-".to_owned(), |ns| duration(Duration::from_nanos(ns)))
}

fn what(fault: &Fault) -> String {
    match fault.kind {
        FaultKind::Worker if fault.is_all => "all workers".to_owned(),
        FaultKind::Worker | FaultKind::Agent | FaultKind::Control | FaultKind::Silence | FaultKind::Cut => {
            fault.kind.word().to_owned()
        }
    }
}

/// Where, in words.
fn place(node: u32) -> String {
    match node {
        0 => "server".to_owned(),
        number => format!("node{number}"),
    }
}

/// The schedule as a table.
pub fn schedule(faults: &[Fault]) -> String {
    let mut lines = vec![
        ["AT (s)", "FAULT", "OF", "HEALED AT (s)"]
            .map(str::to_owned)
            .to_vec(),
    ];
    lines.extend(faults.iter().map(|fault| {
        vec![
            seconds(fault.at_ns),
            what(fault),
            place(fault.node),
            seconds(fault.heals_ns),
        ]
    }));
    table(&lines)
}

fn row(consequence: &Consequence) -> Vec<String> {
    let fault = &consequence.fault;
    vec![
        seconds(consequence.began_ns),
        match fault.kind {
            FaultKind::Worker => format!("{} ({})", what(fault), consequence.workers),
            FaultKind::Agent | FaultKind::Control | FaultKind::Silence | FaultKind::Cut => what(fault),
        },
        place(fault.node),
        consequence.failed.to_string(),
        consequence.refused.to_string(),
        since(consequence.answered_after_ns),
        since(Some(consequence.healed_after_ns)),
        since(consequence.whole_after_ns),
    ]
}

/// A finding for people.
fn told(finding: &Finding) -> String {
    match finding {
        Finding::Bystander {
            call,
            sent_ns,
            ended_ns,
            end,
        } => format!(
            "call {call}, sent at {} s, failed at {} s, and no fault excuses that: {end:?}",
            seconds(*sent_ns),
            seconds(*ended_ns)
        ),
        Finding::NotRetried { call, end } => {
            format!("call {call} failed ({end:?}) and was not answered when it was tried again")
        }
        Finding::LostEvent { call, ended_ns } => {
            format!(
                "event {call}, taken at {} s, has not run to its end",
                seconds(*ended_ns)
            )
        }
        Finding::NotWhole { fault } => format!("after fault {fault} the fleet had not all its nodes again"),
    }
}

impl Outcome {
    /// Nothing was found that must not be.
    pub fn is_good(&self) -> bool {
        self.verdict.findings.is_empty() && self.unsent == 0
    }

    /// Writes JSON and picture, and prints.
    pub fn show(&self, out: &Path, output: Output) -> Result<()> {
        let json = json!({
            "method": self.method,
            "good": self.is_good(),
            "unsent": self.unsent,
            "verdict": self.verdict,
            "watch": self.watch,
        });
        let path = out.join("chaos.json");
        let write = |path: &Path, text: &str| {
            std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
        };
        write(&path, &format!("{json:#}\n"))?;
        let svg = self.draw().map_err(|error| anyhow!("draw the run: {error}"))?;
        write(&out.join("chaos.svg"), &svg)?;
        match output {
            Output::Json => print(&format!("{json:#}\n")),
            Output::Text => print(&self.text()),
        }
    }

    fn text(&self) -> String {
        let verdict = &self.verdict;
        let head = [
            "AT (s)",
            "FAULT",
            "OF",
            "FAILED",
            "REFUSED",
            "ANSWERED AFTER",
            "HEALED AFTER",
            "WHOLE AFTER",
        ];
        let mut lines = vec![head.map(str::to_owned).to_vec()];
        lines.extend(verdict.consequences.iter().map(row));
        let sum = |of: fn(&Consequence) -> u64| verdict.consequences.iter().map(of).sum::<u64>();
        let mut text = format!(
            "{}\n\n{}\ncalls answered {}, failed by a fault and answered later {}; events taken {}, refused by a fault {}; \
             run more than once {}\n",
            self.method,
            table(&lines),
            verdict.answered,
            sum(|consequence| consequence.failed),
            verdict.accepted,
            sum(|consequence| consequence.refused),
            verdict.repeated,
        );
        if self.unsent > 0 {
            text.push_str(&format!(
                "{} calls were NOT SENT: too many were in flight\n",
                self.unsent
            ));
        }
        for finding in verdict.findings.iter().take(FINDINGS_SHOWN_MAX) {
            text.push_str(&format!("WRONG: {}\n", told(finding)));
        }
        match verdict.findings.len() {
            0 => text.push_str("no event lost, no bystander failed\n"),
            count => text.push_str(&format!("{count} findings\n")),
        }
        text
    }

    /// How many calls ended so in each column of the picture, a second.
    fn rate(&self, column_ns: u64, is_counted: fn(&gust_replay::chaos::CallEnd) -> bool) -> Vec<(f64, f64)> {
        let columns = self.end_ns().div_ceil(column_ns).max(1);
        let mut counts = vec![0_u64; usize::try_from(columns).unwrap_or(usize::MAX)];
        for call in self.ledger.calls.iter().filter(|call| is_counted(&call.end)) {
            let at = usize::try_from(call.ended_ns / column_ns).unwrap_or(usize::MAX);
            if let Some(count) = counts.get_mut(at) {
                *count += 1;
            }
        }
        let (width, middle) = (column_ns as f64 / 1e9, column_ns as f64 / 2e9);
        let at = |(column, count): (usize, u64)| (column as f64 * width + middle, count as f64 / width);
        counts.into_iter().enumerate().map(at).collect()
    }

    fn end_ns(&self) -> u64 {
        let ended = self.ledger.calls.iter().map(|call| call.ended_ns);
        let looked = self.watch.iter().map(|look| look.at_ns);
        ended.chain(looked).max().unwrap_or(0).max(self.length_ns)
    }

    fn curves(&self) -> Vec<Curve> {
        use gust_replay::chaos::CallEnd;
        let column_ns = (self.end_ns() / COLUMNS_MAX).max(1_000_000_000);
        let good = |end: &CallEnd| matches!(end, CallEnd::Answered | CallEnd::Accepted);
        let bad = |end: &CallEnd| !matches!(end, CallEnd::Answered | CallEnd::Accepted);
        let looks = |of: fn(&Look) -> u64| -> Vec<(f64, f64)> {
            let step = self.watch.len().div_ceil(COLUMNS_MAX as usize).max(1);
            let highest = |looks: &[Look]| looks.iter().map(of).max().unwrap_or(0) as f64;
            let at = |looks: &[Look]| (looks[0].at_ns as f64 / 1e9, highest(looks));
            self.watch.chunks(step).map(at).collect()
        };
        vec![
            ("answered or taken, a second", BLUE, self.rate(column_ns, good)),
            ("failed, a second", RED, self.rate(column_ns, bad)),
            ("calls that wait", ORANGE, looks(|look| look.waiting)),
            ("events not done with", GREEN, looks(|look| look.events)),
        ]
    }

    /// Calls over time, with the faults behind them: from their begin until the cluster was whole again.
    fn draw(&self) -> Result<String, Box<dyn std::error::Error>> {
        let mut svg = String::new();
        let curves = self.curves();
        let highest = curves
            .iter()
            .flat_map(|(_, _, points)| points)
            .map(|point| point.1);
        let high = highest.fold(1.0, f64::max) * 1.15;
        let end = self.end_ns() as f64 / 1e9;
        {
            let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
            let mut chart = ChartBuilder::on(&area)
                .margin(12)
                .x_label_area_size(40)
                .y_label_area_size(56)
                .build_cartesian_2d(0.0..end, 0.0..high)?;
            chart
                .configure_mesh()
                .x_desc("seconds")
                .y_desc("calls")
                .axis_style(GREY)
                .bold_line_style(GREY.mix(0.25))
                .light_line_style(TRANSPARENT)
                .label_style(("sans-serif", 13).into_font().color(&GREY))
                .axis_desc_style(("sans-serif", 13).into_font().color(&GREY))
                .draw()?;
            for fault in &self.ledger.faults {
                let from = fault.began_ns as f64 / 1e9;
                // As wide as can be seen.
                let to = (fault.whole_ns.unwrap_or(self.end_ns()) as f64 / 1e9).max(from + end / 400.0);
                let span = Rectangle::new([(from, 0.0), (to, high)], RED.mix(0.13).filled());
                chart.draw_series(std::iter::once(span))?;
                let (x, y) = chart.backend_coord(&(from, high));
                let font = ("sans-serif", 11).into_font().color(&GREY);
                let turned = font.transform(FontTransform::Rotate90);
                let label = format!("{} {}", what(&fault.fault), place(fault.fault.node));
                area.draw(&Text::new(label, (x + 12, y + 4), turned))?;
            }
            for (label, colour, points) in curves {
                let style = colour.stroke_width(2);
                chart
                    .draw_series(LineSeries::new(points, style))?
                    .label(label)
                    .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 16, y)], style));
            }
            chart
                .configure_series_labels()
                .position(SeriesLabelPosition::UpperRight)
                .label_font(("sans-serif", 13).into_font().color(&GREY))
                .border_style(TRANSPARENT)
                .draw()?;
            area.present()?;
        }
        Ok(svg)
    }
}
