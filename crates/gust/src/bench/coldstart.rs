//! `gust bench coldstart`: each request meets no idle instance of its function.
//!
//! Two kinds: *unprepared*, where nothing of the version is prepared and its snapshot is in the page cache, and *armed*.
//! Both are end to end: from before the HTTP request is written to after its answer is read. In the same run, and
//! interleaved (each round takes one sample of everything), the same handler starts as a plain Python process under
//! `process` isolation, as a container of crun, in MiniStack, and as bare `python3`. Every answer is compared with the
//! others'. What cannot run here is left out, and the report says so.

use std::{
    fs::File,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use clap::Args;
use serde_json::Value;
use tempfile::TempDir;

use super::{
    calls::Sample,
    handlers::{self, BOTO3, Handler, PLAIN},
    machine::Machine,
    own::{Server, Start},
    peers::{Container, MiniStack, Python, Venv},
    report::{Report, Row},
    targets::Target,
};
use crate::{cli::ServerArgs, output::progress, package::Package, paths};

/// Most rounds of one measurement.
const ROUNDS_MAX: usize = 100_000;

/// Tail that a start may have, against its median.
const P99_TIMES_MAX: f64 = 3.0;

/// What to measure.
#[derive(Debug, Args)]
pub struct ColdstartArgs {
    /// Rounds; each takes one sample of everything
    #[arg(short = 'n', long, default_value_t = 100)]
    rounds: usize,
    /// Rounds before those that are measured
    #[arg(long, default_value_t = 3)]
    warm_up: usize,
    /// Leave the peers out, except process isolation
    #[arg(long)]
    no_peers: bool,
    /// Data directory with the runtimes
    #[arg(long, env = paths::DATA_DIR_VARIABLE)]
    data_dir: Option<PathBuf>,
}

/// Something whose cold start is measured.
#[derive(Debug)]
enum Contender {
    /// Gust, with nothing prepared.
    Unprepared,
    /// Gust, with an instance armed.
    Armed,
    /// Gust under `process` isolation.
    Process(Server),
    /// A container.
    Container(Container),
    /// MiniStack.
    MiniStack(MiniStack),
    /// Bare `python3`.
    Python(Python),
}

impl Contender {
    fn label(&self) -> &'static str {
        match self {
            Self::Unprepared => "Gust, unprepared",
            Self::Armed => "Gust, armed",
            Self::Process(_) => "Python process, jailed",
            Self::Container(_) => "crun container",
            Self::MiniStack(_) => "MiniStack",
            Self::Python(_) => "bare python3",
        }
    }

    fn is_peer(&self) -> bool {
        match self {
            Self::Unprepared | Self::Armed => false,
            Self::Process(_) | Self::Container(_) | Self::MiniStack(_) | Self::Python(_) => true,
        }
    }
}

/// What a contender has given.
#[derive(Debug)]
enum Taken {
    /// Its samples.
    Samples(Vec<Sample>),
    /// It cannot run here.
    LeftOut,
}

/// What all samples of a handler need.
struct Course<'a> {
    server: &'a Server,
    handler: &'a Handler,
    code: PathBuf,
    package: Package,
    event: Bytes,
}

/// Measures.
pub async fn run(arguments: &ColdstartArgs, server: &ServerArgs) -> Result<Report> {
    ensure!(
        (1..=ROUNDS_MAX).contains(&arguments.rounds),
        "between 1 and {ROUNDS_MAX} rounds can be measured"
    );
    if server.endpoint.is_none() {
        File::options()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .context("open /dev/kvm: without micro-VMs there are no snapshots to start from")?;
    }
    let machine = Machine::this();
    let data_dir = arguments.data_dir.clone().unwrap_or_else(paths::data_dir);
    let server = Server::named_or_started(server, &data_dir).await?;
    let mut remarks = Vec::new();
    let mut contenders = contenders(arguments, &data_dir, &mut remarks).await;
    let dir = TempDir::with_prefix("gust-bench-code-").context("make a directory for code")?;
    let (mut rows, mut targets) = (Vec::new(), Vec::new());
    for handler in [PLAIN, BOTO3] {
        let code = dir.path().join(handler.name);
        handler.write(&code)?;
        let course = Course {
            server: &server,
            handler: &handler,
            package: handler.package(&code)?,
            event: handlers::event().to_string().into(),
            code,
        };
        let measured = course.measure(&mut contenders, arguments, &mut remarks).await?;
        targets.extend(held_against(&handler, &measured));
        rows.extend(measured.into_iter().map(|(_, row)| row));
    }
    Ok(Report {
        name: "coldstart".to_owned(),
        method: format!(
            "{} interleaved rounds; time from request to answer, each with no idle instance",
            arguments.rounds
        ),
        machine,
        rows,
        tables: Vec::new(),
        chart: None,
        targets,
        remarks,
    })
}

