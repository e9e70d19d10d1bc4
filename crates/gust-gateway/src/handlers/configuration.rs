//! The settings of a function as requests have them: checked against AWS's model, and against what this server can.

use gust_control::{ConfigChange, limits};

use crate::{
    error::ApiError,
    validate::{Violations, number},
    wire::{Anything, Settings},
};

/// Runtimes that this server can have images of.
const RUNTIMES: &[&str] = &[
    "python3.11",
    "nodejs20.x",
    "java17",
    "provided.al2023",
    "provided.al2",
];

const HANDLER_PATTERN: &str = r"[^\s]+";
const ROLE_PATTERN: &str = r"arn:(aws[a-zA-Z-]*)?:iam::\d{12}:role/?[a-zA-Z_0-9+=,.@\-_/]+";

/// Checks every member against AWS's model.
pub(super) fn check_settings(settings: &Settings, violations: &mut Violations) {
    violations.range(settings.timeout, "timeout", 1, limits::TIMEOUT_S_MAX);
    violations.range(
        settings.memory_size,
        "memorySize",
        limits::MEMORY_MIB_MIN,
        limits::MEMORY_MIB_MAX,
    );
    let tmp = settings.ephemeral_storage.map(|storage| storage.size);
    violations.range(
        tmp,
        "ephemeralStorage.size",
        limits::TMP_MIB_MIN,
        limits::TMP_MIB_MAX,
    );
    if let Some(handler) = &settings.handler {
        violations.length_max(handler, "handler", 128);
        if handler.is_empty() || handler.contains(char::is_whitespace) {
            violations.pattern(handler, "handler", HANDLER_PATTERN);
        }
    }
    if let Some(description) = &settings.description {
        violations.length_max(description, "description", 256);
    }
    if let Some(role) = settings.role.as_deref().filter(|role| !is_role(role)) {
        violations.pattern(role, "role", ROLE_PATTERN);
    }
    if let Some(architectures) = &settings.architectures {
        check_architectures(architectures, violations);
    }
    let mode = settings
        .tracing_config
        .as_ref()
        .and_then(|config| config.mode.as_deref());
    violations.one_of(mode, "tracingConfig.mode", &["Active", "PassThrough"]);
    let format = settings
        .logging_config
        .as_ref()
        .and_then(|config| config.log_format.as_deref());
    violations.one_of(format, "loggingConfig.logFormat", &["JSON", "Text"]);
    let apply_on = settings
        .snap_start
        .as_ref()
        .and_then(|config| config.apply_on.as_deref());
    violations.one_of(apply_on, "snapStart.applyOn", &["PublishedVersions", "None"]);
    let variables = settings
        .environment
        .as_ref()
        .and_then(|environment| environment.variables.as_ref());
    for name in variables.into_iter().flat_map(|variables| variables.keys()) {
        let mut bytes = name.bytes();
        let well_formed = name.len() >= 2
            && bytes.next().is_some_and(|byte| byte.is_ascii_alphabetic())
            && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        // Names that the platform keeps for itself are refused later, in other words.
        if !well_formed && !name.starts_with("_") {
            violations.pattern(name, "environment.variables", "[a-zA-Z]([a-zA-Z0-9_])+");
        }
    }
}

pub(super) fn check_architectures(architectures: &[String], violations: &mut Violations) {
    for architecture in architectures {
        violations.one_of(Some(architecture), "architectures", &["x86_64", "arm64"]);
    }
}

fn is_role(text: &str) -> bool {
    let Some((partition, rest)) = text
        .strip_prefix("arn:")
        .and_then(|rest| rest.split_once(":iam::"))
    else {
        return false;
    };
    let Some((account_id, name)) = rest.split_once(":role") else {
        return false;
    };
    (partition.is_empty() || partition.starts_with("aws"))
        && account_id.len() == 12
        && account_id.bytes().all(|byte| byte.is_ascii_digit())
        && !name.trim_start_matches('/').is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"+=,.@-_/".contains(&byte))
}

/// Refuses what this server cannot do, unless nothing is asked for: a function would run otherwise than it expects.
pub(super) fn refuse_unsupported(settings: &Settings) -> Result<(), ApiError> {
    let asks = |value: &Option<Anything>| value.as_ref().is_some_and(asks_for_something);
    let lists = |value: &Option<Vec<Anything>>| value.as_ref().is_some_and(|list| !list.is_empty());
    for (asked, what) in [
        (asks(&settings.vpc_config), "VpcConfig"),
        (asks(&settings.dead_letter_config), "DeadLetterConfig"),
        (lists(&settings.layers), "Layers"),
        (lists(&settings.file_system_configs), "FileSystemConfigs"),
        (asks(&settings.image_config), "ImageConfig"),
        (asks(&settings.code_signing_config_arn), "CodeSigningConfigArn"),
        (asks(&settings.tenancy_config), "TenancyConfig"),
        (asks(&settings.capacity_provider_config), "CapacityProviderConfig"),
        (asks(&settings.durable_config), "DurableConfig"),
    ] {
        if asked {
            return Err(ApiError::invalid_parameter(format!(
                "{what} is not supported by this server."
            )));
        }
    }
    if settings
        .architectures
        .as_ref()
        .is_some_and(|list| list.iter().any(|one| one != "x86_64"))
    {
        return Err(ApiError::invalid_parameter(
            "This server runs functions of the architecture x86_64 only.",
        ));
    }
    if let Some(logging) = &settings.logging_config
        && (logging.log_format.as_deref() == Some("JSON")
            || asks(&logging.application_log_level)
            || asks(&logging.system_log_level))
    {
        return Err(ApiError::invalid_parameter(
            "LogFormat JSON is not supported by this server; use Text.",
        ));
    }
    match settings.runtime.as_deref() {
        Some(runtime) if !RUNTIMES.contains(&runtime) => Err(ApiError::invalid_parameter(format!(
            "Value {runtime} at 'runtime' failed to satisfy constraint: Member must satisfy enum value set: [{}] or \
             be a valid ARN",
            RUNTIMES.join(", ")
        ))),
        Some(_) | None => Ok(()),
    }
}

/// Clients send empty objects and empty lists for "none".
fn asks_for_something(value: &Anything) -> bool {
    match value {
        Anything::Null => false,
        Anything::Bool(value) => *value,
        Anything::Number(_) => true,
        Anything::String(text) => !text.is_empty(),
        Anything::Array(list) => list.iter().any(asks_for_something),
        Anything::Object(members) => members.values().any(asks_for_something),
    }
}

pub(super) fn change_of(settings: Settings) -> ConfigChange {
    let text = |text: String| Some(text).filter(|text| !text.is_empty());
    ConfigChange {
        runtime: settings.runtime,
        role: settings.role,
        handler: settings.handler,
        description: settings.description,
        timeout_s: number(settings.timeout),
        memory_mib: number(settings.memory_size),
        tmp_mib: number(settings.ephemeral_storage.map(|storage| storage.size)),
        environment: settings
            .environment
            .map(|environment| environment.variables.unwrap_or_default()),
        tracing_active: settings
            .tracing_config
            .and_then(|config| config.mode)
            .map(|mode| mode == "Active"),
        log_group: settings
            .logging_config
            .map(|config| config.log_group.and_then(text)),
        snap_start: settings
            .snap_start
            .and_then(|config| config.apply_on)
            .map(|apply_on| apply_on == "PublishedVersions"),
        kms_key_arn: settings.kms_key_arn.map(text),
    }
}
