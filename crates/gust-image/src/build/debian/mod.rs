//! Runtime images from Debian's packages, without a container engine.
//!
//! ```text
//! apt (own state) -> packages -> Tree, pruned -> staged on disk -> ldconfig, byte code -> Tree -> image
//! ```
//!
//! The programs of the packages' installation scripts are not run; what they would have made is made here. Programs
//! of the new runtime itself (its dynamic linker's cache builder and its Python) run once on the host, by the
//! runtime's own loader, to prepare what would otherwise be prepared at every start. Needs `apt` and `dpkg-deb`, so a
//! host of Debian's family; needs no root.

mod apt;
mod archive;
mod java;
mod node;
mod recipe;
mod rootfs;

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

pub use recipe::Recipe;

use super::{
    Progress, ProgressSink,
    directory::{self, DirectoryError, Ownership},
    tarball::{self, DirectoryLinks, TarError},
};
use crate::{
    extract::{ExtractError, ImageFile},
    runtime::DESCRIPTION_PATH,
    tree::{Attributes, Tree, TreeError},
    writer::{self, WriteError, Written},
};
use apt::{Apt, Package, Unpacking};

/// The bootstrap of the Python runtime, the context that it gives handlers, and the module with which functions register
/// restore hooks.
const PYTHON_FILES: [(&str, &str); 3] = [
    (
        "bootstrap.py",
        include_str!("../../../../../runtimes/python3.11/bootstrap.py"),
    ),
    (
        "lambda_context.py",
        include_str!("../../../../../runtimes/python3.11/lambda_context.py"),
    ),
    (
        "snapshot_restore_py.py",
        include_str!("../../../../../runtimes/python3.11/snapshot_restore_py.py"),
    ),
];

/// Where the bootstrap lies in the image.
const RUNTIME_DIR: &str = "var/runtime";

/// Directories of the libraries of a Debian root, for running its programs from outside.
const LIBRARY_DIRS: [&str; 2] = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];

