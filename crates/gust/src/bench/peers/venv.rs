//! A virtual environment with what comes from PyPI, made once and kept in the cache.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

/// What is installed. MiniStack runs functions in its own interpreter, so what they import must be there too. It wants a
/// newer boto3 than the runtime's image has from Debian 12.
const PACKAGES: &[&str] = &["ministack==1.5.33", "boto3"];

/// File that tells what a finished environment holds.
const STAMP: &str = ".made-from";

/// A virtual environment.
#[derive(Debug, Clone)]
pub struct Venv {
    dir: PathBuf,
}

impl Venv {
    /// The environment of a cache directory; made when it is not there.
    ///
    /// # Errors
    /// When there is no `python3` with `venv`, or PyPI cannot be reached.
    pub fn make(cache: &Path) -> Result<Self> {
        Self::make_with(cache, "bench-venv", PACKAGES)
    }

    /// One with other packages, in a directory of its own in the cache.
    ///
    /// # Errors
    /// As above.
    pub fn make_with(cache: &Path, name: &str, packages: &[&str]) -> Result<Self> {
        let venv = Self {
            dir: cache.join(name),
        };
        let wanted = packages.join(" ");
        let stamp = venv.dir.join(STAMP);
        if fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
            return Ok(venv);
        }
        if venv.dir.exists() {
            fs::remove_dir_all(&venv.dir).with_context(|| format!("remove {}", venv.dir.display()))?;
        }
        fs::create_dir_all(cache).with_context(|| format!("make directory {}", cache.display()))?;
        run(Command::new("python3").args(["-m", "venv"]).arg(&venv.dir))?;
        let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
        run(Command::new(venv.program("python3")).args(pip).args(packages))?;
        fs::write(&stamp, wanted).with_context(|| format!("write {}", stamp.display()))?;
        Ok(venv)
    }

    /// A program of the environment.
    pub fn program(&self, name: &str) -> PathBuf {
        self.dir.join("bin").join(name)
    }
}

fn run(command: &mut Command) -> Result<()> {
    let shown = format!("{command:?}");
    let output = command.output().with_context(|| format!("start {shown}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    bail!("{shown} failed: {}", said.lines().last().unwrap_or_default())
}
