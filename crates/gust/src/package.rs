//! From a directory to a code package.
//!
//! The package of the same files is the same bytes: entries are sorted and have one fixed time, so that an unchanged
//! directory is seen to be unchanged. What `.gitignore` and `.gustignore` exclude is left out, and what no function
//! needs: version control, byte code, virtual environments, the project file. `node_modules` is always taken in.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{Cursor, Read, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use gust_control::limits::ZIPPED_BYTES_MAX;
use ignore::{WalkBuilder, overrides::OverrideBuilder};
use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

use crate::{exit::Hinted, project};

/// What no function needs.
const EXCLUDED: &[&str] = &[
    ".git",
    ".hg",
    ".svn",
    "__pycache__",
    "*.pyc",
    ".venv",
    "venv",
    ".pytest_cache",
    ".mypy_cache",
    ".idea",
    ".vscode",
    ".DS_Store",
    ".gitignore",
    ".gustignore",
    project::FILE,
];

/// Where npm installs packages.
const MODULES: &str = "node_modules";

/// Most files that are taken in.
const FILES_MAX: usize = 65_000;

/// A code package.
#[derive(Debug)]
pub struct Package {
    /// The zip file.
    pub zip: Vec<u8>,
    /// Files in it.
    pub files: usize,
}

/// Files of a directory that belong into its package, sorted, relative to it.
pub fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = walk(dir, dir, true)?;
    // What npm installs is named in most `.gitignore` files, and the function needs it.
    let modules = dir.join(MODULES);
    if modules.is_dir() {
        files.extend(walk(dir, &modules, false)?);
        if files.len() > FILES_MAX {
            return Err(too_many(dir));
        }
    }
    Ok(files.into_iter().collect())
}

fn too_many(dir: &Path) -> anyhow::Error {
    anyhow::anyhow!(
        "{} has more than {FILES_MAX} files, which no package may have",
        dir.display()
    )
}

/// Files beneath `top`, relative to `dir`.
fn walk(dir: &Path, top: &Path, git_ignores: bool) -> Result<BTreeSet<PathBuf>> {
    let mut overrides = OverrideBuilder::new(dir);
    for pattern in EXCLUDED {
        overrides
            .add(&format!("!{pattern}"))
            .with_context(|| format!("exclude {pattern}"))?;
    }
    let walk = WalkBuilder::new(top)
        .git_ignore(git_ignores)
        .ignore(git_ignores)
        .hidden(false)
        .parents(false)
        .git_global(false)
        .git_exclude(false)
        .require_git(false)
        .add_custom_ignore_filename(".gustignore")
        .overrides(overrides.build().context("combine the exclusions")?)
        .build();
    let mut files = BTreeSet::new();
    for entry in walk {
        let entry = entry.with_context(|| format!("list {}", dir.display()))?;
        if entry.file_type().is_some_and(|kind| kind.is_dir()) {
            continue;
        }
        if files.len() == FILES_MAX {
            return Err(too_many(dir));
        }
        files.insert(entry.path().strip_prefix(dir).unwrap_or(entry.path()).to_owned());
    }
    Ok(files)
}

/// Makes the package of a directory.
pub fn build(dir: &Path) -> Result<Package> {
    let files = files(dir)?;
    if files.is_empty() {
        bail!("{} has no file that belongs into a package", dir.display());
    }
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for path in &files {
        add(&mut zip, dir, path).with_context(|| format!("pack {}", dir.join(path).display()))?;
    }
    let zip = zip.finish().context("finish the package")?.into_inner();
    if zip.len() as u64 > ZIPPED_BYTES_MAX {
        let message = format!(
            "the package of {} has {} bytes; {ZIPPED_BYTES_MAX} are allowed",
            dir.display(),
            zip.len()
        );
        let hint = "leave out what the function does not need in a file .gustignore".to_owned();
        return Err(Hinted { message, hint }.into());
    }
    Ok(Package {
        zip,
        files: files.len(),
    })
}

fn add(zip: &mut ZipWriter<Cursor<Vec<u8>>>, dir: &Path, path: &Path) -> Result<()> {
    let name = path.to_str().context("its name is no UTF-8")?;
    let full = dir.join(path);
    let metadata = full.symlink_metadata()?;
    // The default time of an entry is fixed: 1980-01-01.
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Deflated);
    if metadata.is_symlink() {
        let target = std::fs::read_link(&full)?;
        zip.add_symlink(name, target.to_str().context("its target is no UTF-8")?, options)?;
        return Ok(());
    }
    if !metadata.is_file() {
        bail!("it is neither a file nor a symbolic link");
    }
    let executable = metadata.permissions().mode() & 0o111 != 0;
    zip.start_file(
        name,
        options.unix_permissions(if executable { 0o755 } else { 0o644 }),
    )?;
    let mut content = Vec::new();
    File::open(&full)?.read_to_end(&mut content)?;
    zip.write_all(&content)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn directory(names: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in names {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, name).unwrap();
        }
        dir
    }

    #[test]
    fn what_no_function_needs_is_left_out() {
        let dir = directory(&[
            "app.py",
            "lib/util.py",
            "lib/__pycache__/util.pyc",
            ".git/config",
            ".env",
            "gust.toml",
            "notes.md",
            "big.bin",
        ]);
        fs::write(dir.path().join(".gitignore"), "*.bin\n").unwrap();
        fs::write(dir.path().join(".gustignore"), "notes.md\n").unwrap();
        let files = files(dir.path()).unwrap();
        assert_eq!(files, [".env", "app.py", "lib/util.py"].map(PathBuf::from));
    }

    #[test]
    fn installed_modules_are_taken_in_whatever_git_ignores() {
        let dir = directory(&[
            "index.mjs",
            "node_modules/a/index.js",
            "node_modules/a/.git/config",
            "dist/x.js",
        ]);
        fs::write(dir.path().join(".gitignore"), "node_modules\ndist\n").unwrap();
        fs::write(dir.path().join("node_modules/a/.gitignore"), "index.js\n").unwrap();
        let files = files(dir.path()).unwrap();
        assert_eq!(files, ["index.mjs", "node_modules/a/index.js"].map(PathBuf::from));
    }

    #[test]
    fn the_same_files_make_the_same_package() {
        let (one, other) = (directory(&["b.py", "a.py"]), directory(&["a.py", "b.py"]));
        assert_eq!(build(one.path()).unwrap().zip, build(other.path()).unwrap().zip);
        fs::write(other.path().join("a.py"), "changed").unwrap();
        assert_ne!(build(one.path()).unwrap().zip, build(other.path()).unwrap().zip);
    }

    #[test]
    fn programs_stay_executable() {
        let dir = directory(&["bootstrap"]);
        fs::set_permissions(dir.path().join("bootstrap"), fs::Permissions::from_mode(0o755)).unwrap();
        let mut zip = zip::ZipArchive::new(Cursor::new(build(dir.path()).unwrap().zip)).unwrap();
        assert_eq!(
            zip.by_name("bootstrap").unwrap().unix_mode().unwrap() & 0o777,
            0o755
        );
    }
}
