//! Where `gust run` finds an image: a built runtime, an image file, or a directory that is taken into one.
//!
//! A directory is packed once and kept in the cache under a name made of everything that `stat` tells of its files; a
//! change of any of them makes another image. The cache keeps the images that were used last, within bounds.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::{Context, Result, bail};
use gust_image::{
    ImageFile, Tree,
    build::{
        directory::{self, Ownership},
        oci,
    },
    runtime::RuntimeDescription,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::arguments::DEFAULT_PATH;
use crate::{commands::runtime, exit::Hinted, paths};

/// Most images in the cache, and their size together, in bytes.
const CACHED_MAX: usize = 32;
const CACHED_BYTES_MAX: u64 = 8 << 30;

/// Most files of a directory that is taken in.
const FILES_MAX: usize = 2_000_000;

/// What the cache's images end in.
const SUFFIX: &str = "gimg";

/// Changes when what is noted in packed images does, so that older ones are packed again.
const NOTES_VERSION: u8 = 2;

/// What an image says of how programs are run in it. It is noted in the images that are packed here.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Defaults {
    /// Environment, beneath what the command line gives.
    pub environment: BTreeMap<String, String>,
    /// Working directory; empty when the image states none.
    pub directory: String,
}

impl Defaults {
    fn read(image: &ImageFile) -> Self {
        match RuntimeDescription::of(image) {
            Ok(description) => Self::of_runtime(image, &description),
            // No runtime's. Images that were made elsewhere have other notes, or none.
            Err(_) => serde_json::from_slice(image.tables().metadata()).unwrap_or_default(),
        }
    }

    /// A runtime's own program can be called by its name, wherever it lies.
    fn of_runtime(image: &ImageFile, description: &RuntimeDescription) -> Self {
        let programs = description.commands.iter().filter_map(|command| command.first());
        let mut directories: Vec<&str> = programs
            .filter(|program| image.tables().find(program.as_bytes()).is_some())
            .filter_map(|program| Some(program.rsplit_once('/')?.0))
            .filter(|directory| !DEFAULT_PATH.split(':').any(|known| known == *directory))
            .collect();
        directories.push(DEFAULT_PATH);
        Self {
            environment: BTreeMap::from([("PATH".to_owned(), directories.join(":"))]),
            directory: String::new(),
        }
    }
}

/// The root file system of a program.
pub(super) struct Root {
    pub file: File,
    pub defaults: Defaults,
}

/// The image that a name on the command line stands for.
pub(super) fn root(name: &str, data_dir: &Path) -> Result<Root> {
    let runtimes = paths::runtimes_dir(data_dir);
    let built = runtimes.join(format!("{name}.img"));
    if !name.contains('/') && built.is_file() {
        return with_defaults(&built);
    }
    let source = Path::new(name);
    if source.is_dir() {
        return with_defaults(&packed(source)?.0);
    }
    if source.exists() {
        return with_defaults(source);
    }
    let known: Vec<String> = runtime::built(&runtimes)
        .into_iter()
        .map(|runtime| runtime.name)
        .collect();
    let hint = match known.as_slice() {
        [] => "build one with: gust runtime build provided.al2023".to_owned(),
        names => format!("there are: {}", names.join(", ")),
    };
    let message = format!("{name:?} is no runtime in {}, and no path", runtimes.display());
    Err(Hinted { message, hint }.into())
}

/// An image file, or a directory as one.
pub(super) fn path(source: &Path) -> Result<File> {
    let metadata = fs::metadata(source).with_context(|| format!("look at {}", source.display()))?;
    match metadata.is_dir() {
        true => Ok(packed(source)?.1),
        false => open(source),
    }
}

fn with_defaults(path: &Path) -> Result<Root> {
    let image = ImageFile::open(path)?;
    Ok(Root {
        file: open(path)?,
        defaults: Defaults::read(&image),
    })
}

fn open(path: &Path) -> Result<File> {
    // The worker believes nothing that it reads there; this is for the message.
    ImageFile::open(path)?;
    File::open(path).with_context(|| format!("open the image {}", path.display()))
}

/// The cached image of a directory, made when there is none: its path, and it.
fn packed(source: &Path) -> Result<(PathBuf, File)> {
    let cache = paths::cache_dir().join("images");
    fs::create_dir_all(&cache).with_context(|| format!("make directory {}", cache.display()))?;
    let name = fingerprint(source)?;
    let path = cache.join(format!("{name}.{SUFFIX}"));
    if let Ok(file) = open(&path) {
        // Its age decides what the cache gives up; it is as good without.
        let _ = file.set_modified(SystemTime::now());
        return Ok((path, file));
    }
    let taken_in = || format!("take in {}", source.display());
    let mut tree = Tree::new(&cache).with_context(|| format!("make a file in {}", cache.display()))?;
    let mut defaults = Defaults::default();
    if source.join("oci-layout").is_file() {
        let config = oci::add(&mut tree, source, &mut |_| {}).with_context(taken_in)?;
        (defaults.environment, defaults.directory) = (config.environment, config.directory);
    } else {
        // Root's trees have owners on purpose; another user's are all that user's, who is root inside.
        let ownership = match rustix::process::geteuid().is_root() {
            true => Ownership::Kept,
            false => Ownership::Root,
        };
        directory::add(&mut tree, source, b"", ownership).with_context(taken_in)?;
    }
    gust_image::write(&tree, &serde_json::to_vec(&defaults)?, &path)?;
    let file = open(&path)?;
    prune(&cache);
    Ok((path, file))
}

