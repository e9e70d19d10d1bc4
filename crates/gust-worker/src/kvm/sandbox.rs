//! One guest, its kernel and its machine.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use gust_image::Image;
use gust_linux::{BootConfig, BootError, Ended, Host as _, Kernel, Step};
use gust_vmm::{Costs, Layout, Source, Vm, WorkingSet};

use super::{
    exits::Exits,
    frozen::Frozen,
    link::{Link, Renewal},
    network::Network,
    outside::Outside,
    ports::{self, LOOK_EVERY, LOOK_PAUSE, Ports},
    stored::Stored,
};
use crate::{
    channel::{Channel, ChannelError},
    protocol::{
        BootSpec, Captured, Identity, InitSpec, Interface, InvokeSpec, Limits, MemoryMode, NetworkSpec,
        OutsideAnswer, WaitsFor, WorkerTimings,
    },
    runtime_api::{self, Event, Said},
};

/// Where layers are seen.
const LAYERS_PATH: &str = "/opt";
/// Where our own runtimes find their device.
const DEVICE_PATH: &str = "/dev/gust";
/// User and group of guests, as Lambda has them.
const GUEST_UID: u32 = 993;
const GUEST_GID: u32 = 990;
/// A runtime that waits may have threads of its own that compile or collect garbage still, or close the connection that
/// it has asked on; so long they may run.
const QUIESCE: Duration = Duration::from_millis(100);

