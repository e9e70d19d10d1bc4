//! Clones in a server: armed ones, idle ones, and frozen ones where the node freezes.

use std::{
    collections::HashSet,
    path::Path,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use serde_json::json;
use tempfile::TempDir;
use tokio::time::{sleep, sleep_until};

use super::{FLOOR_BYTES, HOLD, Measured, Memory};
use crate::{
    bench::{
        calls::{self, Sample},
        memory,
        own::{Server, UNSCALED},
        sandbox::{Settings, leave_out},
    },
    output::progress,
};

/// Most calls before anything is measured: the layout is learned from them, and until then nothing more is armed.
const WARM_UP_MAX: usize = 50;

/// Armed clones that are there only once the layout is known.
const LEARNED_CLONES: u32 = 3;

/// Time between two calls of a sweep over all clones. Where the machine cannot keep up, the next is tried.
const PACES: [Duration; 3] = [
    Duration::from_millis(10),
    Duration::from_millis(30),
    Duration::from_millis(90),
];

/// Looks at a server that is filling up, and the pause between two.
const LOOKS_MAX: usize = 3000;
const LOOK_PAUSE: Duration = Duration::from_millis(100);

/// Looks in a row without a further clone, after which there will be none.
const STILL_LOOKS_MAX: usize = 100;

/// Clones that are filled up in these shares of all.
const WAVES: [u32; 4] = [8, 4, 2, 1];

/// Memory that the server may count for its instances, in MiB: it must not be the bound here.
const BUDGET_MIB: &str = "67108864";

/// Longest wait of a call for its clone, in seconds.
const QUEUE_TIMEOUT_S: &str = "120";

/// Armed clones.
#[derive(Debug)]
pub struct Armed {
    pub measured: Measured,
    /// One call of each.
    pub answers: Vec<Sample>,
}

/// A server for this many clones, with the function in it.
async fn server(settings: &Settings, clones: u32, armed: u32, code: &Path) -> Result<Server> {
    let (clones, armed) = (clones.to_string(), armed.to_string());
    // Calls overlap, and none may wait for a place.
    let options = [
        ["--instances", &clones],
        ["--armed", &armed],
        ["--concurrency", "20000"],
        ["--memory-budget", BUDGET_MIB],
        ["--idle-timeout", "86400"],
        // They stay, whatever they cost, and whatever the policies make of calls that come in waves.
        ["--keep-idle", "86400"],
        // A call that no clone is ready for waits for one: the pace decides then, not this bound.
        ["--queue-timeout", QUEUE_TIMEOUT_S],
    ];
    let options = [options.as_flattened(), UNSCALED].concat();
    let server = Server::start_with(&settings.data_dir, "kvm", &options).await?;
    HOLD.write(code)?;
    server.deploy(&HOLD, HOLD.name, None, code).await?;
    Ok(server)
}

/// Has clones armed, and then calls each of them.
pub async fn armed(settings: &Settings, clones: u32) -> Result<Armed> {
    let dir = TempDir::with_prefix("gust-bench-code-").context("make a directory for code")?;
    let before = Memory::now()?;
    let server = server(settings, clones, clones, &dir.path().join("code")).await?;
    let pss_before = pss(&server)?;
    warm_up(&server, clones).await?;
    let points = fill_up(&server, clones, &before).await?;
    let after = Memory::now()?;
    let pss_bytes = pss(&server)?.saturating_sub(pss_before);
    let ready = count(&server, "armed").await?;
    let answers = sweep_all(&server, ready).await?;
    let armed = answers.iter().filter(|answer| answer.start() == "armed").count();
    ensure!(
        armed * 10 >= answers.len() * 9,
        "only {armed} of {} calls met an armed clone",
        answers.len()
    );
    Ok(Armed {
        measured: Measured {
            label: "armed",
            is_peer: false,
            before,
            after,
            pss_bytes,
            points,
        },
        answers,
    })
}

/// Calls armed clones until the node has learned what it needs to arm many. None stays idle: it would answer first.
async fn warm_up(server: &Server, clones: u32) -> Result<()> {
    let mut connection = server.client().connect().await?;
    for _ in 0..WARM_UP_MAX {
        calls::call(&mut connection, HOLD.name, &Bytes::from_static(b"{}")).await?;
        sleep(LOOK_PAUSE).await;
        server.evict(HOLD.name, true).await?;
        if count(server, "armed").await? >= LEARNED_CLONES.min(clones) {
            return Ok(());
        }
    }
    bail!("the server arms no more than one clone, whatever it is called")
}

/// Waits until there are as many armed clones as there can be; answers what they took on the way.
async fn fill_up(server: &Server, clones: u32, before: &Memory) -> Result<Vec<(f64, f64)>> {
    let bar = progress("armed clones", clones as usize);
    let (mut points, mut last, mut still) = (Vec::new(), 0, 0);
    for _ in 0..LOOKS_MAX {
        let ready = count(server, "armed").await? + count(server, "idle").await?;
        let memory = Memory::now()?;
        still = if ready == last { still + 1 } else { 0 };
        if ready > last {
            points.push((f64::from(ready), memory.taken_since(before)));
            last = ready;
            bar.set_position(ready.into());
        }
        let full = ready >= clones || memory.available < FLOOR_BYTES;
        if full || (still > STILL_LOOKS_MAX && !points.is_empty()) {
            bar.finish_and_clear();
            return Ok(points);
        }
        sleep(LOOK_PAUSE).await;
    }
    bail!("the server has armed {last} clones, and never ends")
}

/// Has clones work at once and fall idle, in waves; then waits for them to be frozen, where they are.
pub async fn idle(
    settings: &Settings,
    clones: u32,
    remarks: &mut Vec<String>,
) -> Result<(Measured, Option<Measured>)> {
    let dir = TempDir::with_prefix("gust-bench-code-").context("make a directory for code")?;
    let before = Memory::now()?;
    let server = server(settings, clones, 0, &dir.path().join("code")).await?;
    let pss_before = pss(&server)?;
    let mut points = Vec::new();
    for share in WAVES {
        let wanted = (clones / share).max(1);
        sweep_all(&server, wanted).await?;
        let memory = Memory::now()?;
        points.push((
            f64::from(count(&server, "idle").await?),
            memory.taken_since(&before),
        ));
        if memory.available < FLOOR_BYTES {
            break;
        }
    }
    let measured = |label, points, server: &Server| -> Result<Measured> {
        Ok(Measured {
            label,
            is_peer: false,
            before,
            after: Memory::now()?,
            pss_bytes: pss(server)?.saturating_sub(pss_before),
            points,
        })
    };
    let idle = measured("idle after a call", points, &server)?;
    if server.node().await?["frozen"].is_null() {
        leave_out(remarks, "frozen clones", &"this node freezes none");
        return Ok((idle, None));
    }
    // Frozen ones are idle, too.
    let all = f64::from(count(&server, "idle").await?);
    for _ in 0..LOOKS_MAX {
        if f64::from(count(&server, "frozen").await?) >= all {
            let taken = Memory::now()?.taken_since(&before);
            return Ok((idle, Some(measured("frozen", vec![(all, taken)], &server)?)));
        }
        sleep(LOOK_PAUSE).await;
    }
    leave_out(
        remarks,
        "frozen clones",
        &"the node did not freeze all that were idle",
    );
    Ok((idle, None))
}

/// Has as many clones answer as are wanted, each one call. What has answered stays, so that a second attempt has less to do.
async fn sweep_all(server: &Server, clones: u32) -> Result<Vec<Sample>> {
    let mut reached = 0;
    for pace in PACES {
        let answers = sweep(server, clones, pace).await?;
        let different: HashSet<&str> = answers.iter().map(Sample::instance).collect();
        reached = different.len();
        if reached == answers.len() {
            return Ok(answers);
        }
    }
    bail!("{clones} calls were answered by {reached} clones, however slowly they came")
}

/// Calls one clone after the other at an even pace, each of which answers only when all have been called: so each call needs
/// a clone of its own.
async fn sweep(server: &Server, clones: u32, pace: Duration) -> Result<Vec<Sample>> {
    let bar = progress("calls", clones as usize);
    let began = tokio::time::Instant::now();
    let whole = pace * clones + Duration::from_secs(1);
    let answer_at = SystemTime::now() + whole;
    let mut running = Vec::new();
    for n in 0..clones {
        let mut connection = server.client().connect().await?;
        sleep_until(began + pace * n).await;
        // They end at the same pace, so that an answer is not disturbed by all others.
        let until = (answer_at + pace * n)
            .duration_since(SystemTime::UNIX_EPOCH)
            .context("the clock is before 1970")?;
        let event = Bytes::from(json!({ "until": until.as_secs_f64() }).to_string());
        running.push(tokio::spawn(async move {
            calls::call(&mut connection, HOLD.name, &event).await
        }));
        bar.inc(1);
    }
    let mut answers = Vec::new();
    for call in running {
        answers.push(call.await.context("a client failed")??);
    }
    bar.finish_and_clear();
    Ok(answers)
}

async fn count(server: &Server, kind: &str) -> Result<u32> {
    let count = server.node().await?[kind].as_u64().unwrap_or(0);
    Ok(u32::try_from(count).unwrap_or(u32::MAX))
}

fn pss(server: &Server) -> Result<u64> {
    memory::of_tree(server.pid().context("the server was not started here")?)
}
