//! `gust runtime`: the images that functions run on.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Instant, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail};
use gust_control::{clock::Utc, ids::FunctionName};
use gust_image::{
    Attributes, Tree,
    build::{
        Progress,
        debian::{self, Recipe},
        directory::{self, Ownership},
        oci,
    },
    runtime::{DESCRIPTION_BYTES_MAX, DESCRIPTION_PATH, RuntimeDescription},
};
use indicatif::ProgressBar;
use serde_json::json;

use super::print;
use crate::{
    cli::{Output, RuntimeArgs, RuntimeCommand},
    exit::Hinted,
    output::{bytes, duration, spinner, table},
    paths,
};

/// Ending of an image's file name.
const SUFFIX: &str = ".img";

/// A runtime that is built.
#[derive(Debug)]
pub struct Built {
    /// Its name.
    pub name: String,
    /// Size of its image.
    bytes: u64,
    /// When it was built, in milliseconds of the Unix epoch.
    unix_ms: u64,
}

pub(super) fn run(arguments: RuntimeArgs) -> Result<ExitCode> {
    let data_dir = arguments.data_dir.unwrap_or_else(paths::data_dir);
    let dir = paths::runtimes_dir(&data_dir);
    match arguments.command {
        RuntimeCommand::Ls { output } => list(&dir, output.output)?,
        RuntimeCommand::Build { names, force } => {
            make_data_dir(&data_dir)?;
            for name in names {
                build(&dir, &name, force)?;
            }
        }
        RuntimeCommand::Add { name, source } => {
            make_data_dir(&data_dir)?;
            add(&dir, &name, &source)?;
        }
        RuntimeCommand::Rm { names } => {
            for name in names {
                remove(&dir, &name)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn make_data_dir(dir: &Path) -> Result<()> {
    gust_store::make_data_dir(dir).with_context(|| format!("make data directory {}", dir.display()))
}

/// The runtimes that are built, by name; none when the directory cannot be read.
pub fn built(dir: &Path) -> Vec<Built> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut built: Vec<Built> = entries
        .filter_map(|entry| {
            let name = entry.file_name().to_str()?.strip_suffix(SUFFIX)?.to_owned();
            let metadata = entry.metadata().ok()?;
            let modified = metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
            let unix_ms = u64::try_from(modified.as_millis()).ok()?;
            Some(Built {
                name,
                bytes: metadata.len(),
                unix_ms,
            })
        })
        .collect();
    built.sort_by(|left, right| left.name.cmp(&right.name));
    built
}

fn list(dir: &Path, output: Output) -> Result<()> {
    let built = built(dir);
    if output == Output::Json {
        let shown: Vec<_> = built
            .iter()
            .map(|Built { name, bytes, unix_ms }| json!({ "name": name, "bytes": bytes, "built_unix_ms": unix_ms }))
            .collect();
        return print(&format!("{:#}\n", json!(shown)));
    }
    if built.is_empty() {
        eprintln!("no runtimes yet; build one with: gust runtime build python3.11");
        return Ok(());
    }
    let mut lines = vec![["NAME", "SIZE", "BUILT"].map(str::to_owned).to_vec()];
    for runtime in built {
        let when = Utc::from_unix_ms(runtime.unix_ms).iso8601();
        lines.push(vec![
            runtime.name,
            bytes(runtime.bytes),
            when.chars().take(19).collect(),
        ]);
    }
    print(&table(&lines))
}

fn build(dir: &Path, name: &str, force: bool) -> Result<()> {
    let Some(recipe) = Recipe::named(name) else {
        let names: Vec<&str> = Recipe::ALL.iter().map(|recipe| recipe.name()).collect();
        let message = format!("there is no recipe for a runtime {name:?}");
        let hint = format!(
            "there are: {}; other ones can be added with gust runtime add",
            names.join(", ")
        );
        return Err(Hinted { message, hint }.into());
    };
    let output = image_path(dir, name)?;
    if output.exists() && !force {
        eprintln!("{name} is built already; --force builds it again");
        return Ok(());
    }
    let began = Instant::now();
    let work_dir = dir.join("work").join(name);
    fs::create_dir_all(&work_dir).with_context(|| format!("make directory {}", work_dir.display()))?;
    let bar = spinner(format!("building {name}"));
    let built = debian::build(recipe, &output, &work_dir, &mut |progress| {
        show(&bar, name, progress);
    });
    bar.finish_and_clear();
    let built = built.with_context(|| format!("build the runtime {name}"))?;
    // Only packages and what they unpacked to; after a failure it stays, so that the next try need not fetch again.
    fs::remove_dir_all(&work_dir).with_context(|| format!("remove {}", work_dir.display()))?;
    print(&format!(
        "{name}: {} packages, {} files, {}, in {}\n",
        built.packages.len(),
        built.image.nodes,
        bytes(built.image.bytes),
        duration(began.elapsed())
    ))
}

fn show(bar: &ProgressBar, name: &str, progress: Progress) {
    match progress {
        Progress::Step(step) if bar.is_hidden() => eprintln!("{name}: {step}"),
        Progress::Step(step) => bar.set_message(format!("{name}: {step}")),
        Progress::Advance { done, total } => {
            bar.set_length(total);
            bar.set_position(done);
        }
        Progress::Note(note) => bar.suspend(|| eprintln!("{name}: {note}")),
    }
}

fn add(dir: &Path, name: &str, source: &Path) -> Result<()> {
    let output = image_path(dir, name)?;
    fs::create_dir_all(dir).with_context(|| format!("make directory {}", dir.display()))?;
    let mut tree = Tree::new(dir).with_context(|| format!("make a file in {}", dir.display()))?;
    let bar = spinner(format!("adding {name}"));
    if source.join("oci-layout").is_file() {
        let config = oci::add(&mut tree, source, &mut |progress| show(&bar, name, progress))
            .with_context(|| format!("read the OCI image layout {}", source.display()))?;
        let description = config
            .description(name)
            .context("describe the image as a runtime")?;
        describe(&mut tree, &description)?;
    } else {
        directory::add(&mut tree, source, b"", Ownership::Root)
            .with_context(|| format!("read the directory {}", source.display()))?;
        let description = tree
            .read(DESCRIPTION_PATH.as_bytes(), DESCRIPTION_BYTES_MAX as u64)
            .context("read the runtime's description")?;
        let Some(description) = description else {
            let message = format!("{} has no {DESCRIPTION_PATH}", source.display());
            let hint = "docs/runtime-device.md says what a runtime's description holds".to_owned();
            return Err(Hinted { message, hint }.into());
        };
        let description = RuntimeDescription::parse(&description)?;
        if description.name != name {
            bail!(
                "{} describes the runtime {:?}, not {name:?}",
                source.display(),
                description.name
            );
        }
    }
    let written = gust_image::write(&tree, br#"{"kind":"runtime"}"#, &output).context("write the image")?;
    bar.finish_and_clear();
    print(&format!(
        "{name}: {} files, {}\n",
        written.nodes,
        bytes(written.bytes)
    ))
}

fn describe(tree: &mut Tree, description: &RuntimeDescription) -> Result<()> {
    let json = description.to_json();
    let path = DESCRIPTION_PATH.as_bytes();
    let directory = path.rsplitn(2, |byte| *byte == b'/').last().unwrap_or_default();
    if !tree.is_directory(directory) {
        tree.directory(directory, Attributes::root(0o755))
            .context("describe the runtime")?;
    }
    tree.file(path, Attributes::root(0o644), &mut json.as_slice())
        .context("describe the runtime")?;
    Ok(())
}

fn remove(dir: &Path, name: &str) -> Result<()> {
    let path = image_path(dir, name)?;
    fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
    eprintln!("removed {name}; functions that run on it no longer start");
    Ok(())
}

/// Path of an image. Names of runtimes are those of functions, with dots.
fn image_path(dir: &Path, name: &str) -> Result<PathBuf> {
    let plain = name.replace('.', "-");
    if FunctionName::new(&plain).is_none() || name.starts_with('.') {
        bail!("{name:?} is no name of a runtime: letters, digits, -, _ and dots");
    }
    Ok(dir.join(format!("{name}{SUFFIX}")))
}
