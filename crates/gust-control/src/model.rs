//! Functions, versions and aliases as they are kept.
//!
//! ```text
//!            deployed              changed                deployed
//! Pending ------------> Active ------------> InProgress ------------> Successful   (last update)
//!    |    broken                                  |      broken
//!    +------> Failed                              +--------------> Failed
//! ```
//!
//! "Broken" means that the platform could not lay the code out. A function whose own initialisation fails is active
//! all the same, and every invocation is answered with its error, as in AWS Lambda.

use std::{collections::BTreeMap, sync::Arc};

use gust_store::{BlobId, Record};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::ids::{AliasName, FunctionName, Qualifier, VersionNumber};

/// Everything that can be configured of a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// Runtime identifier, for example `python3.11`.
    pub runtime: String,
    /// ARN of the execution role; kept and given back, never assumed.
    pub role: String,
    /// Handler in the runtime's own syntax.
    pub handler: String,
    /// Free text.
    pub description: String,
    /// Longest run, in seconds.
    pub timeout_s: u32,
    /// Memory, in MiB.
    pub memory_mib: u32,
    /// Writable space in `/tmp`, in MiB.
    pub tmp_mib: u32,
    /// The function's own environment variables.
    pub environment: BTreeMap<String, String>,
    /// X-Ray mode is `Active`.
    pub tracing_active: bool,
    /// Log group, when it is not the default one.
    pub log_group: Option<String>,
    /// `SnapStart` applies to published versions; kept and given back, since every version is restored here.
    pub snap_start: bool,
    /// ARN of a key; kept and given back.
    pub kms_key_arn: Option<String>,
}

/// A code package.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Code {
    /// SHA-256 of the package.
    pub sha256: [u8; 32],
    /// Size of the package, in bytes.
    pub zipped_bytes: u64,
    /// Size of what is in it, in bytes.
    pub unzipped_bytes: u64,
}

impl Code {
    /// Name of the package among the blobs.
    pub fn blob(&self) -> BlobId {
        BlobId::from_bytes(self.sha256)
    }
}

/// Why the platform could not lay a version out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Broken {
    /// For a person.
    pub reason: String,
}

/// Whether a version can be invoked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// Being deployed for the first time.
    Pending,
    /// Can be invoked.
    Active,
    /// Could not be deployed.
    Failed(Broken),
}

/// What became of the last change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LastUpdate {
    /// It is what runs.
    Successful,
    /// It is being deployed; what was there before still runs.
    InProgress,
    /// It could not be deployed; what was there before still runs.
    Failed(Broken),
}

/// One version of a function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// Which one.
    pub number: VersionNumber,
    /// Its configuration.
    pub config: Config,
    /// Its code.
    pub code: Code,
    /// New at every change; the precondition of careful writers.
    pub revision_id: Uuid,
    /// New whenever the version must be laid out again; names what the node holds.
    pub deployment_id: Uuid,
    /// Last change, in milliseconds of the Unix epoch.
    pub modified_unix_ms: u64,
    /// Whether it can be invoked.
    pub state: State,
    /// What became of the last change.
    pub last_update: LastUpdate,
}

/// A name for a version, or for two with a weight.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Alias {
    /// The version that it names.
    pub version: VersionNumber,
    /// Free text.
    pub description: String,
    /// A second version and the share of calls that it gets, from 0 to 1.
    pub additional: Option<(u64, f64)>,
    /// New at every change.
    pub revision_id: Uuid,
}

impl Alias {
    /// How many of `count` are for a version: all for the only one, as the weight says for two.
    fn share_of(&self, count: u32, number: VersionNumber) -> u32 {
        let Some((second, weight)) = self.additional else {
            return if self.version == number { count } else { 0 };
        };
        let for_second = (f64::from(count) * weight).round() as u32;
        match number {
            VersionNumber::Published(published) if published == second => for_second,
            _ if number == self.version => count.saturating_sub(for_second),
            VersionNumber::Latest | VersionNumber::Published(_) => 0,
        }
    }
}

