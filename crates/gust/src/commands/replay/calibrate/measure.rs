//! What is measured for `gust calibrate`, each figure on a server that has nothing else to do.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use gust_replay::{Arrival, Function, Workload, sim::Delay};
use hyper::Method;

use crate::{
    bench::{
        calls::{self, Sample},
        memory,
        own::{Server, Start, UNSCALED},
        processes,
    },
    commands::replay::target::{self, FunctionsChoice, Language, Targets, Work},
    output::progress,
};

/// Time that a handler is asked to take, in nanoseconds: as little as traces have.
const HANDLER_NS: u64 = 1_000_000;

/// Memory that it is asked to touch, in MiB; where the way back of an instance that has touched more is measured; and where
/// touching itself is.
pub const MEMORY_MIB: u32 = 1;
pub const REARMED_MIB: u32 = 48;
const TOUCHED_MIB: u32 = 80;

/// Time that a handler is asked to work, in nanoseconds, where it is measured what that takes; calls one after the other; and calls
/// on each processor while all are busy.
const WORK_NS: u64 = 100_000_000;
const WORKED_ALONE: usize = 30;
const WORKED_BUSY: usize = 15;

/// Calls after which a node has learned of a version's runs what it learns.
const LEARNING: usize = 4;

/// Instances whose memory is measured together.
const INSTANCES: usize = 12;

/// Time that their calls wait, so that each needs an instance of its own, in nanoseconds.
const HOLD_NS: u64 = 4_000_000_000;

/// How long memory is left free, so that a machine that gives free memory back has done so: Linux does after two seconds.
const LONG_FREE: Duration = Duration::from_secs(5);

/// Time between two that touch memory: as long as it takes one whose memory comes from the machine beneath.
const TOUCHED_APART: Duration = Duration::from_millis(300);

/// Instances that touch memory that was freed just before: so few that they have begun before it is given back.
const TOUCHED_AGAIN: usize = 4;

/// Rounds of freezing and thawing.
const FREEZINGS: usize = 3;

/// Looks at a server for something that it does by itself, at most, and the pause between two.
const LOOKS_MAX: u32 = 300;
const PAUSE: Duration = Duration::from_millis(100);

/// Looks at a server for what one takes.
const LOOKS_MEASURED: u64 = 200;

/// Pause between two looks for prepared workers.
const PREPARED_PAUSE: Duration = Duration::from_millis(5);

/// Looks in a row that must find as many prepared workers.
const PREPARED_LOOKS: u32 = 10;

/// A server with one function, which is called.
pub struct Lab {
    server: Server,
    pid: u64,
    name: String,
    event: bytes::Bytes,
    /// The same for a handler that works for [`WORK_NS`].
    work: bytes::Bytes,
    /// Prepared workers that hold the runtime's base, and memory for each of them.
    pub prepared: (u32, u64),
    /// All prepared workers.
    prepared_all: u32,
    /// Processor time of the server to tell what its node holds.
    look_cpu_ns: u64,
}

/// A moment from which processor time is counted.
#[derive(Debug, Clone, Copy)]
struct Mark {
    cpu_ns: u64,
    looks: u64,
}

/// Warm calls: what no processor is busy with, and processor time that the caller waits for, of the server afterwards, and of
/// the caller.
pub struct Warm {
    pub way: Delay,
    pub call_cpu_ns: u64,
    pub after_cpu_ns: u64,
    pub caller_cpu_ns: u64,
    /// What a call takes beside its handler, at the median.
    overhead_ns: u64,
}

/// What work takes, in thousandths.
pub struct Worked {
    /// Of what it takes at its quickest, while nothing else is done.
    pub alone_permille: u32,
    /// Of that, while every processor does the same.
    pub busy_permille: u32,
}

/// Calls that each meet no idle instance, in processor time.
pub struct Cycles {
    /// What the call waits for beyond a warm one.
    pub start_ns: u64,
    /// All of the rest, for each: preparing, going back.
    pub background_ns: u64,
}

/// What freezing instances takes and leaves.
pub struct Frozen {
    /// Processor time to freeze an idle instance and thaw it again, in nanoseconds.
    pub thaw_cpu_ns: u64,
    /// Memory of one whose function holds next to nothing, in bytes.
    pub bytes: u64,
    /// What it keeps of its function's memory, as thousandths of that.
    pub permille: u32,
}

