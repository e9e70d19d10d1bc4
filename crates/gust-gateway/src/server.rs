//! The HTTP server: connections, their bounds, and the way of a request through authentication to its operation.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use gust_control::{Control, clock};
use hyper::{
    Method, Response, StatusCode,
    body::{Body as _, Incoming},
    header::HeaderValue,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, SemaphorePermit},
    time::{sleep, timeout},
};
use uuid::Uuid;

use crate::{
    auth::{AuthConfig, Caller},
    body::{self, Body},
    connection,
    doors::{Doors, Parked, Phase},
    download::DownloadKey,
    error::ApiError,
    foreign, handlers,
    operation::{self, Captures, Route},
    private,
    request::{Answer, Request},
    text,
};

/// Connections that are served at once; further ones wait in the listener's queue.
const CONNECTIONS_MAX: u32 = 4096;

/// Longest wait for the headers of a request on an open connection; also how long an idle connection is kept.
pub(crate) const HEADERS_TIMEOUT: Duration = Duration::from_secs(75);

/// Longest header section, in bytes.
pub(crate) const HEADERS_BYTES_MAX: usize = 64 << 10;

/// Bodies that are held in memory at once, together, in KiB; a request waits while there is no room for its own.
const BODIES_KIB_MAX: usize = 512 << 10;

/// Longest wait for that room.
const ROOM_TIMEOUT: Duration = Duration::from_secs(30);

/// Pause after the system refused a connection (no descriptors left), so that the refusal is not a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// Configuration of the gateway.
#[derive(Debug, Clone, Default)]
pub struct GatewayConfig {
    /// Who may call.
    pub auth: AuthConfig,
    /// How long running requests may take after the shutdown has begun.
    pub grace: Duration,
}

/// The gateway's state.
#[derive(Debug)]
pub struct Gateway {
    /// The control plane.
    pub control: Control,
    /// Configuration.
    pub config: GatewayConfig,
    pub(crate) downloads: DownloadKey,
    doors: Doors,
    /// Room for bodies, in KiB.
    room: Semaphore,
}

impl Gateway {
    /// Waits for room for a body; the room is free again when the permit is dropped.
    async fn room_for(&self, bytes: usize) -> Result<SemaphorePermit<'_>, ApiError> {
        let kib = u32::try_from(bytes / 1024 + 1).unwrap_or(u32::MAX);
        match timeout(ROOM_TIMEOUT, self.room.acquire_many(kib)).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) | Err(_) => Err(ApiError::busy()),
        }
    }
}

