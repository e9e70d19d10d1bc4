//! Sockets inside the sandbox.
//!
//! Internet sockets reach loopback only, where delivery is a copy: a connection is made or refused at once, nothing is
//! lost or reordered. UNIX sockets have names in the file tree or abstract ones. A *service* is a loopback port whose
//! connections end outside the guest, in whoever runs it: the Lambda Runtime API is one. There is no other way out.

mod address;
mod ancillary;
mod connect;
mod datagram;
mod interfaces;
mod messages;
mod option_values;
mod options;
mod service;
mod socket;
mod stream;

pub(crate) use connect::*;
pub(crate) use messages::*;
pub(crate) use options::{sys_getsockopt, sys_setsockopt};
pub use service::ServiceEvent;
pub(crate) use socket::*;
