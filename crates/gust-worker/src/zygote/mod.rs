//! The zygote: the process that workers are copies of.
//!
//! The node starts it once, as a hidden subcommand of its own program, with a socket as standard input. It has one thread
//! and little memory, and does nothing but make workers by `clone3` and tell of their ends. A worker so costs a fork; it
//! starts with the zygote's pages and none of the node's.
//!
//! ```text
//!            Start + socket                      clone3
//!   node ──────────────────────> zygote ───────────────────> worker (namespaces of its own)
//!        <──────────────────────        <───────────────────
//!         Started + pidfd, Exited            SIGCHLD
//! ```
//!
//! When the node is gone, the socket ends; the zygote then kills every worker and ends. When the zygote is gone, its
//! workers are killed by the kernel.

mod spawn;
pub mod wire;

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    process::ExitCode,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
        SendFlags, recvmsg, sendmsg,
    },
    process::{Pid, Signal, WaitOptions, WaitStatus},
};

pub(crate) use spawn::{GUEST_GID, GUEST_UID};
use spawn::{Host, Request};
pub use spawn::{MemoryFiles, WorkerContext};
use wire::{DESCRIPTORS_MAX, MESSAGE_BYTES_MAX, WorkerEnd, ZygoteReport, ZygoteRequest};

use crate::sys;

/// Most workers at a time.
const WORKERS_MAX: usize = 8192;

/// Runs the zygote on standard input until the node is gone.
pub fn main() -> ExitCode {
    match Zygote::new().and_then(|mut zygote| zygote.run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gust zygote: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A worker as its maker knows it.
struct Worker {
    id: u64,
    pidfd: OwnedFd,
}

struct Zygote {
    control: OwnedFd,
    signals: OwnedFd,
    host: Host,
    /// By process id.
    workers: BTreeMap<i32, Worker>,
}

impl Zygote {
    #[expect(unsafe_code, reason = "closing what was open when this process began")]
    fn new() -> io::Result<Self> {
        // Sockets that the node was given at its start have no mark that would keep them from its children.
        // SAFETY: this process has opened nothing yet but what the standard descriptors are.
        unsafe { sys::close_all_but(&[]) }?;
        // Of its own session, so that a key press in the node's terminal leaves the stop to the node.
        let _ = rustix::process::setsid();
        rustix::thread::set_name(c"gust-zygote")?;
        let control = io::stdin().as_fd().try_clone_to_owned()?;
        let null = File::options().read(true).write(true).open("/dev/null")?;
        rustix::stdio::dup2_stdin(&null)?;
        rustix::stdio::dup2_stdout(&null)?;
        let signals = sys::child_signals()?;
        let host = Host::probe()?;
        Ok(Self {
            control,
            signals,
            host,
            workers: BTreeMap::new(),
        })
    }

    fn run(&mut self) -> io::Result<()> {
        self.report(&ZygoteReport::Ready(self.host.report()), None)?;
        loop {
            let mut ready = [
                PollFd::new(&self.control, PollFlags::IN),
                PollFd::new(&self.signals, PollFlags::IN),
            ];
            match poll(&mut ready, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let [control, signals] = ready.map(|descriptor| !descriptor.revents().is_empty());
            if signals {
                sys::drain_signals(&self.signals);
                self.reap()?;
            }
            if control && !self.serve()? {
                self.end_workers();
                return Ok(());
            }
        }
    }

    /// Carries out one request. `false` when the node is gone.
    fn serve(&mut self) -> io::Result<bool> {
        let mut bytes = [0; MESSAGE_BYTES_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut into = [IoSliceMut::new(&mut bytes)];
        let length = match recvmsg(&self.control, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(message) => message.bytes,
            Err(Errno::INTR) => return Ok(true),
            Err(Errno::CONNRESET) => 0,
            Err(error) => return Err(error.into()),
        };
        if length == 0 {
            return Ok(false);
        }
        let rights = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        });
        let descriptors: Vec<OwnedFd> = rights.flatten().collect();
        let request: ZygoteRequest = wire::decode(&bytes[..length]).map_err(io::Error::other)?;
        let ZygoteRequest::Start {
            id,
            kind,
            user,
            counts_memory,
        } = request;
        let started = Request::new(kind, user, counts_memory, descriptors)
            .ok_or_else(|| io::Error::other("the request's descriptors are not what it says"))
            .and_then(|request| self.start(id, request));
        if let Err(error) = started {
            self.report(
                &ZygoteReport::Failed {
                    id,
                    reason: error.to_string(),
                },
                None,
            )?;
        }
        Ok(true)
    }

    fn start(&mut self, id: u64, request: Request) -> io::Result<()> {
        if self.workers.len() >= WORKERS_MAX {
            return Err(io::Error::other("too many workers"));
        }
        let (pid, pidfd) = self.host.spawn(request)?;
        let pid = pid.as_raw_nonzero().get();
        self.report(&ZygoteReport::Started { id, pid }, Some(&pidfd))?;
        self.workers.insert(pid, Worker { id, pidfd });
        Ok(())
    }

    /// Tells of the workers that have ended.
    fn reap(&mut self) -> io::Result<()> {
        while let Some((pid, status)) = next_end()? {
            if let Some(worker) = self.workers.remove(&pid.as_raw_nonzero().get()) {
                self.report(
                    &ZygoteReport::Exited {
                        id: worker.id,
                        end: worker_end(status),
                    },
                    None,
                )?;
            }
        }
        Ok(())
    }

    /// Kills every worker and waits until they are gone.
    fn end_workers(&mut self) {
        for worker in self.workers.values() {
            // One that has ended already is waited for below.
            let _ = rustix::process::pidfd_send_signal(&worker.pidfd, Signal::KILL);
        }
        while !self.workers.is_empty() {
            match rustix::process::wait(WaitOptions::empty()) {
                Ok(Some((pid, _))) => drop(self.workers.remove(&pid.as_raw_nonzero().get())),
                Ok(None) | Err(Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }

    fn report(&self, report: &ZygoteReport, pidfd: Option<&OwnedFd>) -> io::Result<()> {
        let bytes = wire::encode(report).map_err(io::Error::other)?;
        let descriptors: Vec<_> = pidfd.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(&descriptors));
        }
        match sendmsg(
            &self.control,
            &[IoSlice::new(&bytes)],
            &mut control,
            SendFlags::NOSIGNAL,
        ) {
            // A node that is gone is noticed where its end is read.
            Ok(_) | Err(Errno::PIPE | Errno::CONNRESET) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// A child that has ended and was not waited for yet.
fn next_end() -> io::Result<Option<(Pid, WaitStatus)>> {
    match rustix::process::wait(WaitOptions::NOHANG) {
        Ok(ended) => Ok(ended),
        Err(Errno::CHILD) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn worker_end(status: WaitStatus) -> WorkerEnd {
    match status.terminating_signal() {
        Some(signal) => WorkerEnd::Signal(signal),
        None => WorkerEnd::Exit(status.exit_status().unwrap_or(-1)),
    }
}
