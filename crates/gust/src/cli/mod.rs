//! The command line: what is given to each command.

mod functions;
mod serve;

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::{
    bench,
    commands::{replay, run::RunArgs},
    exit, paths,
};
pub use functions::*;
pub use serve::*;

/// Runs AWS-Lambda-compatible functions, each in its own KVM micro-VM.
#[derive(Debug, Parser)]
#[command(name = "gust", version, about, after_help = exit::HELP, propagate_version = true)]
pub struct Arguments {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start the server
    Up(Box<UpArgs>),
    /// Run functions on this machine for a server on another
    Node(NodeArgs),
    /// Let nodes join a server
    Cluster(ClusterArgs),
    /// Run a program in a micro-VM of its own, without a server
    Run(RunArgs),
    /// Make or update a function from a directory
    Deploy(DeployArgs),
    /// Call a function
    Invoke(InvokeArgs),
    /// Show a function's log
    Logs(LogsArgs),
    /// List functions
    Ls(ListArgs),
    /// Show a function, its versions and its last calls
    Describe(DescribeArgs),
    /// Delete functions
    Rm(RemoveArgs),
    /// List, build, add and remove runtimes
    Runtime(RuntimeArgs),
    /// Redeploy a directory at every save, and show the log
    Dev(DevArgs),
    /// Measure a deployed function
    Bench(bench::BenchArgs),
    /// Show, draw and make traces of functions
    Trace(replay::TraceArgs),
    /// Replay a trace against a server, and report what came of it
    Replay(Box<replay::ReplayArgs>),
    /// Run a trace in the simulator, under the same policies
    Simulate(Box<replay::SimulateArgs>),
    /// Run a workload live and simulated, and say how far the two are apart
    #[command(name = "validate-sim")]
    ValidateSim(Box<replay::ValidateArgs>),
    /// Measure what the simulator has to know of this machine
    Calibrate(replay::CalibrateArgs),
    /// Replay a trace on a cluster of which parts are taken away, and check what comes of it
    Chaos(Box<replay::ChaosArgs>),
    /// Make a report of runs that were kept
    Report(replay::ReportArgs),
    /// Check what this machine has, and say how to mend what it lacks
    Doctor(DoctorArgs),
    /// Print a completion script
    Completion {
        /// For which shell
        shell: Shell,
    },
}

/// Form of what is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Output {
    /// For people
    #[default]
    Text,
    /// For programs
    Json,
}

/// How a command prints.
#[derive(Debug, Clone, Copy, Args)]
pub struct OutputArgs {
    /// Form of what is printed
    #[arg(short, long, value_enum, default_value_t, global = true)]
    pub output: Output,
}

/// Where a server is unless someone says otherwise.
const ENDPOINT: &str = "http://127.0.0.1:4566";

/// Where the server is and who calls it.
#[derive(Debug, Clone, Args)]
pub struct ServerArgs {
    /// Address of the server [default: http://127.0.0.1:4566]
    #[arg(long, env = "GUST_ENDPOINT", global = true)]
    pub endpoint: Option<String>,
    /// Access key id; only needed where the server asks for one
    #[arg(long, env = "GUST_ACCESS_KEY_ID", requires = "secret_key", global = true)]
    pub access_key: Option<String>,
    /// Secret of the access key
    #[arg(long, env = "GUST_SECRET_ACCESS_KEY", hide_env_values = true, global = true)]
    pub secret_key: Option<String>,
    /// Region of the server
    #[arg(long, env = "GUST_REGION", default_value = "us-east-1", global = true)]
    pub region: String,
}

impl ServerArgs {
    /// Address of the server.
    pub fn endpoint(&self) -> &str {
        self.endpoint.as_deref().unwrap_or(ENDPOINT)
    }
}

/// `gust doctor`
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Address that the server would listen on
    #[arg(long, env = "GUST_LISTEN", default_value = "127.0.0.1:4566")]
    pub listen: SocketAddr,
    /// Data directory
    #[arg(long, env = paths::DATA_DIR_VARIABLE)]
    pub data_dir: Option<PathBuf>,
    #[command(flatten)]
    pub output: OutputArgs,
}

fn parse_age(text: &str) -> Result<std::time::Duration, String> {
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..at]
        .parse()
        .map_err(|_| format!("{text:?} begins with no number"))?;
    let unit_s = match &text[at..] {
        "s" | "" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        other => return Err(format!("{other:?} is no unit; use s, m, h or d")),
    };
    let seconds = number
        .checked_mul(unit_s)
        .ok_or_else(|| format!("{text:?} is too long"))?;
    Ok(std::time::Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn ages_have_units() {
        assert_eq!(parse_age("90").unwrap().as_secs(), 90);
        assert_eq!(parse_age("2h").unwrap().as_secs(), 7200);
        for text in ["", "h", "5 m", "5w", "99999999999999999999d"] {
            assert!(parse_age(text).is_err(), "{text}");
        }
    }
}
