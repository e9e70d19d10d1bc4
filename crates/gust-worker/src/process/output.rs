//! What the guest writes to its standard output and error, on its way to the node as log.
//!
//! One invocation may log [`LOG_BYTES_MAX`]; what comes beyond is read, so that the guest is not held up, and counted.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::io::Errno;

use super::guest::Pipes;
use crate::{
    channel::{Channel, ChannelError},
    protocol::{LOG_BYTES_MAX, Report},
};

/// Bytes of one piece of log.
const PIECE_BYTES: usize = 16 << 10;

/// Pieces that are taken from a pipe at a time before others get their turn: what a full pipe holds.
const PIECES_MAX: usize = 5;

/// The read ends of the guest's output.
#[derive(Debug)]
pub(super) struct Output {
    /// Closed ends are gone.
    pipes: Vec<OwnedFd>,
    sent_bytes: u64,
    dropped_bytes: u64,
}

impl Output {
    pub(super) fn new(pipes: Pipes) -> Self {
        Self {
            pipes: vec![pipes.stdout, pipes.stderr],
            sent_bytes: 0,
            dropped_bytes: 0,
        }
    }

    /// Starts counting anew, for the next invocation.
    pub(super) fn start_counting(&mut self) {
        (self.sent_bytes, self.dropped_bytes) = (0, 0);
    }

    /// Bytes over the bound since the counting started.
    pub(super) fn dropped_bytes(&self) -> u64 {
        self.dropped_bytes
    }

    /// Descriptors to wait for.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.pipes.iter().map(AsFd::as_fd)
    }

    /// Sends on what is there now.
    pub(super) fn forward(&mut self, channel: &mut Channel) -> Result<(), ChannelError> {
        let mut piece = [0; PIECE_BYTES];
        let mut closed = Vec::new();
        for at in 0..self.pipes.len() {
            for _ in 0..PIECES_MAX {
                match rustix::io::read(&self.pipes[at], &mut piece) {
                    Ok(0) => {
                        closed.push(at);
                        break;
                    }
                    Ok(n) => self.send(&piece[..n], channel)?,
                    Err(Errno::AGAIN) => break,
                    Err(Errno::INTR) => {}
                    Err(error) => return Err(ChannelError::Io(io::Error::from(error))),
                }
            }
        }
        for at in closed.into_iter().rev() {
            self.pipes.remove(at);
        }
        Ok(())
    }

    fn send(&mut self, piece: &[u8], channel: &mut Channel) -> Result<(), ChannelError> {
        let room = usize::try_from(LOG_BYTES_MAX - self.sent_bytes).unwrap_or(usize::MAX);
        let (kept, dropped) = piece.split_at(piece.len().min(room));
        self.sent_bytes += kept.len() as u64;
        self.dropped_bytes += dropped.len() as u64;
        match kept.is_empty() {
            true => Ok(()),
            false => channel.send(&Report::Log, kept),
        }
    }
}
