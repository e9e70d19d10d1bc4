//! A link: two members of a cluster, each of which asks the other and answers.
//!
//! ```text
//!  made ──> open ──> closed   by either side, by a broken rule, or when nothing was heard for too long
//! ```
//!
//! Frames over one TLS stream rather than HTTP/2, because requests go both ways: a node dials (it may be behind a
//! firewall, and there is one port to open), and the control plane asks. Output streams back while its call runs, with a
//! window of its own, and either side notices within [`SILENCE_MAX`] that the other is gone. A piece of a body is at most
//! 64 KiB long, and whoever has something to send is served in turn, so an event of 6 MiB holds up no heartbeat and no
//! other call.
//!
//! A link does not know what is asked. It ends as a whole: every call that was open fails with [`CallError::Closed`], and
//! requests that are being carried out go on without anyone to answer to.

mod driver;
pub mod frame;
mod pending;
mod replier;
mod table;

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
pub use driver::Driver;
use frame::{Frame, FrameError, Kind, PAYLOAD_BYTES_MAX};
pub use pending::{Next, Pending};
pub use replier::{Incoming, Replier};
pub use table::Bounds;
use table::{Answer, Broken, OPEN_MAX, OUTPUT_FRAMES_MAX, Table};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{Semaphore, mpsc, oneshot, watch},
    time::timeout,
};

use crate::message::{MessageError, Request, encode_head};

/// How often each side says that it is there.
pub const HEARTBEAT: Duration = Duration::from_secs(1);

/// Longest silence before a link is given up: three heartbeats.
pub const SILENCE_MAX: Duration = Duration::from_secs(3);

/// Short frames that wait for a place among those, because nobody could wait for them: refusals, and calls that were given
/// up. Only a side that asks without end and takes no answers makes so many; its link ends.
const SOON_MAX: usize = 2 * OPEN_MAX;

/// Frames that wait to be written; more senders wait in turn.
const OUTGOING_MAX: usize = 16;

