//! Faults on purpose: when what is taken away from a cluster ([`schedule`]), and whether what came of it is what may come of
//! it ([`ledger`]).
//!
//! Both are pure. Carrying faults out and making calls is the business of whoever has a cluster.

pub mod ledger;
pub mod schedule;

pub use ledger::{Call, CallEnd, Consequence, Finding, Injected, Ledger, Verdict};
pub use schedule::{Fault, FaultKind, Plan, PlanError};
