//! Provisioned concurrency.

use gust_control::{ProvisionedStatus, ids::Target};
use hyper::StatusCode;
use serde_json::{Value, json};

use crate::{
    error::ApiError,
    present,
    request::{Answer, Request, json, no_content},
    validate::{Violations, number},
    wire::PutProvisionedConcurrency,
};

/// Settings that a page of a list has at most.
const PAGE_ITEMS_MAX: u32 = 50;

pub(super) async fn put(request: &Request<'_>) -> Answer {
    let target = qualified(request)?;
    let wire: PutProvisionedConcurrency = request.json()?;
    let requested = wire.provisioned_concurrent_executions;
    let mut violations = Violations::default();
    violations.required(requested.is_some(), "provisionedConcurrentExecutions");
    violations.range(requested, "provisionedConcurrentExecutions", 1, u32::MAX);
    violations.check()?;
    let requested = number(requested).unwrap_or(1);
    let status = request.control().provision(&target, requested).await?;
    json(StatusCode::ACCEPTED, &show(&status))
}

pub(super) fn get(request: &Request<'_>) -> Answer {
    let status = request.control().provisioned(&qualified(request)?)?;
    json(StatusCode::OK, &show(&status))
}

pub(super) async fn delete(request: &Request<'_>) -> Answer {
    request.control().delete_provisioned(&qualified(request)?).await?;
    no_content()
}

pub(super) fn list(request: &Request<'_>) -> Answer {
    let name = request.function()?;
    let all = request.control().all_provisioned(&name)?;
    let mut list: Vec<_> = all
        .into_iter()
        .map(|status| (status.qualifier.to_string(), status))
        .collect();
    list.sort_by(|(left, _), (right, _)| left.cmp(right));
    let (page, marker) = request.page(PAGE_ITEMS_MAX)?.cut(list);
    let shown = page.into_iter().map(|status| {
        let mut shown = show(&status);
        shown["FunctionArn"] = json!(request.place().qualified_arn(&name, &status.qualifier));
        shown
    });
    let mut answer = json!({ "ProvisionedConcurrencyConfigs": shown.collect::<Vec<_>>() });
    if let Some(marker) = marker {
        answer["NextMarker"] = json!(marker);
    }
    json(StatusCode::OK, &answer)
}

/// The version or alias of a request, which has to name one.
fn qualified(request: &Request<'_>) -> Result<Target, ApiError> {
    let target = request.target()?;
    let mut violations = Violations::default();
    violations.required(target.qualifier.is_some(), "qualifier");
    violations.check()?;
    Ok(target)
}

fn show(status: &ProvisionedStatus) -> Value {
    let mut shown = json!({
        "RequestedProvisionedConcurrentExecutions": status.provisioned.requested,
        "AllocatedProvisionedConcurrentExecutions": status.allocated,
        "AvailableProvisionedConcurrentExecutions": status.allocated,
        "Status": if status.is_ready() { "READY" } else { "IN_PROGRESS" },
        "LastModified": present::timestamp(status.provisioned.modified_unix_ms),
    });
    if !status.is_ready() {
        shown["StatusReason"] = json!("Instances are being made.");
    }
    shown
}
