//! Bodies: bounded on the way in, whole or streamed on the way out.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use hyper::body::{Body as HyperBody, Frame, Incoming, SizeHint};
use tokio::{sync::mpsc, time::timeout};

use crate::error::ApiError;

/// Longest wait for a whole body.
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(120);

/// Most bytes of a refused body that are read and thrown away, so that a client that is still sending gets the answer
/// and not a broken connection.
const DISCARDED_BYTES_MAX: usize = 192 << 20;

/// Bytes for which room is made ahead, whatever the client announces.
const ROOM_AHEAD_BYTES_MAX: usize = 8 << 20;

/// A response's body.
#[derive(Debug)]
pub enum Body {
    /// All of it.
    Full(Option<Bytes>),
    /// Pieces as they come; the channel's bound is the back pressure.
    Stream(mpsc::Receiver<Bytes>),
}

impl Body {
    /// A whole body.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        Self::Full(Some(bytes.into()).filter(|bytes: &Bytes| !bytes.is_empty()))
    }

    /// No body.
    pub fn empty() -> Self {
        Self::Full(None)
    }
}

impl HyperBody for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream(pieces) => pieces
                .poll_recv(context)
                .map(|piece| piece.map(|piece| Ok(Frame::data(piece)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(bytes) => bytes.is_none(),
            Self::Stream(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Stream(_) => SizeHint::default(),
        }
    }
}

/// Receives a whole body of at most `bytes_max`.
///
/// # Errors
/// When it is larger, does not arrive in time, or the connection breaks.
pub async fn receive(body: Incoming, bytes_max: usize, operation: &str) -> Result<Bytes, ApiError> {
    match timeout(RECEIVE_TIMEOUT, receive_all(body, bytes_max)).await {
        Ok(Ok(Some(bytes))) => Ok(bytes),
        Ok(Ok(None)) => Err(ApiError::too_large(bytes_max, operation)),
        // Nobody is left to read this.
        Ok(Err(error)) => Err(ApiError::invalid_content(format!("The body broke off: {error}"))),
        Err(_elapsed) => Err(ApiError::request_timeout()),
    }
}

/// `None` when the body is larger than `bytes_max`.
async fn receive_all(mut body: Incoming, bytes_max: usize) -> Result<Option<Bytes>, hyper::Error> {
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    let mut received = BytesMut::with_capacity(announced.min(bytes_max).min(ROOM_AHEAD_BYTES_MAX));
    let mut discarded = 0;
    while let Some(frame) = next_frame(&mut body).await {
        let Ok(data) = frame?.into_data() else { continue };
        if discarded == 0 && received.len() + data.len() <= bytes_max {
            // A body in one piece is not copied.
            if received.is_empty() && body.is_end_stream() {
                return Ok(Some(data));
            }
            received.extend_from_slice(&data);
            continue;
        }
        discarded += data.len();
        received = BytesMut::new();
        if discarded > DISCARDED_BYTES_MAX {
            break;
        }
    }
    Ok((discarded == 0).then(|| received.freeze()))
}

async fn next_frame(body: &mut Incoming) -> Option<Result<Frame<Bytes>, hyper::Error>> {
    std::future::poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await
}
