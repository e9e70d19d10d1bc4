//! Plots of runs, as SVG. Their grounds are transparent and their lines of a middle grey, so that they can be read on a light and on a
//! dark page alike.

use plotters::{
    coord::ranged1d::{AsRangedCoord, Ranged, ValueFormatter},
    prelude::*,
};

use super::{
    figures::{Figures, response_ns, scheduling_ns, slowdown},
    text::number,
};
use crate::{Ending, Record, Run, Sample};

const SIZE: (u32, u32) = (720, 360);

/// A legend: height of a row, where it begins, and the length of the lines that stand for curves, in pixels.
const LEGEND_ROW: i32 = 20;
const LEGEND_LEFT: i32 = 68;
const LEGEND_LINE: i32 = 16;

/// Points of a curve at most: more than pixels across.
const POINTS_MAX: usize = 720;

const GREY: RGBColor = RGBColor(128, 128, 128);

/// Colours of runs, told apart by the colour-blind too (Okabe and Ito), but those that a light or a dark ground swallows.
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
];

/// Why a plot could not be drawn: what plotters says.
#[derive(Debug, thiserror::Error)]
#[error("draw the plot {title}: {problem}")]
pub struct PlotError {
    /// The plot's title.
    pub title: String,
    /// What is wrong.
    pub problem: String,
}

/// A plot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plot {
    /// Part of a file's name.
    pub name: &'static str,
    /// For people.
    pub title: &'static str,
    /// The picture.
    pub svg: String,
}

/// A curve: its label, colour, whether it is dashed, and its points.
struct Curve {
    label: String,
    colour: RGBColor,
    is_second: bool,
    points: Vec<(f64, f64)>,
}

