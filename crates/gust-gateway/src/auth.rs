//! Who may call.
//!
//! A signature of a configured key opens everything. From the loopback interface a request is let through without one,
//! or with one of any key, unless the server requires authentication: on a developer's machine every SDK signs with
//! whatever it has. That door is shut to web pages, which any site can have a browser send to the loopback interface:
//! a request that names another site, or a host name that could be another site's, needs a signature.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use hyper::{HeaderMap, Method};
use sha2::{Digest, Sha256};

use crate::{
    error::ApiError,
    sigv4::{Claim, Signable, SignatureError},
};

/// Name of the service in scopes.
pub const SERVICE: &str = "lambda";

/// Who may call.
#[derive(Clone, Default)]
pub struct AuthConfig {
    /// Secrets by access key id.
    pub keys: BTreeMap<String, String>,
    /// Loopback callers need a signature too.
    pub require: bool,
}

impl std::fmt::Debug for AuthConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ids: Vec<&String> = self.keys.keys().collect();
        f.debug_struct("AuthConfig")
            .field("keys", &ids)
            .field("require", &self.require)
            .finish()
    }
}

/// The parts of a request that decide.
#[derive(Debug, Clone, Copy)]
pub struct Caller<'a> {
    /// Where it came from.
    pub peer: SocketAddr,
    /// Method.
    pub method: &'a Method,
    /// Path as it was sent.
    pub path: &'a str,
    /// Query as it was sent.
    pub query: &'a str,
    /// Headers.
    pub headers: &'a HeaderMap,
}

impl AuthConfig {
    /// The request needs no signature.
    ///
    /// # Errors
    /// When it comes from the loopback interface but from a web page.
    pub fn is_trusted(&self, caller: &Caller<'_>) -> Result<bool, ApiError> {
        let loopback = caller.peer.ip().to_canonical().is_loopback();
        if self.require || !loopback {
            return Ok(false);
        }
        // Whoever holds a configured key is checked even here, so that a wrong secret does not go unnoticed.
        if let Ok(claim) = Claim::find(caller.headers, caller.query)
            && self.keys.contains_key(&claim.access_key_id)
        {
            return Ok(false);
        }
        check_no_web_page(caller.headers)?;
        Ok(true)
    }

    /// Checks the signature of a request.
    ///
    /// # Errors
    /// When there is none, or it is not that of a configured key.
    pub fn verify(&self, caller: &Caller<'_>, body: &[u8], now_unix_ms: u64) -> Result<(), SignatureError> {
        let claim = Claim::find(caller.headers, caller.query)?;
        let secret = self
            .keys
            .get(&claim.access_key_id)
            .ok_or(SignatureError::UnknownKey)?;
        if claim.session_token.is_some() {
            // Configured keys are permanent ones.
            return Err(SignatureError::UnknownKey);
        }
        let body_sha256: [u8; 32] = Sha256::digest(body).into();
        let request = Signable {
            method: caller.method,
            path: caller.path,
            query: caller.query,
            headers: caller.headers,
            body_sha256,
        };
        claim.verify(&request, secret, SERVICE, now_unix_ms)
    }
}

fn check_no_web_page(headers: &HeaderMap) -> Result<(), ApiError> {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    if let Some(site) =
        text("sec-fetch-site").filter(|site| matches!(*site, "cross-site" | "same-site" | "?"))
    {
        return Err(ApiError::access_denied(format!(
            "A web page of another site may not call this server without a signature (Sec-Fetch-Site: {site})."
        )));
    }
    let origin = text("origin").map(|origin| origin.split_once("://").map_or("?", |(_, host)| host));
    for (header, host) in [("Host", text("host")), ("Origin", origin)] {
        if let Some(host) = host.filter(|host| !is_local_name(host)) {
            return Err(ApiError::access_denied(format!(
                "Without a signature this server answers only to an IP address or localhost, not to {host} \
                 ({header}). Configure an access key to call it by another name."
            )));
        }
    }
    Ok(())
}

/// A name that no other site can have: an address, or the reserved name `localhost`.
fn is_local_name(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !name.ends_with(':') => name,
        Some(_) | None => host,
    };
    let bare = name
        .strip_prefix('[')
        .and_then(|name| name.strip_suffix(']'))
        .unwrap_or(name);
    bare.parse::<IpAddr>().is_ok() || name == "localhost" || name.ends_with(".localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trusted(
        auth: &AuthConfig,
        peer: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<bool, &'static str> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, value.parse().unwrap());
        }
        let caller = Caller {
            peer: peer.parse().unwrap(),
            method: &Method::GET,
            path: "/",
            query: "",
            headers: &map,
        };
        auth.is_trusted(&caller).map_err(|error| error.code)
    }

    #[test]
    fn loopback_is_trusted_unless_it_is_a_web_page() {
        let open = AuthConfig::default();
        let local = "127.0.0.1:50000";
        for headers in [
            &[("host", "127.0.0.1:4566")][..],
            &[("host", "[::1]:4566")],
            &[("host", "localhost:4566")],
            &[("host", "api.localhost"), ("origin", "http://localhost:3000")],
            &[("host", "127.0.0.1"), ("sec-fetch-site", "none")],
        ] {
            assert_eq!(trusted(&open, local, headers), Ok(true), "{headers:?}");
        }
        for headers in [
            &[("host", "evil.example:4566")][..],
            &[("host", "localhost.evil.example")],
            &[("host", "127.0.0.1:4566"), ("origin", "https://evil.example")],
            &[("host", "127.0.0.1:4566"), ("origin", "null")],
            &[("host", "127.0.0.1:4566"), ("sec-fetch-site", "cross-site")],
        ] {
            assert_eq!(
                trusted(&open, local, headers),
                Err("AccessDeniedException"),
                "{headers:?}"
            );
        }
        assert_eq!(trusted(&open, "[::ffff:127.0.0.1]:1", &[]), Ok(true));
        assert_eq!(trusted(&open, "192.0.2.1:1", &[("host", "192.0.2.7")]), Ok(false));
        let closed = AuthConfig {
            require: true,
            ..AuthConfig::default()
        };
        assert_eq!(trusted(&closed, local, &[("host", "localhost")]), Ok(false));
    }

    #[test]
    fn a_configured_key_is_checked_even_from_loopback() {
        let auth = AuthConfig {
            keys: BTreeMap::from([("AKIDEXAMPLE".to_owned(), "secret".to_owned())]),
            require: false,
        };
        let header = |key: &str| {
            format!(
                "AWS4-HMAC-SHA256 Credential={key}/20150830/us-east-1/lambda/aws4_request, \
                 SignedHeaders=host;x-amz-date, Signature=00"
            )
        };
        for (key, expected) in [("AKIDEXAMPLE", false), ("another", true)] {
            let headers = [
                ("host", "localhost"),
                ("x-amz-date", "20150830T123600Z"),
                ("authorization", &header(key) as &str),
            ];
            assert_eq!(trusted(&auth, "127.0.0.1:1", &headers), Ok(expected), "{key}");
        }
        assert!(!format!("{auth:?}").contains("secret"));
    }
}
