//! One connection: served until it ends, or parked between two requests.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes, BytesMut};
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::TcpStream,
};

use crate::{
    body::Body,
    doors::{Doors, Parked, Phase},
    server::{HEADERS_BYTES_MAX, HEADERS_TIMEOUT},
};

/// A stream of which something has been received before.
#[derive(Debug)]
struct Rewound {
    received: Bytes,
    stream: TcpStream,
}

impl AsyncRead for Rewound {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.received.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let count = self.received.len().min(buffer.remaining());
        buffer.put_slice(&self.received[..count]);
        self.received.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Rewound {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Serves a connection. It ends when its client or [`Doors`] say so; where these are paused it is parked instead.
pub(crate) async fn serve<F>(
    doors: &Doors,
    stream: TcpStream,
    received: Bytes,
    answer: impl Fn(Request<Incoming>) -> F + Send,
) -> Result<(), hyper::Error>
where
    F: Future<Output = Response<Body>> + Send,
{
    // Subscribed after it is counted: a pause either finds it and is waited for, or is seen below.
    let mut entered = doors.enter();
    let mut phase = doors.phase();
    // A service's future has to be one that can be moved for its connection to be given back.
    let service = service_fn(|request| {
        let answered = answer(request);
        Box::pin(async move { Ok::<_, std::convert::Infallible>(answered.await) })
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_TIMEOUT)
        .max_buf_size(HEADERS_BYTES_MAX)
        .serve_connection(TokioIo::new(Rewound { received, stream }), service);
    let mut known = Phase::Open;
    loop {
        tokio::select! {
            biased;
            changed = phase.wait_for(|phase| *phase != known) => {
                // The sender lives as long as the doors.
                known = changed.map_or(Phase::Closing, |phase| *phase);
                match known {
                    Phase::Open => {}
                    Phase::Paused | Phase::Closing => Pin::new(&mut connection).graceful_shutdown(),
                }
                entered.knows(known == Phase::Paused);
            }
            ended = poll_fn(|context| connection.poll_without_shutdown(context)) => {
                ended?;
                break;
            }
        }
    }
    let parts = connection.into_parts();
    let Rewound { received, mut stream } = parts.io.into_inner();
    match known {
        Phase::Paused => {
            let received = match received.is_empty() {
                true => parts.read_buf,
                false => {
                    let mut all = BytesMut::from(parts.read_buf);
                    all.extend_from_slice(&received);
                    all.freeze()
                }
            };
            if let Ok(stream) = stream.into_std() {
                doors.park(Parked { stream, received }).await;
            }
        }
        // A client that is gone already does not mind.
        Phase::Open | Phase::Closing => drop(stream.shutdown().await),
    }
    drop(entered);
    Ok(())
}