/// How asynchronous events of a qualifier are retried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventConfig {
    /// Further attempts after a failed one, 0 to 2.
    pub retries_max: Option<u32>,
    /// Longest time that an event is kept, in seconds.
    pub age_max_s: Option<u32>,
    /// Last change, in milliseconds of the Unix epoch.
    pub modified_unix_ms: u64,
}

/// What belongs to a function as a whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Shared {
    /// The function's name.
    pub name: FunctionName,
    /// Number of the next published version.
    pub next_version: u64,
    /// Names for versions.
    pub aliases: BTreeMap<AliasName, Alias>,
    /// Tags.
    pub tags: BTreeMap<String, String>,
    /// Concurrency reserved for the function, which is also its bound.
    pub reserved_concurrency: Option<u32>,
    /// Settings of asynchronous events.
    pub event_configs: BTreeMap<Qualifier, EventConfig>,
}

/// Instances that a version or alias is to have at all times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provisioned {
    /// How many calls they can take at once.
    pub requested: u32,
    /// Last change, in milliseconds of the Unix epoch.
    pub modified_unix_ms: u64,
}

/// How many instances a function is to have.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Scaling {
    /// Provisioned concurrency, by version or alias.
    pub provisioned: BTreeMap<Qualifier, Provisioned>,
}

/// A function with all its versions.
#[derive(Debug, Clone, PartialEq)]
pub struct Function {
    /// What belongs to it as a whole.
    pub shared: Arc<Shared>,
    /// `$LATEST`.
    pub latest: Arc<Version>,
    /// Published versions.
    pub published: BTreeMap<u64, Arc<Version>>,
    /// How many instances it is to have.
    pub scaling: Arc<Scaling>,
}

impl Function {
    /// Concurrency that is provisioned for a version: for itself, and its share of what is for aliases that name it.
    pub fn provisioned_for(&self, number: VersionNumber) -> u32 {
        let share = |(qualifier, provisioned): (&Qualifier, &Provisioned)| match qualifier {
            Qualifier::Version(version) if *version == number => provisioned.requested,
            Qualifier::Version(_) => 0,
            Qualifier::Alias(name) => self
                .shared
                .aliases
                .get(name)
                .map_or(0, |alias| alias.share_of(provisioned.requested, number)),
        };
        self.scaling.provisioned.iter().map(share).sum()
    }

    /// The function without settings of what it has no more.
    pub(crate) fn pruned(mut self) -> Self {
        let is_there = |qualifier: &Qualifier| match qualifier {
            Qualifier::Version(number) => self.version(*number).is_some(),
            Qualifier::Alias(name) => self.shared.aliases.contains_key(name),
        };
        if !self.scaling.provisioned.keys().all(is_there) {
            let mut scaling = (*self.scaling).clone();
            scaling.provisioned.retain(|qualifier, _| is_there(qualifier));
            self.scaling = Arc::new(scaling);
        }
        self
    }

    /// A version by its number.
    pub fn version(&self, number: VersionNumber) -> Option<&Arc<Version>> {
        match number {
            VersionNumber::Latest => Some(&self.latest),
            VersionNumber::Published(number) => self.published.get(&number),
        }
    }

    /// Every version, `$LATEST` first.
    pub fn versions(&self) -> impl Iterator<Item = &Arc<Version>> {
        std::iter::once(&self.latest).chain(self.published.values())
    }

    /// The newest published version.
    pub fn last_published(&self) -> Option<&Arc<Version>> {
        self.published.values().next_back()
    }
}

impl Record for Shared {
    const TABLE: &'static str = "functions";
    const KIND: u8 = 1;
    const VERSION: u8 = 1;
}

impl Record for Version {
    const TABLE: &'static str = "versions";
    const KIND: u8 = 2;
    const VERSION: u8 = 1;
}