/// Memory of instances, in bytes.
pub struct Held {
    /// Of each.
    pub each: u64,
    /// Of all of them together, once.
    pub shared: u64,
    /// Processor time to end one, in nanoseconds.
    pub end_cpu_ns: u64,
}

impl Lab {
    /// Starts a server with options, and calls its function until nothing is learned of it any more.
    pub async fn start(data_dir: &std::path::Path, options: &[&str], more: &[String]) -> Result<Self> {
        let options: Vec<&str> = UNSCALED
            .iter()
            .chain(options)
            .copied()
            .chain(more.iter().map(String::as_str))
            .collect();
        let server = Server::start_with(data_dir, "auto", &options).await?;
        let pid = server.pid().context("the server runs elsewhere")?;
        let client = server.client();
        let (own, spin, python) = (FunctionsChoice::Own, Work::Spin, Language::Python);
        let targets = Targets::deploy(client, &one_call(), own, spin, python).await?;
        let mut lab = Self {
            pid,
            name: "replay-0".to_owned(),
            event: targets.event(0, HANDLER_NS).into(),
            work: targets.event(0, WORK_NS).into(),
            prepared: (0, 0),
            prepared_all: 0,
            look_cpu_ns: 0,
            server,
        };
        let mut connection = lab.server.client().connect().await?;
        for _ in 0..LEARNING {
            calls::call(&mut connection, &lab.name, &lab.event).await?;
            lab.server.quiet().await?;
            lab.server.evict(&lab.name, false).await?;
            lab.server.quiet().await?;
        }
        let (all, with_base) = prepared(&lab.server).await?;
        // A start takes one that holds the runtime's base; the plain ones behind these count as part of them.
        let each = instances_bytes(pid)? / u64::from(with_base.max(1));
        lab.prepared = (with_base, each);
        lab.prepared_all = all;
        let before = lab.mark()?;
        for _ in 0..LOOKS_MEASURED {
            lab.server.node().await?;
        }
        lab.look_cpu_ns = lab.used_since(before)? / LOOKS_MEASURED;
        Ok(lab)
    }

    /// Warm calls, one after the other.
    pub async fn warm(&self, count: usize) -> Result<Warm> {
        let mut connection = self.server.client().connect().await?;
        for _ in 0..10 {
            calls::call(&mut connection, &self.name, &self.event).await?;
        }
        let bar = progress("warm calls", count);
        let before = (self.cpu_ns()?, own_cpu_ns()?);
        let mut samples = Vec::with_capacity(count);
        for _ in 0..count {
            samples.push(calls::call(&mut connection, &self.name, &self.event).await?);
            bar.inc(1);
        }
        let each = |used: u64| used / count as u64;
        let handlers: u64 = samples.iter().map(|sample| timing(sample, "handler_ns")).sum();
        let server_ns = each((self.cpu_ns()? - before.0).saturating_sub(handlers));
        let caller_cpu_ns = each(own_cpu_ns()? - before.1);
        bar.finish_and_clear();
        let overheads: Vec<u64> = samples.iter().filter_map(Sample::overhead).map(ns).collect();
        // Some of the work is done when the answer is out already (logs, accounts, settling): what is more than the caller waits.
        let overhead_ns = median(overheads.clone());
        let waited_ns = overhead_ns.saturating_sub(caller_cpu_ns);
        let call_cpu_ns = server_ns.min(waited_ns);
        let beyond = overheads
            .iter()
            .map(|overhead| overhead.saturating_sub(call_cpu_ns + caller_cpu_ns));
        Ok(Warm {
            way: Delay::of_samples(beyond.collect()),
            call_cpu_ns,
            after_cpu_ns: server_ns - call_cpu_ns,
            caller_cpu_ns,
            overhead_ns,
        })
    }

