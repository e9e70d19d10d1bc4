//! Who may be a member, and how members know each other.
//!
//! The control plane has an authority of its own: a key that signs members' certificates and never leaves its data
//! directory. A newcomer gets a token by another way (a person, a secret store). The token says whom to trust (the
//! authority's fingerprint) and lets the newcomer be trusted, once (a secret). From then on both sides prove who they are
//! with certificates, in every connection, and nothing else is believed about a peer.
//!
//! ```text
//!  newcomer ── TLS: the server must be certified by the fingerprint's authority ──> control plane
//!           ── Join(token id, secret, signing request) ──>  checks, uses the token up, signs
//!           <── certificate for a name that no one else has ──
//!  node     ── TLS 1.3, both sides with certificates ──> control plane, other nodes
//! ```
//!
//! A certificate holds one name: the control plane's, or a node's. A node cannot pose as the control plane or as
//! another node, and who has taken a node over has that node's rights and no more, until the node is thrown out ([`Revoked`]).

mod authority;
mod identity;
mod names;
mod revoked;
mod tls;
mod token;

pub use authority::{Authority, Fingerprint};
pub use identity::{Identity, IdentityError, JoinKey};
pub use names::{NameError, NodeName};
pub use revoked::{REVOCATION_KEPT, REVOKED_MAX, Revoked};
pub use tls::{Trust, certified_name_is, control_name, peer_certificate};
pub use token::{JoinToken, TokenError, Tokens};

/// What can go wrong with keys and certificates.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// A file could not be read or written.
    #[error("{action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: std::path::PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// A file has something else in it.
    #[error("{0} is damaged")]
    Damaged(std::path::PathBuf),
    /// A key or certificate could not be made.
    #[error("making a key or certificate")]
    Make(#[source] rcgen::Error),
    /// A signing request is none, or is not signed by its own key.
    #[error("the signing request is not valid")]
    Request(#[source] rcgen::Error),
    /// TLS cannot be set up with these certificates.
    #[error("setting up TLS")]
    Tls(#[source] rustls::Error),
}
