//! Files that calls hold.
//!
//! On Linux a call that waits keeps its file, whatever other threads do with the descriptor. Here calls are made again
//! from the start when they are woken, so a descriptor that is closed meanwhile leaves its file with the call. The
//! opening of a named pipe is the other such call: its file has no descriptor until the other end is open too.

use serde::{Deserialize, Serialize};

use crate::{
    errno::{ENFILE, Errno},
    fs::{
        FileKind, Files, OpenFile,
        descriptors::{Descriptor, OPEN_MAX},
    },
    kernel::{Call, Kernel},
};

/// In place of a descriptor in a [`HeldFile`] that has none.
const NO_DESCRIPTOR: u32 = u32::MAX;

/// A file that a waiting call goes on with although its descriptor has been closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HeldFile {
    /// The descriptor that the call was made with.
    fd: u32,
    /// The open file; the call counts as a reference to it.
    file: u32,
}

impl HeldFile {
    /// The open file, for the descriptor that the call was made with.
    pub(super) fn file_of(&self, fd: u32) -> Option<u32> {
        (self.fd == fd).then_some(self.file)
    }
}

/// Calls that can wait and whose first argument is the descriptor that they wait with.
fn waits_with_descriptor(number: u64) -> bool {
    matches!(
        number as i64,
        libc::SYS_read
            | libc::SYS_write
            | libc::SYS_readv
            | libc::SYS_writev
            | libc::SYS_preadv2
            | libc::SYS_pwritev2
            | libc::SYS_recvfrom
            | libc::SYS_recvmsg
            | libc::SYS_recvmmsg
            | libc::SYS_sendto
            | libc::SYS_sendmsg
            | libc::SYS_sendmmsg
            | libc::SYS_accept
            | libc::SYS_accept4
            | libc::SYS_connect
            | libc::SYS_flock
            | libc::SYS_fcntl
            | libc::SYS_sendfile
            | libc::SYS_epoll_wait
            | libc::SYS_epoll_pwait
            | libc::SYS_epoll_pwait2
    )
}

impl Files {
    /// Adds an open file that no descriptor names yet, held by the call that opens it.
    pub(crate) fn add_held(&mut self, mut file: OpenFile) -> Result<HeldFile, Errno> {
        if self.open.len() >= OPEN_MAX {
            return Err(ENFILE);
        }
        file.references = 1;
        Ok(HeldFile {
            fd: NO_DESCRIPTOR,
            file: self.open.insert(file),
        })
    }

    pub(crate) fn held_kind(&self, held: HeldFile) -> Option<FileKind> {
        self.open.get(held.file).map(|file| file.kind.clone())
    }

    /// Gives a held file a descriptor; the call still counts as a reference until it ends.
    pub(crate) fn name_held(&mut self, held: HeldFile, close_on_exec: bool) -> Result<u64, Errno> {
        self.name_file(held.file, close_on_exec)
    }

    /// A descriptor for an open file that something refers to.
    pub(crate) fn name_file(&mut self, file: u32, close_on_exec: bool) -> Result<u64, Errno> {
        let fd = self.free_from(0)?;
        self.set(fd, Descriptor { file, close_on_exec });
        Ok(fd as u64)
    }
}

impl Kernel {
    /// A descriptor is about to be closed: calls of other threads that wait with it go on with its file.
    pub(super) fn hold_for_waiting_calls(&mut self, fd: u32) {
        let Some(file) = self.files.number(u64::from(fd)) else {
            return;
        };
        for thread in self.threads.iter_mut() {
            let Some(call) = thread.wait.as_ref().and(thread.call.as_mut()) else {
                continue;
            };
            if call.held.is_none() && call.args[0] as u32 == fd && waits_with_descriptor(call.number) {
                call.held = Some(HeldFile { fd, file });
                self.files.reference(file);
            }
        }
    }

    /// A call is over: the file that it held, if it did, is let go.
    pub(crate) fn release_held(&mut self, call: Option<Call>) {
        if let Some(held) = call.and_then(|call| call.held)
            && let Some((number, file)) = self.files.dereference(held.file)
        {
            self.closed(number, file);
        }
    }

    /// Counts a reference to each of these open files, which travel in a message.
    pub(crate) fn hold_files(&mut self, files: &[u32]) {
        for file in files {
            self.files.reference(*file);
        }
    }

    /// Lets go of open files. One of them can be the last socket that holds others in messages, and so on: they are
    /// closed one after the other, not one inside the other.
    pub(crate) fn release_files(&mut self, files: Vec<u32>) {
        self.files.dropped.extend(files);
        if std::mem::replace(&mut self.files.dropping, true) {
            return;
        }
        while let Some(number) = self.files.dropped.pop() {
            if let Some((number, file)) = self.files.dereference(number) {
                self.closed(number, file);
            }
        }
        self.files.dropping = false;
    }
}
