//! The operations of the AWS Lambda API and how a request names one.
//!
//! The table has every operation that AWS's own model lists, so that one that is not served here is refused by its
//! name.

use hyper::Method;

use crate::text::percent_decode;

/// An operation that is served here, by its name in AWS's API reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    CreateAlias,
    CreateFunction,
    DeleteAlias,
    DeleteFunction,
    DeleteFunctionConcurrency,
    DeleteFunctionEventInvokeConfig,
    DeleteProvisionedConcurrencyConfig,
    GetAccountSettings,
    GetAlias,
    GetFunction,
    GetFunctionCodeSigningConfig,
    GetFunctionConcurrency,
    GetFunctionConfiguration,
    GetFunctionEventInvokeConfig,
    GetFunctionRecursionConfig,
    GetPolicy,
    GetProvisionedConcurrencyConfig,
    GetRuntimeManagementConfig,
    Invoke,
    InvokeAsync,
    ListAliases,
    ListEventSourceMappings,
    ListFunctionEventInvokeConfigs,
    ListFunctionUrlConfigs,
    ListFunctions,
    ListLayers,
    ListProvisionedConcurrencyConfigs,
    ListTags,
    ListVersionsByFunction,
    PublishVersion,
    PutFunctionConcurrency,
    PutFunctionEventInvokeConfig,
    PutProvisionedConcurrencyConfig,
    TagResource,
    UntagResource,
    UpdateAlias,
    UpdateFunctionCode,
    UpdateFunctionConfiguration,
    UpdateFunctionEventInvokeConfig,
}

/// What a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// An operation, with the parts of the path that it names.
    Served(Operation, Captures),
    /// An operation of the API that is not served here.
    Unserved(&'static str),
    /// The path is one of the API's, the method is not.
    WrongMethod,
    /// No operation of the API.
    Unknown,
}

/// The parts of a path that a template names, decoded, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Captures(Vec<String>);

impl FromIterator<String> for Captures {
    fn from_iter<T: IntoIterator<Item = String>>(parts: T) -> Self {
        Self(parts.into_iter().collect())
    }
}

impl Captures {
    /// A part by its position; empty when the template has fewer.
    pub fn get(&self, position: usize) -> &str {
        self.0.get(position).map_or("", String::as_str)
    }
}

use Operation as Op;

