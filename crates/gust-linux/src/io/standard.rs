//! Standard input, output and error of a program whose owner streams them: pipes with one end outside of the guest.
//!
//! The guest sees plain pipes: a full one blocks its writer, one without a reader gives `SIGPIPE`, an ended one gives the
//! end of the file, and `poll` tells which. The owner moves bytes between these pipes and whatever lies behind them, and
//! hears nothing else of the guest. Without [`Kernel::open_standard_pipes`] output goes to [`Host::output`], which never
//! blocks.
//!
//! [`Host::output`]: crate::Host::output

use crate::{fs::FileKind, io::Pipe, kernel::Kernel};

/// The pipes of a program's standard files, by the personality's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StandardPipes {
    /// Standard input: written outside.
    pub input: u32,
    /// Standard output: read outside.
    pub output: u32,
    /// Standard error: read outside.
    pub error: u32,
}

impl Kernel {
    /// Makes the first three descriptors pipes that end outside. To be called before the program runs.
    pub fn open_standard_pipes(&mut self) -> StandardPipes {
        let mut pipe = |fd, reads: bool| {
            let number = self.pipes.insert(Pipe::open());
            let (kind, flags) = match reads {
                true => (FileKind::PipeReader(number), libc::O_RDONLY),
                false => (FileKind::PipeWriter(number), libc::O_WRONLY),
            };
            if let Some(file) = self.files.get_mut(fd) {
                (file.kind, file.flags) = (kind, flags);
            }
            number
        };
        StandardPipes {
            input: pipe(0, true),
            output: pipe(1, false),
            error: pipe(2, false),
        }
    }

    /// Bytes that a pipe takes from outside now; `None` when no one in the guest can read it any more.
    pub fn pipe_room(&self, number: u32) -> Option<usize> {
        let pipe = self.pipes.get(number)?;
        (pipe.readers > 0).then(|| pipe.room())
    }

    /// Puts bytes into a pipe, as many as fit; gives how many.
    pub fn pipe_feed(&mut self, number: u32, bytes: &[u8]) -> usize {
        self.push_pipe(number, bytes).unwrap_or(0) as usize
    }

    /// Gives up the outside's writing end: the guest reads what is there, and then the end of the file.
    pub fn pipe_end_input(&mut self, number: u32) {
        self.close_pipe_end(number, false, true);
    }

    /// The oldest bytes in a pipe, at most this many, which stay there; `None` when it is empty and no one in the guest
    /// can write to it any more.
    pub fn pipe_peek(&self, number: u32, bytes_max: usize) -> Option<Vec<u8>> {
        let pipe = self.pipes.get(number)?;
        match pipe.len() {
            0 if pipe.writers == 0 => None,
            _ => Some(pipe.peek(bytes_max)),
        }
    }

    /// Bytes in a pipe.
    pub fn pipe_len(&self, number: u32) -> usize {
        self.pipes.get(number).map_or(0, Pipe::len)
    }

    /// Takes bytes that have been passed on out of a pipe.
    pub fn pipe_consume(&mut self, number: u32, bytes: usize) {
        if let Some(pipe) = self.pipes.get_mut(number) {
            pipe.consume(bytes);
            self.wake_object(crate::io::ObjectKey::Pipe(number));
        }
    }

    /// Gives up the outside's reading end: a guest that writes on gets `SIGPIPE`.
    pub fn pipe_end_output(&mut self, number: u32) {
        self.close_pipe_end(number, true, false);
    }
}
