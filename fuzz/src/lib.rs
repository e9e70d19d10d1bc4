//! What the fuzz targets do: each takes bytes and drives with them something that a hostile guest, worker, image, snapshot,
//! node or newcomer can reach. Nothing may panic, hang, or grow without bound, unless a target says otherwise.
//!
//! The targets (`targets/`) are one line each; `scripts/fuzz.sh` builds and runs them.

mod bytes;
mod calls;
mod cluster;
mod formats;
mod handover;
mod seeds;
mod snapshots;
mod wire;

#[path = "../../crates/gust-linux/tests/calls/guest.rs"]
pub mod guest;

pub use calls::{calls_events, calls_files, calls_memory, calls_misc, calls_sockets, calls_tasks};
pub use cluster::{cluster_link, cluster_messages, join_requests};
pub use formats::{elf, image};
pub use handover::handover_messages;
pub use seeds::seeds;
pub use snapshots::{snapshot_file, snapshot_layout, snapshot_state};
pub use wire::{device_answers, node_frames, runtime_api, worker_frames, zygote_messages};
