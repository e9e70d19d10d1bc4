//! Functions, versions and aliases as AWS's clients see them.

use base64::{Engine, engine::general_purpose::STANDARD};
use gust_control::{
    clock::Utc,
    default_log_group,
    ids::{AliasName, FunctionName, Place, Qualifier},
    model::{Alias, EventConfig, Function, LastUpdate, State, Version},
};
use serde_json::{Map, Value, json};

/// Digests as AWS writes them.
pub fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// `2024-01-31T12:00:00.000+0000`
pub fn timestamp(unix_ms: u64) -> String {
    format!("{}+0000", Utc::from_unix_ms(unix_ms).iso8601())
}

/// How much of a version is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// Everything.
    Full,
    /// What lists show: no state.
    Listed,
    /// What `CreateFunction` answers: a function that was never updated has no last update.
    Created,
}

/// `FunctionConfiguration`. The ARN has the qualifier, if one is given.
pub fn configuration(
    place: &Place,
    function: &Function,
    version: &Version,
    qualifier: Option<&Qualifier>,
    detail: Detail,
) -> Value {
    let name = &function.shared.name;
    let arn = match qualifier {
        Some(qualifier) => place.qualified_arn(name, qualifier),
        None => place.function_arn(name),
    };
    let config = &version.config;
    let log_group = config
        .log_group
        .clone()
        .unwrap_or_else(|| default_log_group(name));
    let published = !matches!(version.number, gust_control::ids::VersionNumber::Latest);
    let mut shown = json!({
        "FunctionName": name.as_str(),
        "FunctionArn": arn,
        "Runtime": config.runtime,
        "Role": config.role,
        "Handler": config.handler,
        "CodeSize": version.code.zipped_bytes,
        "Description": config.description,
        "Timeout": config.timeout_s,
        "MemorySize": config.memory_mib,
        "LastModified": timestamp(version.modified_unix_ms),
        "CodeSha256": base64(&version.code.sha256),
        "Version": version.number.to_string(),
        "TracingConfig": { "Mode": if config.tracing_active { "Active" } else { "PassThrough" } },
        "RevisionId": version.revision_id.to_string(),
        "PackageType": "Zip",
        "Architectures": ["x86_64"],
        "EphemeralStorage": { "Size": config.tmp_mib },
        "SnapStart": {
            "ApplyOn": if config.snap_start { "PublishedVersions" } else { "None" },
            "OptimizationStatus": if config.snap_start && published { "On" } else { "Off" },
        },
        "LoggingConfig": { "LogFormat": "Text", "LogGroup": log_group },
    });
    let Some(members) = shown.as_object_mut() else {
        return shown;
    };
    if !config.environment.is_empty() {
        members.insert(
            "Environment".to_owned(),
            json!({ "Variables": config.environment }),
        );
    }
    if let Some(arn) = &config.kms_key_arn {
        members.insert("KMSKeyArn".to_owned(), json!(arn));
    }
    match detail {
        Detail::Listed => {}
        Detail::Full => add_state(members, version, true),
        Detail::Created => add_state(members, version, false),
    }
    shown
}

fn add_state(members: &mut Map<String, Value>, version: &Version, with_update: bool) {
    let mut add = |name: &str, value: &str| members.insert(name.to_owned(), json!(value));
    match &version.state {
        State::Pending => {
            add("State", "Pending");
            add("StateReason", "The function is being created.");
            add("StateReasonCode", "Creating");
            return;
        }
        State::Active => drop(add("State", "Active")),
        State::Failed(broken) => {
            add("State", "Failed");
            add("StateReason", &broken.reason);
            add("StateReasonCode", "InternalError");
        }
    }
    if !with_update {
        return;
    }
    match &version.last_update {
        LastUpdate::Successful => drop(add("LastUpdateStatus", "Successful")),
        LastUpdate::InProgress => {
            add("LastUpdateStatus", "InProgress");
            add("LastUpdateStatusReason", "The function is being created.");
            add("LastUpdateStatusReasonCode", "Creating");
        }
        LastUpdate::Failed(broken) => {
            add("LastUpdateStatus", "Failed");
            add("LastUpdateStatusReason", &broken.reason);
            add("LastUpdateStatusReasonCode", "InternalError");
        }
    }
}

/// `AliasConfiguration`.
pub fn alias(place: &Place, function: &FunctionName, name: &AliasName, alias: &Alias) -> Value {
    let qualifier = Qualifier::Alias(name.clone());
    let mut shown = json!({
        "AliasArn": place.qualified_arn(function, &qualifier),
        "Name": name.as_str(),
        "FunctionVersion": alias.version.to_string(),
        "Description": alias.description,
        "RevisionId": alias.revision_id.to_string(),
    });
    if let Some((number, weight)) = alias.additional {
        let mut weights = Map::new();
        weights.insert(number.to_string(), json!(weight));
        shown["RoutingConfig"] = json!({ "AdditionalVersionWeights": weights });
    }
    shown
}

/// `FunctionEventInvokeConfig`.
pub fn event_config(
    place: &Place,
    function: &FunctionName,
    qualifier: &Qualifier,
    config: &EventConfig,
) -> Value {
    let mut shown = json!({
        "FunctionArn": place.qualified_arn(function, qualifier),
        // A number of seconds, unlike every other time of this API.
        "LastModified": config.modified_unix_ms as f64 / 1000.0,
        "DestinationConfig": { "OnSuccess": {}, "OnFailure": {} },
    });
    if let Some(retries) = config.retries_max {
        shown["MaximumRetryAttempts"] = json!(retries);
    }
    if let Some(seconds) = config.age_max_s {
        shown["MaximumEventAgeInSeconds"] = json!(seconds);
    }
    shown
}
