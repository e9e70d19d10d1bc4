//! One function prepared inside this process, as a node and its workers would prepare it: the runtime's base, the function's
//! snapshot, the layout learned from its runs, and the graft onto the base.
//!
//! ```text
//!  boot the runtime ─> base ─> give it the function ─> snapshot ─> record runs ─> layout ─> shape the base, graft
//! ```
//!
//! Machines are made by the thread that uses them. There is no jail and no other process here: what is measured is the
//! sandbox alone. Every answer is checked.

use std::{
    fs::File,
    os::fd::OwnedFd,
    path::Path,
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, Result, ensure};
use gust_image::runtime::{DESCRIPTION_PATH, RuntimeDescription, RuntimeInterface};
use gust_vmm::{Hypervisor, SlotSizes, Vm};
use gust_worker::{
    kvm::{Images, Outside, Restore, Sandbox, open_image, plans},
    protocol::{BootSpec, InitSpec, Interface, Limits, MemoryMode},
};
use serde_json::Value;
use tempfile::TempDir;

use super::{
    function::Function,
    guest::{deliver, duplicate, identity, image_of, outside, until_waits},
};

/// Bounds of the measured guests.
const LIMITS: Limits = Limits {
    memory_bytes: 512 << 20,
    tmp_bytes: 64 << 20,
    cpus: 1,
};

/// Runs that are recorded before anything is measured.
const RECORDED_RUNS: u64 = 3;

/// Makes the files that snapshots lie in.
pub type Files<'a> = &'a dyn Fn() -> std::io::Result<OwnedFd>;

/// A snapshot's files.
#[derive(Debug)]
struct Snapshot {
    memory: OwnedFd,
    state: OwnedFd,
}

/// How a guest is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Every page an entry of its own, nothing known of what a run touches.
    Unknown,
    /// Pages that runs touch lie densely, and are met one fault after the other.
    Compact,
    /// What costs less in one copy than in faults is copied ahead.
    Fast,
    /// On a machine that holds the runtime's base.
    Grafted,
    /// Dense, and touched ahead.
    Armed,
}

/// A function that is ready to be laid out again and again.
#[derive(Debug)]
pub struct Lab {
    hypervisor: Hypervisor,
    root: OwnedFd,
    code: OwnedFd,
    base: Snapshot,
    version: Snapshot,
    layout: OwnedFd,
    shaped: OwnedFd,
    grafted: OwnedFd,
    events: [Vec<u8>; 2],
    /// What the events were answered with in the recorded runs.
    expected: Mutex<[Option<Value>; 2]>,
    _dir: TempDir,
}

/// Where a machine holds a runtime's base, and a version can be laid out on it.
#[derive(Debug)]
pub struct Room {
    vm: Vm,
    outside: Outside,
    on_base: bool,
}

impl Lab {
    /// Prepares a function with the runtime of an image; its files are made by `files`. The events are sent in turn.
    pub fn prepare(image: &Path, function: &Function, events: [Value; 2], files: Files<'_>) -> Result<Self> {
        let hypervisor = Hypervisor::open().context("open the hypervisor")?;
        let root: OwnedFd = File::open(image)
            .with_context(|| format!("open {}", image.display()))?
            .into();
        let dir = TempDir::with_prefix("gust-bench-lab-").context("make a directory")?;
        let code = code_image(function, dir.path())?;
        let file = || files().context("make a snapshot's file");
        let snapshot = || -> Result<Snapshot> {
            Ok(Snapshot {
                memory: file()?,
                state: file()?,
            })
        };
        let mut lab = Self {
            hypervisor,
            root,
            code,
            base: snapshot()?,
            version: snapshot()?,
            layout: file()?,
            shaped: file()?,
            grafted: file()?,
            events: events.map(|event| event.to_string().into_bytes()),
            expected: Mutex::default(),
            _dir: dir,
        };
        lab.boot(image)?;
        lab.initialise(function)?;
        lab.learn(files)?;
        Ok(lab)
    }

