//! Snapshots of one node: made once, kept on disk, laid in memory when they are used.
//!
//! ```text
//!  draft (memory files, written by a worker) ── keep ──> in memory + on disk
//!                                                            │    ^ load, checked: the first time
//!                                             least recently used goes; the disk stays
//!                                                            v    ^ promote, in the background
//!                                               in place on disk (nothing is read but what runs touch)
//! ```
//!
//! A snapshot that this node has once found right, and that has gone from memory, is laid out from disk: its layout is read
//! in one go, as REAP's working set is (arXiv 2101.09355, section 5), other pages when they are touched.
//!
//! A snapshot belongs to a name (a version, or a runtime's bare start), to the images that it was made from and to this
//! machine's processor. A layout, learned from runs, belongs to the snapshot that it was learned from and has a file of
//! its own, so that the large file is written once.

mod exchange;
mod format;
mod held;
mod layouts;
mod learning;
mod resident;
mod scratch;

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

pub use exchange::SnapshotFiles;
pub(crate) use format::FormatError;
#[cfg(fuzzing)]
pub(crate) use format::read_any_description;
use format::{DataId, Description, Reader};
use held::{Held, HeldSnapshot};
use learning::Learning;
pub(crate) use learning::{Layout, LearnedFrom, Recording};
use resident::Resident;
pub use scratch::Scratch;
use scratch::read_only;

/// Names a snapshot, and what it must have been made from to be of use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Key {
    /// A version's id, or a runtime's.
    pub name: String,
    /// Checksums of the images.
    pub inputs: Vec<[u8; 32]>,
}

/// Files in memory for a worker to write a snapshot or a layout into.
#[derive(Debug)]
pub(crate) struct Draft {
    pub memory: File,
    pub state: File,
}

/// A snapshot that can be laid out.
#[derive(Debug)]
pub(crate) struct Snapshot {
    memory: Resident,
    /// For reading only, as workers get it; in memory.
    pub state: File,
    /// Memory that the guest used when it was taken, in bytes.
    pub guest_bytes: u64,
    /// Bytes on disk; 0 when it could not be stored.
    pub stored_bytes: u64,
    state_bytes: u64,
    /// Names the content.
    pub checksum: [u8; 32],
    learning: Learning,
}

impl Snapshot {
    /// The guest's memory, for reading only, as workers get it.
    pub(crate) fn memory(&self) -> Arc<File> {
        self.memory.file()
    }

    /// Whether its memory is used in place on disk.
    pub(crate) fn is_on_disk(&self) -> bool {
        self.memory.is_on_disk()
    }

    /// Counts a use; whether it is used often enough to be taken into memory, and is not yet.
    pub(crate) fn wants_memory(&self) -> bool {
        self.memory.wants_memory()
    }

    /// Names what is stored; `None` when nothing is, so that it cannot be told from another.
    pub(crate) fn stored_checksum(&self) -> Option<[u8; 32]> {
        (self.stored_bytes > 0).then_some(self.checksum)
    }

    /// Bytes that it takes of the host's memory.
    fn held_bytes(&self) -> u64 {
        self.memory.held_bytes() + self.state_bytes + self.learning.held_bytes()
    }
}

/// The snapshots of one node.
#[derive(Debug)]
pub(crate) struct SnapshotStore {
    directory: PathBuf,
    fingerprint: String,
    scratch: Scratch,
    held_bytes_max: u64,
    held: Mutex<Held>,
    /// Files with data that have been found right.
    checked: Mutex<HashMap<PathBuf, DataId>>,
}

impl SnapshotStore {
    /// Snapshots beneath `data_dir`, for a machine with this processor. At most `held_bytes_max` lie in memory.
    pub(crate) fn new(data_dir: &Path, fingerprint: String, held_bytes_max: u64) -> io::Result<Self> {
        let directory = data_dir.join("snapshots");
        fs::create_dir_all(&directory)?;
        for entry in fs::read_dir(&directory)?.flatten() {
            // What a store that was cut short has left. One that still ends may have put its file in place meanwhile.
            if entry
                .file_name()
                .to_string_lossy()
                .starts_with(format::TEMPORARY_PREFIX)
                && let Err(error) = fs::remove_file(entry.path())
                && error.kind() != io::ErrorKind::NotFound
            {
                return Err(error);
            }
        }
        Ok(Self {
            directory,
            fingerprint,
            scratch: Scratch::new(),
            held_bytes_max,
            held: Mutex::default(),
            checked: Mutex::default(),
        })
    }

