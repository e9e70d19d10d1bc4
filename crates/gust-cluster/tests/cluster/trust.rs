//! Who gets in.

use std::{path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use gust_cluster::{
    Agent,
    join::{JoinError, join},
    link::{self, CallError, Closed, Link},
    message::{ControlRequest, FileRequest, Hello, Reply, Report, Request, encode_body},
    trust::{Authority, Fingerprint, Identity, JoinToken, Revoked, Tokens, Trust, control_name},
};
use gust_node::VersionId;
use libtest_mimic::Failed;
use tokio::{net::TcpStream, task::JoinHandle};
use tokio_rustls::TlsConnector;

use crate::{
    lab::{Control, Told},
    world::{device, equal},
};

const HOUR: Duration = Duration::from_secs(3600);

const LIMIT: Duration = Duration::from_secs(20);

struct Cluster {
    control: Control,
    tokens: Tokens,
    fingerprint: Fingerprint,
}

impl Cluster {
    async fn new(directory: &Path) -> Result<Self, Failed> {
        Ok(Self {
            control: Control::start(directory, "127.0.0.1").await?,
            tokens: Tokens::new(directory),
            fingerprint: Authority::open(directory)?.fingerprint(),
        })
    }

    fn token(&self) -> Result<JoinToken, Failed> {
        Ok(self.tokens.make(self.fingerprint, HOUR, false)?)
    }

    async fn join(&self, directory: &Path, token: &JoinToken) -> Result<Identity, JoinError> {
        join(directory, token, &self.control.address.to_string(), "Some Host").await
    }

    /// A link of whoever this connector makes connections for, and what moves it.
    async fn connect(&self, connector: &TlsConnector) -> Result<(Link, JoinHandle<Closed>), Failed> {
        let stream = TcpStream::connect(self.control.address).await?;
        let stream = connector.connect(control_name(), stream).await?;
        let (link, driver, _incoming) = link::new(stream);
        Ok((link, tokio::spawn(driver.run())))
    }

    /// What the control plane answers to a request on a connection of this kind.
    async fn ask(&self, connector: &TlsConnector, request: Request, body: Vec<u8>) -> Result<Reply, Failed> {
        let (link, driving) = self.connect(connector).await?;
        let answer = link.call(&request, Bytes::from(body), LIMIT).await;
        link.close();
        driving.await?;
        match answer {
            Ok((reply, _)) => Ok(reply),
            Err(error @ (CallError::Closed(_) | CallError::Late(_) | CallError::Message(_))) => {
                Err(error.into())
            }
        }
    }
}

fn refused(result: Result<Identity, JoinError>) -> Result<(), Failed> {
    match result {
        Err(JoinError::Refused { reason, .. }) => {
            equal(reason.as_str(), "the join token is wrong, used or expired")
        }
        other => Err(format!("{other:?}").into()),
    }
}

pub async fn newcomers_need_a_good_token() -> Result<(), Failed> {
    let dir = tempfile::tempdir()?;
    let cluster = Cluster::new(&dir.path().join("control")).await?;
    let at = Agent::directory(&dir.path().join("node"));
    let token = cluster.token()?;
    let wrong = JoinToken {
        secret: [1; 16],
        ..token.clone()
    };
    refused(cluster.join(&at, &wrong).await)?;
    let expired = cluster.tokens.make(cluster.fingerprint, Duration::ZERO, true)?;
    refused(cluster.join(&at, &expired).await)?;
    // Someone else answers at the address: the token is not shown to them.
    let elsewhere = JoinToken {
        authority: Fingerprint([1; 32]),
        ..token.clone()
    };
    match cluster.join(&at, &elsewhere).await {
        Err(JoinError::Connect { .. }) => {}
        other => return Err(format!("{other:?}").into()),
    }
    equal(Identity::load(&at).is_err(), true)?;
    // None of this has used it up.
    let identity = cluster.join(&at, &token).await?;
    equal(identity.name().as_str().starts_with("some-host-"), true)?;
    equal(Identity::load(&at)?.name(), identity.name())?;
    refused(cluster.join(&dir.path().join("second"), &token).await)?;
    equal(cluster.control.hub.nodes().len(), 0)
}

fn hello(name: &str) -> Request {
    Request::Control(ControlRequest::Hello(Hello {
        name: name.to_owned(),
        start: [0; 16],
        program: String::new(),
        files: ([127, 0, 0, 1], 1).into(),
        fingerprint: String::new(),
        is_kvm: false,
        memory_bytes: 0,
        instances_max: 0,
        restores_max: 0,
        region: 0,
    }))
}

pub async fn nodes_of_other_clusters_are_refused() -> Result<(), Failed> {
    let dir = tempfile::tempdir()?;
    let cluster = Arc::new(Cluster::new(&dir.path().join("control")).await?);
    let other = Cluster::new(&dir.path().join("other")).await?;
    let one = cluster.join(&dir.path().join("one"), &cluster.token()?).await?;
    let two = cluster.join(&dir.path().join("two"), &cluster.token()?).await?;
    let stranger = other.join(&dir.path().join("stranger"), &other.token()?).await?;
    let report = || encode_body(&Report::default());
    let connector =
        |identity: &Identity| Trust::of_node(identity, &Revoked::default()).map(|trust| trust.connector());

    let as_one = connector(&one)?.ok_or("no connector")?;
    equal(
        cluster
            .ask(&as_one, hello(one.name().as_str()), report()?)
            .await?,
        Reply::Done,
    )?;
    for name in [two.name().as_str(), stranger.name().as_str(), "", "control"] {
        match cluster.ask(&as_one, hello(name), report()?).await? {
            Reply::Failed(_) => {}
            reply => return Err(format!("as {name:?}: {reply:?}").into()),
        }
    }
    match cluster
        .ask(&as_one, hello(one.name().as_str()), vec![255; 9])
        .await?
    {
        Reply::Failed(_) => {}
        reply => return Err(format!("a report that is none: {reply:?}").into()),
    }
    // Before its hello, a node may ask for files alone.
    equal(
        cluster
            .ask(&as_one, Request::Control(ControlRequest::Draining), Vec::new())
            .await?,
        Reply::Unknown,
    )?;
    let file = || Request::File(FileRequest::Chunk(gust_cluster::files::ChunkId([1; 32])));
    equal(cluster.ask(&as_one, file(), Vec::new()).await?, Reply::Missing)?;

    // A newcomer may not even ask for files.
    let newcomer = Trust::newcomer(cluster.fingerprint)?;
    equal(cluster.ask(&newcomer, file(), Vec::new()).await?, Reply::Unknown)?;
    let hello_again = || hello(one.name().as_str());
    equal(
        cluster.ask(&newcomer, hello_again(), Vec::new()).await?,
        Reply::Unknown,
    )?;
    // Nor is anything long of it kept.
    equal(
        cluster.ask(&newcomer, hello_again(), report()?).await?,
        Reply::Busy,
    )?;
    // A member of another cluster is let in by neither side.
    let as_stranger = connector(&stranger)?.ok_or("no connector")?;
    equal(cluster.ask(&as_stranger, file(), Vec::new()).await.is_err(), true)
}

pub async fn versions_that_only_a_node_knows_are_not_remembered() -> Result<(), Failed> {
    let dir = tempfile::tempdir()?;
    let cluster = Cluster::new(&dir.path().join("control")).await?;
    let identity = cluster.join(&dir.path().join("node"), &cluster.token()?).await?;
    let known = device("echo");
    let (known_id, made_up) = (known.id.clone(), |n: usize| format!("made-up-{n}"));
    cluster.control.hub.register(known);

    // As many as a report has room for, and one that there is.
    let mut versions: Vec<_> = (0..100_000).map(|n| (made_up(n), true)).collect();
    versions.push((known_id.0.clone(), true));
    let report = Report {
        versions,
        ..Report::default()
    };
    let trust = Trust::of_node(&identity, &Revoked::default())?;
    let connector = trust.connector().ok_or("a node makes connections")?;
    let (link, driving) = cluster.connect(&connector).await?;
    let asked = async |request: Request, body: Vec<u8>| {
        let answer = link.call(&request, Bytes::from(body), LIMIT).await;
        answer.map(|(reply, _)| reply)
    };
    let said = asked(hello(identity.name().as_str()), encode_body(&report)?).await?;
    equal(said, Reply::Done)?;
    let has_snapshot = |version: String| Request::Control(ControlRequest::HasSnapshot(version));
    equal(asked(has_snapshot(made_up(0)), Vec::new()).await?, Reply::Missing)?;
    equal(
        asked(has_snapshot(known_id.0.clone()), Vec::new()).await?,
        Reply::Done,
    )?;

    let mut told: Vec<VersionId> = Vec::new();
    for event in cluster.control.told() {
        match event {
            Told::Joined(_, _, snapshots) => told.extend(snapshots),
            Told::Snapshot(_, version) => told.push(version),
            Told::Draining(_) | Told::Lost(_) => return Err(format!("{event:?}").into()),
        }
    }
    equal(told, vec![known_id.clone(), known_id])?;
    link.close();
    driving.await?;
    Ok(())
}
