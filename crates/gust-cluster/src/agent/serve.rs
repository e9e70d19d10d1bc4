//! What is asked of a node: calls by the control plane, chunks by other members.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use gust_node::{InstanceName, InvokeError, StartKind, VersionId};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::timeout,
};

use super::{Agent, Running};
use crate::{
    convert, files,
    hub::{cut_off, export},
    link::{self, Incoming, Replier},
    message::{Call, NodeRequest, Reply, Request, Version, decode_body, text},
    trust::peer_certificate,
};

/// Connections of other members at a time; more are closed.
const CONNECTIONS_MAX: usize = 256;

/// Longest time for TLS to be agreed upon.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);

/// Chunks that are given at a time on one connection.
const SERVED_AT_A_TIME: usize = 32;

/// Pieces of a function's output that wait to be sent; the instance waits when there are as many.
const OUTPUT_QUEUED_MAX: usize = 16;

/// Pause after a connection could not be taken.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

impl Agent {
    /// Gives chunks to other members, until it is dropped.
    pub(super) async fn give_files(&self, listener: TcpListener) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, address)) if connections.len() < CONNECTIONS_MAX => {
                        let agent = self.clone();
                        connections.spawn(async move { agent.give_files_on(stream, address).await });
                    }
                    Ok((_, address)) => tracing::warn!(%address, "too many connections"),
                    Err(error) => {
                        tracing::warn!(%error, "a connection could not be taken");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(_ended) = connections.join_next() => {}
            }
        }
    }

    async fn give_files_on(&self, stream: TcpStream, address: SocketAddr) {
        // Small frames must not wait for more.
        let _ = stream.set_nodelay(true);
        let stream = match timeout(HANDSHAKE_LIMIT, self.0.peers.acceptor().accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return tracing::info!(%address, %error, "a connection was refused"),
            Err(_) => return tracing::info!(%address, "a connection did not agree upon TLS in time"),
        };
        // There is one: TLS asks for it.
        let Some(certificate) = peer_certificate(stream.get_ref().1) else {
            return;
        };
        let (link, driver, mut incoming) = link::new(stream);
        let serving = async {
            let mut served = JoinSet::new();
            while let Some(Incoming { request, replier, .. }) = incoming.recv().await {
                while served.len() >= SERVED_AT_A_TIME {
                    served.join_next().await;
                }
                match request {
                    Request::File(request) => {
                        let library = Arc::clone(&self.0.library);
                        served.spawn(async move {
                            let (reply, body) = files::answer(&library, request).await;
                            replier.reply(&reply, body).await;
                        });
                    }
                    Request::Join(_) | Request::Control(_) | Request::Node(_) => {
                        replier.reply(&Reply::Unknown, Bytes::new()).await;
                    }
                }
            }
            link.close();
        };
        tokio::join!(
            serving,
            driver.run(),
            cut_off(&self.0.revoked, &certificate, &link)
        );
    }

    /// Carries out what the control plane asks, until its link ends. What is under way then goes on.
    pub(super) async fn serve_control(&self, mut incoming: mpsc::Receiver<Incoming>) {
        while let Some(Incoming {
            request,
            body,
            replier,
        }) = incoming.recv().await
        {
            match request {
                Request::Node(request) => {
                    // As many as a link may have open.
                    let running = Running::new(self);
                    let agent = self.clone();
                    tokio::spawn(async move {
                        agent.carry_out(request, body, replier).await;
                        drop(running);
                    });
                }
                Request::Join(_) | Request::Control(_) | Request::File(_) => {
                    replier.reply(&Reply::Unknown, Bytes::new()).await;
                }
            }
        }
    }

    async fn carry_out(&self, request: NodeRequest, body: Bytes, replier: Replier) {
        let (reply, body) = match request {
            NodeRequest::Invoke(call) => return self.invoke(call, body, replier).await,
            NodeRequest::Deploy(version) => self.deploy(version).await,
            NodeRequest::Register(version) => match self.0.versions.insert(version) {
                Some(_) => done(),
                None => (
                    Reply::Failed("this node knows too many versions".to_owned()),
                    Bytes::new(),
                ),
            },
            NodeRequest::Remove(version) => {
                self.forget(&version).await;
                done()
            }
            NodeRequest::Retain => match decode_body(&body) {
                Ok(kept) => {
                    self.retain(kept).await;
                    done()
                }
                Err(error) => (Reply::Failed(text(&error)), Bytes::new()),
            },
            NodeRequest::Prepare(version) => ended(self.prepare(&version).await),
            NodeRequest::Evict { version, keep_armed } => {
                self.0.node.evict(&VersionId(version), keep_armed).await;
                done()
            }
            NodeRequest::Stats => (Reply::Stats(convert::stats(self.0.node.stats())), Bytes::new()),
            NodeRequest::Export(version) => match export(&self.0.node, &self.0.library, &version).await {
                Some(files) => (Reply::Snapshot(files, Vec::new()), Bytes::new()),
                None => (Reply::Missing, Bytes::new()),
            },
            NodeRequest::Create { version, named } => {
                let created = async {
                    self.prepare(&version).await?;
                    let id = VersionId(version);
                    self.0.node.create(&id, convert::from_named(named)).await
                };
                ended(created.await)
            }
            NodeRequest::End(name) => {
                self.0.node.end(InstanceName(name), Duration::ZERO);
                done()
            }
            NodeRequest::EndArmed { name, armed_ms } => {
                let armed_for = Duration::from_millis(armed_ms);
                self.0.node.end(InstanceName(name), armed_for);
                done()
            }
            NodeRequest::Revoked => self.take_revoked(&body),
        };
        replier.reply(&reply, body).await;
    }

    /// Lets in no node of these names any more.
    fn take_revoked(&self, names: &[u8]) -> (Reply, Bytes) {
        let names: Vec<String> = match decode_body(names) {
            Ok(names) => names,
            Err(error) => return (Reply::Failed(text(&error)), Bytes::new()),
        };
        // What is no name is nobody's.
        match self
            .0
            .revoked
            .add(names.iter().filter_map(|name| name.parse().ok()))
        {
            true => done(),
            false => (
                Reply::Failed("too many nodes have been thrown out".to_owned()),
                Bytes::new(),
            ),
        }
    }

    async fn deploy(&self, version: Version) -> (Reply, Bytes) {
        let Some(entry) = self.0.versions.insert(version) else {
            return (
                Reply::Failed("this node knows too many versions".to_owned()),
                Bytes::new(),
            );
        };
        let deployed = async {
            let spec = self.spec(&entry).await?;
            self.0.node.deploy(spec).await
        };
        match deployed.await {
            Ok(deployed) => (Reply::Deployed(convert::deployed(&deployed)), deployed.log),
            Err(error) => {
                let (failure, log) = convert::not_deployed(error);
                (Reply::NotDeployed(failure), log)
            }
        }
    }

    async fn prepare(&self, version: &str) -> Result<(), InvokeError> {
        let entry = self.0.versions.get(version);
        let entry = entry.ok_or_else(|| InvokeError::UnknownVersion(VersionId(version.to_owned())))?;
        Ok(self.make_ready(&entry).await?)
    }

    async fn invoke(&self, call: Call, payload: Bytes, replier: Replier) {
        let asked = Instant::now();
        if let Err(error) = self.prepare(&call.version).await {
            let (reply, log) = not_run(error);
            return replier.reply(&reply, log).await;
        }
        // What this node has not had of the version has come from others by now.
        let prepared_ns = convert::nanos(asked.elapsed());
        let (output, mut pieces) = mpsc::channel(OUTPUT_QUEUED_MAX);
        let (delivered, mut was_delivered) = oneshot::channel();
        let mut is_awaited = call.wants_delivery;
        let delivered = is_awaited.then_some(delivered);
        let (id, invocation) = convert::invocation(call, payload, output, delivered);
        let outcome = {
            let invoking = self.0.node.invoke(&id, invocation);
            tokio::pin!(invoking);
            loop {
                tokio::select! {
                    biased;
                    Some(piece) = pieces.recv() => replier.output(piece).await,
                    was_delivered = &mut was_delivered, if is_awaited => {
                        is_awaited = false;
                        if was_delivered.is_ok() {
                            replier.sign().await;
                        }
                    }
                    outcome = &mut invoking => break outcome,
                }
            }
        };
        if is_awaited && was_delivered.try_recv().is_ok() {
            replier.sign().await;
        }
        // What was sent before the answer belongs to this call; what is sent after it does not.
        pieces.close();
        while let Some(piece) = pieces.recv().await {
            replier.output(piece).await;
        }
        match outcome {
            Ok(mut outcome) => {
                outcome.timings.fetch_ns = outcome.timings.fetch_ns.saturating_add(prepared_ns);
                let was_booted = outcome.start == StartKind::Booted;
                let (message, body) = convert::outcome(outcome);
                replier.reply(&Reply::Outcome(message), body).await;
                if was_booted {
                    self.announce_snapshot(&id).await;
                }
            }
            Err(error) => {
                let (reply, log) = not_run(error);
                replier.reply(&reply, log).await;
            }
        }
    }
}

fn done() -> (Reply, Bytes) {
    (Reply::Done, Bytes::new())
}

fn ended(result: Result<(), InvokeError>) -> (Reply, Bytes) {
    match result {
        Ok(()) => done(),
        Err(error) => not_run(error),
    }
}

fn not_run(error: InvokeError) -> (Reply, Bytes) {
    let (not_run, log) = convert::not_run(error);
    (Reply::NotRun(not_run), log)
}