impl Record for Scaling {
    const TABLE: &'static str = "scaling";
    const KIND: u8 = 5;
    const VERSION: u8 = 1;
}

#[cfg(test)]
pub(crate) mod tests {
    use gust_store::{decode, encode};

    use super::*;

    pub(crate) fn config() -> Config {
        Config {
            runtime: "python3.11".to_owned(),
            role: "arn:aws:iam::000000000000:role/r".to_owned(),
            handler: "app.handler".to_owned(),
            description: String::new(),
            timeout_s: 3,
            memory_mib: 128,
            tmp_mib: 512,
            environment: BTreeMap::from([("A".to_owned(), "b".to_owned())]),
            tracing_active: false,
            log_group: None,
            snap_start: false,
            kms_key_arn: None,
        }
    }

    pub(crate) fn version(number: VersionNumber) -> Version {
        Version {
            number,
            config: config(),
            code: Code {
                sha256: [7; 32],
                zipped_bytes: 300,
                unzipped_bytes: 1000,
            },
            revision_id: Uuid::from_u128(1),
            deployment_id: Uuid::from_u128(2),
            modified_unix_ms: 1_700_000_000_000,
            state: State::Active,
            last_update: LastUpdate::Failed(Broken {
                reason: "r".to_owned(),
            }),
        }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// What is on disks must stay readable: a change here needs a new record version and an upgrade.
    #[test]
    fn the_encoding_of_a_version_is_pinned() {
        let version = version(VersionNumber::Published(5));
        let bytes = encode(&version);
        assert_eq!(hex(&bytes), include_str!("../tests/golden/version-1.hex").trim());
        assert_eq!(decode::<Version>(&bytes).unwrap(), version);
    }

    #[test]
    fn the_encoding_of_what_is_provisioned_is_pinned() {
        let provisioned = Provisioned {
            requested: 3,
            modified_unix_ms: 9,
        };
        let live = Qualifier::Alias(AliasName::new("live").unwrap());
        let scaling = Scaling {
            provisioned: BTreeMap::from([(live, provisioned)]),
        };
        let bytes = encode(&scaling);
        assert_eq!(hex(&bytes), include_str!("../tests/golden/scaling-1.hex").trim());
        assert_eq!(decode::<Scaling>(&bytes).unwrap(), scaling);
    }

    #[test]
    fn what_is_provisioned_for_an_alias_is_shared_by_its_versions() {
        let [one, two] = [1, 2].map(VersionNumber::Published);
        let alias = |additional| Alias {
            version: one,
            description: String::new(),
            additional,
            revision_id: Uuid::nil(),
        };
        let shares =
            |alias: Alias| [one, two, VersionNumber::Latest].map(|number| alias.share_of(10, number));
        assert_eq!(shares(alias(None)), [10, 0, 0]);
        assert_eq!(shares(alias(Some((2, 0.25)))), [7, 3, 0]);
        assert_eq!(shares(alias(Some((2, 1.0)))), [0, 10, 0]);
    }

    #[test]
    fn the_encoding_of_a_function_is_pinned() {
        let alias = Alias {
            version: VersionNumber::Published(1),
            description: "d".to_owned(),
            additional: Some((2, 0.25)),
            revision_id: Uuid::from_u128(3),
        };
        let shared = Shared {
            name: FunctionName::new("hello").unwrap(),
            next_version: 3,
            aliases: BTreeMap::from([(AliasName::new("live").unwrap(), alias)]),
            tags: BTreeMap::from([("k".to_owned(), "v".to_owned())]),
            reserved_concurrency: Some(4),
            event_configs: BTreeMap::from([(
                Qualifier::LATEST,
                EventConfig {
                    retries_max: Some(1),
                    age_max_s: None,
                    modified_unix_ms: 9,
                },
            )]),
        };
        let bytes = encode(&shared);
        assert_eq!(hex(&bytes), include_str!("../tests/golden/function-1.hex").trim());
        assert_eq!(decode::<Shared>(&bytes).unwrap(), shared);
    }
}
