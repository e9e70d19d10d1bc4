//! Workers of both kinds, made by the real zygote and spoken to in frames. This program is the test, the zygote
//! (`zygote` as its argument) and the guest (`guest`).

mod grafts;
mod guest;
mod host;
mod hostile;
mod snapshots;
mod walls;
mod wild;

use std::{os::fd::AsFd, process::ExitCode, time::Duration};

use gust_worker::protocol::{
    AnswerKind, Command, GuestExit, LOG_BYTES_MAX, RESPONSE_BYTES_MAX, Report, WaitsFor,
};
use host::{As, Invoked, Worker, Zygote};
use libtest_mimic::{Arguments, Failed, Trial};

/// A test that holds for each user who runs the zygote.
type Test = fn(As) -> Result<(), Failed>;

macro_rules! tests {
    ($($module:ident :: $test:ident),* $(,)?) => {
        [$((stringify!($test), $module::$test as Test)),*]
    };
}

/// Both kinds of worker keep these promises.
const EVERYWHERE: [(&str, Test); 13] = tests![
    self::events_are_answered,
    self::the_runtime_api_is_served,
    self::initialisation_fails_in_the_programs_words,
    self::ends_are_told,
    self::a_program_that_cannot_be_started,
    self::log_is_bounded,
    self::large_answers_are_counted,
    self::the_guest_sees_its_own_world_only,
    self::the_guest_may_not,
    walls::hold_from_outside,
    self::a_program_that_breaks_the_protocol,
    self::a_worker_is_killed_while_its_guest_spins,
    self::commands_out_of_order_are_refused,
];

const OF_PROCESSES: [(&str, Test); 2] = tests![
    self::the_guest_is_stopped_while_it_waits,
    self::a_killed_worker_takes_its_guest_along,
];

const OF_MICRO_VMS: [(&str, Test); 13] = tests![
    snapshots::every_layout_answers,
    snapshots::memory_is_kept_or_given_back,
    snapshots::no_two_instances_are_alike,
    snapshots::a_guest_that_has_seen_an_event_is_not_captured,
    snapshots::damaged_files_are_refused,
    snapshots::restored_guests_end,
    snapshots::restores_out_of_order_are_refused,
    grafts::versions_answer_on_their_base,
    grafts::what_does_not_fit_is_refused,
    hostile::every_call_with_any_arguments,
    hostile::arguments_that_change_while_they_are_read,
    hostile::waits_of_no_time_and_of_all_time,
    hostile::wild_code_ends_its_guest_only,
];

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("zygote") => return gust_worker::zygote::main(),
        Some("guest") => return guest::main(),
        _ => {}
    }
    let arguments = Arguments::from_args();
    let mut trials = vec![
        Trial::test(
            "life::everything_ends_with_the_node",
            everything_ends_with_the_node,
        ),
        Trial::test(
            "life::everything_ends_with_the_zygote",
            everything_ends_with_the_zygote,
        ),
        Trial::test("life::a_worker_is_small", a_worker_is_small),
        Trial::test("life::bad_requests_are_refused", bad_requests_are_refused),
    ];
    let mut add = |tests: &[(&str, Test)], kinds: &[As]| {
        for (name, test) in tests {
            for who in kinds {
                let (who, test) = (*who, *test);
                let name = format!("{who:?}::{name}").to_lowercase();
                trials.push(Trial::test(name, move || host::guarded(who, test)));
            }
        }
    };
    add(&EVERYWHERE, &[As::Root, As::Nobody, As::Vm]);
    add(&OF_PROCESSES, &[As::Root, As::Nobody]);
    add(&OF_MICRO_VMS, &[As::Vm]);
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Fails with the place and the values when they differ.
#[track_caller]
fn equal<T: PartialEq + std::fmt::Debug>(found: T, expected: T) -> Result<(), Failed> {
    match found == expected {
        true => Ok(()),
        false => Err(format!(
            "{}: {found:?} is not {expected:?}",
            std::panic::Location::caller()
        )
        .into()),
    }
}

fn text(invoked: &Invoked) -> String {
    String::from_utf8_lossy(&invoked.body).into_owned()
}