    /// Boots the runtime, and keeps its base.
    fn boot(&self, image: &Path) -> Result<()> {
        let root = open_image(&self.root)?;
        let description = root
            .find(DESCRIPTION_PATH.as_bytes())
            .and_then(|node| root.file(node))
            .with_context(|| format!("{} is no runtime's image", image.display()))?;
        let description = RuntimeDescription::parse(description)?;
        ensure!(
            description.interface == RuntimeInterface::Device,
            "the runtime {} has no base: its program comes with its function",
            description.name
        );
        let boot = BootSpec {
            argv: description.commands[0].clone(),
            environment: description.environment.into_iter().collect(),
            directory: description.directory,
            interface: Interface::Device,
            limits: LIMITS,
            identity: identity(0),
        };
        let mut machine = self.hypervisor.create_vm(SlotSizes::POOLED)?;
        machine.want_huge_memory();
        let mut sandbox = Sandbox::boot(machine, outside(), boot, root)?;
        until_waits(&mut sandbox).context("boot the runtime")?;
        sandbox
            .capture(&self.base.memory, &self.base.state)
            .context("capture the runtime")?;
        Ok(())
    }

    /// Gives the runtime its function, and keeps the version's snapshot.
    fn initialise(&self, function: &Function) -> Result<()> {
        let mut sandbox = self.lay_out_base(None)?;
        let init = InitSpec {
            handler: function.handler.to_owned(),
            environment: vec![("AWS_REGION".to_owned(), "us-east-1".to_owned())],
            task_root: "/var/task".to_owned(),
            limits: LIMITS,
        };
        sandbox.init(&init, vec![open_image(&self.code)?])?;
        until_waits(&mut sandbox).with_context(|| format!("initialise {}", function.name))?;
        sandbox
            .capture(&self.version.memory, &self.version.state)
            .with_context(|| format!("capture {}", function.name))?;
        Ok(())
    }

    /// Learns a layout from recorded runs, shapes the base for it, and grafts it.
    fn learn(&mut self, files: Files<'_>) -> Result<()> {
        let mut known = None;
        for n in 0..RECORDED_RUNS {
            let restore = Restore {
                layout: known.as_ref().map(duplicate).transpose()?,
                record: true,
                ..self.restore_of(Layout::Unknown, n, MemoryMode::Reuse)?
            };
            let room = self.room(Layout::Unknown)?;
            let mut sandbox = Sandbox::restore(room.vm, room.outside, restore)?;
            self.answer(&mut sandbox, n)?;
            let layout = files().context("make a layout's file")?;
            sandbox
                .replan(&layout, &self.version.memory)
                .context("learn a layout")?;
            known = Some(layout);
        }
        self.layout = known.context("no run was recorded")?;
        let lent = |files: &[&OwnedFd]| {
            files
                .iter()
                .map(|file| duplicate(file))
                .collect::<Result<Vec<_>>>()
        };
        let (base, version) = (&self.base, &self.version);
        plans::shape(&lent(&[
            &self.shaped,
            &base.memory,
            &base.state,
            &version.memory,
            &version.state,
            &self.layout,
        ])?)?
        .context("shape the base")?;
        plans::graft(&lent(&[
            &self.grafted,
            &version.memory,
            &version.state,
            &self.layout,
            &base.memory,
            &base.state,
            &self.shaped,
        ])?)?
        .context("graft the version")?;
        Ok(())
    }

    /// A machine as the pool has it ready for a layout.
    pub fn room(&self, layout: Layout) -> Result<Room> {
        match layout {
            Layout::Grafted => {
                let (vm, outside) = self.lay_out_base(Some(&self.shaped))?.into_base()?;
                Ok(Room {
                    vm,
                    outside,
                    on_base: true,
                })
            }
            Layout::Unknown | Layout::Compact | Layout::Fast | Layout::Armed => {
                let mut vm = self.hypervisor.create_vm(SlotSizes::POOLED)?;
                vm.warm_up()?;
                Ok(Room {
                    vm,
                    outside: outside(),
                    on_base: false,
                })
            }
        }
    }

