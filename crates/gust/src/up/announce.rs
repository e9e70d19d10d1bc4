//! What a server says when it is ready.

use std::{io::Write, net::SocketAddr, time::Duration};

use gust_control::Control;
use gust_node::Isolation;

use super::{UpConfig, Wall};
use crate::paths;

/// Tells whoever has started the server where it is, and what comes next.
pub fn announce(
    config: &UpConfig,
    address: SocketAddr,
    wall: Wall,
    remark: Option<&str>,
    control: &Control,
    took: Duration,
    quiet: bool,
) {
    let mut text = format!(
        "gust {} is ready at http://{address}\n",
        env!("CARGO_PKG_VERSION")
    );
    if !quiet {
        let stats = control.stats();
        let wall = match wall {
            Wall::Sandbox(Isolation::Kvm) => "a KVM micro-VM for each instance",
            Wall::Sandbox(Isolation::Process) => "a process in namespaces for each instance (no KVM)",
            Wall::Fake => "none: nothing is run",
        };
        let runtimes = crate::commands::runtime::built(&paths::runtimes_dir(&config.data_dir));
        text.push_str(&format!("  after      {:.1} ms\n", took.as_secs_f64() * 1000.0));
        text.push_str(&format!("  data       {}\n", config.data_dir.display()));
        text.push_str(&format!("  isolation  {wall}\n"));
        let names: Vec<String> = runtimes.into_iter().map(|runtime| runtime.name).collect();
        let shown = if names.is_empty() {
            "none yet".to_owned()
        } else {
            names.join(", ")
        };
        text.push_str(&format!("  runtimes   {shown}\n"));
        text.push_str(&format!("  functions  {}", stats.functions));
        if stats.events > 0 {
            text.push_str(&format!(", {} asynchronous events waiting", stats.events));
        }
        text.push_str("\n\nnext:\n");
        if names.is_empty() {
            text.push_str("  gust runtime build python3.11\n");
        }
        text.push_str("  gust deploy DIR\n");
        text.push_str(&format!(
            "  aws --endpoint-url http://{address} lambda list-functions\n"
        ));
    }
    if let Some(remark) = remark {
        eprintln!("warning: {remark}");
    }
    if !address.ip().is_loopback() && config.auth.keys.is_empty() {
        eprintln!(
            "warning: {address} is reachable from elsewhere, but no access key is set: others are refused"
        );
    }
    let mut out = std::io::stdout().lock();
    // Whoever started the server may not read what it prints.
    let _closed = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
