//! The life of a worker around a micro-VM: commands of the node in, reports out.
//!
//! What needs the host is done before the jail is entered: the machine is made and warmed up, and the one file that is
//! read later is opened. From then on the worker has memory, its vCPU, and the descriptors that commands bring.

mod error;
mod guest;

use std::{fs::File, os::fd::OwnedFd, time::Instant};

use gust_vmm::{Hypervisor, SlotSizes, Vm};
use rustix::thread::CapabilitySet;

use super::{
    images::open_image,
    outside::Outside,
    plans,
    program::{self},
    sandbox::{Images, Restore, Sandbox, SandboxError},
    warm,
};
use crate::{
    channel::Channel,
    frame::Frame,
    jail::{self, Jail, lists},
    protocol::{
        Answer, AnswerKind, BootSpec, Command, InitSpec, InvokeSpec, MemoryMode, NetworkSpec, Report,
        RestoreSpec,
    },
    runtime_api::Said,
    zygote::WorkerContext,
};
use error::{SupervisorError, reason_of};
pub(super) use guest::exit_of;
use guest::{Spoken, cannot_start, exited, listen, send_log, unasked, until_waits, waiting};

type Result<T> = std::result::Result<T, SupervisorError>;

/// Serves the node from the first step in the jail to the end. Returns the exit status.
pub(crate) fn run(context: WorkerContext) -> i32 {
    let WorkerContext {
        mut channel,
        namespaces,
        user,
        kvm,
        memory: _,
    } = context;
    let served = Supervisor::enter(&mut channel, kvm, namespaces, user)
        .and_then(|mut supervisor| supervisor.serve(&mut channel));
    match served {
        Ok(()) => 0,
        Err(SupervisorError::Channel(error)) => {
            eprintln!("gust worker: {error}");
            1
        }
        Err(error) => {
            let reason = reason_of(&error);
            // The node may be gone; then there is no one to tell.
            let _ = channel.send(&Report::Refused { reason }, b"");
            1
        }
    }
}

/// Writes a layout from other files.
type Relayout = fn(&[OwnedFd]) -> std::result::Result<Option<(u64, u64)>, SandboxError>;

/// How far the worker has come.
enum Stage {
    /// A machine that holds nothing.
    Pooled(Box<Vm>, Box<Outside>),
    /// A guest.
    Guest(Box<Sandbox>),
    /// Between the two; never left so.
    Nothing,
}

/// What follows a command.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Command,
    End,
}

struct Supervisor {
    stage: Stage,
    /// The way out of the guest that is to come.
    network: Option<NetworkSpec>,
    memory_bytes_max: u64,
}

impl Supervisor {
    /// Makes the machine, enters the jail, and says so.
    fn enter(
        channel: &mut Channel,
        kvm: Option<OwnedFd>,
        namespaces: bool,
        user: Option<u32>,
    ) -> Result<Self> {
        let hypervisor = Hypervisor::from_fd(kvm.ok_or(SupervisorError::NoKvm)?)?;
        let mut vm = hypervisor.create_vm(SlotSizes::POOLED)?;
        vm.warm_up()?;
        warm::own_program();
        let statm = File::open("/proc/self/statm").ok();
        // The descriptor of /dev/kvm itself could make further machines.
        drop(hypervisor);
        let jail = jail::enter(&Jail {
            empty_root: namespaces,
            user,
            capabilities: CapabilitySet::empty(),
            policy: &lists::micro_vm(),
            namespaces,
        })?;
        let outside = Outside::new(statm);
        channel.send(&Report::Pooled { jail }, b"")?;
        Ok(Self {
            stage: Stage::Pooled(Box::new(vm), Box::new(outside)),
            network: None,
            memory_bytes_max: 0,
        })
    }

    fn serve(&mut self, channel: &mut Channel) -> Result<()> {
        while let Some(frame) = channel.receive()? {
            let Frame {
                message,
                body,
                descriptors,
            } = frame;
            let next = match message {
                Command::Boot(spec) => self.boot(channel, spec, descriptors)?,
                Command::Init(spec) => self.init(channel, &spec, descriptors)?,
                Command::Restore(spec) => self.restore(channel, spec, body, descriptors)?,
                Command::Invoke(spec) => self.invoke(channel, spec, body)?,
                Command::Capture => self.capture(channel, descriptors)?,
                Command::Freeze => self.freeze(channel)?,
                Command::Rewind { environment } => self.rewind(channel, environment)?,
                Command::Replan => self.replan(channel, descriptors)?,
                Command::Shape => self.relayout(channel, "Shape", descriptors, plans::shape)?,
                Command::Graft => self.relayout(channel, "Graft", descriptors, plans::graft)?,
                Command::Run(spec) => {
                    let (vm, outside) = self.take_machine("Run")?;
                    program::run(vm, outside, channel, spec, descriptors)?;
                    Next::End
                }
                Command::Signal(_) => return Err(SupervisorError::OutOfOrder("Signal")),
                Command::Network(spec) => {
                    self.network = Some(spec);
                    Next::Command
                }
                Command::Outside { connection, answer } => {
                    self.guest("Outside")?.answered(connection, answer, descriptors)?;
                    Next::Command
                }
            };
            if next == Next::End {
                break;
            }
        }
        Ok(())
    }