fn events_are_answered(who: As) -> Result<(), Failed> {
    let mut worker = Worker::started(who, "echo")?;
    for (n, payload) in [b"1".to_vec(), vec![b'x'; 6_000_000], b"{}".to_vec()]
        .into_iter()
        .enumerate()
    {
        let invoked = worker.invoke(&payload)?;
        equal(invoked.answer.kind, AnswerKind::Success)?;
        equal(invoked.body == payload, true)?;
        equal(invoked.answer.timings.handler_ns, 1234)?;
        // The start is told once, with the first answer.
        equal(invoked.answer.timings.boot_ns > 0, n == 0)?;
        equal(invoked.answer.memory_bytes_max > 100_000, true)?;
        equal(
            invoked.waiting.map(|waiting| waiting.waits_for),
            Some(WaitsFor::Event),
        )?;
    }
    let invoked = worker.invoke(b"fail")?;
    equal(
        (invoked.answer.kind, text(&invoked).as_str()),
        (AnswerKind::FunctionError, "{\"errorType\":\"E\"}"),
    )?;
    let invoked = worker.invoke(b"meta")?;
    equal(text(&invoked), "id 12345 arn trace {\n}".replace(' ', "|"))
}

fn the_runtime_api_is_served(who: As) -> Result<(), Failed> {
    let mut worker = Worker::started_with_api(who, "echo")?;
    for payload in [b"1".to_vec(), vec![b'y'; 3_000_000]] {
        let invoked = worker.invoke(&payload)?;
        equal(
            (invoked.answer.kind, invoked.body == payload),
            (AnswerKind::Success, true),
        )?;
        equal(invoked.waiting.is_some(), true)?;
    }
    let invoked = worker.invoke(b"fail")?;
    equal(
        (invoked.answer.kind, text(&invoked).as_str()),
        (AnswerKind::FunctionError, "{\"errorType\":\"E\"}"),
    )?;
    let invoked = worker.invoke(b"meta")?;
    equal(text(&invoked), "id|12345|arn|trace|{ }".to_owned())?;
    let invoked = worker.invoke(b"big 7000000")?;
    equal(invoked.answer.kind, AnswerKind::TooLarge { bytes: 7_000_000 })?;
    equal(worker.invoke(b"2")?.body, b"2".to_vec())
}

fn initialisation_fails_in_the_programs_words(who: As) -> Result<(), Failed> {
    for api in [false, true] {
        let mut worker = Worker::prepared(who, api)?;
        worker.init("init-error")?;
        let (report, body, log) = worker.next_report()?;
        equal(matches!(report, Report::InitFailed), true)?;
        equal(body, b"{\"errorType\":\"Init\"}".to_vec())?;
        equal(log, b"about to fail\n".to_vec())?;
        worker.expect_end()?;
    }
    Ok(())
}

fn ends_are_told(who: As) -> Result<(), Failed> {
    for (event, exit) in [
        ("exit 7", GuestExit::Exit(7)),
        ("segv", GuestExit::Signal(11)),
        ("kill", GuestExit::Signal(9)),
        ("abort", GuestExit::Signal(6)),
    ] {
        let mut worker = Worker::started(who, "echo")?;
        equal(worker.invoke_to_end(event.as_bytes())?, exit)?;
        worker.expect_end()?;
    }
    let mut worker = Worker::prepared(who, false)?;
    worker.init("exit-at-init")?;
    let (report, _, _) = worker.next_report()?;
    match report {
        Report::Exited(exit) => equal(exit, GuestExit::Exit(3)),
        other => Err(format!("{other:?}").into()),
    }
}

fn a_program_that_cannot_be_started(who: As) -> Result<(), Failed> {
    for (program, reason) in [("/nothing", "No such file"), ("/etc", "Permission denied")] {
        let mut worker = Worker::pooled(who)?;
        // A micro-VM starts its program at once; a guest process starts with its function.
        let body = match who {
            As::Vm => worker.fail_to_boot(program)?,
            As::Root | As::Nobody => {
                worker.boot_program(program, false)?;
                worker.init("echo")?;
                let (report, body, _) = worker.next_report()?;
                equal(matches!(report, Report::InitFailed), true)?;
                body
            }
        };
        let document = String::from_utf8_lossy(&body).into_owned();
        equal(
            document.contains("Runtime.InvalidEntrypoint") && document.contains(reason),
            true,
        )
        .map_err(|_| format!("{program}: {document}"))?;
        worker.expect_end()?;
    }
    Ok(())
}

