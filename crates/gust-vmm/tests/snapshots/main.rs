//! Machines and their snapshots. Skipped, loudly, where /dev/kvm is missing.

mod difference;
mod model;
mod rewind;
