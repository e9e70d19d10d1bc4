//! Where things lie unless someone says otherwise.

use std::path::{Path, PathBuf};

/// Variable with the data directory.
pub const DATA_DIR_VARIABLE: &str = "GUST_DATA_DIR";

/// `${XDG_DATA_HOME:-~/.local/share}/gust`
pub fn data_dir() -> PathBuf {
    home_of("XDG_DATA_HOME", ".local/share").join("gust")
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
