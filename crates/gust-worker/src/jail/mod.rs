//! What a worker takes away from itself before it touches anything of a guest.
//!
//! ```text
//! zygote: namespaces ──> worker: empty root ──> user, capabilities ──> Landlock ──> seccomp
//! ```
//!
//! The order is that of need: each step may need what the next takes away. Afterwards the process has the descriptors
//! that it was given, memory, and the system calls of its [`Policy`]. What the host does not offer is left out and
//! said in the [`JailReport`]; what the host offers and refuses is an error, because a half-made jail is none.

pub(crate) mod filesystem;
pub mod lists;
mod policy;

use std::io;

use landlock::{ABI, Access, AccessFs, AccessNet, Compatible, Ruleset, RulesetAttr, RulesetStatus, Scope};
use rustix::{
    process::{DumpableBehavior, Gid, Resource, Rlimit, Signal, Uid},
    thread::CapabilitySet,
};

pub use policy::{Action, Policy, Rule, When};

use crate::{protocol::JailReport, sys};

/// Why a jail could not be made.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// A step failed on a host that offers it.
    #[error("{step} failed")]
    Step {
        /// Which.
        step: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A policy could not be made into a filter.
    #[error("the policy {name} cannot be made into a filter")]
    Policy {
        /// Its name.
        name: &'static str,
        /// Why.
        #[source]
        source: seccompiler::Error,
    },
}

/// What a process is to be left with.
#[derive(Debug, Clone, Copy)]
pub struct Jail<'a> {
    /// Give up the file system for an empty, read-only one. Needs a mount namespace of its own.
    pub empty_root: bool,
    /// User and group to become.
    pub user: Option<u32>,
    /// Capabilities to keep, in whichever user namespace this is. A change of user leaves none to keep.
    pub capabilities: CapabilitySet,
    /// Filter of this thread and those that it starts.
    pub policy: &'a Policy,
    /// Namespaces that the process was made with, for the report.
    pub namespaces: bool,
}

/// Puts this process into a jail. It must still have one thread.
///
/// # Errors
/// When a step fails. The process must end then.
pub fn enter(jail: &Jail<'_>) -> Result<JailReport, JailError> {
    let mut report = JailReport {
        namespaces: jail.namespaces,
        ..JailReport::default()
    };
    if jail.empty_root {
        step("giving up the file system", filesystem::enter_empty_root())?;
    }
    step("setting limits", set_limits())?;
    // While it still may: a change of user takes the right to.
    step("narrowing capabilities", narrow_capabilities(jail.capabilities))?;
    if let Some(user) = jail.user {
        step("changing the user", become_user(user))?;
        report.user = true;
    }
    step(
        "dropping capabilities",
        sys::set_capabilities(jail.capabilities.bits()),
    )?;
    step("binding to the parent's life", bind_to_parent())?;
    step(
        "forbidding new privileges",
        rustix::thread::set_no_new_privs(true).map_err(io::Error::from),
    )?;
    report.landlock = forbid_files()?;
    report.seccomp = install(jail.policy)?;
    Ok(report)
}

/// Puts a filter on this thread, over those that it has. `false` when the kernel has no seccomp.
///
/// # Errors
/// When the policy is no valid filter, or the kernel refuses it.
pub fn install(policy: &Policy) -> Result<bool, JailError> {
    let program = policy.compile()?;
    match seccompiler::apply_filter(&program) {
        Ok(()) => Ok(true),
        Err(seccompiler::Error::Seccomp(error) | seccompiler::Error::Prctl(error))
            if error.raw_os_error() == Some(libc::ENOSYS) =>
        {
            Ok(false)
        }
        Err(source) => Err(JailError::Policy {
            name: policy.name,
            source,
        }),
    }
}

/// Becomes a user without any group but its own. Needs the right to, once.
pub(crate) fn become_user(user: u32) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    Ok(())
}

/// No core dumps: they would hold a guest's memory.
fn set_limits() -> io::Result<()> {
    rustix::process::setrlimit(
        Resource::Core,
        Rlimit {
            current: Some(0),
            maximum: Some(0),
        },
    )?;
    Ok(())
}

/// Bounds what this process and programs to come can ever have to these capabilities.
pub(crate) fn narrow_capabilities(keep: CapabilitySet) -> io::Result<()> {
    // The bounding set can be narrowed only by one who may; one who may not has nothing to bound.
    let may = rustix::thread::capabilities(None)?
        .effective
        .contains(CapabilitySet::SETPCAP);
    for bit in (0..64).filter(|_| may) {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        if keep.contains(capability) {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            // Beyond the last capability that this kernel knows.
            Err(rustix::io::Errno::INVAL) => break,
            result => result?,
        }
    }
    Ok(())
}

/// Dies with the zygote, and lets no other process look into this one. After a change of user, which resets both.
pub(crate) fn bind_to_parent() -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}

/// Landlock without a single rule: no file can be opened, no TCP port used, no process outside signalled. `false`
/// when the kernel has no Landlock.
fn forbid_files() -> Result<bool, JailError> {
    let failed = |source: landlock::RulesetError| JailError::Step {
        step: "restricting with Landlock",
        source: io::Error::other(source),
    };
    let abi = ABI::V6;
    let status = Ruleset::default()
        .set_compatibility(landlock::CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))
        .and_then(|ruleset| ruleset.handle_access(AccessNet::from_all(abi)))
        .and_then(|ruleset| ruleset.scope(Scope::AbstractUnixSocket))
        .and_then(Ruleset::create)
        .and_then(|ruleset| ruleset.restrict_self())
        .map_err(failed)?;
    Ok(status.ruleset != RulesetStatus::NotEnforced)
}

fn step<T>(step: &'static str, result: io::Result<T>) -> Result<T, JailError> {
    result.map_err(|source| JailError::Step { step, source })
}
