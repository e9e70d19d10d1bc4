//! Functions: made, shown, changed, deleted.

use std::sync::Arc;

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use gust_control::{
    NewCode, NewFunction,
    ids::{Qualifier, Target, VersionNumber},
    limits,
    model::{Config, Function, Version},
};
use hyper::StatusCode;
use serde_json::json;

use super::configuration::{change_of, check_architectures, check_settings, refuse_unsupported};
use crate::{
    error::ApiError,
    names,
    present::{self, Detail},
    request::{Answer, Request, json, no_content},
    validate::Violations,
    wire::{Blob, CreateFunction, Settings, UpdateFunctionCode},
};

/// Functions that a page of a list has at most.
const PAGE_ITEMS_MAX: u32 = 50;

pub(super) async fn create(request: Request<'_>) -> Answer {
    let wire: CreateFunction<'_> = request.json()?;
    let name = wire.function_name.as_deref();
    let mut violations = Violations::default();
    violations.required(name.is_some(), "functionName");
    violations.required(wire.settings.role.is_some(), "role");
    violations.required(wire.code.is_some(), "code");
    violations.one_of(wire.package_type.as_deref(), "packageType", &["Image", "Zip"]);
    check_settings(&wire.settings, &mut violations);
    violations.check()?;
    if wire.package_type.as_deref() == Some("Image") {
        return Err(ApiError::invalid_parameter(
            "PackageType Image is not supported by this server; use Zip.",
        ));
    }
    let name = names::unqualified(request.place(), name.unwrap_or_default())?;
    let code = wire
        .code
        .ok_or_else(|| ApiError::internal("a request without code was let through"))?;
    let zip = zip_file(code.zip_file, code.s3_bucket.or(code.s3_key), code.image_uri)?;
    refuse_unsupported(&wire.settings)?;
    let (Some(runtime), Some(handler)) = (&wire.settings.runtime, &wire.settings.handler) else {
        return Err(ApiError::invalid_parameter(
            "Runtime and Handler are mandatory parameters for functions created with deployment packages.",
        ));
    };
    let base = Config {
        runtime: runtime.clone(),
        role: wire.settings.role.clone().unwrap_or_default(),
        handler: handler.clone(),
        description: String::new(),
        timeout_s: limits::TIMEOUT_S_DEFAULT,
        memory_mib: limits::MEMORY_MIB_MIN,
        tmp_mib: limits::TMP_MIB_MIN,
        environment: std::collections::BTreeMap::new(),
        tracing_active: false,
        log_group: None,
        snap_start: false,
        kms_key_arn: None,
    };
    let config = change_of(wire.settings).apply(&base)?;
    let (tags, publish) = (wire.tags.unwrap_or_default(), wire.publish);
    let new = NewFunction {
        name,
        config,
        zip,
        tags,
        publish,
    };
    let control = request.control().clone();
    let place = request.place().clone();
    drop(request);
    let (function, version) = control.create_function(new, present::base64).await?;
    let shown = present::configuration(
        &place,
        &function,
        &version,
        published(&version).as_ref(),
        Detail::Created,
    );
    json(StatusCode::CREATED, &shown)
}

/// The qualifier of an ARN that names a version for what it is; none for `$LATEST`.
fn published(version: &Version) -> Option<Qualifier> {
    match version.number {
        VersionNumber::Latest => None,
        number @ VersionNumber::Published(_) => Some(Qualifier::Version(number)),
    }
}

/// The package of a request.
fn zip_file(blob: Option<Blob<'_>>, s3: Option<String>, image: Option<String>) -> Result<Bytes, ApiError> {
    if image.is_some() {
        return Err(ApiError::invalid_parameter(
            "ImageUri is not supported by this server; use ZipFile.",
        ));
    }
    if s3.is_some() {
        return Err(ApiError::invalid_parameter(
            "Code from S3 is not supported by this server, which has no S3 yet; send the package as ZipFile.",
        ));
    }
    let Some(Blob(text)) = blob else {
        return Err(ApiError::invalid_parameter(
            "Please provide a source for function code.",
        ));
    };
    let zip = STANDARD
        .decode(text.as_bytes())
        .map_err(|error| ApiError::serialization(format!("ZipFile is not base64: {error}")))?;
    if zip.len() as u64 > limits::ZIPPED_BYTES_MAX {
        return Err(ApiError::too_large(super::UPLOAD_BYTES_MAX, "CreateFunction"));
    }
    Ok(zip.into())
}

