//! The shapes of the AWS Lambda API, as far as this server reads and writes them. Members are documented in AWS's
//! API reference under the same names.

use std::{borrow::Cow, collections::BTreeMap};

use serde::{Deserialize, Serialize};

/// Base64 text that is borrowed from the request's body where that is possible: a package is large.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub struct Blob<'a>(#[serde(borrow)] pub Cow<'a, str>);

/// Text or a number that is not looked at, only whether it is there.
pub type Anything = serde_json::Value;

/// `CreateFunction`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct CreateFunction<'a> {
    pub function_name: Option<String>,
    #[serde(borrow)]
    pub code: Option<FunctionCode<'a>>,
    #[serde(default)]
    pub publish: bool,
    pub tags: Option<BTreeMap<String, String>>,
    pub package_type: Option<String>,
    #[serde(flatten)]
    pub settings: Settings,
}

/// `FunctionCode`, and `UpdateFunctionCode` without its other members.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct FunctionCode<'a> {
    #[serde(borrow)]
    pub zip_file: Option<Blob<'a>>,
    #[serde(rename = "S3Bucket")]
    pub s3_bucket: Option<String>,
    #[serde(rename = "S3Key")]
    pub s3_key: Option<String>,
    pub image_uri: Option<String>,
}

/// `UpdateFunctionCode`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct UpdateFunctionCode<'a> {
    #[serde(borrow)]
    pub zip_file: Option<Blob<'a>>,
    #[serde(rename = "S3Bucket")]
    pub s3_bucket: Option<String>,
    #[serde(rename = "S3Key")]
    pub s3_key: Option<String>,
    pub image_uri: Option<String>,
    pub architectures: Option<Vec<String>>,
    #[serde(default)]
    pub publish: bool,
    #[serde(default)]
    pub dry_run: bool,
    pub revision_id: Option<String>,
}

/// What `CreateFunction` and `UpdateFunctionConfiguration` have in common.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Settings {
    pub runtime: Option<String>,
    pub role: Option<String>,
    pub handler: Option<String>,
    pub description: Option<String>,
    pub timeout: Option<i64>,
    pub memory_size: Option<i64>,
    pub environment: Option<Environment>,
    pub ephemeral_storage: Option<EphemeralStorage>,
    pub tracing_config: Option<TracingConfig>,
    pub logging_config: Option<LoggingConfig>,
    pub snap_start: Option<SnapStart>,
    #[serde(rename = "KMSKeyArn")]
    pub kms_key_arn: Option<String>,
    pub architectures: Option<Vec<String>>,
    pub revision_id: Option<String>,
    // Refused unless they ask for nothing.
    pub vpc_config: Option<Anything>,
    pub dead_letter_config: Option<Anything>,
    pub layers: Option<Vec<Anything>>,
    pub file_system_configs: Option<Vec<Anything>>,
    pub image_config: Option<Anything>,
    pub code_signing_config_arn: Option<Anything>,
    pub tenancy_config: Option<Anything>,
    pub capacity_provider_config: Option<Anything>,
    pub durable_config: Option<Anything>,
}

/// `Environment`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Environment {
    pub variables: Option<BTreeMap<String, String>>,
}

/// `EphemeralStorage`.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct EphemeralStorage {
    pub size: i64,
}

/// `TracingConfig`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct TracingConfig {
    pub mode: Option<String>,
}

/// `LoggingConfig`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct LoggingConfig {
    pub log_format: Option<String>,
    pub log_group: Option<String>,
    pub application_log_level: Option<Anything>,
    pub system_log_level: Option<Anything>,
}

/// `SnapStart`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct SnapStart {
    pub apply_on: Option<String>,
}

/// `PublishVersion`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PublishVersion {
    #[serde(rename = "CodeSha256")]
    pub code_sha256: Option<String>,
    pub description: Option<String>,
    pub revision_id: Option<String>,
}

/// `CreateAlias` and `UpdateAlias`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct AliasRequest {
    pub name: Option<String>,
    pub function_version: Option<String>,
    pub description: Option<String>,
    pub routing_config: Option<RoutingConfig>,
    pub revision_id: Option<String>,
}

/// `AliasRoutingConfiguration`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RoutingConfig {
    pub additional_version_weights: Option<BTreeMap<String, f64>>,
}

/// `PutFunctionConcurrency`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct PutConcurrency {
    pub reserved_concurrent_executions: Option<i64>,
}

/// `PutProvisionedConcurrencyConfig`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct PutProvisionedConcurrency {
    pub provisioned_concurrent_executions: Option<i64>,
}

/// `PutFunctionEventInvokeConfig` and `UpdateFunctionEventInvokeConfig`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct EventInvokeConfig {
    pub maximum_retry_attempts: Option<i64>,
    pub maximum_event_age_in_seconds: Option<i64>,
    pub destination_config: Option<Anything>,
}

/// `TagResource`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct TagResource {
    pub tags: Option<BTreeMap<String, String>>,
}
