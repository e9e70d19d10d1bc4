//! Names of functions, versions and aliases, and their ARNs.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Longest function name.
pub const FUNCTION_NAME_BYTES_MAX: usize = 64;

/// Longest alias name.
pub const ALIAS_NAME_BYTES_MAX: usize = 128;

/// The unpublished version's name.
pub const LATEST: &str = "$LATEST";

fn is_name(text: &str, bytes_max: usize) -> bool {
    (1..=bytes_max).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

/// A function's name: letters, digits, `-` and `_`, at most [`FUNCTION_NAME_BYTES_MAX`] of them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FunctionName(String);

impl FunctionName {
    /// A name, or `None` when the text is none.
    pub fn new(text: &str) -> Option<Self> {
        is_name(text, FUNCTION_NAME_BYTES_MAX).then(|| Self(text.to_owned()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for FunctionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An alias's name: as a function's, but longer and never digits alone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AliasName(String);

impl AliasName {
    /// A name, or `None` when the text is none.
    pub fn new(text: &str) -> Option<Self> {
        let digits = text.bytes().all(|b| b.is_ascii_digit());
        (is_name(text, ALIAS_NAME_BYTES_MAX) && !digits).then(|| Self(text.to_owned()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AliasName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which version of a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum VersionNumber {
    /// `$LATEST`, the one that can be changed.
    Latest,
    /// A published one, from 1.
    Published(u64),
}

impl VersionNumber {
    /// A version number, or `None` when the text is none.
    pub fn parse(text: &str) -> Option<Self> {
        if text == LATEST {
            return Some(Self::Latest);
        }
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        // A number too large for a u64 names a version that cannot exist, which zero does as well.
        digits.then(|| Self::Published(text.parse().unwrap_or(0)))
    }
}

impl fmt::Display for VersionNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => f.write_str(LATEST),
            Self::Published(number) => number.fmt(f),
        }
    }
}

/// What may stand behind a function's name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Qualifier {
    /// A version.
    Version(VersionNumber),
    /// An alias.
    Alias(AliasName),
}

impl Qualifier {
    /// The unpublished version.
    pub const LATEST: Self = Self::Version(VersionNumber::Latest);

    /// A qualifier, or `None` when the text is none.
    pub fn parse(text: &str) -> Option<Self> {
        VersionNumber::parse(text)
            .map(Self::Version)
            .or_else(|| AliasName::new(text).map(Self::Alias))
    }
}

impl fmt::Display for Qualifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(number) => number.fmt(f),
            Self::Alias(name) => name.fmt(f),
        }
    }
}

/// A function and perhaps which version of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    /// The function.
    pub name: FunctionName,
    /// As the caller gave it; none means `$LATEST`.
    pub qualifier: Option<Qualifier>,
}

impl Target {
    /// The unqualified function.
    pub fn unqualified(name: FunctionName) -> Self {
        Self {
            name,
            qualifier: None,
        }
    }

    /// The qualifier, `$LATEST` when there is none.
    pub fn qualifier_or_latest(&self) -> &Qualifier {
        self.qualifier.as_ref().unwrap_or(&Qualifier::LATEST)
    }
}

/// Where the functions live, as ARNs say it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Region, for example `us-east-1`.
    pub region: String,
    /// Twelve digits.
    pub account_id: String,
}

impl Place {
    /// A function's ARN without qualifier.
    pub fn function_arn(&self, name: &FunctionName) -> String {
        format!(
            "arn:aws:lambda:{}:{}:function:{name}",
            self.region, self.account_id
        )
    }

    /// A function's ARN with a qualifier.
    pub fn qualified_arn(&self, name: &FunctionName, qualifier: &Qualifier) -> String {
        format!("{}:{qualifier}", self.function_arn(name))
    }

    /// The ARN of a target as its caller named it.
    pub fn target_arn(&self, target: &Target) -> String {
        match &target.qualifier {
            Some(qualifier) => self.qualified_arn(&target.name, qualifier),
            None => self.function_arn(&target.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_pattern() {
        let long = "x".repeat(65);
        for (text, fits) in [
            ("hello", true),
            ("A-b_9", true),
            ("", false),
            ("a.b", false),
            ("a b", false),
            (&long, false),
            ("é", false),
        ] {
            assert_eq!(FunctionName::new(text).is_some(), fits, "{text}");
        }
    }

    #[test]
    fn qualifiers_are_versions_or_aliases() {
        use VersionNumber::{Latest, Published};
        let alias = |text| Qualifier::Alias(AliasName::new(text).unwrap());
        for (text, expected) in [
            ("$LATEST", Some(Qualifier::Version(Latest))),
            ("7", Some(Qualifier::Version(Published(7)))),
            ("99999999999999999999999", Some(Qualifier::Version(Published(0)))),
            ("live", Some(alias("live"))),
            ("v7", Some(alias("v7"))),
            ("$latest", None),
            ("", None),
            ("a:b", None),
        ] {
            assert_eq!(Qualifier::parse(text), expected, "{text}");
        }
    }
}
