//! Becoming a member: a newcomer shows its token and gets a certificate.

use std::{path::Path, time::Duration};

use bytes::Bytes;
use rustls::pki_types::CertificateDer;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    link::{self, CallError},
    message::{Join, Reply, Request},
    trust::{Fingerprint, Identity, JoinKey, JoinToken, NameError, Trust, TrustError, control_name},
};

/// Longest time for a connection to be made, TLS included.
pub(crate) const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// Longest time for the control plane to answer a newcomer.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);

/// Why a newcomer is none yet.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// No connection, or the other side is not the control plane that the token names.
    #[error("connecting to the control plane at {control}")]
    Connect {
        /// Where it was looked for.
        control: String,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// No answer.
    #[error("asking the control plane at {control} for a certificate")]
    Ask {
        /// Where it is.
        control: String,
        /// Why it failed.
        #[source]
        source: CallError,
    },
    /// The control plane refused.
    #[error("the control plane at {control} refused: {reason}")]
    Refused {
        /// Where it is.
        control: String,
        /// What it said.
        reason: String,
    },
    /// The control plane answered with something else.
    #[error("the control plane's answer makes no sense")]
    Answer,
    /// The name that the control plane gave is none.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A key could not be made or kept.
    #[error(transparent)]
    Trust(#[from] TrustError),
}

/// Joins the cluster of a token and keeps the identity in a directory.
///
/// # Errors
/// See [`JoinError`]. Nothing is kept then; the token is used up only if the control plane had accepted it.
pub async fn join(
    directory: &Path,
    token: &JoinToken,
    control: &str,
    wanted_name: &str,
) -> Result<Identity, JoinError> {
    let key = JoinKey::new()?;
    let join = Join {
        token: token.id,
        secret: token.secret,
        name: wanted_name.chars().take(64).collect(),
        csr: key.csr()?,
    };
    let connector = Trust::newcomer(token.authority)?;
    let stream = connect(&connector, control)
        .await
        .map_err(|source| JoinError::Connect {
            control: control.to_owned(),
            source,
        })?;
    let authority = authority_of(&stream, token.authority).ok_or(JoinError::Answer)?;
    let (link, driver, _incoming) = link::new(stream);
    let request = Request::Join(join);
    let asking = async {
        let answer = link.call(&request, Bytes::new(), ANSWER_LIMIT).await;
        link.close();
        answer
    };
    let (answer, _closed) = tokio::join!(asking, driver.run());
    match answer {
        Ok((Reply::Joined(joined), _)) => {
            let name = joined.name.parse()?;
            Ok(Identity::keep(
                directory,
                control,
                name,
                &key,
                joined.certificate,
                &authority,
            )?)
        }
        Ok((Reply::Failed(reason), _)) => Err(JoinError::Refused {
            control: control.to_owned(),
            reason,
        }),
        Ok(_) => Err(JoinError::Answer),
        Err(source) => Err(JoinError::Ask {
            control: control.to_owned(),
            source,
        }),
    }
}

/// A connection to the control plane.
pub(crate) async fn connect(
    connector: &TlsConnector,
    control: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let connecting = async {
        let stream = TcpStream::connect(control).await?;
        // Small frames must not wait for more.
        stream.set_nodelay(true)?;
        connector.connect(control_name(), stream).await
    };
    match timeout(CONNECT_LIMIT, connecting).await {
        Ok(connected) => connected,
        Err(_) => Err(std::io::ErrorKind::TimedOut.into()),
    }
}

/// The authority's certificate as the server has sent it; TLS has found it good.
fn authority_of(stream: &TlsStream<TcpStream>, fingerprint: Fingerprint) -> Option<CertificateDer<'static>> {
    let chain = stream.get_ref().1.peer_certificates()?;
    let found = chain
        .iter()
        .find(|certificate| Fingerprint::of(certificate) == fingerprint);
    found.map(|certificate| certificate.clone().into_owned())
}