/// Why a link has ended.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Closed {
    /// This side or the other has ended it.
    #[error("the link was closed")]
    Ended,
    /// The other side asks, and takes no answers.
    #[error("the other side does not take its answers")]
    Flooded,
    /// Nothing was heard for [`SILENCE_MAX`].
    #[error("nothing was heard for {} s", SILENCE_MAX.as_secs())]
    Silent,
    /// The connection failed.
    #[error("the connection failed")]
    Io(#[source] Arc<io::Error>),
    /// The other side sent what is no frame.
    #[error("the other side broke the protocol")]
    Frame(#[from] FrameError),
    /// The other side broke a rule.
    #[error("the other side broke the protocol")]
    Broken(#[source] Arc<Broken>),
}

/// Why a call has no reply.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CallError {
    /// The link ended first.
    #[error("the link ended")]
    Closed(#[source] Closed),
    /// No reply came in time.
    #[error("no answer within {} ms", .0.as_millis())]
    Late(Duration),
    /// It cannot be said.
    #[error("the request cannot be sent")]
    Message(#[source] Arc<MessageError>),
}

/// One end of a link; clones are the same. It ends when [`Driver::run`] does, or by [`Link::close`].
#[derive(Debug, Clone)]
pub struct Link(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    outgoing: mpsc::Sender<Frame>,
    /// Room for [`SOON_MAX`] frames.
    soon: Arc<Semaphore>,
    table: Mutex<Table>,
    /// Windows of the output of requests that are being carried out.
    windows: Mutex<HashMap<u64, Arc<Semaphore>>>,
    next_call: AtomicU64,
    closed: watch::Sender<Option<Closed>>,
}

/// A link to a member over a stream, what moves it, and the other side's requests.
pub fn new<S: AsyncRead + AsyncWrite + Unpin>(stream: S) -> (Link, Driver<S>, mpsc::Receiver<Incoming>) {
    within(stream, Bounds::MEMBER)
}

/// The same, with other bounds to what the other side may have open.
pub fn within<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    bounds: Bounds,
) -> (Link, Driver<S>, mpsc::Receiver<Incoming>) {
    let (sender, outgoing) = mpsc::channel(OUTGOING_MAX);
    let (arrived, incoming) = mpsc::channel(bounds.open_max);
    let link = Link(Arc::new(Shared {
        outgoing: sender,
        soon: Arc::new(Semaphore::new(SOON_MAX)),
        table: Mutex::new(Table::new(bounds)),
        windows: Mutex::default(),
        next_call: AtomicU64::new(1),
        closed: watch::Sender::new(None),
    }));
    let driver = Driver {
        stream,
        link: link.clone(),
        outgoing,
        arrived,
    };
    (link, driver, incoming)
}

impl Link {
    /// Asks, and waits for the reply.
    ///
    /// # Errors
    /// When the link ends, or no reply comes within `limit`.
    pub async fn call(&self, request: &Request, body: Bytes, limit: Duration) -> Result<Answer, CallError> {
        let call = async {
            let mut pending = self.begin(request, body).await?;
            loop {
                match pending.next().await? {
                    // Nobody asked for it.
                    Next::Output(piece) => pending.took(&piece).await,
                    Next::Reply(answer) => return Ok(answer),
                }
            }
        };
        timeout(limit, call).await.unwrap_or(Err(CallError::Late(limit)))
    }

    /// Asks. Returns when the request is on its way.
    ///
    /// # Errors
    /// When the link has ended, or the request is too long.
    pub async fn begin(&self, request: &Request, body: Bytes) -> Result<Pending, CallError> {
        let head = encode_head(request, body.len()).map_err(|error| CallError::Message(Arc::new(error)))?;
        let call = self.0.next_call.fetch_add(1, Ordering::Relaxed);
        let (reply, replied) = oneshot::channel();
        let (output, pieces) = mpsc::channel(OUTPUT_FRAMES_MAX);
        lock(&self.0.table).begin(call, reply, output);
        let pending = Pending {
            link: self.clone(),
            call,
            reply: replied,
            output: pieces,
            is_over: false,
        };
        // After the entry: an end in between empties the table, and is seen here.
        if let Some(closed) = self.closed() {
            return Err(CallError::Closed(closed));
        }
        self.send_message((Kind::Request, Kind::RequestBody), call, head, body)
            .await?;
        Ok(pending)
    }

    /// Why the link has ended; `None` while it is open.
    pub fn closed(&self) -> Option<Closed> {
        self.0.closed.borrow().clone()
    }

    /// Waits until the link has ended.
    pub async fn wait_closed(&self) -> Closed {
        let mut closed = self.0.closed.subscribe();
        let ended = closed.wait_for(Option::is_some).await;
        ended
            .ok()
            .and_then(|closed| closed.clone())
            .unwrap_or(Closed::Ended)
    }

    /// Ends the link at once.
    pub fn close(&self) {
        self.end(Closed::Ended);
    }

    /// Whether the other is an end of the same link, on the same side.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Calls of this side's that wait for their reply.
    pub fn waiting(&self) -> usize {
        lock(&self.0.table).waiting()
    }

    fn end(&self, reason: Closed) {
        self.0.closed.send_if_modified(|closed| {
            let first = closed.is_none();
            if first {
                *closed = Some(reason);
            }
            first
        });
        lock(&self.0.table).clear();
        for (_, window) in lock(&self.0.windows).drain() {
            window.close();
        }
    }

    async fn send(&self, frame: Frame) -> Result<(), CallError> {
        match self.0.outgoing.send(frame).await {
            Ok(()) => Ok(()),
            Err(_) => Err(CallError::Closed(self.closed().unwrap_or(Closed::Ended))),
        }
    }

    async fn send_message(
        &self,
        (head_kind, body_kind): (Kind, Kind),
        call: u64,
        head: Vec<u8>,
        mut body: Bytes,
    ) -> Result<(), CallError> {
        self.send(Frame::new(head_kind, call, head)).await?;
        while !body.is_empty() {
            let piece = body.split_to(body.len().min(PAYLOAD_BYTES_MAX));
            self.send(Frame::new(body_kind, call, piece)).await?;
        }
        Ok(())
    }

    /// Sends what is short and must not be lost, from where nothing can wait.
    fn send_soon(&self, frame: Frame) {
        if let Err(mpsc::error::TrySendError::Full(frame)) = self.0.outgoing.try_send(frame)
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let Ok(room) = Arc::clone(&self.0.soon).try_acquire_owned() else {
                return self.end(Closed::Flooded);
            };
            let link = self.clone();
            runtime.spawn(async move {
                // The link has ended: nobody is left to be told.
                let _ = link.send(frame).await;
                drop(room);
            });
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
