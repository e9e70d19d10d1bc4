//! Reports of runs, live and simulated alike: figures, tables, InVitro's columns, plots and one page with everything.
//!
//! A report is made from records and samples alone. Several runs stand side by side; they should be of one workload, which is not
//! checked, because comparing two workloads can be the purpose.

mod figures;
mod html;
pub mod invitro;
mod plot;
mod starts;
mod text;

use std::{
    fs,
    path::{Path, PathBuf},
};

pub use figures::{Costs, Endings, Figures, FunctionFigures, Spread, Starts};
pub use plot::{Plot, PlotError};
pub use starts::Part;

use crate::Run;
use invitro::WriteError;

/// Some runs side by side.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    figures: Vec<Figures>,
    plots: Vec<Plot>,
}

impl Report {
    /// The report of some runs.
    ///
    /// # Errors
    /// When a plot cannot be drawn.
    pub fn of(runs: &[Run]) -> Result<Self, PlotError> {
        let figures: Vec<Figures> = runs.iter().map(Figures::of).collect();
        let plots = plot::all(runs, &figures)?;
        Ok(Self { figures, plots })
    }

    /// Figures of each run.
    pub fn figures(&self) -> &[Figures] {
        &self.figures
    }

    /// Tables for people.
    pub fn to_text(&self) -> String {
        text::render(&self.figures)
    }

    /// The page with everything.
    pub fn to_html(&self) -> String {
        html::page(&self.figures, &self.plots)
    }

