//! One program from its start to its end, with its standard files streamed.
//!
//! ```text
//!   Run ──> loaded ──> Started ──> runs: guest, ports, signals of the node ──> ended ──> output passed on ──> Ran
//!             └─────> CannotRun
//! ```
//!
//! It has nothing of a function's life: no events, no snapshot. A program that waits for what does not come waits; who
//! started it bounds its time and kills the worker.

use std::{
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use gust_linux::{BootConfig, BootError, Host as _, Kernel, Step};
use gust_vmm::Vm;

use super::{
    images::open_image,
    network::Network,
    outside::Outside,
    ports::{End, LOOK_EVERY, LOOK_PAUSE, Ports, Way},
    sandbox::SandboxError,
    supervisor::exit_of,
};
use crate::{
    channel::{Channel, ChannelError},
    protocol::{CALLS_LISTED_MAX, Command, GuestExit, Ran, Report, RunSpec, RunStats},
};

/// How long what a program sent on its connections may take to leave once it has ended.
const LINGER: Duration = Duration::from_secs(5);

/// Time between two looks at the memory in use.
const MEMORY_LOOK_EVERY: Duration = Duration::from_millis(100);

/// Why a program cannot be carried on with; that is the sandbox's fault and not the program's.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProgramError {
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error(transparent)]
    Channel(#[from] ChannelError),
    #[error("the command Run came with {arrived} descriptors where {expected} belong to it")]
    Descriptors { expected: usize, arrived: usize },
    #[error("a command that does not fit a running program")]
    OutOfOrder,
}

/// Why the guest does not go on.
enum Stopped {
    Guest(GuestExit),
    NodeGone,
}

/// Runs a program in a machine that holds nothing. Returns when it has ended, and the node knows.
pub(super) fn run(
    vm: Vm,
    outside: Outside,
    channel: &mut Channel,
    spec: RunSpec,
    descriptors: Vec<OwnedFd>,
) -> Result<(), ProgramError> {
    let began = Instant::now();
    let mut program = match Program::load(vm, outside, spec, descriptors) {
        Ok(program) => program,
        Err(ProgramError::Sandbox(SandboxError::Boot(error))) => {
            return Ok(channel.send(&cannot_run(&error), b"")?);
        }
        Err(error) => return Err(error),
    };
    let boot_ns = nanoseconds(began.elapsed());
    channel.send(&Report::Started { boot_ns }, b"")?;
    program.began = Instant::now();
    match program.carry_on(channel)? {
        Stopped::NodeGone => Ok(()),
        Stopped::Guest(exit) => {
            let stats = program.stats();
            Ok(channel.send(&Report::Ran(Ran { exit, stats }), b"")?)
        }
    }
}

fn cannot_run(error: &BootError) -> Report {
    Report::CannotRun {
        not_found: error.is_not_found(),
        reason: error.to_string(),
    }
}

struct Program {
    vm: Vm,
    kernel: Kernel,
    outside: Outside,
    ports: Ports,
    network: Network,
    began: Instant,
    /// When the node and the ports were looked at.
    looked: Instant,
    /// When the memory in use was looked at.
    weighed: Instant,
    memory_bytes_max: u64,
    guest_ns: u64,
    entries_before: u64,
    faults_before: u64,
}