    fn take_machine(&mut self, command: &'static str) -> Result<(Vm, Outside)> {
        match std::mem::replace(&mut self.stage, Stage::Nothing) {
            Stage::Pooled(vm, outside) => Ok((*vm, *outside)),
            Stage::Guest(_) | Stage::Nothing => Err(SupervisorError::OutOfOrder(command)),
        }
    }

    /// A machine that a version can be laid out in, and whether its runtime's base lies in it.
    fn take_room(&mut self) -> Result<(Vm, Outside, bool)> {
        match std::mem::replace(&mut self.stage, Stage::Nothing) {
            Stage::Pooled(vm, outside) => Ok((*vm, *outside, false)),
            Stage::Guest(sandbox) => {
                let (vm, outside) = sandbox.into_base()?;
                Ok((vm, outside, true))
            }
            Stage::Nothing => Err(SupervisorError::OutOfOrder("Restore")),
        }
    }

    fn guest(&mut self, command: &'static str) -> Result<&mut Sandbox> {
        match &mut self.stage {
            Stage::Guest(sandbox) => Ok(sandbox),
            Stage::Pooled(..) | Stage::Nothing => Err(SupervisorError::OutOfOrder(command)),
        }
    }

    fn boot(&mut self, channel: &mut Channel, spec: BootSpec, descriptors: Vec<OwnedFd>) -> Result<Next> {
        let began = Instant::now();
        let [root] = exactly("Boot", descriptors)?;
        let (mut vm, outside) = self.take_machine("Boot")?;
        vm.want_huge_memory();
        let mut sandbox = match Sandbox::boot(vm, outside, spec, open_image(&root)?) {
            Ok(sandbox) => Box::new(sandbox),
            Err(SandboxError::Boot(error)) => return cannot_start(channel, &error),
            Err(error) => return Err(error.into()),
        };
        let next = match sandbox.comes_with_function() {
            true => {
                channel.send(&Report::Waiting(waiting(&mut sandbox, true)), b"")?;
                Next::Command
            }
            false => until_waits(&mut sandbox, channel)?,
        };
        sandbox.add_boot_time(began.elapsed());
        self.stage = Stage::Guest(sandbox);
        Ok(next)
    }

    fn init(&mut self, channel: &mut Channel, spec: &InitSpec, descriptors: Vec<OwnedFd>) -> Result<Next> {
        let began = Instant::now();
        let mounted = descriptors
            .iter()
            .map(open_image)
            .collect::<std::result::Result<_, _>>()?;
        let network = self.network.take();
        let sandbox = self.guest("Init")?;
        match sandbox.init(spec, mounted) {
            Err(SandboxError::Boot(error)) => return cannot_start(channel, &error),
            result => result?,
        }
        sandbox.open_network(network);
        let next = until_waits(sandbox, channel)?;
        sandbox.add_boot_time(began.elapsed());
        Ok(next)
    }

