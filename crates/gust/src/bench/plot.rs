//! A report's plot: for each row a bar from the smallest to the 99th percentile with a mark at the median, on a
//! logarithmic scale, since what is compared differs by orders of magnitude.

use std::{path::Path, time::Duration};

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use super::report::Report;

const WIDTH: u32 = 960;
const ROW_HEIGHT: u32 = 34;
const FRAME_HEIGHT: u32 = 120;
const LABEL_WIDTH: u32 = 290;

/// Colours of Gust's rows and of its peers'.
const OWN: RGBColor = RGBColor(0, 90, 200);
const PEER: RGBColor = RGBColor(120, 120, 120);

/// Writes the plot of a report.
pub fn write(report: &Report, path: &Path) -> Result<()> {
    let svg = draw(report).map_err(|error| anyhow!("draw the plot of {}: {error}", report.name))?;
    std::fs::write(path, svg).map_err(|error| anyhow!("write {}: {error}", path.display()))
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// A number with at most two significant digits after its zeros.
fn short(value: f64) -> String {
    let decimals = if value >= 10.0 {
        0
    } else {
        (1.0 - value.log10().floor()).clamp(0.0, 6.0) as usize
    };
    let text = format!("{value:.decimals$}");
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

fn draw(report: &Report) -> Result<String, Box<dyn std::error::Error>> {
    let rows = u32::try_from(report.rows.len())?;
    let mut svg = String::new();
    {
        let area =
            SVGBackend::with_string(&mut svg, (WIDTH, FRAME_HEIGHT + rows * ROW_HEIGHT)).into_drawing_area();
        area.fill(&WHITE)?;
        let low = report
            .rows
            .iter()
            .map(|row| ms(row.summary.min))
            .fold(f64::INFINITY, f64::min)
            .max(0.001);
        let high = report
            .rows
            .iter()
            .map(|row| ms(row.summary.p99))
            .fold(low, f64::max);
        let mut chart = ChartBuilder::on(&area)
            .caption(&report.name, ("sans-serif", 20))
            .margin(10)
            .x_label_area_size(40)
            .y_label_area_size(LABEL_WIDTH)
            .build_cartesian_2d((low / 1.5..high * 3.0).log_scale(), 0.0..f64::from(rows))?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .y_labels(0)
            .x_desc("milliseconds (smallest, median, 99th percentile)")
            .x_labels(5)
            .x_label_formatter(&|value| short(*value))
            .light_line_style(TRANSPARENT)
            .draw()?;
        for (at, row) in report.rows.iter().enumerate() {
            let middle = f64::from(rows) - at as f64 - 0.5;
            let (min, median, p99) = (ms(row.summary.min), ms(row.summary.p50), ms(row.summary.p99));
            let colour = if row.is_peer { PEER } else { OWN };
            let bar = Rectangle::new(
                [(min.max(low), middle - 0.25), (p99, middle + 0.25)],
                colour.mix(0.35).filled(),
            );
            chart.draw_series(std::iter::once(bar))?;
            let mark = PathElement::new(
                vec![(median, middle - 0.35), (median, middle + 0.35)],
                colour.stroke_width(3),
            );
            chart.draw_series(std::iter::once(mark))?;
            let (_, y) = chart.backend_coord(&(median, middle));
            area.draw(&Text::new(row.label.clone(), (16, y - 7), ("sans-serif", 14)))?;
            // On a white ground, so that no line of the grid runs through it.
            let (x, _) = chart.backend_coord(&(p99, middle));
            let shown = format!("{} ms", short(median));
            let ground = [(x + 4, y - 8), (x + 12 + 7 * i32::try_from(shown.len())?, y + 8)];
            area.draw(&Rectangle::new(ground, WHITE.filled()))?;
            area.draw(&Text::new(shown, (x + 8, y - 6), ("sans-serif", 12)))?;
        }
        area.present()?;
    }
    Ok(svg)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_short() {
        for (value, text) in [
            (0.300_000_000_004, "0.3"),
            (0.05, "0.05"),
            (0.012, "0.012"),
            (1.0, "1"),
            (2.5, "2.5"),
            (400.0, "400"),
        ] {
            assert_eq!(short(value), text);
        }
    }
}
