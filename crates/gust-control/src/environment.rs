//! The environment variables that the platform gives to every function, beside its own.

use std::collections::BTreeMap;

use crate::{
    ids::{FunctionName, Place},
    model::Version,
};

/// Where a function's code is mounted.
pub const TASK_ROOT: &str = "/var/task";

/// Credentials of every instance. They open nothing outside this server, and a snapshot may hold them: they are the
/// same for everyone and always.
const CREDENTIAL: &str = "test";

/// The log group of a function that names none.
pub fn default_log_group(name: &FunctionName) -> String {
    format!("/aws/lambda/{name}")
}

/// All environment variables of a version. The node adds what differs between instances.
pub fn variables(place: &Place, name: &FunctionName, version: &Version) -> BTreeMap<String, String> {
    let config = &version.config;
    let mut variables = BTreeMap::new();
    let fixed = [
        ("LAMBDA_TASK_ROOT", TASK_ROOT),
        ("LAMBDA_RUNTIME_DIR", "/var/runtime"),
        ("TZ", ":UTC"),
        ("LANG", "en_US.UTF-8"),
        ("PATH", "/var/lang/bin:/usr/local/bin:/usr/bin/:/bin:/opt/bin"),
        (
            "LD_LIBRARY_PATH",
            "/var/lang/lib:/lib64:/usr/lib64:/var/runtime:/var/runtime/lib:/var/task:/var/task/lib:/opt/lib",
        ),
        ("AWS_ACCESS_KEY_ID", CREDENTIAL),
        ("AWS_SECRET_ACCESS_KEY", CREDENTIAL),
        ("AWS_SESSION_TOKEN", CREDENTIAL),
        ("AWS_REGION", &place.region),
        ("AWS_DEFAULT_REGION", &place.region),
        ("AWS_LAMBDA_FUNCTION_NAME", name.as_str()),
        (
            "AWS_LAMBDA_INITIALIZATION_TYPE",
            if config.snap_start {
                "snap-start"
            } else {
                "on-demand"
            },
        ),
        ("_HANDLER", &config.handler),
    ];
    for (key, value) in fixed {
        variables.insert(key.to_owned(), value.to_owned());
    }
    // The function's own come second: PATH, TZ and LANG are its to change. Names that are not were refused.
    variables.extend(config.environment.clone());
    let group = config
        .log_group
        .clone()
        .unwrap_or_else(|| default_log_group(name));
    for (key, value) in [
        ("AWS_LAMBDA_FUNCTION_VERSION", version.number.to_string()),
        ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", config.memory_mib.to_string()),
        ("AWS_EXECUTION_ENV", format!("AWS_Lambda_{}", config.runtime)),
        ("AWS_LAMBDA_LOG_GROUP_NAME", group),
    ] {
        variables.insert(key.to_owned(), value);
    }
    variables
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ids::VersionNumber, model::tests::version};

    #[test]
    fn the_functions_own_variables_win_where_they_may() {
        let place = Place {
            region: "eu-west-1".to_owned(),
            account_id: "000000000000".to_owned(),
        };
        let mut version = version(VersionNumber::Published(3));
        version.config.environment = BTreeMap::from([("TZ".to_owned(), "Europe/Berlin".to_owned())]);
        let variables = variables(&place, &FunctionName::new("hello").unwrap(), &version);
        for (name, value) in [
            ("TZ", "Europe/Berlin"),
            ("AWS_REGION", "eu-west-1"),
            ("AWS_LAMBDA_FUNCTION_VERSION", "3"),
            ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "128"),
            ("AWS_EXECUTION_ENV", "AWS_Lambda_python3.11"),
            ("AWS_LAMBDA_LOG_GROUP_NAME", "/aws/lambda/hello"),
            ("_HANDLER", "app.handler"),
        ] {
            assert_eq!(variables.get(name).map(String::as_str), Some(value), "{name}");
        }
    }
}
