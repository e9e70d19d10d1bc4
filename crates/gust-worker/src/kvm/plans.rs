//! Layouts that are made from other files, with no guest: of a runtime's base, and of a version on its base.

use std::os::fd::{AsFd, OwnedFd};

use gust_vmm::{Base, Costs, Descendant, Layout, WorkingSet};

use super::{sandbox::SandboxError, stored::Stored};
use crate::protocol::SHAPED_FOR_MAX;

/// Layout size in bytes, and hot pages; `None` when these are not the files that the command takes.
type Written = Option<(u64, u64)>;

/// See [`crate::protocol::Command::Shape`].
///
/// # Errors
/// When a file is not what it should be, or cannot be written.
pub fn shape(files: &[OwnedFd]) -> Result<Written, SandboxError> {
    let Some(([out, memory, state], functions)) = files.split_first_chunk::<3>() else {
        return Ok(None);
    };
    let (functions, rest) = functions.as_chunks::<3>();
    if functions.is_empty() || functions.len() > SHAPED_FOR_MAX || !rest.is_empty() {
        return Ok(None);
    }
    let base = Stored::read(state)?;
    let mut costs = Costs::DEFAULT;
    let mut known: Vec<(Stored, WorkingSet, &OwnedFd)> = Vec::with_capacity(functions.len());
    for [memory, state, layout] in functions {
        let layout = Layout::open(layout.as_fd())?;
        costs = layout.costs();
        known.push((Stored::read(state)?, layout.working_set()?, memory));
    }
    let descendants: Vec<Descendant<'_>> = known
        .iter()
        .map(|(stored, set, memory)| Descendant {
            state: &stored.machine,
            memory: memory.as_fd(),
            set,
        })
        .collect();
    let written = Layout::write_base(&base.machine, costs, &descendants, memory.as_fd(), out.as_fd())?;
    Ok(Some(written))
}

/// See [`crate::protocol::Command::Graft`].
///
/// # Errors
/// As in [`shape`].
pub fn graft(files: &[OwnedFd]) -> Result<Written, SandboxError> {
    let [out, memory, state, layout, base_memory, base_state, base_layout] = files else {
        return Ok(None);
    };
    let (stored, base) = (Stored::read(state)?, Stored::read(base_state)?);
    let layout = Layout::open(layout.as_fd())?;
    let base = Base {
        state: &base.machine,
        memory: base_memory.as_fd(),
        layout: Layout::open(base_layout.as_fd())?,
    };
    let written = Layout::write(
        &stored.machine,
        &layout.working_set()?,
        layout.costs(),
        Some(base),
        memory.as_fd(),
        out.as_fd(),
    )?;
    Ok(Some(written))
}