async fn contenders(arguments: &ColdstartArgs, data_dir: &Path, remarks: &mut Vec<String>) -> Vec<Contender> {
    let mut all = vec![Contender::Unprepared, Contender::Armed];
    let mut add = |name: &str, found: Result<Contender>| match found {
        Ok(contender) => all.push(contender),
        Err(error) => leave_out(remarks, name, &error),
    };
    let process = Server::start(data_dir, "process").await;
    add("the process under isolation", process.map(Contender::Process));
    if arguments.no_peers {
        remarks.push("crun, MiniStack and bare python3 were left out as asked".to_owned());
        return all;
    }
    let image = paths::runtimes_dir(data_dir).join("python3.11.img");
    add(
        "the container",
        Container::prepare(&image).map(Contender::Container),
    );
    let venv = Venv::make(&paths::cache_dir());
    let (ministack, python) = match &venv {
        Ok(venv) => (
            MiniStack::start(venv).await,
            Python::find(&venv.program("python3")),
        ),
        Err(error) => (
            Err(anyhow::anyhow!("{error:#}")),
            Python::find(Path::new("python3")),
        ),
    };
    add("MiniStack", ministack.map(Contender::MiniStack));
    add("bare python3", python.map(Contender::Python));
    let versions: Vec<String> = all
        .iter()
        .filter_map(|contender| match contender {
            Contender::Container(container) => Some(container.version.clone()),
            Contender::MiniStack(_) => venv
                .as_ref()
                .ok()
                .map(|venv| format!("MiniStack {}", MiniStack::version(venv))),
            Contender::Python(python) => Some(format!("python3 {}", python.version)),
            Contender::Unprepared | Contender::Armed | Contender::Process(_) => None,
        })
        .collect();
    if !versions.is_empty() {
        remarks.push(format!("peers: {}", versions.join(", ")));
    }
    all
}

fn leave_out(remarks: &mut Vec<String>, name: &str, error: &anyhow::Error) {
    let remark = format!("LEFT OUT: {name}: {error:#}");
    eprintln!("{remark}");
    remarks.push(remark);
}

