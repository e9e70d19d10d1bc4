//! A server takes over from the one that runs on its data directory, and no request fails.
//!
//! ```text
//! new                                              old
//!  Hello ───────────────────────────────────────>
//!        <──────────── Listeners (with the sockets)  goes on serving
//!  makes ready all that needs no store
//!  Ready ───────────────────────────────────────>   accepts nothing more; lets requests that change something end;
//!        <─────────────── Store (events that run)   lets go of the store
//!  opens the store, serves
//!  Serving ─────────────────────────────────────>   finishes its calls
//!        <─── Connection, EventEnded, one by one    and ends
//! ```
//!
//! From Ready to Serving requests wait: new connections in the queue of the listening socket, which both processes
//! have; those that rest in the old process, which hands them over as they are. If the new process ends before it has
//! said Serving, the old one takes the store back and serves them itself.
//!
//! The two speak over a socket in the data directory, which only the user that runs the server (and root) may use.

mod message;
mod new;
mod old;
mod wire;

use std::path::{Path, PathBuf};

use gust_control::EventEnd;
use message::{Message, VERSION};
pub use new::{Listeners, Predecessor};
pub use old::{Offer, Served, Taken};

/// Name of the socket in the data directory.
const SOCKET: &str = "handover.sock";

fn socket_path(data_dir: &Path) -> PathBuf {
    data_dir.join(SOCKET)
}
