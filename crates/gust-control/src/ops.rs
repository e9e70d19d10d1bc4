//! How a function changes: pure steps from one state to the next. Nothing here waits or writes.

use std::{collections::BTreeMap, sync::Arc};

use uuid::Uuid;

use crate::{
    error::{ControlError, Missing},
    ids::{AliasName, FunctionName, Place, Qualifier, Target, VersionNumber},
    model::{
        Alias, Broken, Code, Config, EventConfig, Function, LastUpdate, Provisioned, Shared, State, Version,
    },
};

/// A change of an alias; what is `None` stays as it is.
#[derive(Debug, Clone, Default)]
pub struct AliasChange {
    /// The version that it names.
    pub version: Option<VersionNumber>,
    /// Free text.
    pub description: Option<String>,
    /// The second version and its weight; the inner `None` removes it.
    pub additional: Option<Option<(u64, f64)>>,
    /// Revision that the caller saw.
    pub revision_id: Option<String>,
}

/// What a careful publisher expects of `$LATEST`.
#[derive(Debug, Clone, Default)]
pub struct PublishRequest {
    /// Digest of the code, in base64.
    pub code_sha256: Option<String>,
    /// Revision that the caller saw.
    pub revision_id: Option<String>,
    /// Description of the version; that of `$LATEST` when there is none.
    pub description: Option<String>,
}

/// A change of the settings of asynchronous events.
#[derive(Debug, Clone, Copy, Default)]
pub struct EventConfigChange {
    /// Further attempts after a failed one.
    pub retries_max: Option<u32>,
    /// Longest time that an event is kept, in seconds.
    pub age_max_s: Option<u32>,
    /// What is not given stays, where a plain `Put` resets it.
    pub keep_others: bool,
}

/// A new function, not yet deployed.
pub(crate) fn create(
    name: FunctionName,
    config: Config,
    code: Code,
    tags: BTreeMap<String, String>,
    now_unix_ms: u64,
) -> Function {
    let latest = Version {
        number: VersionNumber::Latest,
        config,
        code,
        revision_id: Uuid::new_v4(),
        deployment_id: Uuid::new_v4(),
        modified_unix_ms: now_unix_ms,
        state: State::Pending,
        last_update: LastUpdate::Successful,
    };
    let shared = Shared {
        name,
        next_version: 1,
        aliases: BTreeMap::new(),
        tags,
        reserved_concurrency: None,
        event_configs: BTreeMap::new(),
    };
    Function {
        shared: Arc::new(shared),
        latest: Arc::new(latest),
        published: BTreeMap::new(),
        scaling: Arc::default(),
    }
}

/// Refuses a change of `$LATEST` while one is being carried out.
pub(crate) fn check_changeable(function: &Function, place: &Place) -> Result<(), ControlError> {
    match (&function.latest.state, &function.latest.last_update) {
        (State::Pending, _) => Err(ControlError::NotReady { state: "Pending" }),
        (State::Active | State::Failed(_), LastUpdate::InProgress) => Err(ControlError::UpdateInProgress {
            arn: place.function_arn(&function.shared.name),
        }),
        (State::Active | State::Failed(_), LastUpdate::Successful | LastUpdate::Failed(_)) => Ok(()),
    }
}

/// Refuses a writer who saw another revision.
pub(crate) fn check_revision(present: Uuid, seen: Option<&str>) -> Result<(), ControlError> {
    match seen {
        Some(seen) if seen != present.to_string() => Err(ControlError::RevisionMismatch),
        Some(_) | None => Ok(()),
    }
}

/// `$LATEST` with other code or another configuration.
pub(crate) fn update(function: &Function, config: Config, code: Code, now_unix_ms: u64) -> Function {
    let before = &function.latest;
    let deploy = before.code != code || config.needs_deployment(&before.config);
    let again = !matches!(
        (&before.state, &before.last_update),
        (State::Active, LastUpdate::Successful)
    );
    let mut latest = Version {
        config,
        code,
        ..(**before).clone()
    };
    latest.revision_id = Uuid::new_v4();
    latest.modified_unix_ms = now_unix_ms;
    if deploy || again {
        latest.deployment_id = Uuid::new_v4();
        latest.last_update = LastUpdate::InProgress;
    }
    Function {
        latest: Arc::new(latest),
        ..function.clone()
    }
}

/// `$LATEST` and all published versions are to be laid out anew.
pub(crate) fn redeploy_all(function: &Function) -> Function {
    let anew = |version: &Arc<Version>| {
        Arc::new(Version {
            deployment_id: Uuid::new_v4(),
            ..(**version).clone()
        })
    };
    Function {
        shared: Arc::clone(&function.shared),
        latest: anew(&function.latest),
        published: function
            .published
            .iter()
            .map(|(number, version)| (*number, anew(version)))
            .collect(),
        scaling: Arc::clone(&function.scaling),
    }
}