    /// Snapshots that are used in place on disk.
    pub(crate) fn on_disk(&self) -> usize {
        let held = lock(&self.held);
        let snapshots = held.snapshots.values();
        snapshots.filter(|held| held.snapshot.is_on_disk()).count()
    }

    /// Empty files for a worker to capture into.
    pub(crate) fn draft(&self) -> io::Result<Draft> {
        Ok(Draft {
            memory: self.scratch.file()?,
            state: self.scratch.file()?,
        })
    }

    /// An empty file for a worker to write a layout into.
    pub(crate) fn layout_draft(&self) -> io::Result<File> {
        self.scratch.file()
    }

    /// A snapshot that can be laid out at once.
    pub(crate) fn held(&self, key: &Key) -> Option<Arc<Snapshot>> {
        let mut held = lock(&self.held);
        held.tick += 1;
        let tick = held.tick;
        let found = held.snapshots.get_mut(&key.name)?;
        found.used = tick;
        (found.inputs == key.inputs).then(|| Arc::clone(&found.snapshot))
    }

    /// Takes in what a worker has captured: its bytes in the two files, and the memory that its guest used. It can be used
    /// at once; a disk that does not take it costs a boot after the next start, and is logged. Blocks.
    pub(crate) fn keep(
        &self,
        key: &Key,
        draft: Draft,
        bytes: (u64, u64),
        guest_bytes: u64,
    ) -> io::Result<Arc<Snapshot>> {
        let Draft { memory, state } = draft;
        let path = self.path(&key.name, "snapshot");
        let description = self.description(key, vec![guest_bytes]);
        self.remove_file(&self.path(&key.name, "layout"));
        let stored = format::write(&path, &description, (&memory, bytes.0), &[(&state, bytes.1)]);
        let (stored_bytes, checksum) = match stored {
            Ok(written) => {
                self.note_checked(&path, &description);
                (written.disk_bytes, written.checksum)
            }
            Err(error) => {
                self.remove_file(&path);
                let error: &dyn std::error::Error = &error;
                tracing::error!(name = key.name, error, "a snapshot is kept in memory only");
                // Unlike any other, because nothing will be compared with it.
                (0, [0; 32])
            }
        };
        let snapshot = Arc::new(Snapshot {
            memory: Resident::in_memory(read_only(&memory)?, bytes.0),
            state: read_only(&state)?,
            guest_bytes,
            stored_bytes,
            state_bytes: bytes.1,
            checksum,
            learning: Learning::default(),
        });
        self.hold(key, &snapshot);
        Ok(snapshot)
    }

    /// Opens a snapshot on disk: in place when it has been found right before, otherwise read into memory and checked. Blocks.
    pub(crate) fn load(&self, key: &Key) -> Result<Arc<Snapshot>, FormatError> {
        let path = self.path(&key.name, "snapshot");
        let reader = Reader::open(&path, &self.description(key, Vec::new()))?;
        let failed = |source| FormatError::Io {
            path: path.clone(),
            source,
        };
        let state = self.scratch.file().map_err(failed)?;
        reader.copy(0, &state)?;
        let checksum = reader.data_checksum().unwrap_or_default();
        let snapshot = Arc::new(Snapshot {
            memory: self.resident(&path, &reader)?,
            state: read_only(&state).map_err(failed)?,
            guest_bytes: reader.description().numbers.first().copied().unwrap_or(0),
            stored_bytes: disk_bytes(&path) + disk_bytes(&format::data_path(&path)),
            state_bytes: reader.bytes(0),
            checksum,
            learning: Learning::new(self.load_layout(key, checksum)),
        });
        self.hold(key, &snapshot);
        Ok(snapshot)
    }

    /// Takes a snapshot that is used in place on disk into memory, with its layout; whoever uses it is not disturbed. Blocks.
    pub(crate) fn promote(&self, key: &Key, snapshot: &Arc<Snapshot>) -> Result<(), FormatError> {
        let path = self.path(&key.name, "snapshot");
        let reader = Reader::open(&path, &self.description(key, Vec::new()))?;
        if reader.data_checksum() != Some(snapshot.checksum) {
            // Another has been made meanwhile.
            return Ok(());
        }
        let memory = self.copied(&path, &reader)?;
        snapshot.memory.take_in(memory, reader.data_bytes());
        if let Some(layout) = snapshot.layout().filter(|layout| layout.file.is_on_disk()) {
            let path = self.path(&key.name, "layout");
            let expected = self.layout_description(key, snapshot.checksum, Vec::new());
            let reader = Reader::open(&path, &expected)?;
            if reader.description().numbers.get(1) == Some(&layout.id) {
                layout
                    .file
                    .take_in(self.copied(&path, &reader)?, reader.data_bytes());
            }
        }
        self.make_room(&mut lock(&self.held));
        Ok(())
    }

