//! A guest's program that has been started: waiting for what it says, logs and comes to.

use std::{io, os::fd::OwnedFd};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
};

use super::{SupervisorError, guest::Guest, io_error, link::Link, output::Output};
use crate::{
    channel::{Channel, ChannelError},
    frame::Frame,
    protocol::{Command, GuestExit, Report, Waiting, WaitsFor},
    runtime_api::Said,
    sys,
};

/// A program and what joins it to the supervisor.
pub(super) struct Running {
    pub(super) guest: Guest,
    pub(super) link: Link,
    pub(super) output: Output,
    pub(super) signals: OwnedFd,
    /// Said by the program and not worked on yet.
    pub(super) said: Vec<Said>,
    /// The program's end.
    pub(super) ended: Option<GuestExit>,
    /// Time of the start, until the first answer has told it.
    pub(super) boot_ns: u64,
}

/// What was waited for.
pub(super) enum Heard {
    Said(Said),
    End(GuestExit),
}

impl Running {
    /// Waits until the program says something or ends. Its log goes to the node meanwhile.
    pub(super) fn until_said(&mut self, channel: &mut Channel) -> Result<Heard, SupervisorError> {
        loop {
            if !self.said.is_empty() {
                return Ok(Heard::Said(self.said.remove(0)));
            }
            if let Some(exit) = self.ended.take() {
                return Ok(Heard::End(exit));
            }
            if self.turn(channel)?.is_some() {
                return Err(SupervisorError::OutOfOrder("while the guest works"));
            }
        }
    }

    /// Waits for anything to happen, once, and works on it. Gives a command, if one has come.
    pub(super) fn turn(&mut self, channel: &mut Channel) -> Result<Option<Frame<Command>>, SupervisorError> {
        let (commands, signals) = self.wait(channel)?;
        self.link
            .turn(&mut self.said)
            .map_err(io_error("speaking with the guest's program"))?;
        self.output.forward(channel)?;
        if signals {
            sys::drain_signals(&self.signals);
            self.ended = self
                .guest
                .reap()
                .map_err(io_error("waiting for the guest"))?
                .or(self.ended.take());
            if self.ended.is_some() {
                // What it said and wrote at last.
                self.link
                    .turn(&mut self.said)
                    .map_err(io_error("speaking with the guest's program"))?;
                self.output.forward(channel)?;
            }
        }
        if !commands {
            return Ok(None);
        }
        match channel.receive_ready() {
            Err(ChannelError::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(SupervisorError::NodeGone)
            }
            result => Ok(result?),
        }
    }

    /// Waits until a descriptor is ready: whether the node's socket and the signals are.
    fn wait(&self, channel: &Channel) -> Result<(bool, bool), SupervisorError> {
        let mut ready = vec![
            PollFd::new(channel, PollFlags::IN),
            PollFd::new(&self.signals, PollFlags::IN),
        ];
        ready.extend(
            self.output
                .descriptors()
                .map(|pipe| PollFd::from_borrowed_fd(pipe, PollFlags::IN)),
        );
        ready.extend(self.link.poll_fds());
        match poll(&mut ready, None) {
            Ok(_) => Ok((!ready[0].revents().is_empty(), !ready[1].revents().is_empty())),
            Err(Errno::INTR) => Ok((false, false)),
            Err(error) => Err(io_error("waiting")(error.into())),
        }
    }

    /// Stops the guest and says that it waits for an event.
    pub(super) fn rest(&mut self, channel: &mut Channel) -> Result<(), SupervisorError> {
        Guest::stop().map_err(io_error("stopping the guest"))?;
        let memory_bytes = self.guest.memory_bytes();
        let waiting = Waiting {
            waits_for: WaitsFor::Event,
            memory_bytes,
            pristine: false,
        };
        Ok(channel.send(&Report::Waiting(waiting), b"")?)
    }
}
