//! `gust run`: any Linux program in a jailed micro-VM of its own.
//!
//! ```text
//!   stdin ──> thread ──> pipe ──> worker (jailed) ──> pipe of the guest ──> program
//!   signals ──> node's socket ──> worker ──> signals of the guest
//!   stdout, stderr <── threads <── pipes <── worker <── pipes of the guest
//! ```
//!
//! No server takes part. Exit codes are those of `docker run`; see [`arguments`].

mod arguments;
mod image;
mod streams;

use std::{os::fd::OwnedFd, process::ExitCode, time::Duration};

use anyhow::{Context, Result};
use gust_node::{GuestExit, NodeError, Program, ProgramEnd, Programs, RunStats, Running};
use serde_json::json;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};

pub use arguments::RunArgs;
use arguments::{Settings, over_defaults};

use crate::{cli::Output, exit, output, paths};

/// The time-out is over.
const TIMED_OUT: u8 = 124;
/// This program failed, not the one that it should run.
pub const OWN_FAILURE: u8 = 125;
/// The program cannot be started.
const CANNOT_START: u8 = 126;
/// There is no such program.
const NO_PROGRAM: u8 = 127;
/// Added to the number of the signal that ended a program.
const BY_SIGNAL: u8 = 128;
/// What a program is ended by when its memory is spent, or when it is told to end twice.
const SIGKILL: u8 = 9;

/// Signals that may be on their way to the program.
const SIGNALS_WAITING_MAX: usize = 16;

/// Time for workers and control groups to be gone at the end; they go by themselves even so.
const STOP_TIME: Duration = Duration::from_secs(5);

/// Runs a program to its end.
pub(super) fn run(arguments: RunArgs) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    let code = match runtime.block_on(start(arguments)) {
        Ok(code) => code,
        Err(error) => {
            exit::report(&error);
            OWN_FAILURE
        }
    };
    runtime.shutdown_timeout(STOP_TIME);
    Ok(ExitCode::from(code))
}

async fn start(arguments: RunArgs) -> Result<u8> {
    let Settings {
        environment,
        mounts,
        user,
        timeout,
        egress,
    } = arguments.settings()?;
    let data_dir = arguments.data_dir.unwrap_or_else(paths::data_dir);
    let root = image::root(&arguments.image, &data_dir)?;
    let mounts = mounts
        .iter()
        .map(|mount| Ok((mount.path.clone(), OwnedFd::from(image::path(&mount.source)?))))
        .collect::<Result<_>>()?;
    // From here on they are the program's.
    let signals = Signals::listen().context("listen for signals")?;
    let programs = Programs::start(None).await?;
    let (standard, streams) = streams::start().context("make pipes for the program")?;
    let image::Root { file: root, defaults } = root;
    let directory = arguments
        .workdir
        .unwrap_or_else(|| match defaults.directory.as_str() {
            "" => "/".to_owned(),
            directory => directory.to_owned(),
        });
    let program = Program {
        argv: arguments.program,
        environment: over_defaults(environment, defaults.environment),
        directory,
        user,
        host_name: arguments.hostname,
        memory_bytes: arguments.memory << 20,
        tmp_bytes: arguments.tmp << 20,
        root: root.into(),
        mounts,
        egress,
        standard,
    };
    let ended = match programs.run(program).await {
        Ok(running) => attend(running, signals, timeout).await,
        Err(error) => Err(error),
    };
    programs.stop().await;
    // The worker's ends of the pipes are closed now: what is left in them is all there is.
    tokio::task::spawn_blocking(move || streams.finish())
        .await
        .context("write the program's output")?;
    Ok(told(ended?, arguments.stats))
}

/// Why there is nothing more to wait for.
enum Attended {
    Ended(ProgramEnd),
    TimedOut(Duration),
    Killed,
}

