//! One connection: a newcomer, a node's link, or a node that wants files.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use gust_node::{InstanceName, Load, VersionId};
use rustls::pki_types::CertificateDer;
use tokio::{net::TcpStream, sync::mpsc, sync::oneshot, task::JoinSet, time::timeout};

use super::{Event, Hub, Member, blocking, cut_off};
use crate::{
    convert, files,
    link::{self, Bounds, Incoming, Link},
    message::{
        ControlRequest, Hello, Join, Joined, NodeRequest, Reply, Report, Request, decode_body, encode_body,
        text,
    },
    trust::{NodeName, TokenError, certified_name_is, peer_certificate},
};

/// Longest time for TLS to be agreed upon.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);

/// Longest time that a newcomer's connection is kept.
const JOIN_LIMIT: Duration = Duration::from_secs(15);

/// Longest time for whoever takes events to stop sending to a node that leaves.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// Longest time for a node to forget versions.
const RETAIN_LIMIT: Duration = Duration::from_secs(60);

/// Requests of one connection that are carried out at a time. A chunk that waits to be sent takes 512 KiB.
const SERVED_AT_A_TIME: usize = 64;

impl Hub {
    pub(super) async fn serve(&self, stream: TcpStream, address: SocketAddr) {
        // Small frames must not wait for more.
        let _ = stream.set_nodelay(true);
        let stream = match timeout(HANDSHAKE_LIMIT, self.0.trust.acceptor().accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return tracing::info!(%address, %error, "a connection was refused"),
            Err(_) => return tracing::info!(%address, "a connection did not agree upon TLS in time"),
        };
        let certificate = peer_certificate(stream.get_ref().1);
        let bounds = match certificate {
            Some(_) => Bounds::MEMBER,
            None => Bounds::NEWCOMER,
        };
        let (link, driver, incoming) = link::within(stream, bounds);
        let serving = async {
            match certificate {
                Some(certificate) => {
                    let serving = self.serve_node(&link, incoming, &certificate);
                    tokio::join!(serving, cut_off(&self.0.revoked, &certificate, &link));
                }
                None => {
                    if timeout(JOIN_LIMIT, self.serve_newcomer(incoming)).await.is_err() {
                        tracing::info!(%address, "a newcomer took too long");
                    }
                }
            }
            link.close();
        };
        tokio::join!(serving, driver.run());
    }

    async fn serve_newcomer(&self, mut incoming: mpsc::Receiver<Incoming>) {
        while let Some(Incoming { request, replier, .. }) = incoming.recv().await {
            let reply = match request {
                Request::Join(join) => self.join(join).await,
                Request::Control(_) | Request::Node(_) | Request::File(_) => Reply::Unknown,
            };
            replier.reply(&reply, Bytes::new()).await;
        }
    }

    async fn join(&self, join: Join) -> Reply {
        // The semaphore is never closed.
        let _turn = self.0.joins.acquire().await;
        let Some(name) = self.new_name(&join.name) else {
            return Reply::Failed("no name could be made up; try again".to_owned());
        };
        let hub = self.clone();
        let joined = blocking(move || {
            // A request that is no good does not use the token up.
            let certificate = hub
                .0
                .authority
                .certify(&name, &join.csr)
                .map_err(|error| text(&error))?;
            hub.0.tokens.redeem(join.token, join.secret).map_err(|error| {
                if let TokenError::Store(error) = &error {
                    let error: &dyn std::error::Error = error;
                    tracing::error!(error, "join tokens cannot be read");
                }
                error.to_string()
            })?;
            Ok::<_, String>((name, certificate))
        });
        match joined.await {
            Ok(Ok((name, certificate))) => {
                tracing::info!(%name, "a node has joined");
                Reply::Joined(Joined {
                    name: name.as_str().to_owned(),
                    certificate: certificate.to_vec(),
                })
            }
            Ok(Err(reason)) => {
                tracing::warn!(reason, "a newcomer was refused");
                Reply::Failed(reason)
            }
            Err(panic) => Reply::Failed(panic.to_string()),
        }
    }

    async fn serve_node(
        &self,
        link: &Link,
        mut incoming: mpsc::Receiver<Incoming>,
        certificate: &CertificateDer<'static>,
    ) {
        let mut served = JoinSet::new();
        // Ends with this connection.
        let mut stats = JoinSet::new();
        let mut member: Option<Arc<Member>> = None;
        while let Some(Incoming {
            request,
            body,
            replier,
        }) = incoming.recv().await
        {
            while served.len() >= SERVED_AT_A_TIME {
                served.join_next().await;
            }
            match (request, &member) {
                (Request::File(request), _) => {
                    let library = Arc::clone(&self.0.library);
                    served.spawn(async move {
                        let (reply, body) = files::answer(&library, request).await;
                        replier.reply(&reply, body).await;
                    });
                }
                (Request::Control(ControlRequest::Hello(hello)), None) => {
                    let reply = match self.attach(link, hello, &body, certificate).await {
                        Ok(attached) => {
                            let node = self.node(&attached);
                            stats.spawn(async move { node.watch_stats().await });
                            member = Some(attached);
                            Reply::Done
                        }
                        Err(reason) => Reply::Failed(reason),
                    };
                    replier.reply(&reply, Bytes::new()).await;
                }
                (Request::Control(request), Some(member)) => {
                    let (hub, member) = (self.clone(), Arc::clone(member));
                    served.spawn(async move {
                        let reply = hub.control(&member, request).await;
                        replier.reply(&reply, Bytes::new()).await;
                    });
                }
                (Request::Join(_) | Request::Node(_), _) | (Request::Control(_), None) => {
                    replier.reply(&Reply::Unknown, Bytes::new()).await;
                }
            }
        }
        served.shutdown().await;
        stats.shutdown().await;
        if let Some(member) = member {
            let _turn = member.turn.lock().await;
            if member.detach(link) {
                tracing::warn!(node = %member.name, "the link to a node has ended");
                let node = self.node(&member);
                self.tell(Event::Lost { node }).await;
            }
        }
    }

