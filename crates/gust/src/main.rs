//! The `gust` program: the server, and the commands that talk to one.
//!
//! This crate parses the command line and the configuration, wires the other crates together, and prints. What it
//! prints for programs goes to standard output, everything else to standard error. Exit codes are those of [`exit`].

#![forbid(unsafe_code)]

mod bench;
mod cli;
mod client;
mod commands;
mod detect;
mod exit;
mod output;
mod package;
mod paths;
mod project;
mod up;

use std::process::ExitCode;

use clap::Parser;

/// The hidden subcommand with which a node starts the process that makes its workers.
const ZYGOTE: &str = "zygote";

fn main() -> ExitCode {
    // Before anything else: every worker is a copy of this process and starts with what it has in memory.
    if std::env::args_os()
        .nth(1)
        .is_some_and(|argument| argument == ZYGOTE)
    {
        return gust_worker::zygote::main();
    }
    let arguments = match cli::Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return exit::wrong_command_line(&error),
    };
    match commands::run(arguments) {
        Ok(code) => code,
        Err(error) => exit::report(&error),
    }
}