fn log_is_bounded(who: As) -> Result<(), Failed> {
    let mut worker = Worker::started(who, "echo")?;
    let invoked = worker.invoke(b"log 5")?;
    equal(
        String::from_utf8_lossy(&invoked.log).into_owned(),
        "out 5\nerr 5\n".to_owned(),
    )?;
    equal(invoked.answer.log_bytes_dropped, 0)?;
    let flood = 64 << 20;
    let invoked = worker.invoke(format!("flood {flood}").as_bytes())?;
    equal(invoked.log.len() as u64, LOG_BYTES_MAX)?;
    equal(invoked.answer.log_bytes_dropped, flood - LOG_BYTES_MAX)?;
    // The next call may log again.
    equal(worker.invoke(b"log 6")?.log.len(), 12)
}

fn large_answers_are_counted(who: As) -> Result<(), Failed> {
    let mut worker = Worker::started(who, "echo")?;
    let fits = worker.invoke(format!("big {RESPONSE_BYTES_MAX}").as_bytes())?;
    equal(
        (fits.answer.kind, fits.body.len() as u64),
        (AnswerKind::Success, RESPONSE_BYTES_MAX),
    )?;
    for bytes in [RESPONSE_BYTES_MAX + 1, 100 << 20] {
        let invoked = worker.invoke(format!("big {bytes}").as_bytes())?;
        equal(
            (invoked.answer.kind, invoked.body.len()),
            (AnswerKind::TooLarge { bytes }, 0),
        )?;
    }
    equal(worker.invoke(b"1")?.body, b"1".to_vec())
}

fn the_guest_sees_its_own_world_only(who: As) -> Result<(), Failed> {
    let mut worker = Worker::started(who, "echo")?;
    let seen = text(&worker.invoke(b"world")?);
    let own = match who {
        As::Vm => [
            "root=dev,etc,guest,lib,lib64,opt,proc,sys,text,tmp,var",
            "opt=both:upper,upper",
            "dev=fd,full,gust,null,random,shm,stderr,stdin,stdout,tty,urandom,zero",
            "pid=1",
            "processes=1",
            "interfaces=lo,eth0",
        ],
        As::Root | As::Nobody => [
            "root=dev,etc,guest,lib,lib64,opt,proc,text,tmp,var",
            // The upper layer's file wins, and both are there.
            "opt=both:upper,lower,upper",
            "dev=fd,full,null,random,stderr,stdin,stdout,urandom,zero",
            "pid=2",
            "processes=1,2",
            "interfaces=lo",
        ],
    };
    let both = [
        "task=app.txt",
        "user=993:990",
        "write-root=read-only",
        "write-task=read-only",
        "write-opt=read-only",
        "write-dev=read-only",
        "write-tmp=ok",
        "fill-tmp=full",
        "null=ok",
        "descriptors=0,1,2,device",
        "capabilities=0",
        "directory=/var/task",
        "nofile=1024",
        "nproc=1024",
        "host=hidden",
    ];
    let expected: Vec<&str> = own.into_iter().chain(both).collect();
    for line in &expected {
        equal(seen.lines().any(|seen| seen == *line), true)
            .map_err(|_| format!("{line} is not in\n{seen}"))?;
    }
    equal(seen.lines().count(), expected.len())
}

fn the_guest_may_not(who: As) -> Result<(), Failed> {
    let mut worker = Worker::started(who, "echo")?;
    let seen = text(&worker.invoke(b"forbidden")?);
    for line in seen.lines() {
        let no_such_user = who == As::Nobody && line == "setuid EINVAL";
        // A micro-VM's kernel has the calls, but no structure of no bytes and no such families.
        let own_kernel = who == As::Vm
            && (["clone3 EINVAL", "process_vm_readv EINVAL"].contains(&line)
                || line.ends_with("EAFNOSUPPORT"));
        equal(
            line.ends_with("EPERM") || line.ends_with("ENOSYS") || no_such_user || own_kernel,
            true,
        )
        .map_err(|_| line.to_owned())?;
    }
    equal(seen.lines().count() >= 15, true)?;
    // Bounds that are met: descriptors, processes.
    equal(text(&worker.invoke(b"files")?), "EMFILE".to_owned())?;
    // A micro-VM has one process.
    let no_fork = if who == As::Vm { "ENOSYS" } else { "EAGAIN" };
    equal(text(&worker.invoke(b"forks")?), no_fork.to_owned())?;
    equal(worker.invoke(b"1")?.body, b"1".to_vec())
}

