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