    /// A node says who it is.
    async fn attach(
        &self,
        link: &Link,
        hello: Hello,
        report: &[u8],
        certificate: &CertificateDer<'static>,
    ) -> Result<Arc<Member>, String> {
        let name: NodeName = hello.name.parse().map_err(|error| text(&error))?;
        if !certified_name_is(certificate, &name) {
            return Err(format!("the certificate is not that of {name}"));
        }
        let mut report: Report = decode_body(report).map_err(|error| text(&error))?;
        // Of others it is about to be told, and there may be any number of them.
        report
            .versions
            .retain(|(version, _)| self.version(&VersionId(version.clone())).is_some());
        let member = Arc::clone(
            self.members()
                .entry(name.clone())
                .or_insert_with(|| Arc::new(Member::new(name))),
        );
        let turn = member.turn.lock().await;
        let instances = report
            .instances
            .iter()
            .cloned()
            .map(convert::from_present)
            .collect();
        let snapshots = report.versions.iter().filter(|(_, has_snapshot)| *has_snapshot);
        let snapshots = snapshots.map(|(version, _)| VersionId(version.clone())).collect();
        let node = self.node(&member);
        if let Some(before) = member.attach(link.clone(), hello, report) {
            // A node has one link: this one comes after its side has lost the other.
            before.close();
            self.tell(Event::Lost { node: node.clone() }).await;
        }
        tracing::info!(node = %member.name, "a node is there");
        self.tell(Event::Joined {
            node,
            instances,
            snapshots,
        })
        .await;
        drop(turn);
        self.prune(link, &member);
        self.tell_revoked(&member);
        Ok(member)
    }

    /// Has a node forget, in the background, what was removed while it was away.
    fn prune(&self, link: &Link, member: &Member) {
        let names = self.version_names();
        let Ok(body) = encode_body(&names) else {
            return tracing::warn!(node = %member.name, "there are too many versions to name to a node");
        };
        let (link, name) = (link.clone(), member.name.clone());
        tokio::spawn(async move {
            let request = Request::Node(NodeRequest::Retain);
            if let Err(error) = link.call(&request, body.into(), RETAIN_LIMIT).await {
                tracing::debug!(node = %name, %error, "a node has not forgotten what was removed");
            }
        });
    }

    async fn control(&self, member: &Arc<Member>, request: ControlRequest) -> Reply {
        match request {
            // A second one, on a link that has had one.
            ControlRequest::Hello(_) => Reply::Unknown,
            ControlRequest::Renew { csr } => match self.0.authority.certify(&member.name, &csr) {
                Ok(certificate) => Reply::Renewed {
                    certificate: certificate.to_vec(),
                },
                Err(error) => Reply::Failed(text(&error)),
            },
            ControlRequest::Draining => {
                tracing::info!(node = %member.name, "a node leaves");
                member.drain();
                let (done, wait) = oneshot::channel();
                let node = self.node(member);
                self.tell(Event::Draining { node, done }).await;
                // Dropped is as good as said.
                let _ = timeout(DRAIN_LIMIT, wait).await;
                Reply::Done
            }
            ControlRequest::Holds(files) => {
                member.holds(files);
                Reply::Done
            }
            ControlRequest::Locate(file) => Reply::Sources(self.locate(file, member)),
            ControlRequest::FindSnapshot { version, fingerprint } => {
                self.find_snapshot(&version, &fingerprint, member).await
            }
            ControlRequest::HasSnapshot(version) => {
                let version = VersionId(version);
                // One that was removed meanwhile, or that never was.
                if self.version(&version).is_none() {
                    return Reply::Missing;
                }
                member.learned(&version.0, true);
                let node = self.node(member);
                self.tell(Event::Snapshot { node, version }).await;
                Reply::Done
            }
            ControlRequest::Lost(names) => {
                member.lose(names.into_iter().map(InstanceName));
                Reply::Done
            }
            ControlRequest::Load {
                runnable,
                cpus,
                calls,
            } => {
                member.set_load(Load {
                    runnable,
                    cpus,
                    calls,
                });
                Reply::Done
            }
        }
    }
}