fn the_guest_is_stopped_while_it_waits(who: As) -> Result<(), Failed> {
    let mut worker = Worker::started(who, "echo")?;
    worker.invoke(b"background")?;
    // Every process of the guest is stopped when the worker has said that it waits.
    let pids = worker.guest_pids()?;
    equal(pids.len(), 2)?;
    for pid in &pids {
        host::until(Duration::from_secs(5), || Ok(host::state(*pid)? == 'T'))?;
    }
    equal(worker.invoke(b"2")?.body, b"2".to_vec())
}

fn a_program_that_breaks_the_protocol(who: As) -> Result<(), Failed> {
    for event in ["unasked", "garbage"] {
        let mut worker = Worker::started(who, "echo")?;
        let end = worker.invoke_to_end(event.as_bytes());
        let told = matches!(&end, Ok(GuestExit::Fault(_)));
        // A micro-VM's device refuses garbage, and the program ends by itself.
        let refused = who == As::Vm && matches!(&end, Ok(GuestExit::Exit(101)));
        equal(told || end.is_err() || refused, true).map_err(|_| format!("{event}: {end:?}"))?;
        worker.expect_end()?;
    }
    // One that only closes its end is silent; its deadline ends it.
    let mut worker = Worker::started(who, "echo")?;
    worker.send_event(b"close")?;
    host::until(Duration::from_secs(10), || worker.sleeps())?;
    worker.kill()?;
    worker.expect_end()
}

fn a_worker_is_killed_while_its_guest_spins(who: As) -> Result<(), Failed> {
    let mut worker = Worker::started(who, "echo")?;
    worker.send_event(b"spin")?;
    worker.kill()?;
    worker.expect_end()
}

fn a_killed_worker_takes_its_guest_along(who: As) -> Result<(), Failed> {
    let mut worker = Worker::started(who, "echo")?;
    worker.send_event(b"spin")?;
    let pids = worker.guest_pids()?;
    equal(pids.len(), 1)?;
    worker.kill()?;
    worker.expect_end()?;
    equal(host::state(pids[0]).is_err(), true)
}

fn commands_out_of_order_are_refused(who: As) -> Result<(), Failed> {
    let mut worker = Worker::pooled(who)?;
    worker.send(&Command::Capture, b"", &[])?;
    let (report, _, _) = worker.next_report()?;
    equal(matches!(report, Report::Refused { .. }), true)?;
    worker.expect_end()?;

    // A directory that is none, and one that is not in the worker's namespace, cannot be mounted.
    let mut worker = Worker::pooled(who)?;
    let file = std::fs::File::open("/dev/null")?;
    worker.send(&worker.boot_command("/guest", false), b"", &[file.as_fd()])?;
    let mut report = worker.next_report()?.0;
    // A micro-VM opens its image at once.
    if who != As::Vm {
        worker.init("echo")?;
        report = worker.next_report()?.0;
    }
    equal(matches!(report, Report::Refused { .. }), true)
}

fn everything_ends_with_the_node() -> Result<(), Failed> {
    let zygote = Zygote::start(As::Root)?;
    let mut workers = Vec::new();
    for _ in 0..3 {
        let mut worker = zygote.worker()?;
        worker.start("echo", false)?;
        workers.push(worker);
    }
    let pids: Vec<i32> = workers.iter().map(Worker::pid).collect();
    zygote.close_and_wait()?;
    for pid in pids {
        equal(host::state(pid).is_err(), true)?;
    }
    Ok(())
}

fn everything_ends_with_the_zygote() -> Result<(), Failed> {
    let zygote = Zygote::start(As::Root)?;
    let mut worker = zygote.worker()?;
    worker.start("echo", false)?;
    let pid = worker.pid();
    zygote.kill()?;
    host::until(Duration::from_secs(5), || {
        Ok(host::state(pid).is_err() || host::state(pid)? == 'Z')
    })
}

fn a_worker_is_small() -> Result<(), Failed> {
    let zygote = Zygote::start(As::Root)?;
    let workers: Result<Vec<Worker>, Failed> = (0..8).map(|_| zygote.worker()).collect();
    for worker in &workers? {
        let kib = host::pss_kib(worker.pid())?;
        equal(kib < 3 << 10, true).map_err(|_| format!("a prepared worker uses {kib} KiB"))?;
    }
    Ok(())
}

fn bad_requests_are_refused() -> Result<(), Failed> {
    let zygote = Zygote::start(As::Root)?;
    equal(zygote.request_without_socket()?.contains("descriptors"), true)?;
    // It goes on.
    zygote.worker()?.start("echo", false)
}
