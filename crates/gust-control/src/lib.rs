//! Functions, versions, aliases, limits, calls, asynchronous events and logs: the domain behind the AWS Lambda API,
//! without its HTTP.
//!
//! State is kept decoded in memory and durable in the store ([`Control`]); a call is resolved, counted and handed to
//! the node without waiting for either. Policies (concurrency, routing, retries) are plain objects that are asked and
//! told; they have no clock and no I/O.
//!
//! This crate knows neither HTTP nor the shapes of AWS's requests, neither KVM nor how an instance is made.

#![forbid(unsafe_code)]

mod account;
pub mod agent;
mod calllog;
mod change;
pub mod clock;
mod cluster;
mod conclude;
pub mod concurrency;
mod config;
mod control;
mod deliver;
mod deploy;
mod environment;
mod error;
mod events;
pub mod fake;
pub mod fault;
pub mod fleet;
mod functions;
mod handover;
pub mod ids;
mod invoke;
pub mod limits;
pub mod lines;
mod logs;
mod members;
pub mod model;
mod ops;
mod placing;
mod provisioned;
mod recent;
pub mod retry;
pub mod routing;
mod settings;
mod tasks;

pub use cluster::Cluster;
pub use config::{CONCURRENCY_TAG, ConfigChange, INSTANCES_TAG, MEMORY_TAG, TENANT_TAG};
pub use control::{Control, ControlConfig, ControlStats};
pub use environment::default_log_group;
pub use error::{ControlError, Missing};
pub use functions::{Base64, NewCode, NewFunction};
pub use handover::{EventEnd, HandedOver};
pub use invoke::{Reply, Request};
pub use members::NodeStatus;
pub use ops::{AliasChange, EventConfigChange, PublishRequest};
pub use provisioned::ProvisionedStatus;
pub use recent::Call;
