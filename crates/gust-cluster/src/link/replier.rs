//! A request of the other side's, and how whoever carries it out answers.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Semaphore;

use super::{
    Link,
    frame::{Frame, Kind, PAYLOAD_BYTES_MAX},
    lock,
    table::{OUTPUT_WINDOW_BYTES, output_cost},
};
use crate::message::{Reply, Request, encode_head};

/// A request of the other side's.
#[derive(Debug)]
pub struct Incoming {
    /// What is asked.
    pub request: Request,
    /// Its body.
    pub body: Bytes,
    /// Answers it.
    pub replier: Replier,
}

/// Answers one request. Dropped unused, it answers [`Reply::Failed`].
#[derive(Debug)]
pub struct Replier {
    link: Link,
    call: u64,
    window: Arc<Semaphore>,
    is_answered: bool,
}

impl Replier {
    pub(super) fn new(link: Link, call: u64) -> Self {
        let window = Arc::new(Semaphore::new(OUTPUT_WINDOW_BYTES));
        lock(&link.0.windows).insert(call, Arc::clone(&window));
        Self {
            link,
            call,
            window,
            is_answered: false,
        }
    }

    /// Sends output of the request while it is carried out; waits while too much is under way. When nobody takes it any
    /// more, it is dropped.
    pub async fn output(&self, mut output: Bytes) {
        while !output.is_empty() {
            let piece = output.split_to(output.len().min(PAYLOAD_BYTES_MAX));
            self.piece(piece).await;
        }
    }

    /// Sends an empty piece of output: a sign whose meaning is the request's.
    pub async fn sign(&self) {
        self.piece(Bytes::new()).await;
    }

    async fn piece(&self, piece: Bytes) {
        if let Ok(room) = self.window.acquire_many(output_cost(piece.len()) as u32).await {
            room.forget();
            // A link that has ended has nobody who takes it, and has closed the window for what would follow.
            let _ = self.link.send(Frame::new(Kind::Output, self.call, piece)).await;
        }
    }

    /// Answers. A reply that is too long becomes [`Reply::Failed`].
    pub async fn reply(mut self, reply: &Reply, body: Bytes) {
        self.is_answered = true;
        let (head, body) = match encode_head(reply, body.len()) {
            Ok(head) => (head, body),
            Err(error) => {
                let failed = Reply::Failed(error.to_string());
                (encode_head(&failed, 0).unwrap_or_default(), Bytes::new())
            }
        };
        // A link that has ended has nobody who waits.
        let kinds = (Kind::Reply, Kind::ReplyBody);
        let _ = self.link.send_message(kinds, self.call, head, body).await;
    }
}

impl Drop for Replier {
    fn drop(&mut self) {
        lock(&self.link.0.windows).remove(&self.call);
        lock(&self.link.0.table).done();
        if !self.is_answered
            && let Ok(head) = encode_head(&Reply::Failed("the request was given up".to_owned()), 0)
        {
            self.link.send_soon(Frame::new(Kind::Reply, self.call, head));
        }
    }
}
