//! What may be configured, beyond what the shape of a request already says.

use std::collections::BTreeMap;

use gust_node::EgressPolicy;
use gust_worker::protocol::MemoryMode;

use crate::{error::ControlError, limits, model::Config};

/// Tag that sets what becomes of a function's memory between calls: `reuse` or `fresh`.
pub const MEMORY_TAG: &str = "gust:memory";

/// Tag that bounds where a function may connect to, within what the server allows: rules as `gust up --egress` has them,
/// with spaces between them.
pub const EGRESS_TAG: &str = "gust:egress";

/// Tag that bounds the instances of each version of a function.
pub const INSTANCES_TAG: &str = "gust:instances";

/// Tag that says how many calls one instance takes at once.
pub const CONCURRENCY_TAG: &str = "gust:concurrency";

/// Tag that says who a function belongs to: under overload, tenants share what there is evenly, and the functions of each
/// its share.
pub const TENANT_TAG: &str = "gust:tenant";

/// What the names of the tags begin with that mean something here, and all of them.
const OWN_PREFIX: &str = "gust:";
const OWN_TAGS: [&str; 5] = [MEMORY_TAG, EGRESS_TAG, INSTANCES_TAG, CONCURRENCY_TAG, TENANT_TAG];

/// Most calls that an instance may be said to take at once.
const PER_INSTANCE_MAX: u32 = 1000;

/// Names that a function may not set, since the platform does.
const RESERVED_VARIABLES: &[&str] = &[
    "_HANDLER",
    "_X_AMZN_TRACE_ID",
    "AWS_DEFAULT_REGION",
    "AWS_REGION",
    "AWS_EXECUTION_ENV",
    "AWS_LAMBDA_FUNCTION_NAME",
    "AWS_LAMBDA_FUNCTION_MEMORY_SIZE",
    "AWS_LAMBDA_FUNCTION_VERSION",
    "AWS_LAMBDA_INITIALIZATION_TYPE",
    "AWS_LAMBDA_LOG_GROUP_NAME",
    "AWS_LAMBDA_LOG_STREAM_NAME",
    "AWS_ACCESS_KEY",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_LAMBDA_RUNTIME_API",
    "LAMBDA_TASK_ROOT",
    "LAMBDA_RUNTIME_DIR",
];

/// A change of a configuration; what is `None` stays as it is.
#[derive(Debug, Clone, Default)]
pub struct ConfigChange {
    /// Runtime identifier.
    pub runtime: Option<String>,
    /// ARN of the execution role.
    pub role: Option<String>,
    /// Handler.
    pub handler: Option<String>,
    /// Free text.
    pub description: Option<String>,
    /// Longest run, in seconds.
    pub timeout_s: Option<u32>,
    /// Memory, in MiB.
    pub memory_mib: Option<u32>,
    /// Writable space in `/tmp`, in MiB.
    pub tmp_mib: Option<u32>,
    /// Environment variables, all of them.
    pub environment: Option<BTreeMap<String, String>>,
    /// X-Ray mode is `Active`.
    pub tracing_active: Option<bool>,
    /// Log group; the inner `None` is the default one.
    pub log_group: Option<Option<String>>,
    /// `SnapStart` applies to published versions.
    pub snap_start: Option<bool>,
    /// ARN of a key; the inner `None` is none.
    pub kms_key_arn: Option<Option<String>>,
}

impl ConfigChange {
    /// The configuration after the change.
    ///
    /// # Errors
    /// [`ControlError::InvalidParameter`] when it would be none that can run.
    pub fn apply(self, config: &Config) -> Result<Config, ControlError> {
        let changed = Config {
            runtime: self.runtime.unwrap_or_else(|| config.runtime.clone()),
            role: self.role.unwrap_or_else(|| config.role.clone()),
            handler: self.handler.unwrap_or_else(|| config.handler.clone()),
            description: self.description.unwrap_or_else(|| config.description.clone()),
            timeout_s: self.timeout_s.unwrap_or(config.timeout_s),
            memory_mib: self.memory_mib.unwrap_or(config.memory_mib),
            tmp_mib: self.tmp_mib.unwrap_or(config.tmp_mib),
            environment: self.environment.unwrap_or_else(|| config.environment.clone()),
            tracing_active: self.tracing_active.unwrap_or(config.tracing_active),
            log_group: self.log_group.unwrap_or_else(|| config.log_group.clone()),
            snap_start: self.snap_start.unwrap_or(config.snap_start),
            kms_key_arn: self.kms_key_arn.unwrap_or_else(|| config.kms_key_arn.clone()),
        };
        changed.check()?;
        Ok(changed)
    }
}