/// Operations that are served, the most frequent first: method, path, operation. One line each.
#[rustfmt::skip]
const SERVED: &[(&str, &str, Operation)] = &[
    ("POST", "/2015-03-31/functions/{}/invocations", Op::Invoke),
    ("POST", "/2014-11-13/functions/{}/invoke-async", Op::InvokeAsync),
    ("POST", "/2015-03-31/functions", Op::CreateFunction),
    ("GET", "/2015-03-31/functions", Op::ListFunctions),
    ("GET", "/2015-03-31/functions/{}", Op::GetFunction),
    ("DELETE", "/2015-03-31/functions/{}", Op::DeleteFunction),
    ("GET", "/2015-03-31/functions/{}/configuration", Op::GetFunctionConfiguration),
    ("PUT", "/2015-03-31/functions/{}/configuration", Op::UpdateFunctionConfiguration),
    ("PUT", "/2015-03-31/functions/{}/code", Op::UpdateFunctionCode),
    ("POST", "/2015-03-31/functions/{}/versions", Op::PublishVersion),
    ("GET", "/2015-03-31/functions/{}/versions", Op::ListVersionsByFunction),
    ("POST", "/2015-03-31/functions/{}/aliases", Op::CreateAlias),
    ("GET", "/2015-03-31/functions/{}/aliases", Op::ListAliases),
    ("GET", "/2015-03-31/functions/{}/aliases/{}", Op::GetAlias),
    ("PUT", "/2015-03-31/functions/{}/aliases/{}", Op::UpdateAlias),
    ("DELETE", "/2015-03-31/functions/{}/aliases/{}", Op::DeleteAlias),
    ("GET", "/2015-03-31/functions/{}/policy", Op::GetPolicy),
    ("PUT", "/2017-10-31/functions/{}/concurrency", Op::PutFunctionConcurrency),
    ("DELETE", "/2017-10-31/functions/{}/concurrency", Op::DeleteFunctionConcurrency),
    ("GET", "/2019-09-30/functions/{}/concurrency", Op::GetFunctionConcurrency),
    ("GET", "/2019-09-30/functions/{}/provisioned-concurrency?List=ALL", Op::ListProvisionedConcurrencyConfigs),
    ("PUT", "/2019-09-30/functions/{}/provisioned-concurrency", Op::PutProvisionedConcurrencyConfig),
    ("GET", "/2019-09-30/functions/{}/provisioned-concurrency", Op::GetProvisionedConcurrencyConfig),
    ("DELETE", "/2019-09-30/functions/{}/provisioned-concurrency", Op::DeleteProvisionedConcurrencyConfig),
    ("PUT", "/2019-09-25/functions/{}/event-invoke-config", Op::PutFunctionEventInvokeConfig),
    ("POST", "/2019-09-25/functions/{}/event-invoke-config", Op::UpdateFunctionEventInvokeConfig),
    ("GET", "/2019-09-25/functions/{}/event-invoke-config", Op::GetFunctionEventInvokeConfig),
    ("DELETE", "/2019-09-25/functions/{}/event-invoke-config", Op::DeleteFunctionEventInvokeConfig),
    ("GET", "/2019-09-25/functions/{}/event-invoke-config/list", Op::ListFunctionEventInvokeConfigs),
    ("GET", "/2017-03-31/tags/{}", Op::ListTags),
    ("POST", "/2017-03-31/tags/{}", Op::TagResource),
    ("DELETE", "/2017-03-31/tags/{}", Op::UntagResource),
    ("GET", "/2016-08-19/account-settings", Op::GetAccountSettings),
    ("GET", "/2020-06-30/functions/{}/code-signing-config", Op::GetFunctionCodeSigningConfig),
    ("GET", "/2021-07-20/functions/{}/runtime-management-config", Op::GetRuntimeManagementConfig),
    ("GET", "/2024-08-31/functions/{}/recursion-config", Op::GetFunctionRecursionConfig),
    ("GET", "/2015-03-31/event-source-mappings", Op::ListEventSourceMappings),
    ("GET", "/2021-10-31/functions/{}/urls", Op::ListFunctionUrlConfigs),
    ("GET", "/2018-10-31/layers", Op::ListLayers),
];