/// Publishes `$LATEST`. Answers the last published version when nothing has changed since, as AWS Lambda does.
pub(crate) fn publish(
    function: &Function,
    request: &PublishRequest,
    base64: impl Fn(&[u8]) -> String,
    now_unix_ms: u64,
) -> Result<(Function, Arc<Version>), ControlError> {
    let latest = &function.latest;
    check_revision(latest.revision_id, request.revision_id.as_deref())?;
    let found = base64(&latest.code.sha256);
    if let Some(expected) = request
        .code_sha256
        .as_ref()
        .filter(|expected| **expected != found)
    {
        return Err(ControlError::CodeMismatch {
            expected: expected.clone(),
            found,
        });
    }
    if let Some(last) = function.last_published() {
        let described = Config {
            description: last.config.description.clone(),
            ..latest.config.clone()
        };
        if last.code == latest.code && last.config == described {
            return Ok((function.clone(), Arc::clone(last)));
        }
    }
    let number = function.shared.next_version;
    let mut config = latest.config.clone();
    if let Some(description) = &request.description {
        config.description.clone_from(description);
    }
    let version = Arc::new(Version {
        number: VersionNumber::Published(number),
        config,
        code: latest.code,
        revision_id: Uuid::new_v4(),
        deployment_id: Uuid::new_v4(),
        modified_unix_ms: now_unix_ms,
        state: latest.state.clone(),
        last_update: LastUpdate::Successful,
    });
    let mut next = function.clone();
    Arc::make_mut(&mut next.shared).next_version += 1;
    next.published.insert(number, Arc::clone(&version));
    Ok((next, version))
}

/// A deployment has ended. `None` when the version has been changed or deleted since it began.
pub(crate) fn deployed(
    function: &Function,
    number: VersionNumber,
    deployment_id: Uuid,
    result: Result<(), Broken>,
) -> Option<Function> {
    let before = function
        .version(number)
        .filter(|version| version.deployment_id == deployment_id)?;
    let mut version = (**before).clone();
    match (&before.state, result) {
        (State::Pending | State::Failed(_), Ok(())) => {
            version.state = State::Active;
            version.last_update = LastUpdate::Successful;
        }
        (State::Pending, Err(broken)) => version.state = State::Failed(broken),
        (State::Active, Ok(())) => version.last_update = LastUpdate::Successful,
        (State::Active | State::Failed(_), Err(broken)) => version.last_update = LastUpdate::Failed(broken),
    }
    if version == **before {
        return None;
    }
    let version = Arc::new(version);
    let mut next = function.clone();
    match number {
        VersionNumber::Latest => next.latest = version,
        VersionNumber::Published(number) => drop(next.published.insert(number, version)),
    }
    Some(next)
}

/// The function without one of its versions.
pub(crate) fn delete_version(function: &Function, qualifier: &Qualifier) -> Result<Function, ControlError> {
    let number = match qualifier {
        Qualifier::Version(VersionNumber::Published(number)) => *number,
        Qualifier::Version(VersionNumber::Latest) => {
            return Err(ControlError::InvalidParameter(
                "$LATEST version cannot be deleted without deleting the function.".to_owned(),
            ));
        }
        Qualifier::Alias(_) => {
            return Err(ControlError::InvalidParameter(
                "Deletion of functions using an alias is not currently supported.".to_owned(),
            ));
        }
    };
    let names = |alias: &Alias| {
        alias.version == VersionNumber::Published(number)
            || alias
                .additional
                .is_some_and(|(additional, _)| additional == number)
    };
    let named: Vec<&str> = function
        .shared
        .aliases
        .iter()
        .filter(|(_, alias)| names(alias))
        .map(|(name, _)| name.as_str())
        .collect();
    if !named.is_empty() {
        return Err(ControlError::Conflict(format!(
            "Version {number} cannot be deleted because it is referenced by alias {}",
            named.join(", ")
        )));
    }
    let mut next = function.clone();
    next.published.remove(&number);
    Ok(next)
}

/// Adds an alias.
pub(crate) fn create_alias(
    function: &Function,
    place: &Place,
    name: &AliasName,
    alias: Alias,
) -> Result<Function, ControlError> {
    check_alias(function, place, &alias)?;
    if function.shared.aliases.contains_key(name) {
        let qualifier = Qualifier::Alias(name.clone());
        return Err(ControlError::Exists {
            what: "Alias",
            name: place.qualified_arn(&function.shared.name, &qualifier),
        });
    }
    Ok(with_shared(function, |shared| {
        drop(shared.aliases.insert(name.clone(), alias));
    }))
}

