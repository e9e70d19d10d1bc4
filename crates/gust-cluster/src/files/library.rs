//! The files of one member, and where each chunk lies in them.
//!
//! ```text
//!  publish(path) ──> known by its FileId; its chunks can be read
//!  assembled     ──> a file of the library's own, under its FileId, with its manifest beside it
//!  drop(id)      ──> the file goes; chunks that no other file has are offered to the cache
//! ```
//!
//! Files that others own (a store's images, a node's snapshots) are only looked at. A chunk is compared with its name
//! each time it is read, so a file that has changed gives nothing wrong, only nothing.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
    CHUNKS_MAX, ChunkId, FileId, Manifest, ManifestError,
    loose::Loose,
    manifest::Part,
    parse_hex,
    state::{Entry, Stamp, State},
};

/// Directory of files that were assembled here.
const FILES: &str = "files";

/// Directory of chunks that no file has.
const CHUNKS: &str = "chunks";

/// End of the name of a manifest's file.
const MANIFEST_SUFFIX: &str = ".manifest";

/// First letters of the names of files that are being assembled.
const TEMPORARY_PREFIX: &str = ".fetch-";

/// Most files that are known at a time.
const FILES_MAX: usize = 64 << 10;

/// Most chunks of all files that are known at a time: 8 TiB.
const INDEXED_MAX: usize = 16 << 20;

/// Configuration of a library.
#[derive(Debug, Clone)]
pub struct LibraryConfig {
    /// Directory that the library owns.
    pub directory: PathBuf,
    /// Bound of the cache of chunks that no file has, in bytes.
    pub cache_bytes_max: u64,
}

/// Why a file cannot be published.
#[derive(Debug, thiserror::Error)]
pub enum LibraryError {
    /// The library's directory failed.
    #[error("{action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The file cannot be read through.
    #[error("reading {path}")]
    Manifest {
        /// The file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: ManifestError,
    },
    /// There are too many files.
    #[error("more than {FILES_MAX} files or {INDEXED_MAX} chunks are published")]
    TooMany,
}

/// The files of one member. Blocking calls; whoever serves requests makes them where that is allowed.
#[derive(Debug)]
pub struct Library {
    directory: PathBuf,
    state: Mutex<State>,
    /// Files that are being read through: one at a time each.
    publishing: Mutex<HashMap<PathBuf, Arc<Mutex<()>>>>,
    /// Files that are being assembled: one at a time each.
    pub(super) obtaining: Mutex<HashMap<FileId, Arc<tokio::sync::Mutex<()>>>>,
}

impl Library {
    /// Opens a library: removes what was cut short, and knows what was assembled here before.
    ///
    /// # Errors
    /// When its directory cannot be used.
    pub fn open(config: &LibraryConfig) -> Result<Self, LibraryError> {
        let directory = config.directory.join(FILES);
        let failed = |source| LibraryError::Io {
            action: "preparing",
            path: config.directory.clone(),
            source,
        };
        fs::create_dir_all(&directory).map_err(failed)?;
        let loose = Loose::open(&config.directory.join(CHUNKS), config.cache_bytes_max).map_err(failed)?;
        let library = Self {
            directory,
            state: Mutex::new(State {
                files: HashMap::new(),
                paths: HashMap::new(),
                chunks: HashMap::new(),
                indexed: 0,
                loose,
            }),
            publishing: Mutex::default(),
            obtaining: Mutex::default(),
        };
        library.find_assembled().map_err(failed)?;
        Ok(library)
    }

