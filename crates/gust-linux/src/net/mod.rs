//! Sockets inside the sandbox.
//!
//! Internet sockets reach loopback, where delivery is a copy: a connection is made or refused at once, nothing is
//! lost or reordered. UNIX sockets have names in the file tree or abstract ones. Netlink sockets tell of the interfaces. A *service* is a loopback port whose
//! connections end outside the guest, in whoever runs it: the Lambda Runtime API is one. Other addresses are *outside*: there is a way to them only where
//! whoever runs the guest opens one.

mod address;
mod ancillary;
mod connect;
mod datagram;
mod groups;
mod interfaces;
mod life;
mod messages;
mod names;
mod netlink;
mod option_values;
mod options;
mod outside;
mod packet;
mod room;
mod service;
mod socket;
mod stream;

pub(crate) use connect::*;
pub(crate) use life::{sys_socket, sys_socketpair};
pub(crate) use messages::*;
pub(crate) use names::{sys_bind, sys_getpeername, sys_getsockname};
pub(crate) use options::{sys_getsockopt, sys_setsockopt};
pub use outside::{Destination, OutsideRequest};
pub(crate) use room::buffer_bytes;
pub use service::ServiceEvent;
pub(crate) use socket::*;