/// Stays with the program until its end, passing signals on.
async fn attend(
    running: Running,
    mut signals: Signals,
    timeout: Option<Duration>,
) -> Result<Attended, NodeError> {
    let (pass_on, mut passed_on) = mpsc::channel(SIGNALS_WAITING_MAX);
    let mut told_to_end = 0;
    let ended = running.attend(&mut passed_on);
    let over = async {
        match timeout {
            Some(timeout) => tokio::time::sleep(timeout).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(ended, over);
    loop {
        tokio::select! {
            ended = &mut ended => return ended.map(Attended::Ended),
            // Giving the program up kills it.
            () = &mut over => return Ok(Attended::TimedOut(timeout.unwrap_or_default())),
            signal = signals.next() => {
                told_to_end += u32::from(signal.ends);
                if told_to_end > 1 {
                    return Ok(Attended::Killed);
                }
                // More signals than a program can be told of at once are one too many.
                let _ = pass_on.try_send(signal.number);
            }
        }
    }
}

/// Prints what is to be said of the end, and gives the exit code.
fn told(attended: Attended, stats: Option<Output>) -> u8 {
    let (exit, boot, used) = match attended {
        Attended::TimedOut(timeout) => {
            eprintln!("gust: the program was killed after {} s", timeout.as_secs_f64());
            return TIMED_OUT;
        }
        Attended::Killed => return BY_SIGNAL + SIGKILL,
        Attended::Ended(ProgramEnd::CannotRun { not_found, reason }) => {
            eprintln!("gust: {reason}");
            return if not_found { NO_PROGRAM } else { CANNOT_START };
        }
        Attended::Ended(ProgramEnd::Ran { exit, boot, stats }) => (exit, boot, stats),
    };
    let code = match &exit {
        GuestExit::Exit(status) => *status as u8,
        GuestExit::Signal(signal) => BY_SIGNAL.saturating_add(*signal as u8),
        GuestExit::OutOfMemory => {
            eprintln!("gust: the program was killed: it used more memory than --memory gives it");
            BY_SIGNAL + SIGKILL
        }
        GuestExit::Fault(reason) => {
            eprintln!("gust: the sandbox ended the program: {reason}");
            OWN_FAILURE
        }
    };
    match stats {
        Some(Output::Text) => eprint!("{}", text(boot, &used)),
        Some(Output::Json) => eprintln!("{}", document(boot, &used)),
        None => {}
    }
    code
}

fn text(boot: Duration, used: &RunStats) -> String {
    let calls: u64 = used.calls.iter().map(|(_, count)| count).sum();
    let mut lines = vec![
        vec!["boot".to_owned(), output::duration(boot)],
        vec![
            "run".to_owned(),
            output::duration(Duration::from_nanos(used.run_ns)),
        ],
        vec![
            "in the guest".to_owned(),
            output::duration(Duration::from_nanos(used.guest_ns)),
        ],
        vec!["exits".to_owned(), used.exits.to_string()],
        vec!["faults".to_owned(), used.faults.to_string()],
        vec!["memory".to_owned(), output::bytes(used.memory_bytes_max)],
        vec!["system calls".to_owned(), calls.to_string()],
    ];
    lines.extend(
        used.calls
            .iter()
            .map(|(name, count)| vec![format!("  {name}"), count.to_string()]),
    );
    output::table(&lines)
}

fn document(boot: Duration, used: &RunStats) -> String {
    let calls: serde_json::Map<_, _> = used
        .calls
        .iter()
        .map(|(name, count)| (name.clone(), json!(count)))
        .collect();
    json!({
        "boot_ns": u64::try_from(boot.as_nanos()).unwrap_or(u64::MAX),
        "run_ns": used.run_ns,
        "guest_ns": used.guest_ns,
        "exits": used.exits,
        "faults": used.faults,
        "memory_bytes_max": used.memory_bytes_max,
        "system_calls": calls,
    })
    .to_string()
}

/// Signals that are the program's.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
    quit: Signal,
    first: Signal,
    second: Signal,
}

/// A signal that came.
struct Came {
    number: u32,
    /// It tells the program to end; the second of these kills it.
    ends: bool,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
            quit: signal(SignalKind::quit())?,
            first: signal(SignalKind::user_defined1())?,
            second: signal(SignalKind::user_defined2())?,
        })
    }

    async fn next(&mut self) -> Came {
        let (kind, ends) = tokio::select! {
            _ = self.interrupt.recv() => (SignalKind::interrupt(), true),
            _ = self.terminate.recv() => (SignalKind::terminate(), true),
            _ = self.hang_up.recv() => (SignalKind::hangup(), false),
            _ = self.quit.recv() => (SignalKind::quit(), false),
            _ = self.first.recv() => (SignalKind::user_defined1(), false),
            _ = self.second.recv() => (SignalKind::user_defined2(), false),
        };
        Came {
            number: kind.as_raw_value().unsigned_abs(),
            ends,
        }
    }
}
