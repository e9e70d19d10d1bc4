//! Names of members.

use std::{fmt, str::FromStr};

use rustls::pki_types::ServerName;

/// Longest name of a node, in bytes: a label of a DNS name with room for what makes it unlike others.
const NAME_BYTES_MAX: usize = 48;

/// Longest part of a name that a newcomer may choose, in bytes.
const WANTED_BYTES_MAX: usize = 40;

/// Name of the control plane in its certificate.
pub(crate) const CONTROL: &str = "control.gust.internal";

/// What stands behind a node's name in its certificate.
const NODE_SUFFIX: &str = ".node.gust.internal";

/// Name of a node: lower-case letters, digits and hyphens.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeName(String);

/// A text that is no name of a node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no name of a node: up to {NAME_BYTES_MAX} lower-case letters, digits and inner hyphens")]
pub struct NameError(String);

impl NodeName {
    /// As people see it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The wanted name (or what can be kept of it) with an end that makes it unlike any other.
    pub(crate) fn unlike_others(wanted: &str, random: [u8; 4]) -> Self {
        let kept = wanted.bytes().map(|byte| match byte.to_ascii_lowercase() {
            byte @ (b'a'..=b'z' | b'0'..=b'9') => char::from(byte),
            _ => '-',
        });
        let kept: String = kept.take(WANTED_BYTES_MAX - 9).collect();
        let kept = match kept.trim_matches('-') {
            "" => "node",
            kept => kept,
        };
        Self(format!("{kept}-{:08x}", u32::from_be_bytes(random)))
    }

    /// As it stands in certificates.
    pub(crate) fn certified(&self) -> String {
        format!("{}{NODE_SUFFIX}", self.0)
    }

    /// As TLS checks it.
    pub(crate) fn server_name(&self) -> Option<ServerName<'static>> {
        ServerName::try_from(self.certified()).ok()
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for NodeName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let fits = (1..=NAME_BYTES_MAX).contains(&text.len())
            && text
                .bytes()
                .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
            && !text.starts_with('-')
            && !text.ends_with('-');
        match fits {
            true => Ok(Self(text.to_owned())),
            false => Err(NameError(text.chars().take(NAME_BYTES_MAX).collect())),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_wanted_name_becomes_one(wanted in ".{0,80}", random: [u8; 4]) {
            let name = NodeName::unlike_others(&wanted, random);
            prop_assert_eq!(name.as_str().parse::<NodeName>().unwrap(), name.clone());
            prop_assert!(name.server_name().is_some());
        }
    }

    #[test]
    fn names_are_narrow() {
        for name in ["", "-a", "a-", "A", "a.b", "a b", "ä", &"a".repeat(49)] {
            assert!(name.parse::<NodeName>().is_err(), "{name}");
        }
        assert_eq!(
            NodeName::unlike_others("My Host.", [0, 0, 0, 7]).as_str(),
            "my-host-00000007"
        );
    }
}