impl Course<'_> {
    /// Takes all rounds. Answers each contender's row with its label.
    async fn measure(
        &self,
        contenders: &mut [Contender],
        arguments: &ColdstartArgs,
        remarks: &mut Vec<String>,
    ) -> Result<Vec<(&'static str, Row)>> {
        let name = self.handler.name;
        let bar = progress(name, arguments.rounds + arguments.warm_up);
        self.deploy(contenders).await?;
        let mut taken: Vec<Taken> = contenders.iter().map(|_| Taken::Samples(Vec::new())).collect();
        let mut expected: Option<Value> = None;
        for round in 0..arguments.warm_up + arguments.rounds {
            for (contender, taken) in contenders.iter_mut().zip(&mut taken) {
                let Taken::Samples(samples) = taken else { continue };
                let (sample, answer) = match self.sample(contender).await {
                    Ok(sampled) => sampled,
                    // A peer that does not even work once cannot run here; one that fails later is a failure.
                    Err(error) if round == 0 && contender.is_peer() => {
                        leave_out(remarks, &format!("{}, {name}", contender.label()), &error);
                        *taken = Taken::LeftOut;
                        continue;
                    }
                    Err(error) => return Err(error.context(format!("{name}: {}", contender.label()))),
                };
                let answer = (self.handler.compared)(&answer);
                let expected = expected.get_or_insert_with(|| answer.clone());
                ensure!(
                    *expected == answer && !answer.is_null(),
                    "{} answered {answer}, others {expected}",
                    contender.label()
                );
                if round >= arguments.warm_up {
                    samples.push(sample);
                }
            }
            bar.inc(1);
        }
        bar.finish_and_clear();
        self.delete(contenders).await?;
        let mut rows = Vec::new();
        for (contender, taken) in contenders.iter().zip(&taken) {
            if let Taken::Samples(samples) = taken {
                let row = Row::of(format!("{name}: {}", contender.label()), samples)?;
                let row = if contender.is_peer() { row.into_peer() } else { row };
                rows.push((contender.label(), row));
            }
        }
        Ok(with_ratios(rows))
    }

    /// Puts the function where the contenders will look for it.
    async fn deploy(&self, contenders: &[Contender]) -> Result<()> {
        let name = self.handler.name;
        self.server.deploy(self.handler, name, None, &self.code).await?;
        for contender in contenders {
            match contender {
                Contender::Process(server) => server.deploy(self.handler, name, None, &self.code).await?,
                Contender::Container(container) => container.serve(&self.code)?,
                Contender::Unprepared | Contender::Armed | Contender::MiniStack(_) | Contender::Python(_) => {
                }
            }
        }
        Ok(())
    }

    async fn delete(&self, contenders: &[Contender]) -> Result<()> {
        self.server.delete(self.handler.name).await?;
        for contender in contenders {
            match contender {
                Contender::Process(server) => server.delete(self.handler.name).await?,
                Contender::Container(_)
                | Contender::Unprepared
                | Contender::Armed
                | Contender::MiniStack(_)
                | Contender::Python(_) => {}
            }
        }
        Ok(())
    }

    /// One sample, with the answer.
    async fn sample(&self, contender: &mut Contender) -> Result<(Sample, Value)> {
        let name = self.handler.name;
        let (latency, answer) = match contender {
            Contender::Unprepared => {
                return answered(
                    self.server
                        .cold_call(name, &self.event, Start::Unprepared)
                        .await?,
                );
            }
            Contender::Armed => {
                return answered(self.server.cold_call(name, &self.event, Start::Armed).await?);
            }
            Contender::Process(server) => {
                return answered(server.cold_call(name, &self.event, Start::Process).await?);
            }
            Contender::Container(container) => container.sample(&self.event)?,
            Contender::MiniStack(ministack) => {
                ministack.sample(self.handler, &self.package, &self.event).await?
            }
            Contender::Python(python) => python.sample(&self.code, &self.event)?,
        };
        Ok((Sample::plain(latency), answer))
    }
}

fn answered(sample: Sample) -> Result<(Sample, Value)> {
    let answer = serde_json::from_slice(&sample.body).context("read the function's answer")?;
    Ok((sample, answer))
}

/// The rows, each with how many times shorter its median is than the process's.
fn with_ratios(rows: Vec<(&'static str, Row)>) -> Vec<(&'static str, Row)> {
    let Some(process) = median(&rows, "Python process, jailed") else {
        return rows;
    };
    let ratio = |row: &Row| process.as_secs_f64() / row.summary.p50.as_secs_f64();
    rows.into_iter()
        .map(|(label, row)| {
            let ratio = ratio(&row);
            (label, row.with("times_faster", ratio))
        })
        .collect()
}

fn median(rows: &[(&str, Row)], label: &str) -> Option<Duration> {
    let (_, row) = rows.iter().find(|(found, _)| *found == label)?;
    Some(row.summary.p50)
}

fn held_against(handler: &Handler, rows: &[(&'static str, Row)]) -> Vec<Target> {
    let mut targets = Vec::new();
    let process = median(rows, "Python process, jailed");
    for (label, row) in rows.iter().filter(|(_, row)| !row.is_peer) {
        let times = match (handler.name == PLAIN.name, *label == "Gust, armed") {
            (true, false) => Some(30.0),
            (true, true) => Some(60.0),
            (false, false) => Some(150.0),
            (false, true) => None,
        };
        let what = &row.label;
        if let Some((times, process)) = times.zip(process) {
            let what = format!("{what}: median against the process's");
            targets.push(Target::times_faster(what, times, row.summary.p50, process));
        }
        let what = format!("{what}: p99 against the median");
        targets.push(Target::times_as_long(
            what,
            P99_TIMES_MAX,
            row.summary.p99,
            row.summary.p50,
        ));
    }
    targets
}