/// A name made of the paths, kinds, sizes, owners and times of everything in a directory.
fn fingerprint(source: &Path) -> Result<String> {
    let root = source
        .canonicalize()
        .with_context(|| format!("find {}", source.display()))?;
    let mut found = BTreeMap::new();
    let mut pending = vec![root.clone()];
    while let Some(path) = pending.pop() {
        let read = || format!("read {}", path.display());
        let metadata = fs::symlink_metadata(&path).with_context(read)?;
        if metadata.is_dir() {
            for entry in fs::read_dir(&path).with_context(read)? {
                pending.push(entry.with_context(read)?.path());
            }
        }
        let told = [
            u64::from(metadata.mode()),
            u64::from(metadata.uid()),
            u64::from(metadata.gid()),
            metadata.ino(),
            metadata.size(),
            metadata.mtime() as u64,
            metadata.mtime_nsec() as u64,
            // A content or link that was exchanged under old times.
            metadata.ctime() as u64,
            metadata.ctime_nsec() as u64,
        ];
        found.insert(path, told);
        if found.len() > FILES_MAX {
            bail!("{} has more than {FILES_MAX} files", source.display());
        }
    }
    let mut hash = Sha256::new();
    hash.update(env!("CARGO_PKG_VERSION"));
    hash.update([NOTES_VERSION]);
    for (path, told) in found {
        let path = path.as_os_str().as_bytes();
        hash.update((path.len() as u64).to_le_bytes());
        hash.update(path);
        for number in told {
            hash.update(number.to_le_bytes());
        }
    }
    Ok(hash.finalize()[..16]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

/// Gives up the images that were not used for longest, until the rest is within bounds. Runs that have one open keep it.
fn prune(cache: &Path) {
    let mut images: Vec<(SystemTime, u64, PathBuf)> = fs::read_dir(cache)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| {
            Path::new(&entry.file_name())
                .extension()
                .is_some_and(|ending| ending == SUFFIX)
        })
        .filter_map(|entry| {
            let metadata = entry.metadata().ok()?;
            Some((metadata.modified().ok()?, metadata.len(), entry.path()))
        })
        .collect();
    images.sort_by(|left, right| right.cmp(left));
    let mut bytes: u64 = 0;
    for (position, (_, length, path)) in images.iter().enumerate() {
        bytes = bytes.saturating_add(*length);
        // The newest is the one in hand.
        if position > 0 && (position >= CACHED_MAX || bytes > CACHED_BYTES_MAX) {
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_image_s_own_settings_are_kept_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("an.img");
        let tree = Tree::new(dir.path()).unwrap();
        let defaults = Defaults {
            environment: BTreeMap::from([("PATH".to_owned(), "/go/bin:/bin".to_owned())]),
            directory: "/src".to_owned(),
        };
        gust_image::write(&tree, &serde_json::to_vec(&defaults).unwrap(), &path).unwrap();
        assert_eq!(with_defaults(&path).unwrap().defaults, defaults);
        for other in [&br#"{"kind":"function","directory":7}"#[..], b"", b"{}"] {
            gust_image::write(&tree, other, &path).unwrap();
            assert_eq!(with_defaults(&path).unwrap().defaults, Defaults::default());
        }
    }

    #[test]
    fn any_change_of_a_directory_makes_another_name() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a/b");
        fs::create_dir(dir.path().join("a")).unwrap();
        fs::write(&file, "one").unwrap();
        let mut names = vec![fingerprint(dir.path()).unwrap()];
        assert_eq!(names[0], fingerprint(dir.path()).unwrap());
        let mut changed = |what: &str| {
            let name = fingerprint(dir.path()).unwrap();
            assert!(!names.contains(&name), "{what}");
            names.push(name);
        };
        fs::write(&file, "longer").unwrap();
        changed("size");
        File::open(&file)
            .unwrap()
            .set_modified(SystemTime::UNIX_EPOCH)
            .unwrap();
        changed("time");
        fs::rename(&file, dir.path().join("a/c")).unwrap();
        changed("name");
        fs::remove_file(dir.path().join("a/c")).unwrap();
        changed("absence");
    }

    #[test]
    fn the_cache_gives_up_what_was_not_used_for_longest() {
        let dir = tempfile::tempdir().unwrap();
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        for number in 0..CACHED_MAX + 3 {
            let path = dir.path().join(format!("{number}.{SUFFIX}"));
            let file = File::create(path).unwrap();
            file.set_modified(start + Duration::from_secs(number as u64))
                .unwrap();
        }
        fs::write(dir.path().join("other"), "").unwrap();
        prune(dir.path());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), CACHED_MAX + 1);
        for number in 0..3 {
            assert!(!dir.path().join(format!("{number}.{SUFFIX}")).exists());
        }
    }
}