    /// A file's data: in place when they have been found right before, otherwise in memory.
    fn resident(&self, path: &Path, reader: &Reader) -> Result<Resident, FormatError> {
        let (data, id) = reader.data()?;
        if lock(&self.checked).get(path) == Some(&id) {
            let data = data.try_clone().map_err(|source| FormatError::Io {
                path: path.to_path_buf(),
                source,
            })?;
            return Ok(Resident::on_disk(data));
        }
        Ok(Resident::in_memory(
            self.copied(path, reader)?,
            reader.data_bytes(),
        ))
    }

    /// A file's data in memory, checked.
    fn copied(&self, path: &Path, reader: &Reader) -> Result<File, FormatError> {
        let failed = |source| FormatError::Io {
            path: path.to_path_buf(),
            source,
        };
        let (_, id) = reader.data()?;
        let file = self.scratch.file().map_err(failed)?;
        reader.copy_data(&file)?;
        // What changed while it was read has another id the next time.
        lock(&self.checked).insert(path.to_path_buf(), id);
        read_only(&file).map_err(failed)
    }

    /// Remembers a file that has just been written as one that is right.
    fn note_checked(&self, path: &Path, description: &Description) {
        if let Ok(reader) = Reader::open(path, description)
            && let Ok((_, id)) = reader.data()
        {
            lock(&self.checked).insert(path.to_path_buf(), id);
        }
    }

    /// Snapshots in memory of functions of a runtime whose runs have been learned from.
    pub(crate) fn descendants(&self, runtime: &[u8; 32]) -> Vec<Arc<Snapshot>> {
        let held = lock(&self.held);
        let mut functions: Vec<&HeldSnapshot> = held
            .snapshots
            .values()
            .filter(|held| {
                held.inputs.len() > 1
                    && held.inputs.first() == Some(runtime)
                    && held.snapshot.layout().is_some()
            })
            .collect();
        functions.sort_by_key(|held| std::cmp::Reverse(held.used));
        functions.iter().map(|held| Arc::clone(&held.snapshot)).collect()
    }

    /// Forgets a snapshot, in memory and on disk. Blocks.
    pub(crate) fn remove(&self, name: &str) {
        lock(&self.held).snapshots.remove(name);
        for kind in ["snapshot", "layout"] {
            self.remove_file(&self.path(name, kind));
        }
    }

    fn remove_file(&self, path: &Path) {
        lock(&self.checked).remove(path);
        let _ = fs::remove_file(path);
        let _ = fs::remove_file(format::data_path(path));
    }

    fn description(&self, key: &Key, numbers: Vec<u64>) -> Description {
        Description {
            name: key.name.clone(),
            fingerprint: self.fingerprint.clone(),
            inputs: key.inputs.clone(),
            numbers,
        }
    }

    /// Names come from users; files are named by their hash.
    fn path(&self, name: &str, kind: &str) -> PathBuf {
        self.directory
            .join(format!("{}.{kind}", blake3::hash(name.as_bytes()).to_hex()))
    }
}

/// Names the features of this machine's processor, as far as programs see them.
pub(crate) fn processor_fingerprint() -> io::Result<String> {
    // Not the microcode's version: it changes what the processor does, not which instructions a program may use.
    const FIELDS: [&str; 4] = ["vendor_id", "cpu family", "model", "flags"];
    let text = fs::read_to_string("/proc/cpuinfo")?;
    let first = text.split("\n\n").next().unwrap_or_default();
    let lines = first
        .lines()
        .filter(|line| FIELDS.contains(&line.split(':').next().unwrap_or_default().trim()));
    Ok(blake3::hash(lines.collect::<Vec<_>>().join("\n").as_bytes())
        .to_hex()
        .to_string())
}

/// Unlike any other, of this or another start of the node.
fn random_id() -> u64 {
    let mut bytes = [0; 8];
    crate::identity::fill_random(&mut bytes);
    u64::from_le_bytes(bytes)
}

