//! `gust dev`: a directory is deployed at every save, and its log is shown.
//!
//! The watcher tells that something changed; what changed is found by making the package again, which is the same
//! bytes when nothing did. Code that does not initialise is deployed all the same: its error is in the log, and the
//! next save mends it.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use notify::{EventKind, RecursiveMode, Watcher};
use tokio::{sync::mpsc, time::timeout};

use super::{deploy, logs, print};
use crate::{
    cli::DevArgs,
    client::{Client, segment},
    exit,
    output::{bytes, duration},
    package,
    project::{self, Project},
};

/// Editors save in several steps: the directory must be quiet for this long.
const QUIET: Duration = Duration::from_millis(40);

/// Longest time that a directory may be restless before it is deployed all the same.
const RESTLESS_MAX: Duration = Duration::from_millis(400);

pub(super) async fn run(arguments: DevArgs) -> Result<ExitCode> {
    let client = Client::new(&arguments.server)?;
    let dir = arguments.dir.clone();
    // Watched before the first deployment, so that no save in between is missed.
    let (_watcher, mut changes) = watch(&dir)?;
    let mut project = project::read(&dir, &arguments.function)?;
    let mut last = deploy_once(&client, &project, &dir, None).await?;
    eprintln!("watching {}; stop with Ctrl-C", deploy::shown(&dir));
    let mut log = tokio::spawn(follow(client.clone(), project.name.clone()));
    loop {
        tokio::select! {
            changed = settled(&mut changes) => {
                if !changed {
                    return Ok(ExitCode::SUCCESS);
                }
                let next = async {
                    project = project::read(&dir, &arguments.function)?;
                    deploy_once(&client, &project, &dir, last.as_deref()).await
                };
                match next.await {
                    Ok(zip) => last = zip,
                    // The next save may mend it.
                    Err(error) => drop(exit::report(&error)),
                }
            }
            followed = &mut log => {
                followed.context("follow the log")??;
                anyhow::bail!("the server has stopped");
            }
            _ = tokio::signal::ctrl_c() => return Ok(ExitCode::SUCCESS),
        }
    }
}

fn watch(dir: &Path) -> Result<(notify::RecommendedWatcher, mpsc::Receiver<()>)> {
    // One place: that something changed is all there is to know.
    let (changed, changes) = mpsc::channel(1);
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if event.is_ok_and(|event| !matches!(event.kind, EventKind::Access(_))) {
            // Full means that a change is known already.
            let _full = changed.try_send(());
        }
    })
    .context("start watching files")?;
    watcher
        .watch(dir, RecursiveMode::Recursive)
        .with_context(|| format!("watch {}", dir.display()))?;
    Ok((watcher, changes))
}

/// Waits for a change and then for quiet; `false` when there will be none any more.
async fn settled(changes: &mut mpsc::Receiver<()>) -> bool {
    if changes.recv().await.is_none() {
        return false;
    }
    let began = Instant::now();
    while began.elapsed() < RESTLESS_MAX {
        match timeout(QUIET, changes.recv()).await {
            Ok(Some(())) => {}
            Ok(None) => return false,
            Err(_quiet) => break,
        }
    }
    true
}

/// Deploys the directory unless its package is `last`. Answers the package.
async fn deploy_once(
    client: &Client,
    project: &Project,
    dir: &Path,
    last: Option<&[u8]>,
) -> Result<Option<Vec<u8>>> {
    let began = Instant::now();
    let dir: PathBuf = dir.to_owned();
    let package = tokio::task::spawn_blocking(move || package::build(&dir))
        .await
        .context("pack")??;
    let same_code = last == Some(package.zip.as_slice());
    let change = deploy::deploy(client, project, &package).await?;
    if !same_code || change != deploy::Change::Unchanged {
        eprintln!(
            "--- {} deployed in {} ({} files, {})",
            project.name,
            duration(began.elapsed()),
            package.files,
            bytes(package.zip.len() as u64)
        );
    }
    Ok(Some(package.zip))
}

async fn follow(client: Client, name: String) -> Result<()> {
    let path = format!("/_gust/v1/functions/{}/logs?tail=0&follow=1", segment(&name));
    let body = client.stream(&path).await?;
    logs::each_line(body, |line| print(&logs::shown(line)?)).await
}