/// Operations that AWS has and this server does not: name, method, path. One line each.
#[rustfmt::skip]
const UNSERVED: &[(&str, &str, &str)] = &[
    ("AddLayerVersionPermission", "POST", "/2018-10-31/layers/{}/versions/{}/policy"),
    ("AddPermission", "POST", "/2015-03-31/functions/{}/policy"),
    ("CheckpointDurableExecution", "POST", "/2025-12-01/durable-executions/{}/checkpoint"),
    ("CreateCapacityProvider", "POST", "/2025-11-30/capacity-providers"),
    ("CreateCodeSigningConfig", "POST", "/2020-04-22/code-signing-configs"),
    ("CreateEventSourceMapping", "POST", "/2015-03-31/event-source-mappings"),
    ("CreateFunctionUrlConfig", "POST", "/2021-10-31/functions/{}/url"),
    ("DeleteCapacityProvider", "DELETE", "/2025-11-30/capacity-providers/{}"),
    ("DeleteCodeSigningConfig", "DELETE", "/2020-04-22/code-signing-configs/{}"),
    ("DeleteDurableExecution", "DELETE", "/2025-12-01/durable-executions/{}"),
    ("DeleteEventSourceMapping", "DELETE", "/2015-03-31/event-source-mappings/{}"),
    ("DeleteFunctionCodeSigningConfig", "DELETE", "/2020-06-30/functions/{}/code-signing-config"),
    ("DeleteFunctionUrlConfig", "DELETE", "/2021-10-31/functions/{}/url"),
    ("DeleteLayerVersion", "DELETE", "/2018-10-31/layers/{}/versions/{}"),
    ("DeleteResourcePolicy", "DELETE", "/2026-07-09/resource-policy/{}"),
    ("GetCapacityProvider", "GET", "/2025-11-30/capacity-providers/{}"),
    ("GetCodeSigningConfig", "GET", "/2020-04-22/code-signing-configs/{}"),
    ("GetDurableExecution", "GET", "/2025-12-01/durable-executions/{}"),
    ("GetDurableExecutionHistory", "GET", "/2025-12-01/durable-executions/{}/history"),
    ("GetDurableExecutionState", "GET", "/2025-12-01/durable-executions/{}/state"),
    ("GetEventSourceMapping", "GET", "/2015-03-31/event-source-mappings/{}"),
    ("GetFunctionScalingConfig", "GET", "/2025-11-30/functions/{}/function-scaling-config"),
    ("GetFunctionUrlConfig", "GET", "/2021-10-31/functions/{}/url"),
    ("GetLayerVersion", "GET", "/2018-10-31/layers/{}/versions/{}"),
    ("GetLayerVersionPolicy", "GET", "/2018-10-31/layers/{}/versions/{}/policy"),
    ("GetResourcePolicy", "GET", "/2026-07-09/resource-policy/{}"),
    ("InvokeWithResponseStream", "POST", "/2021-11-15/functions/{}/response-streaming-invocations"),
    ("ListCapacityProviders", "GET", "/2025-11-30/capacity-providers"),
    ("ListCodeSigningConfigs", "GET", "/2020-04-22/code-signing-configs"),
    ("ListDurableExecutionsByFunction", "GET", "/2025-12-01/functions/{}/durable-executions"),
    ("ListFunctionVersionsByCapacityProvider", "GET", "/2025-11-30/capacity-providers/{}/function-versions"),
    ("ListFunctionsByCodeSigningConfig", "GET", "/2020-04-22/code-signing-configs/{}/functions"),
    ("ListLayerVersions", "GET", "/2018-10-31/layers/{}/versions"),
    ("PauseDurableExecution", "POST", "/2025-12-01/durable-executions/{}/pause"),
    ("PublishLayerVersion", "POST", "/2018-10-31/layers/{}/versions"),
    ("PutFunctionCodeSigningConfig", "PUT", "/2020-06-30/functions/{}/code-signing-config"),
    ("PutFunctionRecursionConfig", "PUT", "/2024-08-31/functions/{}/recursion-config"),
    ("PutFunctionScalingConfig", "PUT", "/2025-11-30/functions/{}/function-scaling-config"),
    ("PutResourcePolicy", "PUT", "/2026-07-09/resource-policy/{}"),
    ("PutRuntimeManagementConfig", "PUT", "/2021-07-20/functions/{}/runtime-management-config"),
    ("RemoveLayerVersionPermission", "DELETE", "/2018-10-31/layers/{}/versions/{}/policy/{}"),
    ("RemovePermission", "DELETE", "/2015-03-31/functions/{}/policy/{}"),
    ("ResumeDurableExecution", "POST", "/2025-12-01/durable-executions/{}/resume"),
    ("SendDurableExecutionCallbackFailure", "POST", "/2025-12-01/durable-execution-callbacks/{}/fail"),
    ("SendDurableExecutionCallbackHeartbeat", "POST", "/2025-12-01/durable-execution-callbacks/{}/heartbeat"),
    ("SendDurableExecutionCallbackSuccess", "POST", "/2025-12-01/durable-execution-callbacks/{}/succeed"),
    ("StopDurableExecution", "POST", "/2025-12-01/durable-executions/{}/stop"),
    ("UpdateCapacityProvider", "PUT", "/2025-11-30/capacity-providers/{}"),
    ("UpdateCodeSigningConfig", "PUT", "/2020-04-22/code-signing-configs/{}"),
    ("UpdateEventSourceMapping", "PUT", "/2015-03-31/event-source-mappings/{}"),
    ("UpdateFunctionUrlConfig", "PUT", "/2021-10-31/functions/{}/url"),
];