    /// What a handler's work takes: alone, and on every processor at once.
    pub async fn work(&self) -> Result<Worked> {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let bar = progress("handlers at work", WORKED_ALONE + WORKED_BUSY * processors);
        let took = |sample: &Sample| -> Result<u64> {
            target::took_ns(&sample.body).context("the function does not say what its work took")
        };
        let mut connection = self.server.client().connect().await?;
        let mut alone = Vec::with_capacity(WORKED_ALONE);
        for _ in 0..WORKED_ALONE {
            alone.push(took(
                &calls::call(&mut connection, &self.name, &self.work).await?,
            )?);
            bar.inc(1);
        }
        let mut running = tokio::task::JoinSet::new();
        for _ in 0..processors {
            let mut connection = self.server.client().connect().await?;
            let (name, event, bar) = (self.name.clone(), self.work.clone(), bar.clone());
            running.spawn(async move {
                let mut samples = Vec::with_capacity(WORKED_BUSY);
                for _ in 0..WORKED_BUSY {
                    samples.push(calls::call(&mut connection, &name, &event).await?);
                    bar.inc(1);
                }
                Ok::<_, anyhow::Error>(samples)
            });
        }
        let mut busy = Vec::with_capacity(WORKED_BUSY * processors);
        while let Some(called) = running.join_next().await {
            for sample in called.context("a call was cut short")?? {
                busy.push(took(&sample)?);
            }
        }
        bar.finish_and_clear();
        self.server.evict(&self.name, false).await?;
        self.server.quiet().await?;
        let (alone_ns, busy_ns) = (median(alone), median(busy));
        Ok(Worked {
            alone_permille: permille(alone_ns, WORK_NS)?,
            busy_permille: permille(busy_ns, alone_ns)?,
        })
    }

    /// Calls that each find their instance as `start` says.
    pub async fn cycles(&self, count: usize, start: Start, memory_mib: u32, warm: &Warm) -> Result<Cycles> {
        let event: bytes::Bytes =
            serde_json::json!({ "work": "spin", "ns": HANDLER_NS, "rounds": 0, "memory_mib": memory_mib })
                .to_string()
                .into();
        let bar = progress("starts", count);
        self.server.evict(&self.name, start == Start::Armed).await?;
        self.server.quiet().await?;
        let (mut starts, mut used_ns, mut handlers_ns) = (Vec::with_capacity(count), 0, 0);
        for _ in 0..count {
            let before = self.mark()?;
            let sample = self.cold(start, &event).await?;
            used_ns += self.used_since(before)?;
            handlers_ns += timing(&sample, "handler_ns");
            starts.extend(sample.overhead().map(ns));
            bar.inc(1);
        }
        bar.finish_and_clear();
        let start_ns = median(starts).saturating_sub(warm.overhead_ns);
        let foreground = start_ns + warm.call_cpu_ns + warm.after_cpu_ns;
        let background_ns = (used_ns.saturating_sub(handlers_ns) / count as u64).saturating_sub(foreground);
        Ok(Cycles {
            start_ns,
            background_ns,
        })
    }

    /// One call that starts as it says, until all that follows from it is over.
    async fn cold(&self, start: Start, event: &bytes::Bytes) -> Result<Sample> {
        let sample = match start {
            Start::Armed => {
                let mut connection = self.server.client().connect().await?;
                let sample = calls::call(&mut connection, &self.name, event).await?;
                ensure!(
                    sample.start() == "armed",
                    "an instance was not armed but {}",
                    sample.start()
                );
                sample
            }
            Start::Unprepared | Start::Process => {
                self.server.evict(&self.name, false).await?;
                self.server.quiet().await?;
                self.server.cold_call(&self.name, event, start).await?
            }
        };
        self.server.quiet().await?;
        Ok(sample)
    }

    /// What touching memory takes for the first time, for a MiB: of memory that has long been free (the first round), and of
    /// memory that was freed just before. Instances are held meanwhile, so that each finds other memory of the machine.
    pub async fn touch(&self, rounds: usize) -> Result<(Delay, Delay)> {
        let bar = progress("touching memory", rounds);
        let mut each = Vec::with_capacity(rounds * INSTANCES);
        self.server.evict(&self.name, false).await?;
        self.server.quiet().await?;
        tokio::time::sleep(LONG_FREE).await;
        for round in 0..rounds {
            let count = if round == 0 { INSTANCES } else { TOUCHED_AGAIN };
            let answers = self.call_at_once(count, TOUCHED_MIB, Some(TOUCHED_APART)).await?;
            for answer in answers {
                let answer: serde_json::Value =
                    serde_json::from_slice(&answer.body).context("read what the function answered")?;
                let took = answer["touch_ns"].as_u64();
                let took = took.context("the function does not say what touching memory took")?;
                each.push(took / u64::from(TOUCHED_MIB));
            }
            self.server.evict(&self.name, false).await?;
            self.server.quiet().await?;
            bar.inc(1);
        }
        bar.finish_and_clear();
        let again = each.split_off(INSTANCES.min(each.len()));
        Ok((Delay::of_samples(each), Delay::of_samples(again)))
    }

