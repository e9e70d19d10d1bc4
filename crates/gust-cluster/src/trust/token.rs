//! Join tokens: who has one may become a member.
//!
//! A token is a text for people: `gust1.` and 80 letters and digits that hold its id, a secret, the fingerprint of the
//! authority and a sum that tells a mistyped one. The control plane keeps a hash of the secret, until when it is good, and whether
//! it is good more than once: one small file for each token, so that the command that makes one needs no running server. To use a token
//! up is to remove its file, which succeeds for one newcomer only.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    str::FromStr,
    time::{Duration, SystemTime},
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

use super::{
    TrustError,
    authority::{Fingerprint, make_private_dir, read_private, store_private},
};

/// Directory with tokens, beside the authority.
const DIRECTORY: &str = "tokens";

/// First letters of a token.
const PREFIX: &str = "gust1.";

/// Bytes of an id, a secret, a fingerprint and a sum.
const PARTS: [usize; 4] = [8, 16, 32, 4];

/// Bytes of a token.
const BYTES: usize = 60;

/// Most tokens that are good at a time.
const TOKENS_MAX: usize = 1024;

/// What a newcomer shows.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// Names it.
    pub id: [u8; 8],
    /// Proves that it was given.
    pub secret: [u8; 16],
    /// Whom the newcomer is to trust.
    pub authority: Fingerprint,
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Its secret stays one.
        write!(f, "JoinToken({})", hex(&self.id))
    }
}

/// Why a token does not help.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Not a token at all.
    #[error("this is no join token, or a letter of it is wrong: it begins with {PREFIX} and has 86 letters")]
    Form,
    /// Unknown, wrong, used or expired: a newcomer is not told which.
    #[error("the join token is wrong, used or expired")]
    Refused,
    /// Too many are good already.
    #[error("there are {TOKENS_MAX} join tokens already")]
    TooMany,
    /// Its file could not be read or written.
    #[error("the join tokens cannot be read or written")]
    Store(#[from] TrustError),
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = [self.id.as_slice(), &self.secret, &self.authority.0].concat();
        bytes.extend_from_slice(&sum(&bytes));
        write!(f, "{PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let encoded = text.strip_prefix(PREFIX).ok_or(TokenError::Form)?;
        if encoded.len() != BYTES / 3 * 4 {
            return Err(TokenError::Form);
        }
        let bytes = BASE64_URL_SAFE_NO_PAD
            .decode(encoded)
            .map_err(|_| TokenError::Form)?;
        let mut rest = bytes.as_slice();
        let mut part = |length: usize| {
            let (part, after) = rest.split_at_checked(length)?;
            rest = after;
            Some(part)
        };
        let [id, secret, authority, given] = PARTS.map(&mut part);
        let read = || {
            let token = Self {
                id: id?.try_into().ok()?,
                secret: secret?.try_into().ok()?,
                authority: Fingerprint(authority?.try_into().ok()?),
            };
            (sum(&bytes[..BYTES - PARTS[3]]) == given?).then_some(token)
        };
        read().ok_or(TokenError::Form)
    }
}

fn sum(bytes: &[u8]) -> [u8; PARTS[3]] {
    let [a, b, c, d, ..] = *blake3::hash(bytes).as_bytes();
    [a, b, c, d]
}

/// As it is stored.
#[derive(Serialize, Deserialize)]
struct Stored {
    /// BLAKE3 of the secret.
    secret: [u8; 32],
    /// Seconds since the Unix epoch.
    expires_unix_s: u64,
    reusable: bool,
}

/// The tokens that are good.
#[derive(Debug, Clone)]
pub struct Tokens {
    directory: PathBuf,
}

impl Tokens {
    /// Tokens beside the authority in a directory.
    pub fn new(directory: &Path) -> Self {
        Self {
            directory: directory.join(DIRECTORY),
        }
    }

    /// Makes a token that is good for so long, for one newcomer or for any number. Forgets those that have expired.
    ///
    /// # Errors
    /// When it cannot be stored, or there are too many.
    pub fn make(
        &self,
        authority: Fingerprint,
        valid: Duration,
        reusable: bool,
    ) -> Result<JoinToken, TokenError> {
        make_private_dir(&self.directory)?;
        if self.forget_expired()? >= TOKENS_MAX {
            return Err(TokenError::TooMany);
        }
        let (mut id, mut secret) = ([0; 8], [0; 16]);
        crate::fill_random(&mut id);
        crate::fill_random(&mut secret);
        let stored = Stored {
            secret: *blake3::hash(&secret).as_bytes(),
            expires_unix_s: now_s().saturating_add(valid.as_secs()),
            reusable,
        };
        let path = self.path(id);
        let bytes = postcard::to_stdvec(&stored).map_err(|_| TrustError::Damaged(path.clone()))?;
        store_private(&path, &bytes, false)?;
        Ok(JoinToken {
            id,
            secret,
            authority,
        })
    }

