//! Debian's own tools, kept away from the host's state.
//!
//! `apt-get` resolves, downloads and verifies with the host's sources, keys and proxy settings, but with lists, caches
//! and an empty list of installed packages of our own, so that the host is neither asked what it has nor changed.
//! Hooks in the host's configuration are not run.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs::{self, File},
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use super::RuntimeBuildError;
use crate::build::{Progress, ProgressSink};

/// Bytes of a failed command's error output that are kept for the error.
const ERROR_TEXT_BYTES_MAX: u64 = 8 << 10;

/// Apt's program for fetching single files; it is on no search path.
const HELPER: &str = "/usr/lib/apt/apt-helper";

/// A package that apt has chosen.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Package {
    pub name: String,
    pub version: String,
}

/// Apt with state of its own.
#[derive(Debug)]
pub(super) struct Apt {
    config: PathBuf,
    archives: PathBuf,
}

impl Apt {
    /// Prepares directories and configuration in `dir`, which may hold those of an earlier build.
    pub(super) fn new(dir: &Path) -> Result<Self, RuntimeBuildError> {
        let archives = dir.join("cache/archives");
        let write = |source| RuntimeBuildError::Work {
            path: dir.to_path_buf(),
            source,
        };
        for part in ["state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(dir.join(part)).map_err(write)?;
        }
        let status = dir.join("status");
        fs::write(&status, "").map_err(write)?;
        let config = dir.join("apt.conf");
        let host = output(Command::new("apt-config").arg("dump"))?;
        fs::write(&config, configuration(&host, dir)).map_err(write)?;
        Ok(Self { config, archives })
    }

    /// Fetches the lists of packages.
    pub(super) fn update(&self) -> Result<(), RuntimeBuildError> {
        output(self.get().arg("update")).map(|_| ())
    }

    /// What must be there for `packages` to work, themselves included.
    pub(super) fn resolve(&self, packages: &[&str]) -> Result<Vec<Package>, RuntimeBuildError> {
        let text = output(self.get().args(["--simulate", "install"]).args(packages))?;
        let chosen: Vec<Package> = text.lines().filter_map(parse_chosen).collect();
        match chosen.is_empty() {
            true => Err(RuntimeBuildError::NothingResolved),
            false => Ok(chosen),
        }
    }

    /// Downloads packages that are not here yet, and returns their files in the same order.
    pub(super) fn download(
        &self,
        packages: &[Package],
        progress: ProgressSink<'_>,
    ) -> Result<Vec<PathBuf>, RuntimeBuildError> {
        let missing: Vec<String> = packages
            .iter()
            .filter(|package| self.file(package).is_err())
            .map(|package| format!("{}={}", package.name, package.version))
            .collect();
        if !missing.is_empty() {
            let mut command = self.get();
            command.arg("download").args(&missing).current_dir(&self.archives);
            let total = missing.len() as u64;
            let mut done = 0;
            run(&mut command, &mut |line| {
                if line.starts_with("Get:") {
                    done = (done + 1).min(total);
                    progress(Progress::Advance { done, total });
                }
            })?;
        }
        packages.iter().map(|package| self.file(package)).collect()
    }

    /// Fetches one file from an address, with the host's settings for fetching.
    pub(super) fn fetch(&self, url: &str, file: &Path) -> Result<(), RuntimeBuildError> {
        let mut command = self.command(HELPER);
        output(command.arg("download-file").arg(url).arg(file)).map(|_| ())
    }

    fn get(&self) -> Command {
        let mut command = self.command("apt-get");
        command.args(["-q", "-y"]);
        command
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", &self.config).env("LC_ALL", "C.UTF-8");
        command
    }

    /// The downloaded file of a package: `name_version_architecture.deb`, with `:` written as `%3a`.
    fn file(&self, package: &Package) -> Result<PathBuf, RuntimeBuildError> {
        let prefix = format!("{}_{}_", package.name, package.version.replace(':', "%3a"));
        let read = |source| RuntimeBuildError::Work {
            path: self.archives.clone(),
            source,
        };
        for entry in fs::read_dir(&self.archives).map_err(read)? {
            let entry = entry.map_err(read)?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with(&prefix) && name.ends_with(".deb") {
                return Ok(entry.path());
            }
        }
        Err(RuntimeBuildError::NotDownloaded(package.name.clone()))
    }
}

/// A package's files as a tar stream. [`Unpacking::finish`] tells whether it was whole.
pub(super) struct Unpacking {
    child: Child,
    package: PathBuf,
}

impl Unpacking {
    /// Starts unpacking.
    pub(super) fn start(package: &Path) -> Result<Self, RuntimeBuildError> {
        let mut command = Command::new("dpkg-deb");
        command.arg("--fsys-tarfile").arg(package);
        let child = spawn(command.stdout(Stdio::piped()).stderr(Stdio::null()))?;
        Ok(Self {
            child,
            package: package.to_path_buf(),
        })
    }

    /// The stream.
    pub(super) fn stream(&mut self) -> impl Read + '_ {
        BufReader::with_capacity(
            128 << 10,
            self.child.stdout.as_mut().expect("the output is a pipe"),
        )
    }

    /// Waits for the end.
    pub(super) fn finish(mut self) -> Result<(), RuntimeBuildError> {
        // What stands behind the archive's end is padding; the program must not block or fail on it.
        let rest = self
            .child
            .stdout
            .take()
            .map(|mut rest| io::copy(&mut rest, &mut io::sink()));
        let failed = |source| RuntimeBuildError::Work {
            path: self.package.clone(),
            source,
        };
        rest.transpose().map_err(failed)?;
        let status = self.child.wait().map_err(failed)?;
        match status.success() {
            true => Ok(()),
            false => Err(RuntimeBuildError::Command {
                command: format!("dpkg-deb --fsys-tarfile {}", self.package.display()),
                status: status.to_string(),
                text: String::new(),
            }),
        }
    }
}