pub(super) fn get(request: &Request<'_>) -> Answer {
    let target = request.target()?;
    let (function, version) = request.control().version(&target)?;
    let configuration = shown(request, &target, &function, &version);
    let host = request.header("host").unwrap_or("localhost");
    let location = request.gateway.downloads.link(host, &version.code.sha256);
    let mut answer = json!({
        "Configuration": configuration,
        "Code": { "RepositoryType": "S3", "Location": location },
    });
    if !function.shared.tags.is_empty() {
        answer["Tags"] = json!(function.shared.tags);
    }
    if let Some(reserved) = function.shared.reserved_concurrency {
        answer["Concurrency"] = json!({ "ReservedConcurrentExecutions": reserved });
    }
    json(StatusCode::OK, &answer)
}

pub(super) fn get_configuration(request: &Request<'_>) -> Answer {
    let target = request.target()?;
    let (function, version) = request.control().version(&target)?;
    json(StatusCode::OK, &shown(request, &target, &function, &version))
}

fn shown(
    request: &Request<'_>,
    target: &Target,
    function: &Function,
    version: &Version,
) -> serde_json::Value {
    present::configuration(
        request.place(),
        function,
        version,
        target.qualifier.as_ref(),
        Detail::Full,
    )
}

pub(super) fn list(request: &Request<'_>) -> Answer {
    let mut violations = Violations::default();
    violations.one_of(request.query("FunctionVersion"), "functionVersion", &["ALL"]);
    violations.check()?;
    let page = request.page(PAGE_ITEMS_MAX)?;
    let all = request.query("FunctionVersion") == Some("ALL");
    // Function by function, `$LATEST` first; the keys sort in this order.
    let mut versions = Vec::new();
    for function in request.control().functions() {
        for version in function.versions().take(if all { usize::MAX } else { 1 }) {
            let number = match version.number {
                VersionNumber::Latest => 0,
                VersionNumber::Published(number) => number,
            };
            let key = format!("{} {number:020}", function.shared.name);
            versions.push((key, (Arc::clone(&function), Arc::clone(version))));
        }
    }
    let (page, marker) = page.cut(versions);
    let show = |(function, version): (Arc<Function>, Arc<Version>)| {
        let qualifier = all.then_some(Qualifier::Version(version.number));
        present::configuration(
            request.place(),
            &function,
            &version,
            qualifier.as_ref(),
            Detail::Listed,
        )
    };
    let shown: Vec<_> = page.into_iter().map(show).collect();
    let mut answer = json!({ "Functions": shown });
    if let Some(marker) = marker {
        answer["NextMarker"] = json!(marker);
    }
    json(StatusCode::OK, &answer)
}

pub(super) async fn update_code(request: Request<'_>) -> Answer {
    let name = request.function()?;
    let wire: UpdateFunctionCode<'_> = request.json()?;
    let architectures = wire.architectures.unwrap_or_default();
    let mut violations = Violations::default();
    check_architectures(&architectures, &mut violations);
    violations.check()?;
    refuse_unsupported(&Settings {
        architectures: Some(architectures),
        ..Settings::default()
    })?;
    let zip = zip_file(wire.zip_file, wire.s3_bucket.or(wire.s3_key), wire.image_uri)?;
    let (publish, dry_run) = (wire.publish, wire.dry_run);
    let new = NewCode {
        zip,
        publish,
        dry_run,
        revision_id: wire.revision_id,
    };
    let (control, place) = (request.control().clone(), request.place().clone());
    drop(request);
    let (function, version) = control.update_code(&name, new, present::base64).await?;
    let qualifier = published(&version);
    json(
        StatusCode::OK,
        &present::configuration(&place, &function, &version, qualifier.as_ref(), Detail::Full),
    )
}

pub(super) async fn update_configuration(request: &Request<'_>) -> Answer {
    let name = request.function()?;
    let mut settings: Settings = request.json()?;
    let mut violations = Violations::default();
    check_settings(&settings, &mut violations);
    violations.check()?;
    refuse_unsupported(&settings)?;
    let revision_id = settings.revision_id.take();
    let change = change_of(settings);
    let (function, version) = request
        .control()
        .update_configuration(&name, change, revision_id)
        .await?;
    let target = Target::unqualified(name);
    json(StatusCode::OK, &shown(request, &target, &function, &version))
}

pub(super) async fn delete(request: &Request<'_>) -> Answer {
    request.control().delete(request.target()?).await?;
    no_content()
}
