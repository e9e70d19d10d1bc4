//! System calls of a guest on a machine without a processor, answered as Linux answers them. No KVM is needed.

mod ancillary;
mod attributes;
mod barriers;
mod descriptors;
mod exec;
mod files;
mod guest;
mod hostile;
mod inotify;
mod limits;
mod locks;
mod memory;
mod netlink;
mod packet;
mod readiness;
mod signals;
mod sockets;
mod table;
mod waiting;
