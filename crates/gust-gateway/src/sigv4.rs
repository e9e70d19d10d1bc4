//! AWS Signature Version 4: making and checking signatures of HTTP requests.
//!
//! Only the arithmetic is here: who may do what without a signature is decided in [`crate::auth`]. The canonical form
//! follows "Create a signed AWS API request" of the IAM user guide, in the variant of every service but S3: the path
//! is encoded once more, and the payload's digest is always that of the body.

mod claim;

use std::{fmt::Write as _, time::Duration};

use gust_control::clock::Utc;
use hmac::{Hmac, KeyInit, Mac};
use hyper::{HeaderMap, Method};
use sha2::{Digest, Sha256};

use crate::text::{encode, from_hex, parse_query, to_hex};

/// Name of the algorithm.
pub const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// Largest difference between a request's time and ours.
pub const SKEW_MAX: Duration = Duration::from_secs(5 * 60);

/// Longest life of a presigned request.
pub const EXPIRES_MAX_S: u64 = 7 * 24 * 60 * 60;

/// Most headers that a signature may cover.
const SIGNED_HEADERS_MAX: usize = 64;

/// The parts of a request that are signed.
#[derive(Debug, Clone, Copy)]
pub struct Signable<'a> {
    /// Method.
    pub method: &'a Method,
    /// Path as it was sent, percent-encoding included.
    pub path: &'a str,
    /// Query as it was sent, without `?`.
    pub query: &'a str,
    /// Headers.
    pub headers: &'a HeaderMap,
    /// SHA-256 of the body.
    pub body_sha256: [u8; 32],
}

/// `<date>/<region>/<service>/aws4_request`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// `YYYYMMDD`.
    pub date: String,
    /// Region.
    pub region: String,
    /// Service.
    pub service: String,
}

impl std::fmt::Display for Scope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}/aws4_request", self.date, self.region, self.service)
    }
}

/// A signature as a request claims it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Access key id.
    pub access_key_id: String,
    /// Scope.
    pub scope: Scope,
    /// Names of the signed headers, lower case, in order.
    pub signed_headers: Vec<String>,
    /// The signature, in hexadecimal.
    pub signature: String,
    /// When it was signed: `YYYYMMDDTHHMMSSZ`.
    pub timestamp: String,
    /// Life of a presigned request.
    pub expires: Option<Duration>,
    /// Session token.
    pub session_token: Option<String>,
}

/// Why a signature is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// There is none.
    #[error("Missing Authentication Token")]
    Missing,
    /// A part of it is missing or malformed.
    #[error("{0}")]
    Incomplete(String),
    /// The key is not known.
    #[error("The security token included in the request is invalid.")]
    UnknownKey,
    /// It is too old, too new, or of another scope.
    #[error("{0}")]
    Invalid(String),
    /// It is not the one that the secret gives.
    #[error(
        "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access \
         Key and signing method. Consult the service documentation for details."
    )]
    Mismatch,
}

impl Claim {
    /// Checks the claim against the secret of its key, at a given time.
    ///
    /// # Errors
    /// When the time or the scope does not fit, or the signature is another.
    pub fn verify(
        &self,
        request: &Signable<'_>,
        secret: &str,
        service: &str,
        now_unix_ms: u64,
    ) -> Result<(), SignatureError> {
        self.check_time(now_unix_ms)?;
        if self.scope.service != service {
            return Err(SignatureError::Invalid(format!(
                "Credential should be scoped to correct service: '{service}'. "
            )));
        }
        let Some(given) = from_hex(&self.signature) else {
            return Err(SignatureError::Mismatch);
        };
        let text = string_to_sign(request, &self.scope, &self.timestamp, &self.signed_headers);
        let mut mac = hmac(&signing_key(secret, &self.scope));
        mac.update(text.as_bytes());
        // Compares in constant time.
        mac.verify_slice(&given).map_err(|_| SignatureError::Mismatch)
    }

    fn check_time(&self, now_unix_ms: u64) -> Result<(), SignatureError> {
        let timestamp = &self.timestamp;
        let Some(signed_unix_ms) = parse_timestamp(timestamp) else {
            return Err(SignatureError::Incomplete(format!(
                "Date must be in ISO-8601 'basic format'. Got '{timestamp}'. See http://en.wikipedia.org/wiki/ISO_8601"
            )));
        };
        let day = &timestamp[..8];
        if self.scope.date != day {
            return Err(SignatureError::Invalid(format!(
                "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: '{}' != \
                 '{day}', from '{timestamp}'.",
                self.scope.date
            )));
        }
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let skew = ms(SKEW_MAX);
        let life = self.expires.map_or(skew, ms);
        let now = basic_timestamp(now_unix_ms);
        if signed_unix_ms > now_unix_ms.saturating_add(skew) {
            let latest = basic_timestamp(now_unix_ms + skew);
            return Err(SignatureError::Invalid(format!(
                "Signature not yet current: {timestamp} is still later than {latest} ({now} + 5 min.)"
            )));
        }
        if signed_unix_ms.saturating_add(life) < now_unix_ms {
            let oldest = basic_timestamp(now_unix_ms.saturating_sub(life));
            return Err(SignatureError::Invalid(format!(
                "Signature expired: {timestamp} is now earlier than {oldest} ({now} - {} min.)",
                life / 60_000
            )));
        }
        Ok(())
    }
}

