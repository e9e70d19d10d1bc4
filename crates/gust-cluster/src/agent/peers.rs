//! Links to members that files are got from: other nodes, and the control plane on a connection of its own, so that chunks
//! do not share one with calls.

use std::{
    collections::HashMap,
    io,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;

use crate::{
    files::Origin,
    join::{CONNECT_LIMIT, connect},
    link::{self, Link},
    message::Source,
    trust::{NodeName, Trust},
};

/// Most members that links are kept to.
const PEERS_MAX: usize = 64;

/// Key of the control plane among the members; no node has it.
const CONTROL: &str = "";

/// Links to members.
#[derive(Debug)]
pub(super) struct Peers {
    control: String,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    trust: Trust,
    links: HashMap<String, Link>,
}

impl Peers {
    pub(super) fn new(trust: Trust, control: String) -> Self {
        Self {
            control,
            state: Mutex::new(State {
                trust,
                links: HashMap::new(),
            }),
        }
    }

    /// Uses another certificate from now on.
    pub(super) fn trust(&self, trust: Trust) {
        self.state().trust = trust;
    }

    /// How connections of other members are taken.
    pub(super) fn acceptor(&self) -> tokio_rustls::TlsAcceptor {
        self.state().trust.acceptor()
    }

    /// Nodes to get a file from. Those that cannot be reached are left out.
    pub(super) async fn origins(&self, sources: &[Source]) -> Vec<Origin> {
        let mut origins = Vec::with_capacity(sources.len() + 1);
        for source in sources {
            match self.node(source).await {
                Ok(link) => origins.push(Origin {
                    name: source.name.clone(),
                    link,
                }),
                Err(error) => tracing::info!(node = source.name, %error, "a node cannot be reached"),
            }
        }
        origins
    }

    /// The control plane, to get files from.
    pub(super) async fn control(&self) -> io::Result<Origin> {
        let link = match self.known(CONTROL) {
            Some(link) => link,
            None => {
                let stream = connect(&self.connector()?, &self.control).await?;
                self.keep(CONTROL, stream)
            }
        };
        Ok(Origin {
            name: "control plane".to_owned(),
            link,
        })
    }

    /// Ends all links.
    pub(super) fn close(&self) {
        for (_, link) in self.state().links.drain() {
            link.close();
        }
    }

    async fn node(&self, source: &Source) -> io::Result<Link> {
        if let Some(link) = self.known(&source.name) {
            return Ok(link);
        }
        let name: NodeName = source.name.parse().map_err(io::Error::other)?;
        let name = name.server_name().ok_or(io::ErrorKind::InvalidInput)?;
        let connector = self.connector()?;
        let connecting = async {
            let stream = TcpStream::connect(source.address).await?;
            stream.set_nodelay(true)?;
            connector.connect(name, stream).await
        };
        let stream = match timeout(CONNECT_LIMIT, connecting).await {
            Ok(connected) => connected?,
            Err(_) => return Err(io::ErrorKind::TimedOut.into()),
        };
        Ok(self.keep(&source.name, stream))
    }

    fn known(&self, name: &str) -> Option<Link> {
        let mut state = self.state();
        state.links.retain(|_, link| link.closed().is_none());
        state.links.get(name).cloned()
    }

    fn keep(&self, name: &str, stream: tokio_rustls::client::TlsStream<TcpStream>) -> Link {
        // Nobody asks a node anything on a link that it has made for files: what comes is refused.
        let (link, driver, _incoming) = link::new(stream);
        tokio::spawn(driver.run());
        let mut state = self.state();
        if state.links.len() >= PEERS_MAX
            && let Some(other) = state.links.keys().next().cloned()
            && let Some(other) = state.links.remove(&other)
        {
            other.close();
        }
        state.links.insert(name.to_owned(), link.clone());
        link
    }

    fn connector(&self) -> io::Result<TlsConnector> {
        let connector = self.state().trust.connector();
        connector.ok_or_else(|| io::ErrorKind::Unsupported.into())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
