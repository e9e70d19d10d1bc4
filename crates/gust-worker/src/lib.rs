//! The worker: one jailed process around one sandbox.
//!
//! A node talks to it in [`frame`]s of the [`protocol`]. It is made by the [`zygote`], which costs a fork and not the
//! start of a program, locks itself up in its [`jail`], and runs either a micro-VM or, where there is no KVM, a guest
//! process.

#![deny(unsafe_code)]

pub mod cgroup;
pub mod channel;
pub mod datagram;
mod device_text;
pub mod frame;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod jail;
pub mod kvm;
mod process;
pub mod protocol;
pub mod runtime_api;
mod sys;
pub mod zygote;