    /// Writes `report.json`, `report.html` and a picture for each plot into a directory, which is made where it is not there.
    /// Answers the page's path.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write(&self, dir: &Path) -> Result<PathBuf, WriteError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| WriteError { path, source }
        };
        fs::create_dir_all(dir).map_err(failed(dir))?;
        for plot in &self.plots {
            let path = dir.join(format!("{}.svg", plot.name));
            fs::write(&path, &plot.svg).map_err(failed(&path))?;
        }
        let path = dir.join("report.json");
        let json = serde_json::to_vec_pretty(&self.figures).map_err(std::io::Error::other);
        json.and_then(|json| fs::write(&path, json))
            .map_err(failed(&path))?;
        let path = dir.join("report.html");
        fs::write(&path, self.to_html()).map_err(failed(&path))?;
        Ok(path)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use gust_policy::{Class, InstanceId};

    use super::*;
    use crate::{Components, Ending, Function, Origin, Record, Sample, Start};

    const MS: u64 = 1_000_000;
    const S: u64 = 1_000_000_000;

    /// Four answered calls on two instances, and a refused one.
    pub(crate) fn run() -> Run {
        let function = |name: &str| Function {
            name: name.to_owned(),
            tenant: 0,
            memory_mib: 64,
        };
        // Arrived, scheduling delay, handler, requested (ms), instance, class, start.
        let record =
            |function, arrived: u64, wait: u64, took: u64, asked: u64, instance, class, start| Record {
                function,
                arrived_ns: arrived * MS,
                started_ns: (arrived + wait) * MS,
                ended_ns: (arrived + wait + took) * MS,
                requested_ns: asked * MS,
                instance: Some(InstanceId(instance)),
                class,
                start,
                ending: Ending::Answered,
                components: match start {
                    Start::Warm => Components::default(),
                    Start::Armed | Start::Restored | Start::Booted => Components {
                        queue_ns: MS,
                        worker_ns: 4 * MS,
                        map_ns: 3 * MS,
                        faults_ns: 2 * MS,
                        ..Components::default()
                    },
                },
            };
        let refused = Record {
            ending: Ending::Refused,
            instance: None,
            ..record(1, 4000, 1, 0, 5, 0, Class::Emergency, Start::Warm)
        };
        let sample = |at_s: u64, regular, emergency, busy, memory_mib: u64, cpu_ms: u64| Sample {
            at_ns: at_s * S,
            regular,
            emergency,
            busy,
            queued: 0,
            memory_bytes: memory_mib << 20,
            overhead_cpu_ns: cpu_ms * MS / 2,
            cpu_ns: cpu_ms * MS,
        };
        Run {
            name: "dual".to_owned(),
            origin: Origin::Live,
            method: "a <hand-made> run".to_owned(),
            machine: "none".to_owned(),
            functions: vec![function("a"), function("b"), function("never")],
            length_ns: 5 * S,
            records: vec![
                record(0, 0, 10, 10, 10, 1, Class::Emergency, Start::Restored),
                record(0, 1000, 0, 10, 10, 1, Class::Regular, Start::Warm),
                record(0, 2000, 70, 10, 10, 1, Class::Regular, Start::Warm),
                record(1, 3000, 10, 5, 5, 2, Class::Regular, Start::Booted),
                refused,
            ],
            samples: vec![
                sample(0, 0, 0, 0, 0, 100),
                sample(1, 1, 1, 1, 1024, 200),
                sample(3, 2, 0, 1, 512, 300),
                sample(5, 0, 0, 0, 0, 500),
            ],
            lateness_ns: vec![MS, MS, MS, 3 * MS, MS],
            unsent: 0,
            remarks: vec!["made by hand".to_owned()],
        }
    }

    fn near(value: f64, wanted: f64) {
        assert!((value - wanted).abs() < 1e-9, "{value} is not {wanted}");
    }

    #[test]
    fn figures_are_those_computed_by_hand() {
        let figures = Figures::of(&run());
        assert_eq!(
            figures.endings,
            Endings {
                answered: 4,
                refused: 1,
                failed: 0,
                lost: 0
            }
        );
        // Response times 20, 10, 80 and 15 ms; slowdowns 2, 1, 8 and 3.
        near(figures.response_ms.mean, 31.25);
        near(figures.response_ms.p50, 15.0);
        near(figures.response_ms.p99, 80.0);
        near(figures.slowdown.mean, 3.5);
        near(figures.slowdown.p50, 2.0);
        let by_name = |name: &str| figures.functions.iter().find(|f| f.name == name);
        near(by_name("a").unwrap().slowdown, 16.0_f64.cbrt());
        near(by_name("b").unwrap().slowdown, 3.0);
        assert_eq!(
            (by_name("b").unwrap().invocations, by_name("b").unwrap().answered),
            (2, 1)
        );
        assert!(by_name("never").is_none());
        near(figures.slowdown_by_function.mean, (16.0_f64.cbrt() + 3.0) / 2.0);
        near(figures.scheduling_ms.max, 70.0);
        near(figures.scheduling_ms.mean, 22.5);
        assert_eq!(
            figures.starts,
            Starts {
                warm: 2,
                armed: 0,
                restored: 1,
                booted: 1
            }
        );
        near(figures.regular_part, 0.75);
        near(figures.cold_ms.mean, 10.0);
        assert_eq!((figures.queued_ms.count, figures.queued_ms.max), (2, 1.0));
        near(figures.lateness_ms.max, 3.0);
    }

    #[test]
    fn parts_and_lives_are_those_computed_by_hand() {
        let figures = Figures::of(&run());
        let mean = |parts: &[Part], name: &str| parts.iter().find(|part| part.name == name).unwrap().ms.mean;
        near(mean(&figures.parts, "worker"), 4.0);
        near(mean(&figures.parts, "boot"), 0.0);
        near(mean(&figures.parts_huawei, "dependencies"), 5.0);
        near(mean(&figures.parts_huawei, "scheduling"), 1.0);
        // The first instance is of use from 10 to 2080 ms after 9 ms of start, the second for 5 ms after 9.
        assert_eq!(figures.utility_ratio.count, 2);
        near(figures.utility_ratio.max, 2070.0 / 9.0);
        near(figures.utility_ratio.p50, 5.0 / 9.0);
        near(figures.utility_below_1, 0.5);
    }

    #[test]
    fn costs_hold_until_the_next_sample() {
        let costs = Figures::of(&run()).costs;
        // 1 GiB for two seconds and half a GiB for two.
        near(costs.memory_gib_s, 3.0);
        near(costs.cpu_s, 0.4);
        near(costs.overhead_cpu_s, 0.2);
        near(costs.overhead_cpu_ms_per_call, 50.0);
        near(costs.regular_mean, 6.0 / 5.0);
        near(costs.emergency_mean, 2.0 / 5.0);
        assert_eq!(costs.instances_max, 2);
        near(costs.busy_part, 0.5);
    }

    #[test]
    fn a_report_is_written_whole() {
        let (first, mut second) = (run(), run());
        second.name = "sync & <co>".to_owned();
        let report = Report::of(&[first, second]).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let page = fs::read_to_string(report.write(&dir.path().join("new")).unwrap()).unwrap();
        assert!(page.contains("sync &amp; &lt;co&gt;") && !page.contains("<co>"));
        for outside in ["http://www.w3.org/1999/xlink", "src=", "href=", "url(", "@import"] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert_eq!(page.matches("<svg").count(), report.plots.len());
        let json = fs::read(dir.path().join("new/report.json")).unwrap();
        let read: Vec<Figures> = serde_json::from_slice(&json).unwrap();
        let names: Vec<&str> = read.iter().map(|figures| figures.name.as_str()).collect();
        assert_eq!(names, ["dual", "sync & <co>"]);
        assert_eq!(read[0].endings, report.figures()[0].endings);
        assert!(dir.path().join("new/components.svg").is_file());
    }

    #[test]
    fn tables_show_runs_side_by_side() {
        let mut other = run();
        other.name = "sync".to_owned();
        other.records.truncate(2);
        let text = Report::of(&[run(), other]).unwrap().to_text();
        let line = |label: &str| {
            let line = text.lines().find(|line| line.starts_with(label)).unwrap();
            line.split("  ")
                .filter(|cell| !cell.is_empty())
                .map(str::trim)
                .collect::<Vec<_>>()
        };
        assert_eq!(line("answered"), ["answered", "4", "2"]);
        assert_eq!(line("slowdown, p99"), ["slowdown, p99", "8.00", "2.00"]);
        assert_eq!(
            line("on regular instances"),
            ["on regular instances", "75.0 %", "50.0 %"]
        );
        assert!(text.contains("dual: made by hand"));
    }

    #[test]
    fn a_run_without_anything_has_a_report() {
        let empty = Run {
            records: Vec::new(),
            samples: Vec::new(),
            lateness_ns: Vec::new(),
            ..run()
        };
        let report = Report::of(&[empty]).unwrap();
        assert_eq!(report.figures()[0].response_ms, Spread::default());
        assert!(report.to_html().contains("<svg"));
        assert!(Report::of(&[]).unwrap().figures().is_empty());
    }
}
