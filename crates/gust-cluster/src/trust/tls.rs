//! TLS between members: version 1.3, both sides certified by the one authority. A newcomer alone has no certificate yet.

use std::sync::Arc;

use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{ParsedCertificate, WebPkiClientVerifier},
    version::TLS13,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{Authority, Fingerprint, Identity, NodeName, Revoked, TrustError, names::CONTROL};
use crate::message::PROTOCOLS;

/// How a member makes connections and takes them.
#[derive(Clone)]
pub struct Trust {
    client: Option<Arc<ClientConfig>>,
    server: Arc<ServerConfig>,
}

impl std::fmt::Debug for Trust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Trust")
    }
}

impl Trust {
    /// Of the control plane. Whoever has no certificate is let in as far as that a newcomer can join; who has been thrown out
    /// is not let in.
    ///
    /// # Errors
    /// When its certificate cannot be made.
    pub fn of_control(authority: &Authority, revoked: &Revoked) -> Result<Self, TrustError> {
        let roots = roots(authority.certificate())?;
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider())
            .allow_unauthenticated()
            .build()
            .map_err(not_verifying)?;
        let (certificate, key) = authority.control()?;
        // With the authority's own certificate, which a newcomer knows by its fingerprint only.
        let chain = vec![certificate, authority.certificate().clone()];
        let server = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .map_err(TrustError::Tls)?
            .with_client_cert_verifier(revoked.refusing(verifier))
            .with_single_cert(chain, key)
            .map_err(TrustError::Tls)?;
        Ok(Self {
            client: None,
            server: Arc::new(speaking(server)),
        })
    }

    /// Of a node. Who has been thrown out is not let in.
    ///
    /// # Errors
    /// When its certificate is none.
    pub fn of_node(identity: &Identity, revoked: &Revoked) -> Result<Self, TrustError> {
        let roots = roots(&identity.authority())?;
        let chain = vec![identity.certificate()];
        let mut client = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .map_err(TrustError::Tls)?
            .with_root_certificates(Arc::clone(&roots))
            .with_client_auth_cert(chain.clone(), identity.key())
            .map_err(TrustError::Tls)?;
        client.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider())
            .build()
            .map_err(not_verifying)?;
        let server = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .map_err(TrustError::Tls)?
            .with_client_cert_verifier(revoked.refusing(verifier))
            .with_single_cert(chain, identity.key())
            .map_err(TrustError::Tls)?;
        Ok(Self {
            client: Some(Arc::new(client)),
            server: Arc::new(speaking(server)),
        })
    }

    /// Takes connections.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.server))
    }

    /// Makes connections; `None` for the control plane, which makes none.
    pub fn connector(&self) -> Option<TlsConnector> {
        self.client.clone().map(TlsConnector::from)
    }

    /// How a newcomer connects, who has no certificate and knows its authority by a token.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub fn newcomer(authority: Fingerprint) -> Result<TlsConnector, TrustError> {
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .map_err(TrustError::Tls)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(ByFingerprint { authority }))
            .with_no_client_auth();
        config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
        Ok(TlsConnector::from(Arc::new(config)))
    }
}

/// The control plane's name, as TLS checks it.
pub fn control_name() -> ServerName<'static> {
    // It is the name of a host, as a test makes sure.
    ServerName::try_from(CONTROL).unwrap_or(ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into()))
}

/// Whether a certificate that TLS has found good is a node's of this name.
pub fn certified_name_is(certificate: &CertificateDer<'_>, name: &NodeName) -> bool {
    let parsed = ParsedCertificate::try_from(certificate);
    match (parsed, name.server_name()) {
        (Ok(parsed), Some(name)) => verify_server_name(&parsed, &name).is_ok(),
        (Err(_), _) | (_, None) => false,
    }
}

/// The certificate that a peer has shown.
pub fn peer_certificate(connection: &rustls::CommonState) -> Option<CertificateDer<'static>> {
    connection
        .peer_certificates()
        .and_then(|chain| chain.first())
        .map(|certificate| certificate.clone().into_owned())
}

/// Takes a server whose certificate is signed by the authority of a fingerprint; the server sends both certificates.
#[derive(Debug)]
struct ByFingerprint {
    authority: Fingerprint,
}

impl ServerCertVerifier for ByFingerprint {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let unknown = || rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let authority = intermediates
            .iter()
            .find(|certificate| Fingerprint::of(certificate) == self.authority)
            .ok_or_else(unknown)?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .map_err(|_| unknown())?;
        verifier.verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn roots(authority: &CertificateDer<'static>) -> Result<Arc<RootCertStore>, TrustError> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.clone()).map_err(TrustError::Tls)?;
    Ok(Arc::new(roots))
}

fn speaking(mut config: ServerConfig) -> ServerConfig {
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
    // Members keep their connections, and a resumed one would outlive its certificate.
    config.send_tls13_tickets = 0;
    config
}

fn not_verifying(error: rustls::server::VerifierBuilderError) -> TrustError {
    TrustError::Tls(rustls::Error::General(error.to_string()))
}

#[cfg(test)]
mod tests;