/// Why a sandbox cannot go on; it is of no further use.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The hypervisor.
    #[error(transparent)]
    Machine(#[from] gust_vmm::Error),
    /// The program cannot be started.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// A file that is no image.
    #[error(transparent)]
    Image(#[from] gust_image::ImageError),
    /// The state file.
    #[error("the snapshot's state: {0}")]
    State(String),
    /// A system call of the worker's own.
    #[error("{action}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A command that does not fit the sandbox's state.
    #[error("the command {0} does not fit the sandbox's state")]
    OutOfOrder(&'static str),
}

impl SandboxError {
    pub(super) fn io(action: &'static str, source: io::Error) -> Self {
        Self::Io { action, source }
    }
}

/// The images of a guest: its root, then what is mounted, in order.
#[derive(Debug)]
pub struct Images {
    /// The root file system.
    pub root: Image,
    /// The function's code and its layers; none before the guest has its function.
    pub mounted: Vec<Image>,
}

impl Images {
    fn in_order(self) -> Vec<Image> {
        std::iter::once(self.root).chain(self.mounted).collect()
    }
}

/// What was heard of a guest that ran.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// Its runtime said something.
    Said(Said),
    /// It has ended.
    Ended(Ended),
    /// It cannot go on by itself, and waits for nothing that the worker knows of.
    Stuck,
    /// So much log waits that it should be sent on.
    Log,
    /// It is time to look at what it has outside ([`Sandbox::wait_outside`]): this long, or until something comes.
    Outside(Option<Duration>),
}

/// How to lay out a snapshot.
#[derive(Debug)]
pub struct Restore {
    /// The memory file.
    pub memory: OwnedFd,
    /// The state file.
    pub state: OwnedFd,
    /// The layout file, once there is one.
    pub layout: Option<OwnedFd>,
    /// Its images.
    pub images: Images,
    /// An instance of the snapshot that was frozen, and goes on.
    pub frozen: Option<Vec<u8>>,
    /// Touch everything ahead.
    pub arm: bool,
    /// The base of the snapshot's runtime lies in the machine ([`Sandbox::into_base`]).
    pub on_base: bool,
    /// Find out what the next run touches.
    pub record: bool,
    /// What becomes of memory between calls.
    pub memory_mode: MemoryMode,
    /// Bounds.
    pub limits: Limits,
    /// Fresh identity.
    pub identity: Identity,
    /// Environment variables that differ between instances.
    pub environment: Vec<(String, String)>,
}

/// The files of a restored guest, and its state when it was laid out.
#[derive(Debug)]
struct Origin {
    memory: OwnedFd,
    layout: Option<OwnedFd>,
    pristine: Box<Stored>,
    images: Vec<Image>,
    recording: bool,
    memory_mode: MemoryMode,
    /// It was laid out from what was frozen.
    is_thawed: bool,
    environment: Vec<(String, String)>,
}

/// A guest.
#[derive(Debug)]
pub struct Sandbox {
    vm: Vm,
    kernel: Kernel,
    link: Link,
    outside: Outside,
    /// Kept for a program that comes with its function.
    boot: Option<(BootSpec, Image)>,
    waits_for: WaitsFor,
    origin: Option<Origin>,
    renewal: Option<Renewal>,
    said: Vec<Said>,
    events_seen: u64,
    handler_ns: u64,
    guest_ns: u64,
    timings: WorkerTimings,
    exits: Exits,
    entries_before: u64,
    faults_before: u64,
    fault_ns: u64,
    /// The way out, kept for a guest that goes back to its snapshot.
    network_spec: Option<NetworkSpec>,
    network: Network,
    ports: Ports,
    /// When the outside was looked at.
    looked: Instant,
}

impl Sandbox {
    /// Boots a runtime's program in a machine that holds nothing. A program of the Runtime API comes with its function, so it is only
    /// remembered.
    pub fn boot(mut vm: Vm, mut outside: Outside, spec: BootSpec, root: Image) -> Result<Self, SandboxError> {
        let start = match spec.interface {
            Interface::Device => {
                let mut environment = spec.environment.clone();
                environment.push(("GUST_DEVICE".into(), DEVICE_PATH.into()));
                let config = config(&spec, root.clone(), Vec::new(), &environment);
                Some(Kernel::boot(config, &mut vm, &mut outside)?)
            }
            Interface::RuntimeApi => None,
        };
        let (mut kernel, boot) = match start {
            Some(kernel) => (kernel, None),
            None => (Kernel::empty(&root), Some((spec.clone(), root))),
        };
        let link = Link::new(spec.interface, &mut kernel);
        Ok(Self::assemble(
            vm,
            kernel,
            link,
            outside,
            boot,
            WaitsFor::Function,
        ))
    }

    fn assemble(
        vm: Vm,
        kernel: Kernel,
        link: Link,
        outside: Outside,
        boot: Option<(BootSpec, Image)>,
        waits_for: WaitsFor,
    ) -> Self {
        Self {
            vm,
            kernel,
            link,
            outside,
            boot,
            waits_for,
            origin: None,
            renewal: None,
            said: Vec::new(),
            events_seen: 0,
            handler_ns: 0,
            guest_ns: 0,
            timings: WorkerTimings::default(),
            exits: Exits::default(),
            entries_before: 0,
            faults_before: 0,
            fault_ns: Costs::DEFAULT.fault_ns,
            network_spec: None,
            network: Network::default(),
            ports: Ports::default(),
            looked: Instant::now(),
        }
    }

    /// Gives a booted runtime its function; it then runs until it waits for an event.
    pub fn init(&mut self, spec: &InitSpec, mounted: Vec<Image>) -> Result<(), SandboxError> {
        if self.waits_for != WaitsFor::Function || mounted.is_empty() || self.for_grafts()? {
            return Err(SandboxError::OutOfOrder("Init"));
        }
        let mut paths = vec![spec.task_root.as_str()];
        paths.resize(mounted.len(), LAYERS_PATH);
        match self.boot.take() {
            None => {
                for (path, image) in paths.into_iter().zip(mounted) {
                    self.kernel.mount_image(path, image)?;
                }
                set_limits(&mut self.kernel, spec.limits);
                Link::send_function(&mut self.kernel, spec);
            }
            Some((boot, root)) => {
                let boot = BootSpec {
                    limits: spec.limits,
                    ..boot
                };
                let mut environment = boot.environment.clone();
                environment.extend(spec.environment.iter().cloned());
                environment.push(("AWS_LAMBDA_RUNTIME_API".into(), runtime_api::ADDRESS.into()));
                let images = paths.into_iter().map(str::to_owned).zip(mounted).collect();
                let config = config(&boot, root, images, &environment);
                self.kernel = Kernel::boot(config, &mut self.vm, &mut self.outside)?;
                self.link = Link::new(boot.interface, &mut self.kernel);
            }
        }
        self.waits_for = WaitsFor::Event;
        Ok(())
    }

    /// Opens the guest's way out, or leaves it without one.
    pub(super) fn open_network(&mut self, network: Option<NetworkSpec>) {
        if let Some(network) = network.clone() {
            Network::open(&mut self.kernel, network);
        }
        self.network_spec = network;
    }

    /// Closes all that the guest has outside, before it goes back to its snapshot.
    pub(super) fn close_network(&mut self, channel: &mut Channel) -> Result<(), ChannelError> {
        Network::close(&self.kernel, &mut self.ports, channel)
    }

    /// Tells the node what the guest asks of the outside.
    pub(super) fn tell_network(&mut self, channel: &mut Channel) -> Result<(), ChannelError> {
        self.network.tell(&mut self.kernel, &mut self.ports, channel)
    }

    /// Takes in what the node says of a way out.
    pub(super) fn answered(
        &mut self,
        connection: u32,
        answer: OutsideAnswer,
        descriptors: Vec<OwnedFd>,
    ) -> Result<(), SandboxError> {
        let Self { kernel, ports, .. } = self;
        match self
            .network
            .answered(kernel, ports, connection, answer, descriptors)
        {
            true => Ok(()),
            false => Err(SandboxError::OutOfOrder("Outside")),
        }
    }

    /// Waits for what the guest has outside, and moves it. Tells whether `channel` can be read.
    pub(super) fn wait_outside(
        &mut self,
        channel: BorrowedFd<'_>,
        time: Option<Duration>,
    ) -> Result<bool, SandboxError> {
        self.ports.pass_on(&mut self.kernel);
        let spoken = self
            .ports
            .wait(&mut self.kernel, channel, time)
            .map_err(|source| SandboxError::io("wait for what lies outside", source))?;
        self.looked = Instant::now();
        Ok(spoken)
    }

    /// Gives the machine of a base that has been laid out and has not run, for a version to be laid out in it.
    pub fn into_base(self) -> Result<(Vm, Outside), SandboxError> {
        let is_base = self.origin.is_some()
            && self.waits_for == WaitsFor::Function
            && self.vm.entries() == self.entries_before;
        if !is_base {
            return Err(SandboxError::OutOfOrder("Restore"));
        }
        Ok((self.vm, self.outside))
    }

    /// Lays a snapshot out in a machine that holds nothing, or the base that it descends from.
    pub fn restore(mut vm: Vm, mut outside: Outside, restore: Restore) -> Result<Self, SandboxError> {
        let began = Instant::now();
        let stored = Stored::read(&restore.state)?;
        let layout = match &restore.layout {
            Some(file) if !restore.record => Some(Layout::open(file.as_fd())?),
            Some(_) | None => None,
        };
        let fault_ns = layout.map_or(Costs::DEFAULT, |layout| layout.costs()).fault_ns;
        // Memory that is given back after every call is touched once and kept; the compact plan has least of it.
        let compact = restore.arm || restore.memory_mode == MemoryMode::Fresh;
        let source = match layout {
            None => Source::Record,
            Some(layout) if restore.on_base => Source::Graft(layout),
            Some(layout) if compact => Source::Compact(layout),
            Some(layout) => Source::Fast(layout),
        };
        let recording = layout.is_none();
        let times = vm.restore(&stored.machine, restore.memory.as_fd(), source)?;
        let images = restore.images.in_order();
        let waits_for = if stored.waits_for_function {
            WaitsFor::Function
        } else {
            WaitsFor::Event
        };
        let mut kernel = stored.kernel.clone();
        kernel.resume(&mut outside, images.clone(), stored.clock_ns);
        set_limits(&mut kernel, restore.limits);
        let link = stored.link.clone();
        let mut sandbox = Self::assemble(vm, kernel, link, outside, None, waits_for);
        match &restore.frozen {
            Some(frozen) => sandbox.thaw(&Frozen::decode(frozen)?, images.clone(), restore.limits)?,
            None => sandbox.renew(restore.identity.seed, restore.environment.clone()),
        }
        if restore.arm {
            sandbox.vm.touch_ahead()?;
        }
        sandbox.fault_ns = fault_ns;
        sandbox.entries_before = sandbox.vm.entries();
        sandbox.timings.map_ns = times.map_ns;
        sandbox.timings.fill_ns = began.elapsed().as_nanos() as u64 - times.map_ns;
        sandbox.origin = Some(Origin {
            memory: restore.memory,
            layout: restore.layout,
            pristine: Box::new(stored),
            images,
            recording,
            memory_mode: restore.memory_mode,
            is_thawed: restore.frozen.is_some(),
            environment: restore.environment,
        });
        Ok(sandbox)
    }

    /// Makes a guest that has just been laid out what another was.
    fn thaw(&mut self, frozen: &Frozen, images: Vec<Image>, limits: Limits) -> Result<(), SandboxError> {
        self.vm.apply(&frozen.memory)?;
        self.kernel = frozen.kernel.clone();
        let clock_ns = frozen.clock_at(self.outside.realtime_ns());
        self.kernel.resume(&mut self.outside, images, clock_ns);
        set_limits(&mut self.kernel, limits);
        self.link = frozen.link.clone();
        Ok(())
    }

    /// Makes the guest another than every other instance of its snapshot.
    fn renew(&mut self, seed: [u8; 32], environment: Vec<(String, String)>) {
        /// Ids below are the system's own on most machines.
        const FIRST_PID: u32 = 300;
        let pid = FIRST_PID + u32::from(u16::from_le_bytes([seed[0], seed[1]])) % 32_000;
        self.kernel.renew(&mut self.vm, &mut self.outside, seed, pid);
        let mut entropy = [0; 32];
        self.kernel.random_bytes(&mut entropy);
        self.renewal = Some(Renewal { entropy, environment });
    }

    /// Whether it has been laid out to take grafts; then it cannot run.
    fn for_grafts(&self) -> Result<bool, SandboxError> {
        match self.origin.as_ref().and_then(|origin| origin.layout.as_ref()) {
            Some(layout) => Ok(Layout::open(layout.as_fd())?.is_base()),
            None => Ok(false),
        }
    }

    /// Whether the program starts only when it is given its function.
    pub fn comes_with_function(&self) -> bool {
        self.boot.is_some()
    }

    /// Whether an event has been delivered since the guest was booted or laid out.
    pub fn has_seen_events(&self) -> bool {
        self.events_seen > 0
    }

    /// Time that booting and initialising took; told with the first call.
    pub fn add_boot_time(&mut self, took: Duration) {
        self.timings.boot_ns += took.as_nanos() as u64;
    }

    /// What becomes of the guest's memory between calls.
    pub fn memory_mode(&self) -> MemoryMode {
        self.origin
            .as_ref()
            .map_or(MemoryMode::Reuse, |origin| origin.memory_mode)
    }

    /// What the guest waits for.
    pub fn waits_for(&self) -> WaitsFor {
        self.waits_for
    }

    /// Delivers an event; it is answered by what [`Sandbox::run`] hears.
    pub fn deliver(&mut self, spec: InvokeSpec, payload: Vec<u8>) -> Result<(), SandboxError> {
        if self.waits_for != WaitsFor::Event {
            return Err(SandboxError::OutOfOrder("Invoke"));
        }
        self.events_seen += 1;
        self.outside.start_counting();
        (self.handler_ns, self.guest_ns) = (0, 0);
        self.entries_before = self.vm.entries();
        self.faults_before = self.vm.faults();
        self.kernel.refresh_clock(&mut self.vm, &mut self.outside);
        let event = Event {
            request_id: spec.request_id,
            deadline_unix_ms: spec.deadline_unix_ms,
            function_arn: spec.function_arn,
            trace_id: spec.trace_id,
            client_context: spec.client_context,
            payload,
        };
        let renewal = self.renewal.take();
        self.link
            .deliver(&mut self.kernel, event, renewal.as_ref(), &mut self.said);
        Ok(())
    }

    /// Runs the guest until something is heard of it.
    pub fn run(&mut self) -> Result<Heard, SandboxError> {
        loop {
            if !self.said.is_empty() {
                return Ok(Heard::Said(self.said.remove(0)));
            }
            if self.outside.log_due_in() == Some(Duration::ZERO) {
                return Ok(Heard::Log);
            }
            if let Some(heard) = self.step()? {
                return Ok(heard);
            }
            self.link_turn();
            if self.kernel.has_outside() {
                self.ports.pass_on(&mut self.kernel);
                if self.kernel.has_outside_requests() || self.looked.elapsed() >= LOOK_PAUSE {
                    return Ok(Heard::Outside(Some(Duration::ZERO)));
                }
            }
        }
    }

    /// What to do next. A call that is taken up again can fill a connection and block anew without the guest having run,
    /// so a guest rests only when the other end has nothing more to take.
    fn next_step(&mut self) -> Step {
        loop {
            let step = self.kernel.schedule(&mut self.vm, &mut self.outside);
            let rests = matches!(step, Step::Sleep { .. } | Step::Idle);
            if !rests || !self.said.is_empty() || !self.link_turn() {
                return step;
            }
        }
    }

    fn link_turn(&mut self) -> bool {
        self.link
            .turn(&mut self.kernel, &mut self.handler_ns, &mut self.said)
    }

    fn step(&mut self) -> Result<Option<Heard>, SandboxError> {
        match self.next_step() {
            Step::Sleep { .. } | Step::Idle if !self.said.is_empty() => Ok(None),
            Step::Run { slot, quantum_ns } => {
                let mut registers = *self.kernel.registers_mut(slot);
                // A guest that never comes back is heard all the same.
                let log_due = self.outside.log_due_in().map(|due| due.as_nanos() as u64);
                let look = self.kernel.has_outside().then_some(LOOK_EVERY.as_nanos() as u64);
                let quantum_ns = [quantum_ns, log_due, look].into_iter().flatten().min();
                let began = Instant::now();
                let exit = self.vm.run(slot, &mut registers, quantum_ns)?;
                let ran_ns = began.elapsed().as_nanos() as u64;
                self.guest_ns += ran_ns;
                self.exits.count(&exit);
                *self.kernel.registers_mut(slot) = registers;
                self.kernel.charge(slot, ran_ns);
                self.kernel.on_exit(&mut self.vm, &mut self.outside, slot, exit);
                Ok(None)
            }
            Step::Sleep { .. } if self.outside.log_bytes() > 0 => Ok(Some(Heard::Log)),
            Step::Sleep { for_ns } if self.kernel.has_outside() => {
                Ok(Some(Heard::Outside(Some(Duration::from_nanos(for_ns)))))
            }
            Step::Sleep { for_ns } => {
                ports::rest(Duration::from_nanos(for_ns));
                Ok(None)
            }
            Step::Idle if self.outside.log_bytes() > 0 => Ok(Some(Heard::Log)),
            Step::Idle if self.kernel.has_outside() => Ok(Some(Heard::Outside(None))),
            Step::Idle => Ok(Some(Heard::Stuck)),
            Step::Ended => Ok(self.kernel.ended().cloned().map(Heard::Ended)),
        }
    }

    /// Lets a runtime that waits come to rest, so that what is captured is as calm as can be, and no instance works on what was
    /// left there.
    pub fn quiesce(&mut self) -> Result<(), SandboxError> {
        let deadline = Instant::now() + QUIESCE;
        while Instant::now() < deadline {
            match self.next_step() {
                Step::Run { slot, quantum_ns } => {
                    const SLICE_NS: u64 = 1_000_000;
                    let mut registers = *self.kernel.registers_mut(slot);
                    let quantum = quantum_ns.map_or(SLICE_NS, |quantum| quantum.min(SLICE_NS));
                    let exit = self.vm.run(slot, &mut registers, Some(quantum))?;
                    self.exits.count(&exit);
                    *self.kernel.registers_mut(slot) = registers;
                    self.kernel.on_exit(&mut self.vm, &mut self.outside, slot, exit);
                    self.link_turn();
                }
                Step::Sleep { .. } | Step::Idle | Step::Ended => break,
            }
        }
        // That it waits has been heard already, and is true of every step here.
        self.said.retain(|said| *said != Said::Waits);
        Ok(())
    }

    /// Log since the last call.
    pub fn take_log(&mut self) -> Vec<u8> {
        self.outside.take_log()
    }

    /// Bytes of log that were dropped in this invocation.
    pub fn log_bytes_dropped(&self) -> u64 {
        self.outside.dropped_bytes()
    }

    /// Memory that the guest uses, in bytes.
    pub fn memory_bytes(&mut self) -> u64 {
        self.outside.resident_bytes()
    }

    /// Memory that the guest has given back since it used most, in bytes. (Where that was a snapshot's, and shared, it is
    /// counted all the same.)
    pub fn given_back_bytes(&mut self) -> u64 {
        let space = self.vm.space();
        space.backed_bytes_max() - space.backed_bytes()
    }

    /// Where the time of the call went that has just been answered; a restore is told with its first call.
    pub fn take_timings(&mut self) -> WorkerTimings {
        let restored = std::mem::take(&mut self.timings);
        let faults = self.vm.faults() - self.faults_before;
        // Those of memory that the handler touches are part of its own time, and cannot be told apart.
        let outside_ns = self.guest_ns.saturating_sub(self.handler_ns);
        let faults_ns = (faults * self.fault_ns).min(outside_ns);
        WorkerTimings {
            handler_ns: self.handler_ns,
            runtime_ns: outside_ns - faults_ns,
            exits: self.vm.entries() - self.entries_before,
            faults,
            faults_ns,
            ..restored
        }
    }

    /// Why the guest has come out so far.
    pub fn exits(&self) -> Exits {
        Exits {
            entries: self.vm.entries(),
            ..self.exits
        }
    }

    /// System calls that the guest has made, by name. A guest that goes back to its snapshot begins anew.
    pub fn system_calls(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.kernel.call_counts()
    }

    /// Captures the guest, which waits and has seen no event.
    pub fn capture(&mut self, memory: &OwnedFd, state: &OwnedFd) -> Result<Captured, SandboxError> {
        if self.events_seen > 0 || self.boot.is_some() || self.kernel.ended().is_some() {
            return Err(SandboxError::OutOfOrder("Capture"));
        }
        self.kernel.complete_files(&mut self.vm, &mut self.outside);
        let (areas, slots) = (self.kernel.mapped_areas(), self.kernel.thread_slots());
        let machine = self.vm.capture(&areas, &slots, memory.as_fd())?;
        let clock_ns = self.kernel.clock_ns(&mut self.outside);
        let memory_bytes = machine.memory_bytes();
        let stored = Stored {
            machine,
            kernel: self.kernel.clone(),
            link: self.link.clone(),
            clock_ns,
            waits_for_function: self.waits_for == WaitsFor::Function,
        };
        let state_bytes = stored.write(state)?;
        Ok(Captured {
            memory_bytes,
            state_bytes,
        })
    }

    /// The guest without its machine; `None` when it is too large for that, or is connected to something outside.
    pub fn freeze(&mut self) -> Result<Option<Vec<u8>>, SandboxError> {
        let is_settled = self.waits_for == WaitsFor::Event && self.said.is_empty() && self.renewal.is_none();
        let Some(origin) = self.origin.as_ref().filter(|origin| {
            is_settled
                && origin.memory_mode == MemoryMode::Reuse
                && self.kernel.ended().is_none()
                && !self.kernel.has_outside()
        }) else {
            return Ok(None);
        };
        let (areas, slots) = (self.kernel.mapped_areas(), self.kernel.thread_slots());
        let snapshot = &origin.pristine.machine;
        let difference = self
            .vm
            .difference(&areas, &slots, snapshot, origin.memory.as_fd())?;
        let Some(memory) = difference else {
            return Ok(None);
        };
        let frozen = Frozen {
            memory,
            kernel: self.kernel.clone(),
            link: self.link.clone(),
            clock_ns: self.kernel.clock_ns(&mut self.outside),
            unix_ns: self.outside.realtime_ns(),
        };
        frozen.encode()
    }

    /// Writes a layout learned from this guest's run; gives its bytes and hot pages.
    ///
    /// Faults are measured with the guest: it goes on as before, but what it touches from then on says nothing more.
    pub fn replan(&mut self, layout: &OwnedFd, memory: &OwnedFd) -> Result<(u64, u64), SandboxError> {
        let seen = self.vm.working_set();
        let costs = self.vm.measure_costs(memory.as_fd())?;
        let origin = self.origin.as_ref().ok_or(SandboxError::OutOfOrder("Replan"))?;
        let mut set = match &origin.layout {
            Some(file) => Layout::open(file.as_fd())?.working_set()?,
            None => WorkingSet::empty(origin.pristine.machine.chunks.len()),
        };
        set.merge(&seen.ok_or(SandboxError::OutOfOrder("Replan"))?);
        Ok(Layout::write(
            &origin.pristine.machine,
            &set,
            costs,
            None,
            memory.as_fd(),
            layout.as_fd(),
        )?)
    }

    /// Whether the guest goes back to its snapshot after every call, and can.
    pub fn rewinds(&self) -> bool {
        self.origin.as_ref().is_some_and(|origin| {
            origin.memory_mode == MemoryMode::Fresh && !origin.recording && origin.layout.is_some()
        })
    }

    /// Whether the guest, which keeps its memory between calls, can go back to its snapshot now. What was frozen cannot:
    /// its pages were laid out as it left them.
    pub fn can_go_back(&self) -> bool {
        let is_settled = self.waits_for == WaitsFor::Event && self.said.is_empty() && self.renewal.is_none();
        let origin = self.origin.as_ref();
        let has_layout = |origin: &Origin| !origin.recording && !origin.is_thawed && origin.layout.is_some();
        is_settled && self.kernel.ended().is_none() && origin.is_some_and(has_layout)
    }

    /// Changes what the guest's environment has of its own, from when it goes back to its snapshot.
    pub fn set_environment(&mut self, environment: Vec<(String, String)>) {
        if let Some(origin) = &mut self.origin {
            origin.environment = environment;
        }
    }

    /// Goes back to the snapshot, as another instance.
    pub fn rewind(&mut self) -> Result<(), SandboxError> {
        let mut seed = [0; 32];
        rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())
            .map_err(|error| SandboxError::io("get random bytes", error.into()))?;
        let origin = self.origin.as_ref().ok_or(SandboxError::OutOfOrder("rewind"))?;
        let layout = origin.layout.as_ref().ok_or(SandboxError::OutOfOrder("rewind"))?;
        self.vm.rewind(layout.as_fd(), origin.memory.as_fd())?;
        let mut kernel = origin.pristine.kernel.clone();
        kernel.resume(&mut self.outside, origin.images.clone(), origin.pristine.clock_ns);
        kernel.number_outside_after(&self.kernel);
        self.kernel = kernel;
        if let Some(network) = self.network_spec.clone() {
            Network::open(&mut self.kernel, network);
        }
        self.link = origin.pristine.link.clone();
        self.said.clear();
        let environment = origin.environment.clone();
        self.renew(seed, environment);
        Ok(())
    }
}

fn set_limits(kernel: &mut Kernel, limits: Limits) {
    let Limits {
        memory_bytes,
        tmp_bytes,
        cpus,
    } = limits;
    kernel.set_limits(memory_bytes, tmp_bytes, cpus);
}

fn config(
    spec: &BootSpec,
    root: Image,
    images: Vec<(String, Image)>,
    environment: &[(String, String)],
) -> BootConfig {
    BootConfig {
        root,
        images,
        program: spec.argv.first().cloned().unwrap_or_default(),
        arguments: spec.argv.clone(),
        environment: environment
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect(),
        directory: spec.directory.clone(),
        uid: GUEST_UID,
        gid: GUEST_GID,
        memory_bytes: spec.limits.memory_bytes,
        tmp_bytes: spec.limits.tmp_bytes,
        cpus: spec.limits.cpus,
        host_name: "gust".into(),
        pid: 1,
        seed: spec.identity.seed,
    }
}
