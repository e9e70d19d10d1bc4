//! A guest process: isolation for hosts without KVM.
//!
//! The worker becomes the supervisor of one program. It is the first process of the guest's process namespace, so the
//! guest ends with it. The function's program starts at [`Command::Init`], because a process has no snapshot that could
//! hold a runtime without a function.
//!
//! ```text
//!  Pooled ─ Boot ─> Based ─ Init ─> program starts ─> Waiting ─ Invoke ─> Busy ─ answer ─> Waiting (stopped)
//!                                        └─ InitFailed       any ─ program ends ─> Exited
//! ```
//!
//! Before the program runs, the supervisor has the rights of its user namespace: it puts the guest's [`root`] together.
//! Once it runs, the supervisor enters its jail and keeps one right: to signal the guest.

mod device;
mod guest;
mod link;
mod output;
mod root;
mod running;

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    time::Instant,
};

use rustix::thread::CapabilitySet;

use crate::{
    channel::{Channel, ChannelError},
    frame::Frame,
    jail::{self, Jail, JailError, lists},
    protocol::{
        Answer, AnswerKind, BootSpec, Command, GuestExit, InitSpec, Interface, InvokeSpec, JailReport,
        Report, Waiting, WaitsFor, WorkerTimings,
    },
    runtime_api::{self, Event, Said},
    sys,
    zygote::{MemoryFiles, WorkerContext},
};
pub(crate) use device::Device;
use guest::{Guest, Program};
use link::{Api, Link};
use output::Output;
use root::Root;
use running::{Heard, Running};

/// Where layers are seen.
const LAYERS_PATH: &str = "/opt";

