//! What each operation does.

mod configuration;
mod functions;
mod invoke;
mod provisioned;
mod settings;
mod versions;

use gust_control::limits;
use hyper::HeaderMap;

pub(crate) use invoke::timings;

use crate::{
    operation::Operation,
    request::{Answer, Request},
};

/// Largest body of `CreateFunction` and `UpdateFunctionCode`: a package of 50 MB in base64, and room for the rest.
const UPLOAD_BYTES_MAX: usize = 70_167_211;

/// Largest body of every operation that takes neither a package nor a payload.
const SMALL_BYTES_MAX: usize = 1 << 20;

/// Largest body of an operation.
pub(crate) fn body_bytes_max(operation: Operation, headers: &HeaderMap) -> usize {
    match operation {
        Operation::Invoke if invoke::is_async(headers) => limits::ASYNC_PAYLOAD_BYTES_MAX,
        Operation::Invoke => limits::SYNC_PAYLOAD_BYTES_MAX,
        Operation::InvokeAsync => limits::ASYNC_PAYLOAD_BYTES_MAX,
        _ if is_upload(operation) => UPLOAD_BYTES_MAX,
        _ => SMALL_BYTES_MAX,
    }
}

/// The operation is a call that is answered with its result. It needs no store.
pub(crate) fn is_synchronous_call(operation: Operation, headers: &HeaderMap) -> bool {
    operation == Operation::Invoke && !invoke::is_async(headers)
}

/// The operation takes a package.
pub(crate) fn is_upload(operation: Operation) -> bool {
    matches!(
        operation,
        Operation::CreateFunction | Operation::UpdateFunctionCode
    )
}

/// The operation's name in errors about its body; AWS calls `Invoke` by another name there.
pub(crate) fn name(operation: Operation) -> &'static str {
    match operation {
        Operation::Invoke | Operation::InvokeAsync => "InvokeFunction",
        Operation::CreateFunction => "CreateFunction",
        Operation::UpdateFunctionCode => "UpdateFunctionCode",
        _ => "requested",
    }
}

/// Carries an operation out.
pub(crate) async fn handle(operation: Operation, request: Request<'_>) -> Answer {
    use Operation as Op;
    match operation {
        Op::CreateFunction => functions::create(request).await,
        Op::GetFunction => functions::get(&request),
        Op::GetFunctionConfiguration => functions::get_configuration(&request),
        Op::ListFunctions => functions::list(&request),
        Op::UpdateFunctionCode => functions::update_code(request).await,
        Op::UpdateFunctionConfiguration => functions::update_configuration(&request).await,
        Op::DeleteFunction => functions::delete(&request).await,
        Op::PublishVersion => versions::publish(&request).await,
        Op::ListVersionsByFunction => versions::list(&request),
        Op::CreateAlias => versions::create_alias(&request).await,
        Op::GetAlias => versions::get_alias(&request),
        Op::UpdateAlias => versions::update_alias(&request).await,
        Op::DeleteAlias => versions::delete_alias(&request).await,
        Op::ListAliases => versions::list_aliases(&request),
        Op::Invoke => invoke::invoke(request).await,
        Op::InvokeAsync => invoke::invoke_async(request).await,
        Op::PutFunctionConcurrency => settings::put_concurrency(&request).await,
        Op::GetFunctionConcurrency => settings::get_concurrency(&request),
        Op::DeleteFunctionConcurrency => settings::delete_concurrency(&request).await,
        Op::PutFunctionEventInvokeConfig => settings::put_event_config(&request, false).await,
        Op::UpdateFunctionEventInvokeConfig => settings::put_event_config(&request, true).await,
        Op::GetFunctionEventInvokeConfig => settings::get_event_config(&request),
        Op::DeleteFunctionEventInvokeConfig => settings::delete_event_config(&request).await,
        Op::ListFunctionEventInvokeConfigs => settings::list_event_configs(&request),
        Op::TagResource => settings::tag(&request).await,
        Op::UntagResource => settings::untag(&request).await,
        Op::ListTags => settings::list_tags(&request),
        Op::GetAccountSettings => settings::account(&request),
        Op::GetPolicy => settings::no_policy(&request),
        Op::GetFunctionCodeSigningConfig => settings::code_signing(&request),
        Op::GetRuntimeManagementConfig => settings::runtime_management(&request),
        Op::GetFunctionRecursionConfig => settings::recursion(&request),
        Op::ListEventSourceMappings => settings::empty_list("EventSourceMappings"),
        Op::ListLayers => settings::empty_list("Layers"),
        Op::ListFunctionUrlConfigs => settings::empty_list_of(&request, "FunctionUrlConfigs"),
        Op::PutProvisionedConcurrencyConfig => provisioned::put(&request).await,
        Op::GetProvisionedConcurrencyConfig => provisioned::get(&request),
        Op::DeleteProvisionedConcurrencyConfig => provisioned::delete(&request).await,
        Op::ListProvisionedConcurrencyConfigs => provisioned::list(&request),
    }
}
