//! Figures that are no durations: tables of numbers, and curves of one number over another.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;
use serde_json::{Map, Value, json};

use crate::output::table;

/// Size of a chart, in pixels.
const CHART: (u32, u32) = (960, 480);

/// Colours of Gust's curves, and of its peers'.
const OWN: [RGBColor; 3] = [
    RGBColor(0, 90, 200),
    RGBColor(0, 150, 136),
    RGBColor(123, 31, 162),
];
const PEERS: [RGBColor; 3] = [
    RGBColor(120, 120, 120),
    RGBColor(200, 120, 40),
    RGBColor(60, 60, 60),
];

/// Numbers with names: one line for each thing that was measured.
#[derive(Debug, Clone, Default)]
pub struct Table {
    /// What the numbers are.
    pub title: String,
    /// Name of each column, with its unit (`pss_kib`).
    pub columns: Vec<String>,
    /// Label of each line, and its numbers; `None` where there is none.
    pub lines: Vec<(String, Vec<Option<f64>>)>,
}

impl Table {
    /// An empty table.
    pub fn new(title: impl Into<String>, columns: &[&str]) -> Self {
        Self {
            title: title.into(),
            columns: columns.iter().map(|column| (*column).to_owned()).collect(),
            lines: Vec::new(),
        }
    }

    /// For people.
    pub fn to_text(&self) -> String {
        let mut lines = vec![vec![String::new()]];
        lines[0].extend(self.columns.iter().map(|column| column.to_uppercase()));
        for (label, numbers) in &self.lines {
            let mut line = vec![label.clone()];
            line.extend(numbers.iter().map(|number| number.map(shown).unwrap_or_default()));
            lines.push(line);
        }
        format!("{}\n{}", self.title, table(&lines))
    }

    /// For programs.
    pub fn to_json(&self) -> Value {
        let lines = self.lines.iter().map(|(label, numbers)| {
            let mut line: Map<String, Value> = self
                .columns
                .iter()
                .zip(numbers)
                .map(|(column, number)| (column.clone(), json!(number)))
                .collect();
            line.insert("label".to_owned(), json!(label));
            Value::Object(line)
        });
        json!({ "title": self.title, "lines": lines.collect::<Vec<_>>() })
    }
}

/// A number with as many digits as say something.
fn shown(number: f64) -> String {
    let decimals = match number.abs() {
        0.0 => 0,
        small if small < 10.0 && small.fract() != 0.0 => 2,
        middle if middle < 1000.0 && middle.fract() != 0.0 => 1,
        _ => 0,
    };
    format!("{number:.decimals$}")
}

/// One number over another.
#[derive(Debug, Clone)]
pub struct Curve {
    /// Whose.
    pub label: String,
    /// It is a peer's.
    pub is_peer: bool,
    /// The points, in order.
    pub points: Vec<(f64, f64)>,
}

/// Curves on the same axes.
#[derive(Debug, Clone)]
pub struct Chart {
    /// What is shown.
    pub title: String,
    /// What the axes are.
    pub axes: [String; 2],
    /// The curves.
    pub curves: Vec<Curve>,
}

impl Chart {
    /// For programs.
    pub fn to_json(&self) -> Value {
        let curves = self
            .curves
            .iter()
            .map(|curve| json!({ "label": curve.label, "peer": curve.is_peer, "points": curve.points }));
        json!({ "title": self.title, "axes": self.axes, "curves": curves.collect::<Vec<_>>() })
    }

    /// Writes it as SVG.
    pub fn write(&self, path: &Path) -> Result<()> {
        let svg = self
            .draw()
            .map_err(|error| anyhow!("draw the chart {:?}: {error}", self.title))?;
        std::fs::write(path, svg).map_err(|error| anyhow!("write {}: {error}", path.display()))
    }