/// The private configuration: where things lie, and the host's settings for fetching (proxies, time-outs).
fn configuration(host: &str, dir: &Path) -> String {
    let dir = dir.display();
    let mut text = format!(
        "Dir::Etc::parts \"/dev/null\";\nDir::Etc::main \"/dev/null\";\n\
         Dir::State \"{dir}/state\";\nDir::State::status \"{dir}/status\";\nDir::Cache \"{dir}/cache\";\n\
         APT::Sandbox::User \"root\";\nAPT::Install-Recommends \"false\";\nDebug::NoLocking \"true\";\n"
    );
    // Which kinds of lists there are is left to apt itself: the host may have added some for its desktop.
    let wanted = |line: &&str| line.starts_with("Acquire::") && !line.starts_with("Acquire::IndexTargets");
    for line in host.lines().filter(wanted) {
        text.push_str(line);
        text.push('\n');
    }
    text.push_str("Acquire::Languages \"none\";\n");
    text
}

/// `Inst NAME (VERSION ORIGIN [ARCHITECTURE])`, as `--simulate` prints it.
fn parse_chosen(line: &str) -> Option<Package> {
    let mut words = line.strip_prefix("Inst ")?.split(' ');
    let name = words.next()?;
    let version = words.find_map(|word| word.strip_prefix('('))?;
    Some(Package {
        name: name.to_owned(),
        version: version.trim_end_matches(')').to_owned(),
    })
}

/// Runs a command and returns what it printed.
pub(super) fn output(command: &mut Command) -> Result<String, RuntimeBuildError> {
    let mut text = String::new();
    run(command, &mut |line| {
        text.push_str(line);
        text.push('\n');
    })?;
    Ok(text)
}

/// Runs a command and hands on each line that it prints. Its error output is kept for the error.
fn run(command: &mut Command, line: &mut dyn FnMut(&str)) -> Result<(), RuntimeBuildError> {
    let name = printable(command);
    let io = |source| RuntimeBuildError::Start {
        command: name.clone(),
        source,
    };
    let mut errors = tempfile::tempfile().map_err(io)?;
    let stderr = errors.try_clone().map_err(io)?;
    let mut child = spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr))?;
    let stdout = child.stdout.take().expect("the output is a pipe");
    for text in BufReader::new(stdout).split(b'\n') {
        line(&String::from_utf8_lossy(&text.map_err(io)?));
    }
    let status = child.wait().map_err(io)?;
    match status.success() {
        true => Ok(()),
        false => {
            let text = error_text(&mut errors).map_err(io)?;
            Err(RuntimeBuildError::Command {
                command: name,
                status: status.to_string(),
                text,
            })
        }
    }
}

/// The lines of a command's error output, each once.
fn error_text(errors: &mut File) -> io::Result<String> {
    use std::io::Seek;
    errors.seek(io::SeekFrom::Start(0))?;
    let mut bytes = Vec::new();
    errors.take(ERROR_TEXT_BYTES_MAX).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let mut seen = BTreeSet::new();
    Ok(text
        .lines()
        .filter(|line| seen.insert(*line))
        .collect::<Vec<_>>()
        .join("\n"))
}

fn spawn(command: &mut Command) -> Result<Child, RuntimeBuildError> {
    command.spawn().map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => {
            RuntimeBuildError::NoTool(command.get_program().to_string_lossy().into_owned())
        }
        _ => RuntimeBuildError::Start {
            command: printable(command),
            source,
        },
    })
}

fn printable(command: &Command) -> String {
    let words = [command.get_program()].into_iter().chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chosen_packages_are_read_from_a_simulation() {
        let check = |line: &str, expected: Option<(&str, &str)>| {
            let expected = expected.map(|(name, version)| Package {
                name: name.to_owned(),
                version: version.to_owned(),
            });
            assert_eq!(parse_chosen(line), expected, "{line}");
        };
        check(
            "Inst libc6 (2.36-9+deb12u14 Debian:12.15/oldstable [amd64]) []",
            Some(("libc6", "2.36-9+deb12u14")),
        );
        check(
            "Inst zlib1g [1:1.2.11] (1:1.2.13.dfsg-1 Debian:12 [amd64])",
            Some(("zlib1g", "1:1.2.13.dfsg-1")),
        );
        check("Conf libc6 (2.36-9 Debian:12 [amd64])", None);
        check("Reading package lists...", None);
    }

    #[test]
    fn the_hosts_fetch_settings_are_kept_and_its_hooks_are_not() {
        let host = "APT::Update::Post-Invoke:: \"rm -f x\";\nAcquire::http::Proxy \"http://proxy:1\";\n\
                    Acquire::IndexTargets::deb::DEP-11::MetaKey \"x\";\nDir::State \"var/lib/apt\";\n";
        let text = configuration(host, Path::new("/work"));
        assert!(text.contains("Acquire::http::Proxy \"http://proxy:1\";"));
        assert!(text.contains("Dir::State \"/work/state\";"));
        for unwanted in ["Post-Invoke", "DEP-11", "var/lib"] {
            assert!(!text.contains(unwanted), "{unwanted}");
        }
    }
}
