//! The worker: one jailed process around one sandbox.

pub mod protocol;