/// A number without zeros at its end.
fn short(value: f64) -> String {
    let text = number(value);
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

fn colour(at: usize) -> RGBColor {
    COLOURS[at % COLOURS.len()]
}

/// All plots of some runs, side by side.
///
/// # Errors
/// When one cannot be drawn.
pub fn all(runs: &[Run], figures: &[Figures]) -> Result<Vec<Plot>, PlotError> {
    let of_records = |value: fn(&Record) -> f64| -> Vec<Curve> {
        let values = runs.iter().map(|run| {
            let answered = run.records.iter().filter(|r| r.ending == Ending::Answered);
            answered.map(value).collect()
        });
        cdfs(runs, values.collect())
    };
    let slowdowns = figures
        .iter()
        .map(|f| f.functions.iter().filter(|f| f.answered > 0).map(|f| f.slowdown))
        .map(Iterator::collect);
    let mut plots = vec![
        cdf(
            "slowdown-functions",
            "Slowdown of functions",
            "geometric mean of response time over requested time",
            cdfs(runs, slowdowns.collect()),
        )?,
        cdf(
            "slowdown",
            "Slowdown of invocations",
            "response time over requested time",
            of_records(slowdown),
        )?,
        cdf(
            "response",
            "Response time",
            "milliseconds",
            of_records(|r| response_ns(r) as f64 / 1e6),
        )?,
        cdf(
            "scheduling",
            "Scheduling delay",
            "milliseconds",
            of_records(|r| scheduling_ns(r) as f64 / 1e6),
        )?,
        over_time("instances", "Instances", "instances", instances(runs))?,
        over_time(
            "memory",
            "Memory of instances",
            "MiB",
            sampled(runs, "", |s| s.memory_bytes as f64 / f64::from(1 << 20)),
        )?,
        over_time(
            "queue",
            "Calls that wait",
            "calls",
            sampled(runs, "", |s| f64::from(s.queued)),
        )?,
    ];
    plots.push(components(figures)?);
    Ok(plots)
}

/// Regular instances, and emergency instances in a lighter line.
fn instances(runs: &[Run]) -> Vec<Curve> {
    let mut curves = sampled(runs, ", regular", |s| f64::from(s.regular));
    let emergency = sampled(runs, ", emergency", |s| f64::from(s.emergency));
    curves.extend(emergency.into_iter().map(|curve| Curve {
        is_second: true,
        ..curve
    }));
    curves
}

fn sampled(runs: &[Run], what: &str, value: fn(&Sample) -> f64) -> Vec<Curve> {
    runs.iter()
        .enumerate()
        .map(|(at, run)| {
            let step = run.samples.len().div_ceil(POINTS_MAX).max(1);
            // Of the samples that one point stands for, the largest: a peak must not vanish.
            let points = run.samples.chunks(step).map(|chunk| {
                let highest = chunk.iter().map(value).fold(0.0, f64::max);
                (chunk[0].at_ns as f64 / 1e9, highest)
            });
            Curve {
                label: format!("{}{what}", run.name),
                colour: colour(at),
                is_second: false,
                points: points.collect(),
            }
        })
        .collect()
}

/// One curve a run of how many values are at most so large.
fn cdfs(runs: &[Run], values: Vec<Vec<f64>>) -> Vec<Curve> {
    runs.iter()
        .zip(values)
        .enumerate()
        .map(|(at, (run, mut values))| {
            values.sort_by(f64::total_cmp);
            let count = values.len();
            let points = (0..count.min(POINTS_MAX)).map(|point| {
                let number = (point + 1) * count / count.min(POINTS_MAX);
                (values[number - 1], number as f64 / count as f64)
            });
            Curve {
                label: run.name.clone(),
                colour: colour(at),
                is_second: false,
                points: points.collect(),
            }
        })
        .collect()
}

/// Least and largest of the first coordinates, where it makes sense on a logarithmic scale.
fn logarithmic_range(curves: &[Curve]) -> (f64, f64) {
    let all = || {
        curves
            .iter()
            .flat_map(|c| &c.points)
            .map(|p| p.0)
            .filter(|x| *x > 0.0)
    };
    let high = all().fold(f64::MIN_POSITIVE, f64::max);
    let low = all().fold(high, f64::min);
    if high > low {
        (low, high)
    } else {
        (low.max(1e-3) / 2.0, low.max(1e-3) * 2.0)
    }
}

fn cdf(
    name: &'static str,
    title: &'static str,
    unit: &str,
    mut curves: Vec<Curve>,
) -> Result<Plot, PlotError> {
    let (low, high) = logarithmic_range(&curves);
    for curve in curves.iter_mut().filter(|curve| !curve.points.is_empty()) {
        // Zero has no place on this scale: at its left end.
        curve
            .points
            .iter_mut()
            .for_each(|point| point.0 = point.0.max(low));
        // From end to end of the axis: before its first value a run has none, after its last one it has all.
        curve.points.insert(0, (curve.points[0].0, 0.0));
        curve.points.insert(0, (low, 0.0));
        curve.points.push((high, 1.0));
    }
    draw(name, title, (unit, "part"), (low..high).log_scale(), 1.0, curves)
}

fn over_time(
    name: &'static str,
    title: &'static str,
    unit: &str,
    curves: Vec<Curve>,
) -> Result<Plot, PlotError> {
    let all = || curves.iter().flat_map(|curve| &curve.points);
    let end = all().map(|point| point.0).fold(1.0, f64::max);
    let high = all().map(|point| point.1).fold(1.0, f64::max);
    draw(name, title, ("seconds", unit), 0.0..end, high * 1.05, curves)
}

fn draw<X>(
    name: &'static str,
    title: &'static str,
    (x_unit, y_unit): (&str, &str),
    x: X,
    high: f64,
    curves: Vec<Curve>,
) -> Result<Plot, PlotError>
where
    X: AsRangedCoord<Value = f64>,
    X::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    let mut svg = String::new();
    let drawn = || -> Result<(), Box<dyn std::error::Error>> {
        let whole = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        let (legend, area) = whole.split_vertically(LEGEND_ROW * legend_rows(&curves).len() as i32);
        for (row, curves) in legend_rows(&curves).into_iter().enumerate() {
            let mut x = LEGEND_LEFT;
            for curve in curves {
                let y = LEGEND_ROW * row as i32 + LEGEND_ROW / 2;
                let line = vec![(x, y), (x + LEGEND_LINE, y)];
                legend.draw(&PathElement::new(line, curve.style()))?;
                let font = ("sans-serif", 13).into_font().color(&GREY);
                let at = (x + LEGEND_LINE + 4, y - 6);
                legend.draw(&Text::new(curve.label.clone(), at, font))?;
                x += curve.legend_width();
            }
        }
        let mut chart = ChartBuilder::on(&area)
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(56)
            .build_cartesian_2d(x, 0.0..high)?;
        chart
            .configure_mesh()
            .x_desc(x_unit)
            .y_desc(y_unit)
            .x_label_formatter(&|value| short(*value))
            .y_label_formatter(&|value| short(*value))
            .axis_style(GREY)
            .bold_line_style(GREY.mix(0.25))
            .light_line_style(TRANSPARENT)
            .label_style(("sans-serif", 13).into_font().color(&GREY))
            .axis_desc_style(("sans-serif", 13).into_font().color(&GREY))
            .draw()?;
        for curve in &curves {
            chart.draw_series(LineSeries::new(curve.points.iter().copied(), curve.style()))?;
        }
        whole.present()?;
        Ok(())
    };
    let result = drawn();
    finish(name, title, result, svg)
}

