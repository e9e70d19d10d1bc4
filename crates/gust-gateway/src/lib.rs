//! The AWS Lambda API (version 2015-03-31) over HTTP, for unmodified SDKs and the AWS command line.
//!
//! ```text
//! connection -> route -> bounded body -> signature -> operation -> control plane -> answer, with a request id
//! ```
//!
//! What AWS refuses is refused here with the same error; what this server cannot do is refused by name. The crate
//! knows the wire: names, patterns, shapes, statuses, signatures. What a function is and how a call runs it asks the
//! control plane.

#![forbid(unsafe_code)]

mod auth;
mod body;
mod connection;
mod doors;
mod download;
mod error;
mod foreign;
mod handlers;
mod names;
mod operation;
mod present;
mod private;
mod request;
mod server;
pub mod sigv4;
mod text;
mod validate;
mod wire;

pub use auth::{AuthConfig, SERVICE};
pub use doors::{Doors, Parked};
pub use server::{GatewayConfig, run};
