//! The command line of `gust run`, checked whole before anything is started.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use gust_node::{EgressPolicy, Program};

use crate::{cli::Output, paths};

/// Least and most memory of a guest, in MiB.
const MEMORY_MIB: std::ops::RangeInclusive<u64> = 16..=65_536;

/// Most room in `/tmp`, in MiB.
const TMP_MIB_MAX: u64 = 65_536;

/// Longest time-out, in seconds: ten years.
const TIMEOUT_S_MAX: f64 = 315_360_000.0;

/// Longest host name, as `sethostname` has it.
const HOST_NAME_BYTES_MAX: usize = 64;

/// Where programs are looked for when neither the image nor `--env` says.
pub(super) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What programs are given unless the image or `--env` says otherwise. `/tmp` is the one directory that can be written.
const ENVIRONMENT: [(&str, &str); 2] = [("HOME", "/tmp"), ("PATH", DEFAULT_PATH)];

/// `gust run`
#[derive(Debug, Args)]
#[command(after_help = "\
Exit codes:
  the program's own; 128 + N when signal N ended it; 137 when its memory ran out
  124  --timeout is over
  125  gust run itself failed
  126  the program cannot be started
  127  there is no such program")]
pub struct RunArgs {
    /// Name of a built runtime, an image file, a directory with a root file system, or an OCI image layout
    pub image: String,
    /// Program and its arguments; a name without a slash is looked up in PATH
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "PROGRAM"
    )]
    pub program: Vec<String>,
    /// Environment variable, NAME=VALUE, or NAME for the one of this process; can be given several times
    #[arg(short, long = "env", value_name = "NAME[=VALUE]")]
    pub environment: Vec<String>,
    /// Directory of this machine, or image file, that is taken in and seen read-only at a directory of the image:
    /// SOURCE:/PATH; can be given several times
    #[arg(short, long = "mount", value_name = "SOURCE:/PATH")]
    pub mounts: Vec<String>,
    /// Working directory [default: the image's, or /]
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// User and group, as numbers
    #[arg(short, long, default_value = "0:0", value_name = "UID[:GID]")]
    pub user: String,
    /// Memory, in MiB
    #[arg(long, default_value_t = 1024, value_name = "MIB")]
    pub memory: u64,
    /// Room in /tmp, in MiB
    #[arg(long, default_value_t = 512, value_name = "MIB")]
    pub tmp: u64,
    /// Kill the program after so many seconds; 0.5 is half of one
    #[arg(long, value_name = "SECONDS")]
    pub timeout: Option<f64>,
    /// Host name
    #[arg(long, default_value = "gust", value_name = "NAME")]
    pub hostname: String,
    /// Where it may connect to: public, dns, host:PORT, ADDRESS[/PREFIX][:PORT[-PORT]]; can be given several times
    /// [default: nowhere]
    #[arg(long = "net", value_name = "RULE")]
    pub net: Vec<String>,
    /// Tell on standard error, at the end, what the program used
    #[arg(long, value_enum, num_args = 0..=1, default_missing_value = "text", value_name = "FORM", require_equals = true)]
    pub stats: Option<Output>,
    /// Data directory, where runtimes are
    #[arg(long, env = paths::DATA_DIR_VARIABLE)]
    pub data_dir: Option<PathBuf>,
}

/// What is to be mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mount {
    pub source: PathBuf,
    pub path: String,
}

/// The command line, understood.
#[derive(Debug)]
pub(super) struct Settings {
    /// What `--env` gives, in its order.
    pub environment: Vec<(String, String)>,
    pub mounts: Vec<Mount>,
    pub user: (u32, u32),
    pub timeout: Option<Duration>,
    pub egress: EgressPolicy,
}

impl RunArgs {
    /// Checks what clap cannot.
    pub(super) fn settings(&self) -> Result<Settings> {
        ensure!(
            MEMORY_MIB.contains(&self.memory),
            "--memory {}: from {} to {} MiB can be given",
            self.memory,
            MEMORY_MIB.start(),
            MEMORY_MIB.end()
        );
        ensure!(
            self.tmp <= TMP_MIB_MAX,
            "--tmp {}: at most {TMP_MIB_MAX} MiB can be given",
            self.tmp
        );
        if let Some(directory) = &self.workdir {
            ensure!(
                directory.starts_with('/'),
                "--workdir {directory:?} is no absolute path"
            );
        }
        ensure!(
            (1..=HOST_NAME_BYTES_MAX).contains(&self.hostname.len()),
            "--hostname {:?} has not 1 to {HOST_NAME_BYTES_MAX} bytes",
            self.hostname
        );
        let mounts: Vec<Mount> = self
            .mounts
            .iter()
            .map(|text| mount(text))
            .collect::<Result<_>>()?;
        ensure!(
            mounts.len() <= Program::MOUNTS_MAX,
            "there are {} mounts, and at most {} can be made",
            mounts.len(),
            Program::MOUNTS_MAX
        );
        Ok(Settings {
            environment: environment(&self.environment)?,
            mounts,
            user: user(&self.user)?,
            egress: EgressPolicy::parse(self.net.iter().map(String::as_str)).context("read --net")?,
            timeout: self.timeout.map(timeout).transpose()?,
        })
    }
}