    /// Memory of idle instances, and what ending them takes.
    pub async fn held(&self) -> Result<Held> {
        self.server.evict(&self.name, false).await?;
        self.server.quiet().await?;
        let before = self.instances_bytes().await?;
        self.hold(1).await?;
        let one = self.instances_bytes().await?.saturating_sub(before);
        self.hold(INSTANCES).await?;
        let all = self.instances_bytes().await?.saturating_sub(before);
        let before = self.mark()?;
        self.server.evict(&self.name, false).await?;
        self.server.quiet().await?;
        let end_cpu_ns = self.used_since(before)? / INSTANCES as u64;
        let (each, shared) = each_and_shared(one, all);
        Ok(Held {
            each: each.saturating_sub(u64::from(MEMORY_MIB) << 20),
            shared,
            end_cpu_ns,
        })
    }

    /// Processor time of a restore while no worker is prepared, and memory that its instance has more: of as many calls at once
    /// as there are prepared workers, and some more.
    pub async fn unprepared(&self, warm: &Warm, restored: &Cycles, held: &Held) -> Result<(u64, u64)> {
        self.server.evict(&self.name, false).await?;
        self.server.quiet().await?;
        let bytes = self.instances_bytes().await?;
        let before = self.mark()?;
        let prepared = u64::from(self.prepared.0);
        let count = prepared + INSTANCES as u64;
        self.call_at_once(usize::try_from(count)?, MEMORY_MIB, None)
            .await?;
        let held_bytes = self.instances_bytes().await?.saturating_sub(bytes);
        let used = self
            .used_since(before)?
            .saturating_sub(count * (warm.call_cpu_ns + warm.after_cpu_ns));
        // Those that found a prepared worker have had another prepared.
        let prepare_ns = restored.background_ns.saturating_sub(held.end_cpu_ns);
        let others_ns = prepared * (restored.start_ns + prepare_ns);
        let usual = count * (held.each + (u64::from(MEMORY_MIB) << 20));
        Ok((
            used.saturating_sub(others_ns) / INSTANCES as u64,
            held_bytes.saturating_sub(usual) / INSTANCES as u64,
        ))
    }

    /// Memory of instances that are made ahead of calls, as provisioned concurrency has them: of each, and of all together, once.
    pub async fn created(&self) -> Result<(u64, u64)> {
        let client = self.server.client();
        let published = client
            .call(
                Method::POST,
                &format!("/2015-03-31/functions/{}/versions", self.name),
                &serde_json::json!({}),
            )
            .await?;
        let version = published["Version"].as_str().context("publish a version")?;
        let target = format!("{}:{version}", self.name);
        let mut connection = client.connect().await?;
        for _ in 0..LEARNING {
            calls::call(&mut connection, &target, &self.event).await?;
            self.server.quiet().await?;
            self.server.evict(&target, false).await?;
            self.server.quiet().await?;
        }
        let path = format!(
            "/2019-09-30/functions/{}/provisioned-concurrency?Qualifier={version}",
            self.name
        );
        let none = self.instances_bytes().await?;
        let one = self.provisioned_bytes(&path, 1).await?.saturating_sub(none);
        let all = self
            .provisioned_bytes(&path, INSTANCES)
            .await?
            .saturating_sub(none);
        client
            .send(Method::DELETE, &path, &[], bytes::Bytes::new())
            .await?;
        Ok(each_and_shared(one, all))
    }

