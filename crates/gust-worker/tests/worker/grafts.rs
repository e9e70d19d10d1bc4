//! Versions that are laid out in a worker where the base of their runtime lies already.

use gust_worker::protocol::{AnswerKind, Command, MemoryMode, Report};
use libtest_mimic::Failed;

use crate::{
    equal,
    host::{As, Snapshot, Worker, Zygote},
    text,
};

/// A runtime that waits for its function.
fn base(zygote: &Zygote) -> Result<Snapshot, Failed> {
    let mut worker = zygote.worker()?;
    worker.boot_program("/guest", false)?;
    let captured = worker.capture()?;
    Ok(Snapshot {
        is_base: true,
        ..captured
    })
}

/// A version that descends from a base, and a layout learned from one run.
fn version(zygote: &Zygote, base: &Snapshot, handler: &str) -> Result<Snapshot, Failed> {
    let mut worker = zygote.worker()?;
    worker.restore(base, false, false, MemoryMode::Reuse)?;
    worker.init(handler)?;
    let (report, _, _) = worker.next_report()?;
    equal(matches!(report, Report::Waiting(_)), true)?;
    let mut version = worker.capture()?;
    let mut worker = zygote.worker()?;
    worker.restore(&version, false, true, MemoryMode::Reuse)?;
    worker.invoke(b"held")?;
    version.layout = Some(worker.replan(&version)?);
    Ok(version)
}

fn files(snapshot: &Snapshot) -> Result<[&std::fs::File; 3], Failed> {
    let layout = snapshot.layout.as_ref().ok_or("no layout")?;
    Ok([&snapshot.memory, &snapshot.state, layout])
}

/// Lays the base out for these versions.
fn shape(zygote: &Zygote, base: &mut Snapshot, versions: &[&Snapshot]) -> Result<(), Failed> {
    let mut all = vec![&base.memory, &base.state];
    for version in versions {
        all.extend(files(version)?);
    }
    let layout = zygote.worker()?.relayout(&Command::Shape, &all)?;
    base.layout = Some(layout);
    Ok(())
}

fn graft(zygote: &Zygote, base: &Snapshot, version: &mut Snapshot) -> Result<(), Failed> {
    let all: Vec<_> = files(version)?.into_iter().chain(files(base)?).collect();
    let layout = zygote.worker()?.relayout(&Command::Graft, &all)?;
    version.layout = Some(layout);
    Ok(())
}

/// A worker with the base in it.
fn based(zygote: &Zygote, base: &Snapshot) -> Result<Worker, Failed> {
    let mut worker = zygote.worker()?;
    worker.restore(base, true, false, MemoryMode::Reuse)?;
    Ok(worker)
}

/// Versions that are much alike, much unlike, and unknown when the base was laid out, answer as they do without it.
pub fn versions_answer_on_their_base(who: As) -> Result<(), Failed> {
    let zygote = Zygote::start(who)?;
    let mut base = base(&zygote)?;
    let mut versions = ["hold 1", "hold 12", "hold 3", "echo"]
        .into_iter()
        .map(|handler| version(&zygote, &base, handler))
        .collect::<Result<Vec<_>, _>>()?;
    shape(&zygote, &mut base, &[&versions[0], &versions[1]])?;
    for version in &mut versions {
        graft(&zygote, &base, version)?;
        let mut without = zygote.worker()?;
        without.restore(version, false, false, MemoryMode::Reuse)?;
        let expected = [text(&without.invoke(b"held")?), text(&without.invoke(b"held")?)];
        for (arm, memory_mode) in [
            (false, MemoryMode::Reuse),
            (true, MemoryMode::Reuse),
            (false, MemoryMode::Fresh),
        ] {
            let mut worker = based(&zygote, &base)?;
            worker.restore(version, arm, false, memory_mode)?;
            for round in 0..3 {
                let kept = memory_mode == MemoryMode::Reuse;
                let seen = text(&worker.invoke(b"held")?);
                if round == 0 || !kept {
                    equal(seen, expected[0].clone())?;
                } else if round == 1 {
                    equal(seen, expected[1].clone())?;
                }
                let count = text(&worker.invoke(b"count")?);
                equal(count, if kept { round + 1 } else { 1 }.to_string())?;
                let littered = text(&worker.invoke(b"litter")?);
                equal(littered == "clean", round == 0 || !kept)?;
                let payload = vec![b'x'; 3_000_000];
                let invoked = worker.invoke(&payload)?;
                equal(invoked.answer.kind, AnswerKind::Success)?;
                equal(invoked.body == payload, true)?;
            }
        }
    }
    Ok(())
}

/// A base that is laid out for grafts runs nothing of its own and takes no graft that was made for another.
pub fn what_does_not_fit_is_refused(who: As) -> Result<(), Failed> {
    let zygote = Zygote::start(who)?;
    let mut base = base(&zygote)?;
    let mut first = version(&zygote, &base, "hold 1")?;
    let other = version(&zygote, &base, "hold 7")?;
    shape(&zygote, &mut base, &[&first])?;
    let ungrafted = first.copy()?;
    graft(&zygote, &base, &mut first)?;
    let old = base.copy()?;
    shape(&zygote, &mut base, &[&other])?;
    let refused = |mut worker: Worker| -> Result<(), Failed> {
        let (report, _, _) = worker.next_report()?;
        equal(matches!(report, Report::Refused { .. }), true)?;
        worker.expect_end()
    };
    let worker = based(&zygote, &base)?;
    worker.send_restore(&first, true, false, MemoryMode::Reuse)?;
    refused(worker)?;
    let worker = based(&zygote, &old)?;
    worker.send_restore(&ungrafted, true, false, MemoryMode::Reuse)?;
    refused(worker)?;
    let mut worker = based(&zygote, &old)?;
    worker.init("echo")?;
    refused(worker)?;
    let worker = zygote.worker()?;
    worker.send(&Command::Shape, b"", &[])?;
    refused(worker)
}