impl Curve {
    fn style(&self) -> ShapeStyle {
        if self.is_second {
            self.colour.mix(0.45).stroke_width(2)
        } else {
            self.colour.stroke_width(2)
        }
    }

    /// Room that it takes in a legend, in pixels: letters are taken for as wide as wide ones.
    fn legend_width(&self) -> i32 {
        const LETTER: i32 = 8;
        LEGEND_LINE + 20 + LETTER * self.label.chars().count() as i32
    }
}

/// Which curves stand in which row of a legend above the plot, where they hide nothing.
fn legend_rows(curves: &[Curve]) -> Vec<Vec<&Curve>> {
    let mut rows: Vec<Vec<&Curve>> = Vec::new();
    let mut right = i32::MAX;
    for curve in curves {
        let width = curve.legend_width();
        if right.saturating_add(width) > SIZE.0 as i32 {
            rows.push(Vec::new());
            right = LEGEND_LEFT;
        }
        right += width;
        if let Some(row) = rows.last_mut() {
            row.push(curve);
        }
    }
    rows
}

/// For each run a bar of the mean parts of its cold starts.
fn components(figures: &[Figures]) -> Result<Plot, PlotError> {
    let (name, title) = ("components", "Parts of cold starts (mean)");
    let parts = |f: &Figures| -> Vec<(String, f64)> {
        f.parts
            .iter()
            .map(|part| (part.name.clone(), part.ms.mean))
            .collect()
    };
    let longest = figures.iter().map(|f| parts(f).iter().map(|p| p.1).sum::<f64>());
    // Room for the legend at the right.
    let high = longest.fold(0.001, f64::max) * 1.3;
    let mut svg = String::new();
    let mut drawn = || -> Result<(), Box<dyn std::error::Error>> {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        let mut chart = ChartBuilder::on(&area)
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(120)
            .build_cartesian_2d(0.0..high, 0.0..figures.len().max(1) as f64)?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .y_labels(0)
            .x_desc("milliseconds")
            .x_label_formatter(&|value| short(*value))
            .axis_style(GREY)
            .bold_line_style(GREY.mix(0.25))
            .light_line_style(TRANSPARENT)
            .label_style(("sans-serif", 13).into_font().color(&GREY))
            .axis_desc_style(("sans-serif", 13).into_font().color(&GREY))
            .draw()?;
        let names = figures.first().map(parts).unwrap_or_default();
        for (at, (part, _)) in names.iter().enumerate() {
            // There are more parts than colours: the second round is lighter.
            let style = colour(at)
                .mix(if at < COLOURS.len() { 1.0 } else { 0.5 })
                .filled();
            let bars = figures.iter().enumerate().map(|(run, f)| {
                let parts = parts(f);
                let from: f64 = parts[..at].iter().map(|p| p.1).sum();
                let middle = figures.len() as f64 - run as f64 - 0.5;
                Rectangle::new([(from, middle - 0.3), (from + parts[at].1, middle + 0.3)], style)
            });
            chart
                .draw_series(bars)?
                .label(part.as_str())
                .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 10, y + 5)], style));
        }
        for (run, f) in figures.iter().enumerate() {
            let middle = figures.len() as f64 - run as f64 - 0.5;
            let (_, y) = chart.backend_coord(&(0.0, middle));
            let font = ("sans-serif", 13).into_font().color(&GREY);
            area.draw(&Text::new(f.name.clone(), (14, y - 6), font))?;
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .label_font(("sans-serif", 13).into_font().color(&GREY))
            .border_style(TRANSPARENT)
            .draw()?;
        area.present()?;
        Ok(())
    };
    let result = drawn();
    finish(name, title, result, svg)
}

fn finish(
    name: &'static str,
    title: &'static str,
    result: Result<(), Box<dyn std::error::Error>>,
    svg: String,
) -> Result<Plot, PlotError> {
    match result {
        Ok(()) => Ok(Plot { name, title, svg }),
        Err(error) => Err(PlotError {
            title: title.to_owned(),
            problem: error.to_string(),
        }),
    }
}
