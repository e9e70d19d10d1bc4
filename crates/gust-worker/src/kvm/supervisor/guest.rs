//! A guest that runs: it is listened to until it says something, waits or ends, and what it does meanwhile is passed on.

use std::{os::fd::AsFd, time::Duration};

use gust_linux::{BootError, Ended};

use super::{
    Next, Result,
    error::{SupervisorError, reason_of},
};
use crate::{
    channel::{Channel, ChannelError},
    frame::Frame,
    kvm::sandbox::{Heard, Sandbox, SandboxError},
    protocol::{Command, GuestExit, Report, Waiting},
    runtime_api::Said,
};

/// What a guest that ran came to.
pub(super) enum Spoken {
    Said(Said),
    Ended(GuestExit),
    NodeGone,
}

/// Runs the guest until it says something or ends; its log goes to the node meanwhile.
pub(super) fn listen(sandbox: &mut Sandbox, channel: &mut Channel) -> Result<Spoken> {
    loop {
        let heard = match sandbox.run() {
            Err(SandboxError::Machine(gust_vmm::Error::GuestStopped(why))) => {
                return Ok(Spoken::Ended(GuestExit::Fault(why)));
            }
            // Page tables and slots are bounded for each guest.
            Err(SandboxError::Machine(gust_vmm::Error::Exhausted(_))) => {
                return Ok(Spoken::Ended(GuestExit::OutOfMemory));
            }
            result => result?,
        };
        match heard {
            Heard::Said(said) => return Ok(Spoken::Said(said)),
            Heard::Ended(ended) => {
                send_log(sandbox, channel)?;
                return Ok(Spoken::Ended(exit_of(&ended)));
            }
            Heard::Log => send_log(sandbox, channel)?,
            Heard::Outside(time) => {
                if !look_outside(sandbox, channel, time)? {
                    return Ok(Spoken::NodeGone);
                }
            }
            // It waits for what cannot come. As on AWS, its time-out ends it: the node kills this process.
            Heard::Stuck => match channel.receive::<Command>()? {
                None => return Ok(Spoken::NodeGone),
                Some(frame) => obey_outside(sandbox, frame)?,
            },
        }
    }
}

/// Looks at what a guest has outside, and waits for it when there is time. `false` when the node is gone.
fn look_outside(sandbox: &mut Sandbox, channel: &mut Channel, time: Option<Duration>) -> Result<bool> {
    sandbox.tell_network(channel)?;
    let mut frame = match sandbox.wait_outside(channel.as_fd(), time)? {
        false => channel.receive_buffered()?,
        true => match channel.receive_ready() {
            Err(ChannelError::Io(error)) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                return Ok(false);
            }
            frame => frame?,
        },
    };
    while let Some(command) = frame.take() {
        obey_outside(sandbox, command)?;
        frame = channel.receive_buffered()?;
    }
    Ok(true)
}

/// Takes in the one thing that the node says while a guest works.
fn obey_outside(sandbox: &mut Sandbox, frame: Frame<Command>) -> Result<()> {
    match frame.message {
        Command::Outside { connection, answer } => {
            Ok(sandbox.answered(connection, answer, frame.descriptors)?)
        }
        Command::Boot(_)
        | Command::Init(_)
        | Command::Restore(_)
        | Command::Invoke(_)
        | Command::Capture
        | Command::Replan
        | Command::Shape
        | Command::Graft
        | Command::Freeze
        | Command::Rewind { .. }
        | Command::Run(_)
        | Command::Signal(_)
        | Command::Network(_) => Err(SupervisorError::OutOfOrder("while the guest works")),
    }
}

/// Runs the guest until it waits, and says so.
pub(super) fn until_waits(sandbox: &mut Sandbox, channel: &mut Channel) -> Result<Next> {
    match listen(sandbox, channel)? {
        Spoken::Said(Said::Waits) => {}
        Spoken::Said(Said::InitError(document)) if !sandbox.has_seen_events() => {
            send_log(sandbox, channel)?;
            channel.send(&Report::InitFailed, &document)?;
            return Ok(Next::End);
        }
        Spoken::Said(_) => return exited(channel, unasked()),
        Spoken::Ended(exit) => return exited(channel, exit),
        Spoken::NodeGone => return Ok(Next::End),
    }
    if !sandbox.has_seen_events() {
        sandbox.quiesce()?;
    }
    send_log(sandbox, channel)?;
    let report = waiting(sandbox, false);
    channel.send(&Report::Waiting(report), b"")?;
    Ok(Next::Command)
}

pub(super) fn waiting(sandbox: &mut Sandbox, pristine: bool) -> Waiting {
    Waiting {
        waits_for: sandbox.waits_for(),
        memory_bytes: sandbox.memory_bytes(),
        pristine,
    }
}

pub(super) fn send_log(sandbox: &mut Sandbox, channel: &mut Channel) -> Result<()> {
    let log = sandbox.take_log();
    if !log.is_empty() {
        channel.send(&Report::Log, &log)?;
    }
    Ok(())
}

pub(super) fn exited(channel: &mut Channel, exit: GuestExit) -> Result<Next> {
    channel.send(&Report::Exited(exit), b"")?;
    Ok(Next::End)
}

/// Says in Lambda's words that there is no program.
pub(super) fn cannot_start(channel: &mut Channel, error: &BootError) -> Result<Next> {
    let message = match error {
        BootError::Program { program, reason } => format!("fork/exec {program}: {reason}"),
        other => reason_of(other),
    };
    let document = serde_json::json!({
        "errorType": "Runtime.InvalidEntrypoint",
        "errorMessage": format!("Error: {message}"),
    });
    channel.send(&Report::InitFailed, document.to_string().as_bytes())?;
    Ok(Next::End)
}

pub(super) fn unasked() -> GuestExit {
    GuestExit::Fault("the runtime answered without having been asked".to_owned())
}

pub(in crate::kvm) fn exit_of(ended: &Ended) -> GuestExit {
    match ended {
        Ended::Exit(status) => GuestExit::Exit(*status),
        Ended::Signal(signal) => GuestExit::Signal(*signal),
        Ended::OutOfMemory => GuestExit::OutOfMemory,
    }
}
