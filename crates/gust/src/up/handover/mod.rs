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

mod new;
mod old;
mod wire;

use std::{net::SocketAddr, path::Path, path::PathBuf};

use gust_control::EventEnd;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use new::{Listeners, Predecessor};
pub use old::{Offer, Served, Taken};

/// Version of the conversation. Servers of different versions do not take over from each other.
const VERSION: u32 = 1;

/// Name of the socket in the data directory.
const SOCKET: &str = "handover.sock";

fn socket_path(data_dir: &Path) -> PathBuf {
    data_dir.join(SOCKET)
}

/// What the two say to each other, in JSON. Sockets go beside it, and bytes after it.
#[derive(Debug, Serialize, Deserialize)]
enum Message {
    /// New to old: there is someone.
    Hello {
        /// [`VERSION`].
        version: u32,
        /// Process id, for people.
        pid: u32,
    },
    /// Old to new: the listening sockets, in this order.
    Listeners {
        api: SocketAddr,
        cluster: Option<SocketAddr>,
    },
    /// New to old: the store can be handed over.
    Ready,
    /// Old to new: the store has been let go of. These events are being delivered.
    Store { running: Vec<Uuid> },
    /// New to old: requests are served.
    Serving,
    /// Old to new: a connection that rests, with what was received and not looked at.
    Connection,
    /// Old to new: what has become of an event.
    EventEnded(EventEnd),
    /// Old to new: it cannot be, and why.
    Refused(String),
}
