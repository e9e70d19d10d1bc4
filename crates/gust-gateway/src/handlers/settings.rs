//! Concurrency, asynchronous events, tags, the account, and what every function has here without being asked.

use std::collections::BTreeMap;

use gust_control::{
    EventConfigChange,
    ids::{FunctionName, Qualifier},
    limits, retry,
};
use hyper::StatusCode;
use serde_json::json;

use crate::{
    error::ApiError,
    names, present,
    request::{Answer, Request, json, no_content},
    validate::{Violations, number},
    wire::{EventInvokeConfig, PutConcurrency, TagResource},
};

/// Settings of asynchronous events that a page of a list has at most.
const PAGE_ITEMS_MAX: u32 = 50;

pub(super) async fn put_concurrency(request: &Request<'_>) -> Answer {
    let name = request.function()?;
    let wire: PutConcurrency = request.json()?;
    let reserved = wire.reserved_concurrent_executions;
    let mut violations = Violations::default();
    violations.required(reserved.is_some(), "reservedConcurrentExecutions");
    violations.range(reserved, "reservedConcurrentExecutions", 0, u32::MAX);
    violations.check()?;
    request
        .control()
        .reserve_concurrency(&name, number(reserved))
        .await?;
    json(
        StatusCode::OK,
        &json!({ "ReservedConcurrentExecutions": reserved }),
    )
}

pub(super) fn get_concurrency(request: &Request<'_>) -> Answer {
    let function = request.control().function(&request.function()?)?;
    match function.shared.reserved_concurrency {
        Some(reserved) => json(
            StatusCode::OK,
            &json!({ "ReservedConcurrentExecutions": reserved }),
        ),
        None => json(StatusCode::OK, &json!({})),
    }
}

pub(super) async fn delete_concurrency(request: &Request<'_>) -> Answer {
    let name = request.function()?;
    request.control().reserve_concurrency(&name, None).await?;
    no_content()
}

pub(super) async fn put_event_config(request: &Request<'_>, keep_others: bool) -> Answer {
    let target = request.target()?;
    let wire: EventInvokeConfig = request.json()?;
    let mut violations = Violations::default();
    violations.range(
        wire.maximum_retry_attempts,
        "maximumRetryAttempts",
        0,
        retry::RETRIES_DEFAULT,
    );
    let age_max = u32::try_from(retry::AGE_MAX_DEFAULT.as_secs()).unwrap_or(u32::MAX);
    violations.range(
        wire.maximum_event_age_in_seconds,
        "maximumEventAgeInSeconds",
        60,
        age_max,
    );
    violations.check()?;
    let destinations = wire
        .destination_config
        .iter()
        .filter_map(|value| value.as_object())
        .flatten();
    if destinations
        .into_iter()
        .any(|(_, value)| value.get("Destination").is_some_and(|arn| !arn.is_null()))
    {
        return Err(ApiError::invalid_parameter(
            "Destinations are not supported by this server.",
        ));
    }
    let change = EventConfigChange {
        retries_max: number(wire.maximum_retry_attempts),
        age_max_s: number(wire.maximum_event_age_in_seconds),
        keep_others,
    };
    if !keep_others && change.retries_max.is_none() && change.age_max_s.is_none() {
        return Err(ApiError::invalid_parameter(
            "You must specify at least one of error handling or destination setting.",
        ));
    }
    let config = request.control().set_event_config(&target, change).await?;
    let qualifier = target.qualifier_or_latest();
    json(
        StatusCode::OK,
        &present::event_config(request.place(), &target.name, qualifier, &config),
    )
}

pub(super) fn get_event_config(request: &Request<'_>) -> Answer {
    let target = request.target()?;
    let config = request.control().event_config(&target)?;
    let qualifier = target.qualifier_or_latest();
    json(
        StatusCode::OK,
        &present::event_config(request.place(), &target.name, qualifier, &config),
    )
}

pub(super) async fn delete_event_config(request: &Request<'_>) -> Answer {
    request.control().delete_event_config(&request.target()?).await?;
    no_content()
}

pub(super) fn list_event_configs(request: &Request<'_>) -> Answer {
    let name = request.function()?;
    let function = request.control().function(&name)?;
    let configs = function.shared.event_configs.iter();
    let list = configs.map(|(qualifier, config)| (qualifier.to_string(), (qualifier, config)));
    let mut list: Vec<_> = list.collect();
    list.sort_by(|(left, _), (right, _)| left.cmp(right));
    let (page, marker) = request.page(PAGE_ITEMS_MAX)?.cut(list);
    let show = |(qualifier, config)| present::event_config(request.place(), &name, qualifier, config);
    let shown: Vec<_> = page.into_iter().map(show).collect();
    let mut answer = json!({ "FunctionEventInvokeConfigs": shown });
    if let Some(marker) = marker {
        answer["NextMarker"] = json!(marker);
    }
    json(StatusCode::OK, &answer)
}