/// Why a runtime could not be built.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeBuildError {
    /// A tool is missing on this host.
    #[error(
        "{0} is not on this host: runtimes are built from Debian packages, which needs a host of Debian's family"
    )]
    NoTool(String),
    /// A tool could not be started or read from.
    #[error("running {command:?} failed")]
    Start {
        /// The command line.
        command: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A tool failed.
    #[error("{command:?} ended with {status}: {text}")]
    Command {
        /// The command line.
        command: String,
        /// How it ended.
        status: String,
        /// What it wrote to its error output.
        text: String,
    },
    /// Apt chose no package.
    #[error("apt chose no package to install")]
    NothingResolved,
    /// A package is missing after the download.
    #[error("package {0} was not downloaded")]
    NotDownloaded(String),
    /// A downloaded archive is not the one that is known.
    #[error("the archive from {url} has the SHA-256 sum {found}, and not {expected}")]
    AlteredArchive {
        /// Where it came from.
        url: &'static str,
        /// What it should be, in hexadecimal digits.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// A downloaded archive lacks a file.
    #[error("the archive from {url} holds no {file}")]
    IncompleteArchive {
        /// Where it came from.
        url: &'static str,
        /// What it lacks.
        file: &'static str,
    },
    /// The certificates' package holds none.
    #[error("the ca-certificates package holds no certificates")]
    NoCertificates,
    /// The working directory could not be used.
    #[error("using the working directory {path} failed")]
    Work {
        /// Which path in it.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// File contents could not be set aside or read back.
    #[error("setting file contents aside failed")]
    Spool(#[source] io::Error),
    /// A package could not be unpacked.
    #[error("unpacking package {package} failed")]
    Unpack {
        /// Which.
        package: String,
        /// Why.
        #[source]
        source: TarError,
    },
    /// The tree did not take a file.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The prepared files could not be taken in.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The files could not be staged.
    #[error(transparent)]
    Stage(#[from] ExtractError),
    /// The image could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// What was built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuiltRuntime {
    /// The image file.
    pub image: Written,
    /// Its packages and archives with their versions.
    pub packages: Vec<(String, String)>,
}

/// Builds a runtime into the image file `output`. `work_dir` holds downloads (kept for the next build) and temporary
/// files; the host is not changed otherwise.
///
/// # Errors
/// See [`RuntimeBuildError`]. What stood at `output` before is then still there.
pub fn build(
    recipe: Recipe,
    output: &Path,
    work_dir: &Path,
    progress: ProgressSink<'_>,
) -> Result<BuiltRuntime, RuntimeBuildError> {
    let work = |source| RuntimeBuildError::Work {
        path: work_dir.to_path_buf(),
        source,
    };
    let apt_dir = work_dir.join("apt");
    fs::create_dir_all(&apt_dir).map_err(work)?;
    let apt = Apt::new(&std::path::absolute(&apt_dir).map_err(work)?)?;
    progress(Progress::Step("reading package lists".to_owned()));
    apt.update()?;
    let mut packages = apt.resolve(recipe.packages())?;
    packages.retain(|package| !recipe.leaves_out(&package.name));
    progress(Progress::Step(format!("downloading {} packages", packages.len())));
    let files = apt.download(&packages, progress)?;
    let archives = archive::download(&apt, recipe.archives(), &work_dir.join("archives"), progress)?;

    let scratch = tempfile::Builder::new()
        .prefix("runtime-")
        .tempdir_in(work_dir)
        .map_err(work)?;
    let mut tree = Tree::new(scratch.path()).map_err(RuntimeBuildError::Spool)?;
    rootfs::skeleton(&mut tree)?;
    unpack(&mut tree, &packages, &files, progress)?;
    rootfs::prune(&mut tree);
    rootfs::configure(&mut tree)?;
    let description = recipe.description().to_json();
    tree.file(
        DESCRIPTION_PATH.as_bytes(),
        Attributes::root(0o644),
        &mut description.as_slice(),
    )?;
    match recipe {
        Recipe::Python311 => python_files(&mut tree)?,
        Recipe::NodeJs20 => node::add(&mut tree, &archives)?,
        Recipe::Java17 => java::add(&mut tree, &archives)?,
        Recipe::ProvidedAl2023 | Recipe::ProvidedAl2 => {}
    }

    progress(Progress::Step("preparing the runtime's caches".to_owned()));
    let newest_s = tree.newest_mtime_s();
    let root = stage(&tree, scratch.path())?;
    ldconfig(&root)?;
    if recipe == Recipe::Python311 {
        compile(&root)?;
    }
    let mut tree = Tree::new(scratch.path()).map_err(RuntimeBuildError::Spool)?;
    directory::add(&mut tree, &root, b"", Ownership::Root)?;
    tree.directory(b"tmp", Attributes::root(0o1777))?;
    // What was made just now would make every build another image.
    tree.clamp_mtimes(newest_s);

    progress(Progress::Step("writing the image".to_owned()));
    let image = writer::write(&tree, &metadata(recipe, &packages), output)?;
    let downloaded = recipe
        .archives()
        .iter()
        .map(|archive| (archive.name.to_owned(), archive.version.to_owned()));
    let packages = packages
        .into_iter()
        .map(|package| (package.name, package.version))
        .chain(downloaded)
        .collect();
    Ok(BuiltRuntime { image, packages })
}

fn unpack(
    tree: &mut Tree,
    packages: &[Package],
    files: &[PathBuf],
    progress: ProgressSink<'_>,
) -> Result<(), RuntimeBuildError> {
    let total = files.len() as u64;
    progress(Progress::Step(format!("unpacking {total} packages")));
    for (done, (package, file)) in packages.iter().zip(files).enumerate() {
        let mut unpacking = Unpacking::start(file)?;
        let added = tarball::add(tree, unpacking.stream(), DirectoryLinks::Kept);
        let ended = unpacking.finish();
        added.map_err(|source| RuntimeBuildError::Unpack {
            package: package.name.clone(),
            source,
        })?;
        ended?;
        progress(Progress::Advance {
            done: done as u64 + 1,
            total,
        });
    }
    Ok(())
}

fn python_files(tree: &mut Tree) -> Result<(), RuntimeBuildError> {
    for (name, content) in PYTHON_FILES {
        let path = format!("{RUNTIME_DIR}/{name}");
        tree.file(path.as_bytes(), Attributes::root(0o644), &mut content.as_bytes())?;
    }
    if tree.get(b"usr/bin/python3").is_none() {
        tree.symlink(b"usr/bin/python3", Attributes::root(0o777), b"python3.11")?;
    }
    Ok(())
}

/// Puts the tree's files on disk, for programs to work on.
fn stage(tree: &Tree, scratch: &Path) -> Result<PathBuf, RuntimeBuildError> {
    let image = scratch.join("staged.img");
    writer::write(tree, b"", &image)?;
    let root = scratch.join("root");
    ImageFile::open(&image)?.extract(&root)?;
    Ok(std::path::absolute(&root).unwrap_or(root))
}

/// Makes `/etc/ld.so.cache` with the runtime's own `ldconfig`, which is a static program.
fn ldconfig(root: &Path) -> Result<(), RuntimeBuildError> {
    apt::output(Command::new(root.join("usr/sbin/ldconfig")).arg("-r").arg(root))?;
    // Its record of when it looked at which file, of no use in a file system that never changes.
    let auxiliary = root.join("var/cache/ldconfig");
    match fs::remove_dir_all(&auxiliary) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(RuntimeBuildError::Work {
            path: auxiliary,
            source,
        }),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Compiles every module to byte code that is never compared with its source, because the image never changes.
fn compile(root: &Path) -> Result<(), RuntimeBuildError> {
    let libraries: Vec<String> = LIBRARY_DIRS
        .iter()
        .map(|directory| root.join(directory).display().to_string())
        .collect();
    let mut command = Command::new(root.join("usr/lib64/ld-linux-x86-64.so.2"));
    command
        .env_clear()
        .env("PYTHONHOME", root.join("usr"))
        .env("PYTHONHASHSEED", "0")
        .env("LC_ALL", "C.UTF-8")
        .args(["--library-path", &libraries.join(":")])
        .arg(root.join("usr/bin/python3.11"))
        // Without -B, what the compiler itself imports would be left in another form than the rest.
        .args([
            "-S",
            "-B",
            "-m",
            "compileall",
            "-q",
            "-f",
            "--invalidation-mode",
            "unchecked-hash",
        ])
        .arg("-s")
        .arg(root)
        .args(["-p", "/"])
        .args(["usr/lib/python3.11", "usr/lib/python3/dist-packages", RUNTIME_DIR].map(|dir| root.join(dir)));
    apt::output(&mut command).map(|_| ())
}

fn metadata(recipe: Recipe, packages: &[Package]) -> Vec<u8> {
    let mut packages: serde_json::Map<String, serde_json::Value> = packages
        .iter()
        .map(|package| (package.name.clone(), package.version.clone().into()))
        .collect();
    packages.extend(
        recipe
            .archives()
            .iter()
            .map(|archive| (archive.name.to_owned(), archive.version.into())),
    );
    let metadata = serde_json::json!({ "kind": "runtime", "name": recipe.name(), "packages": packages });
    metadata.to_string().into_bytes()
}