impl Program {
    fn load(
        mut vm: Vm,
        mut outside: Outside,
        spec: RunSpec,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Self, ProgramError> {
        let (expected, arrived) = (4 + spec.mounts.len(), descriptors.len());
        if arrived != expected {
            return Err(ProgramError::Descriptors { expected, arrived });
        }
        let mut descriptors = descriptors.into_iter();
        let mut next = || {
            descriptors
                .next()
                .ok_or(ProgramError::Descriptors { expected, arrived })
        };
        let standard = [next()?, next()?, next()?];
        let root = open_image(&next()?)?;
        let images = spec
            .mounts
            .iter()
            .zip(descriptors)
            .map(|(path, file)| Ok((path.clone(), open_image(&file)?)))
            .collect::<Result<_, SandboxError>>()?;
        vm.want_huge_memory();
        let config = BootConfig {
            root,
            images,
            program: spec.argv.first().cloned().unwrap_or_default(),
            arguments: spec.argv,
            environment: spec
                .environment
                .iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect(),
            directory: spec.directory,
            uid: spec.uid,
            gid: spec.gid,
            memory_bytes: spec.limits.memory_bytes,
            tmp_bytes: spec.limits.tmp_bytes,
            cpus: spec.limits.cpus,
            host_name: spec.host_name,
            pid: 1,
            seed: spec.identity.seed,
        };
        let (entries_before, faults_before) = (vm.entries(), vm.faults());
        let mut kernel = Kernel::boot(config, &mut vm, &mut outside).map_err(SandboxError::from)?;
        let pipes = kernel.open_standard_pipes();
        let mut ports = Ports::default();
        let [input, output, error] = standard;
        ports.join(Way::In, End::Pipe(pipes.input), input);
        ports.join(Way::Out, End::Pipe(pipes.output), output);
        ports.join(Way::Out, End::Pipe(pipes.error), error);
        if let Some(network) = spec.network {
            Network::open(&mut kernel, network);
        }
        let now = Instant::now();
        Ok(Self {
            vm,
            kernel,
            outside,
            ports,
            network: Network::default(),
            began: now,
            looked: now,
            weighed: now,
            memory_bytes_max: 0,
            guest_ns: 0,
            entries_before,
            faults_before,
        })
    }

    /// Runs the guest to its end.
    fn carry_on(&mut self, channel: &mut Channel) -> Result<Stopped, ProgramError> {
        loop {
            let due = self.looked.elapsed() >= LOOK_PAUSE;
            if due && !self.look(channel, Some(Duration::ZERO))? {
                return Ok(Stopped::NodeGone);
            }
            let here = match self.kernel.schedule(&mut self.vm, &mut self.outside) {
                Step::Run { slot, quantum_ns } => match self.enter(slot, quantum_ns) {
                    Ok(()) => true,
                    Err(error) => return self.machine_stopped(error),
                },
                Step::Sleep { for_ns } => self.look(channel, Some(Duration::from_nanos(for_ns)))?,
                Step::Idle => self.look(channel, None)?,
                Step::Ended => break,
            };
            if !here {
                return Ok(Stopped::NodeGone);
            }
            self.network.tell(&mut self.kernel, &mut self.ports, channel)?;
            self.ports.pass_on(&mut self.kernel);
        }
        let deadline = Instant::now() + LINGER;
        loop {
            let linger = deadline.saturating_duration_since(Instant::now());
            let time = match self.ports.hold_output(&self.kernel) {
                true => None,
                false if self.ports.hold_data(&self.kernel) && !linger.is_zero() => Some(linger),
                false => break,
            };
            if !self.look(channel, time)? {
                return Ok(Stopped::NodeGone);
            }
        }
        self.weigh();
        Ok(match self.kernel.ended() {
            Some(ended) => Stopped::Guest(exit_of(ended)),
            None => Stopped::Guest(GuestExit::Fault("the guest stopped without an end".to_owned())),
        })
    }

    fn machine_stopped(&mut self, error: gust_vmm::Error) -> Result<Stopped, ProgramError> {
        match error {
            gust_vmm::Error::GuestStopped(why) => Ok(Stopped::Guest(GuestExit::Fault(why))),
            // Page tables and slots are bounded for each guest.
            gust_vmm::Error::Exhausted(_) => Ok(Stopped::Guest(GuestExit::OutOfMemory)),
            error => Err(SandboxError::from(error).into()),
        }
    }

    /// Runs one thread of the guest until it exits, or until it is time to look around.
    fn enter(&mut self, slot: usize, quantum_ns: Option<u64>) -> Result<(), gust_vmm::Error> {
        let look_ns = nanoseconds(LOOK_EVERY);
        let quantum_ns = quantum_ns.map_or(look_ns, |quantum_ns| quantum_ns.min(look_ns));
        let mut registers = *self.kernel.registers_mut(slot);
        let began = Instant::now();
        let exit = self.vm.run(slot, &mut registers, Some(quantum_ns))?;
        let ran_ns = nanoseconds(began.elapsed());
        self.guest_ns += ran_ns;
        *self.kernel.registers_mut(slot) = registers;
        self.kernel.charge(slot, ran_ns);
        self.kernel.on_exit(&mut self.vm, &mut self.outside, slot, exit);
        Ok(())
    }

    /// Looks at the ports and at what the node says; waits for either when there is time. `false` when the node is gone.
    fn look(&mut self, channel: &mut Channel, time: Option<Duration>) -> Result<bool, ProgramError> {
        let spoken = self
            .ports
            .wait(&mut self.kernel, channel.as_fd(), time)
            .map_err(|source| SandboxError::io("wait for the host's pipes", source))?;
        self.looked = Instant::now();
        if self.looked - self.weighed >= MEMORY_LOOK_EVERY {
            self.weigh();
        }
        let mut frame = match spoken {
            false => channel.receive_buffered()?,
            true => match channel.receive_ready() {
                Ok(frame) => frame,
                Err(ChannelError::Io(error)) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                    return Ok(false);
                }
                Err(error) => return Err(error.into()),
            },
        };
        while let Some(command) = frame.take() {
            self.obey(command.message, command.descriptors)?;
            frame = channel.receive_buffered()?;
        }
        Ok(true)
    }

    /// Does what the node says while the program runs.
    fn obey(&mut self, command: Command, descriptors: Vec<OwnedFd>) -> Result<(), ProgramError> {
        match command {
            Command::Outside { connection, answer } => {
                let Self { kernel, ports, .. } = self;
                match self
                    .network
                    .answered(kernel, ports, connection, answer, descriptors)
                {
                    true => Ok(()),
                    false => Err(ProgramError::OutOfOrder),
                }
            }
            Command::Signal(signal) => {
                self.kernel.signal_from_outside(signal);
                Ok(())
            }
            Command::Boot(_)
            | Command::Init(_)
            | Command::Restore(_)
            | Command::Invoke(_)
            | Command::Capture
            | Command::Freeze
            | Command::Rewind { .. }
            | Command::Replan
            | Command::Shape
            | Command::Graft
            | Command::Network(_)
            | Command::Run(_) => Err(ProgramError::OutOfOrder),
        }
    }

    fn weigh(&mut self) {
        self.weighed = Instant::now();
        self.memory_bytes_max = self.memory_bytes_max.max(self.outside.resident_bytes());
    }

    fn stats(&self) -> RunStats {
        let mut calls: Vec<(String, u64)> = self
            .kernel
            .call_counts()
            .map(|(name, count)| (name.to_owned(), count))
            .collect();
        calls.sort_by(|(left, left_count), (right, right_count)| {
            right_count.cmp(left_count).then_with(|| left.cmp(right))
        });
        calls.truncate(CALLS_LISTED_MAX);
        RunStats {
            run_ns: nanoseconds(self.began.elapsed()),
            guest_ns: self.guest_ns,
            exits: self.vm.entries() - self.entries_before,
            faults: self.vm.faults() - self.faults_before,
            memory_bytes_max: self.memory_bytes_max,
            calls,
        }
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