/// Why a supervisor cannot go on.
#[derive(Debug, thiserror::Error)]
enum SupervisorError {
    #[error("{action}: {source}")]
    Io { action: &'static str, source: io::Error },
    #[error(transparent)]
    Jail(#[from] JailError),
    /// The node's fault.
    #[error("the command {0} does not fit the worker's state")]
    OutOfOrder(&'static str),
    #[error(transparent)]
    Channel(#[from] ChannelError),
    #[error("the node is gone")]
    NodeGone,
}

fn io_error(action: &'static str) -> impl Fn(io::Error) -> SupervisorError {
    move |source| SupervisorError::Io { action, source }
}

/// The supervisor's life, from pooled to the end. Returns its exit status.
pub(crate) fn run(context: WorkerContext) -> i32 {
    let WorkerContext {
        channel,
        memory,
        namespaces,
        ..
    } = context;
    let mut supervisor = Supervisor {
        channel,
        memory,
        namespaces,
        stage: Stage::Pooled,
    };
    match supervisor.serve() {
        Ok(()) | Err(SupervisorError::NodeGone) => 0,
        Err(SupervisorError::Channel(error)) => {
            eprintln!("gust worker: {error}");
            1
        }
        Err(error) => {
            let reason = error.to_string();
            // The node may be gone; then there is no one to tell.
            let _ = supervisor.channel.send(&Report::Refused { reason }, b"");
            1
        }
    }
}

struct Supervisor {
    channel: Channel,
    memory: Option<MemoryFiles>,
    namespaces: bool,
    stage: Stage,
}

/// How far the worker has come.
enum Stage {
    Pooled,
    /// The program is known and where its files are.
    Based {
        boot: BootSpec,
        tree: OwnedFd,
    },
    /// The program runs, or has ended.
    Running(Box<Running>),
}

impl Supervisor {
    fn serve(&mut self) -> Result<(), SupervisorError> {
        sys::loopback_up().map_err(io_error("bringing up the loopback interface"))?;
        let jail = JailReport {
            user: true,
            namespaces: self.namespaces,
            landlock: true,
            seccomp: true,
        };
        self.channel.send(&Report::Pooled { jail }, b"")?;
        while let Some(frame) = self.next_command()? {
            let finished = match frame.message {
                Command::Boot(boot) => self.boot(boot, frame.descriptors)?,
                Command::Init(init) => self.init(init, frame.descriptors)?,
                Command::Invoke(invoke) => self.invoke(invoke, frame.body)?,
                Command::Restore(_) => return Err(SupervisorError::OutOfOrder("Restore")),
                Command::Capture => return Err(SupervisorError::OutOfOrder("Capture")),
                Command::Freeze => return Err(SupervisorError::OutOfOrder("Freeze")),
                Command::Rewind { .. } => return Err(SupervisorError::OutOfOrder("Rewind")),
                Command::Replan => return Err(SupervisorError::OutOfOrder("Replan")),
                Command::Shape => return Err(SupervisorError::OutOfOrder("Shape")),
                Command::Graft => return Err(SupervisorError::OutOfOrder("Graft")),
                Command::Run(_) => return Err(SupervisorError::OutOfOrder("Run")),
                Command::Signal(_) => return Err(SupervisorError::OutOfOrder("Signal")),
                Command::Outside { .. } => return Err(SupervisorError::OutOfOrder("Outside")),
                Command::Network(_) => return Err(SupervisorError::OutOfOrder("Network")),
            };
            if finished {
                break;
            }
        }
        Ok(())
    }

    /// Waits for a command, and for the end of a guest that waits. `None` when there is nothing more to come.
    fn next_command(&mut self) -> Result<Option<Frame<Command>>, SupervisorError> {
        let Stage::Running(running) = &mut self.stage else {
            return Ok(self.channel.receive()?);
        };
        loop {
            // A runtime that asked anew on another connection is as it was. Anything else answers no question.
            running.said.retain(|said| *said != Said::Waits);
            let spoke = (!running.said.is_empty()).then(unasked);
            if let Some(exit) = running.ended.take().or(spoke) {
                self.channel.send(&Report::Exited(exit), b"")?;
                return Ok(None);
            }
            if let Some(command) = running.turn(&mut self.channel)? {
                return Ok(Some(command));
            }
        }
    }

    fn boot(&mut self, boot: BootSpec, descriptors: Vec<OwnedFd>) -> Result<bool, SupervisorError> {
        let tree = descriptors.into_iter().next();
        let (Stage::Pooled, Some(tree)) = (&self.stage, tree) else {
            return Err(SupervisorError::OutOfOrder("Boot"));
        };
        self.stage = Stage::Based { boot, tree };
        let waiting = Waiting {
            waits_for: WaitsFor::Function,
            memory_bytes: 0,
            pristine: true,
        };
        self.channel.send(&Report::Waiting(waiting), b"")?;
        Ok(false)
    }

    fn init(&mut self, init: InitSpec, descriptors: Vec<OwnedFd>) -> Result<bool, SupervisorError> {
        let start = Instant::now();
        let (Stage::Based { boot, tree }, Some((code, layers))) = (
            std::mem::replace(&mut self.stage, Stage::Pooled),
            descriptors.split_first(),
        ) else {
            return Err(SupervisorError::OutOfOrder("Init"));
        };
        let root = Root {
            tree: tree.as_fd(),
            code: code.as_fd(),
            layers,
            task_root: &init.task_root,
            layers_at: LAYERS_PATH,
            tmp_bytes: init.limits.tmp_bytes,
        };
        root::enter(&root).map_err(io_error("putting the guest's files together"))?;
        let signals = sys::child_signals().map_err(io_error("listening for the guest's end"))?;
        let memory = self.memory.take();
        let (guest, output, link) = match start_program(&boot, &init, memory)? {
            Ok(started) => started,
            Err(document) => {
                self.channel.send(&Report::InitFailed, document.as_bytes())?;
                return Ok(true);
            }
        };
        jail::enter(&Jail {
            empty_root: false,
            user: None,
            capabilities: CapabilitySet::KILL,
            policy: &lists::supervisor(),
            namespaces: self.namespaces,
        })?;
        let said = Vec::new();
        let mut running = Box::new(Running {
            guest,
            link,
            output,
            signals,
            said,
            ended: None,
            boot_ns: 0,
        });
        let first = running.until_said(&mut self.channel)?;
        running.boot_ns = nanoseconds(start);
        match first {
            Heard::Said(Said::Waits) => {
                running.rest(&mut self.channel)?;
                self.stage = Stage::Running(running);
                Ok(false)
            }
            Heard::Said(Said::InitError(document)) => {
                self.channel.send(&Report::InitFailed, &document)?;
                Ok(true)
            }
            Heard::Said(Said::Response(_) | Said::Error(_) | Said::TooLarge(_)) => {
                self.channel.send(&Report::Exited(unasked()), b"")?;
                Ok(true)
            }
            Heard::End(exit) => {
                self.channel.send(&Report::Exited(exit), b"")?;
                Ok(true)
            }
        }
    }

    fn invoke(&mut self, invoke: InvokeSpec, payload: Vec<u8>) -> Result<bool, SupervisorError> {
        let Stage::Running(running) = &mut self.stage else {
            return Err(SupervisorError::OutOfOrder("Invoke"));
        };
        let start = Instant::now();
        running.output.start_counting();
        Guest::go_on().map_err(io_error("continuing the guest"))?;
        let event = Event {
            request_id: invoke.request_id,
            deadline_unix_ms: invoke.deadline_unix_ms,
            function_arn: invoke.function_arn,
            trace_id: invoke.trace_id,
            client_context: invoke.client_context,
            payload,
        };
        running
            .link
            .deliver(event, &mut running.said)
            .map_err(io_error("delivering the event"))?;
        let (kind, body) = match running.until_said(&mut self.channel)? {
            Heard::Said(Said::Response(body)) => (AnswerKind::Success, body),
            Heard::Said(Said::Error(body)) => (AnswerKind::FunctionError, body),
            Heard::Said(Said::TooLarge(bytes)) => (AnswerKind::TooLarge { bytes }, Vec::new()),
            Heard::Said(Said::Waits | Said::InitError(_)) => {
                self.channel.send(&Report::Exited(unasked()), b"")?;
                return Ok(true);
            }
            Heard::End(exit) => {
                self.channel.send(&Report::Exited(exit), b"")?;
                return Ok(true);
            }
        };
        let handler_ns = running.link.handler_ns();
        let timings = WorkerTimings {
            handler_ns,
            runtime_ns: nanoseconds(start).saturating_sub(handler_ns),
            boot_ns: std::mem::take(&mut running.boot_ns),
            ..WorkerTimings::default()
        };
        // What was written before the answer belongs to this call.
        running.output.forward(&mut self.channel)?;
        let answer = Answer {
            kind,
            memory_bytes: running.guest.memory_bytes(),
            memory_bytes_max: running.guest.memory_bytes_max(),
            log_bytes_dropped: running.output.dropped_bytes(),
            timings,
        };
        self.channel.send(&Report::Answer(answer), &body)?;
        drop(body);
        if running.link.announces_waits() {
            match running.until_said(&mut self.channel)? {
                Heard::Said(Said::Waits) => {}
                Heard::Said(_) => return Err(SupervisorError::OutOfOrder("answer")),
                Heard::End(exit) => {
                    self.channel.send(&Report::Exited(exit), b"")?;
                    return Ok(true);
                }
            }
        }
        running.rest(&mut self.channel)?;
        Ok(false)
    }
}

/// Starts the runtime's program. The inner error is Lambda's document for a program that cannot be started.
fn start_program(
    boot: &BootSpec,
    init: &InitSpec,
    memory: Option<MemoryFiles>,
) -> Result<Result<(Guest, Output, Link), String>, SupervisorError> {
    let mut environment = boot.environment.clone();
    let (link, inherit) = match boot.interface {
        Interface::Device => {
            let (device, theirs) = Device::new(init).map_err(io_error("making the runtime device"))?;
            use std::os::fd::AsRawFd;
            environment.push(("GUST_DEVICE".to_owned(), format!("fd:{}", theirs.as_raw_fd())));
            (Link::Device(device), Some(theirs))
        }
        Interface::RuntimeApi => {
            environment.extend(init.environment.iter().cloned());
            environment.push((
                "AWS_LAMBDA_RUNTIME_API".to_owned(),
                runtime_api::ADDRESS.to_owned(),
            ));
            (
                Link::Api(Api::listen().map_err(io_error("listening for the runtime"))?),
                None,
            )
        }
    };
    let program = Program {
        argv: &boot.argv,
        environment: &environment,
        directory: &boot.directory,
        limits: init.limits,
        memory_is_bounded: memory.is_some(),
        inherit,
    };
    match Guest::start(program, memory) {
        Ok((guest, pipes)) => Ok(Ok((guest, Output::new(pipes), link))),
        Err(error) => {
            let name = boot.argv.first().map_or("", String::as_str);
            let document = serde_json::json!({
                "errorType": "Runtime.InvalidEntrypoint",
                "errorMessage": format!("Error: fork/exec {name}: {error}"),
            });
            Ok(Err(document.to_string()))
        }
    }
}

/// The end of a program that breaks the protocol.
fn unasked() -> GuestExit {
    GuestExit::Fault("the runtime's program said something that it was not asked for".to_owned())
}

fn nanoseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}