/// A program's environment: what is given, over what the image says, over what every program gets.
pub(super) fn over_defaults(
    given: Vec<(String, String)>,
    image: BTreeMap<String, String>,
) -> Vec<(String, String)> {
    let defaults = ENVIRONMENT.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let mut variables = BTreeMap::from(defaults);
    variables.extend(image);
    variables.extend(given);
    variables.into_iter().collect()
}

fn environment(given: &[String]) -> Result<Vec<(String, String)>> {
    let mut variables = Vec::new();
    for text in given {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, value.to_owned()),
            None => {
                let value = std::env::var(text)
                    .with_context(|| format!("--env {text}: this process has no such variable"))?;
                (text.as_str(), value)
            }
        };
        ensure!(!name.is_empty(), "--env {text:?} has no name");
        ensure!(!value.contains('\0'), "--env {name}: a value has no NUL bytes");
        variables.push((name.to_owned(), value));
    }
    Ok(variables)
}

fn mount(text: &str) -> Result<Mount> {
    match text.rsplit_once(":/") {
        Some((source, path)) if !source.is_empty() && !path.is_empty() => Ok(Mount {
            source: source.into(),
            path: format!("/{path}"),
        }),
        Some(_) | None => bail!("--mount {text:?} is not SOURCE:/PATH"),
    }
}

fn user(text: &str) -> Result<(u32, u32)> {
    let number = |part: &str| {
        part.parse()
            .with_context(|| format!("--user {text:?} is not UID or UID:GID, in numbers"))
    };
    match text.split_once(':') {
        Some((user, group)) => Ok((number(user)?, number(group)?)),
        None => Ok((number(text)?, number(text)?)),
    }
}

fn timeout(seconds: f64) -> Result<Duration> {
    ensure!(
        seconds > 0.0 && seconds <= TIMEOUT_S_MAX,
        "--timeout {seconds}: more than 0 and at most {TIMEOUT_S_MAX} seconds can be given"
    );
    Ok(Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_numbers() {
        assert_eq!(user("1000").unwrap(), (1000, 1000));
        assert_eq!(user("1:2").unwrap(), (1, 2));
        for text in ["", "root", "1:", ":1", "1:2:3", "-1", "4294967296"] {
            assert!(user(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn mounts_are_split_at_the_path_in_the_guest() {
        let expected = Mount {
            source: "a:b".into(),
            path: "/mnt/x".into(),
        };
        assert_eq!(mount("a:b:/mnt/x").unwrap(), expected);
        for text in ["", "a", "a:b", ":/mnt", "a:/"] {
            assert!(mount(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_last_value_of_a_variable_counts() {
        let given = ["A=1", "A=2", "HOME=", "B=x=y"].map(str::to_owned);
        let image = [("B", "image"), ("C", "image"), ("HOME", "image")];
        let image = BTreeMap::from(image.map(|(name, value)| (name.to_owned(), value.to_owned())));
        let variables = over_defaults(environment(&given).unwrap(), image);
        let value = |name: &str| {
            let found: Vec<_> = variables.iter().filter(|(known, _)| known == name).collect();
            assert_eq!(found.len(), 1, "{name}");
            found[0].1.clone()
        };
        assert_eq!([value("A"), value("HOME"), value("B")], ["2", "", "x=y"]);
        assert_eq!(value("C"), "image");
        assert!(value("PATH").contains("/bin"));
        assert!(environment(&["=x".to_owned()]).is_err());
        assert!(environment(&["GUST_NO_SUCH_VARIABLE".to_owned()]).is_err());
    }

    #[test]
    fn time_outs_are_positive_and_finite() {
        assert_eq!(timeout(0.5).unwrap(), Duration::from_millis(500));
        for seconds in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e12] {
            assert!(timeout(seconds).is_err(), "{seconds}");
        }
    }
}
