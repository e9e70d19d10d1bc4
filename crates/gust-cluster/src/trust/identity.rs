//! A node's own key and certificate, kept for its restarts.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};

use super::{
    Fingerprint, NodeName, TrustError,
    authority::{MEMBER_VALID, make_private_dir, read_private, store_private},
};

/// File with the identity, in its directory.
const FILE: &str = "identity";

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The node has not joined a cluster.
    #[error("this node has not joined a cluster: give it a join token, made with gust cluster token")]
    Missing,
    /// It cannot be read.
    #[error(transparent)]
    Trust(#[from] TrustError),
}

/// As it is stored.
#[derive(Serialize, Deserialize)]
struct Stored {
    name: String,
    /// PKCS #8.
    key: Vec<u8>,
    certificate: Vec<u8>,
    authority: Vec<u8>,
    /// Seconds since the Unix epoch.
    certified_unix_s: u64,
    /// Where the control plane is.
    control: String,
}

/// A key that has no certificate yet.
pub struct JoinKey(KeyPair);

impl fmt::Debug for JoinKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinKey")
    }
}

impl JoinKey {
    /// A new one.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn new() -> Result<Self, TrustError> {
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
            .map(Self)
            .map_err(TrustError::Make)
    }

    /// A signing request (PKCS #10, DER).
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn csr(&self) -> Result<Vec<u8>, TrustError> {
        let csr = CertificateParams::default().serialize_request(&self.0);
        csr.map(|csr| csr.der().to_vec()).map_err(TrustError::Make)
    }
}

/// Who a node is.
pub struct Identity {
    stored: Stored,
    name: NodeName,
    path: PathBuf,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Identity").field(&self.name).finish()
    }
}

impl Identity {
    /// The identity in a directory.
    ///
    /// # Errors
    /// [`IdentityError::Missing`] when the node has never joined.
    pub fn load(directory: &Path) -> Result<Self, IdentityError> {
        let path = directory.join(FILE);
        let bytes = match read_private(&path) {
            Ok(bytes) => bytes,
            Err(TrustError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                return Err(IdentityError::Missing);
            }
            Err(error) => return Err(error.into()),
        };
        let damaged = || TrustError::Damaged(path.clone());
        let stored: Stored = postcard::from_bytes(&bytes).map_err(|_| damaged())?;
        let name = stored.name.parse().map_err(|_| damaged())?;
        Ok(Self { stored, name, path })
    }

    /// Keeps a certificate that a control plane has given for a key.
    ///
    /// # Errors
    /// When it cannot be stored.
    pub fn keep(
        directory: &Path,
        control: &str,
        name: NodeName,
        key: &JoinKey,
        certificate: Vec<u8>,
        authority: &CertificateDer<'_>,
    ) -> Result<Self, TrustError> {
        make_private_dir(directory)?;
        let identity = Self {
            stored: Stored {
                name: name.as_str().to_owned(),
                key: key.0.serialize_der(),
                certificate,
                authority: authority.to_vec(),
                certified_unix_s: now_s(),
                control: control.to_owned(),
            },
            name,
            path: directory.join(FILE),
        };
        identity.store()?;
        Ok(identity)
    }

    /// The same key with another certificate.
    ///
    /// # Errors
    /// When it cannot be stored.
    pub fn renewed(&mut self, certificate: Vec<u8>) -> Result<(), TrustError> {
        self.stored.certificate = certificate;
        self.stored.certified_unix_s = now_s();
        self.store()
    }

    /// The node's name.
    pub fn name(&self) -> &NodeName {
        &self.name
    }

    /// Where its control plane is, as it was given at the join: `HOST:PORT`.
    pub fn control(&self) -> &str {
        &self.stored.control
    }

    /// The authority that has certified it.
    pub fn authority(&self) -> CertificateDer<'static> {
        CertificateDer::from(self.stored.authority.clone())
    }

    /// What a token would say of the authority.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.authority())
    }

    /// Whether it is time for another certificate: half of its time has passed.
    pub fn wants_renewal(&self) -> bool {
        let age = now_s().saturating_sub(self.stored.certified_unix_s);
        Duration::from_secs(age) > MEMBER_VALID / 2
    }

    /// A signing request for its key.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn csr(&self) -> Result<Vec<u8>, TrustError> {
        let key = KeyPair::from_der_and_sign_algo(&self.key(), &PKCS_ECDSA_P256_SHA256);
        JoinKey(key.map_err(TrustError::Make)?).csr()
    }

    pub(super) fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.stored.key.clone()))
    }

    pub(super) fn certificate(&self) -> CertificateDer<'static> {
        CertificateDer::from(self.stored.certificate.clone())
    }

    fn store(&self) -> Result<(), TrustError> {
        let bytes = postcard::to_stdvec(&self.stored).map_err(|_| TrustError::Damaged(self.path.clone()))?;
        store_private(&self.path, &bytes, true)
    }
}

fn now_s() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