impl Config {
    /// Checks what the shape of a request does not say.
    ///
    /// # Errors
    /// [`ControlError::InvalidParameter`] in AWS Lambda's words.
    pub fn check(&self) -> Result<(), ControlError> {
        check_environment(&self.environment)
    }

    /// Something changed that an instance can see, so that the version must be laid out anew. Time-outs are the
    /// platform's alone.
    pub(crate) fn needs_deployment(&self, before: &Self) -> bool {
        let seen = |config: &Self| Self {
            role: String::new(),
            description: String::new(),
            timeout_s: 0,
            snap_start: false,
            kms_key_arn: None,
            tracing_active: false,
            ..config.clone()
        };
        seen(self) != seen(before)
    }
}

fn check_environment(environment: &BTreeMap<String, String>) -> Result<(), ControlError> {
    let reserved: Vec<&str> = environment
        .keys()
        .map(String::as_str)
        .filter(|name| RESERVED_VARIABLES.contains(name))
        .collect();
    if !reserved.is_empty() {
        return Err(ControlError::InvalidParameter(format!(
            "Lambda was unable to configure your environment variables because the environment variables you have \
             provided contains reserved keys that are currently not supported for modification. Reserved keys used \
             in this request: {}",
            reserved.join(", ")
        )));
    }
    if let Some((name, _)) = environment
        .iter()
        .find(|(name, value)| name.contains('\0') || value.contains('\0'))
    {
        return Err(ControlError::InvalidParameter(format!(
            "Environment variable {name:?} holds a null character, which no process environment can hold"
        )));
    }
    let bytes: usize = environment
        .iter()
        .map(|(name, value)| name.len() + value.len())
        .sum();
    if bytes > limits::ENVIRONMENT_BYTES_MAX {
        let measured = serde_json::to_string(environment).unwrap_or_default();
        return Err(ControlError::InvalidParameter(format!(
            "Lambda was unable to configure your environment variables because the environment variables you have \
             provided exceeded the 4KB limit. String measured: {measured}"
        )));
    }
    Ok(())
}

/// The memory mode that tags ask for; `default` when they ask for none.
///
/// # Errors
/// [`ControlError::InvalidParameter`] when the tag names no mode.
pub(crate) fn memory_mode(
    tags: &BTreeMap<String, String>,
    default: MemoryMode,
) -> Result<MemoryMode, ControlError> {
    match tags.get(MEMORY_TAG).map(String::as_str) {
        None => Ok(default),
        Some("reuse") => Ok(MemoryMode::Reuse),
        Some("fresh") => Ok(MemoryMode::Fresh),
        Some(other) => Err(ControlError::InvalidParameter(format!(
            "Value {other} of tag {MEMORY_TAG} is no memory mode: [reuse, fresh]"
        ))),
    }
}

/// Checks the tags that mean something here, but for those that are read with what they change: that there are such, and what
/// they say of a function's scaling. `runs_several` says that instances take several calls at once here.
///
/// # Errors
/// [`ControlError::InvalidParameter`] when a tag says something that cannot be, or would be one of these and is not.
pub(crate) fn check_own(tags: &BTreeMap<String, String>, runs_several: bool) -> Result<(), ControlError> {
    let is_unknown = |name: &&String| name.starts_with(OWN_PREFIX) && !OWN_TAGS.contains(&name.as_str());
    if let Some(name) = tags.keys().find(is_unknown) {
        return Err(ControlError::InvalidParameter(format!(
            "Cannot set tag {name}: there is none of this name: [{}]",
            OWN_TAGS.join(", ")
        )));
    }
    instances_max(tags)?;
    per_instance(tags, runs_several)?;
    Ok(())
}

/// Most instances of each version; `None` for no bound of the function's own.
///
/// # Errors
/// [`ControlError::InvalidParameter`] when the tag has no number.
pub(crate) fn instances_max(tags: &BTreeMap<String, String>) -> Result<Option<u32>, ControlError> {
    match tags.get(INSTANCES_TAG) {
        None => Ok(None),
        Some(text) => match text.parse() {
            Ok(count) if count > 0 => Ok(Some(count)),
            Ok(_) | Err(_) => Err(ControlError::InvalidParameter(format!(
                "Value {text} of tag {INSTANCES_TAG} is no number of instances: it must be at least 1"
            ))),
        },
    }
}

