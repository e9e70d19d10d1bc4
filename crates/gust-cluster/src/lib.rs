//! Several nodes: the transport between the control plane and them, who may be a member, and how files travel.
//!
//! ```text
//!  control plane                                   node
//!  Hub, RemoteNode  <── one link, made by it ───   Agent, around a gust_node::Node
//!       │ files                                      │ files
//!       └──────────── chunks, by their names ────────┴──────────── other nodes
//! ```
//!
//! [`link`] moves messages ([`message`]) over TLS, [`trust`] says who is who, [`files`] brings images and snapshots to where they are
//! needed. A [`RemoteNode`] has the operations of a node. Which node serves a call, and what becomes of calls on a node that
//! is lost, is decided by whoever uses this crate; it stores nothing about instances, and retries no call.

#![forbid(unsafe_code)]

pub mod agent;
mod convert;
pub mod files;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod hub;
pub mod join;
pub mod link;
pub mod message;
mod remote;
pub mod trust;

pub use agent::{Agent, AgentConfig};
pub use hub::{Event, Hub, HubConfig};
pub use remote::{NodeInfo, RemoteNode, STATS_PERIOD};

/// Fills a buffer from the kernel's random numbers.
pub(crate) fn fill_random(buffer: &mut [u8]) {
    let mut filled = 0;
    while filled < buffer.len() {
        // Once the kernel's generator is ready, this does not fail; a signal may cut it short.
        if let Ok(n) = rustix::rand::getrandom(&mut buffer[filled..], rustix::rand::GetRandomFlags::empty()) {
            filled += n;
        }
    }
}
