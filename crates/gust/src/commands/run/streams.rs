//! Standard input, output and error of `gust run`, and the pipes that lead to the worker.
//!
//! Each is moved by a thread of its own in plain blocking reads and writes, so that nothing is held here beyond one
//! piece: a reader that is slow fills the pipe, then the program's. The worker never gets this process's own descriptors,
//! which may be a terminal that others share.

use std::{
    fs::File,
    io::{self, ErrorKind, Read, Write},
    os::fd::{AsFd, OwnedFd},
    thread::{self, JoinHandle},
};

use gust_node::Standard;
use rustix::pipe::{PipeFlags, pipe_with};

/// Bytes that are moved at a time.
const PIECE_BYTES: usize = 64 << 10;

/// Stack of a moving thread.
const STACK_BYTES: usize = 256 << 10;

/// The threads that write what the program has written.
#[derive(Debug)]
pub(super) struct Streams(Vec<JoinHandle<()>>);

/// Makes the pipes, and starts to move.
pub(super) fn start() -> io::Result<(Standard, Streams)> {
    let (input, to_input) = pipe_with(PipeFlags::CLOEXEC)?;
    let (from_output, output) = pipe_with(PipeFlags::CLOEXEC)?;
    let (from_error, error) = pipe_with(PipeFlags::CLOEXEC)?;
    for theirs in [&input, &output, &error] {
        rustix::io::ioctl_fionbio(theirs, true)?;
    }
    let [stdin, stdout, stderr] = [
        io::stdin().as_fd().try_clone_to_owned()?,
        io::stdout().as_fd().try_clone_to_owned()?,
        io::stderr().as_fd().try_clone_to_owned()?,
    ];
    // Ends with the process: its read may never come back.
    mover("stdin", stdin, to_input)?;
    let writers = vec![
        mover("stdout", from_output, stdout)?,
        mover("stderr", from_error, stderr)?,
    ];
    Ok((Standard { input, output, error }, Streams(writers)))
}

impl Streams {
    /// Waits until everything that the program wrote has been written, or cannot be. The worker must have ended.
    pub(super) fn finish(self) {
        for writer in self.0 {
            // A thread that panicked has nothing more to write.
            let _ = writer.join();
        }
    }
}

fn mover(name: &str, from: OwnedFd, to: OwnedFd) -> io::Result<JoinHandle<()>> {
    thread::Builder::new()
        .name(name.to_owned())
        .stack_size(STACK_BYTES)
        .spawn(move || carry(&mut File::from(from), &mut File::from(to)))
}

/// Moves bytes until either end has finished. Closing both tells the other sides, as in any pipeline.
fn carry(from: &mut File, to: &mut File) {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match from.read(&mut piece) {
            Ok(0) => return,
            Ok(count) => {
                if to.write_all(&piece[..count]).is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}
