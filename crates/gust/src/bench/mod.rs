//! `gust bench`: measurements, and what every one of them needs.
//!
//! A measurement fills a [`report::Report`]: rows of figures, each from samples ([`stats::Summary`]), with the machine
//! that they were taken on ([`machine::Machine`]). The report is printed as a table and written as JSON and as a plot.

pub mod calls;
pub mod machine;
pub mod plot;
pub mod report;
pub mod stats;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::cli::{Output, OutputArgs, ServerArgs};

/// `gust bench`
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// What to measure
    #[command(subcommand)]
    command: BenchCommand,
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    output: OutputArgs,
    /// Directory for the report (bench-NAME.json and bench-NAME.svg)
    #[arg(long, global = true)]
    report_dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum BenchCommand {
    /// Call a deployed function again and again
    Calls(calls::CallsArgs),
}

/// Runs a measurement and shows its report.
pub async fn run(arguments: BenchArgs) -> Result<ExitCode> {
    let report = match &arguments.command {
        BenchCommand::Calls(calls) => calls::run(calls, &arguments.server).await?,
    };
    match arguments.output.output {
        Output::Text => crate::commands::print(&report.to_table())?,
        Output::Json => crate::commands::print(&format!("{:#}\n", report.to_json()))?,
    }
    if let Some(dir) = &arguments.report_dir {
        report.write(dir)?;
    }
    Ok(ExitCode::SUCCESS)
}