/// The signature of a request.
pub fn sign(
    request: &Signable<'_>,
    secret: &str,
    scope: &Scope,
    timestamp: &str,
    signed_headers: &[String],
) -> String {
    let mut mac = hmac(&signing_key(secret, scope));
    mac.update(string_to_sign(request, scope, timestamp, signed_headers).as_bytes());
    to_hex(&mac.finalize().into_bytes())
}

/// A text with everything escaped but the unreserved characters of RFC 3986, as signatures have it.
pub fn percent_encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    encode(text.as_bytes(), &mut out);
    out
}

/// A moment as `YYYYMMDDTHHMMSSZ`.
pub fn basic_timestamp(unix_ms: u64) -> String {
    let Utc {
        year,
        month,
        day,
        hour,
        minute,
        second,
        ms: _,
    } = Utc::from_unix_ms(unix_ms);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
}

fn parse_timestamp(text: &str) -> Option<u64> {
    let bytes = text.as_bytes();
    let shape = bytes.len() == 16
        && bytes.iter().enumerate().all(|(at, byte)| match at {
            8 => *byte == b'T',
            15 => *byte == b'Z',
            _ => byte.is_ascii_digit(),
        });
    if !shape {
        return None;
    }
    let part = |from: usize, to: usize| text[from..to].parse::<u32>().ok();
    Utc {
        year: i64::from(part(0, 4)?),
        month: part(4, 6)?,
        day: part(6, 8)?,
        hour: part(9, 11)?,
        minute: part(11, 13)?,
        second: part(13, 15)?,
        ms: 0,
    }
    .unix_ms()
}

fn hmac(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes keys of any length")
}

fn signing_key(secret: &str, scope: &Scope) -> Vec<u8> {
    let mut key = format!("AWS4{secret}").into_bytes();
    for part in [scope.date.as_str(), &scope.region, &scope.service, "aws4_request"] {
        let mut mac = hmac(&key);
        mac.update(part.as_bytes());
        key = mac.finalize().into_bytes().to_vec();
    }
    key
}

fn string_to_sign(
    request: &Signable<'_>,
    scope: &Scope,
    timestamp: &str,
    signed_headers: &[String],
) -> String {
    let canonical = canonical_request(request, signed_headers);
    format!(
        "{ALGORITHM}\n{timestamp}\n{scope}\n{}",
        to_hex(&Sha256::digest(canonical))
    )
}

fn canonical_request(request: &Signable<'_>, signed_headers: &[String]) -> String {
    let mut text = format!("{}\n{}\n", request.method, canonical_path(request.path));
    text.push_str(&canonical_query(request.query));
    text.push('\n');
    for name in signed_headers {
        let values: Vec<String> = request
            .headers
            .get_all(name)
            .iter()
            .map(|value| {
                String::from_utf8_lossy(value.as_bytes())
                    .split_whitespace()
                    .collect::<Vec<_>>()
                    .join(" ")
            })
            .collect();
        let _infallible = writeln!(text, "{name}:{}", values.join(","));
    }
    let _infallible = write!(
        text,
        "\n{}\n{}",
        signed_headers.join(";"),
        to_hex(&request.body_sha256)
    );
    text
}

/// The path without empty and dot segments, encoded once more.
fn canonical_path(path: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            other => segments.push(other),
        }
    }
    let mut canonical = String::new();
    for segment in &segments {
        canonical.push('/');
        encode(segment.as_bytes(), &mut canonical);
    }
    if canonical.is_empty() || path.ends_with('/') {
        canonical.push('/');
    }
    canonical
}

fn canonical_query(query: &str) -> String {
    let mut parameters: Vec<(String, String)> = parse_query(query)
        .iter()
        .filter(|(name, _)| name != "X-Amz-Signature")
        .map(|(name, value)| (percent_encode(name), percent_encode(value)))
        .collect();
    parameters.sort();
    parameters
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect::<Vec<_>>()
        .join("&")
}

#[cfg(test)]
mod tests;
