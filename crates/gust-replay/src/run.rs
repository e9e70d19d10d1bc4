//! A run as it is kept: what was run, where, and all that was noted of it.
//!
//! A run's file has a head of fixed size (a magic, the version, the length of what follows and its checksum) and then a
//! compressed encoding. The checksum is verified before anything is decoded.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use flate2::{Compression, read::ZlibDecoder, write::ZlibEncoder};
use serde::{Deserialize, Serialize};

use crate::{Function, Record, Sample};

/// Begins the file of a run.
const MAGIC: &[u8; 8] = b"gustrun\n";

/// Version of the encoding.
const VERSION: u32 = 1;

/// Bytes before what is compressed: magic, version, length, checksum.
const HEAD_BYTES: usize = 8 + 4 + 8 + 32;

/// Largest file, and largest run once it is decompressed.
const FILE_BYTES_MAX: u64 = 4 << 30;
const RUN_BYTES_MAX: u64 = 8 << 30;

/// Where a run took place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// On a server.
    Live,
    /// In the simulator.
    Simulated,
}

/// A run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Its name in reports: the mode, or what the user calls it.
    pub name: String,
    /// Where it took place.
    pub origin: Origin,
    /// What was run and with what options, in words.
    pub method: String,
    /// The machine, in words.
    pub machine: String,
    /// Functions, by index.
    pub functions: Vec<Function>,
    /// Length of the workload, in nanoseconds; answers may have come later.
    pub length_ns: u64,
    /// One for each invocation, in order of arrival.
    pub records: Vec<Record>,
    /// In order of time.
    pub samples: Vec<Sample>,
    /// How late the generator was for each invocation that it sent, in nanoseconds; empty for a simulated run.
    pub lateness_ns: Vec<u64>,
    /// Invocations that were not sent because too many were in flight: the run says nothing about these.
    pub unsent: u64,
    /// What a reader must know besides.
    pub remarks: Vec<String>,
}

/// Why a run cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Reading failed.
    #[error("read the run {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Writing failed.
    #[error("write the run {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is not the file of a run, or damaged.
    #[error("read the run {path}: {problem}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

impl Run {
    /// Writes it; the file is there whole or not at all.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), RunError> {
        let failed = |source: io::Error| RunError::Write {
            path: path.to_owned(),
            source,
        };
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
        postcard::to_io(self, &mut encoder).map_err(|error| failed(io::Error::other(error)))?;
        let body = encoder.finish().map_err(failed)?;
        let mut part = path.as_os_str().to_owned();
        part.push(".part");
        let part = Path::new(&part);
        let write = || -> io::Result<()> {
            let mut file = File::create(part)?;
            file.write_all(&head(&body))?;
            file.write_all(&body)?;
            fs::rename(part, path)
        };
        write().map_err(|source| {
            // It is what could not be written that is told; the rest of it may not even be there.
            let _gone = fs::remove_file(part);
            failed(source)
        })
    }

    /// Reads one.
    ///
    /// # Errors
    /// When the file cannot be read, is not the file of a run, or is damaged.
    pub fn read(path: &Path) -> Result<Self, RunError> {
        let failed = |source: io::Error| RunError::Read {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(failed)?;
        let mut bytes = Vec::new();
        file.take(FILE_BYTES_MAX)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
        decode(&bytes).map_err(|problem| RunError::Content {
            path: path.to_owned(),
            problem,
        })
    }
}

fn head(body: &[u8]) -> [u8; HEAD_BYTES] {
    let mut head = [0; HEAD_BYTES];
    head[..8].copy_from_slice(MAGIC);
    head[8..12].copy_from_slice(&VERSION.to_le_bytes());
    head[12..20].copy_from_slice(&(body.len() as u64).to_le_bytes());
    head[20..].copy_from_slice(blake3::hash(body).as_bytes());
    head
}

fn decode(bytes: &[u8]) -> Result<Run, String> {
    let (found, body) = bytes
        .split_at_checked(HEAD_BYTES)
        .filter(|(head, _)| head.starts_with(MAGIC))
        .ok_or("it is not the file of a run")?;
    if found[8..12] != VERSION.to_le_bytes() {
        return Err("it is of another version; make it again".to_owned());
    }
    if found != head(body) {
        return Err("it is damaged: its checksum does not match".to_owned());
    }
    let mut decoded = Vec::new();
    ZlibDecoder::new(body)
        .take(RUN_BYTES_MAX)
        .read_to_end(&mut decoded)
        .map_err(|error| format!("it cannot be decompressed: {error}"))?;
    let run: Run =
        postcard::from_bytes(&decoded).map_err(|error| format!("it cannot be decoded: {error}"))?;
    let known = |record: &Record| (record.function as usize) < run.functions.len();
    if !run.records.iter().all(known) {
        return Err("a record names a function that it does not have".to_owned());
    }
    Ok(run)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::report::tests::run;

    #[test]
    fn a_run_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.run");
        run().write(&path).unwrap();
        assert_eq!(Run::read(&path).unwrap(), run());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let error = run().write(&dir.path().join("none/a.run")).unwrap_err();
        assert!(error.to_string().starts_with("write the run "), "{error}");
    }

    #[test]
    fn damage_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.run");
        run().write(&path).unwrap();
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            assert!(decode(&bytes).is_err(), "byte {at}");
        }
        assert_eq!(decode(b"").unwrap_err(), "it is not the file of a run");
        assert!(decode(&whole[..whole.len() - 1]).is_err());
    }

    proptest! {
        #[test]
        fn any_body_is_read_or_refused(body in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(&body).unwrap();
            let body = encoder.finish().unwrap();
            let _either = decode(&[&head(&body)[..], &body].concat());
        }
    }
}