/// Serves the API on a listener until `shutdown` ends; then waits for running requests, for at most the configured
/// grace. New connections are refused at once when the shutdown begins. `doors` can hold connections back meanwhile; when
/// the shutdown finds them paused, the connections that are left are parked and not closed.
pub async fn run(
    listener: TcpListener,
    control: Control,
    config: GatewayConfig,
    doors: Doors,
    shutdown: impl Future<Output = ()>,
) {
    let grace = config.grace;
    let gateway = Arc::new(Gateway {
        control,
        config,
        downloads: DownloadKey::new(),
        doors: doors.clone(),
        room: Semaphore::new(BODIES_KIB_MAX),
    });
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX as usize));
    let mut phase = doors.phase();
    tokio::pin!(shutdown);
    loop {
        let is_open = *phase.borrow_and_update() == Phase::Open;
        let next = async {
            // The semaphore is never closed.
            let place = Arc::clone(&connections).acquire_owned().await.ok();
            (place, next_connection(&listener, &doors).await)
        };
        let (place, next) = tokio::select! {
            next = next, if is_open => next,
            () = &mut shutdown => break,
            // The sender lives as long as the doors.
            _ = phase.changed() => continue,
        };
        match next {
            Ok((stream, received)) => {
                let gateway = Arc::clone(&gateway);
                tokio::spawn(async move {
                    serve(gateway, stream, received).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    if *phase.borrow_and_update() == Phase::Open {
        doors.close();
    }
    if timeout(grace, connections.acquire_many(CONNECTIONS_MAX))
        .await
        .is_err()
    {
        tracing::warn!("connections were cut off at the end of the grace period");
    }
}

/// The next connection: a new one, or one of another process with what that has received of it.
async fn next_connection(listener: &TcpListener, doors: &Doors) -> io::Result<(TcpStream, Bytes)> {
    tokio::select! {
        accepted = listener.accept() => accepted.map(|(stream, _)| (stream, Bytes::new())),
        Some(Parked { stream, received }) = doors.arrived() => {
            stream.set_nonblocking(true)?;
            Ok((TcpStream::from_std(stream)?, received))
        }
    }
}

/// Serves one connection.
async fn serve(gateway: Arc<Gateway>, stream: TcpStream, received: Bytes) {
    let peer = match stream.peer_addr() {
        Ok(peer) => peer,
        Err(error) => return tracing::debug!(%error, "a connection has ended before it was served"),
    };
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection keeps delaying small packets");
    }
    let answer = |request| {
        let gateway = Arc::clone(&gateway);
        async move { answer(&gateway, peer, request).await }
    };
    if let Err(error) = connection::serve(&gateway.doors, stream, received, answer).await {
        tracing::debug!(%peer, %error, "a connection ended with an error");
    }
}

/// Answers one request; whatever happens there is an answer, and it has a request id.
async fn answer(gateway: &Gateway, peer: SocketAddr, request: hyper::Request<Incoming>) -> Response<Body> {
    let id = Uuid::new_v4();
    let answered = handle(gateway, id, peer, request).await;
    let mut response = answered.unwrap_or_else(|error| {
        tracing::debug!(%id, code = error.code, message = error.message, "refused");
        error.into_response()
    });
    if let Ok(value) = HeaderValue::from_str(&id.to_string()) {
        response.headers_mut().insert("x-amzn-requestid", value);
    }
    response
}

async fn handle(gateway: &Gateway, id: Uuid, peer: SocketAddr, request: hyper::Request<Incoming>) -> Answer {
    let (parts, body) = request.into_parts();
    let (path, query) = (parts.uri.path(), parts.uri.query().unwrap_or_default());
    if parts.method == Method::GET && path == private::HEALTH_PATH {
        return private::health();
    }
    // Before anything is waited for: see [`Doors::pause`].
    let storing = gateway.doors.storing();
    if let Some(download) = gateway.downloads.claimed(path, query) {
        return gateway.downloads.serve(gateway, download?).await;
    }
    let caller = Caller {
        peer,
        method: &parts.method,
        path,
        query,
        headers: &parts.headers,
    };
    let trusted = gateway.config.auth.is_trusted(&caller)?;
    let (route, name, captures) = match find_route(&caller) {
        Ok(found) => found,
        Err(error) => {
            // Read to its end, so that the connection can be used again.
            drop(body::receive(body, 0, "").await);
            return Err(error);
        }
    };
    let _storing = match &route {
        Found::Aws(operation) if handlers::is_synchronous_call(*operation, &parts.headers) => {
            drop(storing);
            None
        }
        Found::Aws(_) | Found::Private(_) => Some(storing),
    };
    let bytes_max = match &route {
        Found::Aws(operation) => handlers::body_bytes_max(*operation, &parts.headers),
        Found::Private(_) => private::BODY_BYTES_MAX,
    };
    let announced = body.size_hint();
    let too_large = announced.lower() > bytes_max as u64;
    if too_large && !trusted {
        return Err(ApiError::too_large(bytes_max, name));
    }
    let held_bytes = announced
        .upper()
        .map_or(bytes_max, |bytes| usize::try_from(bytes).unwrap_or(bytes_max));
    // A package is in memory twice for a moment: in base64 and decoded.
    let copies = match &route {
        Found::Aws(operation) if handlers::is_upload(*operation) => 2,
        Found::Aws(_) | Found::Private(_) => 1,
    };
    let _room = gateway.room_for(copies * held_bytes.min(bytes_max)).await?;
    let body = body::receive(body, bytes_max, name).await?;
    if !trusted {
        gateway.config.auth.verify(&caller, &body, clock::unix_ms())?;
    }
    let request = Request {
        gateway,
        id,
        headers: &parts.headers,
        query: text::parse_query(query),
        captures,
        body,
    };
    match route {
        Found::Aws(operation) => handlers::handle(operation, request).await,
        Found::Private(operation) => private::handle(operation, request).await,
    }
}

enum Found {
    Aws(operation::Operation),
    Private(private::Operation),
}

fn find_route(caller: &Caller<'_>) -> Result<(Found, &'static str, Captures), ApiError> {
    let (method, path, query) = (caller.method, caller.path, caller.query);
    if let Some(found) = private::route(method, path) {
        let (operation, captures) = found?;
        return Ok((Found::Private(operation), "private", captures));
    }
    match operation::route(method, path, query) {
        Route::Served(operation, captures) => {
            Ok((Found::Aws(operation), handlers::name(operation), captures))
        }
        Route::Unserved(name) => Err(ApiError::unserved(name)),
        Route::WrongMethod => Err(ApiError::wrong_method()),
        Route::Unknown => Err(foreign::refusal(caller.headers, query)),
    }
}

/// A response with a status and no body.
pub(crate) fn status(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}
