//! What each command does.

mod cluster;
pub mod deploy;
mod dev;
mod doctor;
mod functions;
mod invoke;
mod logs;
mod node;
pub mod replay;
pub mod run;
pub mod runtime;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::CommandFactory;

use crate::{
    bench,
    cli::{Arguments, Command},
    up,
};

/// Carries a command out.
pub fn run(arguments: Arguments) -> Result<ExitCode> {
    match arguments.command {
        Command::Up(arguments) => up::run(*arguments),
        Command::Node(arguments) => node::run(arguments),
        Command::Cluster(arguments) => block_on(cluster::run(arguments)),
        Command::Run(arguments) => run::run(arguments),
        Command::Deploy(arguments) => block_on(deploy::run(arguments)),
        Command::Invoke(arguments) => block_on(invoke::run(arguments)),
        Command::Logs(arguments) => block_on(logs::run(arguments)),
        Command::Ls(arguments) => block_on(functions::list(arguments)),
        Command::Describe(arguments) => block_on(functions::describe(arguments)),
        Command::Rm(arguments) => block_on(functions::remove(arguments)),
        Command::Runtime(arguments) => runtime::run(arguments),
        Command::Dev(arguments) => block_on(dev::run(arguments)),
        Command::Bench(arguments) => block_on(bench::run(arguments)),
        Command::Trace(arguments) => replay::trace(arguments),
        Command::Replay(arguments) => block_on(replay::replay(*arguments)),
        Command::Simulate(arguments) => replay::simulate(*arguments),
        Command::ValidateSim(arguments) => block_on(replay::validate(*arguments)),
        Command::Calibrate(arguments) => block_on(replay::calibrate(arguments)),
        Command::Chaos(arguments) => replay::chaos(*arguments),
        Command::Report(arguments) => replay::report(arguments),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Completion { shell } => {
            let mut out = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "gust", &mut out);
            print(&String::from_utf8_lossy(&out))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Prints to standard output. A reader that has gone away (`| head`) ends the command in peace.
pub fn print(text: &str) -> Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        written => written.context("write to standard output"),
    }
}

fn block_on(command: impl Future<Output = Result<ExitCode>>) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    runtime.block_on(command)
}
