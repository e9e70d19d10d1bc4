//! A cluster of real processes: a control plane's side in this process, agents in network namespaces of their own, with
//! addresses of their own, on a bridge that this test makes. Everything is in a namespace of this test, so that nothing of
//! the machine changes and nothing stays. This program is the test, the agent (`agent`), the zygote and the guest.

mod agent;
#[path = "../../../gust-worker/tests/worker/guest.rs"]
mod guest;
mod lab;
mod revoke;
mod scenarios;
mod trust;
#[path = "../../../gust-worker/tests/worker/wild.rs"]
#[expect(dead_code, reason = "its counts are for the worker's own tests")]
mod wild;
#[path = "../../../gust-node/tests/node/world.rs"]
#[expect(dead_code, reason = "most of it is for the node's own tests")]
mod world;

use std::process::ExitCode;

use gust_node::Isolation;
use libtest_mimic::{Arguments, Trial};

use world::{run, trial};

/// Makes trials of async tests, each for one isolation.
macro_rules! trials {
    ($isolation:expr, $($test:ident),* $(,)?) => {
        vec![$(trial($isolation, stringify!($test), move || run(scenarios::$test($isolation)))),*]
    };
}

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("zygote") => return gust_worker::zygote::main(),
        Some("guest") => return guest::main(),
        Some("agent") => return agent::main(),
        _ => {}
    }
    let arguments = Arguments::from_args();
    let mut trials = vec![
        Trial::test("newcomers_need_a_good_token", || {
            run(trust::newcomers_need_a_good_token())
        }),
        Trial::test("nodes_of_other_clusters_are_refused", || {
            run(trust::nodes_of_other_clusters_are_refused())
        }),
        Trial::test("versions_that_only_a_node_knows_are_not_remembered", || {
            run(trust::versions_that_only_a_node_knows_are_not_remembered())
        }),
    ];
    match lab::enter() {
        Ok(()) => {
            log();
            trials.extend(everywhere(Isolation::Process));
            match std::fs::File::options().read(true).write(true).open("/dev/kvm") {
                Err(error) => eprintln!("SKIPPED: nodes with micro-VMs, /dev/kvm cannot be opened: {error}"),
                Ok(_) => {
                    trials.extend(everywhere(Isolation::Kvm));
                    trials.extend(trials![
                        Isolation::Kvm,
                        a_snapshot_of_one_node_is_restored_on_another,
                        a_snapshot_that_cannot_be_had_is_made,
                    ]);
                }
            }
        }
        Err(reason) => eprintln!("SKIPPED: clusters in network namespaces: {reason}"),
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn everywhere(isolation: Isolation) -> Vec<Trial> {
    let mut trials = trials![
        isolation,
        functions_run_on_every_node,
        a_node_that_is_killed_fails_its_calls_alone,
        a_node_that_is_cut_off_fails_its_calls_alone_and_comes_back,
        a_control_plane_that_starts_again_learns_what_is_there,
        a_node_that_leaves_fails_no_call,
        what_is_removed_is_removed_everywhere,
    ];
    trials.push(trial(
        isolation,
        "a_node_that_is_thrown_out_is_let_in_by_no_one",
        move || run(revoke::a_node_that_is_thrown_out_is_let_in_by_no_one(isolation)),
    ));
    trials
}

fn log() {
    if let Ok(filter) = tracing_subscriber::EnvFilter::try_from_env("GUST_LOG") {
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .init();
    }
}
