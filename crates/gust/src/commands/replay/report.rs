//! `gust report`: reports of runs that were kept.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result};
use clap::Args;
use gust_replay::{
    Run,
    report::{Report, invitro},
};

use crate::{
    cli::{Output, OutputArgs},
    commands::print,
};

/// `gust report`
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// Runs, side by side
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// Directory for the page, the pictures and report.json
    #[arg(long, default_value = "replay-results")]
    out: PathBuf,
    /// Write the records of each run too, in InVitro's columns
    #[arg(long)]
    csv: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// Makes the report.
pub fn run(arguments: ReportArgs) -> Result<ExitCode> {
    let runs = arguments
        .runs
        .iter()
        .map(|path| Run::read(path))
        .collect::<Result<Vec<Run>, _>>()?;
    show(&runs, &arguments.out, arguments.csv, arguments.output.output)?;
    Ok(ExitCode::SUCCESS)
}

/// Writes the report of some runs into a directory and prints its tables.
pub(super) fn show(runs: &[Run], out: &Path, csv: bool, output: Output) -> Result<()> {
    let report = Report::of(runs)?;
    let page = report.write(out)?;
    if csv {
        for run in runs {
            invitro::write(run, &out.join(format!("{}.csv", file_name(&run.name))))?;
        }
    }
    match output {
        Output::Text => {
            print(&report.to_text())?;
            eprintln!("\nthe page is {}", page.display());
        }
        Output::Json => {
            let json = serde_json::to_string_pretty(report.figures()).context("write figures as JSON")?;
            print(&format!("{json}\n"))?;
        }
    }
    Ok(())
}

/// Writes the report of some runs into a directory, without printing it.
pub(super) fn write(runs: &[Run], out: &Path) -> Result<()> {
    let page = Report::of(runs)?.write(out)?;
    eprintln!("the page is {}", page.display());
    Ok(())
}

/// The name of a run as that of a file.
pub(super) fn file_name(name: &str) -> String {
    name.chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || c == '-' || c == '.' {
                c
            } else {
                '-'
            }
        })
        .collect()
}
