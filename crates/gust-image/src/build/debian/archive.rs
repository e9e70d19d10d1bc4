//! Archives that no Debian package holds: fixed versions from the registries of their languages, each compared with the
//! checksum that is written here, so that a registry, a proxy or the network can change nothing.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader},
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use super::{RuntimeBuildError, apt::Apt};
use crate::build::{Progress, ProgressSink};

/// Bytes that are read at a time.
const READ_BYTES: usize = 128 << 10;

/// An archive of a fixed version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Archive {
    /// What it holds, for the image's metadata.
    pub name: &'static str,
    /// Which version of it.
    pub version: &'static str,
    /// Where it is fetched from.
    pub url: &'static str,
    /// Its SHA-256 sum, in hexadecimal digits.
    pub sha256: &'static str,
}

impl Archive {
    /// Its file's name: the last part of the address.
    pub(super) fn file_name(&self) -> &'static str {
        self.url.rsplit('/').next().unwrap_or(self.url)
    }
}

/// Fetches what is not in `dir` yet; returns the files in the same order.
pub(super) fn download(
    apt: &Apt,
    archives: &[Archive],
    dir: &Path,
    progress: ProgressSink<'_>,
) -> Result<Vec<PathBuf>, RuntimeBuildError> {
    if archives.is_empty() {
        return Ok(Vec::new());
    }
    let dir = std::path::absolute(dir).map_err(|source| failed(dir, source))?;
    fs::create_dir_all(&dir).map_err(|source| failed(&dir, source))?;
    let mut files = Vec::new();
    for archive in archives {
        let file = dir.join(archive.file_name());
        // What an earlier build left may be a part.
        if !matches!(sum(&file), Ok(found) if found == archive.sha256) {
            progress(Progress::Step(format!("downloading {}", archive.file_name())));
            apt.fetch(archive.url, &file)?;
            let found = sum(&file).map_err(|source| failed(&file, source))?;
            if found != archive.sha256 {
                return Err(RuntimeBuildError::AlteredArchive {
                    url: archive.url,
                    expected: archive.sha256,
                    found,
                });
            }
        }
        files.push(file);
    }
    Ok(files)
}

fn sum(file: &Path) -> io::Result<String> {
    let mut digest = Sha256::new();
    let mut content = BufReader::with_capacity(READ_BYTES, File::open(file)?);
    loop {
        let part = content.fill_buf()?;
        if part.is_empty() {
            break;
        }
        digest.update(part);
        let bytes = part.len();
        content.consume(bytes);
    }
    Ok(digest
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

fn failed(path: &Path, source: io::Error) -> RuntimeBuildError {
    RuntimeBuildError::Work {
        path: path.to_path_buf(),
        source,
    }
}
