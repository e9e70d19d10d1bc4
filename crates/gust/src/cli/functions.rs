//! Arguments of what is done with functions and their runtimes.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{OutputArgs, ServerArgs, parse_age};
use crate::paths;

/// What a function is, beyond its directory.
#[derive(Debug, Clone, Default, Args)]
pub struct FunctionArgs {
    /// Name of the function [default: that of the directory]
    #[arg(long)]
    pub name: Option<String>,
    /// Handler [default: found in the directory]
    #[arg(long)]
    pub handler: Option<String>,
    /// Runtime [default: found in the directory]
    #[arg(long)]
    pub runtime: Option<String>,
    /// Memory, in MiB
    #[arg(long)]
    pub memory: Option<u32>,
    /// Longest run, in seconds
    #[arg(long)]
    pub timeout: Option<u32>,
    /// Environment variable, NAME=VALUE; can be given several times
    #[arg(long = "env", value_name = "NAME=VALUE")]
    pub environment: Vec<String>,
}

/// `gust deploy`
#[derive(Debug, Args)]
pub struct DeployArgs {
    /// Directory with the function's code
    #[arg(default_value = ".")]
    pub dir: PathBuf,
    #[command(flatten)]
    pub function: FunctionArgs,
    #[command(flatten)]
    pub server: ServerArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `gust dev`
#[derive(Debug, Args)]
pub struct DevArgs {
    /// Directory with the function's code
    #[arg(default_value = ".")]
    pub dir: PathBuf,
    #[command(flatten)]
    pub function: FunctionArgs,
    #[command(flatten)]
    pub server: ServerArgs,
}

/// `gust invoke`
#[derive(Debug, Args)]
pub struct InvokeArgs {
    /// Name or ARN of the function
    pub name: String,
    /// The event: JSON, @FILE, or - for standard input
    #[arg(default_value = "{}")]
    pub payload: String,
    /// Version or alias
    #[arg(short, long)]
    pub qualifier: Option<String>,
    /// Return at once; the event is delivered later
    #[arg(long = "async", conflicts_with = "tail")]
    pub asynchronous: bool,
    /// Show the end of the log
    #[arg(short, long)]
    pub tail: bool,
    #[command(flatten)]
    pub server: ServerArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `gust logs`
#[derive(Debug, Args)]
pub struct LogsArgs {
    /// Name of the function
    pub name: String,
    /// Go on with what is written from now on
    #[arg(short, long)]
    pub follow: bool,
    /// Nothing older: 30s, 10m, 2h, 1d
    #[arg(long, value_parser = parse_age)]
    pub since: Option<std::time::Duration>,
    /// Lines to begin with
    #[arg(short = 'n', long, default_value_t = 100)]
    pub lines: usize,
    #[command(flatten)]
    pub server: ServerArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `gust ls`
#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    pub server: ServerArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `gust describe`
#[derive(Debug, Args)]
pub struct DescribeArgs {
    /// Name or ARN of the function
    pub name: String,
    /// Version or alias
    #[arg(short, long)]
    pub qualifier: Option<String>,
    #[command(flatten)]
    pub server: ServerArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `gust rm`
#[derive(Debug, Args)]
pub struct RemoveArgs {
    /// Names of the functions
    #[arg(required = true)]
    pub names: Vec<String>,
    /// Only this published version
    #[arg(short, long)]
    pub qualifier: Option<String>,
    #[command(flatten)]
    pub server: ServerArgs,
}

/// `gust runtime`
#[derive(Debug, Args)]
pub struct RuntimeArgs {
    /// Data directory
    #[arg(long, env = paths::DATA_DIR_VARIABLE, global = true)]
    pub data_dir: Option<PathBuf>,
    /// What to do
    #[command(subcommand)]
    pub command: RuntimeCommand,
}

/// What to do with runtimes.
#[derive(Debug, Subcommand)]
pub enum RuntimeCommand {
    /// List the runtimes that are built
    Ls {
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Build runtimes from Debian's packages
    Build {
        /// python3.11, nodejs20.x, java17, provided.al2023 or provided.al2
        #[arg(required = true)]
        names: Vec<String>,
        /// Build again what is there
        #[arg(long)]
        force: bool,
    },
    /// Add a runtime from a directory, or from an OCI image layout
    Add {
        /// Name of the runtime
        name: String,
        /// Directory with a root file system and /.gust/runtime.json, or with an OCI image layout
        source: PathBuf,
    },
    /// Remove runtimes
    Rm {
        /// Names of the runtimes
        #[arg(required = true)]
        names: Vec<String>,
    },
}