    /// Lays the version out in a machine that was made ready for that layout. `n` tells the instance from others.
    pub fn lay_out(&self, room: Room, layout: Layout, n: u64, memory_mode: MemoryMode) -> Result<Sandbox> {
        let restore = Restore {
            on_base: room.on_base,
            ..self.restore_of(layout, n, memory_mode)?
        };
        Ok(Sandbox::restore(room.vm, room.outside, restore)?)
    }

    /// Sends the event of a number, and takes the answer, which must be right.
    pub fn answer(&self, sandbox: &mut Sandbox, n: u64) -> Result<()> {
        let which = (n % 2) as usize;
        let body = deliver(sandbox, n, self.events[which].clone())?;
        let answer: Value = serde_json::from_slice(&body).context("read the function's answer")?;
        let mut expected = self.expected.lock().unwrap_or_else(PoisonError::into_inner);
        let expected = expected[which].get_or_insert_with(|| answer.clone());
        ensure!(
            *expected == answer && !answer.is_null(),
            "the function answered {answer}, and before {expected}"
        );
        Ok(())
    }

    /// The version's files: memory, state, layout, and the layout with a graft.
    pub fn files(&self) -> [&OwnedFd; 4] {
        [
            &self.version.memory,
            &self.version.state,
            &self.layout,
            &self.grafted,
        ]
    }

    /// The same from copies of the version's files.
    pub fn lay_out_from(
        &self,
        [memory, state, layout_file, grafted]: [&OwnedFd; 4],
        room: Room,
        layout: Layout,
        n: u64,
    ) -> Result<Sandbox> {
        let mut restore = self.restore_of(layout, n, MemoryMode::Reuse)?;
        restore.memory = duplicate(memory)?;
        restore.state = duplicate(state)?;
        restore.on_base = room.on_base;
        if restore.layout.is_some() {
            let file = if room.on_base { grafted } else { layout_file };
            restore.layout = Some(duplicate(file)?);
        }
        Ok(Sandbox::restore(room.vm, room.outside, restore)?)
    }

    fn restore_of(&self, layout: Layout, n: u64, memory_mode: MemoryMode) -> Result<Restore> {
        let layout_file = match layout {
            Layout::Unknown => None,
            Layout::Compact | Layout::Fast | Layout::Armed => Some(&self.layout),
            Layout::Grafted => Some(&self.grafted),
        };
        // Without being touched ahead, memory that is given back after each call is what is laid out compactly.
        let memory_mode = match layout {
            Layout::Compact => MemoryMode::Fresh,
            Layout::Unknown | Layout::Fast | Layout::Grafted | Layout::Armed => memory_mode,
        };
        Ok(Restore {
            memory: duplicate(&self.version.memory)?,
            state: duplicate(&self.version.state)?,
            layout: layout_file.map(duplicate).transpose()?,
            images: Images {
                root: open_image(&self.root)?,
                mounted: vec![open_image(&self.code)?],
            },
            arm: layout == Layout::Armed,
            on_base: false,
            frozen: None,
            record: false,
            memory_mode,
            limits: LIMITS,
            identity: identity(n),
            environment: Vec::new(),
        })
    }

    fn lay_out_base(&self, shaped: Option<&OwnedFd>) -> Result<Sandbox> {
        let mut vm = self.hypervisor.create_vm(SlotSizes::POOLED)?;
        vm.warm_up()?;
        let restore = Restore {
            memory: duplicate(&self.base.memory)?,
            state: duplicate(&self.base.state)?,
            layout: shaped.map(duplicate).transpose()?,
            images: Images {
                root: open_image(&self.root)?,
                mounted: Vec::new(),
            },
            arm: shaped.is_some(),
            on_base: false,
            frozen: None,
            record: false,
            memory_mode: MemoryMode::Reuse,
            limits: LIMITS,
            identity: identity(0),
            environment: Vec::new(),
        };
        Ok(Sandbox::restore(vm, outside(), restore)?)
    }
}

/// The function's code as an image.
fn code_image(function: &Function, dir: &Path) -> Result<OwnedFd> {
    let code = dir.join("code");
    function.write(&code)?;
    image_of(&code, dir)
}