    /// Memory with so many provisioned instances.
    async fn provisioned_bytes(&self, path: &str, count: usize) -> Result<u64> {
        let client = self.server.client();
        let wanted = serde_json::json!({ "ProvisionedConcurrentExecutions": count });
        client.call(Method::PUT, path, &wanted).await?;
        for _ in 0..LOOKS_MAX {
            if client.get(path).await?["AvailableProvisionedConcurrentExecutions"] == count {
                self.server.quiet().await?;
                return self.instances_bytes().await;
            }
            tokio::time::sleep(PAUSE).await;
        }
        bail!("the server does not make {count} provisioned instances")
    }

    /// Memory of armed instances that have run and gone back, and what they share.
    pub async fn armed_bytes(&self) -> Result<(u64, u64)> {
        let count = |armed: u64| async move {
            for _ in 0..LOOKS_MAX {
                let node = self.server.node().await?;
                if node["armed"] == armed && node["idle"] == 0 && node["busy"] == 0 {
                    self.server.quiet().await?;
                    return self.instances_bytes().await;
                }
                tokio::time::sleep(PAUSE).await;
            }
            bail!("the server does not arm {armed} instances again")
        };
        self.server.evict(&self.name, false).await?;
        let none = count(0).await?;
        self.hold(1).await?;
        let one = count(1).await?.saturating_sub(none);
        self.hold(INSTANCES).await?;
        let all = count(INSTANCES as u64).await?.saturating_sub(none);
        Ok(each_and_shared(one, all))
    }

    /// Processor time to freeze an idle instance and thaw it again, and the memory of a frozen one. The server freezes what
    /// has been idle for a second.
    pub async fn frozen(&self, warm: &Warm) -> Result<Frozen> {
        let bytes = self.frozen_bytes(MEMORY_MIB).await?;
        let before = self.mark()?;
        for _ in 0..FREEZINGS {
            self.hold(INSTANCES).await?;
            self.await_frozen().await?;
        }
        let each = self.used_since(before)? / (FREEZINGS * INSTANCES) as u64;
        // The large ones last: what they leave in the server's heap would be there for the small ones.
        let large = self.frozen_bytes(REARMED_MIB).await?;
        let more_bytes = u64::from(REARMED_MIB - MEMORY_MIB) << 20;
        let permille = large.saturating_sub(bytes) * 1000 / more_bytes;
        Ok(Frozen {
            thaw_cpu_ns: each.saturating_sub(warm.call_cpu_ns + warm.after_cpu_ns),
            bytes,
            permille: u32::try_from(permille).unwrap_or(u32::MAX),
        })
    }

    /// Memory of an instance that has touched so much and is frozen.
    async fn frozen_bytes(&self, memory_mib: u32) -> Result<u64> {
        self.server.evict(&self.name, false).await?;
        self.server.quiet().await?;
        let before = memory::of_tree(self.pid)?;
        self.call_at_once(INSTANCES, memory_mib, Some(Duration::ZERO))
            .await?;
        self.await_frozen().await?;
        Ok(memory::of_tree(self.pid)?.saturating_sub(before) / INSTANCES as u64)
    }

    async fn await_frozen(&self) -> Result<()> {
        for _ in 0..LOOKS_MAX {
            if self.server.node().await?["frozen"] == INSTANCES {
                return self.server.quiet().await;
            }
            tokio::time::sleep(PAUSE).await;
        }
        bail!("the server does not freeze {INSTANCES} idle instances")
    }

    /// So many calls at once, each in an instance of its own, until all are at rest. Each begins when there are as many
    /// prepared workers as before the others, because an instance made without one has other memory.
    async fn hold(&self, count: usize) -> Result<()> {
        self.call_at_once(count, MEMORY_MIB, Some(Duration::ZERO))
            .await
            .map(drop)
    }

    /// The same with other memory, each so long after the one before; or all at once, whatever is prepared.
    async fn call_at_once(
        &self,
        count: usize,
        memory_mib: u32,
        apart: Option<Duration>,
    ) -> Result<Vec<Sample>> {
        let hold =
            serde_json::json!({ "work": "wait", "ns": HOLD_NS, "rounds": 0, "memory_mib": memory_mib });
        let event: bytes::Bytes = hold.to_string().into();
        let mut running = tokio::task::JoinSet::new();
        for _ in 0..count {
            if let Some(apart) = apart {
                tokio::time::sleep(apart).await;
                self.await_prepared().await?;
            }
            let mut connection = self.server.client().connect().await?;
            let (name, event) = (self.name.clone(), event.clone());
            running.spawn(async move { calls::call(&mut connection, &name, &event).await });
        }
        let mut answers = Vec::with_capacity(count);
        while let Some(called) = running.join_next().await {
            answers.push(called.context("a call was cut short")??);
        }
        self.server.quiet().await?;
        Ok(answers)
    }

