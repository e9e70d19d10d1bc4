//! Bare `python3`: no server, no wall, one process for each event.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::SCRIPT;
use crate::bench::children;

/// An interpreter.
#[derive(Debug)]
pub struct Python {
    program: PathBuf,
    /// Its version.
    pub version: String,
}

impl Python {
    /// The interpreter that a command starts. Wrappers are seen through: they would cost it time.
    pub fn find(command: &Path) -> Result<Self> {
        let output = Command::new(command)
            .args([
                "-c",
                "import platform, sys; print(sys.executable); print(platform.python_version())",
            ])
            .output()
            .with_context(|| format!("start {}", command.display()))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut lines = text.lines();
        let (program, version) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
        ensure!(
            output.status.success() && !program.is_empty(),
            "{} does not work",
            command.display()
        );
        Ok(Self {
            program: program.into(),
            version: version.to_owned(),
        })
    }

    /// The interpreter itself.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// One event in a process of its own.
    pub fn sample(&self, code: &Path, event: &[u8]) -> Result<(Duration, Value)> {
        children::ask(Command::new(&self.program).args(["-c", SCRIPT]).arg(code), event)
    }
}
