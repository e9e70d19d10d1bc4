//! Guests that know everything, in workers as a node has them: each is served or ended, and the end is told.

use std::time::Duration;

use gust_worker::protocol::{GuestExit, Report};
use libtest_mimic::Failed;

use crate::{
    equal,
    host::{As, Worker, Zygote},
    text, wild,
};

/// Highest number that a call is made with; Linux has none beyond 461.
const NUMBERS: u64 = 470;
/// Numbers that one guest tries, before another takes over.
const NUMBERS_EACH: u64 = 47;
/// How long a guest may be silent: then it waits for what cannot come, and its node's deadline ends it.
const SILENCE: Duration = Duration::from_secs(15);

/// How a worker came out of an event.
#[derive(Debug)]
enum Came {
    Answered(String),
    Ended(GuestExit),
    Silent,
}

/// Gives a hostile guest its event. A worker that goes without saying how its guest ended has failed.
fn provoke(worker: &mut Worker, words: &str) -> Result<Came, Failed> {
    worker.send_event(format!("wild {words}").as_bytes())?;
    if !worker.has_more_within(SILENCE)? {
        worker.kill()?;
        return Ok(Came::Silent);
    }
    let report = worker
        .next_report()
        .map_err(|error| format!("{words}: {error:?}"))?;
    match report {
        (Report::Answer(_), body, _) => {
            let body = String::from_utf8_lossy(&body).into_owned();
            // It waits for its next event, or ends before it does.
            match worker.next_report() {
                Ok((Report::Waiting(_), _, _)) => Ok(Came::Answered(body)),
                Ok((Report::Exited(exit), _, _)) => Ok(Came::Ended(exit)),
                other => Err(format!("{words}: {other:?}").into()),
            }
        }
        (Report::Exited(exit), _, _) => Ok(Came::Ended(exit)),
        other => Err(format!("{words}: {other:?}").into()),
    }
}

fn started(zygote: &Zygote) -> Result<Worker, Failed> {
    let mut worker = zygote.worker()?;
    worker.start("echo", false)?;
    Ok(worker)
}

pub fn every_call_with_any_arguments(who: As) -> Result<(), Failed> {
    let zygote = Zygote::start(who)?;
    let mut bystander = started(&zygote)?;
    let mut answered = 0;
    for first in (0..NUMBERS).step_by(NUMBERS_EACH as usize) {
        let mut worker = started(&zygote)?;
        match provoke(
            &mut worker,
            &format!("calls {first} {NUMBERS_EACH} {}", first + 7),
        )? {
            Came::Answered(made) => {
                answered += 1;
                equal(made.parse::<u64>()? > 0, true)?;
            }
            // It took its own memory or its device away, gave answers that nobody had asked for, or used all its memory.
            Came::Ended(
                GuestExit::Signal(_) | GuestExit::Exit(_) | GuestExit::OutOfMemory | GuestExit::Fault(_),
            )
            | Came::Silent => {}
        }
        equal(text(&bystander.invoke(b"1")?), "1".to_owned())?;
    }
    // Most numbers do nothing to the program that makes them.
    match answered >= NUMBERS / NUMBERS_EACH / 2 {
        true => Ok(()),
        false => Err(format!("{answered} guests answered").into()),
    }
}

pub fn arguments_that_change_while_they_are_read(who: As) -> Result<(), Failed> {
    let zygote = Zygote::start(who)?;
    for seed in 1..4 {
        let mut worker = started(&zygote)?;
        match provoke(&mut worker, &format!("race {seed}"))? {
            Came::Answered(rounds) => {
                equal(rounds, "3000".to_owned())?;
                equal(text(&worker.invoke(b"1")?), "1".to_owned())?;
            }
            other => return Err(format!("seed {seed}: {other:?}").into()),
        }
    }
    Ok(())
}

pub fn waits_of_no_time_and_of_all_time(who: As) -> Result<(), Failed> {
    let mut worker = Worker::started(who, "echo")?;
    match provoke(&mut worker, "waits")? {
        Came::Answered(calls) => equal(calls, "20".to_owned())?,
        other => return Err(format!("{other:?}").into()),
    }
    // Ten threads wait for ever; the next event is served all the same.
    equal(text(&worker.invoke(b"2")?), "2".to_owned())
}

pub fn wild_code_ends_its_guest_only(who: As) -> Result<(), Failed> {
    let zygote = Zygote::start(who)?;
    let mut bystander = started(&zygote)?;
    for which in 0..wild::CODES {
        let mut worker = started(&zygote)?;
        match provoke(&mut worker, &format!("code {which}"))? {
            Came::Ended(
                GuestExit::Signal(libc::SIGSEGV | libc::SIGILL | libc::SIGBUS) | GuestExit::Fault(_),
            ) => {}
            other => return Err(format!("code {which}: {other:?}").into()),
        }
        worker.expect_end()?;
        equal(text(&bystander.invoke(b"1")?), "1".to_owned())?;
    }
    Ok(())
}
