//! Where things lie unless someone says otherwise.

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

/// Variable with the data directory.
pub const DATA_DIR_VARIABLE: &str = "GUST_DATA_DIR";

/// Data directory of root.
const SYSTEM_DATA_DIR: &str = "/var/lib/gust";

/// `/var/lib/gust` for root, whose home the users of workers cannot pass through, and otherwise
/// `${XDG_DATA_HOME:-~/.local/share}/gust`
pub fn data_dir() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        SYSTEM_DATA_DIR.into()
    } else {
        home_of("XDG_DATA_HOME", ".local/share").join("gust")
    }
}

/// The first directory on the way to `path`, itself included, that other users cannot pass through.
pub fn barrier(path: &Path) -> Option<PathBuf> {
    let path = path.canonicalize().ok()?;
    let mut above: Vec<&Path> = path.ancestors().collect();
    above.reverse();
    above
        .into_iter()
        .find(|dir| {
            dir.metadata()
                .is_ok_and(|found| found.permissions().mode() & 0o001 == 0)
        })
        .map(Path::to_owned)
}

/// `${XDG_CONFIG_HOME:-~/.config}/gust/gust.toml`
pub fn config_file() -> PathBuf {
    home_of("XDG_CONFIG_HOME", ".config").join("gust/gust.toml")
}

/// `${GUST_CACHE:-${XDG_CACHE_HOME:-~/.cache}/gust}`: what can be made again.
pub fn cache_dir() -> PathBuf {
    std::env::var_os("GUST_CACHE")
        .map(PathBuf::from)
        .unwrap_or_else(|| home_of("XDG_CACHE_HOME", ".cache").join("gust"))
}

/// Directory of the runtimes' images.
pub fn runtimes_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("runtimes")
}

fn home_of(variable: &str, beneath_home: &str) -> PathBuf {
    // As the XDG base directory specification has it: a relative path is to be ignored.
    match std::env::var_os(variable)
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
    {
        Some(path) => path,
        None => std::env::home_dir()
            .unwrap_or_else(|| PathBuf::from("/root"))
            .join(beneath_home),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn barriers_are_found_from_above() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("closed/inner");
        fs::create_dir_all(&inner).unwrap();
        assert_eq!(barrier(&inner), None);
        let closed = dir.path().join("closed");
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(barrier(&inner), Some(closed.canonicalize().unwrap()));
    }
}
