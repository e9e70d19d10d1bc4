//! What the runtime device's messages say (`docs/runtime-device.md`), whichever way they reach the runtime.

use serde_json::{Map, Value};

use crate::{protocol::InitSpec, runtime_api::Event};

/// The function, for a runtime to load: a JSON document.
pub(crate) fn function(init: &InitSpec) -> String {
    let function = serde_json::json!({
        "handler": init.handler,
        "environment": object(&init.environment),
        "task_root": init.task_root,
    });
    function.to_string()
}

/// The fields of an event. `renewal` stands before the last, and ends with a line feed unless it is empty.
pub(crate) fn event(event: &Event, renewal: &str) -> String {
    // Fields end at line feeds; only the last may hold any.
    let line = |text: &str| text.replace('\n', " ");
    format!(
        "{}\n{}\n{}\n{}\n{renewal}{}",
        line(&event.request_id),
        event.deadline_unix_ms,
        line(&event.function_arn),
        line(&event.trace_id),
        event.client_context
    )
}

/// Names and values as a JSON object.
pub(crate) fn object(pairs: &[(String, String)]) -> Value {
    let pairs = pairs
        .iter()
        .map(|(name, value)| (name.clone(), value.clone().into()));
    Value::Object(pairs.collect::<Map<_, _>>())
}
