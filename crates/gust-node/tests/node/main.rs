//! The node by its own API, with the real zygote and guests that do what their events say; the same scenarios for each
//! isolation. This program is the test, the zygote (`zygote` as its argument) and the guest (`guest`).

mod calls;
mod capacity;
#[path = "../../../gust-worker/tests/worker/guest.rs"]
mod guest;
mod named;
mod snapshots;
#[path = "../../../gust-worker/tests/worker/wild.rs"]
#[expect(dead_code, reason = "its counts are for the worker's own tests")]
mod wild;
mod world;

use std::process::ExitCode;

use gust_node::Isolation;
use libtest_mimic::Arguments;

use world::{run, trial};

/// Makes trials of async tests, each for one isolation.
macro_rules! trials {
    ($isolation:expr, $($module:ident :: $test:ident),* $(,)?) => {
        vec![$(trial($isolation, stringify!($test), || run($module::$test($isolation)))),*]
    };
}

/// What holds for every isolation.
macro_rules! everywhere {
    ($isolation:expr) => {
        trials![
            $isolation,
            calls::calls_are_served_by_the_instance_that_is_there,
            calls::the_runtime_api_is_served,
            calls::a_function_that_cannot_be_initialised,
            calls::a_program_that_is_missing,
            calls::a_program_that_cannot_be_run,
            calls::guests_end_and_the_next_call_works,
            calls::a_guest_that_runs_too_long,
            calls::an_initialisation_that_takes_too_long,
            calls::memory_that_was_given_back_is_told,
            calls::a_guest_that_wants_more_memory_than_it_may_have,
            calls::log_arrives_and_is_bounded,
            calls::large_responses_are_refused,
            calls::guests_that_fork_and_open_files,
            calls::layers_and_environment,
            calls::deployments_are_remembered_by_name,
            calls::two_versions_at_once,
            capacity::a_worker_that_is_killed_during_a_call,
            capacity::an_instance_that_is_killed_while_it_rests,
            capacity::a_worker_that_is_killed_before_it_is_prepared,
            capacity::a_zygote_that_is_killed,
            capacity::the_pool_refills,
            capacity::places_are_bounded_and_calls_wait,
            capacity::memory_is_bounded,
            capacity::calls_wait_so_long_and_no_longer,
            capacity::other_versions_give_way,
            capacity::idle_instances_go,
            capacity::evicted_instances_end,
            capacity::a_version_that_is_removed_while_it_runs,
            capacity::a_call_that_is_given_up_runs_to_its_end,
            capacity::a_stop_lets_calls_finish,
            capacity::a_stop_ends_what_takes_too_long,
            calls::an_event_that_no_worker_has_read_is_delivered_again,
            named::calls_are_served_by_the_instance_that_is_meant,
            named::instances_are_made_ahead,
            named::instances_end_when_they_are_told_to,
            named::loads_are_told_while_calls_run,
            named::lost_instances_are_told_and_replaced,
            named::only_the_nameless_go_for_their_age,
            named::fresh_instances_keep_their_names,
        ]
    };
}

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("zygote") => return gust_worker::zygote::main(),
        Some("guest") => return guest::main(),
        _ => {}
    }
    if let Ok(filter) = tracing_subscriber::EnvFilter::try_from_env("GUST_LOG") {
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .init();
    }
    let arguments = Arguments::from_args();
    let mut trials = everywhere![Isolation::Process];
    trials.extend(trials![
        Isolation::Process,
        calls::fresh_memory_for_each_call,
        calls::a_directory_that_others_may_not_enter,
    ]);
    match std::fs::File::options().read(true).write(true).open("/dev/kvm") {
        Err(error) => {
            eprintln!("SKIPPED: every test of micro-VMs, because /dev/kvm cannot be opened: {error}");
        }
        Ok(_) => {
            trials.extend(everywhere![Isolation::Kvm]);
            trials.extend(trials![
                Isolation::Kvm,
                snapshots::snapshots_outlive_the_node,
                snapshots::damaged_files_are_made_anew,
                snapshots::a_snapshot_of_another_processor_is_made_anew,
                snapshots::layouts_are_learned_from_the_first_runs,
                snapshots::what_has_no_room_in_memory_is_used_on_disk,
                snapshots::idle_instances_are_frozen_and_go_on,
                snapshots::instances_are_armed_ahead,
                snapshots::functions_are_laid_out_on_their_base,
                snapshots::pages_can_be_kept_to_one_version,
                snapshots::memory_is_given_back_after_every_call,
                snapshots::memory_that_cannot_be_given_back_is_not_used_again,
                snapshots::no_two_instances_are_alike,
                named::ended_instances_are_armed_again,
                snapshots::a_version_that_is_removed_leaves_nothing,
            ]);
        }
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}