    /// Checks a token and uses it up, unless it is good more than once.
    ///
    /// # Errors
    /// [`TokenError::Refused`] when it is unknown, wrong, used or expired.
    pub fn redeem(&self, id: [u8; 8], secret: [u8; 16]) -> Result<(), TokenError> {
        let path = self.path(id);
        let bytes = match read_private(&path) {
            Ok(bytes) => bytes,
            Err(TrustError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Err(TokenError::Refused);
            }
            Err(error) => return Err(error.into()),
        };
        let stored: Stored = postcard::from_bytes(&bytes).map_err(|_| TrustError::Damaged(path.clone()))?;
        // Hashes are compared in constant time.
        if blake3::hash(&secret) != blake3::Hash::from_bytes(stored.secret) {
            return Err(TokenError::Refused);
        }
        if stored.expires_unix_s <= now_s() {
            let _ = fs::remove_file(&path);
            return Err(TokenError::Refused);
        }
        if stored.reusable {
            return Ok(());
        }
        match fs::remove_file(&path) {
            Ok(()) => Ok(()),
            // Another newcomer was quicker.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(TokenError::Refused),
            Err(source) => Err(TrustError::Io {
                action: "using up",
                path,
                source,
            }
            .into()),
        }
    }

    /// Removes the files of tokens that have expired, and answers how many are left.
    fn forget_expired(&self) -> Result<usize, TrustError> {
        let entries = fs::read_dir(&self.directory).map_err(|source| TrustError::Io {
            action: "reading",
            path: self.directory.clone(),
            source,
        })?;
        let mut left = 0;
        for entry in entries.flatten().take(2 * TOKENS_MAX) {
            let stored = read_private(&entry.path())
                .ok()
                .and_then(|bytes| postcard::from_bytes::<Stored>(&bytes).ok());
            match stored {
                Some(stored) if stored.expires_unix_s <= now_s() => drop(fs::remove_file(entry.path())),
                Some(_) | None => left += 1,
            }
        }
        Ok(left)
    }

    fn path(&self, id: [u8; 8]) -> PathBuf {
        self.directory.join(hex(&id))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn now_s() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(u64::MAX, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn refused(result: Result<(), TokenError>) -> bool {
        matches!(result, Err(TokenError::Refused))
    }

    #[test]
    fn a_token_is_good_once_and_for_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = Tokens::new(dir.path());
        let authority = Fingerprint([7; 32]);
        let token = tokens.make(authority, HOUR, false).unwrap();
        let mut wrong = token.secret;
        wrong[0] ^= 1;
        assert!(refused(tokens.redeem(token.id, wrong)), "a wrong secret");
        assert!(refused(tokens.redeem([1; 8], token.secret)), "an unknown one");
        let redeemed = std::thread::scope(|scope| {
            let all = [0; 4].map(|_| scope.spawn(|| tokens.redeem(token.id, token.secret).is_ok()));
            all.map(|thread| thread.join().unwrap())
                .iter()
                .filter(|ok| **ok)
                .count()
        });
        assert_eq!(redeemed, 1, "for one newcomer");
        assert!(refused(tokens.redeem(token.id, token.secret)), "a used one");

        let many = tokens.make(authority, HOUR, true).unwrap();
        for _ in 0..3 {
            tokens.redeem(many.id, many.secret).unwrap();
        }
        let expired = tokens.make(authority, Duration::ZERO, true).unwrap();
        assert!(
            refused(tokens.redeem(expired.id, expired.secret)),
            "an expired one"
        );
        tokens.make(authority, Duration::ZERO, false).unwrap();
        let left = tokens.make(authority, HOUR, false).unwrap();
        let mut names: Vec<_> = fs::read_dir(dir.path().join(DIRECTORY))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        let mut expected = [hex(&many.id), hex(&left.id)];
        expected.sort();
        assert_eq!(names, expected, "those that have expired are forgotten");
    }

    proptest! {
        #[test]
        fn a_token_is_read_as_it_was_written(id: [u8; 8], secret: [u8; 16], authority: [u8; 32], at in 0usize..86) {
            let token = JoinToken { id, secret, authority: Fingerprint(authority) };
            let text = token.to_string();
            prop_assert_eq!(text.len(), 86);
            prop_assert_eq!(text.parse::<JoinToken>().unwrap(), token);
            let mut wrong = text.into_bytes();
            wrong[at] = if wrong[at] == b'x' { b'y' } else { b'x' };
            prop_assert!(String::from_utf8(wrong).unwrap().parse::<JoinToken>().is_err(), "a wrong letter");
        }

        #[test]
        fn any_text_is_a_token_or_none(text in "(gust1\\.)?.{0,100}") {
            if let Ok(token) = text.parse::<JoinToken>() {
                prop_assert_eq!(token.to_string(), text);
            }
        }
    }
}