fn disk_bytes(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| {
        std::os::unix::fs::MetadataExt::blocks(&metadata) * 512
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::{held::OPEN_MAX, *};

    fn store(dir: &Path, held_bytes_max: u64) -> SnapshotStore {
        SnapshotStore::new(dir, "cpu".to_owned(), held_bytes_max).unwrap()
    }

    fn key(name: &str) -> Key {
        Key {
            name: name.to_owned(),
            inputs: vec![[9; 32]],
        }
    }

    fn keep(store: &SnapshotStore, key: &Key, fill: u8) -> Arc<Snapshot> {
        let draft = store.draft().unwrap();
        draft.memory.write_all_at(&[fill; 10_000], 0).unwrap();
        draft.state.write_all_at(b"state", 0).unwrap();
        store.keep(key, draft, (10_000, 5), 1234).unwrap()
    }

    fn content(file: &File) -> Vec<u8> {
        let mut content = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut content, 0).unwrap();
        content
    }

    #[test]
    fn snapshots_survive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let kept = keep(&store(dir.path(), 1 << 20), &key("a"), 7);
        assert!(kept.stored_bytes > 0);
        fs::write(dir.path().join("snapshots/.snapshot-cut-short"), "").unwrap();

        let store = store(dir.path(), 1 << 20);
        assert_eq!(fs::read_dir(dir.path().join("snapshots")).unwrap().count(), 2);
        assert!(store.held(&key("a")).is_none());
        let loaded = store.load(&key("a")).unwrap();
        assert_eq!(
            (content(&loaded.memory()), content(&loaded.state)),
            (vec![7; 10_000], b"state".to_vec())
        );
        assert_eq!(loaded.guest_bytes, 1234);
        assert!(Arc::ptr_eq(&store.held(&key("a")).unwrap(), &loaded));
        // Made from other images, it is another's.
        let other = Key {
            inputs: vec![[8; 32]],
            ..key("a")
        };
        assert!(store.held(&other).is_none());
        assert!(matches!(store.load(&other), Err(FormatError::OtherInputs)));
        store.remove("a");
        assert!(matches!(store.load(&key("a")), Err(FormatError::Missing)));
    }

    #[test]
    fn memory_is_bounded_and_the_least_recently_used_goes() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path(), 25_000);
        let in_use = keep(&store, &key("a"), 1);
        keep(&store, &key("b"), 2);
        store.held(&key("a")).unwrap();
        keep(&store, &key("c"), 3);
        assert!(store.held(&key("b")).is_none());
        assert!(store.held(&key("a")).is_some() && store.held(&key("c")).is_some());
        keep(&store, &key("b"), 2);
        assert!(store.held(&key("a")).is_none());
        // Whoever uses it still has it.
        assert_eq!(content(&in_use.memory())[0], 1);
    }

    #[test]
    fn what_was_found_right_is_used_in_place_until_it_changes() {
        let dir = tempfile::tempdir().unwrap();
        let first = store(dir.path(), 15_000);
        let kept = keep(&first, &key("a"), 1);
        let draft = first.layout_draft().unwrap();
        draft.write_all_at(b"layout", 0).unwrap();
        first
            .keep_layout(&key("a"), &kept, (&draft, 6), LearnedFrom::Run)
            .unwrap();
        keep(&first, &key("b"), 2);
        assert!(first.held(&key("a")).is_none(), "there is room for one");
        let loaded = first.load(&key("a")).unwrap();
        assert!(loaded.is_on_disk());
        assert_eq!(content(&loaded.memory()), vec![1; 10_000]);
        assert_eq!(content(&loaded.layout().unwrap().file.file()), b"layout");
        assert!(first.held(&key("b")).is_some(), "it takes no memory");
        // Used again, it is taken into memory, and another goes.
        assert!(!loaded.wants_memory());
        assert!(loaded.wants_memory());
        assert!(!loaded.wants_memory(), "one is enough to do it");
        first.held(&key("a")).unwrap();
        first.promote(&key("a"), &loaded).unwrap();
        assert!(!loaded.is_on_disk() && !loaded.layout().unwrap().file.is_on_disk());
        assert_eq!(content(&loaded.memory()), vec![1; 10_000]);
        assert!(first.held(&key("b")).is_none());

        // A store that has not read it reads it whole.
        assert!(!store(dir.path(), 15_000).load(&key("a")).unwrap().is_on_disk());
        // Changed on disk, it is not used.
        first.held(&key("b"));
        let data = format::data_path(&first.path("b", "snapshot"));
        let mut bytes = fs::read(&data).unwrap();
        bytes[5000] ^= 1;
        fs::write(&data, bytes).unwrap();
        assert!(matches!(first.load(&key("b")), Err(FormatError::Damaged(_))));
    }

    #[test]
    fn files_that_are_kept_open_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path(), 1);
        let names: Vec<String> = (0..OPEN_MAX + 3).map(|n| n.to_string()).collect();
        for name in &names {
            keep(&store, &key(name), 1);
        }
        for name in &names {
            assert!(store.load(&key(name)).unwrap().is_on_disk());
        }
        let open = names.iter().filter(|name| store.held(&key(name)).is_some());
        assert_eq!(open.count(), OPEN_MAX);
    }

    #[test]
    fn layouts_are_swapped_in_and_belong_to_their_snapshot() {
        let dir = tempfile::tempdir().unwrap();
        let first = store(dir.path(), 1 << 20);
        let snapshot = keep(&first, &key("a"), 1);
        let learn = |snapshot: &Arc<Snapshot>, content: &[u8]| {
            let draft = first.layout_draft().unwrap();
            draft.write_all_at(content, 0).unwrap();
            first
                .keep_layout(
                    &key("a"),
                    snapshot,
                    (&draft, content.len() as u64),
                    LearnedFrom::Run,
                )
                .unwrap();
        };
        learn(&snapshot, b"layout of one");
        assert_eq!(content(&snapshot.layout().unwrap().file.file()), b"layout of one");
        // After a restart, what is missing is learned.
        let loaded = store(dir.path(), 1 << 20).load(&key("a")).unwrap();
        assert_eq!(content(&loaded.layout().unwrap().file.file()), b"layout of one");
        assert!(loaded.claim_recording().is_some());
        learn(&snapshot, b"layout of two");
        assert!(snapshot.claim_recording().is_none());
        let loaded = store(dir.path(), 1 << 20).load(&key("a")).unwrap();
        assert_eq!(content(&loaded.layout().unwrap().file.file()), b"layout of two");
        assert!(loaded.claim_recording().is_none());

        // A graft is learned from no further run, and belongs to the base's layout.
        assert_eq!(loaded.layout().unwrap().grafted_on, None);
        let draft = first.layout_draft().unwrap();
        draft.write_all_at(b"graft", 0).unwrap();
        first
            .keep_layout(&key("a"), &snapshot, (&draft, 5), LearnedFrom::Base(7))
            .unwrap();
        let loaded = store(dir.path(), 1 << 20).load(&key("a")).unwrap();
        let (grafted, known) = (loaded.layout().unwrap(), snapshot.layout().unwrap());
        assert_eq!((grafted.grafted_on, loaded.learned_from()), (Some(7), 2));
        assert_eq!(grafted.id, known.id);

        // A snapshot that is made anew has no layout, and does not take the old one's.
        let layout = first.path("a", "layout");
        let files = [layout.clone(), format::data_path(&layout)];
        let old = files.clone().map(|file| fs::read(file).unwrap());
        assert!(keep(&first, &key("a"), 2).layout().is_none());
        assert!(!files[0].exists() && !files[1].exists());
        for (file, old) in files.iter().zip(old) {
            fs::write(file, old).unwrap();
        }
        assert!(
            store(dir.path(), 1 << 20)
                .load(&key("a"))
                .unwrap()
                .layout()
                .is_none()
        );
    }

    #[test]
    fn one_instance_records_at_a_time_and_not_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path(), 1 << 20);
        let snapshot = keep(&store, &key("a"), 1);
        let mut failures = 0;
        while let Some(recording) = snapshot.claim_recording() {
            assert!(snapshot.is_being_recorded() && snapshot.claim_recording().is_none());
            drop(recording);
            // One that came to nothing may be tried again at will; one that failed may not.
            let recording = snapshot.claim_recording().unwrap();
            recording.failed();
            failures += 1;
        }
        assert!((1..10).contains(&failures));
        assert!(!snapshot.is_being_recorded());
    }

    #[test]
    fn a_snapshot_that_the_disk_does_not_take_can_be_used() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path(), 1 << 20);
        fs::remove_dir(dir.path().join("snapshots")).unwrap();
        let snapshot = keep(&store, &key("a"), 4);
        assert_eq!(snapshot.stored_bytes, 0);
        assert_eq!(content(&store.held(&key("a")).unwrap().memory())[0], 4);
        let draft = store.layout_draft().unwrap();
        store
            .keep_layout(&key("a"), &snapshot, (&draft, 0), LearnedFrom::Run)
            .unwrap();
        assert!(snapshot.layout().is_some());
    }

    #[test]
    fn the_fingerprint_is_the_machines() {
        let fingerprint = processor_fingerprint().unwrap();
        assert_eq!(fingerprint.len(), 64);
        assert_eq!(fingerprint, processor_fingerprint().unwrap());
    }
}
