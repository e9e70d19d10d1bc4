//! Snapshots of micro-VMs, taken and laid out by workers as a node has them do it.

use std::{collections::HashSet, fs::File, io::Write, os::unix::fs::FileExt};

use gust_worker::protocol::{AnswerKind, Command, GuestExit, MemoryMode, Report, WaitsFor};
use libtest_mimic::Failed;

use crate::{
    equal,
    host::{As, Snapshot, Zygote},
    text,
};

/// A snapshot of the guest that waits for its first event.
fn snapshot(zygote: &Zygote, api: bool) -> Result<Snapshot, Failed> {
    let mut worker = zygote.worker()?;
    worker.start("echo", api)?;
    worker.capture()
}

/// A snapshot and a layout learned from one run.
fn learned(zygote: &Zygote, api: bool) -> Result<Snapshot, Failed> {
    let mut snapshot = snapshot(zygote, api)?;
    let mut worker = zygote.worker()?;
    worker.restore(&snapshot, false, true, MemoryMode::Reuse)?;
    equal(worker.invoke(b"learn")?.body, b"learn".to_vec())?;
    snapshot.layout = Some(worker.replan(&snapshot)?);
    Ok(snapshot)
}

pub fn every_layout_answers(who: As) -> Result<(), Failed> {
    let zygote = Zygote::start(who)?;
    for api in [false, true] {
        let snapshot = learned(&zygote, api)?;
        for (arm, memory_mode) in [
            (false, MemoryMode::Reuse),
            (true, MemoryMode::Reuse),
            (true, MemoryMode::Fresh),
        ] {
            let mut worker = zygote.worker()?;
            worker.restore(&snapshot, arm, false, memory_mode)?;
            for payload in [b"1".to_vec(), vec![b'x'; 3_000_000], b"3".to_vec()] {
                let invoked = worker.invoke(&payload)?;
                equal(invoked.answer.kind, AnswerKind::Success)?;
                equal(invoked.body == payload, true)?;
                let waiting = invoked.waiting.ok_or("no wait")?;
                equal(waiting.waits_for, WaitsFor::Event)?;
                equal(waiting.pristine, memory_mode == MemoryMode::Fresh)?;
            }
        }
    }
    Ok(())
}

/// What one call leaves behind is there in the next where memory is kept, and gone where it is given back.
pub fn memory_is_kept_or_given_back(who: As) -> Result<(), Failed> {
    let zygote = Zygote::start(who)?;
    let snapshot = learned(&zygote, false)?;
    let mut kept = zygote.worker()?;
    kept.restore(&snapshot, false, false, MemoryMode::Reuse)?;
    for expected in ["1", "2", "3"] {
        equal(text(&kept.invoke(b"count")?), expected.to_owned())?;
    }
    let mut fresh = zygote.worker()?;
    fresh.restore(&snapshot, true, false, MemoryMode::Fresh)?;
    for _ in 0..5 {
        equal(text(&fresh.invoke(b"count")?), "1".to_owned())?;
        // Files, descriptors and mappings as well.
        equal(text(&fresh.invoke(b"litter")?), "clean".to_owned())?;
    }
    Ok(())
}

/// No two instances of a snapshot have the same randomness, process id or seed.
pub fn no_two_instances_are_alike(who: As) -> Result<(), Failed> {
    let zygote = Zygote::start(who)?;
    let snapshot = learned(&zygote, false)?;
    let mut seen = HashSet::new();
    let mut expect_new = |what: String| match seen.insert(what.clone()) {
        true => Ok(()),
        false => Err(Failed::from(format!("{what} came twice"))),
    };
    for _ in 0..20 {
        let mut worker = zygote.worker()?;
        worker.restore(&snapshot, false, false, MemoryMode::Reuse)?;
        expect_new(text(&worker.invoke(b"random")?))?;
    }
    let mut worker = zygote.worker()?;
    worker.restore(&snapshot, true, false, MemoryMode::Fresh)?;
    for _ in 0..20 {
        expect_new(text(&worker.invoke(b"random")?))?;
    }
    Ok(())
}

pub fn a_guest_that_has_seen_an_event_is_not_captured(who: As) -> Result<(), Failed> {
    let zygote = Zygote::start(who)?;
    let mut worker = zygote.worker()?;
    worker.start("echo", false)?;
    worker.invoke(b"secret")?;
    let files = Snapshot::new()?;
    worker.send_capture(&files)?;
    let (report, _, _) = worker.next_report()?;
    equal(matches!(report, Report::Refused { .. }), true)?;
    equal(files.memory.metadata()?.len(), 0)
}

/// Alters a file of a snapshot.
type Damage = fn(&Snapshot) -> std::io::Result<()>;

/// A file that is not what was written is refused or serves wrong answers to its own version only; the worker stays a
/// worker in each case.
pub fn damaged_files_are_refused(who: As) -> Result<(), Failed> {
    let zygote = Zygote::start(who)?;
    let good = learned(&zygote, false)?;
    let damages: [(&str, Damage); 5] = [
        ("an empty state", |snapshot| snapshot.state.set_len(0)),
        ("a state that ends early", |snapshot| snapshot.state.set_len(1000)),
        ("a state of noise", |snapshot| {
            snapshot.state.write_all_at(&[0xa5; 4000], 0)
        }),
        ("a layout of noise", |snapshot| {
            layout(snapshot).write_all_at(&[0xa5; 400], 0)
        }),
        ("a layout that ends early", |snapshot| {
            layout(snapshot).set_len(5000)
        }),
    ];
    for (name, damage) in damages {
        let copy = good.copy()?;
        damage(&copy)?;
        let mut worker = zygote.worker()?;
        worker.send_restore(&copy, true, false, MemoryMode::Reuse)?;
        let (report, _, _) = worker.next_report()?;
        equal(matches!(report, Report::Refused { .. }), true).map_err(|_| format!("{name}: {report:?}"))?;
        worker.expect_end()?;
    }
    Ok(())
}

fn layout(snapshot: &Snapshot) -> &File {
    snapshot.layout.as_ref().unwrap()
}

/// A restored guest is ended as a booted one is.
pub fn restored_guests_end(who: As) -> Result<(), Failed> {
    let zygote = Zygote::start(who)?;
    let snapshot = learned(&zygote, false)?;
    for (event, exit) in [
        ("exit 7", GuestExit::Exit(7)),
        ("segv", GuestExit::Signal(11)),
        ("allocate", GuestExit::OutOfMemory),
    ] {
        let mut worker = zygote.worker()?;
        worker.restore(&snapshot, false, false, MemoryMode::Reuse)?;
        equal(worker.invoke_to_end(event.as_bytes())?, exit)?;
        worker.expect_end()?;
    }
    Ok(())
}

pub fn restores_out_of_order_are_refused(who: As) -> Result<(), Failed> {
    let zygote = Zygote::start(who)?;
    let snapshot = snapshot(&zygote, false)?;
    let mut worker = zygote.worker()?;
    worker.restore(&snapshot, false, false, MemoryMode::Reuse)?;
    equal(worker.invoke(b"1")?.body, b"1".to_vec())?;
    worker.send_restore(&snapshot, false, false, MemoryMode::Reuse)?;
    let (report, _, _) = worker.next_report()?;
    equal(matches!(report, Report::Refused { .. }), true)?;
    // Without its descriptors.
    let mut worker = zygote.worker()?;
    worker.send(&Command::Capture, b"", &[])?;
    let (report, _, _) = worker.next_report()?;
    equal(matches!(report, Report::Refused { .. }), true)?;
    std::io::stderr().flush()?;
    Ok(())
}