    fn find_assembled(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.directory)?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let id = name.strip_suffix(MANIFEST_SUFFIX).and_then(parse_hex).map(FileId);
            let path = match id {
                Some(id) => self.path(id),
                // A file's manifest is written before it, and brings it in.
                None if parse_hex(&name).is_some() && self.manifest_path_of(&name).exists() => continue,
                None => {
                    fs::remove_file(entry.path())?;
                    continue;
                }
            };
            let known = id.and_then(|id| {
                let encoded = fs::read(entry.path()).ok()?;
                let manifest = Manifest::decode(&encoded, id).ok()?;
                let is_whole = fs::metadata(&path).is_ok_and(|file| file.len() == manifest.bytes());
                (is_whole && self.enter(id, path.clone(), Arc::new(manifest), true).is_ok()).then_some(())
            });
            if known.is_none() {
                fs::remove_file(entry.path())?;
                let _ = fs::remove_file(&path);
            }
        }
        Ok(())
    }

    /// Makes a file known that someone else owns. It is read through once, and again only when it has changed.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn publish(&self, path: &Path) -> Result<FileId, LibraryError> {
        let failed = |source| LibraryError::Io {
            action: "opening",
            path: path.to_path_buf(),
            source,
        };
        let file = File::open(path).map_err(failed)?;
        let stamp = Stamp::of(&file).map_err(failed)?;
        let published = || {
            let state = self.state();
            let (known, id) = state.paths.get(path)?;
            (*known == stamp).then_some(*id)
        };
        if let Some(id) = published() {
            return Ok(id);
        }
        // Of several that publish one file, one reads it.
        let only_one = {
            let mut publishing = self.publishing.lock().unwrap_or_else(PoisonError::into_inner);
            publishing.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(publishing.entry(path.to_path_buf()).or_default())
        };
        let _only_one = only_one.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(id) = published() {
            return Ok(id);
        }
        let manifest = Manifest::of(&file).map_err(|source| LibraryError::Manifest {
            path: path.to_path_buf(),
            source,
        })?;
        let id = manifest.id();
        if self
            .state()
            .paths
            .get(path)
            .is_some_and(|(_, known)| *known != id)
        {
            self.withdraw(path);
        }
        self.enter(id, path.to_path_buf(), Arc::new(manifest), false)?;
        self.state().paths.insert(path.to_path_buf(), (stamp, id));
        Ok(id)
    }

    /// Forgets a file that someone else owns.
    pub fn withdraw(&self, path: &Path) {
        let mut state = self.state();
        if let Some((_, id)) = state.paths.remove(path)
            && state.files.get(&id).is_some_and(|entry| entry.path == path)
        {
            state.forget(id);
        }
    }

    /// Where a file lies, if it is here.
    pub fn file(&self, id: FileId) -> Option<PathBuf> {
        let state = self.state();
        let path = state.files.get(&id).map(|entry| entry.path.clone())?;
        // Its owner may have removed it.
        path.exists().then_some(path)
    }

    /// A file's manifest.
    pub fn manifest(&self, id: FileId) -> Option<Arc<Manifest>> {
        let state = self.state();
        state.files.get(&id).map(|entry| Arc::clone(&entry.manifest))
    }

    /// Every file that is here.
    pub fn files(&self) -> Vec<FileId> {
        self.state().files.keys().copied().collect()
    }

    /// A chunk's content, from whichever file has it, or from the cache. It is what its name says.
    pub fn chunk(&self, id: ChunkId) -> Option<Vec<u8>> {
        let places = {
            let mut state = self.state();
            state.loose.requested(id);
            let places = state.chunks.get(&id).into_iter().flatten();
            let found = places.filter_map(|(file, part)| Some((state.files.get(file)?.path.clone(), *part)));
            found.collect::<Vec<_>>()
        };
        for (path, part) in places {
            let mut content = vec![0; part.bytes];
            let read = File::open(&path).and_then(|file| file.read_exact_at(&mut content, part.offset));
            if read.is_ok() && ChunkId::of(&content) == id {
                return Some(content);
            }
        }
        self.state().loose.read(id)
    }

    /// Offers a chunk that was fetched for nothing to the cache.
    pub(super) fn offer(&self, id: ChunkId, content: &[u8]) {
        let mut state = self.state();
        if !state.chunks.contains_key(&id) {
            state.loose.offer(id, content);
        }
    }

    /// A file to assemble another in.
    pub(super) fn draft(&self) -> io::Result<tempfile::NamedTempFile> {
        tempfile::Builder::new()
            .prefix(TEMPORARY_PREFIX)
            .tempfile_in(&self.directory)
    }

    /// Takes an assembled file in, whole and under its name.
    pub(super) fn take_in(
        &self,
        draft: tempfile::NamedTempFile,
        id: FileId,
        manifest: Arc<Manifest>,
    ) -> io::Result<PathBuf> {
        draft.as_file().sync_all()?;
        let path = self.path(id);
        let mut beside = self.draft()?;
        beside.write_all(&manifest.encode())?;
        beside.as_file().sync_all()?;
        beside
            .persist(self.manifest_path_of(&id.to_string()))
            .map_err(|error| error.error)?;
        draft.persist(&path).map_err(|error| error.error)?;
        File::open(&self.directory)?.sync_all()?;
        self.enter(id, path.clone(), manifest, true)
            .map_err(io::Error::other)?;
        Ok(path)
    }

    /// Lets go of a file that was assembled here. Chunks that no other file has are offered to the cache.
    pub fn drop_file(&self, id: FileId) {
        let alone: Vec<ChunkId> = {
            let state = self.state();
            let Some(entry) = state.files.get(&id).filter(|entry| entry.is_own) else {
                return;
            };
            let parts = entry.manifest.parts();
            let is_alone = |part: &Part| {
                let places = state.chunks.get(&part.chunk).into_iter().flatten();
                places.into_iter().all(|(file, _)| *file == id)
            };
            parts.filter(is_alone).map(|part| part.chunk).collect()
        };
        for chunk in alone {
            // Counted as a request too: it was of use as long as its file was.
            if let Some(content) = self.chunk(chunk) {
                self.state().loose.offer(chunk, &content);
            }
        }
        self.state().forget(id);
        let _ = fs::remove_file(self.path(id));
        let _ = fs::remove_file(self.manifest_path_of(&id.to_string()));
    }

    /// Gives a file that was assembled here away: it is moved to a path of someone else's, whole.
    ///
    /// # Errors
    /// When it is not here, or cannot be moved there.
    pub fn give_away(&self, id: FileId, to: &Path) -> io::Result<()> {
        let path = self.path(id);
        fs::rename(&path, to)?;
        let manifest = {
            let mut state = self.state();
            let manifest = state.files.get(&id).map(|entry| Arc::clone(&entry.manifest));
            state.forget(id);
            manifest
        };
        let _ = fs::remove_file(self.manifest_path_of(&id.to_string()));
        // It goes on being known where it is now, without being read again.
        let stamp = Stamp::of(&File::open(to)?)?;
        if let Some(manifest) = manifest
            && self.enter(id, to.to_path_buf(), manifest, false).is_ok()
        {
            self.state().paths.insert(to.to_path_buf(), (stamp, id));
        }
        Ok(())
    }

    fn enter(
        &self,
        id: FileId,
        path: PathBuf,
        manifest: Arc<Manifest>,
        is_own: bool,
    ) -> Result<(), LibraryError> {
        let mut state = self.state();
        if let Some(known) = state.files.get_mut(&id) {
            // The same content, perhaps under another path.
            if !known.path.exists() {
                known.path = path;
                known.is_own = is_own;
            }
            return Ok(());
        }
        let parts: Vec<Part> = manifest.parts().take(CHUNKS_MAX).collect();
        if state.files.len() >= FILES_MAX || state.indexed + parts.len() > INDEXED_MAX {
            return Err(LibraryError::TooMany);
        }
        state.indexed += parts.len();
        for part in parts {
            state.chunks.entry(part.chunk).or_default().push((id, part));
            state.loose.remove(&part.chunk);
        }
        state.files.insert(
            id,
            Entry {
                path,
                manifest,
                is_own,
            },
        );
        Ok(())
    }

    fn path(&self, id: FileId) -> PathBuf {
        self.directory.join(id.to_string())
    }

    fn manifest_path_of(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}{MANIFEST_SUFFIX}"))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
