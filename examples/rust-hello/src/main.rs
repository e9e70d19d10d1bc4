//! A function in Rust, as AWS documents it: the crate `lambda_runtime` and nothing of Gust.

use lambda_runtime::{Error, LambdaEvent, run, service_fn};
use serde_json::{Value, json};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    run(service_fn(hello)).await
}

async fn hello(event: LambdaEvent<Value>) -> Result<Value, Error> {
    let name = event.payload["name"].as_str().unwrap_or("world");
    println!("saying hello to {name}");
    if name == "nobody" {
        return Err("nobody is here".into());
    }
    Ok(json!({ "message": format!("hello, {name}"), "request_id": event.context.request_id }))
}