/// Changes an alias.
pub(crate) fn update_alias(
    function: &Function,
    place: &Place,
    name: &AliasName,
    change: AliasChange,
) -> Result<Function, ControlError> {
    let before = function
        .shared
        .aliases
        .get(name)
        .ok_or_else(|| alias_not_found(function, place, name))?;
    check_revision(before.revision_id, change.revision_id.as_deref())?;
    let alias = Alias {
        version: change.version.unwrap_or(before.version),
        description: change.description.unwrap_or_else(|| before.description.clone()),
        additional: change.additional.unwrap_or(before.additional),
        revision_id: Uuid::new_v4(),
    };
    check_alias(function, place, &alias)?;
    Ok(with_shared(function, |shared| {
        drop(shared.aliases.insert(name.clone(), alias));
    }))
}

/// That there is no alias of this name.
pub(crate) fn alias_not_found(function: &Function, place: &Place, name: &AliasName) -> ControlError {
    let qualifier = Qualifier::Alias(name.clone());
    ControlError::NotFound {
        kind: Missing::Alias,
        arn: place.qualified_arn(&function.shared.name, &qualifier),
    }
}

fn check_alias(function: &Function, place: &Place, alias: &Alias) -> Result<(), ControlError> {
    let additional = alias
        .additional
        .map(|(number, _)| VersionNumber::Published(number));
    for number in std::iter::once(alias.version).chain(additional) {
        if function.version(number).is_none() {
            let target = Target {
                name: function.shared.name.clone(),
                qualifier: Some(Qualifier::Version(number)),
            };
            return Err(ControlError::NotFound {
                kind: Missing::Function,
                arn: place.target_arn(&target),
            });
        }
    }
    let invalid = |message: &str| Err(ControlError::InvalidParameter(message.to_owned()));
    match alias.additional {
        Some(_) if alias.version == VersionNumber::Latest => {
            invalid("$LATEST is not supported for an alias pointing to more than 1 version")
        }
        Some((number, _)) if alias.version == VersionNumber::Published(number) => {
            invalid("Invalid function version, the alias points to the same version twice")
        }
        Some((_, weight)) if !(0.0..=1.0).contains(&weight) => {
            invalid("The weight of an additional version must be between 0.0 and 1.0")
        }
        Some(_) | None => Ok(()),
    }
}

/// Sets how asynchronous events of a qualifier are retried.
pub(crate) fn set_event_config(
    function: &Function,
    qualifier: &Qualifier,
    change: EventConfigChange,
    now_unix_ms: u64,
) -> Function {
    let before = function
        .shared
        .event_configs
        .get(qualifier)
        .filter(|_| change.keep_others);
    let config = EventConfig {
        retries_max: change
            .retries_max
            .or(before.and_then(|before| before.retries_max)),
        age_max_s: change.age_max_s.or(before.and_then(|before| before.age_max_s)),
        modified_unix_ms: now_unix_ms,
    };
    with_shared(function, |shared| {
        shared.event_configs.insert(qualifier.clone(), config);
    })
}

/// Sets or lifts what is provisioned for a qualifier.
pub(crate) fn set_provisioned(
    function: &Function,
    qualifier: &Qualifier,
    provisioned: Option<Provisioned>,
) -> Function {
    let mut next = function.clone();
    let scaling = Arc::make_mut(&mut next.scaling);
    match provisioned {
        Some(provisioned) => drop(scaling.provisioned.insert(qualifier.clone(), provisioned)),
        None => drop(scaling.provisioned.remove(qualifier)),
    }
    next
}

