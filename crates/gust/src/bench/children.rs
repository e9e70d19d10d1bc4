//! Programs that a measurement starts: made, asked once, ended.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Time that a program gets to end after SIGTERM, in pauses of [`END_PAUSE`].
const END_PAUSES_MAX: usize = 1000;

/// Pause between two looks at whether a program has ended.
const END_PAUSE: Duration = Duration::from_millis(10);

/// This program, with nothing of the caller's configuration and no standard input.
pub fn gust() -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("find this program")?);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("GUST_") {
            command.env_remove(name);
        }
    }
    command.env("GUST_CONFIG", "/dev/null").stdin(Stdio::null());
    Ok(command)
}

/// The first line of what a program prints, whose standard output must be piped; empty when it ends without one.
pub fn first_line(child: &mut Child) -> Result<String> {
    let mut line = String::new();
    let stdout = child.stdout.take().context("read what a program prints")?;
    BufReader::new(stdout)
        .read_line(&mut line)
        .context("read what a program prints")?;
    Ok(line)
}

/// Asks a program to end, and ends it when it does not.
pub fn end(child: &mut Child) {
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        // It may have ended already; it is not reaped yet, so the id is still its own.
        let _ended = kill_process(pid, Signal::TERM);
    }
    for _ in 0..END_PAUSES_MAX {
        match child.try_wait() {
            Ok(Some(_)) | Err(_) => return,
            Ok(None) => std::thread::sleep(END_PAUSE),
        }
    }
    let _ended = child.kill().and_then(|()| child.wait());
}

/// Starts a program with pipes for its standard files.
pub fn piped(command: &mut Command) -> Result<Child> {
    let started = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    started.with_context(|| format!("start {:?}", command.get_program()))
}

/// Starts a program, gives it one event on its standard input and takes one line of JSON from its standard output. The
/// time runs from before the start to the end of the line; the program's own end is waited for, but not counted.
pub fn ask(command: &mut Command, event: &[u8]) -> Result<(Duration, Value)> {
    let shown = format!("{:?}", command.get_program());
    let began = Instant::now();
    let mut child = piped(command)?;
    let asked = child
        .stdin
        .take()
        .context("no standard input")
        .and_then(|mut stdin| stdin.write_all(event).context("write the event"));
    let mut line = String::new();
    let answered = child
        .stdout
        .take()
        .context("no standard output")
        .and_then(|stdout| {
            BufReader::new(stdout)
                .read_line(&mut line)
                .context("read the answer")
        });
    let latency = began.elapsed();
    let output = child
        .wait_with_output()
        .with_context(|| format!("wait for {shown}"))?;
    let failed = || {
        format!(
            "{shown} failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )
    };
    asked.with_context(failed)?;
    answered.with_context(failed)?;
    ensure!(output.status.success(), failed());
    let answer = serde_json::from_str(&line).with_context(|| format!("{shown} answered {line:?}"))?;
    Ok((latency, answer))
}