    fn draw(&self) -> Result<String, Box<dyn std::error::Error>> {
        let points = || self.curves.iter().flat_map(|curve| &curve.points);
        // Both axes begin at nothing: what the first of many costs more than the others shows as an offset.
        let right = points().map(|(x, _)| *x).fold(1.0, f64::max);
        let top = points().map(|(_, y)| *y).fold(1.0, f64::max);
        let mut svg = String::new();
        {
            let area = SVGBackend::with_string(&mut svg, CHART).into_drawing_area();
            area.fill(&WHITE)?;
            let mut chart = ChartBuilder::on(&area)
                .caption(&self.title, ("sans-serif", 20))
                .margin(10)
                .x_label_area_size(40)
                .y_label_area_size(70)
                .build_cartesian_2d(0.0..right * 1.05, 0.0..top * 1.1)?;
            chart
                .configure_mesh()
                .x_desc(&self.axes[0])
                .y_desc(&self.axes[1])
                .light_line_style(TRANSPARENT)
                .draw()?;
            for (at, curve) in self.curves.iter().enumerate() {
                let palette = if curve.is_peer { PEERS } else { OWN };
                let colour = palette[at % palette.len()];
                chart
                    .draw_series(LineSeries::new(
                        curve.points.iter().copied(),
                        colour.stroke_width(2),
                    ))?
                    .label(&curve.label)
                    .legend(move |(x, y)| {
                        PathElement::new(vec![(x, y), (x + 20, y)], colour.stroke_width(2))
                    });
                chart.draw_series(
                    curve
                        .points
                        .iter()
                        .map(|point| Circle::new(*point, 3, colour.filled())),
                )?;
            }
            chart
                .configure_series_labels()
                .position(SeriesLabelPosition::UpperLeft)
                .background_style(WHITE.filled())
                .border_style(BLACK.mix(0.3))
                .draw()?;
            area.present()?;
        }
        Ok(svg)
    }
}

/// Bytes that each further one costs: the slope of the line through points of (count, bytes) with the least squares.
/// `None` of fewer than two counts.
pub fn slope(points: &[(f64, f64)]) -> Option<f64> {
    let count = points.len() as f64;
    let mean = |pick: fn(&(f64, f64)) -> f64| points.iter().map(pick).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let above: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    let below: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    (below > 0.0).then(|| above / below)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn figures_are_written() {
        let mut table = Table::new("memory", &["pss_kib", "slab_kib"]);
        table.lines.push(("armed".to_owned(), vec![Some(1234.5), None]));
        table.lines.push(("idle".to_owned(), vec![Some(2.25), Some(3.0)]));
        let text = table.to_text();
        assert!(text.contains("PSS_KIB") && text.contains("2.25") && text.contains("1234"));
        let json = table.to_json();
        assert_eq!(
            (&json["lines"][0]["slab_kib"], &json["lines"][1]["label"]),
            (&Value::Null, &json!("idle"))
        );
        let chart = Chart {
            title: "memory <&>".to_owned(),
            axes: ["clones".to_owned(), "MiB".to_owned()],
            curves: vec![Curve {
                label: "armed".to_owned(),
                is_peer: false,
                points: vec![(0.0, 0.0), (10.0, 20.0)],
            }],
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chart.svg");
        chart.write(&path).unwrap();
        let svg = std::fs::read_to_string(path).unwrap();
        assert!(svg.starts_with("<svg") && svg.contains("memory &lt;&amp;&gt;") && svg.contains("armed"));
    }

    #[test]
    fn a_point_has_no_slope() {
        assert_eq!(slope(&[]), None);
        assert_eq!(slope(&[(3.0, 4.0), (3.0, 5.0)]), None);
    }

    proptest! {
        #[test]
        fn a_line_has_its_own_slope(
            a in -100.0f64..100.0, b in -100.0f64..100.0, count in 2usize..50,
        ) {
            let points: Vec<(f64, f64)> = (0..count).map(|x| (x as f64, a * x as f64 + b)).collect();
            prop_assert!((slope(&points).unwrap() - a).abs() < 1e-6);
        }
    }
}