    async fn await_prepared(&self) -> Result<()> {
        for _ in 0..LOOKS_MAX {
            if prepared_now(&self.server.node().await?).0 >= self.prepared_all {
                return Ok(());
            }
            tokio::time::sleep(PREPARED_PAUSE).await;
        }
        bail!("the server does not prepare workers again")
    }

    /// Memory of the server's processes but its own, with all the prepared workers that there should be.
    async fn instances_bytes(&self) -> Result<u64> {
        self.await_prepared().await?;
        instances_bytes(self.pid)
    }

    fn mark(&self) -> Result<Mark> {
        Ok(Mark {
            cpu_ns: self.cpu_ns()?,
            looks: self.server.looks(),
        })
    }

    /// Processor time of the server and all that it has started, less what it took to look at it.
    fn used_since(&self, mark: Mark) -> Result<u64> {
        let looks = (self.server.looks() - mark.looks) * self.look_cpu_ns;
        Ok((self.cpu_ns()? - mark.cpu_ns).saturating_sub(looks))
    }

    fn cpu_ns(&self) -> Result<u64> {
        Ok(ns(processes::cpu_of_tree(self.pid)?))
    }
}

/// What each instance takes and what all share, of what one takes and what [`INSTANCES`] take.
fn each_and_shared(one: u64, all: u64) -> (u64, u64) {
    let each = all.saturating_sub(one) / (INSTANCES as u64 - 1);
    (each, one.saturating_sub(each))
}

/// A workload of one function and one call.
fn one_call() -> Workload {
    Workload {
        functions: vec![Function {
            name: "calibrated".to_owned(),
            tenant: 0,
            memory_mib: MEMORY_MIB,
        }],
        arrivals: vec![Arrival {
            at_ns: 0,
            function: 0,
            duration_ns: HANDLER_NS,
        }],
        length_ns: 1,
    }
}

/// Prepared workers of a server, once there are no more of them than before: all, and those that hold a runtime's base, or all
/// where none does.
async fn prepared(server: &Server) -> Result<(u32, u32)> {
    let (mut before, mut same) = ((0, 0), 0);
    for _ in 0..LOOKS_MAX {
        let now = prepared_now(&server.node().await?);
        same = if now == before && now.0 > 0 { same + 1 } else { 0 };
        if same == PREPARED_LOOKS {
            return Ok(match now {
                (all, 0) => (all, all),
                both => both,
            });
        }
        before = now;
        tokio::time::sleep(PAUSE).await;
    }
    bail!("the server prepares no workers: {} are there", before.0)
}

/// Prepared workers, as a node tells them: all, and those that hold a runtime's base.
fn prepared_now(node: &serde_json::Value) -> (u32, u32) {
    let count = |name: &str| node[name].as_u64().and_then(|count| u32::try_from(count).ok());
    let shaped = count("shaped").unwrap_or(0);
    (count("pooled").unwrap_or(0) + shaped, shaped)
}

/// Memory of the server's processes but its own.
fn instances_bytes(pid: u64) -> Result<u64> {
    let own = memory::of_process(pid).context("read the server's memory")?;
    Ok(memory::of_tree(pid)?.saturating_sub(own))
}

/// Processor time of this process, in nanoseconds.
fn own_cpu_ns() -> Result<u64> {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let used = Duration::try_from(used).context("read the processor time of this process")?;
    Ok(ns(used))
}

fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn timing(sample: &Sample, name: &str) -> u64 {
    sample.timings[name].as_u64().unwrap_or(0)
}

/// Thousandths of a whole, at least all of it: work is not quicker than at its quickest, nor for others doing the same.
fn permille(part: u64, whole: u64) -> Result<u32> {
    let permille = part.saturating_mul(1000) / whole.max(1);
    u32::try_from(permille.max(1000)).context("work took longer than can be true")
}

fn median(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0)
}
