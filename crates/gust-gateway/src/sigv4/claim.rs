//! Finding the signature that a request claims, in its headers or its query.

use std::{fmt::Write as _, time::Duration};

use hyper::HeaderMap;

use super::{ALGORITHM, Claim, EXPIRES_MAX_S, SIGNED_HEADERS_MAX, Scope, SignatureError};
use crate::text::parse_query;

impl Claim {
    /// Finds the signature in a request's headers or query.
    ///
    /// # Errors
    /// When there is none, or a part of it is missing or malformed.
    pub fn find(headers: &HeaderMap, query: &str) -> Result<Self, SignatureError> {
        if let Some(value) = headers.get("authorization") {
            return Self::from_header(value.to_str().unwrap_or_default(), headers);
        }
        let query = parse_query(query);
        if query.iter().any(|(name, _)| name == "X-Amz-Algorithm") {
            return Self::from_query(&query);
        }
        Err(SignatureError::Missing)
    }

    fn from_header(value: &str, headers: &HeaderMap) -> Result<Self, SignatureError> {
        let Some(parts) = value.strip_prefix(ALGORITHM) else {
            return Err(SignatureError::Incomplete(format!(
                "Unsupported authorization algorithm; {ALGORITHM} is required."
            )));
        };
        let part = |name: &str| {
            parts
                .split(',')
                .find_map(|part| part.trim().strip_prefix(name)?.strip_prefix('='))
                .map(str::to_owned)
        };
        let header = |name: &str| {
            headers
                .get(name)
                .and_then(|value| value.to_str().ok())
                .map(str::to_owned)
        };
        let (credential, signed, signature, timestamp) = (
            part("Credential"),
            part("SignedHeaders"),
            part("Signature"),
            header("x-amz-date"),
        );
        let mut missing = String::new();
        for (found, name) in [
            (&credential, "Credential"),
            (&signature, "Signature"),
            (&signed, "SignedHeaders"),
        ] {
            if found.is_none() {
                let _infallible = write!(missing, "Authorization header requires '{name}' parameter. ");
            }
        }
        if timestamp.is_none() {
            missing.push_str(
                "Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header. ",
            );
        }
        let (Some(credential), Some(signed), Some(signature), Some(timestamp)) =
            (credential, signed, signature, timestamp)
        else {
            return Err(SignatureError::Incomplete(missing.trim_end().to_owned()));
        };
        Self::from_parts(
            &credential,
            &signed,
            signature,
            timestamp,
            None,
            header("x-amz-security-token"),
        )
    }

    fn from_query(query: &[(String, String)]) -> Result<Self, SignatureError> {
        let find = |name: &str| {
            query
                .iter()
                .find(|(key, _)| key == name)
                .map(|(_, value)| value.clone())
        };
        let need = |name: &str| {
            find(name).ok_or_else(|| {
                SignatureError::Incomplete(format!("AWS query-string parameters must include '{name}'."))
            })
        };
        if need("X-Amz-Algorithm")? != ALGORITHM {
            return Err(SignatureError::Incomplete(format!(
                "Unsupported authorization algorithm; {ALGORITHM} is required."
            )));
        }
        let expires = need("X-Amz-Expires")?
            .parse()
            .ok()
            .filter(|seconds| *seconds <= EXPIRES_MAX_S);
        let expires = expires.ok_or_else(|| {
            SignatureError::Incomplete(format!(
                "X-Amz-Expires must be a number from 0 to {EXPIRES_MAX_S}."
            ))
        })?;
        Self::from_parts(
            &need("X-Amz-Credential")?,
            &need("X-Amz-SignedHeaders")?,
            need("X-Amz-Signature")?,
            need("X-Amz-Date")?,
            Some(Duration::from_secs(expires)),
            find("X-Amz-Security-Token"),
        )
    }

    fn from_parts(
        credential: &str,
        signed_headers: &str,
        signature: String,
        timestamp: String,
        expires: Option<Duration>,
        session_token: Option<String>,
    ) -> Result<Self, SignatureError> {
        let mut parts = credential.rsplitn(5, '/');
        let (Some("aws4_request"), Some(service), Some(region), Some(date), Some(access_key_id)) = (
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
        ) else {
            return Err(SignatureError::Incomplete(format!(
                "Credential must have exactly 5 slash-delimited elements, e.g. \
                 keyid/date/region/service/term, got '{credential}'"
            )));
        };
        let signed_headers: Vec<String> = signed_headers.split(';').map(str::to_owned).collect();
        let sorted = signed_headers.is_sorted() && signed_headers.len() <= SIGNED_HEADERS_MAX;
        if !sorted || !signed_headers.iter().any(|name| name == "host") {
            return Err(SignatureError::Incomplete(
                "'Host' must be a 'SignedHeader' in the AWS Authorization, and the names must be sorted."
                    .to_owned(),
            ));
        }
        let scope = Scope {
            date: date.to_owned(),
            region: region.to_owned(),
            service: service.to_owned(),
        };
        Ok(Self {
            access_key_id: access_key_id.to_owned(),
            scope,
            signed_headers,
            signature,
            timestamp,
            expires,
            session_token,
        })
    }
}