/// Finds the operation of a request. `path` and `query` are as they were sent.
pub fn route(method: &Method, path: &str, query: &str) -> Route {
    let mut other_method = false;
    for (of, template, operation) in SERVED {
        match matches(template, path, query) {
            Some(captures) if *of == method.as_str() => return Route::Served(*operation, captures),
            Some(_) => other_method = true,
            None => {}
        }
    }
    for (name, of, template) in UNSERVED {
        match matches(template, path, query) {
            Some(_) if *of == method.as_str() => return Route::Unserved(name),
            Some(_) => other_method = true,
            None => {}
        }
    }
    if other_method {
        Route::WrongMethod
    } else {
        Route::Unknown
    }
}

fn matches(template: &str, path: &str, query: &str) -> Option<Captures> {
    let (template, needed) = template
        .split_once('?')
        .map_or((template, None), |(t, q)| (t, Some(q)));
    if needed.is_some_and(|needed| !query.split('&').any(|part| part == needed)) {
        return None;
    }
    // SDKs differ in whether they send a slash at the end.
    let path = path.strip_suffix('/').unwrap_or(path);
    let (mut expected, mut found) = (template.split('/'), path.split('/'));
    let mut captures = Vec::new();
    loop {
        match (expected.next(), found.next()) {
            (None, None) => return Some(Captures(captures)),
            (Some("{}"), Some(part)) if !part.is_empty() => captures.push(percent_decode(part)),
            (Some(expected), Some(part)) if expected == part => {}
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(method: Method, path: &str, query: &str, expected: Route) {
        assert_eq!(route(&method, path, query), expected);
    }

    fn captures(parts: &[&str]) -> Captures {
        Captures(parts.iter().map(|part| (*part).to_owned()).collect())
    }

    #[test]
    fn requests_find_their_operation() {
        check(
            Method::POST,
            "/2015-03-31/functions/arn%3Aaws%3Alambda%3Ax/invocations",
            "",
            Route::Served(Op::Invoke, captures(&["arn:aws:lambda:x"])),
        );
        check(
            Method::GET,
            "/2015-03-31/functions/",
            "Marker=x",
            Route::Served(Op::ListFunctions, captures(&[])),
        );
        check(
            Method::PUT,
            "/2015-03-31/functions/f/aliases/live",
            "",
            Route::Served(Op::UpdateAlias, captures(&["f", "live"])),
        );
        let provisioned = "/2019-09-30/functions/f/provisioned-concurrency";
        check(
            Method::GET,
            provisioned,
            "List=ALL",
            Route::Served(Op::ListProvisionedConcurrencyConfigs, captures(&["f"])),
        );
        check(
            Method::GET,
            provisioned,
            "Qualifier=1",
            Route::Served(Op::GetProvisionedConcurrencyConfig, captures(&["f"])),
        );
        check(
            Method::POST,
            "/2018-10-31/layers/l/versions",
            "",
            Route::Unserved("PublishLayerVersion"),
        );
        check(Method::PATCH, "/2015-03-31/functions", "", Route::WrongMethod);
        check(
            Method::GET,
            "/2015-03-31/functions//configuration",
            "",
            Route::Unknown,
        );
        check(Method::GET, "/", "", Route::Unknown);
    }

    proptest! {
        #[test]
        fn hostile_paths_never_panic(path in "(/[%./{}a-z0-9-]{0,12}){0,8}|\\PC{0,100}", query in "\\PC{0,50}") {
            for method in [Method::GET, Method::POST, Method::PUT, Method::DELETE] {
                drop(route(&method, &path, &query));
                drop(crate::private::route(&method, &path));
            }
        }
    }
}
