//! The same handler in plain processes and in containers, each of which has answered once and waits for its next event.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use super::{FLOOR_BYTES, HOLD, Measured, Memory};
use crate::{
    bench::{
        children, memory,
        peers::{Container, Idle, Python},
        sandbox::Settings,
    },
    output::progress,
};

/// What the interpreters run: events come on lines, and so do answers. Its argument is the directory of the code.
pub const SCRIPT: &str = "\
import json, sys
sys.path.insert(0, sys.argv[1])
from app import handler
for line in sys.stdin:
    print(json.dumps(handler(json.loads(line), None)), flush=True)
";

/// Points of a curve.
const POINTS: u32 = 8;

/// Something that waits for its next event.
trait Waits {
    /// Bytes of its proportional set.
    fn pss_bytes(&self) -> Result<u64>;
}

/// Sends an event of a line and takes the answer's.
fn ask(stdin: &mut ChildStdin, stdout: &mut BufReader<ChildStdout>) -> Result<()> {
    stdin.write_all(b"{}\n").context("write an event")?;
    let mut line = String::new();
    stdout.read_line(&mut line).context("read an answer")?;
    ensure!(line == "{}\n", "it answered {line:?}");
    Ok(())
}

/// A plain process.
struct Process {
    child: Child,
    _stdin: ChildStdin,
    _stdout: BufReader<ChildStdout>,
}

impl Waits for Process {
    fn pss_bytes(&self) -> Result<u64> {
        memory::of_tree(self.child.id().into())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        children::end(&mut self.child);
    }
}

impl Waits for Idle {
    fn pss_bytes(&self) -> Result<u64> {
        memory::of_tree(self.pid)
    }
}

/// Makes them one after the other.
fn fill_up<T: Waits>(
    label: &'static str,
    clones: u32,
    mut make: impl FnMut(u32) -> Result<T>,
) -> Result<Measured> {
    let bar = progress(label, clones as usize);
    let before = Memory::now()?;
    let (mut all, mut points) = (Vec::new(), Vec::new());
    for n in 1..=clones {
        all.push(make(n)?);
        bar.inc(1);
        let memory = Memory::now()?;
        let is_last = n == clones || memory.available < FLOOR_BYTES;
        if is_last || n % (clones / POINTS).max(1) == 0 {
            points.push((f64::from(n), memory.taken_since(&before)));
        }
        if is_last {
            break;
        }
    }
    bar.finish_and_clear();
    let after = Memory::now()?;
    let pss = all.iter().map(Waits::pss_bytes).sum::<Result<u64>>()?;
    Ok(Measured {
        label,
        is_peer: true,
        before,
        after,
        pss_bytes: pss,
        points,
    })
}

/// Plain processes.
pub fn processes(clones: u32) -> Result<Measured> {
    let dir = TempDir::with_prefix("gust-bench-code-").context("make a directory for code")?;
    let code = dir.path().join("code");
    HOLD.write(&code)?;
    let python = Python::find(Path::new("python3"))?;
    fill_up("python3 processes", clones, |_| {
        let mut child = Command::new(python.program())
            .args(["-c", SCRIPT])
            .arg(&code)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start python3")?;
        let mut stdin = child.stdin.take().context("no standard input")?;
        let mut stdout = BufReader::new(child.stdout.take().context("no standard output")?);
        ask(&mut stdin, &mut stdout)?;
        Ok(Process {
            child,
            _stdin: stdin,
            _stdout: stdout,
        })
    })
}

/// Containers.
pub fn containers(settings: &Settings, clones: u32) -> Result<Measured> {
    let dir = TempDir::with_prefix("gust-bench-code-").context("make a directory for code")?;
    let code = dir.path().join("code");
    HOLD.write(&code)?;
    let container = Container::prepare(&settings.image("python3.11"))?;
    container.serve_with(&code, SCRIPT)?;
    fill_up("crun containers", clones, |n| {
        let mut idle = container.start_idle(n)?;
        ask(&mut idle.stdin, &mut idle.stdout)?;
        Ok(idle)
    })
}
