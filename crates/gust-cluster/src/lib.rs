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
pub(crate) use gust_node::fill_random;
pub use hub::{Event, Hub, HubConfig};
pub use remote::{NodeInfo, RemoteNode, STATS_PERIOD};
