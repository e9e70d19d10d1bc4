//! A call of this side's, as whoever has made it sees it: output, then the reply.

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::{
    CallError, Closed, Link,
    frame::{Frame, Kind},
    lock,
    table::{Answer, output_cost},
};

/// A call that has been sent, until it is dropped.
#[derive(Debug)]
pub struct Pending {
    pub(super) link: Link,
    pub(super) call: u64,
    pub(super) reply: oneshot::Receiver<Answer>,
    pub(super) output: mpsc::Receiver<Bytes>,
    pub(super) is_over: bool,
}

/// What comes next of a call.
#[derive(Debug)]
pub enum Next {
    /// A piece of output; tell [`Pending::took`] when it has been dealt with.
    Output(Bytes),
    /// The reply, after all output.
    Reply(Answer),
}

impl Pending {
    /// Output or the reply.
    ///
    /// # Errors
    /// When the link ends.
    pub async fn next(&mut self) -> Result<Next, CallError> {
        tokio::select! {
            biased;
            Some(piece) = self.output.recv() => Ok(Next::Output(piece)),
            reply = &mut self.reply => {
                self.is_over = true;
                // What came before the reply is in the channel by now.
                reply.map(Next::Reply).map_err(|_| {
                    CallError::Closed(self.link.closed().unwrap_or(Closed::Ended))
                })
            }
        }
    }

    /// A piece of output has been dealt with; as much more may come.
    pub async fn took(&self, piece: &Bytes) {
        let cost = output_cost(piece.len()) as u32;
        // When the link has ended, so has the call.
        let _ = self
            .link
            .send(Frame::new(Kind::Taken, self.call, cost.to_le_bytes().to_vec()))
            .await;
    }

    /// Output that has arrived already.
    pub fn try_output(&mut self) -> Option<Bytes> {
        self.output.try_recv().ok()
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let was_open = lock(&self.link.0.table).forget(self.call);
        if was_open && !self.is_over {
            self.link
                .send_soon(Frame::new(Kind::Forgotten, self.call, Bytes::new()));
        }
    }
}