/// The function whose tags a request names by its ARN.
fn tagged(request: &Request<'_>) -> Result<FunctionName, ApiError> {
    let arn = request.captures.get(0);
    if !arn.starts_with("arn:") {
        let mut violations = Violations::default();
        violations.pattern(arn, "resource", "arn:(aws[a-zA-Z-]*):lambda:.*:function:.*");
        return Err(violations.into_error());
    }
    let target = names::target(request.place(), arn, None)?;
    match target.qualifier {
        None => Ok(target.name),
        Some(Qualifier::Version(_) | Qualifier::Alias(_)) => Err(ApiError::invalid_parameter(
            "Tags on function aliases and versions are not supported. Please specify a function ARN.",
        )),
    }
}

pub(super) async fn tag(request: &Request<'_>) -> Answer {
    let name = tagged(request)?;
    let wire: TagResource = request.json()?;
    let mut violations = Violations::default();
    violations.required(wire.tags.is_some(), "tags");
    let tags = wire.tags.unwrap_or_default();
    for (key, value) in &tags {
        violations.length_min(key, "tags", 1);
        violations.length_max(key, "tags", 128);
        violations.length_max(value, "tags", 256);
    }
    violations.check()?;
    request.control().change_tags(&name, tags, Vec::new()).await?;
    no_content()
}

pub(super) async fn untag(request: &Request<'_>) -> Answer {
    let name = tagged(request)?;
    let keys: Vec<String> = request
        .query
        .iter()
        .filter(|(key, _)| key == "tagKeys")
        .map(|(_, value)| value.clone())
        .collect();
    let mut violations = Violations::default();
    violations.required(!keys.is_empty(), "tagKeys");
    violations.check()?;
    request
        .control()
        .change_tags(&name, BTreeMap::new(), keys)
        .await?;
    no_content()
}

pub(super) fn list_tags(request: &Request<'_>) -> Answer {
    let function = request.control().function(&tagged(request)?)?;
    json(StatusCode::OK, &json!({ "Tags": function.shared.tags }))
}

pub(super) fn account(request: &Request<'_>) -> Answer {
    let control = request.control();
    let bounds = &control.config().limits;
    let stats = control.stats();
    json(
        StatusCode::OK,
        &json!({
            "AccountLimit": {
                "TotalCodeSize": bounds.code_storage_bytes,
                "CodeSizeUnzipped": limits::UNZIPPED_BYTES_MAX,
                "CodeSizeZipped": limits::ZIPPED_BYTES_MAX,
                "ConcurrentExecutions": bounds.concurrency,
                "UnreservedConcurrentExecutions": control.unreserved_concurrency(),
            },
            "AccountUsage": { "TotalCodeSize": stats.code_bytes, "FunctionCount": stats.functions },
        }),
    )
}

/// No function has a resource policy here: who may call is decided by the configured keys.
pub(super) fn no_policy(request: &Request<'_>) -> Answer {
    request.control().version(&request.target()?)?;
    Err(ApiError::not_found("The resource you requested does not exist."))
}

pub(super) fn code_signing(request: &Request<'_>) -> Answer {
    let function = request.control().function(&request.function()?)?;
    // As for a function of AWS that has none.
    json(
        StatusCode::OK,
        &json!({ "CodeSigningConfigArn": "", "FunctionName": function.shared.name.as_str() }),
    )
}

pub(super) fn runtime_management(request: &Request<'_>) -> Answer {
    let target = request.target()?;
    request.control().version(&target)?;
    // Images of runtimes change only when the server's owner builds them.
    let arn = request.place().target_arn(&target);
    json(
        StatusCode::OK,
        &json!({ "UpdateRuntimeOn": "Manual", "FunctionArn": arn }),
    )
}

pub(super) fn recursion(request: &Request<'_>) -> Answer {
    request.control().function(&request.function()?)?;
    json(StatusCode::OK, &json!({ "RecursiveLoop": "Allow" }))
}

/// A list of what this server never has.
pub(super) fn empty_list(member: &str) -> Answer {
    json(StatusCode::OK, &json!({ member: [] }))
}

/// A list of what no function has here.
pub(super) fn empty_list_of(request: &Request<'_>, member: &str) -> Answer {
    request.control().function(&request.function()?)?;
    empty_list(member)
}
