//! The control plane's authority: signs members' certificates.

use std::{
    fmt,
    fs::{self, File},
    io::{self, Read, Write},
    path::Path,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};

use super::{
    TrustError,
    names::{CONTROL, NodeName},
};

/// File with the authority's key and certificate, in its directory.
const FILE: &str = "authority";

/// Longest file of keys and certificates, in bytes.
pub(super) const FILE_BYTES_MAX: u64 = 64 << 10;

/// How long the authority's certificate is valid.
const AUTHORITY_VALID: Duration = Duration::from_secs(20 * 365 * 24 * 3600);

/// How long a member's certificate is valid.
pub(super) const MEMBER_VALID: Duration = Duration::from_secs(90 * 24 * 3600);

/// How far clocks of members may be behind the control plane's.
pub(super) const CLOCKS_APART: Duration = Duration::from_secs(3600);

/// Names an authority: BLAKE3 of its certificate.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// Of a certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        Self(*blake3::hash(certificate).as_bytes())
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

/// As it is stored.
#[derive(Serialize, Deserialize)]
struct Stored {
    /// PKCS #8.
    key: Vec<u8>,
    certificate: Vec<u8>,
}

/// The authority. Its key is nowhere but in its file and in this process.
pub struct Authority {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Authority").field(&self.fingerprint()).finish()
    }
}

impl Authority {
    /// Opens the authority in a directory, and makes it when there is none. Of two that make it at the same time, one is
    /// kept and both have that.
    ///
    /// # Errors
    /// When the directory cannot be used, or what is there is damaged.
    pub fn open(directory: &Path) -> Result<Self, TrustError> {
        make_private_dir(directory)?;
        let path = directory.join(FILE);
        if !path.exists() {
            let (key, certificate) = make().map_err(TrustError::Make)?;
            let stored = Stored { key, certificate };
            let bytes = postcard::to_stdvec(&stored).map_err(|_| TrustError::Damaged(path.clone()))?;
            match store_private(&path, &bytes, false) {
                Err(TrustError::Io { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {}
                stored => stored?,
            }
        }
        let damaged = |_| TrustError::Damaged(path.clone());
        let stored: Stored = postcard::from_bytes(&read_private(&path)?).map_err(damaged)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(stored.key));
        let key = KeyPair::from_der_and_sign_algo(&key, &PKCS_ECDSA_P256_SHA256)
            .map_err(|_| TrustError::Damaged(path.clone()))?;
        let certificate = CertificateDer::from(stored.certificate);
        let issuer =
            Issuer::from_ca_cert_der(&certificate, key).map_err(|_| TrustError::Damaged(path.clone()))?;
        Ok(Self { certificate, issuer })
    }

    /// Its certificate, which members trust.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// What a token says of it.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.certificate)
    }

    /// A certificate for a node's key. Of the request, only the key counts.
    ///
    /// # Errors
    /// When the request is none, or was not made by who has the key.
    pub fn certify(&self, name: &NodeName, csr: &[u8]) -> Result<CertificateDer<'static>, TrustError> {
        let csr = CertificateSigningRequestDer::from(csr.to_vec());
        let request = CertificateSigningRequestParams::from_der(&csr).map_err(TrustError::Request)?;
        let params = member_params(&name.certified()).map_err(TrustError::Make)?;
        let signed = params.signed_by(&request.public_key, &self.issuer);
        signed
            .map(|certificate| certificate.der().clone())
            .map_err(TrustError::Make)
    }

    /// A key and certificate for the control plane itself, new at each start.
    pub(super) fn control(&self) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>), TrustError> {
        let made = || {
            let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
            let certificate = member_params(CONTROL)?.signed_by(&key, &self.issuer)?;
            Ok((certificate.der().clone(), key))
        };
        let (certificate, key) = made().map_err(TrustError::Make)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Ok((certificate, key))
    }
}

fn make() -> Result<(Vec<u8>, Vec<u8>), rcgen::Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = named("Gust cluster authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid(&mut params, AUTHORITY_VALID);
    let certificate = params.self_signed(&key)?;
    Ok((key.serialize_der(), certificate.der().to_vec()))
}

fn member_params(name: &str) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(vec![name.to_owned()])?;
    params.distinguished_name = named(name);
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    // Nodes give chunks to each other, and are asked by no one else.
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    valid(&mut params, MEMBER_VALID);
    Ok(params)
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn valid(params: &mut CertificateParams, validity: Duration) {
    let now = SystemTime::now();
    params.not_before = (now - CLOCKS_APART).into();
    params.not_after = (now + validity).into();
}

/// Makes a directory for the owner alone.
pub(super) fn make_private_dir(path: &Path) -> Result<(), TrustError> {
    use std::os::unix::fs::DirBuilderExt;
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| TrustError::Io {
        action: "making the directory",
        path: path.to_path_buf(),
        source,
    })
}

/// Stores a file for the owner alone, whole or not at all; `replace` says whether one may be there.
pub(super) fn store_private(path: &Path, bytes: &[u8], replace: bool) -> Result<(), TrustError> {
    let failed = |source| TrustError::Io {
        action: "writing",
        path: path.to_path_buf(),
        source,
    };
    let directory = path.parent().unwrap_or(Path::new("."));
    // Temporary files are their owner's alone (0600).
    let mut file = tempfile::NamedTempFile::new_in(directory).map_err(failed)?;
    file.write_all(bytes).map_err(failed)?;
    file.as_file().sync_all().map_err(failed)?;
    let stored = match replace {
        true => file.persist(path),
        false => file.persist_noclobber(path),
    };
    stored.map_err(|error| failed(error.error))?;
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(failed)
}

/// Reads a short file.
pub(super) fn read_private(path: &Path) -> Result<Vec<u8>, TrustError> {
    let failed = |source| TrustError::Io {
        action: "reading",
        path: path.to_path_buf(),
        source,
    };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(FILE_BYTES_MAX)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn an_authority_is_made_once_and_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let directory = dir.path().join("cluster");
        let fingerprints = std::thread::scope(|scope| {
            let opened = [0; 4].map(|_| scope.spawn(|| Authority::open(&directory).unwrap().fingerprint()));
            opened.map(|thread| thread.join().unwrap())
        });
        assert!(
            fingerprints.iter().all(|one| *one == fingerprints[0]),
            "{fingerprints:?}"
        );
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&directory), mode(&directory.join(FILE))), (0o700, 0o600));
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1, "nothing else stays");
        let other = Authority::open(&dir.path().join("other")).unwrap();
        assert_ne!(other.fingerprint(), fingerprints[0]);
        fs::write(directory.join(FILE), "damaged").unwrap();
        assert!(matches!(Authority::open(&directory), Err(TrustError::Damaged(_))));
    }

    #[test]
    fn only_who_has_the_key_gets_a_certificate() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open(dir.path()).unwrap();
        let name: NodeName = "a".parse().unwrap();
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let csr = CertificateParams::default().serialize_request(&key).unwrap();
        authority.certify(&name, csr.der()).unwrap();
        let mut forged = csr.der().to_vec();
        let last = forged.len() - 1;
        forged[last] ^= 1;
        for bytes in [&forged[..], b"", b"junk"] {
            assert!(matches!(
                authority.certify(&name, bytes),
                Err(TrustError::Request(_))
            ));
        }
    }
}