/// The function with something changed that belongs to it as a whole.
pub(crate) fn with_shared(function: &Function, change: impl FnOnce(&mut Shared)) -> Function {
    let mut next = function.clone();
    change(Arc::make_mut(&mut next.shared));
    next
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tests::config;

    fn base64(bytes: &[u8]) -> String {
        format!("{bytes:?}")
    }

    fn place() -> Place {
        Place {
            region: "us-east-1".to_owned(),
            account_id: "000000000000".to_owned(),
        }
    }

    fn code(n: u8) -> Code {
        Code {
            sha256: [n; 32],
            zipped_bytes: 1,
            unzipped_bytes: 1,
        }
    }

    /// A function that has been deployed.
    fn active() -> Function {
        let name = FunctionName::new("hello").unwrap();
        let function = create(name, config(), code(1), BTreeMap::new(), 1);
        end(&function, Ok(()))
    }

    fn end(function: &Function, result: Result<(), Broken>) -> Function {
        deployed(
            function,
            VersionNumber::Latest,
            function.latest.deployment_id,
            result,
        )
        .unwrap()
    }

    fn broken() -> Result<(), Broken> {
        Err(Broken {
            reason: "r".to_owned(),
        })
    }

    fn publish_plain(function: &Function) -> (Function, Arc<Version>) {
        publish(function, &PublishRequest::default(), base64, 2).unwrap()
    }

    #[test]
    fn states_follow_the_drawing() {
        let pending = create(
            FunctionName::new("f").unwrap(),
            config(),
            code(1),
            BTreeMap::new(),
            1,
        );
        assert_eq!(pending.latest.state, State::Pending);
        assert!(matches!(
            check_changeable(&pending, &place()),
            Err(ControlError::NotReady { .. })
        ));
        assert!(matches!(end(&pending, broken()).latest.state, State::Failed(_)));
        let active = end(&pending, Ok(()));
        assert_eq!(
            (&active.latest.state, &active.latest.last_update),
            (&State::Active, &LastUpdate::Successful)
        );

        let changing = update(&active, config(), code(2), 3);
        assert_eq!(
            (&changing.latest.state, &changing.latest.last_update),
            (&State::Active, &LastUpdate::InProgress)
        );
        assert!(matches!(
            check_changeable(&changing, &place()),
            Err(ControlError::UpdateInProgress { .. })
        ));
        let failed = end(&changing, broken());
        assert!(matches!(failed.latest.last_update, LastUpdate::Failed(_)));
        assert_eq!(failed.latest.state, State::Active);
        // The same again is a new try.
        let again = update(&failed, config(), code(2), 4);
        assert_eq!(again.latest.last_update, LastUpdate::InProgress);
        assert_eq!(end(&again, Ok(())).latest.last_update, LastUpdate::Successful);
        // A function that could not be deployed at first is mended by a change.
        let mended = end(&update(&end(&pending, broken()), config(), code(2), 3), Ok(()));
        assert_eq!(
            (&mended.latest.state, &mended.latest.last_update),
            (&State::Active, &LastUpdate::Successful)
        );
    }

    #[test]
    fn a_stale_deployment_changes_nothing() {
        let before = active();
        let after = update(&before, config(), code(2), 3);
        assert_eq!(
            deployed(&after, VersionNumber::Latest, before.latest.deployment_id, Ok(())),
            None
        );
        assert_eq!(
            deployed(&after, VersionNumber::Published(1), Uuid::nil(), Ok(())),
            None
        );
    }

    #[test]
    fn what_no_instance_sees_is_not_deployed() {
        let before = active();
        let after = update(
            &before,
            Config {
                timeout_s: 9,
                ..config()
            },
            code(1),
            3,
        );
        assert_eq!(after.latest.deployment_id, before.latest.deployment_id);
        assert_eq!(after.latest.last_update, LastUpdate::Successful);
        assert_ne!(after.latest.revision_id, before.latest.revision_id);
    }

    #[test]
    fn nothing_new_is_not_published_again() {
        let (function, first) = publish_plain(&active());
        assert_eq!(first.number, VersionNumber::Published(1));
        let described = PublishRequest {
            description: Some("other".to_owned()),
            ..PublishRequest::default()
        };
        let (same, again) = publish(&function, &described, base64, 3).unwrap();
        assert_eq!((again.number, same.published.len()), (first.number, 1));
        let changed = end(&update(&same, config(), code(2), 4), Ok(()));
        assert_eq!(publish_plain(&changed).1.number, VersionNumber::Published(2));
        let wrong = PublishRequest {
            code_sha256: Some("x".to_owned()),
            ..PublishRequest::default()
        };
        assert!(matches!(
            publish(&changed, &wrong, base64, 5),
            Err(ControlError::CodeMismatch { .. })
        ));
    }

    #[test]
    fn numbers_of_deleted_versions_are_not_used_again() {
        let (function, _) = publish_plain(&active());
        let one = Qualifier::Version(VersionNumber::Published(1));
        let without = delete_version(&function, &one).unwrap();
        assert_eq!(publish_plain(&without).1.number, VersionNumber::Published(2));
        assert!(delete_version(&function, &Qualifier::LATEST).is_err());
        let live = AliasName::new("live").unwrap();
        let alias = Alias {
            version: VersionNumber::Published(1),
            description: String::new(),
            additional: None,
            revision_id: Uuid::nil(),
        };
        let named = create_alias(&function, &place(), &live, alias).unwrap();
        assert!(matches!(
            delete_version(&named, &one),
            Err(ControlError::Conflict(_))
        ));
        assert!(matches!(
            delete_version(&named, &Qualifier::Alias(live)),
            Err(ControlError::InvalidParameter(_))
        ));
    }

    #[test]
    fn every_version_is_deployed_anew_when_memory_changes() {
        let (function, _) = publish_plain(&active());
        let anew = redeploy_all(&function);
        for (before, after) in function.versions().zip(anew.versions()) {
            assert_ne!(before.deployment_id, after.deployment_id);
            assert_eq!(before.revision_id, after.revision_id);
        }
    }
}
