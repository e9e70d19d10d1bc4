//! Nodes that have been thrown out: their certificates are valid still, and count for nothing.
//!
//! The control plane says who they are; whoever keeps records keeps their names. Every member that takes connections has
//! the names in a [`Revoked`], refuses such a node's certificate when TLS is agreed upon, and ends the connections that
//! it has already ([`Revoked::until`]). A name is needed until no certificate of it can be valid any more
//! ([`REVOCATION_KEPT`]), and is given to no other node.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    pki_types::{CertificateDer, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use tokio::sync::watch;

use super::{
    NodeName,
    authority::{CLOCKS_APART, MEMBER_VALID},
    certified_name_is,
};

/// How long after its revocation a node's name has to be remembered: its last certificate was made before it.
pub const REVOCATION_KEPT: Duration =
    Duration::from_secs(MEMBER_VALID.as_secs() + 2 * CLOCKS_APART.as_secs());

/// Most names that are remembered at a time. Each is compared with the certificate of each new connection.
pub const REVOKED_MAX: usize = 4096;

/// Names of the nodes that have been thrown out; clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Revoked(Arc<watch::Sender<BTreeSet<NodeName>>>);

impl Revoked {
    /// Throws nodes out. Of more than [`REVOKED_MAX`] altogether, the rest is not taken; `false` then.
    pub fn add(&self, names: impl IntoIterator<Item = NodeName>) -> bool {
        let mut has_room = true;
        self.0.send_modify(|revoked| {
            for name in names {
                has_room &= revoked.contains(&name) || revoked.len() < REVOKED_MAX;
                if has_room {
                    revoked.insert(name);
                }
            }
        });
        has_room
    }

    /// Whether a node can be thrown out, or has been.
    pub fn has_room_for(&self, name: &NodeName) -> bool {
        let revoked = self.0.borrow();
        revoked.contains(name) || revoked.len() < REVOKED_MAX
    }

    /// Whether a node has been thrown out.
    pub fn has(&self, name: &NodeName) -> bool {
        self.0.borrow().contains(name)
    }

    /// Everyone who has been thrown out.
    pub fn names(&self) -> Vec<NodeName> {
        self.0.borrow().iter().cloned().collect()
    }

    /// Waits until the node of a certificate has been thrown out. Cancel-safe.
    pub async fn until(&self, certificate: &CertificateDer<'_>) {
        let mut revoked = self.0.subscribe();
        // The sender is here.
        drop(revoked.wait_for(|revoked| is_of_one(certificate, revoked)).await);
    }

    /// A verifier that refuses, of the certificates that another one takes, those of nodes that have been thrown out.
    pub(super) fn refusing(&self, others: Arc<dyn ClientCertVerifier>) -> Arc<dyn ClientCertVerifier> {
        Arc::new(UnlessRevoked {
            others,
            revoked: self.clone(),
        })
    }
}

fn is_of_one(certificate: &CertificateDer<'_>, names: &BTreeSet<NodeName>) -> bool {
    names.iter().any(|name| certified_name_is(certificate, name))
}

#[derive(Debug)]
struct UnlessRevoked {
    others: Arc<dyn ClientCertVerifier>,
    revoked: Revoked,
}

impl ClientCertVerifier for UnlessRevoked {
    fn offer_client_auth(&self) -> bool {
        self.others.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.others.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.others.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.others.verify_client_cert(end_entity, intermediates, now)?;
        match is_of_one(end_entity, &self.revoked.0.borrow()) {
            true => Err(CertificateError::Revoked.into()),
            false => Ok(verified),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.others.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.others.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.others.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_bounded() {
        let revoked = Revoked::default();
        let name = |n: usize| -> NodeName { format!("n{n}").parse().unwrap() };
        assert!(revoked.add((0..REVOKED_MAX).map(name)));
        assert!(revoked.add([name(0)]), "it is one of them");
        assert!(revoked.has_room_for(&name(0)) && !revoked.has_room_for(&name(REVOKED_MAX)));
        assert!(!revoked.add([name(REVOKED_MAX)]));
        assert_eq!(revoked.names().len(), REVOKED_MAX);
        assert!(revoked.has(&name(7)) && !revoked.has(&name(REVOKED_MAX)));
    }
}
