//! What goes into each runtime that is built from Debian's packages.

use std::collections::BTreeMap;

use super::{archive::Archive, java, node};
use crate::runtime::{RuntimeDescription, RuntimeInterface};

/// A runtime that can be built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recipe {
    /// CPython 3.11 with boto3 and Gust's own bootstrap.
    Python311,
    /// Node.js 20 with Gust's own bootstrap.
    NodeJs20,
    /// OpenJDK 17 with AWS's client of the Runtime API.
    Java17,
    /// Programs that bring their own runtime and expect Amazon Linux 2023's name.
    ProvidedAl2023,
    /// The same under Amazon Linux 2's name.
    ProvidedAl2,
}

/// Packages that dependencies pull in and that a function has no use for: the package manager itself, what its
/// scripts need, and documentation.
const BAGGAGE: [&str; 10] = [
    "debconf",
    "debconf-2.0",
    "dpkg",
    "gcc-12-base",
    "mawk",
    "openssl",
    "perl-base",
    "python3-pkg-resources",
    "readline-common",
    "tar",
];

/// Libraries of the packages above that nothing else in the Python runtime uses.
const PYTHON_BAGGAGE: [&str; 5] = ["libacl1", "libmd0", "libpcre2-8-0", "libselinux1", "libzstd1"];

/// What only the scripts of the packages above need: Node.js has its own OpenSSL.
const NODE_BAGGAGE: [&str; 1] = ["libssl3"];

impl Recipe {
    /// Every recipe.
    pub const ALL: [Self; 5] = [
        Self::Python311,
        Self::NodeJs20,
        Self::Java17,
        Self::ProvidedAl2023,
        Self::ProvidedAl2,
    ];

    /// The runtime's name as functions state it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Python311 => "python3.11",
            Self::NodeJs20 => "nodejs20.x",
            Self::Java17 => "java17",
            Self::ProvidedAl2023 => "provided.al2023",
            Self::ProvidedAl2 => "provided.al2",
        }
    }

    /// The recipe of a name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|recipe| recipe.name() == name)
    }

    /// Packages that are asked for; apt adds what they need.
    pub(super) fn packages(self) -> &'static [&'static str] {
        match self {
            Self::Python311 => &[
                "libc-bin",
                "python3.11-minimal",
                "python3.11",
                "libpython3.11-stdlib",
                // What wheels with C++ inside link to, as in Lambda's own image.
                "libgcc-s1",
                "libstdc++6",
                "ca-certificates",
                "tzdata",
                "python3-boto3",
                "python3-botocore",
                "python3-simplejson",
            ],
            // The program itself is downloaded: Debian's own is of another major version.
            Self::NodeJs20 => &[
                "libc6",
                "libc-bin",
                "libgcc-s1",
                "libstdc++6",
                "ca-certificates",
                "tzdata",
            ],
            Self::Java17 => &["libc-bin", "openjdk-17-jre-headless", "ca-certificates", "tzdata"],
            Self::ProvidedAl2023 | Self::ProvidedAl2 => &[
                "libc6",
                "libc-bin",
                "libgcc-s1",
                "libstdc++6",
                "zlib1g",
                "libssl3",
                "ca-certificates",
                "tzdata",
                "bash",
                "coreutils",
                "grep",
                "sed",
                "curl",
            ],
        }
    }

    /// Archives that are downloaded beside the packages, of fixed versions.
    pub(super) fn archives(self) -> &'static [Archive] {
        match self {
            Self::NodeJs20 => &[node::ARCHIVE],
            Self::Java17 => &java::ARCHIVES,
            Self::Python311 | Self::ProvidedAl2023 | Self::ProvidedAl2 => &[],
        }
    }

    /// Whether a package that apt chose is left out.
    pub(super) fn leaves_out(self, package: &str) -> bool {
        BAGGAGE.contains(&package)
            || match self {
                Self::Python311 => PYTHON_BAGGAGE.contains(&package),
                Self::NodeJs20 => NODE_BAGGAGE.contains(&package),
                Self::Java17 => !java::KEPT.contains(&package),
                Self::ProvidedAl2023 | Self::ProvidedAl2 => false,
            }
    }

    /// How the runtime is started.
    pub(super) fn description(self) -> RuntimeDescription {
        let (interface, commands, own): (_, Vec<Vec<&str>>, &[(&str, &str)]) = match self {
            Self::Python311 => (
                RuntimeInterface::Device,
                vec![vec!["/usr/bin/python3.11", "/var/runtime/bootstrap.py"]],
                &[("AWS_EXECUTION_ENV", "AWS_Lambda_python3.11")],
            ),
            Self::NodeJs20 => (
                RuntimeInterface::Device,
                vec![node::command()],
                &node::ENVIRONMENT,
            ),
            Self::Java17 => (
                RuntimeInterface::RuntimeApi,
                vec![java::command()],
                &java::ENVIRONMENT,
            ),
            Self::ProvidedAl2023 | Self::ProvidedAl2 => (
                RuntimeInterface::RuntimeApi,
                vec![vec!["/var/task/bootstrap"], vec!["/opt/bootstrap"]],
                &[],
            ),
        };
        // The system's directories come first, so that starting the program looks for nothing in the function's.
        let common = [
            ("LANG", "C.UTF-8"),
            (
                "LD_LIBRARY_PATH",
                "/lib/x86_64-linux-gnu:/usr/lib/x86_64-linux-gnu:/var/runtime:/var/runtime/lib:/var/task:\
                 /var/task/lib:/opt/lib",
            ),
            ("LAMBDA_RUNTIME_DIR", "/var/runtime"),
            ("LAMBDA_TASK_ROOT", "/var/task"),
            ("PATH", "/usr/local/bin:/usr/bin:/bin:/opt/bin"),
            ("TZ", ":UTC"),
        ];
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let environment: BTreeMap<_, _> = common.iter().chain(own).map(owned).collect();
        RuntimeDescription {
            name: self.name().to_owned(),
            interface,
            commands: commands
                .into_iter()
                .map(|command| command.into_iter().map(str::to_owned).collect())
                .collect(),
            environment,
            directory: "/var/task".to_owned(),
        }
    }
}
