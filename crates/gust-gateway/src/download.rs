//! Links to code packages, as `GetFunction` gives them.
//!
//! A link opens one package for ten minutes without a signature of its own, as AWS's do. It carries an HMAC under a
//! key that is made anew at every start, so a link does not outlive the server.

use std::io::Read;

use bytes::Bytes;
use gust_control::clock;
use hmac::{Hmac, KeyInit, Mac};
use hyper::{Response, header::HeaderValue};
use sha2::Sha256;
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::{
    body::Body,
    error::ApiError,
    request::Answer,
    server::Gateway,
    text::{from_hex, parse_query, to_hex},
};

/// Path of the packages.
const PATH: &str = "/_gust/v1/code/";

/// Life of a link.
const LIFE_MS: u64 = 10 * 60 * 1000;

/// Size of the pieces in which a package is sent.
const PIECE_BYTES: usize = 128 << 10;

/// Pieces that are read ahead of the client.
const PIECES_QUEUED_MAX: usize = 4;

/// Key of this server's links.
pub(crate) struct DownloadKey([u8; 32]);

impl std::fmt::Debug for DownloadKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DownloadKey")
    }
}

impl DownloadKey {
    pub(crate) fn new() -> Self {
        let mut key = [0; 32];
        key[..16].copy_from_slice(Uuid::new_v4().as_bytes());
        key[16..].copy_from_slice(Uuid::new_v4().as_bytes());
        Self(key)
    }

    /// A link to a package on the host that the caller used.
    pub(crate) fn link(&self, host: &str, sha256: &[u8; 32]) -> String {
        let expires = clock::unix_ms() + LIFE_MS;
        let name = to_hex(sha256);
        let signature = to_hex(&self.mac(&name, expires).finalize().into_bytes());
        format!("http://{host}{PATH}{name}?Expires={expires}&Signature={signature}")
    }

    /// The package that a request claims by a link; `None` when it is no such request.
    pub(crate) fn claimed(&self, path: &str, query: &str) -> Option<Result<[u8; 32], ApiError>> {
        let name = path.strip_prefix(PATH)?;
        Some(self.check(name, query).ok_or_else(|| {
            ApiError::access_denied("This link is not valid, or no longer. Ask GetFunction for another.")
        }))
    }

    fn check(&self, name: &str, query: &str) -> Option<[u8; 32]> {
        let query = parse_query(query);
        let find = |wanted: &str| {
            query
                .iter()
                .find(|(key, _)| key == wanted)
                .map(|(_, value)| value.as_str())
        };
        let expires: u64 = find("Expires")?.parse().ok()?;
        let signature = bytes_of(find("Signature")?)?;
        self.mac(name, expires).verify_slice(&signature).ok()?;
        (clock::unix_ms() <= expires).then_some(())?;
        bytes_of(name)
    }

    fn mac(&self, name: &str, expires_unix_ms: u64) -> Hmac<Sha256> {
        let mut mac: Hmac<Sha256> = Hmac::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        mac.update(format!("{name}\n{expires_unix_ms}").as_bytes());
        mac
    }

    /// Sends a package.
    pub(crate) async fn serve(&self, gateway: &Gateway, sha256: [u8; 32]) -> Answer {
        let opened = gateway.control.open_code(sha256);
        let mut file = opened.map_err(|_| ApiError::not_found("The package is no longer there."))?;
        let (pieces, body) = mpsc::channel(PIECES_QUEUED_MAX);
        let bytes = file.get_ref().metadata().map(|metadata| metadata.len());
        tokio::task::spawn_blocking(move || {
            loop {
                let mut piece = vec![0; PIECE_BYTES];
                match file.read(&mut piece) {
                    Ok(0) => return,
                    Ok(read) => {
                        piece.truncate(read);
                        if pieces.blocking_send(Bytes::from(piece)).is_err() {
                            return;
                        }
                    }
                    Err(error) => {
                        tracing::error!(%error, "a package could not be read to its end");
                        return;
                    }
                }
            }
        });
        let mut response = Response::new(Body::Stream(body));
        let headers = response.headers_mut();
        headers.insert("content-type", HeaderValue::from_static("application/zip"));
        if let Ok(bytes) = bytes {
            headers.insert("content-length", HeaderValue::from(bytes));
        }
        Ok(response)
    }
}

fn bytes_of(hex: &str) -> Option<[u8; 32]> {
    from_hex(hex)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_opens_its_package_and_no_other() {
        let key = DownloadKey::new();
        let link = key.link("localhost:1", &[7; 32]);
        let path_and_query = link.strip_prefix("http://localhost:1").unwrap();
        let (path, query) = path_and_query.split_once('?').unwrap();
        assert_eq!(key.claimed(path, query), Some(Ok([7; 32])));
        let other = path.replace("07", "08");
        for (path, query) in [
            (&other as &str, query),
            (path, ""),
            (path, &query.replace("Expires=", "Expires=9")),
        ] {
            assert_eq!(
                key.claimed(path, query).unwrap().unwrap_err().code,
                "AccessDeniedException"
            );
        }
        assert_eq!(
            DownloadKey::new().claimed(path, query).unwrap().unwrap_err().code,
            "AccessDeniedException"
        );
        assert_eq!(key.claimed("/2015-03-31/functions", query), None);
    }
}