    fn restore(
        &mut self,
        channel: &mut Channel,
        spec: RestoreSpec,
        body: Vec<u8>,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Next> {
        let arrived = descriptors.len();
        let missing = || SupervisorError::Descriptors {
            command: "Restore",
            arrived,
        };
        let mut descriptors = descriptors.into_iter();
        let mut next = || descriptors.next().ok_or_else(missing);
        let (memory, state) = (next()?, next()?);
        let layout = if spec.has_layout { Some(next()?) } else { None };
        let root = open_image(&next()?)?;
        let mounted = descriptors
            .map(|file| open_image(&file))
            .collect::<std::result::Result<_, _>>()?;
        let (vm, outside, on_base) = self.take_room()?;
        let arm = spec.arm;
        let restore = Restore {
            memory,
            state,
            layout,
            frozen: spec.thaw.then_some(body),
            images: Images { root, mounted },
            arm,
            on_base,
            record: spec.record,
            memory_mode: spec.memory_mode,
            limits: spec.limits,
            identity: spec.identity,
            environment: spec.environment,
        };
        let mut sandbox = Box::new(Sandbox::restore(vm, outside, restore)?);
        sandbox.open_network(self.network.take());
        let report = match arm {
            true => Report::Waiting(waiting(&mut sandbox, true)),
            false => Report::LaidOut,
        };
        channel.send(&report, b"")?;
        self.stage = Stage::Guest(sandbox);
        Ok(Next::Command)
    }

    fn invoke(&mut self, channel: &mut Channel, spec: InvokeSpec, payload: Vec<u8>) -> Result<Next> {
        let sandbox = self.guest("Invoke")?;
        sandbox.deliver(spec, payload)?;
        let (kind, body) = match listen(sandbox, channel)? {
            Spoken::Said(Said::Response(body)) => (AnswerKind::Success, body),
            Spoken::Said(Said::Error(body)) => (AnswerKind::FunctionError, body),
            Spoken::Said(Said::TooLarge(bytes)) => (AnswerKind::TooLarge { bytes }, Vec::new()),
            Spoken::Said(Said::Waits | Said::InitError(_)) => return exited(channel, unasked()),
            Spoken::Ended(exit) => return exited(channel, exit),
            Spoken::NodeGone => return Ok(Next::End),
        };
        send_log(sandbox, channel)?;
        let memory_bytes = sandbox.memory_bytes();
        let most_bytes = memory_bytes + sandbox.given_back_bytes();
        let answer = Answer {
            kind,
            memory_bytes,
            memory_bytes_max: most_bytes.max(self.memory_bytes_max),
            log_bytes_dropped: self.guest("Invoke")?.log_bytes_dropped(),
            timings: self.guest("Invoke")?.take_timings(),
        };
        self.memory_bytes_max = answer.memory_bytes_max;
        channel.send(&Report::Answer(answer), &body)?;
        drop(body);
        let sandbox = self.guest("Invoke")?;
        if sandbox.memory_mode() == MemoryMode::Fresh && sandbox.rewinds() {
            sandbox.close_network(channel)?;
            sandbox.rewind()?;
            self.memory_bytes_max = 0;
            let report = waiting(self.guest("Invoke")?, true);
            channel.send(&Report::Waiting(report), b"")?;
            return Ok(Next::Command);
        }
        until_waits(sandbox, channel)
    }

    fn capture(&mut self, channel: &mut Channel, descriptors: Vec<OwnedFd>) -> Result<Next> {
        let [memory, state] = exactly("Capture", descriptors)?;
        let captured = self.guest("Capture")?.capture(&memory, &state)?;
        channel.send(&Report::Captured(captured), b"")?;
        Ok(Next::Command)
    }

    fn freeze(&mut self, channel: &mut Channel) -> Result<Next> {
        let frozen = self.guest("Freeze")?.freeze()?;
        channel.send(&Report::Frozen, &frozen.unwrap_or_default())?;
        Ok(Next::Command)
    }

    fn rewind(&mut self, channel: &mut Channel, environment: Vec<(String, String)>) -> Result<Next> {
        let sandbox = self.guest("Rewind")?;
        let can_go_back = sandbox.can_go_back();
        if can_go_back {
            sandbox.close_network(channel)?;
            sandbox.set_environment(environment);
            sandbox.rewind()?;
            self.memory_bytes_max = 0;
        }
        let report = waiting(self.guest("Rewind")?, can_go_back);
        channel.send(&Report::Waiting(report), b"")?;
        Ok(Next::Command)
    }

    fn replan(&mut self, channel: &mut Channel, descriptors: Vec<OwnedFd>) -> Result<Next> {
        let [layout, memory] = exactly("Replan", descriptors)?;
        let written = self.guest("Replan")?.replan(&layout, &memory)?;
        replanned(channel, written)
    }

    /// Writes a layout from other files; the machine has no part in it.
    fn relayout(
        &mut self,
        channel: &mut Channel,
        command: &'static str,
        descriptors: Vec<OwnedFd>,
        write: Relayout,
    ) -> Result<Next> {
        match self.stage {
            Stage::Pooled(..) => {}
            Stage::Guest(_) | Stage::Nothing => return Err(SupervisorError::OutOfOrder(command)),
        }
        let arrived = descriptors.len();
        let written = write(&descriptors)?.ok_or(SupervisorError::Descriptors { command, arrived })?;
        replanned(channel, written)
    }
}

fn exactly<const N: usize>(command: &'static str, descriptors: Vec<OwnedFd>) -> Result<[OwnedFd; N]> {
    descriptors
        .try_into()
        .map_err(|descriptors: Vec<OwnedFd>| SupervisorError::Descriptors {
            command,
            arrived: descriptors.len(),
        })
}

fn replanned(channel: &mut Channel, (layout_bytes, hot_pages): (u64, u64)) -> Result<Next> {
    let report = Report::Replanned {
        layout_bytes,
        hot_pages,
    };
    channel.send(&report, b"")?;
    Ok(Next::Command)
}
