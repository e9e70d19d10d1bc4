//! A micro-VM: the worker runs one guest on one vCPU, with the personality as its kernel.
//!
//! ```text
//!  pooled machine ─ Boot ─> Sandbox ─ Init ─> waits ─ Invoke ─> runs ─ answer ─> waits (frozen, or rewound)
//!        └───────── Restore ────────────────────^  └─ Capture, Replan
//! ```
//!
//! A guest runs only between a command and its result: while it waits for an event it is frozen, whatever its other
//! threads would do, as Lambda freezes it.

mod exits;
mod frozen;
mod images;
mod link;
mod network;
mod outside;
pub mod plans;
mod ports;
mod program;
mod sandbox;
mod stored;
mod supervisor;
mod warm;

pub use exits::Exits;
pub use images::open_image;
pub use outside::Outside;
pub use sandbox::{Heard, Images, Restore, Sandbox, SandboxError};
pub(crate) use supervisor::run;
