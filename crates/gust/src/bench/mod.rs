//! `gust bench`: measurements, and what every one of them needs.
//!
//! A measurement fills a [`report::Report`]: rows of figures, each from samples ([`stats::Summary`]), with the machine
//! that they were taken on ([`machine::Machine`]), held against what the project has set itself ([`targets::Target`]).
//! The report is printed as a table and written as JSON and as a plot.
//!
//! All but `calls` start a server of their own in a temporary data directory, unless `--endpoint` names one. Whatever
//! they start ends with them.

mod burst;
pub mod calls;
pub mod children;
mod coldstart;
mod control;
mod figures;
mod handlers;
pub mod machine;
pub mod memory;
pub mod own;
mod peers;
mod plot;
pub mod processes;
mod report;
mod sandbox;
mod stats;
mod targets;
mod warm;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Args, Subcommand};
use report::Report;

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
    #[arg(long, default_value = "bench-results", global = true)]
    report_dir: PathBuf,
}

#[derive(Debug, Subcommand)]
enum BenchCommand {
    /// Requests that meet no idle instance, against a process, a container, MiniStack and python3
    Coldstart(coldstart::ColdstartArgs),
    /// What a call of a ready instance costs, and how many a second there are
    Warm(warm::WarmArgs),
    /// Many requests at once for a function with nothing running
    Burst(burst::BurstArgs),
    /// The control plane: cold starts a second, overhead of a call, thousands of functions and nodes, fairness
    Control(control::ControlArgs),
    /// Speed and density of the sandbox itself, each figure beside its peer
    Sandbox(sandbox::SandboxArgs),
    /// What two sandboxes beside each other can signal through a cache or memory, with shared pages and without
    Sidechannel(sandbox::sidechannel::SidechannelArgs),
    /// Call a deployed function again and again
    Calls(calls::CallsArgs),
}

/// Runs a measurement and shows its report.
pub async fn run(arguments: BenchArgs) -> Result<ExitCode> {
    let server = &arguments.server;
    let report = match &arguments.command {
        BenchCommand::Coldstart(coldstart) => coldstart::run(coldstart, server).await?,
        BenchCommand::Warm(warm) => warm::run(warm, server).await?,
        BenchCommand::Burst(burst) => burst::run(burst, server).await?,
        // Some parts take a long time: each is shown when it is there.
        BenchCommand::Sandbox(sandbox) => {
            let mut show = |report: &Report| show(&arguments, report);
            return sandbox::run(sandbox, &mut show).await.map(|()| ExitCode::SUCCESS);
        }
        BenchCommand::Control(control) => {
            let mut show = |report: &Report| show(&arguments, report);
            return control::run(control, &mut show).await.map(|()| ExitCode::SUCCESS);
        }
        BenchCommand::Sidechannel(sidechannel) => sandbox::sidechannel::run(sidechannel.clone()).await?,
        BenchCommand::Calls(calls) => calls::run(calls, server).await?,
    };
    show(&arguments, &report)?;
    Ok(ExitCode::SUCCESS)
}

/// Writes a report and prints it.
fn show(arguments: &BenchArgs, report: &Report) -> Result<()> {
    report.write(&arguments.report_dir)?;
    match arguments.output.output {
        Output::Text => {
            crate::commands::print(&report.to_table())?;
            eprintln!("\nJSON and plot are in {}", arguments.report_dir.display());
        }
        Output::Json => crate::commands::print(&format!("{:#}\n", report.to_json()))?,
    }
    Ok(())
}
