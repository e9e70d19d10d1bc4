//! What moves a link's frames: reads, writes, and the heartbeat.

use std::{
    io,
    sync::{Arc, Mutex},
    time::Instant,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, BufWriter},
    sync::mpsc,
};

use super::{
    Closed, HEARTBEAT, Incoming, Link, Replier, SILENCE_MAX,
    frame::{Frame, HEADER_BYTES, Header, Kind, PAYLOAD_BYTES_MAX},
    lock,
    table::{Arrived, OUTPUT_WINDOW_BYTES, Step},
};
use crate::message::encode_head;

/// Bytes that are read or written at a time.
const BUFFER_BYTES: usize = PAYLOAD_BYTES_MAX + HEADER_BYTES;

/// Frames that are written before what has been written is pushed out.
const BATCH_MAX: usize = 32;

/// Moves a link's frames.
#[derive(Debug)]
pub struct Driver<S> {
    pub(super) stream: S,
    pub(super) link: Link,
    pub(super) outgoing: mpsc::Receiver<Frame>,
    pub(super) arrived: mpsc::Sender<Incoming>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Driver<S> {
    /// Moves frames until the link ends, and says why it has.
    pub async fn run(self) -> Closed {
        let Self {
            stream,
            link,
            mut outgoing,
            arrived,
        } = self;
        let (reader, writer) = tokio::io::split(stream);
        let heard = Mutex::new(Instant::now());
        let ended = link.clone();
        let reason = tokio::select! {
            reason = read_all(reader, &link, &arrived, &heard) => reason,
            reason = write_all(writer, &mut outgoing) => reason,
            reason = watch_over(&link, &heard) => reason,
            reason = ended.wait_closed() => reason,
        };
        link.end(reason);
        // Senders that wait in turn see that there is no receiver.
        outgoing.close();
        link.closed().unwrap_or(Closed::Ended)
    }
}

async fn read_all<R: AsyncRead + Unpin>(
    reader: R,
    link: &Link,
    arrived: &mpsc::Sender<Incoming>,
    heard: &Mutex<Instant>,
) -> Closed {
    let mut reader = BufReader::with_capacity(BUFFER_BYTES, reader);
    loop {
        let frame = match read_frame(&mut reader).await {
            Ok(frame) => frame,
            Err(closed) => return closed,
        };
        *lock(heard) = Instant::now();
        let step = lock(&link.0.table).take(frame);
        match step {
            Ok(Step::Nothing) => {}
            Ok(Step::Arrived(Arrived { call, request, body })) => {
                let replier = Replier::new(link.clone(), call);
                let incoming = Incoming {
                    request,
                    body,
                    replier,
                };
                // As many fit as may be open. When nobody takes requests, what is dropped answers for itself.
                drop(arrived.try_send(incoming));
            }
            Ok(Step::Refused(call, reply)) => {
                if let Ok(head) = encode_head(&reply, 0) {
                    link.send_soon(Frame::new(Kind::Reply, call, head));
                }
            }
            Ok(Step::Taken { call, bytes }) => give_back(link, call, bytes),
            Ok(Step::Forgotten(call)) => {
                if let Some(window) = lock(&link.0.windows).get(&call) {
                    window.close();
                }
            }
            // Whatever else is being sent answers as well.
            Ok(Step::Pinged) => drop(link.0.outgoing.try_send(Frame::new(Kind::Pong, 0, Bytes::new()))),
            Err(broken) => return Closed::Broken(Arc::new(broken)),
        }
    }
}

/// Widens a window again, never beyond what it was.
fn give_back(link: &Link, call: u64, bytes: u32) {
    if let Some(window) = lock(&link.0.windows).get(&call) {
        let taken = OUTPUT_WINDOW_BYTES - window.available_permits().min(OUTPUT_WINDOW_BYTES);
        window.add_permits(taken.min(bytes as usize));
    }
}

pub(super) async fn read_frame<R: AsyncRead + Unpin>(reader: &mut R) -> Result<Frame, Closed> {
    let mut header = [0; HEADER_BYTES];
    reader.read_exact(&mut header).await.map_err(io_closed)?;
    let Header {
        kind,
        call,
        payload_bytes,
    } = Header::read(&header)?;
    let mut payload = vec![0; payload_bytes];
    reader.read_exact(&mut payload).await.map_err(io_closed)?;
    Ok(Frame::new(kind, call, payload))
}

async fn write_all<W: AsyncWrite + Unpin>(writer: W, outgoing: &mut mpsc::Receiver<Frame>) -> Closed {
    let mut writer = BufWriter::with_capacity(BUFFER_BYTES, writer);
    let mut frames = Vec::with_capacity(BATCH_MAX);
    while outgoing.recv_many(&mut frames, BATCH_MAX).await > 0 {
        for frame in frames.drain(..) {
            let written = async {
                writer.write_all(&frame.header()).await?;
                writer.write_all(&frame.payload).await
            };
            if let Err(error) = written.await {
                return io_closed(error);
            }
        }
        if let Err(error) = writer.flush().await {
            return io_closed(error);
        }
    }
    Closed::Ended
}

/// Asks whether the other side is there, and ends the link when it has not been heard for too long.
async fn watch_over(link: &Link, heard: &Mutex<Instant>) -> Closed {
    let mut beats = tokio::time::interval(HEARTBEAT);
    beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        beats.tick().await;
        if lock(heard).elapsed() > SILENCE_MAX {
            return Closed::Silent;
        }
        // A full queue moves, or the silence of the other side shows that it does not.
        drop(link.0.outgoing.try_send(Frame::new(Kind::Ping, 0, Bytes::new())));
    }
}

fn io_closed(error: io::Error) -> Closed {
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
            Closed::Ended
        }
        _ => Closed::Io(Arc::new(error)),
    }
}
