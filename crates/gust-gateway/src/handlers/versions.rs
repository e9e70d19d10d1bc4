//! Published versions and aliases.

use gust_control::{
    AliasChange, PublishRequest,
    ids::{Qualifier, VersionNumber},
};
use hyper::StatusCode;
use serde_json::json;

use crate::{
    error::ApiError,
    names,
    present::{self, Detail},
    request::{Answer, Request, json, no_content},
    validate::Violations,
    wire::{AliasRequest, PublishVersion, RoutingConfig},
};

/// Versions or aliases that a page of a list has at most.
const PAGE_ITEMS_MAX: u32 = 50;

const VERSION_PATTERN: &str = r"(\$LATEST|[0-9]+)";

pub(super) async fn publish(request: &Request<'_>) -> Answer {
    let name = request.function()?;
    let wire: PublishVersion = request.json()?;
    let mut violations = Violations::default();
    if let Some(description) = &wire.description {
        violations.length_max(description, "description", 256);
    }
    violations.check()?;
    let publish = PublishRequest {
        code_sha256: wire.code_sha256.filter(|text| !text.is_empty()),
        revision_id: wire.revision_id.filter(|text| !text.is_empty()),
        description: wire.description,
    };
    let (function, version) = request
        .control()
        .publish_version(&name, publish, present::base64)
        .await?;
    let qualifier = Qualifier::Version(version.number);
    let shown = present::configuration(
        request.place(),
        &function,
        &version,
        Some(&qualifier),
        Detail::Full,
    );
    json(StatusCode::CREATED, &shown)
}

pub(super) fn list(request: &Request<'_>) -> Answer {
    let function = request.control().function(&request.function()?)?;
    let page = request.page(PAGE_ITEMS_MAX)?;
    let versions = function.versions().map(|version| {
        let number = match version.number {
            VersionNumber::Latest => 0,
            VersionNumber::Published(number) => number,
        };
        (format!("{number:020}"), version)
    });
    let (page, marker) = page.cut(versions.collect());
    let show = |version| {
        let version: &std::sync::Arc<gust_control::model::Version> = version;
        let qualifier = Qualifier::Version(version.number);
        present::configuration(
            request.place(),
            &function,
            version,
            Some(&qualifier),
            Detail::Listed,
        )
    };
    let shown: Vec<_> = page.into_iter().map(show).collect();
    let mut answer = json!({ "Versions": shown });
    if let Some(marker) = marker {
        answer["NextMarker"] = json!(marker);
    }
    json(StatusCode::OK, &answer)
}

pub(super) async fn create_alias(request: &Request<'_>) -> Answer {
    let function = request.function()?;
    let wire: AliasRequest = request.json()?;
    let mut violations = Violations::default();
    violations.required(wire.name.is_some(), "name");
    violations.required(wire.function_version.is_some(), "functionVersion");
    check_alias(&wire, &mut violations);
    violations.check()?;
    let name = names::alias(wire.name.as_deref().unwrap_or_default())?;
    let version = version_number(wire.function_version.as_deref().unwrap_or_default())?;
    let additional = wire.routing_config.map(additional).transpose()?.flatten();
    let description = wire.description.unwrap_or_default();
    let alias = request
        .control()
        .create_alias(&function, name.clone(), version, description, additional)
        .await?;
    json(
        StatusCode::CREATED,
        &present::alias(request.place(), &function, &name, &alias),
    )
}

pub(super) async fn update_alias(request: &Request<'_>) -> Answer {
    let function = request.function()?;
    let name = names::alias(request.captures.get(1))?;
    let wire: AliasRequest = request.json()?;
    let mut violations = Violations::default();
    check_alias(&wire, &mut violations);
    violations.check()?;
    let change = AliasChange {
        version: wire.function_version.as_deref().map(version_number).transpose()?,
        description: wire.description,
        additional: wire.routing_config.map(additional).transpose()?,
        revision_id: wire.revision_id.filter(|text| !text.is_empty()),
    };
    let alias = request
        .control()
        .update_alias(&function, name.clone(), change)
        .await?;
    json(
        StatusCode::OK,
        &present::alias(request.place(), &function, &name, &alias),
    )
}

pub(super) fn get_alias(request: &Request<'_>) -> Answer {
    let function = request.function()?;
    let name = names::alias(request.captures.get(1))?;
    let alias = request.control().alias(&function, &name)?;
    json(
        StatusCode::OK,
        &present::alias(request.place(), &function, &name, &alias),
    )
}

pub(super) async fn delete_alias(request: &Request<'_>) -> Answer {
    let function = request.function()?;
    let name = names::alias(request.captures.get(1))?;
    request.control().delete_alias(&function, name).await?;
    no_content()
}

pub(super) fn list_aliases(request: &Request<'_>) -> Answer {
    let name = request.function()?;
    let function = request.control().function(&name)?;
    let page = request.page(PAGE_ITEMS_MAX)?;
    let only = request.query("FunctionVersion").map(version_number).transpose()?;
    let aliases = function.shared.aliases.iter().filter(|(_, alias)| {
        let second = alias
            .additional
            .map(|(number, _)| VersionNumber::Published(number));
        only.is_none_or(|only| only == alias.version || Some(only) == second)
    });
    let (page, marker) = page.cut(
        aliases
            .map(|(name, alias)| (name.to_string(), (name, alias)))
            .collect(),
    );
    let show = |(alias_name, alias)| present::alias(request.place(), &name, alias_name, alias);
    let shown: Vec<_> = page.into_iter().map(show).collect();
    let mut answer = json!({ "Aliases": shown });
    if let Some(marker) = marker {
        answer["NextMarker"] = json!(marker);
    }
    json(StatusCode::OK, &answer)
}

fn check_alias(wire: &AliasRequest, violations: &mut Violations) {
    if let Some(description) = &wire.description {
        violations.length_max(description, "description", 256);
    }
    if let Some(name) = &wire.name {
        violations.length_min(name, "name", 1);
        violations.length_max(name, "name", gust_control::ids::ALIAS_NAME_BYTES_MAX);
    }
}

fn version_number(text: &str) -> Result<VersionNumber, ApiError> {
    VersionNumber::parse(text).ok_or_else(|| {
        let mut violations = Violations::default();
        violations.pattern(text, "functionVersion", VERSION_PATTERN);
        violations.into_error()
    })
}

/// The second version of a routing configuration. No weights, or an empty map, means none.
fn additional(routing: RoutingConfig) -> Result<Option<(u64, f64)>, ApiError> {
    let weights = routing.additional_version_weights.unwrap_or_default();
    let mut weights = weights.into_iter();
    let (first, second) = (weights.next(), weights.next());
    match (first, second) {
        (None, _) => Ok(None),
        (Some((version, weight)), None) => match version_number(&version)? {
            VersionNumber::Published(number) => Ok(Some((number, weight))),
            VersionNumber::Latest => Err(ApiError::invalid_parameter(
                "$LATEST is not supported for an alias pointing to more than 1 version",
            )),
        },
        (Some(_), Some(_)) => Err(ApiError::invalid_parameter(
            "Number of items in AdditionalVersionWeights cannot be greater than 1",
        )),
    }
}
