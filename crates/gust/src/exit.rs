//! How commands end.

use std::process::ExitCode;

use crate::{client::ClientError, commands::run::OWN_FAILURE};

/// Something failed.
pub const FAILED: u8 = 1;

/// The function failed: `gust invoke` shows its error document.
pub const FUNCTION_ERROR: u8 = 3;

/// No server answers.
pub const NO_SERVER: u8 = 4;

/// There is no such function, version or alias.
pub const NOT_FOUND: u8 = 5;

/// What the codes mean, for the help.
pub const HELP: &str = "\
Exit codes:
  0  done
  1  failed; standard error says why
  2  the command line is wrong
  3  the function failed (gust invoke)
  4  no server answers at the endpoint
  5  no such function, version or alias";

/// An error with a line that says what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Hinted {
    /// What failed.
    pub message: String,
    /// What to do about it.
    pub hint: String,
}

/// Prints what is wrong with the command line, or the help that was asked for. `gust run` has codes of its own, because
/// those below are its program's.
pub fn wrong_command_line(error: &clap::Error) -> ExitCode {
    // Standard error is gone; the code is all that can be told.
    let _ = error.print();
    let is_run = std::env::args_os().nth(1).is_some_and(|command| command == "run");
    match error.exit_code() {
        0 => ExitCode::SUCCESS,
        _ if is_run => ExitCode::from(OWN_FAILURE),
        code => ExitCode::from(u8::try_from(code).unwrap_or(FAILED)),
    }
}

/// Prints an error with its causes and a hint, and answers the exit code.
pub fn report(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error}");
    let mut last = error.to_string();
    for cause in error.chain().skip(1) {
        let text = cause.to_string();
        if !last.contains(&text) {
            eprintln!("  because: {text}");
        }
        last = text;
    }
    let mut code = FAILED;
    for cause in error.chain() {
        if let Some(hinted) = cause.downcast_ref::<Hinted>() {
            eprintln!("hint: {}", hinted.hint);
        }
        if let Some(client) = cause.downcast_ref::<ClientError>() {
            code = client.exit_code();
            if let Some(hint) = client.hint() {
                eprintln!("hint: {hint}");
            }
        }
    }
    ExitCode::from(code)
}