/// Calls that one instance takes at once.
///
/// # Errors
/// [`ControlError::InvalidParameter`] when the tag has no number, or more than instances take here.
pub(crate) fn per_instance(tags: &BTreeMap<String, String>, runs_several: bool) -> Result<u32, ControlError> {
    let Some(text) = tags.get(CONCURRENCY_TAG) else {
        return Ok(1);
    };
    match text.parse() {
        Ok(1) => Ok(1),
        Ok(2..=PER_INSTANCE_MAX) if !runs_several => Err(ControlError::InvalidParameter(format!(
            "Value {text} of tag {CONCURRENCY_TAG} cannot be: an instance of every runtime here takes one event at a \
             time, as in AWS Lambda"
        ))),
        Ok(count @ 2..=PER_INSTANCE_MAX) => Ok(count),
        Ok(_) | Err(_) => Err(ControlError::InvalidParameter(format!(
            "Value {text} of tag {CONCURRENCY_TAG} is no number of calls from 1 to {PER_INSTANCE_MAX}"
        ))),
    }
}

/// Who a function belongs to, if its tags say so.
pub(crate) fn tenant(tags: &BTreeMap<String, String>) -> Option<&str> {
    tags.get(TENANT_TAG).map(String::as_str)
}

/// Where tags allow a function to connect to; anywhere when they say nothing of it.
///
/// # Errors
/// [`ControlError::InvalidParameter`] when the tag has something that is no rule.
pub(crate) fn egress(tags: &BTreeMap<String, String>) -> Result<EgressPolicy, ControlError> {
    match tags.get(EGRESS_TAG) {
        None => Ok(EgressPolicy::unbounded()),
        Some(rules) => EgressPolicy::parse(rules.split_whitespace())
            .map_err(|error| ControlError::InvalidParameter(format!("Value of tag {EGRESS_TAG}: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tests::config;

    #[test]
    fn the_environment_is_bounded_and_reserved_names_are_refused() {
        let check = |variables: &[(&str, &str)]| {
            let variables = variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
            ConfigChange {
                environment: Some(variables.collect()),
                ..ConfigChange::default()
            }
            .apply(&config())
        };
        assert!(check(&[("K", &"v".repeat(4095))]).is_ok());
        assert!(
            check(&[("K", &"v".repeat(4096))])
                .unwrap_err()
                .to_string()
                .contains("exceeded the 4KB limit")
        );
        assert!(
            check(&[("AWS_REGION", "x")])
                .unwrap_err()
                .to_string()
                .ends_with("in this request: AWS_REGION")
        );
        assert!(check(&[("K", "a\0b")]).is_err());
    }

    #[test]
    fn tags_that_mean_something_are_checked() {
        let tags = |name: &str, value: &str| BTreeMap::from([(name.to_owned(), value.to_owned())]);
        for (name, value, several, fine) in [
            (INSTANCES_TAG, "3", false, true),
            (INSTANCES_TAG, "0", false, false),
            (INSTANCES_TAG, "many", false, false),
            (CONCURRENCY_TAG, "1", false, true),
            (CONCURRENCY_TAG, "2", false, false),
            (CONCURRENCY_TAG, "2", true, true),
            (CONCURRENCY_TAG, "0", true, false),
            (CONCURRENCY_TAG, "1001", true, false),
            (CONCURRENCY_TAG, "-1", true, false),
            (TENANT_TAG, "anyone", false, true),
            ("gust:memmory", "fresh", false, false),
            ("gusto", "much", false, true),
        ] {
            let checked = check_own(&tags(name, value), several);
            assert_eq!(checked.is_ok(), fine, "{name}={value}");
        }
        assert_eq!(instances_max(&tags(INSTANCES_TAG, "7")).unwrap(), Some(7));
        assert_eq!(per_instance(&tags(CONCURRENCY_TAG, "8"), true).unwrap(), 8);
    }

    #[test]
    fn only_what_an_instance_sees_needs_a_deployment() {
        let before = config();
        let changed = |change: ConfigChange| change.apply(&before).unwrap().needs_deployment(&before);
        assert!(!changed(ConfigChange {
            timeout_s: Some(9),
            ..ConfigChange::default()
        }));
        assert!(!changed(ConfigChange {
            description: Some("d".to_owned()),
            ..ConfigChange::default()
        }));
        assert!(changed(ConfigChange {
            memory_mib: Some(256),
            ..ConfigChange::default()
        }));
        assert!(changed(ConfigChange {
            environment: Some(BTreeMap::new()),
            ..ConfigChange::default()
        }));
    }
}
